//! The hosts of a case: network namespaces, veth pairs, addresses; all removed again on drop.

use crate::case::Host;
use crate::sys;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where `ip netns` keeps the names of namespaces.
const FOLDER: &str = "/run/netns";

/// PIDs that are given only once between two boots (`RESERVED_PIDS`, kernel/pid.c: numbers that wrap begin there).
const ONCE: u32 = 300;

/// Processes that were there before any namespace of ours and whose PIDs come to nobody else: most of the kernel's
/// threads. Looking at them is most of the cost of finding a namespace's processes.
fn strangers() -> &'static HashSet<u32> {
    static FOUND: OnceLock<HashSet<u32>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid < ONCE).collect()
    })
}

/// One network namespace of ours, listed by `ip netns` while it lives.
#[derive(Debug)]
pub(crate) struct NetNs {
    name: String,
    file: File,
    inode: u64,
}

impl NetNs {
    fn create(name: String) -> Result<Self> {
        strangers();
        let path = Path::new(FOLDER).join(&name);
        std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot create {FOLDER}"))?;
        File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        // The thread ends in its namespace. Starting `ip` three times for the same costs an emulated guest half a second.
        let made = std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<(File, u64)> {
                sys::new_netns(&path).context("no new network namespace (that needs root)")?;
                // Without duplicate address detection an address works at once.
                let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
                let file = File::open(&path)?;
                let inode = file.metadata()?.ino();
                Ok((file, inode))
            });
            thread.join().map_err(|_| anyhow!("a thread of the lab panicked"))?
        });
        match made {
            Ok((file, inode)) => Ok(Self { name, file, inode }),
            Err(error) => {
                let _ = sys::forget_netns(&path);
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The processes that live in this namespace. They are all ours: nobody else knows its name.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| !strangers().contains(pid))
            .filter(|pid| {
                std::fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| m.ino() == self.inode)
            })
            .collect()
    }

    /// Runs `work` in a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fd = self.fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                sys::enter(fd).context("setns")?;
                work()
            });
            thread.join().map_err(|_| anyhow!("a thread of the lab panicked"))?
        })
    }

    /// A command that will start inside the namespace.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::run_in(&mut command, self.fd());
        command
    }

    /// Runs several `ip` commands in one process.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start `ip`; install iproute2")?;
        if let Some(mut stdin) = child.stdin.take() {
            std::io::Write::write_all(&mut stdin, lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "ip: {}in:\n{lines}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            let pids = self.pids();
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                sys::kill(pid, signal);
            }
            let end = std::time::Instant::now() + Duration::from_secs(2);
            while !self.pids().is_empty() && std::time::Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Err(error) = sys::forget_netns(&Path::new(FOLDER).join(&self.name)) {
            crate::report::note(&format!("namespace {} is left over: {error}", self.name));
        }
    }
}

/// All namespaces of a case.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) web: NetNs,
    others: BTreeMap<String, NetNs>,
}

impl World {
    /// Creates `web` and the hosts, connects and addresses them, and waits until the links carry.
    pub(crate) fn create(hosts: &BTreeMap<String, Host>) -> Result<Self> {
        let tag = tag();
        let web = NetNs::create(format!("w502-{tag}-web"))?;
        let mut world = Self { web, others: BTreeMap::new() };
        for name in hosts.keys() {
            let ns = NetNs::create(format!("w502-{tag}-{name}"))?;
            world.others.insert(name.clone(), ns);
        }
        for (name, host) in hosts {
            world.connect(name, host).with_context(|| format!("host {name}"))?;
        }
        // Routes need every link, so they come last.
        for (name, host) in hosts {
            if let Some(via) = &host.via {
                world.route_via(name, host, via, hosts).with_context(|| format!("routes of {name}"))?;
            }
        }
        Ok(world)
    }

    pub(crate) fn get(&self, name: &str) -> Result<&NetNs> {
        if name == "web" {
            return Ok(&self.web);
        }
        self.others.get(name).ok_or_else(|| anyhow!("no host `{name}`"))
    }

    fn connect(&self, name: &str, host: &Host) -> Result<()> {
        let near_name = host.via.as_deref().unwrap_or("web");
        let (near, far) = (self.get(near_name)?, self.get(name)?);
        near.ip(&format!("link add to-{name} type veth peer name to-{near_name} netns {}\n", far.name))?;
        let mut here = String::new();
        let mut there = String::new();
        for address in host.address4.iter().chain(&host.address6) {
            here += &format!("addr add {} dev to-{name} nodad\n", first(address)?);
            there += &format!("addr add {address} dev to-{near_name} nodad\n");
        }
        here += &format!("link set to-{name} up\n");
        there += &format!("link set to-{near_name} up\n");
        if host.via.is_none() {
            for address in host.address4.iter().chain(&host.address6) {
                there += &format!("route add default via {}\n", bare(&first(address)?));
            }
        }
        near.ip(&here)?;
        far.ip(&there)?;
        // The kernel gives a link its fe80:: address when it carries; neighbour discovery needs that address.
        for (ns, device) in [(near, format!("to-{name}")), (far, format!("to-{near_name}"))] {
            ns.run(|| {
                let up = || {
                    let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6");
                    table.map_or(true, |t| t.lines().any(|l| l.starts_with("fe80") && l.ends_with(&device)))
                };
                ensure!(sys::poll_until(Duration::from_secs(10), up), "the link {device} does not carry");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn route_via(&self, name: &str, host: &Host, via: &str, hosts: &BTreeMap<String, Host>) -> Result<()> {
        let router = hosts.get(via).ok_or_else(|| anyhow!("no host `{via}`"))?;
        let (mut web, mut far) = (String::new(), String::new());
        for (address, gateway) in [(&host.address4, &router.address4), (&host.address6, &router.address6)] {
            if let (Some(address), Some(gateway)) = (address, gateway) {
                web += &format!("route add {} via {}\n", network(address)?, bare(gateway));
                far += &format!("route add default via {}\n", bare(&first(address)?));
            }
        }
        self.web.ip(&web)?;
        self.get(name)?.ip(&far)?;
        self.get(via)?.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
            Ok(())
        })
    }
}

/// Runs a command to its end; its stderr is the error.
pub(crate) fn command_ok(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A name that no other run uses, now or before.
pub(crate) fn tag() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}{:04x}{count:x}", std::process::id(), (now >> 8) & 0xffff)
}

fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}

/// `.1` or `::1` of the network of an address that ends in `.2` or `::2`.
fn first(address: &str) -> Result<String> {
    replace_host(address, "1")
}

fn network(address: &str) -> Result<String> {
    replace_host(address, if address.contains(':') { "" } else { "0" })
}

fn replace_host(address: &str, host: &str) -> Result<String> {
    let (ip, length) = address.split_once('/').unwrap_or((address, ""));
    match ip.strip_suffix('2') {
        Some(prefix) if prefix.ends_with(['.', ':']) && !length.is_empty() => {
            Ok(format!("{prefix}{host}/{length}"))
        }
        _ => bail!("address `{address}`: write A.B.C.2/24 or prefix::2/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_ends() {
        assert_eq!(first("10.50.1.2/24").unwrap(), "10.50.1.1/24");
        assert_eq!(first("2001:db8:1::2/64").unwrap(), "2001:db8:1::1/64");
        assert_eq!(network("2001:db8:1::2/64").unwrap(), "2001:db8:1::/64");
        assert!(first("10.50.1.12/24").is_err());
        assert!(first("10.50.1.2").is_err());
    }

    #[test]
    fn tags_differ() {
        assert_ne!(tag(), tag());
    }
}

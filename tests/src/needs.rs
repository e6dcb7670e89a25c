//! What a case needs of the machine, and the reason when the machine has it not.

use crate::net::command_ok;
use crate::{nginx, refuse, sys};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// The first need that is not met, in words; None when the case can run.
/// `answers`: why502 sees on this tier what servers answer. `words`: nginx's log is asked.
pub(crate) fn unmet(needs: &[String], answers: bool, words: bool) -> Option<String> {
    needs.iter().find_map(|need| match need.as_str() {
        "answers" => (!answers)
            .then(|| "this kernel shows on this tier nothing of what nginx reads and writes".to_owned()),
        "words" => (!words).then(|| "nothing but nginx's log tells of it".to_owned()),
        other => known(other),
    })
}

/// True for cases that change what the whole machine has once: SELinux's mode and booleans. They run alone.
pub(crate) fn whole_machine(needs: &[String]) -> bool {
    needs.iter().any(|need| need == "selinux")
}

/// What was found the first time: many cases need the same, and asking starts programs.
fn known(need: &str) -> Option<String> {
    static KNOWN: Mutex<BTreeMap<String, Option<String>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(need) {
        return found.clone();
    }
    let found = missing(need);
    known.insert(need.to_owned(), found.clone());
    found
}

fn missing(need: &str) -> Option<String> {
    let (kind, argument) = need.split_once(':').unwrap_or((need, ""));
    let met = match kind {
        "nft" => command_ok(Command::new("nft").args(["list", "tables"])).is_ok(),
        // Its kernel half may be missing: newer kernels are built without it.
        "iptables-legacy" => {
            command_ok(Command::new("unshare").args(["-n", "iptables-legacy", "-S"])).is_ok()
        }
        "tc-flower" => command_ok(Command::new("unshare").args(["-n", "sh", "-c", FLOWER])).is_ok(),
        "ipv6" => Path::new("/proc/net/if_inet6").exists(),
        "tun" => {
            load("tun");
            std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok()
        }
        "conntrack" => {
            load("nf_conntrack_netlink");
            Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()
        }
        // With a policy, which only the guests that are started for it have.
        "selinux" => {
            Path::new("/sys/fs/selinux/policy").exists() && Path::new("/sys/fs/selinux/booleans").exists()
        }
        "nginx-current" => nginx::current().is_some(),
        "php-fpm" => php_fpm(),
        "nginx-stream" => Path::new(nginx::STREAM_MODULE).exists(),
        "lsm" => std::fs::read_to_string("/sys/kernel/security/lsm")
            .is_ok_and(|modules| modules.trim().split(',').any(|module| module == argument)),
        "landlock-tcp" => refuse::has_landlock_tcp(),
        "cgroup-bpf" => refuse::cgroup_root().is_some(),
        "cgroup-memory" => cgroup_memory(),
        "file" => Path::new(argument).exists(),
        "sysctl" => Path::new("/proc/sys").join(argument).exists(),
        "program" => std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(argument).is_file())),
        "kernel" => {
            let least = sys::parse_release(argument);
            return (sys::kernel() < least).then(|| format!("kernel {argument} or later is needed"));
        }
        _ => return Some(format!("unknown need `{need}`; the names are in src/needs.rs")),
    };
    (!met).then(|| format!("this machine has no {need}"))
}

/// The classifier is a module of its own, and small kernels leave it out.
const FLOWER: &str =
    "tc qdisc add dev lo clsact && tc filter add dev lo egress protocol ip flower ip_proto tcp action drop";

/// Debian's program carries its version: php-fpm8.2.
fn php_fpm() -> bool {
    let programs = std::fs::read_dir("/usr/sbin").into_iter().flatten().flatten();
    programs.into_iter().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"php-fpm"))
}

/// Whether groups of processes can limit memory: by cgroup2, if its root hands that on, or by the first version.
fn cgroup_memory() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, at, kind, options, ..] = words.as_slice() else { return false };
        match *kind {
            "cgroup" => options.split(',').any(|option| option == "memory"),
            "cgroup2" => std::fs::read_to_string(Path::new(at).join("cgroup.subtree_control"))
                .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory")),
            _ => false,
        }
    })
}

/// Modules that no system call loads by itself. Built in or absent, the check after it tells.
fn load(module: &str) {
    let _ = command_ok(Command::new("modprobe").args(["-q", module]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        assert_eq!(missing("program:sh"), None);
        assert!(missing("program:no-such-program").is_some());
        assert!(missing("kernel:99.0").unwrap().contains("99.0"));
        assert!(missing("unicorn").unwrap().contains("unknown need"));
    }
}

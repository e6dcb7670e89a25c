//! `cargo xtask setup`: what building and testing need, whether it is here, and how to get it.
//!
//! Looks at files and programs only, so that a machine that has everything is told so at once. Installs on
//! Debian and Ubuntu as root; anywhere else it prints what to run.

mod install;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{binaries, bpf_toolchain, lab, process};

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what is missing
    #[arg(long)]
    no_install: bool,
    /// What the machine is wanted for
    #[arg(long = "for", value_enum, default_value_t, value_name = "PURPOSE")]
    purpose: Purpose,
}

/// What the machine is wanted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// Building why502 with its BPF object
    Build,
    /// The demonstration on this machine
    Demo,
    /// Guest kernels
    Guest,
    /// Tests and benchmarks on this machine
    Test,
    /// Everything
    #[default]
    All,
}

impl Purpose {
    fn covers(self, other: Purpose) -> bool {
        self == other || self == Purpose::All || self == Purpose::Test && other == Purpose::Demo
    }
}

/// How to see that something is there.
#[derive(Clone, Copy, Debug)]
enum Sign {
    Program(&'static str),
    File(&'static str),
    /// A subcommand of the cargo in use: rustup has a stand-in for it even where it is not installed.
    Cargo(&'static str),
}

impl Sign {
    fn is_there(self) -> bool {
        match self {
            Sign::Program(name) => process::find_program(name).is_some(),
            Sign::File(path) => Path::new(path).exists(),
            Sign::Cargo(name) => {
                process::output(binaries::cargo([name, "--version"]).current_dir("/")).is_ok()
            }
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Program(name) => f.write_str(name),
            Sign::File(path) => f.write_str(path),
            Sign::Cargo(name) => write!(f, "cargo {name}"),
        }
    }
}

/// One thing that is needed, and the packages that bring it.
#[derive(Debug)]
struct Need {
    purpose: Purpose,
    sign: Sign,
    /// What it is for: shown when it is missing.
    why: &'static str,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
}

const PATCHELF: Sign = Sign::Program("patchelf");

/// Everything but the BPF toolchain, which `bpf_toolchain` knows.
#[rustfmt::skip] // a table
const NEEDS: &[Need] = &[
    Need { purpose: Purpose::Build, sign: Sign::Program("cc"), why: "links programs",
           debian: "gcc libc6-dev", fedora: "gcc", arch: "gcc" },
    Need { purpose: Purpose::Test, sign: Sign::Program("c++"), why: "builds libFuzzer",
           debian: "g++", fedora: "gcc-c++", arch: "gcc" },
    Need { purpose: Purpose::Demo, sign: Sign::Program("nginx"), why: "what is watched",
           debian: "nginx-full", fedora: "nginx", arch: "nginx" },
    Need { purpose: Purpose::Demo, sign: Sign::Program("ip"), why: "networks of their own for demo and tests",
           debian: "iproute2", fedora: "iproute", arch: "iproute2" },
    Need { purpose: Purpose::Demo, sign: Sign::Program("nft"), why: "firewall faults",
           debian: "nftables", fedora: "nftables", arch: "nftables" },
    Need { purpose: Purpose::Test, sign: Sign::Program("curl"), why: "requests of live tests",
           debian: "curl", fedora: "curl", arch: "curl" },
    Need { purpose: Purpose::Test, sign: Sign::Program("wrk"), why: "load of benchmarks",
           debian: "wrk", fedora: "wrk", arch: "wrk" },
    Need { purpose: Purpose::Test, sign: Sign::Program("openssl"), why: "TLS backends of the fault lab",
           debian: "openssl", fedora: "openssl", arch: "openssl" },
    Need { purpose: Purpose::Test, sign: Sign::File("/usr/bin/python3"), why: "backends of the fault lab",
           debian: "python3", fedora: "python3", arch: "python" },
    Need { purpose: Purpose::Test, sign: Sign::Program("gunicorn"), why: "backends of the fault lab",
           debian: "gunicorn uwsgi-plugin-python3 python3-h2", fedora: "python3-gunicorn", arch: "gunicorn" },
    Need { purpose: Purpose::Test, sign: Sign::Program("memcached"), why: "a backend of the fault lab",
           debian: "memcached", fedora: "memcached", arch: "memcached" },
    // Installing the policy switches nothing on.
    Need { purpose: Purpose::Test, sign: Sign::Program("sesearch"), why: "the oracle of the SELinux policy reader",
           debian: "setools selinux-policy-default", fedora: "setools-console selinux-policy-targeted", arch: "setools" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("qemu-system-x86_64"), why: "runs guest kernels",
           debian: "qemu-system-x86", fedora: "qemu-system-x86-core", arch: "qemu-system-x86" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("mmdebstrap"), why: "makes the guests' root file system",
           debian: "mmdebstrap", fedora: "mmdebstrap", arch: "mmdebstrap" },
    Need { purpose: Purpose::Guest, sign: Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"),
           why: "checks the guests' packages",
           debian: "debian-archive-keyring", fedora: "debian-keyring", arch: "debian-archive-keyring" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("apt-get"), why: "fetches the guests' packages",
           debian: "apt", fedora: "apt", arch: "apt" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("dpkg-deb"), why: "unpacks the guests' packages",
           debian: "dpkg", fedora: "dpkg", arch: "dpkg" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("mke2fs"), why: "makes guest disks",
           debian: "e2fsprogs", fedora: "e2fsprogs", arch: "e2fsprogs" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("depmod"), why: "indexes the guests' modules",
           debian: "kmod", fedora: "kmod", arch: "kmod" },
    Need { purpose: Purpose::Guest, sign: Sign::Program("xz"), why: "unpacks the guests' modules",
           debian: "xz-utils", fedora: "xz", arch: "xz" },
    Need { purpose: Purpose::Guest, sign: PATCHELF, why: "unpacks a current nginx beside the installed one",
           debian: "patchelf", fedora: "patchelf", arch: "patchelf" },
    Need { purpose: Purpose::Test, sign: PATCHELF, why: "unpacks a current nginx beside the installed one",
           debian: "patchelf", fedora: "patchelf", arch: "patchelf" },
    Need { purpose: Purpose::Demo, sign: Sign::Program("setpriv"), why: "ends what was started together with its starter",
           debian: "util-linux", fedora: "util-linux", arch: "util-linux" },
    Need { purpose: Purpose::Demo, sign: Sign::Program("unshare"), why: "a network namespace for the demo",
           debian: "util-linux", fedora: "util-linux", arch: "util-linux" },
];

/// Parts of the Rust toolchain that the tests use, and rustup's names of them.
const COMPONENTS: &[(Sign, &str)] = &[(Sign::Cargo("fmt"), "rustfmt"), (Sign::Cargo("clippy"), "clippy")];

/// What is not there.
struct Lack {
    needs: Vec<&'static Need>,
    components: Vec<&'static str>,
    toolchain: Option<bpf_toolchain::Missing>,
}

impl Lack {
    fn find(purposes: &[Purpose]) -> Lack {
        let wanted = |purpose| purposes.iter().any(|p| p.covers(purpose));
        let absent = |need: &&Need| wanted(need.purpose) && !need.sign.is_there();
        let components = COMPONENTS.iter().filter(|(sign, _)| wanted(Purpose::Test) && !sign.is_there());
        let mut needs: Vec<&'static Need> = NEEDS.iter().filter(absent).collect();
        // Two purposes may need the same for the same reason.
        needs.dedup_by_key(|need| (need.debian, need.why));
        Lack {
            needs,
            components: components.map(|(_, name)| *name).collect(),
            toolchain: if wanted(Purpose::Build) { bpf_toolchain::detect().err() } else { None },
        }
    }

    fn is_empty(&self) -> bool {
        self.needs.is_empty() && self.components.is_empty() && self.toolchain.is_none()
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.needs.is_empty() {
            writeln!(f, "missing:")?;
            for need in &self.needs {
                writeln!(f, "  - {} ({})", need.sign, need.why)?;
            }
            writeln!(f, "to install them:")?;
            writeln!(
                f,
                "  Debian, Ubuntu  apt-get install --no-install-recommends {}",
                list(&self.needs, |n| n.debian)
            )?;
            writeln!(f, "  Fedora          dnf install {}", list(&self.needs, |n| n.fedora))?;
            writeln!(
                f,
                "  Arch            pacman -S {}   (what it does not know is in the AUR)",
                list(&self.needs, |n| n.arch)
            )?;
        }
        if !self.components.is_empty() {
            let names = self.components.join(" ");
            writeln!(f, "missing of the Rust toolchain: {names}")?;
            writeln!(f, "  rustup          rustup component add {names}")?;
            writeln!(f, "  else            your distribution's packages of the same names")?;
        }
        if let Some(toolchain) = &self.toolchain {
            write!(f, "{toolchain}")?;
        }
        Ok(())
    }
}

/// Runs `cargo xtask setup`.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let lack = Lack::find(&[args.purpose]);
    if lack.is_empty() {
        println!("setup: nothing is missing");
        current_nginx(args);
        return Ok(ExitCode::SUCCESS);
    }
    if args.no_install || !can_install() {
        print!("{lack}");
        if !args.no_install {
            eprintln!("setup: {BY_HAND}");
        }
        return Ok(ExitCode::FAILURE);
    }
    install_all(&lack, &[args.purpose])?;
    println!("setup: everything is there now");
    current_nginx(args);
    Ok(ExitCode::SUCCESS)
}

/// Gets a current nginx if the purpose has tests with it. That there is none is no failure: they are skipped then.
fn current_nginx(args: &Args) {
    if !args.purpose.covers(Purpose::Test) && !args.purpose.covers(Purpose::Guest) {
        return;
    }
    match lab::current_nginx(args.no_install) {
        Ok(nginx) => println!("setup: nginx {} for tests in {}", nginx.version, nginx.dir.display()),
        Err(error) => println!("setup: no current nginx, tests with it will be skipped: {error:#}"),
    }
}

/// What another task needs: installs what is missing, or fails with the list if it may not or cannot.
pub(crate) fn ensure(purposes: &[Purpose], no_install: bool) -> Result<()> {
    let lack = Lack::find(purposes);
    if lack.is_empty() {
        return Ok(());
    }
    if no_install {
        bail!("something is missing, and --no-install was given\n{lack}");
    }
    if !can_install() {
        bail!("something is missing; setup {BY_HAND}\n{lack}");
    }
    install_all(&lack, purposes)
}

const BY_HAND: &str =
    "installs by itself on Debian and Ubuntu as root only; elsewhere, run the commands listed here";

fn can_install() -> bool {
    process::is_root() && install::is_debian_like()
}

fn install_all(lack: &Lack, purposes: &[Purpose]) -> Result<()> {
    install::install(lack)?;
    let lack = Lack::find(purposes);
    if !lack.is_empty() {
        bail!("something is still missing after the installation\n{lack}");
    }
    Ok(())
}

/// Package names of one distribution, each once.
fn list(needs: &[&Need], of: impl Fn(&Need) -> &'static str) -> String {
    let mut names: Vec<&str> = needs.iter().flat_map(|need| of(need).split_whitespace()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes() {
        assert!(Purpose::All.covers(Purpose::Build) && Purpose::All.covers(Purpose::Test));
        assert!(Purpose::Build.covers(Purpose::Build) && !Purpose::Build.covers(Purpose::Test));
        assert!(Purpose::Test.covers(Purpose::Demo) && !Purpose::Demo.covers(Purpose::Test));
    }

    #[test]
    fn a_lack_names_things_reasons_and_commands() {
        let needs: Vec<&Need> =
            NEEDS.iter().filter(|need| matches!(need.sign, Sign::Program("nft" | "ip"))).collect();
        let text = Lack { needs, components: vec!["clippy"], toolchain: None }.to_string();
        for part in [
            "  - nft (firewall faults)",
            "apt-get install --no-install-recommends iproute2 nftables\n",
            "dnf install iproute nftables\n",
            "pacman -S iproute2 nftables ",
            "rustup component add clippy\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        let toolchain = Some(bpf_toolchain::Missing { compiler: true, linker: false });
        let text = Lack { needs: Vec::new(), components: Vec::new(), toolchain }.to_string();
        assert!(text.contains("no Rust compiler") && !text.starts_with("missing:"), "{text}");
    }

    #[test]
    fn package_lists_have_no_duplicates() {
        let twice: Vec<&Need> = NEEDS.iter().chain(NEEDS).collect();
        assert_eq!(list(&twice, |need| need.arch).matches("nginx").count(), 1);
    }
}

//! `cargo xtask setup`: what building and testing need, whether it is here, and how to get it.
//!
//! Looks at files and programs only, so that a machine that has everything is told so at once. Installs on
//! Debian and Ubuntu as root; anywhere else it prints what to run.

mod install;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{bpf_toolchain, process};

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
enum Purpose {
    /// Building why502 with its BPF object
    Build,
    /// Tests, guest kernels and benchmarks
    Test,
    /// Both
    #[default]
    All,
}

impl Purpose {
    fn covers(self, other: Purpose) -> bool {
        self == Purpose::All || self == other
    }
}

/// How to see that something is there.
#[derive(Clone, Copy, Debug)]
enum Sign {
    Program(&'static str),
    File(&'static str),
}

impl Sign {
    fn is_there(self) -> bool {
        match self {
            Sign::Program(name) => process::find_program(name).is_some(),
            Sign::File(path) => Path::new(path).exists(),
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Program(name) => f.write_str(name),
            Sign::File(path) => f.write_str(path),
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

/// Everything but the BPF toolchain, which `bpf_toolchain` knows.
#[rustfmt::skip] // a table
const NEEDS: &[Need] = &[
    Need { purpose: Purpose::Build, sign: Sign::Program("cc"), why: "links programs",
           debian: "gcc libc6-dev", fedora: "gcc", arch: "gcc" },
    Need { purpose: Purpose::Test, sign: Sign::Program("nginx"), why: "what is watched in live tests",
           debian: "nginx-full", fedora: "nginx", arch: "nginx" },
    Need { purpose: Purpose::Test, sign: Sign::Program("ip"), why: "network namespaces for live tests",
           debian: "iproute2", fedora: "iproute", arch: "iproute2" },
    Need { purpose: Purpose::Test, sign: Sign::Program("nft"), why: "firewall faults",
           debian: "nftables", fedora: "nftables", arch: "nftables" },
    Need { purpose: Purpose::Test, sign: Sign::Program("curl"), why: "requests of live tests",
           debian: "curl", fedora: "curl", arch: "curl" },
    Need { purpose: Purpose::Test, sign: Sign::Program("wrk"), why: "load of benchmarks",
           debian: "wrk", fedora: "wrk", arch: "wrk" },
    Need { purpose: Purpose::Test, sign: Sign::Program("qemu-system-x86_64"), why: "runs guest kernels",
           debian: "qemu-system-x86", fedora: "qemu-system-x86-core", arch: "qemu-system-x86" },
    Need { purpose: Purpose::Test, sign: Sign::Program("mmdebstrap"), why: "makes the guests' root file system",
           debian: "mmdebstrap", fedora: "mmdebstrap", arch: "mmdebstrap" },
    Need { purpose: Purpose::Test, sign: Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"),
           why: "checks the guests' packages",
           debian: "debian-archive-keyring", fedora: "debian-keyring", arch: "debian-archive-keyring" },
    Need { purpose: Purpose::Test, sign: Sign::Program("apt-get"), why: "fetches the guests' packages",
           debian: "apt", fedora: "apt", arch: "apt" },
    Need { purpose: Purpose::Test, sign: Sign::Program("dpkg-deb"), why: "unpacks the guests' packages",
           debian: "dpkg", fedora: "dpkg", arch: "dpkg" },
    Need { purpose: Purpose::Test, sign: Sign::Program("mke2fs"), why: "makes guest disks",
           debian: "e2fsprogs", fedora: "e2fsprogs", arch: "e2fsprogs" },
    Need { purpose: Purpose::Test, sign: Sign::Program("depmod"), why: "indexes the guests' modules",
           debian: "kmod", fedora: "kmod", arch: "kmod" },
    Need { purpose: Purpose::Test, sign: Sign::Program("xz"), why: "unpacks the guests' modules",
           debian: "xz-utils", fedora: "xz", arch: "xz" },
    Need { purpose: Purpose::Test, sign: Sign::Program("setpriv"), why: "ends a guest with its test",
           debian: "util-linux", fedora: "util-linux", arch: "util-linux" },
];

/// What is not there.
struct Lack {
    needs: Vec<&'static Need>,
    toolchain: Option<bpf_toolchain::Missing>,
}

impl Lack {
    fn find(purpose: Purpose) -> Lack {
        let needs =
            NEEDS.iter().filter(|need| purpose.covers(need.purpose) && !need.sign.is_there()).collect();
        let toolchain = if purpose.covers(Purpose::Build) { bpf_toolchain::detect().err() } else { None };
        Lack { needs, toolchain }
    }

    fn is_empty(&self) -> bool {
        self.needs.is_empty() && self.toolchain.is_none()
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
        if let Some(toolchain) = &self.toolchain {
            write!(f, "{toolchain}")?;
        }
        Ok(())
    }
}

/// Runs `cargo xtask setup`.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let lack = Lack::find(args.purpose);
    if lack.is_empty() {
        println!("setup: nothing is missing");
        return Ok(ExitCode::SUCCESS);
    }
    if args.no_install || !process::is_root() || !install::is_debian_like() {
        print!("{lack}");
        if !args.no_install {
            eprintln!("setup: installs by itself on Debian and Ubuntu as root only; run the commands above");
        }
        return Ok(ExitCode::FAILURE);
    }
    install::install(&lack)?;
    let lack = Lack::find(args.purpose);
    if !lack.is_empty() {
        bail!("something is still missing after the installation\n{lack}");
    }
    println!("setup: everything is there now");
    Ok(ExitCode::SUCCESS)
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
    }

    #[test]
    fn a_lack_names_things_reasons_and_commands() {
        let needs: Vec<&Need> =
            NEEDS.iter().filter(|need| matches!(need.sign, Sign::Program("nft" | "ip"))).collect();
        let text = Lack { needs, toolchain: None }.to_string();
        for part in [
            "  - nft (firewall faults)",
            "apt-get install --no-install-recommends iproute2 nftables\n",
            "dnf install iproute nftables\n",
            "pacman -S iproute2 nftables ",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        let toolchain = Some(bpf_toolchain::Missing { compiler: true, linker: false });
        let text = Lack { needs: Vec::new(), toolchain }.to_string();
        assert!(text.contains("no Rust compiler") && !text.starts_with("missing:"), "{text}");
    }

    #[test]
    fn package_lists_have_no_duplicates() {
        let twice: Vec<&Need> = NEEDS.iter().chain(NEEDS).collect();
        assert_eq!(list(&twice, |need| need.arch).matches("nginx").count(), 1);
    }
}

//! Installs what is missing with apt, and bpf-linker with cargo. Needs root; every step is announced.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Lack, list};
use crate::bpf_toolchain::{self, Flavor};
use crate::process;

/// The version the build was tried with.
const BPF_LINKER: &str = "0.13.0";
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Package sets that hold a rustc with `core` for BPF: rustc-web is Debian's current compiler for its stable
/// releases; testing and later have it as plain rustc.
const COMPILERS: &[&[&str]] =
    &[&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"], &["rustc", "cargo", "libstd-rust-dev-bpf"]];

/// Whether apt rules this machine.
pub(super) fn is_debian_like() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| names_debian(&text))
        && process::find_program("apt-get").is_some()
}

/// Installs what `lack` names.
pub(super) fn install(lack: &Lack) -> Result<()> {
    if !lack.components.is_empty() {
        add_components(&lack.components)?;
    }
    if lack.needs.is_empty() && lack.toolchain.is_none() {
        return Ok(());
    }
    eprintln!("setup: apt-get update");
    process::output(apt_get().arg("update"))
        .context("cannot fetch the package lists: check the network and /etc/apt/sources.list*")?;

    let mut packages: Vec<String> =
        list(&lack.needs, |need| need.debian).split_whitespace().map(str::to_owned).collect();
    if lack.toolchain.as_ref().is_some_and(|missing| missing.compiler) {
        packages.extend(compiler_packages()?);
    }
    install_packages(&packages)?;

    if lack.toolchain.as_ref().is_some_and(|missing| missing.linker) {
        install_bpf_linker()?;
    }
    Ok(())
}

fn install_packages(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    eprintln!("setup: installing {}", packages.join(" "));
    let _policy = StartNothing::new()?;
    process::output(apt_get().args(["install", "-y", "--no-install-recommends"]).args(packages))?;
    Ok(())
}

/// rustup knows from its environment which toolchain runs this task.
fn add_components(names: &[&str]) -> Result<()> {
    if process::find_program("rustup").is_none() {
        bail!(
            "cargo has no {}, and there is no rustup to add it: install your distribution's package",
            names.join(", ")
        );
    }
    eprintln!("setup: rustup component add {}", names.join(" "));
    process::output(Command::new("rustup").args(["component", "add"]).args(names))?;
    Ok(())
}

fn compiler_packages() -> Result<Vec<String>> {
    for set in COMPILERS {
        if set.iter().all(|package| is_available(package)) {
            return Ok(set.iter().map(|package| (*package).to_owned()).collect());
        }
    }
    bail!(
        "this release has no rustc with `core` for {}: run `rustup toolchain install nightly --component rust-src`, \
         then `cargo xtask setup` again",
        bpf_toolchain::TARGET
    );
}

/// bpf-linker must be linked with the LLVM that the compiler uses.
fn install_bpf_linker() -> Result<()> {
    let flavor = bpf_toolchain::find_compiler().context(
        "there is still no compiler for BPF: `cargo xtask setup --no-install --for build` says what to do",
    )?;
    let rustc = match &flavor {
        Flavor::Packaged { rustc, .. } => rustc.clone(),
        Flavor::Nightly { toolchain } => {
            let which =
                process::output(Command::new("rustup").args(["which", "--toolchain", toolchain, "rustc"]))?;
            PathBuf::from(String::from_utf8_lossy(&which.stdout).trim())
        }
    };
    let llvm = bpf_toolchain::llvm_major(&rustc)
        .with_context(|| format!("{} -vV does not print its LLVM version", rustc.display()))?;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let mut packages = Vec::new();
    for (sign, package) in
        [("bin/llvm-config", format!("llvm-{llvm}-dev")), ("lib/libPolly.a", format!("libpolly-{llvm}-dev"))]
    {
        if !prefix.join(sign).exists() {
            packages.push(package);
        }
    }
    if process::find_program("c++").is_none() {
        packages.push("g++".into());
    }
    if let Some(absent) = packages.iter().find(|package| !is_available(package)) {
        bail!(
            "bpf-linker needs LLVM {llvm} as {} has it, but this release has no {absent}: take it from apt.llvm.org, \
             or install a prebuilt bpf-linker into cargo's bin folder",
            rustc.display()
        );
    }
    install_packages(&packages)?;

    // `cargo xtask` runs under some cargo; its settings for this workspace must not reach the installation.
    let cargo = match flavor {
        Flavor::Packaged { cargo, .. } if process::find_program("cargo").is_none() => cargo,
        Flavor::Packaged { .. } | Flavor::Nightly { .. } => PathBuf::from("cargo"),
    };
    let feature = format!("llvm-{llvm}");
    eprintln!("setup: cargo install bpf-linker {BPF_LINKER} with {feature} (about a minute)");
    let mut path = prefix.join("bin").into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(cargo);
    bpf_toolchain::clean(&mut command)
        .envs(env::vars_os().filter(|(name, _)| is_network_setting(&name.to_string_lossy())))
        .env("PATH", path)
        .env("LLVM_PREFIX", &prefix)
        .current_dir("/")
        .args(["install", "bpf-linker", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", &feature]);
    process::visible(&mut command)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").arg("-q");
    command
}

fn is_available(package: &str) -> bool {
    // Prints nothing for an unknown package, "Candidate: (none)" for one that is only referred to.
    process::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package])).is_ok_and(
        |policy| {
            let text = String::from_utf8_lossy(&policy.stdout);
            text.lines().any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
        },
    )
}

/// Settings of the user's cargo for proxies, certificates and mirrors, which an installation needs too.
fn is_network_setting(variable: &str) -> bool {
    ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"].iter().any(|prefix| variable.starts_with(prefix))
}

/// While it lives, packages do not start their services (Debian Policy 9.3.3.1): a test machine wants nginx's
/// program, not a server on port 80. A policy that the machine has already is left alone.
struct StartNothing {
    ours: bool,
}

impl StartNothing {
    fn new() -> Result<StartNothing> {
        let Ok(mut file) = File::create_new(POLICY) else {
            return Ok(StartNothing { ours: false });
        };
        let policy = StartNothing { ours: true };
        file.write_all(b"#!/bin/sh\n# of `cargo xtask setup`, removed at its end\nexit 101\n")
            .and_then(|()| file.set_permissions(Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {POLICY}"))?;
        Ok(policy)
    }
}

impl Drop for StartNothing {
    fn drop(&mut self) {
        if self.ours && Path::new(POLICY).exists() && fs::remove_file(POLICY).is_err() {
            eprintln!("setup: cannot remove {POLICY}: remove it, or no package can start its service");
        }
    }
}

/// Whether an os-release(5) file is Debian's or a derivative's.
fn names_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split_whitespace())
        .any(|id| id == "debian" || id == "ubuntu")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_settings_of_cargo() {
        assert!(is_network_setting("CARGO_HTTP_CAINFO") && is_network_setting("CARGO_REGISTRIES_X_INDEX"));
        assert!(!is_network_setting("CARGO_TARGET_DIR") && !is_network_setting("HTTP_PROXY"));
    }

    #[test]
    fn distributions() {
        assert!(names_debian("PRETTY_NAME=\"Debian\"\nID=debian\n"));
        assert!(names_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!names_debian("ID=fedora\nVARIANT_ID=debian\n"));
        assert!(!names_debian("ID=arch\n"));
    }
}

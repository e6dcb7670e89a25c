//! The workspace's own programs: builds them with the cargo that runs this task and asks it where they are.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo xtask`; a copied binary knows where it was built.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.ends_with("xtask"))
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// cargo, in the root of the workspace.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Programs by name.
#[derive(Debug, Default)]
pub(crate) struct Binaries(BTreeMap<String, PathBuf>);

impl Binaries {
    /// The path of a program that was built.
    pub(crate) fn get(&self, name: &str) -> Result<&Path> {
        match self.0.get(name) {
            Some(path) => Ok(path),
            None => bail!("cargo built no program {name}: is it still a [[bin]] of the workspace?"),
        }
    }
}

/// Runs `cargo build --release` with `selection`, such as `--package tracer`; cargo's messages go to stderr.
pub(crate) fn build(selection: &[&str]) -> Result<Binaries> {
    let mut command = cargo(["build", "--release", "--message-format=json-render-diagnostics"]);
    command.args(selection).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", process::describe(&command)))?;
    let mut binaries = Binaries::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read cargo's messages")?;
            binaries.0.extend(executable(&line));
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("{} failed ({status}): its messages are above", process::describe(&command));
    }
    Ok(binaries)
}

/// Name and path of the program that a message of cargo announces.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    let name = message.pointer("/target/name")?.as_str()?;
    Some((name.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_in_cargos_messages() {
        let message = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"why502"},
            "executable":"/t/release/why502"}"#;
        assert_eq!(executable(message), Some(("why502".into(), "/t/release/why502".into())));
        assert_eq!(executable(r#"{"target":{"name":"tracer"},"executable":null}"#), None);
        assert_eq!(executable("   Compiling tracer"), None);
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}

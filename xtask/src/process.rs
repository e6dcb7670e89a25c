//! Runs other programs: every failure names the program, how it ended and the end of its stderr.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's stderr goes into the error, in bytes.
const STDERR_TAIL: usize = 2000;

/// Runs `command` with captured output; an exit status other than 0 is an error with the end of stderr.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| not_started(&program))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}):\n{}", describe(command), output.status, tail(stderr.trim_end(), STDERR_TAIL));
    }
    Ok(output)
}

/// Runs `command` with the caller's stdout and stderr; an exit status other than 0 is an error.
pub(crate) fn visible(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status().with_context(|| not_started(&program))?;
    if !status.success() {
        bail!("{} failed ({status}): its output is above", describe(command));
    }
    Ok(())
}

/// The command as one would type it, without folder and quoting: for messages only.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// The last `limit` bytes of `text`, cut at a character boundary.
pub(crate) fn tail(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Finds an executable in `$PATH` and in the directories that non-root users often lack there.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Whether this process runs as root: /proc/self belongs to the effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn not_started(program: &str) -> String {
    format!("cannot run {program}: is it installed? `cargo xtask setup` installs what is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_status_and_stderr() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3") && text.ends_with("why"), "{text}");
        let error = output(&mut Command::new("no-such-program-502")).unwrap_err();
        assert!(format!("{error:#}").contains("cargo xtask setup"));
    }

    #[test]
    fn tails_respect_characters() {
        assert_eq!(tail("aé", 1), "");
        assert_eq!(tail("aé", 2), "é");
        assert_eq!(tail("short", 100), "short");
    }
}

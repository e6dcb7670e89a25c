//! For tests that cannot run where they are. Rust's test harness has no such end: a test that returns has passed. So it says
//! here that it does nothing, and `cargo xtask test` takes it off those that passed and counts it as skipped, by name.

use std::env;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::thread;

/// The variable with the path of the file in which skipped tests are noted, a line each: `PROGRAM TEST: WHY`.
pub const FILE: &str = "WHY502_SKIPS";

/// Says that the test at work does nothing here; then it must return. To be called on the test's own thread, whose name is the
/// test's.
///
/// # Panics
/// If the test harness names no test, or the file cannot be written: a skipped test that is not counted is a fault.
pub fn skipped(why: &str) {
    let program = env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let program = program.unwrap_or_default();
    // Cargo adds a hash to the name of the test program.
    let program = program.rsplit_once('-').map_or(program.as_str(), |(name, _)| name);
    let this = thread::current();
    let test = this.name().unwrap_or_default();
    let line = format!("{program} {test}: {}\n", why.lines().next().unwrap_or_default());
    eprint!("skipped: {line}");
    if let Some(path) = env::var_os(FILE) {
        assert!(!test.is_empty(), "a test is skipped on a thread that is not its own: {why}");
        assert!(note(Path::new(&path), &line), "cannot note in {} that a test is skipped", path.display());
    }
}

/// Adds a line in one write: many test programs and threads share the file.
fn note(path: &Path, line: &str) -> bool {
    let file = File::options().create(true).append(true).open(path);
    file.is_ok_and(|mut file| file.write_all(line.as_bytes()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added() {
        let dir = tempfile::tempdir().ok();
        let path = dir.as_ref().map(|dir| dir.path().join("skips")).unwrap_or_default();
        assert!(note(&path, "a b: c\n") && note(&path, "d e: f\n"));
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), "a b: c\nd e: f\n");
        assert!(!note(Path::new("/nowhere/at/all"), "x\n"));
    }
}

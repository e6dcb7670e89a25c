//! What the live tests share. Namespaces here have no name: they end with their last handle, so even a killed
//! test run leaves nothing behind.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::netns::NetNs;

/// Whether a program is installed; if not, the test is skipped.
pub(super) fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let has = found.is_ok_and(|output| output.status.success());
    if !has {
        why502_skip::skipped(&format!("{program} is not installed"));
    }
    has
}

/// A new network namespace with `lo` up, or `None`, and the test is skipped.
pub(super) fn namespace() -> Option<NetNs> {
    if !has("ip") {
        return None;
    }
    let made = thread::spawn(|| {
        // SAFETY: unshare(2) takes no pointers; this thread ends right after.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(NetNs::current().unwrap())
    });
    match made.join().unwrap() {
        Ok(ns) => {
            run(&ns, "ip link set lo up");
            Some(ns)
        }
        Err(error) => {
            why502_skip::skipped(&format!(
                "a network namespace cannot be made ({error}); run the tests as root"
            ));
            None
        }
    }
}

/// Runs a command line inside a namespace; it must succeed.
pub(super) fn run(ns: &NetNs, line: &str) {
    let output = ns.run(|| Command::new("sh").args(["-ec", line]).output().unwrap()).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Asks `probe` until it answers, for at most five seconds.
pub(super) fn poll<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if let Some(value) = probe() {
            return value;
        }
        thread::park_timeout(Duration::from_millis(2));
    }
    panic!("{what}: not seen within 5 s");
}

/// A child process inside a namespace, killed on drop.
pub(super) struct Resident(Child);

impl Resident {
    pub(super) fn new(ns: &NetNs) -> Self {
        let command = "echo ready; exec cat";
        let mut child = ns
            .run(|| {
                Command::new("sh")
                    .args(["-c", command])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self(child)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

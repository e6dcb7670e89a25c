//! A run of the program: started, watched, ended within bounds; on failure everything about it is shown.

use std::{
    env, fmt,
    io::Read,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracer::sys::caps::{self, Capability};

/// Nothing here takes a second on an idle machine; a loaded one gets time.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) const WHY502: &str = env!("CARGO_BIN_EXE_why502");

/// The program with arguments, without the caller's wishes about colours.
pub(crate) fn why502(args: &[&str]) -> Command {
    let mut command = Command::new(WHY502);
    command.args(args);
    plain(&mut command);
    command
}

/// Another program, that runs the one under test.
pub(crate) fn through(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    plain(&mut command);
    command
}

/// Without what the caller's environment says of colours and widths; `CI` is among it: a terminal in a CI job counts
/// as one that knows colours, whatever `TERM` says.
fn plain(command: &mut Command) {
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "CI", "COLUMNS", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm").stdin(Stdio::null());
}

/// True if BPF programs can be attached here; else says why the test is skipped.
pub(crate) fn can_attach() -> bool {
    let host = caps::host().unwrap();
    let needed = [Capability::Bpf, Capability::Perfmon, Capability::SysPtrace, Capability::SysAdmin];
    let missing: Vec<_> =
        needed.into_iter().filter(|c| !host.effective.has(*c)).map(Capability::name).collect();
    let why = if !missing.is_empty() {
        format!("needs root ({} missing)", missing.join(", "))
    } else if !host.initial_pid_ns {
        "runs in a PID namespace of its own".to_owned()
    } else {
        return true;
    };
    why502_skip::skipped(&why);
    false
}

/// True if the tool is there; else says that the test is skipped.
pub(crate) fn has(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|p| p.join(tool).exists());
    if !found {
        why502_skip::skipped(&format!("{tool} is not installed"));
    }
    found
}

/// Asks again and again until it is so or the bound is reached.
pub(crate) fn poll(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + BOUND;
    while Instant::now() < end {
        if is_so() {
            return true;
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    is_so()
}

/// What came out of a pipe so far.
#[derive(Clone, Default)]
pub(crate) struct Stream(Arc<(Mutex<Received>, Condvar)>);

/// Bytes so far, and whether that is all.
type Received = (Vec<u8>, bool);

impl Stream {
    /// Reads in the background until the other side closes; a pty reports that as an error.
    pub(crate) fn follow(mut from: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let shared = stream.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = from.read(&mut buffer).unwrap_or(0);
                let mut state = shared.0.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.0.extend_from_slice(buffer.get(..read).unwrap_or_default());
                state.1 = read == 0;
                shared.0.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// All so far.
    pub(crate) fn text(&self) -> String {
        let state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.0).into_owned()
    }

    /// Waits until the text is as wanted; false if the stream ended or time ran out before.
    pub(crate) fn wait(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let end = Instant::now() + BOUND;
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if wanted(&String::from_utf8_lossy(&state.0)) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return false;
            }
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// One that has ended already.
    fn nothing() -> Self {
        Self::follow(std::io::empty())
    }

    fn closed(&self) {
        self.wait(|_| false);
    }
}

/// A program that runs.
pub(crate) struct Live {
    child: Child,
    command: String,
    began: Instant,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
}

impl Live {
    /// Starts it with its stdout in a pipe.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut live = Self::start_with(command, Stdio::piped());
        live.stdout = live.child.stdout.take().map(Stream::follow).unwrap_or_default();
        live
    }

    /// Starts it with a stdout of the caller's; [`Live::stdout`] stays empty.
    pub(crate) fn start_with(command: &mut Command, stdout: Stdio) -> Self {
        let began = Instant::now();
        let mut child = command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stderr = child.stderr.take().map(Stream::follow).unwrap_or_default();
        Self { child, command: format!("{command:?}"), began, stdout: Stream::nothing(), stderr }
    }

    /// Waits for the line that scripts wait for.
    pub(crate) fn watching(mut self) -> Self {
        if !self.stderr.wait(|text| text.contains("why502: watching") && text.ends_with('\n')) {
            let status = self.child.try_wait();
            panic!(
                "no line `why502: watching`: {status:?}\n{}: stderr:\n{}",
                self.command,
                self.stderr.text()
            );
        }
        self
    }

    /// Takes the pipe of stdout away, as a reader does that has had enough. Only for one that nobody follows.
    pub(crate) fn close_stdout(&mut self) {
        drop(self.child.stdout.take());
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: a plain system call; the child has not been waited for, so its PID is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// SIGINT, and the end.
    pub(crate) fn interrupt(self) -> Ended {
        self.signal(libc::SIGINT);
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let mut status = None;
        let ended = poll(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let took = self.began.elapsed();
        assert!(ended, "still running after {took:?}: {}\nstderr:\n{}", self.command, self.stderr.text());
        self.stdout.closed();
        self.stderr.closed();
        Ended {
            command: self.command.clone(),
            status: status.unwrap(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            took,
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A failed test; the test says why.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A run to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    Live::start(command).end()
}

/// A run that has ended.
pub(crate) struct Ended {
    command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// Checks the exit code.
    pub(crate) fn code(&self, expected: i32) -> &Self {
        assert_eq!(self.status.code(), Some(expected), "exit code\n{self}");
        self
    }

    /// Checks that stderr holds each of these.
    pub(crate) fn says(&self, all: &[&str]) -> &Self {
        for text in all {
            assert!(self.stderr.contains(text), "stderr lacks {text:?}\n{self}");
        }
        self
    }

    /// Checks that stdout is empty.
    pub(crate) fn no_data(&self) -> &Self {
        assert!(self.stdout.is_empty(), "stdout is not empty\n{self}");
        self
    }

    /// Checks that stderr is one line of ours.
    pub(crate) fn one_line(&self) -> &Self {
        let lines: Vec<_> = self.stderr.lines().collect();
        assert!(matches!(lines.as_slice(), [line] if line.starts_with("why502: ")), "not one line\n{self}");
        self
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = env::current_dir().unwrap_or_else(|_| Path::new("?").to_owned());
        let Self { command, status, stdout, stderr, took } = self;
        let signal = status.signal().map(|s| format!(", signal {s}")).unwrap_or_default();
        write!(
            f,
            "command: {command}\ncwd: {}\nstatus: {status}{signal} after {took:?}\n\
             ---- stdout\n{stdout}\n---- stderr\n{stderr}\n----",
            here.display()
        )
    }
}

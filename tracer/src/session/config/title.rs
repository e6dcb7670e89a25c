//! The command line of a running nginx, which its master writes over with a title that holds it.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    nginx::{
        binary::Defaults,
        invocation::{self, Invocation, InvocationError},
    },
    sys::{
        proc,
        process::{self, Process},
    },
};

/// How long a title that makes no sense may go on to do so: nginx writes it in microseconds, unless it has to wait for a CPU.
pub(super) const LIMIT: Duration = Duration::from_millis(50);

/// A title that is read while nginx writes it over its arguments leads nowhere, or elsewhere: it has to be the same twice.
pub(super) fn invocation_of(
    master: &Process,
    defaults: &Defaults,
    cwd: &Path,
    limit: Duration,
) -> Result<Invocation, InvocationError> {
    let started = Instant::now();
    let mut title = master.title.clone();
    loop {
        let Ok(now) = process::read_title(master.pid) else {
            return invocation::invocation(&title, defaults, cwd);
        };
        let same = now == title;
        title = now;
        let found = invocation::invocation(&title, defaults, cwd);
        if (same && found.is_ok()) || started.elapsed() >= limit {
            return found;
        }
        if same {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether the title may lack arguments, so that the configuration file may be another.
pub(super) fn is_cut_off(master: &Process) -> bool {
    let read = |what: &str, most: usize| proc::read_up_to(format!("/proc/{}/{what}", master.pid), most);
    // Not the title of `master`, which lacks final blanks: one may be the last thing that fitted.
    let (Ok(stat), Ok(title)) = (read("stat", 4096), read("cmdline", 64 << 10)) else { return false };
    proc::title_room(&stat)
        .is_some_and(|(arguments, environment)| invocation::may_be_cut_off(&title, arguments, environment))
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Child, Command, Stdio},
        time::SystemTime,
    };

    use super::*;
    use crate::sys::process::{Credentials, ExeId, Role};

    /// A process that takes titles, one for each line that it reads.
    pub(crate) struct Titled(Child);

    impl Titled {
        pub(crate) fn new(title: &str) -> Self {
            let script = "$| = 1; while (<STDIN>) { chomp; $0 = $_; print qq(\n) }";
            let mut perl = Command::new("perl");
            let child =
                perl.args(["-e", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut titled = Self(child);
            titled.take(title);
            let mut answer = [0];
            titled.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
            titled
        }

        fn take(&mut self, title: &str) {
            writeln!(self.0.stdin.as_mut().unwrap(), "{title}").unwrap();
        }

        /// As one that was looked at when it had this title.
        pub(crate) fn master(&self, title: &[u8]) -> Process {
            let pid = self.0.id();
            Process {
                pid,
                ppid: 1,
                ns_pids: vec![pid],
                exe: "/usr/sbin/nginx".into(),
                exe_deleted: false,
                exe_id: ExeId { dev: 0, ino: 0 },
                title: title.to_vec(),
                role: Role::Master,
                start_ticks: 0,
                started: SystemTime::now(),
                credentials: Credentials::default(),
                netns: None,
                root_differs: false,
                mounts_differ: false,
                container: None,
            }
        }
    }

    impl Drop for Titled {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_title_is_read_until_it_makes_sense() {
        let found = |process: &Titled, title: &str| {
            let limit = Duration::from_secs(20);
            invocation_of(&process.master(title.as_bytes()), &Defaults::default(), Path::new("/"), limit)
                .unwrap()
                .conf_path
        };
        let whole = "nginx: master process nginx -c /etc/x.conf";
        let mut process = Titled::new(whole);
        // Written in part over `nginx\0-c\0/etc/x.conf`: it looks whole, and has no option.
        assert_eq!(found(&process, "nginx: master process nxf"), Path::new("/etc/x.conf"));
        assert_eq!(found(&process, whole), Path::new("/etc/x.conf"));
        process = Titled::new("nginx: master process nginx -c");
        let late = thread::scope(|scope| {
            let master = process.master(b"nginx: master process nginx -c");
            let found = scope.spawn(move || {
                invocation_of(&master, &Defaults::default(), Path::new("/"), Duration::from_secs(20))
            });
            process.take("nginx: master process nginx -c /etc/y.conf");
            found.join().unwrap()
        });
        assert_eq!(late.unwrap().conf_path, Path::new("/etc/y.conf"));
        let none = Duration::ZERO;
        let cut = Titled::new("nginx: master process nginx -c");
        let found = invocation_of(&cut.master(b"x"), &Defaults::default(), Path::new("/"), none);
        assert_eq!(found, Err(InvocationError::Truncated('c')));
    }
}

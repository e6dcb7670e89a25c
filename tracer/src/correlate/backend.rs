//! The process at the far end of a connection that stood.

use super::unix::PoolLine;
use crate::event::Death;

/// What is known of it; all empty for a server on another machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Backend {
    /// The far end is an address of this machine; None: that could not be asked.
    pub here: Option<bool>,
    /// The process that closed the far end: as it ended, because of a signal, or before an answer.
    pub death: Option<Death>,
    /// That process was gone when it was looked for, [`Backend::looked_us`] after the end.
    pub gone: Option<bool>,
    /// How long after the connection's end processes and sockets were looked at, microseconds.
    pub looked_us: u64,
    /// The far end's socket.
    pub socket: Option<Far>,
    /// Who holds it.
    pub holder: Option<Holder>,
    /// php-fpm's own lines about the pool, where it is one and its lines may have a part in it.
    pub pool: Vec<PoolLine>,
    /// How long that server kept connections that nobody used, when it closed them under nginx's hands: microseconds,
    /// oldest first, this time included.
    pub idle_ends_us: Vec<u64>,
}

/// The far end's socket as it was when it was looked at. nginx has closed its end by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Far {
    /// There is none any more.
    None,
    /// There is one.
    Some(Socket),
}

/// A far end that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Socket {
    /// A process has accepted the connection (or the kernel alone holds its remains).
    pub accepted: bool,
    /// The backend has closed its own end.
    pub closed: bool,
    /// Bytes that arrived and that it has not read: as nginx writes nothing any more, at least as many were unread at the end.
    pub unread: u32,
    /// Bytes that it wrote and that were not acknowledged.
    pub unsent: u32,
}

/// Who holds the far end, and what its threads do.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// `gunicorn (pid 4121)`.
    pub name: String,
    /// Threads by what they did.
    pub threads: Threads,
}

/// States of a process's threads (proc(5), `stat`), as far as they were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Threads {
    /// On a processor or ready for one (R).
    pub running: u32,
    /// Waiting (S).
    pub sleeping: u32,
    /// Waiting for a disk or a lock of the kernel, not to be interrupted (D).
    pub blocked: u32,
    /// Stopped by a signal or a debugger (T, t).
    pub stopped: u32,
    /// Ended, or in another state.
    pub other: u32,
    /// Kernel function that the first waiting thread is in, if told (/proc/PID/wchan).
    pub waits_in: Option<String>,
}

impl Threads {
    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.running + self.sleeping + self.blocked + self.stopped + self.other
    }

    /// `its thread sleeps (ep_poll)`, `8 threads: 1 running, 7 sleeping`; None if none was seen.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let states = [
            (self.running, "running"),
            (self.sleeping, "sleeping"),
            (self.blocked, "in uninterruptible sleep (disk or kernel lock)"),
            (self.stopped, "stopped"),
            (self.other, "ended"),
        ];
        let wait = self.waits_in.as_ref().map(|name| format!(" in {name}")).unwrap_or_default();
        match self.total() {
            0 => None,
            1 => {
                let (_, state) = states.into_iter().find(|(count, _)| *count > 0)?;
                Some(format!("its thread is {state}{wait}"))
            }
            total => {
                let parts: Vec<String> = states
                    .into_iter()
                    .filter(|(count, _)| *count > 0)
                    .map(|(count, state)| format!("{count} {state}"))
                    .collect();
                let wait = if wait.is_empty() { wait } else { format!("; the first waits{wait}") };
                Some(format!("{total} threads: {}{wait}", parts.join(", ")))
            }
        }
    }
}

impl Backend {
    /// The process that closed the far end had been sent a fatal signal not long before: what it did then was its end, or
    /// may have been.
    #[must_use]
    pub fn told_to_end(&self) -> bool {
        self.death.as_ref().is_some_and(told_to_end)
    }
}

/// True if a process was sent a fatal signal within the last ten seconds before it closed the far end.
#[must_use]
pub fn told_to_end(death: &Death) -> bool {
    const SHORTLY_NS: u64 = 10_000_000_000;
    death
        .sent
        .as_ref()
        .is_some_and(|sent| sent.time_ns <= death.time_ns && death.time_ns - sent.time_ns < SHORTLY_NS)
}

/// The apparent idle limit of a server: what several observations agree on to a tenth, microseconds; None if they do not,
/// or if there are fewer than two.
#[must_use]
pub fn idle_limit(ends_us: &[u64]) -> Option<u64> {
    let (least, most) = (ends_us.iter().min()?, ends_us.iter().max()?);
    (ends_us.len() >= 2 && most - least <= most / 10).then_some(*least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_limits() {
        for (ends, limit) in [
            (&[][..], None),
            (&[5_000_000], None),
            (&[5_000_400, 5_001_000], Some(5_000_400)),
            (&[5_000_400, 5_001_000, 5_400_000], Some(5_000_400)),
            (&[5_000_000, 9_000_000], None),
            (&[0, 0], Some(0)),
        ] {
            assert_eq!(idle_limit(ends), limit, "{ends:?}");
        }
    }

    #[test]
    fn threads_in_words() {
        let one =
            Threads { sleeping: 1, waits_in: Some("hrtimer_nanosleep".to_owned()), ..Threads::default() };
        assert_eq!(one.text().unwrap(), "its thread is sleeping in hrtimer_nanosleep");
        let many = Threads { running: 1, sleeping: 7, ..Threads::default() };
        assert_eq!(many.text().unwrap(), "8 threads: 1 running, 7 sleeping");
        assert_eq!(Threads::default().text(), None);
    }
}

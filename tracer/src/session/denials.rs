//! Joins what hooks said with the attempt that failed for it.
//!
//! A worker connects with one thread, and its records come in the order in which they were made: what hooks said in a
//! system call stands before the attempt that the same call ended. So what fits is: same thread, same system call, same
//! socket (connect, bind) or family and type (socket), and since the thread's attempt before.

use std::collections::VecDeque;

use tracer_ebpf::NONE;

use crate::event::{Attempt, Denial, Speaker, Stage};

/// Refusals that no attempt has claimed; more than that and the oldest are let go.
const MOST: usize = 4096;
/// None of these system calls waits: so long only if the worker did not run, ns.
const CALL_NS: u64 = 1_000_000_000;
/// Low bits of socket()'s second argument: SOCK_STREAM and so on (include/linux/net.h, `SOCK_TYPE_MASK`).
const TYPE_MASK: u32 = 0xf;

/// What hooks have said and no attempt has claimed so far.
#[derive(Debug, Default)]
pub(super) struct Denials {
    said: VecDeque<Denial>,
}

impl Denials {
    pub(super) fn note(&mut self, denial: Denial) {
        if self.said.len() >= MOST {
            self.said.pop_front();
        }
        self.said.push_back(denial);
    }

    /// Moves what was said in the system call that ended this attempt into it.
    pub(super) fn join(&mut self, attempt: &mut Attempt) {
        if !matches!(attempt.stage, Stage::Socket | Stage::Bind | Stage::Connect) || self.said.is_empty() {
            return;
        }
        let (joined, rest) = std::mem::take(&mut self.said).into_iter().partition(|d| belongs(d, attempt));
        self.said = rest;
        attempt.denials = Vec::from(joined as VecDeque<Denial>);
        let sum = |d: &Denial| matches!(d.speaker, Speaker::SumConnect | Speaker::SumUnix | Speaker::SumPath);
        if attempt.stage == Stage::Connect && attempt.security.is_none() {
            attempt.security = attempt.denials.iter().find(|d| sum(d) && d.ret < 0).map(|d| d.ret);
        }
    }

    /// Takes what no attempt has claimed and, as the call was over before `now_ns`, none will: what SELinux let through
    /// in permissive mode, and refusals of sockets that are no upstream's.
    pub(super) fn loose(&mut self, now_ns: u64) -> impl Iterator<Item = Denial> {
        let old = |d: &Denial| now_ns.saturating_sub(d.time_ns) > CALL_NS;
        let count = self.said.iter().take_while(|d| old(d)).count();
        self.said.drain(..count)
    }
}

/// True if it was said in the system call that ended this attempt.
fn belongs(d: &Denial, attempt: &Attempt) -> bool {
    let near = d.time_ns <= attempt.end_ns && attempt.end_ns - d.time_ns < CALL_NS;
    // A refusal is what the call returned; what was let through may stand before any other failure of it.
    let same_answer = d.ret == 0 || attempt.ret == 0 || d.ret == attempt.ret;
    if d.worker != attempt.worker || d.thread != attempt.worker || !near || !same_answer {
        return false;
    }
    let call = |nr: libc::c_long| i64::from(d.syscall.unwrap_or(NONE)) == nr;
    match attempt.stage {
        Stage::Socket => {
            call(libc::SYS_socket)
                && family_of(attempt).is_none_or(|family| family == d.family)
                && d.arg & TYPE_MASK == libc::SOCK_STREAM.cast_unsigned()
        }
        Stage::Bind => call(libc::SYS_bind) && d.socket == attempt.socket,
        Stage::Connect => call(libc::SYS_connect) && d.socket == attempt.socket,
        Stage::SynSent | Stage::Established | Stage::Untried => false,
    }
}

/// The family that was asked for, where the attempt's record tells it.
fn family_of(attempt: &Attempt) -> Option<u16> {
    let family = match (&attempt.unix, attempt.remote.is_ipv6()) {
        (Some(_), _) => libc::AF_UNIX,
        (None, true) => libc::AF_INET6,
        (None, false) => libc::AF_INET,
    };
    u16::try_from(family).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(call: libc::c_long, ret: i32) -> Denial {
        Denial {
            speaker: Speaker::SumConnect,
            worker: 7,
            thread: 7,
            time_ns: 1_000,
            socket: 99,
            ret,
            family: u16::try_from(libc::AF_INET).unwrap(),
            remote: None,
            avc: None,
            syscall: u32::try_from(call).ok(),
            arg: libc::SOCK_STREAM.cast_unsigned() | libc::SOCK_NONBLOCK.cast_unsigned(),
        }
    }

    fn attempt(stage: Stage) -> Attempt {
        Attempt { socket: 99, end_ns: 2_000, ret: -libc::EACCES, ..Attempt::blank(stage, 7) }
    }

    fn joined(denial: Denial, stage: Stage) -> usize {
        let mut all = Denials::default();
        all.note(denial);
        let mut attempt = attempt(stage);
        all.join(&mut attempt);
        attempt.denials.len()
    }

    #[test]
    fn the_same_call_of_the_same_thread_and_socket() {
        let connect = || denial(libc::SYS_connect, -libc::EACCES);
        assert_eq!(joined(connect(), Stage::Connect), 1);
        assert_eq!(joined(denial(libc::SYS_connect, 0), Stage::Connect), 1, "let through before");
        assert_eq!(joined(connect(), Stage::Socket), 0, "another call");
        assert_eq!(joined(Denial { thread: 8, ..connect() }, Stage::Connect), 0, "another thread");
        assert_eq!(joined(Denial { socket: 98, ..connect() }, Stage::Connect), 0, "another socket");
        assert_eq!(joined(Denial { ret: -libc::EPERM, ..connect() }, Stage::Connect), 0, "another answer");
        assert_eq!(joined(Denial { time_ns: 3_000, ..connect() }, Stage::Connect), 0, "later");
    }

    #[test]
    fn socket_by_family_and_type() {
        let create = || Denial { socket: 0, ..denial(libc::SYS_socket, -libc::EACCES) };
        assert_eq!(joined(create(), Stage::Socket), 1);
        let family = u16::try_from(libc::AF_INET6).unwrap();
        assert_eq!(joined(Denial { family, ..create() }, Stage::Socket), 0);
        let arg = libc::SOCK_DGRAM.cast_unsigned();
        assert_eq!(joined(Denial { arg, ..create() }, Stage::Socket), 0, "a name server's");
    }

    #[test]
    fn what_nobody_claims_is_loose_after_a_while() {
        let mut all = Denials::default();
        all.note(denial(libc::SYS_connect, 0));
        assert_eq!(all.loose(5_000).count(), 0, "its attempt may still come");
        assert_eq!(all.loose(CALL_NS + 5_000).count(), 1);
        assert_eq!(all.loose(CALL_NS + 5_000).count(), 0);
    }
}

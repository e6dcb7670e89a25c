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

//! Following nginx's processes: a child of a watched process is watched from its first instruction.

use aya_ebpf::{helpers::bpf_get_current_comm, macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_ebpf::{PeerKey, Proc, proc_change, role};

use crate::{
    emit,
    kernel::{self, read},
    maps::{PROCS, setting},
    probes::death,
    procs,
};

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn process_fork(ctx: RawTracePointContext) -> i32 {
    let parent = kernel::tgid();
    // SAFETY: copied at once.
    let Some(mut proc) = (unsafe { PROCS.get(parent) }).copied() else {
        return 0;
    };
    proc.awaiting = 0;
    let child: u64 = ctx.arg(1);
    let pid: u32 = read(child, setting!(task_pid));
    let tgid: u32 = read(child, setting!(task_tgid));
    // A thread, not a process.
    if pid != tgid {
        return 0;
    }
    procs::enter(tgid, &proc);
    emit::proc_event(proc_change::FORK, tgid, parent, [0; 16], false);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let tgid = kernel::tgid();
    let comm = bpf_get_current_comm().unwrap_or_default();
    let known = PROCS.get_ptr(tgid).is_some();
    let like = setting!(follow_new) != 0 && nginx_like(&comm);
    if !known && !like {
        return 0;
    }
    // Whatever it was, it runs another program now: user space looks at the executable and decides.
    procs::enter(
        tgid,
        &Proc {
            role: role::UNVERIFIED,
            root: tgid,
            last: PeerKey { addr: [0; 16], port: 0, _pad: 0 },
            begun: 0,
            sk: 0,
            awaiting: 0,
            failed: 0,
            failed_attempt: [0; 2],
        },
    );
    emit::proc_event(proc_change::EXEC, tgid, 0, comm, true);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn process_exit(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let pid: u32 = read(task, setting!(task_pid));
    let tgid: u32 = read(task, setting!(task_tgid));
    if pid != tgid {
        return 0;
    }
    if PROCS.remove(tgid).is_ok() {
        emit::proc_event(proc_change::EXIT, tgid, 0, [0; 16], false);
    } else {
        death::child_ends(task);
    }
    0
}

/// A first sieve by name, so that user space is not woken by every exec of the host.
#[inline(always)]
fn nginx_like(comm: &[u8; 16]) -> bool {
    let at = |i: usize| comm[i];
    (at(0) == b'n' && at(1) == b'g' && at(2) == b'i' && at(3) == b'n' && at(4) == b'x')
        || (at(0) == b'a' && at(1) == b'n' && at(2) == b'g' && at(3) == b'i' && at(4) == b'e')
        || (at(0) == b't' && at(1) == b'e' && at(2) == b'n' && at(3) == b'g' && at(4) == b'i')
        || (at(0) == b'o' && at(1) == b'p' && at(2) == b'e' && at(3) == b'n' && at(4) == b'r')
}

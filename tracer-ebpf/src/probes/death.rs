//! Who closed the far end of one of nginx's connections as it died, and who killed it.
//!
//! Far ends on this machine are sockets like others: the state hook sees them closed, in the process that closes them. So a
//! process that is ending, or has just been told to, is recognised at the close itself; no list of backends is kept. One that
//! closes before it has sent as much as an answer takes is told as well: connections that serve are hardly ever among these.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_task, generated::bpf_ringbuf_submit},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::{PeerKey, kind, talk::Death};

use crate::{
    emit::{self, count},
    kernel::{self, AF_INET, AF_INET6, has, read},
    maps::{CHILD_ENDS, DOOM, Doomed, EVENTS, PEERS, SIGNALS, setting},
};

// include/net/tcp_states.h
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_RECV: i32 = 3;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LAST_ACK: i32 = 9;

/// `PF_EXITING` of include/linux/sched.h, the same since 2.6.
const PF_EXITING: u32 = 0x4;

/// How long a process may take from a signal to the close that it makes for it: what handlers do before they exit.
const SIGNAL_NS: u64 = 10_000_000_000;

/// Signals that end a process unless it sees to it: INT QUIT ILL ABRT BUS FPE KILL SEGV TERM XCPU SYS.
const FATAL: u32 =
    1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 15 | 1 << 24 | 1 << 31;
/// Of these, what the processor raises: a process that does it to itself (as Java's machines do all day) is told enough by
/// its exit code.
const FAULTS: u32 = 1 << 4 | 1 << 7 | 1 << 8 | 1 << 11;
const SIGKILL: u32 = 9;

/// What the head of an HTTP response is longer than, bytes: a status line with `Date` or `Server` and a length.
pub(super) const ANSWER: u64 = 96;

/// A transition of any socket of the host. What is no close leaves here, and what living processes close after an answer.
#[inline(always)]
pub(super) fn state(sk: u64, old: i32, new: i32) {
    let closes = matches!(new, TCP_FIN_WAIT1 | TCP_LAST_ACK | TCP_CLOSE);
    if !closes || !matches!(old, TCP_ESTABLISHED | TCP_SYN_RECV | TCP_CLOSE_WAIT) {
        return;
    }
    if is_told(read::<u64>(sk, setting!(bytes_sent)) >= ANSWER) {
        closed(sk, old, new);
    }
}

/// True if the current process's close of a far end is worth a record: it is ending, was told to, or has not answered.
#[inline(always)]
pub(super) fn is_told(answered: bool) -> bool {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    !answered || read::<u32>(task, setting!(task_flags)) & PF_EXITING != 0 || signalled()
}

/// True if the current process was sent a fatal signal a moment ago. Where nobody on the host was: one look into an array.
#[inline(always)]
fn signalled() -> bool {
    let Some(until) = DOOM.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: an integer of an array element; a lost race lengthens the time in which is looked further.
    let last = unsafe { core::ptr::read_volatile(until) };
    if last == 0 {
        return false;
    }
    let now = emit::now_ns();
    if now > last {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(until, 0) };
        return false;
    }
    // SAFETY: an integer of a map element.
    SIGNALS.get_ptr(kernel::tgid()).is_some_and(|s| now.wrapping_sub(unsafe { (*s).time_ns }) < SIGNAL_NS)
}

/// Such a close of a TCP socket: is that the far end of a watched connection?
#[inline(never)]
fn closed(sk: u64, old: i32, new: i32) -> u32 {
    let family: u16 = read(sk, setting!(skc_family));
    if family != AF_INET && family != AF_INET6 {
        return 0;
    }
    let mut peer = PeerKey { addr: [0; 16], port: 0, _pad: 0 };
    // SAFETY: a field of a live value.
    unsafe {
        kernel::sock_addr_to(
            &raw mut peer.addr,
            sk,
            family,
            setting!(skc_rcv_saddr),
            setting!(skc_v6_rcv_saddr),
        );
    }
    peer.port = u16::from_be(read(sk, setting!(inet_sport)));
    kernel::forget(&mut peer);
    if PEERS.get_ptr(peer).is_none() {
        return 0;
    }
    if new == TCP_CLOSE {
        // A RST or a time-out ends a socket too, in whatever process it interrupts: both leave an error.
        let shut = read::<u8>(sk, setting!(sk_shutdown)) & 3 == 3;
        // Connections that nobody accepted go with their listener, without a shutdown and without a `struct socket`.
        let never_accepted =
            old != TCP_SYN_RECV && has(setting!(sk_socket)) && read::<u64>(sk, setting!(sk_socket)) == 0;
        if read::<i32>(sk, setting!(sk_err)) != 0 || !(shut || never_accepted) {
            return 0;
        }
    }
    died(0, sk)
}

/// Tells that the current process, which is ending or was told to, or has not answered, closes the far end of a watched connection. `watched` is
/// nginx's socket, 0 if only addresses are known; `own` the socket that is closed, for those addresses, 0 for a unix
/// socket.
#[inline(never)]
pub(crate) fn died(watched: u64, own: u64) -> u32 {
    let Some(mut entry) = EVENTS.reserve::<Death>(0) else {
        count(|c| c.hints_lost += 1);
        return 0;
    };
    let d = entry.as_mut_ptr();
    core::mem::forget(entry);
    let tgid = kernel::tgid();
    // SAFETY: `d` leads to reserved bytes, 8-byte aligned, of which every one is written; submitted below.
    unsafe {
        let task = bpf_get_current_task();
        let leader: u64 = read(task, setting!(task_leader));
        let group: u64 = read(task, setting!(task_signal));
        (*d).kind = kind::DEATH;
        (*d).tgid = tgid;
        (*d).time_ns = emit::now_ns();
        (*d).sk = watched;
        // Of no socket nothing can be read: the addresses near zero give zeroes.
        let family: u16 = read(own, setting!(skc_family));
        kernel::sock_addr_to(
            &raw mut (*d).daddr,
            own,
            family,
            setting!(skc_rcv_saddr),
            setting!(skc_v6_rcv_saddr),
        );
        kernel::sock_addr_to(&raw mut (*d).saddr, own, family, setting!(skc_daddr), setting!(skc_v6_daddr));
        (*d).dport = u16::from_be(read(own, setting!(inet_sport)));
        (*d).sport = u16::from_be(read(own, setting!(skc_dport)));
        (*d).netns = if own == 0 { 0 } else { kernel::sock_netns(own) };
        // What a close throws away is not counted as read.
        let unread = read::<u32>(own, setting!(rcv_nxt)).wrapping_sub(read(own, setting!(copied_seq)));
        (*d).unread = if own == 0 || unread > 1 << 30 { 0 } else { unread };
        let exiting = read::<u32>(task, setting!(task_flags)) & PF_EXITING != 0;
        let of_group: u32 = read(group, setting!(signal_exit_code));
        (*d).exit_code = match (exiting, of_group) {
            (false, _) => u32::MAX,
            (true, 0) => read(task, setting!(task_exit_code)),
            (true, code) => code,
        };
        (*d).start_ns = read(leader, setting!(task_start));
        let parent: u64 = read(leader, setting!(task_parent));
        (*d).parent = read(parent, setting!(task_tgid));
        *(&raw mut (*d).comm).cast::<[u64; 2]>() = read(leader, setting!(task_comm));
        (*d).child_ns = CHILD_ENDS.get_ptr(tgid).map_or(0, |at| *at);
        match SIGNALS.get_ptr(tgid) {
            Some(signal) => {
                (*d).sender = (*signal).sender;
                (*d).signal_ns = (*signal).time_ns;
                (*d).signal = (*signal).signal;
                (*d).oom = (*signal).oom;
                *(&raw mut (*d).sender_comm).cast::<[u64; 2]>() = (*signal).comm;
            }
            None => {
                (*d).sender = 0;
                (*d).signal_ns = 0;
                (*d).signal = 0;
                (*d).oom = 0;
                *(&raw mut (*d).sender_comm).cast::<[u64; 2]>() = [0; 2];
            }
        }
        bpf_ringbuf_submit(d.cast(), emit::wakeup());
    }
    1
}

/// A process ends: its parent may hold a socket of nginx's peer that it shared with it.
#[inline(always)]
pub(super) fn child_ends(task: u64) {
    let parent: u64 = read(task, setting!(task_parent));
    let parent: u32 = read(parent, setting!(task_tgid));
    if parent > 1 {
        let _ = CHILD_ENDS.insert(parent, emit::now_ns(), 0);
    }
}

/// Remembers who sent a process a signal that may end it.
#[raw_tracepoint(tracepoint = "signal_generate")]
fn signal(ctx: RawTracePointContext) -> i32 {
    const IGNORED: i32 = 1;
    let number: u32 = ctx.arg(0);
    if number > 31 || FATAL >> number & 1 == 0 {
        return 0;
    }
    let info: u64 = ctx.arg(1);
    let task: u64 = ctx.arg(2);
    let result: i32 = ctx.arg(4);
    if result == IGNORED {
        return 0;
    }
    let to: u32 = read(task, setting!(task_tgid));
    let from = kernel::tgid();
    if to == from && FAULTS >> number & 1 == 1 {
        return 0;
    }
    let by_kernel = match info {
        // SEND_SIG_NOINFO, SEND_SIG_PRIV (include/linux/sched/signal.h).
        0 => false,
        1 => true,
        // SI_FROMKERNEL (include/uapi/asm-generic/siginfo.h).
        _ => has(setting!(si_code)) && read::<i32>(info, setting!(si_code)) > 0,
    };
    let comm = bpf_get_current_comm().unwrap_or_default();
    // SAFETY: 16 bytes either way.
    let comm: [u64; 2] = unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(comm) };
    let known = SIGNALS.get_ptr(to);
    // SAFETY: integers of a map element.
    let (killed, oom) = known.map_or((false, 0), |k| unsafe { ((*k).signal == SIGKILL, (*k).oom) });
    if killed && known.is_some() && number != SIGKILL {
        return 0;
    }
    let now = emit::now_ns();
    // A handler that has tidied up sends its own process the same signal again: who sent it first counts.
    // SAFETY: integers of a map element.
    let is_again =
        known.is_some_and(|k| unsafe { (*k).signal == number && now.wrapping_sub((*k).time_ns) < SIGNAL_NS });
    if to == from && is_again {
        return 0;
    }
    let sent = Doomed {
        time_ns: now,
        sender: if by_kernel { 0 } else { from },
        signal: number,
        oom,
        _pad: 0,
        comm: if by_kernel { [0; 2] } else { comm },
    };
    let _ = SIGNALS.insert(to, sent, 0);
    if let Some(until) = DOOM.get_ptr_mut(0) {
        // SAFETY: as in `signalled`.
        unsafe { core::ptr::write_volatile(until, now + SIGNAL_NS) };
    }
    0
}

/// The OOM killer has chosen a process, and sent the signal.
#[raw_tracepoint(tracepoint = "mark_victim")]
fn oom(ctx: RawTracePointContext) -> i32 {
    let to: u32 = if setting!(mark_victim_task) != 0 {
        let task: u64 = ctx.arg(0);
        read(task, setting!(task_tgid))
    } else {
        ctx.arg(0)
    };
    if let Some(known) = SIGNALS.get_ptr_mut(to) {
        // SAFETY: an integer of a map element.
        unsafe { (*known).oom = 1 };
        return 0;
    }
    let marked =
        Doomed { time_ns: emit::now_ns(), sender: 0, signal: SIGKILL, oom: 1, _pad: 0, comm: [0; 2] };
    let _ = SIGNALS.insert(to, marked, 0);
    0
}

//! System calls that fail at once: connect(), bind() and socket() of nginx, and the security hook.
//!
//! Only the return is watched, and only failures look any further; the arguments are read from the saved
//! user registers, so that one function serves fexit, kretprobe and tracepoint alike.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_current_pid_tgid,
    macros::{fexit, kretprobe, tracepoint},
    programs::{FExitContext, RetProbeContext, TracePointContext},
};
use tracer_ebpf::{Conn, Proc, flag, stage};

use crate::{
    conns,
    emit::{self, End, count},
    failed,
    kernel::{self, AF_INET, AF_INET6, AF_UNIX, read, read_user},
    maps::setting,
    nginx,
    probes::{state, unix},
    procs,
    repeats::COUNTED,
};

const EINPROGRESS: i32 = 115;
const SOCK_STREAM: u64 = 1;
const SOCK_TYPE_MASK: u64 = 0xf;

/// Offset of the return value in the context of `syscalls/sys_exit_*`: 8 bytes of common fields, the
/// system call number (long), then `long ret` (include/trace/events/syscalls.h).
const SYS_EXIT_RET: usize = 16;

/// The return value, loaded straight from the context: `read_at` would call a helper.
#[inline(always)]
fn syscall_ret(ctx: &TracePointContext) -> i32 {
    // SAFETY: within the record of every `sys_exit_*` tracepoint; the verifier checks the offset.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().byte_add(SYS_EXIT_RET).cast::<i64>()) as i32 }
}

#[fexit(function = "__sys_connect")]
fn connect_fexit(ctx: FExitContext) -> i32 {
    // The return value stands behind the three arguments; bpf_get_func_ret is 5.17+.
    on_connect(ctx.arg(3))
}

#[kretprobe]
fn connect_kretprobe(ctx: RetProbeContext) -> i32 {
    on_connect(ctx.ret())
}

#[tracepoint(category = "syscalls", name = "sys_exit_connect")]
fn connect_tracepoint(ctx: TracePointContext) -> i32 {
    on_connect(syscall_ret(&ctx))
}

#[fexit(function = "__sys_bind")]
fn bind_fexit(ctx: FExitContext) -> i32 {
    on_bind(ctx.arg(3))
}

#[kretprobe]
fn bind_kretprobe(ctx: RetProbeContext) -> i32 {
    on_bind(ctx.ret())
}

#[tracepoint(category = "syscalls", name = "sys_exit_bind")]
fn bind_tracepoint(ctx: TracePointContext) -> i32 {
    on_bind(syscall_ret(&ctx))
}

#[fexit(function = "__sys_socket")]
fn socket_fexit(ctx: FExitContext) -> i32 {
    on_socket(ctx.arg(3))
}

#[kretprobe]
fn socket_kretprobe(ctx: RetProbeContext) -> i32 {
    on_socket(ctx.ret())
}

#[tracepoint(category = "syscalls", name = "sys_exit_socket")]
fn socket_tracepoint(ctx: TracePointContext) -> i32 {
    on_socket(syscall_ret(&ctx))
}

/// Family, port (host order) and address of a user-space `struct sockaddr`.
#[inline(always)]
pub(super) fn user_sockaddr(addr: u64) -> (u16, u16, [u8; 16]) {
    let head: [u16; 2] = read_user(addr);
    let port = u16::from_be(head[1]);
    match head[0] {
        AF_INET => (AF_INET, port, kernel::mapped(read_user::<u32>(addr + 4))),
        AF_INET6 => (AF_INET6, port, read_user(addr + 8)),
        other => (other, 0, [0; 16]),
    }
}

#[inline(always)]
pub(super) fn empty(tgid: u32) -> Conn {
    Conn {
        start_ns: emit::now_ns(),
        rst_ns: 0,
        daddr: [0; 16],
        tgid,
        flags: 0,
        dport: 0,
        family: 0,
        rst_ttl: 0,
        _pad: [0; 3],
        flow_seq: 0,
        peer_seq: 0,
        nginx: 0,
    }
}

#[inline(always)]
pub(super) fn on_connect(ret: i32) -> i32 {
    if ret >= 0 {
        // nginx never waits in connect(): TCP does not succeed at once.
        unix::stands();
        return 0;
    }
    let Some((_, proc)) = procs::worker() else {
        return 0;
    };
    // SAFETY: a live map element; workers have one thread that connects.
    let begun = unsafe { core::mem::replace(&mut (*proc).begun, 0) } != 0;
    if ret == -EINPROGRESS && begun {
        return 0;
    }
    // Of every connect(), so that none takes what was said to another.
    let mut lsm_ret =
        if ret == -EINPROGRESS { 0 } else { emit::take_lsm(bpf_get_current_pid_tgid()).unwrap_or(0) };
    // An Option that is empty would leave a part of the stack unwritten, which 5.10's verifier does not let be read.
    kernel::forget(&mut lsm_ret);
    let Some((fd, addr)) = kernel::syscall_args(setting!(nr_connect)) else {
        return 0;
    };
    let sk = kernel::tcp_sock_of_fd(fd as u32);
    if sk == 0 {
        unix::failed(fd as u32, addr, proc, ret, lsm_ret);
    } else if ret == -EINPROGRESS {
        missed_begin(sk, fd as u32, proc);
    } else {
        failed_at_once(sk, fd as u32, addr, ret, lsm_ret);
    }
    0
}

/// connect() itself failed. A function of its own, as the stack is dear.
#[inline(never)]
fn failed_at_once(sk: u64, fd: u32, addr: u64, ret: i32, lsm_ret: i32) -> u32 {
    let mut flags = flag::CONNECT_RET;
    if lsm_ret != 0 {
        flags |= flag::LSM;
    }
    let mut conn = empty(kernel::tgid());
    let mut known = false;
    if let Some(found) = conns::find(sk) {
        // SAFETY: copied at once.
        conn = unsafe { *found };
        // A connection that stands or is under way is not ours to end (EALREADY, EISCONN).
        if conn.flags & flag::SYNC_CLOSED == 0 {
            return 0;
        }
        known = true;
    } else {
        let (family, port, daddr) = user_sockaddr(addr);
        if family != AF_INET && family != AF_INET6 {
            return 0;
        }
        conn.family = family;
        conn.dport = port;
        conn.daddr = daddr;
        conn.nginx = nginx::connection_of(sk, fd);
        count(|c| c.connects += 1);
    }
    let mut end = End {
        stage: stage::CONNECT,
        old_state: if known { 2 } else { 7 },
        shutdown: 0,
        ret,
        sk_err: 0,
        flags,
        lsm_ret,
    };
    kernel::forget(&mut end);
    kernel::forget(&mut conn);
    let place = emit::attempt(sk, &conn, &end);
    failed::note(sk, &conn, place);
    if known {
        conns::close(sk);
    }
    1
}

/// No connect() that does not wait takes as long.
const CONNECT_NS: u64 = 50_000_000;

/// connect() is under way but its beginning was not recorded: the kernel skips a program that is interrupted on
/// the same CPU by another run of itself. The record opens now, or, if it is all over, is sent at once.
#[inline(never)]
fn missed_begin(sk: u64, fd: u32, proc: *mut Proc) -> u32 {
    const TCP_SYN_SENT: u8 = 2;
    const TCP_CLOSE: u8 = 7;
    if proc.is_null() || conns::find(sk).is_some() {
        return 0;
    }
    let Some(mut conn) = state::new_conn(sk, kernel::tgid()) else {
        return 0;
    };
    conn.nginx = nginx::connection_of(sk, fd);
    let now: u8 = read(sk, setting!(skc_state));
    if now == TCP_SYN_SENT {
        state::record(sk, &conn, proc);
        count(|c| c.found_late += 1);
    } else if now == TCP_CLOSE {
        // What the packet-level hooks saw lies a little before this; so do all of connect()'s packets.
        conn.start_ns = conn.start_ns.saturating_sub(CONNECT_NS);
        conn.flags = flag::UNKNOWN_START;
        let sk_err: i32 = read(sk, setting!(sk_err));
        let mut end = End {
            stage: stage::SYN_SENT,
            old_state: TCP_SYN_SENT,
            shutdown: 0,
            ret: 0,
            sk_err,
            flags: flag::MISSED_END,
            lsm_ret: 0,
        };
        count(|c| {
            c.connects += 1;
            c.found_late += 1;
        });
        kernel::forget(&mut end);
        kernel::forget(&mut conn);
        let place = emit::attempt(sk, &conn, &end);
        failed::note(sk, &conn, place);
    }
    1
}

/// nginx knows no connection yet, so its memory names no request; but the next that it tells its log is this.
#[inline(always)]
fn speaks_next(proc: *mut Proc, ret: i32, attempt: [u64; 2]) {
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe {
        (*proc).failed = ret;
        (*proc).failed_attempt = attempt;
    }
}

#[inline(never)]
pub(super) fn on_bind(ret: i32) -> i32 {
    if ret >= 0 {
        return 0;
    }
    let Some((tgid, proc)) = procs::worker() else {
        return 0;
    };
    let Some((fd, addr)) = kernel::syscall_args(setting!(nr_bind)) else {
        return 0;
    };
    let sk = kernel::tcp_sock_of_fd(fd as u32);
    if sk == 0 {
        return 0;
    }
    let mut conn = empty(tgid);
    // The address asked for travels in the destination fields: a bound socket has none yet.
    (conn.family, conn.dport, conn.daddr) = user_sockaddr(addr);
    let end = End { stage: stage::BIND, old_state: 7, shutdown: 0, ret, sk_err: 0, flags: 0, lsm_ret: 0 };
    if emit::attempt(sk, &conn, &end) != COUNTED {
        speaks_next(proc, ret, [conn.start_ns, sk]);
    }
    0
}

#[inline(never)]
pub(super) fn on_socket(ret: i32) -> i32 {
    if ret >= 0 {
        return 0;
    }
    let Some((tgid, proc)) = procs::worker() else {
        return 0;
    };
    let Some((family, kind)) = kernel::syscall_args(setting!(nr_socket)) else {
        return 0;
    };
    let family = family as u16;
    if !matches!(family, AF_INET | AF_INET6 | AF_UNIX) || kind & SOCK_TYPE_MASK != SOCK_STREAM {
        return 0;
    }
    let mut conn = empty(tgid);
    conn.family = family;
    let end = End { stage: stage::SOCKET, old_state: 7, shutdown: 0, ret, sk_err: 0, flags: 0, lsm_ret: 0 };
    if emit::attempt(0, &conn, &end) != COUNTED {
        speaks_next(proc, ret, [conn.start_ns, 0]);
    }
    0
}

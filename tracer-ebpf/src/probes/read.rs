//! What nginx's workers read from upstream connections (`talk`, `unix_talk`).
//!
//! One program where one hook tells of every read, as each further one costs as much as what it finds out.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fexit, kprobe, raw_tracepoint},
    programs::{FExitContext, ProbeContext, RawTracePointContext},
};
use tracer_ebpf::Conn;

use crate::{
    conns, kernel,
    maps::setting,
    probes::{talk, unix_talk},
    procs,
};

const EAGAIN: i32 = 11;
const EINTR: i32 = 4;

/// `sock_recv_length(sk, ret, flags)`, 6.6+: behind the read, of sockets of any kind; with MSG_PEEK `ret` is 0 or an error.
#[raw_tracepoint(tracepoint = "sock_recv_length")]
fn received(ctx: RawTracePointContext) -> i32 {
    let ret: i32 = ctx.arg(1);
    if ret != -EAGAIN {
        let sk: u64 = ctx.arg(0);
        // The socket comes first: most are none of ours, and that is one look into an array.
        let next = match conns::find(sk) {
            Some(conn) => from_upstream(sk, conn, ret),
            None => unix_talk::on_read(sk, ret, ctx.arg(2)),
        };
        talk::go_on(sk, next);
    }
    0
}

/// `tcp_recvmsg(sk, msg, len, nonblock, flags, addr_len)` until 5.18, without `nonblock` since, and without `addr_len` by
/// 6.18: the return value stands behind them.
#[inline(always)]
fn returned(ctx: &FExitContext) -> i32 {
    let at = ctx.as_ptr();
    let ret: u64;
    // SAFETY: loads from the context, as in `dns`.
    unsafe {
        match setting!(tcp_recv_args) {
            6 => core::arch::asm!("{ret} = *(u64 *)({at} + 48)", at = in(reg) at, ret = out(reg) ret),
            5 => core::arch::asm!("{ret} = *(u64 *)({at} + 40)", at = in(reg) at, ret = out(reg) ret),
            4 => core::arch::asm!("{ret} = *(u64 *)({at} + 32)", at = in(reg) at, ret = out(reg) ret),
            _ => return -EAGAIN,
        }
    }
    ret as i32
}

#[fexit(function = "tcp_recvmsg")]
fn read_fexit(ctx: FExitContext) -> i32 {
    let ret = returned(&ctx);
    if ret != -EAGAIN && procs::marked(kernel::tgid()) {
        let mut sk: u64 = ctx.arg(0);
        // A trampoline's argument is a pointer to the verifier, with which nothing may be computed.
        kernel::forget(&mut sk);
        on_read(sk, ret);
    }
    0
}

/// `tcp_cleanup_rbuf(sk, copied)`, which tcp_recvmsg calls last with what it is about to return, unless that is an error of its
/// arguments; once a call where nothing waits. A kretprobe there has as many instances as the machine has CPUs (`init_kretprobe`,
/// kernel/kprobes.c), and every process of the host that waits for bytes holds one: it misses most reads.
#[kprobe]
fn read_kprobe(ctx: ProbeContext) -> u32 {
    let (Some(sk), Some(copied)) = (ctx.arg::<u64>(0), ctx.arg::<i32>(1)) else {
        return 0;
    };
    if copied == -EAGAIN {
        return 0;
    }
    if procs::marked(kernel::tgid()) {
        let (nr, ..) = kernel::syscall();
        if nr == setting!(nr_recvfrom) || nr == setting!(nr_readv) || nr == setting!(nr_read) {
            on_read(sk, copied);
        }
    }
    0
}

/// A read from a socket of TCP returned.
#[inline(always)]
fn on_read(sk: u64, ret: i32) {
    if let Some(conn) = conns::find(sk) {
        talk::go_on(sk, from_upstream(sk, conn, ret));
    }
}

#[inline(always)]
fn from_upstream(sk: u64, conn: *mut Conn, ret: i32) -> u32 {
    // SAFETY: an integer of a live element.
    if ret == -EINTR || unsafe { (*conn).tgid } != kernel::tgid() {
        talk::next::NOTHING
    } else {
        talk::hear(sk, conn, ret, 0)
    }
}

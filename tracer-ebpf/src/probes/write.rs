//! What nginx's workers write to upstream connections (`talk`, `unix_talk`).

use aya_ebpf::{
    macros::{fentry, kprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext},
};

use tracer_ebpf::Conn;

use crate::{
    conns, kernel,
    probes::{talk, unix_talk},
    procs,
};

const EAGAIN: i32 = 11;

#[fentry(function = "tcp_sendmsg")]
fn write_fentry(ctx: FEntryContext) -> i32 {
    if procs::marked(kernel::tgid()) {
        let mut sk: u64 = ctx.arg(0);
        // A trampoline's argument is a pointer to the verifier, with which nothing may be computed.
        kernel::forget(&mut sk);
        on_write(sk, 0, ctx.arg::<u64>(2) as u32);
    }
    0
}

#[kprobe]
fn write_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(size), true) = (ctx.arg(0), ctx.arg::<u64>(2), procs::marked(kernel::tgid())) {
        on_write(sk, 0, size as u32);
    }
    0
}

/// `sock_send_length(sk, ret, flags)`, 6.6+: behind the send, of sockets of any kind.
#[raw_tracepoint(tracepoint = "sock_send_length")]
fn written(ctx: RawTracePointContext) -> i32 {
    let ret: i32 = ctx.arg(1);
    if ret != 0 && ret != -EAGAIN {
        let sk: u64 = ctx.arg(0);
        // The socket comes first, as in `read`.
        match conns::find(sk) {
            Some(conn) if ret > 0 => to_upstream(sk, conn, ret as u32, ret as u32),
            Some(_) => {}
            None => unix_talk::on_write(sk, ret),
        }
    }
    0
}

/// Somebody writes `size` bytes, of which `done` are in the socket already.
#[inline(always)]
fn on_write(sk: u64, done: u32, size: u32) {
    if let Some(conn) = conns::find(sk) {
        to_upstream(sk, conn, done, size);
    }
}

#[inline(always)]
fn to_upstream(sk: u64, conn: *mut Conn, done: u32, size: u32) {
    // SAFETY: an integer of a live element.
    if unsafe { (*conn).tgid } == kernel::tgid() {
        talk::wrote(sk, conn, done, size);
    }
}

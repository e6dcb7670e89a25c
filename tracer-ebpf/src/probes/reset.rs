//! RSTs that arrive for a watched connection.

use aya_ebpf::{
    macros::{fentry, kprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext},
};
use tracer_ebpf::flag;

use crate::{
    conns, emit,
    kernel::{self, read},
    maps::setting,
    probes::talk,
};

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
fn receive_reset(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    if let Some(conn) = conns::find(sk) {
        talk::ended_at(sk, conn);
        // SAFETY: an element of a pre-allocated map, written under the socket lock.
        unsafe {
            (*conn).flags |= flag::RST_IN;
            (*conn).rst_ns = emit::now_ns();
        }
    }
    0
}

#[fentry(function = "tcp_reset")]
fn reset_fentry(ctx: FEntryContext) -> i32 {
    // tcp_reset(sk) before 5.15, (sk, skb) since: the branch is constant for the verifier.
    if setting!(arg_tcp_reset_skb) == 1 {
        on_reset(ctx.arg(0), ctx.arg(1));
    }
    0
}

#[kprobe]
fn reset_kprobe(ctx: ProbeContext) -> u32 {
    if setting!(arg_tcp_reset_skb) == 1
        && let (Some(sk), Some(skb)) = (ctx.arg(0), ctx.arg(1))
    {
        on_reset(sk, skb);
    }
    0
}

#[inline(always)]
fn on_reset(mut sk: u64, skb: u64) {
    // A trampoline's argument is a pointer to the verifier, with which nothing may be computed.
    kernel::forget(&mut sk);
    let Some(conn) = conns::find(sk) else {
        return;
    };
    let ip = kernel::network_header(skb);
    let first: u8 = read(ip, 0);
    let ttl: u8 = read(ip, if first >> 4 == 6 { 7 } else { 8 });
    // SAFETY: as in `receive_reset`.
    unsafe {
        (*conn).rst_ttl = ttl;
        (*conn).flags |= flag::RST_TTL;
    }
}

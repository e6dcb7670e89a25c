//! A SYN for a listener of this machine whose accept queue is full: no tracepoint tells of it.

use crate::{
    emit,
    kernel::{self, read},
    maps::setting,
};
use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

#[fentry(function = "tcp_conn_request")]
fn conn_request_fentry(ctx: FEntryContext) -> i32 {
    let _ = on_conn_request(ctx.arg(2), ctx.arg(3));
    0
}

#[kprobe]
fn conn_request_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg(2), ctx.arg(3)) {
        let _ = on_conn_request(sk, skb);
    }
    0
}

/// `tcp_conn_request(rsk_ops, af_ops, sk, skb)` drops the SYN if sk_acceptq_is_full(sk), that is if
/// sk_ack_backlog > sk_max_ack_backlog (include/net/sock.h).
#[inline(always)]
fn on_conn_request(sk: u64, skb: u64) -> Option<()> {
    let backlog: u32 = read(sk, setting!(sk_ack_backlog));
    let max: u32 = read(sk, setting!(sk_max_ack_backlog));
    if backlog <= max {
        return None;
    }
    let s = kernel::segment_at(kernel::network_header(skb))?;
    let key = s.flow(true);
    let entry = emit::flow_entry(&key)?;
    // SAFETY: a live map element.
    unsafe {
        (*entry).overflow_ns = emit::now_ns();
        (*entry).backlog = backlog;
        (*entry).backlog_max = max;
        (*entry).backlog_netns = kernel::sock_netns(sk);
    }
    Some(())
}

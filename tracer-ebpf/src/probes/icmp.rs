//! ICMP errors as they reach TCP: type, code and sender, whatever becomes of them in the socket.

use crate::{
    emit,
    kernel::{self, read},
    maps::setting,
};
use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

#[fentry(function = "tcp_v4_err")]
fn icmp4_fentry(ctx: FEntryContext) -> i32 {
    let _ = on_icmp4(ctx.arg(0));
    0
}

#[kprobe]
fn icmp4_kprobe(ctx: ProbeContext) -> u32 {
    let _ = ctx.arg::<u64>(0).and_then(on_icmp4);
    0
}

#[fentry(function = "tcp_v6_err")]
fn icmp6_fentry(ctx: FEntryContext) -> i32 {
    let _ = on_icmp6(ctx.arg(0), ctx.arg(2), ctx.arg(3));
    0
}

#[kprobe]
fn icmp6_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(skb), Some(kind), Some(code)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2), ctx.arg::<u64>(3)) {
        let _ = on_icmp6(skb, kind as u8, code as u8);
    }
    0
}

/// `tcp_v4_err(skb, info)`: the transport header is the ICMP header (net/ipv4/tcp_ipv4.c).
#[inline(always)]
fn on_icmp4(skb: u64) -> Option<()> {
    let head: u64 = read(skb, setting!(skb_head));
    let transport: u16 = read(skb, setting!(skb_transport_header));
    let icmp: [u8; 2] = read(head + u64::from(transport), 0);
    record(skb, icmp[0], icmp[1])
}

/// `tcp_v6_err(skb, opt, type, code, offset, info)` (net/ipv6/tcp_ipv6.c).
#[inline(always)]
fn on_icmp6(skb: u64, kind: u8, code: u8) -> Option<()> {
    record(skb, kind, code)
}

#[inline(always)]
fn record(skb: u64, kind: u8, code: u8) -> Option<()> {
    // skb->data is the quoted header of the packet that we had sent; the network header is the error's own.
    let quoted: u64 = read(skb, setting!(skb_data));
    let s = kernel::segment_at(quoted)?;
    let key = s.flow(true);
    let entry = emit::flow_entry(&key)?;
    let sender = kernel::ip_source(kernel::network_header(skb));
    // SAFETY: a live map element; the last of two concurrent errors of one flow wins.
    unsafe {
        (*entry).icmp_type = kind;
        (*entry).icmp_code = code;
        (*entry).icmp_sender = sender;
        (*entry).icmp_ns = emit::now_ns();
    }
    Some(())
}

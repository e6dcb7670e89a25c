//! Packets that this machine frees: `kfree_skb`, and the first retransmission of a SYN.
//!
//! The hook fires for every dropped packet of the host: the reason is tested first (before 5.17, the
//! place), then whether the packet belongs to the handshake of an upstream peer.

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_get_stack, macros::raw_tracepoint, programs::RawTracePointContext,
};
use tracer_ebpf::{FlowKey, PeerKey, drop_class, drop_flag, flag};

use crate::{
    conns,
    emit::{self, count},
    kernel::{self, AF_INET, has, read},
    maps::{LAST_DROP, setting},
    procs,
};

/// include/net/tcp_states.h.
const TCP_SYN_SENT: u8 = 2;

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn kfree_skb(ctx: RawTracePointContext) -> i32 {
    if let Some(last) = LAST_DROP.get_ptr_mut(0) {
        // SAFETY: this CPU's own element; an interrupting run can at worst make the understudy look twice.
        unsafe { *last = ctx.arg(0) };
    }
    let _ = try_kfree_skb(&ctx);
    0
}

/// The understudy. A drop that is not seen makes a wrong verdict, and the kernel skips a program that is interrupted
/// on the same CPU by another run of itself; it does not skip this one then. It runs after `kfree_skb`, which has
/// seen the packet as a rule.
#[raw_tracepoint(tracepoint = "kfree_skb")]
fn kfree_skb_again(ctx: RawTracePointContext) -> i32 {
    if let Some(last) = LAST_DROP.get_ptr_mut(0) {
        // SAFETY: as in `kfree_skb`.
        if unsafe { core::mem::replace(&mut *last, 0) } != ctx.arg::<u64>(0) {
            count(|c| c.drops_rescued += 1);
            let _ = try_kfree_skb(&ctx);
        }
    }
    0
}

/// How long one packet counts as the same; its memory is used again at some time, but no SYN is sent again as soon.
const SAME_NS: u64 = 1_000_000;

#[inline(always)]
fn try_kfree_skb(ctx: &RawTracePointContext) -> Option<()> {
    let location: u64 = ctx.arg(1);
    let (mut class, reason) = if setting!(has_drop_reason) != 0 {
        let reason: u32 = ctx.arg(2);
        (emit::class_of(reason)?, reason)
    } else {
        (class_of_location(location)?, 0)
    };
    kernel::forget(&mut class);
    let skb: u64 = ctx.arg(0);
    let segment = kernel::segment_at(kernel::network_header(skb))?;
    let forward = segment.forward()?;
    // Before 5.17 tcp_v4_rcv frees packets of live connections as well; only a SYN says "no socket".
    if reason == 0 && class == drop_class::NO_SOCKET && !forward {
        return None;
    }
    let mut flags = if forward { 0 } else { drop_flag::REPLY };
    let original = conntrack_original(skb);
    if class == drop_class::NO_SOCKET && forward && original == 0 && refuses_own(skb, &segment) {
        return None;
    }
    let mut key = if original == 0 {
        segment.flow(forward)
    } else {
        flags |= drop_flag::CONNTRACK;
        conntrack_flow(original)
    };
    let mut wire = PeerKey {
        addr: segment.client_addr(forward, false),
        port: segment.client_port(forward, false),
        _pad: 0,
    };
    kernel::forget(&mut key);
    kernel::forget(&mut wire);
    kernel::forget(&mut flags);
    let entry = emit::flow_entry(&key)?;
    let now = emit::now_ns();
    // SAFETY: a live map element.
    if unsafe { (*entry).drop_skb == skb && now.wrapping_sub((*entry).drop_last_ns) < SAME_NS } {
        return None;
    }
    let sk: u64 = read(skb, setting!(skb_sk));
    if sk != 0 {
        flags |= drop_flag::HAS_SK;
    }
    if reason != 0 {
        flags |= drop_flag::HAS_REASON;
    }
    let netns = kernel::skb_netns(skb, sk);
    // SAFETY: a live map element; concurrent writers of the same flow can at worst mix two drops of it.
    unsafe {
        if (*entry).drop_count == 0 {
            (*entry).drop_first_ns = now;
        }
        if class == drop_class::NETFILTER {
            // The IP-layer function among the callers tells which hook it was.
            bpf_get_stack(
                ctx.as_ptr(),
                (&raw mut (*entry).drop_stack).cast(),
                size_of_val(&(*entry).drop_stack) as u32,
                0,
            );
        }
        if class == drop_class::NO_SOCKET && flags & drop_flag::REPLY == 0 {
            (*entry).no_socket_netns = netns;
        }
        (*entry).drop_count += 1;
        (*entry).drop_skb = skb;
        (*entry).drop_last_ns = now;
        (*entry).drop_location = location;
        (*entry).drop_reason = reason;
        (*entry).drop_class = class;
        if class < 8 {
            (*entry).classes |= 1 << class;
        }
        (*entry).drop_netns = netns;
        (*entry).flags = flags;
        (*entry).wire_daddr = wire.addr;
        (*entry).wire_dport = wire.port;
    }
    Some(())
}

/// A SYN over loopback is refused before connect() returns, in the worker's own context: the commonest failure of
/// all, noted in the connection's record without a look-up by flow. False if this is anything else.
#[inline(always)]
fn refuses_own(skb: u64, syn: &kernel::Segment) -> bool {
    let Some((_, proc)) = procs::worker() else {
        return false;
    };
    // SAFETY: integers of a live map element.
    let (begun, sk) = unsafe { ((*proc).begun, (*proc).sk) };
    if begun == 0 {
        return false;
    }
    let Some(conn) = conns::find(sk) else {
        return false;
    };
    // SAFETY: an element of a pre-allocated map; the socket is locked by the connect() that we are in.
    unsafe {
        let same = (*conn).dport == syn.client_port(true, false)
            && (*conn).daddr == syn.client_addr(true, false)
            && u16::from_be(read(sk, setting!(inet_sport))) == syn.client_port(true, true)
            && kernel::skb_netns(skb, 0) == kernel::sock_netns(sk);
        if same {
            (*conn).flags |= flag::NO_SOCKET;
        }
        same
    }
}

#[inline(always)]
fn class_of_location(at: u64) -> Option<u8> {
    if at >= setting!(nf_hook_slow[0]) && at < setting!(nf_hook_slow[1]) {
        return Some(drop_class::NETFILTER);
    }
    if (at >= setting!(tcp_v4_rcv[0]) && at < setting!(tcp_v4_rcv[1]))
        || (at >= setting!(tcp_v6_rcv[0]) && at < setting!(tcp_v6_rcv[1]))
    {
        return Some(drop_class::NO_SOCKET);
    }
    Some(drop_class::OTHER)
}

/// Kernel address of the original tuple of the packet's conntrack entry: what nginx asked for, whatever
/// DNAT made of it (include/net/netfilter/nf_conntrack.h). 0 if there is none, or it is not TCP's.
#[inline(always)]
fn conntrack_original(skb: u64) -> u64 {
    const NFCT_PTRMASK: u64 = !7;
    const IPPROTO_TCP: u8 = 6;
    if !has(setting!(ct_tuple)) || !has(setting!(skb_nfct)) {
        return 0;
    }
    let ct = read::<u64>(skb, setting!(skb_nfct)) & NFCT_PTRMASK;
    if ct == 0 {
        return 0;
    }
    let tuple = ct + u64::from(setting!(ct_tuple));
    if read::<u8>(tuple, setting!(tuple_proto)) == IPPROTO_TCP { tuple } else { 0 }
}

#[inline(always)]
fn conntrack_flow(tuple: u64) -> FlowKey {
    let v4 = read::<u16>(tuple, setting!(tuple_l3num)) == AF_INET;
    let addr = |off: u32| if v4 { kernel::mapped(read::<u32>(tuple, off)) } else { read(tuple, off) };
    FlowKey {
        saddr: addr(setting!(tuple_src)),
        daddr: addr(setting!(tuple_dst)),
        sport: u16::from_be(read(tuple, setting!(tuple_sport))),
        dport: u16::from_be(read(tuple, setting!(tuple_dport))),
    }
}

/// A SYN goes out again: the moment to look at the listener, while its queue is still full. Up to 6.12
/// this fires only if the packet could be sent.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
fn retransmit(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    if let Some(conn) = conns::find(sk) {
        // SAFETY: an element of a pre-allocated map, written under the socket lock.
        unsafe {
            if read::<u8>(sk, setting!(skc_state)) == TCP_SYN_SENT
                && (*conn).flags & flag::SYN_RETRANSMIT == 0
            {
                (*conn).flags |= flag::SYN_RETRANSMIT;
                emit::hint(sk, &*conn);
            }
        }
    }
    0
}

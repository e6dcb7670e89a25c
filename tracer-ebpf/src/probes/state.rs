//! TCP state changes: the one hook that healthy connections run through.
//!
//! `inet_sock_set_state` fires for every TCP socket of the host, so the cheap tests come first; the
//! process is looked at only at CLOSE → SYN_SENT, which happens inside connect(); later transitions run in
//! whatever context the packet or timer arrived in and are recognised by the socket alone.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_ebpf::{ClientGone, Conn, PeerKey, Proc, flag, kind, role, stage};

use crate::{
    conns,
    emit::{self, End, count},
    failed,
    kernel::{self, AF_INET, AF_INET6, read},
    maps::{EVENTS, GIVEN_UP, JUMPS, PEERS, PROCS, SHARED, setting},
    nginx,
    probes::{death, talk},
    procs,
};

// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LAST_ACK: i32 = 9;

const ECONNREFUSED: i32 = 111;

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn set_state(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    death::state(sk, old, new);
    match new {
        TCP_SYN_SENT => begin(sk),
        TCP_CLOSE_WAIT => talk::finished(sk),
        TCP_FIN_WAIT1 | TCP_LAST_ACK | TCP_CLOSE => {
            let mut next = if new == TCP_CLOSE {
                end(sk, old)
            } else {
                match closed_by_worker(sk) {
                    None if new == TCP_LAST_ACK => client_closed(sk),
                    None => {
                        own_close(sk);
                        client_closed(sk)
                    }
                    Some(true) => JUDGE,
                    Some(false) => NOTHING,
                }
            };
            // One state for the verifier, whichever it was.
            kernel::forget(&mut next);
            go_on(&ctx, next);
        }
        _ => {}
    }
    0
}

/// Nothing more is to be done.
const NOTHING: u32 = 0;
/// `judge` is to go on: its entry of `JUMPS`, and one.
const JUDGE: u32 = 1;
/// `client_left` is.
const LEFT: u32 = 2;
/// `late_end` is.
const LATE: u32 = 3;

/// Ends this program and goes on with another, in the same context.
#[inline(always)]
fn go_on(ctx: &RawTracePointContext, next: u32) {
    if next != NOTHING {
        // SAFETY: a program of the same type, which needs no more than this one's first argument. It does not return, or does
        // nothing if user space has not set the entry.
        let _ = unsafe { JUMPS.tail_call(ctx, next - 1) };
    }
}

/// A worker closes an upstream connection that stood: `inet_sock_set_state` and `tcp_destroy_sock` have the socket in the same
/// place.
#[raw_tracepoint]
fn judge(ctx: RawTracePointContext) -> i32 {
    count(|c| c.established += 1);
    talk::closing(ctx.arg(0), 0);
    0
}

/// A worker closes a socket that is no upstream connection's, soon after it gave up an attempt.
#[raw_tracepoint]
fn client_left(ctx: RawTracePointContext) -> i32 {
    left(ctx.arg(0));
    0
}

/// A close, or a `shutdown()` of one direction, has begun: None if it is not a worker's of an upstream connection, true for a
/// close.
#[inline(always)]
fn closed_by_worker(sk: u64) -> Option<bool> {
    procs::worker()?;
    conns::find(sk)?;
    Some(read::<u8>(sk, setting!(sk_shutdown)) & 3 == 3)
}

/// True if the current process is a verified nginx.
#[inline(always)]
fn watched(tgid: u32) -> bool {
    // SAFETY: one integer of a map element.
    PROCS.get_ptr(tgid).is_some_and(|p| unsafe { (*p).role } == role::NGINX)
}

/// The record of a connection whose destination is set.
#[inline(always)]
pub(super) fn new_conn(sk: u64, tgid: u32) -> Option<Conn> {
    // struct sock_common: daddr, rcv_saddr | hash, dport, num | family.
    let (family, dport, daddr4) = if setting!(packed_common) != 0 {
        let words: [u64; 3] = read(sk, 0);
        (words[2] as u16, (words[1] >> 32) as u16, words[0] as u32)
    } else {
        (read(sk, setting!(skc_family)), read(sk, setting!(skc_dport)), read(sk, setting!(skc_daddr)))
    };
    let daddr = match family {
        AF_INET => kernel::mapped(daddr4),
        AF_INET6 => read(sk, setting!(skc_v6_daddr)),
        _ => return None,
    };
    let (flow_seq, peer_seq) = emit::sequences();
    Some(Conn {
        start_ns: emit::now_ns(),
        rst_ns: 0,
        daddr,
        tgid,
        flags: 0,
        dport: u16::from_be(dport),
        family,
        rst_ttl: 0,
        _pad: [0; 3],
        flow_seq,
        peer_seq,
        nginx: 0,
    })
}

/// A worker begins to connect.
#[inline(always)]
fn begin(sk: u64) {
    let Some((tgid, proc)) = procs::worker() else {
        return;
    };
    if let Some(mut conn) = new_conn(sk, tgid) {
        conn.nginx = nginx::connecting(sk);
        record(sk, &conn, proc);
        // SAFETY: workers have one thread that connects.
        unsafe {
            (*proc).begun = 1;
            (*proc).sk = sk;
        }
    }
}

/// Opens the record of a connection of `proc`. A function of its own: the stack is dear.
#[inline(never)]
pub(super) fn record(sk: u64, conn: &Conn, proc: *mut Proc) {
    if proc.is_null() {
        return;
    }
    if !conns::open(sk, conn) {
        count(|c| c.conns_full += 1);
    }
    let peer = PeerKey { addr: conn.daddr, port: conn.dport, _pad: 0 };
    // SAFETY: a live map element; workers have one thread that connects, a torn value costs a look-up.
    if unsafe { (*proc).last } != peer {
        remember(&peer);
        // SAFETY: as above.
        unsafe { (*proc).last = peer };
    }
    count(|c| c.connects += 1);
}

/// Puts a peer into the set of those whose packets and closes are looked at.
#[inline(always)]
pub(super) fn remember(peer: &PeerKey) {
    if PEERS.get_ptr(peer).is_none() {
        let _ = PEERS.insert(peer, 1, 0);
        if let Some(shared) = SHARED.get_ptr_mut(0) {
            // SAFETY: an integer of an array element.
            unsafe { (*shared).peer_inserts = (*shared).peer_inserts.wrapping_add(1) };
        }
    }
}

/// A socket reached CLOSE. Returns `JUDGE` if a worker closes an upstream connection that stood, `LEFT` if it is perhaps a client's.
#[inline(always)]
fn end(sk: u64, old: i32) -> u32 {
    let Some(found) = conns::find(sk) else {
        return unknown_end(sk, old);
    };
    if old == TCP_SYN_SENT {
        let mut sk_err: i32 = read(sk, setting!(sk_err));
        let shutdown = read::<u8>(sk, setting!(sk_shutdown)) & 3;
        let mut flags = 0;
        // tcp_done() shuts down after this transition, tcp_close() before it. Neither an error nor a close by
        // the application:
        if sk_err == 0 && shutdown != 3 && setting!(has_connect_exit) != 0 {
            // SAFETY: a live element of a pre-allocated map.
            unsafe {
                if in_connect((*found).tgid) {
                    // connect() itself failed (no free port, a packet-level refusal), and its return brings
                    // the errno.
                    (*found).flags |= flag::SYNC_CLOSED;
                    return NOTHING;
                }
                // Or the error is reported before the transition, and nginx on another CPU has read it already.
                if (*found).flags & flag::RST_IN != 0 {
                    sk_err = ECONNREFUSED;
                }
            }
            flags = flag::MISSED_END;
        }
        // SAFETY: as above. Copied, so that it no longer matters to the verifier which map it came from.
        let mut conn = unsafe { *found };
        kernel::forget(&mut conn);
        let tgid = conn.tgid;
        let mut end =
            End { stage: stage::SYN_SENT, old_state: old as u8, shutdown, ret: 0, sk_err, flags, lsm_ret: 0 };
        kernel::forget(&mut end);
        emit::attempt(sk, &conn, &end);
        failed::note(sk, &conn);
        if end.sk_err == 0 && end.shutdown == 3 {
            emit::watch_client(sk, tgid, true);
        }
    } else {
        // tcp_close() throws unread bytes away and goes here at once; else it is the peer, or the stack.
        if read::<u8>(sk, setting!(sk_shutdown)) & 3 == 3 && procs::worker().is_some() {
            return JUDGE;
        }
        talk::ended(found);
        return NOTHING;
    }
    conns::close(sk);
    NOTHING
}

/// True if that worker is inside connect().
#[inline(always)]
fn in_connect(tgid: u32) -> bool {
    // SAFETY: one integer of a map element.
    PROCS.get_ptr(tgid).is_some_and(|p| unsafe { (*p).begun } != 0)
}

/// The worker itself closes this socket, or sends its end ahead (lingering_close): its destruction will not mean that a client
/// reset it.
#[inline(always)]
fn own_close(sk: u64) {
    if emit::watching_until() == 0 {
        return;
    }
    if let Some(given_up) = GIVEN_UP.get_ptr_mut(kernel::tgid()) {
        // SAFETY: an integer of a map element that only this worker's thread writes.
        unsafe { (*given_up).closed_sk = sk };
    }
}

/// A socket that is not in the map reached CLOSE. Returns as `end`.
#[inline(always)]
fn unknown_end(sk: u64, old: i32) -> u32 {
    if emit::watching_until() != 0 {
        own_close(sk);
        if old == TCP_CLOSE_WAIT {
            return client_closed(sk);
        }
    }
    if old != TCP_SYN_SENT {
        return NOTHING;
    }
    // A connection that began before we were attached is given up now: it can still be told by its worker.
    let tgid = kernel::tgid();
    let shutdown = read::<u8>(sk, setting!(sk_shutdown)) & 3;
    if shutdown != 3 || !watched(tgid) {
        return NOTHING;
    }
    LATE
}

/// A worker gives up a connection that it began before we were attached.
#[raw_tracepoint]
fn late_end(ctx: RawTracePointContext) -> i32 {
    let (sk, old): (u64, i32) = (ctx.arg(0), ctx.arg(1));
    let tgid = kernel::tgid();
    let shutdown = read::<u8>(sk, setting!(sk_shutdown)) & 3;
    if let Some(mut conn) = new_conn(sk, tgid) {
        conn.start_ns = 0;
        // Packets dropped before we were attached were not seen.
        conn.flags = flag::UNKNOWN_START | flag::EVIDENCE_GAP;
        let mut end = End {
            stage: stage::SYN_SENT,
            old_state: old as u8,
            shutdown,
            ret: 0,
            sk_err: 0,
            flags: 0,
            lsm_ret: 0,
        };
        kernel::forget(&mut end);
        kernel::forget(&mut conn);
        emit::attempt(sk, &conn, &end);
        emit::watch_client(sk, tgid, true);
    }
    0
}

/// The worker closes a connection of a client, as it seems: `LEFT` if that may explain the attempt that it gave up just before, or
/// come from it.
#[inline(always)]
fn client_closed(sk: u64) -> u32 {
    let until = emit::watching_until();
    if until == 0 {
        return NOTHING;
    }
    if emit::now_ns() > until {
        if let Some(shared) = SHARED.get_ptr_mut(0) {
            // SAFETY: an integer of an array element.
            unsafe { (*shared).watch_until_ns = 0 };
        }
        return NOTHING;
    }
    // SAFETY: an integer of a map element.
    let may = GIVEN_UP.get_ptr(kernel::tgid()).is_some_and(|given_up| unsafe { (*given_up).sk } != sk);
    if may { LEFT } else { NOTHING }
}

/// Does that close explain the attempt?
#[inline(always)]
fn left(sk: u64) {
    let tgid = kernel::tgid();
    let Some(given_up) = GIVEN_UP.get_ptr(tgid) else {
        return;
    };
    // SAFETY: copied at once; only this worker's thread writes it.
    let mut last = unsafe { *given_up };
    kernel::forget(&mut last);
    let now = emit::now_ns();
    // The hooks run before the state changes: CLOSE is that of a socket that is destroyed, as those are that a client reset.
    let state: u8 = read(sk, setting!(skc_state));
    let reset = state == TCP_CLOSE as u8;
    if !emit::is_same_moment(&last, now) || (reset && last.closed_sk == sk) {
        return;
    }
    if state == TCP_ESTABLISHED || last.quiet == 0 {
        // nginx has no answer for a client that is there, or was to have one.
        return;
    }
    let family: u16 = read(sk, setting!(skc_family));
    if family != AF_INET && family != AF_INET6 {
        return;
    }
    let client = kernel::sock_addr(sk, family, setting!(skc_daddr), setting!(skc_v6_daddr));
    let client_port = u16::from_be(read(sk, setting!(skc_dport)));
    if u32::from(client_port) == last.port {
        return;
    }
    // An upstream connection, of which all was said: its far end is one that nginx connects to.
    if PEERS.get_ptr(PeerKey { addr: client, port: client_port, _pad: 0 }).is_some() {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<ClientGone>(0) else {
        count(|c| c.hints_lost += 1);
        return;
    };
    entry.write(ClientGone {
        kind: kind::CLIENT_GONE,
        tgid,
        time_ns: now,
        attempt_sk: last.sk,
        attempt_end_ns: last.end_ns,
        client,
        client_port,
        how: if reset { 2 } else { 1 },
        _pad: [0; 5],
    });
    entry.submit(1);
    let _ = GIVEN_UP.remove(tgid);
}

/// The end of every TCP socket. Catches clients that reset (their socket was CLOSE long before the worker
/// closed it), and records whose end was missed: the kernel skips a program that is interrupted on the same
/// CPU by another run of itself, so `set_state` alone could leave an entry behind.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
fn destroy_sock(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let mut next = if let Some(found) = conns::find(sk) {
        gone(sk, found)
    } else {
        failed::closed(sk);
        NOTHING
    };
    kernel::forget(&mut next);
    if next == NOTHING {
        next = client_closed(sk);
    }
    go_on(&ctx, next);
    0
}

/// The socket of a connection that is still in the map is destroyed. One that stood has received a SYN-ACK: the stack has
/// measured a round trip. Returns `JUDGE` if a worker closes one that stood.
#[inline(always)]
fn gone(sk: u64, found: *mut Conn) -> u32 {
    // SAFETY: a live element of a pre-allocated map; copied as in `end`.
    let mut conn = unsafe { *found };
    kernel::forget(&mut conn);
    if conn.flags & flag::SYNC_CLOSED == 0 && read::<u32>(sk, setting!(srtt_us)) != 0 {
        if procs::worker().is_some() {
            return JUDGE;
        }
    } else {
        missed_end(sk, &conn);
    }
    conns::close(sk);
    NOTHING
}

/// Tells what can still be told of a connection whose end was not seen.
#[inline(always)]
fn missed_end(sk: u64, conn: &Conn) {
    let stage = if conn.flags & flag::SYNC_CLOSED != 0 { stage::CONNECT } else { stage::SYN_SENT };
    let sk_err: i32 = read(sk, setting!(sk_err));
    // nginx reads and clears the error before it closes; a RST leaves its own trace.
    let sk_err = if sk_err == 0 && conn.flags & flag::RST_IN != 0 { ECONNREFUSED } else { sk_err };
    let shutdown = if sk_err == 0 && conn.flags & flag::SYNC_CLOSED == 0 { 3 } else { 0 };
    let mut end = End {
        stage,
        old_state: TCP_SYN_SENT as u8,
        shutdown,
        ret: 0,
        sk_err,
        flags: flag::MISSED_END,
        lsm_ret: 0,
    };
    kernel::forget(&mut end);
    emit::attempt(sk, conn, &end);
}

//! What a worker reads and writes: from which client's request a failed attempt came, and what that client saw.

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_user, bpf_ringbuf_submit},
    macros::{fentry, kprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext},
};
use tracer_ebpf::{
    Addr, Proc, flag, kind,
    request::{BAD_GATEWAY, Client, MOST, Request, Turn, client_flag, turn},
    talk::talk_flag,
};

use crate::{
    clients, conns, emit,
    kernel::{self, read, read_user},
    maps::{EVENTS, PROCS, setting},
    probes::{talk, unix_talk},
    procs,
};

const EAGAIN: i32 = 11;

#[fentry(function = "tcp_sendmsg")]
fn answer_fentry(ctx: FEntryContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        let mut sk: u64 = ctx.arg(0);
        // A trampoline's argument is a pointer to the verifier, with which nothing may be computed.
        kernel::forget(&mut sk);
        on_send(sk, tgid, proc, 0, ctx.arg::<u64>(2) as u32);
    }
    0
}

#[kprobe]
fn answer_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(size), Some((tgid, proc))) = (ctx.arg(0), ctx.arg::<u64>(2), procs::worker()) {
        on_send(sk, tgid, proc, 0, size as u32);
    }
    0
}

/// `sock_send_length(sk, ret, flags)`, 6.6+: behind the send, of sockets of any kind.
#[raw_tracepoint(tracepoint = "sock_send_length")]
fn sent(ctx: RawTracePointContext) -> i32 {
    let ret: i32 = ctx.arg(1);
    if ret != 0
        && ret != -EAGAIN
        && let Some((tgid, proc)) = procs::worker()
    {
        let sk: u64 = ctx.arg(0);
        if !unix_talk::on_write(sk, tgid, proc, ret) && ret > 0 {
            on_send(sk, tgid, proc, ret as u32, ret as u32);
        }
    }
    0
}

/// A worker writes `size` bytes, of which `done` are in the socket already.
#[inline(always)]
fn on_send(sk: u64, tgid: u32, proc: *mut Proc, done: u32, size: u32) {
    if let Some(conn) = conns::find(sk) {
        talk::wrote(sk, conn, proc, done, size);
        return;
    }
    // SAFETY: a live map element that only this worker's thread writes.
    if unsafe { (*proc).closed_sk } != 0 {
        talk::contradicted(sk, tgid, size);
    }
    let last = clients::take(proc);
    // SAFETY: as above.
    let awaiting = unsafe { (*proc).awaiting };
    if last.kind < turn::READ_UPSTREAM || last.retry == 0 {
        if awaiting != 0 && awaited(sk, tgid, done, size) != 0 {
            return;
        }
        if last.kind < turn::READ_UPSTREAM {
            unserved(sk, tgid, proc, &last, done, size);
        } else {
            talk::passed_on(sk, tgid, last.sk, last.id, size);
        }
        return;
    }
    // SAFETY: as above.
    unsafe {
        // Kept where `answer` finds it.
        (*proc).turn.kind = last.kind;
    }
    answer(sk, tgid, done, size);
}

/// The worker writes after it read a request, or after nothing that was seen: to an upstream connection that was kept,
/// or to a client, perhaps an answer that no server gave.
#[inline(always)]
fn unserved(sk: u64, tgid: u32, proc: *mut Proc, last: &Turn, done: u32, size: u32) {
    let Some(slot) = clients::slot(sk) else {
        return;
    };
    // SAFETY: a live array element of plain integers.
    unsafe {
        if (*slot).sk != sk || (*slot).tgid != tgid {
            if last.kind == turn::READ_CLIENT && last.sk != sk && kernel::is_tcp(sk) {
                clients::link(last);
            }
            return;
        }
        if (*slot).flags & (client_flag::LINKED | client_flag::ANSWERED | client_flag::HTTP)
            != client_flag::HTTP
        {
            return;
        }
        let status = status_of(first_bytes(size));
        if status < 200 {
            return;
        }
        if status == BAD_GATEWAY {
            let at_once = last.kind == turn::READ_CLIENT && last.id == (*slot).id;
            let mut how = client_flag::ALONE;
            if !at_once {
                how |= client_flag::LATE;
                if (*proc).connected_ns >= (*slot).id {
                    how |= client_flag::CROWDED;
                }
            }
            alone(sk, tgid, done, how);
        }
        // No further piece of the answer is looked at.
        (*slot).flags |= client_flag::ANSWERED;
        clients::seal(slot);
    }
}

/// nginx answers a request that no attempt is known to have served.
#[inline(never)]
fn alone(sk: u64, tgid: u32, done: u32, how: u32) {
    let Some(slot) = clients::slot(sk) else {
        return;
    };
    if !clients::holds(slot, sk, tgid) {
        return;
    }
    // SAFETY: a live array element of plain integers.
    unsafe {
        let since = read::<u32>(sk, setting!(write_seq)).wrapping_sub(done).wrapping_sub((*slot).write_seq);
        if since == 0 || since == clients::CONTINUE {
            emit_request(sk, tgid, (*slot).id, slot, (*slot).flags | how, BAD_GATEWAY);
        }
    }
}

/// The worker writes after it closed a failed attempt, or after it read from a server that was tried after one.
#[inline(never)]
fn answer(sk: u64, tgid: u32, done: u32, size: u32) {
    let Some(proc) = PROCS.get_ptr_mut(tgid) else {
        return;
    };
    if !kernel::is_tcp(sk) {
        return;
    }
    let last = clients::take(proc);
    let Some(slot) = clients::slot(sk) else {
        return;
    };
    // SAFETY: a live array element of plain integers.
    unsafe {
        let holds = clients::holds(slot, sk, tgid);
        if !holds || (*slot).id != last.id {
            forget(last.sk);
            emit_request(sk, tgid, last.id, core::ptr::null(), client_flag::MISMATCH, 0);
            if holds && (*slot).flags & client_flag::AWAITED != 0 {
                begin_answer(sk, tgid, slot, done, size);
            }
            return;
        }
        if begin_answer(sk, tgid, slot, done, size) != 0 {
            forget(last.sk);
        }
    }
}

/// The worker writes what nothing ties to a failed attempt, while an answer is waited for that nginx itself has tied
/// to one. Returns 1 if it is that answer.
#[inline(never)]
fn awaited(sk: u64, tgid: u32, done: u32, size: u32) -> u32 {
    let (Some(proc), Some(slot)) = (PROCS.get_ptr_mut(tgid), clients::slot(sk)) else {
        return 0;
    };
    // SAFETY: live elements of plain integers.
    unsafe {
        if (*proc).awaiting < clients::seconds() {
            (*proc).awaiting = 0;
        }
        if (*slot).flags & client_flag::AWAITED != 0 && kernel::is_tcp(sk) && clients::holds(slot, sk, tgid) {
            begin_answer(sk, tgid, slot, done, size);
            return 1;
        }
    }
    0
}

/// The first bytes to the client of a whole record. Returns 1 if its request is done with.
#[inline(never)]
fn begin_answer(sk: u64, tgid: u32, slot: *mut Client, done: u32, size: u32) -> u32 {
    if slot.is_null() {
        return 0;
    }
    // SAFETY: a live array element of plain integers.
    unsafe {
        if (*slot).flags & client_flag::ANSWERED != 0 {
            // The rest of the answer.
            return 0;
        }
        let mut flags = (*slot).flags;
        let written = read::<u32>(sk, setting!(write_seq)).wrapping_sub(done);
        let since = written.wrapping_sub((*slot).write_seq);
        let mut status = 0;
        if flags & client_flag::HTTP != 0 {
            if since != 0 && since != clients::CONTINUE {
                // Something was written that was not seen: what, nobody knows.
                flags |= client_flag::MISMATCH;
            }
            status = status_of(first_bytes(size));
            if (100..200).contains(&status) {
                // Not yet the answer.
                (*slot).write_seq = written.wrapping_add(size);
                clients::seal(slot);
                return 0;
            }
        }
        (*slot).flags |= client_flag::ANSWERED;
        clients::seal(slot);
        let id = (*slot).id;
        emit_request(sk, tgid, id, slot, flags, status);
    }
    1
}

/// All is said about the request that this upstream connection serves.
#[inline(always)]
fn forget(sk: u64) {
    if sk != 0
        && let Some(conn) = conns::find(sk)
    {
        // SAFETY: an element of a pre-allocated map.
        unsafe { (*conn).client = 0 };
    }
}

/// The worker closed a failed attempt and then this client's connection, without an answer.
#[inline(never)]
pub(super) fn left(sk: u64, tgid: u32) {
    let Some(proc) = PROCS.get_ptr_mut(tgid) else {
        return;
    };
    let last = clients::take(proc);
    let Some(slot) = clients::slot(sk) else {
        return;
    };
    // SAFETY: a live array element of plain integers.
    unsafe {
        if last.kind != turn::CLOSED || !clients::holds(slot, sk, tgid) || (*slot).id != last.id {
            return;
        }
        let mut flags = (*slot).flags | client_flag::LEFT;
        let since = read::<u32>(sk, setting!(write_seq)).wrapping_sub((*slot).write_seq);
        // A FIN of nginx's own counts as one.
        if flags & client_flag::HTTP != 0 && since > 1 && since.wrapping_sub(clients::CONTINUE) > 1 {
            flags |= client_flag::MISMATCH;
        }
        (*slot).flags |= client_flag::ANSWERED;
        clients::seal(slot);
        emit_request(sk, tgid, last.id, slot, flags, 0);
    }
}

/// An answer that had begun ends without its rest: the connection of its server failed.
#[inline(never)]
pub(super) fn cut(sk: u64, tgid: u32, id: u64, status: u16) -> u32 {
    let Some(slot) = clients::slot(sk) else {
        return 0;
    };
    // SAFETY: a live array element of plain integers.
    unsafe {
        if id != 0 && clients::holds(slot, sk, tgid) && (*slot).id == id {
            emit_request(sk, tgid, id, slot, (*slot).flags, status);
        }
    }
    0
}

/// The status of the answer that the current system call begins to write; 0 if it is none.
#[inline(always)]
pub(super) fn answer_status(size: u32) -> u16 {
    status_of(first_bytes(size))
}

/// Where the first bytes are that the current system call writes.
#[inline(always)]
fn first_bytes(size: u32) -> u64 {
    if size < 12 {
        return 0;
    }
    if let Some((vector, _)) = kernel::buffer_of(setting!(nr_writev)) {
        // struct iovec: base, length.
        let first: [u64; 2] = read_user(vector);
        return if first[1] >= 12 { first[0] } else { 0 };
    }
    kernel::buffer_of(setting!(nr_sendto))
        .or_else(|| kernel::buffer_of(setting!(nr_write)))
        .map_or(0, |(buf, _)| buf)
}

/// The status of a status line (RFC 9112, 4); 0 if there is none.
#[inline(always)]
fn status_of(at: u64) -> u16 {
    if at == 0 {
        return 0;
    }
    status_in(read_user(at))
}

/// The same of the first 16 bytes.
#[inline(always)]
pub(super) fn status_in(words: [u64; 2]) -> u16 {
    const LINE: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
    if words[0] & 0x00ff_ffff_ffff_ffff != LINE {
        return 0;
    }
    let b = words[1].to_le_bytes();
    let digit = |i: usize| u16::from(b[i].wrapping_sub(b'0'));
    let (hundreds, tens, ones) = (digit(1), digit(2), digit(3));
    if b[0] != b' ' || hundreds > 9 || tens > 9 || ones > 9 {
        return 0;
    }
    hundreds * 100 + tens * 10 + ones
}

/// Room for the first bytes of a short request.
const SHORT: usize = 255;

#[repr(C)]
struct Record<const N: usize> {
    head: Request,
    bytes: [u8; N],
}

#[inline(always)]
unsafe fn emit_request(sk: u64, tgid: u32, id: u64, slot: *const Client, flags: u32, status: u16) {
    let (mut at, mut len, mut clean) = (0, 0, 0);
    if !slot.is_null() && flags & client_flag::HTTP != 0 {
        // SAFETY: a live array element.
        unsafe {
            at = (*slot).buf;
            len = (*slot).received.min((*slot).asked);
            clean = (*slot).clean;
        }
    }
    let head = Head { sk, tgid, id, flags, status, at, len, clean };
    if len as usize <= SHORT {
        fill::<256>(&head);
    } else {
        fill::<1024>(&head);
    }
}

struct Head {
    sk: u64,
    tgid: u32,
    id: u64,
    flags: u32,
    status: u16,
    at: u64,
    len: u32,
    clean: u32,
}

/// `N`: a power of two, more than the bytes that are kept.
#[inline(always)]
fn fill<const N: usize>(h: &Head) {
    let Some(mut entry) = EVENTS.reserve::<Record<N>>(0) else {
        // Else no incident is lost by this: it says itself that its request is not known.
        if h.flags & client_flag::ALONE != 0 {
            emit::count(|c| c.lost += 1);
        }
        return;
    };
    let to = entry.as_mut_ptr();
    core::mem::forget(entry);
    let family: u16 = read(h.sk, setting!(skc_family));
    // SAFETY: reserved bytes, 8-byte aligned, submitted below; every field of the head is written, and user space
    // reads no more bytes than were copied.
    unsafe {
        let head = &raw mut (*to).head;
        (*head).kind = kind::REQUEST;
        (*head).flags = h.flags;
        (*head).tgid = h.tgid;
        (*head).status = h.status;
        (*head).client_port = u16::from_be(read(h.sk, setting!(skc_dport)));
        (*head).time_ns = emit::now_ns();
        (*head).id = h.id;
        kernel::sock_addr_to(
            (&raw mut (*head).client).cast::<Addr>(),
            h.sk,
            family,
            setting!(skc_daddr),
            setting!(skc_v6_daddr),
        );
        kernel::sock_addr_to(
            (&raw mut (*head).local).cast::<Addr>(),
            h.sk,
            family,
            setting!(skc_rcv_saddr),
            setting!(skc_v6_rcv_saddr),
        );
        (*head).local_port = u16::from_be(read(h.sk, setting!(inet_sport)));
        (*head)._pad = [0; 3];
        let mut len = u64::from(h.len).min(N as u64 - 1).min(MOST as u64);
        // The verifier wants to see the bound in the register that is used.
        if N == 256 {
            core::arch::asm!("{len} &= 255", len = inlateout(reg) len);
        } else {
            core::arch::asm!("{len} &= 1023", len = inlateout(reg) len);
        }
        let bytes = (&raw mut (*to).bytes).cast::<core::ffi::c_void>();
        let done = len != 0 && bpf_probe_read_user(bytes, len as u32, h.at as *const _) == 0;
        (*head).len = if done { len as u32 } else { 0 };
        (*head).clean = h.clean;
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
}

//! Which client's request an upstream connection serves.
//!
//! A worker has one thread: what it does next belongs to what it did last, unless another event came between that
//! is not seen (a timer, a datagram, a file). So two links are asked for. The front one: the worker read a
//! client's unanswered request, or closed the failed attempt before, and then began to connect. The back one:
//! it closed the failed attempt, or read from the server that answered instead, and then wrote to a client. Only
//! if both name the same request is it the one. Every further act that is seen breaks the chain, and where a run of a
//! program was skipped, one of the links is missing or names another.
//!
//! Both tables are arrays in which a place is overwritten by whoever comes next: nothing leaks, nothing locks, and
//! what is torn or gone is a request that stays unknown.

use tracer_ebpf::{
    Conn, Proc, flag,
    request::{CLIENTS as PLACES, Client, FAILED as FAILED_PLACES, Failed, Turn, client_flag, turn},
};

use crate::{
    conns,
    kernel::{self, read},
    maps::{CLIENTS, FAILED, PROCS, SCRATCH, SHARED, setting},
};

/// "HTTP/1.1 100 Continue" with its two line ends: what nginx sends before it reads a body that it was asked
/// whether it wants. No answer is as short.
pub(crate) const CONTINUE: u32 = 25;

/// How the header of the PROXY protocol begins, in its two versions: the request comes with the next read.
const PROXY_V1: u64 = u64::from_le_bytes(*b"PROXY TC");
const PROXY_V2: u64 = u64::from_le_bytes(*b"\r\n\r\n\0\r\nQ");

/// Fibonacci hashing.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn place(sk: u64) -> u32 {
    ((sk >> 6).wrapping_mul(SPREAD) >> 32) as u32
}

/// The place of a client, whoever is in it.
#[inline(always)]
pub(crate) fn slot(sk: u64) -> Option<*mut Client> {
    CLIENTS.get_ptr_mut(place(sk) & (PLACES - 1))
}

/// A sum of `WORDS` words without the second, which holds it.
///
/// # Safety
/// `at` points to as many readable words.
#[inline(always)]
unsafe fn sum<const WORDS: usize>(at: *const u64) -> u64 {
    // SAFETY: by this function's contract.
    unsafe {
        let mut sum = core::ptr::read_volatile(at);
        let mut word = 2;
        while word < WORDS {
            sum = sum.wrapping_mul(SPREAD).wrapping_add(core::ptr::read_volatile(at.add(word)));
            word += 1;
        }
        sum
    }
}

const CLIENT_WORDS: usize = size_of::<Client>() / 8;
const FAILED_WORDS: usize = size_of::<Failed>() / 8;

/// True if the place holds this worker's record of that socket, whole.
#[inline(always)]
pub(crate) fn holds(slot: *mut Client, sk: u64, tgid: u32) -> bool {
    // SAFETY: a live array element of plain integers.
    unsafe { (*slot).sk == sk && (*slot).tgid == tgid && (*slot).check == sum::<CLIENT_WORDS>(slot.cast()) }
}

/// Closes a record after a change.
#[inline(always)]
pub(crate) fn seal(slot: *mut Client) {
    // SAFETY: a live array element.
    unsafe { (*slot).check = sum::<CLIENT_WORDS>(slot.cast()) };
}

/// Takes what the worker did last; from now on that is something else.
#[inline(always)]
pub(crate) fn take(proc: *mut Proc) -> Turn {
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe {
        let last = (*proc).turn;
        (*proc).turn.kind = turn::NOTHING;
        last
    }
}

/// Gives a connection that begins now the request that the worker is at.
#[inline(always)]
pub(crate) fn assign(proc: *mut Proc, conn: &mut Conn) {
    let last = take(proc);
    // SAFETY: as in `take`.
    unsafe { (*proc).connected_ns = conn.start_ns };
    if last.kind == turn::READ_CLIENT {
        link(&last);
    }
    if last.kind != turn::NOTHING {
        conn.client = last.id;
        conn.number = match last.kind {
            turn::READ_CLIENT => 1,
            turn::CLOSED if last.number != 0 => last.number.wrapping_add(1),
            // After an answer: the next server's turn, or another subrequest's first.
            _ => 0,
        };
        if last.retry != 0 {
            conn.flags |= flag::RETRY;
        }
    }
    // One state for the verifier, whichever it was.
    kernel::forget(conn);
}

/// Notes that the request which was read last is not nginx's alone.
#[inline(always)]
pub(crate) fn link(last: &Turn) {
    let Some(slot) = slot(last.sk) else {
        return;
    };
    // SAFETY: a live array element of plain integers.
    unsafe {
        if (*slot).sk == last.sk && (*slot).id == last.id && (*slot).flags & client_flag::LINKED == 0 {
            (*slot).flags |= client_flag::LINKED;
            seal(slot);
        }
    }
}

/// Remembers a failed attempt until the worker closes its socket.
#[inline(always)]
pub(crate) fn failed(sk: u64, conn: &Conn) {
    let Some(slot) = FAILED.get_ptr_mut(place(sk) & (FAILED_PLACES - 1)) else {
        return;
    };
    // SAFETY: a live array element of plain integers.
    unsafe {
        if (*slot).sk == 0
            && let Some(shared) = SHARED.get_ptr_mut(0)
        {
            conns::add(&raw mut (*shared).failed_open, 1);
        }
        (*slot).sk = sk;
        (*slot).id = conn.client;
        (*slot).start_ns = conn.start_ns;
        (*slot).tgid = conn.tgid;
        (*slot).number = u32::from(conn.number);
        (*slot).check = sum::<FAILED_WORDS>(slot.cast());
    }
}

/// A TCP socket is destroyed: perhaps a failed attempt's, by its worker.
#[inline(always)]
pub(crate) fn closed(sk: u64) {
    // SAFETY: an integer of an array element.
    let open =
        SHARED.get_ptr(0).map_or(0, |s| unsafe { core::ptr::read_volatile(&raw const (*s).failed_open) });
    if open == 0 {
        return;
    }
    let Some(slot) = FAILED.get_ptr_mut(place(sk) & (FAILED_PLACES - 1)) else {
        return;
    };
    // SAFETY: as above.
    unsafe {
        if (*slot).sk != sk {
            return;
        }
        let tgid = kernel::tgid();
        let (id, number) = ((*slot).id, (*slot).number);
        let whole = (*slot).tgid == tgid && (*slot).check == sum::<FAILED_WORDS>(slot.cast());
        (*slot).sk = 0;
        if let Some(shared) = SHARED.get_ptr_mut(0) {
            conns::add(&raw mut (*shared).failed_open, u64::MAX);
        }
        if whole && let Some(proc) = PROCS.get_ptr_mut(tgid) {
            gave_up(proc, id, number);
        }
    }
}

/// When the attempt of that socket began, or was found: a name for it; 0 if it is not known (any more).
#[inline(always)]
pub(crate) fn began(sk: u64, tgid: u32) -> u64 {
    // SAFETY: elements of pre-allocated maps, plain integers; the sum tells what is torn.
    unsafe {
        if let Some(conn) = conns::find(sk) {
            return (*conn).start_ns;
        }
        let Some(slot) = FAILED.get_ptr_mut(place(sk) & (FAILED_PLACES - 1)) else {
            return 0;
        };
        let whole =
            (*slot).sk == sk && (*slot).tgid == tgid && (*slot).check == sum::<FAILED_WORDS>(slot.cast());
        if whole { (*slot).start_ns } else { 0 }
    }
}

/// The worker is done with a failed attempt.
#[inline(always)]
pub(crate) fn gave_up(proc: *mut Proc, id: u64, number: u32) {
    if id != 0 {
        // SAFETY: a live map element that only this worker's thread writes.
        unsafe { (*proc).turn = Turn { id, sk: 0, kind: turn::CLOSED, number: number as u16, retry: 1 } };
    }
}

/// A worker has read from what is no upstream connection. Returns the request that it is at, 0 for none.
#[inline(never)]
pub(crate) fn heard(sk: u64, tgid: u32, proc: *mut Proc) -> u64 {
    let Some(slot) = slot(sk) else {
        return 0;
    };
    if proc.is_null() {
        return 0;
    }
    let copied: u32 = read(sk, setting!(copied_seq));
    let written: u32 = read(sk, setting!(write_seq));
    let known = holds(slot, sk, tgid);
    // SAFETY: a live array element of plain integers (all of this function's uses); what another CPU writes at the
    // same time breaks the sum.
    unsafe {
        if known {
            let since = written.wrapping_sub((*slot).write_seq);
            let more = copied.wrapping_sub((*slot).copied_seq);
            if more == 0 {
                // A look without taking (MSG_PEEK).
                return 0;
            }
            let fresh = since == 0 || since == CONTINUE;
            if fresh && (*slot).flags & client_flag::PROXY == 0 {
                (*slot).write_seq = written;
                (*slot).copied_seq = copied;
                if (*slot).flags & client_flag::HTTP != 0
                    && let Some((buf, _)) = kernel::buffer_of(setting!(nr_recvfrom))
                    && buf.wrapping_sub((*slot).buf) < u64::from((*slot).asked)
                {
                    // More of the head; a body goes elsewhere.
                    (*slot).received = (*slot).received.saturating_add(more);
                }
                seal(slot);
                return (*slot).id;
            }
        }
        let (buf, asked) = kernel::buffer_of(setting!(nr_recvfrom)).unwrap_or((0, 0));
        let asked = asked.min(1 << 20) as u32;
        let mut flags = 0;
        let mut buffer = 0;
        let mut clean = 0;
        let mut received = if known { copied.wrapping_sub((*slot).copied_seq) } else { asked };
        // A record of this socket that fits the bytes is of this connection: a request that begins later than with its
        // first bytes, or (once in four million) one of which less is believed.
        let continues = known && received <= asked && (*slot).flags & client_flag::PROXY == 0;
        if !continues && read::<u64>(sk, setting!(bytes_sent)) == 0 {
            let arrived = read::<u64>(sk, setting!(bytes_received)) as u32;
            let next: u32 = read(sk, setting!(rcv_nxt));
            // A FIN behind them counts as one that waits.
            let consumed = arrived.wrapping_sub(next.wrapping_sub(copied));
            if consumed == 0 {
                return 0;
            }
            if buf != 0 && consumed <= asked {
                let first: u64 = kernel::read_user(buf);
                if first == PROXY_V1 || first == PROXY_V2 {
                    flags = client_flag::PROXY;
                } else if (first as u8).is_ascii_uppercase() {
                    flags = client_flag::HTTP | client_flag::FIRST;
                    buffer = asked;
                    received = consumed;
                    (*proc).buffer = asked;
                }
            }
        } else if buf != 0 {
            // Not what follows the last request in the same buffer; nor, after it had been filled, what goes to another.
            let mut follows = false;
            buffer = (*proc).buffer;
            if known {
                let behind = buf.wrapping_sub((*slot).buf);
                let filled = (*slot).received >= (*slot).asked;
                follows = behind != 0 && (filled || behind <= u64::from((*slot).asked));
                if (*slot).buffer != 0 {
                    buffer = (*slot).buffer;
                }
            }
            if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
                clean = kernel::string_of(scratch, buf, received);
                if clean > 0 && (*scratch)[0].is_ascii_uppercase() {
                    flags = client_flag::HTTP;
                    if !follows && asked == buffer {
                        flags |= client_flag::ALIGNED;
                    }
                }
            }
        }
        let id = crate::emit::now_ns();
        (*slot).sk = sk;
        (*slot).id = id;
        (*slot).buf = buf;
        (*slot).tgid = tgid;
        (*slot).asked = asked;
        (*slot).received = received;
        (*slot).write_seq = written;
        (*slot).copied_seq = copied;
        (*slot).buffer = buffer;
        (*slot).clean = clean;
        (*slot).flags = flags;
        seal(slot);
        id
    }
}

/// How long an answer is waited for: nginx's time-outs are a minute each.
const AWAIT_S: u32 = 300;

/// Seconds of CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn seconds() -> u32 {
    (crate::emit::now_ns() / 1_000_000_000) as u32
}

/// nginx says that an attempt of the request failed which this client waits for: its answer is to be reported, under
/// the number that is returned; 0 if it cannot be told from others. `main`: no header of the answer is out.
#[inline(always)]
pub(crate) fn await_answer(sk: u64, tgid: u32, proc: *mut Proc, main: bool) -> u64 {
    let Some(slot) = slot(sk) else {
        return 0;
    };
    // SAFETY: live elements of plain integers, as in `heard`.
    unsafe {
        if !holds(slot, sk, tgid) || (*slot).flags & client_flag::HTTP == 0 {
            return 0;
        }
        let written: u32 = read(sk, setting!(write_seq));
        let since = written.wrapping_sub((*slot).write_seq);
        if (*slot).flags & client_flag::ANSWERED != 0 || (since != 0 && since != CONTINUE) {
            // Of several requests that came together the first has been answered. The record's bytes were its own.
            if !main {
                return 0;
            }
            (*slot).id = crate::emit::now_ns();
            (*slot).write_seq = written;
            (*slot).received = 0;
            (*slot).flags = client_flag::HTTP;
        }
        (*slot).flags |= client_flag::AWAITED | client_flag::LINKED;
        seal(slot);
        (*proc).awaiting = seconds() + AWAIT_S;
        (*slot).id
    }
}

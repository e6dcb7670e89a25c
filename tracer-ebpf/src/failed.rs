//! Attempts that failed and whose sockets nginx has not closed yet: as it does, it is asked whose they were.
//!
//! The table is an array in which a place is overwritten by whoever comes next: nothing leaks, nothing locks, and what is torn or
//! gone is a request that stays unknown.

use tracer_ebpf::{
    Conn,
    request::{FAILED as PLACES, Failed},
};

use crate::{
    conns, kernel,
    maps::{FAILED, SHARED},
    probes::said,
    repeats,
};

/// Fibonacci hashing.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const WORDS: usize = size_of::<Failed>() / 8;

#[inline(always)]
fn slot(sk: u64) -> Option<*mut Failed> {
    FAILED.get_ptr_mut(((sk >> 6).wrapping_mul(SPREAD) >> 32) as u32 & (PLACES - 1))
}

/// A sum of all words without the second, which holds it, and the last, which may change.
///
/// # Safety
/// `at` points to a live element.
#[inline(always)]
unsafe fn sum(at: *const Failed) -> u64 {
    // SAFETY: by this function's contract.
    unsafe {
        let at = at.cast::<u64>();
        let mut sum = core::ptr::read_volatile(at);
        let mut word = 2;
        while word < WORDS - 1 {
            sum = sum.wrapping_mul(SPREAD).wrapping_add(core::ptr::read_volatile(at.add(word)));
            word += 1;
        }
        sum
    }
}

/// Remembers a failed attempt until the worker closes its socket. One that was counted with its kind is nobody's:
/// `place` is what became of it.
#[inline(always)]
pub(crate) fn note(sk: u64, conn: &Conn, place: u32) {
    if place == repeats::COUNTED {
        return;
    }
    let Some(slot) = slot(sk) else {
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
        (*slot).nginx = conn.nginx;
        (*slot).start_ns = conn.start_ns;
        (*slot).tgid = u64::from(conn.tgid);
        (*slot).said = 0;
        (*slot).check = sum(slot);
    }
}

/// A TCP socket is destroyed: perhaps a failed attempt's, by its worker. nginx is asked whose it was, unless it has told.
#[inline(always)]
pub(crate) fn closed(sk: u64) {
    // SAFETY: an integer of an array element.
    let open =
        SHARED.get_ptr(0).map_or(0, |s| unsafe { core::ptr::read_volatile(&raw const (*s).failed_open) });
    if open == 0 {
        return;
    }
    let Some(slot) = slot(sk) else {
        return;
    };
    // SAFETY: as above.
    unsafe {
        if (*slot).sk != sk {
            return;
        }
        let whole = (*slot).tgid == u64::from(kernel::tgid()) && (*slot).check == sum(slot);
        let (nginx, start_ns, told) = ((*slot).nginx, (*slot).start_ns, (*slot).said);
        (*slot).sk = 0;
        if let Some(shared) = SHARED.get_ptr_mut(0) {
            conns::add(&raw mut (*shared).failed_open, u64::MAX);
        }
        if whole && told == 0 {
            said::ask(sk, start_ns, nginx);
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
        let Some(slot) = slot(sk) else {
            return 0;
        };
        if (*slot).sk != sk || (*slot).tgid != u64::from(tgid) || (*slot).check != sum(slot) {
            return 0;
        }
        // nginx speaks of it by itself.
        (*slot).said = 1;
        (*slot).start_ns
    }
}

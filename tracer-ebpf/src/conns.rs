//! Open connections by `struct sock *`.
//!
//! Every TCP socket of the host is looked up here at its end, and every connection of nginx is entered and
//! removed, so this is most of what a healthy connection costs. A hash map takes a lock and several cache misses
//! for each; here a look-up is one cache line, of an array of buckets with four places. What finds no place in
//! its bucket, or meets another CPU there, goes to an ordinary hash map beside it.

use tracer_ebpf::{Bucket, Conn, Entry, WAYS, talk::Talk};

const _: () = assert!(WAYS == 4);

use crate::{
    emit::count,
    maps::{BUCKETS, CONNS, SHARED, setting},
};

#[inline(always)]
fn bucket(sk: u64) -> Option<*mut Bucket> {
    // Sockets come from a slab: the low bits are the same for all. Fibonacci hashing.
    let hash = (sk >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    BUCKETS.get_ptr_mut(hash as u32 & setting!(bucket_mask))
}

/// Connections that are in the hash map.
#[inline(always)]
fn spilled() -> u64 {
    // SAFETY: an integer of an array element.
    SHARED.get_ptr(0).map_or(0, |s| unsafe { core::ptr::read_volatile(&raw const (*s).spilled) })
}

/// Adds without asking for the result: the one atomic instruction that kernels before 5.12 know.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, value: u64) {
    // SAFETY: an aligned integer of a live array element (all callers). `core` has no atomics for a target
    // without compare-and-swap.
    unsafe {
        core::arch::asm!("lock *(u64 *)({at} + 0) += {value}", at = in(reg) counter, value = in(reg) value);
    }
}

/// Which place of a bucket has that tag; of several, as free ones have, the last. Without a branch for each place, since the
/// verifier would go on from each of them separately, through all that follows.
#[inline(always)]
fn way_of(b: *mut Bucket, tag: u64) -> Option<usize> {
    let mut way = 0_u64;
    let mut found = 0_u64;
    let mut at = 0;
    while at < WAYS {
        // SAFETY: a live array element.
        let other = unsafe { core::ptr::read_volatile(&raw const (*b).tags[at]) } ^ tag;
        let equal: u64;
        // SAFETY: arithmetic in registers: 1 if `other` is 0, else 0. The compiler would make branches of it.
        unsafe {
            core::arch::asm!(
                "{equal} = {other}",
                "{equal} = -{equal}",
                "{equal} |= {other}",
                "{equal} >>= 63",
                "{equal} ^= 1",
                other = in(reg) other,
                equal = out(reg) equal,
            );
        }
        way = tracer_ebpf::last_of(way, at as u64, equal);
        found |= equal;
        at += 1;
    }
    // SAFETY: as above; keeps the bound in the register that the address is made of.
    unsafe { core::arch::asm!("{way} &= 3", way = inlateout(reg) way) };
    if found == 0 { None } else { Some(way as usize) }
}

/// The record of a connection.
#[inline(always)]
pub(crate) fn find(sk: u64) -> Option<*mut Conn> {
    let b = bucket(sk)?;
    if let Some(way) = way_of(b, sk) {
        // SAFETY: a live array element; a socket has one place at most, and its life orders all who ask for it.
        return Some(unsafe { (&raw mut (*b).conns).cast::<Entry>().add(way).cast() });
    }
    if spilled() != 0 { CONNS.get_ptr_mut(sk).map(|entry| entry.cast()) } else { None }
}

/// What is said on a connection: it lies behind the record that [`find`] gives.
#[inline(always)]
pub(crate) fn talk_of(conn: *mut Conn) -> *mut Talk {
    // SAFETY: `find` leads to the beginning of an Entry (all callers).
    unsafe { &raw mut (*conn.cast::<Entry>()).talk }
}

const TALK_WORDS: usize = size_of::<Talk>() / 8;

/// Nothing has been said yet. Written out, as `memset` would be called.
///
/// # Safety
/// `talk` points to a live element.
#[inline(always)]
unsafe fn hush(talk: *mut Talk) {
    let words = talk.cast::<u64>();
    let mut at = 0;
    while at < TALK_WORDS {
        // SAFETY: by this function's contract.
        unsafe { core::ptr::write_volatile(words.add(at), 0) };
        at += 1;
    }
}

/// For entries of the hash map: in read-only data, since the stack is dear.
static EMPTY: Entry = {
    // SAFETY: integers only.
    unsafe { core::mem::zeroed() }
};

/// Enters a connection. False if there is no room at all.
#[inline(always)]
pub(crate) fn open(sk: u64, conn: &Conn) -> bool {
    opened(sk, conn, None)
}

/// Enters one on which something has been said already.
#[inline(always)]
pub(crate) fn enter(sk: u64, conn: &Conn, talk: &Talk) -> bool {
    opened(sk, conn, Some(talk))
}

#[inline(always)]
fn opened(sk: u64, conn: &Conn, talk: Option<&Talk>) -> bool {
    if let Some(b) = bucket(sk)
        && place(b, sk, conn, talk)
    {
        return true;
    }
    if CONNS.insert(sk, &EMPTY, 0).is_err() {
        return false;
    }
    if let Some(entry) = CONNS.get_ptr_mut(sk) {
        // SAFETY: a live map element that only the events of this socket write.
        unsafe {
            (&raw mut (*entry).conn).write(*conn);
            if let Some(talk) = talk {
                (&raw mut (*entry).talk).write(*talk);
            }
        }
    }
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: a live array element.
        add(unsafe { &raw mut (*shared).spilled }, 1);
    }
    true
}

/// Takes a free place of a bucket. The lock is one try: who adds one and then reads one is alone; of two that
/// meet at most one sees it, and the other goes elsewhere.
#[inline(always)]
fn place(b: *mut Bucket, sk: u64, conn: &Conn, talk: Option<&Talk>) -> bool {
    let mut done = false;
    // SAFETY: a live array element; places are taken only under its lock, and a taken one is written by the
    // events of its own socket alone.
    unsafe {
        let lock = &raw mut (*b).lock;
        add(lock, 1);
        if core::ptr::read_volatile(lock) == 1 {
            // A place that its last connection left behind, or a free one.
            let free = if let Some(way) = way_of(b, sk) { Some(way) } else { way_of(b, 0) };
            if let Some(way) = free {
                let entry = (&raw mut (*b).conns).cast::<Entry>().add(way);
                (&raw mut (*entry).conn).write(*conn);
                match talk {
                    Some(talk) => (&raw mut (*entry).talk).write(*talk),
                    None => hush(&raw mut (*entry).talk),
                }
                core::ptr::write_volatile((&raw mut (*b).tags).cast::<u64>().add(way), sk);
                done = true;
            }
        }
        add(lock, u64::MAX);
    }
    done
}

/// Removes a connection.
#[inline(always)]
pub(crate) fn close(sk: u64) {
    count(|c| c.closed += 1);
    if let Some(b) = bucket(sk)
        && let Some(way) = way_of(b, sk)
    {
        // SAFETY: as in `find`.
        unsafe { core::ptr::write_volatile((&raw mut (*b).tags).cast::<u64>().add(way), 0) };
        return;
    }
    if CONNS.remove(sk).is_ok()
        && let Some(shared) = SHARED.get_ptr_mut(0)
    {
        // SAFETY: a live array element.
        add(unsafe { &raw mut (*shared).spilled }, u64::MAX);
    }
}

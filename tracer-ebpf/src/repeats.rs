//! Counting equal failures where there are too many to explain each.

use core::mem::MaybeUninit;

use tracer_ebpf::{
    Conn, stage,
    storm::{Alike, EXEMPLAR_NS, Repeats},
    unix::NAME,
};

use crate::{
    conns,
    emit::{self, End, Seen, count},
    kernel::{self, AF_UNIX, read_user},
    maps::{EVENTS, REPEATS, SHARED, setting},
};

/// How [`place`] answers: the failure is to be sent as ever.
pub(crate) const ALONE: u32 = 0;
/// It is to be sent, and stands for those of its kind that are counted after it: `flag::EXEMPLAR`.
pub(crate) const EXEMPLAR: u32 = 1;
/// It was counted, and is not sent.
pub(crate) const COUNTED: u32 = 2;

/// `BPF_RB_AVAIL_DATA` and `BPF_RB_RING_SIZE` of include/uapi/linux/bpf.h.
const AVAILABLE: u64 = 0;
const SIZE: u64 = 1;

/// True if user space is behind: half of the ring buffer waits to be read.
#[inline(always)]
pub(crate) fn is_behind() -> bool {
    EVENTS.query(AVAILABLE) > EVENTS.query(SIZE) / 2
}

/// Notes that an attempt failed. True if more have failed in this second than are told one by one, or user space is behind.
#[inline(always)]
pub(crate) fn rages(now_ns: u64) -> bool {
    let Some(shared) = SHARED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: integers of an array element. Two CPUs that begin a second at once begin it twice.
    let many = unsafe {
        if now_ns.wrapping_sub((*shared).second_ns) >= EXEMPLAR_NS {
            (*shared).second_ns = now_ns;
            (*shared).in_second = 0;
        }
        conns::add(&raw mut (*shared).in_second, 1);
        core::ptr::read_volatile(&raw const (*shared).in_second) > u64::from(setting!(one_by_one))
    };
    many || is_behind()
}

/// Where a failed attempt goes that is not one of a unix socket. A function of its own: the stack is dear.
#[inline(never)]
pub(crate) fn place(sk: u64, conn: &Conn, end: &End) -> u32 {
    let now_ns = emit::now_ns();
    // What nginx gave up tells by its times why.
    if !rages(now_ns) || end.shutdown == 3 {
        return ALONE;
    }
    let mut place_of_seen = MaybeUninit::uninit();
    let seen = Seen::nothing(&mut place_of_seen);
    if sk != 0 && end.stage >= stage::SYN_SENT {
        emit::look_up(seen, sk, conn);
    }
    // Two words that are read as such: an address has no better than its bytes.
    let daddr = (&raw const conn.daddr).cast::<u64>();
    // SAFETY: 16 bytes, which are aligned to 8 in `Conn`.
    let (high, low) = unsafe { (daddr.read(), daddr.add(1).read()) };
    let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
    let mut alike = Alike::NOTHING
        .and(high)
        .and(low)
        .and(pair(conn.tgid, kernel::sock_netns(sk)))
        .and(pair(conn.flags | end.flags, u32::from(conn.dport)))
        .and(pair(end.sk_err as u32, end.ret as u32))
        .and(pair(end.lsm_ret as u32, u32::from(conn.rst_ttl)))
        .and(pair(u32::from(conn.family), u32::from(end.stage)));
    if !seen.entry.is_null() {
        let seen = seen.entry;
        // SAFETY: a live element of an LRU map, of plain integers: what is torn is a kind of its own.
        unsafe {
            if (*seen).drop_last_ns != 0 && (*seen).drop_last_ns >= conn.start_ns {
                alike = alike.and((*seen).drop_location).and(u64::from((*seen).drop_reason));
                let mut frame = 0;
                while frame < tracer_ebpf::DROP_STACK_DEPTH {
                    alike = alike.and((*seen).drop_stack[frame]);
                    frame += 1;
                }
            }
            if (*seen).icmp_ns != 0 && (*seen).icmp_ns >= conn.start_ns {
                // Who rejects is a part of the verdict.
                let sender = (&raw const (*seen).icmp_sender).cast::<u64>();
                alike = alike
                    .and(pair(u32::from((*seen).icmp_type), u32::from((*seen).icmp_code)))
                    .and(sender.read_unaligned())
                    .and(sender.add(1).read_unaligned());
            }
            if (*seen).overflow_ns != 0 && (*seen).overflow_ns >= conn.start_ns {
                alike = alike.and(1);
            }
        }
    }
    if seen.queued != 0
        && let Some((kind, code)) = emit::icmp_of(seen.queued)
    {
        let sender = kernel::ip_source(kernel::network_header(seen.queued));
        let [.., a, b, c, d] = sender;
        alike = alike.and(pair(u32::from(kind) << 16 | u32::from(code), u32::from_ne_bytes([a, b, c, d])));
    }
    let mut place = find(&alike, conn.tgid, sk, conn.start_ns, now_ns);
    kernel::forget(&mut place);
    if place == COUNTED {
        emit::forget_flow(seen);
    }
    place
}

/// Where a failed connect() to a unix socket goes. `name` lies in the worker; `sk` and `now_ns` name the attempt.
#[inline(never)]
pub(crate) fn place_unix(sk: u64, name: u64, now_ns: u64, ret: i32, lsm_ret: i32) -> u32 {
    if !rages(now_ns) {
        return ALONE;
    }
    let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
    let tgid = kernel::tgid();
    let mut alike = Alike::NOTHING
        .and(pair(tgid, kernel::sock_netns(sk)))
        .and(pair(ret as u32, lsm_ret as u32))
        .and(u64::from(AF_UNIX));
    let mut at = 0;
    while at < NAME as u64 {
        // The last of them reaches four bytes behind the name, where nginx's memory is the same each time.
        alike = alike.and(read_user(name + at));
        at += 8;
    }
    find(&alike, tgid, sk, now_ns, now_ns)
}

/// Counts a failure with its kind, unless it is the one of this second that is to be sent.
#[inline(never)]
fn find(alike: &Alike, tgid: u32, sk: u64, start_ns: u64, now_ns: u64) -> u32 {
    if let Some(known) = REPEATS.get_ptr_mut(alike) {
        // SAFETY: a live element of a pre-allocated map that is never removed while its worker lives.
        unsafe {
            if now_ns.wrapping_sub((*known).sent_ns) < EXEMPLAR_NS {
                conns::add(&raw mut (*known).count, 1);
                (*known).last_ns = now_ns;
                count(|c| {
                    c.failed += 1;
                    c.counted += 1;
                });
                return COUNTED;
            }
            (*known).sent_ns = now_ns;
            (*known).sk = sk;
            (*known).start_ns = start_ns;
        }
        return EXEMPLAR;
    }
    // Another CPU may have entered the same kind meanwhile: its exemplar stands for both.
    const NEW: u64 = 1;
    if REPEATS.insert(alike, &NONE, NEW).is_err() {
        return ALONE;
    }
    if let Some(new) = REPEATS.get_ptr_mut(alike) {
        // SAFETY: as above.
        unsafe {
            (*new).last_ns = now_ns;
            (*new).sent_ns = now_ns;
            (*new).sk = sk;
            (*new).start_ns = start_ns;
            (*new).tgid = u64::from(tgid);
        }
    }
    EXEMPLAR
}

/// In read-only data: the stack is dear.
static NONE: Repeats = Repeats { count: 0, last_ns: 0, sent_ns: 0, sk: 0, start_ns: 0, tgid: 0 };

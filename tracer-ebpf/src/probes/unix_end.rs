//! What is kept of a response that comes by a unix socket, and whether the connection's end is worth a record.

use aya_ebpf::helpers::{
    bpf_get_current_task,
    generated::{bpf_probe_read_kernel, bpf_probe_read_user, bpf_ringbuf_submit},
};
use tracer_ebpf::{
    Attempt, flag, kind, stage,
    talk::{Broken, GOT, SENT, talk_flag},
    unix::{Far, NAME, Standing, far},
};

use crate::{
    clients,
    emit::{self, count},
    kernel::{self, read, read_user},
    maps::{EVENTS, PROCS, setting},
    probes::death,
};

/// How long nginx waits, at the least, before a close by itself looks like a time-out.
const PATIENCE_NS: u64 = 100_000_000;
/// `PF_EXITING` of include/linux/sched.h, the same since 2.6.
const PF_EXITING: u32 = 0x4;
const TCP_ESTABLISHED: u8 = 1;

/// Record types of FastCGI 1.0, section 8, with the version in front.
const BEGIN_REQUEST: u64 = 0x0101;
const END_REQUEST: u64 = 0x0103;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

/// True if nginx speaks FastCGI.
///
/// # Safety
/// A live map element.
#[inline(always)]
unsafe fn is_fastcgi(s: *const Standing) -> bool {
    // SAFETY: by this function's contract.
    unsafe { (*s).talk.first & 0xffff == BEGIN_REQUEST }
}

/// True if a write behind bytes of the response belongs to the same request: more of a body.
///
/// # Safety
/// A live map element.
#[inline(always)]
pub(super) unsafe fn goes_on(s: *const Standing) -> bool {
    let (at, len) = first_written();
    let begins = if len >= 8 { read_user::<u64>(at) & 0xffff } else { 0 };
    // SAFETY: by this function's contract.
    unsafe { is_fastcgi(s) && begins != BEGIN_REQUEST }
}

/// Where the bytes lie that the current system call writes first, and how many of them are together there.
#[inline(always)]
pub(super) fn first_written() -> (u64, u32) {
    if let Some((vector, _)) = kernel::buffer_of(setting!(nr_writev)) {
        // struct iovec: base, length.
        let first: [u64; 2] = read_user(vector);
        return (first[0], first[1] as u32);
    }
    kernel::buffer_of(setting!(nr_sendto))
        .or_else(|| kernel::buffer_of(setting!(nr_write)))
        .map_or((0, 0), |(at, len)| (at, len as u32))
}

/// Most parts of a vector that are looked at: more than nginx reads at a time, as a rule.
const PARTS: u64 = 8;

/// Where the current system call has read to: the beginning, and the last piece with its length, of `n` bytes.
#[inline(always)]
fn places(n: u32) -> (u64, u64, u32) {
    if let Some((vector, _)) = kernel::buffer_of(setting!(nr_readv)) {
        let mut left = n;
        let mut at = 0;
        let mut begin = 0;
        while at < PARTS {
            let part: [u64; 2] = read_user(vector + at * 16);
            if at == 0 {
                begin = part[0];
            }
            if u64::from(left) <= part[1] {
                return (begin, part[0], left);
            }
            left -= part[1] as u32;
            at += 1;
        }
        return (begin, 0, 0);
    }
    let buffer = kernel::buffer_of(setting!(nr_recvfrom)).or_else(|| kernel::buffer_of(setting!(nr_read)));
    buffer.map_or((0, 0, 0), |(at, _)| (at, at, n))
}

/// Keeps what a read of `n` bytes brought: the beginning of the response, and its last bytes. Returns 0, as every function of
/// its own must return something.
#[inline(never)]
pub(super) fn keep(s: *mut Standing, n: u32) -> u32 {
    if s.is_null() {
        return 0;
    }
    let (begin, piece, len) = places(n);
    // SAFETY: a live map element; only this worker's thread writes these fields.
    unsafe {
        if (*s).got_len == 0 && begin != 0 {
            let together = if begin == piece { len } else { n };
            let mut size = u64::from(if together < GOT as u32 { together } else { GOT as u32 });
            if size == GOT as u64 {
                // The mask below would make nothing of it.
                size -= 1;
            }
            core::arch::asm!("{size} &= 511", size = inlateout(reg) size);
            let to = (&raw mut (*s).got).cast::<core::ffi::c_void>();
            if size != 0 && bpf_probe_read_user(to, size as u32, begin as *const _) == 0 {
                (*s).got_len = size as u16;
                let head = (&raw const (*s).got).cast::<[u64; 2]>();
                (*s).talk.head = *head;
                (*s).talk.status = status_of(s);
            }
        }
        tail(s, piece, len);
    }
    0
}

/// Remembers the last 16 bytes that were read.
///
/// # Safety
/// A live map element.
#[inline(always)]
unsafe fn tail(s: *mut Standing, piece: u64, len: u32) {
    // SAFETY: by this function's contract.
    unsafe {
        if len >= 16 {
            let last: [u64; 2] = read_user(piece + u64::from(len) - 16);
            (*s).tail = [u64::from_be(last[0]), u64::from_be(last[1])];
            return;
        }
        let new: [u64; 2] = read_user(piece);
        let (a, b) = (u64::from_be(new[0]), u64::from_be(new[1]));
        let [old_a, old_b] = (*s).tail;
        let bits = len * 8;
        (*s).tail = if bits == 0 {
            [0, 0]
        } else if bits < 64 {
            [(old_a << bits) | (old_b >> (64 - bits)), (old_b << bits) | (a >> (64 - bits))]
        } else if bits == 64 {
            [old_b, a]
        } else {
            let more = bits - 64;
            [(old_b << more) | (a >> (64 - more)), (a << more) | (b >> (64 - more))]
        };
    }
}

/// The status of the response's head: of HTTP's status line, or of the field `Status` that begins a CGI's.
///
/// # Safety
/// A live map element.
#[inline(always)]
unsafe fn status_of(s: *const Standing) -> u16 {
    const LINE: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
    const FIELD: u64 = u64::from_le_bytes(*b"Status: ");
    /// Nine bytes before the digits of a status line, eight before those of the field.
    const DIGITS: u64 = 8;
    // SAFETY: by this function's contract; every read is within `got` by its mask.
    unsafe {
        let got = (&raw const (*s).got) as u64;
        let mut at: u64 = 0;
        if is_fastcgi(s) {
            let mut record = 0;
            while record < 3 {
                let header: [u8; 8] = read(got + (at & 255), 0);
                if header[1] == STDOUT {
                    break;
                }
                if header[1] != STDERR {
                    return 0;
                }
                at += 8 + u64::from(u16::from_be_bytes([header[4], header[5]])) + u64::from(header[6]);
                if at > 255 {
                    return 0;
                }
                record += 1;
            }
            at += 8;
        }
        let words: [u64; 2] = read(got + (at & 511), 0);
        let digits = if words[0] & 0x00ff_ffff_ffff_ffff == LINE {
            words[1] >> 8
        } else if words[0] == FIELD && DIGITS == 8 {
            words[1]
        } else {
            return 0;
        };
        let b = digits.to_le_bytes();
        let digit = |i: usize| u16::from(b[i].wrapping_sub(b'0'));
        let (hundreds, tens, ones) = (digit(0), digit(1), digit(2));
        if hundreds > 9 || tens > 9 || ones > 9 { 0 } else { hundreds * 100 + tens * 10 + ones }
    }
}

/// A watched process closes its end.
#[inline(never)]
pub(super) fn closed(s: *mut Standing, sk: u64) -> u32 {
    if s.is_null() {
        return 0;
    }
    // SAFETY: a live map element.
    unsafe {
        let unread = unread(sk);
        if unread != 0 {
            (*s).talk.flags |= talk_flag::UNREAD;
        }
        if is_suspicious(s, unread) {
            tell(s, sk, 0);
            if let Some(proc) = PROCS.get_ptr_mut((*s).conn.tgid) {
                clients::gave_up(proc, (*s).conn.client, u32::from((*s).conn.number));
            }
        }
    }
    0
}

/// Whether something may be wrong with the exchange at work; user space looks closer.
///
/// # Safety
/// A live map element.
#[inline(always)]
unsafe fn is_suspicious(s: *mut Standing, unread: u32) -> bool {
    // SAFETY: by this function's contract.
    unsafe {
        let t = &raw mut (*s).talk;
        if (*t).sent_ns == 0 && (*t).told_ns == 0 {
            // Nothing was asked.
            return false;
        }
        let got = (*t).copied_seq;
        if is_fastcgi(s) && ((*s).tail[0] >> 48) == END_REQUEST {
            (*t).flags |= talk_flag::WHOLE;
        }
        let whole = (*t).flags & talk_flag::WHOLE != 0;
        if got == 0 || unread != 0 || (*t).told < 0 {
            return true;
        }
        if whole {
            return false;
        }
        if (*t).flags & talk_flag::EOF != 0 {
            return is_fastcgi(s);
        }
        is_fastcgi(s) && emit::now_ns().wrapping_sub((*t).read_ns) >= PATIENCE_NS
    }
}

/// The far end of a watched connection is closed, in the process that held it.
#[inline(never)]
pub(super) fn far_end_closed(s: *mut Standing, watched: u64) -> u32 {
    if s.is_null() {
        return 0;
    }
    let now = emit::now_ns();
    // SAFETY: a live map element; nothing but this writes these fields.
    unsafe {
        (*s).talk.fin_ns = now;
        // What nginx has not read yet counts as an answer as well.
        let answered = (*s).talk.copied_seq != 0 || unread(watched) != 0;
        if death::is_told(answered) && death::died(watched, 0) != 0 {
            (*s).death_ns = now;
        }
    }
    0
}

/// Bytes that have arrived and that nginx has not read: of the first pieces, if there are many.
#[inline(always)]
fn unread(sk: u64) -> u32 {
    if !kernel::has(setting!(sk_receive_queue)) {
        return 0;
    }
    let head = sk + u64::from(setting!(sk_receive_queue));
    let mut at: u64 = read(head, 0);
    let mut sum: u32 = 0;
    let mut piece = 0;
    while piece < 4 {
        if at == head || at == 0 {
            break;
        }
        sum = sum.saturating_add(read::<u32>(at, setting!(skb_len)));
        at = read(at, 0);
        piece += 1;
    }
    sum
}

/// The far end, as nginx closes its own.
#[inline(always)]
fn far_of(sk: u64) -> Far {
    let mut found = Far { flags: 0, inode: 0, unread: 0, _pad: 0 };
    if !kernel::has(setting!(unix_peer)) {
        return found;
    }
    let peer: u64 = read(sk, setting!(unix_peer));
    if peer == 0 || read::<u8>(peer, setting!(skc_state)) != TCP_ESTABLISHED {
        return found;
    }
    found.flags = far::OPEN;
    if kernel::has(setting!(sk_wmem_alloc)) {
        // One is the socket's own.
        let held: u32 = read(sk, setting!(sk_wmem_alloc));
        found.unread = held.saturating_sub(1);
        // As unix_writable() counts (net/unix/af_unix.c).
        if kernel::has(setting!(sk_sndbuf)) && held >= read::<u32>(sk, setting!(sk_sndbuf)) / 4 {
            found.flags |= far::FULL;
        }
    }
    if kernel::has(setting!(sk_socket)) {
        let socket: u64 = read(peer, setting!(sk_socket));
        if socket != 0 {
            found.flags |= far::ACCEPTED;
            if kernel::has(setting!(socket_ino)) {
                found.inode = read(socket, setting!(socket_ino));
            }
        }
    }
    found
}

/// Sends the exchange at work.
#[inline(never)]
pub(super) fn tell(s: *mut Standing, sk: u64, more: u32) -> u32 {
    if s.is_null() {
        return 0;
    }
    count(|c| c.failed += 1);
    let Some(mut entry) = EVENTS.reserve::<Broken>(0) else {
        count(|c| c.lost += 1);
        return 0;
    };
    let b = entry.as_mut_ptr();
    core::mem::forget(entry);
    // SAFETY: reserved bytes, 8-byte aligned, of which every one is written, submitted below; a live map element.
    unsafe {
        let a = b.cast::<Attempt>();
        let t = &raw const (*s).talk;
        let now = emit::now_ns();
        let closes = more & talk_flag::SAID_5XX == 0;
        (*a).kind = kind::TALK;
        (*a).flags = (*s).conn.flags;
        (*a).start_ns = (*s).conn.start_ns;
        (*a).end_ns = now;
        (*a).rst_ns = 0;
        (*a).sk = sk;
        (*a).bytes_acked = 0;
        (*a).bytes_received = u64::from((*t).copied_seq);
        (*a).client = (*s).conn.client;
        (*a).saddr = [0; 16];
        *(&raw mut (*a).daddr).cast::<Far>() = far_of(sk);
        (*a).tgid = (*s).conn.tgid;
        (*a).netns = kernel::sock_netns(sk);
        (*a).sk_err = read(sk, setting!(sk_err));
        (*a).sk_err_soft = 0;
        (*a).ret = 0;
        (*a).lsm_ret = 0;
        (*a).lsm_id = 0;
        (*a).ifindex = 0;
        (*a).sport = 0;
        (*a).dport = 0;
        (*a).family = kernel::AF_UNIX;
        (*a).retransmits = 0;
        (*a).stage = stage::ESTABLISHED;
        (*a).old_state = TCP_ESTABLISHED;
        (*a).shutdown = if closes { 3 } else { 0 };
        (*a).rst_ttl = 0;
        (*a).number = (*s).conn.number;
        (*a)._pad = [0; 2];
        if closes {
            (*a).flags |= flag::APP_CLOSED;
            let task_flags: u32 = read(bpf_get_current_task(), setting!(task_flags));
            if task_flags & PF_EXITING != 0 {
                (*a).flags |= flag::TASK_EXITING;
            }
        }
        let from = t.cast::<core::ffi::c_void>();
        let size = size_of::<tracer_ebpf::talk::Talk>() as u32;
        bpf_probe_read_kernel((&raw mut (*b).talk).cast(), size, from);
        (*b).talk.flags |= more;
        (*b).death_ns = (*s).death_ns;
        (*b).sent_bytes = (*t).write_seq;
        (*b).got_bytes = (*t).copied_seq;
        (*b).unacked = 0;
        (*b).unread = unread(sk);
        (*b).total_retrans = 0;
        (*b).srtt_us = 0;
        (*b)._pad = 0;
        (*b).name_len = (*s).name_len;
        bpf_probe_read_kernel((&raw mut (*b).name).cast(), NAME as u32 + 4, (&raw const (*s).name).cast());
        (*b).got_len = (*s).got_len;
        if (*s).got_len == 0 {
            (*b).talk.flags |= talk_flag::NO_RESPONSE;
        }
        bpf_probe_read_kernel((&raw mut (*b).got).cast(), GOT as u32, (&raw const (*s).got).cast());
        let mut size = u64::from((*t).buf_len);
        if size >= SENT as u64 {
            // The mask below would make nothing of it.
            size = SENT as u64 - 1;
        }
        core::arch::asm!("{size} &= 255", size = inlateout(reg) size);
        let to = (&raw mut (*b).sent).cast::<core::ffi::c_void>();
        let tls = (*t).first & 0xffff == 0x0316;
        let read = !tls && size != 0 && bpf_probe_read_user(to, size as u32, (*t).buf as *const _) == 0;
        (*b).sent_len = if read { size as u16 } else { 0 };
        if tls {
            (*b).talk.flags |= talk_flag::TLS;
        } else if !read {
            (*b).talk.flags |= talk_flag::NO_REQUEST;
        }
        bpf_ringbuf_submit(b.cast(), emit::wakeup());
    }
    count(|c| c.sent += 1);
    0
}

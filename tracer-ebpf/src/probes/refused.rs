//! A response that nginx refuses while it has another server to ask (`next_upstream` with `invalid_header`): its client is
//! told nothing, so what tells is that nginx closes the connection, connects elsewhere, and that the response is odd.
//!
//! A subrequest that was served makes nginx do the same (`auth_request`). So healthy responses are told from odd ones here, and
//! nothing of them leaves the kernel; user space reads the bytes again.

use tracer_ebpf::{
    Proc,
    talk::{GOT, Head, Talk, proto, talk_flag},
};

use crate::{
    clients, conns,
    exchange::{self, head_of},
    kernel::{self, read},
    probes::talk,
};

/// Looks at the connection that this worker closed last, and forgets it.
#[inline(never)]
pub(super) fn look(proc: *mut Proc) -> u32 {
    if proc.is_null() {
        return 0;
    }
    // SAFETY: live elements of plain integers.
    unsafe {
        let sk = (*proc).closed_sk;
        let tgid = kernel::tgid();
        if sk & 1 == 0
            && let Some(conn) = conns::find(conns::parked(sk, tgid))
        {
            let talk = conns::talk_of(conn);
            let flags = (*talk).flags;
            if (*conn).tgid == tgid && flags & talk_flag::CLIENT == 0 && is_odd(sk, talk) {
                exchange::emit(sk, conn, 0, 0, 3);
                clients::gave_up(proc, (*conn).client, u32::from((*conn).number));
            }
        }
    }
    talk::settle(proc);
    1
}

/// Whether nginx may refuse a response with this beginning.
#[inline(always)]
unsafe fn is_odd(sk: u64, talk: *const Talk) -> bool {
    const VALUE: u64 = u64::from_le_bytes(*b"VALUE \0\0");
    const END: u64 = u64::from_le_bytes(*b"END\r\n\0\0\0");
    let Some(slot) = head_of(sk) else {
        return false;
    };
    // SAFETY: a live map element.
    unsafe {
        if (*slot).sk != sk || (*slot).of_ns != (*talk).first_read_ns {
            return false;
        }
        let first = core::ptr::read_volatile((&raw const (*slot).bytes).cast::<u64>());
        match ((*talk).flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT {
            proto::HTTP | proto::CGI => has_odd_line(slot) != 0,
            // The version of its records.
            proto::FASTCGI => first as u8 != 1,
            proto::MEMCACHED => first << 16 != VALUE << 16 && first << 24 != END << 24,
            // nginx reads TLS and HTTP/2 otherwise, and tells nobody here.
            _ => false,
        }
    }
}

/// Whether a header has a line that nginx may refuse (ngx_http_parse_header_line, the proxy module's own checks): no name, or
/// one that begins with a blank or a control character; two lengths, two codings, or one of each.
#[inline(never)]
fn has_odd_line(slot: *mut Head) -> u32 {
    if slot.is_null() {
        return 0;
    }
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOWER: u64 = 0x2020_2020_2020_2020;
    const CONTENT: u64 = u64::from_le_bytes(*b"content-");
    const TRANSFER: u64 = u64::from_le_bytes(*b"transfer");
    const SEVEN: u64 = 0x00ff_ffff_ffff_ffff;
    const LENGTH: u64 = u64::from_le_bytes(*b"length:\0");
    // SAFETY: as in `length::whole`, whose way to look for lines this is.
    unsafe {
        let len = (*slot).len.min(GOT as u32);
        let bytes = (&raw const (*slot).bytes).cast::<u8>();
        core::ptr::write_volatile(&raw mut (*slot).coded, 0);
        core::ptr::write_volatile(&raw mut (*slot).end_at, 0);
        let mut more_lines = true;
        let mut at = 0_u32;
        while at < GOT as u32 && at < len && more_lines {
            let word = core::ptr::read_volatile(bytes.add(at as usize).cast::<u64>()) ^ (ONES * 0x0a);
            let mut lines = word.wrapping_sub(ONES) & !word & (ONES * 0x80);
            let mut more = 0;
            while more < 2 && lines != 0 {
                let lowest = lines & lines.wrapping_neg();
                lines ^= lowest;
                more += 1;
                let next = at + ((lowest - 1 & ONES).wrapping_mul(ONES) >> 56) as u32;
                if next >= len {
                    more_lines = false;
                    break;
                }
                let name: u64 = read(bytes as u64, next);
                let first = name as u8;
                if first == b'\n' || first == b'\r' {
                    more_lines = false;
                    break;
                }
                if first <= b' ' || first == b':' || first == 0x7f {
                    core::ptr::write_volatile(&raw mut (*slot).end_at, 1);
                    more_lines = false;
                    break;
                }
                let name = name | LOWER;
                let mut counts = u32::from(name == TRANSFER);
                if name == CONTENT {
                    let rest: u64 = read(bytes as u64, next + 8);
                    counts = u32::from((rest | LOWER) & SEVEN == LENGTH);
                }
                let coded = core::ptr::read_volatile(&raw const (*slot).coded);
                core::ptr::write_volatile(&raw mut (*slot).coded, coded + counts);
            }
            at += 8;
        }
        let odd = core::ptr::read_volatile(&raw const (*slot).end_at);
        let coded = core::ptr::read_volatile(&raw const (*slot).coded);
        u32::from(odd != 0 || coded > 1)
    }
}

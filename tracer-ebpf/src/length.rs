//! Whether a response was whole, by what its own head says of its length (RFC 9112, 6).

use tracer_ebpf::talk::{GOT, Head, Talk, talk_flag};

use crate::kernel::read;

/// What a response says of its own length.
pub(crate) const CUT: u32 = 0;
pub(crate) const WHOLE: u32 = 1;
pub(crate) const OPEN: u32 = 2;
pub(crate) const HEADLESS: u32 = 3;
/// Its beginning is not there any more.
pub(crate) const LOST: u32 = 4;

const ONES: u64 = 0x0101_0101_0101_0101;
/// Makes lower-case letters of capitals, and nothing else of what names begin with.
const LOWER: u64 = 0x2020_2020_2020_2020;

/// Bytes that are kept. Read anew behind a loop that compares with it: to the verifier each way out of that has bounds of its own.
///
/// # Safety
/// `slot` points to a live map element.
#[inline(always)]
unsafe fn length_of(slot: *mut Head) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { core::ptr::read_volatile(&raw const (*slot).len).min(GOT as u32) }
}

/// Calls `line` with each line but the first of the kept beginning: where it begins, and its first 8 bytes with letters in lower case.
/// Notes where the header ends in `Head::end_at`; 0 if it does not.
///
/// # Safety
/// `slot` points to a live map element.
#[inline(always)]
unsafe fn each_line(slot: *mut Head, mut line: impl FnMut(u32, u64)) {
    // SAFETY: by this function's contract; every index is below twice GOT.
    unsafe {
        let len = length_of(slot);
        let bytes = (&raw const (*slot).bytes).cast::<u8>();
        core::ptr::write_volatile(&raw mut (*slot).end_at, 0);
        let mut more_lines = true;
        let mut at = 0_u32;
        // A word at a time: a byte of `lines` is 0x80 where there is a line feed.
        while at < GOT as u32 && at < len && more_lines {
            let word = core::ptr::read_volatile(bytes.add(at as usize).cast::<u64>()) ^ (ONES * 0x0a);
            let mut lines = word.wrapping_sub(ONES) & !word & (ONES * 0x80);
            let mut more = 0;
            while more < 2 && lines != 0 {
                let lowest = lines & lines.wrapping_neg();
                lines ^= lowest;
                more += 1;
                let next = at + ((lowest - 1 & ONES).wrapping_mul(ONES) >> 56) as u32;
                let name: u64 = read(bytes as u64, next);
                let first = name as u8;
                if first == b'\n' || first == b'\r' {
                    let end = next + if first == b'\n' { 1 } else { 2 };
                    core::ptr::write_volatile(&raw mut (*slot).end_at, end);
                    more_lines = false;
                    break;
                }
                line(next, name | LOWER);
            }
            at += 8;
        }
    }
}

/// Bits of [`facts`]: the request was HEAD, or the status says that there is no body;
const BODILESS: u32 = 1 << 31;
/// the last chunk was read.
const LAST_CHUNK: u32 = 1 << 30;

/// What matters of an exchange to [`whole`], which has no pointer to it: to the verifier those of several tables are several states.
///
/// # Safety
/// `talk` points to a live map element.
#[inline(always)]
pub(crate) unsafe fn facts(talk: *const Talk) -> u32 {
    const HEAD: u64 = u64::from_le_bytes(*b"HEAD \0\0\0");
    // SAFETY: by this function's contract.
    unsafe {
        let status = (*talk).status;
        let bodiless = status == 204 || status == 304 || (*talk).first & 0x00ff_ffff_ffff == HEAD;
        let ended = (*talk).flags & talk_flag::LAST_CHUNK != 0;
        u32::from(bodiless) * BODILESS | u32::from(ended) * LAST_CHUNK
    }
}

/// Whether `got` bytes are a whole response of HTTP or CGI, as far as its kept beginning tells: [`CUT`] if not,
/// [`HEADLESS`] if its header does not end there, [`OPEN`] if it ends with the stream. `facts`: see there.
#[inline(never)]
pub(crate) fn whole(slot: *mut Head, facts: u32, got: u32) -> u32 {
    if slot.is_null() {
        return CUT;
    }
    const CONTENT: u64 = u64::from_le_bytes(*b"content-");
    const SEVEN: u64 = 0x00ff_ffff_ffff_ffff;
    const LENGTH: u64 = u64::from_le_bytes(*b"length:\0");
    const TRANSFER: u64 = u64::from_le_bytes(*b"transfer");
    // SAFETY: a live map element; every index is below twice GOT. What was found goes to the element, not to registers: the
    // verifier would follow each place separately.
    unsafe {
        core::ptr::write_volatile(&raw mut (*slot).length_at, 0);
        core::ptr::write_volatile(&raw mut (*slot).coded, 0);
        each_line(slot, |at, name| {
            if name == CONTENT {
                let rest: u64 = read((&raw const (*slot).bytes) as u64, at + 8);
                if (rest | LOWER) & SEVEN == LENGTH {
                    core::ptr::write_volatile(&raw mut (*slot).length_at, at + 15);
                }
            } else if name == TRANSFER {
                core::ptr::write_volatile(&raw mut (*slot).coded, 1);
            }
        });
        let end = core::ptr::read_volatile(&raw const (*slot).end_at);
        if end == 0 || end > length_of(slot) {
            return HEADLESS;
        }
        if facts & BODILESS != 0 {
            return WHOLE;
        }
        if core::ptr::read_volatile(&raw const (*slot).coded) != 0 {
            return if facts & LAST_CHUNK != 0 { WHOLE } else { CUT };
        }
        let from = core::ptr::read_volatile(&raw const (*slot).length_at);
        if from == 0 {
            return OPEN;
        }
        let value = number(slot, from);
        if u64::from(got) >= u64::from(end) + value { WHOLE } else { CUT }
    }
}

/// Whether nginx may answer with something else than this response: its header leads the request elsewhere (`X-Accel-Redirect` and its
/// like), or does not end in the kept beginning.
#[inline(never)]
pub(crate) fn leads_elsewhere(slot: *mut Head) -> u32 {
    if slot.is_null() {
        return 1;
    }
    const ACCEL: u64 = u64::from_le_bytes(*b"x-accel-");
    // SAFETY: as in `whole`.
    unsafe {
        // A CGI's first line, bare or behind the header of a FastCGI record.
        let begins: [u64; 2] = read((&raw const (*slot).bytes) as u64, 0);
        let first = begins[0] | LOWER == ACCEL || begins[1] | LOWER == ACCEL;
        core::ptr::write_volatile(&raw mut (*slot).coded, u32::from(first));
        each_line(slot, |_, name| {
            if name == ACCEL {
                core::ptr::write_volatile(&raw mut (*slot).coded, 1);
            }
        });
        let end = core::ptr::read_volatile(&raw const (*slot).end_at);
        let accel = core::ptr::read_volatile(&raw const (*slot).coded);
        u32::from(end == 0 || end > length_of(slot) || accel != 0)
    }
}

/// The decimal number in a response's beginning, behind spaces: of 16 bytes, so that nothing overflows.
#[inline(always)]
unsafe fn number(slot: *mut Head, from: u32) -> u64 {
    // SAFETY: a live map element; the mask keeps the index below twice GOT.
    unsafe {
        let bytes = (&raw const (*slot).bytes).cast::<u8>();
        let mut value = 0_u64;
        let mut at = 0_u32;
        while at < 16 {
            let mut place = u64::from(from) + u64::from(at);
            core::arch::asm!("{place} &= 1023", place = inlateout(reg) place);
            let byte = core::ptr::read_volatile(bytes.add(place as usize));
            if byte.is_ascii_digit() {
                value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
            } else if value != 0 || (byte != b' ' && byte != b'\t') {
                break;
            }
            at += 1;
        }
        value
    }
}

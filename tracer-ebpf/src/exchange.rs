//! One exchange on an upstream connection: where its bytes lie, whether the response was whole, and the
//! record of one that failed.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user, bpf_ringbuf_submit};
use tracer_ebpf::{
    Attempt, Conn, flag, kind, stage,
    talk::{Broken, GOT, HEADS as PLACES, Head, SENT, Talk, proto, talk_flag},
};

use crate::{
    begins::{ALERT_BYTES, TLS_ALERT},
    conns,
    emit::{self, End, count},
    kernel::{self, read, read_user},
    length,
    maps::{EVENTS, HEADS, setting},
    probes::{unix_end, unix_talk},
};

/// nginx closes a connection at once when it has what it wanted. Later than this after the last byte it was a timer, or it had
/// been kept.
const LATE_NS: u64 = 100_000_000;

/// Longest chain of buffers that is followed to the end of a read.
const MOST_PIECES: u64 = 8;

/// Third, second and first argument of the system call at work, and its number; zeroes where registers do not lie so.
#[inline(always)]
pub(crate) fn call() -> [u64; 4] {
    if setting!(packed_regs) == 0 { [0, 0, 0, u64::MAX] } else { kernel::call() }
}

/// Where the system call at work ([`call`]) reads to, and how much room is there; of several buffers the first.
#[inline(always)]
pub(crate) fn buffer(call: &[u64; 4]) -> (u64, u64) {
    let [len, buf, _, nr] = *call;
    if nr == u64::from(setting!(nr_recvfrom)) || nr == u64::from(setting!(nr_read)) {
        return (buf, len);
    }
    if nr == u64::from(setting!(nr_readv)) {
        // struct iovec: base, length.
        let first: [u64; 2] = read_user(buf);
        return (first[0], first[1]);
    }
    (0, 0)
}

/// Where the first of the `size` bytes lie that the system call at work writes, and how many are there in a row.
#[inline(always)]
pub(crate) fn written(size: u32) -> (u64, u32) {
    let [len, buf, _, nr] = call();
    if nr == u64::from(setting!(nr_writev)) {
        let first: [u64; 2] = read_user(buf);
        return (first[0], first[1].min(u64::from(size)) as u32);
    }
    if nr == u64::from(setting!(nr_sendto)) || nr == u64::from(setting!(nr_write)) {
        return (buf, len.min(u64::from(size)) as u32);
    }
    (0, 0)
}

/// Where the last of the `ret` bytes end that the system call at work has read, and how many lie there in a row.
#[inline(always)]
fn end_of_read(call: &[u64; 4], ret: u64) -> (u64, u64) {
    let [_, buf, _, nr] = *call;
    if nr != u64::from(setting!(nr_readv)) {
        return (buf.wrapping_add(ret), ret);
    }
    let mut left = ret;
    let mut piece = 0;
    while piece < MOST_PIECES {
        let iov: [u64; 2] = read_user(buf.wrapping_add(piece * 16));
        if left <= iov[1] {
            return (iov[0].wrapping_add(left), left);
        }
        left -= iov[1];
        piece += 1;
    }
    (0, 0)
}

/// The place for the beginning of a response.
#[inline(always)]
pub(crate) fn head_of(sk: u64) -> Option<*mut Head> {
    let hash = (sk >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    HEADS.get_ptr_mut(hash as u32 & (PLACES - 1))
}

/// Keeps the first bytes of a response: nginx uses their buffer again before it knows the end. True if these are all kept.
#[inline(always)]
pub(crate) fn keep(sk: u64, talk: *mut Talk, buf: u64, len: u32, first: bool) -> bool {
    let Some(slot) = head_of(sk) else {
        return false;
    };
    // SAFETY: live elements of plain integers; who finds another's name in the place leaves it alone.
    unsafe {
        if first {
            (*slot).sk = sk;
            (*slot).of_ns = (*talk).first_read_ns;
            (*slot).len = 0;
        } else if (*slot).sk != sk {
            return false;
        }
        let have = (*slot).len;
        if have >= GOT as u32 || buf == 0 {
            return false;
        }
        let mut at = u64::from(have);
        let mut more = u64::from(len).min(GOT as u64 - at).min(GOT as u64 - 1);
        // The verifier wants to see the bounds in the registers that are used.
        core::arch::asm!("{at} &= 511", at = inlateout(reg) at);
        core::arch::asm!("{more} &= 511", more = inlateout(reg) more);
        if more == 0 {
            return false;
        }
        let to = (&raw mut (*slot).bytes).cast::<u8>().add(at as usize).cast();
        if bpf_probe_read_user(to, more as u32, buf as *const _) != 0 {
            return false;
        }
        let have = have + more as u32;
        (*slot).len = have;
        if (*talk).head[0] == 0 && have >= 16 {
            let words = (&raw const (*slot).bytes).cast::<u64>();
            (*talk).head = [core::ptr::read_volatile(words), core::ptr::read_volatile(words.add(1))];
        }
        more == u64::from(len)
    }
}

/// Notes whether what was read ends as the last of a response does. `kept`: [`keep`] has it all, and [`settle`] can look later.
#[inline(always)]
pub(crate) fn tail(talk: *mut Talk, call: &[u64; 4], ret: u32, kept: bool) {
    // SAFETY: a live map element.
    unsafe {
        let kind = ((*talk).flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT;
        if kind == proto::TLS {
            // nginx lets OpenSSL read ahead; where it does not, a record's body is read behind its head.
            if (ret >= ALERT_BYTES || ret == 2) && (*talk).flags & talk_flag::TLS_DATA == 0 {
                let (end, _) = end_of_read(call, u64::from(ret));
                let b: [u8; 8] = read_user(end.wrapping_sub(8));
                if b[1] == TLS_ALERT && b[2] == 3 && b[4] == 0 && b[5] == 2 {
                    (*talk).server_alert = (u16::from(b[6]) << 8) | u16::from(b[7]);
                }
            }
            return;
        }
        if kind != proto::HTTP && kind != proto::FASTCGI {
            return;
        }
        (*talk).flags &= !(talk_flag::LAST_CHUNK | talk_flag::END_REQUEST | talk_flag::KEPT);
        if kind == proto::HTTP && kept {
            (*talk).flags |= talk_flag::KEPT;
            return;
        }
        let (end, room) = end_of_read(call, u64::from(ret));
        if kind == proto::HTTP {
            // What comes in smaller pieces is believed to be the end.
            let mut last = room < LAST_CHUNK as u64;
            if !last {
                last = is_last_chunk(read_user(end - LAST_CHUNK as u64));
            }
            if last {
                (*talk).flags |= talk_flag::LAST_CHUNK;
            }
        } else {
            // version 1, END_REQUEST, request, length 8, padding, reserved; then its body.
            let mut last = room < 16;
            if !last {
                let b: [u8; 8] = read_user(end - 16);
                last = b[0] == 1 && b[1] == 3 && b[4] == 0 && b[5] == 8;
            }
            if last {
                (*talk).flags |= talk_flag::END_REQUEST;
            }
        }
    }
}

/// Looks for the end of a chunked body among the bytes that are kept, where nothing was read behind them. Most responses are as
/// short, and few are looked at.
#[inline(never)]
pub(crate) fn settle(sk: u64, talk: *mut Talk) -> u32 {
    if talk.is_null() {
        return 0;
    }
    let Some(slot) = head_of(sk) else {
        return 0;
    };
    // SAFETY: live elements of plain integers; the mask keeps what is read within the bytes.
    unsafe {
        let len = (*slot).len;
        if (*talk).flags & talk_flag::KEPT == 0 || (*slot).sk != sk || len < LAST_CHUNK as u32 {
            return 0;
        }
        let at = (len - LAST_CHUNK as u32) & (GOT as u32 - 1);
        if is_last_chunk(read((&raw const (*slot).bytes) as u64, at)) {
            (*talk).flags |= talk_flag::LAST_CHUNK;
        }
    }
    1
}

/// True for the end of a chunked body (RFC 9112, 7.1), also with bare line feeds, which nginx takes (ngx_http_parse_chunked).
#[inline(always)]
fn is_last_chunk(b: [u8; LAST_CHUNK]) -> bool {
    // Without a branch for each byte, for the verifier's sake.
    let is = |at: usize, byte: u8| b[at] == byte;
    let short = is(3, b'\n') & (is(2, b'0') | (is(2, b'\r') & is(1, b'0')));
    let long = is(3, b'\r') & is(2, b'\n') & (is(1, b'0') | (is(1, b'\r') & is(0, b'0')));
    is(4, b'\n') & (short | long)
}

/// Bytes of it at most.
const LAST_CHUNK: usize = 5;

/// The status of the first 16 bytes of a response (RFC 9112, 4); 0 if they are no status line.
#[inline(always)]
pub(crate) fn status_in(words: [u64; 2]) -> u16 {
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

/// The status by which a CGI's response begins: the field `Status` (RFC 3875, 6.3.3), in FastCGI behind records of its
/// standard error. 0 if it begins otherwise.
#[inline(always)]
pub(crate) fn cgi_status(sk: u64, fastcgi: bool) -> u16 {
    const FIELD: u64 = u64::from_le_bytes(*b"Status: ");
    /// Record types (FastCGI 1.0, section 8).
    const STDOUT: u8 = 6;
    const STDERR: u8 = 7;
    let Some(slot) = head_of(sk) else {
        return 0;
    };
    // SAFETY: a live map element; reads of its bytes are within them, and by a helper.
    unsafe {
        if (*slot).sk != sk {
            return 0;
        }
        let bytes = (&raw const (*slot).bytes) as u64;
        let mut at = 0_u64;
        if fastcgi {
            let mut record = 0;
            while record < 3 {
                // version, type, request, length of the content, of the padding, reserved
                let header: [u8; 8] = read(bytes + (at & 511), 0);
                if header[1] == STDOUT {
                    break;
                }
                if header[1] != STDERR {
                    return 0;
                }
                at += 8 + u64::from(u16::from_be_bytes([header[4], header[5]])) + u64::from(header[6]);
                if at >= 500 {
                    return 0;
                }
                record += 1;
            }
            at += 8;
        }
        if at + 11 > u64::from((*slot).len) {
            return 0;
        }
        let words: [u64; 2] = read(bytes + (at & 511), 0);
        let b = words[1].to_le_bytes();
        let digit = |i: usize| u16::from(b[i].wrapping_sub(b'0'));
        let (hundreds, tens, ones) = (digit(0), digit(1), digit(2));
        if words[0] != FIELD || hundreds > 9 || tens > 9 || ones > 9 {
            return 0;
        }
        hundreds * 100 + tens * 10 + ones
    }
}

/// Bytes of the response that nginx has read in this exchange, and those that wait for it.
#[inline(always)]
pub(crate) fn counts(sk: u64, talk: *const Talk, unix: u32) -> (u32, u32) {
    if unix != 0 {
        // SAFETY: a live map element.
        return (unsafe { (*talk).copied_seq }, unix_end::unread(sk));
    }
    let copied: u32 = read(sk, setting!(copied_seq));
    let next: u32 = read(sk, setting!(rcv_nxt));
    // SAFETY: a live map element.
    let (begin, fin, eof) =
        unsafe { ((*talk).copied_seq, (*talk).fin_ns != 0, (*talk).flags & talk_flag::EOF != 0) };
    let waiting = next.wrapping_sub(copied);
    let read = copied.wrapping_sub(begin);
    if !fin {
        (read, waiting)
    } else if waiting == 0 || eof {
        // A FIN counts as one byte, read with what was before it.
        (read.wrapping_sub(1), waiting)
    } else {
        (read, waiting - 1)
    }
}

/// What the last response says of its own length, against what nginx has read: see [`length`]. `kind`: `UNIX` of a unix socket,
/// else 0.
#[inline(never)]
pub(crate) fn length(sk: u64, kind: u32) -> u32 {
    let Some(conn) = unix_talk::of(sk, kind) else {
        return length::CUT;
    };
    let talk = conns::talk_of(conn);
    // SAFETY: a live map element.
    let (flags, read, facts) = unsafe { ((*talk).flags, (*talk).first_read_ns, length::facts(talk)) };
    if read == 0 || flags & talk_flag::TLS != 0 {
        return length::CUT;
    }
    match (flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT {
        proto::FASTCGI if flags & talk_flag::END_REQUEST != 0 => return length::WHOLE,
        proto::HTTP | proto::CGI => {}
        _ => return length::CUT,
    }
    let mut known = [facts, counts(sk, talk, kind).0];
    // One state for the verifier: what follows is long.
    kernel::forget(&mut known);
    match head_of(sk) {
        // SAFETY: as above.
        Some(slot) if unsafe { (*slot).sk } == sk => length::whole(slot, known[0], known[1]),
        _ => length::LOST,
    }
}

/// How the exchange of a connection that nginx closes has ended: whether nginx closes it late, and whether it has read the end
/// of the stream.
#[inline(always)]
fn ending(conn: *mut Conn) -> (bool, bool) {
    let talk = conns::talk_of(conn);
    // SAFETY: live elements of plain integers.
    unsafe {
        let flags = (*talk).flags;
        let ended = (*conn).flags & flag::RST_IN != 0 || flags & talk_flag::ENDED != 0;
        let late = (*talk).fin_ns == 0 && !ended && emit::now_ns().wrapping_sub((*talk).read_ns) >= LATE_NS;
        (late, flags & talk_flag::EOF != 0)
    }
}

/// True if [`suspicion`] may ask for the response's [`length`].
#[inline(always)]
pub(crate) fn length_matters(conn: *mut Conn) -> bool {
    let talk = conns::talk_of(conn);
    // SAFETY: a live map element.
    let (flags, read) = unsafe { ((*talk).flags, (*talk).first_read_ns) };
    let kind = (flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT;
    if read == 0 || (kind != proto::HTTP && kind != proto::CGI) {
        return false;
    }
    let (late, eof) = ending(conn);
    late || eof || flags & talk_flag::CLIENT_LEFT != 0
}

/// Whether the end of this connection is worth a look by user space: 0 if not; `SAID_5XX` if that was told already. `unix`: 1
/// if it is one to a unix socket. (Its flags say so too, but what is a constant here costs the verifier nothing.) `length`: what
/// [`length`] says, where [`length_matters`].
#[inline(never)]
pub(crate) fn suspicion(sk: u64, conn: *mut Conn, unix: u32, length: u32) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: a live map element.
    unsafe {
        let flags = (*talk).flags;
        let reset = (*conn).flags & flag::RST_IN != 0;
        let fin = (*talk).fin_ns != 0;
        if flags & talk_flag::SAID_ERROR != 0 && flags & talk_flag::SAID_5XX == 0 {
            return 1;
        }
        // By nginx's own account.
        if flags & talk_flag::SAID_5XX_LATE != 0 {
            return 1;
        }
        if setting!(talk) == 0 {
            let got: u64 = read(sk, setting!(bytes_received));
            let sent: u64 = read(sk, setting!(bytes_sent));
            return u32::from((*talk).answered != 0 || (got == 0 && (sent != 0 || reset || fin)));
        }
        if (*talk).sent_ns == 0 && flags & talk_flag::BEFORE != 0 {
            // Perhaps it was idle. An error that a read brings is no idle connection's: those are only looked at.
            return u32::from((*talk).told < 0 || (reset && (*talk).first_read_ns != 0));
        }
        if (*talk).sent_ns == 0 {
            // Not a byte in either direction: nginx had no time to write, or its client left before.
            return u32::from((*talk).read_ns == 0);
        }
        if (*talk).first_read_ns == 0 {
            return 1;
        }
        if flags & talk_flag::SAID_5XX != 0 {
            return talk_flag::SAID_5XX;
        }
        if (*talk).told < 0 {
            return 1;
        }
        let tls = flags & talk_flag::TLS != 0;
        if tls && flags & talk_flag::TLS_DATA == 0 {
            return 1;
        }
        let kind = (flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT;
        let (_, unread) = counts(sk, talk, unix);
        if unread != 0 && !tls && kind != proto::HTTP2 {
            return 1;
        }
        let (late, eof) = ending(conn);
        // nginx closed at once though the server had not ended it: only if its client left, that was before its time.
        if !eof && !late && flags & talk_flag::CLIENT_LEFT == 0 {
            return 0;
        }
        let ended = eof || late;
        u32::from(match kind {
            proto::FASTCGI => flags & talk_flag::END_REQUEST == 0,
            proto::TLS => late,
            proto::HTTP2 | proto::MEMCACHED => ended,
            proto::HTTP | proto::CGI => match length {
                length::CUT => true,
                length::HEADLESS => ended,
                // Without its length, an end of the stream is no more than that.
                length::OPEN | length::LOST => late,
                _ => false,
            },
            _ => false,
        })
    }
}

/// Sends the record of an exchange. `more`: further flags, `UNIX` of a unix socket among them; `shutdown`: 3 if nginx closed the connection.
#[inline(never)]
pub(crate) fn emit(sk: u64, conn: *mut Conn, more: u32, old_state: u8, shutdown: u8) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    count(|c| c.failed += 1);
    let Some(mut entry) = EVENTS.reserve::<Broken>(0) else {
        count(|c| c.lost += 1);
        return 0;
    };
    // SAFETY: reserved bytes, 8-byte aligned, submitted below; every field is written, or said to be empty by its length.
    unsafe {
        let to = entry.as_mut_ptr();
        core::mem::forget(entry);
        let mut what = *conn;
        kernel::forget(&mut what);
        let mut end = End {
            stage: stage::ESTABLISHED,
            old_state,
            shutdown,
            ret: 0,
            sk_err: read(sk, setting!(sk_err)),
            flags: 0,
            lsm_ret: 0,
        };
        kernel::forget(&mut end);
        emit::head(to.cast::<Attempt>(), sk, &what, &end);
        (*to.cast::<Attempt>()).kind = kind::TALK;
        emit::copy::<{ size_of::<Talk>() / 8 }>((&raw mut (*to).talk).cast(), talk.cast());
        (*to).talk.flags |= more;
        let written: u32 = read(sk, setting!(write_seq));
        let (got, unread) = counts(sk, talk, more & talk_flag::UNIX);
        (*to).sent_bytes = written.wrapping_sub((*talk).write_seq);
        (*to).got_bytes = got;
        (*to).unacked = written.wrapping_sub(read(sk, setting!(snd_una)));
        (*to).unread = unread;
        (*to).total_retrans = read(sk, setting!(total_retrans));
        (*to).srtt_us = read::<u32>(sk, setting!(srtt_us)) >> 3;
        (*to).name_len = 0;
        (*to)._pad = 0;
        (*to).sent_len = 0;
        (*to).got_len = 0;
        if (*talk).sent_ns == 0 && more & talk_flag::UNIX == 0 {
            // Nothing was written: there is no exchange to count from.
            (*to).sent_bytes = 0;
            (*to).got_bytes = 0;
            (*to).unacked = 0;
            if setting!(talk) != 0 {
                (*to).talk.flags |= talk_flag::WATCHED;
            }
        }
        if setting!(payload) != 0 {
            bytes(to, sk, talk);
        } else {
            (*to).talk.first = 0;
            (*to).talk.head = [0; 2];
        }
        if more & talk_flag::UNIX != 0 {
            unix_end::describe(to, sk, conn, more);
        }
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
    count(|c| c.sent += 1);
    1
}

/// The first bytes of both directions.
///
/// # Safety
/// `to` points to a writable record, `talk` to a live element.
#[inline(always)]
unsafe fn bytes(to: *mut Broken, sk: u64, talk: *mut Talk) {
    // SAFETY: by this function's contract.
    unsafe {
        let mut len = u64::from((*talk).buf_len).min(SENT as u64);
        core::arch::asm!("{len} &= 511", len = inlateout(reg) len);
        // OpenSSL's buffer holds something else by now.
        if (*talk).flags & talk_flag::TLS == 0 && len != 0 && len <= SENT as u64 {
            let into = (&raw mut (*to).sent).cast();
            if bpf_probe_read_user(into, len as u32, (*talk).buf as *const _) == 0 {
                (*to).sent_len = len as u16;
            }
        }
        if let Some(slot) = head_of(sk)
            && (*slot).sk == sk
            && (*slot).of_ns == (*talk).first_read_ns
            && (*talk).first_read_ns != 0
        {
            let into = (&raw mut (*to).got).cast();
            let from = (&raw const (*slot).bytes).cast();
            if bpf_probe_read_kernel(into, GOT as u32, from) == 0 {
                (*to).got_len = (*slot).len.min(GOT as u32) as u16;
            }
        }
    }
}

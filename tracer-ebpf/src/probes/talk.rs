//! What is said on upstream connections that stand: one exchange at a time, judged when nginx closes the connection.
//!
//! Nothing of a healthy exchange leaves the kernel. The filter is wide on purpose, since it must not miss a failure that is
//! hidden by a retry or an error page: user space reads the bytes and drops what was whole after all.

use tracer_ebpf::{
    Conn, Proc, flag,
    talk::{Talk, proto, talk_flag},
};

use crate::{
    begins, conns, emit, exchange,
    kernel::{self, read, read_user},
    length,
    maps::setting,
    nginx::{self, Asked, State},
    probes::{said, unix_talk},
    procs,
};

/// The statuses that nginx notes of its own for an attempt that failed (NGX_HTTP_BAD_GATEWAY, NGX_HTTP_GATEWAY_TIME_OUT).
const BAD_GATEWAY: u64 = 502;
const GATEWAY_TIMEOUT: u64 = 504;

/// What a read asks for, and `UNIX` of a unix socket: nothing, to tell of the server's own error, or to see whether nginx passes
/// its status on.
pub(super) mod next {
    pub(in crate::probes) const NOTHING: u32 = 0;
    pub(super) const TELL: u32 = 1;
    pub(super) const STATUS: u32 = 2;
}

/// Goes on with what a read asked for ([`hear`]).
#[inline(always)]
pub(super) fn go_on(sk: u64, next: u32) {
    if next != next::NOTHING {
        let mut next = next;
        // As in `closing`: a step of its own, whichever way led here.
        kernel::forget(&mut next);
        answers(sk, next);
    }
}

/// A response has begun that is told of, or that something hangs on.
#[inline(never)]
fn answers(sk: u64, next: u32) -> u32 {
    let kind = next & talk_flag::UNIX;
    if next & next::STATUS != 0 {
        // SAFETY: an integer of a live map element.
        let connection = unix_talk::of(sk, kind).map_or(0, |conn| unsafe { (*conn).nginx });
        if !said::is_awaited(connection) {
            return 0;
        }
        let Some(slot) = exchange::head_of(sk) else {
            return 0;
        };
        // SAFETY: a live map element.
        if unsafe { (*slot).sk } != sk || length::leads_elsewhere(slot) != 0 {
            return 0;
        }
    }
    let (Some((_, proc)), Some(conn)) = (procs::worker(), unix_talk::of(sk, kind)) else {
        return 0;
    };
    // SAFETY: live map elements, as in `hear`.
    unsafe {
        if next & next::TELL != 0 {
            exchange::settle(sk, conns::talk_of(conn));
            said::ask(sk, (*conn).start_ns, (*conn).nginx);
            exchange::emit(sk, conn, talk_flag::SAID_5XX | kind, 0, 0);
        } else {
            said::passes_on((*conn).nginx, proc, u32::from((*conns::talk_of(conn)).status));
        }
    }
    1
}

/// The worker has read from an upstream connection, or was told its end. `kind`: `UNIX` of a unix socket, else 0. Returns what
/// [`go_on`] is to do.
#[inline(never)]
pub(super) fn hear(sk: u64, conn: *mut Conn, ret: i32, kind: u32) -> u32 {
    if conn.is_null() {
        return next::NOTHING;
    }
    let talk = conns::talk_of(conn);
    let call = exchange::call();
    let (buf, room) = exchange::buffer(&call);
    // SAFETY: an element of a pre-allocated map, plain integers; only this socket's events write it.
    unsafe {
        // nginx looks at idle connections with a read of one byte that takes nothing (MSG_PEEK).
        if room == 1 && ret <= 1 {
            if ret <= 0 {
                (*talk).flags |= talk_flag::LOOKED;
            }
            return next::NOTHING;
        }
        if ret <= 0 {
            if (*talk).told_ns == 0 {
                (*talk).told_ns = emit::now_ns();
                (*talk).told = ret;
                if ret == 0 {
                    (*talk).flags |= talk_flag::EOF;
                }
            }
            return next::NOTHING;
        }
        let now = emit::now_ns();
        (*talk).read_ns = now;
        let first = (*talk).first_read_ns == 0;
        if first {
            (*talk).first_read_ns = now;
            if (*talk).sent_ns == 0 && kind == 0 && (*talk).flags & talk_flag::BEFORE == 0 {
                missed_write(sk, conn, ret as u32);
            }
        }
        if (*talk).sent_ns == 0 && (*talk).flags & talk_flag::BEFORE != 0 {
            // The rest of a response, as likely as its beginning.
            return next::NOTHING;
        }
        let len = (ret as u64).min(room);
        let kept = exchange::keep(sk, talk, buf, len as u32, first);
        exchange::tail(talk, &call, ret as u32, kept && len == ret as u64);
        if (*talk).status == 0 {
            let status = match ((*talk).flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT {
                proto::HTTP => exchange::status_in((*talk).head),
                // What a script says on its standard error comes first (record type 7).
                proto::FASTCGI if first || ((*talk).head[0] >> 8) as u8 == 7 => {
                    exchange::cgi_status(sk, true)
                }
                // nginx takes a status line there as well (ngx_http_uwsgi_process_status_line); uwsgi sends one.
                proto::CGI if first => match exchange::status_in((*talk).head) {
                    0 => exchange::cgi_status(sk, false),
                    status => status,
                },
                _ => 0,
            };
            (*talk).status = status;
            if status >= 500 && (*talk).flags & talk_flag::SAID_5XX == 0 {
                (*talk).flags |= talk_flag::SAID_5XX;
                return next::TELL | kind;
            }
            if status >= 200 && procs::worker().is_some_and(|(_, proc)| (*proc).awaiting != 0) {
                return next::STATUS | kind;
            }
        }
    }
    next::NOTHING
}

/// A response begins, and no request was seen: the kernel skips a program that is interrupted by another run of itself on the
/// same CPU. What was said so far belongs to the connection's first exchange.
#[inline(never)]
fn missed_write(sk: u64, conn: *mut Conn, read_now: u32) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: as in `hear`.
    unsafe {
        (*talk).sent_ns = if (*conn).start_ns != 0 { (*conn).start_ns } else { (*talk).first_read_ns };
        (*talk).last_sent_ns = (*talk).sent_ns;
        (*talk).requests = (*talk).requests.wrapping_add(1);
        (*talk).flags |= talk_flag::WATCHED;
        let sent = read::<u64>(sk, setting!(bytes_sent)) as u32;
        (*talk).write_seq = read::<u32>(sk, setting!(write_seq)).wrapping_sub(sent);
        (*talk).copied_seq = read::<u32>(sk, setting!(copied_seq)).wrapping_sub(read_now);
    }
    1
}

/// The worker writes to an upstream connection.
#[inline(never)]
pub(super) fn wrote(sk: u64, conn: *mut Conn, done: u32, size: u32) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: as in `hear`.
    unsafe {
        let now = emit::now_ns();
        let before = (*talk).last_sent_ns;
        (*talk).last_sent_ns = now;
        let fresh = (*talk).sent_ns == 0;
        let tls = (*talk).flags & talk_flag::TLS != 0;
        if !fresh && (*talk).read_ns == 0 && !tls {
            return 0;
        }
        let (buf, len) = exchange::written(size);
        let mut begin = [0_u64; 1];
        if len >= 8 {
            begin = read_user(buf);
        }
        let mut first = begin[0];
        kernel::forget(&mut first);
        if !begins::begins(talk, first, size, fresh) {
            if tls && (*talk).flags & talk_flag::TLS_BYE != 0 {
                // A farewell, when all is over: no part of the request.
                (*talk).last_sent_ns = before;
            }
            return 0;
        }
        (*talk).idle_us = if (*talk).read_ns == 0 {
            0
        } else {
            (now.wrapping_sub((*talk).read_ns) / 1000).min(u64::from(u32::MAX)) as u32
        };
        next_exchange(talk, now);
        (*talk).buf = buf;
        (*talk).buf_len = len;
        (*talk).first = first;
        (*talk).write_seq = read::<u32>(sk, setting!(write_seq)).wrapping_sub(done);
        (*talk).copied_seq = read(sk, setting!(copied_seq));
        if (*conn).family != kernel::AF_UNIX {
            order(conn, talk);
        }
    }
    0
}

/// A FIN arrived.
#[inline(always)]
pub(super) fn finished(sk: u64) {
    if let Some(conn) = conns::find(sk) {
        ended_at(sk, conn);
        // SAFETY: as in `hear`.
        unsafe { (*conns::talk_of(conn)).fin_ns = emit::now_ns() };
    }
}

/// The far end's FIN or RST arrives, and neither had: how much nginx had written by then.
#[inline(always)]
pub(super) fn ended_at(sk: u64, conn: *mut Conn) {
    let talk = conns::talk_of(conn);
    // SAFETY: live map elements, as in `hear`.
    unsafe {
        if (*talk).fin_ns == 0 && (*conn).flags & flag::RST_IN == 0 {
            (*talk).end_seq = read(sk, setting!(write_seq));
        }
    }
}

/// What begins with a write can be seen later than what answers it: on a veth, and on loopback, a RST arrives within `send()`. By
/// sequence numbers the bytes were there first; then the write counts as having come just before.
///
/// # Safety
/// `conn` and `talk` are live elements; the exchange has begun.
#[inline(always)]
unsafe fn order(conn: *mut Conn, talk: *mut Talk) {
    // SAFETY: by this function's contract.
    unsafe {
        let (fin, reset) = ((*talk).fin_ns, (*conn).flags & flag::RST_IN != 0);
        let ended = if fin != 0 {
            fin
        } else if reset {
            (*conn).rst_ns
        } else {
            return;
        };
        let written = (*talk).end_seq.wrapping_sub((*talk).write_seq) as i32 > 0;
        if written && ended <= (*talk).sent_ns {
            (*talk).sent_ns = ended - 1;
        }
    }
}

/// What is known of a close so far. The verifier would follow each way here through all that comes behind it: so each step is a
/// function that ends in one number, and the next begins with that alone.
mod step {
    /// It is no worker that closes.
    pub(super) const NOBODY: u32 = 0;
    /// There is nothing more to do.
    pub(super) const DONE: u32 = 1;
    /// The connection is to be judged.
    pub(super) const JUDGE: u32 = 1 << 1;
    /// nginx was asked, and named its request.
    pub(super) const FOUND: u32 = 1 << 2;
    /// The next request may have met an end that nginx had not noticed ([`super::taken_in_vain`]).
    pub(super) const VAIN: u32 = 1 << 3;
    /// The length of the response matters.
    pub(super) const LENGTH: u32 = 1 << 4;
}

/// The worker closes an upstream connection that stood: was anything wrong with it, by what was seen, or by what nginx has noted?
/// `kind`: `UNIX` of a unix socket, else 0. Returns 0 if it is no worker that closes.
#[inline(always)]
pub(super) fn closing(sk: u64, kind: u32) -> u32 {
    let mut step = look(sk, kind);
    kernel::forget(&mut step);
    if step <= step::DONE {
        return step;
    }
    let mut length = length::CUT;
    if step & step::LENGTH != 0 {
        length = exchange::length(sk, kind);
    }
    kernel::forget(&mut length);
    judge(sk, kind, step, length)
}

/// The first step: asks nginx.
#[inline(never)]
fn look(sk: u64, kind: u32) -> u32 {
    let Some((tgid, proc)) = procs::worker() else {
        return step::NOBODY;
    };
    let Some(conn) = unix_talk::of(sk, kind) else {
        return step::NOBODY;
    };
    // SAFETY: as in `hear`.
    unsafe {
        if (*conn).tgid != tgid || emit::is_exiting() {
            unix_talk::close(sk, conn, kind);
            return step::DONE;
        }
        exchange::settle(sk, conns::talk_of(conn));
        let mut asked = Asked::NOTHING;
        let mut found = nginx::ask((*conn).nginx, (*proc).root, &mut asked);
        // One state for the verifier, however it was found: what follows is long.
        kernel::forget(&mut found);
        kernel::forget(&mut asked);
        if found == nginx::IDLE {
            // It lay among those that are kept: nothing of a request ends with it.
            unix_talk::close(sk, conn, kind);
            return step::DONE;
        }
        let mut step = step::JUDGE;
        if found == nginx::FOUND {
            step |= step::FOUND;
            if kind == 0 && setting!(talk) != 0 && (*conn).flags & flag::RST_IN != 0 {
                return step | step::VAIN | step::LENGTH;
            }
            noted(conn, &asked);
        }
        kernel::forget(&mut step);
        if exchange::length_matters(conn) { step | step::LENGTH } else { step }
    }
}

/// The last one. `length`: what the response said of its length, where that matters.
#[inline(never)]
fn judge(sk: u64, kind: u32, step: u32, length: u32) -> u32 {
    // The state before matters only in a handshake.
    const TCP_ESTABLISHED: u8 = 1;
    let Some((tgid, proc)) = procs::worker() else {
        return step::NOBODY;
    };
    let Some(conn) = unix_talk::of(sk, kind) else {
        return step::NOBODY;
    };
    let talk = conns::talk_of(conn);
    // SAFETY: as in `hear`.
    unsafe {
        if step & step::VAIN != 0 {
            perhaps_in_vain(sk, conn, proc, length);
        }
        let mut suspicion = exchange::suspicion(sk, conn, kind, length);
        if suspicion == 0 && (*talk).answered != 0 {
            (*talk).flags |= talk_flag::ANSWERED_BAD;
            suspicion = 1;
        }
        kernel::forget(&mut suspicion);
        if suspicion != 0 && suspicion != talk_flag::SAID_5XX {
            if step & step::FOUND != 0 && (*talk).flags & talk_flag::SAID_ERROR == 0 {
                said::ask(sk, (*conn).start_ns, (*conn).nginx);
            }
            exchange::emit(sk, conn, kind, TCP_ESTABLISHED, 3);
            // An end that nginx has not read is none of its reasons.
            let unread = setting!(talk) != 0 && (*talk).told_ns == 0 && (*talk).flags & talk_flag::EOF == 0;
            let quiet = (*conn).flags & flag::RST_IN == 0 && ((*talk).fin_ns == 0 || unread);
            emit::watch_client(sk, tgid, quiet);
        }
        unix_talk::close(sk, conn, kind);
    }
    step::DONE
}

/// What nginx has noted of the attempt that ends with this connection.
#[inline(never)]
fn noted(conn: *mut Conn, asked: &Asked) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    let mut state = State::NOTHING;
    nginx::state(asked.states, &mut state);
    kernel::forget(&mut state);
    let headed = state.header_ms != u64::MAX;
    // SAFETY: as in `hear`.
    unsafe {
        (*talk).flags |= talk_flag::ASKED;
        if headed {
            (*talk).flags |= talk_flag::HEADER;
            if (*talk).flags & talk_flag::TLS != 0 {
                // The shortest request's record is as long as an alert, but who has a header has asked for it.
                (*talk).flags |= talk_flag::TLS_DATA;
            }
            // In TLS the server's own error is seen only here.
            if state.status >= 500 && (*talk).flags & (talk_flag::TLS | talk_flag::SAID_5XX) == talk_flag::TLS
            {
                (*talk).flags |= talk_flag::SAID_5XX_LATE;
                (*talk).status = state.status as u16;
            }
        } else if state.status == BAD_GATEWAY || state.status == GATEWAY_TIMEOUT {
            (*talk).answered = state.status as u16;
        }
        if (*talk).answered == 0 {
            const TCP_ESTABLISHED: u8 = 1;
            let client = nginx::client_of(asked.main);
            if client != 0 && read::<u8>(client, setting!(skc_state)) != TCP_ESTABLISHED {
                (*talk).flags |= talk_flag::CLIENT_LEFT;
            }
        }
    }
    1
}

/// What [`look`] has put off: whether the exchange that ends with this connection is the one that was seen last.
#[inline(never)]
fn perhaps_in_vain(sk: u64, conn: *mut Conn, proc: *mut Proc, length: u32) -> u32 {
    if conn.is_null() || proc.is_null() {
        return 0;
    }
    if length == length::WHOLE {
        taken_in_vain(sk, conn);
    }
    let mut asked = Asked::NOTHING;
    // SAFETY: integers of live map elements.
    let mut found = unsafe { nginx::ask((*conn).nginx, (*proc).root, &mut asked) };
    kernel::forget(&mut found);
    kernel::forget(&mut asked);
    if found == nginx::FOUND {
        noted(conn, &asked);
    }
    1
}

/// nginx asks a kept connection for its error before it writes the next request to it (ngx_http_upstream_test_connect). Where a RST
/// has arrived that it has not met as long as the connection was idle, it closes it at once: an exchange of which not a byte was
/// written, and the next server's turn. nginx names a request of the connection.
#[inline(never)]
fn taken_in_vain(sk: u64, conn: *mut Conn) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: live map elements, as in `hear`.
    unsafe {
        let met = (*talk).flags & (talk_flag::LOOKED | talk_flag::EOF) != 0 || (*talk).told_ns != 0;
        if met {
            return 0;
        }
        let now = emit::now_ns();
        (*talk).idle_us = (now.wrapping_sub((*talk).read_ns) / 1000).min(u64::from(u32::MAX)) as u32;
        next_exchange(talk, now);
        (*talk).write_seq = read(sk, setting!(write_seq));
        (*talk).copied_seq = read(sk, setting!(copied_seq));
        (*talk).buf_len = 0;
        (*talk).first = 0;
    }
    1
}

/// An exchange begins on a connection.
#[inline(always)]
unsafe fn next_exchange(talk: *mut Talk, now: u64) {
    // SAFETY: a live map element, as in `hear`.
    unsafe {
        (*talk).requests = (*talk).requests.wrapping_add(1);
        (*talk).sent_ns = now;
        (*talk).last_sent_ns = now;
        (*talk).first_read_ns = 0;
        (*talk).read_ns = 0;
        (*talk).told_ns = 0;
        (*talk).told = 0;
        (*talk).head = [0; 2];
        (*talk).status = 0;
        (*talk).answered = 0;
        (*talk).flags &= talk_flag::PROTO | talk_flag::TLS | talk_flag::TLS_DATA | talk_flag::FOUND;
        (*talk).flags |= talk_flag::WATCHED;
    }
}

/// The end of a connection came from outside: a RST, or retransmissions that ran out. nginx has yet to notice.
#[inline(always)]
pub(super) fn ended(conn: *mut Conn) {
    // SAFETY: as in `hear`.
    unsafe { (*conns::talk_of(conn)).flags |= talk_flag::ENDED };
}

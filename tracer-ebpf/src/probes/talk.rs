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

/// The worker has read from an upstream connection, or was told its end. `kind`: `UNIX` of a unix socket, else 0.
#[inline(never)]
pub(super) fn heard(sk: u64, conn: *mut Conn, proc: *mut Proc, ret: i32, kind: u32) -> u32 {
    if conn.is_null() || proc.is_null() {
        return 0;
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
            return 0;
        }
        if ret <= 0 {
            if (*talk).told_ns == 0 {
                (*talk).told_ns = emit::now_ns();
                (*talk).told = ret;
                if ret == 0 {
                    (*talk).flags |= talk_flag::EOF;
                }
            }
            return 0;
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
            return 0;
        }
        let len = (ret as u64).min(room);
        exchange::keep(sk, talk, buf, len as u32, first);
        exchange::tail(talk, &call, ret as u32);
        if (*talk).status == 0 {
            let status = match ((*talk).flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT {
                proto::HTTP => exchange::status_in((*talk).head),
                // What a script says on its standard error comes first (record type 7).
                proto::FASTCGI if first || ((*talk).head[0] >> 8) as u8 == 7 => {
                    exchange::cgi_status(sk, true)
                }
                proto::CGI if first => exchange::cgi_status(sk, false),
                _ => 0,
            };
            (*talk).status = status;
            if status >= 500 && (*talk).flags & talk_flag::SAID_5XX == 0 {
                (*talk).flags |= talk_flag::SAID_5XX;
                said::ask(sk, (*conn).start_ns, (*conn).nginx);
                exchange::emit(sk, conn, talk_flag::SAID_5XX | kind, 0, 0);
            } else if status >= 200
                && (*proc).awaiting != 0
                && exchange::head_of(sk)
                    .is_some_and(|slot| (*slot).sk == sk && length::leads_elsewhere(slot) == 0)
            {
                said::passes_on((*conn).nginx, proc, u32::from(status));
            }
        }
    }
    0
}

/// A response begins, and no request was seen: the kernel skips a program that is interrupted by another run of itself on the
/// same CPU. What was said so far belongs to the connection's first exchange.
#[inline(never)]
fn missed_write(sk: u64, conn: *mut Conn, read_now: u32) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: as in `heard`.
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
    // SAFETY: as in `heard`.
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
    }
    0
}

/// A FIN arrived.
#[inline(always)]
pub(super) fn finished(sk: u64) {
    if let Some(conn) = conns::find(sk) {
        // SAFETY: as in `heard`.
        unsafe { (*conns::talk_of(conn)).fin_ns = emit::now_ns() };
    }
}

/// The worker closes an upstream connection that stood: was anything wrong with it, by what was seen, or by what nginx has noted?
/// `kind`: `UNIX` of a unix socket, else 0. Returns 0 if it is no worker that closes.
#[inline(never)]
pub(super) fn closing(sk: u64, kind: u32) -> u32 {
    // The state before matters only in a handshake.
    const TCP_ESTABLISHED: u8 = 1;
    let Some((tgid, proc)) = procs::worker() else {
        return 0;
    };
    let Some(conn) = unix_talk::of(sk, kind) else {
        return 0;
    };
    let talk = conns::talk_of(conn);
    // SAFETY: as in `heard`.
    unsafe {
        if (*conn).tgid != tgid || emit::is_exiting() {
            unix_talk::close(sk, kind);
            return 1;
        }
        let mut asked = Asked::NOTHING;
        let mut found = nginx::ask((*conn).nginx, (*proc).root, &mut asked);
        // One state for the verifier, however it was found: what follows is long.
        kernel::forget(&mut found);
        kernel::forget(&mut asked);
        if found == nginx::IDLE {
            // It lay among those that are kept: nothing of a request ends with it.
            unix_talk::close(sk, kind);
            return 1;
        }
        if found == nginx::FOUND {
            if kind == 0 && setting!(talk) != 0 && (*conn).flags & flag::RST_IN != 0 {
                taken_in_vain(sk, conn);
            }
            noted(conn, &asked);
        }
        kernel::forget(&mut found);
        let mut suspicion = exchange::suspicion(sk, conn, kind);
        if suspicion == 0 && (*talk).answered != 0 {
            (*talk).flags |= talk_flag::ANSWERED_BAD;
            suspicion = 1;
        }
        kernel::forget(&mut suspicion);
        if suspicion == 0 {
            unix_talk::close(sk, kind);
            return 1;
        }
        if suspicion != talk_flag::SAID_5XX {
            if found == nginx::FOUND && (*talk).flags & talk_flag::SAID_ERROR == 0 {
                said::told(&asked, sk, (*conn).start_ns, proc);
            }
            exchange::emit(sk, conn, kind, TCP_ESTABLISHED, 3);
            // An end that nginx has not read is none of its reasons.
            let unread = setting!(talk) != 0 && (*talk).told_ns == 0 && (*talk).flags & talk_flag::EOF == 0;
            let quiet = (*conn).flags & flag::RST_IN == 0 && ((*talk).fin_ns == 0 || unread);
            emit::watch_client(sk, tgid, quiet);
        }
        unix_talk::close(sk, kind);
    }
    1
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
    // SAFETY: as in `heard`.
    unsafe {
        (*talk).flags |= talk_flag::ASKED;
        if headed {
            (*talk).flags |= talk_flag::HEADER;
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

/// nginx asks a kept connection for its error before it writes the next request to it (ngx_http_upstream_test_connect). Where a RST
/// has arrived that it has not met as long as the connection was idle, it closes it at once: an exchange of which not a byte was
/// written, and the next server's turn. nginx names a request of the connection.
#[inline(never)]
fn taken_in_vain(sk: u64, conn: *mut Conn) -> u32 {
    if conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: live map elements, as in `heard`.
    unsafe {
        let met = (*talk).flags & (talk_flag::LOOKED | talk_flag::EOF) != 0 || (*talk).told_ns != 0;
        if met || !exchange::was_whole(sk, talk) {
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
    // SAFETY: a live map element, as in `heard`.
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
    // SAFETY: as in `heard`.
    unsafe { (*conns::talk_of(conn)).flags |= talk_flag::ENDED };
}

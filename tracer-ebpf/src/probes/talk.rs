//! What is said on upstream connections that stand: one exchange at a time, judged when nginx closes the connection.
//!
//! Nothing of a healthy exchange leaves the kernel. The filter is wide on purpose, since it must not miss a failure that is
//! hidden by a retry or an error page: user space reads the bytes and drops what was whole after all.

use tracer_ebpf::{
    Conn, Proc, flag,
    request::{BAD_GATEWAY, GATEWAY_TIMEOUT, Turn, client_flag, turn},
    talk::{Talk, proto, talk_flag},
};

use crate::{
    begins, clients, conns, emit, exchange,
    kernel::{self, read, read_user},
    maps::{PROCS, setting},
    probes::{request, unix_talk},
    procs,
};

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
                proto::HTTP => request::status_in((*talk).head),
                // What a script says on its standard error comes first (record type 7).
                proto::FASTCGI if first || ((*talk).head[0] >> 8) as u8 == 7 => {
                    exchange::cgi_status(sk, true)
                }
                proto::CGI if first => exchange::cgi_status(sk, false),
                _ => 0,
            };
            (*talk).status = status;
            if status >= 500 && (*talk).flags & talk_flag::SAID_5XX == 0 {
                said_error(sk, conn, proc, kind);
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

/// The server itself answers with an error.
#[inline(always)]
unsafe fn said_error(sk: u64, conn: *mut Conn, proc: *mut Proc, kind: u32) {
    let talk = conns::talk_of(conn);
    // SAFETY: as in `heard`.
    unsafe {
        (*talk).flags |= talk_flag::SAID_5XX;
        exchange::emit(sk, conn, talk_flag::SAID_5XX | kind, 0, 0);
        // So that the answer is reported.
        if (*proc).turn.kind == turn::READ_UPSTREAM && (*proc).turn.sk == sk {
            (*proc).turn.retry = 1;
        }
    }
}

/// The worker writes to an upstream connection.
#[inline(never)]
pub(super) fn wrote(sk: u64, conn: *mut Conn, proc: *mut Proc, done: u32, size: u32) -> u32 {
    if conn.is_null() || proc.is_null() {
        return 0;
    }
    settle(proc);
    let last = clients::take(proc);
    let talk = conns::talk_of(conn);
    // SAFETY: as in `heard`.
    unsafe {
        let now = emit::now_ns();
        let before = (*talk).last_sent_ns;
        (*talk).last_sent_ns = now;
        let fresh = (*talk).sent_ns == 0;
        let found = (*talk).flags & talk_flag::FOUND != 0;
        let tls = (*talk).flags & talk_flag::TLS != 0;
        if !fresh && (*talk).read_ns == 0 && !tls {
            retried(conn, &last, false);
            return 0;
        }
        let (buf, len) = exchange::written(size);
        let mut begin = [0_u64; 1];
        if len >= 8 {
            begin = read_user(buf);
        }
        let mut first = begin[0];
        kernel::forget(&mut first);
        let begins = begins::begins(talk, first, size, fresh);
        // The first request in TLS is not another: the handshake before it was its own.
        retried(conn, &last, begins && (found || (!fresh && (!tls || (*talk).requests >= 2))));
        if !begins {
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

/// Ties an upstream connection to the request that the worker is at: one that was kept and serves the next one now, or that
/// is the next to be tried.
#[inline(always)]
unsafe fn retried(conn: *mut Conn, last: &Turn, again: bool) {
    // SAFETY: as in `heard`.
    unsafe {
        if last.kind >= turn::READ_UPSTREAM && last.retry != 0 {
            (*conn).client = last.id;
            (*conn).number =
                if last.kind == turn::CLOSED && last.number != 0 { last.number.wrapping_add(1) } else { 0 };
            (*conn).flags |= flag::RETRY;
        } else if again {
            (*conn).flags &= !flag::RETRY;
            if last.kind == turn::READ_CLIENT {
                (*conn).client = last.id;
                (*conn).number = 1;
                clients::link(last);
            } else {
                (*conn).client = 0;
                (*conn).number = 0;
            }
        }
    }
}

/// A FIN arrived.
#[inline(always)]
pub(super) fn finished(sk: u64) {
    if let Some(conn) = conns::find(sk) {
        // SAFETY: as in `heard`.
        unsafe { (*conns::talk_of(conn)).fin_ns = emit::now_ns() };
    }
}

/// The worker closes an upstream connection that stood: was anything wrong with it? What seems well stays for a moment, since
/// nginx may tell its client otherwise. `kind`: `UNIX` of a unix socket, else 0.
/// Returns 0 if it is no worker that closes.
#[inline(never)]
pub(super) fn closing(sk: u64, kind: u32) -> u32 {
    // The state before matters only in a handshake.
    const TCP_ESTABLISHED: u8 = 1;
    let Some((tgid, proc)) = procs::worker() else {
        return 0;
    };
    settle(proc);
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
        if kind == 0 && setting!(talk) != 0 && (*conn).flags & flag::RST_IN != 0 {
            taken_in_vain(sk, conn, proc);
        }
        let suspicion = exchange::suspicion(sk, conn, kind);
        if suspicion == 0 || suspicion == exchange::PERHAPS {
            let before = (*talk).flags & talk_flag::BEFORE != 0;
            if ((*talk).first_read_ns != 0 || before) && setting!(talk) != 0 {
                count_up(sk, talk, kind);
                (*talk).flags |= talk_flag::CLOSED;
                unix_talk::park(sk, tgid, kind);
                (*proc).closed_sk = sk | u64::from(kind != 0);
                if suspicion != 0 {
                    emit::watch_client(sk, tgid, true);
                }
            } else {
                unix_talk::close(sk, kind);
            }
            return 1;
        }
        if suspicion != talk_flag::SAID_5XX {
            exchange::emit(sk, conn, kind, TCP_ESTABLISHED, 3);
            // An end that nginx has not read is none of its reasons.
            let unread = setting!(talk) != 0 && (*talk).told_ns == 0 && (*talk).flags & talk_flag::EOF == 0;
            let quiet = (*conn).flags & flag::RST_IN == 0 && ((*talk).fin_ns == 0 || unread);
            given_up(proc, conn, tgid);
            emit::watch_client(sk, tgid, quiet);
        } else {
            // Its own error was told; nginx may try the next server.
            clients::gave_up(proc, (*conn).client, u32::from((*conn).number));
        }
        unix_talk::close(sk, kind);
    }
    1
}

/// nginx asks a kept connection for its error before it writes the next request to it (ngx_http_upstream_test_connect). Where a RST
/// has arrived that it has not met as long as the connection was idle, it closes it at once: an exchange of which not a byte was
/// written, and the next server's turn.
#[inline(never)]
fn taken_in_vain(sk: u64, conn: *mut Conn, proc: *mut Proc) -> u32 {
    if conn.is_null() || proc.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // SAFETY: live map elements, as in `heard`.
    unsafe {
        let last = (*proc).turn;
        let takes = last.kind == turn::READ_CLIENT || (last.kind == turn::CLOSED && last.retry != 0);
        let met = (*talk).flags & (talk_flag::LOOKED | talk_flag::EOF) != 0 || (*talk).told_ns != 0;
        if !takes || met || !exchange::was_whole(sk, talk) {
            return 0;
        }
        let now = emit::now_ns();
        (*talk).idle_us = (now.wrapping_sub((*talk).read_ns) / 1000).min(u64::from(u32::MAX)) as u32;
        retried(conn, &last, true);
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
        (*talk).client_sk = 0;
        (*talk).head = [0; 2];
        (*talk).status = 0;
        (*talk).answered = 0;
        (*talk).flags &= talk_flag::PROTO | talk_flag::TLS | talk_flag::TLS_DATA | talk_flag::FOUND;
        (*talk).flags |= talk_flag::WATCHED;
    }
}

/// Forgets the connection that this worker closed last.
#[inline(always)]
pub(super) fn settle(proc: *mut Proc) {
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe {
        let closed = (*proc).closed_sk;
        if closed != 0 {
            (*proc).closed_sk = 0;
            let name = conns::parked(closed, kernel::tgid());
            unix_talk::close(name, if closed & 1 != 0 { talk_flag::UNIX } else { 0 });
        }
    }
}

/// Puts what was said on a connection in the place of the sequence numbers that it was counted from: its socket may be another
/// connection's by the time that this is asked for. On a unix socket bytes are counted as they pass.
#[inline(always)]
unsafe fn count_up(sk: u64, talk: *mut Talk, kind: u32) {
    if kind != 0 {
        return;
    }
    // SAFETY: a live map element.
    unsafe {
        let (got, _) = exchange::counts(sk, talk, 0);
        (*talk).copied_seq = got;
        (*talk).write_seq = read::<u32>(sk, setting!(write_seq)).wrapping_sub((*talk).write_seq);
        (*talk).port = u16::from_be(read(sk, setting!(inet_sport)));
    }
}

/// The worker writes to a client right after it closed an upstream connection with which nothing seemed wrong. If it says 502
/// and the server did not, something was. Returns 1 then: the write is the answer to a failed attempt.
#[inline(never)]
pub(super) fn contradicted(client: u64, tgid: u32, size: u32) -> u32 {
    let (Some(proc), Some(slot)) = (PROCS.get_ptr_mut(tgid), clients::slot(client)) else {
        return 0;
    };
    // SAFETY: live elements of plain integers.
    unsafe {
        let closed = (*proc).closed_sk;
        (*proc).closed_sk = 0;
        let kind = if closed & 1 != 0 { talk_flag::UNIX } else { 0 };
        let closed = closed & !1;
        let name = conns::parked(closed, tgid);
        let Some(conn) = unix_talk::find(name) else {
            return 0;
        };
        let talk = conns::talk_of(conn);
        if (*conn).tgid != tgid {
            return 0;
        }
        let mut wrong = 0;
        let known = clients::holds(slot, client, tgid);
        let id = if known { (*slot).id } else { (*conn).client };
        let answer = request::answer_status(size);
        // Of what began before why502 nobody knows when: a timer is told by this alone. In TLS so is the server's own error.
        let before = (*talk).flags & talk_flag::BEFORE != 0;
        let tls = (*talk).flags & talk_flag::TLS != 0;
        let bad = answer == BAD_GATEWAY || (before && answer == GATEWAY_TIMEOUT) || (tls && answer >= 500);
        // Where the client's own read was missed, or its place taken, what the worker did in a row has to do.
        if bad && (*talk).status != answer && ((*conn).client == 0 || (*conn).client == id) {
            wrong = 1;
            (*talk).answered = answer;
            exchange::emit(closed, conn, talk_flag::ANSWERED_BAD | kind, 0, 3);
            clients::gave_up(proc, id, u32::from((*conn).number));
        }
        unix_talk::close(name, kind);
        wrong
    }
}

/// The worker closes a client that has left, right after it closed this upstream connection. If that was before the response's
/// end, it was for that.
#[inline(never)]
pub(super) fn abandoned(upstream: u64, tgid: u32) -> u32 {
    let Some(proc) = PROCS.get_ptr_mut(tgid) else {
        return 0;
    };
    // SAFETY: live elements of plain integers.
    unsafe {
        let closed = (*proc).closed_sk;
        if closed & !1 != upstream || upstream == 0 {
            return 0;
        }
        (*proc).closed_sk = 0;
        let kind = if closed & 1 != 0 { talk_flag::UNIX } else { 0 };
        let name = conns::parked(upstream, tgid);
        let Some(conn) = unix_talk::find(name) else {
            return 0;
        };
        if (*conn).tgid != tgid {
            return 0;
        }
        exchange::emit(upstream, conn, kind, 0, 3);
        given_up(proc, conn, tgid);
        unix_talk::close(name, kind);
    }
    1
}

/// The worker is done with an exchange that failed: what follows is the rest of its answer, or another attempt.
#[inline(always)]
unsafe fn given_up(proc: *mut Proc, conn: *mut Conn, tgid: u32) {
    let talk = conns::talk_of(conn);
    // SAFETY: live elements of plain integers.
    unsafe {
        if (*talk).flags & talk_flag::CLIENT != 0 {
            request::cut((*talk).client_sk, tgid, (*conn).client, (*talk).answered);
        } else {
            clients::gave_up(proc, (*conn).client, u32::from((*conn).number));
        }
    }
}

/// The worker passes on to a client what it has just read from an upstream connection.
#[inline(never)]
pub(super) fn passed_on(client: u64, tgid: u32, upstream: u64, id: u64, size: u32) -> u32 {
    let (Some(conn), Some(slot)) = (unix_talk::find(upstream), clients::slot(client)) else {
        return 0;
    };
    let talk = conns::talk_of(conn);
    // SAFETY: live elements of plain integers.
    unsafe {
        if (*talk).client_sk != 0
            || (*conn).client != id
            || (*slot).id != id
            || !clients::holds(slot, client, tgid)
        {
            return 0;
        }
        let answer = request::answer_status(size);
        (*talk).client_sk = client;
        (*talk).flags |= talk_flag::CLIENT;
        (*talk).answered = answer;
        // The server's status is in TLS; nginx closes before it answers in its own name, which a program that the kernel skipped
        // has not seen.
        let hidden = (*talk).flags & (talk_flag::TLS | talk_flag::SAID_5XX) == talk_flag::TLS;
        if answer >= 500 && hidden && is_held(upstream) {
            (*talk).flags |= talk_flag::SAID_5XX;
            let kind = (*talk).flags & talk_flag::UNIX;
            exchange::emit(upstream, conn, talk_flag::SAID_5XX | kind, 0, 0);
            request::cut(client, tgid, id, answer);
            (*slot).flags |= client_flag::ANSWERED;
            clients::seal(slot);
        }
    }
    0
}

/// True while a process holds the socket: one that is closed is an orphan (sock_orphan, include/net/sock.h).
#[inline(always)]
fn is_held(sk: u64) -> bool {
    !kernel::has(setting!(sk_socket)) || read::<u64>(sk, setting!(sk_socket)) != 0
}

/// The end of a connection came from outside: a RST, or retransmissions that ran out. nginx has yet to notice.
#[inline(always)]
pub(super) fn ended(conn: *mut Conn) {
    // SAFETY: as in `heard`.
    unsafe { (*conns::talk_of(conn)).flags |= talk_flag::ENDED };
}

/// True if this connection is not to be touched any more, or only by its worker's close.
#[inline(always)]
pub(super) fn has(conn: *mut Conn, bits: u32) -> bool {
    // SAFETY: as in `heard`.
    unsafe { (*conns::talk_of(conn)).flags & bits != 0 }
}

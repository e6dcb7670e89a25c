//! What nginx itself says of a failure: uprobes on functions that its executable exports, and its memory, asked as an attempt ends.
//!
//! `ngx_log_error_core` runs only for what is logged, `ngx_connection_error` only for errors of connections and
//! `ngx_http_special_response_handler` only for answers that nginx makes by itself, so that healthy requests meet none of them;
//! `ngx_http_upstream_free_round_robin_peer` runs once for every upstream attempt and is attached only if the user asks for it.
//! Their signatures are the same from nginx 1.14 to 1.31; Angie has moved the arguments behind the log. Nothing is believed
//! without a mark: the request's "HTTP", and that the request and its log name the same connection (see `nginx`).

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str, bpf_ringbuf_submit},
    macros::uprobe,
    programs::ProbeContext,
};
use aya_log_ebpf::debug;
use tracer_ebpf::{
    Addr, Proc, kind,
    request::{Answer, Awaited, Moment},
    said::{ACTION, FILE, FORMAT, LINE, Layout, Said, said_flag},
    talk::talk_flag,
};

use crate::{
    conns, emit, failed,
    kernel::{self, read, read_user},
    maps::{AWAITED, EVENTS, LAYOUTS, setting},
    nginx::{self, Asked, FD, LOG, PEER, Session, State},
    procs, repeats,
};

/// `NGX_LOG_ERR`: what is less severe is no failure.
const ERR: u64 = 4;
/// No string lies as low; an errno does.
const LOWEST: u64 = 4096;
/// `NGX_PEER_FAILED`.
const FAILED: u64 = 4;
/// Offset of `ngx_table_elt_t.value`.
const VALUE: u64 = 24;
/// Offset of `header_in` from `upstream` in `ngx_http_request_t`: `upstream_states` and `pool` lie between.
const HEADER_IN: u64 = 24;
/// Offset of `request_line` from `start_sec`: `start_msec`, `method`, `http_version` lie between.
const REQUEST_LINE: u64 = 32;
/// Fibonacci hashing.
const SPREAD: u32 = 0x9e37_79b1;
/// How long an answer is waited for.
const AWAIT_S: u32 = 60;

/// `ngx_log_error_core(level, log, err, fmt, …)`; Angie: `(level, log, file, err, fmt, …)`.
#[uprobe]
fn nginx_logs(ctx: ProbeContext) -> u32 {
    let level: u64 = ctx.arg(0).unwrap_or(u64::MAX);
    if level > ERR {
        return 0;
    }
    let (Some(log), Some(third), Some(fourth), Some(fifth), Some(sixth)) =
        (ctx.arg::<u64>(1), ctx.arg::<u64>(2), ctx.arg::<u64>(3), ctx.arg::<u64>(4), ctx.arg::<u64>(5))
    else {
        return 0;
    };
    let call = if fourth < LOWEST {
        Call { log, err: fourth as i32, format: fifth, first: sixth, second: 0, flags: 0, connection: 0 }
    } else {
        Call { log, err: third as i32, format: fourth, first: fifth, second: sixth, flags: 0, connection: 0 }
    };
    debug!(&ctx, "nginx tells its log of errno {}", call.err);
    speaks(&call);
    0
}

/// `ngx_connection_error(c, err, text)`: the only trace of it if the log's level hides errors.
#[uprobe]
fn nginx_connection_error(ctx: ProbeContext) -> u32 {
    let (Some(connection), Some(err), Some(format)) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2))
    else {
        return 0;
    };
    let log: u64 = read_user(connection + LOG);
    // `log_level` is the first field: else it calls the log function.
    if log != 0 && read_user::<u64>(log) < ERR {
        let flags = said_flag::SILENT;
        speaks(&Call { log, err: err as i32, format, first: 0, second: 0, flags, connection });
    }
    0
}

/// `ngx_http_upstream_free_round_robin_peer(pc, data, state)`: the end of every attempt, whatever is logged.
#[uprobe]
fn nginx_frees_peer(ctx: ProbeContext) -> u32 {
    let (Some(peer), Some(state)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2)) else {
        return 0;
    };
    if state & FAILED == 0 {
        return 0;
    }
    let connection: u64 = read_user(peer);
    if connection != 0 {
        let log: u64 = read_user(connection + LOG);
        let flags = said_flag::SILENT;
        speaks(&Call { log, err: 0, format: 0, first: 0, second: 0, flags, connection });
    }
    0
}

/// nginx called nothing. In read-only data, since the stack is dear.
static NOTHING_SAID: Call = Call {
    log: 0,
    err: 0,
    format: 0,
    first: 0,
    second: 0,
    flags: said_flag::SILENT | said_flag::ASKED,
    connection: 1,
};

/// What nginx called.
struct Call {
    log: u64,
    err: i32,
    format: u64,
    first: u64,
    second: u64,
    flags: u32,
    /// The upstream connection, if the function names one; it must be the request's.
    connection: u64,
}

#[inline(always)]
fn speaks(call: &Call) {
    if speaks_of_request(call) == 0 {
        speaks_of_session(call);
    }
}

/// Returns 0 if its log belongs to no request.
#[inline(never)]
fn speaks_of_request(call: &Call) -> u32 {
    let Some((tgid, proc)) = procs::worker() else {
        return 1;
    };
    let Some((main, current, action)) = nginx::requests(call.log) else {
        return 0;
    };
    // SAFETY: an integer of a live map element.
    let Some(layout) = LAYOUTS.get_ptr(unsafe { (*proc).root }) else {
        return 1;
    };
    // SAFETY: as above. `upstream_states` follows.
    let [upstream, states]: [u64; 2] = read_user(current + u64::from(unsafe { (*layout).upstream }));
    let connection: u64 = if upstream == 0 { 0 } else { read_user(upstream + PEER) };
    if upstream == 0 || (call.connection != 0 && call.connection != connection) {
        return 1;
    }
    let [mut upstream_sk, mut began] = attempt_of(call, connection, tgid);
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe {
        if connection == 0 && (*proc).failed != 0 && (*proc).failed == -call.err {
            [began, upstream_sk] = (*proc).failed_attempt;
        }
        (*proc).failed = 0;
    }
    if connection != 0 && began == 0 {
        // There is no record that this could be about: a unix socket's has asked nginx's memory, an attempt was counted.
        return 1;
    }
    let mut asked = Asked { main, current, peer: upstream + PEER, states, action };
    let mut attempt = [upstream_sk, began];
    kernel::forget(&mut asked);
    kernel::forget(&mut attempt);
    let [upstream_sk, began] = attempt;
    tell(call, proc, &asked, upstream_sk, began);
    1
}

/// The same of a session of the stream module, which has no request.
#[inline(never)]
fn speaks_of_session(call: &Call) {
    let Some((tgid, _)) = procs::worker() else {
        return;
    };
    let mut session = Session::NOTHING;
    let mut found = nginx::session(call.log, &mut session);
    kernel::forget(&mut found);
    kernel::forget(&mut session);
    if found == 0 {
        return;
    }
    let connection: u64 = read_user(session.asked.peer);
    if call.connection != 0 && call.connection != connection {
        return;
    }
    let mut attempt = attempt_of(call, connection, tgid);
    kernel::forget(&mut attempt);
    if connection != 0 && attempt[1] == 0 {
        return;
    }
    tell_session(call, &session, attempt[0], attempt[1]);
}

/// The socket of an upstream connection, and when its attempt began; its record is wanted.
#[inline(always)]
fn attempt_of(call: &Call, connection: u64, tgid: u32) -> [u64; 2] {
    let mut upstream_sk = 0;
    let mut began = 0;
    if connection != 0 {
        upstream_sk = kernel::tcp_sock_of_fd(read_user(connection + FD));
    }
    if upstream_sk != 0 {
        began = failed::began(upstream_sk, tgid);
        mark(upstream_sk, tgid, call.format);
    }
    [upstream_sk, began]
}

/// Asks nginx whose request the attempt of this socket serves, and tells of it. `start_ns`: [`Attempt::start_ns`](tracer_ebpf::Attempt).
/// Returns what [`nginx::ask`] found.
#[inline(never)]
pub(crate) fn ask(sk: u64, start_ns: u64, connection: u64) -> u32 {
    let Some((_, proc)) = procs::worker() else {
        return nginx::UNKNOWN;
    };
    let mut asked = Asked::NOTHING;
    // SAFETY: an integer of a live map element.
    let mut found = nginx::ask(connection, unsafe { (*proc).root }, &mut asked);
    kernel::forget(&mut found);
    kernel::forget(&mut asked);
    if found == nginx::FOUND {
        told(&asked, sk, start_ns, proc);
    }
    found
}

/// Tells whose request an attempt serves.
#[inline(always)]
fn told(asked: &Asked, sk: u64, start_ns: u64, proc: *mut Proc) {
    tell(&NOTHING_SAID, proc, asked, sk, start_ns);
}

/// How the texts begin by which nginx gives up a response: `upstream …`, `memcached sent invalid trailer`, `unsafe URI "…" was
/// detected` (X-Accel-Redirect), `connection upgrade in subrequest`. 0: nothing of that page had been used in this worker yet; user
/// space reads it.
const GIVES_UP: [u64; 5] = [
    0,
    u64::from_le_bytes(*b"upstream"),
    u64::from_le_bytes(*b"memcache"),
    u64::from_le_bytes(*b"unsafe U"),
    u64::from_le_bytes(*b"connecti"),
];

/// nginx is about to close this upstream connection because of what it says: its record is wanted, whatever the wire shows.
#[inline(always)]
fn mark(upstream_sk: u64, tgid: u32, format: u64) {
    let begin: u64 = read_user(format);
    if format == 0 || !GIVES_UP.iter().any(|known| *known == begin) {
        return;
    }
    if let Some(conn) = conns::find(upstream_sk) {
        // SAFETY: a live map element that only this worker's thread writes here.
        unsafe {
            if (*conn).tgid == tgid {
                (*conns::talk_of(conn)).flags |= talk_flag::SAID_ERROR;
            }
        }
    }
}

#[inline(never)]
fn tell(call: &Call, proc: *mut Proc, asked: &Asked, upstream_sk: u64, began: u64) {
    if proc.is_null() {
        return;
    }
    // SAFETY: an integer of a live map element.
    let Some(layout) = LAYOUTS.get_ptr(unsafe { (*proc).root }) else {
        return;
    };
    // SAFETY: a live map element of plain integers, copied at once.
    let layout = unsafe { *layout };
    let to = reserve(call, asked, upstream_sk, began);
    if to.is_null() {
        return;
    }
    // SAFETY: reserved bytes, 8-byte aligned, submitted below; every field but the texts is written, and user space
    // reads no more bytes of those than were copied.
    unsafe {
        noted(to, asked.states);
        client(to, asked.peer);
        line(to, &layout);
        moment(to, &layout, proc);
        place(to, asked.current);
        host(to, layout.host);
        names(to, asked, call.first);
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
}

#[inline(never)]
fn tell_session(call: &Call, session: &Session, upstream_sk: u64, began: u64) {
    let to = reserve(call, &session.asked, upstream_sk, began);
    if to.is_null() {
        return;
    }
    // SAFETY: as in `tell`.
    unsafe {
        (*to).flags |= said_flag::SESSION;
        (*to).status = 0;
        (*to).header_ms = u32::MAX;
        // Elements of an `ngx_array_t`: their number follows where they are.
        (*to).states = read_user(session.asked.states + 8);
        (*to).began = session.began;
        (*to).mark = 0;
        (*to).head_len = 0;
        client(to, session.asked.peer);
        // No location, no line, no host.
        (*to).lens = [0; 8];
        server(to, session.server);
        names(to, &session.asked, call.first);
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
}

/// Room for a statement, with what is known of any; null if it is left out.
#[inline(always)]
fn reserve(call: &Call, asked: &Asked, upstream_sk: u64, began: u64) -> *mut Said {
    // Records of failures come first: this one is left out if they have filled half of the buffer already.
    // Without an attempt it is all that there is.
    if upstream_sk != 0 && repeats::is_behind() {
        return core::ptr::null_mut();
    }
    let Some(mut entry) = EVENTS.reserve::<Said>(0) else {
        // The incident says itself that its request is not known; without an attempt there is none.
        if upstream_sk == 0 {
            emit::count(|c| c.hints_lost += 1);
        }
        return core::ptr::null_mut();
    };
    let to = entry.as_mut_ptr();
    core::mem::forget(entry);
    // SAFETY: reserved bytes, 8-byte aligned, which the callers submit.
    unsafe {
        (*to).kind = kind::SAID;
        (*to).flags = call.flags;
        (*to).tgid = kernel::tgid();
        (*to).err = call.err;
        (*to).time_ns = emit::now_ns();
        (*to).upstream_sk = upstream_sk;
        (*to).upstream_start_ns = began;
        (*to).request = asked.main;
        (*to).format_at = call.format;
        (*to).number = call.second;
        (*to)._pad = 0;
        if asked.current != asked.main {
            (*to).flags |= said_flag::SUBREQUEST;
        }
    }
    to
}

/// What nginx has noted of the attempt.
///
/// # Safety
/// `to` points to a reserved record. (Functions of their own, here and below, as the stack is dear.)
#[inline(never)]
unsafe fn noted(to: *mut Said, states: u64) -> u32 {
    if to.is_null() {
        return 0;
    }
    let mut state = State::NOTHING;
    nginx::state(states, &mut state);
    kernel::forget(&mut state);
    // SAFETY: by this function's contract.
    unsafe {
        if state.led != 0 {
            (*to).flags |= said_flag::LED;
        }
        (*to).status = state.status as u32;
        (*to).header_ms = state.header_ms as u32;
        (*to).states = state.count;
    }
    1
}

/// Whose request it is.
///
/// # Safety
/// As [`noted`].
#[inline(never)]
unsafe fn client(to: *mut Said, peer: u64) -> u32 {
    if to.is_null() {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        let client_sk = nginx::client_of((*to).request);
        if client_sk != 0 {
            (*to).flags |= said_flag::CLIENT;
        }
        if read_user::<u64>(peer) != 0 {
            (*to).flags |= said_flag::UPSTREAM;
        }
        address(to, client_sk);
    }
    1
}

/// The request line, and what stands behind it.
///
/// # Safety
/// As [`noted`].
#[inline(never)]
unsafe fn line(to: *mut Said, layout: &Layout) -> u32 {
    if to.is_null() {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        let main = (*to).request;
        head(
            to,
            read_user(main + u64::from(layout.start_sec) + REQUEST_LINE),
            read_user(main + u64::from(layout.upstream) + HEADER_IN),
        );
    }
    1
}

/// Which of the requests at its address it is; its answer is waited for.
///
/// # Safety
/// As [`noted`].
#[inline(never)]
unsafe fn moment(to: *mut Said, layout: &Layout, proc: *mut Proc) -> u32 {
    if to.is_null() || proc.is_null() {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        let main = (*to).request;
        let mut moment = Moment { began: [0; 2], mark: 0 };
        moment_of(main, layout, nginx::client_of(main), &mut moment);
        kernel::forget(&mut moment);
        (*to).began = moment.began;
        (*to).mark = moment.mark as u32;
        if (*to).upstream_sk != 0 || (*to).flags & said_flag::UPSTREAM == 0 {
            await_answer(main, &moment, proc);
        }
    }
    1
}

/// Where in the configuration it is.
///
/// # Safety
/// As [`noted`].
#[inline(never)]
unsafe fn place(to: *mut Said, current: u64) -> u32 {
    if to.is_null() {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        // The first configuration of each kind is the core module's.
        let [servers, locations]: [u64; 2] = read_user(current + 32);
        server(to, read_user::<u64>(servers) + 48);
        let location: u64 = read_user(locations);
        (*to).lens[2] = text(&raw mut (*to).location, read_user(location));
    }
    1
}

/// The `server`, by where its file's name and its line lie.
///
/// # Safety
/// As [`noted`].
#[inline(always)]
unsafe fn server(to: *mut Said, at: u64) {
    let [file, number]: [u64; 2] = read_user(at);
    // SAFETY: by this function's contract.
    unsafe {
        (*to).server_line = number;
        (*to).lens[1] = c_text::<FILE>(&raw mut (*to).file, file);
    }
}

/// The Host header.
///
/// # Safety
/// As [`noted`].
#[inline(never)]
unsafe fn host(to: *mut Said, offset: u32) -> u32 {
    if to.is_null() {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        let host: u64 = read_user((*to).request + u64::from(offset));
        let value = if host == 0 { [0, 0] } else { read_user(host + VALUE) };
        (*to).lens[4] = text(&raw mut (*to).host, value);
    }
    1
}

/// Whom it is about, and nginx's words.
///
/// # Safety
/// As [`noted`].
#[inline(never)]
unsafe fn names(to: *mut Said, asked: &Asked, first: u64) -> u32 {
    if to.is_null() {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        // Connection, address, its length, name.
        let peer: [u64; 4] = read_user(asked.peer);
        let size = bpf_probe_read_user((&raw mut (*to).peer).cast(), 28, peer[1] as *const _);
        if peer[1] == 0 || size != 0 {
            (*to).peer = [0; 28];
        }
        (*to).action_at = read_user(asked.action);
        (*to).lens[0] = c_text::<FORMAT>(&raw mut (*to).format, (*to).format_at);
        (*to).lens[7] = c_text::<ACTION>(&raw mut (*to).action, (*to).action_at);
        let subject = if first < LOWEST { [0, 0] } else { read_user(first) };
        (*to).lens[5] = text(&raw mut (*to).subject, subject);
        let name = if peer[3] == 0 { [0, 0] } else { read_user(peer[3]) };
        (*to).lens[6] = text(&raw mut (*to).peer_name, name);
    }
    1
}

/// How many bytes of the client's buffer (an `ngx_buf_t`) begin with the request line, given as length and place; 0 if it lies
/// elsewhere: HTTP/2 has put it together.
#[inline(always)]
fn in_buffer([len, at]: [u64; 2], buffer: u64) -> u64 {
    // pos, last.
    let [_, last]: [u64; 2] = if buffer == 0 { [0; 2] } else { read_user(buffer) };
    let more = last.wrapping_sub(at);
    if at != 0 && last > at && more >= len && more <= 1 << 20 { more } else { 0 }
}

/// Copies the request line and what stands behind it in the client's buffer.
///
/// # Safety
/// `to` points to a reserved record.
#[inline(always)]
unsafe fn head(to: *mut Said, [len, at]: [u64; 2], buffer: u64) {
    let take = len.max(in_buffer([len, at], buffer));
    // SAFETY: by this function's contract.
    unsafe {
        (*to).lens[3] = text(&raw mut (*to).line, [take, at]);
        (*to).head_len = (*to).lens[3].min(LINE as u16 - 1);
        (*to).lens[3] = if (*to).lens[3] == 0 { 0 } else { len.min(u64::from(u16::MAX)) as u16 };
    }
}

/// Which of the requests at this address it is.
#[inline(never)]
fn moment_of(main: u64, layout: &Layout, client_sk: u64, to: &mut Moment) {
    let line: [u64; 2] = read_user(main + u64::from(layout.start_sec) + REQUEST_LINE);
    let buffer = read_user(main + u64::from(layout.upstream) + HEADER_IN);
    let began = read_user(main + u64::from(layout.start_sec));
    *to = Moment { began, mark: 0 };
    if client_sk != 0 && in_buffer(line, buffer) != 0 {
        let read: u32 = read(client_sk, setting!(copied_seq));
        to.mark = u64::from(read.wrapping_add((line[1] as u32).wrapping_mul(SPREAD)));
    }
}

/// Seconds of CLOCK_MONOTONIC.
#[inline(always)]
fn seconds() -> u32 {
    (emit::now_ns() / 1_000_000_000) as u32
}

/// The answer to this request is to be told.
#[inline(always)]
fn await_answer(request: u64, moment: &Moment, proc: *mut Proc) {
    let key = Awaited { tgid: u64::from(kernel::tgid()), request };
    let _ = AWAITED.insert(key, moment, 0);
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe { (*proc).awaiting = seconds() + AWAIT_S };
}

/// True if the answer to the request of this `ngx_connection_t` is perhaps waited for: what most responses are asked while any is.
#[inline(always)]
pub(crate) fn is_awaited(connection: u64) -> bool {
    if connection == 0 {
        return false;
    }
    let tgid = u64::from(kernel::tgid());
    nginx::main_requests(connection)
        .iter()
        .any(|request| *request != 0 && AWAITED.get_ptr(Awaited { tgid, request: *request }).is_some())
}

/// nginx, or a server, answers a request: it is told if that is waited for.
#[inline(never)]
fn answered(request: u64, root: u32, status: u32, own: u32) -> u32 {
    let key = Awaited { tgid: u64::from(kernel::tgid()), request };
    let (Some(awaited), Some(layout)) = (AWAITED.get_ptr(key), LAYOUTS.get_ptr(root)) else {
        return 0;
    };
    // SAFETY: map elements of plain integers, copied at once.
    let (awaited, layout) = unsafe { (*awaited, *layout) };
    let mut now = Moment { began: [0; 2], mark: 0 };
    moment_of(request, &layout, nginx::client_of(request), &mut now);
    kernel::forget(&mut now);
    if now.began[0] != awaited.began[0] || now.began[1] != awaited.began[1] || now.mark != awaited.mark {
        // Another one lies there by now.
        let _ = AWAITED.remove(key);
        return 0;
    }
    let Some(mut entry) = EVENTS.reserve::<Answer>(0) else {
        return 0;
    };
    entry.write(Answer {
        kind: kind::ANSWER,
        tgid: kernel::tgid(),
        time_ns: emit::now_ns(),
        request,
        moment: awaited,
        status,
        own,
    });
    entry.submit(emit::wakeup());
    // An error may be the beginning of another attempt, or of a page that is not there: the last one told is the client's.
    if status < 400 {
        let _ = AWAITED.remove(key);
    }
    1
}

/// `ngx_http_special_response_handler(r, error)`: nginx makes the answer by itself (redirects and pages that are not there, too).
#[uprobe]
fn nginx_answers(ctx: ProbeContext) -> u32 {
    if let (Some(request), Some(status), Some((_, proc))) =
        (ctx.arg::<u64>(0), ctx.arg::<u64>(1), procs::worker())
    {
        // SAFETY: an integer of a live map element.
        let (awaiting, root) = unsafe { ((*proc).awaiting, (*proc).root) };
        if awaiting != 0 {
            answered(request, root, status as u32, 1);
        }
    }
    0
}

/// A response of this status begins on an upstream connection while an answer is waited for: perhaps it is that.
#[inline(never)]
pub(crate) fn passes_on(connection: u64, proc: *mut Proc, status: u32) -> u32 {
    if proc.is_null() {
        return 0;
    }
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe {
        if (*proc).awaiting < seconds() {
            (*proc).awaiting = 0;
            return 0;
        }
        let mut asked = Asked::NOTHING;
        if nginx::ask(connection, (*proc).root, &mut asked) == nginx::FOUND && asked.current == asked.main {
            answered(asked.main, (*proc).root, status, 0);
        }
    }
    1
}

/// The addresses of the client's connection.
#[inline(always)]
unsafe fn address(to: *mut Said, sk: u64) {
    // SAFETY: by `tell`, reserved bytes.
    unsafe {
        if sk == 0 {
            (*to).client = [0; 16];
            (*to).local = [0; 16];
            (*to).client_port = 0;
            (*to).local_port = 0;
            return;
        }
        let family: u16 = read(sk, setting!(skc_family));
        let (client, local) = ((&raw mut (*to).client).cast::<Addr>(), (&raw mut (*to).local).cast::<Addr>());
        kernel::sock_addr_to(client, sk, family, setting!(skc_daddr), setting!(skc_v6_daddr));
        kernel::sock_addr_to(local, sk, family, setting!(skc_rcv_saddr), setting!(skc_v6_rcv_saddr));
        (*to).client_port = u16::from_be(read(sk, setting!(skc_dport)));
        (*to).local_port = u16::from_be(read(sk, setting!(inet_sport)));
    }
}

/// Copies an `ngx_str_t`, given as length and place; returns its whole length, 0 if it cannot be read.
#[inline(always)]
unsafe fn text<const N: usize>(to: *mut [u8; N], [len, at]: [u64; 2]) -> u16 {
    if at == 0 || len == 0 {
        return 0;
    }
    let mut take = len.min(N as u64 - 1);
    // SAFETY: computes with a register only; the verifier wants to see the bound in the one that is used.
    unsafe { core::arch::asm!("{take} &= {mask}", take = inlateout(reg) take, mask = const N - 1) };
    // SAFETY: N bytes of the record, of which fewer are written.
    let done = unsafe { bpf_probe_read_user(to.cast(), take as u32, at as *const _) } == 0;
    if done { len.min(u64::from(u16::MAX)) as u16 } else { 0 }
}

/// Copies a string that ends with a NUL; returns the length of what was copied.
#[inline(always)]
unsafe fn c_text<const N: usize>(to: *mut [u8; N], at: u64) -> u16 {
    if at == 0 {
        return 0;
    }
    // SAFETY: N bytes of the record.
    let length = unsafe { bpf_probe_read_user_str(to.cast(), N as u32, at as *const _) };
    if length > 0 { length as u16 - 1 } else { 0 }
}

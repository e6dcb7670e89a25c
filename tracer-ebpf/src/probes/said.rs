//! What nginx itself says of a failure: uprobes on functions that its executable exports.
//!
//! `ngx_log_error_core` runs only for what is logged, `ngx_connection_error` only for errors of connections, so that
//! healthy requests meet neither; `ngx_http_upstream_free_round_robin_peer` runs once for every upstream attempt and is
//! attached only if the user asks for it. Their signatures, and the fields that are not in the layout, are the same
//! from nginx 1.14 to 1.31; Angie has moved `ngx_log_t.data` and the arguments behind the log. Nothing is believed
//! without a mark: the request's "HTTP", and that the request and its log name the same connection.

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str, bpf_ringbuf_submit},
    macros::uprobe,
    programs::ProbeContext,
};
use tracer_ebpf::{
    Addr, Proc, kind,
    said::{ACTION, FILE, FORMAT, Said, said_flag},
    talk::talk_flag,
};

use crate::{
    clients, conns, emit,
    kernel::{self, read, read_user},
    maps::{EVENTS, LAYOUTS, setting},
    procs,
};

/// `NGX_LOG_ERR`: what is less severe is no failure.
const ERR: u64 = 4;
/// `NGX_HTTP_MODULE`, which every `ngx_http_request_t` begins with.
const HTTP: u32 = u32::from_le_bytes(*b"HTTP");
/// No string lies as low; an errno does.
const LOWEST: u64 = 4096;
/// `NGX_PEER_FAILED`.
const FAILED: u64 = 4;

/// Offset of `ngx_log_t.data`: nginx's, then Angie's since it has no `disk_full_time`.
const LOG_DATA: [u64; 2] = [40, 32];
/// Offset of `ngx_log_t.action` from `data`.
const LOG_ACTION: u64 = 24;
/// Offset of `ngx_connection_t.fd`.
const FD: u64 = 24;
/// Offset of `ngx_connection_t.log`.
const LOG: u64 = 80;
/// Offset of `ngx_http_upstream_t.peer`.
const PEER: u64 = 16;
/// Offset of `ngx_table_elt_t.value`.
const VALUE: u64 = 24;

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
fn is_request(at: u64) -> bool {
    at != 0 && read_user::<u32>(at) == HTTP
}

/// The main request and the one at work (a subrequest of it, or itself), by the log's context
/// `{connection, request, current_request}`.
#[inline(always)]
fn requests(log: u64, data: u64) -> Option<(u64, u64)> {
    let context: u64 = read_user(log + data);
    let [connection, main, current]: [u64; 3] = read_user(context);
    let current = if current == 0 { main } else { current };
    // The signature is followed by `connection`.
    let fits = |r: u64| is_request(r) && read_user::<u64>(r + 8) == connection;
    (connection != 0 && fits(main) && (current == main || fits(current))).then_some((main, current))
}

#[inline(never)]
fn speaks(call: &Call) {
    let Some((tgid, proc)) = procs::worker() else {
        return;
    };
    let mut data = LOG_DATA[0];
    let mut found = requests(call.log, data);
    if found.is_none() {
        data = LOG_DATA[1];
        found = requests(call.log, data);
    }
    let Some((main, current)) = found else {
        return;
    };
    // Records of failures come first: this one is left out if they have filled half of the buffer already.
    const AVAILABLE: u64 = 0;
    const SIZE: u64 = 1;
    if EVENTS.query(AVAILABLE) > EVENTS.query(SIZE) / 2 {
        return;
    }
    tell(call, proc, tgid, &Place { main, current, action: call.log + data + LOG_ACTION });
}

/// What nginx was at.
struct Place {
    main: u64,
    current: u64,
    /// Where `ngx_log_t.action` lies.
    action: u64,
}

/// How the texts begin that are about an upstream connection.
const UPSTREAM: u64 = u64::from_le_bytes(*b"upstream");

/// nginx is about to close this upstream connection because of what it says: its record is wanted, whatever the wire shows.
#[inline(always)]
fn mark(upstream_sk: u64, tgid: u32, format: u64) {
    let begin: u64 = read_user(format);
    // 0: nothing of that page had been used in this worker yet; user space reads it.
    if format == 0 || (begin != UPSTREAM && begin != 0) {
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

#[inline(always)]
fn tell(call: &Call, proc: *mut Proc, tgid: u32, place: &Place) {
    let (main, current) = (place.main, place.current);
    // SAFETY: an integer of a live map element.
    let root = unsafe { (*proc).root };
    let Some(layout) = LAYOUTS.get_ptr(root) else {
        return;
    };
    // SAFETY: a live map element of plain integers, copied at once.
    let layout = unsafe { *layout };
    // Its `upstream_states` follow, an ngx_array_t: elements, their number.
    let [upstream, states]: [u64; 2] = read_user(current + u64::from(layout.upstream));
    if upstream == 0 {
        return;
    }
    let tries: [u64; 2] = if states == 0 { [0; 2] } else { read_user(states) };
    // Connection, address, its length, name.
    let peer: [u64; 4] = read_user(upstream + PEER);
    if call.connection != 0 && call.connection != peer[0] {
        return;
    }
    let mut flags = call.flags;
    if current != main {
        flags |= said_flag::SUBREQUEST;
    }
    let mut upstream_sk = 0;
    if peer[0] != 0 {
        flags |= said_flag::UPSTREAM;
        upstream_sk = kernel::tcp_sock_of_fd(read_user(peer[0] + FD));
    }
    let connection: u64 = read_user(main + 8);
    let client_sk = kernel::tcp_sock_of_fd(read_user(connection + FD));
    let mut id = 0;
    let mut began = 0;
    if client_sk != 0 {
        flags |= said_flag::CLIENT;
    }
    // Without an attempt the answer is nginx's own, and is watched as such.
    if client_sk != 0 && upstream_sk != 0 {
        id = clients::await_answer(client_sk, tgid, proc, current == main);
    }
    if upstream_sk != 0 {
        began = clients::began(upstream_sk, tgid);
        mark(upstream_sk, tgid, call.format);
    }
    let Some(mut entry) = EVENTS.reserve::<Said>(0) else {
        // As for requests: the incident says itself that its request is not known.
        return;
    };
    let to = entry.as_mut_ptr();
    core::mem::forget(entry);
    // SAFETY: reserved bytes, 8-byte aligned, submitted below; every field but the texts is written, and user space
    // reads no more bytes of those than were copied.
    unsafe {
        (*to).kind = kind::SAID;
        (*to).flags = flags;
        (*to).tgid = tgid;
        (*to).err = call.err;
        (*to).time_ns = emit::now_ns();
        (*to).upstream_sk = upstream_sk;
        (*to).upstream_start_ns = began;
        (*to).request = main;
        (*to).id = id;
        (*to).format_at = call.format;
        (*to).action_at = read_user(place.action);
        (*to).number = call.second;
        (*to).states = tries[1];
        // start_sec, start_msec, method, http_version, request_line.
        let line: [u64; 6] = read_user(main + u64::from(layout.start_sec));
        (*to).began = [line[0], line[1]];
        (*to).lens[3] = text(&raw mut (*to).line, [line[4], line[5]]);
        address(to, client_sk);
        let size = bpf_probe_read_user((&raw mut (*to).peer).cast(), 28, peer[1] as *const _);
        if peer[1] == 0 || size != 0 {
            (*to).peer = [0; 28];
        }
        (*to).lens[0] = c_text::<FORMAT>(&raw mut (*to).format, call.format);
        (*to).lens[7] = c_text::<ACTION>(&raw mut (*to).action, (*to).action_at);
        // The first configuration of each kind is the core module's.
        let [servers, locations]: [u64; 2] = read_user(current + 32);
        let server: u64 = read_user(servers);
        let [file, number]: [u64; 2] = read_user(server + 48);
        (*to).server_line = number;
        (*to).lens[1] = c_text::<FILE>(&raw mut (*to).file, file);
        let location: u64 = read_user(locations);
        (*to).lens[2] = text(&raw mut (*to).location, read_user(location));
        let host: u64 = read_user(main + u64::from(layout.host));
        let value = if host == 0 { [0, 0] } else { read_user(host + VALUE) };
        (*to).lens[4] = text(&raw mut (*to).host, value);
        let subject = if call.first < LOWEST { [0, 0] } else { read_user(call.first) };
        (*to).lens[5] = text(&raw mut (*to).subject, subject);
        let name = if peer[3] == 0 { [0, 0] } else { read_user(peer[3]) };
        (*to).lens[6] = text(&raw mut (*to).peer_name, name);
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
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

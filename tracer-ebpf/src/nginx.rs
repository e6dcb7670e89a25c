//! Asking nginx's own memory which request an upstream connection serves.
//!
//! nginx registers each upstream socket with epoll before it connects (`ngx_event_connect_peer`, src/event/ngx_event_connect.c), and
//! the registration holds its `ngx_connection_t *`. From there its log leads to the request at work, and that to the upstream
//! connection: only if that is the one which was asked about, the request is believed. So a link is exact, or there is none.
//! Nothing here runs for a healthy request; everything runs in the worker, whose memory it reads.
//!
//! Offsets that are not in [`Layout`](tracer_ebpf::said::Layout) are the same from nginx 1.14 to 1.31; Angie has moved `ngx_log_t.data`.

use crate::{
    kernel::{self, read, read_user},
    maps::{LAYOUTS, setting},
};

/// `NGX_HTTP_MODULE`, which every `ngx_http_request_t` begins with.
const HTTP: u32 = u32::from_le_bytes(*b"HTTP");

/// Offset of `ngx_log_t.data`: nginx's, then Angie's since it has no `disk_full_time`.
const LOG_DATA: [u64; 2] = [40, 32];
/// Offset of `ngx_log_t.action` from `data`.
const LOG_ACTION: u64 = 24;
/// Offset of `ngx_connection_t.fd`.
pub(crate) const FD: u64 = 24;
/// Offset of `ngx_connection_t.log`.
pub(crate) const LOG: u64 = 80;
/// Offset of `ngx_http_upstream_t.peer`.
pub(crate) const PEER: u64 = 16;

/// `NGX_STREAM_MODULE`, which every `ngx_stream_session_t` begins with.
const STREAM: u32 = u32::from_le_bytes(*b"STRM");
/// Offset of `upstream` in `ngx_stream_session_t`, and of `file_name` in `ngx_stream_core_srv_conf_t`, which `line` follows: since
/// 1.25.5 `virtual_names` comes before the one, `server_names` before the other.
const SESSION: [[u64; 2]; 2] = [[72, 16], [80, 56]];
/// Offset of `ngx_peer_connection_t.log`, in builds with TLS and in those without.
const PEER_LOG: [u64; 2] = [112, 96];

/// What [`ask`] found: the connection's request is not known.
pub(crate) const UNKNOWN: u32 = 0;
/// The connection serves no request: it lies in the pool of those that are kept.
pub(crate) const IDLE: u32 = 1;
/// It serves [`Asked::current`].
pub(crate) const FOUND: u32 = 2;

/// A request of nginx's, as it lies in the worker's memory.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    /// The client's request.
    pub main: u64,
    /// The one that has the upstream connection: that, or a subrequest.
    pub current: u64,
    /// Where the `ngx_peer_connection_t` of its upstream lies.
    pub peer: u64,
    /// Its `upstream_states`, an `ngx_array_t`; 0 if there is none.
    pub states: u64,
    /// Where `ngx_log_t.action` lies.
    pub action: u64,
}

impl Asked {
    pub(crate) const NOTHING: Self = Self { main: 0, current: 0, peer: 0, states: 0, action: 0 };
}

/// A session of the stream module, as it lies in the worker's memory.
#[derive(Clone, Copy)]
pub(crate) struct Session {
    /// The session in place of a request.
    pub asked: Asked,
    /// `start_sec`, `start_msec`.
    pub began: [u64; 2],
    /// Where its server's `file_name` lies, which `line` follows.
    pub server: u64,
}

impl Session {
    pub(crate) const NOTHING: Self = Self { asked: Asked::NOTHING, began: [0; 2], server: 0 };
}

/// The last element of `upstream_states`: the attempt at work.
#[derive(Clone, Copy)]
pub(crate) struct State {
    /// How many elements there are.
    pub count: u64,
    /// `status`: the server's, or 502 and 504 of nginx's own; 0 if it is not set.
    pub status: u64,
    /// `header_time`: milliseconds until the header of the response was read; `u64::MAX` before that.
    pub header_ms: u64,
    /// The request was led elsewhere between its attempts: their number tells nothing.
    pub led: u32,
}

impl State {
    pub(crate) const NOTHING: Self = Self { count: 0, status: 0, header_ms: 0, led: 0 };
}

/// The largest status, and the longest time of an attempt, that are believed (a month).
const MOST_STATUS: u64 = 999;
const LONGEST_MS: u64 = 31 * 24 * 3600 * 1000;
/// Earlier attempts that are looked at.
const MOST_EARLIER: u64 = 4;

#[inline(always)]
fn is_request(at: u64) -> bool {
    at != 0 && read_user::<u32>(at) == HTTP
}

/// The main request and the one at work (a subrequest of it, or itself), by a log's context
/// `{connection, request, current_request}`, and where the log's action lies.
#[inline(always)]
pub(crate) fn requests(log: u64) -> Option<(u64, u64, u64)> {
    let mut way = 0;
    while way < 2 {
        let data = log + LOG_DATA[way];
        let context: u64 = read_user(data);
        let [connection, main, current]: [u64; 3] = read_user(context);
        let current = if current == 0 { main } else { current };
        // The signature is followed by `connection`.
        let fits = |r: u64| is_request(r) && read_user::<u64>(r + 8) == connection;
        if connection != 0 && fits(main) && (current == main || fits(current)) {
            return Some((main, current, data + LOG_ACTION));
        }
        way += 1;
    }
    None
}

/// The session that a log belongs to, if it has an upstream with that same log; else 0.
#[inline(never)]
pub(crate) fn session(log: u64, to: &mut Session) -> u32 {
    let mut way = 0;
    while way < 2 {
        let data = log + LOG_DATA[way];
        way += 1;
        let at: u64 = read_user(data);
        if at == 0 || read_user::<u32>(at) != STREAM {
            continue;
        }
        let connection: u64 = read_user(at + 8);
        if connection == 0 || read_user::<u64>(connection + LOG) != log {
            continue;
        }
        // `received` lies between.
        let began: [u64; 2] = read_user(at + 24);
        // The first configuration is the core module's.
        let servers: u64 = read_user(at + 64);
        let core: u64 = read_user(servers);
        let mut layout = 0;
        while layout < 2 {
            let [upstream, file] = SESSION[layout];
            layout += 1;
            // `upstream_states` follows; an upstream begins with its peer.
            let [peer, states]: [u64; 2] = read_user(at + upstream);
            if peer != 0 && PEER_LOG.iter().any(|offset| read_user::<u64>(peer + offset) == log) {
                *to = Session {
                    asked: Asked { main: at, current: at, peer, states, action: data + LOG_ACTION },
                    began,
                    server: core + file,
                };
                return 1;
            }
        }
    }
    0
}

/// The main request that the log of an `ngx_connection_t` names, by each way in which it may lie there, unchecked.
#[inline(always)]
pub(crate) fn main_requests(connection: u64) -> [u64; 2] {
    let log: u64 = read_user(connection + LOG);
    LOG_DATA.map(|data| {
        let context: u64 = read_user(log + data);
        if context == 0 { 0 } else { read_user(context + 8) }
    })
}

/// Which request an `ngx_connection_t` of this worker serves, whose family began with `root`.
#[inline(never)]
pub(crate) fn ask(connection: u64, root: u32, to: &mut Asked) -> u32 {
    let Some(layout) = LAYOUTS.get_ptr(root) else {
        return UNKNOWN;
    };
    if connection == 0 {
        return UNKNOWN;
    }
    // SAFETY: an integer of a live map element.
    let offset = u64::from(unsafe { (*layout).upstream });
    let log: u64 = read_user(connection + LOG);
    if log == 0 {
        return UNKNOWN;
    }
    let mut at = [0; 3];
    if let Some((main, current, action)) = requests(log) {
        at = [main, current, action];
    }
    kernel::forget(&mut at);
    let [main, current, action] = at;
    if main == 0 {
        // The cycle's log has neither data nor a handler, which lie where the other's data would.
        let neither: [u64; 2] = read_user(log + LOG_DATA[1]);
        return if neither[0] | neither[1] == 0 { IDLE } else { UNKNOWN };
    }
    // Several subrequests may be at work at a time: the one that the log names need not be the connection's.
    let mut request = current;
    let mut try_main = 0;
    while try_main < 2 {
        // `upstream_states` follows.
        let [upstream, states]: [u64; 2] = read_user(request + offset);
        if upstream != 0 && read_user::<u64>(upstream + PEER) == connection {
            *to = Asked { main, current: request, peer: upstream + PEER, states, action };
            return FOUND;
        }
        request = main;
        try_main += 1;
    }
    UNKNOWN
}

/// What nginx has noted of the attempt at work.
#[inline(never)]
pub(crate) fn state(states: u64, found: &mut State) {
    *found = State { count: 0, status: 0, header_ms: u64::MAX, led: 0 };
    if states == 0 {
        return;
    }
    // ngx_array_t: elements, their number, the size of one.
    let [elements, count, size]: [u64; 3] = read_user(states);
    if count == 0 || !(56..=256).contains(&size) {
        return;
    }
    // status, response_time, connect_time, header_time; the peer's name comes last.
    let last: [u64; 4] = read_user(elements + (count - 1) * size);
    // Milliseconds, or none: else the elements are not what they are in the versions known.
    let is_time = |ms: u64| ms == u64::MAX || ms < LONGEST_MS;
    if last[0] > MOST_STATUS || !is_time(last[1]) || !is_time(last[2]) || !is_time(last[3]) {
        return;
    }
    found.count = count;
    found.status = last[0];
    found.header_ms = last[3];
    if count > MOST_EARLIER + 1 {
        found.led = 1;
    } else {
        let mut at = 0;
        while at < MOST_EARLIER {
            if at + 1 < count && read_user::<u64>(elements + at * size + size - 8) == 0 {
                found.led = 1;
            }
            at += 1;
        }
    }
}

/// The `ngx_connection_t *` with which a file is registered at epoll, in the memory of whoever did so; 0 if there is none.
#[inline(always)]
pub(crate) fn registered(file: u64) -> u64 {
    if file == 0 || !kernel::has(setting!(file_ep)) || !kernel::has(setting!(epi_data)) {
        return 0;
    }
    // `file.f_ep` points to a hlist_head since 5.11; until then `file.f_ep_links` was a list_head itself.
    let mut link: u64 = read(file, setting!(file_ep));
    if setting!(file_ep_is_list) == 0 {
        link = read(link, 0);
    }
    if link == 0 {
        return 0;
    }
    let item = link.wrapping_sub(u64::from(setting!(epi_link)));
    // Its lowest bit is `instance`, which changes when a descriptor is used again.
    read::<u64>(item, setting!(epi_data)) & !1
}

/// The same of the system call at work, connect().
#[inline(never)]
pub(crate) fn connecting(sk: u64) -> u64 {
    match kernel::syscall_args(setting!(nr_connect)) {
        Some((fd, _)) => connection_of(sk, fd as u32),
        None => 0,
    }
}

/// The `ngx_connection_t *` of a socket that this worker is about to connect. A function of its own: the stack is dear.
#[inline(never)]
pub(crate) fn connection_of(sk: u64, fd: u32) -> u64 {
    if !kernel::has(setting!(sk_socket)) || !kernel::has(setting!(socket_file)) {
        return 0;
    }
    let socket: u64 = read(sk, setting!(sk_socket));
    if socket == 0 {
        return 0;
    }
    let connection = registered(read(socket, setting!(socket_file)));
    if connection != 0 && read_user::<u32>(connection + FD) == fd { connection } else { 0 }
}

/// The socket of the client of a request; 0 if it is none of TCP.
#[inline(never)]
pub(crate) fn client_of(main: u64) -> u64 {
    let connection: u64 = read_user(main + 8);
    kernel::tcp_sock_of_fd(read_user(connection + FD))
}

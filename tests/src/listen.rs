//! Listeners of this program inside a namespace: backends, deaf backends, full queues, held connections.

use crate::case::{Connect, Listen, ListenMode};
use crate::dns;
use crate::net::NetNs;
use crate::sys;
use crate::unix;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(50);

/// Anything that is kept open until the case ends.
#[derive(Debug)]
pub(crate) struct Held {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Requests that were answered.
    pub(crate) served: Arc<AtomicU64>,
    _listener: Option<TcpListener>,
    _udp: Option<UdpSocket>,
    streams: Vec<TcpStream>,
    _unix: Option<unix::Opened>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // First the clients' ends: a thread may wait for their next byte.
        self.streams.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Held {
    fn new() -> Self {
        Self {
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
            served: Arc::new(AtomicU64::new(0)),
            _listener: None,
            _udp: None,
            streams: Vec::new(),
            _unix: None,
        }
    }
}

/// Opens the listener in `ns`; with `threads` > 1 that many accept at the same time. Paths of unix sockets begin at
/// `dir`.
pub(crate) fn listen(
    ns: &NetNs,
    listen: &Listen,
    dir: &Path,
    threads: usize,
    bound: Duration,
) -> Result<Held> {
    if let Some(name) = listen.address.strip_prefix("unix:") {
        return on_unix(ns, listen, name, dir);
    }
    let address: SocketAddr =
        listen.address.parse().with_context(|| format!("listen address `{}`", listen.address))?;
    let mut held = Held::new();
    if listen.mode == ListenMode::Udp {
        held._udp = Some(ns.run(|| Ok(UdpSocket::bind(address)?))?);
        return Ok(held);
    }
    if listen.mode == ListenMode::Dns {
        let socket = ns.run(|| Ok(UdpSocket::bind(address)?))?;
        let read = |(name, text): (&String, &String)| Ok((name.clone(), dns::say(text)?));
        let names = listen.names.iter().map(read).collect::<Result<_>>()?;
        let stop = Arc::clone(&held.stop);
        held.threads.push(std::thread::spawn(move || dns::serve(&socket, &names, &stop)));
        return Ok(held);
    }
    let listener = ns.run(|| {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        sys::set_backlog(listener.as_raw_fd(), listen.backlog)?;
        Ok(listener)
    })?;
    match listen.mode {
        ListenMode::Hold | ListenMode::Udp | ListenMode::Dns => {}
        ListenMode::LeftOver | ListenMode::Seqpacket => {
            bail!("only a unix socket can be `{:?}`", listen.mode)
        }
        ListenMode::Full => held.streams = ns.run(|| fill(address, listen.backlog, bound))?,
        ListenMode::Http
        | ListenMode::HttpKeepalive
        | ListenMode::FullThenHttp
        | ListenMode::Close
        | ListenMode::Reset => {
            if listen.mode == ListenMode::FullThenHttp {
                held.streams = ns.run(|| fill(address, listen.backlog, bound))?;
            }
            for _ in 0..threads {
                let (stop, served) = (Arc::clone(&held.stop), Arc::clone(&held.served));
                let (listener, listen) = (listener.try_clone()?, listen.clone());
                let work = move || serve(&listener, &listen, &stop, &served);
                // The thread inherits the namespace, whose sockets it looks at.
                held.threads.push(ns.run(|| Ok(std::thread::spawn(work)))?);
            }
        }
    }
    held._listener = Some(listener);
    Ok(held)
}

fn on_unix(ns: &NetNs, listen: &Listen, name: &str, dir: &Path) -> Result<Held> {
    let mut held = Held::new();
    let opened = ns.run(|| unix::open(name, dir, listen.mode, listen.backlog))?;
    if listen.mode == ListenMode::Http
        && let Some(listener) = &opened.listener
    {
        let (stop, served, status) = (Arc::clone(&held.stop), Arc::clone(&held.served), listen.status);
        let listener = listener.try_clone()?;
        held.threads.push(std::thread::spawn(move || unix::serve(&listener, status, &stop, &served)));
    }
    held._unix = Some(opened);
    Ok(held)
}

/// Opens connections and keeps them.
pub(crate) fn connect(ns: &NetNs, connect: &Connect) -> Result<Held> {
    let address: SocketAddr = connect.to.parse().with_context(|| format!("connect to `{}`", connect.to))?;
    let mut held = Held::new();
    held.streams = ns.run(|| {
        let open = |n| TcpStream::connect(address).with_context(|| format!("connection {n} to {address}"));
        (0..connect.count).map(open).collect()
    })?;
    Ok(held)
}

/// Fills the accept queue: the kernel takes `backlog` + 1 connections. Done when the listener says so.
fn fill(address: SocketAddr, backlog: i32, bound: Duration) -> Result<Vec<TcpStream>> {
    let wanted = usize::try_from(backlog).unwrap_or(0) + 1;
    let open = |_| Ok(TcpStream::connect_timeout(&address, bound)?);
    let streams: Vec<TcpStream> = (0..wanted).map(open).collect::<Result<_>>()?;
    // "self" is the main thread, which is in another namespace; "thread-self" is in this one.
    let full =
        || sockets("thread-self", 0x0a).iter().any(|s| s.port == address.port() && s.receive_queue >= wanted);
    ensure!(sys::poll_until(bound, full), "the accept queue of {address} did not fill");
    Ok(streams)
}

/// One line of /proc/PID/net/tcp or tcp6.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// The local port.
    pub(crate) port: u16,
    /// For a listener: connections that wait for accept().
    pub(crate) receive_queue: usize,
}

/// The TCP sockets in `state` (2 SYN_SENT, 10 LISTEN) of the namespace of `who`, a folder of /proc.
pub(crate) fn sockets(who: &str, state: u8) -> Vec<Socket> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{who}/net/{table}")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| socket(line, state)));
    }
    found
}

fn socket(line: &str, state: u8) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (_, port) = words.next()?.rsplit_once(':')?;
    let of = u8::from_str_radix(words.nth(1)?, 16).ok()?;
    let (_, queue) = words.next()?.split_once(':')?;
    (of == state).then_some(Socket {
        port: u16::from_str_radix(port, 16).ok()?,
        receive_queue: usize::from_str_radix(queue, 16).ok()?,
    })
}

fn serve(listener: &TcpListener, listen: &Listen, stop: &AtomicBool, served: &AtomicU64) {
    // Several threads may be told of one connection: the losers must not block in accept().
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    let waiting = || listen.mode == ListenMode::FullThenHttp && sockets("thread-self", 2).is_empty();
    while waiting() && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(POLL);
    }
    while !stop.load(Ordering::SeqCst) {
        if !sys::readable(listener.as_raw_fd(), POLL) {
            continue;
        }
        if listen.delay_ms > 0 {
            // The fault itself, not a wait for something: a backend that is slow to accept.
            std::thread::sleep(Duration::from_millis(listen.delay_ms));
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        // An error is the client's going away, which nginx's log and the client's status tell.
        let _ = answer(stream, listen, stop, served);
    }
}

fn answer(stream: TcpStream, listen: &Listen, stop: &AtomicBool, served: &AtomicU64) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_nodelay(true)?;
    if listen.mode == ListenMode::Close {
        return Ok(());
    }
    let keep = listen.mode == ListenMode::HttpKeepalive;
    let mut reader = BufReader::new(stream);
    while !stop.load(Ordering::SeqCst) {
        // Between requests: look for the end of the case.
        if keep && reader.buffer().is_empty() && !sys::readable(reader.get_ref().as_raw_fd(), POLL) {
            continue;
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        if listen.mode == ListenMode::Reset {
            sys::reset_on_close(reader.get_ref().as_raw_fd())?;
            return Ok(());
        }
        let connection = if keep { "keep-alive" } else { "close" };
        let reply = format!(
            "HTTP/1.1 {} Lab\r\nContent-Length: 3\r\nConnection: {connection}\r\n\r\nok\n",
            listen.status
        );
        reader.get_mut().write_all(reply.as_bytes())?;
        served.fetch_add(1, Ordering::Relaxed);
        if !keep {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_tcp() {
        let line =
            "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 1 1";
        assert_eq!(socket(line, 10), Some(Socket { port: 3000, receive_queue: 2 }));
        assert_eq!(socket(line, 2), None);
        assert_eq!(socket("  sl  local_address rem_address   st", 10), None);
    }
}

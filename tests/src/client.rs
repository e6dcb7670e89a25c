//! The client of nginx: small HTTP requests from inside a namespace, with the ways a client can go away.

use crate::case::{Abort, Request};
use crate::listen;
use crate::sys;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// What the client saw of one request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: Option<u16>,
    pub(crate) time: Duration,
    /// Why there is no status; None for a client that left on purpose or a bare TCP connection.
    pub(crate) error: Option<String>,
}

/// Sends the `count` requests of `request`. The calling thread must be in nginx's namespace.
/// `bound` limits each answer and each wait.
pub(crate) fn send(request: &Request, bound: Duration) -> Vec<Answer> {
    let one = |number| attempt(|| single(request, number, bound));
    if request.keepalive || request.pipeline {
        return reuse(request, bound);
    }
    if !request.parallel {
        return (1..=request.count).map(one).collect();
    }
    // Threads inherit the namespace of the thread that starts them.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=request.count).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

/// Client connections that say nothing, until process `worker` has one descriptor left.
pub(crate) fn fill_fds(to: &str, worker: u32, bound: Duration) -> Result<Vec<TcpStream>> {
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits"))?;
    let limit: usize = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_ascii_whitespace().next()?.parse().ok())
        .context("no `Max open files` in /proc/PID/limits")?;
    // The limit is on the number of the descriptor: inherited ones above it do not count.
    let below = |entry: &std::fs::DirEntry| {
        entry.file_name().to_str().and_then(|n| n.parse().ok()).is_some_and(|n: usize| n < limit)
    };
    let open = || {
        let entries = std::fs::read_dir(format!("/proc/{worker}/fd"));
        entries.map_or(0, |entries| entries.flatten().filter(below).count())
    };
    ensure!(limit < 4096, "the worker's limit is {limit}: set worker_rlimit_nofile");
    // The connection that asked whether nginx is up may be about to go.
    let (mut last, mut since) = (open(), Instant::now());
    let is_steady = || {
        let now = open();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(200)
    };
    ensure!(sys::poll_until(bound, is_steady), "the worker's descriptors come and go");
    let port = to.parse::<SocketAddr>().with_context(|| format!("`{to}` is no address"))?.port();
    let waiting = || {
        let listeners = listen::sockets(&worker.to_string(), LISTENS);
        listeners.iter().any(|socket| socket.port == port && socket.receive_queue > 0)
    };
    let mut streams = Vec::new();
    loop {
        let before = open();
        ensure!(before > 0 && before < limit, "the worker has {before} of {limit} descriptors open");
        if before + 1 == limit {
            return Ok(streams);
        }
        streams.push(TcpStream::connect(to)?);
        // One of its own may have gone meanwhile: then the new one is in its place, and nobody waits to be accepted.
        let mut since = Instant::now();
        let accepted = || {
            if waiting() {
                since = Instant::now();
            }
            open() > before || since.elapsed() > Duration::from_millis(500)
        };
        ensure!(sys::poll_until(bound, accepted), "the worker did not accept");
    }
}

/// `TCP_LISTEN` (include/net/tcp_states.h).
const LISTENS: u8 = 0x0a;

fn attempt(work: impl FnOnce() -> Result<Option<u16>>) -> Answer {
    let start = Instant::now();
    let result = work();
    let time = start.elapsed();
    match result {
        Ok(status) => Answer { status, time, error: None },
        Err(error) => Answer { status: None, time, error: Some(format!("{error:#}")) },
    }
}

fn open(request: &Request, bound: Duration) -> Result<TcpStream> {
    let address: SocketAddr = request.to.parse().with_context(|| format!("request to `{}`", request.to))?;
    let stream = TcpStream::connect_timeout(&address, bound).context("cannot connect to nginx")?;
    stream.set_read_timeout(Some(bound))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Host of every request.
pub(crate) const HOST: &str = "shop.example.com";

fn head(request: &Request, number: u32, connection: &str) -> String {
    let filled = "x".repeat(request.body_size);
    let body = if request.body_size > 0 { filled.as_str() } else { request.body.as_str() };
    let length = if request.method == "POST" || !body.is_empty() {
        format!("Content-Length: {}\r\n", body.len())
    } else {
        String::new()
    };
    let headers = &request.headers;
    let connection =
        if headers.contains("Connection:") { String::new() } else { format!("Connection: {connection}\r\n") };
    format!(
        "{} {} HTTP/1.1\r\nHost: {HOST}\r\n{length}{headers}{connection}\r\n{body}",
        request.method,
        request.target(number),
    )
}

fn single(request: &Request, number: u32, bound: Duration) -> Result<Option<u16>> {
    let mut stream = open(request, bound)?;
    if request.tcp {
        let mut rest = Vec::new();
        // An RST is an end as well.
        if let Err(error) = stream.read_to_end(&mut rest) {
            ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "nginx did not close: {error}");
        }
        return Ok(None);
    }
    let sent = stream.write_all(head(request, number, "close").as_bytes());
    if let Some(abort) = request.abort {
        sent?;
        leave(request, stream, abort, bound)?;
        return Ok(None);
    }
    if request.body_size == 0 {
        sent?;
    }
    // nginx may answer and close before it has read a large body.
    let mut reader = BufReader::new(stream);
    let status = status(&mut reader)?;
    let mut rest = Vec::new();
    // The body is of no interest, its end is.
    let _ = reader.read_to_end(&mut rest);
    Ok(Some(status))
}

/// Goes away at the moment that the case names, and waits until nginx has given a connection up that it was opening.
fn leave(request: &Request, mut stream: TcpStream, abort: Abort, bound: Duration) -> Result<()> {
    let connecting = || !listen::sockets("thread-self", 2).is_empty();
    if let Some(file) = &request.abort_when {
        ensure!(sys::poll_until(bound, || file.exists()), "no file {}", file.display());
    } else if let Some(bytes) = request.abort_after {
        stream.read_exact(&mut vec![0; bytes]).context("too little of an answer to leave in it")?;
    } else {
        ensure!(sys::poll_until(bound, connecting), "nginx did not begin to connect");
    }
    match abort {
        Abort::Fin => stream.shutdown(Shutdown::Both)?,
        Abort::Rst => sys::reset_on_close(stream.as_raw_fd())?,
    }
    drop(stream);
    ensure!(sys::poll_until(bound, || !connecting()), "nginx went on connecting");
    Ok(())
}

fn reuse(request: &Request, bound: Duration) -> Vec<Answer> {
    let mut reader: Option<BufReader<TcpStream>> = None;
    let mut one = |number: u32| {
        let mut open = match reader.take() {
            Some(open) => open,
            None => BufReader::new(open(request, bound)?),
        };
        if let Some(file) = request.next_when.as_ref().filter(|_| number > 1) {
            ensure!(sys::poll_until(bound, || file.exists()), "no file {}", file.display());
        }
        // In a pipeline the first one sends for all.
        let last = if request.pipeline { request.count } else { number };
        let first = if request.pipeline && number > 1 { last + 1 } else { number };
        let send: String = (first..=last).map(|number| head(request, number, "keep-alive")).collect();
        let status = exchange(&mut open, &send)?;
        reader = Some(open);
        Ok(Some(status))
    };
    (1..=request.count).map(|number| attempt(|| one(number))).collect()
}

/// One request on an open connection: sends `head`, reads the whole response, returns its status.
pub(crate) fn exchange(reader: &mut BufReader<TcpStream>, head: &str) -> Result<u16> {
    reader.get_mut().write_all(head.as_bytes())?;
    let status = status(reader)?;
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "nginx closed inside the header");
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("content-length")?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(status)
}

fn status(reader: &mut impl BufRead) -> Result<u16> {
    let mut line = String::new();
    reader.read_line(&mut line).context("no answer from nginx")?;
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|s| s.parse().ok());
    status.with_context(|| format!("nginx answered {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(status(&mut &b"HTTP/1.1 502 Bad Gateway\r\n"[..]).unwrap(), 502);
        assert!(status(&mut &b""[..]).is_err());
        assert!(status(&mut &b"SSH-2.0\r\n"[..]).is_err());
    }
}

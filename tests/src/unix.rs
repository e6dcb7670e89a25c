//! Listeners on unix sockets: below nginx's prefix (`unix:app.sock`), elsewhere (`unix:/run/…`) or abstract (`unix:@…`).

use crate::case::ListenMode;
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(50);

/// What is kept open until the case ends.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) listener: Option<UnixListener>,
    sockets: Vec<OwnedFd>,
    streams: Vec<UnixStream>,
}

/// Opens the socket in the calling thread's network namespace.
pub(crate) fn open(name: &str, dir: &Path, mode: ListenMode, backlog: i32) -> Result<Opened> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(dir.join(name))?,
    };
    let mut opened = Opened::default();
    match mode {
        ListenMode::Udp => {
            opened.sockets.push(UnixDatagram::bind_addr(&address).context("cannot bind")?.into());
            return Ok(opened);
        }
        ListenMode::Seqpacket => {
            opened.sockets.push(seqpacket(&dir.join(name))?);
            return Ok(opened);
        }
        ListenMode::Http | ListenMode::Hold | ListenMode::Full | ListenMode::LeftOver => {}
        _ => bail!("a unix socket cannot be `{mode:?}`"),
    }
    let listener = UnixListener::bind_addr(&address).with_context(|| format!("cannot listen on {name}"))?;
    if mode == ListenMode::LeftOver {
        // The file stays, as after a backend that was killed.
        return Ok(opened);
    }
    sys::set_backlog(listener.as_raw_fd(), backlog)?;
    if mode == ListenMode::Full {
        // The kernel takes `backlog` + 1 connections and makes the next one wait: these must not.
        for _ in 0..=backlog {
            opened.streams.push(UnixStream::connect_addr(&address)?);
        }
    }
    opened.listener = Some(listener);
    Ok(opened)
}

fn seqpacket(path: &Path) -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    let bytes = name.as_bytes_with_nul();
    // SAFETY: integers only.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX)?;
    ensure!(bytes.len() <= address.sun_path.len(), "{} is too long", path.display());
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>())?;
    // SAFETY: `address` lives through the call and has that size.
    let rc = unsafe { libc::bind(fd, (&raw const address).cast(), size) };
    ensure!(rc == 0, "bind: {}", std::io::Error::last_os_error());
    // SAFETY: plain system call on an own descriptor.
    ensure!(unsafe { libc::listen(fd, 8) } == 0, "listen: {}", std::io::Error::last_os_error());
    Ok(socket)
}

/// Answers every request and closes, until told to stop.
pub(crate) fn serve(listener: &UnixListener, status: u16, stop: &Arc<AtomicBool>, served: &AtomicU64) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !stop.load(Ordering::SeqCst) {
        if !sys::readable(listener.as_raw_fd(), POLL) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        // An error is the client's going away, which nginx's log and the client's status tell.
        let _ = answer(stream, status, served);
    }
}

fn answer(stream: UnixStream, status: u16, served: &AtomicU64) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let reply = format!("HTTP/1.1 {status} Lab\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");
    reader.get_mut().write_all(reply.as_bytes())?;
    served.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

//! The scripted backend: a process of its own, so that it can be looked at, stopped and killed as any other.

use crate::net::NetNs;
use crate::script::{self, Do, Read as What, Script};
use crate::sys;
use crate::tls;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A backend of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backend {
    pub(crate) address: String,
    /// See `script.rs`.
    pub(crate) script: String,
    /// A process for each connection, whose parent lives on; else a thread.
    #[serde(default)]
    pub(crate) fork: bool,
    /// It speaks TLS (`tls.rs`) on its port of loopback; the script itself is played on the port 10,000 above.
    #[serde(default)]
    pub(crate) tls: bool,
    #[serde(default = "backlog")]
    pub(crate) backlog: i32,
    /// What chance begins with.
    #[serde(default = "seed")]
    pub(crate) seed: u64,
}

/// Processes of backends; they are killed with it.
#[derive(Default)]
pub(crate) struct Backends(pub(crate) Vec<Child>);

impl Drop for Backends {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const fn backlog() -> i32 {
    128
}

const fn seed() -> u64 {
    1
}

/// `faultlab backend`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Where it listens
    address: SocketAddr,
    /// What it does with each connection
    script: String,
    /// Fork for each connection
    #[arg(long)]
    fork: bool,
    #[arg(long, default_value_t = backlog())]
    backlog: i32,
    /// What chance begins with
    #[arg(long, default_value_t = seed())]
    seed: u64,
    /// Written with the process number when it listens
    #[arg(long)]
    pid_file: PathBuf,
}

/// The file that says that the backend of a port listens, below the folder it runs in.
pub(crate) fn pid_file(dir: &Path, address: SocketAddr) -> PathBuf {
    dir.join(format!("backend-{}.pid", address.port()))
}

/// Starts a backend in `ns`, in the folder `dir`, and waits until it listens. Its processes.
pub(crate) fn start(ns: &NetNs, backend: &Backend, dir: &Path, bound: Duration) -> Result<Vec<Child>> {
    let mut address: SocketAddr =
        backend.address.parse().with_context(|| format!("backend address `{}`", backend.address))?;
    if !backend.tls {
        return Ok(vec![plain(ns, backend, address, dir, bound)?]);
    }
    ensure!(address.ip() == Ipv4Addr::LOCALHOST, "TLS is spoken on 127.0.0.1, not on {address}");
    let port = address.port();
    address.set_port(port + 10_000);
    let behind = plain(ns, backend, address, dir, bound)?;
    Ok(vec![behind, tls::start(ns, dir, port, address.port(), bound)?])
}

fn plain(ns: &NetNs, backend: &Backend, address: SocketAddr, dir: &Path, bound: Duration) -> Result<Child> {
    script::parse(&backend.script)?;
    let pid_file = pid_file(dir, address);
    let _ = std::fs::remove_file(&pid_file);
    let mut command = ns.command(std::env::current_exe().context("no path of this program")?);
    command.arg("backend").arg(address.to_string()).arg(&backend.script).arg("--pid-file").arg(&pid_file);
    command.args(["--backlog", &backend.backlog.to_string(), "--seed", &backend.seed.to_string()]);
    if backend.fork {
        command.arg("--fork");
    }
    let output = std::fs::File::create(dir.join(format!("backend-{}.out", address.port())))?;
    let mut child = quiet(&mut command, dir).stderr(output).spawn().context("cannot start the backend")?;
    let mut gone = false;
    let listens = sys::poll_until(bound, || {
        gone = !matches!(child.try_wait(), Ok(None));
        gone || pid_file.exists()
    });
    ensure!(listens && !gone, "the backend on {address} does not listen");
    Ok(child)
}

fn quiet<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null())
}

/// Plays the script until it is killed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    sys::backend_manners()?;
    let script = Arc::new(script::parse(&options.script)?);
    let address = options.address;
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    sys::set_backlog(listener.as_raw_fd(), options.backlog)?;
    // Complete when it appears.
    let draft = options.pid_file.with_extension("draft");
    std::fs::write(&draft, std::process::id().to_string()).context("cannot write the process number")?;
    std::fs::rename(&draft, &options.pid_file)?;
    let mut dice = Dice(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        let seed = dice.roll();
        if options.fork {
            // Who closes the connection last is seen as its end: that shall be the child.
            let (mut only_child, parents) = io::pipe()?;
            if sys::fork()? {
                drop((listener, parents));
                let _ = only_child.read(&mut [0]);
                play(&stream, &script, Dice(seed | 1));
                return Ok(true);
            }
            drop(stream);
            drop(parents);
            continue;
        }
        let script = Arc::clone(&script);
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        thread.spawn(move || play(&stream, &script, Dice(seed | 1))).context("no thread")?;
    }
}

/// Errors are nginx's going away, which is its right.
fn play(stream: &TcpStream, script: &Script, dice: Dice) {
    let _ = stream.set_nodelay(true);
    let mut player = Player { stream, dice, length: 0 };
    while player.once(script).is_ok_and(|again| again) {}
}

/// xorshift64.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The low bits of a young state are not random enough for small moduli.
        self.0 >> 16
    }
}

struct Player<'a> {
    stream: &'a TcpStream,
    dice: Dice,
    /// `Content-Length` of the last head.
    length: usize,
}

impl Player<'_> {
    /// One request; true if the script wants another.
    fn once(&mut self, script: &Script) -> io::Result<bool> {
        for step in script.choose(self.dice.roll()) {
            match step {
                Do::Read(what) => self.read(what)?,
                Do::Wait(time) => std::thread::sleep(*time),
                Do::Send(bytes) => self.stream.write_all(bytes)?,
                Do::Fill(byte, count) => self.stream.write_all(&vec![*byte; *count])?,
                Do::Fin => self.stream.shutdown(Shutdown::Write)?,
                Do::Reset => {
                    sys::reset_on_close(self.stream.as_raw_fd())?;
                    return Ok(false);
                }
                Do::Close => return Ok(false),
                Do::Stall => {
                    sys::until_hung_up(self.stream.as_raw_fd());
                    return Ok(false);
                }
                Do::Again => return Ok(true),
                Do::Exit(status) => sys::exit(*status),
                Do::Signal(signal) => sys::signal_self(*signal)?,
                Do::Eat => eat(),
                Do::Touch(file) => {
                    let draft = format!("{file}.draft");
                    std::fs::write(&draft, std::process::id().to_string())?;
                    std::fs::rename(draft, file)?;
                }
                Do::AwaitData => {
                    self.stream.peek(&mut [0])?;
                }
                Do::Await(file) => {
                    sys::poll_until(Duration::from_secs(300), || Path::new(file).exists());
                }
            }
        }
        Ok(false)
    }

    /// Takes exactly what is asked for: what is left unread is part of a case.
    fn read(&mut self, what: &What) -> io::Result<()> {
        match what {
            What::Head => {
                let head = self.until(b"\r\n\r\n")?;
                self.length = content_length(&head);
                Ok(())
            }
            What::Body => {
                let left = std::mem::take(&mut self.length);
                self.skip(left)
            }
            What::Bytes(count) => self.skip(*count),
            What::Line => self.until(b"\n").map(drop),
            What::FastCgi => loop {
                let mut head = [0; 8];
                self.stream.read_exact(&mut head)?;
                let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
                self.skip(length + usize::from(head[6]))?;
                if head[1] == 5 && length == 0 {
                    return Ok(());
                }
            },
            What::Uwsgi => {
                let mut head = [0; 4];
                self.stream.read_exact(&mut head)?;
                self.skip(usize::from(u16::from_le_bytes([head[1], head[2]])))
            }
            What::Scgi => {
                let head = self.until(b":")?;
                let digits = head.strip_suffix(b":").unwrap_or_default();
                let length: usize = String::from_utf8_lossy(digits).parse().map_err(io::Error::other)?;
                self.skip(length + 1)
            }
            What::Rest => {
                while sys::readable(self.stream.as_raw_fd(), Duration::from_millis(20)) {
                    if self.stream.read(&mut [0; 2048])? == 0 {
                        break;
                    }
                }
                Ok(())
            }
            What::All => {
                io::copy(&mut self.stream, &mut io::sink())?;
                Ok(())
            }
        }
    }

    fn skip(&mut self, count: usize) -> io::Result<()> {
        let count = count as u64;
        let got = io::copy(&mut self.stream.take(count), &mut io::sink())?;
        if got == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Everything up to and with `end`.
    fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut peeked = [0; 2048];
        loop {
            let there = self.stream.peek(&mut peeked)?;
            if there == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let before = all.len();
            all.extend_from_slice(&peeked[..there]);
            let from = before.saturating_sub(end.len() - 1);
            let found = all[from..].windows(end.len()).position(|window| window == end);
            let take = found.map_or(there, |at| from + at + end.len() - before);
            self.skip(take)?;
            all.truncate(before + take);
            if found.is_some() {
                return Ok(all);
            }
        }
    }
}

/// 0 if there is none.
fn content_length(head: &[u8]) -> usize {
    let text = String::from_utf8_lossy(head);
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    value.unwrap_or(0)
}

fn eat() -> ! {
    let mut eaten = Vec::new();
    loop {
        // Not zero, so that the pages are real.
        eaten.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client reads of a backend that plays `text`, and what stayed unread of `sent`.
    fn played(text: &str, sent: &[u8]) -> (Vec<u8>, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let script = script::parse(text).unwrap();
        play(&stream, &script, Dice(7));
        let mut left = Vec::new();
        (&stream).read_to_end(&mut left).unwrap();
        drop(stream);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        (got, left.len())
    }

    #[test]
    fn what_is_read_and_what_is_left() {
        let post = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdREST";
        for (script, sent, left) in [
            ("read head\nread body\nclose", &post[..], 4),
            ("read head", post, 8),
            ("read 10", post, post.len() - 10),
            ("read line", post, post.len() - 17),
            ("read fastcgi", b"\x01\x04\0\x01\0\x02\x01\0ab.\x01\x05\0\x01\0\0\0\0more", 4),
            ("read uwsgi", b"\x00\x03\x00\x00abcxx", 2),
            ("read scgi", b"3:abc,zz", 2),
            ("read all", post, 0),
        ] {
            assert_eq!(played(script, sent).1, left, "{script}");
        }
    }

    #[test]
    fn a_head_longer_than_one_look() {
        let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
        // The end lies across the border of two looks.
        long.extend(vec![b'y'; 2046 - long.len()]);
        long.extend(b"\r\n\r\nz");
        assert_eq!(played("read head", &long).1, 1);
    }

    #[test]
    fn requests_one_after_the_other() {
        let two = b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        let (got, left) = played("read head\nsend x\nagain", two);
        assert_eq!((got.as_slice(), left), (&b"xx"[..], 0));
    }
}

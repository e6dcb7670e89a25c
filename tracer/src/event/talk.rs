//! What happened on a connection that stood, and who died at its far end.

use std::net::SocketAddr;

use bytes::Bytes;
use tracer_ebpf::{
    self as wire, kind,
    talk::{self, Broken, talk_flag},
};

use super::{
    Attempt, DecodeError, Event, UnixName, attempt, ip, read,
    redact::redact,
    unix::{self, FarEnd},
};

/// How nginx learned that the stream had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Told {
    /// A read returned 0.
    End,
    /// A read or a write failed with this errno (positive).
    Error(i32),
}

/// One exchange on a connection that stood: the one that was at work when it ended. Times are CLOCK_MONOTONIC ns, `None`
/// for what did not happen (or, without [`Talk::watched`], was not seen).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "one independent fact each")]
pub struct Talk {
    /// nginx's reads and writes of this connection were seen.
    pub watched: bool,
    /// The connection was older than why502: earlier exchanges are unknown.
    pub found: bool,
    /// This exchange began before why502: its first bytes, and how many were written and read until then, are unknown. Without
    /// [`Talk::sent_ns`] it is not even known whether there is one.
    pub before: bool,
    /// nginx itself has told its log of an error of this connection.
    pub said_error: bool,
    /// Exchanges begun on the connection, this one included; with [`Talk::found`] those since why502.
    pub requests: u32,
    /// How long the connection had been idle when this exchange began, microseconds; `None` for the first.
    pub idle_us: Option<u64>,
    /// First write.
    pub sent_ns: Option<u64>,
    /// Last write.
    pub last_sent_ns: Option<u64>,
    /// First read of the response.
    pub first_read_ns: Option<u64>,
    /// Last one.
    pub read_ns: Option<u64>,
    /// Arrival of the peer's FIN.
    pub fin_ns: Option<u64>,
    /// nginx learned of the end.
    pub told_ns: Option<u64>,
    /// What it was told.
    pub told: Option<Told>,
    /// nginx read the end of the stream.
    pub eof: bool,
    /// Bytes written in this exchange.
    pub sent_bytes: u32,
    /// Bytes of the response that nginx has read.
    pub got_bytes: u32,
    /// Bytes written that the peer's stack had not acknowledged at the end.
    pub unacked: u32,
    /// Bytes that had arrived and that nginx did not read.
    pub unread: u32,
    /// Segments sent again in the connection's life.
    pub total_retrans: u32,
    /// Smoothed round-trip time, microseconds; 0 unknown.
    pub srtt_us: u32,
    /// Status of the response, if the kernel side read one.
    pub status: Option<u16>,
    /// TLS alert that nginx sent in the clear: level, description.
    pub alert_sent: Option<(u8, u8)>,
    /// TLS alert that the server sent in the clear: level, description.
    pub alert_received: Option<(u8, u8)>,
    /// What nginx wrote last, after its last read, is a TLS alert: its close_notify, as a rule.
    pub said_bye: bool,
    /// nginx spoke TLS.
    pub tls: bool,
    /// More than a handshake was written through TLS.
    pub tls_data: bool,
    /// A chunked body, or a FastCGI request, had ended: the last bytes read say so.
    pub last_chunk: bool,
    /// nginx had read the whole header, and so had begun to answer its client with it.
    pub passed_on: bool,
    /// The status with which nginx had begun to answer its client with what it read: in older recordings alone.
    pub answered: Option<u16>,
    /// nginx was asked as the connection ended.
    #[serde(default)]
    pub asked: bool,
    /// The response was whole, by what the kernel side looks at.
    pub whole: bool,
    /// The record was made as the response began, since its status is 5xx; the connection may go on.
    pub said_5xx: bool,
    /// nginx has noted 502 or 504 of its own although the response seemed whole to the kernel side.
    pub answered_bad: bool,
    /// The first 8 bytes written; zeroes if none were, or are not told (`--no-payload`).
    #[serde(with = "crate::plain::bytes")]
    pub first: [u8; 8],
    /// The first bytes written, at most [`talk::SENT`]. Empty for TLS, and with `--no-payload`.
    #[serde(with = "crate::plain::bytes")]
    pub request: Bytes,
    /// The first bytes read, at most [`talk::GOT`]. Empty with `--no-payload`.
    #[serde(with = "crate::plain::bytes")]
    pub response: Bytes,
    /// [`Talk::response`] is missing though bytes were read: its place was driven out, or they are not told.
    pub response_lost: bool,
    /// The far end of a unix socket, as nginx closed its own; `None` for TCP, and where that was not seen.
    pub far: Option<FarEnd>,
}

/// A process that closed the far end of a watched connection: as it ended, because of a signal, or before it had sent
/// as much as an answer takes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Death {
    /// The process, in the initial PID namespace.
    pub pid: u32,
    /// When its end was closed, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// The watched connection's socket; 0 if only its addresses are known.
    #[serde(skip)]
    pub socket: u64,
    /// Network namespace of the closed socket (inode); 0 unknown.
    pub netns: u32,
    /// Bytes that it had received and not read.
    pub unread: u32,
    /// nginx's address.
    pub local: SocketAddr,
    /// The far end's.
    pub remote: SocketAddr,
    /// It was ending: the kernel closed what it left open. Else it made the close itself.
    pub ending: bool,
    /// Exit status, if it exited.
    pub status: Option<u8>,
    /// Signal that ended it.
    pub signal: Option<u8>,
    /// It left a core dump.
    pub core: bool,
    /// Its parent.
    pub parent: u32,
    /// The last fatal signal that it was sent in its life, as far as seen.
    pub sent: Option<Sent>,
    /// When the process began, CLOCK_MONOTONIC ns.
    pub start_ns: u64,
    /// When a child of it ended last, CLOCK_MONOTONIC ns; `None` if none did of late.
    pub child_ended_ns: Option<u64>,
    /// The OOM killer chose it.
    pub oom: bool,
    /// Its name (`comm`), escaped for a terminal.
    pub comm: String,
}

/// A signal that ends a process unless it sees to it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sent {
    /// Its number (signal(7)).
    pub signal: u8,
    /// Who sent it: process and name; `None` for the kernel.
    pub sender: Option<(u32, String)>,
    /// When, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
}

fn begin(bytes: &[u8], len: u16) -> Bytes {
    Bytes::copy_from_slice(bytes.get(..usize::from(len)).unwrap_or(bytes))
}

/// The first bytes of one direction, without secrets.
fn said(bytes: &[u8], len: u16, is_request: bool) -> Bytes {
    let mut kept = bytes.get(..usize::from(len)).unwrap_or(bytes).to_vec();
    redact(&mut kept, is_request);
    kept.into()
}

/// Reads a [`Broken`].
pub(super) fn broken(record: &[u8]) -> Result<Event, DecodeError> {
    let broken = read::<Broken>(record, kind::TALK)?;
    let mut head = [0_u8; size_of::<wire::Attempt>()];
    if let Some(to) = head.get_mut(..wire::ATTEMPT_HEAD)
        && let Some(from) = record.get(..wire::ATTEMPT_HEAD)
    {
        to.copy_from_slice(from);
    }
    let mut head = read::<wire::Attempt>(&head, kind::TALK)?;
    // No evidence follows.
    head.flags &=
        !(wire::flag::DROP | wire::flag::ICMP | wire::flag::LISTEN_OVERFLOW | wire::flag::NO_SOCKET);
    let Event::Attempt(mut attempt) = attempt(&head)? else {
        return Err(DecodeError::Kind(kind::TALK));
    };
    let flags = broken.talk.flags;
    if flags & talk_flag::UNIX != 0 {
        let name = begin(&broken.name, broken.name_len.min(wire::unix::NAME as u16));
        let remote = attempt.local;
        *attempt = Attempt { unix: Some(UnixName::of(&name)), no_remote: true, remote, ..*attempt };
    }
    let far = unix::far(&broken.talk, &head.daddr);
    attempt.noted = (broken.talk.answered != 0).then_some(broken.talk.answered);
    attempt.talk = Some(Box::new(Talk { far, ..talk_of(&broken) }));
    Ok(Event::Attempt(attempt))
}

fn talk_of(b: &Broken) -> Talk {
    let t = &b.talk;
    let has = |bit: u32| t.flags & bit != 0;
    let (found, before) = (has(talk_flag::FOUND), has(talk_flag::BEFORE));
    let at = |ns: u64| (ns != 0).then_some(ns);
    let response = said(&b.got, b.got_len, false);
    Talk {
        watched: has(talk_flag::WATCHED),
        found,
        before,
        said_error: has(talk_flag::SAID_ERROR),
        requests: t.requests,
        idle_us: (t.requests > 1 || (found && !before && t.idle_us != 0)).then_some(u64::from(t.idle_us)),
        sent_ns: at(t.sent_ns),
        last_sent_ns: at(t.last_sent_ns),
        first_read_ns: at(t.first_read_ns),
        read_ns: at(t.read_ns),
        fin_ns: at(t.fin_ns),
        told_ns: at(t.told_ns),
        told: (t.told_ns != 0).then(|| match t.told {
            0 => Told::End,
            error => Told::Error(error.saturating_neg()),
        }),
        eof: has(talk_flag::EOF),
        sent_bytes: b.sent_bytes,
        got_bytes: b.got_bytes,
        unacked: b.unacked,
        unread: b.unread,
        total_retrans: b.total_retrans,
        srtt_us: b.srtt_us,
        status: (t.status != 0).then_some(t.status),
        alert_sent: (t.alert != 0).then(|| {
            let [level, description] = t.alert.to_be_bytes();
            (level, description)
        }),
        alert_received: (t.server_alert != 0).then(|| {
            let [level, description] = t.server_alert.to_be_bytes();
            (level, description)
        }),
        said_bye: has(talk_flag::TLS_BYE),
        tls: has(talk_flag::TLS),
        tls_data: has(talk_flag::TLS_DATA),
        last_chunk: has(talk_flag::LAST_CHUNK) || has(talk_flag::END_REQUEST),
        passed_on: has(talk_flag::HEADER),
        answered: None,
        asked: has(talk_flag::ASKED),
        whole: has(talk_flag::WHOLE),
        said_5xx: has(talk_flag::SAID_5XX) || has(talk_flag::SAID_5XX_LATE),
        answered_bad: has(talk_flag::ANSWERED_BAD),
        first: t.first.to_ne_bytes(),
        request: said(&b.sent, b.sent_len, true),
        response_lost: response.is_empty() && b.got_bytes > 0,
        response,
        far: None,
    }
}

/// Reads a [`talk::Death`].
pub(super) fn death(d: &talk::Death) -> Death {
    const RUNNING: u32 = u32::MAX;
    let name = |comm: &[u8]| {
        let text = comm.split(|byte| *byte == 0).next().unwrap_or_default();
        text.escape_ascii().to_string()
    };
    let ending = d.exit_code != RUNNING;
    let [low, status, ..] = d.exit_code.to_le_bytes();
    let signal = (ending && low & 0x7f != 0).then_some(low & 0x7f);
    // What was sent to an earlier process of that number is none of it.
    let sent = u8::try_from(d.signal).ok().filter(|number| *number != 0 && d.signal_ns >= d.start_ns).map(
        |number| Sent {
            signal: number,
            sender: (d.sender != 0).then(|| (d.sender, name(&d.sender_comm))),
            time_ns: d.signal_ns,
        },
    );
    Death {
        pid: d.tgid,
        time_ns: d.time_ns,
        socket: d.sk,
        netns: d.netns,
        unread: d.unread,
        local: SocketAddr::new(ip(&d.saddr), d.sport),
        remote: SocketAddr::new(ip(&d.daddr), d.dport),
        ending,
        status: (ending && signal.is_none()).then_some(status),
        signal,
        core: ending && low & 0x80 != 0,
        parent: d.parent,
        oom: d.oom != 0 && sent.is_some(),
        sent,
        start_ns: d.start_ns,
        // What a child of an earlier process of that number did is none of it.
        child_ended_ns: (d.child_ns > d.start_ns).then_some(d.child_ns),
        comm: name(&d.comm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(exit_code: u32, signal: u32, sender: u32) -> talk::Death {
        let mut comm = [0; 16];
        comm[..5].copy_from_slice(b"go\x1bn\0");
        talk::Death {
            kind: kind::DEATH,
            tgid: 7,
            time_ns: 9_000,
            sk: 0,
            saddr: [0; 16],
            daddr: [0; 16],
            sport: 45_678,
            dport: 3000,
            exit_code,
            parent: 5,
            sender,
            signal_ns: 8_000,
            start_ns: 1_000,
            oom: 0,
            signal,
            comm,
            sender_comm: comm,
            netns: 1,
            unread: 0,
            child_ns: 0,
        }
    }

    #[test]
    fn how_a_process_ended() {
        for (name, code, signal, expect) in [
            ("exit(3)", 0x300, 0, (true, Some(3), None, false)),
            ("exit(0)", 0, 15, (true, Some(0), None, false)),
            ("SIGKILL", 9, 9, (true, None, Some(9), false)),
            ("SIGSEGV with a core dump", 0x8b, 0, (true, None, Some(11), true)),
            ("it runs", u32::MAX, 6, (false, None, None, false)),
        ] {
            let death = death(&wire(code, signal, 5));
            assert_eq!((death.ending, death.status, death.signal, death.core), expect, "{name}");
            assert_eq!(
                death.sent.as_ref().map(|s| u32::from(s.signal)),
                (signal != 0).then_some(signal),
                "{name}"
            );
        }
    }

    #[test]
    fn a_signal_belongs_to_the_life_of_its_process() {
        let mut one = wire(9, 9, 5);
        one.start_ns = 8_500;
        one.oom = 1;
        let old = death(&one);
        assert_eq!((old.sent, old.oom), (None, false));
        assert_eq!(old.comm, "go\\x1bn", "names are escaped");
        let kernel = death(&wire(9, 9, 0)).sent.unwrap();
        assert_eq!((kernel.signal, kernel.sender), (9, None));
        assert_eq!(death(&wire(9, 900, 5)).sent, None, "no such signal");
    }
}

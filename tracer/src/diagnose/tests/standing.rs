//! Connections that stood: a builder for tables, and a thrower of all that can be said of one, sensible or not.

use bytes::Bytes;

use super::{generate::Dice, *};
use crate::{
    correlate::backend::{Backend, Far, Holder, Socket, Threads},
    event::{
        Death, Sent, Talk, Told,
        said::{During, Fault, Said},
    },
};

pub(super) const START: u64 = 5_000_000_000;
/// The request is written.
pub(super) const SENT: u64 = START + 1_000_000;
pub(super) const MS: u64 = 1_000_000;
const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
pub(super) const PYTHON: u32 = 4121;

/// A new connection that stood, over which a GET was sent whose bytes are acknowledged; nginx closed it 40 ms later. Its
/// time-outs are 1 s for reads and 2 s for writes.
pub(super) fn stood(remote: &str) -> Build {
    attempt(Stage::Established, remote).timeout_ms(1000).edit(|c| {
        c.attempt.app_closed = true;
        c.attempt.end_ns = SENT + 40 * MS;
        c.attempt.talk = Some(Box::new(Talk {
            watched: true,
            requests: 1,
            sent_ns: Some(SENT),
            last_sent_ns: Some(SENT),
            sent_bytes: u32::try_from(GET.len()).unwrap(),
            srtt_us: 60,
            request: Bytes::from_static(GET),
            first: *b"GET /a H",
            ..Talk::default()
        }));
        let line = |line, text: &str| {
            Some(ConfigLine {
                role: Role::Directive,
                file: "/etc/nginx/conf.d/shop.conf".into(),
                line,
                text: text.to_owned(),
            })
        };
        let candidate = &mut c.config[0];
        candidate.settings = InForces::default()
            .with("read_timeout", "proxy_read_timeout", "1s", line(20, "proxy_read_timeout 1s;"))
            .with("send_timeout", "proxy_send_timeout", "2s", line(21, "proxy_send_timeout 2s;"))
            .with("next_upstream", "proxy_next_upstream", "error timeout", None)
            .with("keepalive_timeout", "keepalive_timeout", "60s", line(7, "keepalive_timeout 60s;"));
        c.facts.backend.here = Some(remote == NEAR);
    })
}

impl Build {
    pub(super) fn talk(self, f: impl FnOnce(&mut Talk)) -> Self {
        self.edit(|c| f(c.attempt.talk.as_mut().unwrap()))
    }

    /// The connection ended so long after the request.
    pub(super) fn ends_ms(self, ms: u64) -> Self {
        self.edit(|c| c.attempt.end_ns = SENT + ms * MS)
    }

    /// The far end's FIN came at this time, and nginx read it.
    pub(super) fn fin(self, at: u64) -> Self {
        self.talk(|t| {
            t.fin_ns = Some(at);
            t.told_ns = Some(at.max(SENT) + 1000);
            (t.told, t.eof) = (Some(Told::End), true);
        })
    }

    /// A RST came then.
    pub(super) fn rst(self, at: u64) -> Self {
        self.edit(|c| (c.attempt.reset, c.attempt.reset_ns) = (true, at)).talk(|t| {
            t.told_ns = Some(at.max(SENT) + 1000);
            t.told = Some(Told::Error(libc::ECONNRESET));
        })
    }

    /// The connection had served requests before.
    pub(super) fn kept(self, idle_us: u64) -> Self {
        self.talk(|t| (t.requests, t.idle_us) = (7, Some(idle_us)))
    }

    /// So much of a response came then.
    pub(super) fn got(self, at: u64, bytes: &'static [u8]) -> Self {
        self.talk(|t| {
            t.first_read_ns.get_or_insert(at);
            t.read_ns = Some(at);
            t.got_bytes = u32::try_from(bytes.len()).unwrap();
            t.response = Bytes::from_static(bytes);
        })
    }

    /// A process closed the far end then.
    pub(super) fn closer(self, at: u64, gone: bool, f: impl FnOnce(&mut Death)) -> Self {
        self.edit(|c| {
            let mut death = Death {
                pid: PYTHON,
                time_ns: at,
                socket: 0,
                netns: OWN,
                unread: 0,
                local: c.attempt.local,
                remote: c.attempt.remote,
                ending: false,
                status: None,
                signal: None,
                core: false,
                parent: 4000,
                sent: None,
                start_ns: 1,
                child_ended_ns: None,
                oom: false,
                comm: "gunicorn".to_owned(),
            };
            f(&mut death);
            c.facts.backend.death = Some(death);
            (c.facts.backend.gone, c.facts.backend.looked_us) = (Some(gone), 120_000);
        })
    }

    /// The far end's socket as it was found.
    pub(super) fn far(self, accepted: bool, unread: u32) -> Self {
        self.edit(|c| {
            let b = &mut c.facts.backend;
            b.socket = Some(Far::Some(Socket { accepted, closed: false, unread, unsent: 0 }));
            b.looked_us = 90_000;
            b.holder = accepted.then(|| Holder {
                name: "python3 (pid 4121)".to_owned(),
                threads: Threads {
                    sleeping: 1,
                    waits_in: Some("hrtimer_nanosleep".to_owned()),
                    ..Threads::default()
                },
            });
        })
    }

    pub(super) fn saw(self, status: u16) -> Self {
        self.edit(|c| (c.client_saw, c.attempt.number) = (Some(status), Some(1)))
    }
}

pub(super) fn sent(signal: i32, from: u32, at: u64) -> Option<Sent> {
    Some(Sent {
        signal: u8::try_from(signal).unwrap(),
        sender: Some((from, "gunicorn".to_owned())),
        time_ns: at,
    })
}

/// Throws an exchange and its far end.
pub(super) fn throw(case: &mut Case, dice: &mut Dice) {
    const RESPONSES: [&[u8]; 8] = [
        b"",
        b"HTT",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x16\x03\x03\x00\x2c\x02\x00\x00\x28\x03\x03",
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    ];
    let thrown = stood(&case.attempt.remote.to_string());
    let near = dice.pick(&[SENT - 5000, SENT + 20_000, SENT + 700_000, SENT + 30 * MS]);
    let mut build = thrown.ends_ms(dice.pick(&[1, 40, 690, 1001, 1400, 2001, 60_000]));
    if dice.one_in(3) {
        build = build.fin(near);
    }
    if dice.one_in(3) {
        build = build.kept(dice.pick(&[1, 5_000_000]));
    }
    let response = dice.pick(&RESPONSES);
    if dice.one_in(2) && !response.is_empty() {
        build = build.got(near, response);
    }
    if dice.one_in(3) {
        let (gone, ending) = (dice.one_in(2), dice.one_in(2));
        let sent =
            if dice.one_in(2) { sent(libc::SIGABRT, dice.pick(&[4000, PYTHON, 1]), SENT) } else { None };
        build = build.closer(near - 2000, gone, |d| {
            (d.ending, d.status, d.sent) = (ending, ending.then_some(3), sent);
        });
    }
    if dice.one_in(3) {
        build = build.far(dice.one_in(2), dice.pick(&[0, 18]));
    }
    build.0.config[0].settings = std::mem::take(&mut build.0.config[0].settings)
        .with("connect_timeout", "proxy_connect_timeout", "1s", None)
        .with("ssl_verify", "proxy_ssl_verify", "on", None)
        .with("buffer_size", "proxy_buffer_size", "37", None);
    let seed = build.0;
    let mut talk = seed.attempt.talk.unwrap();
    talk.watched = case.reach.talk;
    talk.unacked = dice.pick(&[0, 0, 31, 90_000]);
    talk.sent_bytes = dice.pick(&[0, 31, 31, 90_000]);
    talk.found = dice.one_in(4);
    talk.before = talk.found && dice.one_in(2);
    talk.said_error = dice.one_in(8);
    if dice.one_in(6) {
        let fault =
            dice.pick(&[Fault::ClosedEarly, Fault::TimedOut, Fault::TooBig, Fault::Invalid, Fault::NoHeader]);
        let during =
            dice.pick(&[During::Handshake, During::Request, During::Header, During::Body, During::Unknown]);
        case.facts.said = Some(dice.pick(&[Said::Broken { fault, during }, Said::Nothing, Said::Other]));
    }
    talk.tls = dice.one_in(4);
    talk.tls_data = talk.tls && dice.one_in(2);
    if talk.tls {
        // A ClientHello, and what may follow it.
        talk.first = [22, 3, 1, 0, 26, 1, 0, 0];
        talk.sent_bytes = 31 + talk.sent_bytes.min(80);
    }
    talk.whole = dice.one_in(8);
    talk.said_5xx = dice.one_in(10);
    talk.answered_bad = dice.one_in(10);
    if dice.one_in(4) {
        talk.request = Bytes::new();
    }
    if dice.one_in(8) {
        (talk.sent_ns, talk.last_sent_ns) = (None, None);
    }
    case.attempt.end_ns = seed.attempt.end_ns;
    case.attempt.reset_ns = if case.attempt.reset { near } else { 0 };
    case.attempt.talk = Some(talk);
    case.config = if case.config.is_empty() { Vec::new() } else { seed.config };
    *case.facts.backend =
        Backend { here: dice.pick(&[None, Some(true), Some(false)]), ..*seed.facts.backend };
}

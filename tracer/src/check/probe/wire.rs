//! What a check and its helper say to each other: lines of text, read without trust in either direction.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::event::Icmp;

/// Where a connection is to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Where {
    /// By TCP.
    Tcp(SocketAddr),
    /// To a unix socket, by the path that nginx uses.
    Unix(Vec<u8>),
}

/// A TLS handshake to make once the connection stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct TlsAsk {
    /// The name in the ClientHello (SNI); none is sent without it.
    pub name: Option<String>,
    /// ALPN offers `h2`.
    pub h2: bool,
    /// TLS 1.2 alone is offered, as an nginx does that knows, or allows, no later one.
    pub only_12: bool,
}

/// What a name server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// The name; `.` is the root.
    pub name: String,
    /// The kind of record, as a number (RFC 1035, 3.2.2).
    pub kind: u16,
}

/// One connection to try.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ask {
    /// Where to.
    pub to: Where,
    /// `proxy_bind`.
    pub from: Option<IpAddr>,
    /// What to say then; None: the connection is closed at once.
    pub tls: Option<TlsAsk>,
    /// What to ask there by UDP, instead of a connection.
    pub question: Option<Question>,
}

/// What the helper is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The process whose place it takes.
    pub worker: u32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities that are left to it, as in /proc/PID/status.
    pub capabilities: u64,
    /// AppArmor profile to change to.
    pub profile: Option<String>,
    /// Folder of the cgroup to go to.
    pub cgroup: Option<PathBuf>,
    /// For each connection, and again for each handshake.
    pub timeout: Duration,
    /// For all.
    pub total: Duration,
    /// Most sockets that are open at once.
    pub parallel: usize,
    /// The connections, by number.
    pub asks: Vec<Ask>,
}

/// Which system call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// socket().
    Socket,
    /// bind().
    Bind,
    /// connect(), at once.
    Connect,
    /// What connect() had begun.
    Later,
}

/// How a connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It stood.
    Connected,
    /// The errno.
    Failed(Call, i32),
    /// Nothing came in time.
    TimedOut,
    /// There was no time left to begin it.
    NotTried,
}

/// How a handshake went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsOutcome {
    /// It was completed.
    Done {
        /// The protocol that ALPN chose.
        alpn: Option<Vec<u8>>,
        /// `TLSv1.3`.
        version: String,
    },
    /// The server sent an alert: its number (RFC 8446, 6).
    Alert(u8),
    /// What came is no TLS: its first bytes.
    NotTls(Vec<u8>),
    /// The server closed, or reset (errno), before anything came.
    Closed(Option<i32>),
    /// It failed otherwise; the reason in words.
    Failed(String),
    /// Nothing came in time.
    TimedOut,
}

/// A handshake's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsAnswer {
    /// How it went.
    pub outcome: TlsOutcome,
    /// The server's certificates as they came (DER), its own first.
    pub chain: Vec<Vec<u8>>,
    /// From the first byte to the end, microseconds.
    pub us: u64,
}

/// What came of one [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub outcome: Outcome,
    /// From connect() to its end, microseconds.
    pub us: u64,
    /// The address that the kernel chose.
    pub local: Option<SocketAddr>,
    /// SYNs that were sent again.
    pub retransmits: u32,
    /// An ICMP error that came for it.
    pub icmp: Option<Icmp>,
    /// The handshake.
    pub tls: Option<TlsAnswer>,
    /// What the name server sent, its beginning.
    pub reply: Option<Vec<u8>>,
}

impl Answer {
    /// Of a connection that was not tried.
    pub const NONE: Self = Self {
        outcome: Outcome::NotTried,
        us: 0,
        local: None,
        retransmits: 0,
        icmp: None,
        tls: None,
        reply: None,
    };
}

/// One line of the helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It could not take the worker's place: at what, and the errno.
    Stuck(String, i32),
    /// What came of the connection of that number.
    Answer(usize, Box<Answer>),
    /// It has ended; how many sockets were open at once at most.
    End(usize),
}

/// Most connections of one plan.
pub(super) const MOST: usize = 65_536;
/// A certificate chain is no longer than this, bytes.
pub(super) const MOST_CHAIN: usize = 64 << 10;

/// Hexadecimal; an empty text is a dash, so that every field is a word.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text == "-" {
        return Some(Vec::new());
    }
    if text.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn unhex_text(text: &str) -> Option<String> {
    String::from_utf8(unhex(text)?).ok()
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A dash is none.
fn optional<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
    if word == "-" { Some(None) } else { word.parse().ok().map(Some) }
}

impl Plan {
    /// As the helper reads it.
    #[must_use]
    pub fn write(&self) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let mut text = format!(
            "plan {} {} {} {:x} {} {} {} {} {} {}\n",
            self.worker,
            self.uid,
            self.gid,
            self.capabilities,
            if groups.is_empty() { "-".to_owned() } else { groups.join(",") },
            hex(self.profile.as_deref().unwrap_or_default().as_bytes()),
            hex(self.cgroup.as_ref().map_or(&[][..], |path| path.as_os_str().as_bytes())),
            self.timeout.as_millis(),
            self.total.as_millis(),
            self.parallel,
        );
        for ask in self.asks.iter().take(MOST) {
            let to = match &ask.to {
                Where::Tcp(address) => format!("tcp {address}"),
                Where::Unix(path) => format!("unix {}", hex(path)),
            };
            let tls = match &ask.tls {
                None => "plain any -".to_owned(),
                Some(tls) => format!(
                    "{} {} {}",
                    if tls.h2 { "h2" } else { "tls" },
                    if tls.only_12 { "12" } else { "any" },
                    hex(tls.name.as_deref().unwrap_or_default().as_bytes())
                ),
            };
            let question = ask.question.as_ref().map(|q| format!("{},{}", q.kind, hex(q.name.as_bytes())));
            text.push_str(&format!("{to} {} {tls} {}\n", or_dash(ask.from), or_dash(question)));
        }
        text
    }

    /// Reads it; None if anything is odd.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        use std::os::unix::ffi::OsStringExt as _;
        let mut lines = text.lines();
        let mut words = lines.next()?.strip_prefix("plan ")?.split(' ');
        let mut word = || words.next();
        let mut plan = Self {
            worker: word()?.parse().ok()?,
            uid: word()?.parse().ok()?,
            gid: word()?.parse().ok()?,
            capabilities: u64::from_str_radix(word()?, 16).ok()?,
            groups: match word()? {
                "-" => Vec::new(),
                list => list.split(',').map(|group| group.parse().ok()).collect::<Option<_>>()?,
            },
            profile: Some(unhex_text(word()?)?).filter(|name| !name.is_empty()),
            cgroup: Some(unhex(word()?)?)
                .filter(|path| !path.is_empty())
                .map(|path| PathBuf::from(std::ffi::OsString::from_vec(path))),
            timeout: Duration::from_millis(word()?.parse().ok()?),
            total: Duration::from_millis(word()?.parse().ok()?),
            parallel: word()?.parse().ok()?,
            asks: Vec::new(),
        };
        plan.asks = lines.map(read_ask).collect::<Option<_>>()?;
        (plan.asks.len() <= MOST && plan.parallel > 0).then_some(plan)
    }
}

fn read_ask(line: &str) -> Option<Ask> {
    let mut words = line.split(' ');
    let to = match words.next()? {
        "tcp" => Where::Tcp(words.next()?.parse().ok()?),
        "unix" => Where::Unix(unhex(words.next()?)?),
        _ => return None,
    };
    let from = optional(words.next()?)?;
    let kind = words.next()?;
    let only_12 = words.next()? == "12";
    let name = Some(unhex_text(words.next()?)?).filter(|name| !name.is_empty());
    let tls = match kind {
        "plain" => None,
        "tls" | "h2" => Some(TlsAsk { name, h2: kind == "h2", only_12 }),
        _ => return None,
    };
    let question = match words.next()? {
        "-" => None,
        question => {
            let (kind, name) = question.split_once(',')?;
            Some(Question { kind: kind.parse().ok()?, name: unhex_text(name)? })
        }
    };
    Some(Ask { to, from, tls, question })
}

impl Said {
    /// As the check reads it.
    #[must_use]
    pub(super) fn write(&self) -> String {
        match self {
            Said::Stuck(at, errno) => format!("stuck {errno} {}\n", hex(at.as_bytes())),
            Said::End(most) => format!("end {most}\n"),
            Said::Answer(number, answer) => {
                let (how, errno) = match answer.outcome {
                    Outcome::Connected => ("connected", 0),
                    Outcome::TimedOut => ("late", 0),
                    Outcome::NotTried => ("skipped", 0),
                    Outcome::Failed(Call::Socket, errno) => ("socket", errno),
                    Outcome::Failed(Call::Bind, errno) => ("bind", errno),
                    Outcome::Failed(Call::Connect, errno) => ("connect", errno),
                    Outcome::Failed(Call::Later, errno) => ("later", errno),
                };
                let icmp = answer.icmp.map_or_else(
                    || "-".to_owned(),
                    |icmp| format!("{},{},{}", icmp.kind, icmp.code, icmp.sender),
                );
                let tls = answer.tls.as_ref().map_or_else(|| "-".to_owned(), write_tls);
                format!(
                    "answer {number} {how} {errno} {} {} {} {icmp} {tls} {}\n",
                    answer.us,
                    or_dash(answer.local),
                    answer.retransmits,
                    hex(answer.reply.as_deref().unwrap_or_default())
                )
            }
        }
    }

    /// Reads a line; None if it is none of these.
    #[must_use]
    pub(super) fn read(line: &str) -> Option<Self> {
        let mut words = line.trim_end_matches('\n').split(' ');
        match words.next()? {
            "stuck" => {
                let errno = words.next()?.parse().ok()?;
                Some(Said::Stuck(unhex_text(words.next()?)?, errno))
            }
            "end" => Some(Said::End(words.next()?.parse().ok()?)),
            "answer" => {
                let number = words.next()?.parse().ok()?;
                let how = words.next()?;
                let errno = words.next()?.parse().ok()?;
                let outcome = match how {
                    "connected" => Outcome::Connected,
                    "late" => Outcome::TimedOut,
                    "skipped" => Outcome::NotTried,
                    "socket" => Outcome::Failed(Call::Socket, errno),
                    "bind" => Outcome::Failed(Call::Bind, errno),
                    "connect" => Outcome::Failed(Call::Connect, errno),
                    "later" => Outcome::Failed(Call::Later, errno),
                    _ => return None,
                };
                let us = words.next()?.parse().ok()?;
                let local = optional(words.next()?)?;
                let retransmits = words.next()?.parse().ok()?;
                let icmp = match words.next()? {
                    "-" => None,
                    icmp => Some(read_icmp(icmp)?),
                };
                let tls = match words.next()? {
                    "-" => None,
                    tls => Some(read_tls(tls)?),
                };
                let reply = Some(unhex(words.next()?)?).filter(|reply| !reply.is_empty());
                let answer = Answer { outcome, us, local, retransmits, icmp, tls, reply };
                Some(Said::Answer(number, Box::new(answer)))
            }
            _ => None,
        }
    }
}

fn read_icmp(text: &str) -> Option<Icmp> {
    let mut parts = text.split(',');
    Some(Icmp {
        kind: parts.next()?.parse().ok()?,
        code: parts.next()?.parse().ok()?,
        sender: parts.next()?.parse().ok()?,
    })
}

fn write_tls(tls: &TlsAnswer) -> String {
    let outcome = match &tls.outcome {
        TlsOutcome::Done { alpn, version } => {
            format!("done,{},{}", hex(alpn.as_deref().unwrap_or_default()), hex(version.as_bytes()))
        }
        TlsOutcome::Alert(number) => format!("alert,{number},-"),
        TlsOutcome::NotTls(bytes) => format!("plain,{},-", hex(bytes)),
        TlsOutcome::Closed(errno) => format!("closed,{},-", or_dash(*errno)),
        TlsOutcome::Failed(why) => format!("failed,{},-", hex(why.as_bytes())),
        TlsOutcome::TimedOut => "late,-,-".to_owned(),
    };
    let chain: Vec<String> = tls.chain.iter().map(|der| hex(der)).collect();
    format!("{outcome},{},{}", tls.us, chain.join(":"))
}

fn read_tls(text: &str) -> Option<TlsAnswer> {
    let mut parts = text.split(',');
    let (kind, first, second) = (parts.next()?, parts.next()?, parts.next()?);
    let outcome = match kind {
        "done" => TlsOutcome::Done {
            alpn: Some(unhex(first)?).filter(|name| !name.is_empty()),
            version: unhex_text(second)?,
        },
        "alert" => TlsOutcome::Alert(first.parse().ok()?),
        "plain" => TlsOutcome::NotTls(unhex(first)?),
        "closed" => TlsOutcome::Closed(optional(first)?),
        "failed" => TlsOutcome::Failed(unhex_text(first)?),
        "late" => TlsOutcome::TimedOut,
        _ => return None,
    };
    let us = parts.next()?.parse().ok()?;
    let chain = parts.next()?;
    let chain = match chain {
        "" => Vec::new(),
        list => list.split(':').map(unhex).collect::<Option<_>>()?,
    };
    Some(TlsAnswer { outcome, chain, us })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            worker: 7,
            uid: 33,
            gid: 33,
            groups: vec![33, 4],
            capabilities: 0x400,
            profile: Some("nginx worker".to_owned()),
            cgroup: Some(PathBuf::from("/sys/fs/cgroup/a b")),
            timeout: Duration::from_millis(1500),
            total: Duration::from_secs(30),
            parallel: 64,
            asks: vec![
                Ask {
                    to: Where::Tcp("127.0.0.1:80".parse().unwrap()),
                    from: None,
                    tls: None,
                    question: Some(Question { name: "a b.test".to_owned(), kind: 28 }),
                },
                Ask {
                    to: Where::Tcp("[fe80::1]:443".parse().unwrap()),
                    from: Some("10.0.0.1".parse().unwrap()),
                    tls: Some(TlsAsk { name: Some("a.example".to_owned()), h2: true, only_12: true }),
                    question: None,
                },
                Ask {
                    to: Where::Unix(b"/run/\xff a\n.sock".to_vec()),
                    from: None,
                    tls: Some(TlsAsk::default()),
                    question: None,
                },
            ],
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        assert_eq!(Plan::read(&plan().write()), Some(plan()));
        let bare = Plan { parallel: 1, ..Plan::default() };
        assert_eq!(Plan::read(&bare.write()), Some(bare));
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        let tls = |outcome| TlsAnswer { outcome, chain: vec![vec![0x30, 0], vec![1]], us: 9 };
        let outcomes = [
            TlsOutcome::Done { alpn: Some(b"h2".to_vec()), version: "TLSv1.3".to_owned() },
            TlsOutcome::Done { alpn: None, version: "TLSv1.2".to_owned() },
            TlsOutcome::Alert(40),
            TlsOutcome::NotTls(b"HTTP/1.1 400".to_vec()),
            TlsOutcome::Closed(Some(104)),
            TlsOutcome::Closed(None),
            TlsOutcome::Failed("a, b: c".to_owned()),
            TlsOutcome::TimedOut,
        ];
        let icmp = Some(Icmp { kind: 3, code: 13, sender: "::1".parse().unwrap() });
        for outcome in outcomes {
            let answer = Answer {
                outcome: Outcome::Connected,
                us: 38,
                local: Some("[::1]:4000".parse().unwrap()),
                retransmits: 2,
                icmp,
                tls: Some(tls(outcome)),
                reply: Some(vec![0, 255]),
            };
            let said = Said::Answer(3, Box::new(answer));
            assert_eq!(Said::read(&said.write()), Some(said));
        }
        for call in [Call::Socket, Call::Bind, Call::Connect, Call::Later] {
            let said =
                Said::Answer(0, Box::new(Answer { outcome: Outcome::Failed(call, 111), ..Answer::NONE }));
            assert_eq!(Said::read(&said.write()), Some(said));
        }
        for said in [Said::Stuck("enter its mounts".to_owned(), 1), Said::End(64)] {
            assert_eq!(Said::read(&said.write()), Some(said));
        }
    }

    #[test]
    fn odd_lines_are_refused() {
        let text = plan().write();
        // The last newline alone may be missing.
        for end in 0..text.trim_end().len() {
            // Whatever is cut off: no panic, and never another plan of the same length.
            if let Some(read) = text.get(..end).and_then(Plan::read) {
                assert_ne!(read, plan(), "{end}");
            }
        }
        for bad in [
            "",
            "answer",
            "answer 1 maybe 0 1 - 0 - -",
            "end x",
            "stuck 1 zz",
            "answer 1 late 0 1 - 0 - done,1 -",
            "answer 1 late 0 1 - 0 - -",
        ] {
            assert_eq!(Said::read(bad), None, "{bad}");
        }
        assert_eq!((unhex("f"), unhex("zz"), unhex("é")), (None, None, None));
    }
}

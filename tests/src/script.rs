//! What a scripted backend does with each connection: a small language, one step a line. Pure; `backend.rs` plays it.

use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;

/// How much is read, and of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    /// An HTTP head, up to its empty line.
    Head,
    /// What the `Content-Length` of the last head says.
    Body,
    /// So many bytes.
    Bytes(usize),
    /// Up to a line feed.
    Line,
    /// FastCGI records up to the empty STDIN.
    FastCgi,
    /// One uwsgi packet.
    Uwsgi,
    /// One SCGI netstring.
    Scgi,
    /// Up to the end of the stream.
    All,
    /// Whatever comes, until nothing has come for 20 ms.
    Rest,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Do {
    Read(Read),
    /// The fault itself: a backend that is slow.
    Wait(Duration),
    Send(Vec<u8>),
    /// One byte, so many times.
    Fill(u8, usize),
    /// Sends FIN and goes on.
    Fin,
    /// Ends the connection with RST.
    Reset,
    /// Ends it as close(2) does: with RST if unread bytes have arrived, else with FIN.
    Close,
    /// Keeps it and does nothing more while the other side keeps it, too.
    Stall,
    /// Begins anew with the next request.
    Again,
    Exit(i32),
    /// Sends itself a signal.
    Signal(i32),
    /// Takes memory until something ends it.
    Eat,
    /// Makes a file with its process number.
    Touch(String),
    /// Goes on when a file is there.
    Await(String),
    /// Goes on when bytes have arrived, and leaves them unread.
    AwaitData,
}

/// Steps that are played as often as their weight says, compared with the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) weight: u64,
    pub(crate) steps: Vec<Do>,
}

/// A whole script: at least one choice. Which one is drawn for each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) choices: Vec<Choice>,
}

impl Script {
    /// The choice at `dice` (any number).
    pub(crate) fn choose(&self, dice: u64) -> &[Do] {
        let mut at = dice % self.choices.iter().map(|choice| choice.weight).sum::<u64>().max(1);
        for choice in &self.choices {
            if at < choice.weight {
                return &choice.steps;
            }
            at -= choice.weight;
        }
        &[]
    }
}

/// Reads a script. `= N` begins a choice of that weight; what stands before the first one is a choice of its own.
pub(crate) fn parse(text: &str) -> Result<Script> {
    let mut choices: Vec<Choice> = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix('=') {
            let word = rest.split_whitespace().next().unwrap_or_default();
            let weight = word.parse().with_context(|| format!("`{line}`: a weight"))?;
            choices.push(Choice { weight, steps: Vec::new() });
            continue;
        }
        let steps = step(line).with_context(|| format!("script line `{line}`"))?;
        match choices.last_mut() {
            Some(choice) => choice.steps.extend(steps),
            None => choices.push(Choice { weight: 1, steps }),
        }
    }
    ensure!(choices.iter().any(|choice| choice.weight > 0), "an empty script");
    Ok(Script { choices })
}

fn step(line: &str) -> Result<Vec<Do>> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let number = || rest.trim().parse::<usize>().context("a number is needed");
    let file = || {
        ensure!(!rest.trim().is_empty(), "the name of a file is needed");
        Ok(rest.trim().to_owned())
    };
    Ok(vec![match word {
        "read" => Do::Read(match rest.trim() {
            "head" => Read::Head,
            "body" => Read::Body,
            "line" => Read::Line,
            "fastcgi" => Read::FastCgi,
            "uwsgi" => Read::Uwsgi,
            "scgi" => Read::Scgi,
            "all" => Read::All,
            "rest" => Read::Rest,
            _ => Read::Bytes(number()?),
        }),
        "wait" => Do::Wait(Duration::from_millis(u64::try_from(number()?)?)),
        "send" => Do::Send(unescape(rest)?),
        // `answer STATUS BODY`: whole, and the connection stays.
        "answer" => {
            let (status, body) = rest.split_once(' ').unwrap_or((rest, ""));
            let status: u16 = status.parse().context("a status is needed")?;
            let body = unescape(body)?;
            let mut reply = format!("HTTP/1.1 {status} Lab\r\nContent-Length: {}\r\n\r\n", body.len());
            reply.push_str(&String::from_utf8(body).context("an answer is text")?);
            Do::Send(reply.into_bytes())
        }
        "fcgi" => Do::Send(record(6, &unescape(rest)?)?),
        "fcgi-end" => Do::Send(record(3, &[0; 8])?),
        "fill" => Do::Fill(b'x', number()?),
        "fin" => Do::Fin,
        "rst" => Do::Reset,
        "close" => Do::Close,
        "stall" => Do::Stall,
        "again" => Do::Again,
        "exit" => Do::Exit(rest.trim().parse().context("a status is needed")?),
        "signal" => Do::Signal(match rest.trim() {
            "SEGV" => libc::SIGSEGV,
            "ABRT" => libc::SIGABRT,
            "KILL" => libc::SIGKILL,
            "TERM" => libc::SIGTERM,
            other => bail!("signal `{other}`: use SEGV, ABRT, KILL or TERM"),
        }),
        "eat" => Do::Eat,
        "touch" => Do::Touch(file()?),
        "await" => Do::Await(file()?),
        "await-data" => Do::AwaitData,
        other => bail!("no such step: `{other}`"),
    }])
}

/// A FastCGI record of request 1 (FastCGI specification, 3.3).
fn record(kind: u8, content: &[u8]) -> Result<Vec<u8>> {
    let [high, low] = u16::try_from(content.len()).context("a record holds 65535 bytes")?.to_be_bytes();
    let mut record = vec![1, kind, 0, 1, high, low, 0, 0];
    record.extend(content);
    Ok(record)
}

/// `\r`, `\n`, `\t`, `\\` and `\xNN`.
fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { bail!("\\x needs two digits") };
                u8::try_from(high * 16 + low)?
            }
            other => bail!("unknown escape \\{:?}", other.map(char::from)),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<Do> {
        parse(text).unwrap().choices.remove(0).steps
    }

    #[test]
    fn lines() {
        let text = "read head\n  # a word\nwait 20\nsend a b\\r\\n\\x00\\\\ \nfill 3\nfin\nrst\nexit 3\nsignal SEGV\ntouch got\n";
        assert_eq!(
            steps(text),
            [
                Do::Read(Read::Head),
                Do::Wait(Duration::from_millis(20)),
                Do::Send(b"a b\r\n\0\\ ".to_vec()),
                Do::Fill(b'x', 3),
                Do::Fin,
                Do::Reset,
                Do::Exit(3),
                Do::Signal(libc::SIGSEGV),
                Do::Touch("got".to_owned()),
            ]
        );
        assert_eq!(steps("read 12"), [Do::Read(Read::Bytes(12))]);
        assert_eq!(
            steps("answer 200 ok")[0],
            Do::Send(b"HTTP/1.1 200 Lab\r\nContent-Length: 2\r\n\r\nok".to_vec())
        );
        assert_eq!(steps("fcgi hi")[0], Do::Send(b"\x01\x06\0\x01\0\x02\0\0hi".to_vec()));
    }

    #[test]
    fn mistakes_are_named() {
        for bad in
            ["", "= 0", "dance", "send \\q", "send \\x1", "wait soon", "signal 9", "= x\nclose", "touch"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn choices_by_weight() {
        let script = parse("= 3 most\nfin\n= 1\nrst\n").unwrap();
        let fins = (0..8).filter(|dice| script.choose(*dice) == [Do::Fin]).count();
        assert_eq!((fins, script.choices.len()), (6, 2));
        assert_eq!(parse("read head\nclose").unwrap().choose(99).len(), 2);
    }
}

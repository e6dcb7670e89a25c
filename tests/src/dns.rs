//! A name server for the lab: it answers what the case says, by name, over UDP (RFC 1035).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys;
use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(50);
const TYPE_A: u16 = 1;

/// What is said to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say {
    /// A response code without records.
    Code(u8),
    /// An A record; other types get no record.
    Address(Ipv4Addr),
    Nothing,
}

/// Reads `NXDOMAIN`, `SERVFAIL`, `REFUSED`, `EMPTY`, `SILENT` or an IPv4 address.
pub(crate) fn say(text: &str) -> Result<Say> {
    Ok(match text {
        "EMPTY" => Say::Code(0),
        "SERVFAIL" => Say::Code(2),
        "NXDOMAIN" => Say::Code(3),
        "REFUSED" => Say::Code(5),
        "SILENT" => Say::Nothing,
        _ => match text.parse() {
            Ok(address) => Say::Address(address),
            Err(_) => {
                bail!("`{text}` is neither NXDOMAIN, SERVFAIL, REFUSED, EMPTY, SILENT nor an IPv4 address")
            }
        },
    })
}

/// Answers until told to stop. A name that is not listed does not exist.
pub(crate) fn serve(socket: &UdpSocket, names: &BTreeMap<String, Say>, stop: &AtomicBool) {
    let mut buffer = [0; 512];
    while !stop.load(Ordering::SeqCst) {
        if !sys::readable(socket.as_raw_fd(), POLL) {
            continue;
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(reply) = buffer.get(..length).and_then(|question| reply(question, names)) {
            // Nobody may listen any more.
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn reply(question: &[u8], names: &BTreeMap<String, Say>) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let asked = question.get(12..at + 4)?;
    let say = names.get(&name).copied().unwrap_or(Say::Code(3));
    let (code, record) = match say {
        Say::Nothing => return None,
        Say::Code(code) => (code, None),
        Say::Address(address) => (0, (kind == TYPE_A).then_some(address)),
    };
    let mut reply = question.get(..2)?.to_vec();
    reply.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]);
    reply.extend_from_slice(asked);
    if let Some(address) = record {
        // The name of the question, A, IN, one minute.
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_by_name_and_type() {
        let names = BTreeMap::from([
            ("a.test".to_owned(), say("10.0.0.1").unwrap()),
            ("b.test".to_owned(), say("SILENT").unwrap()),
        ]);
        let question = |name: &[u8], kind: u8| {
            [&[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[4, b't', b'e', b's', b't', 0, 0, kind, 0, 1]]
                .concat()
        };
        let found = reply(&question(b"\x01A", 1), &names).unwrap();
        assert_eq!((found[3] & 15, found[7]), (0, 1));
        assert!(found.ends_with(&[10, 0, 0, 1]));
        assert_eq!(reply(&question(b"\x01a", 28), &names).unwrap()[7], 0);
        assert_eq!(reply(&question(b"\x01b", 1), &names), None);
        assert_eq!(reply(&question(b"\x01c", 1), &names).unwrap()[3] & 15, 3);
        assert_eq!(reply(b"short", &names), None);
    }
}

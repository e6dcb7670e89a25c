//! What a name server is asked, and whether what came back answers it (RFC 1035, 4).

use super::wire::Question;

/// The kinds of record that are asked for.
pub mod kind {
    /// IPv4 address (RFC 1035, 3.2.2).
    pub const A: u16 = 1;
    /// Name server (RFC 1035, 3.2.2).
    pub const NS: u16 = 2;
    /// IPv6 address (RFC 3596, 2.1).
    pub const AAAA: u16 = 28;
}

/// The header, bytes.
const HEADER: usize = 12;
/// A name is no longer, bytes (RFC 1035, 2.3.4).
const MOST_NAME: usize = 255;
/// A label is no longer, bytes.
const MOST_LABEL: usize = 63;
/// Class IN.
const INTERNET: u16 = 1;

/// The packet that asks; None for a name that cannot be asked for.
pub(super) fn write(id: u16, question: &Question) -> Option<Vec<u8>> {
    let mut packet = id.to_be_bytes().to_vec();
    // A standard query, recursion desired, one question: as nginx asks (ngx_resolver_create_name_query).
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = question.name.strip_suffix('.').unwrap_or(&question.name);
    for label in name.split('.').filter(|_| !name.is_empty()) {
        let length =
            u8::try_from(label.len()).ok().filter(|l| (1..=MOST_LABEL).contains(&usize::from(*l)))?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    if packet.len() - HEADER > MOST_NAME {
        return None;
    }
    packet.extend(question.kind.to_be_bytes());
    packet.extend(INTERNET.to_be_bytes());
    Some(packet)
}

/// Whether `bytes` reply to `asked`. Servers that refuse may leave the question out.
pub(super) fn is_reply(asked: &[u8], bytes: &[u8]) -> bool {
    let ([a0, a1, ..], [b0, b1, flags, ..]) = (asked, bytes) else { return false };
    if bytes.len() < HEADER || (a0, a1) != (b0, b1) || flags & 0x80 == 0 {
        return false;
    }
    let (Some(count), Some(question)) = (bytes.get(4..6), asked.get(HEADER..)) else { return false };
    let same = bytes.get(HEADER..).and_then(|rest| rest.get(..question.len()));
    count == [0, 0] || same.is_some_and(|same| same.eq_ignore_ascii_case(question))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> Option<Vec<u8>> {
        write(0x1234, &Question { name: name.to_owned(), kind: kind::AAAA })
    }

    #[test]
    fn questions_are_written_as_rfc_1035_says() {
        let wanted = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02ab\x01c\0\0\x1c\0\x01";
        assert_eq!(asked("ab.c").as_deref(), Some(&wanted[..]));
        assert_eq!(asked("ab.c.").as_deref(), Some(&wanted[..]));
        assert_eq!(asked(".").as_deref(), Some(&b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\0\0\x1c\0\x01"[..]));
        let long = |label: usize, times: usize| vec!["x".repeat(label); times].join(".");
        assert!(asked(&long(63, 3)).is_some());
        for bad in ["a..b".to_owned(), ".a".to_owned(), long(64, 1), long(63, 4)] {
            assert_eq!(asked(&bad), None, "{bad}");
        }
    }

    #[test]
    fn replies_are_those_to_the_question() {
        let question = asked("ab.c").unwrap();
        let mut reply = question.clone();
        reply[2] |= 0x80;
        assert!(is_reply(&question, &reply));
        reply[13] = b'A';
        assert!(is_reply(&question, &reply), "a name has no case");
        assert!(!is_reply(&question, &question), "a question");
        assert!(!is_reply(&asked("ab.d").unwrap(), &reply), "to another");
        let mut other = reply.clone();
        other[0] = 0;
        assert!(!is_reply(&question, &other), "of another number");
        let mut bare = reply[..HEADER].to_vec();
        assert!(!is_reply(&question, &bare), "it says that there is a question");
        bare[5] = 0;
        assert!(is_reply(&question, &bare));
        for end in 0..HEADER {
            assert!(!is_reply(&question, &bare[..end]), "{end}");
        }
    }
}

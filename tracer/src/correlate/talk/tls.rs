//! TLS as it can be read without keys: records, the beginning of a handshake, alerts (RFC 8446, RFC 5246; alert numbers from
//! IANA's registry "TLS Alerts").

/// Content types of records.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Longest record that may come (RFC 5246, 6.2.3).
const MOST: usize = (1 << 14) + 2048;

/// An alert: level and description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alert {
    /// 1 warning, 2 fatal.
    pub level: u8,
    /// What it is about.
    pub description: u8,
}

impl Alert {
    /// Name in the standards.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self.description {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            21 => "decryption_failed",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            41 => "no_certificate",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            60 => "export_restriction",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            111 => "certificate_unobtainable",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            114 => "bad_certificate_hash_value",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return None,
        })
    }

    /// `alert 40 handshake_failure`.
    #[must_use]
    pub fn words(self) -> String {
        let level = if self.level == 1 { "warning alert" } else { "fatal alert" };
        match self.name() {
            Some(name) => format!("{level} {} {name}", self.description),
            None => format!("{level} {}", self.description),
        }
    }
}

/// What a stream that begins with TLS records holds, as far as its first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stream {
    /// Handshake messages in the clear, by type (1 ClientHello, 2 ServerHello, 11 Certificate, 13 CertificateRequest, 14
    /// ServerHelloDone …).
    pub handshake: Vec<u8>,
    /// The version that the ServerHello chose, with the `supported_versions` extension of TLS 1.3: 0x0303, 0x0304.
    pub version: Option<u16>,
    /// An alert in the clear; the first one.
    pub alert: Option<Alert>,
    /// A ChangeCipherSpec: what follows is encrypted.
    pub changed: bool,
    /// Encrypted records were seen.
    pub data: bool,
    /// What comes where a record should begin is none: its offset.
    pub broken: Option<usize>,
}

/// Name of a version.
#[must_use]
pub fn version_name(version: u16) -> &'static str {
    match version {
        0x0300 => "SSL 3.0",
        0x0301 => "TLS 1.0",
        0x0302 => "TLS 1.1",
        0x0303 => "TLS 1.2",
        0x0304 => "TLS 1.3",
        _ => "an unknown version of TLS",
    }
}

/// True if these bytes, or as many of them as there are, begin a TLS record.
#[must_use]
pub fn is_record(bytes: &[u8]) -> bool {
    let kind = matches!(bytes.first(), Some(CHANGE_CIPHER_SPEC..=APPLICATION_DATA));
    let version =
        bytes.get(1).is_none_or(|major| *major == 3) && bytes.get(2).is_none_or(|minor| *minor <= 4);
    let length = bytes.get(3..5).and_then(<[u8]>::first_chunk::<2>);
    kind && version && length.is_none_or(|l| (1..=MOST).contains(&usize::from(u16::from_be_bytes(*l))))
}

/// An alert in the clear at the beginning.
#[must_use]
pub fn alert(bytes: &[u8]) -> Option<Alert> {
    match bytes {
        // An encrypted one is longer, or after a ChangeCipherSpec.
        [ALERT, 3, 0..=4, 0, 2, level @ (1 | 2), description, ..] => {
            Some(Alert { level: *level, description: *description })
        }
        _ => None,
    }
}

/// Reads the records of one direction. `None` if it does not begin with one.
#[must_use]
pub fn stream(bytes: &[u8]) -> Option<Stream> {
    if bytes.is_empty() || !is_record(bytes) {
        return None;
    }
    let mut found = Stream::default();
    let mut at = 0_usize;
    while let Some([kind, _, _, high, low]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<5>).copied() {
        let rest = bytes.get(at..).unwrap_or_default();
        if !is_record(rest) {
            found.broken = Some(at);
            break;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = rest.get(5..).unwrap_or_default();
        let body = body.get(..length).unwrap_or(body);
        match kind {
            CHANGE_CIPHER_SPEC => found.changed = true,
            ALERT if !found.changed => {
                if let Some(alert) = alert(rest) {
                    found.alert.get_or_insert(alert);
                }
            }
            HANDSHAKE if !found.changed => messages(body, &mut found),
            _ => found.data = true,
        }
        at = at.saturating_add(5 + length);
    }
    Some(found)
}

fn messages(mut body: &[u8], found: &mut Stream) {
    while let [kind, a, b, c, rest @ ..] = body {
        // Hello request to key update, RFC 8446 B.3; anything else is the middle of a message that spans records.
        if !matches!(kind, 0..=24) {
            return;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        found.handshake.push(*kind);
        if *kind == 2 {
            found.version = found.version.or(server_version(rest.get(..length).unwrap_or(rest)));
        }
        let Some(next) = rest.get(length..) else { return };
        body = next;
    }
}

/// The version of a ServerHello: `supported_versions` (extension 43) counts before the legacy field.
fn server_version(hello: &[u8]) -> Option<u16> {
    let two = |at: usize| hello.get(at..).and_then(<[u8]>::first_chunk::<2>).map(|b| u16::from_be_bytes(*b));
    let legacy = two(0)?;
    let session = usize::from(*hello.get(34)?);
    // Behind the session: cipher suite, compression, length of the extensions.
    let mut at = 35 + session + 2 + 1 + 2;
    while let (Some(kind), Some(length)) = (two(at), two(at + 2)) {
        if kind == 43 {
            return two(at + 4).or(Some(legacy));
        }
        at += 4 + usize::from(length);
    }
    Some(legacy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ServerHello of TLS 1.2 and 1.3, as OpenSSL 3 sends it.
    fn server_hello(extension: &[u8]) -> Vec<u8> {
        let mut hello = vec![3, 3];
        hello.extend([7; 32]);
        hello.push(0);
        hello.extend([0x13, 0x02, 0]);
        hello.extend((extension.len() as u16).to_be_bytes());
        hello.extend(extension);
        let mut message = vec![2, 0, 0, hello.len() as u8];
        message.extend(hello);
        let mut record = vec![22, 3, 3, 0, message.len() as u8];
        record.extend(message);
        record
    }

    #[test]
    fn records_are_told_from_text_and_from_other_bytes() {
        for (bytes, want) in [
            (b"\x16\x03\x01\x02\x00\x01".as_slice(), true),
            (b"\x15\x03\x03\0\x02\x02\x28", true),
            (b"\x16", true),
            (b"\x16\x03", true),
            (b"HTTP/1.1 400 Bad Request", false),
            (b"\x16\x02\x01\x02\x00", false),
            (b"\x16\x03\x01\xff\xff", false),
            (b"\x16\x03\x01\0\0", false),
            (b"\x01\x06\0\x01", false),
            (b"\x18\x03\x03\0\x02", false),
            (b"", false),
        ] {
            assert_eq!(is_record(bytes), want, "{bytes:x?}");
        }
    }

    #[test]
    fn alerts_have_names() {
        let alert = alert(b"\x15\x03\x03\0\x02\x02\x28").unwrap();
        assert_eq!(alert.words(), "fatal alert 40 handshake_failure");
        assert_eq!(Alert { level: 2, description: 116 }.name(), Some("certificate_required"));
        assert_eq!(Alert { level: 1, description: 112 }.words(), "warning alert 112 unrecognized_name");
        assert_eq!(super::alert(b"\x15\x03\x03\0\x1a\x02\x28"), None, "an encrypted one");
        assert_eq!(super::alert(b"HTTP/1."), None);
    }

    #[test]
    fn a_server_hello_tells_the_version() {
        let tls12 = stream(&server_hello(&[])).unwrap();
        assert_eq!(
            (tls12.version, tls12.handshake.as_slice(), tls12.changed),
            (Some(0x0303), [2].as_slice(), false)
        );
        let mut bytes = server_hello(&[0, 43, 0, 2, 3, 4]);
        bytes.extend(b"\x14\x03\x03\0\x01\x01\x17\x03\x03\0\x13aaaaaaaaaaaaaaaaaaa");
        let tls13 = stream(&bytes).unwrap();
        assert_eq!((tls13.version, tls13.changed, tls13.data), (Some(0x0304), true, true));
        assert_eq!(tls13.alert, None);
    }

    #[test]
    fn an_alert_behind_other_records_is_found_while_it_is_in_the_clear() {
        let mut bytes = server_hello(&[]);
        bytes.extend(b"\x15\x03\x03\0\x02\x02\x28");
        assert_eq!(stream(&bytes).unwrap().alert.unwrap().description, 40);
        let mut bytes = server_hello(&[]);
        bytes.extend(b"\x14\x03\x03\0\x01\x01\x15\x03\x03\0\x02\x02\x28");
        assert_eq!(stream(&bytes).unwrap().alert, None, "after a ChangeCipherSpec it would be ciphertext");
        let mut bytes = server_hello(&[]);
        bytes.extend(b"HTTP/1.1 400");
        assert_eq!(stream(&bytes).unwrap().broken, Some(bytes.len() - 12));
        assert_eq!(stream(b"HTTP"), None);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let hello = server_hello(&[0, 43, 0, 2, 3, 4]);
        for cut in 0..hello.len() {
            let _ = stream(hello.get(..cut).unwrap());
            let mut damaged = hello.clone();
            damaged[cut] = 0xff;
            let _ = stream(&damaged);
        }
    }
}

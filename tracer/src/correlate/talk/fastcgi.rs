//! FastCGI records (FastCGI Specification 1.0, 3.3), as nginx takes them from a backend
//! (ngx_http_fastcgi_process_record in src/http/modules/ngx_http_fastcgi_module.c): version 1, request 1, of types 3, 6, 7.

use super::http1::{self, Head};

const END_REQUEST: u8 = 3;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

/// What nginx refuses in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Another version than 1.
    Version(u8),
    /// A type that no response has.
    Type(u8),
    /// Another request than 1.
    Request,
    /// The request was ended before the header was.
    Ended,
    /// The end of stdout came before the end of the header.
    StdoutEnded,
    /// Something in the header within.
    Header(http1::FaultKind),
}

/// What the first records say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The CGI head on stdout, as far as it was read. Its `length` is counted in bytes of stdout.
    pub head: Head,
    /// Offset behind the head, with the records around it; `None` while it has not ended.
    pub head_end: Option<usize>,
    /// Bytes of stdout behind the head.
    pub body: usize,
    /// stderr, as far as it was read.
    pub stderr: Vec<u8>,
    /// How much of that came before the end of the head.
    pub early: usize,
    /// Not a byte of stdout has come.
    pub stdout_empty: bool,
    /// An END_REQUEST record was among these bytes: its application status and protocol status (0 complete, 1 cannot
    /// multiplex, 2 overloaded, 3 unknown role).
    pub ended: Option<(u32, u8)>,
    /// The first thing that nginx refuses: its offset.
    pub fault: Option<(usize, FaultKind)>,
}

/// Reads records. Total: what is cut off ends it.
#[must_use]
pub fn answer(bytes: &[u8]) -> Answer {
    let mut found = Answer::default();
    let mut stdout: Vec<u8> = Vec::new();
    // Where each byte of stdout lies.
    let mut places: Vec<usize> = Vec::new();
    let mut at = 0_usize;
    while let Some(first) = bytes.get(at) {
        let fault = |offset: usize, kind| Some((at + offset, kind));
        let kind = bytes.get(at + 1).copied();
        let request = bytes.get(at + 2..at + 4);
        found.fault = if *first != 1 {
            fault(0, FaultKind::Version(*first))
        } else if let Some(other) = kind.filter(|kind| !matches!(*kind, END_REQUEST | STDOUT | STDERR)) {
            fault(1, FaultKind::Type(other))
        } else if request.is_some_and(|request| request != [0, 1]) {
            fault(2, FaultKind::Request)
        } else {
            None
        };
        let Some([_, kind, _, _, high, low, padding, _]) =
            bytes.get(at..).and_then(<[u8]>::first_chunk::<8>).copied().filter(|_| found.fault.is_none())
        else {
            break;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let rest = bytes.get(at + 8..).unwrap_or_default();
        let body = rest.get(..length).unwrap_or(rest);
        match kind {
            STDOUT => {
                if length == 0 && found.head.length.is_none() && http1::head_length(&stdout).is_none() {
                    found.fault = fault(0, FaultKind::StdoutEnded);
                }
                stdout.extend_from_slice(body);
                places.extend(at + 8..at + 8 + body.len());
            }
            STDERR => {
                found.stderr.extend_from_slice(body);
                if http1::head_length(&stdout).is_none() {
                    found.early = found.stderr.len();
                }
            }
            _ => {
                if let Some([a, b, c, d, status, ..]) = body.first_chunk::<8>() {
                    found.ended = Some((u32::from_be_bytes([*a, *b, *c, *d]), *status));
                }
                if http1::head_length(&stdout).is_none() {
                    found.fault = fault(0, FaultKind::Ended);
                }
            }
        }
        if found.fault.is_some() || found.ended.is_some() {
            break;
        }
        at = at.saturating_add(8 + length + usize::from(padding));
    }
    found.stdout_empty = stdout.is_empty();
    found.head = http1::cgi(&stdout);
    found.body = stdout.len() - found.head.length.unwrap_or(stdout.len());
    found.head_end = found.head.length.and_then(|length| places.get(length.checked_sub(1)?)).map(|at| at + 1);
    if let Some(fault) = &found.head.fault {
        // It comes before whatever ended the records.
        let place = places.get(fault.at).copied().unwrap_or(fault.at);
        found.fault = Some((place, FaultKind::Header(fault.kind)));
    }
    found
}

impl FaultKind {
    /// What is wrong, in words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Version(version) => format!("FastCGI version {version} where only 1 is known"),
            Self::Type(kind) => format!("a FastCGI record of type {kind}, which no response has"),
            Self::Request => "a FastCGI record of a request that nginx has not made".to_owned(),
            Self::Ended => "the end of the request before the end of the header".to_owned(),
            Self::StdoutEnded => "the end of stdout before the end of the header".to_owned(),
            Self::Header(kind) => kind.words().to_owned(),
        }
    }
}

/// Meaning of END_REQUEST's protocol status, if it is not that the request is complete.
#[must_use]
pub fn protocol_status(status: u8) -> Option<&'static str> {
    match status {
        1 => Some("it cannot take several requests on a connection"),
        2 => Some("it is overloaded"),
        3 => Some("it does not know the role"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let padding = (8 - body.len() % 8) % 8;
        let [high, low] = (body.len() as u16).to_be_bytes();
        let mut record = vec![1, kind, 0, 1, high, low, padding as u8, 0];
        record.extend(body);
        record.resize(record.len() + padding, 0);
        record
    }

    #[test]
    fn a_whole_answer_of_php_fpm() {
        let mut bytes = record(STDERR, b"PHP message: PHP Warning: x");
        bytes.extend(record(STDOUT, b"Status: 404 Not Found\r\nContent-type: text/html\r\n"));
        let head = bytes.len();
        bytes.extend(record(STDOUT, b"\r\nbody"));
        bytes.extend(record(END_REQUEST, &[0; 8]));
        let answer = answer(&bytes);
        assert_eq!(answer.head.status, Some(404));
        assert_eq!(answer.head_end, Some(head + 8 + 2));
        assert_eq!((answer.ended, answer.fault), (Some((0, 0)), None));
        assert_eq!(answer.stderr, b"PHP message: PHP Warning: x");
        assert_eq!(answer.early, answer.stderr.len());
        // What comes behind the head is of no interest to nginx.
        let late = [record(6, b"Status: 200\r\n\r\n"), record(7, b"late")].concat();
        let late = super::answer(&late);
        assert_eq!((late.early, &late.stderr[..]), (0, &b"late"[..]));
    }

    #[test]
    fn what_nginx_refuses() {
        let end = record(END_REQUEST, &[0, 0, 0, 1, 2, 0, 0, 0]);
        let no_end = record(STDOUT, b"Status: 200\r\n");
        for (name, bytes, want) in [
            ("an HTTP server", b"HTTP/1.1 400 Bad Request\r\n".to_vec(), Some((0, FaultKind::Version(b'H')))),
            ("another type", vec![1, 10, 0, 1], Some((1, FaultKind::Type(10)))),
            ("another request", vec![1, 6, 0, 2, 0, 0, 0, 0], Some((2, FaultKind::Request))),
            ("ended at once", end, Some((0, FaultKind::Ended))),
            ("stdout closed", [no_end, record(STDOUT, b"")].concat(), Some((24, FaultKind::StdoutEnded))),
            (
                "a bad line",
                record(STDOUT, b"PHP Warning: x\n"),
                Some((11, FaultKind::Header(http1::FaultKind::Name))),
            ),
            ("cut off", record(STDOUT, b"Status: 200\r\n\r\n").get(..11).unwrap().to_vec(), None),
            ("nothing", Vec::new(), None),
        ] {
            assert_eq!(answer(&bytes).fault, want, "{name}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let whole = [record(STDOUT, b"Status: 200\r\n\r\nx"), record(END_REQUEST, &[0; 8])].concat();
        for cut in 0..whole.len() {
            let _ = answer(whole.get(..cut).unwrap());
            let mut damaged = whole.clone();
            damaged[cut] = 0xff;
            let _ = answer(&damaged);
        }
    }
}

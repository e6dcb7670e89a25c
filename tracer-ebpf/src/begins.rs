//! How an exchange begins on an upstream connection, and so what nginx speaks there.

use tracer_ebpf::talk::{Talk, proto, talk_flag};

/// True for the beginning of a request line: a method (letters; longer ones are cut) and a space.
#[inline(always)]
fn is_method(first: u64) -> bool {
    let b = first.to_le_bytes();
    let mut at = 0;
    while at < 8 {
        if b[at] == b' ' {
            return at >= 3;
        }
        if !b[at].is_ascii_uppercase() {
            return false;
        }
        at += 1;
    }
    true
}

const PROXY: u64 = u64::from_le_bytes(*b"PROXY TC");
const PREFACE: u64 = u64::from_le_bytes(*b"PRI * HT");
const GET: u32 = u32::from_le_bytes(*b"get ");
const BEGIN_REQUEST: u16 = 0x0101;

pub(crate) const TLS_ALERT: u8 = 0x15;
const TLS_HANDSHAKE: u8 = 0x16;
const TLS_DATA: u8 = 0x17;
/// An alert in the clear: record header, level, description (RFC 8446, 5.1 and 6).
pub(crate) const ALERT_BYTES: u32 = 7;
/// Type of a frame that begins a request, its fourth byte (RFC 9113, 6.2).
const HEADERS: u8 = 1;
/// No record with a request is as short; an encrypted alert is.
const SHORT_RECORD: u32 = 40;

#[inline(always)]
fn proto_of(first: u64, size: u32) -> u32 {
    let byte = first as u8;
    if size < 8 || first == PROXY {
        proto::OTHER
    } else if byte == TLS_HANDSHAKE && (first >> 8) as u8 == 3 {
        proto::TLS
    } else if first as u16 == BEGIN_REQUEST {
        proto::FASTCGI
    } else if first == PREFACE {
        proto::HTTP2
    } else if first as u32 == GET {
        proto::MEMCACHED
    } else if is_method(first) {
        proto::HTTP
    } else if byte == 0 || byte.is_ascii_digit() {
        proto::CGI
    } else {
        proto::OTHER
    }
}

/// The same of a write that is not the connection's first: `OTHER` if it begins no request.
#[inline(always)]
fn proto_within(first: u64, size: u32) -> u32 {
    let (kind, third) = ((first >> 24) as u8, (first >> 8) as u8);
    match proto_of(first, size) {
        // A frame of HTTP/2 begins with its length; what uwsgi and SCGI write first is all that they ask.
        proto::CGI if first as u8 == 0 && kind == HEADERS => proto::HTTP2,
        proto::CGI => proto::OTHER,
        _ if first as u8 == TLS_DATA && third == 3 && size > SHORT_RECORD => proto::TLS,
        known => known,
    }
}

/// True if a write of `size` bytes that starts so begins an exchange: the first of the connection (`fresh`), or another
/// request after a response. What else nginx writes meanwhile (the rest of a body, acknowledgements of HTTP/2, what an
/// upgraded connection says) does not.
#[inline(always)]
pub(crate) fn begins(talk: *mut Talk, first: u64, size: u32, fresh: bool) -> bool {
    // SAFETY: a live map element.
    unsafe {
        let found = (*talk).flags & talk_flag::FOUND != 0;
        if fresh && (!found || (*talk).flags & talk_flag::PROTO == 0) {
            let kind = if found { proto_within(first, size) } else { proto_of(first, size) };
            (*talk).flags |= kind << talk_flag::PROTO_SHIFT;
            if kind == proto::TLS {
                (*talk).flags |= talk_flag::TLS | if found { talk_flag::TLS_DATA } else { 0 };
            }
            return !found || kind != proto::OTHER;
        }
        match ((*talk).flags & talk_flag::PROTO) >> talk_flag::PROTO_SHIFT {
            proto::HTTP => is_method(first),
            proto::FASTCGI => first as u16 == BEGIN_REQUEST,
            proto::HTTP2 => (first >> 24) as u8 == HEADERS,
            proto::MEMCACHED => first as u32 == GET,
            proto::TLS => {
                let byte = first as u8;
                if byte == TLS_ALERT || (byte == TLS_DATA && size <= SHORT_RECORD) {
                    if size == ALERT_BYTES && (*talk).alert == 0 {
                        (*talk).alert = (((first >> 40) as u16 & 0xff) << 8) | ((first >> 48) as u16 & 0xff);
                    }
                    (*talk).flags |= talk_flag::TLS_BYE;
                    return false;
                }
                if byte != TLS_DATA {
                    return false;
                }
                let begins = (*talk).flags & talk_flag::TLS_DATA == 0 || (*talk).read_ns != 0;
                (*talk).flags |= talk_flag::TLS_DATA;
                begins
            }
            _ => false,
        }
    }
}

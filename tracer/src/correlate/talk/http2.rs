//! HTTP/2 frames (RFC 9113, 4.1 and 6), as a gRPC server sends them and as nginx's gRPC module takes them.

/// The beginning of a connection (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Most that nginx takes in a frame (NGX_HTTP_V2_DEFAULT_FRAME_SIZE): more is "too large http2 frame".
const MOST: usize = 1 << 14;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// What the frames of a response say, as far as they were read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Types of the frames, in their order.
    pub frames: Vec<u8>,
    /// Headers have begun.
    pub headers: bool,
    /// The stream was ended in good order (END_STREAM).
    pub ended: bool,
    /// RST_STREAM with this error.
    pub reset: Option<u32>,
    /// GOAWAY: the last stream that is served, and the error.
    pub goaway: Option<(u32, u32)>,
    /// A length that no frame may have: its offset and the length. Whoever wrote that does not speak HTTP/2.
    pub too_large: Option<(usize, usize)>,
}

/// Reads frames. Total: what is cut off ends it.
#[must_use]
pub fn answer(bytes: &[u8]) -> Answer {
    let mut found = Answer::default();
    let mut at = 0_usize;
    while let Some([a, b, c, kind, flags, stream @ ..]) =
        bytes.get(at..).and_then(<[u8]>::first_chunk::<9>).copied()
    {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > MOST {
            found.too_large = Some((at, length));
            break;
        }
        let body = bytes.get(at + 9..).unwrap_or_default();
        let word =
            |at: usize| body.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|w| u32::from_be_bytes(*w));
        found.frames.push(kind);
        match kind {
            HEADERS => found.headers = true,
            RST_STREAM => found.reset = found.reset.or(word(0)),
            GOAWAY => found.goaway = found.goaway.or(word(0).map(|s| s & 0x7fff_ffff).zip(word(4))),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 && stream != [0; 4] {
            found.ended = true;
        }
        at = at.saturating_add(9 + length);
    }
    found
}

/// The stream that a request opens: that of the first HEADERS among the frames that nginx wrote for it. Behind the preface it is 1
/// (ngx_http_grpc_create_request), however little of it was kept.
#[must_use]
pub fn stream(request: &[u8]) -> Option<u32> {
    if request.starts_with(b"PRI * HT") {
        return Some(1);
    }
    let mut rest = request;
    while let Some(([a, b, c, kind, _, stream @ ..], body)) = rest.split_first_chunk::<9>() {
        if *kind == HEADERS {
            return Some(u32::from_be_bytes(*stream) & 0x7fff_ffff).filter(|stream| *stream != 0);
        }
        rest = body.get(u32::from_be_bytes([0, *a, *b, *c]) as usize..)?;
    }
    None
}

/// True if these bytes can begin what an HTTP/2 server sends: its SETTINGS first, or frames of a connection in use.
#[must_use]
pub fn is_frame(bytes: &[u8]) -> bool {
    let Some([a, b, c, kind, ..]) = bytes.first_chunk::<9>() else { return false };
    u32::from_be_bytes([0, *a, *b, *c]) as usize <= MOST && *kind <= CONTINUATION
}

/// The name of a frame type.
#[must_use]
pub fn frame_name(kind: u8) -> &'static str {
    match kind {
        DATA => "DATA",
        HEADERS => "HEADERS",
        2 => "PRIORITY",
        RST_STREAM => "RST_STREAM",
        SETTINGS => "SETTINGS",
        5 => "PUSH_PROMISE",
        6 => "PING",
        GOAWAY => "GOAWAY",
        8 => "WINDOW_UPDATE",
        CONTINUATION => "CONTINUATION",
        _ => "a frame of unknown type",
    }
}

/// The name of an error (RFC 9113, 7).
#[must_use]
pub fn error_name(error: u32) -> &'static str {
    match error {
        0 => "NO_ERROR",
        1 => "PROTOCOL_ERROR",
        2 => "INTERNAL_ERROR",
        3 => "FLOW_CONTROL_ERROR",
        4 => "SETTINGS_TIMEOUT",
        5 => "STREAM_CLOSED",
        6 => "FRAME_SIZE_ERROR",
        7 => "REFUSED_STREAM",
        8 => "CANCEL",
        9 => "COMPRESSION_ERROR",
        10 => "CONNECT_ERROR",
        11 => "ENHANCE_YOUR_CALM",
        12 => "INADEQUATE_SECURITY",
        13 => "HTTP_1_1_REQUIRED",
        _ => "an unknown error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

    #[test]
    fn frames_of_servers() {
        let refused = [NO_SETTINGS, b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07"].concat();
        let found = answer(&refused);
        assert_eq!(
            (found.reset, error_name(7), found.frames.as_slice()),
            (Some(7), "REFUSED_STREAM", [4, 3].as_slice())
        );
        let away = [NO_SETTINGS, b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b"].concat();
        assert_eq!(answer(&away).goaway, Some((0, 11)));
        let trailers = [NO_SETTINGS, b"\0\0\x01\x01\x05\0\0\0\x01\x88"].concat();
        assert!(answer(&trailers).ended && answer(&trailers).headers);
        let open = [NO_SETTINGS, b"\0\0\x01\x01\x04\0\0\0\x01\x88"].concat();
        assert!(!answer(&open).ended && answer(&open).headers);
    }

    #[test]
    fn an_http1_answer_is_too_large_a_frame() {
        let found = answer(b"HTTP/1.1 400 Bad Request\r\n");
        assert_eq!(found.too_large, Some((0, 4_740_180)), "the number that nginx logs");
        assert!(!is_frame(b"HTTP/1.1 400"));
        assert!(is_frame(NO_SETTINGS));
        assert!(!is_frame(b"\x15\x03\x03\0\x02\x02\x28ab"));
    }

    #[test]
    fn streams_of_requests() {
        let headers = |stream: u8| [b"\0\0\x01\x01\x05\0\0\0".as_slice(), &[stream], b"\x82"].concat();
        let first = [PREFACE, NO_SETTINGS, headers(1).as_slice()].concat();
        assert_eq!((stream(&first), stream(&headers(3)), stream(&headers(0))), (Some(1), Some(3), None));
        assert_eq!(
            (stream(b""), stream(&PREFACE[..8]), stream(b"\xff\xff\xff\0\0\0\0\0\0a")),
            (None, Some(1), None)
        );
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let whole = [NO_SETTINGS, b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b"].concat();
        for cut in 0..whole.len() {
            let _ = (answer(whole.get(..cut).unwrap()), stream(whole.get(..cut).unwrap()));
            let mut damaged = whole.clone();
            damaged[cut] = 0xff;
            let _ = answer(&damaged);
        }
    }
}

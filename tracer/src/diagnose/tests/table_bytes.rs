//! What bytes tell of connections that stood, each cause beside its look-alikes; and which of them are no failure at all.

use bytes::Bytes;

use super::{
    standing::{MS, SENT, stood},
    *,
};
use crate::{
    correlate::talk::is_failure,
    event::{
        Told,
        said::{During, Fault, Said},
    },
};
use Cause::{
    HeaderTooBig as Big, InvalidResponse as Invalid, PlainToTlsPort as ToTls, ResponseTruncated as Truncated,
    TlsCertificateRejected as Certificate, TlsHandshakeFailed as Handshake, TlsHandshakeTimeout as Slow,
    TlsToPlainPort as ToPlain, Unexplained, UpstreamReturned5xx as Returned,
};
use Confidence::{Likely, Proven, Unexplained as No};

const CUT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nabc";
const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
const OPEN: &[u8] = b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nabc";
const HTTP_400: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n";
const ALERT: &[u8] = b"\x15\x03\x03\0\x02\x02\x28";
const FCGI: [u8; 8] = [1, 1, 0, 1, 0, 8, 0, 0];
const H2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

impl Build {
    /// nginx speaks that module's protocol, and began so.
    pub(super) fn speaks(self, module: Module, first: &'static [u8]) -> Self {
        self.edit(|c| c.config[0].module = module).talk(|t| {
            t.first = *first.first_chunk().unwrap();
            t.request = Bytes::from_static(first);
        })
    }

    pub(super) fn with(self, key: &'static str, name: &str, value: &str) -> Self {
        self.edit(|c| {
            let settings = std::mem::take(&mut c.config[0].settings);
            c.config[0].settings = settings.with(key, name, value, None);
        })
    }

    /// nginx answered its client with that in its own name, after nothing but failures.
    pub(super) fn answered(self, status: u16) -> Self {
        self.edit(|c| (c.client_saw, c.attempt.number) = (Some(status), Some(1)))
    }

    /// nginx is a TLS client and has sent its ClientHello of 188 bytes, and so many bytes more.
    pub(super) fn tls(self, more: u32) -> Self {
        self.edit(|c| c.config[0].settings.tls = Some(true))
            .talk(|t| {
                t.tls = true;
                t.first = [22, 3, 1, 0, 183, 1, 0, 0];
                t.request = Bytes::new();
                t.sent_bytes = 188 + more;
            })
            .with("connect_timeout", "proxy_connect_timeout", "1s")
    }

    fn end(self, at: u64) -> Self {
        self.edit(|c| c.attempt.end_ns = at)
    }

    /// A response of which more was read than is kept.
    fn long(self, bytes: &'static [u8], got: u32) -> Self {
        self.got(SENT + MS, bytes)
            .talk(|t| {
                let mut kept = bytes.to_vec();
                kept.resize(512, b'x');
                (t.response, t.got_bytes) = (kept.into(), got);
            })
            .end(SENT + MS + 50_000)
    }
}

fn fcgi() -> Build {
    stood(NEAR).speaks(Module::Fastcgi, &FCGI)
}

fn server_hello(version: u8) -> &'static [u8] {
    match version {
        2 => b"\x16\x03\x03\0\x2c\x02\0\0\x28\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\0\xc0\x2c\0\0\0",
        _ => b"\x16\x03\x03\0\x32\x02\0\0\x2e\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\0\x13\x02\0\0\x06\0\x2b\0\x02\x03\x04\x14\x03\x03\0\x01\x01\x17\x03\x03\0\x02aa",
    }
}

#[test]
fn responses_that_end_early() {
    let fin = SENT + 5 * MS;
    check(vec![
        ("less than promised", stood(NEAR).got(SENT + MS, CUT).fin(fin), Truncated, Proven),
        ("cut by a RST", stood(NEAR).got(SENT + MS, CUT).rst(fin), Truncated, Proven),
        ("no last chunk", stood(NEAR).got(SENT + MS, CHUNKED).fin(fin), Truncated, Proven),
        (
            "no last chunk, and trailers are possible",
            stood(NEAR).got(SENT + MS, CHUNKED).fin(fin).talk(|t| {
                t.request = Bytes::from_static(b"GET / HTTP/1.1\r\nTE: trailers\r\n\r\n");
            }),
            Truncated,
            Likely,
        ),
        (
            "another protocol than the configuration's",
            stood(NEAR).speaks(Module::Proxy, b"\x01\x01\0\x01\0\x08\0\0").got(SENT + MS, CUT).fin(fin),
            Unexplained,
            No,
        ),
        (
            "the payload is not told",
            stood(NEAR).got(SENT + MS, CUT).fin(fin).talk(|t| {
                (t.request, t.response, t.first) = (Bytes::new(), Bytes::new(), [0; 8]);
                t.response_lost = true;
            }),
            Unexplained,
            No,
        ),
        ("a FastCGI server that hangs up", fcgi().talk(|t| {
            t.request = Bytes::from_static(b"\x01\x01\0\x01\0\x08\0\0\0\x01\0\0\0\0\0\0\x01\x04\0\x01\0\x18\0\0\x0e\x03REQUEST_METHODGET");
        }).got(SENT + MS, b"\x01\x06\0\x01\0\x18\0\0Status: 200 OK\r\n\r\nabcdef").fin(fin), Truncated, Proven),
        (
            "nginx's own time-out in the body",
            stood(NEAR).got(SENT + 5 * MS, CUT).ends_ms(1006),
            Cause::ReadTimeout,
            Proven,
        ),
    ]);
}

#[test]
fn responses_that_nginx_refuses() {
    let bad = b"HTTP/1.1 200 OK\r\nX Y: z\r\n\r\n";
    let two = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc";
    let grpc = || stood(NEAR).speaks(Module::Grpc, H2);
    let refused = [NO_SETTINGS, b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07"].concat().leak();
    let away = [NO_SETTINGS, b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b"].concat().leak();
    check(vec![
        ("a bad name, answered 502", stood(NEAR).got(SENT + MS, bad).answered(502), Invalid, Proven),
        ("a bad name, and no more is known", stood(NEAR).got(SENT + MS, bad), Invalid, Likely),
        ("a NUL", stood(NEAR).got(SENT + MS, b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n"), Invalid, Proven),
        (
            "two lengths, by the kernel's word that nginx said 502",
            stood(NEAR).got(SENT + MS, two).talk(|t| t.answered_bad = true),
            Invalid,
            Proven,
        ),
        ("two lengths", stood(NEAR).got(SENT + MS, two), Invalid, Likely),
        ("HTTP to FastCGI", fcgi().got(SENT + MS, HTTP_400), Invalid, Proven),
        ("HTTP to gRPC", grpc().got(SENT + MS, HTTP_400), Invalid, Proven),
        ("HTTP to gRPC, and reset", grpc().got(SENT + MS, HTTP_400).rst(SENT + 2 * MS), Invalid, Proven),
        ("a refused stream", grpc().got(SENT + MS, refused), Invalid, Proven),
        ("a server that goes away", grpc().got(SENT + MS, away), Invalid, Proven),
        (
            "HTTP to memcached",
            stood(NEAR).speaks(Module::Memcached, b"get key\r\n").got(SENT + MS, HTTP_400),
            Invalid,
            Proven,
        ),
        (
            "text before the header of a CGI",
            fcgi().got(SENT + MS, b"\x01\x06\0\x01\0\x10\0\0PHP Warning: x\n\n"),
            Invalid,
            Likely,
        ),
        (
            "FastCGI that ends without a header",
            fcgi().got(SENT + MS, b"\x01\x03\0\x01\0\x08\0\0\0\0\0\0\0\0\0\0"),
            Invalid,
            Proven,
        ),
        (
            "an HTTP server behind a pass whose bytes were another's",
            stood(NEAR).edit(|c| c.config[0].module = Module::Fastcgi).got(SENT + MS, HTTP_400),
            Unexplained,
            No,
        ),
        (
            "a 502 whose response is right",
            stood(NEAR).got(SENT + MS, WHOLE).talk(|t| t.answered_bad = true),
            Unexplained,
            No,
        ),
    ]);
}

#[test]
fn answers_without_a_status_line() {
    let fin = SENT + 5 * MS;
    let page = b"<h1>It works</h1>";
    let code = b"HTTP/1.1 OK\r\n\r\nhello";
    let ssh = || stood(NEAR).got(SENT + MS, b"SSH-2.0-OpenSSH_9.2\r\n");
    let gone = |build: Build| build.client_gone(false);
    check(vec![
        ("a page", stood(NEAR).got(SENT + MS, page).fin(fin), Invalid, Proven),
        ("no code", stood(NEAR).got(SENT + MS, code).fin(fin), Invalid, Proven),
        ("SSH, which waits for its client", ssh().ends_ms(1003), Invalid, Proven),
        ("SSH, and nginx's client leaves", gone(ssh()), Invalid, Proven),
        (
            "SSH, by a server that forks and ends",
            ssh().fin(fin).closer(fin, true, |d| {
                (d.ending, d.status) = (true, Some(0));
            }),
            Invalid,
            Proven,
        ),
        (
            "a server that crashes behind its page",
            stood(NEAR).got(SENT + MS, page).fin(fin).closer(fin, true, |d| {
                (d.ending, d.signal) = (true, Some(11));
            }),
            Cause::UpstreamDied,
            Proven,
        ),
        ("reset behind a page", stood(NEAR).got(SENT + MS, page).rst(fin), Invalid, Proven),
        ("a page that is longer than what is kept", stood(NEAR).long(page, 900).fin(fin), Invalid, Likely),
        (
            "the same, and nginx says so",
            stood(NEAR).long(page, 900).fin(fin).said(Fault::NoHeader, During::Header),
            Invalid,
            Proven,
        ),
        (
            "TLS hides it, and nginx says so",
            stood(NEAR)
                .tls(600)
                .talk(|t| t.tls_data = true)
                .got(SENT + MS, server_hello(2))
                .fin(fin)
                .said(Fault::NoHeader, During::Header),
            Invalid,
            Proven,
        ),
        (
            "a response that was under way before why502: its beginning is not there",
            stood(NEAR).got(SENT + MS, page).talk(|t| t.before = true).ends_ms(1003),
            Cause::ReadTimeout,
            Proven,
        ),
        (
            "a status line in pieces, and a time-out",
            stood(NEAR).got(SENT + MS, b"HTTP/1.0 2").ends_ms(1003),
            Cause::ReadTimeout,
            Proven,
        ),
    ]);
}

#[test]
fn headers_that_do_not_fit() {
    let begin = b"HTTP/1.1 200 OK\r\nX-Big: ";
    let big = || stood(NEAR).with("buffer_size", "proxy_buffer_size", "4k").long(begin, 4096);
    check(vec![
        ("answered 502", big().answered(502), Big, Proven),
        ("by the kernel's word", big().talk(|t| t.answered_bad = true), Big, Proven),
        ("tried elsewhere", big().talk(|t| t.unread = 900), Big, Likely),
        ("one byte less", big().talk(|t| t.got_bytes = 4095).answered(502), Unexplained, No),
        (
            "with a cache some of it is not there",
            big().edit(|c| c.config[0].settings.cached = true).talk(|t| t.got_bytes = 3500).answered(502),
            Big,
            Likely,
        ),
        ("the client left", big().client_gone(false), Cause::ClientAborted, Likely),
        (
            "another buffer is possible",
            big().answered(502).edit(|c| {
                let mut other = c.config[0].clone();
                other.settings = InForces::default().with("buffer_size", "proxy_buffer_size", "8k", None);
                c.config.push(other);
            }),
            Big,
            Likely,
        ),
        (
            "a header that is wrong as well",
            stood(NEAR)
                .with("buffer_size", "proxy_buffer_size", "4k")
                .long(b"HTTP/1.1 200 OK\r\nX Y: ", 4096)
                .answered(502),
            Invalid,
            Proven,
        ),
    ]);
}

#[test]
fn tls() {
    let fin = SENT + 5 * MS;
    let verify = |build: Build| build.with("ssl_verify", "proxy_ssl_verify", "on");
    check(vec![
        ("plain HTTP answers", stood(NEAR).tls(0).got(SENT + MS, HTTP_400).fin(fin), ToPlain, Proven),
        (
            "plain HTTP answers and resets",
            stood(NEAR).tls(0).got(SENT + MS, HTTP_400).rst(fin),
            ToPlain,
            Proven,
        ),
        ("SSH answers", stood(NEAR).tls(0).got(SENT + MS, b"SSH-2.0-OpenSSH_9.2\r\n"), ToPlain, Proven),
        (
            "something binary answers",
            stood(NEAR).tls(0).got(SENT + MS, b"\x4a\0\0\0\x0a5.7"),
            ToPlain,
            Likely,
        ),
        ("an alert", stood(NEAR).tls(0).got(SENT + MS, ALERT).fin(fin), Handshake, Proven),
        (
            "an alert behind the first bytes",
            stood(NEAR).tls(126).got(SENT + MS, server_hello(2)).talk(|t| {
                t.alert_received = Some((2, 40));
            }),
            Handshake,
            Proven,
        ),
        (
            "nginx's own alert",
            stood(NEAR).tls(7).got(SENT + MS, server_hello(2)).talk(|t| t.alert_sent = Some((2, 70))),
            Handshake,
            Proven,
        ),
        (
            "a client's alert, through the stream module",
            stood(NEAR)
                .tls(0)
                .edit(|c| {
                    (c.config[0].module, c.config[0].settings.tls) = (Module::Stream, Some(false));
                })
                .got(SENT + MS, ALERT)
                .fin(fin),
            Unexplained,
            No,
        ),
        ("hung up without a word", stood(NEAR).tls(0).fin(fin), Handshake, Likely),
        ("reset without a word", stood(NEAR).tls(0).rst(fin), Handshake, Likely),
        (
            "closed in mid-handshake",
            stood(NEAR).tls(0).got(SENT + MS, server_hello(2)).fin(fin),
            Handshake,
            Likely,
        ),
        (
            "the encrypted alert of TLS 1.3",
            stood(NEAR).tls(24).got(SENT + MS, server_hello(3)),
            Handshake,
            Likely,
        ),
        ("the time is up", stood(NEAR).tls(0).ends_ms(1001), Slow, Proven),
        (
            "the time is up in mid-handshake",
            stood(NEAR).tls(0).got(SENT + MS, server_hello(2)).ends_ms(1001),
            Slow,
            Proven,
        ),
        (
            "the time is up, or the client left",
            stood(NEAR).tls(0).ends_ms(1001).client_gone(false),
            Slow,
            Likely,
        ),
        (
            "nginx had finished its part of TLS 1.3",
            stood(NEAR).tls(80).got(SENT + MS, server_hello(3)).ends_ms(1001),
            Slow,
            Likely,
        ),
        (
            "certificate, by a worker that took its time",
            verify(stood(NEAR).tls(80).got(SENT + MS, server_hello(3)).ends_ms(400)).answered(502),
            Certificate,
            Proven,
        ),
        (
            "no certificate can be meant: the client is answered with nothing",
            verify(stood(NEAR).tls(80).got(SENT + MS, server_hello(3)).ends_ms(400)),
            Unexplained,
            No,
        ),
        (
            "certificate, as the time runs out",
            verify(stood(NEAR).tls(80).got(SENT + 990 * MS, server_hello(3)).ends_ms(1001)).answered(502),
            Certificate,
            Proven,
        ),
        (
            "the time seems up, and the answer is none of a timer's",
            stood(NEAR).tls(0).ends_ms(1001).answered(502),
            Slow,
            Likely,
        ),
        ("too early for the timer", stood(NEAR).tls(0).ends_ms(300), Unexplained, No),
        (
            "certificate",
            verify(stood(NEAR).tls(126).got(SENT + MS, server_hello(2))).answered(502),
            Certificate,
            Proven,
        ),
        (
            "certificate, TLS 1.3",
            verify(stood(NEAR).tls(80).got(SENT + MS, server_hello(3))).answered(502),
            Certificate,
            Proven,
        ),
        (
            "certificate of a stream's server, by nginx's word, as its client leaves",
            verify(stood(NEAR).tls(126).got(SENT + MS, server_hello(2))).client_gone(true).edit(|c| {
                c.config[0].module = Module::Stream;
                c.facts.said = Some(Said::Certificate { reason: None });
            }),
            Certificate,
            Proven,
        ),
        (
            "a stream's client leaves, and nginx says nothing",
            verify(stood(NEAR).tls(126).got(SENT + MS, server_hello(2))).client_gone(false).edit(|c| {
                c.config[0].module = Module::Stream;
                c.facts.said = Some(Said::Nothing);
            }),
            Cause::ClientAborted,
            Likely,
        ),
        (
            "certificate, and the server hangs up on nginx's close_notify",
            verify(stood(NEAR).tls(157).got(SENT + MS, server_hello(2)).talk(|t| {
                (t.said_bye, t.last_sent_ns, t.fin_ns) = (true, Some(SENT + 2 * MS), Some(SENT + 3 * MS));
            }))
            .answered(502),
            Certificate,
            Proven,
        ),
        (
            "certificate, as nginx says, in a handshake of which little was seen",
            stood(NEAR).tls(20).ends_ms(400).edit(|c| {
                let reason = Some("certificate has expired".to_owned());
                c.facts.said = Some(Said::Certificate { reason });
            }),
            Certificate,
            Proven,
        ),
        (
            "nginx says something else",
            verify(stood(NEAR).tls(126).got(SENT + MS, server_hello(2)))
                .edit(|c| c.facts.said = Some(Said::Other)),
            Certificate,
            Likely,
        ),
        (
            "certificate, and the answer is not known",
            verify(stood(NEAR).tls(126).got(SENT + MS, server_hello(2))),
            Certificate,
            Likely,
        ),
        (
            "nothing is verified",
            stood(NEAR).tls(126).got(SENT + MS, server_hello(2)).answered(502),
            Unexplained,
            No,
        ),
        (
            "verified, and the handshake was not done",
            verify(stood(NEAR).tls(0).got(SENT + MS, server_hello(2))).answered(502),
            Unexplained,
            No,
        ),
    ]);
}

#[test]
fn plain_text_to_a_tls_port() {
    let page = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<center>The plain HTTP request was sent to HTTPS port</center>";
    let shop = b"HTTP/1.1 200 OK\r\nContent-Length: 46\r\n\r\nThe plain HTTP request was sent to HTTPS port.";
    check(vec![
        ("an alert", stood(NEAR).got(SENT + MS, ALERT).fin(SENT + 2 * MS), ToTls, Proven),
        ("an alert and a RST", stood(NEAR).got(SENT + MS, ALERT).rst(SENT + 2 * MS), ToTls, Proven),
        ("an alert to gRPC", stood(NEAR).speaks(Module::Grpc, H2).got(SENT + MS, ALERT), ToTls, Proven),
        ("nginx's page", stood(NEAR).got(SENT + MS, page).rst(SENT + 2 * MS), ToTls, Proven),
        (
            "a page about it",
            stood(NEAR).got(SENT + MS, shop).talk(|t| t.answered_bad = true),
            Unexplained,
            No,
        ),
    ]);
}

#[test]
fn errors_of_the_server() {
    let said = |bytes| stood(NEAR).got(SENT + MS, bytes).talk(|t| t.said_5xx = true);
    check(vec![
        ("502", said(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"), Returned, Proven),
        ("the kernel alone read it", said(b"").talk(|t| t.status = Some(503)), Returned, Proven),
        (
            "the two disagree",
            said(b"HTTP/1.1 502 x\r\n\r\n").talk(|t| t.status = Some(503)),
            Returned,
            Likely,
        ),
        ("no error", said(b"HTTP/1.1 404 Not Found\r\n\r\n"), Unexplained, No),
    ]);
}

/// What the kernel side finds suspicious and what is well, and what is not.
#[test]
fn the_gate() {
    let fin = SENT + 5 * MS;
    let of = |bytes: &'static [u8]| stood(NEAR).got(SENT + MS, bytes);
    let long = |bytes: &'static [u8]| stood(NEAR).long(bytes, 900);
    let head = |build: Build| build.talk(|t| t.request = Bytes::from_static(b"HEAD / HTTP/1.1\r\n\r\n"));
    let grpc = |bytes: &'static [u8]| stood(NEAR).speaks(Module::Grpc, H2).got(SENT + MS, bytes);
    let trailers = [NO_SETTINGS, b"\0\0\x01\x01\x05\0\0\0\x01\x88"].concat().leak();
    let tls = || stood(NEAR).tls(600).talk(|t| t.tls_data = true).got(SENT + MS, server_hello(2));
    let stream = |build: Build| build.edit(|c| c.config[0].module = Module::Stream);
    let end_request =
        b"\x01\x06\0\x01\0\x18\0\0Status: 200 OK\r\n\r\nabcdef\x01\x03\0\x01\0\x08\0\0\0\0\0\0\0\0\0\0";
    let mut wrong = String::new();
    for (name, build, want) in [
        ("whole", of(WHOLE).fin(fin), false),
        ("whole, then reset, and nginx met that", of(WHOLE).rst(fin), true),
        ("whole, then reset, and nginx did not", of(WHOLE).rst(fin).talk(|t| t.told = None), false),
        ("whole with bytes to spare", of(WHOLE).talk(|t| t.unread = 7), false),
        ("whole, and nginx said 502", of(WHOLE).answered(502), true),
        ("cut off", of(CUT).fin(fin), true),
        ("HEAD", head(of(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")).fin(fin), false),
        ("304", of(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\n\r\n").fin(fin), false),
        ("chunked, and the last one was seen", long(CHUNKED).talk(|t| t.last_chunk = true).fin(fin), false),
        ("ends with its stream", of(OPEN).fin(fin), false),
        ("ends with its stream, by a RST", of(OPEN).rst(fin), true),
        ("ends with its stream, and the client left", of(OPEN).talk(|t| t.unread = 9), true),
        ("a long header and the end of the stream", long(b"HTTP/1.1 200 OK\r\nX-A: ").fin(fin), false),
        ("the same, and nginx said 502", long(b"HTTP/1.1 200 OK\r\nX-A: ").fin(fin).answered(502), true),
        (
            "the same with a length that was not reached",
            long(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nX-A: ").fin(fin),
            true,
        ),
        ("a header that is cut off", of(b"HTTP/1.1 200 OK\r\nX-A: ").fin(fin), true),
        ("nothing came", stood(NEAR).fin(fin), true),
        ("HTTP/0.9", of(b"<html>hello</html>").fin(fin), true),
        ("the beginning of a status line", of(b"HTTP/1.1 2").fin(fin), true),
        ("long HTTP/0.9", long(b"<html>hello").fin(fin), true),
        (
            "long, of which the first read was missed: its client has a status",
            long(b"<html>hello").fin(fin).edit(|c| c.client_saw = Some(200)),
            false,
        ),
        ("a TLS alert", of(ALERT).fin(fin), true),
        (
            "redirected inside",
            of(b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /x\r\nContent-Length: 900\r\n\r\n"),
            false,
        ),
        (
            "a page of nginx's own",
            of(b"HTTP/1.1 404 Not Found\r\nContent-Length: 900\r\n\r\n")
                .with("intercept_errors", "proxy_intercept_errors", "on")
                .talk(|t| t.unread = 9),
            false,
        ),
        (
            "the same without that",
            of(b"HTTP/1.1 404 Not Found\r\nContent-Length: 900\r\n\r\n").talk(|t| t.unread = 9),
            true,
        ),
        (
            "tried elsewhere for its status",
            of(b"HTTP/1.1 404 Not Found\r\nContent-Length: 900\r\n\r\n").with(
                "next_upstream",
                "proxy_next_upstream",
                "error http_404",
            ),
            false,
        ),
        (
            "an upgraded connection",
            of(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nabc").talk(|t| t.unread = 9),
            false,
        ),
        ("FastCGI with its end", fcgi().got(SENT + MS, end_request).fin(fin), false),
        (
            "long FastCGI, and the end was seen",
            fcgi()
                .long(b"\x01\x06\0\x01\x40\0\0\0Status: 200 OK\r\n\r\n", 9000)
                .talk(|t| t.last_chunk = true)
                .fin(fin),
            false,
        ),
        (
            "memcached without the key",
            stood(NEAR).speaks(Module::Memcached, b"get key\r\n").got(SENT + MS, b"END\r\n"),
            false,
        ),
        (
            "memcached with the value",
            stood(NEAR)
                .speaks(Module::Memcached, b"get key\r\n")
                .got(SENT + MS, b"VALUE key 0 2\r\nab\r\nEND\r\n"),
            false,
        ),
        (
            "memcached with half of it",
            stood(NEAR)
                .speaks(Module::Memcached, b"get key\r\n")
                .got(SENT + MS, b"VALUE key 0 20\r\nab")
                .fin(fin),
            true,
        ),
        ("gRPC that ended its stream", grpc(trailers).fin(fin), false),
        ("gRPC that did not", grpc(NO_SETTINGS).fin(fin), true),
        ("TLS with a request, closed", tls().fin(fin), false),
        ("TLS with tickets left unread", tls().talk(|t| t.unread = 300), false),
        ("TLS and a reset", tls().rst(fin), true),
        ("TLS without an answer to the request", tls().talk(|t| t.last_sent_ns = Some(SENT + 2 * MS)), true),
        ("TLS without a request", stood(NEAR).tls(0), true),
        ("a stream that its server ended", stream(of(b"hello")).fin(fin), false),
        ("a stream that went one way", stream(stood(NEAR)), false),
        ("a stream and a server that hung up at once", stream(stood(NEAR)).fin(fin), false),
        ("a stream that was reset", stream(of(b"hello")).rst(fin), true),
        ("an end of which only the FIN is known", of(CUT).talk(|t| t.watched = false), false),
        ("no record of an exchange", stood(NEAR).edit(|c| c.attempt.talk = None), false),
        ("a handshake of TCP", refused(NEAR), true),
    ] {
        if is_failure(&build.0) != want {
            wrong += &format!("{name}: expected {want}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let told = of(WHOLE).talk(|t| (t.told_ns, t.told) = (Some(fin), Some(Told::Error(libc::EPIPE))));
    assert!(!is_failure(&told.0), "an error after the end of a whole response is nobody's");
}

/// What is printed beside the verdict must mend the case in front of it.
#[test]
fn advice_fits_the_fault() {
    let of = |bytes: &'static [u8]| stood(NEAR).got(SENT + MS, bytes).answered(502);
    let request = |build: Build, line: &'static [u8]| build.talk(|t| t.request = Bytes::from_static(line));
    let both =
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let stderr = b"\x01\x07\0\x01\0\x10\0\0PHP Notice:  $x!\x01\x06\0\x01\x0f\0\0\0Status: 200\r\nX-Big: ";
    let big =
        |build: Build| build.with("buffer_size", "fastcgi_buffer_size", "4k").talk(|t| t.got_bytes = 4096);
    let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello";
    let said = |build: Build, text: &str, during| {
        build.said(Fault::Invalid, during).edit(|c| {
            c.word = Some(Box::new(crate::correlate::story::Word {
                text: Some(text.to_owned()),
                errno: None,
                place: None,
            }));
        })
    };
    for (name, build, fix, never) in [
        (
            "a blank before the colon",
            of(b"HTTP/1.1 200 OK\r\nX-Foo : bar\r\n\r\n"),
            "the colon right behind",
            "printed text",
        ),
        ("text before the header", of(b"HTTP/1.1 200 OK\r\nPHP Warning: x\r\n\r\n"), "printed text", "colon"),
        (
            "PHP's status",
            fcgi().got(SENT + MS, b"\x01\x06\0\x01\0\x18\0\0HTTP 403 Forbidden\r\nA: b").answered(502),
            "Status: 403",
            "printed text",
        ),
        (
            "both lengths, to HTTP/1.1",
            request(of(both), b"GET / HTTP/1.1\r\n\r\n"),
            "proxy_http_version 1.0",
            "chunks",
        ),
        (
            "both lengths, to HTTP/1.0",
            request(of(both), b"GET / HTTP/1.0\r\n\r\n"),
            "one Transfer-Encoding",
            "proxy_http_version",
        ),
        ("stderr in the buffer", big(fcgi().got(SENT + MS, stderr).answered(502)), "error_log", "cookies"),
        (
            "no stderr",
            big(fcgi().got(SENT + MS, b"\x01\x06\0\x01\x0f\0\0\0Status: 200\r\nX-Big: ").answered(502)),
            "cookies",
            "error_log",
        ),
        (
            "a chunk",
            said(stood(NEAR).got(SENT + MS, chunk), "upstream sent invalid chunked response", During::Body),
            "Transfer-Encoding: chunked itself",
            "writes the header",
        ),
        (
            "a subrequest",
            said(stood(NEAR).got(SENT + MS, WHOLE), "connection upgrade in subrequest", During::Header),
            "proxy_set_header Upgrade",
            "writes the header",
        ),
        (
            "another error",
            said(
                stood(NEAR).tls(600).talk(|t| t.tls_data = true).got(SENT + MS, server_hello(2)),
                "upstream sent invalid header",
                During::Header,
            ),
            "writes the header",
            "chunk",
        ),
        (
            "a WebSocket",
            stood(NEAR)
                .got(SENT + MS, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nabc")
                .rst(SENT + 5 * MS),
            "closing handshake",
            "whole request",
        ),
        (
            "a reset",
            stood(NEAR).got(SENT + MS, OPEN).rst(SENT + 5 * MS),
            "whole request",
            "closing handshake",
        ),
    ] {
        let verdict = diagnose(&build.0);
        let text = verdict.fix.iter().map(|fix| fix.text.as_str()).collect::<Vec<_>>().join("\n");
        assert!(text.contains(fix) && !text.contains(never), "{name}: {} {text}", verdict.cause);
    }
}

#[test]
fn chunks_that_are_none() {
    let fin = SENT + 5 * MS;
    let bad = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz";
    let of = |bytes: &'static [u8]| stood(NEAR).got(SENT + MS, bytes);
    let gzip = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc";
    check(vec![
        ("nginx says so", of(bad).said(Fault::Invalid, During::Body), Invalid, Proven),
        ("nginx is not asked", of(bad), Invalid, Likely),
        ("and the server closes", of(bad).fin(fin), Invalid, Likely),
        ("they are right, and cut off", of(CHUNKED).fin(fin), Truncated, Proven),
    ]);
    for (name, build, want) in [
        ("another encoding, passed on", of(gzip).fin(fin).edit(|c| c.client_saw = Some(200)), false),
        (
            "another encoding, by nginx's memory passed on",
            of(gzip).fin(fin).talk(|t| (t.asked, t.passed_on) = (true, true)),
            false,
        ),
        ("another encoding, refused", of(gzip).answered(502), true),
        (
            "a NUL is passed on by none",
            of(b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n").edit(|c| c.client_saw = Some(200)),
            true,
        ),
        (
            "chunks for HEAD, which has none",
            of(bad).talk(|t| t.request = Bytes::from_static(b"HEAD / HTTP/1.1\r\n\r\n")).fin(fin),
            false,
        ),
    ] {
        assert_eq!(is_failure(&build.0), want, "{name}");
    }
}

#[test]
fn fastcgi_that_ends_its_request_early() {
    let get = b"\x01\x01\0\x01\0\x08\0\0\0\x01\0\0\0\0\0\0\x01\x04\0\x01\0\x18\0\0\x0e\x03REQUEST_METHODGET";
    let short =
        b"\x01\x06\0\x01\0\x1b\0\0Content-Length: 50\r\n\r\nhello\x01\x03\0\x01\0\x08\0\0\0\0\0\0\0\0\0\0";
    let of = || fcgi().talk(|t| t.request = Bytes::from_static(get)).got(SENT + MS, short);
    check(vec![
        ("nginx closed it, and says why", of().said(Fault::ClosedEarly, During::Body), Truncated, Proven),
        ("nginx closed it for a reason that is not known", of(), Unexplained, No),
        ("it closed as well", of().fin(SENT + 2 * MS), Truncated, Proven),
    ]);
}

//! What nginx itself says of connections that stood, where nothing else tells; and connections that are older than why502.

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
    ClientAborted as Client, HeaderTooBig as Big, InvalidResponse as Invalid, ReadTimeout as Read,
    ResponseTruncated as Truncated, SendTimeout as Send, TlsHandshakeTimeout as Slow, Unexplained,
    UpstreamClosedEarly as Closed, UpstreamDied as Died, UpstreamReset as Reset,
    UpstreamReturned5xx as Returned,
};
use Confidence::{Likely, Proven, Unexplained as No};

impl Build {
    /// An exchange through TLS: the handshake is done, the request is out.
    fn secret(self) -> Self {
        self.tls(300).talk(|t| t.tls_data = true)
    }

    /// So much came, which tells nothing.
    fn sealed(self, count: u32) -> Self {
        self.talk(|t| {
            (t.first_read_ns, t.read_ns, t.got_bytes) = (Some(SENT + MS), Some(SENT + 2 * MS), count);
        })
    }

    pub(super) fn said(self, fault: Fault, during: During) -> Self {
        self.talk(|t| t.said_error = true).word(Said::Broken { fault, during })
    }

    fn word(self, said: Said) -> Self {
        self.edit(|c| c.facts.said = Some(said))
    }

    /// nginx closed the connection, and its client got that at once.
    fn then(self, status: u16) -> Self {
        self.talk(|t| (t.answered_bad, t.answered) = (true, Some(status)))
    }

    /// The exchange began before why502 watched; `waits`: it is known that there is one.
    fn older(self, waits: bool) -> Self {
        self.edit(|c| c.attempt.start_ns = None).talk(|t| {
            (t.found, t.before, t.requests) = (true, true, u32::from(waits));
            (t.request, t.first, t.sent_bytes) = (bytes::Bytes::new(), [0; 8], 0);
            if !waits {
                (t.sent_ns, t.last_sent_ns) = (None, None);
            }
        })
    }
}

#[test]
fn what_tls_hides_nginx_says() {
    let secret = || stood(NEAR).secret().sealed(400).fin(SENT + 3 * MS);
    let bye = || stood(NEAR).secret().sealed(400);
    let living = |build: Build| build.closer(SENT + 3 * MS - 2000, false, |_| {});
    check(vec![
        (
            "the header did not end",
            living(secret().said(Fault::ClosedEarly, During::Header)).saw(502),
            Closed,
            Proven,
        ),
        (
            "the same, and who closed is not known",
            secret().said(Fault::ClosedEarly, During::Header),
            Closed,
            Likely,
        ),
        ("a close_notify, and nginx closed", bye().said(Fault::ClosedEarly, During::Header), Closed, Likely),
        ("the body did", secret().said(Fault::ClosedEarly, During::Body).saw(200), Truncated, Proven),
        ("the body did, by a close_notify", bye().said(Fault::ClosedEarly, During::Body), Truncated, Proven),
        ("too big", bye().said(Fault::TooBig, During::Header).saw(502), Big, Proven),
        ("invalid", bye().said(Fault::Invalid, During::Header).saw(502), Invalid, Proven),
        (
            "invalid, and another server answered",
            bye().said(Fault::Invalid, During::Header).saw(200),
            Invalid,
            Proven,
        ),
        (
            "its timer, for the header",
            stood(NEAR).secret().ends_ms(1001).said(Fault::TimedOut, During::Header),
            Read,
            Proven,
        ),
        (
            "its timer, and what the server sent in that moment stayed unread",
            stood(NEAR)
                .secret()
                .sealed(255)
                .talk(|t| (t.unread, t.fin_ns) = (24, Some(SENT + 1000 * MS)))
                .ends_ms(1001)
                .said(Fault::TimedOut, During::Header),
            Read,
            Proven,
        ),
        (
            "its timer, and nginx's farewell met a server that was gone",
            stood(NEAR)
                .secret()
                .sealed(510)
                .edit(|c| {
                    (c.attempt.reset, c.attempt.reset_ns) = (true, SENT + 1001 * MS);
                    c.attempt.sk_err = libc::ECONNRESET;
                })
                .ends_ms(1001)
                .said(Fault::TimedOut, During::Header),
            Read,
            Proven,
        ),
        (
            "the same, and the server's process ended as well",
            stood(NEAR)
                .secret()
                .talk(|t| t.fin_ns = Some(SENT + 1000 * MS))
                .closer(SENT + 1000 * MS, true, |d| {
                    (d.ending, d.status) = (true, Some(3));
                })
                .ends_ms(1001)
                .said(Fault::TimedOut, During::Header),
            Read,
            Proven,
        ),
        ("its timer, in the body", bye().ends_ms(1003).said(Fault::TimedOut, During::Body), Read, Proven),
        (
            "its timer, for the request",
            stood(NEAR).secret().ends_ms(2001).said(Fault::TimedOut, During::Request),
            Send,
            Proven,
        ),
        (
            "its timer, in the handshake",
            stood(NEAR).tls(0).ends_ms(400).said(Fault::TimedOut, During::Handshake),
            Slow,
            Proven,
        ),
        (
            "a process ended, whatever nginx says",
            secret()
                .closer(SENT + 2 * MS, true, |d| {
                    (d.ending, d.status) = (true, Some(3));
                })
                .said(Fault::ClosedEarly, During::Header),
            Died,
            Proven,
        ),
    ]);
}

#[test]
fn the_status_in_tls_is_what_was_passed_on() {
    let whole = || stood(NEAR).secret().sealed(400);
    check(vec![
        ("503 is never nginx's own", whole().then(503), Returned, Likely),
        (
            "passed on while it was read",
            whole().talk(|t| (t.said_5xx, t.answered) = (true, Some(500))),
            Returned,
            Likely,
        ),
        ("502 may be", whole().fin(SENT + 3 * MS).then(502), Closed, Likely),
        (
            "502, and nginx would have said so",
            whole().fin(SENT + 3 * MS).then(502).word(Said::Nothing),
            Returned,
            Likely,
        ),
        ("502, and it did", whole().then(502).said(Fault::Invalid, During::Header), Invalid, Proven),
        (
            "502, and it said something else",
            whole().fin(SENT + 3 * MS).then(502).word(Said::Other),
            Closed,
            Likely,
        ),
    ]);
}

#[test]
fn plain_bytes_come_first() {
    const CUT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nabc";
    let cut = || stood(NEAR).got(SENT + MS, CUT).fin(SENT + 5 * MS);
    check(vec![
        ("both agree", cut().said(Fault::ClosedEarly, During::Body), Truncated, Proven),
        (
            "nginx says what was not to be seen",
            stood(NEAR)
                .got(SENT + MS, b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
                .said(Fault::Invalid, During::Header),
            Invalid,
            Proven,
        ),
    ]);
}

#[test]
fn what_is_said_makes_a_failure() {
    let quiet = || stood(NEAR).secret().sealed(400).talk(|t| t.said_error = true).0;
    let mut case = quiet();
    assert!(is_failure(&case), "the word is still to come");
    for (said, expect) in [
        (Said::Broken { fault: Fault::ClosedEarly, during: During::Body }, true),
        (Said::Other, false),
        (Said::Nothing, false),
    ] {
        case.facts.said = Some(said.clone());
        assert_eq!(is_failure(&case), expect, "{said:?}");
    }
    let reset = || stood(NEAR).secret().sealed(400).rst(SENT + 3 * MS);
    for (what, build, expect) in [
        ("served, then reset, and nginx is not heard", reset().saw(200), true),
        ("the same, and nginx tells its log nothing", reset().saw(200).word(Said::Nothing), false),
        ("nobody was served", reset().word(Said::Nothing), true),
        ("served with an error", reset().saw(502).word(Said::Nothing), true),
    ] {
        assert_eq!(is_failure(&build.0), expect, "{what}");
    }
}

#[test]
fn older_connections() {
    let far_end = |at: u64| move |build: Build| build.closer(at - 2000, false, |_| {});
    let waits = || stood(NEAR).older(true);
    let midway = || stood(NEAR).older(false);
    check(vec![
        ("unanswered", waits().ends_ms(1001), Read, Proven),
        ("unanswered, as the client left", waits().ends_ms(998).client_gone(false), Read, Likely),
        ("its client left", waits().client_gone(false), Client, Proven),
        ("closed", far_end(SENT + MS)(waits().fin(SENT + MS)), Closed, Proven),
        ("reset", far_end(SENT + MS)(waits().rst(SENT + MS)), Reset, Proven),
        (
            "died",
            waits().fin(SENT + MS).closer(SENT + MS - 2000, true, |d| (d.ending, d.status) = (true, Some(1))),
            Died,
            Proven,
        ),
        ("reset in the middle of something", far_end(SENT + MS)(midway().rst(SENT + MS)), Reset, Likely),
        ("nginx's timer, by its answer", midway().then(504), Read, Likely),
        ("nginx refused something", midway().then(502), Unexplained, No),
        (
            "nginx says that the body was cut",
            midway().fin(SENT + MS).said(Fault::ClosedEarly, During::Body),
            Truncated,
            Proven,
        ),
        (
            "a kept one, used again and reset",
            far_end(SENT + 30 * MS)(
                stood(NEAR).kept(5_000_000).talk(|t| (t.found, t.requests) = (true, 1)).rst(SENT + 30 * MS),
            ),
            Reset,
            Proven,
        ),
        (
            "a kept one that was closed before",
            stood(NEAR).kept(5_000_000).talk(|t| (t.found, t.requests) = (true, 1)).fin(SENT - MS),
            Cause::KeepaliveRace,
            Proven,
        ),
    ]);
    let texts = diagnose(&waits().ends_ms(1001).0);
    let texts: Vec<&str> = texts.evidence.iter().map(|e| e.text.as_str()).collect();
    assert!(texts.contains(&"it was sent before why502 watched"), "{texts:?}");
    assert!(!texts.iter().any(|text| text.contains("0 bytes sent")), "{texts:?}");
}

#[test]
fn a_read_error_is_told_of_an_older_one_whatever_it_was_at() {
    let case = stood(NEAR).older(false).talk(|t| t.told = Some(Told::Error(libc::ECONNRESET))).0;
    assert!(is_failure(&case));
}

#[test]
fn who_could_be_asked_is_named() {
    let asks = |build: &Build| {
        let fix = diagnose(&build.0).fix;
        fix.iter().any(|one| one.command.as_deref() == Some("why502 --uprobes on"))
    };
    let refused = || stood(NEAR).secret().sealed(900).then(502).saw(502);
    assert!(asks(&refused()));
    assert!(!asks(&refused().word(Said::Nothing)), "it was asked");
    assert!(!asks(&refused().said(Fault::TooBig, During::Header)), "it told");
    assert!(!asks(&stood(NEAR).fin(SENT + MS)), "nothing was hidden");
}

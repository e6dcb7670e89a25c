//! Connections that stood and failed, by time and by process, each cause beside its look-alikes.

use bytes::Bytes;

use super::{
    standing::{MS, PYTHON, SENT, sent, stood},
    *,
};
use Cause::{
    ClientAborted, KeepaliveRace as Race, ReadTimeout as Read, SendTimeout as Send, Unexplained,
    UpstreamClosedEarly as Early, UpstreamDied as Died, UpstreamReset as Reset,
};
use Confidence::{Likely, Proven, Unexplained as No};

const PART: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Le";
const BODY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nabc";

#[test]
fn who_closed() {
    let fin = || stood(NEAR).fin(SENT + 5 * MS);
    let rst = || stood(NEAR).rst(SENT + 5 * MS);
    let close = SENT + 5 * MS - 20_000;
    check(vec![
        ("it lives", fin().closer(close, false, |_| {}), Early, Proven),
        ("who closed is not known", fin(), Early, Likely),
        ("another machine", stood(FAR).fin(SENT + 5 * MS), Early, Likely),
        (
            "a child of it ended",
            fin().closer(close, false, |d| d.child_ended_ns = Some(close - MS)),
            Early,
            Likely,
        ),
        (
            "a child of it had ended before",
            fin().closer(close, false, |d| d.child_ended_ns = Some(2)),
            Early,
            Proven,
        ),
        ("in the header", fin().got(SENT + MS, PART).closer(close, false, |_| {}), Early, Proven),
        ("it closed, and was gone a moment later", fin().closer(close, true, |_| {}), Died, Likely),
        ("a reset in the header", rst().got(SENT + MS, PART).closer(close, false, |_| {}), Reset, Proven),
        (
            "a reset when TLS hides whether all was said",
            rst()
                .got(SENT + MS, b"\x17\x03\x03\x00\x40")
                .talk(|t| (t.tls, t.tls_data) = (true, true))
                .closer(close, false, |_| {}),
            Reset,
            Likely,
        ),
        (
            "told to end, it closed and was gone (gunicorn)",
            fin().closer(close, true, |d| d.sent = sent(libc::SIGABRT, 4000, close - MS)),
            Died,
            Proven,
        ),
        (
            "told to end, it closed and lives",
            fin().closer(close, false, |d| d.sent = sent(libc::SIGTERM, 4000, close - MS)),
            Early,
            Likely,
        ),
        (
            "killed",
            fin().closer(close, true, |d| {
                (d.ending, d.signal, d.sent) = (true, Some(9), sent(9, 4000, close - MS));
            }),
            Died,
            Proven,
        ),
        (
            "killed with the request unread",
            rst().closer(close, true, |d| (d.ending, d.signal, d.oom) = (true, Some(9), true)),
            Died,
            Proven,
        ),
        ("it exited", fin().closer(close, true, |d| (d.ending, d.status) = (true, Some(3))), Died, Proven),
        (
            "it died after the connection had ended",
            fin().closer(SENT + 30 * MS, true, |d| (d.ending, d.status) = (true, Some(3))),
            Early,
            Likely,
        ),
        (
            "it died after nginx had given up",
            stood(NEAR)
                .ends_ms(1001)
                .closer(SENT + 1002 * MS, true, |d| (d.ending, d.status) = (true, Some(3))),
            Read,
            Proven,
        ),
        ("reset, it lives", rst().closer(close, false, |_| {}), Reset, Proven),
        ("reset, the far end's socket is still there", rst().far(true, 0), Reset, Likely),
        ("reset from another machine", stood(FAR).rst(SENT + 5 * MS), Reset, Likely),
        ("reset in the body", rst().got(SENT + MS, BODY), Cause::ResponseTruncated, Proven),
        (
            "told of an error, no RST seen",
            stood(FAR).talk(|t| t.told = Some(event::Told::Error(libc::ECONNRESET))),
            Reset,
            Likely,
        ),
        (
            "in the TLS handshake",
            stood(NEAR).fin(SENT + MS).talk(|t| t.tls = true),
            Cause::TlsHandshakeFailed,
            Likely,
        ),
        ("the worker ended", stood(NEAR).edit(|c| c.attempt.exiting = true), Unexplained, No),
    ]);
}

#[test]
fn kept_connections() {
    let kept = || stood(NEAR).kept(5_000_000);
    let died = |build: Build, at| build.closer(at, true, |d| (d.ending, d.status) = (true, Some(0)));
    check(vec![
        ("FIN before the request", kept().fin(SENT - 30_000), Race, Proven),
        ("and a RST for it", kept().fin(SENT - 30_000).rst(SENT + 20_000), Race, Proven),
        ("RST before the request", kept().rst(SENT - 30_000), Race, Proven),
        ("they crossed", kept().fin(SENT + 30_000), Race, Likely),
        ("another machine", stood(FAR).kept(5_000_000).fin(SENT - 30_000), Race, Proven),
        ("because of the request", kept().fin(SENT + 5 * MS), Early, Likely),
        ("reset because of the request", kept().rst(SENT + 5 * MS), Reset, Likely),
        (
            "the server closed with the request unread",
            kept().rst(SENT + 4 * MS).closer(SENT + 4 * MS - 20_000, false, |d| d.unread = 31),
            Race,
            Proven,
        ),
        (
            "it read the request, and reset",
            kept().rst(SENT + 4 * MS).closer(SENT + 4 * MS - 20_000, false, |_| {}),
            Reset,
            Proven,
        ),
        ("a new connection", stood(NEAR).fin(SENT - 30_000), Early, Likely),
        ("it had begun to answer", kept().got(SENT + MS, PART).fin(SENT + 5 * MS), Early, Likely),
        ("the server died while it was idle", died(kept().fin(SENT - 30_000), SENT - 50_000), Died, Proven),
        ("and because of the request", died(kept().fin(SENT + 5 * MS), SENT + 4 * MS), Died, Proven),
        (
            "opened before why502",
            stood(NEAR).fin(SENT - 30_000).talk(|t| (t.found, t.idle_us) = (true, Some(9))),
            Race,
            Proven,
        ),
    ]);
}

#[test]
fn a_race_tells_the_idle_limit_and_why_it_was_not_tried_again() {
    let case = stood(NEAR)
        .kept(5_000_000)
        .fin(SENT - 30_000)
        .talk(|t| t.request = Bytes::from_static(b"POST /a HTTP/1.1\r\n\r\n"))
        .edit(|c| c.facts.backend.idle_ends_us = vec![5_000_100, 4_999_970]);
    let text = format!("{:#?}", diagnose(&case.0));
    for part in [
        "idle for 5.000 s",
        "FIN came 30 µs before",
        "2 times this server closed connections that had been idle for 4.999 s",
        "nginx keeps them longer: keepalive_timeout 60s; (/etc/nginx/conf.d/shop.conf:7)",
        "does not send a POST twice unless non_idempotent",
        "set keepalive_timeout in /etc/nginx/conf.d/shop.conf:7 below",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn timers() {
    let late = || stood(NEAR).ends_ms(1001);
    // A POST of 100,000 bytes, of which some went out.
    let upload = |out: u32| {
        stood(NEAR).talk(|t| {
            t.request = Bytes::from_static(b"POST /a HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
            (t.sent_bytes, t.unacked) = (out, 20_000);
        })
    };
    let unknown = |build: Build| {
        build.talk(|t| {
            t.request = Bytes::from_static(b"POST /a HTTP/1.1\r\nCookie: ");
            (t.sent_bytes, t.unacked) = (90_000, 20_000);
        })
    };
    let equal = |build: Build| {
        build.edit(|c| {
            c.config[0].settings = InForces::default()
                .with("read_timeout", "proxy_read_timeout", "1s", None)
                .with("send_timeout", "proxy_send_timeout", "1s", None);
        })
    };
    check(vec![
        ("no answer", late(), Read, Proven),
        ("and 504 told", late().saw(504), Read, Proven),
        ("a moment early: nginx's clock", stood(NEAR).ends_ms(990), Read, Proven),
        ("the client left in that moment", late().client_gone(false), Read, Likely),
        ("the client left, and was told 504", late().client_gone(false).saw(504), Read, Proven),
        ("the client left long before", stood(NEAR).ends_ms(300).client_gone(false), ClientAborted, Proven),
        (
            "the client left, and an answer with its end lay unread",
            stood(NEAR)
                .ends_ms(300)
                .client_gone(false)
                .talk(|t| (t.fin_ns, t.unread) = (Some(SENT + 299 * MS), 144)),
            ClientAborted,
            Proven,
        ),
        (
            "the same, and nginx had read the end",
            stood(NEAR).ends_ms(300).client_gone(false).fin(SENT + 299 * MS),
            Early,
            Likely,
        ),
        (
            "the client left, no time-out is known",
            stood(NEAR).ends_ms(300).client_gone(true).edit(|c| c.config.clear()),
            ClientAborted,
            Likely,
        ),
        ("early, nobody left", stood(NEAR).ends_ms(300), Unexplained, No),
        ("early, 504 told", stood(NEAR).ends_ms(300).saw(504), Read, Proven),
        ("much later than any timer", stood(NEAR).ends_ms(9000), Unexplained, No),
        ("part of a header", late().got(SENT + 700 * MS, PART), Read, Proven),
        ("a body that stalls", stood(NEAR).ends_ms(1800).got(SENT + 700 * MS, BODY), Read, Proven),
        (
            "a body that ends",
            stood(NEAR).ends_ms(1800).got(SENT + 700 * MS, BODY).fin(SENT + 1700 * MS),
            Cause::ResponseTruncated,
            Proven,
        ),
        (
            "the request was not acknowledged",
            late().talk(|t| (t.unacked, t.total_retrans) = (31, 2)),
            Read,
            Proven,
        ),
        ("an upload that stopped", upload(70_000).ends_ms(2001), Send, Proven),
        ("an upload that is done", upload(100_044).ends_ms(1001), Read, Proven),
        ("an upload, the time of the read timer", upload(70_000).ends_ms(1001), Unexplained, No),
        ("of unknown length, the send timer's time", unknown(stood(NEAR)).ends_ms(2001), Send, Likely),
        ("of unknown length, equal timers", equal(unknown(stood(NEAR))).ends_ms(1001), Send, Likely),
        ("a small request, equal timers", equal(late()), Read, Proven),
        ("in the TLS handshake", late().talk(|t| t.tls = true), Unexplained, No),
        (
            "after the TLS handshake",
            late().talk(|t| (t.tls, t.tls_data, t.request) = (true, true, Bytes::new())),
            Read,
            Proven,
        ),
        ("reads were not seen", late().talk(|t| t.watched = false), Unexplained, No),
    ]);
}

#[test]
fn who_was_late() {
    let late = || stood(NEAR).ends_ms(1001);
    for (name, build, part) in [
        ("lost", late().talk(|t| (t.unacked, t.total_retrans) = (31, 3)), "did not even acknowledge"),
        ("not accepted", late().far(false, 31), "no process accepted"),
        ("unread", late().far(true, 31), "python3 (pid 4121) at 127.0.0.1:3000 did not read"),
        (
            "unanswered",
            late().far(true, 0),
            "python3 (pid 4121) at 127.0.0.1:3000 read the request and did not answer",
        ),
        ("another machine", stood(FAR).ends_ms(1001), "acknowledged the request and did not answer"),
        ("in the body", stood(NEAR).ends_ms(1800).got(SENT + 700 * MS, BODY), "stopped in the middle"),
    ] {
        let verdict = diagnose(&build.0);
        assert!(verdict.summary.contains(part), "{name}: {verdict:#?}");
        let all = format!("{verdict:#?}");
        assert!(all.contains("proxy_read_timeout 1s; (/etc/nginx/conf.d/shop.conf:20)"), "{name}: {all}");
    }
    let threads = format!("{:?}", diagnose(&late().far(true, 0).0));
    assert!(threads.contains("its thread is sleeping in hrtimer_nanosleep"), "{threads}");
}

#[test]
fn a_death_is_told_by_whose_hand() {
    let close = SENT + 30_000 * MS;
    let base = |f: &dyn Fn(&mut event::Death)| {
        stood(NEAR).ends_ms(30_001).fin(close + 30_000).closer(close, true, |d| {
            d.ending = true;
            f(d);
        })
    };
    let rows: Vec<(&str, Build, &str)> = vec![
        (
            "by its master",
            base(&|d| (d.signal, d.sent) = (Some(9), sent(9, 4000, close - MS))),
            "was killed with SIGKILL (9) by its parent gunicorn (pid 4000)",
        ),
        (
            "by the service manager",
            base(&|d| (d.signal, d.sent) = (Some(15), sent(15, 1, close - MS))),
            "by gunicorn (pid 1), which manages services",
        ),
        (
            "by somebody",
            base(&|d| (d.signal, d.sent) = (Some(15), sent(15, 77, close - MS))),
            "by gunicorn (pid 77)",
        ),
        ("OOM", base(&|d| (d.signal, d.oom) = (Some(9), true)), "was killed by the OOM killer"),
        (
            "a fault",
            base(&|d| (d.signal, d.core) = (Some(11), true)),
            "crashed: SIGSEGV (11), and left a core dump",
        ),
        (
            "abort()",
            base(&|d| (d.signal, d.sent) = (Some(6), sent(6, PYTHON, close - MS))),
            "crashed: SIGABRT (6)",
        ),
        (
            "aborted by its master",
            base(&|d| (d.signal, d.sent) = (Some(6), sent(6, 4000, close - MS))),
            "was killed with SIGABRT (6) by its parent",
        ),
        ("it exited", base(&|d| d.status = Some(3)), "ended with exit status 3"),
        (
            "it exited when told",
            base(&|d| (d.status, d.sent) = (Some(0), sent(15, 4000, close - MS))),
            "ended with exit status 0 after SIGTERM (15) from its parent",
        ),
    ];
    for (name, build, part) in rows {
        let verdict = diagnose(&build.0);
        assert_eq!((verdict.cause, verdict.confidence), (Died, Proven), "{name}");
        assert!(verdict.summary.contains(part), "{name}: {}", verdict.summary);
        let text = format!("{verdict:#?}");
        assert!(
            text.contains("its FIN came 30 µs later") && text.contains("for 30.000 s when it ended"),
            "{name}: {text}"
        );
    }
    let master = base(&|d| (d.signal, d.sent) = (Some(9), sent(9, 4000, close - MS)));
    assert!(diagnose(&master.0).fix[0].text.contains("gunicorn's --timeout"));
}

#[test]
fn how_much_of_a_header_was_read() {
    use crate::correlate::ending::{Head, head};
    let got = |bytes: &'static [u8]| stood(NEAR).got(SENT + MS, bytes);
    let by = |module, bytes| got(bytes).edit(|c| c.config[0].module = module);
    for (name, build, expected) in [
        ("nothing", stood(NEAR), Head::Nothing),
        ("a part", got(PART), Head::Part),
        ("all", got(BODY), Head::Whole),
        ("bare LF", got(b"HTTP/1.0 200 OK\nA: b\n\n"), Head::Whole),
        ("a part, and more than is kept", got(PART).talk(|t| t.got_bytes = 9000), Head::Unknown),
        ("bytes are not told", got(PART).talk(|t| t.response = Bytes::new()), Head::Unknown),
        ("nginx answered 502 itself", got(PART).talk(|t| t.got_bytes = 9000).saw(502), Head::Part),
        ("HTTP/0.9 has none", got(b"garbage"), Head::Whole),
        ("HTTP/0.9 that began before", got(b"garbage").talk(|t| t.before = true), Head::Unknown),
        (
            "TLS, only its handshake",
            got(b"\x16\x03\x03").talk(|t| {
                (t.tls, t.tls_data, t.read_ns) = (true, true, Some(SENT - MS));
            }),
            Head::Nothing,
        ),
        ("TLS", got(b"\x16\x03\x03").talk(|t| (t.tls, t.tls_data) = (true, true)), Head::Unknown),
        ("uwsgi", by(Module::Uwsgi, BODY), Head::Whole),
        (
            "FastCGI",
            by(Module::Fastcgi, b"\x01\x06\x00\x01\x00\x10\x00\x00Status: 200\r\n\r\nab"),
            Head::Whole,
        ),
        ("FastCGI, stderr alone", by(Module::Fastcgi, b"\x01\x07\x00\x01\x00\x03\x00\x00oh!"), Head::Part),
        ("gRPC settings", by(Module::Grpc, b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), Head::Part),
        (
            "gRPC headers",
            by(Module::Grpc, b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"),
            Head::Whole,
        ),
        (
            "a gRPC frame longer than what came",
            by(Module::Grpc, b"\xff\xff\xff\x04\x00\x00\x00\x00\x00"),
            Head::Part,
        ),
        ("memcached", by(Module::Memcached, b"VALUE a 0 3\r\nabc"), Head::Whole),
        ("stream has none", by(Module::Stream, b"SSH"), Head::Whole),
    ] {
        assert_eq!(head(&build.0), expected, "{name}");
    }
}

/// The server itself answered 500, with that `proxy_next_upstream`.
fn own_500(next: &str, request: &'static [u8]) -> Build {
    stood(NEAR)
        .got(SENT + MS, b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
        .talk(|t| {
            (t.said_5xx, t.status) = (true, Some(500));
            t.request = Bytes::from_static(request);
        })
        .edit(|c| {
            c.config[0].settings =
                InForces::default().with("next_upstream", "proxy_next_upstream", next, None);
        })
}

#[test]
fn a_500_that_is_a_last_word() {
    use crate::event::Sent;
    // gunicorn ends a worker by SIGABRT, which answers 500 and closes.
    let told = |signal, after_ms: u64, sender| {
        own_500("error timeout", b"GET / HTTP/1.1\r\n\r\n")
            .talk(|t| (t.first_read_ns, t.read_ns) = (Some(SENT + 2000 * MS), Some(SENT + 2000 * MS)))
            .ends_ms(2000)
            .closer(SENT + 2001 * MS, false, |d| {
                let sender = Some((sender, "gunicorn".to_owned()));
                d.sent = Some(Sent { signal, sender, time_ns: SENT + after_ms * MS });
            })
    };
    for (name, build, last, limit) in [
        ("its worker time-out", told(6, 1990, 4000), true, true),
        ("told to stop by its master", told(15, 1990, 4000), true, false),
        ("aborted by somebody else", told(6, 1990, 77), true, false),
        ("told behind its answer", told(6, 2001, 4000), false, false),
        (
            "a close that came much later",
            told(6, 1990, 4000).edit(|c| {
                c.facts.backend.death.as_mut().unwrap().time_ns = SENT + 2500 * MS;
            }),
            false,
            false,
        ),
        ("of its own accord", own_500("error timeout", b"GET / HTTP/1.1\r\n\r\n"), false, false),
    ] {
        let verdict = diagnose(&build.0);
        assert_eq!((verdict.cause, verdict.confidence), (Cause::UpstreamReturned5xx, Proven), "{name}");
        let fixes = verdict.fix.iter().map(|fix| fix.text.as_str()).collect::<Vec<_>>().join("\n");
        let said = verdict.evidence.iter().any(|e| e.kind == "signal");
        assert_eq!((said, fixes.contains("--timeout")), (last, limit), "{name}: {fixes}");
        assert_eq!(fixes.contains("no time-out"), !last, "{name}: {fixes}");
    }
}

#[test]
fn a_5xx_for_which_another_server_is_asked() {
    let text = |build: Build| {
        let verdict = diagnose(&build.saw(500).0);
        assert_eq!(verdict.cause, Cause::UpstreamReturned5xx);
        verdict.evidence.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join("\n")
    };
    let get = text(own_500("error timeout http_500", b"GET / HTTP/1.1\r\n\r\n"));
    assert!(get.contains("asks another server, if one is left") && !get.contains("passed it on"), "{get}");
    let post = text(own_500("error timeout http_500", b"POST / HTTP/1.1\r\n\r\n"));
    assert!(post.contains("asks no other server") && post.contains("passed it on"), "{post}");
    let other = text(own_500("error timeout", b"GET / HTTP/1.1\r\n\r\n"));
    assert!(other.contains("passed it on") && !other.contains("another server"), "{other}");
}

/// ngx_http_upstream_next calls the balancer with NGX_PEER_FAILED, whatever the failure; a body that fails does not come by
/// there, nor does a client that leaves.
#[test]
fn what_counts_against_a_server() {
    use crate::correlate::ending::counts_as_failure;
    for (name, build, counts) in [
        ("closed early", stood(NEAR).fin(SENT + MS), true),
        ("reset", stood(NEAR).rst(SENT + MS), true),
        ("a kept connection that was closed", stood(NEAR).kept(5).fin(SENT - MS), true),
        ("a time-out", stood(NEAR).ends_ms(1001), true),
        ("a refused header", stood(NEAR).got(SENT + MS, PART), true),
        ("a body that stalls", stood(NEAR).ends_ms(1801).got(SENT + 700 * MS, BODY), false),
        ("a body that is cut", stood(NEAR).got(SENT + MS, BODY).fin(SENT + 2 * MS), false),
        ("the client left", stood(NEAR).ends_ms(300).client_gone(false), false),
        ("the worker ended", stood(NEAR).edit(|c| c.attempt.exiting = true), false),
        ("the server's own 502", stood(NEAR).talk(|t| t.said_5xx = true), false),
        (
            "a 500 for which another server is asked",
            own_500("error timeout http_500", b"GET / HTTP/1.1\r\n\r\n"),
            true,
        ),
        ("another status than that", own_500("error timeout http_502", b"GET / HTTP/1.1\r\n\r\n"), false),
        ("a POST's", own_500("error timeout http_500", b"POST / HTTP/1.1\r\n\r\n"), false),
        (
            "a POST's, which may be sent again",
            own_500("http_500 non_idempotent", b"POST / HTTP/1.1\r\n\r\n"),
            true,
        ),
    ] {
        assert_eq!(counts_as_failure(&build.0), counts, "{name}");
    }
}

#[test]
fn when_an_idle_connection_ended() {
    use crate::correlate::ending::idle_end_us;
    let kept = |fin| stood(NEAR).kept(5_000_000).fin(fin);
    for (name, build, expected) in [
        ("before the request", kept(SENT - 30_000), Some(4_999_970)),
        ("as it was sent", kept(SENT + 30_000), Some(5_000_030)),
        ("because of it", kept(SENT + 5 * MS), None),
        ("a new connection", stood(NEAR).fin(SENT - 30_000), None),
        ("it answered", kept(SENT + 30_000).got(SENT + 20_000, PART), None),
    ] {
        assert_eq!(idle_end_us(&build.0), expected, "{name}");
    }
}

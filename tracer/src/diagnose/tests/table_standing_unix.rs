//! Connections to unix sockets that stood and failed: what differs from TCP, each cause beside its look-alikes.

use super::{
    standing::{MS, PYTHON, SENT, sent, stood},
    *,
};
use crate::{
    correlate::unix::PoolLine,
    event::{FarEnd, Told, UnixName},
};
use Cause::{
    KeepaliveRace as Race, ReadTimeout as Read, Unexplained, UpstreamClosedEarly as Early,
    UpstreamDied as Died, UpstreamReset as Reset,
};
use Confidence::{Likely, Proven, Unexplained as No};

const MASTER: u32 = 4000;
const FAR_END: FarEnd = FarEnd { open: true, accepted: true, unread: false, full: false, inode: Some(77) };

/// As [`stood`], to a unix socket whose far end was still open.
fn unix() -> Build {
    stood(NEAR)
        .edit(|c| {
            c.attempt.unix = Some(UnixName::Path(b"/run/php/fpm.sock".to_vec()));
            c.attempt.no_remote = true;
            c.attempt.remote = c.attempt.local;
        })
        .talk(|t| (t.far, t.srtt_us) = (Some(FAR_END), 0))
}

/// nginx was told ECONNRESET: the far end was closed with bytes unread.
fn unread_close() -> Build {
    unix().talk(|t| {
        (t.fin_ns, t.told_ns) = (Some(SENT + 5 * MS), Some(SENT + 5 * MS + 9000));
        t.told = Some(Told::Error(libc::ECONNRESET));
    })
}

fn pool(build: Build, key: &str, value: &str) -> Build {
    let line = PoolLine {
        key: key.to_owned(),
        value: value.to_owned(),
        place: "/etc/php/8.2/fpm/pool.d/www.conf:120".to_owned(),
    };
    build.edit(|c| c.facts.backend.pool = vec![line])
}

#[test]
fn causes() {
    let close = SENT + 5 * MS;
    let late = || unix().ends_ms(1001);
    check(vec![
        ("closed, and alive", unix().fin(close).closer(close, false, |_| {}), Early, Proven),
        ("closed by whom, is not known", unix().fin(close), Early, Likely),
        ("with the request unread, and alive", unread_close().closer(close, false, |_| {}), Reset, Proven),
        ("with the request unread, by whom is not known", unread_close(), Reset, Likely),
        (
            "with the request unread, by a process that was killed",
            unread_close().closer(close, true, |d| {
                (d.ending, d.signal, d.sent) = (true, Some(9), sent(9, MASTER, close - MS));
            }),
            Died,
            Proven,
        ),
        (
            "killed after nginx had given up",
            late().closer(SENT + 1002 * MS, true, |d| (d.ending, d.signal) = (true, Some(9))),
            Read,
            Proven,
        ),
        ("a kept one, closed before the request", unix().kept(9_000_000).fin(SENT - MS), Race, Proven),
        ("a kept one, closed after it", unix().kept(9_000_000).fin(close), Early, Likely),
        ("no answer", late().far(true, 0), Read, Proven),
        ("the worker ended", unix().edit(|c| c.attempt.exiting = true), Unexplained, No),
        ("early, and nobody left", unix().ends_ms(300), Unexplained, No),
    ]);
}

#[test]
fn who_was_late() {
    let late = || unix().ends_ms(1001);
    let target = "unix:/run/php/fpm.sock";
    for (name, build, part) in [
        ("not accepted", late().far(false, 0), format!("{target} has the request, but no process accepted")),
        ("unread", late().far(true, 31), format!("python3 (pid {PYTHON}) at {target} did not read")),
        // php reads the end of FastCGI's standard input when the script has ended.
        ("its last record unread", late().far(true, 8), format!("at {target} read the request and did not")),
        ("all read", late().far(true, 0), format!("at {target} read the request and did not")),
    ] {
        let verdict = diagnose(&build.0);
        assert!(verdict.summary.contains(&part), "{name}: {}", verdict.summary);
        let request = verdict.evidence.iter().find(|e| e.kind == "request").unwrap();
        assert!(!request.text.contains("acknowledged"), "{name}: {}", request.text);
    }
}

#[test]
fn php_fpm_says_its_own_limits() {
    let close = SENT + 1200 * MS;
    let killed = |from| {
        unread_close()
            .talk(|t| (t.fin_ns, t.told_ns) = (Some(close), Some(close + 9000)))
            .ends_ms(1201)
            .closer(close, true, |d| {
                d.comm = "php-fpm8.2".to_owned();
                (d.ending, d.signal, d.parent) = (true, Some(15), MASTER);
                d.sent = sent(15, from, close - MS);
            })
    };
    let line = |verdict: &Verdict| {
        verdict.evidence.iter().find(|e| e.kind == "pool").map(|e| e.text.clone()).unwrap_or_default()
    };
    let limit = |build| diagnose(&pool(build, "request_terminate_timeout", "1s").0);
    let by_master = limit(killed(MASTER));
    assert_eq!(line(&by_master), "request_terminate_timeout = 1s (/etc/php/8.2/fpm/pool.d/www.conf:120)");
    assert!(
        by_master.fix.iter().any(|f| f.text.contains("request_terminate_timeout")),
        "{:?}",
        by_master.fix
    );
    // Somebody else's kill is not the pool's limit.
    assert_eq!(line(&limit(killed(1))), "");
    let busy = |accepted| pool(unix().ends_ms(1001).far(accepted, 0), "pm.max_children", "5");
    assert_eq!(line(&diagnose(&busy(false).0)), "pm.max_children = 5 (/etc/php/8.2/fpm/pool.d/www.conf:120)");
    assert_eq!(line(&diagnose(&busy(true).0)), "");
}

#[test]
fn words_are_those_of_a_unix_socket() {
    let close = SENT + 5 * MS;
    for build in [
        unix().fin(close).closer(close, false, |_| {}),
        unread_close().closer(close, true, |d| (d.ending, d.signal) = (true, Some(9))),
        unix().kept(9_000_000).fin(SENT - MS),
    ] {
        let verdict = diagnose(&build.0);
        let said: Vec<&str> = verdict.evidence.iter().map(|e| e.text.as_str()).collect();
        assert!(said.iter().all(|text| !text.contains("FIN") && !text.contains("acknowledged")), "{said:?}");
        assert!(verdict.summary.contains("unix:/run/php/fpm.sock"), "{}", verdict.summary);
    }
}

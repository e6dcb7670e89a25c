//! The command line itself: needs no privileges and no nginx.

use crate::program::{run, why502};

fn refused(args: &[&str], says: &[&str]) {
    run(&mut why502(args)).code(2).no_data().says(says);
}

#[test]
fn wrong_values_are_usage_errors_that_name_the_right_ones() {
    refused(&["--tier", "nope"], &["'nope'", "auto", "full", "kprobe", "tracepoint"]);
    refused(&["trace", "--tier", "nope"], &["'nope'", "tracepoint"]);
    refused(&["-o", "xml"], &["text", "json"]);
    refused(&["--color", "blue"], &["auto", "always", "never"]);
    refused(&["--ring-size", "1000"], &["1000", "power of two", "64", "65536"]);
    refused(&["--ring-size", "32"], &["power of two"]);
    refused(&["--max-connections", "10"], &["1024..=4194304"]);
    refused(&["-c", "0"], &["1.."]);
    refused(&["-c", "-1"], &["-1"]);
    for time in ["x", "0", "1d", "", "-5", "nan", "inf", "1e999"] {
        refused(&["trace", &format!("--duration={time}")], &["is no time", "s, m or h"]);
    }
    refused(&["-p", "nginx"], &["invalid digit"]);
    refused(&["--status", "600"], &["is no status", "5xx"]);
    refused(&["--client", "10.0.0/8"], &["neither an IP address nor a network"]);
    refused(&["-w", "x", "--max-size", "1K"], &["is no size of 64K or more"]);
    refused(&["--keep", "15m"], &["--write"]);
    refused(&["--max-size", "1M"], &["--write"]);
    refused(&["-p", "-1"], &["-1"]);
}

#[test]
fn unknown_causes_get_suggestions() {
    refused(
        &["--cause", "connect-refused"],
        &["did you mean", "connect-refused-no-listener", "connect-refused-by-peer"],
    );
    refused(
        &["--cause", "backlog-full"],
        &["did you mean", "connect-timeout-backlog-full", "unix-backlog-full"],
    );
    refused(&["--cause", "connect-refused-no-listner"], &["did you mean", "connect-refused-no-listener"]);
    // Nothing is near: all are named.
    refused(
        &["--cause", "nonsense"],
        &["nonsense", "connect-refused-no-listener", "fd-limit", "client-aborted"],
    );
    refused(&["--cause", "Fd-Limit"], &["fd-limit"]);
}

#[test]
fn unknown_options_and_commands() {
    refused(&["--frobnicate"], &["--frobnicate", "--help"]);
    refused(&["frobnicate"], &["frobnicate"]);
    refused(&["doctor", "--wait"], &["--wait"]);
    refused(&["--wait", "doctor"], &["doctor"]);
    refused(&["trace", "extra"], &["extra"]);
}

#[test]
fn help_and_version_are_data() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["trace", "--help"],
        &["config", "--help"],
        &["doctor", "--help"],
        &["--version"],
        &["-V"],
    ] {
        let ended = run(&mut why502(args));
        ended.code(0);
        assert!(ended.stderr.is_empty() && !ended.stdout.is_empty(), "{ended}");
        assert!(!ended.stdout.contains('\u{1b}'), "no terminal, no colours\n{ended}");
    }
    let version = run(&mut why502(&["--version"])).stdout;
    assert_eq!(version, format!("why502 {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn explains_every_cause_without_privileges() {
    let list = run(&mut why502(&["explain"])).code(0).stdout.clone();
    for name in ["connect-refused-no-listener", "blocked-selinux", "unix-permission", "unexplained"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{list}");
        let page = run(&mut why502(&["explain", name])).code(0).stdout.clone();
        for part in [name, "What it means", "How it is proven", "What looks like it", "Fixes", "Wrong advice"]
        {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains('\u{1b}') && !page.contains("## "), "{page}");
    }
    refused(&["explain", "selinux"], &["did you mean", "blocked-selinux"]);
    // What a check finds is explained as well: the list and the pages agree.
    let listed = run(&mut why502(&["check", "--list"])).code(0).stdout.clone();
    for name in listed.lines().filter_map(|line| line.split(' ').next()) {
        let page = run(&mut why502(&["explain", name])).code(0).stdout.clone();
        assert!(page.starts_with(name) && page.lines().count() > 8, "{name}: {page}");
    }
    refused(&["explain", "keepalive-without-http11"], &["did you mean keepalive-without-effect"]);
}

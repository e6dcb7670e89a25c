//! Phrases shared by the rules and the report: errno names, durations, descriptions of evidence.

use std::net::IpAddr;

use crate::{
    correlate::{Case, GaveUp, Listening, ending, no_attempt::NoAttempt},
    event::{Attempt, Drop, DropClass, Stage},
    nginx::{ConfigLine, Layer, Module},
};

/// Where the pass stands: `http` or `stream`.
#[must_use]
pub fn layer(case: &Case) -> &'static str {
    ending::module(case).map_or(Layer::Http, Module::layer).name()
}

/// What an attempt is made for: a request, or a session of the stream module.
#[must_use]
pub fn request(case: &Case) -> &'static str {
    if ending::module(case) == Some(Module::Stream) { "session" } else { "request" }
}

/// How nginx ended what it tried nobody more for, and when.
#[must_use]
pub fn ended_untried(case: &Case, none: &NoAttempt) -> String {
    let waited = duration(none.waited_us);
    match ending::module(case) {
        Some(Module::Stream) => format!("nginx closed the session {waited} after it began"),
        Some(_) | None => format!("nginx answered {waited} after the request"),
    }
}

/// The same, where it has tried nobody at all.
#[must_use]
pub fn untried(case: &Case, none: &NoAttempt) -> String {
    format!("{} and opened no connection", ended_untried(case, none))
}

/// Name of an errno (include/uapi/asm-generic/errno*.h), for those that a connection attempt can yield.
#[must_use]
pub fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::ENOTDIR => "ENOTDIR",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::EPIPE => "EPIPE",
        libc::EPROTOTYPE => "EPROTOTYPE",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ELOOP => "ELOOP",
        libc::ENOPROTOOPT => "ENOPROTOOPT",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNRESET => "ECONNRESET",
        libc::ENOBUFS => "ENOBUFS",
        libc::EISCONN => "EISCONN",
        libc::ENOTCONN => "ENOTCONN",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::EHOSTDOWN => "EHOSTDOWN",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EALREADY => "EALREADY",
        libc::EINPROGRESS => "EINPROGRESS",
        libc::ENONET => "ENONET",
        _ => return None,
    })
}

/// `111 ECONNREFUSED`.
#[must_use]
pub fn errno(errno: i32) -> String {
    errno_name(errno).map_or_else(|| errno.to_string(), |name| format!("{errno} {name}"))
}

/// Where an attempt went: `127.0.0.1:3000`, `unix:/run/app.sock`.
#[must_use]
pub fn target(attempt: &Attempt) -> String {
    match &attempt.unix {
        Some(name) => format!("unix:{name}"),
        None => attempt.remote.to_string(),
    }
}

/// `38 µs`, `4.2 ms`, `1.000 s`.
#[must_use]
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{:03} s", us / 1_000_000, us % 1_000_000 / 1_000),
    }
}

/// `1 SYN`, `3 SYNs`.
#[must_use]
pub fn syns(count: u32) -> String {
    if count == 1 { "1 SYN".to_owned() } else { format!("{count} SYNs") }
}

/// `after 38 µs`, `at once`, or that the beginning was not seen.
#[must_use]
pub fn after(case: &Case) -> String {
    match (case.attempt.duration_us(), case.attempt.stage) {
        (Some(us), _) => format!("after {}", duration(us)),
        (None, Stage::Socket | Stage::Bind | Stage::Connect | Stage::Untried) => "at once".to_owned(),
        (None, Stage::SynSent | Stage::Established) => "(it began before why502 was watching)".to_owned(),
    }
}

/// Name of an ICMP error by type and code (RFC 792, RFC 1812, RFC 4443).
#[must_use]
pub fn icmp_name(v6: bool, kind: u8, code: u8) -> String {
    let known = match (v6, kind, code) {
        (false, 3, 0) => "network unreachable",
        (false, 3, 1) => "host unreachable",
        (false, 3, 2) => "protocol unreachable",
        (false, 3, 3) => "port unreachable",
        (false, 3, 4) => "fragmentation needed",
        (false, 3, 6) => "destination network unknown",
        (false, 3, 7) => "destination host unknown",
        (false, 3, 9) => "network administratively prohibited",
        (false, 3, 10) => "host administratively prohibited",
        (false, 3, 11 | 12) => "unreachable for this type of service",
        (false, 3, 13) => "communication administratively prohibited",
        (false, 11, 0) => "time to live exceeded",
        (true, 1, 0) => "no route to destination",
        (true, 1, 1) => "communication administratively prohibited",
        (true, 1, 2) => "beyond scope of source address",
        (true, 1, 3) => "address unreachable",
        (true, 1, 4) => "port unreachable",
        (true, 1, 5) => "source address failed policy",
        (true, 1, 6) => "reject route to destination",
        (true, 3, 0) => "hop limit exceeded",
        _ => return format!("{} type {kind} code {code}", if v6 { "ICMPv6" } else { "ICMP" }),
    };
    format!("{} {known} (type {kind} code {code})", if v6 { "ICMPv6" } else { "ICMP" })
}

/// What the ICMP error said and who sent it.
#[must_use]
pub fn icmp(case: &Case) -> Option<String> {
    let icmp = case.attempt.icmp?;
    // On loopback the sender is both.
    let who = if case.facts.icmp_sender_is_own == Some(true) {
        format!("{}, this host", icmp.sender)
    } else if icmp.sender == case.attempt.remote.ip() {
        format!("{}, the upstream itself", icmp.sender)
    } else {
        format!("{}, a host on the way", icmp.sender)
    };
    let v6 = matches!(icmp.sender, IpAddr::V6(_));
    Some(format!("{} from {who}, {}", icmp_name(v6, icmp.kind, icmp.code), after(case)))
}

/// Where a drop happened: hook, engine, namespace.
#[must_use]
pub fn drop_place(case: &Case, drop: &Drop) -> String {
    let mut place = match (drop.class, case.facts.drop_hook.as_deref()) {
        (DropClass::Netfilter, Some(hook)) => format!("by netfilter at the {hook} hook"),
        (DropClass::Netfilter, None) => "by netfilter".to_owned(),
        (DropClass::RpFilter, _) => "by the reverse path filter (rp_filter)".to_owned(),
        (DropClass::Bpf, _) => "by a BPF program attached to a cgroup or socket".to_owned(),
        (DropClass::Tc, _) => "by traffic control (tc)".to_owned(),
        (DropClass::Neighbour, _) => "because the next hop did not answer (neighbour discovery)".to_owned(),
        (DropClass::NoRoute, _) => "for want of a route".to_owned(),
        (DropClass::Xfrm, _) => "by IPsec policy".to_owned(),
        (DropClass::NoSocket, _) => "as no socket wanted it".to_owned(),
        (DropClass::ListenOverflow, _) => "as the accept queue was full".to_owned(),
        (DropClass::Other, _) => match &case.facts.drop_function {
            Some(function) => format!("in the kernel's {function}()"),
            None => "in the kernel".to_owned(),
        },
    };
    if let Some(engine) = &case.facts.drop_engine {
        place.push_str(&format!(" ({engine})"));
    }
    if other_namespace(case, drop.netns) {
        let name =
            case.facts.other_namespace.as_deref().unwrap_or("another network namespace of this machine");
        place.push_str(&format!(", in {name}"));
    }
    place
}

/// True if that namespace is known and not the worker's own.
#[must_use]
pub fn other_namespace(case: &Case, netns: u32) -> bool {
    netns != 0 && netns != case.attempt.netns
}

/// `SYN dropped by netfilter at the output hook, 2 times; kernel's reason NETFILTER_DROP`.
#[must_use]
pub fn drop_text(case: &Case) -> Option<String> {
    let drop = case.attempt.drop.as_ref()?;
    let what = if drop.reply { "answer" } else { "SYN" };
    let times = if drop.count == 1 { "once".to_owned() } else { format!("{} times", drop.count) };
    let mut text = format!("{what} dropped {times} {}", drop_place(case, drop));
    if let Some(reason) = &case.facts.drop_reason {
        text.push_str(&format!("; the kernel's reason: {reason}"));
    }
    Some(text)
}

/// `node (pid 4121) listens on 127.0.0.1:3001`.
#[must_use]
pub fn listening(listener: &Listening) -> String {
    match &listener.owner {
        Some(owner) => format!("{owner} listens on {}", listener.address),
        None => format!("a socket listens on {}", listener.address),
    }
}

/// Where DNAT sent the connection.
#[must_use]
pub fn translation(case: &Case) -> Option<String> {
    let to = case.facts.translated?;
    Some(format!("DNAT on this machine rewrote {} to {to} (conntrack)", case.attempt.remote))
}

/// Who ended an attempt that got no answer, and by which clock.
#[must_use]
pub fn gave_up(case: &Case, how: GaveUp) -> String {
    match how {
        GaveUp::Kernel => format!("the kernel gave up {} ({})", after(case), errno(libc::ETIMEDOUT)),
        GaveUp::Timer => match case.timer() {
            Some(timer) => format!("nginx gave up {}: {}", after(case), timer.text),
            None => match case.client_saw {
                Some(504) => format!(
                    "nginx gave up {} and answered 504, which no client gets that has left: its timer ran out",
                    after(case)
                ),
                Some(_) | None => format!("nginx gave up {}", after(case)),
            },
        },
        GaveUp::ClientGone => format!("nginx gave up {} because its client had left", after(case)),
        GaveUp::WorkerEnded => format!("the worker ended {}", after(case)),
        GaveUp::Early => {
            let answer = case
                .client_saw
                .map(|status| format!("; its client had not left: it got {status}"))
                .unwrap_or_default();
            format!("nginx gave up {}, earlier than any connect timeout in force{answer}", after(case))
        }
    }
}

/// The line that names the server, for advice: `conf.d/shop.conf:4`.
#[must_use]
pub fn server_line(case: &Case) -> Option<String> {
    let [only] = case.config.as_slice() else {
        return None;
    };
    let line = only.lines.first()?;
    Some(format!("{}:{}", line.file.display(), line.line))
}

/// What to do to a line that keeps nginx from another server (see [`crate::nginx::Barred`]); `word`: what it must be told to go
/// on after.
#[must_use]
pub fn unbar(line: &ConfigLine, word: &str) -> String {
    let place = format!("{}:{}", line.file.display(), line.line);
    let has = |wanted: &str| {
        let words = line.text.trim_end_matches(';').split_ascii_whitespace();
        words.skip(1).any(|one| one == wanted)
    };
    if line.text.contains("_tries") {
        format!("take away `{}` ({place}), or raise it", line.text)
    } else if has("off") {
        format!("take away `{}` ({place})", line.text)
    } else {
        format!("add `{word}` to `{}` ({place})", line.text)
    }
}

/// Who refused the system call that failed.
#[must_use]
pub fn denials(case: &Case) -> Option<String> {
    let names: Vec<&str> =
        super::rules::blocked::refusals(case).map(|d| super::rules::blocked::name(d.speaker)).collect();
    (!names.is_empty()).then(|| format!("refused by {}", names.join(" and ")))
}

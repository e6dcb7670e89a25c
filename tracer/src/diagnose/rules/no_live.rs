//! `no-live-upstreams`: every server of the group was out of service, so nginx tried none; or, by its own word alone, none of
//! those that it had not tried for the request before.
//!
//! Look-alikes: a 502 that the configuration or a module makes (`return`, a cached one), and the request whose own
//! attempts took the servers out, which is told by those.

use crate::{
    correlate::{
        Case,
        no_attempt::{Choice, Failure, Group, Peer, Standing, Word},
    },
    diagnose::{Cause, Verdict, words},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let none = case.facts.no_attempt.as_deref()?;
    let Choice::Group(group) = &none.choice else {
        return None;
    };
    let now = case.attempt.end_ns;
    let standings: Vec<(&Peer, Standing)> =
        group.peers.iter().map(|peer| (peer, group.standing(peer, now))).collect();
    let said = none.source.word() == Some(Word::NoLive);
    if !said && (standings.is_empty() || standings.iter().any(|(_, standing)| *standing == Standing::Always))
    {
        return None;
    }
    let unseen = standings.iter().filter(|(_, standing)| *standing == Standing::Unknown).count();
    // A kept connection to a unix socket is not seen: this request may have had one.
    let unix = group.peers.iter().any(|peer| peer.unix.is_some() && !peer.down);
    let open = unseen > 0 && (unix || !none.is_certain() || !none.source.at_once());
    if none.source.word().is_some_and(|word| word != Word::NoLive)
        || (!said && (!none.source.no_connection() || open))
    {
        return None;
    }
    let sure = |(peer, standing): &(&Peer, Standing)| match standing {
        Standing::Down => true,
        Standing::Out { .. } => peer.sure && counted(peer).iter().all(|failure| failure.sure),
        Standing::Unknown | Standing::Always => false,
    };
    let proof = said || (none.is_certain() && group.known && standings.iter().all(sure));
    let rival = none.doubt().unwrap_or_else(|| match unseen {
        0 if !group.known => "a choice that is not nginx's own".to_owned(),
        0 => "a server of the same name at an address that why502 does not know".to_owned(),
        _ => "an answer of a module that why502 does not know; what took the servers out was not seen (before why502 \
              watched, or after the connection: a time-out, an early end, max_conns)"
            .to_owned(),
    });
    let summary = if !standings.is_empty() && standings.iter().all(|(_, s)| *s == Standing::Down) {
        format!("every server of {} is marked `down`", group.name)
    } else if none.tried > 0 {
        format!("no other server of {} was in service when an attempt had failed", group.name)
    } else {
        format!("no server of {} was in service: nginx tried none", group.name)
    };
    let answer = if none.tried == 0 {
        words::untried(case, none)
    } else {
        format!("{}, after {} of its own that failed", words::ended_untried(case, none), attempts(none.tried))
    };
    let mut verdict = Verdict::graded(Cause::NoLiveUpstreams, proof, summary, rival)
        .because("answer", answer)
        .because_if("said", said.then_some("nginx itself tells its log: no live upstreams"));
    for (peer, standing) in &standings {
        let text = match standing {
            Standing::Always if none.tried > 0 => {
                format!("{} was tried for this {}", name(peer), words::request(case))
            }
            _ => told(group, peer, *standing, now),
        };
        verdict = verdict.because("server", text);
    }
    // Beside one that is `down`, nginx takes a live server out that it would always try if it were alone.
    let down: Vec<&Peer> = group.peers.iter().filter(|peer| peer.down).collect();
    let live: Vec<&Peer> = group.peers.iter().filter(|peer| !peer.down).collect();
    let placeholders = !down.is_empty() && live.len() == 1;
    for (peer, standing) in &standings {
        let place = format!("{}:{}", peer.line.file.display(), peer.line.line);
        verdict = match standing {
            Standing::Down if placeholders => verdict,
            Standing::Down => {
                verdict.fix(format!("take `down` away from {place} once {} is back", peer.server))
            }
            Standing::Out { .. } => match counted(peer).last() {
                Some(last) => verdict.fix(format!(
                    "mend {} ({place}): see its incident {} earlier ({}); nginx tries it again by itself",
                    at(peer),
                    words::duration(now.saturating_sub(last.at_ns) / 1000),
                    last.cause
                )),
                None => verdict,
            },
            Standing::Unknown | Standing::Always => verdict,
        };
    }
    if placeholders && let Some(live) = live.first().filter(|live| live.max_fails > 0 && live.max_conns == 0)
    {
        let place = |peer: &Peer| format!("{}:{}", peer.line.file.display(), peer.line.line);
        let lines: Vec<String> = down.iter().map(|peer| place(peer)).collect();
        verdict = verdict
            .because(
                "lone",
                format!(
                    "{} is the only live server: nginx would always try it if it were alone in the group, and takes it out beside \
                     one that is `down`",
                    name(live)
                ),
            )
            .fix(format!("add max_fails=0 to {}: nginx then tries {} every time", place(live), live.server))
            .fix(format!("or remove what is `down` ({}), until there is a second server", lines.join(", ")));
    }
    if unseen > 0 || standings.is_empty() {
        verdict = verdict
            .fix("watch on: the failures that take the servers out the next time are incidents of their own");
    }
    Some(verdict)
}

/// The failures that put a server out.
fn counted(peer: &Peer) -> &[Failure] {
    let wanted = usize::try_from(peer.max_fails).unwrap_or(usize::MAX);
    peer.failures.get(peer.failures.len().saturating_sub(wanted)..).unwrap_or_default()
}

/// The server, with its address where that is not what is written.
fn at(peer: &Peer) -> String {
    match peer.address.map(|a| a.to_string()) {
        Some(address) if address != peer.server => format!("{} ({address})", peer.server),
        Some(_) | None => peer.server.clone(),
    }
}

/// The same with its line.
fn name(peer: &Peer) -> String {
    format!("{} ({}:{})", at(peer), peer.line.file.display(), peer.line.line)
}

fn attempts(count: u64) -> String {
    if count == 1 { "an attempt".to_owned() } else { format!("{count} attempts") }
}

fn told(group: &Group, peer: &Peer, standing: Standing, now: u64) -> String {
    let who = name(peer);
    let rule = format!("max_fails={} fail_timeout={}s", peer.max_fails, peer.fail_timeout_s);
    match standing {
        Standing::Down => format!("{who} is marked `down`"),
        Standing::Out { left_ns } => {
            let failures: Vec<String> = counted(peer)
                .iter()
                .map(|f| {
                    format!("{} before ({})", words::duration(now.saturating_sub(f.at_ns) / 1000), f.cause)
                })
                .collect();
            let whose = if group.shared { "of all workers (zone)" } else { "of this worker" };
            format!(
                "{who} is out for {} more ({rule}): it failed a connection {whose} {}",
                words::duration(left_ns / 1000),
                failures.join(", ")
            )
        }
        Standing::Unknown if peer.address.is_none() && peer.unix.is_none() => {
            format!("{who}: its address is not known, so neither are its failures")
        }
        Standing::Unknown => {
            format!("{who}: what took it out was not seen ({rule}, {} seen)", peer.failures.len())
        }
        Standing::Always => format!("{who} is always tried"),
    }
}

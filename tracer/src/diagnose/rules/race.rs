//! `keepalive-race`: the server closed a connection that nginx had kept, as nginx took it for the next request.
//!
//! Look-alikes: a new connection that is closed early; a kept one whose server closes because of this request; a server that
//! died meanwhile.

use super::{died, standing};
use crate::{
    correlate::{
        Case,
        backend::idle_limit,
        ending::{self, End},
    },
    diagnose::{Cause, Verdict, words},
    nginx::InForce,
};

/// On a kept connection that ended without a byte for this request: true if its end had arrived before the request was
/// written, false if it arrived so soon after that it can have crossed the request. None for all others.
pub(super) fn before(case: &Case) -> Option<bool> {
    let talk = ending::of(case)?;
    let kept = talk.requests > 1 || (talk.found && !talk.before);
    if !kept || talk.got_bytes > 0 || !matches!(ending::end(case)?, End::Fin | End::Reset | End::Error(_)) {
        return None;
    }
    let (ended, sent) = (ending::far_end_ns(case)?, talk.sent_ns?);
    if ended <= sent || unread(case) {
        return Some(true);
    }
    // What arrives less than a round trip after the request was not sent because of it.
    (ended - sent < u64::from(talk.srtt_us) * 1000).then_some(false)
}

/// True for a RST, and no FIN, behind a request on a kept connection of which not a byte was acknowledged: as a rule nobody closed
/// it. Who closes an idle connection sends a FIN; a host, or what lies between, that has forgotten it knows nothing until the next
/// request comes.
pub(super) fn forgotten(case: &Case) -> bool {
    let Some(talk) = ending::of(case) else { return false };
    let kept = talk.requests > 1 || (talk.found && !talk.before);
    let unread = talk.got_bytes == 0 && talk.sent_bytes > 0 && talk.unacked >= talk.sent_bytes;
    kept && unread
        && case.attempt.reset
        && case.attempt.unix.is_none()
        && talk.fin_ns.is_none()
        && before(case) != Some(true)
        && matches!(ending::end(case), Some(End::Reset | End::Error(_)))
        && standing::living_closer(case).is_none()
        && died::death(case).is_none()
}

/// A process that lives closed its end, and had not read a byte of the request: it did not close because of that.
fn unread(case: &Case) -> bool {
    let Some(talk) = ending::of(case).filter(|talk| talk.sent_bytes > 0) else { return false };
    let death = case.facts.backend.death.as_ref();
    standing::living_closer(case).is_some() && death.is_some_and(|death| death.unread >= talk.sent_bytes)
}

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let before = before(case)?;
    if died::death(case).is_some() || forgotten(case) {
        return None;
    }
    let talk = ending::of(case)?;
    let (ended, sent) = (ending::far_end_ns(case)?, talk.sent_ns?);
    let idle = talk.idle_us.map(words::duration);
    let what = if talk.fin_ns.is_some() { standing::fin_word(case) } else { "its RST" };
    // nginx asks the socket for its error first.
    let unsent = talk.sent_bytes == 0 && talk.unacked == 0;
    let order = if unsent && before {
        format!(
            "{what} came {} before nginx took the connection for the request, of which it wrote not a byte: it tries the \
             next server, whatever the method",
            words::duration((sent - ended) / 1000)
        )
    } else if ended > sent && before {
        format!(
            "{} lay unread at the far end when it was closed: all that nginx had sent",
            standing::bytes(talk.sent_bytes)
        )
    } else if before {
        format!("{what} came {} before nginx wrote the request", words::duration((sent - ended) / 1000))
    } else {
        format!(
            "{what} came {} after nginx had written the request; a round trip takes {}",
            words::duration((ended - sent) / 1000),
            words::duration(u64::from(talk.srtt_us))
        )
    };
    let limit = idle_limit(&case.facts.backend.idle_ends_us);
    let keepalive = case.config.iter().find_map(|candidate| candidate.settings.get("keepalive_timeout"));
    let verdict = Verdict::graded(
        Cause::KeepaliveRace,
        before,
        format!(
            "{} closed a kept connection{} as nginx used it again",
            words::target(&case.attempt),
            idle.as_ref().map(|idle| format!(" that had been idle for {idle}")).unwrap_or_default()
        ),
        "the server closed it because of this request",
    )
    .because("order", order)
    .because("keepalive", format!(
            "request {} on this connection{}, idle for {} before; {}",
            talk.requests,
            if talk.found { " since why502 watches (it is older)" } else { "" },
            idle.as_deref().unwrap_or("an unknown time"),
            standing::response(talk)
        ))
    .because_if("process", standing::living_closer(case))
    .because_if(
        "idle",
        limit.map(|us| {
            format!(
                "{} times this server closed connections that had been idle for {}: its own idle limit, as it seems",
                case.facts.backend.idle_ends_us.len(),
                words::duration(us)
            )
        }),
    )
    .because_if("directive", keepalive.map(|one| format!("nginx keeps them longer: {}", standing::directive(one))).filter(|_| {
        let kept_ms = keepalive.and_then(InForce::milliseconds);
        kept_ms.zip(idle_us(case)).is_some_and(|(ms, us)| ms.saturating_mul(1000) > us)
    }))
    .because_if("retry", retry(case));
    let shorter = match (keepalive.and_then(|one| one.line.as_ref()), limit.or(idle_us(case))) {
        (Some(line), Some(us)) => format!(
            "set keepalive_timeout in {}:{} below the server's idle limit of about {}",
            line.file.display(),
            line.line,
            words::duration(us)
        ),
        (None, Some(us)) => format!(
            "set keepalive_timeout in the upstream block below the server's idle limit of about {}",
            words::duration(us)
        ),
        (_, None) => "set keepalive_timeout in the upstream block below the server's idle limit".to_owned(),
    };
    Some(verdict.fix(shorter).fix("or let the server keep idle connections longer than nginx does"))
}

fn idle_us(case: &Case) -> Option<u64> {
    ending::idle_end_us(case)
}

/// Why nginx did not simply try again.
fn retry(case: &Case) -> Option<String> {
    let talk = ending::of(case)?;
    let method = ending::method(talk)?;
    let next = case.config.iter().find_map(|candidate| candidate.settings.get("next_upstream"))?;
    if next.has("off") {
        return Some(format!("nginx does not try again: {}", standing::directive(next)));
    }
    let unsafe_method = matches!(method, "POST" | "LOCK" | "PATCH");
    (unsafe_method && !next.has("non_idempotent")).then(|| {
        format!(
            "nginx does not send a {method} twice unless non_idempotent is among {}",
            standing::directive(next)
        )
    })
}

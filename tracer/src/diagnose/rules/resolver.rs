//! `no-resolver` and `resolver-failed`: a pass with a variable names a host, and nginx could not look it up.
//!
//! Look-alikes: a variable that names a group or an address (nobody is asked), and a connection that failed after the
//! name had been resolved.

use crate::{
    correlate::{
        Case,
        no_attempt::{Choice, LookUp, NoAttempt, Reply, Said, Word, code_name},
    },
    diagnose::{Cause, Verdict, words},
};

/// nginx answers in the same round of its event loop in which it reads the reply.
const AT_ONCE_US: u64 = 100_000;
/// So long a busy worker may take to answer what its name server said of the very name that the request waits for.
const BUSY_US: u64 = 500_000;
/// A busy worker's timers are late.
const LATE_MS: u64 = 1_000;

fn look_up(case: &Case) -> Option<(&NoAttempt, &LookUp)> {
    let none = case.facts.no_attempt.as_deref()?;
    match &none.choice {
        Choice::Name(look_up) => Some((none, look_up)),
        Choice::Group(_) => None,
    }
}

/// The name, or what is known of it.
fn name(look_up: &LookUp) -> &str {
    look_up.name.as_deref().unwrap_or("the name that the variable gives")
}

fn place(line: &crate::nginx::ConfigLine) -> String {
    format!("{}:{}", line.file.display(), line.line)
}

pub(super) fn none(case: &Case) -> Option<Verdict> {
    let (none, look_up) = look_up(case)?;
    let said = match none.source.word() {
        Some(word) if word != Word::NoResolver => return None,
        word => word.is_some(),
    };
    if !said && (look_up.resolver.is_some() || !none.source.no_connection()) {
        return None;
    }
    let pass = place(&none.pass);
    let rival = none
        .doubt()
        .unwrap_or_else(|| "an upstream group or an address that the variable may name".to_owned());
    Some(
        Verdict::graded(
            Cause::NoResolver,
            said || (none.is_certain() && look_up.sure),
            format!("nginx has no resolver to look up {}", name(look_up)),
            rival,
        )
        .because("answer", words::untried(case, none))
        .because_if("said", said.then_some("nginx itself tells its log: no resolver defined"))
        .because(
            "no-resolver",
            format!(
                "{pass} has a variable, so nginx looks the host up while the {} waits, and no `resolver` is in force \
                 there",
                words::request(case)
            ),
        )
        .fix(format!("add `resolver ADDRESS;` with a name server's address to the block of {pass}, or to `{}`", words::layer(case)))
        .fix(format!("or write the host in {pass} without a variable: nginx then resolves it when it starts")),
    )
}

pub(super) fn failed(case: &Case) -> Option<Verdict> {
    let (none, look_up) = look_up(case)?;
    let state = match none.source.word() {
        Some(Word::NotResolved(state)) => Some(state),
        Some(_) => return None,
        None => None,
    };
    let resolver = look_up.resolver.as_ref()?;
    let timed_out = look_up.timeout_ms.filter(|ms| {
        let waited = none.waited_us / 1000;
        let early = waited.saturating_add((ms / 2).min(500) + 15);
        early >= *ms && waited <= ms.saturating_add(LATE_MS)
    });
    let is_own = |reply: &Reply| look_up.name.is_some() && reply.name == look_up.name;
    let within = |reply: &Reply| {
        let busy = is_own(reply) && timed_out.is_none() && reply.before_us <= BUSY_US.min(none.waited_us);
        reply.before_us <= AT_ONCE_US || busy
    };
    let last = look_up.replies.last().filter(|reply| within(reply) && !is_error(reply));
    let own = last.filter(|reply| is_own(reply));
    if !none.source.no_connection() && own.is_none() {
        return None;
    }
    let (proof, summary, rival) = if let Some(state) = state {
        (true, by_word(look_up, state, own), "")
    } else if let Some(reply) = last {
        // A reply to the question of another request is not this one's.
        let other = look_up.name.is_some() && own.is_none();
        let known = reply.name.as_deref().filter(|_| look_up.name.is_none()).unwrap_or_else(|| name(look_up));
        let proof = own.is_some() || (look_up.name.is_none() && look_up.sure);
        (proof && !other, said(reply, known), "a reply that was not seen")
    } else if timed_out.is_some() {
        let errors = look_up.replies.iter().rev().find(|reply| is_error(reply));
        let summary = match errors {
            Some(reply) => format!(
                "nothing answers at the name server {}: {} was not resolved in time",
                reply.server,
                name(look_up)
            ),
            None if look_up.replies.is_empty() => {
                format!("no name server answered for {} in time", name(look_up))
            }
            None => format!("{} was not resolved in time", name(look_up)),
        };
        (look_up.watched && look_up.sure, summary, "a refusal of the name server, which cannot be seen here")
    } else {
        (false, format!("{} could not be resolved", name(look_up)), "a name that is that of a group")
    };
    let proof = state.is_some() || (proof && none.is_certain() && look_up.sure);
    // Without any trace of a reply or of the timer, only what leaves nothing else is worth saying.
    if state.is_none() && last.is_none() && timed_out.is_none() && !(none.is_certain() && look_up.sure) {
        return None;
    }
    let mut verdict = Verdict::graded(
        Cause::ResolverFailed,
        proof,
        summary,
        none.doubt().unwrap_or_else(|| rival.to_owned()),
    )
    .because("answer", words::untried(case, none))
    .because_if("said", state.map(|state| format!("nginx itself tells its log: {}", state_text(state))))
    .because("resolver", format!("{} asks by {}: {}", place(&none.pass), place(resolver), resolver.text))
    .because_if("timeout", timed_out.map(|_| format!("the time fits {}", look_up.timeout_text)));
    for reply in look_up.replies.iter().rev().take(3).rev() {
        let known = reply.name.as_deref().unwrap_or("a name");
        verdict = verdict.because(
            "dns",
            format!("{}, {} before the answer", said(reply, known), words::duration(reply.before_us)),
        );
    }
    if !look_up.watched {
        verdict = verdict.because("not-seen", "what the name server said cannot be seen on this tier");
    }
    Some(advise(verdict, look_up, resolver, last))
}

/// What nginx says, with the name server's own reply where that was seen.
fn by_word(look_up: &LookUp, state: u64, own: Option<&Reply>) -> String {
    match own {
        Some(reply) => said(reply, name(look_up)),
        None => format!("{} could not be resolved: {}", name(look_up), state_text(state)),
    }
}

/// The state of a look-up in nginx (NGX_RESOLVE_*, src/core/ngx_resolver.h): a response code, or ETIMEDOUT.
fn state_text(state: u64) -> String {
    match u8::try_from(state) {
        Ok(110) => "no name server answered in time".to_owned(),
        Ok(3) => "the name does not exist (NXDOMAIN)".to_owned(),
        Ok(code) if code < 32 => format!("the name server answered {}", code_name(code)),
        Ok(_) | Err(_) => format!("state {state}"),
    }
}

fn is_error(reply: &Reply) -> bool {
    matches!(reply.what, Said::Error(_))
}

fn said(reply: &Reply, name: &str) -> String {
    let server = reply.server;
    match reply.what {
        Said::Error(libc::ECONNREFUSED) => {
            format!("nothing listens at the name server {server} (port unreachable)")
        }
        Said::Error(errno) => {
            format!("the name server {server} cannot be read from ({})", words::errno(errno))
        }
        Said::Code(3) => format!("the name server {server} says that {name} does not exist (NXDOMAIN)"),
        Said::Code(code) => format!("the name server {server} did not resolve {name} ({})", code_name(code)),
        Said::Empty => {
            format!("the name server {server} has no address for {name} (NOERROR without a record)")
        }
        Said::Truncated => {
            format!("the name server {server} cut its reply for {name} short, to be asked by TCP")
        }
    }
}

fn advise(
    verdict: Verdict,
    look_up: &LookUp,
    resolver: &crate::nginx::ConfigLine,
    last: Option<&Reply>,
) -> Verdict {
    let error = look_up.replies.iter().rev().find(|reply| is_error(reply));
    let server = last.or(error).map(|reply| reply.server);
    let plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
            && !name.starts_with('-')
    };
    let asked = look_up.name.as_deref().or_else(|| last.and_then(|reply| reply.name.as_deref()));
    let text = match last.map(|reply| reply.what) {
        Some(Said::Code(3) | Said::Empty) => format!(
            "correct the name, or add it to the zone that {} serves",
            server.map_or_else(|| "the name server".to_owned(), |s| s.to_string())
        ),
        Some(Said::Code(_) | Said::Truncated | Said::Error(_)) => {
            format!("mend the name server, or name one that answers in {}", place(resolver))
        }
        None => format!("see that the name server of {} answers, or name another one there", place(resolver)),
    };
    match (asked.filter(|name| plain(name)), server) {
        (Some(name), Some(server)) => {
            verdict.fix_with(text, format!("dig -p {} @{} {name}", server.port(), server.ip()))
        }
        _ => verdict.fix(text),
    }
}

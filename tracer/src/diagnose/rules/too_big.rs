//! `header-too-big`: the buffer for the response's header was full and the header had not ended.
//!
//! Look-alikes: a client that left while the first buffer was read; a response that nginx drops on purpose with the same
//! number of bytes read; a header that is invalid further on; a read time-out in mid-header.

use super::{bytes, standing};
use crate::{
    correlate::{
        Case,
        ending::{self, End},
        talk::{self, Answer, Protocol},
    },
    diagnose::{Cause, Verdict, words},
    event::{Talk, said::Fault},
    nginx::InForce,
};

/// What the head of a cache file takes of the buffer, bytes: its structure, the key, and room to spare
/// (ngx_http_file_cache_header_t, src/http/ngx_http_cache.h).
const CACHE: std::ops::RangeInclusive<u64> = 100..=2048;

/// Sizes that nginx is told in practice.
const SIZES: [u64; 5] = [8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10];

const SMALLER: &str = "or make the header smaller: as a rule it is cookies (each Set-Cookie counts), a long Content-Security-Policy, or \
                       debug headers";

fn unended(case: &Case, talk: &Talk) -> bool {
    let all = talk.got_bytes as usize <= talk.response.len();
    match talk::answer(case) {
        Answer::Head(head) => head.length.is_none() && head.fault.is_none(),
        Answer::Fastcgi(found) => found.head_end.is_none() && found.fault.is_none() && found.ended.is_none(),
        Answer::Http2(found) => !found.ended && found.too_large.is_none() && found.reset.is_none(),
        Answer::Memcached(_) | Answer::NoStatusLine(_) | Answer::Nothing => false,
        // Its bytes are not told.
        Answer::Unknown => !all,
    }
}

/// The size of the buffer that was filled, and whether a cache takes some of it.
fn filled(case: &Case, got: u64) -> Option<(&InForce, bool)> {
    let fits = |one: &InForce, cached: bool| {
        one.bytes().is_some_and(|size| {
            got == size || (cached && size.checked_sub(got).is_some_and(|rest| CACHE.contains(&rest)))
        })
    };
    let all = || {
        case.config
            .iter()
            .flat_map(|c| c.settings.all("buffer_size").map(move |one| (one, c.settings.cached)))
    };
    all().find(|(one, _)| fits(one, false)).or_else(|| all().find(|(one, cached)| fits(one, *cached)))
}

/// The buffer was full to its last byte: no other reason to stop leaves exactly that.
fn got_all(case: &Case, got: u64) -> bool {
    filled(case, got).is_some_and(|(one, _)| one.bytes() == Some(got))
}

pub(super) fn check(case: &Case) -> Option<Verdict> {
    by_bytes(case).or_else(|| by_word(case)).or_else(|| by_stderr(case))
}

/// What a script said on its stderr before its header had ended: it lies in the same buffer.
struct Stderr {
    /// In words.
    text: String,
}

fn stderr(case: &Case, talk: &Talk) -> Option<Stderr> {
    let Answer::Fastcgi(found) = talk::answer(case) else { return None };
    let early = found.stderr.get(..found.early).filter(|early| !early.is_empty())?;
    let count = u32::try_from(early.len()).ok()?;
    let all = talk.got_bytes as usize <= talk.response.len() || !found.stdout_empty;
    let least = if all { "" } else { "at least " };
    let kept = if all {
        String::new()
    } else {
        format!(
            " (the first {} of the response hold nothing else)",
            standing::bytes(u32::try_from(talk.response.len()).ok()?)
        )
    };
    Some(Stderr {
        text: format!(
            "{least}{} of it are what the script said on its stderr before its header was done{kept}; it begins {}",
            standing::bytes(count),
            bytes::quoted(early)
        ),
    })
}

/// Advice where stderr took a part of the buffer: narrow first.
fn quieten(verdict: Verdict) -> Verdict {
    verdict
        .fix("mend what the script reports there: nginx's error log has each line (\"FastCGI sent in stderr\")")
        .fix("or keep it out of the response: PHP writes its messages there unless php.ini or the pool sets error_log = to a file (php_admin_value[error_log] = /var/log/php-errors.log)")
}

/// More was read than the buffer holds: as long as nothing but stderr has come, nginx empties it (ngx_http_fastcgi_process_header).
fn by_stderr(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    let said = stderr(case, talk)?;
    if super::invalid::caught(case).is_some() || !unended(case, talk) || !talk::refused(case) {
        return None;
    }
    let directive = case
        .config
        .iter()
        .flat_map(|c| c.settings.all("buffer_size"))
        .find(|one| one.bytes().is_some_and(|size| u64::from(talk.got_bytes) > size))?;
    let verdict = Verdict::likely(
        Cause::HeaderTooBig,
        both(case, directive),
        "a header that nginx refuses behind the bytes that were kept",
    )
    .because("stderr", said.text)
    .because("buffer", standing::directive(directive))
    .because("response", standing::response(talk));
    Some(quieten(bytes::counts(verdict, case, talk)).fix(format!(
        "or raise {}: a header must fit it, with the stderr that comes with it",
        directive.name
    )))
}

fn both(case: &Case, directive: &InForce) -> String {
    format!(
        "the script at {} wrote messages to its stderr and a header, which do not fit {} {} together",
        words::target(&case.attempt),
        directive.name,
        directive.value.as_deref().unwrap_or_default()
    )
}

/// Where the bytes do not tell, nginx's own word does.
fn by_word(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    if ending::said(case)?.0 != Fault::TooBig {
        return None;
    }
    let target = words::target(&case.attempt);
    let directive =
        case.config.iter().flat_map(|c| c.settings.all("buffer_size")).max_by_key(|one| one.bytes());
    let stderr = stderr(case, talk);
    let verdict = Verdict::proven(
        Cause::HeaderTooBig,
        match directive {
            Some(one) if stderr.is_some() => both(case, one),
            Some(one) => format!(
                "{target} sent a header that does not fit {} {}",
                one.name,
                one.value.as_deref().unwrap_or_default()
            ),
            None => format!("{target} sent a header that does not fit nginx's buffer for it"),
        },
    )
    .because("said", "nginx itself tells its log that the header is too big for its buffer")
    .because_if("stderr", stderr.as_ref().map(|stderr| stderr.text.clone()))
    .because_if("buffer", directive.map(standing::directive));
    let wanted = directive.and_then(InForce::bytes).and_then(|size| SIZES.into_iter().find(|s| *s > size));
    let name = directive.map_or("proxy_buffer_size", |one| one.name.as_str());
    let size = wanted.unwrap_or(128 << 10);
    let why = if talk.tls { "TLS hides it" } else { "only its beginning is kept" };
    let raise = format!(
        "set {name} {} or more: how long the header is cannot be told, as {why}{}",
        crate::nginx::directives::size(size),
        others(case, name, size)
    );
    let verdict = bytes::counts(verdict, case, talk);
    Some(if stderr.is_some() {
        quieten(verdict).fix(format!("or {raise}"))
    } else {
        verdict.fix(raise).fix(SMALLER)
    })
}

fn by_bytes(case: &Case) -> Option<Verdict> {
    if super::invalid::caught(case).is_some() {
        return None;
    }
    let talk = bytes::exchange(case)?;
    let spoken = talk::spoken(case)?;
    if talk.tls || matches!(spoken.protocol, Protocol::Stream | Protocol::Memcached) || !unended(case, talk) {
        return None;
    }
    let got = u64::from(talk.got_bytes);
    let (directive, cached) = filled(case, got)?;
    let refused = talk::refused(case);
    let gone = case.client_gone.is_some() && !refused;
    // nginx closes it by itself, at once.
    let by_nginx = talk.answered_bad || matches!(ending::end(case), Some(End::Closed));
    let prompt = talk.read_ns.is_some_and(|ns| case.attempt.end_ns.saturating_sub(ns) < 100_000_000);
    if gone
        || !by_nginx
        || !(refused
            || (prompt
                && (case.client_saw.is_none_or(|s| s >= 500) || (talk.unread > 0 && got_all(case, got)))))
    {
        return None;
    }
    let size = directive.bytes()?;
    let agreed =
        case.config.iter().flat_map(|c| c.settings.all("buffer_size")).all(|one| one.bytes() == Some(size));
    let exact = got == size;
    let target = words::target(&case.attempt);
    let name = &directive.name;
    let came = got.saturating_add(u64::from(talk.unread));
    let wanted = SIZES.into_iter().find(|s| *s > size && *s >= came);
    let more = if talk.unread > 0 {
        format!("{} more had arrived and were not read", standing::bytes(talk.unread))
    } else {
        "what did not fit had not arrived".to_owned()
    };
    let stderr = stderr(case, talk);
    let verdict = Verdict::graded(
        Cause::HeaderTooBig,
        refused && agreed && exact && talk.watched && spoken.sure,
        match stderr {
            Some(_) => both(case, directive),
            None => format!("{target} sent a header of more than {got} bytes: it does not fit {name} {}", directive.value.as_deref().unwrap_or_default()),
        },
        if refused {
            "a header that nginx refuses behind the bytes that were kept"
        } else {
            "nginx dropped the response on purpose (X-Accel-Redirect, a status for which it asks another server)"
        },
    )
    .because("header", format!("nginx read {got} bytes, the header had not ended, and it closed the connection; {more}"))
    .because_if("stderr", stderr.as_ref().map(|stderr| stderr.text.clone()))
    .because(
        "buffer",
        if exact {
            format!("that is its buffer to the byte: {}", standing::directive(directive))
        } else {
            format!("that is its buffer less what the cache needs of it: {}", standing::directive(directive))
        },
    )
    .because_if("cached", (cached && exact).then_some("there is a cache, which takes some of the buffer where it is in use"));
    let verdict = bytes::counts(verdict, case, talk);
    let place = match &directive.line {
        Some(line) => format!("in {}:{}", line.file.display(), line.line),
        None => "in the location".to_owned(),
    };
    let enough = wanted.map_or("more".to_owned(), crate::nginx::directives::size);
    let others = others(case, name, wanted.unwrap_or(128 << 10));
    let raise = if talk.unread > 0 && wanted.is_some() {
        format!("set {name} {enough}; {place}: all that had arrived fits in that{others}")
    } else {
        format!(
            "set {name} {enough}; {place}, or more: how long the header is cannot be told, as the rest had not come{others}"
        )
    };
    Some(if stderr.is_some() {
        quieten(verdict).fix(format!("or {raise}"))
    } else {
        verdict.fix(raise).fix(SMALLER)
    })
}

/// nginx refuses a buffer whose double is larger than all `X_buffers` but one (`X_busy_buffers_size`, where it is not set).
fn others(case: &Case, name: &str, wanted: u64) -> String {
    let first = case.config.first();
    let Some(value) = first.and_then(|c| c.settings.get("buffers")).and_then(|one| one.value.as_deref())
    else {
        return String::new();
    };
    let mut words = value.split_ascii_whitespace();
    let (Some(number), Some(each)) = (words.next(), words.next()) else { return String::new() };
    let (Ok(number), Some(each)) = (number.parse::<u64>(), crate::nginx::value::bytes(each)) else {
        return String::new();
    };
    if 2 * wanted <= number.saturating_sub(1).saturating_mul(each) {
        return String::new();
    }
    let buffers = name.replace("buffer_size", "buffers");
    format!(
        " (with {buffers} 8 {}; beside it, or nginx refuses the configuration)",
        crate::nginx::directives::size(wanted / 2)
    )
}

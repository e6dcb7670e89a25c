//! `invalid-response`: what came is not what the protocol demands, and nginx refused it.
//!
//! Look-alikes: a TLS server (`plain-to-tls-port`); a header that is only too long (`header-too-big`); an answer without a
//! status line to plain HTTP, which nginx passes on as HTTP/0.9; a header that is cut off (`upstream-closed-early`).

use super::{bytes, foreign, standing};
use crate::{
    correlate::{
        Case,
        ending::{self, End},
        talk::{self, Answer, Protocol, fastcgi, http1::FaultKind, http2, memcached, payload},
    },
    diagnose::{Cause, Verdict, words},
    event::{Talk, said::Fault},
    nginx::InForce,
};

/// What is wrong, and whether every nginx refuses it.
struct Wrong {
    /// In the summary, behind the server's name.
    summary: String,
    /// What and where.
    text: String,
    /// Advice.
    fix: String,
    /// Every version refuses it: no need to have seen nginx say so.
    always: bool,
}

/// The bytes around a place, quoted.
fn around(talk: &Talk, at: usize) -> String {
    let start = talk.response.get(..at).unwrap_or_default();
    let line =
        start.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1).max(at.saturating_sub(40));
    let rest = talk.response.get(line..).unwrap_or_default();
    let text = rest.get(..48.min(rest.len())).unwrap_or(rest);
    payload::quoted(text, 72)
}

pub(super) fn check(case: &Case) -> Option<Verdict> {
    by_stderr(case)
        .or_else(|| headless(case))
        .or_else(|| by_bytes(case))
        .or_else(|| by_chunk(case))
        .or_else(|| by_word(case))
}

/// The text of `fastcgi_catch_stderr` that is in what the script said on its stderr before its header was whole
/// (ngx_http_fastcgi_process_header), and what it said.
pub(super) fn caught(case: &Case) -> Option<(&InForce, Vec<u8>)> {
    let Answer::Fastcgi(found) = talk::answer(case) else { return None };
    let early = found.stderr.get(..found.early).unwrap_or_default();
    let is_in = |one: &&InForce| {
        let text = one.value.as_deref().unwrap_or_default().as_bytes();
        !text.is_empty() && early.windows(text.len()).any(|part| part == text)
    };
    let one = case.config.iter().flat_map(|c| c.settings.all("catch_stderr")).find(is_in)?;
    (found.head_end.is_none() || talk::refused(case)).then_some((one, early.to_vec()))
}

fn by_stderr(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    let (caught, stderr) = caught(case)?;
    let target = words::target(&case.attempt);
    let verdict = Verdict::graded(
        Cause::InvalidResponse,
        talk.watched && talk::refused(case) && case.config.len() == 1,
        format!("the script at {target} said on its stderr what {} looks for, and nginx refused the response for that", caught.name),
        "the connection ended for another reason",
    )
    .because("stderr", format!("on its stderr: {}", bytes::quoted(&stderr)))
    .because("directive", standing::directive(caught))
    .because("response", standing::response(talk));
    Some(
        bytes::counts(verdict, case, talk)
            .fix("mend what the script says there: see PHP's error_log, or the application's")
            .fix(format!(
                "what it answers besides may be good: without this {} nginx passes that on",
                caught.name
            )),
    )
}

/// Where the bytes do not tell, nginx's own word does.
fn by_word(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    if ending::said(case)?.0 != Fault::Invalid {
        return None;
    }
    let target = words::target(&case.attempt);
    let word = case.word.as_ref().and_then(|word| word.text.as_deref()).unwrap_or_default();
    let (what, advice) = if word.starts_with("upstream sent invalid chunked response") {
        ("sent a chunked body whose chunks are none", CHUNK)
    } else if word.starts_with("memcached sent invalid trailer") {
        ("did not send the end of a value where its length says", TRAILER)
    } else if word.starts_with("connection upgrade in subrequest") {
        ("switched protocols (101) for a subrequest, which nginx cannot do", SUBREQUEST)
    } else if word.starts_with("unsafe URI ") {
        ("led nginx to a place that it does not go to (X-Accel-Redirect)", UNSAFE)
    } else {
        (
            "sent a response that nginx refuses",
            "mend the program that writes the header: nginx's error log quotes what it did not take",
        )
    };
    let verdict = Verdict::proven(Cause::InvalidResponse, format!("{target} {what}"))
        .because("said", "nginx itself tells its log that it refuses the response")
        .because("response", standing::response(talk))
        .because_if(
            "hidden",
            talk.tls
                .then_some("TLS hides the bytes: what is wrong with them is told by nginx's own text alone"),
        );
    Some(bytes::counts(verdict, case, talk).fix(advice))
}

const CHUNK: &str = "mend what writes the body: as a rule the application sets Transfer-Encoding: chunked itself (a header copied from another \
                     response) and sends a body without chunks, or counts characters where a chunk's size is bytes";
const TRAILER: &str = "see what wrote the value, and what lies between (a proxy, another server of that protocol): nginx passes on as many \
                       bytes as the length says, and does not use the connection again";
const SUBREQUEST: &str = "a subrequest (auth_request, SSI, mirror) takes the headers of its main request along: set proxy_set_header Upgrade \"\"; \
                          and proxy_set_header Connection \"\"; in the location that it leads to";
const UNSAFE: &str = "let the application send an absolute URI without `..` in X-Accel-Redirect (of an `internal` location, not a file's path)";

/// Chunks that are none: nginx ends the response there, whose header its client has.
fn by_chunk(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    let (at, before) = talk::bad_chunk(case)?;
    let target = words::target(&case.attempt);
    let place = match before {
        0 => "in the first chunk or right behind it".to_owned(),
        count => format!("behind {count} that are right"),
    };
    // Of a subrequest for its status alone (auth_request) the body is not looked at.
    let said = ending::said(case).is_some_and(|(fault, _)| fault == Fault::Invalid);
    let verdict = Verdict::graded(
        Cause::InvalidResponse,
        said,
        format!("{target} sent a chunked body whose chunks are none: nginx ended the response there"),
        "nginx had no use for the body",
    )
    .because_if("said", said.then_some("nginx itself tells its log that it refuses the response"))
    .because("invalid", format!("byte {at} of the response fits no chunk ({place}): {}", around(talk, at)))
    .because("response", standing::response(talk));
    Some(bytes::counts(verdict, case, talk).fix(CHUNK))
}

/// An answer without a status line: nginx takes it for HTTP/0.9, logs "upstream sent no valid HTTP/1.0 header" and passes it on.
fn headless(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    let said = ending::said(case).is_some_and(|(fault, _)| fault == Fault::NoHeader);
    let at = talk::no_status_line(case);
    if at.is_none() && !said {
        return None;
    }
    let target = words::target(&case.attempt);
    let (what, advice) = match at {
        Some(at) => foreign::headless(&talk.response, at),
        None => (
            "answered with something that is no HTTP response".to_owned(),
            "see what listens there: nginx's client got its first bytes".to_owned(),
        ),
    };
    // A first read that was missed leaves bytes that are not there.
    let all = talk.got_bytes as usize <= talk.response.len();
    let refused = talk::refused(case);
    let sure = talk::spoken(case).is_some_and(|spoken| spoken.sure);
    let kept =
        (ending::end(case) == Some(End::Closed)).then(|| ending::read_fit(case)).flatten().map(|fit| {
            format!(
                "the server kept the connection open behind it, until nginx gave up {}",
                standing::fit(&fit)
            )
        });
    let verdict = Verdict::graded(
        Cause::InvalidResponse,
        said || (sure && (all || refused)),
        format!("{target} {what}"),
        if all {
            "nginx spoke another protocol there than its configuration says"
        } else {
            "a read of its first bytes that was not seen"
        },
    )
    .because_if("said", said.then_some("nginx itself tells its log that it has no valid header"))
    .because_if("invalid", at.map(|at| format!("byte {at} of the response does not fit a status line: {}", around(talk, at))))
    .because_if("sent", bytes::began(case))
    .because_if(
        "passed-on",
        (!refused && case.client_saw.is_none()).then_some(
            "nginx takes that for HTTP/0.9 and passes it on: its client gets these bytes without a status and a header, \
             and the access log says 009",
        ),
    )
    .because_if("kept-open", kept)
    .because("response", standing::response(talk));
    Some(bytes::counts(verdict, case, talk).fix(advice))
}

fn by_bytes(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    if bytes::alert(talk).is_some() {
        return None;
    }
    let spoken = talk::spoken(case)?;
    let wrong = wrong(talk, spoken.protocol, &talk::answer(case))?;
    let refused = talk::refused(case);
    let target = words::target(&case.attempt);
    let verdict = Verdict::graded(
        Cause::InvalidResponse,
        talk.watched && (refused || (wrong.always && spoken.sure)),
        format!("{target} {}", wrong.summary),
        if wrong.always {
            "nginx spoke another protocol there than its configuration says"
        } else {
            "this version of nginx lets that pass, and the connection ended for another reason"
        },
    )
    .because("invalid", wrong.text)
    .because_if("sent", bytes::began(case))
    .because("response", standing::response(talk));
    Some(bytes::counts(verdict, case, talk).fix(wrong.fix))
}

fn wrong(talk: &Talk, protocol: Protocol, answer: &Answer) -> Option<Wrong> {
    match answer {
        Answer::Head(head) => {
            let fault = head.fault.as_ref()?;
            Some(line(talk, fault.at, fault.kind))
        }
        Answer::Fastcgi(found) => fcgi(talk, found),
        Answer::Http2(found) => frames(talk, found),
        Answer::Memcached(memcached::Answer::Invalid(at)) => {
            Some(match foreign::of(&talk.response).filter(|who| who.name != "memcached") {
                Some(who) => mismatch(talk, protocol, who),
                None => Wrong {
                    summary: "answered a memcached request with something else than a value".to_owned(),
                    text: format!(
                        "byte {at} of the response does not fit VALUE or END: {}",
                        around(talk, *at)
                    ),
                    fix: "see the server's log: it reports an error of its own, or is no memcached"
                        .to_owned(),
                    always: true,
                },
            })
        }
        Answer::Memcached(memcached::Answer::Trailer(at, length)) => Some(Wrong {
            summary: "did not send the end of a value where its length says".to_owned(),
            text: format!(
                "byte {at} of the response does not fit the END behind a value of {length} bytes: {}",
                around(talk, *at)
            ),
            fix: TRAILER.to_owned(),
            always: true,
        }),
        Answer::NoStatusLine(_) | Answer::Memcached(_) | Answer::Nothing | Answer::Unknown => None,
    }
}

fn mismatch(talk: &Talk, protocol: Protocol, who: foreign::Foreign) -> Wrong {
    Wrong {
        summary: format!("speaks {}, and nginx spoke {} to it", who.name, protocol.name()),
        text: format!("the response begins {}", bytes::quoted(&talk.response)),
        fix: who.advice.to_owned(),
        always: true,
    }
}

/// Advice for a line whose name is none, by what stands there.
fn name_advice(talk: &Talk, at: usize) -> &'static str {
    let before = talk.response.get(..at).unwrap_or_default();
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
    let name = before.get(start..).unwrap_or_default();
    let rest = talk.response.get(at..).unwrap_or_default();
    let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    // Of FastCGI a record's header can stand before it.
    if name.ends_with(b"HTTP") {
        return "write the status as nginx takes it there: `Status: 403 Forbidden`; in PHP http_response_code(403) or header('HTTP/1.1 403 \
                Forbidden'): a line that begins with `HTTP ` is none";
    }
    if blanks > 0 && !name.is_empty() && rest.get(blanks) == Some(&b':') {
        return "let the server write the colon right behind the name: since 1.21.1 nginx refuses a blank there, and no directive lets it \
                pass";
    }
    "mend the program that writes this line: as a rule it printed text before its header was done"
}

/// Advice where a length and an encoding, or two of them, contradict each other.
fn length_advice(talk: &Talk) -> String {
    const MEND: &str = "let the backend send one Content-Length or one Transfer-Encoding: as a rule the application sets one and its server \
                        adds the other";
    let line = talk.request.split(|b| *b == b'\r').next().unwrap_or_default();
    if line.ends_with(b" HTTP/1.1") {
        format!(
            "{MEND}; if it cannot be changed, try proxy_http_version 1.0; for it: a server that keeps to RFC 9112, 6.1, sends no Transfer-Encoding then"
        )
    } else {
        MEND.to_owned()
    }
}

fn line(talk: &Talk, at: usize, kind: FaultKind) -> Wrong {
    Wrong {
        summary: format!("sent a response header that nginx refuses: {}", kind.words()),
        text: format!("{} at byte {at} of the response: {}", kind.words(), around(talk, at)),
        fix: match kind {
            FaultKind::Name => name_advice(talk, at).to_owned(),
            FaultKind::Nul | FaultKind::Cr => "mend the program that writes this header: binary data got into a value".to_owned(),
            FaultKind::LengthAndEncoding | FaultKind::TwoEncodings | FaultKind::Encoding => length_advice(talk),
            FaultKind::Length | FaultKind::TwoLengths => {
                "let the backend send one Content-Length: as a rule the application sets one and its server adds the other".to_owned()
            }
            FaultKind::Status => "let the backend send a Status that begins with three digits".to_owned(),
        },
        // Before 1.21.1 blanks in names were let pass.
        always: matches!(kind, FaultKind::Nul | FaultKind::Cr | FaultKind::Status),
    }
}

fn fcgi(talk: &Talk, found: &fastcgi::Answer) -> Option<Wrong> {
    let (at, kind) = found.fault?;
    let stderr =
        (!found.stderr.is_empty()).then(|| format!("; on its stderr: {}", bytes::quoted(&found.stderr)));
    let stderr = stderr.unwrap_or_default();
    Some(match kind {
        fastcgi::FaultKind::Header(kind) => {
            let wrong = line(talk, at, kind);
            Wrong { text: format!("{}{stderr}", wrong.text), ..wrong }
        }
        fastcgi::FaultKind::Version(_) => match foreign::of(&talk.response).filter(|_| at == 0) {
            Some(who) => mismatch(talk, Protocol::Fastcgi, who),
            None => Wrong {
                summary: "answered with something that is no FastCGI record".to_owned(),
                text: format!("{} at byte {at} of the response: {}", kind.words(), around(talk, at)),
                fix: "see what listens there: it does not speak FastCGI".to_owned(),
                always: true,
            },
        },
        fastcgi::FaultKind::Ended | fastcgi::FaultKind::StdoutEnded => {
            let status = found.ended.and_then(|(_, status)| fastcgi::protocol_status(status));
            let why = status.map(|text| format!("; by its own word {text}")).unwrap_or_default();
            Wrong {
                summary: "ended the FastCGI request without a whole header".to_owned(),
                text: format!("{} at byte {at} of the response{why}{stderr}", kind.words()),
                fix: "see the application's log: it ended without having written its header (an exit, a fatal error, a wrong SCRIPT_FILENAME)".to_owned(),
                always: true,
            }
        }
        fastcgi::FaultKind::Type(_) | fastcgi::FaultKind::Request => Wrong {
            summary: "sent a FastCGI record that nginx refuses".to_owned(),
            text: format!("{} at byte {at} of the response", kind.words()),
            fix: "mend the FastCGI server: it mixes up its records".to_owned(),
            always: true,
        },
    })
}

fn frames(talk: &Talk, found: &http2::Answer) -> Option<Wrong> {
    let named: Vec<&str> = found.frames.iter().take(6).map(|kind| http2::frame_name(*kind)).collect();
    let list = format!("frames: {}", named.join(", "));
    if let Some((at, length)) = found.too_large {
        return Some(match foreign::of(&talk.response).filter(|_| at == 0) {
            Some(who) => mismatch(talk, Protocol::Http2, who),
            None => Wrong {
                summary: "answered with something that is no HTTP/2".to_owned(),
                text: format!(
                    "a frame of {length} bytes at byte {at} of the response, where 16384 are the most: {}",
                    around(talk, at)
                ),
                fix: "see what listens there: it does not speak HTTP/2 without TLS (h2c)".to_owned(),
                always: true,
            },
        });
    }
    let fix = "see the server's log: it refused the request itself (limits on streams or their rate, a shutdown, a request that it does not take)";
    if let Some(error) = found.reset.filter(|_| !found.headers) {
        return Some(Wrong {
            summary: format!("refused the stream: RST_STREAM {}", http2::error_name(error)),
            text: format!(
                "RST_STREAM with error {error} {} before any header; {list}",
                http2::error_name(error)
            ),
            fix: fix.to_owned(),
            always: true,
        });
    }
    // nginx goes on where the last stream that is served is its own, or a later one.
    let stream = http2::stream(&talk.request);
    let is_left_out = |last: u32| stream.is_none_or(|stream| last < stream);
    if let Some((last, error)) = found.goaway.filter(|(last, _)| !found.headers && is_left_out(*last)) {
        return Some(Wrong {
            summary: format!("went away before it took the request: GOAWAY {}", http2::error_name(error)),
            text: format!(
                "GOAWAY with error {error} {} for the connection, the last stream that it serves is {last}{}; {list}",
                http2::error_name(error),
                stream.map(|stream| format!(", nginx's is {stream}")).unwrap_or_default()
            ),
            fix: fix.to_owned(),
            // Streams up to the last one are still served.
            always: last == 0 || stream.is_some(),
        });
    }
    None
}

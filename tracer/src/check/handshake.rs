//! TLS towards upstream servers: what nginx would say, and what an answer means for it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{
    probe::{TlsAnswer, TlsAsk, TlsOutcome},
    targets::Target,
};
use crate::{
    diagnose::{Cause, Verdict, words},
    nginx::model::{Layer, Model, Module, Pass},
    sys::{proc, process::Process, rootfs::RootFs},
};

/// A file of certificates is no larger, bytes.
const MOST_FILE: u64 = 8 << 20;

/// The value of a directive for a pass.
fn value(model: &Model, pass: &Pass, name: &str) -> Option<String> {
    model.effective_of(pass, name)?.value
}

fn is_on(model: &Model, pass: &Pass, name: &str) -> bool {
    value(model, pass, name).as_deref() == Some("on")
}

/// Whether a pass speaks TLS; None where a request decides.
fn speaks_tls(model: &Model, pass: &Pass) -> Option<bool> {
    match pass.module.layer() {
        Layer::Stream => Some(is_on(model, pass, "ssl")),
        Layer::Http => pass.tls,
    }
}

/// The name that nginx sends and checks (`proxy_ssl_name`, by default the host of the pass); None where a request decides.
fn name(model: &Model, pass: &Pass) -> Option<String> {
    let set = model.effective_of(pass, "ssl_name").filter(|found| !found.nodes.is_empty());
    let text = match set.and_then(|found| found.value) {
        Some(text) if text != "$proxy_host" => text,
        _ => pass.authority.clone(),
    };
    if text.contains('$') || text.is_empty() {
        return None;
    }
    if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("unix:")) {
        return Some("localhost".to_owned());
    }
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => text.split(':').next().unwrap_or_default(),
    };
    Some(bare.to_owned())
}

/// The handshake that a pass makes; None if it makes none, or what it would say cannot be said here (a client's certificate,
/// a name that a request gives, old versions).
pub(super) fn ask(model: &Model, pass: &Pass) -> Option<TlsAsk> {
    if speaks_tls(model, pass) != Some(true) || value(model, pass, "ssl_certificate").is_some() {
        return None;
    }
    let protocols = value(model, pass, "ssl_protocols");
    let allows = |version: &str| {
        protocols.as_deref().is_none_or(|list| list.split_ascii_whitespace().any(|one| one == version))
    };
    if !allows("TLSv1.2") {
        return None;
    }
    let name = if is_on(model, pass, "ssl_server_name") {
        let name = name(model, pass)?;
        // Addresses are not sent (ngx_http_upstream_ssl_name).
        let sent = name.parse::<IpAddr>().is_err().then_some(name);
        if sent.as_ref().is_some_and(|name| ServerName::try_from(name.as_str()).is_err()) {
            return None;
        }
        sent
    } else {
        None
    };
    Some(TlsAsk { name, h2: pass.module == Module::Grpc, only_12: !allows("TLSv1.3") })
}

/// True for a pass that speaks TLS, and whose handshake [`ask`] cannot make.
pub(super) fn is_left_out(model: &Model, pass: &Pass) -> bool {
    speaks_tls(model, pass) == Some(true) && ask(model, pass).is_none()
}

/// What an answer means; None: nginx would be content.
pub(super) fn judge(
    model: &Model,
    worker: &Process,
    target: &Target,
    main: Option<&Path>,
    answer: &TlsAnswer,
) -> Option<Verdict> {
    let to = super::upstreams::shown(&target.ask);
    if target.is_plain {
        return plain_to_tls(&to, answer);
    }
    let ask = target.ask.tls.as_ref()?;
    let pass = target.uses.iter().flat_map(|one| &one.passes).find_map(|pass| model.passes.get(*pass))?;
    let prefix = pass.module.prefix();
    match &answer.outcome {
        TlsOutcome::Done { alpn, version } => {
            if ask.h2 && alpn.as_deref() != Some(b"h2") {
                let said = format!("{version} handshake completed; h2 was offered by ALPN and not chosen");
                return Some(no_h2(&to, &said));
            }
            let passes = target.uses.iter().flat_map(|one| &one.passes);
            passes.filter_map(|pass| model.passes.get(*pass)).find_map(|pass| {
                if !is_on(model, pass, "ssl_verify") {
                    return None;
                }
                let file = value(model, pass, "ssl_trusted_certificate")?;
                let roots = trusted(worker, main, &file)?;
                certificate(&to, &name(model, pass), &answer.chain, &roots, &file, prefix)
            })
        }
        TlsOutcome::NotTls(bytes) => Some(tls_to_plain(&to, bytes)),
        TlsOutcome::Alert(number) => Some(alert(&to, *number, ask, prefix)),
        TlsOutcome::Closed(errno) => Some(
            Verdict::likely(
                Cause::TlsHandshakeFailed,
                format!("{to} closed the connection as the TLS handshake began"),
                "a port that speaks plain text and takes the handshake for rubbish",
            )
            .because(
                "tls",
                match errno {
                    Some(errno) => format!("ClientHello sent; then {}", words::errno(*errno)),
                    None => "ClientHello sent; the server closed without a byte".to_owned(),
                },
            )
            .fix(format!(
                "if the port speaks plain text, pass without TLS (http://, grpc://, {prefix}ssl off)"
            ))
            .fix_with("see what the server says", format!("openssl s_client -connect {to}")),
        ),
        TlsOutcome::TimedOut => Some(
            Verdict::likely(
                Cause::TlsHandshakeTimeout,
                format!("{to} takes connections and does not answer the TLS handshake"),
                "a port that speaks plain text and waits for the rest of a line",
            )
            .because("tls", "ClientHello sent, nothing came back in time")
            .fix_with("see what the server says", format!("openssl s_client -connect {to}")),
        ),
        // Where this client and OpenSSL may differ nothing is claimed but the failure.
        TlsOutcome::Failed(why) => Some(
            Verdict::likely(
                Cause::TlsHandshakeFailed,
                format!("the TLS handshake with {to} fails"),
                "a peculiarity that why502's TLS client refuses and OpenSSL, which nginx uses, accepts",
            )
            .because("tls", proc::printable(why.as_bytes()))
            .fix_with("see what OpenSSL says", format!("openssl s_client -connect {to}")),
        ),
    }
}

fn plain_to_tls(to: &str, answer: &TlsAnswer) -> Option<Verdict> {
    let said = match &answer.outcome {
        TlsOutcome::Done { version, .. } => format!("a TLS handshake with it was completed ({version})"),
        TlsOutcome::Alert(number) => {
            format!("it answered a ClientHello with the TLS alert {}", alert_name(*number))
        }
        TlsOutcome::NotTls(_) | TlsOutcome::Closed(_) | TlsOutcome::Failed(_) | TlsOutcome::TimedOut => {
            return None;
        }
    };
    Some(
        Verdict::likely(
            Cause::PlainToTlsPort,
            format!("{to} speaks TLS, and nginx passes plain text to it"),
            "a server that takes both on one port",
        )
        .because("tls", said)
        .fix("pass with TLS: https:// (grpcs://) in place of http:// (grpc://)"),
    )
}

fn tls_to_plain(to: &str, bytes: &[u8]) -> Verdict {
    Verdict::proven(
        Cause::TlsToPlainPort,
        format!("{to} speaks plain text, and nginx begins a TLS handshake with it"),
    )
    .because("tls", format!("its answer to a ClientHello is no TLS: {}", proc::printable(bytes)))
    .fix("pass without TLS (http://, grpc://), or name the server's TLS port")
}

fn no_h2(to: &str, said: &str) -> Verdict {
    Verdict::likely(
        Cause::InvalidResponse,
        format!("{to} does not speak HTTP/2, which gRPC needs"),
        "a server that speaks HTTP/2 without choosing it by ALPN",
    )
    .because("tls", said)
    .fix("name the server's gRPC port, or switch HTTP/2 on there")
}

fn alert(to: &str, number: u8, ask: &TlsAsk, prefix: &str) -> Verdict {
    let text = alert_name(number);
    if number == 120 && ask.h2 {
        return no_h2(to, &format!("offered h2 alone by ALPN, it refuses the handshake: alert {text}"));
    }
    let verdict = Verdict::likely(
        Cause::TlsHandshakeFailed,
        format!("{to} refuses the TLS handshake: {text}"),
        "a version or cipher that OpenSSL offers and why502's client does not: TLS 1.0 and 1.1, CBC and RSA key exchange",
    )
    .because("tls", format!("alert {text} in answer to a ClientHello like nginx's"));
    // handshake_failure, internal_error, unrecognized_name: what servers say that need a name.
    let verdict = if ask.name.is_none() && matches!(number, 40 | 80 | 112) {
        verdict.fix(format!("send the server's name: {prefix}ssl_server_name on (and {prefix}ssl_name, if it is not the pass's)"))
    } else {
        verdict
    };
    verdict.fix_with("see what OpenSSL says", format!("openssl s_client -connect {to}"))
}

/// RFC 8446, 6.2.
fn alert_name(number: u8) -> String {
    let name = match number {
        10 => "unexpected_message",
        40 => "handshake_failure",
        42 => "bad_certificate",
        47 => "illegal_parameter",
        50 => "decode_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        112 => "unrecognized_name",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return number.to_string(),
    };
    format!("{number} {name}")
}

/// The certificates of a file, as the master read it: relative to the folder of the main configuration file.
fn trusted(worker: &Process, main: Option<&Path>, file: &str) -> Option<Vec<CertificateDer<'static>>> {
    if file.contains('$') {
        return None;
    }
    let path = match (Path::new(file).is_absolute(), main.and_then(Path::parent)) {
        (true, _) => PathBuf::from(file),
        (false, Some(folder)) => folder.join(file),
        (false, None) => return None,
    };
    let bytes = RootFs::of_pid(worker.pid).ok()?.read(&path, MOST_FILE).ok()?;
    let found: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok).collect();
    (!found.is_empty()).then_some(found)
}

fn certificate(
    to: &str,
    name: &Option<String>,
    chain: &[Vec<u8>],
    roots: &[CertificateDer<'static>],
    file: &str,
    prefix: &str,
) -> Option<Verdict> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)?;
    let (summary, why, rival) = refusal(name.as_deref(), chain, roots, now)?;
    let verdict = match rival {
        None => Verdict::proven(
            Cause::TlsCertificateRejected,
            format!("{prefix}ssl_verify rejects the certificate of {to}: {summary}"),
        ),
        Some(rival) => Verdict::likely(
            Cause::TlsCertificateRejected,
            format!("{prefix}ssl_verify rejects the certificate of {to}: {summary}"),
            rival,
        ),
    };
    let verdict = verdict.because("certificate", why);
    Some(match summary {
        NAME => verdict
            .fix(format!("{prefix}ssl_name: the name that the certificate has (by default it is the host of the pass, be it the name of an upstream)")),
        EXPIRED => verdict.fix("renew the server's certificate"),
        EARLY => verdict
            .fix("set the clock that is wrong: this host's, or that of whoever made the certificate")
            .fix_with("see both times", format!("date -u; openssl s_client -connect {to} </dev/null | openssl x509 -noout -startdate")),
        _ => verdict
            .fix(format!("add the certificate of who signed it to {file}, or let the server send its whole chain"))
            .fix_with("see the chain", format!("openssl s_client -connect {to} -showcerts -CAfile {file}")),
    })
}

const NAME: &str = "it is for another name";
const EXPIRED: &str = "it has expired";
const EARLY: &str = "it is not valid yet";
const UNKNOWN: &str = "it does not lead to a trusted one";

/// Why OpenSSL refuses a chain: in short, at length, and the rival if it may not. None: it accepts it, or that cannot be told.
fn refusal(
    name: Option<&str>,
    chain: &[Vec<u8>],
    roots: &[CertificateDer<'static>],
    now: UnixTime,
) -> Option<(&'static str, String, Option<&'static str>)> {
    const CHAINS: &str = "OpenSSL, which nginx uses, may find another way to a trusted certificate";
    let all: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let (own, others) = all.split_first()?;
    let leaf = EndEntityCert::try_from(own).ok()?;
    // A certificate that is itself trusted is asked no further.
    let pinned = roots.iter().any(|root| root.as_ref() == own.as_ref());
    if !pinned {
        let anchors: Vec<_> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
        let usage = KeyUsage::server_auth();
        let verified = leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, others, now, usage, None, None);
        match verified.err() {
            None => {}
            Some(webpki::Error::CertExpired { not_after, .. }) => {
                let ago = now.as_secs().saturating_sub(not_after.as_secs()) / 86_400;
                let text = format!("a certificate of the chain expired {ago} days ago");
                return Some((EXPIRED, text, (!others.is_empty()).then_some(CHAINS)));
            }
            Some(webpki::Error::CertNotValidYet { not_before, .. }) => {
                let ahead = not_before.as_secs().saturating_sub(now.as_secs());
                let text = format!(
                    "a certificate of the chain begins to be valid in {} hours",
                    ahead.div_ceil(3600)
                );
                return Some((EARLY, text, (!others.is_empty()).then_some(CHAINS)));
            }
            Some(webpki::Error::UnknownIssuer) => {
                let text =
                    format!("{} sent; none of them is signed by a trusted one", certificates(chain.len()));
                return Some((UNKNOWN, text, Some(CHAINS)));
            }
            // One that signs itself, and whose like is not trusted.
            Some(webpki::Error::CaUsedAsEndEntity)
                if leaf.issuer() == leaf.subject()
                    && anchors.iter().all(|anchor| anchor.subject.as_ref() != leaf.subject()) =>
            {
                let text = "it signs itself, and is not among the trusted ones".to_owned();
                return Some((UNKNOWN, text, Some(CHAINS)));
            }
            // Odd ones are OpenSSL's to judge.
            Some(_) => return None,
        }
    }
    let wanted = name?;
    let subject = ServerName::try_from(wanted).ok()?;
    match leaf.verify_is_valid_for_subject_name(&subject) {
        Err(webpki::Error::CertNotValidForName(context)) => {
            // Without a name in the extension OpenSSL looks at the subject; it also knows stars within a word.
            let odd = context.presented.is_empty()
                || context.presented.iter().any(|name| name.contains('*') && !name.contains("\"*."));
            let shown: Vec<String> = context.presented.iter().take(4).map(|name| bare(name)).collect();
            let text =
                format!("nginx wants {}, it names {}", proc::printable(wanted.as_bytes()), shown.join(", "));
            Some((NAME, text, odd.then_some("a name that OpenSSL finds and why502 does not")))
        }
        _ => None,
    }
}

/// `DnsName("shop.test")`, as webpki shows a name, without what is around it.
fn bare(name: &str) -> String {
    let inner =
        name.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map_or(name, |(inner, _)| inner);
    proc::printable(inner.as_bytes())
}

fn certificates(count: usize) -> String {
    if count == 1 { "1 certificate was".to_owned() } else { format!("{count} certificates were") }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::check::model_of::model;

    fn asked(directives: &str) -> Option<TlsAsk> {
        let model = model(&format!("http {{ server {{ location / {{ {directives} }} }} }}"));
        ask(&model, &model.passes[0])
    }

    #[test]
    fn what_nginx_would_say_is_said() {
        let named = |name: &str| TlsAsk { name: Some(name.to_owned()), ..TlsAsk::default() };
        assert_eq!(asked("proxy_pass http://a.test;"), None);
        let bare = asked("proxy_pass https://a.test;").unwrap();
        assert_eq!((bare.name, bare.h2), (None, false));
        let on = "proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;";
        assert_eq!(asked(&format!("{on} proxy_pass https://a.test:8443/x;")), Some(named("a.test")));
        assert_eq!(
            asked(&format!("{on} proxy_ssl_name b.test; proxy_pass https://a.test;")),
            Some(named("b.test"))
        );
        assert_eq!(asked(&format!("{on} proxy_pass https://127.0.0.1;")), Some(TlsAsk::default()));
        // What a request decides, a client's certificate, and versions of old are left alone.
        assert_eq!(asked(&format!("{on} proxy_ssl_name $host; proxy_pass https://a.test;")), None);
        assert_eq!(
            asked("proxy_ssl_certificate c; proxy_ssl_certificate_key k; proxy_pass https://a.test;"),
            None
        );
        assert_eq!(asked("proxy_ssl_protocols TLSv1; proxy_pass https://a.test;"), None);
        let old = asked("proxy_ssl_protocols TLSv1 TLSv1.2; proxy_pass https://a.test;").unwrap();
        assert!(old.only_12);
        assert!(asked("grpc_pass grpcs://a.test;").unwrap().h2);
    }

    /// A certificate that signs itself, for `shop.test`; None without openssl.
    fn own() -> Option<Vec<u8>> {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=DNS:shop.test"])
            .args([
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                "/dev/null",
                "-outform",
                "DER",
            ])
            .output();
        made.ok().filter(|made| made.status.success()).map(|made| made.stdout)
    }

    /// A certificate for `shop.test` that is valid for two days from now, and the one that signed it, of twenty days; None
    /// without openssl.
    fn signed() -> Option<(Vec<u8>, Vec<u8>)> {
        let folder = tempfile::tempdir().ok()?;
        let made = |arguments: &[&str]| {
            let made = Command::new("openssl").current_dir(folder.path()).args(arguments).output();
            made.is_ok_and(|made| made.status.success())
        };
        let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let of = |more: &[&'static str]| made(&[&key[..], more].concat());
        let whole = of(&["-days", "20", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"])
            && of(&[
                "-days",
                "2",
                "-subj",
                "/CN=x",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-addext",
                "subjectAltName=DNS:shop.test",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                "key",
                "-outform",
                "DER",
                "-out",
                "leaf.der",
            ])
            && made(&["x509", "-in", "ca.pem", "-outform", "DER", "-out", "ca.der"]);
        if !whole {
            return None;
        }
        let read = |name: &str| std::fs::read(folder.path().join(name)).ok();
        Some((read("leaf.der")?, read("ca.der")?))
    }

    #[test]
    fn a_certificate_out_of_its_time_is_refused_for_that() {
        let Some((leaf, ca)) = signed() else {
            why502_skip::skipped("no openssl that signs in one step");
            return;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let day = std::time::Duration::from_secs(86_400);
        let roots = [CertificateDer::from(ca)];
        let chain = [leaf];
        let judged = |at| {
            refusal(Some("shop.test"), &chain, &roots, UnixTime::since_unix_epoch(at))
                .map(|(what, why, rival)| (what, why, rival.is_none()))
        };
        assert_eq!(judged(now), None);
        let (what, why, sure) = judged(now + day * 5).unwrap();
        assert_eq!(
            (what, why.as_str(), sure),
            (EXPIRED, "a certificate of the chain expired 3 days ago", true)
        );
        let (what, why, sure) = judged(now - day).unwrap();
        assert_eq!((what, sure), (EARLY, true));
        assert!(why.ends_with("begins to be valid in 24 hours"), "{why}");
    }

    #[test]
    fn certificates_are_judged_as_openssl_does() {
        let Some(der) = own() else {
            why502_skip::skipped("openssl is not installed");
            return;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let at = |days: u64| UnixTime::since_unix_epoch(now + std::time::Duration::from_secs(days * 86_400));
        let root = CertificateDer::from(der.clone());
        let chain = [der];
        let pinned = [root];
        let judged = |name: &str, roots: &[CertificateDer<'static>], days: u64| {
            refusal(Some(name), &chain, roots, at(days)).map(|(what, _, rival)| (what, rival.is_none()))
        };
        assert_eq!(judged("shop.test", &pinned, 0), None);
        assert_eq!(judged("other.test", &pinned, 0), Some((NAME, true)));
        // Of one that is trusted by name the times are left to OpenSSL.
        assert_eq!(judged("shop.test", &pinned, 9), None);
        assert_eq!(refusal(None, &chain, &pinned, at(0)), None);
        assert_eq!(refusal(Some("shop.test"), &[], &pinned, at(0)), None);
        assert_eq!(refusal(Some("shop.test"), &[vec![0x30, 0]], &pinned, at(0)), None);
    }
}

//! What nginx adds to a message: client, request, upstream server (`ngx_http_log_error_handler`,
//! `ngx_stream_proxy_log_error`).

use std::{fmt, net::SocketAddr};

/// Most places that are tried as the end of the message.
const MOST_TRIES: usize = 8;
/// nginx cuts a line after this many bytes (NGX_MAX_ERROR_STR).
const LONGEST: usize = 2048;
/// Longest name of a server.
const MOST_NAME: usize = 256;

/// An upstream server's address, as incidents name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// Of TCP.
    Ip(SocketAddr),
    /// A unix socket's path.
    Unix(String),
    /// A name that nothing has resolved: a group, or a host.
    Name(String),
}

impl Address {
    /// Reads `127.0.0.1:3000`, `unix:/run/app.sock`, or a name.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(Self::Unix(path.to_owned()));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Ip(address));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
        (!text.is_empty() && text.len() <= MOST_NAME && text.chars().all(fits))
            .then(|| Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A text and what it is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// The text alone.
    pub message: &'a str,
    /// The client's address, without a port; `None` if no client is concerned.
    pub client: Option<&'a str>,
    /// `server_name`, or in the stream module the address that the client has connected to.
    pub server: Option<&'a str>,
    /// The request line.
    pub request: Option<&'a str>,
    /// The URI of a subrequest.
    pub subrequest: Option<&'a str>,
    /// The upstream server, with its scheme and the URI that it is asked for.
    pub upstream: Option<&'a str>,
    /// The Host header.
    pub host: Option<&'a str>,
    /// The line was too long for nginx and may end in the middle of a value: the request, if nothing follows it.
    pub cut: bool,
}

impl Fields<'_> {
    /// The scheme of the upstream server; none in the stream module.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        Some(self.upstream?.split_once("://")?.0)
    }

    /// True if nginx speaks TLS to the server, as far as the scheme tells it.
    #[must_use]
    pub fn tls(&self) -> bool {
        matches!(self.scheme(), Some("https" | "grpcs" | "suwsgi"))
    }

    /// The upstream server's address.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        let url = self.upstream?;
        let authority = match url.split_once("://") {
            Some((scheme, rest)) => {
                let known =
                    ["http", "https", "fastcgi", "uwsgi", "suwsgi", "scgi", "grpc", "grpcs", "memcached"];
                known.contains(&scheme).then_some(rest)?
            }
            None => url,
        };
        if let Some(path) = authority.strip_prefix("unix:") {
            let path = path.split(':').next()?;
            return path.starts_with('/').then(|| Address::Unix(path.to_owned()));
        }
        Address::of(authority.split(['/', '?']).next()?)
    }

    /// The request's method and target; the target's end is missing if the line was cut there.
    #[must_use]
    pub fn method_and_target(&self) -> Option<(&str, &str)> {
        let (method, rest) = self.request?.split_once(' ')?;
        let target = match rest.rsplit_once(' ') {
            Some((target, version)) if version.starts_with("HTTP/") => target,
            _ => rest,
        };
        (!target.is_empty()).then_some((method, target))
    }
}

/// Takes a line's text (without time, level and numbers) apart. What is quoted may hold anything, so that the message ends
/// at the first place from which all that follows is as nginx writes it.
#[must_use]
pub fn fields(text: &str) -> Fields<'_> {
    let places = || text.match_indices("client: ").filter_map(|(at, _)| before(text, at)).take(MOST_TRIES);
    let strict = places().find_map(|(end, rest)| {
        let found = rest_of(text.get(..end)?, rest)?;
        (!found.cut).then_some(found)
    });
    let cut = || {
        let (end, rest) = places().next()?;
        rest_of(text.get(..end)?, rest).filter(|_| text.len() + 80 >= LONGEST)
    };
    strict.or_else(cut).unwrap_or(Fields { message: text, ..Fields::default() })
}

/// The end of the message and what follows its `client: `, whose place is given.
fn before(text: &str, at: usize) -> Option<(usize, &str)> {
    let head = text.get(..at)?;
    let end = head.strip_suffix("udp ").unwrap_or(head).strip_suffix(", ")?.len();
    Some((end, text.get(at + "client: ".len()..)?))
}

/// All that follows `client: `; `None` if nginx does not write such.
fn rest_of<'a>(message: &'a str, rest: &'a str) -> Option<Fields<'a>> {
    let mut fields = Fields { message, ..Fields::default() };
    let (client, rest) = rest.split_once(", server: ").unwrap_or((rest, ""));
    let is_address = client == "unix:"
        || (!client.is_empty() && client.bytes().all(|b| b.is_ascii_hexdigit() || b".:%".contains(&b)));
    if !is_address {
        return None;
    }
    fields.client = Some(client);
    // From here on `, NAME: "…"` one after the other; the first ends the server's name.
    let names = ["request", "subrequest", "upstream", "host", "referrer"];
    let begins = |text: &str, from: usize| {
        names.iter().skip(from).position(|name| {
            text.strip_prefix(", ")
                .and_then(|text| text.strip_prefix(name))
                .is_some_and(|text| text.starts_with(": \""))
        })
    };
    let sums = |text: &str| text.starts_with(", bytes from/to client:");
    let end = rest
        .match_indices(", ")
        .map(|(at, _)| at)
        .find(|at| rest.get(*at..).is_some_and(|rest| begins(rest, 0).is_some() || sums(rest)))
        .unwrap_or(rest.len());
    let (server, mut rest) = rest.split_at_checked(end)?;
    fields.server = (!server.is_empty()).then_some(server);
    let mut next = 0;
    while !rest.is_empty() && !sums(rest) {
        let Some(skipped) = begins(rest, next) else {
            fields.cut = true;
            break;
        };
        let at = next + skipped;
        let name = names.get(at)?;
        next = at + 1;
        let value = rest.get(", ".len() + name.len() + ": \"".len()..)?;
        let ends = |at: &usize| {
            value
                .get(at + 1..)
                .is_some_and(|rest| rest.is_empty() || begins(rest, next).is_some() || sums(rest))
        };
        // The last may hold quotes and has nothing behind it.
        let close = if *name == "referrer" {
            value.len().checked_sub(1).filter(|_| value.ends_with('"'))
        } else {
            value.match_indices('"').map(|(at, _)| at).find(ends)
        };
        let whole = close.unwrap_or(value.len());
        let (value, after) = value.split_at_checked(whole)?;
        match *name {
            // No request that nginx passes on has spaces since 1.21.1: that is a line within what a server sent.
            "request" if value.contains(", client: ") => return None,
            "request" => fields.request = Some(value),
            "subrequest" => fields.subrequest = Some(value),
            // The end of an address may be missing.
            "upstream"
                if close.is_some() || value.split_once("://").is_some_and(|(_, rest)| rest.contains('/')) =>
            {
                fields.upstream = Some(value);
            }
            "host" if close.is_some() => fields.host = Some(value),
            _ => {}
        }
        fields.cut |= close.is_none();
        rest = after.strip_prefix('"').unwrap_or_default();
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &str = "recv() failed (104: x) while reading response header from upstream, client: 203.0.113.9, server: \
         shop.example.com, request: \"GET /a?b=\"c HTTP/1.1\", subrequest: \"/auth\", upstream: \
         \"http://127.0.0.1:3000/a\", host: \"shop.example.com\", referrer: \"http://x/\"y, host: \"z\"";

    #[test]
    fn every_field() {
        let found = fields(HTTP);
        assert_eq!(found.message, "recv() failed (104: x) while reading response header from upstream");
        assert_eq!((found.client, found.server), (Some("203.0.113.9"), Some("shop.example.com")));
        assert_eq!(found.request, Some("GET /a?b=\"c HTTP/1.1"));
        assert_eq!(found.method_and_target(), Some(("GET", "/a?b=\"c")));
        assert_eq!((found.subrequest, found.host), (Some("/auth"), Some("shop.example.com")));
        assert_eq!(found.address(), Address::of("127.0.0.1:3000"));
        assert!(!found.cut && !found.tls());
    }

    #[test]
    fn lines_of_the_stream_module() {
        let found = fields(
            "connect() failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1, server: \
             0.0.0.0:9000, upstream: \"127.0.0.1:3000\", bytes from/to client:0/0, bytes from/to upstream:0/0",
        );
        assert_eq!((found.client, found.server), (Some("127.0.0.1"), Some("0.0.0.0:9000")));
        assert_eq!((found.address(), found.request), (Address::of("127.0.0.1:3000"), None));
        assert!(!found.cut);
        let udp = fields(
            "x while connecting to upstream, udp client: ::1, server: [::]:53, upstream: \"[::1]:5353\", bytes from/to client:1/0, bytes from/to upstream:0/0",
        );
        assert_eq!((udp.message, udp.client), ("x while connecting to upstream", Some("::1")));
        assert_eq!(udp.address(), Address::of("[::1]:5353"));
    }

    #[test]
    fn upstreams_are_addresses_or_nothing() {
        let of = |url: &str| {
            let text = format!("x, client: 1.2.3.4, server: s, upstream: \"{url}\", host: \"h\"");
            fields(&text).address().map(|address| address.to_string())
        };
        assert_eq!(of("http://127.0.0.1:3000/a?b").as_deref(), Some("127.0.0.1:3000"));
        assert_eq!(of("https://[2001:db8:0:0::1]:443/").as_deref(), Some("[2001:db8::1]:443"));
        assert_eq!(of("http://unix:/run/a.sock:/x").as_deref(), Some("unix:/run/a.sock"));
        assert_eq!(of("fastcgi://unix:/run/a.sock:").as_deref(), Some("unix:/run/a.sock"));
        assert_eq!(of("10.0.0.1:5432").as_deref(), Some("10.0.0.1:5432"));
        assert_eq!(of("http://group/a").as_deref(), Some("group"));
        for bad in ["", "javascript://x", "http://", "http://a b/", "http://\u{1b}[2J/", "http://unix:rel:"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    /// What clients and servers send cannot name another server, whatever it looks like.
    #[test]
    fn quoted_bytes_are_no_fields() {
        let evil = "\", upstream: \"http://9.9.9.9:9/\", host: \"evil";
        let tail = "upstream: \"http://127.0.0.1:3000/\", host: \"h\"";
        for text in [
            format!(
                "upstream sent invalid header: \"{evil}\\x20...\" while reading response header from upstream, client: 1.2.3.4, server: s, request: \"GET / HTTP/1.1\", {tail}"
            ),
            format!(
                "x, client: 1.2.3.4, server: s, request: \"GET / HTTP/1.1\", {tail}, referrer: \"{evil}\""
            ),
            format!(
                "FastCGI sent in stderr: \"x, client: 9.9.9.9, server: evil, request: \"GET /evil\" y\" while reading response header from upstream, client: 1.2.3.4, server: s, request: \"GET / HTTP/1.1\", {tail}"
            ),
        ] {
            let found = fields(&text);
            assert_eq!(found.address(), Address::of("127.0.0.1:3000"), "{text}");
            assert_eq!((found.client, found.host), (Some("1.2.3.4"), Some("h")), "{text}");
        }
    }

    #[test]
    fn a_line_that_was_cut() {
        let long = "a".repeat(1990);
        let text = format!("x, client: 1.2.3.4, server: s, request: \"GET /{long}");
        let found = fields(&text);
        assert!(found.cut);
        assert_eq!(found.method_and_target(), Some(("GET", &*format!("/{long}"))));
        // Short, and yet without an end: nothing of nginx's.
        assert_eq!(fields("x, client: 1.2.3.4, server: s, request: \"GET /").client, None);
        let text = format!(
            "x, client: 1.2.3.4, server: s, request: \"GET /{long} HTTP/1.1\", upstream: \"http://127.0"
        );
        assert_eq!((fields(&text).address(), fields(&text).cut), (None, true));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let good = format!("{HTTP}é{HTTP}");
        for at in (0..good.len()).filter(|at| good.is_char_boundary(*at)) {
            let (one, other) = good.split_at(at);
            for text in [one, other] {
                let found = fields(text);
                assert!(found.message.len() <= text.len());
                let _ = (found.address(), found.method_and_target(), found.tls());
            }
        }
    }
}

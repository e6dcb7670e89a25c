//! The small grammars inside arguments: times and addresses, read as nginx reads them (`ngx_parse_time`,
//! `ngx_parse_url`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The units that `ngx_parse_time` knows, largest first, in milliseconds.
const UNITS: [(&str, u64); 8] = [
    ("y", 365 * 86_400_000),
    ("M", 30 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Reads a time such as `60`, `60s`, `1m30s` or `500ms`, in milliseconds; a bare number is seconds. Units
/// must fall; `y` and `M` are refused, as nginx refuses them wherever it counts milliseconds.
pub fn milliseconds(text: &str) -> Option<u64> {
    time(text, false)
}

/// Reads a time that nginx counts in whole seconds, such as `fail_timeout=`: `ms` is refused.
pub fn seconds(text: &str) -> Option<u64> {
    time(text, true).map(|milliseconds| milliseconds / 1000)
}

fn time(text: &str, whole_seconds: bool) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    // The first unit still allowed.
    let mut allowed = if whole_seconds { 0 } else { 2 };
    if !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let number: u64 = if number.is_empty() { 0 } else { number.parse().ok()? };
        let (index, length) = match unit.as_bytes() {
            // A bare number ends the text, or is followed by milliseconds at most.
            [] => (6, 0),
            [b' ', ..] => (6, 1),
            [b'm', b's', ..] => (7, 2),
            [letter, ..] => (UNITS.iter().position(|(name, _)| name.as_bytes() == [*letter])?, 1),
        };
        if index < allowed && length > 0 || index == 7 && whole_seconds {
            return None;
        }
        allowed = if unit.starts_with(' ') { UNITS.len() } else { index + 1 };
        total = total.checked_add(number.checked_mul(UNITS.get(index)?.1)?)?;
        rest = unit.get(length..)?.trim_start_matches(' ');
    }
    i64::try_from(total).ok().map(|_| total)
}

/// Reads a size such as `8k` or `1M`, in bytes (`ngx_parse_size`).
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Where a pass or a server leads, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A literal IPv4 or IPv6 address. The port is `None` where none is written and the module has no default.
    Ip {
        /// The address.
        ip: IpAddr,
        /// The port, or the module's default.
        port: Option<u16>,
    },
    /// A name: an `upstream`, or a host that nginx resolves.
    Name {
        /// The name as written.
        host: String,
        /// The port, or the module's default.
        port: Option<u16>,
        /// Whether the port is written; a name with one is never an `upstream`.
        explicit_port: bool,
    },
    /// A unix socket.
    Unix {
        /// Path of the socket.
        path: String,
    },
    /// Known only when a request runs.
    Variable {
        /// What stands for host and port, variables included.
        pattern: String,
        /// The port that the scheme implies.
        default_port: Option<u16>,
    },
    /// What nginx itself would refuse.
    Invalid,
}

/// Reads an address without variables. With `uri`, a path may follow the port (or, for a unix socket, a `:`).
pub fn address(text: &str, default_port: Option<u16>, uri: bool) -> Address {
    if text.get(..5).is_some_and(|prefix| prefix.eq_ignore_ascii_case("unix:")) {
        let rest = text.get(5..).unwrap_or_default();
        let path = if uri { rest.split(':').next().unwrap_or_default() } else { rest };
        return if path.is_empty() { Address::Invalid } else { Address::Unix { path: path.to_owned() } };
    }
    let end = text.find(['/', '?']).unwrap_or(text.len());
    if end < text.len() && !uri {
        return Address::Invalid;
    }
    let authority = text.get(..end).unwrap_or_default();
    let Some((host, port)) = split_port(authority) else { return Address::Invalid };
    let explicit_port = port.is_some();
    let port = match port.map(str::parse::<u16>) {
        None => default_port,
        Some(Ok(0) | Err(_)) => return Address::Invalid,
        Some(Ok(port)) => Some(port),
    };
    if let Some(bare) = host.strip_prefix('[') {
        return match bare.strip_suffix(']').and_then(|bare| bare.parse::<Ipv6Addr>().ok()) {
            Some(ip) => Address::Ip { ip: IpAddr::V6(ip), port },
            None => Address::Invalid,
        };
    }
    match ipv4(host) {
        Some(ip) => Address::Ip { ip: IpAddr::V4(ip), port },
        None if host.is_empty() => Address::Invalid,
        None => Address::Name { host: host.to_owned(), port, explicit_port },
    }
}

/// Splits `host:port`; brackets protect the colons of IPv6. `None` for text behind a bracket.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if authority.starts_with('[') {
        let (host, rest) = authority.split_at(authority.find(']')? + 1);
        return if rest.is_empty() {
            Some((host, None))
        } else {
            Some((host, Some(rest.strip_prefix(':')?)))
        };
    }
    Some(match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    })
}

/// Four decimal numbers, leading zeros allowed, as `ngx_inet_addr` has it.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

/// Whether a name can be made by a pattern such as `$host`, `app-$color` or `10.0.0.1`, where each variable
/// stands for anything. Letters compare without case.
pub fn pattern_fits(pattern: &str, name: &str) -> bool {
    let mut literals = literals(pattern).into_iter();
    let name = name.to_ascii_lowercase();
    let Some(first) = literals.next() else { return name.is_empty() };
    let Some(mut rest) = name.strip_prefix(&first) else { return false };
    let mut literals: Vec<_> = literals.collect();
    let Some(last) = literals.pop() else { return rest.is_empty() };
    for literal in &literals {
        match rest.find(literal.as_str()) {
            Some(at) => rest = rest.get(at + literal.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(&last)
}

/// The texts around the variables of a pattern, in lower case; one more than there are variables.
fn literals(pattern: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('$') {
        if let Some(literal) = found.last_mut() {
            literal.push_str(&before.to_ascii_lowercase());
        }
        let length = match after.strip_prefix('{') {
            Some(braced) => braced.find('}').map_or(after.len(), |end| end + 2),
            None => after.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count(),
        };
        found.push(String::new());
        rest = after.get(length..).unwrap_or_default();
    }
    if let Some(literal) = found.last_mut() {
        literal.push_str(&rest.to_ascii_lowercase());
    }
    found
}

/// Whether the last thing in a pattern is a variable.
pub fn ends_in_variable(pattern: &str) -> bool {
    pattern.contains('$') && literals(pattern).last().is_some_and(String::is_empty)
}

/// Whether a pattern has text besides its variables, and none that an IP address could not have.
pub fn is_numeric_pattern(pattern: &str) -> bool {
    let text = literals(pattern).concat();
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b':' | b'[' | b']'))
}

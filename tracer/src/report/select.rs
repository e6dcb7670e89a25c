//! Which incidents are told: the filters of `trace` and `replay`.

use std::net::IpAddr;

use super::Incident;
use crate::diagnose::Cause;

/// What an incident must be to be told. An empty list is no condition; of several values in one list one must fit, and every
/// list that is not empty must. What is not known of an incident fits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Select {
    /// Masters or workers.
    pub pids: Vec<u32>,
    /// Causes.
    pub causes: Vec<Cause>,
    /// Hosts that clients ask for, without regard to case and port; `*.example.com` is every name below it.
    pub hosts: Vec<String>,
    /// How the target begins.
    pub uris: Vec<String>,
    /// Clients: networks, or single addresses.
    pub clients: Vec<Network>,
    /// Name of an upstream, or address of a server, with or without its port.
    pub upstreams: Vec<String>,
    /// What the client saw; `5xx` is a whole class.
    pub statuses: Vec<Status>,
}

impl Select {
    /// True if there is no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True if the incident is to be told.
    #[must_use]
    pub fn matches(&self, i: &Incident) -> bool {
        let attempt = &i.case.attempt;
        let master = i.case.story.as_ref().map_or(0, |story| story.master);
        let client = i.attribution.request.as_ref().map(|request| request.client.ip());
        let target = i.head().map(|head| head.target.as_str());
        let host = i.head().and_then(|head| head.host.as_deref());
        any(&self.pids, |pid| *pid == attempt.worker || *pid == master)
            && any(&self.causes, |cause| *cause == i.verdict.cause)
            && any(&self.hosts, |wanted| host.is_some_and(|host| is_host(wanted, host)))
            && any(&self.uris, |begin| target.is_some_and(|target| target.starts_with(begin.as_str())))
            && any(&self.clients, |network| client.is_some_and(|client| network.contains(client)))
            && any(&self.upstreams, |wanted| is_upstream(wanted, i))
            && any(&self.statuses, |status| i.client_saw().is_some_and(|seen| status.is(seen)))
    }
}

fn any<T>(list: &[T], fits: impl FnMut(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(fits)
}

/// The name before its port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

fn is_host(wanted: &str, host: &str) -> bool {
    let host = without_port(host).to_ascii_lowercase();
    let wanted = wanted.to_ascii_lowercase();
    match wanted.strip_prefix("*.") {
        Some(zone) => host.strip_suffix(zone).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => host == wanted || host == without_port(&wanted),
    }
}

fn is_upstream(wanted: &str, i: &Incident) -> bool {
    let address = i.address();
    let ip = i.case.attempt.remote.ip().to_string();
    let known = !i.case.attempt.no_remote && i.case.attempt.unix.is_none();
    i.upstream() == Some(wanted)
        || i.server() == Some(wanted)
        || address.as_deref() == Some(wanted)
        || address.as_deref().and_then(|a| a.strip_prefix("unix:")) == Some(wanted)
        || (known && ip == wanted)
}

/// An IP network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u8,
}

impl Network {
    /// True if the address is one of it; an IPv4 address in IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let number = |ip: IpAddr| match ip.to_canonical() {
            IpAddr::V4(v4) => (32_u32, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (128, u128::from(v6)),
        };
        let ((width, own), (other_width, other)) = (number(self.ip), number(ip));
        let free = width.saturating_sub(u32::from(self.bits));
        width == other_width && own.checked_shr(free) == other.checked_shr(free)
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let wrong = || format!("{text} is neither an IP address nor a network such as 10.0.0.0/8");
        let ip: IpAddr = address.parse().map_err(|_| wrong())?;
        let ip = ip.to_canonical();
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), |bits| bits.parse().map_err(|_| wrong()))?;
        if bits > width { Err(wrong()) } else { Ok(Self { ip, bits }) }
    }
}

/// A status, or a class of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// That one.
    Exactly(u16),
    /// All that begin with that digit.
    Class(u16),
}

impl Status {
    fn is(self, seen: u16) -> bool {
        match self {
            Self::Exactly(status) => status == seen,
            Self::Class(first) => seen / 100 == first,
        }
    }
}

impl std::str::FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is no status: a number from 100 to 599, or a class such as 5xx");
        if let Some(first) = text.strip_suffix("xx") {
            let first = first.parse().map_err(|_| wrong())?;
            return if (1..=5).contains(&first) { Ok(Self::Class(first)) } else { Err(wrong()) };
        }
        let status = text.parse().map_err(|_| wrong())?;
        if (100..600).contains(&status) { Ok(Self::Exactly(status)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        correlate::request::{Attribution, Head, Request},
        report::tests::incident,
    };

    fn asked() -> Incident {
        let mut one = incident(Cause::ConnectRefusedNoListener, Vec::new());
        let head = Head {
            method: "GET".to_owned(),
            target: "/api/orders?x=1".to_owned(),
            truncated: false,
            host: Some("Shop.example.com:8443".to_owned()),
        };
        one.attribution = Attribution {
            request: Some(Request {
                id: 1,
                client: "[::ffff:203.0.113.9]:51514".parse().unwrap(),
                local: "192.0.2.1:443".parse().unwrap(),
                head: Some(head),
                status: Some(502),
                ids: Default::default(),
            }),
            note: None,
        };
        one
    }

    #[test]
    fn each_condition_alone() {
        let none = Select::default;
        for (what, select, expect) in [
            ("nothing", none(), true),
            ("worker", Select { pids: vec![7, 133], ..none() }, true),
            ("other worker", Select { pids: vec![7], ..none() }, false),
            ("cause", Select { causes: vec![Cause::ConnectRefusedNoListener], ..none() }, true),
            ("other cause", Select { causes: vec![Cause::FdLimit], ..none() }, false),
            ("host", Select { hosts: vec!["shop.EXAMPLE.com".into()], ..none() }, true),
            ("host with port", Select { hosts: vec!["shop.example.com:8443".into()], ..none() }, true),
            ("below", Select { hosts: vec!["*.example.com".into()], ..none() }, true),
            ("not below", Select { hosts: vec!["*.shop.example.com".into()], ..none() }, false),
            ("no part of a label", Select { hosts: vec!["*.xample.com".into()], ..none() }, false),
            ("uri", Select { uris: vec!["/x".into(), "/api/".into()], ..none() }, true),
            ("other uri", Select { uris: vec!["/x".into()], ..none() }, false),
            ("client", Select { clients: vec!["203.0.113.9".parse().unwrap()], ..none() }, true),
            ("network", Select { clients: vec!["203.0.113.0/24".parse().unwrap()], ..none() }, true),
            ("all", Select { clients: vec!["0.0.0.0/0".parse().unwrap()], ..none() }, true),
            ("other network", Select { clients: vec!["203.0.112.0/24".parse().unwrap()], ..none() }, false),
            ("IPv6", Select { clients: vec!["::/0".parse().unwrap()], ..none() }, false),
            ("server", Select { upstreams: vec!["127.0.0.1:3000".into()], ..none() }, true),
            ("server's host", Select { upstreams: vec!["127.0.0.1".into()], ..none() }, true),
            ("other server", Select { upstreams: vec!["127.0.0.1:300".into()], ..none() }, false),
            ("status", Select { statuses: vec!["502".parse().unwrap()], ..none() }, true),
            ("class", Select { statuses: vec!["5xx".parse().unwrap()], ..none() }, true),
            ("other class", Select { statuses: vec!["4xx".parse().unwrap()], ..none() }, false),
            (
                "two conditions",
                Select { statuses: vec!["5xx".parse().unwrap()], uris: vec!["/x".into()], ..none() },
                false,
            ),
        ] {
            assert_eq!(select.matches(&asked()), expect, "{what}");
        }
    }

    #[test]
    fn what_is_not_known_fits_nothing() {
        let unknown = incident(Cause::ConnectRefusedNoListener, Vec::new());
        for select in [
            Select { hosts: vec!["*.com".into()], ..Select::default() },
            Select { uris: vec![String::new()], ..Select::default() },
            Select { statuses: vec![Status::Class(5)], ..Select::default() },
            Select { clients: vec!["0.0.0.0/0".parse().unwrap()], ..Select::default() },
        ] {
            assert!(!select.matches(&unknown), "{select:?}");
            assert!(!select.is_empty());
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for text in ["", "10.0.0.0/33", "::1/129", "10.0.0/8", "x", "10.0.0.0/"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        for text in ["", "6xx", "0xx", "99", "600", "5x", "xx"] {
            assert!(text.parse::<Status>().is_err(), "{text}");
        }
    }
}

//! What nginx has to choose from when a request comes to a pass.

use super::{
    model::{Model, Pass},
    value::{self, Address},
};

/// Where a pass leads a request, as far as nginx has to choose or to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// An `upstream`, by index in [`Model::upstreams`].
    Group(usize),
    /// A host that nginx resolved when it read its configuration: its addresses are a group as well.
    Host {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A name that has to be looked up while the request waits.
    Resolve {
        /// The name; `None` where the request decides in a way that is not followed.
        name: Option<String>,
        /// False if it may be the name of an `upstream`.
        sure: bool,
    },
}

impl Model {
    /// Where a pass leads. `variable` gives the value that a variable has for the request at hand, by its name in
    /// lower case. `None`: to an address, so that there is nothing to choose; or that cannot be told.
    #[must_use]
    pub fn destination(
        &self,
        index: usize,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Destination> {
        let pass = self.passes.get(index)?;
        if let Some(upstream) = pass.upstream {
            return Some(Destination::Group(upstream));
        }
        let default_port = match &pass.target {
            Address::Name { host, port, .. } => {
                return port.map(|port| Destination::Host { host: host.clone(), port });
            }
            Address::Variable { default_port, .. } => *default_port,
            Address::Ip { .. } | Address::Unix { .. } | Address::Invalid => return None,
        };
        if let ([value], true) = (pass.values.as_slice(), pass.complete) {
            return match (value.upstream, &value.target) {
                (Some(upstream), _) => Some(Destination::Group(upstream)),
                (None, Address::Name { host, .. }) => self.look_up(host),
                (None, _) => None,
            };
        }
        if let Some(text) = evaluate(&pass.authority, variable) {
            let authority = text.split_once("://").map_or(text.as_str(), |(_, rest)| rest);
            return match value::address(authority, default_port, false) {
                Address::Name { host, explicit_port, .. } => {
                    let own = |upstream: &super::model::Upstream| {
                        upstream.layer == pass.module.layer() && upstream.name.eq_ignore_ascii_case(&host)
                    };
                    match self.upstreams.iter().position(own).filter(|_| !explicit_port) {
                        Some(upstream) => Some(Destination::Group(upstream)),
                        None => self.look_up(&host),
                    }
                }
                Address::Ip { .. } | Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => {
                    None
                }
            };
        }
        if has_fixed_host(&pass.authority) {
            return None;
        }
        let is_name = |value: &super::model::PassValue| {
            matches!(value.target, Address::Name { .. }) && value.upstream.is_none()
        };
        let known = pass.values.iter().filter(|value| !value.text.is_empty());
        let names = known.clone().all(is_name);
        let group = self.may_use_an_upstream(index);
        let fixed = self.has_static_hosts(pass);
        (names || !pass.complete)
            .then_some(Destination::Resolve { name: None, sure: names && !group && !fixed })
    }

    /// A host of another pass is known to nginx without asking anybody.
    fn look_up(&self, host: &str) -> Option<Destination> {
        let known = self.passes.iter().any(|pass| match &pass.target {
            Address::Name { host: other, .. } => pass.upstream.is_none() && other.eq_ignore_ascii_case(host),
            Address::Ip { .. } | Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => false,
        });
        (!known).then(|| Destination::Resolve { name: Some(host.to_ascii_lowercase()), sure: true })
    }

    fn has_static_hosts(&self, pass: &Pass) -> bool {
        self.passes.iter().any(|other| {
            other.module.layer() == pass.module.layer()
                && other.upstream.is_none()
                && matches!(other.target, Address::Name { .. })
        })
    }
}

/// Whether only the port behind an address is a variable's, or the path of a unix socket: nobody is asked for a name then.
fn has_fixed_host(authority: &str) -> bool {
    let Some((before, _)) = authority.split_once('$') else { return false };
    let is_unix = before.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("unix:"));
    let host = before.rsplit_once(':').map(|(host, _)| host);
    let is_address = |host: &str| matches!(value::address(host, None, false), Address::Ip { .. });
    is_unix || host.is_some_and(is_address)
}

/// Puts values into a text; `None` if one of its variables has none.
fn evaluate(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let mut made = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        made.push_str(before);
        let (name, tail) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}')?,
            None => {
                let end = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
                after.split_at_checked(end)?
            }
        };
        made.push_str(&variable(&name.to_ascii_lowercase())?);
        rest = tail;
    }
    made.push_str(rest);
    (!made.is_empty()).then_some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_name() {
        for fixed in
            ["127.0.0.1:$port", "[::1]:$port", "127.0.0.1:80$port", "unix:$socket", "unix:/run/$app.sock"]
        {
            assert!(has_fixed_host(fixed), "{fixed}");
        }
        for open in [
            "$host:80",
            "127.0.0.1$x",
            "127.0.0.$1:80",
            "localhost:$port",
            "app:$port",
            "[$ip]:80",
            "[::$x",
            "10.0.0.1",
        ] {
            assert!(!has_fixed_host(open), "{open}");
        }
    }

    #[test]
    fn variables_get_the_values_of_a_request() {
        let value = |name: &str| (name == "host").then(|| "shop.example.com".to_owned());
        assert_eq!(evaluate("$host:8080", &value).as_deref(), Some("shop.example.com:8080"));
        assert_eq!(evaluate("a.${host}", &value).as_deref(), Some("a.shop.example.com"));
        assert_eq!(evaluate("$other.$host", &value), None);
        assert_eq!(evaluate("", &value), None);
    }
}

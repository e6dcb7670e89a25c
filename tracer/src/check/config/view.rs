//! What lints ask of a configuration, in their own words.

use super::super::Place;
use crate::nginx::{
    Model,
    model::{Module, Pass},
    tree::{Kind, NodeId},
    value::Address,
};

/// A server that a pass can lead to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// Where it is.
    pub(super) address: &'a Address,
    /// The line that says so: a `server`, or the pass itself.
    pub(super) node: NodeId,
    /// Whether that line is a `server` of an `upstream`.
    pub(super) in_block: bool,
    /// Its address as written there.
    pub(super) text: &'a str,
}

impl Target<'_> {
    pub(super) fn port(&self) -> Option<u16> {
        match self.address {
            Address::Ip { port, .. } | Address::Name { port, .. } => *port,
            Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => None,
        }
    }

    /// The name, where nginx has to resolve one.
    pub(super) fn host(&self) -> Option<&str> {
        match self.address {
            Address::Name { host, .. } => Some(host),
            Address::Ip { .. } | Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => None,
        }
    }

    pub(super) fn place(&self, model: &Model) -> Place {
        Place::of(model, if self.in_block { "server" } else { "pass" }, self.node)
    }
}

/// Every server that the static part of a pass leads to; none where a variable decides or something else balances.
pub(super) fn targets<'a>(model: &'a Model, pass: &'a Pass) -> Vec<Target<'a>> {
    let Some(upstream) = pass.upstream.and_then(|index| model.upstreams.get(index)) else {
        return match pass.target {
            Address::Variable { .. } | Address::Invalid => Vec::new(),
            Address::Ip { .. } | Address::Name { .. } | Address::Unix { .. } => {
                vec![Target {
                    address: &pass.target,
                    node: pass.node,
                    in_block: false,
                    text: &pass.authority,
                }]
            }
        };
    };
    if upstream.balancer.is_some() {
        return Vec::new();
    }
    let usable = upstream.servers.iter().filter(|server| !server.down && server.service.is_none());
    usable
        .map(|server| Target {
            address: &server.address,
            node: server.node,
            in_block: true,
            text: &server.text,
        })
        .collect()
}

/// The line of a pass.
pub(super) fn pass_place(model: &Model, pass: &Pass) -> Place {
    Place::of(model, "pass", pass.node)
}

/// A line that is a directive.
pub(super) fn place(model: &Model, node: NodeId) -> Place {
    Place::of(model, "directive", node)
}

/// The value in force; `None` where there is none, or where an unknown version decides.
pub(in crate::check) fn value(model: &Model, pass: &Pass, name: &str) -> Option<String> {
    model.effective_of(pass, name)?.value
}

/// The line that sets a value; `None` for a default.
pub(super) fn set_at(model: &Model, pass: &Pass, name: &str) -> Option<NodeId> {
    model.effective_of(pass, name)?.node()
}

/// Whether a flag is `on`.
pub(super) fn is_on(model: &Model, pass: &Pass, name: &str) -> bool {
    value(model, pass, name).as_deref() == Some("on")
}

/// Whether its connections are TLS.
pub(super) fn is_tls(model: &Model, pass: &Pass) -> bool {
    match pass.module {
        Module::Stream => is_on(model, pass, "ssl"),
        Module::Proxy | Module::Grpc | Module::Uwsgi | Module::Fastcgi | Module::Scgi | Module::Memcached => {
            pass.tls == Some(true)
        }
    }
}

/// A header that a pass sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) node: NodeId,
}

/// The `X_set_header` lines in force; names as written. Empty where none is set.
pub(super) fn headers(model: &Model, pass: &Pass) -> Vec<Header> {
    let nodes = model.effective_of(pass, "set_header").map(|found| found.nodes).unwrap_or_default();
    nodes.into_iter().filter_map(|node| header(model, node)).collect()
}

pub(super) fn header(model: &Model, node: NodeId) -> Option<Header> {
    let config = model.config();
    Some(Header { name: config.arg(node, 0)?, value: config.arg(node, 1)?, node })
}

/// The header of that name among these, letters without case.
pub(super) fn find<'a>(headers: &'a [Header], name: &str) -> Option<&'a Header> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))
}

/// The directives of one block that have a name.
pub(in crate::check) fn in_block(model: &Model, block: NodeId, name: &str) -> impl Iterator<Item = NodeId> {
    let config = model.config();
    // Most names are nowhere: then nothing is walked through.
    let wanted = config.find_name(name.as_bytes());
    let children = wanted.map(|_| config.children(block)).into_iter().flatten();
    children.filter(move |id| config.name_id(*id) == wanted)
}

/// The directives of a name that hold for a block: those of the innermost enclosing block that has any.
pub(in crate::check) fn inherited(model: &Model, mut block: Option<NodeId>, name: &str) -> Vec<NodeId> {
    if model.config().find_name(name.as_bytes()).is_none() {
        return Vec::new();
    }
    while let Some(inner) = block {
        let found: Vec<NodeId> = in_block(model, inner, name).collect();
        if !found.is_empty() {
            return found;
        }
        block = model.config().parent(inner);
    }
    Vec::new()
}

/// All directives of a name anywhere in the configuration.
pub(in crate::check) fn all<'a>(model: &'a Model, name: &'a str) -> impl Iterator<Item = NodeId> + 'a {
    let config = model.config();
    let id = config.find_name(name.as_bytes());
    config
        .all()
        .filter(move |node| id.is_some() && config.name_id(*node) == id && config.kind(*node) != Kind::Entry)
}

/// The blocks around a directive, innermost first.
pub(super) fn around(model: &Model, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    std::iter::successors(model.config().parent(node), |block| model.config().parent(*block))
}

/// Whether the block has that name.
pub(super) fn is_block(model: &Model, node: NodeId, name: &str) -> bool {
    *model.config().name(node) == *name.as_bytes()
}

/// What a `location` says: its modifier, if any, and its name.
pub(super) fn location(model: &Model, node: NodeId) -> (String, String) {
    let config = model.config();
    let first = config.arg(node, 0).unwrap_or_default();
    match config.arg(node, 1) {
        Some(name) => (first, name),
        None => {
            // The modifier may touch the name.
            let modifier = ["^~", "~*", "~", "=", "@"].into_iter().find(|one| first.starts_with(one));
            match modifier {
                Some(modifier) => {
                    (modifier.to_owned(), first.get(modifier.len()..).unwrap_or_default().to_owned())
                }
                None => (String::new(), first),
            }
        }
    }
}

/// Whether a name is a host name as DNS knows it, with at least one dot.
pub(super) fn is_dotted(name: &str) -> bool {
    name.trim_end_matches('.').contains('.')
}

/// Whether nothing but `mirror` is known to lead to a pass's location, and whether clients are kept out of it (`internal`).
/// nginx throws the answers to such requests away.
pub(in crate::check) fn mirrored(model: &Model, pass: &Pass) -> Option<bool> {
    let block = pass.location?;
    let (modifier, name) = location(model, block);
    let leads_here = |uri: &str| {
        let path = uri.split('?').next().unwrap_or_default();
        match modifier.as_str() {
            "=" => path == name,
            "" | "^~" => path.starts_with(&name),
            _ => false,
        }
    };
    let config = model.config();
    let any = |directive: &str| {
        let words = |node: NodeId| (0..).map_while(move |index| config.arg(node, index));
        all(model, directive).any(|node| words(node).any(|word| leads_here(&word)))
    };
    let others = [
        "auth_request",
        "error_page",
        "try_files",
        "rewrite",
        "post_action",
        "add_before_body",
        "add_after_body",
    ];
    let only = any("mirror") && !others.into_iter().any(any);
    only.then(|| around(model, pass.node).any(|block| in_block(model, block, "internal").next().is_some()))
}

/// The variables in a text, without `$` and braces, in lower case.
pub(super) fn variables(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        let (name, tail) = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').unwrap_or((braced, "")),
            None => {
                let end = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
                after.split_at(end)
            }
        };
        if !name.is_empty() {
            found.push(name.to_ascii_lowercase());
        }
        rest = tail;
    }
    found
}

/// An `upstream` that these passes name, for a text: `upstream "b"`.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

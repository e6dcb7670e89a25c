//! What a configuration says about upstreams: servers, passes, and where each stands in the files.

use std::{collections::BTreeSet, collections::HashMap, path::PathBuf};

use super::{
    error::Error,
    lookup,
    tree::{Config, NameId, NodeId},
    value::Address,
    version::Platform,
    walk,
};

/// Whether something belongs to `http` or to `stream`; each has its own upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Inside `http`.
    Http,
    /// Inside `stream`.
    Stream,
}

impl Layer {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Stream => "stream",
        }
    }

    /// The module of its `proxy_pass`.
    pub fn module(self) -> Module {
        match self {
            Self::Http => Module::Proxy,
            Self::Stream => Module::Stream,
        }
    }
}

/// The nginx module whose `*_pass` opens the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Module {
    /// `proxy_pass` in `http`.
    Proxy,
    /// `fastcgi_pass`.
    Fastcgi,
    /// `uwsgi_pass`.
    Uwsgi,
    /// `scgi_pass`.
    Scgi,
    /// `grpc_pass`.
    Grpc,
    /// `memcached_pass`.
    Memcached,
    /// `proxy_pass` in `stream`.
    Stream,
}

impl Module {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Fastcgi => "fastcgi",
            Self::Uwsgi => "uwsgi",
            Self::Scgi => "scgi",
            Self::Grpc => "grpc",
            Self::Memcached => "memcached",
            Self::Stream => "stream",
        }
    }

    /// What the module's directives begin with, such as `proxy_`.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Proxy | Self::Stream => "proxy_",
            Self::Fastcgi => "fastcgi_",
            Self::Uwsgi => "uwsgi_",
            Self::Scgi => "scgi_",
            Self::Grpc => "grpc_",
            Self::Memcached => "memcached_",
        }
    }

    /// Where its passes stand.
    pub fn layer(self) -> Layer {
        match self {
            Self::Stream => Layer::Stream,
            Self::Proxy | Self::Fastcgi | Self::Uwsgi | Self::Scgi | Self::Grpc | Self::Memcached => {
                Layer::Http
            }
        }
    }
}

/// What a line of the configuration has to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// `server` in an `upstream`.
    Server,
    /// A `*_pass`.
    Pass,
    /// Anything else that matters, such as a timeout.
    Directive,
}

impl Role {
    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Pass => "pass",
            Self::Directive => "directive",
        }
    }
}

/// A directive and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ConfigLine {
    /// What it has to do with the connection.
    pub role: Role,
    /// File as nginx names it: a path in the process's own root.
    #[serde(with = "crate::plain::path")]
    pub file: PathBuf,
    /// Line where the directive begins, from 1.
    pub line: u32,
    /// The directive as written.
    pub text: String,
}

/// One `listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Its address as written, such as `443` or `[::]:80`.
    pub address: String,
    /// First and last port; `None` for a unix socket.
    pub ports: Option<(u16, u16)>,
    /// Whether it has `udp` or `quic`.
    pub udp: bool,
    /// The remaining parameters, as written.
    pub parameters: Vec<String>,
}

/// A `server { }` of `http` or `stream`.
#[derive(Debug, Clone)]
pub struct Server {
    /// The block.
    pub node: NodeId,
    /// `http` or `stream`.
    pub layer: Layer,
    /// All its `server_name`s, as written.
    pub names: Vec<String>,
    /// Its `listen`s; none means port 80 (in `http`).
    pub listens: Vec<Listen>,
}

/// A `server` of an `upstream`, with nginx's defaults where a parameter is not written.
#[derive(Debug, Clone)]
pub struct UpstreamServer {
    /// The directive.
    pub node: NodeId,
    /// The address as written.
    pub text: String,
    /// The address as nginx reads it.
    pub address: Address,
    /// All parameters as written.
    pub parameters: Vec<String>,
    /// `weight=`, 1.
    pub weight: u64,
    /// `max_conns=`, 0 for no limit; counted by each worker unless the upstream has a `zone`.
    pub max_conns: u64,
    /// `max_fails=`, 1; without effect on a lone server.
    pub max_fails: u64,
    /// `fail_timeout=` in seconds, 10.
    pub fail_timeout_s: u64,
    /// `backup`.
    pub backup: bool,
    /// `down`.
    pub down: bool,
    /// `drain`, since 1.29.6: only requests that are bound to it by a `sticky` cookie.
    pub drain: bool,
    /// `resolve`: the name is looked up while nginx runs.
    pub resolve: bool,
    /// `service=`: port and hosts come from SRV records.
    pub service: Option<String>,
}

/// An `upstream { }`.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The block.
    pub node: NodeId,
    /// `http` or `stream`.
    pub layer: Layer,
    /// Its name as written.
    pub name: String,
    /// Its servers in order.
    pub servers: Vec<UpstreamServer>,
    /// The directive by which something else chooses the address (`balancer_by_lua_block`, as in
    /// ingress-nginx, or `state`): then any address is possible.
    pub balancer: Option<NodeId>,
    /// The directive that chooses among the servers, such as `least_conn`; `None`: in turn, by weight.
    pub method: Option<NodeId>,
}

/// One value that the variables of a pass can give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassValue {
    /// Scheme, host and port with the variables replaced.
    pub text: String,
    /// Host and port alone.
    pub authority: String,
    /// Where it leads.
    pub target: Address,
    /// The `upstream` it names, by index in [`Model::upstreams`].
    pub upstream: Option<usize>,
}

/// A `*_pass`.
#[derive(Debug, Clone)]
pub struct Pass {
    /// The directive.
    pub node: NodeId,
    /// Whose pass it is.
    pub module: Module,
    /// The argument as written, such as `http://backend/api/`.
    pub url: String,
    /// The scheme in front of `://`; `None` where there is none or a variable gives it.
    pub scheme: Option<String>,
    /// Whether the connection is TLS; `None` where a variable decides, or in `stream`, where `proxy_ssl` does.
    pub tls: Option<bool>,
    /// Host and port as written, without scheme and URI.
    pub authority: String,
    /// Where it leads. A name may be one of [`Model::upstreams`]: see `upstream`.
    pub target: Address,
    /// Whether a variable stands anywhere in the argument, be it in the URI only.
    pub variables: bool,
    /// The `upstream` it names, by index in [`Model::upstreams`].
    pub upstream: Option<usize>,
    /// The values that its variables can give it, where `target` is [`Address::Variable`].
    pub values: Vec<PassValue>,
    /// Whether there can be no others than `values`.
    pub complete: bool,
    /// The enclosing server, by index in [`Model::servers`].
    pub server: Option<usize>,
    /// The enclosing `location`, the innermost one.
    pub location: Option<NodeId>,
}

/// Everything this program knows from a configuration.
#[derive(Debug, Default)]
pub struct Model {
    pub(super) config: Config,
    /// The nginx version and machine that decide about defaults.
    pub platform: Platform,
    /// The servers of `http` and `stream`, in the order of the files.
    pub servers: Vec<Server>,
    /// The `upstream`s of both.
    pub upstreams: Vec<Upstream>,
    /// The passes of both.
    pub passes: Vec<Pass>,
    /// Directives that nginx would refuse, or that this program does not understand.
    pub warnings: Vec<Error>,
    /// The first directive of a name in a block, for the names that [`settings`](super::settings) may ask for.
    pub(super) settings: HashMap<(Option<NodeId>, NameId), NodeId>,
}

impl Model {
    /// Builds the model for an nginx of unknown version; what cannot be understood is in [`Model::warnings`].
    pub fn new(config: Config) -> Self {
        Self::for_platform(config, Platform::default())
    }

    /// Builds the model for a known nginx.
    pub fn for_platform(config: Config, platform: Platform) -> Self {
        walk::build(config, platform)
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A directive with its place.
    pub fn line(&self, role: Role, node: NodeId) -> ConfigLine {
        ConfigLine {
            role,
            file: self.config.file(node).to_path_buf(),
            line: self.config.line(node),
            text: self.config.text(node),
        }
    }

    /// The `server` that encloses a pass.
    pub fn server_of(&self, pass: &Pass) -> Option<&Server> {
        self.servers.get(pass.server?)
    }

    /// The arguments of the innermost `location` around a pass, such as `~ \.php$` or `/api/`.
    pub fn location_of(&self, pass: &Pass) -> Option<String> {
        pass.location.map(|location| self.arguments(location))
    }

    /// Host names, sorted, whose addresses [`Model::candidates`] asks for: those of upstream servers and of
    /// passes that name no `upstream`, with the values that their variables can take.
    pub fn names(&self) -> Vec<String> {
        let servers =
            self.upstreams.iter().flat_map(|upstream| &upstream.servers).map(|server| &server.address);
        let direct = self.passes.iter().filter(|pass| pass.upstream.is_none()).map(|pass| &pass.target);
        let values = self.passes.iter().flat_map(|pass| &pass.values);
        let values = values.filter(|value| value.upstream.is_none()).map(|value| &value.target);
        let names: BTreeSet<_> = servers.chain(direct).chain(values).filter_map(host).collect();
        names.into_iter().collect()
    }

    /// The TCP ports on which clients come in, sorted.
    pub fn listen_ports(&self) -> Vec<u16> {
        let mut ports = BTreeSet::new();
        for server in &self.servers {
            if server.listens.is_empty() && server.layer == Layer::Http {
                ports.insert(80);
            }
            for (first, last) in server.listens.iter().filter(|listen| !listen.udp).filter_map(|l| l.ports) {
                ports.extend(first..=last);
            }
        }
        ports.into_iter().collect()
    }
}

fn host(address: &Address) -> Option<String> {
    match address {
        Address::Name { host, .. } => Some(host.clone()),
        Address::Variable { pattern, .. } => lookup::host_of_pattern(pattern),
        Address::Ip { .. } | Address::Unix { .. } | Address::Invalid => None,
    }
}

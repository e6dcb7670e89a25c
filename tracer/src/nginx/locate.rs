//! From a request to the `server`, the `location` and the passes that can handle it, as nginx finds them
//! (`ngx_http_core_find_location` in src/http/ngx_http_core_module.c).

use std::{collections::HashSet, net::SocketAddr};

use super::{
    flow::{self, Flow},
    in_force::InForces,
    lookup::Candidate,
    model::{Layer, Model, Pass, Role},
    pcre::Pattern,
    tree::NodeId,
    uri,
    value::Address,
};

/// Deepest nesting of locations that is followed.
const DEEPEST: usize = 32;

/// Where a request leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Located {
    /// The `server`, by index in [`Model::servers`], if that is certain.
    pub server: Option<usize>,
    /// The servers that can have handled it.
    pub servers: Vec<usize>,
    /// The `location` that its URI finds, before anything leads elsewhere, if that is certain; `None` also where
    /// there is none.
    pub location: Option<NodeId>,
    /// Every pass that can have handled it, a part of it (`auth_request`), or what followed (`error_page`), by index
    /// in [`Model::passes`], sorted.
    pub passes: Vec<usize>,
    /// True if there is one such pass at most, and nothing can have led anywhere else.
    pub exact: bool,
    /// The directives that can have led it elsewhere, or that cannot be answered, each once.
    pub because: Vec<&'static str>,
}

/// What is known of the request that a failed attempt was for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The local address of the client's TCP connection.
    pub listen: SocketAddr,
    /// The host that nginx uses; `None` if it is not known, empty if there is none.
    pub host: Option<&'a str>,
    /// The URI as sent, from its `/` on, as far as the end of its path at least; `None` if it is not known.
    pub target: Option<&'a str>,
    /// A backend may have answered the request, or a part of it, before the attempt began, and `X-Accel-Redirect` have
    /// led it to any location.
    pub answered: bool,
}

/// What a `location` says in front of its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// `location = /x`
    Exact(Vec<u8>),
    /// `location /x`, with whether `^~` keeps regular expressions from being asked.
    Prefix(Vec<u8>, bool),
    /// `location ~ x`, with whether it is `~*`.
    Regex(Vec<u8>, bool),
    /// `location @x`
    Named(Vec<u8>),
}

/// How far a search has come: nginx's return codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok,
    Again,
    Declined,
    Redirect,
}

/// The locations that a URI finds.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// The one that is certain if `others` is empty; `None` for the server's own level.
    pub(super) first: Option<NodeId>,
    /// Those whose regular expression cannot be answered here, so that they may come first.
    pub(super) others: Vec<NodeId>,
    /// nginx answers with a redirect to `first`, whose name is the URI with a slash.
    pub(super) redirect: bool,
    /// Too deep to follow: any location is possible.
    pub(super) lost: bool,
}

impl Model {
    /// Finds what handles a request. `listen` is the local address of the client's TCP connection, `host` the host that
    /// nginx uses (of the URI if that is absolute, else of the header; empty if there is none), `target` the URI as
    /// sent, from its `/` on. What is not known is `None`, and then more is possible.
    ///
    /// No backend is thought to have answered before: see [`Model::locate_attempt`].
    pub fn locate(&self, listen: Option<SocketAddr>, host: Option<&str>, target: &str) -> Located {
        self.follow(listen, host, target, false)
    }

    /// Finds what can have made a failed attempt. Where not even the URI is known, that is every pass of the servers
    /// behind the listen address.
    #[must_use]
    pub fn locate_attempt(&self, asked: &Asked<'_>) -> Located {
        let listen = Some(asked.listen);
        if self.servers_at(Layer::Http, listen).is_empty() {
            return self.locate_stream(listen);
        }
        if let Some(target) = asked.target {
            return self.follow(listen, asked.host, target, asked.answered);
        }
        let mut servers = self.servers_for(listen, asked.host);
        // A request that is refused before its host is read stays with the default server.
        servers.extend(self.default_servers(listen));
        servers.sort_unstable();
        servers.dedup();
        self.any_of(servers)
    }

    fn follow(
        &self,
        listen: Option<SocketAddr>,
        host: Option<&str>,
        target: &str,
        answered: bool,
    ) -> Located {
        let servers = self.servers_for(listen, host);
        let mut flow = Flow::new(self, answered);
        let mut location = None;
        for server in self.default_servers(listen).into_iter().filter(|server| !servers.contains(server)) {
            flow.refused_early(server, &self.uris(listen, server, target));
        }
        for server in &servers {
            location = flow.request(*server, &self.uris(listen, *server, target));
        }
        let server = match servers.as_slice() {
            [only] => Some(*only),
            _ => {
                flow.because("server_name");
                location = None;
                None
            }
        };
        let (passes, because, certain) = flow.end();
        let exact = certain && passes.len() <= 1 && !servers.is_empty();
        Located { server, servers, location, passes, exact, because }
    }

    /// The same for a connection in `stream`.
    pub fn locate_stream(&self, listen: Option<SocketAddr>) -> Located {
        self.any_of(self.servers_at(Layer::Stream, listen))
    }

    /// Every pass of some servers.
    fn any_of(&self, servers: Vec<usize>) -> Located {
        let is_there = |server: Option<usize>| server.is_some_and(|server| servers.contains(&server));
        let passes: Vec<usize> = self
            .passes
            .iter()
            .enumerate()
            .filter(|(_, pass)| is_there(pass.server))
            .map(|(index, _)| index)
            .collect();
        let server = if let [only] = servers.as_slice() { Some(*only) } else { None };
        let exact = server.is_some() && passes.len() <= 1;
        let because = if exact { Vec::new() } else { vec!["listen"] };
        Located { server, servers, location: None, passes, exact, because }
    }

    /// The candidates that a located request leaves, with the lines of the passes that it can have used. If it leaves
    /// none, something about the request is not understood: then all remain. One without a pass is no pass of the
    /// request's, but may stand for a directive that is not known.
    #[must_use]
    pub fn narrow(&self, candidates: &[Candidate], located: &Located) -> Vec<Candidate> {
        let fits = |candidate: &Candidate| {
            if candidate.passes.is_empty() {
                return Some(candidate.clone());
            }
            let passes: Vec<usize> =
                candidate.passes.iter().filter(|pass| located.passes.contains(pass)).copied().collect();
            (!passes.is_empty()).then(|| self.with_passes(candidate, passes))
        };
        let left: Vec<Candidate> = candidates.iter().filter_map(fits).collect();
        let any = left.iter().any(|candidate| !candidate.passes.is_empty());
        if any { left } else { candidates.to_vec() }
    }

    fn with_passes(&self, candidate: &Candidate, passes: Vec<usize>) -> Candidate {
        if passes == candidate.passes {
            return candidate.clone();
        }
        let mut narrowed = self.candidate(candidate.module, passes, candidate.exact);
        narrowed.upstream.clone_from(&candidate.upstream);
        narrowed.server.clone_from(&candidate.server);
        narrowed.upstream_server = candidate.upstream_server;
        let own = candidate.lines.iter().take_while(|line| line.role != Role::Pass);
        narrowed.lines.splice(0..0, own.cloned());
        if candidate.barred.others {
            narrowed.barred = self.all_barred(&narrowed.passes);
        }
        if candidate.settings != InForces::default() {
            narrowed.settings = self.in_force(&narrowed.passes, narrowed.upstream_server);
        }
        narrowed
    }

    /// Whether an answer that a pass had before the attempt can have led the request elsewhere, which to any location:
    /// one of a backend, if there can have been any, or of a kind that is not seen (from a cache, over a unix socket).
    pub(super) fn may_redirect(&self, pass: usize, answered: bool) -> bool {
        let Some(pass) = self.passes.get(pass) else { return true };
        let find = |name: &str| {
            let name = format!("{}{name}", pass.module.prefix());
            self.nearest(self.config.parent(pass.node), &name)
        };
        let words = |node: NodeId| (0..).map_while(move |index| self.config.arg(node, index));
        if find(flow::IGNORED)
            .is_some_and(|node| words(node).any(|w| w.eq_ignore_ascii_case("X-Accel-Redirect")))
        {
            return false;
        }
        answered || self.is_cached(pass) || self.may_be_unix(pass)
    }

    /// Whether a pass may answer from a cache.
    pub fn is_cached(&self, pass: &Pass) -> bool {
        let node =
            self.nearest(self.config.parent(pass.node), &format!("{}{}", pass.module.prefix(), flow::CACHE));
        node.is_some_and(|node| self.config.arg(node, 0).is_none_or(|word| word != "off"))
    }

    fn may_be_unix(&self, pass: &Pass) -> bool {
        let is_unix = |address: &Address| matches!(address, Address::Unix { .. });
        let upstream = |index: usize| {
            let upstream = self.upstreams.get(index);
            upstream.is_none_or(|u| u.balancer.is_some() || u.servers.iter().any(|s| is_unix(&s.address)))
        };
        if let Some(index) = pass.upstream {
            return upstream(index);
        }
        let values = pass.values.iter().any(|v| v.upstream.map_or_else(|| is_unix(&v.target), upstream));
        let unknown = matches!(pass.target, Address::Variable { .. }) && !pass.complete;
        values || unknown || is_unix(&pass.target)
    }

    /// What a `location` says; `None` for what nginx refuses.
    pub(super) fn location_name(&self, location: NodeId) -> Option<Name> {
        let mut words = self.config.args(location);
        let (first, second) = (words.next()?, words.next());
        let (modifier, name): (&[u8], &[u8]) = match &second {
            Some(name) => (&first, name),
            None => {
                let modifiers: [&[u8]; 4] = [b"=", b"^~", b"~*", b"~"];
                let modifier = modifiers.into_iter().find(|modifier| first.starts_with(modifier));
                first.split_at(modifier.map_or(0, <[u8]>::len))
            }
        };
        let name = name.to_vec();
        Some(match modifier {
            b"=" => Name::Exact(name),
            b"^~" => Name::Prefix(name, true),
            b"~" => Name::Regex(name, false),
            b"~*" => Name::Regex(name, true),
            b"" if name.starts_with(b"@") => Name::Named(name),
            b"" => Name::Prefix(name, false),
            _ => return None,
        })
    }

    /// The locations directly in a block.
    pub(super) fn locations(&self, block: NodeId) -> Vec<(NodeId, Name)> {
        let Some(name) = self.config.find_name(b"location") else { return Vec::new() };
        let own = self.config.children(block).filter(|id| self.config.name_id(*id) == Some(name));
        own.filter_map(|id| Some((id, self.location_name(id)?))).collect()
    }

    /// The location of a normalised URI in a server.
    pub(super) fn search(&self, server: NodeId, uri: &[u8]) -> Search {
        let mut search = Search::default();
        let mut found = None;
        let code = self.level(server, uri, &mut found, &mut search, 0);
        search.first = found;
        search.redirect = code == Code::Redirect;
        search
    }

    fn level(
        &self,
        block: NodeId,
        uri: &[u8],
        found: &mut Option<NodeId>,
        search: &mut Search,
        depth: usize,
    ) -> Code {
        if depth > DEEPEST {
            search.lost = true;
            return Code::Declined;
        }
        let locations = self.locations(block);
        let mut code = Code::Declined;
        let mut with_slash = None;
        let mut longest: Option<(NodeId, usize, bool)> = None;
        for (id, name) in &locations {
            match name {
                Name::Exact(name) if name == uri => {
                    *found = Some(*id);
                    return Code::Ok;
                }
                Name::Prefix(name, alone) if uri.starts_with(name) => {
                    if longest.is_none_or(|(_, length, _)| name.len() > length) {
                        longest = Some((*id, name.len(), *alone));
                    }
                }
                Name::Exact(name) | Name::Prefix(name, _) => {
                    if name.strip_suffix(b"/") == Some(uri) && self.has_pass(*id) {
                        with_slash = Some(*id);
                    }
                }
                Name::Regex(..) | Name::Named(_) => {}
            }
        }
        // A location for this very URI comes before the one with a slash.
        if with_slash.is_some() && longest.is_none_or(|(_, length, _)| length < uri.len()) {
            *found = with_slash;
            return Code::Redirect;
        }
        let mut alone = false;
        if let Some((id, _, noregex)) = longest {
            *found = Some(id);
            alone = noregex;
            code = self.level(id, uri, found, search, depth + 1);
            if matches!(code, Code::Ok | Code::Redirect) {
                return code;
            }
            code = Code::Again;
        }
        if alone {
            return code;
        }
        for (id, name) in &locations {
            let Name::Regex(pattern, caseless) = name else { continue };
            match Pattern::new(pattern, *caseless).and_then(|regex| regex.is_match(uri)) {
                Some(true) => {
                    *found = Some(*id);
                    self.level(*id, uri, found, search, depth + 1);
                    return Code::Ok;
                }
                Some(false) => {}
                None => {
                    let mut inner = Some(*id);
                    self.level(*id, uri, &mut inner, search, depth + 1);
                    search.others.extend(inner);
                }
            }
        }
        code
    }

    /// Whether a pass stands directly in a location: then nginx sends those who forget its final slash there.
    fn has_pass(&self, location: NodeId) -> bool {
        self.passes.iter().any(|pass| self.config.parent(pass.node) == Some(location))
    }

    /// The path of a target as locations see it, once for each way in which nginx can have read it; `None` where it
    /// refuses it. nginx reads it before it knows the host: `merge_slashes` is that of the address's default server,
    /// or of the one that TLS named.
    fn uris(&self, listen: Option<SocketAddr>, server: usize, target: &str) -> Vec<Option<Vec<u8>>> {
        let mut deciding = self.default_servers(listen);
        let own = self.servers.get(server).map(|server| server.listens.as_slice()).unwrap_or_default();
        if own.iter().any(|listen| listen.parameters.iter().any(|word| word == "ssl" || word == "quic")) {
            deciding.push(server);
        }
        let mut uris: Vec<_> = deciding
            .iter()
            .map(|server| {
                let node = self.servers.get(*server).map(|server| server.node);
                let merge = self.nearest(node, "merge_slashes");
                merge.is_none_or(|node| self.config.arg(node, 0).as_deref() != Some("off"))
            })
            .collect::<HashSet<bool>>()
            .into_iter()
            .map(|merge| uri::normalise(target.as_bytes(), merge))
            .collect();
        uris.sort_unstable();
        uris.dedup();
        uris
    }
}

//! Builds the [`Model`] in one pass over the parsed configuration.

use std::collections::HashMap;

use super::{
    directives,
    error::Error,
    flow,
    model::{Layer, Listen, Model, Module, Pass, PassValue, Server, Upstream, UpstreamServer},
    tree::{Config, Kind, NodeId},
    value::{self, Address},
    vars::{self, Values},
    version::Platform,
};

/// What encloses a directive.
#[derive(Debug, Clone, Copy, Default)]
struct Scope {
    layer: Option<Layer>,
    server: Option<usize>,
    upstream: Option<usize>,
    location: Option<NodeId>,
}

pub(super) fn build(config: Config, platform: Platform) -> Model {
    let is_setting: Vec<bool> =
        config.names().map(|(_, name)| directives::is_known(name) || flow::is_known(name)).collect();
    let mut model = Model { config, platform, ..Model::default() };
    // The open blocks with one past their last descendant; the last is the innermost.
    let mut open: Vec<(u32, Scope)> = Vec::new();
    for id in model.config.all() {
        let Some((kind, end)) = model.config.node(id).map(|node| (node.kind, node.end)) else { continue };
        if matches!(kind, Kind::Entry | Kind::Include) {
            continue;
        }
        while open.last().is_some_and(|(end, _)| *end <= id.0) {
            open.pop();
        }
        let scope = open.last().map(|(_, scope)| *scope).unwrap_or_default();
        match kind {
            Kind::Block => open.push((end, block(&mut model, id, scope))),
            Kind::Simple | Kind::Lua => {
                if let Some(name) =
                    model.config.name_id(id).filter(|name| is_setting.get(name.0 as usize) == Some(&true))
                {
                    let parent = model.config.parent(id);
                    model.settings.entry((parent, name)).or_insert(id);
                }
                directive(&mut model, id, scope);
            }
            Kind::Entry | Kind::Include => {}
        }
    }
    link(&mut model);
    model
}

fn block(model: &mut Model, id: NodeId, scope: Scope) -> Scope {
    let name = model.config.name(id).into_owned();
    match (name.as_slice(), scope.layer) {
        (b"http", None) => Scope { layer: Some(Layer::Http), ..scope },
        (b"stream", None) => Scope { layer: Some(Layer::Stream), ..scope },
        (b"server", Some(layer)) if scope.upstream.is_none() => {
            model.servers.push(Server { node: id, layer, names: Vec::new(), listens: Vec::new() });
            Scope { server: Some(model.servers.len() - 1), ..scope }
        }
        (b"upstream", Some(layer)) => {
            let name = model.config.arg(id, 0).unwrap_or_default();
            let upstream =
                Upstream { node: id, layer, name, servers: Vec::new(), balancer: None, method: None };
            model.upstreams.push(upstream);
            Scope { upstream: Some(model.upstreams.len() - 1), ..scope }
        }
        (b"location", Some(Layer::Http)) => Scope { location: Some(id), ..scope },
        _ => scope,
    }
}

fn directive(model: &mut Model, id: NodeId, scope: Scope) {
    let Some(layer) = scope.layer else { return };
    let module = match (&*model.config.name(id), layer) {
        (b"server", _) => {
            if let Some(upstream) = scope.upstream {
                upstream_server(model, id, upstream, layer);
            }
            return;
        }
        (b"balancer_by_lua_block" | b"balancer_by_lua_file" | b"state", _) => {
            if let Some(upstream) = scope.upstream.and_then(|index| model.upstreams.get_mut(index)) {
                upstream.balancer = Some(id);
            }
            return;
        }
        (name, _) if directives::METHODS.iter().any(|method| method.as_bytes() == name) => {
            if let Some(upstream) = scope.upstream.and_then(|index| model.upstreams.get_mut(index)) {
                upstream.method.get_or_insert(id);
            }
            return;
        }
        (b"server_name" | b"listen", _) => {
            server_setting(model, id, scope);
            return;
        }
        (b"proxy_pass", Layer::Stream) => Module::Stream,
        (b"proxy_pass", Layer::Http) => Module::Proxy,
        (b"fastcgi_pass", Layer::Http) => Module::Fastcgi,
        (b"uwsgi_pass", Layer::Http) => Module::Uwsgi,
        (b"scgi_pass", Layer::Http) => Module::Scgi,
        (b"grpc_pass", Layer::Http) => Module::Grpc,
        (b"memcached_pass", Layer::Http) => Module::Memcached,
        _ => return,
    };
    let Some(url) = model.config.arg(id, 0) else { return };
    let pass = pass(id, module, url, scope);
    if pass.target == Address::Invalid {
        warn(model, id, format!("\"{}\" is no address to pass to", pass.url));
    }
    model.passes.push(pass);
}

fn warn(model: &mut Model, id: NodeId, message: String) {
    let (file, line) = (model.config.file(id).to_path_buf(), model.config.line(id));
    model.warnings.push(Error::Value { file, line, message });
}

fn server_setting(model: &mut Model, id: NodeId, scope: Scope) {
    let words: Vec<String> = (0..).map_while(|index| model.config.arg(id, index)).collect();
    let is_name = &*model.config.name(id) == b"server_name";
    let Some(server) = scope.server.and_then(|index| model.servers.get_mut(index)) else { return };
    if is_name {
        server.names.extend(words);
        return;
    }
    let mut words = words.into_iter();
    let Some(address) = words.next() else { return };
    let parameters: Vec<_> = words.collect();
    let udp = parameters.iter().any(|parameter| parameter == "udp" || parameter == "quic");
    server.listens.push(Listen { ports: listen_ports(&address), address, udp, parameters });
}

/// `80`, `*:80`, `[::]:80`, `host`, `host:80`, `12000-12100`; `None` for a unix socket or nonsense.
fn listen_ports(address: &str) -> Option<(u16, u16)> {
    if address.starts_with("unix:") {
        return None;
    }
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let behind_brackets = address.find(']').map_or(address, |end| address.get(end + 1..).unwrap_or_default());
    match behind_brackets.rsplit_once(':') {
        Some((_, port)) => range(port),
        None => range(address).or(Some((80, 80))),
    }
}

fn upstream_server(model: &mut Model, id: NodeId, upstream: usize, layer: Layer) {
    let mut words = (0..).map_while(|index| model.config.arg(id, index));
    let Some(text) = words.next() else { return };
    let parameters: Vec<String> = words.collect();
    let default_port = match layer {
        Layer::Http => Some(80),
        Layer::Stream => None,
    };
    let mut server = UpstreamServer {
        node: id,
        address: value::address(&text, default_port, false),
        text,
        parameters: Vec::new(),
        weight: 1,
        max_conns: 0,
        max_fails: 1,
        fail_timeout_s: 10,
        backup: false,
        down: false,
        drain: false,
        resolve: false,
        service: None,
    };
    let mut wrong = Vec::new();
    if server.address == Address::Invalid {
        wrong.push(format!("\"{}\" is no address of a server", server.text));
    }
    for parameter in &parameters {
        if !read_parameter(&mut server, parameter) {
            wrong.push(format!("parameter \"{parameter}\" has no valid value"));
        }
    }
    server.parameters = parameters;
    if let Some(upstream) = model.upstreams.get_mut(upstream) {
        upstream.servers.push(server);
    }
    for message in wrong {
        warn(model, id, message);
    }
}

/// False when a known parameter has a value that nginx refuses. Parameters of other modules (`route=`,
/// `slow_start=`, `sid=` …) are kept as text only.
fn read_parameter(server: &mut UpstreamServer, parameter: &str) -> bool {
    let (name, text) = parameter.split_once('=').unwrap_or((parameter, ""));
    let field = match name {
        "weight" => &mut server.weight,
        "max_conns" => &mut server.max_conns,
        "max_fails" => &mut server.max_fails,
        "fail_timeout" => {
            let seconds = value::seconds(text);
            server.fail_timeout_s = seconds.unwrap_or(server.fail_timeout_s);
            return seconds.is_some();
        }
        "backup" => {
            server.backup = true;
            return true;
        }
        "down" => {
            server.down = true;
            return true;
        }
        "drain" => {
            server.drain = true;
            return true;
        }
        "resolve" => {
            server.resolve = true;
            return true;
        }
        "service" => {
            server.service = Some(text.to_owned());
            return true;
        }
        _ => return true,
    };
    let number = text.parse().ok();
    *field = number.unwrap_or(*field);
    number.is_some()
}

fn pass(node: NodeId, module: Module, url: String, scope: Scope) -> Pass {
    // What nginx allows in front of the address: whether it is TLS, and the port it implies.
    let known: &[(&str, bool, Option<u16>)] = match module {
        Module::Proxy => &[("http", false, Some(80)), ("https", true, Some(443))],
        Module::Grpc => &[("grpc", false, None), ("grpcs", true, None)],
        Module::Uwsgi => &[("uwsgi", false, None), ("suwsgi", true, None)],
        Module::Fastcgi | Module::Scgi | Module::Memcached | Module::Stream => &[],
    };
    let variables = url.contains('$');
    let split = url.split_once("://").filter(|_| !known.is_empty());
    let (scheme, rest) = split.map_or((None, url.as_str()), |(scheme, rest)| (Some(scheme), rest));
    let uri = module == Module::Proxy;
    // Its variables give the rest of the `//`, and the host behind it.
    let begun = if uri && split.is_none() { begun(&url) } else { None };
    let scheme_so_far = begun.and_then(|(before, _)| before.split_once(':')).map(|(scheme, _)| scheme);
    let found = scheme
        .or(scheme_so_far)
        .and_then(|scheme| known.iter().find(|(name, ..)| name.eq_ignore_ascii_case(scheme)));
    let open_scheme = scheme.map_or(variables, |scheme| scheme.contains('$'));
    let authority = begun.map_or_else(|| authority(rest, uri), |(_, rest)| rest);
    let default_port = found.and_then(|(.., port)| *port);
    let target = if authority.contains('$') {
        Address::Variable { pattern: authority.to_owned(), default_port }
    } else if found.is_none() && !open_scheme && (uri || scheme.is_some()) {
        Address::Invalid
    } else {
        value::address(authority, default_port, false)
    };
    let tls = match (found, module) {
        (Some((_, tls, _)), _) => Some(*tls),
        (None, Module::Stream) => None,
        (None, _) if open_scheme && !known.is_empty() => None,
        (None, _) => Some(false),
    };
    Pass {
        node,
        module,
        scheme: scheme.filter(|scheme| !scheme.contains('$')).map(str::to_owned),
        tls,
        authority: authority.to_owned(),
        target,
        variables,
        upstream: None,
        values: Vec::new(),
        complete: false,
        server: scope.server,
        location: scope.location,
        url,
    }
}

/// A URL whose scheme is not whole where its first variable stands, such as `http:/$uri`: nginx looks at it when a request
/// has given the variable its value (`ngx_http_proxy_eval`). What is written before the variable, and the rest.
fn begun(url: &str) -> Option<(&str, &str)> {
    let (before, rest) = url.split_at(url.find('$')?);
    let begins = |whole: &str| {
        before.len() < whole.len()
            && whole.get(..before.len()).is_some_and(|part| part.eq_ignore_ascii_case(before))
    };
    (!before.is_empty() && (begins("http://") || begins("https://"))).then_some((before, rest))
}

/// Host and port in front of a URI: up to `/` or `?`, or a variable whose value begins with one. The path of
/// a unix socket ends at a `:`.
fn authority(text: &str, uri: bool) -> &str {
    if !uri {
        return text;
    }
    let unix = text.get(..5).is_some_and(|prefix| prefix.eq_ignore_ascii_case("unix:"));
    let end = if unix {
        text.get(5..).and_then(|path| path.find(':')).map(|at| at + 5)
    } else {
        let variables = ["$request_uri", "$uri", "$document_uri", "$is_args", "${request_uri}", "${uri}"];
        let end = text.find(['/', '?']);
        let searched = if text.contains('$') { &variables[..] } else { &[] };
        searched.iter().filter_map(|variable| text.find(variable)).chain(end).min()
    };
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

/// Finds the `upstream` that each pass names: same layer, no port, letters without case.
fn link(model: &mut Model) {
    let mut by_name = HashMap::new();
    for (index, upstream) in model.upstreams.iter().enumerate() {
        by_name.entry((upstream.layer, upstream.name.to_ascii_lowercase())).or_insert(index);
    }
    let named = |module: Module, target: &Address| match target {
        Address::Name { host, explicit_port: false, .. } => {
            by_name.get(&(module.layer(), host.to_ascii_lowercase())).copied()
        }
        Address::Name { .. }
        | Address::Ip { .. }
        | Address::Unix { .. }
        | Address::Variable { .. }
        | Address::Invalid => None,
    };
    for pass in &mut model.passes {
        pass.upstream = named(pass.module, &pass.target);
    }
    if !model.passes.iter().any(|pass| matches!(pass.target, Address::Variable { .. })) {
        return;
    }
    let variables = vars::collect(&model.config);
    let values: Vec<_> = model.passes.iter().map(|pass| values(model, &variables, pass, named)).collect();
    for (pass, (values, complete)) in model.passes.iter_mut().zip(values) {
        (pass.values, pass.complete) = (values, complete);
    }
}

/// What the variables of a pass can make of it, and whether that is all.
fn values(
    model: &Model,
    variables: &vars::Variables,
    pass: &Pass,
    named: impl Fn(Module, &Address) -> Option<usize>,
) -> (Vec<PassValue>, bool) {
    if !matches!(pass.target, Address::Variable { .. }) {
        return (Vec::new(), false);
    }
    let server = model.server_of(pass);
    let scope = vars::Scope { config: &model.config, variables, server, pass };
    let behind = pass.url.find(&pass.authority).map_or(0, |at| at + pass.authority.len());
    let Values { known, complete } = scope.expand(pass.url.get(..behind).unwrap_or_default());
    let read = |text: String| {
        let read = self::pass(pass.node, pass.module, text, Scope::default());
        let upstream = named(pass.module, &read.target);
        PassValue { text: read.url, authority: read.authority, target: read.target, upstream }
    };
    let values = known.into_iter().map(read).filter(|value| value.target != Address::Invalid);
    (values.collect(), complete)
}

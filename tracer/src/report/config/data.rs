//! A configuration as one JSON object, schema `why502/1`: own types, unknown fields are null.

use std::{
    borrow::Cow,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::{super::json, Shown};
use crate::nginx::{
    Effective, Model, Role,
    model::{Pass, Upstream, UpstreamServer},
    tree::NodeId,
};

#[derive(Serialize)]
struct Whole<'a> {
    schema: &'static str,
    r#type: &'static str,
    nginx: Vec<Nginx<'a>>,
}

#[derive(Serialize)]
struct Nginx<'a> {
    pid: Option<u32>,
    container: Option<&'a str>,
    executable: Option<Cow<'a, str>>,
    flavor: Option<&'a str>,
    version: Option<&'a str>,
    /// The version of nginx's own source, by which the defaults were chosen.
    core_version: Option<String>,
    main: Option<Cow<'a, str>>,
    files: Vec<Cow<'a, str>>,
    upstreams: Vec<UpstreamData<'a>>,
    passes: Vec<PassData<'a>>,
    problems: Vec<ProblemData<'a>>,
}

#[derive(Serialize)]
struct Line {
    file: String,
    line: u32,
    text: String,
}

#[derive(Serialize)]
struct UpstreamData<'a> {
    name: &'a str,
    layer: &'static str,
    line: Line,
    method: Option<Line>,
    balancer: Option<Line>,
    servers: Vec<ServerData<'a>>,
    directives: Vec<Directive>,
    /// Indices in `passes`.
    used_by: Vec<usize>,
}

#[derive(Serialize)]
struct ServerData<'a> {
    address: &'a str,
    line: Line,
    weight: u64,
    max_fails: u64,
    fail_timeout_s: u64,
    max_conns: u64,
    backup: bool,
    down: bool,
    drain: bool,
    resolve: bool,
    service: Option<&'a str>,
    /// The parameters as written; all others above are defaults.
    parameters: &'a [String],
}

#[derive(Serialize)]
struct Directive {
    name: String,
    value: Option<String>,
    source: &'static str,
    origin: Option<String>,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct PassData<'a> {
    module: &'static str,
    line: Line,
    upstream: Option<&'a str>,
    address: &'a str,
    tls: Option<bool>,
    variables: bool,
    values: Option<Vec<&'a str>>,
    values_complete: Option<bool>,
    server: Option<ServerName<'a>>,
    location: Option<String>,
    directives: Vec<Directive>,
}

#[derive(Serialize)]
struct ServerName<'a> {
    line: Line,
    names: &'a [String],
    listen: Vec<&'a str>,
}

#[derive(Serialize)]
struct ProblemData<'a> {
    file: Option<Cow<'a, str>>,
    line: Option<u32>,
    text: &'a str,
}

/// Writes all as one object on one line.
///
/// # Errors
/// Those of the output.
pub fn json(out: &mut dyn Write, shown: &[Shown<'_>]) -> io::Result<()> {
    let nginx = shown.iter().map(nginx).collect();
    json::write_line(out, &Whole { schema: json::SCHEMA, r#type: "config", nginx })
}

fn nginx<'a>(shown: &'a Shown<'_>) -> Nginx<'a> {
    let model = shown.model;
    let path = |path: &'a Path| path.to_string_lossy();
    let users = model.users_by_upstream();
    let problem = |problem: &'a crate::nginx::Problem| ProblemData {
        file: problem.file.as_deref().map(path),
        line: problem.line,
        text: &problem.text,
    };
    Nginx {
        pid: shown.pid,
        container: shown.container.as_deref(),
        executable: shown.executable.map(path),
        flavor: shown.build.map(|build| build.flavor.as_str()),
        version: shown.build.map(|build| build.version.as_str()),
        core_version: model.platform.version.map(|version| version.to_string()),
        main: shown.main.map(path),
        files: model.config().files().map(|(file, _)| path(file)).collect(),
        upstreams: model
            .upstreams
            .iter()
            .zip(users)
            .map(|(one, users)| upstream(model, one, users))
            .collect(),
        passes: model.passes.iter().map(|one| pass(model, one)).collect(),
        problems: shown.problems.iter().map(problem).collect(),
    }
}

fn line(model: &Model, node: NodeId) -> Line {
    let found = model.line(Role::Directive, node);
    Line { file: found.file.to_string_lossy().into_owned(), line: found.line, text: found.text }
}

fn directive(model: &Model, effective: Effective) -> Directive {
    Directive {
        source: if effective.nodes.is_empty() { "default" } else { "config" },
        lines: effective.nodes.iter().map(|node| line(model, *node)).collect(),
        name: effective.name,
        value: effective.value,
        origin: effective.origin,
    }
}

fn upstream<'a>(model: &'a Model, upstream: &'a Upstream, used_by: Vec<usize>) -> UpstreamData<'a> {
    let server = |server: &'a UpstreamServer| ServerData {
        address: &server.text,
        line: line(model, server.node),
        weight: server.weight,
        max_fails: server.max_fails,
        fail_timeout_s: server.fail_timeout_s,
        max_conns: server.max_conns,
        backup: server.backup,
        down: server.down,
        drain: server.drain,
        resolve: server.resolve,
        service: server.service.as_deref(),
        parameters: &server.parameters,
    };
    let directives = model.effective_in(upstream);
    UpstreamData {
        name: &upstream.name,
        layer: upstream.layer.name(),
        line: line(model, upstream.node),
        method: upstream.method.map(|node| line(model, node)),
        balancer: upstream.balancer.map(|node| line(model, node)),
        servers: upstream.servers.iter().map(server).collect(),
        directives: directives.into_iter().map(|(_, effective)| directive(model, effective)).collect(),
        used_by,
    }
}

fn pass<'a>(model: &'a Model, pass: &'a Pass) -> PassData<'a> {
    let server = model.server_of(pass).map(|server| ServerName {
        line: line(model, server.node),
        names: &server.names,
        listen: server.listens.iter().map(|listen| listen.address.as_str()).collect(),
    });
    let variable = matches!(pass.target, crate::nginx::value::Address::Variable { .. });
    let directives = model.effective_all(pass);
    PassData {
        module: pass.module.name(),
        line: line(model, pass.node),
        upstream: pass.upstream.and_then(|index| model.upstreams.get(index)).map(|one| one.name.as_str()),
        address: &pass.authority,
        tls: pass.tls,
        variables: pass.variables,
        values: variable.then(|| pass.values.iter().map(|value| value.text.as_str()).collect()),
        values_complete: variable.then_some(pass.complete),
        server,
        location: model.location_of(pass),
        directives: directives.into_iter().map(|(_, effective)| directive(model, effective)).collect(),
    }
}

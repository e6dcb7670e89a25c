//! A configuration for people: upstreams with their servers and users, then every pass with the values in force.

use std::io::{self, Write};

use anstyle::Style;

use super::{
    super::text::{LABEL, LIKELY, PLACE, PROVEN, safe, short, wrap},
    Shown,
};
use crate::nginx::{
    Effective, Model,
    directives::Directive,
    model::{Pass, Upstream, UpstreamServer},
    tree::NodeId,
    value::Address,
};

/// Label column: four blanks, eight letters, two blanks.
const INDENT: usize = 14;
/// Narrowest text column; a narrower terminal breaks lines by itself.
const NARROWEST: usize = 30;
/// Where places begin if no terminal says how wide a line may be.
const COLUMN: usize = 56;
const HEAD: Style = Style::new().bold();

/// Writes all for people. `width`: columns of the terminal; `all`: also what is a default and rarely matters.
///
/// # Errors
/// Those of the output.
pub fn text(out: &mut dyn Write, shown: &[Shown<'_>], width: Option<usize>, all: bool) -> io::Result<()> {
    for (index, one) in shown.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        Writer { out, model: one.model, width: width.unwrap_or(usize::MAX), all }.nginx(one)?;
    }
    out.flush()
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    model: &'a Model,
    width: usize,
    all: bool,
}

impl Writer<'_> {
    fn nginx(&mut self, shown: &Shown<'_>) -> io::Result<()> {
        let title = match (shown.build, self.model.platform.version) {
            (Some(build), _) => format!("{} {}", build.flavor, build.version),
            (None, Some(version)) => format!("nginx {version}"),
            (None, None) => "nginx of unknown version".to_owned(),
        };
        let mut title = vec![title];
        title.extend(shown.pid.map(|pid| format!("pid {pid}")));
        title.extend(shown.executable.map(|path| path.to_string_lossy().into_owned()));
        title.extend(shown.container.clone());
        writeln!(self.out, "{HEAD}{}{HEAD:#}", safe(&title.join("  ")))?;
        if let Some(main) = shown.main {
            let more = self.model.config().files().count().saturating_sub(1);
            let more = match more {
                0 => String::new(),
                1 => "  and 1 other file".to_owned(),
                more => format!("  and {more} other files"),
            };
            self.paragraph("main", Style::new(), &format!("{}{more}", main.display()))?;
        }
        for problem in shown.problems {
            let style = if problem.missing { PROVEN } else { LIKELY };
            self.paragraph("problem", style, &problem.text)?;
        }
        let users = self.model.users_by_upstream();
        for (upstream, users) in self.model.upstreams.iter().zip(users) {
            self.upstream(upstream, &users)?;
        }
        for pass in &self.model.passes {
            self.pass(pass)?;
        }
        if self.model.upstreams.is_empty() && self.model.passes.is_empty() {
            self.paragraph("", Style::new(), "no upstream and no pass")?;
        }
        Ok(())
    }

    fn upstream(&mut self, upstream: &Upstream, users: &[usize]) -> io::Result<()> {
        let layer = if upstream.layer == crate::nginx::model::Layer::Stream { " (stream)" } else { "" };
        writeln!(self.out)?;
        self.head(&format!("upstream {}{layer}", upstream.name), upstream.node)?;
        for (index, server) in upstream.servers.iter().enumerate() {
            self.row(if index == 0 { "servers" } else { "" }, &server.text, &self.place(server.node))?;
            self.paragraph("", LABEL, &parameters(server))?;
        }
        if let [only] = upstream.servers.as_slice()
            && matches!(only.address, Address::Ip { .. } | Address::Unix { .. })
        {
            self.paragraph("", LABEL, "the only server: max_fails and fail_timeout have no effect")?;
        }
        if let Some(balancer) = upstream.balancer {
            let line = self.model.config().text(balancer);
            self.row("chosen by", &line, &self.place(balancer))?;
        }
        match upstream.method {
            Some(method) => {
                let text = self.model.config().text(method);
                self.row("method", &text, &self.place(method))?;
            }
            None if upstream.balancer.is_none() => {
                self.row("method", "round robin", &self.model.platform.origin())?;
            }
            None => {}
        }
        let values = self.model.effective_in(upstream);
        let keeps = values
            .iter()
            .any(|(directive, value)| directive.name == "keepalive" && value.value.as_deref() != Some("off"));
        for (directive, value) in &values {
            let of_keepalive = keeps && directive.name.starts_with("keepalive_");
            // Without a server that is resolved again and again a resolver around it means nothing.
            let of_names = directive.name.starts_with("resolver");
            let idle = of_names && !upstream.servers.iter().any(|server| server.resolve);
            let wanted = directive.brief || of_keepalive || !value.nodes.is_empty() && !idle;
            if self.all || wanted {
                self.value(directive, value)?;
            }
        }
        if users.is_empty() {
            self.paragraph("used by", LIKELY, "no pass")?;
        }
        for (index, pass) in users.iter().filter_map(|index| self.model.passes.get(*index)).enumerate() {
            let text = self.model.config().text(pass.node);
            self.row(if index == 0 { "used by" } else { "" }, &text, &self.place(pass.node))?;
            let perhaps = pass.upstream.is_none() && !pass.complete;
            let perhaps = if perhaps { "; if its variable says so" } else { "" };
            self.paragraph("", LABEL, &format!("{}{perhaps}", self.surroundings(pass)))?;
        }
        Ok(())
    }

    fn pass(&mut self, pass: &Pass) -> io::Result<()> {
        writeln!(self.out)?;
        self.head(&self.model.config().text(pass.node), pass.node)?;
        self.paragraph("in", Style::new(), &self.surroundings(pass))?;
        if matches!(pass.target, Address::Variable { .. }) {
            let mut values: Vec<&str> = pass.values.iter().map(|value| value.text.as_str()).collect();
            if !pass.complete {
                values.push(if values.is_empty() { "known only when a request runs" } else { "others" });
            }
            self.paragraph("leads to", Style::new(), &values.join(", "))?;
        }
        let tls = pass.tls == Some(true)
            || self.model.effective_of(pass, "ssl").is_some_and(|ssl| ssl.value.as_deref() == Some("on"));
        for (directive, value) in self.model.effective_all(pass) {
            let of_tls = tls && matches!(directive.name, "ssl_protocols" | "ssl_verify" | "ssl_server_name");
            let of_names = pass.variables && directive.name == "resolver";
            if self.all || directive.brief || of_tls || of_names || !value.nodes.is_empty() {
                self.value(directive, &value)?;
            }
        }
        Ok(())
    }

    /// One value with the line that it comes from; a list has a row for each line.
    fn value(&mut self, directive: &Directive, value: &Effective) -> io::Result<()> {
        let name = &value.name;
        if value.nodes.is_empty() {
            let shown =
                value.value.as_deref().unwrap_or_else(|| match directive.fallback(self.model.platform) {
                    Some(_) => "none",
                    None => "?",
                });
            return self.row("", &format!("{name} {shown}"), value.origin.as_deref().unwrap_or_default());
        }
        for node in &value.nodes {
            self.row("", &format!("{name} {}", self.model.arguments(*node)), &self.place(*node))?;
        }
        Ok(())
    }

    /// The server and the location around a pass.
    fn surroundings(&self, pass: &Pass) -> String {
        let mut parts = Vec::new();
        if let Some(server) = self.model.server_of(pass) {
            let names = if server.names.is_empty() { "(no name)".to_owned() } else { server.names.join(" ") };
            let listens: Vec<_> = server.listens.iter().map(|listen| listen.address.as_str()).collect();
            let listens = if listens.is_empty() { "80".to_owned() } else { listens.join(", ") };
            parts.push(format!("server {names}, listen {listens}"));
        }
        parts.extend(self.model.location_of(pass).map(|location| format!("location {location}")));
        parts.join("; ")
    }

    fn place(&self, node: NodeId) -> String {
        format!("{}:{}", short(self.model.config().file(node)), self.model.config().line(node))
    }

    /// The first line of a block.
    fn head(&mut self, text: &str, node: NodeId) -> io::Result<()> {
        let place = self.place(node);
        self.columns(2, text, HEAD, &place)
    }

    /// A labelled row with a place at the right.
    fn row(&mut self, label: &str, text: &str, place: &str) -> io::Result<()> {
        write!(self.out, "    {LABEL}{label:<8}{LABEL:#}  ")?;
        self.columns_behind(INDENT, text, Style::new(), place)
    }

    fn columns(&mut self, indent: usize, text: &str, style: Style, place: &str) -> io::Result<()> {
        write!(self.out, "{:indent$}", "")?;
        self.columns_behind(indent, text, style, place)
    }

    fn columns_behind(&mut self, indent: usize, text: &str, style: Style, place: &str) -> io::Result<()> {
        let (text, place) = (safe(text), safe(place));
        let used = indent + text.chars().count();
        let length = place.chars().count();
        let column = COLUMN.min(self.width.saturating_sub(length)).max(used + 2);
        if column.saturating_add(length) <= self.width {
            let gap = column - used;
            return writeln!(self.out, "{style}{text}{style:#}{:gap$}{PLACE}{place}{PLACE:#}", "");
        }
        writeln!(self.out, "{style}{text}{style:#}")?;
        for line in wrap(&place, self.width.saturating_sub(INDENT + 2).max(NARROWEST)) {
            writeln!(self.out, "{:INDENT$}  {PLACE}{line}{PLACE:#}", "")?;
        }
        Ok(())
    }

    /// A labelled paragraph, broken at blanks.
    fn paragraph(&mut self, label: &str, style: Style, text: &str) -> io::Result<()> {
        let room = self.width.saturating_sub(INDENT).max(NARROWEST);
        for (index, line) in wrap(&safe(text), room).into_iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            writeln!(self.out, "    {LABEL}{label:<8}{LABEL:#}  {style}{line}{style:#}")?;
        }
        Ok(())
    }
}

/// The parameters of a server: those that are written, then the defaults.
fn parameters(server: &UpstreamServer) -> String {
    let all = [
        ("weight", server.weight.to_string()),
        ("max_fails", server.max_fails.to_string()),
        ("fail_timeout", format!("{}s", server.fail_timeout_s)),
        ("max_conns", server.max_conns.to_string()),
    ];
    let written = |name: &str| {
        let set = |parameter: &String| parameter.split_once('=').is_some_and(|(key, _)| key == name);
        server.parameters.iter().any(set)
    };
    let defaults: Vec<String> = all
        .iter()
        .filter(|(name, _)| !written(name))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut parts = Vec::new();
    if !server.parameters.is_empty() {
        parts.push(server.parameters.join(" "));
    }
    if !defaults.is_empty() {
        parts.push(format!("default {}", defaults.join(" ")));
    }
    parts.join("; ")
}

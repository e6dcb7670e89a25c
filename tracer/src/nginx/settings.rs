//! The value of a directive that holds for a pass or an `upstream`: the innermost enclosing block that sets it
//! decides, else the default of the nginx version at hand.

use super::{
    directives::{self, DIRECTIVES, Directive, Fallback, Inherit, Owner},
    model::{ConfigLine, Model, Module, Pass, Role, Upstream},
    tree::NodeId,
    value,
};

/// A directive that every upstream module has under its own prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setting {
    /// `X_connect_timeout`
    ConnectTimeout,
    /// `X_send_timeout`; in `stream` it is `proxy_timeout`.
    SendTimeout,
    /// `X_read_timeout`; in `stream` it is `proxy_timeout`.
    ReadTimeout,
    /// `X_bind`
    Bind,
    /// `X_next_upstream`
    NextUpstream,
    /// `X_next_upstream_tries`
    NextUpstreamTries,
    /// `X_next_upstream_timeout`
    NextUpstreamTimeout,
}

impl Setting {
    /// The name behind the module's prefix.
    pub fn name(self, module: Module) -> &'static str {
        match (self, module == Module::Stream) {
            (Self::ConnectTimeout, _) => "connect_timeout",
            (Self::SendTimeout | Self::ReadTimeout, true) => "timeout",
            (Self::SendTimeout, false) => "send_timeout",
            (Self::ReadTimeout, false) => "read_timeout",
            (Self::Bind, _) => "bind",
            (Self::NextUpstream, _) => "next_upstream",
            (Self::NextUpstreamTries, _) => "next_upstream_tries",
            (Self::NextUpstreamTimeout, _) => "next_upstream_timeout",
        }
    }
}

/// The value of a directive and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The directive, such as `proxy_connect_timeout`.
    pub name: String,
    /// Its arguments, joined with spaces (those of several lines with `, `, unless they are flags), or the default; `None` where it
    /// has none, or where that depends on a version that is not known.
    pub value: Option<String>,
    /// The directives in the configuration, all in one block; none for the default.
    pub nodes: Vec<NodeId>,
    /// For a default: `default of nginx 1.22.1`, or `default`, with the defaults of all versions where the
    /// version decides and is not known.
    pub origin: Option<String>,
}

impl Effective {
    /// The directive in the configuration; `None` for the default.
    pub fn node(&self) -> Option<NodeId> {
        self.nodes.first().copied()
    }
}

/// A time-out that holds for a pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Timeout {
    /// Its length in milliseconds; `None` where the value is no time.
    pub milliseconds: Option<u64>,
    /// The directive as written, or such as `proxy_connect_timeout 60s (default of nginx 1.22.1)`.
    pub text: String,
    /// Where it is set; `None` for the default.
    pub line: Option<ConfigLine>,
}

impl Model {
    /// The value of a directive for a pass, by its name behind the module's prefix, such as `buffer_size`, or by
    /// the name of one of nginx's core, such as `resolver`. `None` for a directive that the module, or this
    /// version of nginx, does not have.
    pub fn effective_of(&self, pass: &Pass, name: &str) -> Option<Effective> {
        let directive = directives::find(pass.module, name)?;
        if !directive.exists(self.platform) {
            return None;
        }
        let inner = self.config.parent(pass.node);
        Some(self.value_of(directive, pass.module, inner, |model| model.twice_the_largest(pass)))
    }

    /// All directives of a pass, in the order of [`DIRECTIVES`]: its module's, then the core's around it.
    pub fn effective_all(&self, pass: &Pass) -> Vec<(&'static Directive, Effective)> {
        let concerned = DIRECTIVES.iter().filter(|directive| directive.concerns(pass.module));
        concerned
            .filter_map(|directive| Some((directive, self.effective_of(pass, directive.name)?)))
            .collect()
    }

    /// All directives of an `upstream`.
    pub fn effective_in(&self, upstream: &Upstream) -> Vec<(&'static Directive, Effective)> {
        let module = upstream.layer.module();
        let concerned = DIRECTIVES.iter().filter(|directive| match directive.owner {
            Owner::Upstream(layers) => layers.contains(&upstream.layer) && directive.exists(self.platform),
            Owner::Passes(_) | Owner::Core(_) => false,
        });
        let value = |directive: &'static Directive| {
            let mut found = self.value_in(directive, module, upstream.node);
            // What an upstream does not resolve with a resolver of its own, the enclosing block's does.
            if found.is_none() && matches!(directive.name, "resolver" | "resolver_timeout") {
                let outer = directives::find(module, directive.name)?;
                let parent = self.config.parent(upstream.node);
                found = Some(self.value_of(outer, module, parent, |_| None));
            }
            let value = found.unwrap_or_else(|| self.default_of(directive, module, |_| None));
            Some((directive, value))
        };
        concerned.filter_map(value).collect()
    }

    /// The value of a setting for a pass.
    pub fn effective(&self, pass: &Pass, setting: Setting) -> Effective {
        let name = setting.name(pass.module);
        self.effective_of(pass, name).unwrap_or_else(|| Effective {
            name: format!("{}{name}", pass.module.prefix()),
            value: None,
            nodes: Vec::new(),
            origin: None,
        })
    }

    /// A time-out for a pass: of the settings, those that are times.
    pub fn timeout(&self, pass: &Pass, setting: Setting) -> Timeout {
        let effective = self.effective(pass, setting);
        let line = effective.node().map(|node| self.line(Role::Directive, node));
        let value = effective.value.unwrap_or_default();
        let text = match (&line, &effective.origin) {
            (Some(line), _) => line.text.clone(),
            (None, Some(origin)) => format!("{} {value} ({origin})", effective.name),
            (None, None) => effective.name,
        };
        Timeout { milliseconds: value::milliseconds(&value), text, line }
    }

    fn value_of(
        &self,
        directive: &'static Directive,
        module: Module,
        mut block: Option<NodeId>,
        derived: impl Fn(&Self) -> Option<String>,
    ) -> Effective {
        while let Some(inner) = block {
            if let Some(found) = self.value_in(directive, module, inner) {
                return found;
            }
            block = self.config.parent(inner);
        }
        self.default_of(directive, module, derived)
    }

    /// The value that one block sets.
    fn value_in(&self, directive: &Directive, module: Module, block: NodeId) -> Option<Effective> {
        let full = directive.full_name(module);
        let name = self.config.find_name(full.as_bytes())?;
        let first = *self.settings.get(&(Some(block), name))?;
        let all = || self.config.children(block).filter(|id| self.config.name_id(*id) == Some(name));
        let nodes: Vec<NodeId> = match directive.inherit {
            Inherit::Value => vec![first],
            Inherit::Last => all().last().into_iter().collect(),
            Inherit::Flags | Inherit::AllOrNothing => all().collect(),
        };
        let lines: Vec<String> = nodes.iter().map(|node| self.arguments(*node)).collect();
        let between = if directive.inherit == Inherit::Flags { " " } else { ", " };
        Some(Effective { name: full, value: Some(lines.join(between)), nodes, origin: None })
    }

    fn default_of(
        &self,
        directive: &Directive,
        module: Module,
        derived: impl Fn(&Self) -> Option<String>,
    ) -> Effective {
        let fallback = directive.fallback(self.platform);
        let value = match fallback {
            Some(Fallback::TwiceTheLargest) => derived(self),
            Some(fallback) => fallback.text(self.platform),
            None => None,
        };
        let origin = match fallback {
            Some(_) => self.platform.origin(),
            None => format!("default: {}", directive.by_version(self.platform)),
        };
        Effective { name: directive.full_name(module), value, nodes: Vec::new(), origin: Some(origin) }
    }

    fn twice_the_largest(&self, pass: &Pass) -> Option<String> {
        let one = self.effective_of(pass, "buffer_size")?.value?;
        let many = self.effective_of(pass, "buffers")?.value?;
        let of_many = many.split_once(' ')?.1;
        Some(directives::size(2 * value::bytes(&one)?.max(value::bytes(of_many)?)))
    }

    /// The arguments as nginx reads them, joined with spaces.
    pub fn arguments(&self, node: NodeId) -> String {
        let words: Vec<_> = (0..).map_while(|index| self.config.arg(node, index)).collect();
        words.join(" ")
    }
}

//! The value of a directive that holds for a pass: the innermost enclosing block that sets it decides, else
//! nginx's default.

use super::{
    model::{ConfigLine, Model, Module, Pass, Role},
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
    /// The name behind the module's prefix, and the default. Defaults have not changed since 1.7.5.
    fn name(self, module: Module) -> (&'static str, &'static str) {
        match (self, module == Module::Stream) {
            (Self::ConnectTimeout, _) => ("connect_timeout", "60s"),
            (Self::SendTimeout | Self::ReadTimeout, true) => ("timeout", "10m"),
            (Self::SendTimeout, false) => ("send_timeout", "60s"),
            (Self::ReadTimeout, false) => ("read_timeout", "60s"),
            (Self::Bind, _) => ("bind", "off"),
            (Self::NextUpstream, true) => ("next_upstream", "on"),
            (Self::NextUpstream, false) => ("next_upstream", "error timeout"),
            (Self::NextUpstreamTries, _) => ("next_upstream_tries", "0"),
            (Self::NextUpstreamTimeout, _) => ("next_upstream_timeout", "0"),
        }
    }
}

/// Whether [`Model::effective`] may be asked for a directive of this name.
pub(super) fn is_setting(name: &[u8]) -> bool {
    let prefixes: [&[u8]; 6] = [b"proxy_", b"fastcgi_", b"uwsgi_", b"scgi_", b"grpc_", b"memcached_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) && !name.ends_with(b"_pass")
}

/// The value of a directive and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The directive, such as `proxy_connect_timeout`.
    pub name: String,
    /// Its arguments, joined with spaces, or the default.
    pub value: String,
    /// The directive in the configuration; `None` for the default.
    pub node: Option<NodeId>,
}

/// A time-out that holds for a pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Timeout {
    /// Its length in milliseconds; `None` where the value is no time.
    pub milliseconds: Option<u64>,
    /// The directive as written, or such as `proxy_connect_timeout 60s (default)`.
    pub text: String,
    /// Where it is set; `None` for the default.
    pub line: Option<ConfigLine>,
}

impl Model {
    /// The value of a directive for a pass, by the name behind the module's prefix, such as `buffer_size`.
    /// `None` where no enclosing block sets it.
    pub fn set_for(&self, pass: &Pass, name: &str) -> Option<NodeId> {
        let name = self.config.find_name(format!("{}{name}", pass.module.prefix()).as_bytes())?;
        let mut block = self.config.parent(pass.node);
        loop {
            if let Some(node) = self.settings.get(&(block, name)) {
                return Some(*node);
            }
            block = self.config.parent(block?);
        }
    }

    /// The value of a setting for a pass.
    pub fn effective(&self, pass: &Pass, setting: Setting) -> Effective {
        let (name, default) = setting.name(pass.module);
        let node = self.set_for(pass, name);
        let value = node.map_or_else(
            || default.to_owned(),
            |node| {
                let words: Vec<_> = (0..).map_while(|index| self.config.arg(node, index)).collect();
                words.join(" ")
            },
        );
        Effective { name: format!("{}{name}", pass.module.prefix()), value, node }
    }

    /// A time-out for a pass: of the settings, those that are times.
    pub fn timeout(&self, pass: &Pass, setting: Setting) -> Timeout {
        let effective = self.effective(pass, setting);
        let line = effective.node.map(|node| self.line(Role::Directive, node));
        let text = match &line {
            Some(line) => line.text.clone(),
            None => format!("{} {} (default)", effective.name, effective.value),
        };
        Timeout { milliseconds: value::milliseconds(&effective.value), text, line }
    }
}

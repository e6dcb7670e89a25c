//! From what an nginx's memory says of a request's place, its `server` and its `location`, to the passes.

use std::path::Path;

use super::{
    locate::{Located, Name},
    model::{Layer, Model},
    tree::NodeId,
};

impl Model {
    /// The passes of a place: the `server` whose block begins in that file at that line (`cf->conf_file->line`, where
    /// its `{` stands), and in it the `location`s of that name, without their modifier; an empty name is the server's
    /// own level. `None` if this configuration has no such server or location: it is not the one that nginx runs.
    #[must_use]
    pub fn place(&self, file: &Path, line: u32, location: &[u8]) -> Option<Located> {
        let at = |node| self.config.end_line(node) == line && self.config.file(node) == file;
        let mut fitting =
            self.servers.iter().enumerate().filter(|(_, s)| s.layer == Layer::Http && at(s.node));
        let (server, _) = fitting.next()?;
        if fitting.next().is_some() {
            // Two blocks that begin in one line.
            return None;
        }
        let passes: Vec<usize> = self
            .passes
            .iter()
            .enumerate()
            .filter(|(_, pass)| pass.server == Some(server))
            .filter(|(_, pass)| match pass.location {
                None => location.is_empty(),
                Some(node) => self.location_name(node).is_some_and(|name| bare(&name) == location),
            })
            .map(|(index, _)| index)
            .collect();
        if passes.is_empty() {
            return None;
        }
        let exact = passes.len() == 1;
        Some(Located {
            server: Some(server),
            servers: vec![server],
            location: if exact { passes.first().and_then(|p| self.passes.get(*p)?.location) } else { None },
            passes,
            exact,
            because: Vec::new(),
        })
    }

    /// The `error_log` or `debug_connection` that makes nginx log healthy requests as well, if there is one.
    #[must_use]
    pub fn logs_much(&self) -> Option<String> {
        let verbose = |node: &NodeId| match &*self.config.name(*node) {
            b"error_log" => {
                self.config.args(*node).skip(1).any(|level| level.starts_with(b"debug") || *level == *b"info")
            }
            b"debug_connection" => true,
            _ => false,
        };
        self.config.all().find(verbose).map(|node| self.config.text(node))
    }

    /// True if an `error_log` is set to a level that leaves out errors.
    #[must_use]
    pub fn hides_errors(&self) -> bool {
        let levels = |level: &[u8]| matches!(level, b"crit" | b"alert" | b"emerg");
        self.config.all().any(|node| {
            *self.config.name(node) == *b"error_log"
                && self.config.args(node).skip(1).any(|level| levels(&level))
        })
    }
}

fn bare(name: &Name) -> &[u8] {
    match name {
        Name::Exact(name) | Name::Prefix(name, _) | Name::Regex(name, _) | Name::Named(name) => name,
    }
}

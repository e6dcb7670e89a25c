//! From what an nginx's memory says of a request's place, its `server` and its `location`, to the passes.

use std::path::Path;

use super::{
    locate::{Located, Name},
    model::Model,
    tree::NodeId,
};

impl Model {
    /// The passes of a place: the `server` whose block begins in that file at that line (`cf->conf_file->line`, where
    /// its `{` stands), and in it the `location`s of that name, without their modifier; an empty name is the server's
    /// own level, the only one of `stream`. `None` if this configuration has no such server or location: it is not the one that nginx runs.
    #[must_use]
    pub fn place(&self, file: &Path, line: u32, location: &[u8]) -> Option<Located> {
        let at = |node| self.config.end_line(node) == line && self.config.file(node) == file;
        let mut fitting = self.servers.iter().enumerate().filter(|(_, s)| at(s.node));
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

    /// The status that a client gets where nginx answers a request of these passes (by index) with an error of its own: an `error_page`
    /// may put another in its place. None if that is not certain.
    #[must_use]
    pub fn shown_status(&self, passes: &[usize], status: u16) -> Option<u16> {
        let blocks = passes.iter().filter_map(|pass| self.config.parent(self.passes.get(*pass)?.node));
        let mut shown = blocks.map(|block| match self.nearest(Some(block), "error_page") {
            Some(node) => self.page_status(node, status),
            None => Some(status),
        });
        let Some(first) = shown.next() else {
            let nodes = self.config.all().filter(|node| *self.config.name(*node) == *b"error_page");
            let mut all = nodes.map(|node| self.page_status(node, status));
            return all.all(|shown| shown == Some(status)).then_some(status);
        };
        shown.all(|other| other == first).then_some(first).flatten()
    }

    /// The same for the pages of one block, of which `node` is one (ngx_http_core_error_page, ngx_http_send_error_page).
    fn page_status(&self, node: NodeId, status: u16) -> Option<u16> {
        const FOUND: u16 = 302;
        let block = self.config.parent(node)?;
        let name = self.config.name_id(node);
        let code = status.to_string();
        for line in self.config.children(block).filter(|other| self.config.name_id(*other) == name) {
            let words: Vec<_> = self.config.args(line).collect();
            let Some((target, codes)) = words.split_last() else { continue };
            if !codes.iter().any(|word| **word == *code.as_bytes()) {
                continue;
            }
            return match codes.iter().any(|word| word.starts_with(b"=")) {
                // That of the page, or this one if the page is there.
                true => None,
                false if target.windows(3).any(|three| three == b"://") => Some(FOUND),
                false => Some(status),
            };
        }
        Some(status)
    }

    /// The `error_log` or `debug_connection` that makes nginx log many lines for each healthy request, if there is one. (At `info` it
    /// logs one line for each client that leaves, which costs more than to see it.)
    #[must_use]
    pub fn logs_much(&self) -> Option<String> {
        let verbose = |node: &NodeId| match &*self.config.name(*node) {
            b"error_log" => self.config.args(*node).skip(1).any(|level| level.starts_with(b"debug")),
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

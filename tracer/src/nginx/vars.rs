//! The values that a variable of a `*_pass` can take, as far as the configuration alone says: through `set`, `map`,
//! `split_clients` and `geo`. Whatever else may assign it (captures, scripts, other modules) makes the list
//! incomplete.

use std::collections::{HashMap, HashSet};

use super::{
    model::{Pass, Server},
    tree::{Config, Kind, NodeId},
};

/// Most values that are followed.
const MOST: usize = 256;
/// Deepest chain of variables that stand for variables.
const DEEPEST: usize = 8;

/// What a text with variables can become.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Values {
    /// Each once, in the order of the configuration.
    pub(super) known: Vec<String>,
    /// Whether there can be no other.
    pub(super) complete: bool,
}

/// A place where variables get values.
#[derive(Debug, Clone, Copy)]
enum Definer {
    /// `set $name value;`
    Set(NodeId),
    /// `map`, `split_clients` or `geo`, by the key without which the empty value is possible.
    Table(NodeId, &'static str),
    /// A directive of another module whose values are not known.
    Foreign,
}

/// All places where variables get values.
#[derive(Debug, Default)]
pub(super) struct Variables {
    definers: HashMap<String, Vec<Definer>>,
    /// Scripts that can assign any variable while a request runs.
    scripts: bool,
    /// Names, in lower case, into which a regular expression anywhere may capture.
    captured: HashSet<String>,
}

/// Notes the directives by which variables get values.
pub(super) fn collect(config: &Config) -> Variables {
    let mut found = Variables::default();
    for (_, bytes) in config.files() {
        captured(bytes, &mut found.captured);
    }
    let kinds: Vec<Option<&'static str>> = config.names().map(|(_, name)| kind_of(name)).collect();
    for id in config.all() {
        let Some(kind) = config.name_id(id).and_then(|name| kinds.get(name.0 as usize).copied().flatten())
        else {
            continue;
        };
        if kind == "script" {
            found.scripts = true;
            continue;
        }
        let (index, definer) = match kind {
            "set" => (0, Definer::Set(id)),
            "map" => (1, Definer::Table(id, "default")),
            "split_clients" => (1, Definer::Table(id, "*")),
            // With one argument it is the variable, with two the second.
            "geo" => (usize::from(config.arg(id, 1).is_some()), Definer::Table(id, "default")),
            _ => {
                for name in (0..).map_while(|index| config.arg(id, index)).filter_map(|word| own_name(&word))
                {
                    found.definers.entry(name).or_default().push(Definer::Foreign);
                }
                continue;
            }
        };
        if let Some(name) = config.arg(id, index).and_then(|word| own_name(&word)) {
            found.definers.entry(name).or_default().push(definer);
        }
    }
    found
}

/// What a directive does to variables.
fn kind_of(name: &[u8]) -> Option<&'static str> {
    Some(match name {
        b"set" => "set",
        b"map" => "map",
        b"split_clients" => "split_clients",
        b"geo" => "geo",
        b"keyval" | b"js_var" | b"limit_req_status_set" => "foreign",
        // geoip2 writes them as directives of their own inside its block.
        [b'$', ..] => "foreign",
        _ if name.starts_with(b"set_") || name.ends_with(b"_set") => "foreign",
        _ if name.windows(7).any(|part| part == b"_by_lua") => "script",
        b"js_access" | b"js_content" | b"js_header_filter" | b"js_body_filter" | b"js_periodic"
        | b"js_preread" | b"js_filter" | b"perl" => "script",
        _ => return None,
    })
}

/// The name behind the `$` of a word that is a variable and nothing else; nginx compares them in lower case.
fn own_name(word: &str) -> Option<String> {
    let name = word.strip_prefix('$')?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (plain && !name.is_empty()).then(|| name.to_ascii_lowercase())
}

/// A piece of a text: itself, or the name of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        if !before.is_empty() {
            found.push(Piece::Text(before));
        }
        let (name, length) = match after.strip_prefix('{') {
            Some(braced) => {
                let end = braced.find('}').unwrap_or(braced.len());
                (braced.get(..end), (end + 2).min(after.len()))
            }
            None => {
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                let end = after.bytes().take_while(is_word).count();
                (after.get(..end), end)
            }
        };
        found.push(Piece::Variable(name.unwrap_or_default()));
        rest = after.get(length..).unwrap_or_default();
    }
    if !rest.is_empty() {
        found.push(Piece::Text(rest));
    }
    found
}

/// Where a text is evaluated.
pub(super) struct Scope<'a> {
    pub(super) config: &'a Config,
    pub(super) variables: &'a Variables,
    pub(super) server: Option<&'a Server>,
    pub(super) pass: &'a Pass,
}

impl Scope<'_> {
    /// What a text with variables can become.
    pub(super) fn expand(&self, text: &str) -> Values {
        self.text(text, DEEPEST)
    }

    fn text(&self, text: &str, depth: usize) -> Values {
        let mut made = vec![String::new()];
        for piece in pieces(text) {
            let values = match piece {
                Piece::Text(text) => {
                    made.iter_mut().for_each(|value| value.push_str(text));
                    continue;
                }
                Piece::Variable(name) => self.variable(&name.to_ascii_lowercase(), depth),
            };
            if made.len().saturating_mul(values.known.len()) > MOST {
                return Values::default();
            }
            // A piece that is not known in full leaves the rest of the text to be known in part.
            let mut next = Vec::with_capacity(made.len() * values.known.len());
            for value in &made {
                next.extend(values.known.iter().map(|known| format!("{value}{known}")));
            }
            made = next;
            if !values.complete {
                return Values { known: self.rest_of(text, piece, made, depth), complete: false };
            }
        }
        Values { known: made, complete: true }
    }

    /// The known values of a text of which one piece can be something else as well.
    fn rest_of(&self, text: &str, at: Piece<'_>, made: Vec<String>, depth: usize) -> Vec<String> {
        let all = pieces(text);
        let Some(index) = all.iter().position(|piece| *piece == at) else { return Vec::new() };
        let mut made = made;
        for piece in all.into_iter().skip(index + 1) {
            let known = match piece {
                Piece::Text(text) => vec![text.to_owned()],
                Piece::Variable(name) => self.variable(&name.to_ascii_lowercase(), depth).known,
            };
            if made.len().saturating_mul(known.len()) > MOST {
                return Vec::new();
            }
            made = made.iter().flat_map(|one| known.iter().map(move |two| format!("{one}{two}"))).collect();
        }
        made
    }

    fn variable(&self, name: &str, depth: usize) -> Values {
        let Some(definers) = self.variables.definers.get(name) else {
            return match name {
                "scheme" => Values { known: vec!["http".to_owned(), "https".to_owned()], complete: true },
                _ => Values::default(),
            };
        };
        if depth == 0 {
            return Values::default();
        }
        let mut values = Values { known: Vec::new(), complete: !self.variables.scripts };
        if self.variables.captured.contains(name) {
            values.complete = false;
        }
        let sets: Vec<NodeId> = definers
            .iter()
            .filter_map(|definer| match definer {
                Definer::Set(id) => Some(*id),
                Definer::Table(..) | Definer::Foreign => None,
            })
            .filter(|id| self.in_server(*id))
            .collect();
        let served: HashSet<NodeId> = sets.iter().copied().collect();
        let own = self.overriding(&sets);
        for definer in definers {
            let found = match *definer {
                Definer::Set(id) if !served.contains(&id) => continue,
                Definer::Set(id) if own.is_some_and(|location| !self.inside(id, location)) => continue,
                Definer::Set(id) => self.text(&self.config.arg(id, 1).unwrap_or_default(), depth - 1),
                Definer::Table(..) if own.is_some() => continue,
                Definer::Table(id, otherwise) => self.table(id, otherwise, depth - 1),
                Definer::Foreign => Values::default(),
            };
            values.complete &= found.complete;
            values.known.extend(found.known);
        }
        let is_table = definers.iter().any(|definer| matches!(definer, Definer::Table(..)));
        if own.is_none() && !is_table && !sets.iter().any(|id| self.always_runs(*id)) {
            values.known.push(String::new());
        }
        let mut seen = HashSet::new();
        values.known.retain(|value| seen.insert(value.clone()));
        if values.known.len() > MOST {
            values = Values::default();
        }
        values
    }

    fn table(&self, id: NodeId, otherwise: &str, depth: usize) -> Values {
        let mut values = Values { known: Vec::new(), complete: true };
        let mut has_default = false;
        let mut seen = HashSet::new();
        for entry in self.config.children(id).filter(|id| self.config.kind(*id) == Kind::Entry) {
            let key = self.config.name(entry);
            let Some(value) = self.config.arg(entry, 0) else { continue };
            if matches!(&*key, b"proxy" | b"delete") && &*self.config.name(id) == b"geo" {
                continue;
            }
            has_default |= &*key == otherwise.as_bytes();
            if seen.insert(value.clone()) {
                let found = self.text(&value, depth);
                values.complete &= found.complete;
                values.known.extend(found.known);
            }
            if values.known.len() > MOST {
                return Values::default();
            }
        }
        if !has_default {
            values.known.push(String::new());
        }
        values
    }

    fn inside(&self, id: NodeId, block: NodeId) -> bool {
        let mut at = Some(id);
        while let Some(node) = at {
            if node == block {
                return true;
            }
            at = self.config.parent(node);
        }
        false
    }

    fn in_server(&self, id: NodeId) -> bool {
        self.server.is_none_or(|server| self.inside(id, server.node))
    }

    /// A `set` that runs before the pass whatever the request is: in the server, or beside the pass.
    fn always_runs(&self, id: NodeId) -> bool {
        let parent = self.config.parent(id);
        let beside = [self.config.parent(self.pass.node), self.pass.location, self.server.map(|s| s.node)];
        parent.is_some() && beside.contains(&parent)
    }

    /// The pass's location, where it sets the variable in any case, so that values from outside are gone. The
    /// directives of the rewrite module run in their order; a `break` skips the rest.
    fn overriding(&self, sets: &[NodeId]) -> Option<NodeId> {
        let location = self.pass.location?;
        let here = |id: &NodeId| self.config.parent(*id) == Some(location);
        let end = self.config.node(location)?.end;
        let mut inner = (location.0 + 1..end).map(NodeId);
        let skips = |id: NodeId| {
            let name = self.config.name(id);
            let last = self.config.args(id).last();
            &*name == b"break" || (&*name == b"rewrite" && last.as_deref() == Some(b"break"))
        };
        (sets.iter().any(here) && !inner.any(skips)).then_some(location)
    }
}

/// Notes the names that stand in a text as those of captures do: `(?<name>` and `(?'name'`.
fn captured(bytes: &[u8], found: &mut HashSet<String>) {
    for (at, byte) in bytes.iter().enumerate() {
        let close = match byte {
            b'<' => b'>',
            b'\'' if at > 0 && bytes.get(at - 1) == Some(&b'?') => b'\'',
            _ => continue,
        };
        let rest = bytes.get(at + 1..).unwrap_or_default();
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        if length > 0 && rest.get(length) == Some(&close) {
            let name = rest.get(..length).unwrap_or_default();
            found.insert(String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
}

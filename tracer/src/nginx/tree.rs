//! The parsed configuration: every directive of every file in one flat list, in the order in which nginx
//! reads them. A block's contents follow it directly, so that neither walking nor dropping recurses.

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::lexer::Token;

/// A directive, by its place in [`Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

/// A file, by its place in [`Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub(super) u32);

/// A directive's name, interned: equal names have equal ids within one [`Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameId(pub(super) u32);

/// What a directive is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `name args;`
    Simple,
    /// `name args { … }`; the contents are its children.
    Block,
    /// `include file;`; the contents of the files are its children, but walks see through it.
    Include,
    /// `name args { Lua }`; no children.
    Lua,
    /// A line of a `map`, `geo`, `split_clients`, `types` or `charset_map` body: the first word is a key.
    Entry,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) file: FileId,
    pub(super) name: NameId,
    /// Enclosing block; `u32::MAX` at the top.
    pub(super) parent: u32,
    /// One past the last descendant.
    pub(super) end: u32,
    pub(super) first_token: u32,
    pub(super) tokens: u32,
    /// Line of the `;` or `{`.
    pub(super) end_line: u32,
    /// One past the `;` or `{`.
    pub(super) end_offset: u32,
}

#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) bytes: Arc<Vec<u8>>,
}

/// A whole configuration with the files it was read from.
#[derive(Debug, Default)]
pub struct Config {
    pub(super) files: Vec<SourceFile>,
    pub(super) nodes: Vec<Node>,
    pub(super) tokens: Vec<Token>,
    pub(super) names: Vec<Box<[u8]>>,
    pub(super) name_ids: HashMap<Box<[u8]>, NameId>,
}

/// The directives of one block, included ones among them, in nginx's order.
#[derive(Debug, Clone)]
pub struct Children<'a> {
    config: &'a Config,
    next: u32,
    end: u32,
}

impl Iterator for Children<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        while self.next < self.end {
            let id = NodeId(self.next);
            let node = self.config.node(id)?;
            if node.kind == Kind::Include {
                self.next += 1;
            } else {
                self.next = node.end.max(self.next + 1);
                return Some(id);
            }
        }
        None
    }
}

impl Config {
    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    /// Ids are only made by the parser of the same `Config`; a foreign one reads as an empty directive.
    fn words(&self, id: NodeId) -> (&[Token], &[u8]) {
        let Some(node) = self.node(id) else { return (&[], &[]) };
        let first = node.first_token as usize;
        let tokens = self.tokens.get(first..first + node.tokens as usize).unwrap_or_default();
        (tokens, self.bytes(node.file))
    }

    /// All directives, included ones and the `include`s themselves among them, in nginx's order.
    pub fn all(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)).map(NodeId)
    }

    /// The directives outside all blocks.
    pub fn top(&self) -> Children<'_> {
        Children { config: self, next: 0, end: u32::try_from(self.nodes.len()).unwrap_or(u32::MAX) }
    }

    /// The directives of a block; none for other directives.
    pub fn children(&self, id: NodeId) -> Children<'_> {
        let end = self.node(id).map_or(0, |node| node.end);
        Children { config: self, next: id.0.saturating_add(1), end }
    }

    /// What the directive is made of.
    pub fn kind(&self, id: NodeId) -> Kind {
        self.node(id).map_or(Kind::Simple, |node| node.kind)
    }

    /// The enclosing block, whichever file it is in.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id).map(|node| node.parent).filter(|parent| *parent != u32::MAX).map(NodeId)
    }

    /// The name, decoded; for an entry of a `map` and the like it is the key.
    pub fn name(&self, id: NodeId) -> Cow<'_, [u8]> {
        let (tokens, file) = self.words(id);
        tokens.first().map_or(Cow::Borrowed(&[]), |token| token.value(file))
    }

    /// The interned name; `None` for the key of an entry.
    pub fn name_id(&self, id: NodeId) -> Option<NameId> {
        self.node(id).map(|node| node.name).filter(|name| name.0 != u32::MAX)
    }

    /// The id of a name that occurs in this configuration.
    pub fn find_name(&self, name: &[u8]) -> Option<NameId> {
        self.name_ids.get(name).copied()
    }

    /// The names that occur in this configuration, by id.
    pub fn names(&self) -> impl Iterator<Item = (NameId, &[u8])> {
        (0..).map(NameId).zip(self.names.iter().map(AsRef::as_ref))
    }

    /// The arguments, decoded, without the name.
    pub fn args(&self, id: NodeId) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let (tokens, file) = self.words(id);
        tokens.iter().skip(1).map(move |token| token.value(file))
    }

    /// One argument as text (bytes that are not UTF-8 become U+FFFD); the first has index 0.
    pub fn arg(&self, id: NodeId, index: usize) -> Option<String> {
        let (tokens, file) = self.words(id);
        tokens.get(index + 1).map(|token| String::from_utf8_lossy(&token.value(file)).into_owned())
    }

    /// The words with their places, the name first.
    pub fn tokens(&self, id: NodeId) -> &[Token] {
        self.words(id).0
    }

    /// The file the directive is in, as nginx names it.
    pub fn file(&self, id: NodeId) -> &Path {
        let file = self.node(id).and_then(|node| self.files.get(node.file.0 as usize));
        file.map_or(Path::new(""), |file| file.path.as_path())
    }

    /// All files in the order of their first use, the main file first (behind `-g`, if given).
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files.iter().map(|file| (file.path.as_path(), file.bytes.as_slice()))
    }

    /// Line of the name, from 1.
    pub fn line(&self, id: NodeId) -> u32 {
        self.words(id).0.first().map_or(0, |token| token.line)
    }

    /// Line of the `;` or `{`, from 1: the one that nginx reports and keeps (`cf->conf_file->line`).
    pub fn end_line(&self, id: NodeId) -> u32 {
        self.node(id).map_or(0, |node| node.end_line)
    }

    /// The directive as written, up to and including its `;` or `{`. One that spans lines is joined with
    /// single spaces.
    pub fn text(&self, id: NodeId) -> String {
        let (tokens, file) = self.words(id);
        let (Some(first), Some(node)) = (tokens.first(), self.node(id)) else { return String::new() };
        if first.line == node.end_line {
            let span = first.start as usize..node.end_offset as usize;
            return String::from_utf8_lossy(file.get(span).unwrap_or_default()).into_owned();
        }
        let words: Vec<_> = tokens.iter().map(|token| String::from_utf8_lossy(token.raw(file))).collect();
        let end = if matches!(node.kind, Kind::Block | Kind::Lua) { " {" } else { ";" };
        words.join(" ") + end
    }

    pub(super) fn bytes(&self, file: FileId) -> &[u8] {
        self.files.get(file.0 as usize).map_or(&[], |file| &file.bytes)
    }
}

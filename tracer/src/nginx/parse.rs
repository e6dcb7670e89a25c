//! Reads a configuration with its includes into a [`Config`], refusing what `nginx -t` refuses as syntax, at
//! the same line. It never recurses; depth, files and bytes are bounded.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Files,
    error::{Error, SyntaxError},
    glob,
    lexer::{End, Lexer},
    tree::{Config, FileId, Kind, NameId, Node, NodeId, SourceFile},
};

/// Deepest nesting of blocks. nginx recurses for each; no real configuration has more than ten.
pub const MAX_DEPTH: usize = 1000;
/// Deepest nesting of includes; stops a cycle that is hidden from [`Error::Cycle`] by links or `..`.
const MAX_INCLUDE_DEPTH: usize = 64;
/// Most inclusions; a file that is included twice counts twice.
const MAX_INCLUSIONS: usize = 100_000;
/// Most bytes, counted as inclusions are.
const MAX_BYTES: usize = 64 << 20;

/// What to parse.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The main file, absolute.
    pub main: &'a Path,
    /// The text given with `-g`, which nginx reads first.
    pub globals: Option<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// A main file without `-g`.
    pub fn new(main: &'a Path) -> Self {
        Self { main, globals: None }
    }
}

/// Reads a whole configuration.
///
/// # Errors
/// The first thing that nginx would refuse, or that cannot be read.
pub fn parse(files: &dyn Files, source: Source<'_>) -> Result<Config, Error> {
    let mut parser = Parser::new(files, source.main, true);
    match parser.run(source) {
        Ok(()) => Ok(parser.config),
        Err(error) => Err(error),
    }
}

/// Reads what can be read: a file is given up at its first syntax error and an unreadable one is passed over,
/// so that a file that someone is editing right now does not hide all others. The errors say what is missing.
pub fn parse_partial(files: &dyn Files, source: Source<'_>) -> (Config, Vec<Error>) {
    let mut parser = Parser::new(files, source.main, false);
    if let Err(error) = parser.run(source) {
        parser.errors.push(error);
    }
    (parser.config, parser.errors)
}

/// A block that is being read.
struct OpenBlock {
    node: u32,
    entries: bool,
}

/// A file that is being read.
struct OpenFile {
    file: FileId,
    lexer: Lexer,
    /// The blocks that were open when it was included.
    base: usize,
    /// The `include` whose last file this is, so that it ends here.
    closes: Option<u32>,
}

struct Parser<'a> {
    files: &'a dyn Files,
    main: PathBuf,
    folder: PathBuf,
    strict: bool,
    config: Config,
    errors: Vec<Error>,
    by_path: HashMap<PathBuf, FileId>,
    blocks: Vec<OpenBlock>,
    open: Vec<OpenFile>,
    /// Files of globs yet to be read, the next one last: with the `include` and whether it is its last.
    pending: Vec<(PathBuf, u32, bool)>,
    inclusions: usize,
    bytes: usize,
}

impl<'a> Parser<'a> {
    fn new(files: &'a dyn Files, main: &Path, strict: bool) -> Self {
        Self {
            files,
            main: main.to_path_buf(),
            folder: main.parent().unwrap_or(Path::new("/")).to_path_buf(),
            strict,
            config: Config::default(),
            errors: Vec::new(),
            by_path: HashMap::new(),
            blocks: Vec::new(),
            open: Vec::new(),
            pending: Vec::new(),
            inclusions: 0,
            bytes: 0,
        }
    }

    fn run(&mut self, source: Source<'_>) -> Result<(), Error> {
        if let Some(globals) = source.globals {
            let file = self.add_file(Path::new("-g"), globals.to_vec());
            self.open.push(OpenFile { file, lexer: Lexer::parameter(), base: 0, closes: None });
            self.drain()?;
        }
        let bytes = self
            .files
            .read(source.main)
            .map_err(|error| Error::Main { file: source.main.to_path_buf(), source: error })?;
        self.count(&bytes, None)?;
        let file = self.add_file(source.main, bytes);
        self.open.push(OpenFile { file, lexer: Lexer::file(), base: 0, closes: None });
        self.drain()
    }

    fn add_file(&mut self, path: &Path, bytes: Vec<u8>) -> FileId {
        let file = FileId(index(self.config.files.len()));
        // What configurations hold on average; reading a large one would else move its lists again and again.
        self.config.tokens.reserve(bytes.len() / 16);
        self.config.nodes.reserve(bytes.len() / 40);
        self.config.files.push(SourceFile { path: path.to_path_buf(), bytes: Arc::new(bytes) });
        self.by_path.insert(path.to_path_buf(), file);
        file
    }

    fn count(&mut self, bytes: &[u8], include: Option<u32>) -> Result<(), Error> {
        self.inclusions += 1;
        self.bytes = self.bytes.saturating_add(bytes.len());
        let limit = if self.bytes > MAX_BYTES {
            "64 MiB"
        } else if self.inclusions > MAX_INCLUSIONS {
            "100000 included files"
        } else if self.open.len() > MAX_INCLUDE_DEPTH {
            "64 levels of includes"
        } else {
            return Ok(());
        };
        let (file, line) = self.place(include);
        Err(Error::TooLarge { file, line, limit })
    }

    fn place(&self, include: Option<u32>) -> (PathBuf, u32) {
        match include.map(NodeId) {
            Some(id) => (self.config.file(id).to_path_buf(), self.config.end_line(id)),
            None => (self.main.clone(), 0),
        }
    }

    /// Reads until nothing is open.
    fn drain(&mut self) -> Result<(), Error> {
        while let Some(top) = self.open.len().checked_sub(1) {
            let pending = self.pending.len();
            if let Err(error) = self.file(top) {
                if self.strict || matches!(error, Error::TooLarge { .. }) {
                    self.close_all();
                    return Err(error);
                }
                self.errors.push(error);
                self.pending.truncate(pending);
                self.leave_file();
                self.next_pending()?;
            }
        }
        Ok(())
    }

    /// Reads one file until it ends or includes another.
    fn file(&mut self, top: usize) -> Result<(), Error> {
        let Some(open) = self.open.get_mut(top) else { return Ok(()) };
        let (file, base, parameter) = (open.file, open.base, open.lexer.is_parameter());
        let Some(text) = self.config.files.get(file.0 as usize).map(|file| Arc::clone(&file.bytes)) else {
            return Ok(());
        };
        loop {
            let Some(open) = self.open.get_mut(top) else { return Ok(()) };
            let first_token = self.config.tokens.len();
            let end = open.lexer.statement(&text, &mut self.config.tokens);
            let (line, offset) = (open.lexer.line(), open.lexer.offset());
            let refuse = |line: u32, kind: SyntaxError, config: &Config| {
                let path = config.files.get(file.0 as usize).map(|file| file.path.clone());
                Err(Error::Syntax { file: path.unwrap_or_default(), line, kind })
            };
            let end = match end {
                Ok(end) => end,
                Err(error) => {
                    self.config.tokens.truncate(first_token);
                    return refuse(error.line, error.kind, &self.config);
                }
            };
            match end {
                End::Eof if self.blocks.len() > base => {
                    return refuse(line, SyntaxError::EndOfBlock, &self.config);
                }
                End::Eof => {
                    self.leave_file();
                    return self.next_pending();
                }
                End::Close if self.blocks.len() > base => self.close_block(),
                End::Close => return refuse(line, SyntaxError::Unexpected(b'}'), &self.config),
                End::Open | End::Semicolon => {
                    let block = end == End::Open;
                    let node = self.add_node(file, first_token, block, line, offset);
                    let kind = node.kind;
                    let arguments = node.tokens.saturating_sub(1);
                    let id = index(self.config.nodes.len());
                    self.config.nodes.push(node);
                    match kind {
                        _ if block && parameter => {
                            return refuse(line, SyntaxError::BlockInParameter, &self.config);
                        }
                        Kind::Entry if block => {
                            return refuse(line, SyntaxError::Unexpected(b'{'), &self.config);
                        }
                        Kind::Include if block => {
                            return refuse(line, SyntaxError::IncludeBlock, &self.config);
                        }
                        Kind::Include if arguments != 1 => {
                            return refuse(line, SyntaxError::IncludeArguments, &self.config);
                        }
                        Kind::Include => {
                            if self.include(id)? {
                                return Ok(());
                            }
                        }
                        Kind::Block if self.blocks.len() >= MAX_DEPTH => {
                            return refuse(line, SyntaxError::TooDeep, &self.config);
                        }
                        Kind::Block => {
                            let entries = self.is_table(id);
                            self.blocks.push(OpenBlock { node: id, entries });
                        }
                        Kind::Lua => {
                            let Some(open) = self.open.get_mut(top) else { return Ok(()) };
                            if let Err(error) = open.lexer.lua_block(&text) {
                                return refuse(error.line, error.kind, &self.config);
                            }
                        }
                        Kind::Simple | Kind::Entry => {}
                    }
                }
            }
        }
    }

    fn add_node(&mut self, file: FileId, first: usize, block: bool, line: u32, offset: usize) -> Node {
        let config = &mut self.config;
        let text = config.files.get(file.0 as usize).map_or(&[][..], |file| &file.bytes);
        let name = config.tokens.get(first).map(|token| token.value(text)).unwrap_or_default();
        let entries = self.blocks.last().is_some_and(|open| open.entries);
        let kind = match (block, &*name) {
            (true, _) if entries => Kind::Entry,
            (_, b"include") => Kind::Include,
            _ if entries => Kind::Entry,
            (true, name) if name.ends_with(b"_by_lua_block") => Kind::Lua,
            (true, _) => Kind::Block,
            (false, _) => Kind::Simple,
        };
        // Keys of tables are not names, and there may be a million of them.
        let name = match config.name_ids.get(&*name) {
            _ if kind == Kind::Entry => NameId(u32::MAX),
            Some(id) => *id,
            None => {
                let id = NameId(index(config.names.len()));
                config.names.push(name.as_ref().into());
                config.name_ids.insert(name.as_ref().into(), id);
                id
            }
        };
        Node {
            kind,
            file,
            name,
            parent: self.blocks.last().map_or(u32::MAX, |open| open.node),
            end: index(config.nodes.len() + 1),
            first_token: index(first),
            tokens: index(config.tokens.len() - first),
            end_line: line,
            end_offset: index(offset),
        }
    }

    /// Whether nginx reads this block's body with a handler of its own, as keys and values.
    fn is_table(&self, node: u32) -> bool {
        let name = self.config.name(NodeId(node));
        matches!(&*name, b"map" | b"geo" | b"split_clients" | b"types" | b"charset_map")
    }

    fn close_block(&mut self) {
        if let Some(open) = self.blocks.pop() {
            self.end_node(open.node);
        }
    }

    fn end_node(&mut self, node: u32) {
        let end = index(self.config.nodes.len());
        if let Some(node) = self.config.nodes.get_mut(node as usize) {
            node.end = end;
        }
    }

    fn leave_file(&mut self) {
        if let Some(open) = self.open.pop() {
            while self.blocks.len() > open.base {
                self.close_block();
            }
            if let Some(include) = open.closes {
                self.end_node(include);
            }
        }
    }

    fn close_all(&mut self) {
        self.pending.clear();
        while !self.open.is_empty() {
            self.leave_file();
        }
    }

    /// Opens the file, or the first of the files, of an `include`; false when there is none to open.
    fn include(&mut self, id: u32) -> Result<bool, Error> {
        let config = &self.config;
        let node = NodeId(id);
        let Some(name) = config.args(node).next() else { return Ok(false) };
        let target = self.folder.join(OsStr::from_bytes(&name));
        let binary_geo = self.blocks.last().is_some_and(|open| open.entries) && name.ends_with(b".bin");
        if binary_geo {
            return Ok(false);
        }
        let found = if glob::is_pattern(target.as_os_str().as_bytes()) {
            match self.files.glob(&target) {
                Ok(found) => found,
                Err(error) => return self.unreadable(id, target, error).map(|()| false),
            }
        } else {
            vec![target]
        };
        let last = found.len().saturating_sub(1);
        let mark = self.pending.len();
        self.pending.extend(found.into_iter().enumerate().rev().map(|(at, path)| (path, id, at == last)));
        if self.pending.len() > mark { self.next_pending().map(|()| true) } else { Ok(false) }
    }

    fn unreadable(&mut self, include: u32, target: PathBuf, source: io::Error) -> Result<(), Error> {
        let (file, line) = self.place(Some(include));
        let error = Error::Include { file, line, target, source };
        if self.strict {
            return Err(error);
        }
        self.errors.push(error);
        Ok(())
    }

    /// Opens the next file that waits, unless it belongs to an `include` further out than the open files.
    fn next_pending(&mut self) -> Result<(), Error> {
        while let Some((path, include, last)) = self.pending.pop() {
            let holder = self.config.nodes.get(include as usize).map(|node| node.file);
            if self.open.last().map(|open| open.file) != holder {
                self.pending.push((path, include, last));
                return Ok(());
            }
            match self.open_included(&path, include, last) {
                Ok(()) => return Ok(()),
                Err(error) if self.strict || matches!(error, Error::TooLarge { .. }) => return Err(error),
                Err(error) => {
                    self.errors.push(error);
                    if last {
                        self.end_node(include);
                    }
                }
            }
        }
        Ok(())
    }

    fn open_included(&mut self, path: &Path, include: u32, last: bool) -> Result<(), Error> {
        let known = self.by_path.get(path).copied();
        if let Some(target) = known.filter(|known| self.open.iter().any(|open| open.file == *known)) {
            let (file, line) = self.place(Some(include));
            let target = self.config.files.get(target.0 as usize).map(|file| file.path.clone());
            return Err(Error::Cycle { file, line, target: target.unwrap_or_default() });
        }
        let file = match known {
            Some(file) => {
                let bytes = self.config.files.get(file.0 as usize).map(|file| Arc::clone(&file.bytes));
                self.count(&bytes.unwrap_or_default(), Some(include))?;
                file
            }
            None => match self.files.read(path) {
                Ok(bytes) => {
                    self.count(&bytes, Some(include))?;
                    self.add_file(path, bytes)
                }
                Err(error) => {
                    let (file, line) = self.place(Some(include));
                    return Err(Error::Include { file, line, target: path.to_path_buf(), source: error });
                }
            },
        };
        let base = self.blocks.len();
        self.open.push(OpenFile { file, lexer: Lexer::file(), base, closes: last.then_some(include) });
        Ok(())
    }
}

/// Nodes, tokens and bytes are each fewer than the bytes read, which [`MAX_BYTES`] bounds.
fn index(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

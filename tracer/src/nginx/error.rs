//! What can be wrong with a configuration: each error names the file, the line and, where one is known, the
//! remedy. The wording follows `nginx -t`, so that both can be searched for in the same places.

use std::{io, path::PathBuf};

use thiserror::Error;

/// A mistake that nginx's tokenizer or block parser refuses (`ngx_conf_read_token`, `ngx_conf_parse`).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SyntaxError {
    /// A byte that cannot stand where it stands: `;` or `{` without a directive, `}` in or without a block,
    /// or text right behind a closing quote.
    #[error("unexpected \"{}\"", shown(*.0))]
    Unexpected(u8),
    /// The file ends inside a directive.
    #[error("unexpected end of file, expecting \";\" or \"}}\"")]
    EndOfFile,
    /// The file ends inside a block.
    #[error("unexpected end of file, expecting \"}}\"")]
    EndOfBlock,
    /// The text of `-g` ends inside a directive.
    #[error("unexpected end of parameter, expecting \";\"")]
    EndOfParameter,
    /// The text of `-g` opens a block.
    #[error("block directives are not supported in -g option")]
    BlockInParameter,
    /// A word or a comment longer than nginx's read buffer.
    #[error("too long parameter \"{0}...\" started (nginx reads at most 4096 bytes: split the line)")]
    TooLong(String),
    /// A quoted word longer than nginx's read buffer.
    #[error("too long parameter, probably missing terminating \"{0}\" character")]
    TooLongQuoted(char),
    /// A `*_by_lua_block` that the file's end cuts off.
    #[error("unexpected end of file, expecting terminating characters for lua code block")]
    LuaBlock,
    /// `include` with no or several arguments.
    #[error("invalid number of arguments in \"include\" directive")]
    IncludeArguments,
    /// `include {`.
    #[error("directive \"include\" is not terminated by \";\"")]
    IncludeBlock,
    /// Blocks nested deeper than [`MAX_DEPTH`](super::parse::MAX_DEPTH); nginx itself would run out of stack.
    #[error("blocks are nested more than {} levels deep", super::parse::MAX_DEPTH)]
    TooDeep,
}

/// The byte as nginx shows it, unless a terminal would act on it.
fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { char::from(byte).to_string() } else { byte.escape_ascii().to_string() }
}

/// Why a configuration, or a part of it, could not be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The text is not a configuration.
    #[error("{}:{line}: {kind}", file.display())]
    Syntax {
        /// File as nginx names it.
        file: PathBuf,
        /// Line that `nginx -t` reports, from 1.
        line: u32,
        /// What is wrong there.
        kind: SyntaxError,
    },
    /// The main file cannot be read.
    #[error("{}: {source}; does -c, or the compiled-in path, name the file that this nginx runs with?", file.display())]
    Main {
        /// The main file.
        file: PathBuf,
        /// What the reader said.
        source: io::Error,
    },
    /// An included file cannot be read, or its folder cannot be listed.
    #[error("{}:{line}: include \"{}\" failed: {source}; create it or remove the include", file.display(), target.display())]
    Include {
        /// File of the `include`.
        file: PathBuf,
        /// Line of the `include`, from 1.
        line: u32,
        /// What it includes, as an absolute path or pattern.
        target: PathBuf,
        /// What the reader said.
        source: io::Error,
    },
    /// A file includes itself, directly or through others; nginx would open it until it runs out of files.
    #[error("{}:{line}: include \"{}\" is a cycle; remove it", file.display(), target.display())]
    Cycle {
        /// File of the `include`.
        file: PathBuf,
        /// Line of the `include`, from 1.
        line: u32,
        /// The file that is already being read.
        target: PathBuf,
    },
    /// More than this program is willing to read.
    #[error("{}:{line}: the configuration is larger than {limit}", file.display())]
    TooLarge {
        /// File whose inclusion passed the limit.
        file: PathBuf,
        /// Line of the `include`, from 1; 0 for the main file.
        line: u32,
        /// The limit that was passed, with its unit.
        limit: &'static str,
    },
    /// A directive whose value this program does not understand; the rest of the model stands.
    #[error("{}:{line}: {message}", file.display())]
    Value {
        /// File of the directive.
        file: PathBuf,
        /// Line of the directive, from 1.
        line: u32,
        /// What is wrong, naming the value.
        message: String,
    },
}

/// Something that is wrong with a configuration, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file; `None` where none is to blame.
    pub file: Option<PathBuf>,
    /// The line, from 1.
    pub line: Option<u32>,
    /// What is wrong, place included: `file:line: …`.
    pub text: String,
    /// Whether a part of the configuration is missing because of it.
    pub missing: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let (file, line) = match error {
            Error::Syntax { file, line, .. }
            | Error::Include { file, line, .. }
            | Error::Cycle { file, line, .. }
            | Error::TooLarge { file, line, .. }
            | Error::Value { file, line, .. } => (file, *line),
            Error::Main { file, .. } => (file, 0),
        };
        Self {
            file: Some(file.clone()),
            line: (line > 0).then_some(line),
            text: error.to_string(),
            missing: !matches!(error, Error::Value { .. }),
        }
    }
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self { file: None, line: None, text, missing: true }
    }
}

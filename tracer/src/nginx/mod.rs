//! nginx's configuration: tokenizer, parser, includes, and the model that leads from an upstream's address to
//! the lines responsible for it; also what a process's command line and executable say about which
//! configuration that is.
//!
//! Pure: files come through [`Files`], executables and command lines as bytes. Nothing here panics on any
//! input, recurses, or needs a clock.

use std::{
    io,
    path::{Path, PathBuf},
};

pub mod binary;
pub mod choice;
pub mod directives;
pub mod dump;
pub mod error;
mod flow;
pub mod glob;
mod in_force;
pub mod invocation;
pub mod kept;
pub mod lexer;
pub mod locate;
mod lookup;
mod lua;
pub mod model;
pub mod parse;
mod pcre;
mod place;
mod retry;
pub mod running;
mod servers;
mod settings;
pub mod symbols;
pub mod tree;
pub mod uri;
pub mod value;
mod vars;
pub mod version;
mod walk;

#[cfg(test)]
mod tests;

pub use error::{Error, Problem, SyntaxError};
pub use flow::REDIRECT;
pub use in_force::{InForce, InForces};
pub use locate::{Asked, Located};
pub use lookup::Candidate;
pub use model::{ConfigLine, Layer, Model, Module, Role};
pub use parse::{Source, parse, parse_partial};
pub use retry::Barred;
pub use settings::{Effective, Setting, Timeout};
pub use tree::Config;
pub use version::{Platform, Version};

/// Where a configuration's files come from: a file system seen from a process's root, a dump, or a test.
pub trait Files {
    /// The contents of a file; the path is absolute.
    ///
    /// # Errors
    /// Those of opening and reading.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The existing paths that match a pattern, sorted by bytes; none is no error. [`glob::expand`] does it,
    /// given a way to list a folder.
    ///
    /// # Errors
    /// Those of listing folders, except that a missing folder holds nothing.
    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>>;
}

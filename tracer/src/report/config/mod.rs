//! Showing a configuration: what `why502 config` prints.

mod data;
mod words;

use std::path::Path;

use crate::nginx::{Model, Problem, binary::Build};

pub use data::json;
pub use words::text;

/// One nginx with its configuration.
#[derive(Debug)]
pub struct Shown<'a> {
    /// PID of the master; `None` for a file.
    pub pid: Option<u32>,
    /// The container, as `docker 0123456789ab`.
    pub container: Option<String>,
    /// The executable, in its own root.
    pub executable: Option<&'a Path>,
    /// Which nginx it is.
    pub build: Option<&'a Build>,
    /// The main file.
    pub main: Option<&'a Path>,
    /// What the configuration says.
    pub model: &'a Model,
    /// What could not be read or understood.
    pub problems: &'a [Problem],
}

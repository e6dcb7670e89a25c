//! What the configuration's own story adds to a case: files that are newer than the worker, names that have moved since
//! nginx resolved them, and what nginx itself said.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{event::said::Place, moment::Moment};

/// What is known of the configuration besides its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Story {
    /// The worker's master (itself for a single process).
    pub master: u32,
    /// nginx's command line is cut off in its title: the main file is a guess.
    pub guessed: Option<PlainPath>,
    /// Files that are not what the worker was born with.
    pub changed: Option<Changed>,
    /// Names that do not lead to the address any more, at most three.
    pub names: Vec<StaleName>,
}

/// A path that is recorded whatever its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlainPath(#[serde(with = "crate::plain::path")] pub PathBuf);

/// The first of the changed files, and how many others there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The file.
    pub path: PlainPath,
    /// So many more.
    pub others: usize,
    /// What became of it.
    pub how: Change,
    /// When the worker started, where it may run what was on disk before: the lines may differ from what it runs. `None`
    /// where it is known that it runs the lines that are shown.
    pub started: Option<Moment>,
}

/// What has become of a file of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It was changed then.
    At(Moment),
    /// Its path leads to another file, which itself was not changed.
    Other,
    /// It cannot be read any more.
    Gone,
    /// A pattern finds it now, and did not before.
    Added,
}

/// A name of the configuration that does not lead to an address any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleName {
    /// The name.
    pub name: String,
    /// Its addresses now; none if it cannot be resolved.
    pub now: Vec<IpAddr>,
    /// True if it did lead to the address when the configuration was read.
    pub did: bool,
    /// True if nginx's own memory says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// What nginx told its log of the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Its text, without arguments; None if it could not be read.
    pub text: Option<String>,
    /// The errno in it.
    pub errno: Option<i32>,
    /// Where the request is in the configuration, if the model knows that place.
    pub place: Option<Place>,
}

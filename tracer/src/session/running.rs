//! Which configuration a process runs with where files are newer on disk than it is: an nginx built with `--with-debug`
//! has their texts in its memory.

use super::config::Snapshot;
use crate::{
    nginx::{self, Model, Source},
    sys::memory::Memory,
};

/// What a process's memory says of a snapshot.
#[derive(Debug)]
pub(super) enum Running {
    /// It runs with the texts of that snapshot.
    Same,
    /// It runs with others.
    Other(Box<Snapshot>),
}

impl Snapshot {
    /// Asks a process's memory whether it runs with this configuration. `None` if that does not say.
    #[must_use]
    pub(super) fn running(&self, pid: u32) -> Option<Running> {
        let (place, main) = (self.place?, self.main.as_deref()?);
        let memory = Memory::of_pid(pid).ok()?;
        let dump = place.files(memory.phdr(), main, &|at, length| memory.read(at, length))?;
        let is_known = |of: (&std::path::Path, &[u8])| self.texts().any(|known| known == of);
        if dump.files().count() == self.texts().count() && dump.files().all(is_known) {
            return Some(Running::Same);
        }
        let globals = self.started.as_ref().and_then(|started| started.globals.as_deref());
        let (config, errors) = nginx::parse_partial(&dump, Source { main, globals });
        // nginx has taken it: what does not parse was overwritten while it was read.
        if !errors.is_empty() {
            return None;
        }
        let model = Model::for_platform(config, self.model.platform);
        Some(Running::Other(Box::new(self.with_texts(model))))
    }

    /// The configuration that this process runs with, if that is not what is on disk now.
    #[must_use]
    pub fn instead(&self, pid: u32, started: std::time::SystemTime) -> Option<Self> {
        if self.newer_than(started).is_empty() {
            return None;
        }
        match self.running(pid)? {
            Running::Same => None,
            Running::Other(snapshot) => Some(*snapshot),
        }
    }

    /// Whether a process's memory says that it runs with this very configuration.
    #[must_use]
    pub fn is_in_memory_of(&self, pid: u32) -> bool {
        matches!(self.running(pid), Some(Running::Same))
    }

    /// The command line that led to it; `None` for a file.
    #[must_use]
    pub fn invocation(&self) -> Option<&nginx::invocation::Invocation> {
        self.started.as_ref()
    }

    /// What to say where the files on disk are not what runs.
    #[must_use]
    pub fn unread(&self) -> Option<String> {
        if !self.from_memory {
            return None;
        }
        let edited = self.edited();
        let [(path, _), others @ ..] = edited.as_slice() else { return None };
        let others = crate::diagnose::story::and_others(others.len());
        Some(format!(
            "{}{others} on disk is not what nginx runs with, which has not been reloaded since: its lines are those of \
             its memory",
            path.display()
        ))
    }
}

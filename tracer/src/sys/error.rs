//! The one error of this module: what was tried, what the system said, and what would mend it.

use std::{fmt, io};

/// Result of everything in `sys`.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a fact could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a kernel reply refused.
    #[error("cannot {action}: {source}{hint}")]
    Os {
        /// What was tried, as an infinitive.
        action: String,
        /// What the system answered.
        source: io::Error,
        /// What to do about it, if that is known.
        hint: Hint,
    },
    /// The kernel did not answer, or went on answering, past the limit.
    #[error("cannot {action}: no complete answer within {limit_ms} ms")]
    Timeout {
        /// What was tried.
        action: String,
        /// The limit, in milliseconds.
        limit_ms: u64,
    },
    /// A dump changed under the reader each time it was tried.
    #[error("cannot {action}: the table kept changing while it was read")]
    Interrupted {
        /// What was tried.
        action: String,
    },
    /// A reply does not have the layout it must have.
    #[error("cannot {action}: {detail}")]
    Malformed {
        /// What was tried.
        action: String,
        /// What is wrong with it.
        detail: &'static str,
    },
}

/// Advice that follows an error's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint(pub Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |text| write!(f, " ({text})"))
    }
}

impl Error {
    pub(crate) fn os(action: impl Into<String>, source: io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                Some("run as root, or grant CAP_SYS_PTRACE and CAP_SYS_ADMIN")
            }
            Some(libc::EMFILE | libc::ENFILE) => Some("raise the open-files limit of why502"),
            _ => None,
        };
        Self::Os { action: action.into(), source, hint: Hint(hint) }
    }

    pub(crate) fn errno_of(action: impl Into<String>, errno: i32) -> Self {
        Self::os(action, io::Error::from_raw_os_error(errno))
    }

    pub(crate) fn malformed(action: impl Into<String>, detail: &'static str) -> Self {
        Self::Malformed { action: action.into(), detail }
    }

    /// Replaces the advice.
    pub(crate) fn hint(mut self, text: &'static str) -> Self {
        if let Self::Os { hint, .. } = &mut self {
            *hint = Hint(Some(text));
        }
        self
    }

    /// The errno, when the system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } => source.raw_os_error(),
            Self::Timeout { .. } | Self::Interrupted { .. } | Self::Malformed { .. } => None,
        }
    }

    /// Whether the process or file asked about is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ESRCH))
    }
}

/// Gives an `io::Result` its context.
pub(crate) trait Context<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::os(action(), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_do() {
        let error = Error::errno_of("read x", libc::EPERM);
        assert!(error.to_string().contains("CAP_SYS_PTRACE"), "{error}");
        assert_eq!(error.errno(), Some(libc::EPERM));
        let plain = Error::errno_of("read x", libc::EIO).to_string();
        assert!(!plain.contains("root"), "{plain}");
    }
}

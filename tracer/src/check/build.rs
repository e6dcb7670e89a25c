//! Making findings, a piece at a time.

use super::finding::{Finding, Place, Severity};
use crate::{
    diagnose::{Cause, Confidence, Evidence, Fix},
    nginx::{Model, model::ConfigLine, tree::NodeId},
};

impl Finding {
    /// One with which requests fail; certain until [`likely`](Self::likely) says otherwise.
    #[must_use]
    pub fn problem(name: &'static str, summary: impl Into<String>) -> Self {
        Self {
            name,
            severity: Severity::Problem,
            cause: None,
            confidence: Confidence::Proven,
            summary: summary.into(),
            breaks: String::new(),
            rival: None,
            upstream: None,
            at: Vec::new(),
            evidence: Vec::new(),
            fix: Vec::new(),
        }
    }

    /// One with which requests fail under circumstances that [`breaks`](Self::breaks) names.
    #[must_use]
    pub fn warning(name: &'static str, summary: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::problem(name, summary) }
    }

    /// The cause that a failed request would have.
    #[must_use]
    pub fn cause(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Not certain: this may be so instead.
    #[must_use]
    pub fn likely(mut self, rival: impl Into<String>) -> Self {
        self.confidence = Confidence::Likely;
        self.rival = Some(rival.into());
        self
    }

    /// What breaks because of it.
    #[must_use]
    pub fn breaks(mut self, text: impl Into<String>) -> Self {
        self.breaks = text.into();
        self
    }

    /// The address or socket that it is about.
    #[must_use]
    pub fn upstream(mut self, address: impl Into<String>) -> Self {
        self.upstream = Some(address.into());
        self
    }

    /// Adds a line of the configuration.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        if !self.at.contains(&place) {
            self.at.push(place);
        }
        self
    }

    /// Adds an observation.
    #[must_use]
    pub fn because(mut self, kind: &'static str, text: impl Into<String>) -> Self {
        self.evidence.push(Evidence { kind, text: text.into() });
        self
    }

    /// Adds advice.
    #[must_use]
    pub fn fix(mut self, text: impl Into<String>) -> Self {
        self.fix.push(Fix { text: text.into(), command: None });
        self
    }

    /// Adds advice with a command.
    #[must_use]
    pub fn fix_with(mut self, text: impl Into<String>, command: impl Into<String>) -> Self {
        self.fix.push(Fix { text: text.into(), command: Some(command.into()) });
        self
    }
}

impl Place {
    /// A directive.
    #[must_use]
    pub fn of(model: &Model, role: &'static str, node: NodeId) -> Self {
        let config = model.config();
        Self {
            role,
            file: Some(config.file(node).to_path_buf()),
            line: Some(config.line(node)),
            text: config.text(node),
        }
    }

    /// A default that no line sets.
    #[must_use]
    pub fn default_of(text: impl Into<String>) -> Self {
        Self { role: "directive", file: None, line: None, text: text.into() }
    }
}

impl From<ConfigLine> for Place {
    fn from(line: ConfigLine) -> Self {
        Self { role: line.role.name(), file: Some(line.file), line: Some(line.line), text: line.text }
    }
}

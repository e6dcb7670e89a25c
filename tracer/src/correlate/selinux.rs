//! What SELinux decided in the system call that failed, in words.

use crate::{event::Avc, selinux::Remedy};

/// A decision of the access vector cache against the worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Decision {
    /// It was refused; false: permissive mode or a permissive domain let it through.
    pub refused: bool,
    /// It was written to the audit log; None: that could not be seen.
    pub audited: Option<bool>,
    /// Context of the worker.
    pub source: Option<String>,
    /// Context of what it wanted.
    pub target: Option<String>,
    /// What it wanted, such as `port 3000` or `/run/app.sock`.
    pub object: Option<String>,
    /// Class, such as `tcp_socket`.
    pub class: Option<String>,
    /// Permissions, such as `name_connect`.
    pub permissions: Vec<String>,
    /// What the loaded policy says of it; None if it could not be asked.
    pub policy: Option<PolicyFact>,
    /// Another label that would be allowed.
    pub label: Option<Label>,
    /// The numbers behind it.
    pub numbers: Option<Avc>,
}

impl Decision {
    /// `httpd_t → unreserved_port_t:tcp_socket { name_connect }`, as far as it is known.
    #[must_use]
    pub fn text(&self) -> String {
        let short = |context: &Option<String>| {
            context.as_deref().map_or("(unknown)", |c| crate::selinux::type_of(c).unwrap_or(c)).to_owned()
        };
        let class = match (&self.class, self.numbers) {
            (Some(class), _) => class.clone(),
            (None, Some(avc)) => format!("class number {}", avc.class),
            (None, None) => "(unknown)".to_owned(),
        };
        let permissions = match (self.permissions.is_empty(), self.numbers) {
            (true, Some(avc)) => format!("bits {:#x}", avc.requested),
            _ => self.permissions.join(" "),
        };
        format!("{} → {}:{class} {{ {permissions} }}", short(&self.source), short(&self.target))
    }
}

/// What the loaded policy says of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "one independent fact each")]
pub struct PolicyFact {
    /// It allows all of it now.
    pub allows_now: bool,
    /// A `dontaudit` rule silences the denial.
    pub dontaudit: bool,
    /// Rules allow it, and a constraint (user, role, level) does not.
    pub constrained: bool,
    /// There is a constraint that could not be evaluated.
    pub unevaluated: bool,
    /// The worker's domain is permissive.
    pub permissive_domain: bool,
    /// Booleans of which one would allow it, narrowest first.
    pub booleans: Vec<Remedy>,
}

/// A label that would be allowed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Label {
    /// The port is labelled by no line of its own, and ports of this type may be connected to.
    Port {
        /// TCP port.
        port: u16,
        /// The type to give it.
        kind: String,
    },
    /// The file has not the label that the policy's file contexts give its path.
    Restore {
        /// As the worker sees it.
        path: String,
        /// The context that it should have.
        wanted: String,
    },
    /// The path has no label of its own; with this type it would be allowed.
    File {
        /// As the worker sees it.
        path: String,
        /// The type to give it.
        kind: String,
    },
}

/// SELinux around one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct SelinuxFact {
    /// The system enforces; None if that could not be read.
    pub enforcing: Option<bool>,
    /// Audit was switched off when the kernel started (`audit=0`).
    pub audit_off: bool,
    /// Decisions in their order, each once.
    pub decisions: Vec<Decision>,
}

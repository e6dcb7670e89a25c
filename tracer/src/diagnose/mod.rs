//! From a case to a verdict. Pure, and it cannot fail: what no rule explains is `unexplained`, with all
//! evidence.
//!
//! Every rule looks at the case on its own. A verdict is `proven` only if exactly one rule claims proof: two
//! proofs contradict each other, so both become `likely` and the text names the rival.

pub mod cause;
pub mod pages;
mod retry;
mod rules;
pub mod story;
pub mod words;

pub use cause::Cause;

use crate::correlate::{Case, ending};

/// How sure a verdict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Confidence {
    /// No rule explains it.
    Unexplained,
    /// It fits best; the verdict names the rival.
    Likely,
    /// The evidence admits no other cause.
    Proven,
}

impl Confidence {
    /// Name in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Confidence::Unexplained => "unexplained",
            Confidence::Likely => "likely",
            Confidence::Proven => "proven",
        }
    }
}

/// One observation that a verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Machine-readable kind, such as `rst`, `drop`, `listener`.
    pub kind: &'static str,
    /// For people.
    pub text: String,
}

/// What to do, from narrow to wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// For people.
    pub text: String,
    /// A command that does it or shows more, if there is one. Never run by why502.
    pub command: Option<String>,
}

/// Cause, confidence, evidence and fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Why it failed.
    pub cause: Cause,
    /// How sure that is.
    pub confidence: Confidence,
    /// One line.
    pub summary: String,
    /// What else it could be, if it is not proven.
    pub rival: Option<String>,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// What to do.
    pub fix: Vec<Fix>,
}

impl Verdict {
    /// A proven verdict.
    #[must_use]
    pub fn proven(cause: Cause, summary: impl Into<String>) -> Self {
        Self {
            cause,
            confidence: Confidence::Proven,
            summary: summary.into(),
            rival: None,
            evidence: Vec::new(),
            fix: Vec::new(),
        }
    }

    /// A likely verdict with its rival.
    #[must_use]
    pub fn likely(cause: Cause, summary: impl Into<String>, rival: impl Into<String>) -> Self {
        Self { confidence: Confidence::Likely, rival: Some(rival.into()), ..Self::proven(cause, summary) }
    }

    /// Proven if `proof`, else likely with that rival.
    #[must_use]
    pub fn graded(cause: Cause, proof: bool, summary: impl Into<String>, rival: impl Into<String>) -> Self {
        if proof { Self::proven(cause, summary) } else { Self::likely(cause, summary, rival) }
    }

    /// Adds an observation.
    #[must_use]
    pub fn because(mut self, kind: &'static str, text: impl Into<String>) -> Self {
        self.evidence.push(Evidence { kind, text: text.into() });
        self
    }

    /// Adds an observation if there is one.
    #[must_use]
    pub fn because_if(self, kind: &'static str, text: Option<impl Into<String>>) -> Self {
        match text {
            Some(text) => self.because(kind, text),
            None => self,
        }
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

/// A rule: looks at a case, and speaks up if its cause fits.
pub struct Rule {
    /// The causes that it can name.
    pub causes: &'static [Cause],
    /// The check.
    pub check: fn(&Case) -> Option<Verdict>,
}

pub use rules::RULES;

/// Explains one failed attempt, with what its configuration's story and nginx's own word add.
#[must_use]
pub fn verdict(case: &Case) -> Verdict {
    let mut verdict = diagnose(case);
    retry::add(&mut verdict, case);
    story::add(&mut verdict, case);
    verdict
}

/// Explains one failed attempt by the rules alone.
#[must_use]
pub fn diagnose(case: &Case) -> Verdict {
    let verdict = settle(case, RULES.iter().filter_map(|rule| (rule.check)(case)).collect());
    let hidden = verdict.cause == Cause::TlsCertificateRejected || ending::is_hidden(case);
    if hidden && verdict.confidence != Confidence::Proven && case.facts.said.is_none() {
        return verdict.fix_with(
            "nginx knows what TLS hides: have why502 ask it from now on (`why502 doctor` says whether this nginx can be asked)",
            "why502 --uprobes on",
        );
    }
    verdict
}

fn settle(case: &Case, mut verdicts: Vec<Verdict>) -> Verdict {
    // A call that somebody refused did not fail for anything else, whatever its errno looks like.
    if rules::blocked::is_refused(case) {
        verdicts.retain(|v| rules::blocked::is_block(v.cause));
    }
    // What a dying process did to its connection needs no other cause; what was seen of that remains.
    if verdicts.iter().any(|v| v.cause == Cause::UpstreamDied && v.confidence == Confidence::Proven) {
        verdicts.retain(|v| v.cause == Cause::UpstreamDied);
    }
    // Nor does a server's end, once its bytes have said what was wrong: one event, seen from two sides.
    if verdicts.iter().any(|v| rules::is_told_by_bytes(v.cause) && v.confidence == Confidence::Proven) {
        verdicts.retain(|v| !rules::is_manner_of_ending(v.cause));
    }
    // Stable: among equals the order of RULES decides.
    verdicts.sort_by_key(|v| std::cmp::Reverse(v.confidence));
    let proofs = verdicts.iter().filter(|v| v.confidence == Confidence::Proven).count();
    let mut rest = verdicts.into_iter();
    let Some(mut first) = rest.next() else {
        return rules::unexplained::verdict(case);
    };
    let rivals: Vec<Verdict> = rest.collect();
    if proofs > 1 {
        first.confidence = Confidence::Likely;
    }
    if first.confidence == Confidence::Likely
        && let Some(rival) = rivals.first()
    {
        let also = format!("{} ({})", rival.summary, rival.cause);
        first.rival = Some(match first.rival.take() {
            Some(known) => format!("{known}; or {also}"),
            None => also,
        });
        first.evidence.extend(
            rival.evidence.iter().filter(|e| !first.evidence.contains(e)).cloned().collect::<Vec<_>>(),
        );
    }
    first
}

#[cfg(test)]
mod tests;

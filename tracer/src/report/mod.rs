//! Showing incidents: what an incident is, and the ways to print it.

pub mod audit;
pub mod check;
pub mod config;
pub mod diff;
pub mod explain;
mod fold;
pub mod innocence;
pub mod json;

mod lines;
pub mod select;
mod summary;
pub mod text;

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::{
    correlate::{
        Case,
        request::{Attribution, Head, Ids},
        talk::payload,
    },
    diagnose::{self, Cause, Verdict},
    event::Stage,
    moment::Moment,
    nginx::{Candidate, ConfigLine, Role},
};

pub use crate::moment::{local_offset, moment};
pub use summary::{Occupancy, ProgramCost, Summary, Totals, plural};

/// A failed attempt with its cause, ready to be shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Incident {
    /// When the attempt ended.
    pub time: Moment,
    /// The same, CLOCK_MONOTONIC ns.
    pub mono_ns: u64,
    /// When it was told, CLOCK_MONOTONIC ns.
    pub shown_ns: u64,
    /// The explained case.
    pub case: Case,
    /// Its explanation. Not recorded: [`Incident::explain`] makes it.
    #[serde(skip, default = "unexplained")]
    pub verdict: Verdict,
    /// The worker's container.
    pub container: Option<String>,
    /// The lines that set the local address, for failed binds.
    pub bind_lines: Vec<ConfigLine>,
    /// The client's request.
    pub attribution: Attribution,
    /// It stands for so many equal attempts, none of which was looked at by itself; None: it is a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeats>,
}

/// Equal failures that came faster than they are told one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeats {
    /// How many.
    pub count: u64,
    /// They came from then on, until [`Incident::time`].
    pub since: Moment,
    /// The same, CLOCK_MONOTONIC ns.
    pub since_ns: u64,
}

fn unexplained() -> Verdict {
    Verdict::likely(Cause::Unexplained, "", "")
}

impl Incident {
    /// Makes its verdict, of its case alone.
    pub fn explain(&mut self) {
        self.verdict = diagnose::verdict(&self.case);
    }

    /// How many failed attempts it stands for.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.repeats.map_or(1, |repeats| repeats.count)
    }

    /// What the client asked for.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.attribution.request.as_ref()?.head.as_ref()
    }

    /// The status that the client saw in the end.
    #[must_use]
    pub fn client_saw(&self) -> Option<u16> {
        self.attribution.request.as_ref()?.status
    }

    /// What ties its request to logs and traces elsewhere, as the client sent it, else as nginx passed it on.
    #[must_use]
    pub fn ids(&self) -> Ids {
        let own = self.attribution.request.as_ref().map(|request| request.ids.clone()).unwrap_or_default();
        let talk = self.case.attempt.talk.as_deref();
        own.or(talk.map(|talk| Ids::of(&talk.request)).unwrap_or_default())
    }

    /// Which attempt of the request this was, from 1.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        self.attribution.request.as_ref().and(self.case.attempt.number)
    }

    /// The candidate, if the configuration leaves no doubt.
    #[must_use]
    pub fn only_candidate(&self) -> Option<&Candidate> {
        match self.case.config.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Destination, as nginx would write it: `127.0.0.1:80`, `unix:/run/app.sock`; None if it is not known.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        let a = &self.case.attempt;
        if let Some(name) = &a.unix {
            return Some(format!("unix:{name}"));
        }
        (!a.no_remote && a.stage != Stage::Bind).then(|| a.remote.to_string())
    }

    /// The upstream's name, if all candidates agree.
    #[must_use]
    pub fn upstream(&self) -> Option<&str> {
        self.agreed(|c| c.upstream.as_deref())
    }

    /// The server as written, if all candidates agree and it is known.
    #[must_use]
    pub fn server(&self) -> Option<&str> {
        self.agreed(|c| Some(c.server.as_str()).filter(|server| !server.is_empty()))
    }

    /// The module, if all candidates agree.
    #[must_use]
    pub fn module(&self) -> Option<&str> {
        self.agreed(|c| Some(c.module.name()))
    }

    fn agreed<'a>(&'a self, f: impl Fn(&'a Candidate) -> Option<&'a str>) -> Option<&'a str> {
        let mut all = self.case.config.iter().map(f);
        let first = all.next()??;
        all.all(|other| other == Some(first)).then_some(first)
    }

    /// Every configuration line to show, each once, and the time-outs that matter for this cause.
    #[must_use]
    pub fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> = Vec::new();
        // In this order the lines of one candidate stay together, servers before passes.
        lines
            .extend(self.case.config.iter().flat_map(|c| &c.lines).chain(&self.bind_lines).map(Line::Config));
        if self.shows_timeout() {
            let timeouts = self.case.config.iter().flat_map(|c| &c.connect_timeouts);
            lines.extend(timeouts.map(|t| t.line.as_ref().map_or(Line::Default(&t.text), Line::Config)));
        }
        for key in lines::directives(self.verdict.cause, self.case.attempt.stage) {
            let in_force = self.case.config.iter().flat_map(|c| c.settings.all(key));
            lines.extend(in_force.map(|d| d.line.as_ref().map_or(Line::Default(&d.text), Line::Config)));
        }
        let mut unique: Vec<Line<'_>> = Vec::with_capacity(lines.len());
        for line in lines {
            if !unique.contains(&line) {
                unique.push(line);
            }
        }
        unique
    }

    /// The client had got a part of this very response when it ended.
    #[must_use]
    pub fn passed_on(&self) -> bool {
        let talk = self.case.attempt.talk.as_deref();
        self.verdict.cause == Cause::ResponseTruncated || talk.is_some_and(|talk| talk.passed_on)
    }

    /// The first bytes that nginx sent and received, fit to be shown; `None` where they tell nothing about the cause.
    #[must_use]
    pub fn payload(&self) -> Option<(Option<String>, Option<String>)> {
        let talk = self.case.attempt.talk.as_deref().filter(|_| lines::shows_bytes(self.verdict.cause))?;
        let (sent, received) = (payload::shown(&talk.request), payload::shown(&talk.response));
        (sent.is_some() || received.is_some()).then_some((sent, received))
    }

    fn shows_timeout(&self) -> bool {
        matches!(
            self.verdict.cause,
            Cause::ConnectTimeoutBacklogFull
                | Cause::ConnectTimeoutConntrackFull
                | Cause::ConnectTimeoutFirewallDrop
                | Cause::ConnectTimeoutNoAnswer
                | Cause::ClientAborted
        ) || (self.verdict.cause == Cause::BlockedCgroupBpf && self.case.attempt.stage == Stage::SynSent)
    }
}

/// A line to show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Line<'a> {
    /// Written in the configuration.
    Config(&'a ConfigLine),
    /// A default that is in force.
    Default(&'a str),
}

impl Line<'_> {
    /// `server`, `pass` or `directive`.
    #[must_use]
    pub fn role(&self) -> &'static str {
        match self {
            Line::Config(line) => line.role.name(),
            Line::Default(_) => Role::Directive.name(),
        }
    }
}

/// Something that shows incidents.
pub trait Report {
    /// Shows one incident.
    ///
    /// # Errors
    /// Those of the output; `BrokenPipe` means that the reader has had enough.
    fn incident(&mut self, out: &mut dyn Write, incident: &Incident) -> io::Result<()>;

    /// Time passes: to be called before each incident with its [`Incident::shown_ns`], and now and then if [`Report::waits`].
    ///
    /// # Errors
    /// As above.
    fn tick(&mut self, _out: &mut dyn Write, _now_ns: u64) -> io::Result<()> {
        Ok(())
    }

    /// True if something is to be told once time has passed.
    fn waits(&self) -> bool {
        false
    }

    /// Ends the run.
    ///
    /// # Errors
    /// As above.
    fn summary(&mut self, out: &mut dyn Write, summary: &Summary) -> io::Result<()>;
}

#[cfg(test)]
pub(crate) mod tests;

/// True for what could steer a terminal: control characters (the C1 set too), and marks that change the
/// writing direction.
fn risky(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

//! The lines of a recording.

use serde::{Deserialize, Serialize};

use crate::{
    diagnose::Verdict,
    moment::Moment,
    probes::Tier,
    report::{Incident, Summary},
};

/// What a run had to see with, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the program.
    pub why502: String,
    /// Name of the machine (uname -n).
    pub host: String,
    /// Kernel (uname -r).
    pub kernel: String,
    /// Processor (uname -m).
    pub machine: String,
    /// When the recording begins.
    pub time: Moment,
    /// Tier in use.
    pub tier: Tier,
    /// Every hook, and why it was not there.
    pub hooks: Vec<Hook>,
    /// The nginx masters that were watched then.
    pub masters: Vec<Master>,
    /// First bytes of exchanges are recorded (not with `--no-payload`).
    pub payload: bool,
    /// Which part of a rotated recording this is, from 1.
    pub part: u32,
}

/// One hook of the kernel side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Its name in `why502 doctor`.
    pub name: String,
    /// Why it was not there; None if it was.
    pub missing: Option<String>,
}

/// One nginx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Its PID.
    pub pid: u32,
    /// Its main configuration file, in its own root.
    pub config: Option<String>,
    /// Its version, if its executable tells.
    pub version: Option<String>,
}

/// What was said of an incident when it was recorded, in plain words: names of a later or earlier version are no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Then {
    /// Name of the cause.
    pub cause: String,
    /// Name of the confidence.
    pub confidence: String,
    /// The summary.
    pub summary: String,
    /// The rival.
    pub rival: Option<String>,
    /// Kind and text.
    pub evidence: Vec<(String, String)>,
    /// Text and command.
    pub fix: Vec<(String, Option<String>)>,
}

impl From<&Verdict> for Then {
    fn from(verdict: &Verdict) -> Self {
        Self {
            cause: verdict.cause.name().to_owned(),
            confidence: verdict.confidence.name().to_owned(),
            summary: verdict.summary.clone(),
            rival: verdict.rival.clone(),
            evidence: verdict.evidence.iter().map(|e| (e.kind.to_owned(), e.text.clone())).collect(),
            fix: verdict.fix.iter().map(|f| (f.text.clone(), f.command.clone())).collect(),
        }
    }
}

/// A line as it is written.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Written<'a> {
    Header(&'a Header),
    Incident {
        then: Then,
        incident: &'a Incident,
    },
    Summary(&'a Summary),
    /// The recording goes on in another file.
    Continued {},
}

/// A line as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Read {
    Header(Header),
    Incident { then: Then, incident: Box<Incident> },
    Summary(Box<Summary>),
    Continued {},
}

/// One line, with its end.
pub(super) fn text(line: &Written<'_>) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(8192);
    serde_json::to_writer(&mut text, line)?;
    text.push(b'\n');
    Ok(text)
}

impl Header {
    /// Nothing known.
    pub(super) fn none() -> Self {
        Self {
            why502: String::new(),
            host: String::new(),
            kernel: String::new(),
            machine: String::new(),
            time: Moment::utc(std::time::UNIX_EPOCH),
            tier: Tier::Tracepoint,
            hooks: Vec::new(),
            masters: Vec::new(),
            payload: true,
            part: 1,
        }
    }
}

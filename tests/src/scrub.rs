//! Takes out of recorded incidents what belongs to one run: processes, namespaces, temporary folders, the time.
//!
//! It works on the JSON of the recording, so that a new field needs nothing here: numbers are known by their names, texts by
//! their form.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use tracer::report::Incident;

/// The first incident of a recording, CLOCK_MONOTONIC ns.
const BEGIN_NS: u64 = 1_000_000_000_000;
/// What belongs to a recording lies so close to it, ns.
const NEAR_NS: u64 = 900_000_000_000;
/// 2026-01-01T00:00:00Z.
const BEGIN_S: i64 = 1_767_225_600;
/// Numbers of namespaces in the kernel (PROC_DYNAMIC_FIRST, fs/proc/generic.c).
const NAMESPACES: std::ops::Range<u64> = 0xF000_0000..0xF800_0000;
/// Where nginx's prefix is.
const FOLDER: &str = "/tmp/w502-lab";
/// How the folders of all cases begin.
const PREFIX: &str = "/tmp/w502-";
/// Names of numbers that are processes.
const PROCESSES: [&str; 6] = ["worker", "master", "pid", "parent", "thread", "sender"];

struct Run {
    dir: String,
    cwd: String,
    /// Recorded beginning, monotonic.
    from_ns: u64,
    from_s: i64,
    processes: BTreeMap<u64, u64>,
    namespaces: BTreeMap<u64, u64>,
}

/// The incidents as any run could have recorded them; `dir`: nginx's prefix in this one, `cwd`: where the lab was started.
pub(crate) fn scrub(incidents: &[Incident], dir: &str, cwd: &str) -> Result<Vec<Incident>> {
    let (Some(first), begins) = (incidents.first(), incidents.iter().map(|i| i.mono_ns).min()) else {
        return Ok(Vec::new());
    };
    let mut run = Run {
        dir: dir.to_owned(),
        cwd: cwd.to_owned(),
        from_ns: begins.unwrap_or(0),
        from_s: first.time.unix_seconds(),
        processes: BTreeMap::new(),
        namespaces: BTreeMap::new(),
    };
    let clean = |incident: &Incident| {
        let mut value = serde_json::to_value(incident)?;
        run.value("", &mut value);
        let mut clean: Incident =
            serde_json::from_value(value).context("what was scrubbed cannot be read")?;
        clean.explain();
        Ok(clean)
    };
    incidents.iter().map(clean).collect()
}

impl Run {
    fn value(&mut self, key: &str, value: &mut Value) {
        match value {
            Value::Object(map) => {
                // A moment: its seconds are the wall clock's.
                if let Some(seconds) = map.get_mut("seconds").filter(|_| key != "duration")
                    && let Some(known) = seconds.as_i64()
                {
                    *seconds = (BEGIN_S + known - self.from_s).into();
                }
                for (key, value) in map {
                    self.value(key, value);
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|value| self.value(key, value)),
            Value::String(text) => *text = self.text(text),
            Value::Number(number) => {
                if let Some(known) = number.as_u64() {
                    *value = self.number(key, known).into();
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn number(&mut self, key: &str, known: u64) -> u64 {
        if PROCESSES.contains(&key) {
            return self.process(known);
        }
        if key.ends_with("netns") || NAMESPACES.contains(&known) {
            return self.namespace(known);
        }
        let is_time = (key.ends_with("_ns") || key == "request") && known.abs_diff(self.from_ns) < NEAR_NS;
        if is_time { (BEGIN_NS + known).saturating_sub(self.from_ns) } else { known }
    }

    /// Processes have the numbers of small ones, in the order in which they are met.
    fn process(&mut self, known: u64) -> u64 {
        if known < 2 {
            return known;
        }
        let next = 100 + self.processes.len() as u64;
        *self.processes.entry(known).or_insert(next)
    }

    fn namespace(&mut self, known: u64) -> u64 {
        if !NAMESPACES.contains(&known) {
            return known;
        }
        let next = NAMESPACES.start + 1 + self.namespaces.len() as u64;
        *self.namespaces.entry(known).or_insert(next)
    }

    fn text(&mut self, text: &str) -> String {
        let mut text = if self.dir.is_empty() { text.to_owned() } else { text.replace(&self.dir, FOLDER) };
        if self.cwd.len() > 1 {
            text = text.replace(&self.cwd, "/lab");
        }
        // Of cases that ran beside this one.
        let others: Vec<String> = text
            .split(PREFIX)
            .skip(1)
            .map(|rest| rest.chars().take_while(char::is_ascii_hexdigit).collect::<String>())
            .filter(|tag| tag.len() > 4)
            .collect();
        for tag in others {
            text = text.replace(&format!("{PREFIX}{tag}"), &format!("{PREFIX}other"));
        }
        let mut clean = String::with_capacity(text.len());
        let mut rest = text.as_str();
        // Numbers: those behind `pid `, and those that can only be namespaces.
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, from) = rest.split_at(start);
            let length = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
            let (digits, after) = from.split_at(length);
            clean.push_str(before);
            let number = digits.parse::<u64>().ok();
            match number {
                Some(pid) if before.ends_with("pid ") || before.ends_with("PID ") => {
                    clean.push_str(&self.process(pid).to_string());
                }
                Some(inum) if NAMESPACES.contains(&inum) => clean.push_str(&self.namespace(inum).to_string()),
                _ => clean.push_str(digits),
            }
            rest = after;
        }
        clean.push_str(rest);
        clean
    }
}

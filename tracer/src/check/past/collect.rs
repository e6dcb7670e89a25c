//! Lines of error logs, counted by cause.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    super::Place,
    told::{Lsm, told},
};
use crate::{
    diagnose::Cause,
    errlog::{self, Level},
};

/// Most servers that are counted for one cause.
const MOST_UPSTREAMS: usize = 256;
/// Longest example, characters.
const MOST_EXAMPLE: usize = 400;

/// What decides about lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    /// Seconds after 1970 from which on a line is recent.
    pub(super) since: i64,
    /// And until when: what lies in the future was written by a clock that is not ours.
    pub(super) until: i64,
    /// What a denied permission can mean.
    pub(super) lsm: Lsm,
    /// The master's number in its own namespace.
    pub(super) master: u32,
    /// When the newest worker began, seconds after 1970.
    pub(super) newest_worker: i64,
}

/// Lines of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// How many.
    pub(super) count: u64,
    /// When the first was, seconds after 1970.
    pub(super) first: i64,
    /// And the last.
    pub(super) last: i64,
    /// What the last one said.
    pub(super) message: String,
    /// What else they can mean.
    pub(super) rival: &'static str,
    /// The last line.
    pub(super) example: String,
    /// Where they had gone, each with its number of lines.
    pub(super) upstreams: Vec<(String, u64)>,
}

/// What a log says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Collected {
    /// Failures of upstreams in the last day.
    pub(super) causes: BTreeMap<Cause, Group>,
    /// Failures that are older.
    pub(super) older: u64,
    /// The master's last refusal of a reload that no worker has followed: when, and its words.
    pub(super) refused: Option<(i64, String)>,
    /// Workers that a signal ended.
    pub(super) crashes: Option<Group>,
    /// `worker_connections are not enough`.
    pub(super) exhausted: Option<Group>,
}

impl Group {
    fn new(time: i64, message: String, rival: &'static str) -> Self {
        Self {
            count: 0,
            first: time,
            last: time,
            message,
            rival,
            example: String::new(),
            upstreams: Vec::new(),
        }
    }

    fn add(&mut self, time: i64, text: &str) {
        self.count += 1;
        self.first = self.first.min(time);
        if time >= self.last || self.example.is_empty() {
            self.last = self.last.max(time);
            self.example = cut(text);
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_EXAMPLE) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl Collected {
    /// Failures of upstreams in the last day.
    pub(super) fn recent(&self) -> u64 {
        self.causes.values().map(|group| group.count).sum()
    }

    /// Adds the lines of a log whose clock is `offset` seconds ahead of UTC.
    pub(super) fn add(&mut self, text: &str, offset: i64, context: &Context) {
        for whole in text.lines() {
            let Some(line) = errlog::line(whole) else { continue };
            let time = line.clock - offset;
            let recent = (context.since..=context.until).contains(&time);
            let of_master = line.pid == context.master;
            if line.level == Level::Emerg && of_master && time > context.newest_worker && recent {
                let newer = self.refused.as_ref().is_none_or(|(known, _)| time >= *known);
                // "still could not bind()" follows the error that says why.
                if newer && !line.text.starts_with("still could not bind") {
                    self.refused = Some((time, cut(line.text)));
                }
                continue;
            }
            if line.level == Level::Alert
                && line.text.starts_with("worker process ")
                && line.text.contains(" exited on signal ")
            {
                // Those are how it is told to end.
                let asked =
                    [" signal 9", " signal 15", " signal 3"].iter().any(|one| line.text.ends_with(one));
                if recent && !asked {
                    let group = self.crashes.get_or_insert_with(|| Group::new(time, String::new(), ""));
                    group.add(time, whole);
                }
                continue;
            }
            if line.text.contains("worker_connections are not enough") && line.level == Level::Alert {
                if recent {
                    let group = self.exhausted.get_or_insert_with(|| Group::new(time, String::new(), ""));
                    group.add(time, whole);
                }
                continue;
            }
            let Some(told) = told(&line, context.lsm) else { continue };
            if !recent {
                self.older += 1;
                continue;
            }
            let group = self
                .causes
                .entry(told.cause)
                .or_insert_with(|| Group::new(time, told.message.clone(), told.rival));
            if time >= group.last {
                group.message = cut(&told.message);
                group.rival = told.rival;
            }
            group.add(time, whole);
            if let Some(upstream) = told.upstream {
                let room = group.upstreams.len() < MOST_UPSTREAMS;
                match group.upstreams.iter_mut().find(|(name, _)| *name == upstream) {
                    Some((_, count)) => *count += 1,
                    None if room => group.upstreams.push((upstream, 1)),
                    None => {}
                }
            }
        }
    }
}

/// The place that a refusal names: `… in /etc/nginx/a.conf:3`.
pub(super) fn place(text: &str) -> Option<Place> {
    let (_, place) = text.rsplit_once(" in ")?;
    let (file, line) = place.rsplit_once(':')?;
    if !file.starts_with('/') || file.contains(char::is_control) {
        return None;
    }
    Some(Place {
        role: "directive",
        file: Some(PathBuf::from(file)),
        line: Some(line.parse().ok().filter(|line| *line > 0)?),
        text: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY0: i64 = 1_795_392_000; // 2026-11-23 00:00:00 UTC

    fn context() -> Context {
        Context {
            since: DAY0,
            until: DAY0 + 86_400,
            lsm: Lsm::Neither,
            master: 7,
            newest_worker: DAY0 + 3600,
        }
    }

    fn collect(text: &str) -> Collected {
        let mut collected = Collected::default();
        collected.add(text, 0, &context());
        collected
    }

    const REFUSED: &str = "[error] 8#8: *1 connect() failed (111: Connection refused) while connecting to upstream, client: 1.2.3.4, server: s, request: \"GET / HTTP/1.1\", upstream: \"http://127.0.0.1:PORT/\", host: \"h\"";

    #[test]
    fn counts_by_cause_and_server() {
        let line = |time: &str, port: &str| format!("2026/11/{time} {}\n", REFUSED.replace("PORT", port));
        let text = line("22 10:00:00", "3000")
            + &line("23 10:00:00", "3000")
            + &line("23 11:00:00", "3001")
            + &line("23 12:00:00", "3000");
        let found = collect(&text);
        assert_eq!((found.recent(), found.older), (3, 1));
        let group = &found.causes[&Cause::ConnectRefusedNoListener];
        assert_eq!((group.first, group.last), (DAY0 + 36_000, DAY0 + 43_200));
        assert_eq!(group.upstreams, [("127.0.0.1:3000".to_owned(), 2), ("127.0.0.1:3001".to_owned(), 1)]);
        assert!(group.example.starts_with("2026/11/23 12:00:00"));
        // A clock that is an hour ahead of UTC.
        let mut shifted = Collected::default();
        shifted.add(&text, 3600, &context());
        assert_eq!(shifted.causes[&Cause::ConnectRefusedNoListener].first, DAY0 + 32_400);
        // And one that is a day ahead of ours says nothing of today.
        let mut future = Collected::default();
        future.add(&line("25 10:00:00", "3000"), 0, &context());
        assert_eq!((future.recent(), future.older), (0, 1));
    }

    #[test]
    fn refused_reloads_are_the_masters_and_later_than_its_workers() {
        let line = |time: &str, pid: u32| {
            format!(
                "2026/11/23 {time} [emerg] {pid}#{pid}: unknown directive \"prxy_pass\" in /etc/nginx/a.conf:3\n"
            )
        };
        let found = collect(&line("02:00:00", 7)).refused.unwrap();
        assert_eq!(found.0, DAY0 + 7200);
        let place = place(&found.1).unwrap();
        assert_eq!((place.file.unwrap().to_str(), place.line), (Some("/etc/nginx/a.conf"), Some(3)));
        // `nginx -t` by hand, and a refusal that a successful reload has followed.
        assert_eq!(collect(&line("02:00:00", 8)).refused, None);
        assert_eq!(collect(&line("00:30:00", 7)).refused, None);
        for text in [
            "",
            "x in y:3",
            "bind() to 0.0.0.0:80 failed (98: Address already in use)",
            "x in /a:0",
            "x in /a:b",
        ] {
            assert_eq!(super::place(text), None, "{text}");
        }
    }

    #[test]
    fn crashes_and_exhausted_connections() {
        let text = "2026/11/23 10:00:00 [alert] 7#7: worker process 8 exited on signal 11\n\
                    2026/11/23 10:00:01 [alert] 7#7: worker process 9 exited on signal 9\n\
                    2026/11/23 10:00:02 [alert] 9#9: 1024 worker_connections are not enough\n\
                    2026/11/22 10:00:02 [alert] 9#9: 1024 worker_connections are not enough\n\
                    2026/11/23 10:00:03 [error] 9#9: *1 open() \"/a worker_connections are not enough\" failed (2: x)\n";
        let found = collect(text);
        assert_eq!((found.crashes.unwrap().count, found.exhausted.unwrap().count), (1, 1));
        assert!(found.causes.is_empty());
    }

    #[test]
    fn examples_are_bounded() {
        let long = format!("2026/11/23 10:00:00 {}{}\n", REFUSED.replace("PORT", "3000"), "é".repeat(5000));
        let found = collect(&long);
        assert!(found.causes.values().all(|group| group.example.chars().count() <= MOST_EXAMPLE + 1));
    }
}

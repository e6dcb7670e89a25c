//! Where this nginx writes its errors, and the last part of each such file.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    super::{Place, Subject, config::view},
    read,
};
use crate::{errlog, nginx::Model, sys::rootfs::RootFs};

/// What is read of a log and of the one before it, bytes together.
const MOST: u64 = 4 << 20;
/// Most logs that are read.
const MOST_LOGS: usize = 16;
/// Farthest time zones.
const FARTHEST: i64 = 14 * 3600;
/// How long after its last line a file may have been written to.
const SLACK: i64 = 120;

/// The text of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Log {
    /// Its last part.
    pub(super) text: String,
    /// How far its clock is ahead of UTC, seconds.
    pub(super) offset: i64,
}

/// All logs.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs {
    /// Those that could be read.
    pub(super) texts: Vec<Log>,
    /// Their paths.
    paths: Vec<PathBuf>,
    /// The lines that name them.
    pub(super) places: Vec<Place>,
    /// What is not read because it is no file, or holds no errors.
    pub(super) notes: Vec<String>,
    /// What should have been read and was not.
    pub(super) unread: Vec<String>,
    /// More stood in front of what was read.
    pub(super) cut: bool,
}

impl Logs {
    /// The paths in words.
    pub(super) fn names(&self) -> String {
        let list: Vec<String> = self.paths.iter().take(3).map(|path| path.display().to_string()).collect();
        match self.paths.len() {
            0..=3 => list.join(", "),
            more => format!("{} and {} more", list.join(", "), more - 3),
        }
    }
}

/// Where errors go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sink {
    File(PathBuf),
    /// To stderr, or syslog.
    Journal(String),
    /// Nowhere that can be read.
    Nowhere(String),
}

/// The targets of all `error_log`s, each once; with the line, except for the default.
fn sinks(model: &Model, prefix: &Path, default: Option<&Path>) -> Vec<(Sink, Option<Place>, bool)> {
    let mut found: Vec<(Sink, Option<Place>, bool)> = Vec::new();
    let mut add = |sink: Sink, place: Option<Place>, hides: bool| {
        if found.len() < MOST_LOGS && !found.iter().any(|(known, ..)| *known == sink) {
            found.push((sink, place, hides));
        }
    };
    let mut at_top = false;
    for node in view::all(model, "error_log") {
        let config = model.config();
        let Some(target) = config.arg(node, 0) else { continue };
        at_top |= config.parent(node).is_none();
        let hides =
            config.arg(node, 1).is_some_and(|level| matches!(level.as_str(), "crit" | "alert" | "emerg"));
        let sink = if target == "stderr" || target.starts_with("syslog:") {
            Sink::Journal(target)
        } else if target == "/dev/null" || target.starts_with("memory:") || target == "off" {
            Sink::Nowhere(target)
        } else {
            Sink::File(prefix.join(target))
        };
        add(sink, Some(Place::of(model, "directive", node)), hides);
    }
    if !at_top && let Some(path) = default {
        let sink = if path == Path::new("stderr") {
            Sink::Journal("stderr".to_owned())
        } else {
            Sink::File(prefix.join(path))
        };
        add(sink, None, false);
    }
    found
}

/// Reads them as the process sees them.
pub(super) fn read(subject: &Subject<'_>) -> Logs {
    let mut logs = Logs::default();
    let Some(invocation) = subject.snapshot.invocation() else { return logs };
    let sinks = sinks(&subject.snapshot.model, &invocation.prefix, invocation.error_log.as_deref());
    let root = match RootFs::of_pid(subject.master.pid) {
        Ok(root) => root,
        Err(error) => {
            logs.unread.push(format!("cannot enter the root of nginx (pid {}): {error}", subject.master.pid));
            return logs;
        }
    };
    let mut journal = false;
    for (sink, place, hides) in sinks {
        if hides {
            let text = place.as_ref().map_or("error_log", |place| place.text.as_str());
            logs.notes.push(format!("\"{text}\" leaves upstream errors out"));
        }
        match sink {
            Sink::File(path) => read_file(&root, &path, &mut logs, place),
            Sink::Journal(_) if subject.master.container.is_some() => {
                logs.notes.push(
                    "errors go to the container's own output: its runtime has them (docker logs)".to_owned(),
                );
            }
            Sink::Journal(_) => journal = true,
            Sink::Nowhere(target) => logs.notes.push(format!("errors go to {target}")),
        }
    }
    if journal {
        from_journal(&mut logs);
    }
    logs
}

fn read_file(root: &RootFs, path: &Path, logs: &mut Logs, place: Option<Place>) {
    match part(root, path, MOST) {
        Ok((text, offset, cut)) => {
            // A log that was begun today goes on in the one before it.
            let left = MOST.saturating_sub(text.len() as u64);
            let mut before = path.as_os_str().to_owned();
            before.push(".1");
            if !cut
                && left > 0
                && let Ok((older, own, more)) = part(root, Path::new(&before), left)
            {
                logs.cut |= more;
                logs.texts.push(Log { text: older, offset: own.or(offset).unwrap_or_else(local_offset) });
            }
            logs.cut |= cut;
            logs.texts.push(Log { text, offset: offset.unwrap_or_else(local_offset) });
            logs.paths.push(path.to_path_buf());
            logs.places.extend(place);
        }
        // A device, such as the /dev/stderr of containers.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ELOOP | libc::EXDEV)) => {
            logs.notes.push(format!(
                "{} is no file (docker logs, or the journal, has what is written there)",
                path.display()
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            logs.notes.push(format!("{} is not there: reopen the log (nginx -s reopen)", path.display()));
        }
        Err(error) => logs.unread.push(format!("cannot read {}: {error}", path.display())),
    }
}

/// The last part of a file, and what its clock is ahead of UTC, if that can be told.
fn part(root: &RootFs, path: &Path, most: u64) -> io::Result<(String, Option<i64>, bool)> {
    let file: File = read::reopen(&root.file(path)?)?;
    let written = file.metadata()?.mtime();
    let (bytes, cut) = read::tail(&file, most)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let last = text.lines().rev().take(1000).find_map(errlog::line).map(|line| line.clock);
    let offset = last.and_then(|last| zone(last, written));
    Ok((text, offset, cut))
}

/// A log was written to when its last line was: that tells the time zone of its clock, which may be a container's.
fn zone(last: i64, written: i64) -> Option<i64> {
    let ahead = last.checked_sub(written)?;
    let quarter = 900;
    let zone = (ahead + SLACK).div_euclid(quarter) * quarter;
    (zone.abs() <= FARTHEST && (ahead - zone).abs() <= SLACK).then_some(zone)
}

/// What this machine's clock is ahead of UTC now.
fn local_offset() -> i64 {
    crate::report::local_offset(super::seconds(std::time::SystemTime::now()))
}

/// stderr and syslog end in the journal, where there is one.
fn from_journal(logs: &mut Logs) {
    match read::journal(&["SYSLOG_IDENTIFIER=nginx", "+", "_COMM=nginx"]) {
        Some(entries) => {
            let text: Vec<&str> = entries.iter().map(|(_, text)| text.as_str()).collect();
            let offset = entries
                .iter()
                .rev()
                .find_map(|(time, text)| zone(errlog::line(text)?.clock, super::seconds(*time)));
            logs.texts.push(Log { text: text.join("\n"), offset: offset.unwrap_or_else(local_offset) });
            logs.paths.push(PathBuf::from("the journal"));
        }
        None => logs
            .notes
            .push("errors go to stderr or syslog, and there is no journal to read them from".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::config_testing::model, nginx::Version};

    #[test]
    fn every_error_log_once() {
        let text = "error_log logs/a.log; http { error_log /var/log/b.log crit; server { error_log logs/a.log debug; error_log stderr; \
                    access_log /c; } server { error_log syslog:server=10.0.0.1; error_log /dev/null; } }";
        let found = sinks(
            &model(text, Version(1, 22, 1)),
            Path::new("/usr/share/nginx"),
            Some(Path::new("/default.log")),
        );
        let shown: Vec<(Sink, bool)> = found.into_iter().map(|(sink, _, hides)| (sink, hides)).collect();
        assert_eq!(
            shown,
            [
                (Sink::File("/usr/share/nginx/logs/a.log".into()), false),
                (Sink::File("/var/log/b.log".into()), true),
                (Sink::Journal("stderr".into()), false),
                (Sink::Journal("syslog:server=10.0.0.1".into()), false),
                (Sink::Nowhere("/dev/null".into()), false),
            ]
        );
        let found = sinks(
            &model("http { error_log a; }", Version(1, 22, 1)),
            Path::new("/p"),
            Some(Path::new("/default.log")),
        );
        assert_eq!(found.len(), 2, "the default stays for what is outside: {found:?}");
    }

    #[test]
    fn the_zone_of_a_log() {
        assert_eq!(zone(1000, 1000), Some(0));
        assert_eq!(zone(1000 + 3600, 1010), Some(3600));
        assert_eq!(zone(100_000 - 5 * 3600, 100_060), Some(-5 * 3600));
        assert_eq!(zone(100_000 + 20_700, 100_000), Some(20_700), "Nepal: 5:45");
        // Copied, touched, or of another day.
        assert_eq!(zone(100_000, 100_500), None);
        assert_eq!(zone(0, 1_000_000), None);
    }
}

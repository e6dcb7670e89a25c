//! Reading logs: the last part of files, the kernel's ring, the journal. All bounded; nothing is changed.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

/// What is read of the kernel's ring, bytes: it is rarely larger than 1 MiB.
const MOST_RING: usize = 4 << 20;
/// What is read of the journal, bytes.
const MOST_JOURNAL: u64 = 8 << 20;
/// How long the journal may take: its files can be many.
const JOURNAL_LIMIT: Duration = Duration::from_secs(3);

/// The messages of the kernel's log that are still in its ring.
pub(super) fn kernel_log() -> io::Result<Vec<String>> {
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut found = Vec::new();
    let mut total = 0;
    let mut record = [0_u8; 8192];
    while total < MOST_RING {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                total += length;
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                let message = text.split_once(';').map_or("", |(_, message)| message);
                found.push(message.lines().next().unwrap_or_default().to_owned());
            }
            // A record was overwritten meanwhile: the next read goes on behind it.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// One entry of the journal.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "MESSAGE")]
    message: Option<Message>,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: Option<String>,
}

/// Bytes that are not UTF-8 come as a list of numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Text(String),
    Bytes(Vec<u8>),
    Several(serde::de::IgnoredAny),
}

/// What the journal has since a day, if there is one, by the given matches. `None` if there is no `journalctl`, or if it
/// takes too long.
pub(super) fn journal(matches: &[&str]) -> Option<Vec<(SystemTime, String)>> {
    let mut child = Command::new("journalctl")
        .args([
            "--quiet",
            "--no-pager",
            "--output=json",
            "--output-fields=MESSAGE",
            "--since=-24h",
            "--lines=20000",
        ])
        .args(matches)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut out = child.stdout.take()?.take(MOST_JOURNAL);
    let (send, receive) = mpsc::channel();
    let spawned = thread::Builder::new().name("why502-journal".into()).spawn(move || {
        let mut bytes = Vec::new();
        // What was read is used even if the rest cannot be.
        let _ = out.read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    let bytes = spawned.is_ok().then(|| receive.recv_timeout(JOURNAL_LIMIT).ok()).flatten();
    // It is done, or is to be; both are ours alone.
    let _ = child.kill();
    let _ = child.wait();
    Some(entries(&bytes?))
}

fn entries(bytes: &[u8]) -> Vec<(SystemTime, String)> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let entry: Entry = serde_json::from_slice(line).ok()?;
            let micros: u64 = entry.time?.parse().ok()?;
            let text = match entry.message? {
                Message::Text(text) => text,
                Message::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Message::Several(_) => return None,
            };
            Some((UNIX_EPOCH.checked_add(Duration::from_micros(micros))?, text))
        })
        .collect()
}

/// The last part of a file: whole lines, and whether there was more in front.
pub(super) fn tail(file: &File, most: u64) -> io::Result<(Vec<u8>, bool)> {
    use std::os::unix::fs::FileExt as _;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(most);
    let mut bytes = vec![0; usize::try_from(size - from).unwrap_or(0)];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, from + read as u64) {
            Ok(0) => break,
            Ok(length) => read += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read);
    if from > 0 {
        let start = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..start);
    }
    Ok((bytes, from > 0))
}

/// Opens what an O_PATH descriptor names, for reading: what was checked is what is read.
pub(super) fn reopen(handle: &File) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/thread-self/fd/{}", handle.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_end_of_a_file_in_whole_lines() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"first\nsecond\nthird\n").unwrap();
        assert_eq!(tail(&file, 100).unwrap(), (b"first\nsecond\nthird\n".to_vec(), false));
        assert_eq!(tail(&file, 10).unwrap(), (b"third\n".to_vec(), true));
        assert_eq!(tail(&file, 3).unwrap(), (Vec::new(), true));
        assert_eq!(tail(&tempfile::tempfile().unwrap(), 10).unwrap(), (Vec::new(), false));
    }

    #[test]
    fn entries_of_the_journal() {
        let text = br#"{"__REALTIME_TIMESTAMP":"1700000000000000","MESSAGE":"a"}
{"__REALTIME_TIMESTAMP":"1700000000000001","MESSAGE":[98,255]}
{"__REALTIME_TIMESTAMP":"x","MESSAGE":"c"}
{"__REALTIME_TIMESTAMP":"1700000000000002","MESSAGE":null}
{"__REALTIME_TIMESTAMP":"1700000000000003","MESSAGE":["d",1]}
not json"#;
        let found: Vec<String> = entries(text).into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, ["a", "b\u{fffd}"]);
    }
}

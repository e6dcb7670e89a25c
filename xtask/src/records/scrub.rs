//! Which of the collected records are kept, and what of them is not: addresses of kernel and worker memory get small numbers
//! (equal ones the same), and room that a record does not use is emptied.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::{offset_of, size_of};

use anyhow::{Context, Result};
use tracer_ebpf::{
    Attempt, ClientGone, Evidence, Hint, ProcEvent,
    denial::Denial,
    kind,
    request::{Answer, Dns},
    said::{self, Said},
    talk::{self, Broken, Death, Talk},
    unix::{self, Unix},
};

/// Most records that are kept of a kind; of the small ones more.
const MOST: usize = 8;
const MOST_SMALL: usize = 16;
/// Up to this length, bytes.
const SMALL: usize = 512;

/// Takes apart what `--dump-records` wrote.
///
/// # Errors
/// If the last record is cut.
pub(super) fn split(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (record, rest) = rest.split_at_checked(len).context("a record is cut")?;
        records.push(record.to_vec());
        bytes = rest;
    }
    Ok(records)
}

/// One of each sort, a few of each kind, scrubbed.
pub(super) fn choose(records: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seen: BTreeSet<Vec<u64>> = BTreeSet::new();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    let mut names = Names::default();
    let mut kept = Vec::new();
    for mut record in records {
        let count = counts.entry(kind_of(&record)).or_default();
        let most = if record.len() <= SMALL { MOST_SMALL } else { MOST };
        if *count < most && seen.insert(sort(&record)) {
            *count += 1;
            scrub(&mut record, &mut names);
            kept.push(record);
        }
    }
    kept
}

/// The kind that the first four bytes name.
pub(super) fn kind_of(record: &[u8]) -> u32 {
    number(record, 0, 4) as u32
}

/// A number of 1 to 8 bytes; 0 if the record ends before it.
fn number(record: &[u8], at: usize, size: usize) -> u64 {
    let mut bytes = [0; 8];
    match record.get(at..at + size) {
        Some(field) => bytes[..size].copy_from_slice(field),
        None => return 0,
    }
    u64::from_ne_bytes(bytes)
}

/// What makes a record different from others of its kind.
fn sort(record: &[u8]) -> Vec<u64> {
    let fields: &[(usize, usize)] = match kind_of(record) {
        kind::ATTEMPT => &[
            (offset_of!(Attempt, stage), 1),
            (offset_of!(Attempt, flags), 4),
            (offset_of!(Attempt, family), 2),
            (offset_of!(Attempt, evidence) + offset_of!(Evidence, drop_class), 1),
        ],
        kind::PROC => &[(offset_of!(ProcEvent, change), 4)],
        // The first half of an address is 0 for IPv4 and ::1.
        kind::HINT => &[(offset_of!(Hint, daddr), 1)],
        kind::CLIENT_GONE => &[(offset_of!(ClientGone, how), 1)],
        kind::ANSWER => &[(offset_of!(Answer, status), 4), (offset_of!(Answer, own), 4)],
        // The fourth byte of a reply holds its code.
        kind::DNS => &[(offset_of!(Dns, ret), 4), (size_of::<Dns>() + 3, 1)],
        kind::DENIAL => &[(offset_of!(Denial, hook), 4), (offset_of!(Denial, ret), 4)],
        kind::SAID => &[(offset_of!(Said, flags), 4), (offset_of!(Said, lens), 2)],
        kind::UNIX => &[(offset_of!(Unix, ret), 4), (offset_of!(Unix, flags), 4)],
        kind::TALK => &[
            (offset_of!(Broken, talk) + offset_of!(Talk, flags), 4),
            (offset_of!(Broken, talk) + offset_of!(Talk, told), 4),
        ],
        kind::DEATH => &[(offset_of!(Death, exit_code), 4), (offset_of!(Death, signal), 4)],
        _ => &[],
    };
    let values = fields.iter().map(|(at, size)| number(record, *at, *size));
    std::iter::once(u64::from(kind_of(record))).chain(values).collect()
}

/// Small numbers for addresses.
#[derive(Default)]
struct Names(HashMap<u64, u64>);

impl Names {
    fn rename(&mut self, record: &mut [u8], at: usize) {
        let next = (self.0.len() as u64 + 1) * 0x10;
        if let Some(field) = record.get_mut(at..at + 8) {
            let address = number(field, 0, 8);
            if address != 0 {
                field.copy_from_slice(&self.0.entry(address).or_insert(next).to_ne_bytes());
            }
        }
    }
}

fn scrub(record: &mut [u8], names: &mut Names) {
    const TALK: usize = offset_of!(Broken, talk);
    const EVIDENCE: usize = offset_of!(Attempt, evidence);
    let stack: Vec<usize> = (0..tracer_ebpf::DROP_STACK_DEPTH)
        .map(|n| EVIDENCE + offset_of!(Evidence, drop_stack) + 8 * n)
        .chain([EVIDENCE + offset_of!(Evidence, drop_location), EVIDENCE + offset_of!(Evidence, drop_skb)])
        .collect();
    let addresses: Vec<usize> = match kind_of(record) {
        kind::ATTEMPT => [vec![offset_of!(Attempt, sk)], stack].concat(),
        kind::HINT => vec![offset_of!(Hint, sk)],
        kind::CLIENT_GONE => vec![offset_of!(ClientGone, attempt_sk)],
        kind::DENIAL => vec![offset_of!(Denial, sk)],
        kind::SAID => [
            offset_of!(Said, upstream_sk),
            offset_of!(Said, request),
            offset_of!(Said, format_at),
            offset_of!(Said, action_at),
        ]
        .into_iter()
        // A number, or where a text lies.
        .chain((number(record, offset_of!(Said, number), 8) >> 32 != 0).then_some(offset_of!(Said, number)))
        .collect(),
        kind::UNIX => vec![offset_of!(Unix, sk)],
        kind::TALK => vec![offset_of!(Attempt, sk), TALK + offset_of!(Talk, buf)],
        kind::ANSWER => vec![offset_of!(Answer, request)],
        kind::DEATH => vec![offset_of!(Death, sk)],
        _ => Vec::new(),
    };
    addresses.into_iter().for_each(|at| names.rename(record, at));
    empty(record);
}

/// Room that is not used holds whatever was there before.
fn empty(record: &mut [u8]) {
    let len = |at: usize, size: usize| usize::try_from(number(record, at, size)).unwrap_or(usize::MAX);
    // Where room begins, how large it is, and how much of it is used.
    let rooms: Vec<(usize, usize, usize)> = match kind_of(record) {
        kind::DNS => vec![(size_of::<Dns>(), usize::MAX, len(offset_of!(Dns, len), 4))],
        kind::UNIX => vec![(offset_of!(Unix, name), unix::NAME, len(offset_of!(Unix, len), 2))],
        kind::TALK => vec![
            (offset_of!(Broken, sent), talk::SENT, len(offset_of!(Broken, sent_len), 2)),
            (offset_of!(Broken, got), talk::GOT, len(offset_of!(Broken, got_len), 2)),
            (offset_of!(Broken, name), unix::NAME + 4, len(offset_of!(Broken, name_len), 2)),
        ],
        kind::SAID => [
            (offset_of!(Said, format), said::FORMAT),
            (offset_of!(Said, file), said::FILE),
            (offset_of!(Said, location), said::NAME),
            (offset_of!(Said, line), said::LINE),
            (offset_of!(Said, host), said::NAME),
            (offset_of!(Said, subject), said::NAME),
            (offset_of!(Said, peer_name), said::NAME),
            (offset_of!(Said, action), said::ACTION),
        ]
        .into_iter()
        .enumerate()
        .map(|(n, (at, room))| {
            // Behind the request line lies the header.
            let head = at == offset_of!(Said, line);
            let length = if head { offset_of!(Said, head_len) } else { offset_of!(Said, lens) + 2 * n };
            (at, room, len(length, 2))
        })
        .collect(),
        _ => Vec::new(),
    };
    for (at, room, used) in rooms {
        let end = at.saturating_add(room).min(record.len());
        if let Some(rest) = record.get_mut(at.saturating_add(used.min(room)).min(end)..end) {
            rest.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_ebpf::ATTEMPT_HEAD;

    fn record(kind: u32, len: usize) -> Vec<u8> {
        let mut record = vec![0; len];
        record[..4].copy_from_slice(&kind.to_ne_bytes());
        record
    }

    #[test]
    fn files_are_taken_apart() {
        assert_eq!(split(b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c").unwrap(), [&b"ab"[..], b"", b"c"]);
        assert!(split(b"\x02\0\0\0a").is_err());
    }

    #[test]
    fn one_of_each_sort_is_kept_without_addresses() {
        let address = |record: &mut Vec<u8>, at: usize, value: u64| {
            record[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        };
        let mut refused = record(kind::ATTEMPT, ATTEMPT_HEAD);
        address(&mut refused, offset_of!(Attempt, sk), 0xffff_8881_0203_0400);
        let same = refused.clone();
        let mut other = record(kind::HINT, size_of::<Hint>());
        address(&mut other, offset_of!(Hint, sk), 0xffff_8881_0203_0400);
        let kept = choose(vec![refused, same, other]);
        assert_eq!(kept.len(), 2);
        assert_eq!(number(&kept[0], offset_of!(Attempt, sk), 8), 0x10);
        assert_eq!(number(&kept[1], offset_of!(Hint, sk), 8), 0x10, "equal ones stay equal");
    }

    #[test]
    fn room_that_is_not_used_is_emptied() {
        let mut reply = record(kind::DNS, size_of::<Dns>());
        reply[offset_of!(Dns, len)] = 3;
        reply.extend(b"GETsecret");
        scrub(&mut reply, &mut Names::default());
        assert!(reply.ends_with(b"GET\0\0\0\0\0\0"));
        let mut broken = record(kind::TALK, size_of::<Broken>());
        broken[offset_of!(Broken, got)..].fill(7);
        broken[offset_of!(Broken, got_len)] = 2;
        scrub(&mut broken, &mut Names::default());
        assert_eq!(broken.iter().filter(|byte| **byte == 7).count(), 2);
    }
}

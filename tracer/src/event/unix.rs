//! Unix sockets: failed connects, and the far ends of connections that stood.

use std::{
    fmt::{self, Write as _},
    mem::offset_of,
};

use tracer_ebpf::{
    Addr, flag,
    talk::{Talk, talk_flag},
    unix::{Far, NAME, Unix, far},
};

use super::{Attempt, Stage};

/// The name of a unix socket, as the worker gave it to `connect()`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum UnixName {
    /// A path, relative ones too: as bytes, without the closing NUL, at most 108 (`sockaddr_un`).
    Path(#[serde(with = "crate::plain::bytes")] Vec<u8>),
    /// A name in the abstract namespace, without the leading NUL.
    Abstract(#[serde(with = "crate::plain::bytes")] Vec<u8>),
}

impl UnixName {
    /// Of `sun_path`'s bytes, as many as the caller of `connect()` told (unix(7), "Address format").
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((0, name)) => Self::Abstract(name.to_vec()),
            _ => Self::Path(bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()),
        }
    }

    /// The path, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Path(path) => Some(path),
            Self::Abstract(_) => None,
        }
    }
}

/// As `ss` and nginx's log show it: `/run/app.sock`, `@name`; bytes that are no text as `\xff`.
impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Path(path) => path,
            Self::Abstract(name) => {
                f.write_char('@')?;
                name
            }
        };
        for chunk in bytes.utf8_chunks() {
            f.write_str(chunk.valid())?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// The far end of a connection to a unix socket, at the moment when nginx closed its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FarEnd {
    /// It was open. If not, nothing else is known of it.
    pub open: bool,
    /// A process had accepted the connection.
    pub accepted: bool,
    /// Not all that nginx wrote had been read.
    pub unread: bool,
    /// So much of it that nginx's socket took no more.
    pub full: bool,
    /// Its socket's inode, as in /proc/PID/fd; `None` if there was none yet, or the kernel's layout is not known.
    pub inode: Option<u32>,
}

/// Reads what stands in the place of an address.
pub(super) fn far(talk: &Talk, place: &Addr) -> Option<FarEnd> {
    // Of an exchange that goes on nothing was looked at; of a closed socket nothing can be.
    if talk.flags & talk_flag::UNIX == 0 || talk.flags & (talk_flag::SAID_5XX | talk_flag::ANSWERED_BAD) != 0
    {
        return None;
    }
    let word = |at: usize| place.get(at..at + 4)?.first_chunk::<4>().copied().map(u32::from_ne_bytes);
    let flags = word(offset_of!(Far, flags))?;
    let inode = word(offset_of!(Far, inode))?;
    let unread = word(offset_of!(Far, unread))?;
    Some(FarEnd {
        open: flags & far::OPEN != 0,
        accepted: flags & far::ACCEPTED != 0,
        unread: unread != 0,
        full: flags & far::FULL != 0,
        inode: (inode != 0).then_some(inode),
    })
}

/// The attempt that a record tells of.
pub(super) fn attempt(u: &Unix) -> Attempt {
    let len = usize::from(u.len).min(NAME);
    Attempt {
        socket: u.sk,
        netns: u.netns,
        start_ns: Some(u.time_ns),
        name_ns: u.time_ns,
        end_ns: u.time_ns,
        no_remote: true,
        ret: u.ret,
        security: (u.flags & flag::LSM != 0).then_some(u.lsm_ret),
        unix: Some(UnixName::of(u.name.get(..len).unwrap_or_default())),
        asked: u.flags & flag::ASKED != 0,
        exemplar: u.flags & flag::EXEMPLAR != 0,
        ..Attempt::blank(Stage::Connect, u.tgid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{DecodeError, Event, decode};
    use bytes::Bytes;

    #[test]
    fn names() {
        let shown = |bytes: &[u8]| UnixName::of(bytes).to_string();
        assert_eq!(UnixName::of(b"/run/a.sock\0\0\0"), UnixName::Path(b"/run/a.sock".to_vec()));
        assert_eq!(shown(b"/run/a\xff.sock\0x"), "/run/a\\xff.sock");
        assert_eq!(shown(b"\0x\0y"), "@x\0y");
        assert_eq!(UnixName::of(b"\0x").path(), None);
        assert_eq!(UnixName::of(b""), UnixName::Path(Vec::new()));
        // All 108 bytes may be the path's.
        assert_eq!(shown(&[b'a'; NAME]).len(), NAME);
    }

    #[test]
    fn far_ends() {
        // SAFETY: plain integers.
        let mut talk: Talk = unsafe { std::mem::zeroed() };
        let mut place = [0; 16];
        place[0] = 3;
        place[4] = 9;
        place[8] = 1;
        assert_eq!(far(&talk, &place), None);
        talk.flags = talk_flag::UNIX;
        let known = FarEnd { open: true, accepted: true, unread: true, full: false, inode: Some(9) };
        assert_eq!(far(&talk, &place), Some(known));
        let closed = FarEnd { open: false, accepted: false, unread: false, full: false, inode: None };
        assert_eq!(far(&talk, &[0; 16]), Some(closed));
        talk.flags |= talk_flag::SAID_5XX;
        assert_eq!(far(&talk, &place), None);
    }

    #[test]
    fn a_record_is_read_and_a_cut_one_refused() {
        let mut name = [0; NAME];
        name[..6].copy_from_slice(b"/a.soc");
        let record = Unix {
            kind: tracer_ebpf::kind::UNIX,
            flags: flag::LSM | flag::ASKED,
            time_ns: 7,
            sk: 8,
            tgid: 10,
            netns: 11,
            ret: -13,
            lsm_ret: -13,
            len: 4,
            _pad: [0; 3],
            name,
            _pad2: 0,
        };
        // SAFETY: plain integers without padding of the compiler's.
        let bytes: [u8; size_of::<Unix>()] = unsafe { std::mem::transmute(record) };
        let Ok(Event::Attempt(read)) = decode(&Bytes::copy_from_slice(&bytes)) else {
            panic!("no attempt");
        };
        assert_eq!(read.unix, Some(UnixName::Path(b"/a.s".to_vec())));
        assert_eq!((read.stage, read.errno(), read.security), (Stage::Connect, Some(13), Some(-13)));
        assert_eq!((read.asked, read.name_ns, read.duration_us()), (true, 7, None));
        assert!(read.no_remote);
        let cut = decode(&Bytes::copy_from_slice(&bytes[..150]));
        assert_eq!(cut, Err(DecodeError::Short { kind: tracer_ebpf::kind::UNIX, len: 150, need: 160 }));
    }
}

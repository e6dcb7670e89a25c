//! POSIX access control lists as the kernel hands them out (`system.posix_acl_access`), and what they let whom do.
//!
//! Layout: include/uapi/linux/posix_acl_xattr.h; the decision: posix_acl_permission(), fs/posix_acl.c.

/// The extended attribute that holds it.
pub const ATTRIBUTE: &std::ffi::CStr = c"system.posix_acl_access";

const VERSION: u32 = 2;

/// Whom an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The file's owner.
    Owner,
    /// A user by number.
    User(u32),
    /// The file's group.
    OwningGroup,
    /// A group by number.
    Group(u32),
    /// The most that named users and all groups get.
    Mask,
    /// Everybody else.
    Other,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whom it is for.
    pub tag: Tag,
    /// `4` read, `2` write, `1` search or execute.
    pub allowed: u32,
}

/// Reads the attribute's value. None if it is not one.
pub fn decode(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = bytes.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || !rest.len().is_multiple_of(8) {
        return None;
    }
    rest.chunks_exact(8).map(entry).collect()
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let [t0, t1, p0, p1, id @ ..] = bytes else { return None };
    let id = u32::from_le_bytes(*id.first_chunk::<4>()?);
    let tag = match u16::from_le_bytes([*t0, *t1]) {
        0x01 => Tag::Owner,
        0x02 => Tag::User(id),
        0x04 => Tag::OwningGroup,
        0x08 => Tag::Group(id),
        0x10 => Tag::Mask,
        0x20 => Tag::Other,
        _ => return None,
    };
    Some(Entry { tag, allowed: u32::from(u16::from_le_bytes([*p0, *p1])) & 7 })
}

/// Which entry decides about a user, and whether it allows `wanted`. `owner` and `group` are the file's.
pub fn decide(
    entries: &[Entry],
    (owner, group): (u32, u32),
    uid: u32,
    groups: &[u32],
    wanted: u32,
) -> Option<(Entry, bool)> {
    let mask = entries.iter().find(|e| e.tag == Tag::Mask).map_or(7, |e| e.allowed);
    let grants = |e: &Entry, most: u32| e.allowed & most & wanted == wanted;
    if uid == owner {
        let own = entries.iter().find(|e| e.tag == Tag::Owner)?;
        return Some((*own, grants(own, 7)));
    }
    if let Some(named) = entries.iter().find(|e| e.tag == Tag::User(uid)) {
        return Some((*named, grants(named, mask)));
    }
    let ours: Vec<&Entry> = entries
        .iter()
        .filter(|e| match e.tag {
            Tag::OwningGroup => groups.contains(&group),
            Tag::Group(id) => groups.contains(&id),
            _ => false,
        })
        .collect();
    if let Some(one) = ours.iter().find(|e| grants(e, mask)).or(ours.first()) {
        return Some((**one, grants(one, mask)));
    }
    let other = entries.iter().find(|e| e.tag == Tag::Other)?;
    Some((*other, grants(other, 7)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, allowed, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(allowed.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn decoding() {
        let some = bytes(&[(1, 6, u32::MAX), (2, 4, 33), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]);
        let read = decode(&some).unwrap();
        assert_eq!(read.iter().map(|e| e.allowed).collect::<Vec<_>>(), [6, 4, 7, 0]);
        assert_eq!(read[1].tag, Tag::User(33));
        assert_eq!(decode(&bytes(&[])), Some(Vec::new()));
        assert_eq!(decode(&bytes(&[(3, 7, 0)])), None, "no such tag");
        assert_eq!(decode(&[1, 0, 0, 0]), None, "another version");
        for end in 1..some.len() {
            assert!(decode(&some[..end]).is_none_or(|cut| cut.len() < 4));
        }
    }

    #[test]
    fn who_decides() {
        // owner 0 rw-, user 33 rw-, user 34 ---, group 5 r--, group 50 rw-, mask rw-, other ---.
        let list = decode(&bytes(&[
            (1, 6, 0),
            (2, 6, 33),
            (2, 0, 34),
            (4, 4, 0),
            (8, 6, 50),
            (0x10, 6, 0),
            (0x20, 0, 0),
        ]))
        .unwrap();
        let ask = |uid, groups: &[u32]| decide(&list, (0, 5), uid, groups, 2).map(|(e, yes)| (e.tag, yes));
        assert_eq!(ask(0, &[]), Some((Tag::Owner, true)));
        assert_eq!(ask(33, &[]), Some((Tag::User(33), true)));
        // A named user's entry decides, whatever its groups may do.
        assert_eq!(ask(34, &[50]), Some((Tag::User(34), false)));
        assert_eq!(ask(35, &[5]), Some((Tag::OwningGroup, false)));
        // Of several groups one is enough.
        assert_eq!(ask(35, &[5, 50]), Some((Tag::Group(50), true)));
        assert_eq!(ask(35, &[6]), Some((Tag::Other, false)));
        // The mask takes from named users and groups alone.
        let masked: Vec<Entry> =
            list.iter().map(|e| if e.tag == Tag::Mask { Entry { allowed: 4, ..*e } } else { *e }).collect();
        let ask = |uid, groups: &[u32]| decide(&masked, (0, 5), uid, groups, 2).map(|(_, yes)| yes);
        assert_eq!((ask(0, &[]), ask(33, &[]), ask(35, &[50])), (Some(true), Some(false), Some(false)));
    }
}

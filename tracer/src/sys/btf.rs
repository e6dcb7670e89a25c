//! A reader of kernel type information (BTF), as much of it as finding fields, enum values, functions and
//! their parameters takes (Documentation/bpf/btf.rst).
//!
//! Reads bytes, so tests feed it bytes. Hostile or truncated data yields an error, never a panic: every
//! access is bounds-checked, and chains of typedefs are followed a bounded number of times.

use thiserror::Error;

/// Why type information could not be used.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not BTF, or of the other byte order.
    #[error("not BTF data (bad magic number)")]
    Magic,
    /// The data ends before what its header promises.
    #[error("BTF data is truncated or damaged")]
    Truncated,
    /// The kernel has no such struct.
    #[error("the kernel has no type struct {0}")]
    NoStruct(String),
    /// The struct has no such field.
    #[error("the kernel's struct {0} has no field {1}")]
    NoField(String, String),
    /// The field is a bit field that does not fill whole bytes.
    #[error("the kernel's field {0} does not begin on a byte")]
    BitField(String),
}

/// A field's place in its struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Offset from the start of the struct, bytes.
    pub offset: u32,
    /// Size, bytes; 0 if it cannot be told (arrays of unknown length, forward declarations).
    pub size: u32,
}

const MAGIC: u16 = 0xeb9f;
/// Types within types that are followed.
const MAX_DEPTH: usize = 32;
/// Members of anonymous structs that are looked at for one name; a kernel's own have a few dozen.
const MAX_MEMBERS: usize = 1 << 17;

// Kinds of include/uapi/linux/btf.h.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// The kinds that are searched by name.
const INDEXED: [u32; 5] = [STRUCT, ENUM, ENUM64, FUNC, TYPEDEF];

/// Type information of the kernel or of one of its modules.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; index 0 is the type `first_id`.
    offsets: Vec<u32>,
    /// Indices into `offsets` of the named kinds that are searched, so that a search does not look at all
    /// of the 150,000 types of a kernel.
    index: [Vec<u32>; INDEXED.len()],
    first_id: u32,
    first_string: u32,
    base: Option<&'a Btf<'a>>,
}

#[derive(Clone, Copy)]
struct Type {
    kind: u32,
    vlen: u32,
    bitfield: bool,
    /// `size` or `type`.
    word: u32,
    /// Offset of what follows the common header.
    body: usize,
}

impl<'a> Btf<'a> {
    /// Reads the kernel's own type information (`/sys/kernel/btf/vmlinux`).
    ///
    /// # Errors
    /// If the data is not BTF of this machine's byte order or is cut short.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        Self::parse_with(data, None)
    }

    /// Reads a module's type information, which continues the kernel's (split BTF).
    ///
    /// # Errors
    /// As [`Btf::parse`].
    pub fn parse_split(data: &'a [u8], base: &'a Btf<'a>) -> Result<Self, BtfError> {
        Self::parse_with(data, Some(base))
    }

    fn parse_with(data: &'a [u8], base: Option<&'a Btf<'a>>) -> Result<Self, BtfError> {
        let word = |at: usize| u32_at(data, at).ok_or(BtfError::Truncated);
        let magic = data.first_chunk::<2>().copied().map(u16::from_ne_bytes);
        if magic != Some(MAGIC) {
            return Err(BtfError::Magic);
        }
        let header = word(4)? as usize;
        let section = |offset: u32, len: u32| {
            let start = header.checked_add(offset as usize)?;
            data.get(start..start.checked_add(len as usize)?)
        };
        let types = section(word(8)?, word(12)?).ok_or(BtfError::Truncated)?;
        let strings = section(word(16)?, word(20)?).ok_or(BtfError::Truncated)?;
        let mut offsets = Vec::with_capacity(types.len() / 24);
        let mut index: [Vec<u32>; INDEXED.len()] = Default::default();
        let mut at = 0;
        while at < types.len() {
            let head = type_at(types, at).ok_or(BtfError::Truncated)?;
            if let Some(slot) = INDEXED.iter().position(|k| *k == head.kind) {
                index[slot].push(offsets.len() as u32);
            }
            offsets.push(u32::try_from(at).map_err(|_| BtfError::Truncated)?);
            let vlen = head.vlen as usize;
            let tail = match head.kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => 12 * vlen,
                ENUM | FUNC_PROTO => 8 * vlen,
                _ => 0,
            };
            at = head.body + tail;
        }
        if at != types.len() {
            return Err(BtfError::Truncated);
        }
        let first_id = base.map_or(1, Btf::next_id);
        let first_string = base.map_or(0, |b| b.first_string.saturating_add(b.strings.len() as u32));
        Ok(Self { types, strings, offsets, index, first_id, first_string, base })
    }

    /// The id after the last type.
    #[must_use]
    pub fn next_id(&self) -> u32 {
        self.first_id + self.offsets.len() as u32
    }

    fn get(&self, id: u32) -> Option<Type> {
        match (id.checked_sub(self.first_id), self.base) {
            (None, Some(base)) => base.get(id),
            (None, None) => None,
            (Some(index), _) => type_at(self.types, *self.offsets.get(index as usize)? as usize),
        }
    }

    /// The types section that holds the type `id`.
    fn home(&self, id: u32) -> &Btf<'a> {
        match self.base {
            Some(base) if id < self.first_id => base.home(id),
            _ => self,
        }
    }

    fn string(&self, offset: u32) -> &[u8] {
        match (offset.checked_sub(self.first_string), self.base) {
            (None, Some(base)) => base.string(offset),
            (None, None) => b"",
            (Some(local), _) => {
                let tail = self.strings.get(local as usize..).unwrap_or_default();
                let end = tail.iter().position(|b| *b == 0).unwrap_or(tail.len());
                tail.get(..end).unwrap_or_default()
            }
        }
    }

    /// First type of this section with the given kind and name; modules' own types before the kernel's.
    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let slot = INDEXED.iter().position(|k| *k == kind)?;
        self.index[slot]
            .iter()
            .find(|index| {
                self.offsets
                    .get(**index as usize)
                    .and_then(|at| u32_at(self.types, *at as usize))
                    .is_some_and(|offset| self.is_named(offset, name.as_bytes()))
            })
            .map(|index| self.first_id + index)
            .or_else(|| self.base?.find(kind, name))
    }

    /// True if the string at `offset` is `name`, without looking for that string's end.
    fn is_named(&self, offset: u32, name: &[u8]) -> bool {
        match (offset.checked_sub(self.first_string), self.base) {
            (None, Some(base)) => base.is_named(offset, name),
            (None, None) => false,
            (Some(local), _) => {
                let tail = self.strings.get(local as usize..).unwrap_or_default();
                tail.starts_with(name) && tail.get(name.len()) == Some(&0)
            }
        }
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<(u32, Type)> {
        for _ in 0..MAX_DEPTH {
            let t = self.get(id)?;
            match t.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = t.word,
                _ => return Some((id, t)),
            }
        }
        None
    }

    fn size_of(&self, mut id: u32) -> u32 {
        let mut count = 1_u32;
        for _ in 0..MAX_DEPTH {
            let (at, t) = match self.resolve(id) {
                Some((_, t)) if t.kind == PTR => return count.saturating_mul(8),
                Some((_, t)) if matches!(t.kind, INT | STRUCT | UNION | ENUM | ENUM64) => {
                    return count.saturating_mul(t.word);
                }
                Some((at, t)) if t.kind == ARRAY => (at, t),
                _ => return 0,
            };
            let types = self.home(at).types;
            let (Some(element), Some(more)) = (u32_at(types, t.body), u32_at(types, t.body + 8)) else {
                return 0;
            };
            id = element;
            count = count.saturating_mul(more);
        }
        0
    }

    /// Size of a struct, bytes.
    ///
    /// # Errors
    /// [`BtfError::NoStruct`].
    pub fn struct_size(&self, name: &str) -> Result<u32, BtfError> {
        let id = self.find(STRUCT, name).ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        Ok(self.size_of(id))
    }

    /// Place of `path`, a struct's name and one or more member names joined by dots. Members of anonymous
    /// structs and unions are found without naming these; an array member stands for its first element.
    ///
    /// # Errors
    /// Names the struct or field that is missing, or a field that begins within a byte.
    pub fn field(&self, path: &str) -> Result<Field, BtfError> {
        let mut names = path.split('.');
        let root = names.next().unwrap_or_default();
        let mut id = self.find(STRUCT, root).ok_or_else(|| BtfError::NoStruct(root.to_owned()))?;
        let mut bits = 0u32;
        let mut width = 0;
        for name in names {
            let missing = || BtfError::NoField(root.to_owned(), name.to_owned());
            // An array in the middle of a path: its first element. No struct is found in arrays that hold each other.
            for _ in 0..MAX_DEPTH {
                let Some((at, t)) = self.resolve(id).filter(|(_, t)| t.kind == ARRAY) else { break };
                id = u32_at(self.home(at).types, t.body).ok_or_else(missing)?;
            }
            let found = self.member(id, name, MAX_DEPTH, &mut { MAX_MEMBERS });
            let (offset, member, member_width) = found.ok_or_else(missing)?;
            bits = bits.saturating_add(offset);
            id = member;
            width = member_width;
        }
        if !bits.is_multiple_of(8) || !width.is_multiple_of(8) {
            return Err(BtfError::BitField(path.to_owned()));
        }
        let size = if width == 0 { self.size_of(id) } else { width / 8 };
        Ok(Field { offset: bits / 8, size })
    }

    /// Bit offset, type and bit-field width (0 = none) of a member, descending into anonymous ones.
    /// `left`: how many more may be looked at, since structs that hold each other twice have no end.
    fn member(&self, id: u32, name: &str, depth: usize, left: &mut usize) -> Option<(u32, u32, u32)> {
        let (id, t) = self.resolve(id)?;
        if depth == 0 || !matches!(t.kind, STRUCT | UNION) {
            return None;
        }
        let home = self.home(id);
        for index in 0..t.vlen as usize {
            *left = left.checked_sub(1)?;
            let at = t.body + index * 12;
            let member_name = home.string(u32_at(home.types, at)?);
            let member_type = u32_at(home.types, at + 4)?;
            let raw = u32_at(home.types, at + 8)?;
            let (offset, width) = if t.bitfield { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            if member_name == name.as_bytes() {
                return Some((offset, member_type, width));
            }
            if member_name.is_empty()
                && let Some((inner, found, width)) = self.member(member_type, name, depth - 1, left)
            {
                return Some((offset.saturating_add(inner), found, width));
            }
        }
        None
    }

    /// Names and values of an enum; empty if the kernel has none of that name.
    #[must_use]
    pub fn enum_values(&self, name: &str) -> Vec<(String, i64)> {
        let text = |offset| String::from_utf8_lossy(self.string(offset)).into_owned();
        let mut values = Vec::new();
        if let Some((id, t)) = self.find(ENUM, name).and_then(|id| Some((id, self.get(id)?))) {
            let types = self.home(id).types;
            for at in (0..t.vlen as usize).map(|i| t.body + i * 8) {
                if let (Some(n), Some(v)) = (u32_at(types, at), u32_at(types, at + 4)) {
                    values.push((text(n), i64::from(v.cast_signed())));
                }
            }
        } else if let Some((id, t)) = self.find(ENUM64, name).and_then(|id| Some((id, self.get(id)?))) {
            let types = self.home(id).types;
            for at in (0..t.vlen as usize).map(|i| t.body + i * 12) {
                if let (Some(n), Some(lo), Some(hi)) =
                    (u32_at(types, at), u32_at(types, at + 4), u32_at(types, at + 8))
                {
                    values.push((text(n), (u64::from(hi) << 32 | u64::from(lo)).cast_signed()));
                }
            }
        }
        values
    }

    /// Id of a function, if the kernel's type information has it.
    #[must_use]
    pub fn func(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name)
    }

    /// Names of a function's parameters, in order.
    #[must_use]
    pub fn params(&self, name: &str) -> Option<Vec<String>> {
        let func = self.get(self.func(name)?)?;
        self.params_of(func.word)
    }

    /// Names of the arguments of a raw tracepoint (without the leading `void *`): from the type of its
    /// registration function's callback, `btf_trace_<name>`.
    #[must_use]
    pub fn tracepoint_params(&self, name: &str) -> Option<usize> {
        let typedef = self.find(TYPEDEF, &format!("btf_trace_{name}"))?;
        let (_, pointer) = self.resolve(typedef)?;
        let (id, proto) = self.resolve(pointer.word)?;
        (proto.kind == FUNC_PROTO).then(|| self.params_of(id).map_or(0, |p| p.len().saturating_sub(1)))
    }

    fn params_of(&self, proto: u32) -> Option<Vec<String>> {
        let t = self.get(proto)?;
        let home = self.home(proto);
        (0..t.vlen as usize)
            .map(|i| {
                Some(String::from_utf8_lossy(home.string(u32_at(home.types, t.body + i * 8)?)).into_owned())
            })
            .collect()
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at.checked_add(4)?)?.first_chunk::<4>().copied().map(u32::from_ne_bytes)
}

fn type_at(types: &[u8], at: usize) -> Option<Type> {
    let info = u32_at(types, at + 4)?;
    Some(Type {
        kind: info >> 24 & 0x1f,
        vlen: info & 0xffff,
        bitfield: info >> 31 == 1,
        word: u32_at(types, at + 8)?,
        body: at + 12,
    })
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;

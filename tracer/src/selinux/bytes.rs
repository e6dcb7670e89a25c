//! A cursor over the policy's bytes that knows where it is, and the bitmaps of the format (ss/ebitmap.c).

use thiserror::Error;

/// What is wrong with a policy, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{problem} in the policy's {section} at byte {offset}")]
pub struct PolicyError {
    /// Which part was being read.
    pub section: &'static str,
    /// Where in the file, from 0.
    pub offset: usize,
    /// What is wrong.
    pub problem: &'static str,
}

/// Longest name that is believed; the kernel's own are far shorter.
const LONGEST_NAME: usize = 4096;
/// Bits of one piece of a bitmap.
const UNIT: u32 = 64;

/// Reads little-endian numbers from the front of the rest.
pub(super) struct Cursor<'a> {
    whole: &'a [u8],
    at: usize,
    section: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(whole: &'a [u8]) -> Self {
        Self { whole, at: 0, section: "header" }
    }

    /// Errors name this part from now on.
    pub(super) fn section(&mut self, name: &'static str) {
        self.section = name;
    }

    pub(super) fn error(&self, problem: &'static str) -> PolicyError {
        PolicyError { section: self.section, offset: self.at, problem }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], PolicyError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.whole.len());
        let bytes = end.and_then(|end| self.whole.get(self.at..end));
        let bytes = bytes.ok_or_else(|| self.error("the end of the file"))?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PolicyError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PolicyError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PolicyError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, PolicyError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn words<const N: usize>(&mut self) -> Result<[u32; N], PolicyError> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Ok(words)
    }

    /// How many items follow. None is smaller than four bytes, so the count says nothing that the file's length does
    /// not bear out.
    pub(super) fn count(&mut self) -> Result<usize, PolicyError> {
        let count = self.u32()?;
        self.fits(count)
    }

    pub(super) fn fits(&self, count: u32) -> Result<usize, PolicyError> {
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= (self.whole.len() - self.at) / 4)
            .ok_or_else(|| self.error("more items announced than there are bytes"))
    }

    pub(super) fn name(&mut self, len: u32) -> Result<String, PolicyError> {
        let len = usize::try_from(len).ok().filter(|len| *len <= LONGEST_NAME);
        let bytes = self.bytes(len.ok_or_else(|| self.error("a name that is too long"))?)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn bitmap(&mut self) -> Result<Bitmap, PolicyError> {
        let [unit, _highest, count] = self.words()?;
        if unit != UNIT {
            return Err(self.error("a bitmap of another unit than 64"));
        }
        let mut pieces: Vec<(u32, u64)> = Vec::with_capacity(self.fits(count)?.min(64));
        for _ in 0..count {
            let start = self.u32()?;
            let bits = self.u64()?;
            if start % UNIT != 0 || pieces.last().is_some_and(|(before, _)| *before >= start) {
                return Err(self.error("a bitmap that is not in order"));
            }
            pieces.push((start, bits));
        }
        Ok(Bitmap { pieces })
    }
}

/// A sparse set of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bitmap {
    pieces: Vec<(u32, u64)>,
}

impl Bitmap {
    pub(super) fn has(&self, bit: u32) -> bool {
        let piece = self.pieces.binary_search_by_key(&(bit - bit % UNIT), |(start, _)| *start);
        piece.is_ok_and(|at| self.pieces[at].1 >> (bit % UNIT) & 1 == 1)
    }

    /// In ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.pieces
            .iter()
            .flat_map(|(start, bits)| (0..UNIT).filter(move |i| bits >> i & 1 == 1).map(move |i| start + i))
    }

    pub(super) fn holds_all(&self, other: &Bitmap) -> bool {
        other.iter().all(|bit| self.has(bit))
    }

    pub(super) fn set(&mut self, bit: u32) {
        let start = bit - bit % UNIT;
        match self.pieces.binary_search_by_key(&start, |(start, _)| *start) {
            Ok(at) => self.pieces[at].1 |= 1 << (bit % UNIT),
            Err(at) => self.pieces.insert(at, (start, 1 << (bit % UNIT))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(unit: u32, pieces: &[(u32, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [unit, 0, u32::try_from(pieces.len()).unwrap()] {
            bytes.extend(word.to_le_bytes());
        }
        for (start, bits) in pieces {
            bytes.extend(start.to_le_bytes());
            bytes.extend(bits.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn bitmaps_hold_what_was_written() {
        let bytes = encode(64, &[(0, 0b101), (128, 1 << 63)]);
        let map = Cursor::new(&bytes).bitmap().unwrap();
        assert_eq!(map.iter().collect::<Vec<_>>(), [0, 2, 191]);
        assert!(map.has(2) && !map.has(1) && map.has(191) && !map.has(u32::MAX));
        let mut built = Bitmap::default();
        for bit in [191, 0, 2] {
            built.set(bit);
        }
        assert_eq!(built, map);
        built.set(5);
        assert!(built.holds_all(&map) && !map.holds_all(&built));
    }

    #[test]
    fn nonsense_is_refused_where_it_stands() {
        let error = |bytes: &[u8]| Cursor::new(bytes).bitmap().unwrap_err();
        assert_eq!(error(&encode(32, &[])).offset, 12);
        assert_eq!(error(&encode(64, &[(64, 1), (0, 1)])).problem, "a bitmap that is not in order");
        assert_eq!(error(&encode(64, &[(3, 1)])).problem, "a bitmap that is not in order");
        let mut many = encode(64, &[]);
        many[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(error(&many).problem, "more items announced than there are bytes");
        assert_eq!(error(&many[..7]).to_string(), "the end of the file in the policy's header at byte 4");
    }
}

//! Bytes of which some bits are known.

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// What decides it is not known.
    Maybe,
}

impl Truth {
    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Truth::No, _) | (_, Truth::No) => Truth::No,
            (Truth::Yes, Truth::Yes) => Truth::Yes,
            (Truth::Maybe, _) | (_, Truth::Maybe) => Truth::Maybe,
        }
    }

    /// One of them.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.negate().and(other.negate()).negate()
    }

    /// The opposite.
    #[must_use]
    pub fn negate(self) -> Self {
        match self {
            Truth::Yes => Truth::No,
            Truth::No => Truth::Yes,
            Truth::Maybe => Truth::Maybe,
        }
    }

    /// The opposite if `invert`.
    #[must_use]
    pub fn inverted(self, invert: bool) -> Self {
        if invert { self.negate() } else { self }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Truth::Yes } else { Truth::No }
    }
}

/// Bytes, and which of their bits are known. Bits that are not known are zero in `value`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bits {
    value: Vec<u8>,
    known: Vec<u8>,
}

impl Bits {
    /// Known bytes.
    #[must_use]
    pub fn known(value: &[u8]) -> Self {
        Self { value: value.to_vec(), known: vec![0xff; value.len()] }
    }

    /// Bytes of which nothing is known.
    #[must_use]
    pub fn unknown(len: usize) -> Self {
        Self { value: vec![0; len], known: vec![0; len] }
    }

    /// Bytes of which the bits in `known` are.
    #[must_use]
    pub fn partly(value: &[u8], known: &[u8]) -> Self {
        let value = value.iter().zip(known).map(|(v, k)| v & k).collect();
        Self { value, known: known.to_vec() }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.value.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }

    /// The bytes, if all of them are known.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.known.iter().all(|k| *k == 0xff).then_some(&self.value)
    }

    /// A part of it; what lies beyond the end is not known.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let part = |from: &[u8]| {
            let mut bytes: Vec<u8> = from.iter().skip(offset).take(len).copied().collect();
            bytes.resize(len, 0);
            bytes
        };
        Self { value: part(&self.value), known: part(&self.known) }
    }

    /// Puts `other` over the bytes at `offset`; what does not fit is left out.
    pub fn put(&mut self, offset: usize, other: &Self) {
        for (to, from) in [(&mut self.value, &other.value), (&mut self.known, &other.known)] {
            for (to, from) in to.iter_mut().skip(offset).zip(from) {
                *to = *from;
            }
        }
    }

    /// `(self & mask) ^ xor`: a bit that is masked out is known.
    #[must_use]
    pub fn bitwise(&self, mask: &[u8], xor: &[u8]) -> Self {
        let at = |bytes: &[u8], i: usize| bytes.get(i).copied().unwrap_or(0);
        let known: Vec<u8> = self.known.iter().enumerate().map(|(i, k)| k | !at(mask, i)).collect();
        let value: Vec<u8> =
            self.value.iter().enumerate().map(|(i, v)| (v & at(mask, i)) ^ at(xor, i)).collect();
        Self::partly(&value, &known)
    }

    /// Each `size` bytes the other way round.
    #[must_use]
    pub fn swapped(&self, size: usize) -> Self {
        let swap = |bytes: &[u8]| {
            bytes.chunks(size.max(1)).flat_map(|chunk| chunk.iter().rev().copied()).collect::<Vec<u8>>()
        };
        Self { value: swap(&self.value), known: swap(&self.known) }
    }

    /// Whether its first bytes are these.
    #[must_use]
    pub fn equals(&self, other: &[u8]) -> Truth {
        let mut all = self.len() >= other.len();
        for ((value, known), wanted) in self.value.iter().zip(&self.known).zip(other) {
            if (value ^ wanted) & known != 0 {
                return Truth::No;
            }
            all &= *known == 0xff;
        }
        if all { Truth::Yes } else { Truth::Maybe }
    }

    /// Whether its first bytes come before these (`or_equal`: or are these), as memcmp orders them.
    #[must_use]
    pub fn below(&self, other: &[u8], or_equal: bool) -> Truth {
        // The least and the greatest that it can be decide.
        let less = |value: &[u8]| if or_equal { value <= other } else { value < other };
        let least: Vec<u8> = self.value.iter().take(other.len()).copied().collect();
        let greatest: Vec<u8> =
            self.value.iter().zip(&self.known).map(|(v, k)| v | !k).take(other.len()).collect();
        match (less(&least), less(&greatest)) {
            (true, true) => Truth::Yes,
            (false, false) => Truth::No,
            (true, false) | (false, true) => Truth::Maybe,
        }
    }

    /// Whether it lies between, both ends included.
    #[must_use]
    pub fn within(&self, from: &[u8], to: &[u8]) -> Truth {
        self.below(from, false).negate().and(self.below(to, true))
    }
}

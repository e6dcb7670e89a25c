//! The wire contract of storms: failures that come faster than they are worth explaining one by one. Equal ones are counted in
//! the kernel, and one of each kind a second, the exemplar, is sent as ever.

/// Failures a second that are sent one by one, whatever they are: what user space explains in some percent of a core.
pub const ONE_BY_ONE: u32 = 2000;

/// Kinds of equal failures that are counted. Of further ones each is sent.
pub const KINDS: u32 = 1024;

/// How often one of a kind is sent, nanoseconds.
pub const EXEMPLAR_NS: u64 = 1_000_000_000;

/// What failures have in common that are counted together, as two hashes: all that a verdict rests on but their times, ports and
/// requests.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Alike {
    /// The first.
    pub first: u64,
    /// The second.
    pub second: u64,
}

/// Fibonacci hashing.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Alike {
    /// Nothing yet.
    pub const NOTHING: Self = Self { first: 0, second: SPREAD };

    /// And this.
    #[must_use]
    #[inline(always)]
    pub const fn and(self, word: u64) -> Self {
        Self {
            first: (self.first ^ word).wrapping_mul(SPREAD),
            second: (self.second.rotate_left(23) ^ word).wrapping_mul(SPREAD ^ 0xffff),
        }
    }
}

/// How many there were of a kind besides those that were sent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repeats {
    /// Their number: it only grows.
    pub count: u64,
    /// When the last of them ended.
    pub last_ns: u64,
    /// When the exemplar was sent.
    pub sent_ns: u64,
    /// The exemplar: its socket.
    pub sk: u64,
    /// The exemplar: its [`Attempt::start_ns`](crate::Attempt), or [`Unix::time_ns`](crate::unix::Unix).
    pub start_ns: u64,
    /// Worker's thread group id.
    pub tgid: u64,
}

const _: () = {
    assert!(size_of::<Alike>() == 16);
    assert!(size_of::<Repeats>() == 48);
};

//! Security contexts: the policy's numbers and their text.

use super::{Policy, bytes::Bitmap};

/// A sensitivity with its categories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) sensitivity: u32,
    /// Values less one.
    pub(super) categories: Bitmap,
}

impl Level {
    pub(super) fn dominates(&self, other: &Level) -> bool {
        self.sensitivity >= other.sensitivity && self.categories.holds_all(&other.categories)
    }
}

/// A security context in the numbers of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    pub(super) user: u32,
    pub(super) role: u32,
    /// The type.
    pub(super) kind: u32,
    pub(super) low: Level,
    pub(super) high: Level,
}

/// The type in the text of a context, `user:role:TYPE:range`.
#[must_use]
pub fn type_of(context: &str) -> Option<&str> {
    context.split(':').nth(2).filter(|name| !name.is_empty())
}

impl Policy {
    /// Reads the text of a context, as /proc/PID/attr/current and `security.selinux` hold it; None if the policy does
    /// not know one of its parts.
    #[must_use]
    pub fn parse_context(&self, text: &str) -> Option<Context> {
        let mut parts = text.splitn(4, ':');
        let user = *self.user_values.get(parts.next()?)?;
        let role = *self.role_values.get(parts.next()?)?;
        let kind = *self.type_values.get(parts.next()?)?;
        let (low, high) = match parts.next() {
            Some(range) if self.mls => {
                let (low, high) =
                    range.split_once('-').map_or((range, None), |(low, high)| (low, Some(high)));
                let low = self.parse_level(low)?;
                let high = match high {
                    Some(high) => self.parse_level(high)?,
                    None => low.clone(),
                };
                (low, high)
            }
            None if !self.mls => Default::default(),
            _ => return None,
        };
        Some(Context { user, role, kind, low, high })
    }

    /// `s0:c1,c3.c5`.
    fn parse_level(&self, text: &str) -> Option<Level> {
        let (sensitivity, categories) = text.split_once(':').map_or((text, None), |(s, c)| (s, Some(c)));
        let mut level =
            Level { sensitivity: *self.sensitivities.get(sensitivity)?, categories: Bitmap::default() };
        for piece in categories.into_iter().flat_map(|list| list.split(',')) {
            let (first, last) = piece.split_once('.').unwrap_or((piece, piece));
            let first = *self.categories.get(first)?;
            let last = *self.categories.get(last)?;
            // A policy has a thousand of them; a range that is longer comes from damaged bytes.
            if first == 0 || last < first || last - first > 1 << 16 {
                return None;
            }
            for value in first..=last {
                level.categories.set(value - 1);
            }
        }
        Some(level)
    }

    /// The same context with another type; None if the policy does not know it.
    #[must_use]
    pub fn retyped(&self, context: &Context, kind: &str) -> Option<Context> {
        Some(Context { kind: *self.type_values.get(kind)?, ..context.clone() })
    }

    /// User, role and type of a context; the range is left out.
    #[must_use]
    pub fn show(&self, context: &Context) -> Option<String> {
        let user = self.users.get(&context.user)?;
        let role = &self.roles.get(&context.role)?.name;
        let kind = &self.types.get(&context.kind)?.name;
        Some(format!("{user}:{role}:{kind}"))
    }
}

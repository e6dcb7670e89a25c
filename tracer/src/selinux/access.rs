//! What the policy allows (`context_struct_compute_av`), and which booleans would change it.

use std::collections::{HashMap, HashSet};

use super::{
    Context, Policy,
    bytes::Bitmap,
    policy::{Conditional, Key, Step, rule},
};

/// Booleans that are not as they stand in the policy, by number.
type Changed<'a> = Option<(u32, &'a bool)>;

/// The answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// Permissions allowed by rules.
    pub allowed: u32,
    /// Of these, taken away by constraints.
    pub constrained: u32,
    /// A constraint of this class could not be evaluated.
    pub unevaluated: bool,
    /// Permissions whose denial is not audited (`dontaudit`).
    pub silent: u32,
}

impl Access {
    /// Permissions that remain.
    #[must_use]
    pub fn granted(self) -> u32 {
        self.allowed & !self.constrained
    }
}

/// A boolean that would allow what was denied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Remedy {
    /// Its name.
    pub boolean: String,
    /// What it would have to be.
    pub value: bool,
    /// Permissions (type, class, permission) that this gives the source's own domain, the wanted ones included; what
    /// other rules allow as well is counted.
    pub own: u64,
    /// What it gives every other domain together.
    pub others: u64,
}

impl Policy {
    /// The policy's number of a class.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<u16> {
        self.class_values.get(name).copied()
    }

    /// The bits of permissions in the policy's order; None if the class does not know one of them.
    #[must_use]
    pub fn permissions<'n>(&self, class: u16, names: impl IntoIterator<Item = &'n str>) -> Option<u32> {
        let class = self.classes.get(&class)?;
        names.into_iter().try_fold(0, |bits, name| Some(bits | class.permissions.get(name)?))
    }

    /// True if denials to this domain are let through although the system is enforcing.
    #[must_use]
    pub fn is_permissive(&self, source: &Context) -> bool {
        self.permissive.has(source.kind)
    }

    /// Value of a boolean when the policy was read; the kernel writes its current values into it.
    #[must_use]
    pub fn boolean(&self, name: &str) -> Option<bool> {
        self.booleans.values().find(|b| b.name == name).map(|b| b.state)
    }

    /// What `source` may do with an object of `class` labelled `target`.
    #[must_use]
    pub fn access(&self, source: &Context, target: &Context, class: u16) -> Access {
        self.access_if(source, target, class, None)
    }

    fn access_if(&self, source: &Context, target: &Context, class: u16, changed: Changed<'_>) -> Access {
        let mut access = Access { silent: 0, ..Access::default() };
        let mut states: HashMap<usize, bool> = HashMap::new();
        self.for_rules(source.kind, target.kind, class, |kind, data, place| {
            let on = match place {
                None => true,
                Some((at, branch)) => {
                    let holds = *states.entry(at).or_insert_with(|| self.holds(at, changed));
                    holds == (branch == 0)
                }
            };
            if on && kind == rule::ALLOWED {
                access.allowed |= data;
            } else if on {
                access.silent |= !data;
            }
        });
        let constraints = self.classes.get(&class).map(|class| class.constraints.as_slice());
        for constraint in constraints.unwrap_or_default() {
            match constraint.holds(self, source, target) {
                Some(true) => {}
                Some(false) => access.constrained |= constraint.permissions,
                None => access.unevaluated = true,
            }
        }
        access
    }

    /// Calls `f` with kind, data and place (conditional, branch) of every rule between two types, through all of their
    /// attributes.
    fn for_rules(
        &self,
        source: u32,
        target: u32,
        class: u16,
        mut f: impl FnMut(u16, u32, Option<(usize, usize)>),
    ) {
        let targets = self.names_of(target);
        for s in self.names_of(source) {
            for t in &targets {
                for kind in [rule::ALLOWED, rule::AUDITDENY] {
                    let key: Key = (s, *t, class, kind);
                    let from = self.rules.partition_point(|(k, _)| *k < key);
                    for (_, data) in self.rules[from..].iter().take_while(|(k, _)| *k == key) {
                        f(kind, *data, None);
                    }
                    let from = self.conditional_rules.partition_point(|p| p.key < key);
                    for placed in self.conditional_rules[from..].iter().take_while(|p| p.key == key) {
                        f(kind, placed.data, Some((placed.conditional, placed.branch)));
                    }
                }
            }
        }
    }

    /// A type and its attributes, as rules name them. Bits that stand for no name make a damaged policy no slower.
    fn names_of(&self, kind: u32) -> Vec<u16> {
        let map = kind.checked_sub(1).and_then(|at| self.attributes.get(usize::try_from(at).ok()?));
        let bits = map.into_iter().flat_map(Bitmap::iter);
        let known = bits.filter_map(|bit| bit.checked_add(1)).filter(|value| self.types.contains_key(value));
        known.filter_map(|value| u16::try_from(value).ok()).collect()
    }

    /// True if the condition holds.
    fn holds(&self, conditional: usize, changed: Changed<'_>) -> bool {
        let state = |boolean: u32| match changed {
            Some((other, value)) if other == boolean => *value,
            _ => self.booleans.get(&boolean).is_some_and(|b| b.state),
        };
        self.conditionals.get(conditional).and_then(|c| evaluate(c, state)).unwrap_or(false)
    }

    /// The booleans that by themselves would allow all of `permissions`, those first that give the least else to
    /// anybody.
    #[must_use]
    pub fn remedies(&self, source: &Context, target: &Context, class: u16, permissions: u32) -> Vec<Remedy> {
        let mut asked: HashSet<u32> = HashSet::new();
        self.for_rules(source.kind, target.kind, class, |kind, data, place| {
            if let Some((at, _)) = place
                && kind == rule::ALLOWED
                && data & permissions != 0
            {
                asked.extend(self.conditionals[at].steps.iter().filter_map(|step| match step {
                    Step::Boolean(boolean) => Some(*boolean),
                    _ => None,
                }));
            }
        });
        let mut found: Vec<Remedy> = Vec::new();
        for number in asked {
            let Some(boolean) = self.booleans.get(&number) else { continue };
            let value = !boolean.state;
            let access = self.access_if(source, target, class, Some((number, &value)));
            if access.granted() & permissions == permissions {
                let (own, others) = self.gives(source.kind, number, value);
                found.push(Remedy { boolean: boolean.name.clone(), value, own, others });
            }
        }
        found.sort_by(|a, b| {
            (a.own.saturating_add(a.others), &a.boolean).cmp(&(b.own.saturating_add(b.others), &b.boolean))
        });
        found
    }

    /// Permissions that a boolean's change switches on, for `source` and for all others.
    fn gives(&self, source: u32, boolean: u32, value: bool) -> (u64, u64) {
        let mut own: HashMap<(u32, u16), u32> = HashMap::new();
        let mut all = 0_u64;
        for (at, conditional) in self.conditionals.iter().enumerate() {
            if !conditional.steps.contains(&Step::Boolean(boolean)) {
                continue;
            }
            let after = self.holds(at, Some((boolean, &value)));
            if after == self.holds(at, None) {
                continue;
            }
            let rules = &conditional.rules[usize::from(!after)];
            for ((s, t, class, kind), data) in rules.iter().filter(|(key, _)| key.3 == rule::ALLOWED) {
                debug_assert_eq!(*kind, rule::ALLOWED, "only these were asked for");
                let targets = self.types_of(u32::from(*t));
                let mut sources = u64::try_from(self.types_of(u32::from(*s)).len()).unwrap_or(u64::MAX);
                if self.types_of(u32::from(*s)).contains(&source) {
                    sources = sources.saturating_sub(1);
                    for target in &targets {
                        *own.entry((*target, *class)).or_default() |= data;
                    }
                }
                let each = u64::from(data.count_ones())
                    .saturating_mul(u64::try_from(targets.len()).unwrap_or(u64::MAX));
                all = all.saturating_add(sources.saturating_mul(each));
            }
        }
        (own.values().map(|bits| u64::from(bits.count_ones())).sum(), all)
    }

    /// The types that a rule's name means.
    fn types_of(&self, name: u32) -> Vec<u32> {
        match self.types.get(&name) {
            Some(t) if t.is_attribute => self.members.get(&name).cloned().unwrap_or_default(),
            _ => vec![name],
        }
    }
}

/// None if the expression is not well-formed.
fn evaluate(conditional: &Conditional, state: impl Fn(u32) -> bool) -> Option<bool> {
    let mut stack: Vec<bool> = Vec::new();
    for step in &conditional.steps {
        let value = match step {
            Step::Boolean(boolean) => state(*boolean),
            Step::Not => !stack.pop()?,
            Step::Or => stack.pop()? | stack.pop()?,
            Step::And => stack.pop()? & stack.pop()?,
            Step::Xor | Step::Unequal => stack.pop()? != stack.pop()?,
            Step::Equal => stack.pop()? == stack.pop()?,
        };
        stack.push(value);
    }
    stack.pop().filter(|_| stack.is_empty())
}

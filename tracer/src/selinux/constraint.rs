//! Constraints: conditions on user, role, type and level that no rule can lift (ss/constraint.h, `constraint_expr_eval`).

use super::{
    Context, Policy,
    bytes::{Bitmap, Cursor, PolicyError},
    context::Level,
};

const USER: u32 = 1;
const ROLE: u32 = 2;
const TYPE: u32 = 4;
const TARGET: u32 = 8;
const XTARGET: u32 = 16;

/// A step of the expression, in postfix order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Not,
    And,
    Or,
    /// Compares source and target.
    Pair {
        what: u32,
        op: Op,
    },
    /// Looks for one side in a list.
    Listed {
        what: u32,
        op: Op,
        names: Bitmap,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Equal,
    Unequal,
    Dominates,
    DominatedBy,
    Incomparable,
}

/// Permissions that need an expression to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Constraint {
    pub(super) permissions: u32,
    steps: Vec<Step>,
}

pub(super) fn read(c: &mut Cursor<'_>, count: u32, version: u32) -> Result<Vec<Constraint>, PolicyError> {
    let mut constraints = Vec::new();
    for _ in 0..c.fits(count)? {
        let permissions = c.u32()?;
        let mut steps = Vec::new();
        for _ in 0..c.count()? {
            let [kind, what, op] = c.words()?;
            let op = |c: &Cursor<'_>| match op {
                1 => Ok(Op::Equal),
                2 => Ok(Op::Unequal),
                3 => Ok(Op::Dominates),
                4 => Ok(Op::DominatedBy),
                5 => Ok(Op::Incomparable),
                _ => Err(c.error("an unknown comparison")),
            };
            steps.push(match kind {
                1 => Step::Not,
                2 => Step::And,
                3 => Step::Or,
                4 => Step::Pair { what, op: op(c)? },
                5 => {
                    let op = op(c)?;
                    let names = c.bitmap()?;
                    if version >= 29 {
                        // The attributes that were written; `names` holds what they mean.
                        c.bitmap()?;
                        c.bitmap()?;
                        c.u32()?;
                    }
                    Step::Listed { what, op, names }
                }
                _ => return Err(c.error("an unknown part of a constraint")),
            });
        }
        constraints.push(Constraint { permissions, steps });
    }
    Ok(constraints)
}

impl Constraint {
    /// None if the expression is not well-formed, or compares what this class of constraint cannot.
    pub(super) fn holds(&self, policy: &Policy, source: &Context, target: &Context) -> Option<bool> {
        let mut stack: Vec<bool> = Vec::new();
        for step in &self.steps {
            let value = match step {
                Step::Not => !stack.pop()?,
                Step::And => stack.pop()? & stack.pop()?,
                Step::Or => stack.pop()? | stack.pop()?,
                Step::Pair { what, op } => pair(policy, *what, *op, source, target)?,
                Step::Listed { what, op, names } => {
                    if what & XTARGET != 0 {
                        // Of transitions alone.
                        return None;
                    }
                    let side = if what & TARGET != 0 { target } else { source };
                    let value = match what & (USER | ROLE | TYPE) {
                        USER => side.user,
                        ROLE => side.role,
                        TYPE => side.kind,
                        _ => return None,
                    };
                    let listed = names.has(value.checked_sub(1)?);
                    match op {
                        Op::Equal => listed,
                        Op::Unequal => !listed,
                        Op::Dominates | Op::DominatedBy | Op::Incomparable => return None,
                    }
                }
            };
            stack.push(value);
        }
        stack.pop().filter(|_| stack.is_empty())
    }
}

fn pair(policy: &Policy, what: u32, op: Op, source: &Context, target: &Context) -> Option<bool> {
    let plain = |a: u32, b: u32| match op {
        Op::Equal => Some(a == b),
        Op::Unequal => Some(a != b),
        Op::Dominates | Op::DominatedBy | Op::Incomparable => None,
    };
    let levels = |a: &Level, b: &Level| {
        let (over, under) = (a.dominates(b), b.dominates(a));
        match op {
            Op::Equal => a == b,
            Op::Unequal => a != b,
            Op::Dominates => over,
            Op::DominatedBy => under,
            Op::Incomparable => !over && !under,
        }
    };
    Some(match what {
        USER => plain(source.user, target.user)?,
        TYPE => plain(source.kind, target.kind)?,
        ROLE => {
            let over = |a: u32, b: u32| Some(policy.roles.get(&a)?.dominates.has(b.checked_sub(1)?));
            match op {
                Op::Equal | Op::Unequal => plain(source.role, target.role)?,
                Op::Dominates => over(source.role, target.role)?,
                Op::DominatedBy => over(target.role, source.role)?,
                Op::Incomparable => !over(source.role, target.role)? && !over(target.role, source.role)?,
            }
        }
        0x20 => levels(&source.low, &target.low),
        0x40 => levels(&source.low, &target.high),
        0x80 => levels(&source.high, &target.low),
        0x100 => levels(&source.high, &target.high),
        0x200 => levels(&source.low, &source.high),
        0x400 => levels(&target.low, &target.high),
        _ => return None,
    })
}

//! The binary policy (`/sys/fs/selinux/policy`), as security/selinux/ss/policydb.c writes it, versions 24 to 35: what the
//! questions of this crate need is kept, the rest is read over.

use std::collections::HashMap;

use super::{
    bytes::{Bitmap, Cursor, PolicyError},
    constraint::{self, Constraint},
    context::{Context, Level},
    ports::Port,
};

const MAGIC: u32 = 0xf97c_ff8c;
const CONFIG_MLS: u32 = 1;
const CONFIG_ALLOW_UNKNOWN: u32 = 4;
/// Since this version types have a property word and bounds, and attributes keep their names.
const OLDEST: u32 = 24;
/// The newest whose format is known (POLICYDB_VERSION_NEVERAUDIT).
const NEWEST: u32 = 35;
const SYMBOL_TABLES: u32 = 8;
const TYPE_IS_ATTRIBUTE: u32 = 2;

/// `avtab_key.specified`.
pub(super) mod rule {
    pub(in super::super) const ALLOWED: u16 = 1;
    pub(in super::super) const AUDITDENY: u16 = 4;
    pub(super) const XPERMS: u16 = 0x700;
    /// Of the kernel's own use, not part of a key.
    pub(super) const ENABLED: u16 = 0x8000;
}

/// A class of objects.
#[derive(Debug, Clone, Default)]
pub(super) struct Class {
    pub(super) name: String,
    /// Names of permissions by bit, the common ones included.
    pub(super) permissions: HashMap<String, u32>,
    pub(super) constraints: Vec<Constraint>,
}

/// A role.
#[derive(Debug, Clone, Default)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) dominates: Bitmap,
}

/// A boolean as it stood when the policy was written.
#[derive(Debug, Clone, Default)]
pub(super) struct Boolean {
    pub(super) name: String,
    pub(super) state: bool,
}

/// A type or an attribute.
#[derive(Debug, Clone, Default)]
pub(super) struct TypeName {
    pub(super) name: String,
    pub(super) is_attribute: bool,
}

/// Key of an access vector rule: source, target, class, kind.
pub(super) type Key = (u16, u16, u16, u16);

/// A step of a conditional's expression, in postfix order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Boolean(u32),
    Not,
    Or,
    And,
    Xor,
    Equal,
    Unequal,
}

/// An `if` of the policy.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditional {
    pub(super) steps: Vec<Step>,
    /// Rules if it holds, and if not.
    pub(super) rules: [Vec<(Key, u32)>; 2],
}

/// Where a conditional rule stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) key: Key,
    pub(super) data: u32,
    pub(super) conditional: usize,
    /// Which of [`Conditional::rules`].
    pub(super) branch: usize,
}

/// A policy, read.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Version of the format.
    pub version: u32,
    /// What the policy says nothing about is allowed (`handle_unknown=allow`).
    pub allow_unknown: bool,
    pub(super) mls: bool,
    pub(super) permissive: Bitmap,
    pub(super) classes: HashMap<u16, Class>,
    pub(super) class_values: HashMap<String, u16>,
    pub(super) roles: HashMap<u32, Role>,
    pub(super) role_values: HashMap<String, u32>,
    pub(super) types: HashMap<u32, TypeName>,
    pub(super) type_values: HashMap<String, u32>,
    pub(super) users: HashMap<u32, String>,
    pub(super) user_values: HashMap<String, u32>,
    pub(super) booleans: HashMap<u32, Boolean>,
    pub(super) sensitivities: HashMap<String, u32>,
    pub(super) categories: HashMap<String, u32>,
    /// Sorted by key.
    pub(super) rules: Vec<(Key, u32)>,
    pub(super) conditionals: Vec<Conditional>,
    /// Sorted by key.
    pub(super) conditional_rules: Vec<Placed>,
    pub(super) initial: HashMap<u32, Context>,
    pub(super) ports: Vec<Port>,
    /// By type, from 1: its attributes and itself, as indices from 0.
    pub(super) attributes: Vec<Bitmap>,
    /// By attribute: the types that have it, as values from 1.
    pub(super) members: HashMap<u32, Vec<u32>>,
}

impl Policy {
    /// Reads a binary policy.
    ///
    /// # Errors
    /// If the bytes are no policy of versions 24 to 35, or end early; the error names the part and the place.
    pub fn read(bytes: &[u8]) -> Result<Self, PolicyError> {
        let mut c = Cursor::new(bytes);
        let mut policy = Policy::default();
        let tables = policy.header(&mut c)?;
        policy.symbols(&mut c)?;
        c.section("rules");
        for _ in 0..c.count()? {
            policy.rules.extend(read_rule(&mut c)?);
        }
        c.section("conditional rules");
        for _ in 0..c.count()? {
            policy.conditionals.push(read_conditional(&mut c)?);
        }
        skip_roles_and_names(&mut c, policy.version)?;
        policy.contexts(&mut c, tables)?;
        c.section("labels of file systems");
        for _ in 0..c.count()? {
            let len = c.u32()?;
            c.name(len)?;
            for _ in 0..c.count()? {
                let len = c.u32()?;
                c.name(len)?;
                c.u32()?;
                policy.context(&mut c)?;
            }
        }
        c.section("range transitions");
        for _ in 0..c.count()? {
            c.words::<3>()?;
            range(&mut c)?;
        }
        c.section("attributes of types");
        // Every type has a bitmap of its own, aliases have none.
        let highest = policy.types.keys().max().copied().unwrap_or(0);
        for _ in 0..highest {
            policy.attributes.push(c.bitmap()?);
        }
        policy.index();
        Ok(policy)
    }

    /// Returns how many tables of contexts follow.
    fn header(&mut self, c: &mut Cursor<'_>) -> Result<u32, PolicyError> {
        if c.u32()? != MAGIC {
            return Err(c.error("no policy's magic number"));
        }
        let len = c.u32()?;
        if c.name(len)? != "SE Linux" {
            return Err(c.error("no kernel policy"));
        }
        let [version, config, symbols, contexts] = c.words()?;
        if !(OLDEST..=NEWEST).contains(&version) {
            return Err(c.error("an unknown version"));
        }
        if symbols != SYMBOL_TABLES || !(7..=9).contains(&contexts) {
            return Err(c.error("an unknown number of tables"));
        }
        self.version = version;
        self.mls = config & CONFIG_MLS != 0;
        self.allow_unknown = config & CONFIG_ALLOW_UNKNOWN != 0;
        c.bitmap()?; // capabilities of the policy
        self.permissive = c.bitmap()?;
        if version >= 35 {
            c.bitmap()?; // types whose denials nobody audits
        }
        Ok(contexts)
    }

    fn symbols(&mut self, c: &mut Cursor<'_>) -> Result<(), PolicyError> {
        c.section("common permissions");
        let mut commons: HashMap<String, HashMap<String, u32>> = HashMap::new();
        for _ in 0..table(c)?.1 {
            let [len, _, _, permissions] = c.words()?;
            let name = c.name(len)?;
            commons.insert(name, read_permissions(c, permissions)?);
        }
        c.section("classes");
        for _ in 0..table(c)?.1 {
            let (value, class) = read_class(c, &commons, self.version)?;
            self.class_values.insert(class.name.clone(), value);
            self.classes.insert(value, class);
        }
        c.section("roles");
        for _ in 0..table(c)?.1 {
            let [len, value, _bounds] = c.words()?;
            let name = c.name(len)?;
            let dominates = c.bitmap()?;
            c.bitmap()?; // its types
            self.role_values.insert(name.clone(), value);
            self.roles.insert(value, Role { name, dominates });
        }
        c.section("types");
        let (highest, count) = table(c)?;
        for _ in 0..count {
            let [len, value, properties, _bounds] = c.words()?;
            let name = c.name(len)?;
            if value == 0 || value > highest || value > u32::from(u16::MAX) {
                return Err(c.error("a type's number that cannot be"));
            }
            self.type_values.insert(name.clone(), value);
            // Aliases have the number of their type; the type itself is primary, attributes too.
            if properties != 0 || !self.types.contains_key(&value) {
                let is_attribute = properties & TYPE_IS_ATTRIBUTE != 0;
                self.types.insert(value, TypeName { name, is_attribute });
            }
        }
        c.section("users");
        for _ in 0..table(c)?.1 {
            let [len, value, _bounds] = c.words()?;
            let name = c.name(len)?;
            c.bitmap()?; // its roles
            range(c)?;
            level(c)?;
            self.user_values.insert(name.clone(), value);
            self.users.insert(value, name);
        }
        c.section("booleans");
        for _ in 0..table(c)?.1 {
            let [value, state, len] = c.words()?;
            let name = c.name(len)?;
            self.booleans.insert(value, Boolean { name, state: state != 0 });
        }
        c.section("sensitivities");
        for _ in 0..table(c)?.1 {
            let [len, _is_alias] = c.words()?;
            let name = c.name(len)?;
            self.sensitivities.insert(name, level(c)?.sensitivity);
        }
        c.section("categories");
        for _ in 0..table(c)?.1 {
            let [len, value, _is_alias] = c.words()?;
            let name = c.name(len)?;
            self.categories.insert(name, value);
        }
        Ok(())
    }

    /// Tables of contexts: initial ones, file systems, interfaces, ports, nodes and so on.
    fn contexts(&mut self, c: &mut Cursor<'_>, tables: u32) -> Result<(), PolicyError> {
        for which in 0..tables {
            c.section(match which {
                0 => "initial contexts",
                2 => "port contexts",
                _ => "contexts of networks and file systems",
            });
            for _ in 0..c.count()? {
                match which {
                    0 => {
                        let sid = c.u32()?;
                        let context = self.context(c)?;
                        self.initial.insert(sid, context);
                        continue;
                    }
                    1 | 3 => {
                        let len = c.u32()?;
                        c.name(len)?;
                        self.context(c)?;
                    }
                    2 => {
                        let [protocol, low, high] = c.words()?;
                        let context = self.context(c)?;
                        self.ports.push(Port { protocol, low, high, context });
                        continue;
                    }
                    4 => drop(c.words::<2>()?),
                    5 => {
                        let [_, len] = c.words()?;
                        c.name(len)?;
                    }
                    6 => drop(c.words::<8>()?),
                    7 => drop(c.words::<4>()?),
                    _ => {
                        let [len, _port] = c.words()?;
                        c.name(len)?;
                    }
                }
                self.context(c)?;
            }
        }
        Ok(())
    }

    fn context(&self, c: &mut Cursor<'_>) -> Result<Context, PolicyError> {
        let [user, role, kind] = c.words()?;
        let (low, high) = if self.mls { range(c)? } else { Default::default() };
        Ok(Context { user, role, kind, low, high })
    }

    fn index(&mut self) {
        self.rules.sort_unstable();
        for (at, conditional) in self.conditionals.iter().enumerate() {
            for (branch, rules) in conditional.rules.iter().enumerate() {
                let placed = rules.iter().map(|(key, data)| Placed {
                    key: *key,
                    data: *data,
                    conditional: at,
                    branch,
                });
                self.conditional_rules.extend(placed);
            }
        }
        self.conditional_rules.sort_unstable_by_key(|placed| placed.key);
        for (at, attributes) in (1..).zip(&self.attributes) {
            // The bitmap of an attribute, if it has one, says nothing about types.
            if self.types.get(&at).is_some_and(|t| !t.is_attribute) {
                for attribute in attributes.iter() {
                    if let Some(attribute) = attribute.checked_add(1) {
                        self.members.entry(attribute).or_default().push(at);
                    }
                }
            }
        }
    }
}

/// Highest number and count of a symbol table.
fn table(c: &mut Cursor<'_>) -> Result<(u32, usize), PolicyError> {
    let highest = c.u32()?;
    Ok((highest, c.count()?))
}

fn read_permissions(c: &mut Cursor<'_>, count: u32) -> Result<HashMap<String, u32>, PolicyError> {
    if count > 32 {
        return Err(c.error("more than 32 permissions"));
    }
    let mut permissions = HashMap::new();
    for _ in 0..count {
        let [len, value] = c.words()?;
        let name = c.name(len)?;
        if !(1..=32).contains(&value) {
            return Err(c.error("a permission's number that cannot be"));
        }
        permissions.insert(name, 1 << (value - 1));
    }
    Ok(permissions)
}

fn read_class(
    c: &mut Cursor<'_>,
    commons: &HashMap<String, HashMap<String, u32>>,
    version: u32,
) -> Result<(u16, Class), PolicyError> {
    let [len, common_len, value, _, permissions, constraints] = c.words()?;
    let value = u16::try_from(value).map_err(|_| c.error("a class's number that cannot be"))?;
    let name = c.name(len)?;
    let mut class = Class { name, ..Class::default() };
    if common_len > 0 {
        let common = c.name(common_len)?;
        let common = commons.get(&common).ok_or_else(|| c.error("an unknown set of common permissions"))?;
        class.permissions.clone_from(common);
    }
    class.permissions.extend(read_permissions(c, permissions)?);
    class.constraints = constraint::read(c, constraints, version)?;
    let transitions = c.u32()?;
    constraint::read(c, transitions, version)?;
    if version >= 27 {
        c.words::<3>()?; // defaults of new objects
    }
    if version >= 28 {
        c.u32()?;
    }
    Ok((value, class))
}

/// None for rules that decide about no access.
fn read_rule(c: &mut Cursor<'_>) -> Result<Option<(Key, u32)>, PolicyError> {
    let [source, target, class, kind] = [c.u16()?, c.u16()?, c.u16()?, c.u16()?];
    let kind = kind & !rule::ENABLED;
    if kind & rule::XPERMS != 0 {
        c.bytes(2)?;
        c.words::<8>()?;
        return Ok(None);
    }
    let data = c.u32()?;
    let kept = matches!(kind, rule::ALLOWED | rule::AUDITDENY);
    Ok(kept.then_some(((source, target, class, kind), data)))
}

fn read_conditional(c: &mut Cursor<'_>) -> Result<Conditional, PolicyError> {
    c.u32()?; // its state, which follows from the booleans
    let mut conditional = Conditional::default();
    for _ in 0..c.count()? {
        let [kind, boolean] = c.words()?;
        conditional.steps.push(match kind {
            1 => Step::Boolean(boolean),
            2 => Step::Not,
            3 => Step::Or,
            4 => Step::And,
            5 => Step::Xor,
            6 => Step::Equal,
            7 => Step::Unequal,
            _ => return Err(c.error("an unknown operator")),
        });
    }
    for rules in &mut conditional.rules {
        for _ in 0..c.count()? {
            rules.extend(read_rule(c)?);
        }
    }
    Ok(conditional)
}

fn skip_roles_and_names(c: &mut Cursor<'_>, version: u32) -> Result<(), PolicyError> {
    c.section("role transitions");
    for _ in 0..c.count()? {
        c.words::<3>()?;
        if version >= 26 {
            c.u32()?;
        }
    }
    c.section("role rules");
    for _ in 0..c.count()? {
        c.words::<2>()?;
    }
    c.section("transitions by file name");
    if version < 25 {
        return Ok(());
    }
    for _ in 0..c.count()? {
        let len = c.u32()?;
        c.name(len)?;
        if version < 33 {
            c.words::<4>()?;
            continue;
        }
        let [_, _, count] = c.words()?;
        for _ in 0..c.fits(count)? {
            c.bitmap()?;
            c.u32()?;
        }
    }
    Ok(())
}

fn range(c: &mut Cursor<'_>) -> Result<(Level, Level), PolicyError> {
    let levels = c.u32()?;
    let low = c.u32()?;
    let high = match levels {
        1 => None,
        2 => Some(c.u32()?),
        _ => return Err(c.error("a range of neither one nor two levels")),
    };
    let low = Level { sensitivity: low, categories: c.bitmap()? };
    let high = match high {
        Some(sensitivity) => Level { sensitivity, categories: c.bitmap()? },
        None => low.clone(),
    };
    Ok((low, high))
}

fn level(c: &mut Cursor<'_>) -> Result<Level, PolicyError> {
    Ok(Level { sensitivity: c.u32()?, categories: c.bitmap()? })
}

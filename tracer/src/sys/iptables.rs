//! Rules of legacy xtables (`iptables-legacy`), as the kernel has them.
//!
//! Only tables that the namespace has already are asked for: the question would make the others.

use std::os::fd::AsRawFd as _;
use std::{fs, io};

use super::error::{Context as _, Error, Result};
use super::netns::NetNs;
use crate::firewall::{Base, Chain, Engine, Expr, Family, Header, Hook, Rule, Ruleset, Verdict, Xt};

/// IPT_SO_GET_INFO, IP6T_SO_GET_INFO.
const GET_INFO: i32 = 64;
/// IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES.
const GET_ENTRIES: i32 = 65;
/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;
/// struct ipt_get_entries before its entries, on 64 bits.
const ENTRIES: usize = 40;
/// Larger tables are not read: 64 MiB.
const MOST: usize = 1 << 26;

/// Tables with the priorities at which they look at packets (include/uapi/linux/netfilter_ipv4.h).
const TABLES: [(&str, i32); 5] =
    [("raw", -300), ("mangle", -150), ("nat", -100), ("filter", 0), ("security", 50)];

/// Sizes of struct ipt_entry and struct ip6t_entry, and where their fields are.
struct Layout {
    v6: bool,
    /// Address length.
    address: usize,
    /// Names of interfaces, masks behind them.
    devices: usize,
    protocol: usize,
    /// Flags; the inverted ones behind them.
    flags: usize,
    target_offset: usize,
    matches: usize,
}

const V4: Layout =
    Layout { v6: false, address: 4, devices: 16, protocol: 80, flags: 82, target_offset: 88, matches: 112 };
const V6: Layout = Layout {
    v6: true,
    address: 16,
    devices: 64,
    protocol: 128,
    flags: 131,
    target_offset: 140,
    matches: 168,
};

/// Adds every chain of legacy tables to `ruleset`.
///
/// # Errors
/// If a table that is there cannot be read.
pub fn read(ns: &NetNs, ruleset: &mut Ruleset) -> Result<()> {
    for (layout, names) in [(&V4, "ip_tables_names"), (&V6, "ip6_tables_names")] {
        let path = format!("/proc/thread-self/net/{names}");
        // Without the modules there is no such file.
        let list = ns.run(|| fs::read_to_string(&path).unwrap_or_default())?;
        for (table, priority) in TABLES.into_iter().filter(|(table, _)| list.lines().any(|l| l == *table)) {
            let (info, entries) = fetch(ns, layout, table)?;
            let chains = chains(layout, table, priority, &info, &entries);
            ruleset.chains.extend(
                chains.ok_or_else(|| {
                    Error::malformed(format!("read table {table}"), "its layout is another")
                })?,
            );
        }
    }
    Ok(())
}

fn fetch(ns: &NetNs, layout: &Layout, table: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let action = || format!("read the legacy table {table}");
    let (domain, level) =
        if layout.v6 { (libc::AF_INET6, libc::IPPROTO_IPV6) } else { (libc::AF_INET, libc::IPPROTO_IP) };
    let socket = ns.socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let ask = |option: i32, bytes: &mut [u8]| {
        let mut len = libc::socklen_t::try_from(bytes.len()).unwrap_or(0);
        // SAFETY: the buffer is live and `len` is its size; the kernel writes no more than that.
        let status = unsafe {
            libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut len)
        };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // struct ipt_getinfo: name, valid hooks, entries and underflows of each hook, number, size.
    let mut info = vec![0; NAME + 4 + 20 + 20 + 4 + 4];
    put(&mut info, table.as_bytes());
    ask(GET_INFO, &mut info).context(action)?;
    let size = usize::try_from(u32_at(&info, 80).unwrap_or(0)).unwrap_or(usize::MAX);
    if size > MOST {
        return Err(Error::malformed(action(), "it is too large"));
    }
    let mut entries = vec![0; ENTRIES + size];
    put(&mut entries, table.as_bytes());
    if let Some(place) = entries.get_mut(NAME..NAME + 4) {
        place.copy_from_slice(&u32::try_from(size).unwrap_or(0).to_ne_bytes());
    }
    // EAGAIN: the table was changed between the two questions.
    ask(GET_ENTRIES, &mut entries).context(action)?;
    Ok((info, entries.split_off(ENTRIES)))
}

fn put(bytes: &mut [u8], text: &[u8]) {
    for (to, from) in bytes.iter_mut().zip(text) {
        *to = *from;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn c_text(bytes: &[u8]) -> String {
    super::netlink::name(bytes)
}

/// Where the rules of built-in chains begin, and where their policies stand.
struct Builtin {
    hook: Hook,
    entry: usize,
    underflow: usize,
}

fn chains(layout: &Layout, table: &str, priority: i32, info: &[u8], entries: &[u8]) -> Option<Vec<Chain>> {
    let valid = u32_at(info, NAME)?;
    let mut builtin = Vec::new();
    for (number, hook) in Hook::ALL.into_iter().enumerate() {
        if valid >> number & 1 == 1 {
            let entry = usize::try_from(u32_at(info, NAME + 4 + number * 4)?).ok()?;
            let underflow = usize::try_from(u32_at(info, NAME + 24 + number * 4)?).ok()?;
            builtin.push(Builtin { hook, entry, underflow });
        }
    }
    // The names of chains, by the offset of their first rule.
    let mut names: Vec<(usize, String)> =
        builtin.iter().map(|b| (b.entry, b.hook.name().to_uppercase())).collect();
    let mut at = 0;
    while at < entries.len() {
        let next = at + step(layout, entries, at)?;
        if let Some(name) = chain_head(layout, entries, at) {
            names.push((next, name));
        }
        at = next;
    }
    let mut found: Vec<Chain> = Vec::new();
    let mut ended = true;
    at = 0;
    while at < entries.len() {
        let next = at + step(layout, entries, at)?;
        if let Some((_, name)) = names.iter().find(|(start, _)| *start == at) {
            let base = builtin.iter().find(|b| b.entry == at).map(|b| Base {
                hook: Some(b.hook),
                // The kernel translates sources later (NF_IP_PRI_NAT_SRC).
                priority: if table == "nat" && matches!(b.hook, Hook::Input | Hook::Postrouting) {
                    100
                } else {
                    priority
                },
                policy_drop: false,
                nat: table == "nat",
            });
            ended = false;
            let family = if layout.v6 { Family::Ip6 } else { Family::Ip };
            found.push(Chain {
                engine: Engine::Legacy,
                family,
                table: table.to_owned(),
                name: name.clone(),
                base,
                rules: Vec::new(),
            });
        }
        if chain_head(layout, entries, at).is_some() || ended {
            at = next;
            continue;
        }
        let chain = found.last_mut()?;
        let rule = rule(layout, entries, at, next, &names)?;
        let policy = builtin.iter().any(|b| b.underflow == at);
        // The end of a user's chain goes back to its caller.
        let back = next == entries.len() || chain_head(layout, entries, next).is_some();
        let plain = matches!(rule.exprs.as_slice(), [Expr::Header(_), Expr::Verdict(_)]);
        if policy {
            if let Some(base) = chain.base.as_mut() {
                base.policy_drop = rule.exprs.contains(&Expr::Verdict(Verdict::Drop));
            }
            ended = true;
        } else if chain.base.is_none()
            && back
            && plain
            && rule.exprs.contains(&Expr::Verdict(Verdict::Return))
        {
            ended = true;
        } else {
            chain.rules.push(rule);
        }
        at = next;
    }
    Some(found)
}

fn step(layout: &Layout, entries: &[u8], at: usize) -> Option<usize> {
    let next = usize::from(u16_at(entries, at + layout.target_offset + 2)?);
    (next >= layout.matches && at + next <= entries.len()).then_some(next)
}

/// The name of the chain that begins behind this entry.
fn chain_head(layout: &Layout, entries: &[u8], at: usize) -> Option<String> {
    let target = at + usize::from(u16_at(entries, at + layout.target_offset)?);
    let name = c_text(entries.get(target + 2..target + 31)?);
    (name == "ERROR").then(|| c_text(entries.get(target + 32..target + 62).unwrap_or_default()))
}

fn rule(layout: &Layout, entries: &[u8], at: usize, next: usize, names: &[(usize, String)]) -> Option<Rule> {
    let bytes = entries.get(at..next)?;
    let target = usize::from(u16_at(bytes, layout.target_offset)?);
    let mut exprs = vec![Expr::Header(header(layout, bytes)?)];
    let mut place = layout.matches;
    while place < target {
        let (size, ext) = extension(bytes, place)?;
        exprs.push(Expr::Match(ext));
        place += size;
    }
    let (_, ext) = extension(bytes, target)?;
    if ext.name.is_empty() {
        let goto = *bytes.get(layout.flags)? & 2 != 0;
        exprs.push(Expr::Verdict(match u32_at(&ext.info, 0)?.cast_signed() {
            -1 => Verdict::Drop,
            -2 => Verdict::Accept,
            -4 => Verdict::Queue,
            -5 => Verdict::Return,
            to => {
                let to = usize::try_from(to).ok()?;
                match names.iter().find(|(start, _)| *start == to) {
                    // A rule without a target names the one behind it.
                    _ if to == next && !goto => Verdict::Continue,
                    Some((_, name)) if goto => Verdict::Goto(name.clone()),
                    Some((_, name)) => Verdict::Jump(name.clone()),
                    None => return None,
                }
            }
        }));
    } else {
        exprs.push(Expr::Target(ext));
    }
    Some(Rule { handle: 0, exprs, comment: None })
}

/// struct xt_entry_match, struct xt_entry_target.
fn extension(bytes: &[u8], at: usize) -> Option<(usize, Xt)> {
    let size = usize::from(u16_at(bytes, at)?);
    let info = bytes.get(at + 32..at + size)?.to_vec();
    let name = c_text(bytes.get(at + 2..at + 31)?);
    Some((size, Xt { name, revision: u32::from(*bytes.get(at + 31)?), info }))
}

fn header(layout: &Layout, bytes: &[u8]) -> Option<Header> {
    let flags = *bytes.get(layout.flags)?;
    let invert = *bytes.get(layout.flags + 1)?;
    let part = |at: usize, len: usize| bytes.get(at..at + len).map(<[u8]>::to_vec);
    let (a, d) = (layout.address, layout.devices);
    Some(Header {
        source: (part(0, a)?, part(2 * a, a)?, invert & 8 != 0),
        destination: (part(a, a)?, part(3 * a, a)?, invert & 16 != 0),
        protocol: (u16_at(bytes, layout.protocol)?, invert & 0x40 != 0),
        input: (part(d, 16)?, part(d + 32, 16)?, invert & 1 != 0),
        output: (part(d + 16, 16)?, part(d + 48, 16)?, invert & 2 != 0),
        // IPT_F_FRAG in IPv4, IP6T_F_TOS in IPv6; and their opposites.
        more: (if layout.v6 { flags & 2 != 0 } else { flags & 1 != 0 }) || invert & 0x24 != 0,
    })
}

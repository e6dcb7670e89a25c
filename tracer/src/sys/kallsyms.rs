//! Kernel symbols: address ranges of named functions, and names for addresses.
//!
//! The table has some 200,000 lines, so it is streamed and nothing but the answer is kept.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader},
};

/// Where the kernel lists its symbols; addresses read as 0 without `CAP_SYSLOG` (kptr_restrict).
pub const KALLSYMS: &str = "/proc/kallsyms";

/// Parses one line, `ffffffff81000000 T name [module]`.
fn parse(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let kind = words.next()?;
    let name = words.next()?;
    (address != 0 && matches!(kind, "t" | "T" | "w" | "W")).then_some((address, name))
}

/// Address ranges `[start, end)` of the named functions; a function ends where the next symbol begins.
/// Names that are not found are absent.
///
/// # Errors
/// If the table cannot be read.
pub fn ranges(table: impl BufRead, names: &[&str]) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut found: HashMap<String, (u64, u64)> = HashMap::new();
    for_each(table, |address, name| {
        // The table is sorted within the kernel image, but not across modules: the end is the nearest
        // symbol above.
        for (start, end) in found.values_mut() {
            if address > *start && address < *end {
                *end = address;
            }
        }
        if names.contains(&name) {
            found.insert(name.to_owned(), (address, u64::MAX));
        }
    })?;
    Ok(found)
}

/// For each address the function that holds it; addresses below every symbol are absent.
///
/// # Errors
/// If the table cannot be read.
pub fn names(table: impl BufRead, addresses: &[u64]) -> io::Result<HashMap<u64, String>> {
    let mut best: HashMap<u64, (u64, String)> = HashMap::new();
    for_each(table, |start, name| {
        for address in addresses {
            if start <= *address && best.get(address).is_none_or(|(other, _)| start > *other) {
                best.insert(*address, (start, name.to_owned()));
            }
        }
    })?;
    Ok(best.into_iter().map(|(address, (_, name))| (address, name)).collect())
}

/// Address of a variable; None if the kernel does not list it (CONFIG_KALLSYMS_ALL).
///
/// # Errors
/// If the table cannot be read.
pub fn address(mut table: impl BufRead, variable: &str) -> io::Result<Option<u64>> {
    let mut line = String::new();
    loop {
        line.clear();
        if table.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_ascii_whitespace();
        let (address, kind, name) = (words.next(), words.next(), words.next());
        // Modules come last, and may use any name.
        if name == Some(variable) && words.next().is_none() && kind.is_some_and(|k| "dDrRbB".contains(k)) {
            let address = address.and_then(|text| u64::from_str_radix(text, 16).ok());
            return Ok(address.filter(|address| *address != 0));
        }
    }
}

fn for_each(mut table: impl BufRead, mut f: impl FnMut(u64, &str)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if table.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Some((address, name)) = std::str::from_utf8(&line).ok().and_then(parse) {
            f(address, name);
        }
    }
}

/// Opens the running kernel's table.
///
/// # Errors
/// If `/proc/kallsyms` cannot be opened.
pub fn open() -> io::Result<impl BufRead> {
    Ok(BufReader::with_capacity(1 << 16, std::fs::File::open(KALLSYMS)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"ffffffff81000000 T _text\nffffffff81000100 t nf_hook_slow\nffffffff81000400 T \
        ip_output\nffffffff81000500 D some_data\nffffffffc0000000 t nft_do_chain\t[nf_tables]\n";

    #[test]
    fn finds_ranges() {
        let found = ranges(TABLE, &["nf_hook_slow", "nope"]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found["nf_hook_slow"], (0xffff_ffff_8100_0100, 0xffff_ffff_8100_0400));
    }

    #[test]
    fn names_addresses() {
        let (inside, module) = (0xffff_ffff_8100_0123, 0xffff_ffff_c000_0040);
        let found = names(TABLE, &[inside, module, 5]).unwrap();
        assert_eq!(found[&inside], "nf_hook_slow");
        assert_eq!(found[&module], "nft_do_chain");
        assert!(!found.contains_key(&5));
    }

    #[test]
    fn variables_have_addresses() {
        assert_eq!(address(TABLE, "some_data").unwrap(), Some(0xffff_ffff_8100_0500));
        assert_eq!(address(TABLE, "ip_output").unwrap(), None, "a function");
        assert_eq!(address(TABLE, "nope").unwrap(), None);
        assert_eq!(address(&b"0000000000000000 D some_data\n"[..], "some_data").unwrap(), None);
    }

    #[test]
    fn hidden_addresses_are_not_symbols() {
        assert!(ranges(&b"0000000000000000 T nf_hook_slow\n"[..], &["nf_hook_slow"]).unwrap().is_empty());
    }
}

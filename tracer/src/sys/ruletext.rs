//! The texts of firewall rules as the administrator's own tools print them. They only list, and are killed when they
//! take too long; without them there are the texts of `firewall::text`.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{netns::NetNs, proc};
use crate::firewall::{Chain, Family};

/// How long a tool may take: it reads the whole table.
const LIMIT: Duration = Duration::from_millis(1500);
/// More output than that is no use.
const MOST: u64 = 16 << 20;

/// A rule as `nft -a list chain` prints it; None if nft is not there or shows no such handle.
#[must_use]
pub fn nft(ns: &NetNs, chain: &Chain, handle: u64) -> Option<String> {
    let printed = run(ns, "nft", &["-a", "list", "chain", chain.family.name(), &chain.table, &chain.name])?;
    nft_line(&printed, handle)
}

fn nft_line(printed: &str, handle: u64) -> Option<String> {
    let mark = format!("# handle {handle}");
    printed.lines().find_map(|line| {
        let rule = line.trim().strip_suffix(&mark)?.trim_end();
        (!rule.ends_with('{')).then(|| proc::printable(rule.as_bytes()))
    })
}

/// The `number`th rule of a chain, from 0, as iptables-nft-save prints it; `rules`: how many it must have.
#[must_use]
pub fn iptables(ns: &NetNs, chain: &Chain, number: usize, rules: usize) -> Option<String> {
    let program = if chain.family == Family::Ip6 { "ip6tables-nft-save" } else { "iptables-nft-save" };
    let printed = run(ns, program, &["-t", &chain.table])?;
    iptables_line(&printed, &chain.name, number, rules)
}

fn iptables_line(printed: &str, chain: &str, number: usize, rules: usize) -> Option<String> {
    let begin = format!("-A {chain} ");
    let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with(&begin)).collect();
    // Rules that it cannot print would shift the others.
    (lines.len() == rules).then(|| lines.get(number).map(|line| proc::printable(line.as_bytes()))).flatten()
}

/// What a program prints when run in a network namespace.
fn run(ns: &NetNs, program: &str, arguments: &[&str]) -> Option<String> {
    let mut child = ns
        .run(|| {
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        })
        .ok()?
        .ok()?;
    let output = child.stdout.take()?;
    let (send, receive) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(MOST).read_to_end(&mut bytes);
        // Nobody may wait any more.
        let _ = send.send(read.map(|_| bytes));
    });
    let printed = receive.recv_timeout(LIMIT).ok().and_then(Result::ok);
    if printed.is_none() {
        // It has its end already, or gets it here.
        let _ = child.kill();
    }
    let status = child.wait().ok()?;
    let _ = reader.join();
    let printed = printed.filter(|_| status.success())?;
    Some(String::from_utf8_lossy(&printed).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_rule_by_its_handle() {
        let printed = "table inet lab { # handle 1\n\tchain output { # handle 4\n\t\ttype filter hook output priority \
                       filter; policy accept;\n\t\ttcp dport 3000 counter packets 1 bytes 60 drop # handle 14\n\t\ttcp \
                       dport 3001 drop comment \"# handle 4\" # handle 5\n\t}\n}\n";
        assert_eq!(nft_line(printed, 14).unwrap(), "tcp dport 3000 counter packets 1 bytes 60 drop");
        assert_eq!(nft_line(printed, 5).unwrap(), "tcp dport 3001 drop comment \"# handle 4\"");
        assert_eq!(nft_line(printed, 4), None);
        assert_eq!(nft_line(printed, 1), None);
    }

    #[test]
    fn finds_a_rule_by_its_place() {
        let printed = "*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -o lo -j ACCEPT\n-A OUTPUTX -j DROP\n-A OUTPUT -j DROP\n";
        assert_eq!(iptables_line(printed, "OUTPUT", 1, 2).unwrap(), "-A OUTPUT -j DROP");
        assert_eq!(iptables_line(printed, "OUTPUT", 1, 3), None);
    }
}

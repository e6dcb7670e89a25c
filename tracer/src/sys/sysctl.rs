//! Kernel settings and counters of a namespace that bear on connecting.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::error::{Context as _, Result};
use super::netns::NetNs;
use super::proc;

/// Settings under /proc/sys/net; `None` where the kernel has no such file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// net.ipv4.ip_local_port_range, both ends included.
    pub local_ports: Option<(u16, u16)>,
    /// net.ipv4.ip_local_reserved_ports.
    pub reserved_ports: Vec<RangeInclusive<u16>>,
    /// net.ipv4.tcp_syn_retries.
    pub syn_retries: Option<u32>,
    /// net.ipv4.tcp_tw_reuse: 0 off, 1 on, 2 loopback only.
    pub tw_reuse: Option<u32>,
    /// net.core.somaxconn.
    pub somaxconn: Option<u32>,
    /// net.ipv4.tcp_max_syn_backlog.
    pub max_syn_backlog: Option<u32>,
    /// net.ipv4.tcp_syncookies.
    pub syncookies: Option<u32>,
    /// net.ipv4.tcp_abort_on_overflow: 1 makes a full accept queue answer RST.
    pub abort_on_overflow: Option<u32>,
    /// net.ipv6.conf.all.disable_ipv6.
    pub disable_ipv6_all: Option<bool>,
    /// net.ipv6.conf.lo.disable_ipv6: if set, ::1 does not exist.
    pub disable_ipv6_lo: Option<bool>,
}

impl Settings {
    /// Ports the kernel may pick for one local address and one destination.
    pub fn ephemeral_ports(&self) -> Option<u32> {
        let (first, last) = self.local_ports?;
        let free = |port: &u16| !self.reserved_ports.iter().any(|range| range.contains(port));
        u32::try_from((first..=last).filter(free).count()).ok()
    }
}

/// Counters of a namespace since it began; compare two readings. `None` where the kernel lacks one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// TcpExt ListenOverflows: accept queues that were full.
    pub listen_overflows: Option<u64>,
    /// TcpExt ListenDrops: SYNs and final ACKs dropped by listeners, for any reason.
    pub listen_drops: Option<u64>,
    /// TcpExt TCPReqQFullDrop: SYN queue full, no cookies.
    pub syn_queue_full: Option<u64>,
    /// TcpExt TCPSynRetrans.
    pub syn_retransmits: Option<u64>,
    /// TcpExt TCPTimeouts.
    pub timeouts: Option<u64>,
    /// Tcp ActiveOpens.
    pub active_opens: Option<u64>,
    /// Tcp AttemptFails.
    pub attempt_fails: Option<u64>,
    /// Tcp EstabResets.
    pub established_resets: Option<u64>,
    /// Tcp OutRsts.
    pub resets_sent: Option<u64>,
    /// Tcp RetransSegs.
    pub retransmits: Option<u64>,
    /// Ip OutNoRoutes.
    pub out_no_routes: Option<u64>,
}

/// Reads the settings of a namespace.
pub fn settings(ns: &NetNs) -> Result<Settings> {
    // /proc/sys/net answers for the namespace of the thread that reads it.
    ns.run(|| Settings {
        local_ports: read("ipv4/ip_local_port_range").and_then(|text| parse_range(&text)),
        reserved_ports: read("ipv4/ip_local_reserved_ports")
            .map(|text| parse_port_list(&text))
            .unwrap_or_default(),
        syn_retries: number("ipv4/tcp_syn_retries"),
        tw_reuse: number("ipv4/tcp_tw_reuse"),
        somaxconn: number("core/somaxconn"),
        max_syn_backlog: number("ipv4/tcp_max_syn_backlog"),
        syncookies: number("ipv4/tcp_syncookies"),
        abort_on_overflow: number("ipv4/tcp_abort_on_overflow"),
        disable_ipv6_all: number("ipv6/conf/all/disable_ipv6").map(|value| value != 0),
        disable_ipv6_lo: number("ipv6/conf/lo/disable_ipv6").map(|value| value != 0),
    })
}

/// Reads the counters of a namespace.
pub fn counters(ns: &NetNs) -> Result<Counters> {
    // Not /proc/net: that is the main thread's namespace.
    let read = |name: &str| proc::read_up_to(format!("/proc/thread-self/net/{name}"), 64 * 1024);
    let (snmp, netstat) =
        ns.run(|| Ok((read("snmp")?, read("netstat")?)))?.context(|| "read TCP counters".to_owned())?;
    Ok(parse_counters(&String::from_utf8_lossy(&snmp), &String::from_utf8_lossy(&netstat)))
}

fn read(name: &str) -> Option<String> {
    proc::read_trimmed(format!("/proc/sys/net/{name}")).ok()
}

fn number(name: &str) -> Option<u32> {
    read(name)?.parse().ok()
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_ascii_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// `8080,9000-9010`.
fn parse_port_list(text: &str) -> Vec<RangeInclusive<u16>> {
    let parse = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(parse).collect()
}

/// Both files come in pairs of lines: `Proto: names`, `Proto: values`.
fn parse_pairs<'a>(text: &'a str, values: &mut HashMap<(&'a str, &'a str), u64>) {
    let mut lines = text.lines();
    while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
        let mut names = names.split_ascii_whitespace();
        let mut numbers = numbers.split_ascii_whitespace();
        let (Some(proto), Some(same)) = (names.next(), numbers.next()) else { return };
        if proto != same {
            return;
        }
        for (name, number) in names.zip(numbers) {
            if let Ok(number) = number.parse() {
                values.insert((proto.trim_end_matches(':'), name), number);
            }
        }
    }
}

fn parse_counters(snmp: &str, netstat: &str) -> Counters {
    let mut values = HashMap::new();
    parse_pairs(snmp, &mut values);
    parse_pairs(netstat, &mut values);
    let get = |proto, name| values.get(&(proto, name)).copied();
    Counters {
        listen_overflows: get("TcpExt", "ListenOverflows"),
        listen_drops: get("TcpExt", "ListenDrops"),
        syn_queue_full: get("TcpExt", "TCPReqQFullDrop"),
        syn_retransmits: get("TcpExt", "TCPSynRetrans"),
        timeouts: get("TcpExt", "TCPTimeouts"),
        active_opens: get("Tcp", "ActiveOpens"),
        attempt_fails: get("Tcp", "AttemptFails"),
        established_resets: get("Tcp", "EstabResets"),
        resets_sent: get("Tcp", "OutRsts"),
        retransmits: get("Tcp", "RetransSegs"),
        out_no_routes: get("Ip", "OutNoRoutes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    #[test]
    fn counters_by_name() {
        let snmp = "Ip: A OutNoRoutes\nIp: 1 7\nTcp: MaxConn ActiveOpens OutRsts\nTcp: -1 5 6\n";
        let found = parse_counters(snmp, "TcpExt: ListenOverflows ListenDrops\nTcpExt: 3 4\n");
        assert_eq!((found.out_no_routes, found.active_opens, found.resets_sent), (Some(7), Some(5), Some(6)));
        assert_eq!((found.listen_overflows, found.listen_drops, found.timeouts), (Some(3), Some(4), None));
        assert_eq!(parse_counters("Ip: x\nTcp: 1\n", "\n\n"), Counters::default());
    }

    #[test]
    fn port_lists() {
        assert_eq!(parse_port_list("8080,9000-9010"), [8080..=8080, 9000..=9010]);
        assert!(parse_port_list("").is_empty() && parse_port_list("x,-,70000").is_empty());
        let settings = Settings {
            local_ports: Some((10, 20)),
            reserved_ports: parse_port_list("12-14,99"),
            ..Settings::default()
        };
        assert_eq!(settings.ephemeral_ports(), Some(8));
    }

    #[test]
    fn each_namespace_has_its_own() {
        let Some(ns) = testing::namespace() else { return };
        testing::run(
            &ns,
            "cd /proc/sys/net; echo 40000 40009 >ipv4/ip_local_port_range; echo 40003 >ipv4/ip_local_reserved_ports; \
             echo 77 >core/somaxconn; echo 1 >ipv6/conf/lo/disable_ipv6",
        );
        let found = settings(&ns).unwrap();
        assert_eq!((found.local_ports, found.ephemeral_ports()), (Some((40000, 40009)), Some(9)));
        assert_eq!(
            (found.somaxconn, found.disable_ipv6_lo, found.disable_ipv6_all),
            (Some(77), Some(true), Some(false))
        );
        assert_eq!(counters(&ns).unwrap().active_opens, Some(0));
    }
}

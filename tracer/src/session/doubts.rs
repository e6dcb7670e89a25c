//! What else can have answered a connection of `why502 check`, or led it elsewhere: a trace sees the socket and the kernel's
//! own word, a check sees neither. So before anything is proven by elimination, everything is asked that could have done it
//! without being a firewall's rule.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    time::{Duration, Instant},
};

use crate::{
    event::{Attempt, Stage},
    sys::{
        bpfprog::{self, Moment},
        link,
        netns::NetNs,
        proc, qdisc, unit,
    },
};

/// As other facts.
const FRESH: Duration = Duration::from_millis(500);
/// Queueing disciplines that take no filters.
const PLAIN: [&str; 6] = ["noqueue", "pfifo", "bfifo", "pfifo_fast", "fq", "netem"];
// `enum bpf_prog_type` (include/uapi/linux/bpf.h).
const SCHED_CLS: u32 = 3;
const SCHED_ACT: u32 = 4;
const XDP: u32 = 6;
const LWT: [u32; 4] = [10, 11, 12, 19];
const CGROUP_SOCK_ADDR: u32 = 18;
const SK_LOOKUP: u32 = 30;

/// Rivals of a verdict that elimination has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Doubts {
    /// The connection may have gone to another address than the one that was asked for.
    pub(super) led_away: Option<String>,
    /// On the way to an address of this host something else than its own stack may have answered.
    pub(super) answered: Option<String>,
}

/// What was seen; None where it could not be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    /// Kinds of all loaded BPF programs.
    kinds: Option<BTreeSet<u32>>,
    /// Programs that may change the address of connect() or bind(), by name.
    connect: Option<Vec<String>>,
    /// sk_lookup programs of the namespace.
    sk_lookup: Option<usize>,
    /// tc programs on lo that need no queueing discipline.
    tcx: Option<usize>,
    /// An XDP program on lo.
    xdp: Option<bool>,
    /// Queueing disciplines of lo.
    qdiscs: Option<Vec<String>>,
    /// IPVS has services for TCP.
    ipvs: Option<bool>,
}

/// Asks, and remembers for a moment.
#[derive(Debug, Default)]
pub(super) struct Asker {
    known: HashMap<(u32, Moment), (Doubts, Instant)>,
}

impl Asker {
    pub(super) fn ask(&mut self, attempt: &Attempt, ns: Option<&NetNs>) -> Doubts {
        let moment = match (attempt.stage, &attempt.unix, attempt.remote.is_ipv6()) {
            (Stage::Bind, _, false) => Moment::Bind4,
            (Stage::Bind, _, true) => Moment::Bind6,
            (_, Some(_), _) => Moment::ConnectUnix,
            (_, None, false) => Moment::Connect4,
            (_, None, true) => Moment::Connect6,
        };
        let key = (attempt.worker, moment);
        if let Some((found, _)) = self.known.get(&key).filter(|(_, at)| at.elapsed() < FRESH) {
            return found.clone();
        }
        let found = judge(&look(attempt.worker, moment, ns));
        self.known.insert(key, (found.clone(), Instant::now()));
        found
    }
}

fn look(worker: u32, moment: Moment, ns: Option<&NetNs>) -> Seen {
    let lo = ns.and_then(|ns| link::links(ns).ok()?.into_iter().find(|link| link.name == "lo"));
    let on_lo = ns.zip(lo.as_ref());
    Seen {
        kinds: bpfprog::kinds().ok(),
        connect: connect(worker, moment),
        sk_lookup: ns.and_then(|ns| bpfprog::sk_lookup(ns).ok()),
        tcx: on_lo.and_then(|(ns, lo)| bpfprog::tcx(ns, lo.index).ok()),
        xdp: lo.as_ref().map(|lo| lo.xdp),
        qdiscs: on_lo.and_then(|(ns, lo)| qdisc::kinds(ns, lo.index).ok()),
        ipvs: ipvs(worker),
    }
}

/// The programs in force for the worker, and for why502 itself, which made the connection.
fn connect(worker: u32, moment: Moment) -> Option<Vec<String>> {
    let mount = unit::cgroup_mount()?;
    let mut names = BTreeSet::new();
    for pid in [worker, std::process::id()] {
        let folder = mount.join(unit::cgroup_of(pid)?.trim_start_matches('/'));
        match bpfprog::effective(&folder, moment) {
            Ok(found) => names.extend(found.into_iter().map(|program| {
                let name = if program.name.is_empty() { "without a name" } else { &program.name };
                format!("{name} (id {})", program.id)
            })),
            // A kernel that has no such moment.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(_) => return None,
        }
    }
    Some(names.into_iter().collect())
}

/// Whether the namespace of the worker has IPVS services for TCP or marks: it takes packets to own addresses to other servers.
fn ipvs(worker: u32) -> Option<bool> {
    match proc::read_up_to(format!("/proc/{worker}/net/ip_vs"), 1 << 20) {
        Ok(bytes) => Some(has_services(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

fn has_services(table: &[u8]) -> bool {
    String::from_utf8_lossy(table).lines().any(|line| line.starts_with("TCP ") || line.starts_with("FWM "))
}

/// What of it casts doubt. Where no program of a kind is loaded at all, none is in force anywhere.
fn judge(seen: &Seen) -> Doubts {
    let loaded = |kinds: &[u32]| {
        seen.kinds.as_ref().is_none_or(|loaded| kinds.iter().any(|kind| loaded.contains(kind)))
    };
    let led_away = if loaded(&[CGROUP_SOCK_ADDR]) {
        match seen.connect.as_deref() {
            Some([]) => None,
            Some(names) => Some(format!(
                "a program of the worker's cgroup that leads connections elsewhere: {}",
                names.join(", ")
            )),
            None => Some(
                "a program of the worker's cgroup that leads connections elsewhere: those in force cannot be listed"
                    .to_owned(),
            ),
        }
    } else {
        None
    };
    let filtered =
        seen.qdiscs.as_ref().is_none_or(|all| all.iter().any(|kind| !PLAIN.contains(&kind.as_str())));
    let rival = if seen.ipvs != Some(false) {
        Some("IPVS, which leads connections to own addresses to other servers, and one of those refused")
    } else if loaded(&[SK_LOOKUP]) && seen.sk_lookup != Some(0) {
        Some(
            "an sk_lookup program of nginx's network namespace, which chooses the socket or turns connections away",
        )
    } else if filtered || (loaded(&[SCHED_CLS, SCHED_ACT]) && seen.tcx != Some(0)) {
        Some("a tc filter or program on lo that answers, or leads packets elsewhere")
    } else if loaded(&[XDP]) && seen.xdp != Some(false) {
        Some("an XDP program on lo that answers, or leads packets elsewhere")
    } else if loaded(&LWT) {
        Some("a BPF program of a route (lightweight tunnel) that answers, or leads packets elsewhere")
    } else {
        None
    };
    Doubts { led_away, answered: rival.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything was asked, and there is nothing.
    fn nothing() -> Seen {
        Seen {
            kinds: Some(BTreeSet::new()),
            connect: Some(Vec::new()),
            sk_lookup: Some(0),
            tcx: Some(0),
            xdp: Some(false),
            qdiscs: Some(vec!["noqueue".to_owned()]),
            ipvs: Some(false),
        }
    }

    fn with(kinds: &[u32], change: impl Fn(&mut Seen)) -> Doubts {
        let mut seen = Seen { kinds: Some(kinds.iter().copied().collect()), ..nothing() };
        change(&mut seen);
        judge(&seen)
    }

    #[test]
    fn whoever_can_have_answered_casts_doubt() {
        assert_eq!(judge(&nothing()), Doubts::default());
        let says = |doubts: Doubts, word: &str| {
            assert_eq!(doubts.led_away, None);
            assert!(doubts.answered.as_ref().is_some_and(|text| text.contains(word)), "{word}: {doubts:?}");
        };
        says(with(&[SK_LOOKUP], |seen| seen.sk_lookup = Some(1)), "sk_lookup");
        says(with(&[SCHED_CLS], |seen| seen.tcx = Some(2)), "tc");
        says(with(&[XDP], |seen| seen.xdp = Some(true)), "XDP");
        // An action such as pedit or mirred is no program.
        says(with(&[], |seen| seen.qdiscs = Some(vec!["clsact".to_owned()])), "tc");
        says(with(&[], |seen| seen.ipvs = Some(true)), "IPVS");
        says(with(&[11], |_| {}), "tunnel");
        let connect = with(&[CGROUP_SOCK_ADDR], |seen| seen.connect = Some(vec!["sock4 (id 7)".to_owned()]));
        assert!(connect.led_away.is_some_and(|text| text.contains("sock4 (id 7)")));
        assert_eq!(connect.answered, None);
    }

    #[test]
    fn what_is_loaded_and_in_force_elsewhere_casts_none() {
        let elsewhere = with(&[SK_LOOKUP, SCHED_CLS, SCHED_ACT, XDP, CGROUP_SOCK_ADDR, 2, 8, 29], |_| {});
        assert_eq!(elsewhere, Doubts::default());
        let plain = with(&[], |seen| seen.qdiscs = Some(vec!["netem".to_owned(), "fq".to_owned()]));
        assert_eq!(plain, Doubts::default());
    }

    #[test]
    fn what_cannot_be_asked_is_not_taken_for_absent() {
        let blind = judge(&Seen::default());
        assert!(blind.led_away.is_some() && blind.answered.is_some());
        // But what is not loaded needs no asking.
        let none = with(&[], |seen| {
            seen.connect = None;
            seen.sk_lookup = None;
            seen.tcx = None;
            seen.xdp = None;
        });
        assert_eq!(none, Doubts::default());
        assert!(with(&[CGROUP_SOCK_ADDR], |seen| seen.connect = None).led_away.is_some());
        assert!(with(&[], |seen| seen.qdiscs = None).answered.is_some());
    }

    #[test]
    fn services_of_ipvs_are_told_from_its_headings_and_from_datagrams() {
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        assert!(!has_services(head.as_bytes()));
        assert!(!has_services(format!("{head}UDP  0A600001:0035 rr \n").as_bytes()));
        assert!(has_services(format!("{head}TCP  0A600001:0050 rr \n").as_bytes()));
        assert!(has_services(format!("{head}FWM  00000001 rr \n").as_bytes()));
    }
}

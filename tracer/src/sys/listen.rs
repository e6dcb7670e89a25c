//! Who listens where: on the address a worker tried, beside it, or in another namespace.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::error::Result;
use super::netns::{self, NetNs, Resident};
use super::owners::{self, Budget, Owner, Owners};
use super::route;
use super::sockdiag::{self, Listener};

/// A listener and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The socket.
    pub listener: Listener,
    /// The process; `None` when it was not found (see [`ListenerReport::owners_complete`]).
    pub owner: Option<Owner>,
}

/// What listens around a destination.
#[derive(Clone, Debug)]
pub struct ListenerReport {
    /// Sockets that accept connections to the destination, the one the kernel prefers first. Empty when the
    /// destination is not an address of this namespace.
    pub exact: Vec<Found>,
    /// Same port, but an address (or interface, or IP version) that does not serve the destination.
    pub other_address: Vec<Found>,
    /// A port that looks like a slip of the wanted one, best first, at most three.
    pub near_port: Vec<Found>,
    /// Whether the destination is an address of this namespace.
    pub is_local_address: bool,
    /// Whether the search for owners saw everything.
    pub owners_complete: bool,
}

/// Looks at one namespace. Two netlink queries, and one scan of /proc when there is an owner to name.
pub fn report(ns: &NetNs, dest: SocketAddr) -> Result<ListenerReport> {
    let is_local = route::is_local(ns, dest.ip())?;
    let sorted = sort(sockdiag::listeners(ns)?, dest, is_local);
    let inodes: Vec<u32> = sorted.all().map(|listener| listener.inode).collect();
    let owners = owners::find(&inodes, Budget::default());
    let own = |list: Vec<Listener>| list.into_iter().map(|listener| attribute(listener, &owners)).collect();
    Ok(ListenerReport {
        exact: own(sorted.exact),
        other_address: own(sorted.other_address),
        near_port: own(sorted.near_port),
        is_local_address: is_local,
        owners_complete: owners.complete,
    })
}

fn attribute(listener: Listener, owners: &Owners) -> Found {
    let owner = owners.get(listener.inode).cloned();
    Found { listener, owner }
}

/// Another namespace where the wanted port is served.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// The namespace.
    pub resident: Resident,
    /// The destination is an address of that namespace, so the packets were meant for it. Never true for
    /// loopback, which every namespace has for itself.
    pub has_address: bool,
    /// Listeners on the port there. Empty is a finding too, when `has_address` is set.
    pub listeners: Vec<Found>,
}

/// Looks through the other network namespaces of the host for the destination's port or address: "listens, but
/// in the container" and "is that container's address, and nothing listens there". Skips what it may not enter.
/// The second value is false when the search stopped at its limits.
pub fn elsewhere(own: &NetNs, dest: SocketAddr) -> Result<(Vec<Elsewhere>, bool)> {
    const MOST: usize = 256;
    const LIMIT: Duration = Duration::from_millis(500);
    let end = Instant::now() + LIMIT;
    let residents = netns::all(MOST)?;
    let mut complete = residents.len() < MOST;
    let mut raw = Vec::new();
    for resident in residents {
        if resident.inum == own.inum() {
            continue;
        }
        if Instant::now() > end {
            complete = false;
            break;
        }
        let looked = resident.open().and_then(|ns| look(&ns, dest));
        match looked {
            Ok((has_address, listeners)) if has_address || !listeners.is_empty() => {
                raw.push((resident, has_address, listeners));
            }
            Ok(_) => {}
            Err(error) => complete &= error.is_gone(),
        }
    }
    let inodes: Vec<u32> = raw.iter().flat_map(|(_, _, list)| list.iter().map(|one| one.inode)).collect();
    let owners = owners::find(&inodes, Budget::default());
    let found = raw.into_iter().map(|(resident, has_address, listeners)| {
        let listeners = listeners.into_iter().map(|listener| attribute(listener, &owners)).collect();
        Elsewhere { resident, has_address, listeners }
    });
    Ok((found.collect(), complete))
}

fn look(ns: &NetNs, dest: SocketAddr) -> Result<(bool, Vec<Listener>)> {
    let ip = sockdiag::effective(dest.ip());
    let has_address = !ip.is_loopback() && route::is_local(ns, ip)?;
    let mut listeners = sockdiag::listeners(ns)?;
    listeners.retain(|listener| listener.local.port() == dest.port());
    Ok((has_address, listeners))
}

#[derive(Debug, Default)]
struct Sorted {
    exact: Vec<Listener>,
    other_address: Vec<Listener>,
    near_port: Vec<Listener>,
}

impl Sorted {
    fn all(&self) -> impl Iterator<Item = &Listener> {
        self.exact.iter().chain(&self.other_address).chain(&self.near_port)
    }
}

fn sort(listeners: Vec<Listener>, dest: SocketAddr, is_local: bool) -> Sorted {
    let ip = sockdiag::effective(dest.ip());
    let mut sorted = Sorted::default();
    let mut near = Vec::new();
    for listener in listeners {
        let serves = listener.serves(ip);
        if listener.local.port() == dest.port() {
            if serves && is_local {
                sorted.exact.push(listener);
            } else {
                sorted.other_address.push(listener);
            }
        } else if let Some(distance) = slip(dest.port(), listener.local.port()) {
            near.push((distance, !serves, listener.local.port().abs_diff(dest.port()), listener));
        }
    }
    // The kernel's order: the exact address, then the IPv4 wildcard, then the dual-stack one.
    sorted.exact.sort_by_key(|one| (one.local.ip().is_unspecified(), one.local.is_ipv4() != ip.is_ipv4()));
    near.sort_by_key(|(distance, elsewhere, difference, one)| {
        (*distance, *elsewhere, *difference, one.local)
    });
    // A REUSEPORT group, or one program on both IP versions, is one hint.
    near.dedup_by_key(|(.., one)| one.local.port());
    sorted.near_port = near.into_iter().take(3).map(|(.., one)| one).collect();
    sorted
}

/// How unlike two ports are, if one can be a slip of the other: 1 for neighbours and swapped digits, 2 for one
/// digit wrong, missing or doubled, 3 for a difference of up to 10.
fn slip(wanted: u16, other: u16) -> Option<u8> {
    let (a, b) = (wanted.to_string(), other.to_string());
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let differing: Vec<usize> =
        (0..a.len().min(b.len())).filter(|&index| a.get(index) != b.get(index)).collect();
    if wanted.abs_diff(other) == 1 {
        return Some(1);
    }
    if a.len() == b.len() {
        if let [first, second] = differing[..]
            && second == first + 1
            && a.get(first) == b.get(second)
            && a.get(second) == b.get(first)
        {
            return Some(1);
        }
        if differing.len() == 1 {
            return Some(2);
        }
    }
    if a.len().abs_diff(b.len()) == 1 {
        let (long, short) = if a.len() > b.len() { (a, b) } else { (b, a) };
        let shorter = |skip: usize| {
            long.iter().enumerate().filter(move |(index, _)| *index != skip).map(|(_, digit)| digit)
        };
        if (0..long.len()).any(|skip| shorter(skip).eq(short)) {
            return Some(2);
        }
    }
    (wanted.abs_diff(other) <= 10).then_some(3)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::sys::testing;

    fn listener(local: &str) -> Listener {
        Listener::at(local.parse().unwrap())
    }

    #[test]
    fn slips() {
        for (wanted, other, expected) in [
            (3000, 3001, Some(1)),
            (3000, 2999, Some(1)),
            (8080, 8008, Some(1)),
            (8080, 8800, Some(1)),
            (8080, 8081, Some(1)),
            (8080, 8090, Some(2)),
            (8080, 80, None),
            (8080, 808, Some(2)),
            (3000, 30000, Some(2)),
            (3000, 3007, Some(2)),
            (8099, 8105, Some(3)),
            (3000, 5432, None),
            (65535, 0, None),
        ] {
            assert_eq!(slip(wanted, other), expected, "{wanted} {other}");
        }
    }

    #[test]
    fn sorted_by_what_they_serve() {
        let list = || {
            [
                "[::]:3000",
                "127.0.0.1:3000",
                "10.0.0.1:3000",
                "0.0.0.0:3000",
                "[::1]:3000",
                "127.0.0.1:3001",
                "[::1]:3001",
            ]
            .map(listener)
            .to_vec()
        };
        let names = |list: &[Listener]| list.iter().map(|one| one.local.to_string()).collect::<Vec<_>>();
        let sorted = sort(list(), "127.0.0.1:3000".parse().unwrap(), true);
        assert_eq!(names(&sorted.exact), ["127.0.0.1:3000", "0.0.0.0:3000", "[::]:3000"]);
        assert_eq!(names(&sorted.other_address), ["10.0.0.1:3000", "[::1]:3000"]);
        assert_eq!(names(&sorted.near_port), ["127.0.0.1:3001"]);
        let remote = sort(list(), "192.0.2.1:3000".parse().unwrap(), false);
        assert!(remote.exact.is_empty());
        assert_eq!(remote.other_address.len(), 5);
    }

    #[test]
    fn live_report_names_the_owner() {
        let Some(ns) = testing::namespace() else { return };
        let Some(other) = testing::namespace() else { return };
        let server = ns.run(|| TcpListener::bind("127.0.0.1:3001").unwrap()).unwrap();
        let dest: SocketAddr = "127.0.0.1:3000".parse().unwrap();
        let found = report(&ns, dest).unwrap();
        assert!(found.is_local_address && found.exact.is_empty() && found.other_address.is_empty());
        assert_eq!(found.near_port[0].listener.local, server.local_addr().unwrap());
        assert_eq!(found.near_port[0].owner.as_ref().unwrap().pid, std::process::id());
        let exact = report(&ns, "0.0.0.0:3001".parse().unwrap()).unwrap();
        assert_eq!(exact.exact.len(), 1);
        assert!(!report(&ns, "192.0.2.1:3001".parse().unwrap()).unwrap().is_local_address);

        let resident = testing::Resident::new(&ns);
        let (seen, _) = elsewhere(&other, "127.0.0.1:3001".parse().unwrap()).unwrap();
        let there = seen.iter().find(|one| one.resident.inum == ns.inum()).unwrap();
        assert_eq!((there.resident.pid, there.has_address), (Some(resident.pid()), false));
        assert_eq!(there.listeners.len(), 1);
    }
}

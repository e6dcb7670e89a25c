//! Tests of `sockdiag`, on bytes and on live sockets.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::*;
use crate::sys::testing;

fn message(family: u8, state: TcpState, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![family, state as u8, 0, 2];
    bytes.extend(id(local, remote));
    for value in [0_u32, 5, 4, 33, 777] {
        bytes.extend_from_slice(&value.to_ne_bytes());
    }
    bytes
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener(local: &str) -> Listener {
    Listener::at(address(local))
}

#[test]
fn parses_a_message_and_survives_cuts() {
    let mut bytes = message(AF_INET6, TcpState::Listen, address("[::]:80"), address("[::]:0"));
    assert_eq!(bytes.len(), MESSAGE);
    bytes.extend_from_slice(&[5, 0, 11, 0, 1, 0, 0, 0]);
    let found = parse_listener(&bytes).unwrap();
    assert_eq!((found.local, found.recv_q, found.send_q), (address("[::]:80"), 5, 4));
    assert_eq!((found.uid, found.inode, found.v6only, found.queue_full()), (33, 777, true, true));
    for end in 0..MESSAGE {
        assert!(parse(&bytes[..end]).is_none());
    }
    let mapped = message(
        AF_INET6,
        TcpState::Established,
        address("[::ffff:1.2.3.4]:5"),
        address("[::ffff:9.9.9.9]:6"),
    );
    assert_eq!(parse(&mapped).unwrap().remote, address("9.9.9.9:6"));
}

#[test]
fn who_serves_what() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(listener("0.0.0.0:1").serves(ip("10.0.0.1")));
    assert!(!listener("0.0.0.0:1").serves(ip("::1")));
    assert!(listener("[::]:1").serves(ip("10.0.0.1")));
    assert!(!Listener { v6only: true, ..listener("[::]:1") }.serves(ip("10.0.0.1")));
    assert!(listener("[::]:1").serves(ip("fe80::1")));
    assert!(listener("127.0.0.1:1").serves(ip("::ffff:127.0.0.1")));
    assert!(listener("127.0.0.1:1").serves(ip("0.0.0.0")));
    assert!(!listener("127.0.0.1:1").serves(ip("127.0.0.2")));
    assert!(!Listener { bound_if: Some(3), ..listener("0.0.0.0:1") }.serves(ip("127.0.0.1")));
}

#[test]
fn states_have_the_kernels_numbers() {
    for (index, state) in TcpState::ALL.into_iter().enumerate() {
        assert_eq!(state as usize, index + 1);
        assert_eq!(TcpState::from_number(state as u8), Some(state));
    }
    assert_eq!(TcpState::from_number(0), None);
    assert_eq!(TcpState::from_number(14), None);
}

/// A socket that listens with this backlog, made in the namespace.
fn listen(ns: &NetNs, ip: Ipv4Addr, backlog: i32) -> TcpListener {
    let fd: OwnedFd = ns.socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    // SAFETY: sockaddr_in is plain integers, for which zero is valid.
    let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    name.sin_family = libc::AF_INET as libc::sa_family_t;
    name.sin_addr.s_addr = u32::from(ip).to_be();
    // SAFETY: the address is live and its true size is given.
    let status = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const name).cast(), size_of_val(&name) as libc::socklen_t)
    };
    assert_eq!(status, 0);
    // SAFETY: listen(2) takes no pointers.
    assert_eq!(unsafe { libc::listen(fd.as_raw_fd(), backlog) }, 0);
    fd.into()
}

/// A connect that does not wait.
fn connect(ns: &NetNs, to: SocketAddr) -> TcpStream {
    let fd = ns.socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).unwrap();
    // SAFETY: as in `listen`.
    let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let IpAddr::V4(ip) = to.ip() else { panic!("IPv4 only") };
    name.sin_family = libc::AF_INET as libc::sa_family_t;
    name.sin_addr.s_addr = u32::from(ip).to_be();
    name.sin_port = to.port().to_be();
    // SAFETY: as in `listen`; EINPROGRESS is expected.
    unsafe { libc::connect(fd.as_raw_fd(), (&raw const name).cast(), size_of_val(&name) as libc::socklen_t) };
    // SAFETY: into_raw_fd hands over the only ownership.
    unsafe { TcpStream::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) }
}

#[test]
fn a_full_accept_queue_shows() {
    let Some(ns) = testing::namespace() else { return };
    let server = listen(&ns, Ipv4Addr::LOCALHOST, 1);
    let to = server.local_addr().unwrap();
    let quiet = listeners(&ns).unwrap();
    assert_eq!(quiet.len(), 1);
    assert_eq!((quiet[0].local, quiet[0].recv_q, quiet[0].send_q), (to, 0, 1));
    assert!(quiet[0].inode != 0 && !quiet[0].reuseport);
    let _clients: Vec<_> = (0..3).map(|_| connect(&ns, to)).collect();
    let full = testing::poll("a full queue", || listeners(&ns).unwrap().pop().filter(Listener::queue_full));
    assert_eq!((full.recv_q, full.send_q), (2, 1));
}

#[test]
fn ports_to_a_destination_are_counted() {
    let Some(ns) = testing::namespace() else { return };
    let server = listen(&ns, Ipv4Addr::LOCALHOST, 64);
    let other = listen(&ns, Ipv4Addr::LOCALHOST, 64);
    let to = server.local_addr().unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| connect(&ns, to)).collect();
    let _noise: Vec<_> = (0..5).map(|_| connect(&ns, other.local_addr().unwrap())).collect();
    let accepted: Vec<_> = (0..20).map(|_| server.accept().unwrap().0).collect();
    let usage = testing::poll("20 connections", || {
        Some(count_to(&ns, to).unwrap()).filter(|found| found.states.get(TcpState::Established) == 20)
    });
    assert_eq!(usage.by_source, [(to.ip(), 20)]);
    // The side that closes first keeps TIME_WAIT. Close alone would not do: another test's fork may still hold
    // a copy of the descriptor.
    for client in clients.drain(8..) {
        client.shutdown(std::net::Shutdown::Write).unwrap();
    }
    drop(accepted);
    let usage = testing::poll("12 TIME_WAIT", || {
        Some(count_to(&ns, to).unwrap()).filter(|found| {
            found.states.get(TcpState::TimeWait) == 12 && found.states.get(TcpState::CloseWait) == 8
        })
    });
    assert_eq!((usage.states.total(), usage.by_source[0].1), (20, 20));
    let ports = local_ports_in_use(&ns, 1, u16::MAX).unwrap();
    // Two listeners and 20 ports at least: one port may serve both destinations.
    assert!((22..=27).contains(&ports), "{ports}");
}

#[test]
fn dual_stack_serves_ipv4_and_reuseport_shows() {
    let Some(ns) = testing::namespace() else { return };
    let server = ns.run(|| TcpListener::bind("[::]:0").unwrap()).unwrap();
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), server.local_addr().unwrap().port());
    let found = listeners(&ns).unwrap();
    assert!(found.len() == 1 && !found[0].v6only && found[0].serves(to.ip()));
    let client = ns.run(|| TcpStream::connect(to).unwrap()).unwrap();
    let from = client.local_addr().unwrap();
    // The server's end is an IPv6 socket with mapped addresses, and is found by the IPv4 tuple.
    let end = connection(&ns, to, from).unwrap().unwrap();
    assert_eq!((end.state, end.local, end.remote), (TcpState::Established, to, from));
    std::io::Write::write_all(&mut &client, b"unread").unwrap();
    testing::poll("six unread bytes", || connection(&ns, to, from).unwrap().filter(|end| end.recv_q == 6));
    assert_eq!(connection(&ns, from, to).unwrap().unwrap().state, TcpState::Established);
    assert_eq!(connection(&ns, to, address("127.0.0.1:1")).unwrap(), None);
}

#[test]
fn same_address_twice_is_a_reuseport_group() {
    let mut list = vec![listener("0.0.0.0:80"), listener("0.0.0.0:81"), listener("0.0.0.0:80")];
    mark_reuseport(&mut list);
    assert_eq!(list.iter().map(|one| one.reuseport).collect::<Vec<_>>(), [true, false, true]);
}

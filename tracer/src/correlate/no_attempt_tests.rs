use super::*;
use crate::nginx::Role;

const SECOND: u64 = 1_000_000_000;

fn peer(max_fails: u64, failures: &[u64]) -> Peer {
    Peer {
        server: "10.0.0.1:80".to_owned(),
        address: Some("10.0.0.1:80".parse().unwrap()),
        sure: true,
        line: ConfigLine { role: Role::Server, file: "a.conf".into(), line: 1, text: String::new() },
        down: false,
        backup: false,
        unix: None,
        max_fails,
        fail_timeout_s: 10,
        max_conns: 0,
        failures: failures
            .iter()
            .map(|at| Failure {
                worker: 1,
                at_ns: at * SECOND,
                cause: "connect-refused-no-listener".into(),
                sure: true,
            })
            .collect(),
    }
}

fn standing(peer: &Peer, lone: bool, now_s: u64) -> Standing {
    let peers = vec![peer.clone(); if lone { 1 } else { 2 }];
    Group { name: "g".to_owned(), shared: false, known: true, peers }.standing(peer, now_s * SECOND)
}

#[test]
fn a_server_is_out_as_nginx_counts() {
    let out = |left| Standing::Out { left_ns: left * SECOND };
    for (name, peer, lone, now, expected) in [
        ("one failure", peer(1, &[100]), false, 103, out(7)),
        ("on its last second", peer(1, &[100]), false, 110, out(0)),
        ("its time is over", peer(1, &[100]), false, 112, Standing::Unknown),
        ("nothing was seen", peer(1, &[]), false, 100, Standing::Unknown),
        ("a later failure is another's", peer(1, &[104]), false, 103, Standing::Unknown),
        ("too few", peer(3, &[100, 101]), false, 103, Standing::Unknown),
        ("three in a row", peer(3, &[100, 101, 102]), false, 103, out(9)),
        ("a pause between them", peer(2, &[80, 102]), false, 103, Standing::Unknown),
        ("never out", peer(0, &[100]), false, 103, Standing::Always),
        ("a lone one", peer(1, &[100]), true, 103, Standing::Always),
    ] {
        assert_eq!(standing(&peer, lone, now), expected, "{name}");
    }
    let limited = Peer { max_conns: 1, ..peer(0, &[]) };
    assert_eq!(standing(&limited, true, 100), Standing::Unknown);
    let down = Peer { down: true, ..peer(1, &[]) };
    assert_eq!(standing(&down, true, 100), Standing::Down);
}

#[test]
fn replies_without_an_answer() {
    let message = |flags: [u8; 2], answers: u8| {
        let mut bytes = vec![0x12, 0x34, flags[0], flags[1], 0, 1, 0, answers, 0, 0, 0, 0];
        bytes.extend_from_slice(b"\x03App\x07example\x03com\0\0\x01\0\x01");
        bytes
    };
    let name = Some("app.example.com".to_owned());
    assert_eq!(reply(&message([0x81, 0x83], 0)), Some((Said::Code(3), name.clone())));
    assert_eq!(reply(&message([0x81, 0x80], 0)), Some((Said::Empty, name.clone())));
    assert_eq!(reply(&message([0x83, 0x80], 1)), Some((Said::Truncated, name)));
    assert_eq!(reply(&message([0x81, 0x80], 1)), None);
    assert_eq!(reply(&message([0x01, 0x00], 0)), None, "a question");
}

#[test]
fn hostile_replies_end_somewhere() {
    let head = [0, 0, 0x80, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    for tail in [&b"\xc0\x0c"[..], b"\x3fabc", b"", b"\0", &[63; 500]] {
        let bytes = [&head[..], tail].concat();
        assert_eq!(reply(&bytes), Some((Said::Code(3), None)));
    }
    let odd = [&head[..], b"\x02\x1b\\\0"].concat();
    assert_eq!(reply(&odd), Some((Said::Code(3), Some("\\x1b\\x5c".to_owned()))));
    for length in 0..12 {
        assert_eq!(reply(&head[..length]), None);
    }
}

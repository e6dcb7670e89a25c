//! Records as the kernel writes them, whole, cut short, and random.

use super::*;
use wire::{drop_class, drop_flag};

/// A wire struct as bytes.
fn bytes_of<T: Wire>(value: &T) -> Bytes {
    // SAFETY: `Wire` types are repr(C) without implicit padding (tracer-ebpf asserts their sizes), so every
    // byte is initialised; the slice ends with the borrow.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) };
    Bytes::copy_from_slice(bytes)
}

fn zeroed<T: Wire>() -> T {
    read(&vec![0; size_of::<T>()], 0).unwrap()
}

fn v4(text: &str) -> Addr {
    addr(text.parse().unwrap())
}

/// An attempt with a different value in every field.
fn full() -> wire::Attempt {
    let evidence = wire::Evidence {
        drop_first_ns: 1_000_101,
        drop_last_ns: 1_000_102,
        drop_location: 0xffff_ffff_8100_0001,
        drop_stack: [11, 12, 13, 0, 15, 0, 0, 0, 0, 0],
        icmp_ns: 103,
        overflow_ns: 104,
        icmp_sender: v4("10.9.9.9"),
        wire_daddr: v4("172.17.0.2"),
        drop_count: 7,
        drop_reason: 8,
        drop_netns: 9,
        flags: drop_flag::REPLY | drop_flag::CONNTRACK,
        backlog: 6,
        backlog_max: 5,
        backlog_netns: 4,
        no_socket_netns: 3,
        wire_dport: 8080,
        drop_class: drop_class::RPFILTER,
        icmp_type: 3,
        icmp_code: 13,
        classes: 1 << drop_class::NO_SOCKET | 1 << drop_class::RPFILTER,
        _pad: [0; 2],
        drop_skb: 0,
    };
    wire::Attempt {
        kind: kind::ATTEMPT,
        flags: flag::RST_IN
            | flag::RST_TTL
            | flag::APP_CLOSED
            | flag::TASK_EXITING
            | flag::LSM
            | ALL_EVIDENCE,
        start_ns: 1_000_000,
        end_ns: 1_038_000,
        rst_ns: 1_037_000,
        sk: 0xffff_8881_0203_0405,
        bytes_acked: 21,
        bytes_received: 22,
        saddr: v4("10.0.0.1"),
        daddr: v4("10.0.0.2"),
        evidence,
        tgid: 133,
        netns: 4_026_531_840,
        sk_err: 111,
        sk_err_soft: 113,
        ret: -13,
        lsm_ret: -1,
        lsm_id: 0,
        ifindex: 2,
        sport: 45_678,
        dport: 3000,
        family: 2,
        retransmits: 4,
        stage: stage::SYN_SENT,
        old_state: TCP_SYN_SENT,
        shutdown: 3,
        rst_ttl: 63,
        _pad: [0; 4],
    }
}

const ALL_EVIDENCE: u32 = flag::DROP | flag::ICMP | flag::LISTEN_OVERFLOW;

fn attempt_of(a: &wire::Attempt) -> Attempt {
    match decode(&bytes_of(a)) {
        Ok(Event::Attempt(attempt)) => *attempt,
        other => panic!("no attempt: {other:?}"),
    }
}

#[test]
fn every_field_of_an_attempt_arrives() {
    let a = attempt_of(&full());
    let drop = a.drop.clone().unwrap();
    let expected = Attempt {
        stage: Stage::SynSent,
        worker: 133,
        socket: 0xffff_8881_0203_0405,
        netns: 4_026_531_840,
        start_ns: Some(1_000_000),
        name_ns: 1_000_000,
        end_ns: 1_038_000,
        local: "10.0.0.1:45678".parse().unwrap(),
        remote: "10.0.0.2:3000".parse().unwrap(),
        no_remote: false,
        syn_state: true,
        ret: -13,
        sk_err: 111,
        sk_err_soft: 113,
        security: Some(-1),
        denials: Vec::new(),
        unix: None,
        reset: true,
        reset_ns: 1_037_000,
        reset_ttl: Some(63),
        app_closed: true,
        exiting: true,
        retransmits: 4,
        evidence_gap: false,
        missed_end: false,
        icmp: Some(Icmp { kind: 3, code: 13, sender: "10.9.9.9".parse().unwrap() }),
        drop: Some(Drop {
            class: DropClass::RpFilter,
            reason: 8,
            count: 7,
            first_ns: 1_000_101,
            last_ns: 1_000_102,
            location: 0xffff_ffff_8100_0001,
            // A zero ends the stack.
            stack: vec![11, 12, 13],
            netns: 9,
            reply: true,
            conntrack: true,
            classes: drop.classes,
            no_socket_netns: 3,
            wire_dst: "172.17.0.2:8080".parse().unwrap(),
        }),
        overflow: Some(Overflow { queued: 6, limit: 5, netns: 4 }),
        asked: false,
        exemplar: false,
        noted: None,
        number: None,
        talk: None,
    };
    assert_eq!(a, expected);
    assert_eq!((a.duration_us(), a.errno()), (Some(38), Some(13)));
    assert!(drop.saw(DropClass::NoSocket) && drop.saw(DropClass::RpFilter));
    assert!(
        !drop.saw(DropClass::Netfilter)
            && !drop.saw(DropClass::Other)
            && !drop.saw(DropClass::ListenOverflow)
    );
}

#[test]
fn what_no_flag_vouches_for_is_not_there() {
    let a = attempt_of(&wire::Attempt { flags: flag::UNKNOWN_START, ..full() });
    assert_eq!((a.start_ns, a.duration_us(), a.security, a.reset_ttl), (None, None, None, None));
    assert_eq!((a.drop, a.icmp, a.overflow), (None, None, None));
    assert!(!a.reset && !a.app_closed && !a.exiting);
    // Rubbish in evidence that does not count is no error.
    let mut rubbish = full();
    (rubbish.flags, rubbish.evidence.drop_class) = (0, 200);
    assert_eq!(attempt_of(&rubbish).drop, None);
}

#[test]
fn the_errno_is_that_of_the_call_then_of_the_socket() {
    for (ret, err, soft, expected) in [
        (-111, 113, 101, Some(111)),
        (0, 113, 101, Some(113)),
        (0, 0, 101, Some(101)),
        (0, 0, 0, None),
        (i32::MIN, 0, 0, Some(i32::MAX)),
        (5, -5, -5, None),
    ] {
        let a = attempt_of(&wire::Attempt { ret, sk_err: err, sk_err_soft: soft, ..full() });
        assert_eq!(a.errno(), expected, "{ret} {err} {soft}");
    }
}

#[test]
fn a_clock_that_runs_backwards_yields_no_negative_duration() {
    let a = attempt_of(&wire::Attempt { start_ns: u64::MAX, end_ns: 0, ..full() });
    assert_eq!(a.duration_us(), Some(0));
}

#[test]
fn addresses_of_both_families() {
    for text in ["10.0.0.2", "0.0.0.0", "255.255.255.255", "fd00::2", "::1", "::", "fe80::1"] {
        let parsed: IpAddr = text.parse().unwrap();
        assert_eq!(ip(&addr(parsed)), parsed, "{text}");
    }
    assert_eq!(ip(&v4("::ffff:10.0.0.2")), "10.0.0.2".parse::<IpAddr>().unwrap(), "mapped means IPv4");
    // No address was chosen: the family says which kind of none.
    for (family, expected) in [(2, "0.0.0.0:0"), (10, "[::]:0"), (0, "0.0.0.0:0")] {
        let a = attempt_of(&wire::Attempt { family, saddr: [0; 16], sport: 0, ..full() });
        assert_eq!(a.local, expected.parse().unwrap());
    }
}

#[test]
fn stages() {
    use Stage::{Bind, Connect, Established, Socket, SynSent};
    for (value, expected) in [(1, Socket), (2, Bind), (3, Connect), (4, SynSent), (5, Established)] {
        let a = attempt_of(&wire::Attempt { stage: value, ..full() });
        assert_eq!((a.stage, a.no_remote), (expected, expected == Socket));
    }
    for value in [0].into_iter().chain(6..=255) {
        let record = bytes_of(&wire::Attempt { stage: value, ..full() });
        assert_eq!(decode(&record), Err(DecodeError::Field("stage", u64::from(value))));
    }
}

#[test]
fn drop_classes_keep_their_numbers() {
    for value in 0..=255_u8 {
        let mut a = full();
        (a.evidence.drop_class, a.evidence.classes) = (value, 0);
        match decode(&bytes_of(&a)) {
            Ok(Event::Attempt(attempt)) => {
                let class = attempt.drop.unwrap().class;
                // `Drop::saw` takes the number of the variant for that of the wire.
                assert_eq!(class as u8, value);
                assert!(usize::from(value) < drop_class::COUNT);
            }
            Err(error) => {
                assert_eq!(error, DecodeError::Field("drop_class", u64::from(value)));
                assert!(usize::from(value) >= drop_class::COUNT);
            }
            Ok(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_class_bit_stands_for_one_class() {
    let classes: Vec<DropClass> =
        (0..drop_class::COUNT as u8).map(|n| DropClass::try_from(n).unwrap()).collect();
    for bit in 0..8 {
        let mut e: wire::Evidence = full().evidence;
        (e.classes, e.drop_class) = (1 << bit, bit);
        let drop = evidence(&e, flag::DROP).unwrap().0.unwrap();
        for class in &classes {
            assert_eq!(drop.saw(*class), *class as u8 == bit, "bit {bit}, {class:?}");
        }
    }
}

#[test]
fn drops_of_an_earlier_connection_with_the_same_ports_do_not_count() {
    let mut record = full();
    // Seven drops, the first before this attempt began: only the last is surely its own.
    record.evidence.drop_first_ns = record.start_ns - 1;
    let drop = attempt_of(&record).drop.unwrap();
    assert_eq!((drop.count, drop.first_ns, drop.last_ns), (1, 1_000_102, 1_000_102));
    assert!(drop.saw(DropClass::RpFilter) && !drop.saw(DropClass::NoSocket));
    assert_eq!(drop.no_socket_netns, 0, "the missing socket was the earlier one's");
    record.evidence.drop_class = drop_class::NO_SOCKET;
    assert_eq!(attempt_of(&record).drop.unwrap().no_socket_netns, 3);
    // An attempt whose beginning is not known keeps all.
    (record.flags, record.start_ns) = (record.flags | flag::UNKNOWN_START, 0);
    assert_eq!(attempt_of(&record).drop.unwrap().count, 7);
}

#[test]
fn a_gap_in_the_evidence_is_told() {
    let a = attempt_of(&wire::Attempt { flags: flag::EVIDENCE_GAP, ..full() });
    assert!(a.evidence_gap && a.drop.is_none());
    assert!(!attempt_of(&full()).evidence_gap);
}

#[test]
fn a_missed_reset_is_deduced() {
    let refused = |flags: u32, class: u8| {
        let mut record = wire::Attempt { flags, sk_err: libc::ECONNREFUSED, ..full() };
        record.evidence.flags = 0;
        record.evidence.drop_class = class;
        record.evidence.classes = 1 << class;
        attempt_of(&record)
    };
    let check = |flags: u32, class: u8, icmp_is_seen: bool, wanted: bool| {
        let mut a = refused(flags, class);
        a.deduce_reset(icmp_is_seen);
        assert_eq!(a.reset, wanted, "{flags:#x} {class} {icmp_is_seen}");
    };
    check(flag::DROP, drop_class::NO_SOCKET, false, true);
    check(flag::DROP, drop_class::NETFILTER, true, false);
    check(flag::DROP | flag::ICMP, drop_class::NO_SOCKET, true, false);
    check(0, drop_class::NO_SOCKET, true, false);
    check(flag::MISSED_END, 0, true, true);
    check(flag::MISSED_END, 0, false, false);
    check(flag::RST_IN, 0, false, true);
}

#[test]
fn a_give_up_of_the_kernel_is_deduced() {
    let check = |flags: u32, retransmits: u16, sk_err: i32, most: Option<u32>, wanted: i32| {
        let flags = (full().flags & !(ALL_EVIDENCE | flag::APP_CLOSED | flag::RST_IN)) | flags;
        let mut a = attempt_of(&wire::Attempt { flags, retransmits, sk_err, ..full() });
        a.deduce_give_up(most);
        assert_eq!(a.sk_err, wanted, "{flags:#x} {retransmits} {most:?}");
    };
    let missed = flag::MISSED_END;
    check(missed, 6, 0, Some(6), libc::ETIMEDOUT);
    // Linear timeouts come on top (tcp_syn_linear_timeouts, 6.5).
    check(missed, 10, 0, Some(6), libc::ETIMEDOUT);
    check(missed, 5, 0, Some(6), 0);
    check(missed, 6, 0, None, 0);
    check(missed, 0, 0, Some(0), 0);
    check(0, 6, 0, Some(6), 0);
    check(missed | flag::RST_IN, 6, 0, Some(6), 0);
    check(missed | flag::ICMP, 6, 0, Some(6), 0);
    check(missed | flag::APP_CLOSED, 6, 0, Some(6), 0);
    check(missed, 6, libc::EHOSTUNREACH, Some(6), libc::EHOSTUNREACH);
}

#[test]
fn an_attempt_without_evidence_is_a_short_record() {
    let flags = full().flags & !ALL_EVIDENCE;
    let whole = bytes_of(&wire::Attempt { flags, ..full() });
    let short = whole.slice(..wire::ATTEMPT_HEAD);
    assert_eq!(decode(&short), decode(&whole));
    let cut = bytes_of(&full()).slice(..wire::ATTEMPT_HEAD);
    let need = size_of::<wire::Attempt>();
    assert_eq!(decode(&cut), Err(DecodeError::Short { kind: kind::ATTEMPT, len: wire::ATTEMPT_HEAD, need }));
}

#[test]
fn a_missing_socket_needs_no_evidence_entry() {
    let bare = wire::Attempt { flags: flag::RST_IN | flag::NO_SOCKET, ..full() };
    let drop = attempt_of(&bare).drop.unwrap();
    assert_eq!((drop.class, drop.count, drop.no_socket_netns), (DropClass::NoSocket, 1, bare.netns));
    assert_eq!(drop.wire_dst, SocketAddr::new(ip(&bare.daddr), bare.dport));
    assert!(drop.saw(DropClass::NoSocket) && !drop.saw(DropClass::Netfilter));
    let with = wire::Attempt { flags: flag::DROP | flag::NO_SOCKET, ..full() };
    let drop = attempt_of(&with).drop.unwrap();
    assert_eq!((drop.class, drop.no_socket_netns), (DropClass::RpFilter, with.netns));
    assert!(drop.saw(DropClass::NoSocket) && drop.saw(DropClass::RpFilter));
}

#[test]
fn what_is_seen_late_is_added() {
    let one = attempt_of(&full()).drop.unwrap();
    let late = Drop { count: 1, last_ns: 2_000_000, class: DropClass::Netfilter, ..one.clone() };
    let both = one.clone().and_later(late);
    assert_eq!((both.count, both.first_ns, both.last_ns), (one.count + 1, one.first_ns, 2_000_000));
    assert!(both.saw(DropClass::Netfilter) && both.saw(DropClass::RpFilter));
}

#[test]
fn processes_hints_and_clients() {
    let process = |change| wire::ProcEvent {
        kind: kind::PROC,
        change,
        tgid: 7,
        parent: 6,
        time_ns: 5,
        comm: *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
    };
    assert_eq!(decode(&bytes_of(&process(proc_change::FORK))), Ok(Event::Fork { pid: 7, parent: 6 }));
    assert_eq!(decode(&bytes_of(&process(proc_change::EXEC))), Ok(Event::Exec { pid: 7 }));
    assert_eq!(decode(&bytes_of(&process(proc_change::EXIT))), Ok(Event::Exit { pid: 7 }));
    for change in [0, 4, u32::MAX] {
        assert_eq!(decode(&bytes_of(&process(change))), Err(DecodeError::Field("change", u64::from(change))));
    }
    let hint = wire::Hint {
        kind: kind::HINT,
        tgid: 7,
        time_ns: 1,
        sk: 99,
        daddr: v4("fd00::2"),
        dport: 3000,
        _pad: [0; 6],
    };
    let expected = Event::Hint { socket: 99, worker: 7, remote: "[fd00::2]:3000".parse().unwrap() };
    assert_eq!(decode(&bytes_of(&hint)), Ok(expected));
    for (how, reset) in [(1, false), (2, true)] {
        let gone = wire::ClientGone {
            kind: kind::CLIENT_GONE,
            attempt_sk: 99,
            attempt_end_ns: 5,
            client: v4("203.0.113.9"),
            client_port: 51_514,
            how,
            ..zeroed()
        };
        let client = "203.0.113.9:51514".parse().unwrap();
        assert_eq!(decode(&bytes_of(&gone)), Ok(Event::ClientGone { socket: 99, end_ns: 5, client, reset }));
    }
}

#[test]
fn short_records_are_errors_at_every_length() {
    let whole = [
        (kind::ATTEMPT, size_of::<wire::Attempt>()),
        (kind::PROC, size_of::<wire::ProcEvent>()),
        (kind::HINT, size_of::<wire::Hint>()),
        (kind::CLIENT_GONE, size_of::<wire::ClientGone>()),
    ];
    for (kind, need) in whole {
        let mut record = vec![1; need];
        record[..4].copy_from_slice(&kind.to_ne_bytes());
        for len in 0..need {
            let error = decode(&Bytes::copy_from_slice(&record[..len])).unwrap_err();
            let expected = if len < 4 {
                DecodeError::Short { kind: 0, len, need: 4 }
            } else if kind == kind::ATTEMPT && len < wire::ATTEMPT_HEAD {
                DecodeError::Short { kind, len, need: wire::ATTEMPT_HEAD }
            } else {
                DecodeError::Short { kind, len, need }
            };
            assert_eq!(error, expected);
        }
        // The ring buffer rounds lengths up.
        record.resize(need + 8, 0xff);
        assert!(!matches!(decode(&Bytes::from(record)), Err(DecodeError::Short { .. })));
    }
    assert_eq!(
        read_evidence(&[0; 10]).err(),
        Some(DecodeError::Short { kind: 0, len: 10, need: size_of::<wire::Evidence>() })
    );
}

#[test]
fn unknown_kinds_are_errors() {
    for kind in [0, 200, 255, u32::MAX] {
        let mut record = kind.to_ne_bytes().to_vec();
        record.resize(1024, 1);
        assert_eq!(decode(&Bytes::from(record)), Err(DecodeError::Kind(kind)));
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut good, mut bad) = (0, 0);
    for _ in 0..200_000 {
        let len = (next() % 420) as usize;
        let mut record: Vec<u8> =
            std::iter::repeat_with(|| next().to_le_bytes()).take(len / 8 + 1).flatten().take(len).collect();
        // Else hardly one in four thousand million would be of a known kind.
        if len >= 4 {
            let kind = (next() % 6) as u32;
            record[..4].copy_from_slice(&kind.to_ne_bytes());
        }
        if next() % 2 == 0 && len == size_of::<wire::Attempt>() {
            let stage = std::mem::offset_of!(wire::Attempt, stage);
            record[stage] %= 6;
        }
        // Unaligned too: the buffer may begin anywhere.
        let shifted = Bytes::from([&[0; 3][..], &record].concat()).slice(3..);
        match decode(&shifted) {
            Ok(event) => {
                good += 1;
                if let Event::Attempt(a) = &event {
                    let _ = (a.duration_us(), a.errno(), format!("{a:?}"));
                }
            }
            Err(error) => {
                bad += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(good > 100 && bad > 100, "{good} good, {bad} bad");
}

#[test]
fn every_field_of_an_answer_arrives() {
    let answer = wire::request::Answer {
        kind: kind::ANSWER,
        tgid: 133,
        time_ns: 9,
        request: 0x5555,
        moment: wire::request::Moment { began: [7, 8], mark: 3 },
        status: 502,
        own: 1,
    };
    let request = RequestPlace { worker: 133, address: 0x5555, began: [7, 8], mark: 3 };
    let expected = Answered { request, time_ns: 9, status: 502, own: true };
    let record = bytes_of(&answer).to_vec();
    assert_eq!(decode(&record.clone().into()), Ok(Event::Answered(expected)));
    assert!(matches!(decode(&record[..record.len() - 1].to_vec().into()), Err(DecodeError::Short { .. })));
}

#[test]
fn what_a_name_server_said_arrives() {
    let head = wire::request::Dns {
        kind: kind::DNS,
        tgid: 133,
        time_ns: 9,
        server: v4("10.0.0.53"),
        server_port: 53,
        _pad: 0,
        ret: 3,
        len: 3,
        _pad2: 0,
    };
    let record = |head: &wire::request::Dns, bytes: &[u8]| {
        let mut record = bytes_of(head).to_vec();
        record.extend_from_slice(bytes);
        decode(&record.into())
    };
    let expected = |errno, bytes: &[u8]| {
        let server = "10.0.0.53:53".parse().unwrap();
        Ok(Event::Dns(Box::new(Dns { worker: 133, time_ns: 9, server, errno, bytes: bytes.to_vec() })))
    };
    assert_eq!(record(&head, b"abcdef"), expected(0, b"abc"));
    assert!(matches!(record(&head, b"ab"), Err(DecodeError::Short { need: 51, .. })));
    let failed = wire::request::Dns { ret: -libc::ECONNREFUSED, len: 0, ..head };
    assert_eq!(record(&failed, b""), expected(libc::ECONNREFUSED, b""));
}

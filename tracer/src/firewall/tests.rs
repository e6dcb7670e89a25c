use std::net::SocketAddr;

use super::*;

fn packet() -> Packet {
    Packet {
        v6: false,
        reply: false,
        source: Some("10.0.0.1:40000".parse().unwrap()),
        destination: Some("10.0.0.2:3000".parse().unwrap()),
        tracked: true,
        translated: false,
        input: Interface::None,
        output: Interface::Known { index: 2, name: "eth0".to_owned() },
        owner: Some((33, 33)),
        fresh: false,
    }
}

fn rule(handle: u64, exprs: Vec<Expr>) -> Rule {
    Rule { handle, exprs, comment: None }
}

/// `tcp dport PORT`, as nft compiles it.
fn dport(port: u16) -> Vec<Expr> {
    vec![
        Expr::Meta { key: 16, dst: 0 },
        Expr::Compare { src: 0, op: 0, data: vec![6] },
        Expr::Payload { base: 2, offset: 2, len: 2, dst: 0 },
        Expr::Compare { src: 0, op: 0, data: port.to_be_bytes().to_vec() },
    ]
}

fn with(mut exprs: Vec<Expr>, more: impl IntoIterator<Item = Expr>) -> Vec<Expr> {
    exprs.extend(more);
    exprs
}

fn drop_it() -> Expr {
    Expr::Verdict(Verdict::Drop)
}

fn accept() -> Expr {
    Expr::Verdict(Verdict::Accept)
}

fn perhaps() -> Expr {
    Expr::MayBreak("limit".to_owned())
}

fn base(priority: i32, policy_drop: bool) -> Option<Base> {
    Some(Base { hook: Some(Hook::Output), priority, policy_drop, nat: false })
}

fn chain(name: &str, base: Option<Base>, rules: Vec<Rule>) -> Chain {
    Chain {
        engine: Engine::Nftables,
        family: Family::Inet,
        table: "t".to_owned(),
        name: name.to_owned(),
        base,
        rules,
    }
}

/// Names and handles of the candidates, 0 for a policy; a star where the rule's own conditions are known to hold.
fn found(chains: Vec<Chain>, packet: &Packet) -> Vec<String> {
    found_in(&Ruleset { chains, ..Ruleset::default() }, packet, Some(Hook::Output))
}

fn found_in(ruleset: &Ruleset, packet: &Packet, hook: Option<Hook>) -> Vec<String> {
    let word = |c: &Candidate| {
        let chain = &ruleset.chains[c.chain];
        let handle = c.rule.map_or(0, |r| chain.rules[r].handle);
        format!("{}:{handle}{}", chain.name, if c.certain { "*" } else { "" })
    };
    candidates(ruleset, packet, hook).iter().map(word).collect()
}

fn one(exprs: Vec<Expr>, packet: &Packet) -> Vec<String> {
    found(vec![chain("o", base(0, false), vec![rule(1, with(exprs, [drop_it()]))])], packet)
}

#[test]
fn only_what_cannot_fit_is_left_out() {
    assert_eq!(one(dport(3000), &packet()), ["o:1*"]);
    assert!(one(dport(3001), &packet()).is_empty());
    let unknown = Packet { destination: None, ..packet() };
    assert_eq!(one(dport(3001), &unknown), ["o:1"]);
    assert_eq!(one(vec![perhaps()], &packet()), ["o:1"]);
    assert_eq!(one(with(vec![perhaps()], dport(3001)), &packet()), [""; 0]);
}

#[test]
fn a_certain_drop_ends_the_walk_and_a_possible_one_does_not() {
    let rules = |first: Vec<Expr>| {
        vec![
            rule(1, with(first, [drop_it()])),
            rule(2, with(dport(3000), [drop_it()])),
            rule(3, vec![drop_it()]),
        ]
    };
    let late = || chain("late", base(10, true), Vec::new());
    let run = |first| found(vec![late(), chain("o", base(0, true), rules(first))], &packet());
    assert_eq!(run(vec![]), ["o:1*"]);
    assert_eq!(run(vec![perhaps()]), ["o:1", "o:2*"]);
    // An accept that may have come first leads to the next base chain.
    let maybe_out = vec![rule(1, vec![perhaps(), accept()]), rule(2, vec![drop_it()])];
    let chains = vec![late(), chain("o", base(0, false), maybe_out)];
    assert_eq!(found(chains, &packet()), ["o:2*", "late:0*"]);
    // Of chains with the same priority nobody knows the order.
    let twins = vec![
        chain("a", base(0, false), vec![rule(1, vec![drop_it()])]),
        chain("b", base(0, false), vec![rule(1, vec![drop_it()])]),
        late(),
    ];
    assert_eq!(found(twins, &packet()), ["a:1*", "b:1*"]);
}

#[test]
fn jump_comes_back_and_goto_does_not() {
    let to = |verdict: fn(String) -> Verdict| {
        vec![
            chain(
                "o",
                base(0, true),
                vec![rule(1, vec![Expr::Verdict(verdict("side".to_owned()))]), rule(2, vec![drop_it()])],
            ),
            chain(
                "side",
                None,
                vec![rule(3, with(dport(3000), [Expr::Verdict(Verdict::Return)])), rule(4, vec![drop_it()])],
            ),
        ]
    };
    assert_eq!(found(to(Verdict::Jump), &packet()), ["o:2*"]);
    assert_eq!(found(to(Verdict::Goto), &packet()), ["o:0*"]);
    let other = Packet { destination: Some("10.0.0.2:1".parse().unwrap()), ..packet() };
    assert_eq!(found(to(Verdict::Goto), &other), ["side:4*"]);
    // A loop, which the kernel refuses, must not hang.
    let endless =
        vec![chain("o", base(0, true), vec![rule(1, vec![Expr::Verdict(Verdict::Jump("o".into()))])])];
    assert_eq!(found(endless, &packet()), ["o:0*"]);
}

#[test]
fn states_depend_on_direction_and_on_what_conntrack_has_seen() {
    let state = |mask: u32| {
        vec![
            Expr::Ct { key: 0, dst: 0 },
            Expr::Bitwise { src: 0, dst: 0, mask: mask.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Compare { src: 0, op: 1, data: vec![0; 4] },
        ]
    };
    const INVALID: u32 = 1;
    const ESTABLISHED: u32 = 2;
    const NEW: u32 = 8;
    assert_eq!(one(state(NEW), &packet()), ["o:1"]);
    assert!(one(state(INVALID), &packet()).is_empty());
    assert_eq!(one(state(NEW | ESTABLISHED), &packet()).len(), 1);
    let reply = Packet { reply: true, ..packet() };
    assert!(one(state(NEW), &reply).is_empty());
    assert_eq!(one(state(ESTABLISHED), &reply), ["o:1"]);
    let untracked = Packet { tracked: false, ..packet() };
    assert_eq!(one(state(INVALID), &untracked), ["o:1"]);
    // Before conntrack nobody has a state yet, or an earlier one.
    let early = chain("o", base(-300, false), vec![rule(1, with(state(INVALID), [drop_it()]))]);
    assert_eq!(found(vec![early], &packet()), ["o:1"]);
}

#[test]
fn what_translation_came_before_tells_who_it_was_not() {
    let translated = Packet { translated: true, ..packet() };
    let chains =
        || vec![chain("early", base(-150, true), Vec::new()), chain("late", base(0, true), Vec::new())];
    assert_eq!(found(chains(), &translated), ["late:0*"]);
    assert_eq!(found(chains(), &packet()), ["early:0*"]);
    // Answers never see chains that translate.
    let mut nat = chain("nat", base(-100, true), Vec::new());
    if let Some(base) = &mut nat.base {
        base.nat = true;
    }
    assert!(found(vec![nat.clone()], &Packet { reply: true, ..packet() }).is_empty());
    assert_eq!(found(vec![nat], &packet()), ["nat:0*"]);
}

#[test]
fn families_and_hooks() {
    let of = |family| Chain { family, ..chain("o", base(0, true), Vec::new()) };
    assert_eq!(found(vec![of(Family::Ip)], &packet()).len(), 1);
    assert!(found(vec![of(Family::Ip6)], &packet()).is_empty());
    let v6 = Packet { v6: true, destination: Some("[::1]:3000".parse().unwrap()), source: None, ..packet() };
    assert!(found(vec![of(Family::Ip)], &v6).is_empty());
    assert_eq!(found(vec![of(Family::Inet)], &v6).len(), 1);
    let ruleset = Ruleset { chains: vec![of(Family::Inet)], ..Ruleset::default() };
    assert!(found_in(&ruleset, &packet(), Some(Hook::Input)).is_empty());
    assert_eq!(found_in(&ruleset, &packet(), None), ["o:0*"]);
    // A device's chain may have dropped it wherever it seems to have been.
    let device = Some(Base { hook: None, priority: 0, policy_drop: true, nat: false });
    let device = Chain { family: Family::Netdev, ..chain("d", device, Vec::new()) };
    assert_eq!(found(vec![of(Family::Inet), device], &packet()), ["o:0*", "d:0*"]);
}

fn lookup(set: Set, src: Vec<Expr>) -> Vec<String> {
    let rules = vec![rule(
        1,
        with(src, [Expr::Lookup { set: "s".to_owned(), src: 0, dst: None, invert: false }, drop_it()]),
    )];
    let mut ruleset = Ruleset { chains: vec![chain("o", base(0, false), rules)], ..Ruleset::default() };
    ruleset.sets.insert((Family::Inet, "t".to_owned(), "s".to_owned()), set);
    found_in(&ruleset, &packet(), Some(Hook::Output))
}

fn element(key: &[u8]) -> Element {
    Element { key: key.to_vec(), ..Element::default() }
}

fn port_in_register() -> Vec<Expr> {
    dport(0).into_iter().take(3).collect()
}

#[test]
fn sets() {
    let port = |p: u16| p.to_be_bytes().to_vec();
    let plain = |ports: &[u16]| Set {
        elements: ports.iter().map(|p| element(&port(*p))).collect(),
        ..Set::default()
    };
    assert_eq!(lookup(plain(&[1, 3000]), port_in_register()), ["o:1*"]);
    assert!(lookup(plain(&[1, 3001]), port_in_register()).is_empty());
    assert_eq!(lookup(Set { fleeting: true, ..plain(&[1]) }, port_in_register()), ["o:1"]);
    // 0 is where the complement begins: an end there is how nft marks it.
    let interval = |from: u16, to: u16| Set {
        interval: true,
        elements: vec![
            Element { interval_end: true, ..element(&port(0)) },
            element(&port(from)),
            Element { interval_end: true, ..element(&port(to + 1)) },
        ],
        ..Set::default()
    };
    assert_eq!(lookup(interval(2000, 3000), port_in_register()), ["o:1*"]);
    assert_eq!(lookup(interval(3000, 3000), port_in_register()), ["o:1*"]);
    assert!(lookup(interval(3001, 4000), port_in_register()).is_empty());
    assert!(lookup(interval(1, 2999), port_in_register()).is_empty());
    let all = Set { elements: vec![Element { catch_all: true, ..element(&[]) }], ..Set::default() };
    assert_eq!(lookup(all, port_in_register()), ["o:1*"]);
}

#[test]
fn concatenations() {
    let key = || {
        vec![
            Expr::Payload { base: 1, offset: 16, len: 4, dst: 0 },
            Expr::Payload { base: 2, offset: 2, len: 2, dst: 4 },
        ]
    };
    let bytes = |last: u8, port: u16| {
        let [a, b] = port.to_be_bytes();
        vec![10, 0, 0, last, a, b, 0, 0]
    };
    let exact = Set { elements: vec![element(&bytes(2, 3000))], ..Set::default() };
    assert_eq!(lookup(exact, key()), ["o:1*"]);
    let ranges = |from: Vec<u8>, to: Vec<u8>| Set {
        interval: true,
        fields: vec![4, 2],
        elements: vec![Element { key_end: Some(to), ..element(&from) }],
        ..Set::default()
    };
    assert_eq!(lookup(ranges(bytes(0, 2999), bytes(9, 3001)), key()), ["o:1*"]);
    // Each part by itself: as one number this would lie between.
    assert!(lookup(ranges(bytes(1, 3001), bytes(9, 4000)), key()).is_empty());
}

#[test]
fn verdict_maps_with_an_unknown_key_may_do_each_of_their_verdicts() {
    let set = Set {
        elements: [(1, Verdict::Accept), (3000, Verdict::Drop), (3001, Verdict::Jump("side".to_owned()))]
            .map(|(port, verdict)| Element {
                data: Some(Data::Verdict(verdict)),
                ..element(&u16::to_be_bytes(port))
            })
            .into(),
        ..Set::default()
    };
    let rules =
        with(port_in_register(), [Expr::Lookup { set: "s".to_owned(), src: 0, dst: None, invert: false }]);
    let mut ruleset = Ruleset {
        chains: vec![
            chain("o", base(0, false), vec![rule(1, rules)]),
            chain("side", None, vec![rule(2, vec![drop_it()])]),
        ],
        ..Ruleset::default()
    };
    ruleset.sets.insert((Family::Inet, "t".to_owned(), "s".to_owned()), set);
    let run = |destination: Option<SocketAddr>| {
        found_in(&ruleset, &Packet { destination, ..packet() }, Some(Hook::Output))
    };
    assert_eq!(run(packet().destination), ["o:1*"]);
    assert_eq!(run(Some("10.0.0.2:3001".parse().unwrap())), ["side:2*"]);
    assert!(run(Some("10.0.0.2:1".parse().unwrap())).is_empty());
    assert_eq!(run(None), ["o:1", "side:2*"]);
}

#[test]
fn an_answer_leaves_the_rejects_that_give_it() {
    let candidate = |rule, action| Candidate { chain: 0, rule: Some(rule), action, certain: false };
    let all = [
        candidate(0, Action::Drop),
        candidate(1, Action::Reject(Some(Reject::Reset))),
        candidate(2, Action::Reject(Some(Reject::Icmpx(1)))),
        candidate(3, Action::Reject(Some(Reject::Icmpx(3)))),
        candidate(4, Action::Reject(None)),
    ];
    let left =
        |answer, v6| -> Vec<usize> { narrow(&all, answer, v6).iter().filter_map(|c| c.rule).collect() };
    assert_eq!(left(Answer::None, false), [0, 1, 2, 3, 4]);
    assert_eq!(left(Answer::Reset, false), [1, 4]);
    assert_eq!(left(Answer::Icmp(3, 3), false), [2, 4]);
    assert_eq!(left(Answer::Icmp(3, 13), false), [3, 4]);
    assert_eq!(left(Answer::Icmp(1, 4), true), [2, 4]);
    assert_eq!(left(Answer::Errno(libc::EACCES), true), [3, 4]);
    assert_eq!(left(Answer::Errno(libc::ECONNREFUSED), true), [1, 2, 4]);
    // A drop does not answer: then the rules do not explain it, and none is named.
    assert!(narrow(&all[..1], Answer::Reset, false).is_empty());
}

#[test]
fn unknown_parts_may_do_anything() {
    let opaque = chain(
        "o",
        base(0, false),
        vec![rule(1, vec![Expr::Opaque("new".to_owned())]), rule(2, with(dport(3000), [drop_it()]))],
    );
    assert_eq!(found(vec![opaque], &packet()), ["o:1", "o:2*"]);
}

#[test]
fn extensions_of_xtables() {
    let xt =
        |name: &str, revision, info: Vec<u8>| vec![Expr::Match(Xt { name: name.to_owned(), revision, info })];
    let tcp = |from: u16, to: u16, flags: [u8; 2], invert: u8| {
        let mut info = [0, u16::MAX, from, to].map(u16::to_ne_bytes).concat();
        info.extend([0, flags[0], flags[1], invert]);
        xt("tcp", 0, info)
    };
    assert_eq!(one(tcp(3000, 3000, [0, 0], 0), &packet()), ["o:1*"]);
    assert!(one(tcp(3001, 4000, [0, 0], 0), &packet()).is_empty());
    assert_eq!(one(tcp(3001, 4000, [0, 0], 2), &packet()), ["o:1*"]);
    // --syn: SYN,RST,ACK,FIN, of which SYN.
    assert_eq!(one(tcp(0, u16::MAX, [0x17, 0x02], 0), &packet()), ["o:1*"]);
    assert!(one(tcp(0, u16::MAX, [0x17, 0x02], 4), &packet()).is_empty());
    let multiport = |ports: &[(u16, u8)], invert: u8| {
        let mut info = vec![1, u8::try_from(ports.len()).unwrap()];
        let at = |i: usize| ports.get(i).copied().unwrap_or_default();
        info.extend((0..15).flat_map(|i| at(i).0.to_ne_bytes()));
        info.extend((0..15).map(|i| at(i).1));
        info.push(invert);
        xt("multiport", 1, info)
    };
    assert_eq!(one(multiport(&[(1, 0), (2000, 1), (3000, 0)], 0), &packet()), ["o:1*"]);
    assert!(one(multiport(&[(1, 0), (2000, 1), (2999, 0), (3001, 0)], 0), &packet()).is_empty());
    assert_eq!(one(multiport(&[(1, 0)], 1), &packet()), ["o:1*"]);
    assert_eq!(one(xt("brand-new", 9, Vec::new()), &packet()), ["o:1"]);
    // Data that are too short decide nothing.
    assert_eq!(one(xt("tcp", 0, vec![1]), &packet()), ["o:1"]);
    let owner = |uid: u32| {
        let mut info = [uid, uid, 0, 0].map(u32::to_ne_bytes).concat();
        info.extend([1, 0, 0, 0]);
        xt("owner", 1, info)
    };
    assert_eq!(one(owner(33), &packet()), ["o:1*"]);
    assert!(one(owner(34), &packet()).is_empty());
    assert_eq!(one(owner(34), &Packet { owner: None, ..packet() }), ["o:1"]);
}

#[test]
fn legacy_headers() {
    let header = |destination: ([u8; 4], [u8; 4], bool), output: &str| {
        let mut name = output.as_bytes().to_vec();
        name.resize(16, 0);
        let mask: Vec<u8> =
            (0..16).map(|i| if i <= output.len() && !output.is_empty() { 0xff } else { 0 }).collect();
        vec![Expr::Header(Header {
            source: (vec![0; 4], vec![0; 4], false),
            destination: (destination.0.to_vec(), destination.1.to_vec(), destination.2),
            protocol: (6, false),
            input: (vec![0; 16], vec![0; 16], false),
            output: (name, mask, false),
            more: false,
        })]
    };
    let net = ([10, 0, 0, 0], [255, 0, 0, 0], false);
    assert_eq!(one(header(net, ""), &packet()), ["o:1*"]);
    assert_eq!(one(header(net, "eth0"), &packet()), ["o:1*"]);
    assert!(one(header(net, "eth"), &packet()).is_empty());
    assert!(one(header((net.0, net.1, true), ""), &packet()).is_empty());
    let text = xt_text(&rule(0, with(header(net, "eth0"), [drop_it()])), false);
    assert_eq!(text, "-d 10.0.0.0/8 -o eth0 -p tcp -j DROP");
}

#[test]
fn bits() {
    let half = Bits::partly(&[0x12, 0x34], &[0xff, 0xf0]);
    assert_eq!(half.equals(&[0x12, 0x35]), Truth::Maybe);
    assert_eq!(half.equals(&[0x12, 0x45]), Truth::No);
    assert_eq!(half.equals(&[0x12]), Truth::Yes);
    assert_eq!(half.below(&[0x12, 0x40], false), Truth::Yes);
    assert_eq!(half.below(&[0x12, 0x35], false), Truth::Maybe);
    assert_eq!(half.below(&[0x12, 0x30], false), Truth::No);
    assert_eq!(half.within(&[0x12, 0x30], &[0x12, 0x3f]), Truth::Yes);
    assert_eq!(half.bitwise(&[0, 0xf0], &[0, 1]).bytes(), Some(&[0, 0x31][..]));
    assert_eq!(half.swapped(2).equals(&[0x34, 0x12]), Truth::Maybe);
    assert_eq!(half.slice(1, 2).bytes(), None);
}

#[test]
fn words_and_ways_out() {
    let drops = rule(7, with(dport(3000), [Expr::Statement("counter".to_owned()), drop_it()]));
    let mut output = chain("output", base(0, true), vec![drops.clone()]);
    assert_eq!(rule_text(&drops), "tcp dport 3000 counter drop");
    let server: SocketAddr = "10.0.0.2:3000".parse().unwrap();
    let commands = |chain: &Chain, rule, reply| -> Vec<String> {
        fixes(chain, rule, server, reply, Some("nsenter -t 5 -n ")).into_iter().filter_map(|f| f.1).collect()
    };
    assert_eq!(
        commands(&output, Some(0), false),
        [
            "nsenter -t 5 -n nft insert rule inet t output position 7 ip daddr 10.0.0.2 tcp dport 3000 accept",
            "nsenter -t 5 -n nft delete rule inet t output handle 7",
        ]
    );
    assert_eq!(
        commands(&output, None, true),
        [
            "nsenter -t 5 -n nft insert rule inet t output ip saddr 10.0.0.2 tcp sport 3000 ct state established accept"
        ]
    );
    output.name = "ufw-user-output".to_owned();
    assert_eq!(
        commands(&output, Some(0), false),
        ["nsenter -t 5 -n ufw prepend allow out to 10.0.0.2 port 3000 proto tcp"]
    );
    output.engine = Engine::Legacy;
    output.table = "filter".to_owned();
    output.name = "OUTPUT".to_owned();
    assert_eq!(
        commands(&output, Some(0), false),
        ["nsenter -t 5 -n iptables-legacy -t filter -I OUTPUT 1 -p tcp -d 10.0.0.2 --dport 3000 -j ACCEPT"]
    );
}

#[test]
fn one_rule_is_named_alone_only_if_nothing_speaks_against_it() {
    let named = |text: &str| Named {
        chain: "inet t o".to_owned(),
        handle: Some(7),
        number: Some(1),
        text: text.to_owned(),
        iptables: None,
        fix: Vec::new(),
    };
    let mut naming = Naming { candidates: vec![named("a")], ..Naming::default() };
    assert!(naming.only().is_some());
    assert_eq!(naming.words(), ["rule (handle 7) of inet t o: a, the only one that fits"]);
    naming.changed = true;
    assert!(naming.only().is_none());
    naming.changed = false;
    naming.candidates.push(named("b"));
    assert!(naming.only().is_none());
    assert!(naming.words().iter().all(|words| words.starts_with("one of 2 that fit")));
    naming.traced = Some(Traced { rule: named("b"), ago_ms: 1 });
    assert_eq!(naming.only().map(|rule| rule.text.as_str()), Some("b"));
}

#[test]
fn a_fate_tells_whether_there_is_a_way_through() {
    let fate = |policy_drop: bool, rules: Vec<Rule>, packet: &Packet| {
        let chains = vec![chain("o", base(0, policy_drop), rules)];
        let found = fate(&Ruleset { chains, ..Ruleset::default() }, packet, Hook::Output);
        (found.passes, found.candidates.len())
    };
    let drop_port = || rule(1, with(dport(3000), [drop_it()]));
    assert_eq!(fate(false, vec![drop_port()], &packet()), (false, 1));
    assert_eq!(fate(false, vec![rule(1, with(dport(3001), [drop_it()]))], &packet()), (true, 0));
    // A limit, or an earlier rule that may accept, leaves a way.
    assert_eq!(fate(false, vec![rule(1, with(dport(3000), [perhaps(), drop_it()]))], &packet()), (true, 1));
    let maybe_accept = || rule(2, with(dport(3000), [perhaps(), accept()]));
    assert_eq!(fate(false, vec![maybe_accept(), drop_port()], &packet()), (true, 1));
    assert_eq!(fate(true, vec![], &packet()), (false, 1));
    assert_eq!(fate(true, vec![rule(1, with(dport(3000), [accept()]))], &packet()), (true, 0));
    assert!(!fate(true, vec![], &Packet { v6: true, ..packet() }).0);
}

#[test]
fn a_fresh_packet_is_new_or_untracked() {
    let fresh = Packet { fresh: true, tracked: false, ..packet() };
    assert_eq!((fresh.states(true), fresh.states(false)), (Some(8 | 64), None));
    assert_eq!(Packet { reply: true, ..fresh.clone() }.states(true), None);
    assert_eq!(packet().states(true), Some(8 | 2));
}

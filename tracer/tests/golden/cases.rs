//! The recorded inputs: kernel record, facts and configuration of one failed attempt each.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use tracer::{
    correlate::{
        Case, ConntrackFact, Facts, FdFact, Listeners, Listening, NeighbourFact, PortsFact, Reach, RouteFact,
        blocked::Watched,
        no_attempt,
        no_attempt::{Choice, Failure, Group, LookUp, NoAttempt, Peer, Reply, Said},
    },
    diagnose::Cause,
    event::{self, Attempt, DropClass, Icmp, Overflow, Stage},
    moment::Moment,
    nginx::{self, Candidate, ConfigLine, Files, InForces, Model, Platform, Problem, Role, Setting, Source},
    probes::Tier,
    report::{Occupancy, ProgramCost, Summary, Totals, innocence::Account},
};
use tracer_ebpf::{Evidence, drop_flag, flag};

#[path = "unix.rs"]
mod unix;

const NGINX_CONF: &str = include_str!("nginx.conf");
const SHOP_CONF: &str = include_str!("shop.conf");
const CONFIG_CONF: &str = include_str!("config.conf");

/// A case with the answer it must get.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) cause: (Cause, &'static str),
    pub(crate) case: Case,
    pub(crate) container: Option<String>,
    pub(crate) bind_lines: Vec<ConfigLine>,
}

/// Every field of design.md, as JSON pointers.
pub(crate) const INCIDENT_FIELDS: &[&str] = &[
    "/schema",
    "/type",
    "/time",
    "/mono_ns",
    "/cause",
    "/confidence",
    "/summary",
    "/worker/pid",
    "/worker/container",
    "/upstream/name",
    "/upstream/address",
    "/upstream/server",
    "/upstream/module",
    "/config",
    "/attempt/phase",
    "/attempt/errno",
    "/attempt/errno_name",
    "/attempt/duration_us",
    "/attempt/number",
    "/attempt/client_saw",
    "/request/id",
    "/request/method",
    "/request/target",
    "/request/host",
    "/request/client",
    "/evidence",
    "/fix",
];

/// Fields of the lists' items.
pub(crate) const LIST_FIELDS: &[(&str, &[&str])] = &[
    ("config", &["role", "file", "line", "text"]),
    ("evidence", &["kind", "text"]),
    ("fix", &["text", "command"]),
];

const OWN: u32 = 4_026_531_840;
const OTHER: u32 = 4_026_532_999;
const FULL: Reach = Reach {
    drops: true,
    drop_reasons: true,
    resets: true,
    icmp: true,
    accept_queue: true,
    security: true,
    blockers: Watched::ALL,
    talk: true,
    unix_talk: true,
    deaths: true,
};
const TRACEPOINT: Reach =
    Reach { icmp: false, accept_queue: false, security: false, blockers: Watched::NONE, ..FULL };

/// 2026-11-22T14:02:11.482113Z.
pub(crate) fn time() -> Moment {
    Moment::utc(UNIX_EPOCH + Duration::from_micros(1_795_356_131_482_113))
}

struct Folder;

impl Files for Folder {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("/etc/nginx/nginx.conf") => Ok(NGINX_CONF.into()),
            Some("/etc/nginx/conf.d/shop.conf") => Ok(SHOP_CONF.into()),
            Some("/etc/nginx/config.conf") => Ok(CONFIG_CONF.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        assert_eq!(pattern, Path::new("/etc/nginx/conf.d/*.conf"));
        Ok(vec!["/etc/nginx/conf.d/shop.conf".into()])
    }
}

fn model() -> Model {
    let source = Source { main: Path::new("/etc/nginx/nginx.conf"), globals: None };
    let (config, errors) = nginx::parse_partial(&Folder, source);
    assert!(errors.is_empty(), "{errors:?}");
    Model::new(config)
}

/// A configuration with something of everything, and a mistake.
pub(crate) fn config(platform: Platform) -> (Model, Vec<Problem>) {
    let source = Source { main: Path::new("/etc/nginx/config.conf"), globals: None };
    let (config, errors) = nginx::parse_partial(&Folder, source);
    let model = Model::for_platform(config, platform);
    let problems = errors.iter().chain(&model.warnings).map(Problem::from).collect();
    (model, problems)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sample(name: &'static str, cause: Cause, confidence: &'static str, stage: Stage, remote: &str) -> Sample {
    let remote: SocketAddr = remote.parse().unwrap();
    let local = if remote.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    let config = match stage {
        Stage::Socket | Stage::Bind | Stage::Untried => Vec::new(),
        Stage::Connect | Stage::SynSent | Stage::Established => model().candidates(remote, &|_| Vec::new()),
    };
    let attempt = Attempt {
        socket: 0xffff_8881_0000_0000,
        netns: OWN,
        start_ns: Some(900_000_000_000),
        end_ns: 900_000_038_000,
        local: SocketAddr::new(if remote.ip().is_loopback() { remote.ip() } else { ip(local) }, 45_678),
        remote,
        ..Attempt::blank(stage, 133)
    };
    let facts = Facts { is_local: Some(remote.ip().is_loopback()), ..Facts::default() };
    let case = Case::new(attempt, FULL, facts, config);
    Sample { name, cause: (cause, confidence), case, container: None, bind_lines: Vec::new() }
}

fn drops(class: DropClass, count: u32, netns: u32, flags: u32, to: &str) -> Option<event::Drop> {
    let mut e = event::read_evidence(&[0; size_of::<Evidence>()]).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    e.drop_class = class as u8;
    e.classes = 1_u8.checked_shl(u32::from(class as u8)).unwrap_or(0);
    (e.drop_count, e.drop_netns, e.flags) = (count, netns, flags);
    (e.wire_daddr, e.wire_dport) = (event::addr(to.ip()), to.port());
    e.no_socket_netns = if class == DropClass::NoSocket { netns } else { 0 };
    event::evidence(&e, flag::DROP).unwrap().0
}

fn listening(address: &str, owner: &str, queued: u32, limit: u32) -> Listening {
    Listening { address: address.parse().unwrap(), owner: Some(owner.to_owned()), queued, limit }
}

impl Sample {
    fn edit(mut self, f: impl FnOnce(&mut Attempt, &mut Facts)) -> Self {
        f(&mut self.case.attempt, &mut self.case.facts);
        self
    }

    fn on(mut self, reach: Reach) -> Self {
        self.case.reach = reach;
        self
    }

    fn reset(self) -> Self {
        self.edit(|a, _| (a.reset, a.reset_ns, a.sk_err) = (true, a.end_ns - 1000, libc::ECONNREFUSED))
    }

    /// nginx gave up after its second; two SYNs are out by then.
    fn timer(self) -> Self {
        self.edit(|a, _| {
            a.end_ns = 900_000_000_000 + 1_001_300_000;
            (a.app_closed, a.retransmits) = (true, 1);
        })
    }

    fn fails(self, errno: i32) -> Self {
        self.edit(|a, _| (a.ret, a.local) = (-errno, SocketAddr::new(a.local.ip(), 0)))
    }

    fn icmp(self, errno: i32, kind: u8, code: u8, sender: &str) -> Self {
        self.edit(|a, f| {
            a.sk_err = errno;
            a.icmp = Some(Icmp { kind, code, sender: ip(sender) });
            f.icmp_sender_is_own = Some(["10.0.0.1", "127.0.0.1"].contains(&sender));
        })
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Sample> {
    let mut all = refusals();
    all.extend(timeouts());
    all.extend(networks());
    all.extend(calls());
    all.extend(untried());
    all.extend(unix::sockets());
    all
}

fn refusals() -> Vec<Sample> {
    use Stage::SynSent;
    let near = "127.0.0.1:3000";
    let others = || Listeners {
        exact: Vec::new(),
        other_address: vec![listening("10.0.0.1:3000", "java (pid 88)", 0, 100)],
        near_port: vec![listening("127.0.0.1:3001", "node (pid 4121)", 0, 511)],
    };
    let mut container =
        sample("refused-in-a-container", Cause::ConnectRefusedByPeer, "proven", SynSent, "10.0.0.2:3000");
    container.container = Some("docker 0123456789ab".to_owned());
    vec![
        sample("refused-no-listener", Cause::ConnectRefusedNoListener, "proven", SynSent, near).reset().edit(
            |a, f| {
                a.drop = drops(DropClass::NoSocket, 1, OWN, 0, near);
                f.listeners = Some(Listeners { other_address: Vec::new(), ..others() });
            },
        ),
        sample(
            "refused-no-listener-by-elimination",
            Cause::ConnectRefusedNoListener,
            "likely",
            SynSent,
            near,
        )
        .reset()
        .on(Reach { drops: false, drop_reasons: false, ..TRACEPOINT })
        .edit(|_, f| f.listeners = Some(others())),
        sample("refused-by-peer", Cause::ConnectRefusedByPeer, "likely", SynSent, "10.0.0.2:3000")
            .reset()
            .edit(|a, _| a.reset_ttl = Some(63)),
        container.reset().edit(|a, f| {
            a.drop = drops(DropClass::NoSocket, 1, OTHER, drop_flag::CONNTRACK, "172.17.0.2:8080");
            f.translated = "172.17.0.2:8080".parse().ok();
            f.other_namespace = Some("container docker fedcba987654".to_owned());
        }),
        sample("refused-by-local-firewall", Cause::ConnectRefusedByFirewall, "proven", SynSent, near)
            .icmp(libc::ECONNREFUSED, 3, 3, "127.0.0.1")
            .edit(|a, f| {
                a.drop = drops(DropClass::Netfilter, 1, OWN, 0, near);
                (f.drop_hook, f.drop_engine) = (Some("output".into()), Some("nftables".into()));
                f.drop_reason = Some("NETFILTER_DROP".to_owned());
                f.listeners = Some(Listeners {
                    exact: vec![listening(near, "node (pid 4121)", 0, 511)],
                    ..Listeners::default()
                });
            }),
        sample(
            "refused-by-remote-firewall-v6",
            Cause::ConnectRefusedByFirewall,
            "proven",
            SynSent,
            "[fd00::2]:3000",
        )
        .icmp(libc::EACCES, 1, 1, "fd00:9::9"),
    ]
}

fn timeouts() -> Vec<Sample> {
    use Stage::SynSent;
    let (near, far) = ("127.0.0.1:3000", "10.0.0.2:3000");
    let rule = |name, cause, confidence| {
        sample(name, cause, confidence, SynSent, far).timer().edit(|a, f| {
            a.drop = drops(DropClass::Netfilter, 2, OWN, 0, far);
            (f.drop_hook, f.drop_reason) = (Some("output".into()), Some("NETFILTER_DROP".to_owned()));
        })
    };
    let mut aborted = sample("client-aborted", Cause::ClientAborted, "proven", SynSent, far)
        .edit(|a, _| (a.app_closed, a.end_ns) = (true, 900_412_700_000));
    aborted.case.client_gone = Some(("203.0.113.9:51514".parse().unwrap(), true));
    vec![
        rule("timeout-firewall-drop", Cause::ConnectTimeoutFirewallDrop, "proven")
            .edit(|_, f| f.drop_engine = Some("nftables".into())),
        rule("timeout-conntrack-full", Cause::ConnectTimeoutConntrackFull, "proven")
            .edit(|_, f| f.conntrack = Some(ConntrackFact { count: 65_536, max: 65_536, drops: 1203 })),
        sample("timeout-backlog-full", Cause::ConnectTimeoutBacklogFull, "proven", SynSent, near)
            .timer()
            .edit(|a, f| {
                a.overflow = Some(Overflow { queued: 129, limit: 128, netns: OWN });
                let exact = vec![listening(near, "gunicorn (pid 700)", 129, 128)];
                f.listeners = Some(Listeners { exact, ..Listeners::default() });
            }),
        sample("timeout-no-answer", Cause::ConnectTimeoutNoAnswer, "proven", SynSent, far).timer().edit(
            |_, f| {
                f.route = Some(route(None, "unicast", "default via 10.0.0.254 dev eth0"));
            },
        ),
        sample(
            "timeout-no-answer-v6-default-timer",
            Cause::ConnectTimeoutNoAnswer,
            "likely",
            SynSent,
            "[fd00::2]:9000",
        )
        .edit(|a, f| {
            (a.app_closed, a.retransmits, a.end_ns) = (true, 5, 960_003_000_000);
            f.peer_namespace = Some("container docker fedcba987654".to_owned());
        }),
        sample("blocked-cgroup", Cause::BlockedCgroupBpf, "proven", SynSent, far).timer().edit(|a, _| {
            a.drop = drops(DropClass::Bpf, 2, OWN, 0, far);
        }),
        aborted,
    ]
}

fn route(errno: Option<i32>, kind: &str, entry: &str) -> RouteFact {
    RouteFact {
        errno,
        kind: Some(kind.to_owned()),
        entry: Some(entry.to_owned()),
        next_hop: errno.is_none().then(|| ip("10.0.0.254")),
        device: errno.is_none().then(|| "eth0".to_owned()),
        device_up: errno.is_none().then_some(true),
        device_xdp: false,
    }
}

fn networks() -> Vec<Sample> {
    use Stage::{Connect, SynSent};
    let far = "10.0.0.2:3000";
    vec![
        sample("host-unreachable-arp", Cause::HostUnreachable, "proven", SynSent, far)
            .icmp(libc::EHOSTUNREACH, 3, 1, "10.0.0.1")
            .edit(|a, f| {
                a.end_ns = 903_064_000_000;
                let (state, device) = ("FAILED".to_owned(), "eth0".to_owned());
                f.neighbour = Some(NeighbourFact { ip: ip("10.0.0.2"), state, failed: true, device });
            }),
        sample("host-unreachable-router", Cause::HostUnreachable, "likely", SynSent, far).icmp(
            libc::EHOSTUNREACH,
            3,
            1,
            "10.9.9.9",
        ),
        sample("network-unreachable-prohibit", Cause::NetworkUnreachable, "proven", Connect, far)
            .fails(libc::EACCES)
            .edit(|_, f| f.route = Some(route(Some(libc::EACCES), "prohibit", "prohibit 10.0.0.0/24"))),
        sample(
            "network-unreachable-ipv6-off",
            Cause::NetworkUnreachable,
            "proven",
            Connect,
            "[fd00::2]:3000",
        )
        .fails(libc::EADDRNOTAVAIL)
        .edit(|_, f| f.ipv6_disabled = Some(true)),
    ]
}

fn calls() -> Vec<Sample> {
    use Stage::{Bind, Connect, Socket};
    let model = model();
    let pass =
        model.passes.iter().find(|pass| model.effective(pass, Setting::Bind).node().is_some()).unwrap();
    let bind = model.effective(pass, Setting::Bind).node().unwrap();
    let mut bound =
        sample("bind-failed", Cause::BindFailed, "proven", Bind, "10.7.7.7:0").fails(libc::EADDRNOTAVAIL);
    bound.bind_lines = vec![model.line(Role::Pass, pass.node), model.line(Role::Directive, bind)];
    vec![
        bound,
        sample("fd-limit", Cause::FdLimit, "proven", Socket, "0.0.0.0:0").fails(libc::EMFILE).edit(|_, f| {
            f.fds =
                Some(FdFact { open: 1024, soft: 1024, hard: 524_288, host_open: Some(9000), host_max: None });
        }),
        sample("local-port-exhausted", Cause::LocalPortExhausted, "proven", Connect, "10.0.0.2:3000")
            .fails(libc::EADDRNOTAVAIL)
            .edit(|a, f| {
                a.syn_state = true;
                a.local.set_port(0);
                f.ports =
                    Some(PortsFact { range: (32_768, 60_999), to_destination: 28_232, time_wait: 28_011 });
            }),
        sample("unexplained-security", Cause::Unexplained, "unexplained", Connect, "127.0.0.1:3000")
            .fails(libc::EACCES)
            .edit(|a, _| a.security = Some(-libc::EACCES)),
        sample("unexplained-cgroup-or-seccomp", Cause::Unexplained, "unexplained", Connect, "192.0.2.7:4000")
            .fails(libc::EPERM)
            .on(TRACEPOINT),
    ]
}

/// Requests for which nginx tried nobody.
fn untried() -> Vec<Sample> {
    let model = model();
    let pass = model.passes.iter().find(|pass| pass.upstream.is_some()).unwrap();
    let upstream = &model.upstreams[pass.upstream.unwrap()];
    let servers = || upstream.servers.iter().map(|server| model.line(Role::Server, server.node));
    let line = model.line(Role::Pass, pass.node);
    let none = |choice, waited_us| NoAttempt {
        tried: 0,
        source: no_attempt::Source::Answer { at_once: true, crowded: false },
        waited_us,
        certain: true,
        others: Vec::new(),
        pass: line.clone(),
        choice,
    };
    let make = |name, cause, no_attempt: NoAttempt, upstream: &str, lines: Vec<ConfigLine>| {
        let mut made = sample(name, cause, "proven", Stage::Untried, "0.0.0.0:0");
        made.case.attempt.end_ns = 900_000_000_000 + no_attempt.waited_us * 1000;
        made.case.attempt.local = made.case.attempt.remote;
        made.case.config = vec![Candidate {
            upstream: Some(upstream.to_owned()),
            server: String::new(),
            module: pass.module,
            lines: lines.into_iter().chain([line.clone()]).collect(),
            connect_timeouts: Vec::new(),
            barred: nginx::Barred::default(),
            settings: InForces::default(),
            exact: true,
            upstream_server: None,
            passes: vec![0],
        }];
        made.case.facts.no_attempt = Some(Box::new(no_attempt));
        made
    };
    let failure =
        |at_ns| Failure { worker: 133, at_ns, cause: "connect-refused-no-listener".into(), sure: true };
    let peers = upstream.servers.iter().zip(servers()).map(|(server, line)| Peer {
        server: server.text.clone(),
        address: server.text.parse().ok(),
        sure: true,
        line,
        down: false,
        backup: false,
        unix: None,
        max_fails: server.max_fails,
        fail_timeout_s: server.fail_timeout_s,
        max_conns: 0,
        failures: vec![failure(896_000_000_000), failure(897_500_000_000), failure(899_000_000_000)],
    });
    let group = Group { name: "backend".to_owned(), shared: true, known: true, peers: peers.collect() };
    let directive = |line, text: &str| ConfigLine {
        role: Role::Directive,
        file: "/etc/nginx/nginx.conf".into(),
        line,
        text: text.to_owned(),
    };
    let resolver = directive(7, "resolver 10.0.0.53;");
    let look_up = |resolver: Option<&ConfigLine>, replies| LookUp {
        name: Some("app.example.com".to_owned()),
        sure: true,
        resolver: resolver.cloned(),
        timeout_ms: Some(30_000),
        timeout_text: "resolver_timeout 30s (default)".to_owned(),
        watched: true,
        replies,
    };
    let reply = Reply {
        server: "10.0.0.53:53".parse().unwrap(),
        before_us: 140,
        what: Said::Code(3),
        name: Some("app.example.com".to_owned()),
    };
    let name = "app.example.com";
    vec![
        make(
            "no-live-upstreams",
            Cause::NoLiveUpstreams,
            none(Choice::Group(group), 180),
            "backend",
            servers().collect(),
        ),
        make(
            "no-resolver",
            Cause::NoResolver,
            none(Choice::Name(look_up(None, Vec::new())), 95),
            name,
            Vec::new(),
        ),
        make(
            "resolver-failed-nxdomain",
            Cause::ResolverFailed,
            none(Choice::Name(look_up(Some(&resolver), vec![reply])), 2_350),
            name,
            vec![resolver.clone()],
        ),
        make(
            "resolver-failed-timeout",
            Cause::ResolverFailed,
            none(Choice::Name(look_up(Some(&resolver), Vec::new())), 30_001_200),
            name,
            vec![resolver.clone()],
        ),
    ]
}

/// The last line of a run.
pub(crate) fn summary() -> Summary {
    Summary {
        time: time(),
        mono_ns: 0,
        duration: Duration::from_millis(61_500),
        incidents: [(Cause::ConnectTimeoutNoAnswer, 2), (Cause::ConnectRefusedNoListener, 41)].into(),
        counters: Totals {
            connects: 1000,
            established: 957,
            failed: 43,
            sent: 43,
            counted: 0,
            lost: 10,
            found_late: 0,
        },
        unread: 5,
        workers: 4,
        masters: 2,
        tier: Tier::Kprobe,
        maps: Occupancy { conns: 7, procs: 6, flows: 5 },
        skipped_runs: 0,
        programs: vec![ProgramCost { name: "set_state".to_owned(), runs: 3000, run_time_ns: 600_000 }],
        unrecorded: false,
        account: Account::default(),
        checked: Vec::new(),
    }
}

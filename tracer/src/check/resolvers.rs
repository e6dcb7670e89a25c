//! The name servers that nginx asks while requests wait (`resolver`): each is asked, from the worker's place, for the names
//! that passes with variables need.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    Checked, Finding, Name, Options, Place, Report, Severity, Subject,
    config::looked_up,
    position::{plan, try_all, worker},
    probe::{Answer, Ask, Call, Outcome, Question, Where, kind},
};
use crate::{
    correlate::no_attempt::{Said, code_name, reply},
    diagnose::{Cause, Confidence, words},
    nginx::{
        choice::Destination,
        model::{Model, Pass},
        tree::NodeId,
        value::Address,
    },
};

const NAME: &str = "resolver-failed";

/// What this family finds: the cause that a request's failure would have.
pub const NAMES: &[Name] =
    &[(NAME, "a name server of `resolver` does not answer, or does not know a name that a pass needs")];

/// Of the time for all, what name servers may take.
const SHARE: u32 = 3;
/// Most questions.
const MOST: usize = 1000;
/// Lines of one finding.
const MOST_LINES: usize = 12;
/// The root: what any name server answers or refuses at once.
const ROOT: &str = ".";
/// The port of a name server that names none (ngx_resolver_create).
const PORT: u16 = 53;

/// A name that is needed, and from whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    server: SocketAddr,
    /// [`ROOT`] where a request tells the name.
    name: String,
}

/// Who needs it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Users {
    /// The kinds of address that are asked for.
    kinds: BTreeSet<u16>,
    /// By index in the model.
    passes: BTreeSet<usize>,
    /// Where `resolver` stands.
    lines: BTreeSet<NodeId>,
    /// A pass comes there whatever its requests are.
    surely: bool,
    /// nginx has no other server to ask.
    alone: bool,
}

/// Everything that `resolver` is needed for.
#[derive(Debug, Default)]
struct Needs {
    all: BTreeMap<Need, Users>,
    /// Servers that are written as names.
    by_name: BTreeSet<String>,
}

/// Asks the name servers.
#[must_use]
pub fn inspect(subject: &Subject<'_>, options: &Options) -> Report {
    let model = &subject.snapshot.model;
    let needs = needs(model);
    // Without a worker there is nobody whose place could be taken; `upstreams` says so.
    let Some(worker) = worker(subject).filter(|_| !needs.all.is_empty() || !needs.by_name.is_empty()) else {
        return Report::default();
    };
    let asked: Vec<(&Need, &Users, u16)> = needs
        .all
        .iter()
        .flat_map(|(need, users)| users.kinds.iter().map(move |kind| (need, users, *kind)))
        .take(MOST)
        .collect();
    let ask = |(need, _, kind): &(&Need, &Users, u16)| Ask {
        to: Where::Tcp(need.server),
        from: None,
        tls: None,
        question: Some(Question { name: need.name.clone(), kind: *kind }),
    };
    let mut missing: Vec<String> = Vec::new();
    let wanted: usize = needs.all.values().map(|users| users.kinds.len()).sum();
    if wanted > asked.len() {
        missing.push(format!("{} of {wanted} questions were not asked", wanted - asked.len()));
    }
    if !needs.by_name.is_empty() {
        let names: Vec<&str> = needs.by_name.iter().map(String::as_str).collect();
        missing.push(format!("name servers that are written as names were not asked: {}", names.join(" ")));
    }
    let mut answers = Vec::new();
    let mut confined = true;
    if !asked.is_empty() {
        (options.progress)(&format!("asking name servers {} questions", asked.len()));
        let plan = plan(worker, options, options.total / SHARE, asked.iter().map(ask).collect());
        match try_all(Path::new("/proc/self/exe"), &plan, "DNS question", |_| {}) {
            Ok(tried) => {
                confined = tried.given_up.is_none();
                missing.extend(tried.given_up);
                answers = tried.answers;
            }
            Err(why) => missing.push(why),
        }
    }
    answers.resize(asked.len(), Answer::NONE);
    let mut by_need: BTreeMap<&Need, Vec<(u16, &Answer)>> = BTreeMap::new();
    for ((need, _, kind), answer) in asked.iter().zip(&answers) {
        by_need.entry(need).or_default().push((*kind, answer));
    }
    let late = answers.iter().filter(|answer| !is_told(answer, options)).count();
    if late > 0 && missing.is_empty() {
        missing.push(format!("{late} DNS questions could not be asked, or got too little time"));
    }
    let mut findings = judge(model, &needs, &by_need, options);
    if !confined {
        let rival = "what the worker's own confinement would have changed: it could not be taken on";
        let certain = |finding: &&mut Finding| finding.confidence == Confidence::Proven;
        for finding in findings.iter_mut().filter(certain) {
            *finding = finding.clone().likely(rival);
        }
    }
    let servers: BTreeSet<SocketAddr> = by_need.keys().map(|need| need.server).collect();
    let answered = |server: &&SocketAddr| {
        by_need
            .iter()
            .any(|(need, told)| need.server == **server && told.iter().any(|(_, a)| a.reply.is_some()))
    };
    let seen = format!(
        "{} of {} answer ({} questions)",
        servers.iter().filter(answered).count(),
        servers.len(),
        asked.len()
    );
    let names = if findings.is_empty() { Vec::new() } else { vec![NAME] };
    let incomplete = (!missing.is_empty()).then(|| missing.join("; "));
    Report { checked: vec![Checked { what: "name servers", seen, incomplete, findings: names }], findings }
}

/// Whether an answer says something of the name server; not of this machine's want of sockets, or time.
fn is_told(answer: &Answer, options: &Options) -> bool {
    match answer.outcome {
        Outcome::NotTried | Outcome::Failed(Call::Socket | Call::Bind, _) => false,
        // Cut off by the end of the time for all.
        Outcome::TimedOut => u128::from(answer.us) >= options.timeout.as_micros(),
        Outcome::Connected | Outcome::Failed(Call::Connect | Call::Later, _) => true,
    }
}

/// What `resolver` is needed for. Pure.
fn needs(model: &Model) -> Needs {
    let mut needs = Needs::default();
    for (index, pass) in model.passes.iter().enumerate() {
        let names = names(model, index, pass);
        let Some(resolver) = model.effective_of(pass, "resolver").filter(|_| !names.is_empty()) else {
            continue;
        };
        let (Some(line), Some(value)) = (resolver.node(), resolver.value.as_deref()) else { continue };
        let has = |option: &str| value.split_ascii_whitespace().any(|word| word == option);
        let servers: Vec<&str> = value.split_ascii_whitespace().filter(|word| !word.contains('=')).collect();
        for written in &servers {
            let Some(server) = address(written) else {
                needs.by_name.insert((*written).to_owned());
                continue;
            };
            for (name, surely) in &names {
                let users = needs.all.entry(Need { server, name: name.clone() }).or_default();
                if name == ROOT {
                    users.kinds.insert(kind::NS);
                } else {
                    users.kinds.extend((!has("ipv4=off")).then_some(kind::A));
                    users.kinds.extend((!has("ipv6=off")).then_some(kind::AAAA));
                }
                users.passes.insert(index);
                users.lines.insert(line);
                users.surely |= *surely;
                users.alone |= servers.len() == 1;
            }
        }
    }
    needs
}

/// The names that a pass needs, and whether every request of it does.
fn names(model: &Model, index: usize, pass: &Pass) -> Vec<(String, bool)> {
    let Address::Variable { .. } = pass.target else { return Vec::new() };
    let names = looked_up(model, index, pass);
    let only = names.len() == 1 && pass.values.len() <= 1;
    if !names.is_empty() {
        return names.into_iter().map(|(name, sure)| (name, sure && only)).collect();
    }
    let hosts = pass.values.iter().filter(|value| value.upstream.is_none());
    let some: Vec<(String, bool)> = hosts
        .filter_map(|value| match &value.target {
            Address::Name { host, .. } => Some((host.clone(), false)),
            _ => None,
        })
        .collect();
    let fixed = pass.complete && !pass.values.is_empty();
    if !some.is_empty() || fixed {
        return some;
    }
    match model.destination(index, &|_| None) {
        Some(Destination::Resolve { .. }) => vec![(ROOT.to_owned(), false)],
        _ => Vec::new(),
    }
}

/// A server as `resolver` writes it.
fn address(written: &str) -> Option<SocketAddr> {
    let ip = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(written);
    written.parse().ok().or_else(|| Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, PORT)))
}

fn judge(
    model: &Model,
    needs: &Needs,
    told: &BTreeMap<&Need, Vec<(u16, &Answer)>>,
    options: &Options,
) -> Vec<Finding> {
    let mut found: BTreeMap<&Need, (Option<&'static str>, Finding)> = BTreeMap::new();
    for (need, answers) in told {
        if !answers.iter().all(|(_, answer)| is_told(answer, options)) {
            continue;
        }
        if let Some((how, finding)) = not_reached(need, answers, options) {
            found.insert(need, (Some(how), finding));
        } else if let Some(finding) = not_known(need, answers).filter(|_| need.name != ROOT) {
            found.insert(need, (None, finding));
        }
    }
    // A server that answers nothing is told once, however many names it is asked for.
    let mut merged: BTreeMap<(SocketAddr, &str), (Finding, Users)> = BTreeMap::new();
    // Backwards: a name tells more than the root, which comes first.
    for (need, (how, finding)) in found.iter().rev() {
        let Some(users) = needs.all.get(need) else { continue };
        let key = (need.server, how.unwrap_or(&need.name));
        let (_, all) = merged.entry(key).or_insert_with(|| (finding.clone(), Users::default()));
        all.passes.extend(&users.passes);
        all.lines.extend(&users.lines);
        all.surely |= users.surely;
        // The others are none the better.
        let same = |other: &&Need| {
            let lines = needs.all.get(other).map(|users| &users.lines);
            other.name == need.name && lines.is_some_and(|lines| !lines.is_disjoint(&users.lines))
        };
        all.alone |= users.alone || needs.all.keys().filter(same).all(|other| found.contains_key(other));
    }
    merged.into_iter().map(|((server, _), (finding, users))| finish(model, finding, &users, server)).collect()
}

/// Adds the lines, what breaks, and how bad it is.
fn finish(model: &Model, mut finding: Finding, users: &Users, server: SocketAddr) -> Finding {
    if !users.surely || !users.alone {
        finding.severity = Severity::Warning;
    }
    let which = if users.surely { "Requests of this pass" } else { "Requests for which nginx must ask it" };
    finding = finding.cause(Cause::ResolverFailed).upstream(server.to_string());
    finding.breaks = if users.alone {
        format!("{which} end with 502: nginx looks the name up while they wait.")
    } else {
        format!("{which} are late, or end with 502, where nginx asks this name server: it asks all in turn.")
    };
    for pass in users.passes.iter().filter_map(|pass| model.passes.get(*pass)).take(MOST_LINES) {
        finding = finding.at(Place::of(model, "pass", pass.node));
    }
    for line in users.lines.iter().take(MOST_LINES) {
        finding = finding.at(Place::of(model, "resolver", *line));
    }
    finding
}

/// What keeps a question from its answer; with it, a word for that.
fn not_reached(
    need: &Need,
    answers: &[(u16, &Answer)],
    options: &Options,
) -> Option<(&'static str, Finding)> {
    let Need { server, .. } = need;
    let test = format!("dig @{} -p {} {}", server.ip(), server.port(), need.name);
    let failed = answers.iter().find_map(|(_, answer)| match answer.outcome {
        Outcome::Failed(_, errno) => Some((errno, answer)),
        Outcome::Connected | Outcome::TimedOut | Outcome::NotTried => None,
    });
    if let Some((errno, answer)) = failed {
        let mut finding = Finding::problem(NAME, format!("the name server {server} cannot be asked"))
            .because("dns", format!("a question by UDP failed with {}", words::errno(errno)));
        if let Some(icmp) = answer.icmp {
            let what = words::icmp_name(icmp.sender.is_ipv6(), icmp.kind, icmp.code);
            finding = finding.because("icmp", format!("{} sent {what}", icmp.sender));
        }
        let fix = match errno {
            libc::ECONNREFUSED => {
                "start the name server, or correct its address and port: nothing listens there"
            }
            libc::EPERM | libc::EACCES => {
                "let the worker send UDP to it: a rule or a policy of this machine forbids it"
            }
            _ => "correct its address, or the route to it",
        };
        return Some(("failed", finding.fix_with(fix, test)));
    }
    let silent: Vec<&str> = answers
        .iter()
        .filter(|(_, answer)| answer.outcome == Outcome::TimedOut)
        .map(|(kind, _)| kind_name(*kind))
        .collect();
    if silent.is_empty() {
        return None;
    }
    let ms = options.timeout.as_millis();
    if silent.len() == answers.len() {
        let finding = Finding::problem(NAME, format!("the name server {server} does not answer"))
            .likely("questions or answers that were lost on the way, or a firewall that drops them")
            .because(
                "dns",
                format!("asked three times for {} ({}): nothing in {ms} ms", need.name, silent.join(", ")),
            )
            .fix_with("check that it runs, that it answers this host, and the firewalls on the way", test);
        return Some(("silent", finding));
    }
    let summary =
        format!("the name server {server} leaves questions for {} unanswered", silent.join(" and "));
    let finding = Finding::problem(NAME, summary)
        .likely("answers that were lost on the way")
        .because(
            "dns",
            format!("{}: the other kinds were answered, {} not in {ms} ms", need.name, silent.join(", ")),
        )
        .fix("let it answer every kind, if with no record: nginx waits for all that it asks")
        .fix("or switch the kind off in the `resolver` line: ipv6=off");
    Some(("one kind", finding))
}

/// A name for which no kind of address is known.
fn not_known(need: &Need, answers: &[(u16, &Answer)]) -> Option<Finding> {
    let mut said: Vec<(u16, Said)> = Vec::new();
    for (kind, answer) in answers {
        // None: there are records.
        said.push((*kind, reply(answer.reply.as_deref()?)?.0));
    }
    if said.iter().any(|(_, said)| *said == Said::Truncated) {
        return None;
    }
    let words = |said: &Said| match said {
        Said::Code(code) => code_name(*code),
        _ => "no record".to_owned(),
    };
    let last = &said.last()?.1;
    let told: Vec<String> =
        said.iter().map(|(kind, said)| format!("{}: {}", kind_name(*kind), words(said))).collect();
    let Need { server, name } = need;
    let summary = match last {
        Said::Code(_) => format!("the name server {server} answers {} for \"{name}\"", words(last)),
        _ => format!("the name server {server} knows no address of \"{name}\""),
    };
    let mut finding = Finding::problem(NAME, summary)
        .because("dns", format!("{name} asked of {server}, {}", told.join(", ")));
    finding = match last {
        Said::Code(5) => finding.fix("let the name server answer this host (its access list), or ask another one"),
        Said::Code(code) if *code != 3 => finding.fix("look at the name server's own log: it could not find out"),
        _ => finding.fix(
            "correct the name, or ask a name server that knows it: nginx's resolver reads no /etc/hosts and adds no search domain",
        ),
    };
    Some(finding.fix_with("ask it yourself", format!("dig @{} -p {} {name}", server.ip(), server.port())))
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        kind::A => "A",
        kind::AAAA => "AAAA",
        _ => "NS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::model_of::model;

    fn shown(http: &str) -> Vec<String> {
        let needs = needs(&model(&format!("http {{ {http} }}")));
        let all = needs.all.iter().map(|(need, users)| {
            let kinds: Vec<&str> = users.kinds.iter().map(|kind| kind_name(*kind)).collect();
            let sure = if users.surely { " surely" } else { "" };
            let alone = if users.alone { " alone" } else { "" };
            format!("{} {} {} x{}{sure}{alone}", need.server, need.name, kinds.join("+"), users.passes.len())
        });
        all.chain(needs.by_name.iter().map(|name| format!("?{name}"))).collect()
    }

    #[test]
    fn names_that_requests_wait_for_are_asked_of_every_server() {
        let text = "resolver 10.0.0.1 [fd00::1]:5353 ns.test valid=5s; server { set $a app.test; \
                    location / { proxy_pass http://$a:80; } location /b { proxy_pass http://$a/b; } }";
        assert_eq!(
            shown(text),
            ["10.0.0.1:53 app.test A+AAAA x2 surely", "[fd00::1]:5353 app.test A+AAAA x2 surely", "?ns.test"]
        );
    }

    #[test]
    fn kinds_that_are_switched_off_are_not_asked_for() {
        let with = |options: &str| {
            format!(
                "resolver 10.0.0.1 {options}; server {{ set $a app.test; location / {{ proxy_pass http://$a; }} }}"
            )
        };
        assert_eq!(shown(&with("ipv6=off")), ["10.0.0.1:53 app.test A x1 surely alone"]);
    }

    #[test]
    fn where_a_request_tells_the_name_the_root_is_asked_for() {
        let text = "resolver 10.0.0.1; server { location / { proxy_pass http://$http_x_to; } }";
        assert_eq!(shown(text), ["10.0.0.1:53 . NS x1 alone"]);
        let some = "resolver 10.0.0.1; map $host $to { a one.test; b two.test; default 10.0.0.9; } \
                    server { location / { proxy_pass http://$to; } }";
        assert_eq!(
            shown(some),
            ["10.0.0.1:53 one.test A+AAAA x1 alone", "10.0.0.1:53 two.test A+AAAA x1 alone"]
        );
    }

    #[test]
    fn nobody_is_asked_for_what_is_not_looked_up_then() {
        for quiet in [
            "resolver 10.0.0.1; server { location / { proxy_pass http://app.test; } }",
            "resolver 10.0.0.1; upstream g { server 10.0.0.2; } server { set $a g; location / { proxy_pass http://$a; } }",
            "resolver 10.0.0.1; map $host $to { default 10.0.0.9:1; } server { location / { proxy_pass http://$to; } }",
            "server { set $a app.test; location / { proxy_pass http://$a; } }",
        ] {
            assert_eq!(shown(quiet), Vec::<String>::new(), "{quiet}");
        }
    }

    fn judged(answers: &[(&str, Answer)]) -> Vec<String> {
        let servers: BTreeSet<&str> = answers.iter().map(|(server, _)| *server).collect();
        let list: Vec<&str> = servers.into_iter().collect();
        let model = model(&format!(
            "http {{ resolver {} ipv6=off; server {{ set $a app.test; location / {{ proxy_pass http://$a; }} }} }}",
            list.join(" ")
        ));
        let needs = needs(&model);
        let mut told: BTreeMap<&Need, Vec<(u16, &Answer)>> = BTreeMap::new();
        for (server, answer) in answers {
            let need = needs.all.keys().find(|need| need.server == address(server).unwrap()).unwrap();
            told.entry(need).or_default().push((kind::A, answer));
        }
        let found = judge(&model, &needs, &told, &Options::default());
        let lines = found.iter().map(|one| {
            let roles: Vec<&str> = one.at.iter().map(|place| place.role).collect();
            format!("{:?} {:?} {} [{}]", one.severity, one.confidence, one.summary, roles.join(" "))
        });
        lines.collect()
    }

    fn replied(code: u8, records: u8) -> Answer {
        let reply =
            vec![0, 0, 0x81, 0x80 | code, 0, 1, 0, records, 0, 0, 0, 0, 3, b'a', b'p', b'p', 0, 0, 1, 0, 1];
        Answer { outcome: Outcome::Connected, reply: Some(reply), ..Answer::NONE }
    }

    fn ended(outcome: Outcome) -> Answer {
        Answer { outcome, us: 3_000_000, ..Answer::NONE }
    }

    #[test]
    fn answers_are_judged() {
        let refused = ended(Outcome::Failed(Call::Later, libc::ECONNREFUSED));
        for (answer, wanted) in [
            (replied(0, 1), None),
            (
                replied(3, 0),
                Some("Problem Proven the name server 10.0.0.1:53 answers NXDOMAIN for \"app.test\""),
            ),
            (
                replied(2, 0),
                Some("Problem Proven the name server 10.0.0.1:53 answers SERVFAIL for \"app.test\""),
            ),
            (
                replied(0, 0),
                Some("Problem Proven the name server 10.0.0.1:53 knows no address of \"app.test\""),
            ),
            (refused.clone(), Some("Problem Proven the name server 10.0.0.1:53 cannot be asked")),
            (ended(Outcome::TimedOut), Some("Problem Likely the name server 10.0.0.1:53 does not answer")),
            // Nothing is known of the name server then.
            (ended(Outcome::NotTried), None),
            (Answer { us: 2_000_000, ..ended(Outcome::TimedOut) }, None),
            (ended(Outcome::Failed(Call::Socket, libc::EMFILE)), None),
        ] {
            let wanted: Vec<String> =
                wanted.map(|text| format!("{text} [pass resolver]")).into_iter().collect();
            assert_eq!(judged(&[("10.0.0.1", answer)]), wanted);
        }
    }

    #[test]
    fn one_of_two_servers_is_no_problem_of_every_request() {
        let one = judged(&[("10.0.0.1", replied(3, 0)), ("10.0.0.2", replied(0, 1))]);
        assert!(matches!(one.as_slice(), [only] if only.starts_with("Warning Proven")), "{one:?}");
        let both = judged(&[("10.0.0.1", replied(3, 0)), ("10.0.0.2", ended(Outcome::TimedOut))]);
        assert!(both.len() == 2 && both.iter().all(|line| line.starts_with("Problem")), "{both:?}");
    }
}

//! Unix sockets. The errno narrows the cause down (unix_find_other and unix_stream_connect, net/unix/af_unix.c), and
//! what is there now must agree with it:
//!
//! | errno | there is |
//! | --- | --- |
//! | ENOENT, ENOTDIR, ELOOP | no such path, where the worker looks |
//! | EACCES | a component that keeps the worker out |
//! | ECONNREFUSED | a file that is no socket; a socket that nobody listens on; no such abstract name |
//! | EPROTOTYPE | a socket of another type |
//! | EAGAIN | a listener whose queue is full |
//!
//! Look-alikes: EACCES of a security module, ECONNREFUSED of TCP. The state is read after the attempt: where it does not
//! agree, or has changed since, nothing is proven.

use crate::{
    correlate::{
        Case,
        unix::{Bound, Component, Elsewhere, End, Refusal, Type, UnixFact, Wanted},
    },
    diagnose::{Cause, Verdict, words},
    event::{Stage, UnixName},
};

/// What is common to all of them.
struct Failed<'a> {
    case: &'a Case,
    name: &'a UnixName,
    errno: i32,
    fact: Option<&'a UnixFact>,
}

impl<'a> Failed<'a> {
    /// The attempt, if it ended with one of these and no hook has refused it.
    fn of(case: &'a Case, errnos: &[i32]) -> Option<Self> {
        let a = &case.attempt;
        let name = a.unix.as_ref().filter(|_| a.stage == Stage::Connect)?;
        let errno = a.ret.saturating_neg();
        let refused = a.security.is_some() || a.denials.iter().any(|denial| denial.ret < 0);
        let fits = errnos.contains(&errno) && !refused;
        fits.then_some(Self { case, name, errno, fact: case.facts.unix.as_deref() })
    }

    fn call(&self) -> String {
        format!("connect() to unix:{} returned {}", self.name, words::errno(self.errno))
    }

    fn place(&self) -> String {
        words::server_line(self.case).unwrap_or_else(|| "nginx's configuration".to_owned())
    }

    /// A verdict of the errno alone: the worker was gone before anything could be looked at.
    fn unseen(&self, cause: Cause, summary: String, rival: &str) -> Verdict {
        Verdict::likely(cause, summary, rival).because("syscall", self.call()).fix_with(
            format!("look at the socket while it fails, and compare it with {}", self.place()),
            format!("ls -la {}", folder(self.name)),
        )
    }
}

/// How the path ends, in a sentence.
pub(super) fn path(fact: &UnixFact) -> String {
    match &fact.end {
        End::Missing { missing, link: Some(link), .. } => {
            format!("as the worker sees it, {link} is a link to {missing}, which does not exist")
        }
        End::Missing { missing, .. } => format!("as the worker sees it, {missing} does not exist"),
        End::NotAFolder(place) => format!("as the worker sees it, {place} is no folder"),
        End::Circle(place) => format!("as the worker sees it, {place} is a link that leads to itself"),
        End::Socket | End::Other(_) => match &fact.file {
            Some(file) => format!("as the worker sees it, {}", component(file)),
            None => "it exists".to_owned(),
        },
        End::Unreadable(errno) => format!("the path cannot be looked at ({})", words::errno(*errno)),
        End::Abstract => "an abstract name: no file, one table for each network namespace".to_owned(),
    }
}

fn component(c: &Component) -> String {
    format!("{} is a {}, mode {:04o}, owner {}, group {}", c.path, c.kind, c.mode, c.owner, c.group)
}

/// `unix-missing`.
pub(super) fn missing(case: &Case) -> Option<Verdict> {
    let failed = Failed::of(case, &[libc::ENOENT, libc::ENOTDIR, libc::ELOOP])?;
    let name = failed.name;
    let Some(fact) = failed.fact else {
        let rival =
            "a folder on the way, or another namespace: the worker ended before its path could be looked at";
        return Some(failed.unseen(Cause::UnixMissing, format!("{name} did not exist"), rival));
    };
    let agrees = match (&fact.end, failed.errno) {
        (End::Missing { .. }, libc::ENOENT) => true,
        (End::NotAFolder(_), libc::ENOTDIR) | (End::Circle(_), libc::ELOOP) => true,
        (
            End::Missing { .. }
            | End::NotAFolder(_)
            | End::Circle(_)
            | End::Socket
            | End::Other(_)
            | End::Unreadable(_)
            | End::Abstract,
            _,
        ) => false,
    };
    let at_sign = name.path().is_some_and(|path| path.starts_with(b"@"));
    let summary = match (&fact.end, fact.elsewhere.first()) {
        _ if !agrees => format!("{name} did not exist when nginx connected"),
        _ if at_sign => format!("{name} does not exist: nginx takes it for a file in its working folder"),
        (_, Some(other)) => format!("{name} exists for {}, not for nginx", other.who),
        (End::Missing { missing, is_folder: true, .. }, None) => {
            format!("{name} does not exist: there is no folder {missing}")
        }
        (End::Missing { missing, link: Some(link), .. }, None) => {
            format!("{link} leads to {missing}, which does not exist")
        }
        (End::NotAFolder(place), None) => format!("{name} cannot exist: {place} is no folder"),
        (End::Circle(place), None) => {
            format!("{name} cannot be reached: {place} is a link that leads to itself")
        }
        _ => format!("{name} does not exist"),
    };
    let rival = "a folder on the way, or another file, that has been there for a moment: what is there now came later";
    let mut verdict = Verdict::graded(Cause::UnixMissing, agrees, summary, rival)
        .because("syscall", failed.call())
        .because("path", path(fact));
    if fact.own_mounts {
        verdict =
            verdict.because("mounts", format!("nginx{} sees mounts of its own", unit(fact.unit.as_deref())));
    }
    for other in &fact.elsewhere {
        verdict = verdict.because("elsewhere", elsewhere(name, other));
    }
    for near in &fact.near {
        let who = match (&near.owner, near.listens) {
            (Some(owner), _) => format!("{owner} listens on {}", near.name),
            (None, true) => format!("somebody listens on {}", near.name),
            (None, false) => format!("{} exists, and nobody listens there", near.name),
        };
        verdict = verdict.because("near", who);
    }
    Some(mend_missing(verdict, &failed, fact, agrees, at_sign))
}

fn unit(unit: Option<&str>) -> String {
    unit.map(|unit| format!(" ({unit})")).unwrap_or_default()
}

fn elsewhere(name: &UnixName, other: &Elsewhere) -> String {
    let who = format!("{}{} has {name}", other.who, unit(other.unit.as_deref()));
    match &other.host_path {
        Some(path) if other.private_tmp => {
            format!("{who}, in a /tmp of its own (PrivateTmp=): for the host it is {path}")
        }
        Some(path) => format!("{who}: for the host it is {path}"),
        None => format!("{who}, in mounts of its own"),
    }
}

fn mend_missing(
    verdict: Verdict,
    failed: &Failed<'_>,
    fact: &UnixFact,
    agrees: bool,
    at_sign: bool,
) -> Verdict {
    let place = failed.place();
    let name = failed.name;
    if !agrees {
        return verdict
            .fix("the backend was starting or restarting: let it listen before nginx sends traffic, or keep the socket over restarts (a systemd .socket unit)");
    }
    if at_sign {
        return verdict.fix(format!(
            "nginx has no abstract sockets: let the backend listen on a path, as /run/NAME/app.sock, and name that in {place}"
        ));
    }
    if let Some(other) = fact.elsewhere.first() {
        let of = other.unit.as_deref().unwrap_or("the backend's service");
        let verdict = verdict.fix(format!(
            "put the socket where both see it: RuntimeDirectory=NAME in {of} makes /run/NAME; let the backend listen there \
             and name that path in {place} (PrivateTmp= can stay)"
        ));
        let containers =
            "between containers: mount the socket's folder (not the socket, which is made anew) into nginx's";
        let verdict = if other.private_tmp { verdict } else { verdict.fix(containers) };
        return verdict.fix_with(
            "compare what the two see",
            format!("nsenter -t {} -m ls -la {}", failed.case.attempt.worker, folder(name)),
        );
    }
    if let Some(near) = fact.near.iter().find(|near| near.listens && !near.name.starts_with('@')) {
        return verdict.fix(format!("point {place} at unix:{}", near.name));
    }
    if let End::Missing { missing, is_folder: true, .. } = &fact.end
        && missing.starts_with("/run/")
    {
        return verdict.fix(format!(
            "start the backend; {missing} must be made anew at each boot: RuntimeDirectory= in the backend's unit does that"
        ));
    }
    verdict.fix(format!("start the backend that makes {name}, or correct the path in {place}"))
}

fn folder(name: &UnixName) -> String {
    let text = name.to_string();
    text.rsplit_once('/').map_or_else(|| ".".to_owned(), |(folder, _)| format!("{folder}/"))
}

/// `unix-permission`.
pub(super) fn permission(case: &Case) -> Option<Verdict> {
    let failed = Failed::of(case, &[libc::EACCES])?;
    let fact = failed.fact?;
    let refusal = fact.refusal.as_ref()?;
    let at = &refusal.at;
    let summary = match refusal.wanted {
        Wanted::Write => format!("{} may not connect to {}", fact.user, at.path),
        Wanted::Search => format!("{} may not go through {} to {}", fact.user, at.path, failed.name),
        Wanted::Follow => {
            format!(
                "{} may not follow the link {}, which {} made in a folder for all",
                fact.user, at.path, at.owner
            )
        }
    };
    // AppArmor judges a connect() before the path is walked, or the path as a whole after it; SELinux every folder: a
    // denial of either would have been seen where its hooks are.
    let watched = case.reach.blockers;
    let selinux = fact.selinux && !watched.avc;
    let apparmor = fact.apparmor.is_some() && !(case.reach.security && watched.unix);
    // So would others that may be there: their refusal comes before anything of the path is looked at.
    let others = case.facts.suspects.as_ref().is_some_and(|s| {
        let programs = s.lsm_programs.as_ref().is_some_and(|programs| !programs.is_empty());
        (programs && !case.reach.security) || (s.seccomp == Some(2) && !watched.seccomp)
    });
    let hidden = selinux || apparmor || others;
    let rival = match (&fact.apparmor, hidden) {
        (_, false) if refusal.own_rules => {
            "the rules of that file system itself: it need not go by modes (FUSE, a network file system)"
                .to_owned()
        }
        (_, false) => "a mode that was changed since".to_owned(),
        (_, true) if selinux => {
            "SELinux, which is enforcing and may have refused a folder before this one".to_owned()
        }
        (Some(profile), true) if apparmor => {
            format!("AppArmor ({profile}), whose verdict cannot be seen on this tier")
        }
        (_, true) => {
            "a BPF LSM program or a system call filter, whose verdict cannot be seen on this tier".to_owned()
        }
    };
    let (wants, who) = match refusal.wanted {
        Wanted::Write => ("w, to connect", refusal.because.clone()),
        Wanted::Search => ("x, to go through it", refusal.because.clone()),
        Wanted::Follow => (
            "nothing but to be followed",
            "fs.protected_symlinks lets others follow links in such a folder only if its owner made them"
                .to_owned(),
        ),
    };
    let proof = !fact.changed_since && !hidden && !refusal.own_rules;
    let verdict = Verdict::graded(Cause::UnixPermission, proof, summary, rival)
        .because("syscall", failed.call())
        .because("worker", format!("the worker is {}", fact.worker))
        .because("path", format!("the first component that refuses: {}; needed: {wants}", component(at)))
        .because("refusal", who)
        .because_if("pool", pool(fact));
    Some(mend_permission(verdict, &failed, fact, refusal))
}

/// The backend's lines that decide about its socket.
fn pool(fact: &UnixFact) -> Option<String> {
    let lines: Vec<String> =
        fact.pool.iter().map(|line| format!("{} = {} ({})", line.key, line.value, line.place)).collect();
    let owner = fact.bound.as_ref().and_then(|bound| bound.owner.as_deref()).unwrap_or("php-fpm");
    (!lines.is_empty()).then(|| format!("{owner} has {}", lines.join(", ")))
}

fn place_of<'a>(fact: &'a UnixFact, key: &str) -> Option<&'a str> {
    let line = |key: &str| fact.pool.iter().find(|line| line.key == key);
    line(key).or_else(|| line("listen")).map(|line| line.place.as_str())
}

/// Groups that give far more than a socket: no advice to join one.
const POWERFUL: [&str; 10] = ["root", "wheel", "sudo", "adm", "shadow", "disk", "docker", "lxd", "kmem", "0"];

fn mend_permission(mut verdict: Verdict, failed: &Failed<'_>, fact: &UnixFact, refusal: &Refusal) -> Verdict {
    let (at, user) = (&refusal.at, &fact.user);
    let harmless = !POWERFUL.contains(&at.group.as_str());
    let join_group = |verdict: Verdict| {
        verdict.fix_with(
            format!(
                "let {user} into the group {}, and restart nginx (a reload keeps the old groups)",
                at.group
            ),
            format!("usermod -aG {} {user}", at.group),
        )
    };
    match refusal.wanted {
        Wanted::Follow => verdict.fix(format!("name the socket itself in {}, not the link", failed.place())),
        Wanted::Write => {
            if let Some(place) = place_of(fact, "listen.group") {
                verdict = verdict.fix(format!(
                    "in the pool set listen.group to a group of {user} and listen.mode = 0660 ({place}), or listen.acl_users \
                     = {user}; then reload php-fpm"
                ));
            }
            if refusal.group_may && harmless {
                verdict = join_group(verdict);
            }
            if fact.pool.is_empty() && !(refusal.group_may && harmless) {
                verdict = verdict.fix(format!(
                    "let the backend make the socket with mode 0660 and a group that {user} is in: it makes it anew at each \
                     start, so a mode set by hand does not last"
                ));
            }
            if refusal.by_list {
                verdict = verdict.fix_with("see the list", format!("getfacl {}", at.path));
            }
            verdict
        }
        Wanted::Search => {
            if refusal.group_may && harmless {
                verdict = join_group(verdict);
            }
            verdict
                .fix_with(
                    format!("let {user} alone go through the folder, without listing it"),
                    format!("setfacl -m u:{user}:--x {}", at.path),
                )
                .fix("or let the backend listen in a folder of its own below /run (RuntimeDirectory=)")
        }
    }
}

/// `unix-no-listener`.
pub(super) fn no_listener(case: &Case) -> Option<Verdict> {
    let failed = Failed::of(case, &[libc::ECONNREFUSED])?;
    let name = failed.name;
    let Some(fact) = failed.fact else {
        let rival = "a file that is no socket: the worker ended before its path could be looked at";
        return Some(failed.unseen(Cause::UnixNoListener, format!("nobody listened on {name}"), rival));
    };
    let bound = fact.bound.as_ref();
    let listens = bound.is_some_and(|bound| bound.listens);
    let (proof, summary, state) = match &fact.end {
        End::Other(_) => return None,
        End::Socket if bound.is_some_and(|bound| bound.kind != Type::Stream) => return None,
        End::Socket => match bound {
            Some(bound) if bound.listens => {
                let state = format!("{} listens now: it began after the refusal", owner(bound));
                (false, format!("nobody listened on {name} when nginx connected"), state)
            }
            Some(bound) => {
                let state = format!("{} has bound the socket and does not listen", owner(bound));
                (!fact.changed_since, format!("{} has bound {name} and does not listen", owner(bound)), state)
            }
            None => {
                let all = if fact.searched_all { "" } else { " that could be seen" };
                let state =
                    format!("no socket of any network namespace{all} is bound to the file: it is left over");
                (!fact.changed_since, format!("nobody listens on {name}: the file is left over"), state)
            }
        },
        End::Abstract if bound.is_none() => (
            true,
            format!("nobody listens on the abstract socket {name}"),
            "no socket of nginx's network namespace has that name".to_owned(),
        ),
        End::Abstract => (
            false,
            format!("nobody listened on the abstract socket {name} when nginx connected"),
            "there is one now".to_owned(),
        ),
        End::Missing { .. } | End::NotAFolder(_) | End::Circle(_) | End::Unreadable(_) => {
            (false, format!("nobody listened on {name} when nginx connected"), path(fact))
        }
    };
    let mut verdict = Verdict::graded(
        Cause::UnixNoListener,
        proof,
        summary,
        "another file at that path, which has been replaced since",
    )
    .because("syscall", failed.call())
    .because("listener", state)
    .because_if("path", fact.file.as_ref().map(|_| path(fact)))
    .because_if(
        "since",
        fact.since.as_ref().filter(|_| !listens).map(|at| format!("the socket was bound at {at}")),
    );
    for other in &fact.elsewhere {
        verdict = verdict.because("elsewhere", format!("{} has that name", other.who));
    }
    Some(if listens {
        verdict.fix("the backend was starting or restarting: let it listen before nginx sends traffic, or keep the socket over restarts (a systemd .socket unit)")
    } else {
        verdict
            .fix("start the backend: it ended without removing its socket")
            .fix(format!("or correct the path in {}", failed.place()))
    })
}

fn owner(bound: &Bound) -> &str {
    bound.owner.as_deref().unwrap_or("a process that was not found")
}

/// `unix-not-a-socket`.
pub(super) fn not_a_socket(case: &Case) -> Option<Verdict> {
    let failed = Failed::of(case, &[libc::ECONNREFUSED, libc::EPROTOTYPE])?;
    let name = failed.name;
    let other_type = failed.errno == libc::EPROTOTYPE;
    let Some(fact) = failed.fact else {
        return other_type.then(|| {
            let rival = "another file at that path: the worker ended before it could be looked at";
            failed.unseen(Cause::UnixNotASocket, format!("{name} is a socket of another type"), rival)
        });
    };
    let bound = fact.bound.as_ref();
    let kind = bound.map(|bound| match bound.kind {
        Type::Stream => "stream",
        Type::Datagram => "datagram",
        Type::Seqpacket => "seqpacket",
    });
    let odd = bound.is_some_and(|bound| bound.kind != Type::Stream);
    let (proof, summary) = match (&fact.end, other_type) {
        (End::Other(kind), false) => (!fact.changed_since, format!("{name} is a {kind}, not a socket")),
        (_, true) if odd => (
            !fact.changed_since,
            format!("{name} is a {} socket: nginx wants a stream socket", kind.unwrap_or_default()),
        ),
        (_, true) => (false, format!("{name} was a socket of another type when nginx connected")),
        (_, false) => return None,
    };
    Some(
        Verdict::graded(Cause::UnixNotASocket, proof, summary, "a file that has been replaced since")
            .because("syscall", failed.call())
            .because("path", path(fact))
            .because_if("listener", bound.map(|bound| format!("{} has bound it", owner(bound))))
            .fix(if other_type {
                format!(
                    "let the backend listen on a stream socket, or name its stream socket in {}",
                    failed.place()
                )
            } else {
                format!("name the backend's socket in {}: what is at that path is none", failed.place())
            }),
    )
}

/// `unix-backlog-full`.
pub(super) fn backlog(case: &Case) -> Option<Verdict> {
    let failed = Failed::of(case, &[libc::EAGAIN])?;
    let name = failed.name;
    let Some((fact, bound)) = failed.fact.and_then(|fact| Some((fact, fact.bound.as_ref()?))) else {
        let summary = format!("the accept queue of {name} was full");
        return Some(failed.unseen(
            Cause::UnixBacklogFull,
            summary,
            "a system call filter that answers EAGAIN: the listener was gone before it could be looked at",
        ));
    };
    let full = bound.listens && bound.full();
    let numbers = format!("{} waiting, limit {}", bound.queued, bound.limit);
    let summary = if full {
        format!("the accept queue of {name} is full ({numbers}): {} does not accept", owner(bound))
    } else {
        format!("the accept queue of {name} was full when nginx connected (now {numbers})")
    };
    let cap = bound.somaxconn.filter(|most| *most <= bound.limit);
    let mut verdict = Verdict::graded(
        Cause::UnixBacklogFull,
        full && !fact.changed_since,
        summary,
        "a system call filter that answers EAGAIN: the queue had room when it was looked at",
    )
    .because("syscall", format!("{}: the kernel says so of a full queue alone", failed.call()))
    .because(
        "accept-queue",
        format!(
            "{} listens on {name}: {numbers} (the smaller of its backlog and net.core.somaxconn{})",
            owner(bound),
            bound.somaxconn.map(|most| format!(" = {most}")).unwrap_or_default()
        ),
    )
    .because_if(
        "stopped",
        bound.stopped.then(|| format!("{} is stopped (by a signal or a debugger)", owner(bound))),
    )
    .because_if("pool", pool(fact));
    if bound.stopped {
        verdict = verdict.fix(format!("let {} go on (SIGCONT), and find who stopped it", owner(bound)));
    }
    if let Some(place) = place_of(fact, "pm.max_children") {
        verdict = verdict.fix(format!(
            "more children that accept: pm.max_children ({place}), if memory allows; php-fpm's status page and slow log tell \
             what they wait for"
        ));
    } else {
        verdict = verdict.fix("let the backend accept faster: more workers, or fewer slow requests");
    }
    verdict = match (cap, place_of(fact, "listen.backlog")) {
        (Some(most), _) => verdict.fix_with(
            format!("for short bursts: the queue is cut to net.core.somaxconn ({most}); raise it, then restart the backend"),
            format!("sysctl net.core.somaxconn={}", u64::from(most) * 2),
        ),
        (None, Some(place)) => verdict.fix(format!("for short bursts: raise listen.backlog ({place})")),
        (None, None) => verdict.fix("for short bursts: raise the backlog that the backend passes to listen()"),
    };
    Some(verdict)
}

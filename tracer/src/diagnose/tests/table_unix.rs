//! Unix sockets: the errno and the state that agree, those that do not, and whoever else yields the errno.

use super::*;
use Cause::{Unexplained, UnixBacklogFull, UnixMissing, UnixNoListener, UnixNotASocket, UnixPermission};
use Confidence::{Likely, Proven, Unexplained as No};

use crate::{
    correlate::blocked::Suspects,
    correlate::unix::{Bound, Component, Elsewhere, End, Near, PoolLine, Refusal, Type, UnixFact, Wanted},
    event::{Denial, Speaker, UnixName},
};

const PATH: &str = "/run/php/fpm.sock";

fn component(path: &str, kind: &str, mode: u32) -> Component {
    Component {
        path: path.to_owned(),
        kind: kind.to_owned().into(),
        mode,
        owner: "root".to_owned(),
        group: "shop".to_owned(),
    }
}

fn fact(end: End) -> UnixFact {
    let file = match &end {
        End::Socket => Some(component(PATH, "socket", 0o660)),
        End::Other(kind) => Some(component(PATH, kind, 0o644)),
        _ => None,
    };
    UnixFact {
        worker: "www-data (uid 33, group www-data)".to_owned(),
        user: "www-data".to_owned(),
        unit: Some("nginx.service".to_owned()),
        own_mounts: false,
        end,
        file,
        since: Some("2026-11-22 10:00:00".to_owned()),
        changed_since: false,
        refusal: None,
        bound: None,
        searched_all: true,
        pool: Vec::new(),
        elsewhere: Vec::new(),
        near: Vec::new(),
        selinux: false,
        apparmor: None,
    }
}

fn failed(errno: i32, fact: Option<UnixFact>) -> Build {
    call(Stage::Connect, "0.0.0.0:0", errno).edit(|c| {
        c.attempt.unix = Some(UnixName::Path(PATH.as_bytes().to_vec()));
        c.attempt.no_remote = true;
        c.facts.is_local = None;
        c.facts.unix = fact.map(Box::new);
    })
}

fn gone() -> End {
    End::Missing { missing: PATH.to_owned(), is_folder: false, link: None }
}

fn bound(kind: Type, queued: u32) -> Bound {
    Bound {
        kind,
        listens: kind == Type::Stream,
        queued,
        limit: 4,
        owner: Some("php-fpm8.2 (pid 4121)".to_owned()),
        stopped: false,
        somaxconn: Some(4096),
    }
}

fn edit(build: Build, f: impl FnOnce(&mut UnixFact)) -> Build {
    build.edit(|c| f(c.facts.unix.as_mut().unwrap()))
}

fn closed(at: Component, wanted: Wanted) -> Refusal {
    Refusal {
        at,
        wanted,
        because: "the worker is neither".to_owned(),
        group_may: false,
        by_list: false,
        own_rules: false,
    }
}

fn denied(ret: i32) -> Denial {
    Denial {
        speaker: Speaker::Selinux,
        worker: 133,
        thread: 133,
        time_ns: 5_000_000_000,
        socket: 0,
        ret,
        family: 1,
        remote: None,
        avc: None,
        syscall: None,
        arg: 0,
    }
}

fn refused_by(denial: i32, build: Build) -> Build {
    build.edit(|c| c.attempt.denials = vec![denied(denial)])
}

#[test]
fn paths_that_are_not_there() {
    let missing = || failed(libc::ENOENT, Some(fact(gone())));
    check(vec![
        ("no such path", missing(), UnixMissing, Proven),
        ("on the tracepoint tier", missing().on(TRACEPOINT), UnixMissing, Proven),
        ("it is there now", failed(libc::ENOENT, Some(fact(End::Socket))), UnixMissing, Likely),
        ("nobody looked", failed(libc::ENOENT, None), UnixMissing, Likely),
        (
            "through a file",
            failed(libc::ENOTDIR, Some(fact(End::NotAFolder("/run".to_owned())))),
            UnixMissing,
            Proven,
        ),
        ("a file then, a folder now", failed(libc::ENOTDIR, Some(fact(gone()))), UnixMissing, Likely),
        (
            "in a circle",
            failed(libc::ELOOP, Some(fact(End::Circle("/run/a".to_owned())))),
            UnixMissing,
            Proven,
        ),
        ("a module says so", refused_by(-libc::ENOENT, missing()), Unexplained, No),
        ("a module would say so", refused_by(0, missing()), UnixMissing, Proven),
        ("TCP never says so", call(Stage::Connect, FAR, libc::ENOENT), Unexplained, No),
    ]);
}

#[test]
fn closed_doors() {
    let door = || {
        let build = failed(libc::EACCES, Some(fact(End::Socket)));
        edit(build, |f| f.refusal = Some(closed(component(PATH, "socket", 0o660), Wanted::Write)))
    };
    let open = || failed(libc::EACCES, Some(fact(End::Socket)));
    let selinux = || edit(door(), |f| f.selinux = true);
    let apparmor = || edit(door(), |f| f.apparmor = Some("nginx (enforce)".to_owned()));
    let filtered = || {
        let suspects = Suspects { seccomp: Some(2), ..Suspects::default() };
        door().edit(|c| c.facts.suspects = Some(Box::new(suspects)))
    };
    let hook = |build: Build| build.edit(|c| c.attempt.security = Some(-libc::EACCES));
    check(vec![
        ("the mode refuses", door(), UnixPermission, Proven),
        ("and no module is there to be seen", door().on(TRACEPOINT), UnixPermission, Proven),
        ("it has changed since", edit(door(), |f| f.changed_since = true), UnixPermission, Likely),
        (
            "the file system has its own rules",
            edit(door(), |f| f.refusal.as_mut().unwrap().own_rules = true),
            UnixPermission,
            Likely,
        ),
        ("SELinux was seen to deny nothing", selinux(), UnixPermission, Proven),
        ("SELinux may have come first", selinux().on(TRACEPOINT), UnixPermission, Likely),
        ("AppArmor was seen to refuse nothing", apparmor(), UnixPermission, Proven),
        ("AppArmor cannot be seen", apparmor().on(TRACEPOINT), UnixPermission, Likely),
        ("a filter cannot be seen", filtered().on(TRACEPOINT), UnixPermission, Likely),
        ("a filter was seen to refuse nothing", filtered(), UnixPermission, Proven),
        ("a module refused the call", hook(door()), Unexplained, No),
        ("a module refused a folder", refused_by(-libc::EACCES, door()), Unexplained, No),
        ("the mode lets it in", open(), Unexplained, No),
        ("nobody looked", failed(libc::EACCES, None), Unexplained, No),
        ("EPERM is no file's", edit(door(), |_| ()).edit(|c| c.attempt.ret = -libc::EPERM), Unexplained, No),
        // The same errno, by a route.
        (
            "a prohibit route",
            call(Stage::Connect, FAR, libc::EACCES).route(Some(libc::EACCES), "prohibit"),
            Cause::NetworkUnreachable,
            Proven,
        ),
    ]);
}

#[test]
fn refusals() {
    let refused = |end| failed(libc::ECONNREFUSED, Some(fact(end)));
    let with = |end, kind| edit(refused(end), |f| f.bound = Some(bound(kind, 0)));
    let silent = || edit(with(End::Socket, Type::Stream), |f| f.bound.as_mut().unwrap().listens = false);
    let changed = |build| edit(build, |f: &mut UnixFact| f.changed_since = true);
    let abstract_one =
        |build: Build| build.edit(|c| c.attempt.unix = Some(UnixName::Abstract(b"shop".to_vec())));
    check(vec![
        ("left over", refused(End::Socket), UnixNoListener, Proven),
        ("left over, but new", changed(refused(End::Socket)), UnixNoListener, Likely),
        ("bound and deaf", silent(), UnixNoListener, Proven),
        ("listens by now", with(End::Socket, Type::Stream), UnixNoListener, Likely),
        ("removed by now", refused(gone()), UnixNoListener, Likely),
        ("nobody looked", failed(libc::ECONNREFUSED, None), UnixNoListener, Likely),
        ("no such abstract name", abstract_one(refused(End::Abstract)), UnixNoListener, Proven),
        ("there is one now", abstract_one(with(End::Abstract, Type::Stream)), UnixNoListener, Likely),
        ("a regular file", refused(End::Other("regular file".into())), UnixNotASocket, Proven),
        (
            "a regular file by now",
            changed(refused(End::Other("regular file".into()))),
            UnixNotASocket,
            Likely,
        ),
        ("a datagram socket does not refuse", with(End::Socket, Type::Datagram), Unexplained, No),
        ("a filter refuses", refused_by(-libc::ECONNREFUSED, refused(End::Socket)), Unexplained, No),
        ("of TCP", super::refused(NEAR).no_socket(OWN), Cause::ConnectRefusedNoListener, Proven),
    ]);
    let other = |kind| {
        let build = failed(libc::EPROTOTYPE, Some(fact(End::Socket)));
        edit(build, |f| f.bound = Some(bound(kind, 0)))
    };
    check(vec![
        ("datagram", other(Type::Datagram), UnixNotASocket, Proven),
        ("seqpacket", other(Type::Seqpacket), UnixNotASocket, Proven),
        ("new", changed(other(Type::Datagram)), UnixNotASocket, Likely),
        ("a stream socket by now", other(Type::Stream), UnixNotASocket, Likely),
        (
            "nobody is bound to it by now",
            failed(libc::EPROTOTYPE, Some(fact(End::Socket))),
            UnixNotASocket,
            Likely,
        ),
        ("nobody looked", failed(libc::EPROTOTYPE, None), UnixNotASocket, Likely),
    ]);
}

#[test]
fn queues() {
    let queue = |queued| {
        let build = failed(libc::EAGAIN, Some(fact(End::Socket)));
        edit(build, |f| f.bound = Some(bound(Type::Stream, queued)))
    };
    check(vec![
        ("full", queue(5), UnixBacklogFull, Proven),
        // As many as the limit, and one more is taken.
        ("the last place is free by now", queue(4), UnixBacklogFull, Likely),
        ("another socket by now", edit(queue(5), |f| f.changed_since = true), UnixBacklogFull, Likely),
        ("nobody listens by now", failed(libc::EAGAIN, Some(fact(End::Socket))), UnixBacklogFull, Likely),
        ("nobody looked", failed(libc::EAGAIN, None), UnixBacklogFull, Likely),
        ("of a filter", refused_by(-libc::EAGAIN, queue(0)), Unexplained, No),
    ]);
}

#[test]
fn advice_is_narrow() {
    let line = |key: &str, value: &str, line| PoolLine {
        key: key.to_owned(),
        value: value.to_owned(),
        place: format!("/etc/php/8.2/fpm/pool.d/www.conf:{line}"),
    };
    let fixes = |build: &Build| {
        let verdict = diagnose(&build.0);
        let each =
            verdict.fix.iter().map(|f| format!("{} {}", f.text, f.command.clone().unwrap_or_default()));
        each.collect::<Vec<_>>().join("\n")
    };
    let door = |wanted, group: &str| {
        edit(failed(libc::EACCES, Some(fact(End::Socket))), |f| {
            let kind = if wanted == Wanted::Write { "socket" } else { "folder" };
            let mut refusal = closed(component(PATH, kind, 0o660), wanted);
            refusal.group_may = true;
            group.clone_into(&mut refusal.at.group);
            f.refusal = Some(refusal);
        })
    };
    assert!(fixes(&door(Wanted::Write, "shop")).contains("usermod -aG shop www-data"));
    for powerful in ["root", "docker", "shadow"] {
        assert!(!fixes(&door(Wanted::Write, powerful)).contains("usermod"), "{powerful}");
        assert!(!fixes(&door(Wanted::Search, powerful)).contains("usermod"), "{powerful}");
    }
    assert!(fixes(&door(Wanted::Search, "root")).contains("setfacl -m u:www-data:--x /run/php/fpm.sock"));
    let pool = edit(door(Wanted::Write, "root"), |f| {
        f.pool = vec![line("listen", PATH, 36), line("listen.mode", "0600", 40)];
    });
    assert!(fixes(&pool).contains("www.conf:36"), "{}", fixes(&pool));
    let near = edit(failed(libc::ENOENT, Some(fact(gone()))), |f| {
        f.near = vec![Near { name: "/run/php/php8.2-fpm.sock".to_owned(), owner: None, listens: true }];
    });
    assert!(fixes(&near).contains("unix:/run/php/php8.2-fpm.sock"));
    let private = edit(failed(libc::ENOENT, Some(fact(gone()))), |f| {
        f.elsewhere = vec![Elsewhere {
            who: "php-fpm8.2 (pid 9)".to_owned(),
            unit: Some("php8.2-fpm.service".to_owned()),
            host_path: Some("/tmp/systemd-private-1-php8.2-fpm.service-x/tmp/fpm.sock".to_owned()),
            private_tmp: true,
        }];
    });
    assert!(fixes(&private).contains("RuntimeDirectory=NAME in php8.2-fpm.service"));
    let said = diagnose(&private.0);
    assert!(said.evidence.iter().any(|e| e.kind == "elsewhere" && e.text.contains("PrivateTmp=")));
    let full = edit(failed(libc::EAGAIN, Some(fact(End::Socket))), |f| {
        let mut queue = bound(Type::Stream, 129);
        (queue.limit, queue.somaxconn, queue.stopped) = (128, Some(128), true);
        f.bound = Some(queue);
        f.pool = vec![line("pm.max_children", "5", 119)];
    });
    let text = fixes(&full);
    for part in ["SIGCONT", "www.conf:119", "sysctl net.core.somaxconn=256"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    for build in [door(Wanted::Write, "shop"), door(Wanted::Search, "root"), pool, near, private, full] {
        let text = fixes(&build);
        assert!(!text.is_empty() && !text.contains("777") && !text.contains("chmod"), "{text}");
    }
}

/// Every errno with every state: nothing panics, and a verdict that is not proven names its rival.
#[test]
fn no_combination_breaks() {
    let ends = [
        gone(),
        End::NotAFolder("/run".to_owned()),
        End::Circle("/run".to_owned()),
        End::Socket,
        End::Other("folder".into()),
        End::Unreadable(libc::EACCES),
        End::Abstract,
    ];
    let kinds = [None, Some(Type::Stream), Some(Type::Datagram), Some(Type::Seqpacket)];
    let mut proven = 0;
    for errno in 1..134 {
        for end in &ends {
            for kind in kinds {
                for flags in 0..16_u32 {
                    let build = edit(failed(errno, Some(fact(end.clone()))), |f| {
                        f.bound = kind.map(|kind| bound(kind, if flags & 1 != 0 { 9 } else { 0 }));
                        f.changed_since = flags & 2 != 0;
                        f.refusal =
                            (flags & 4 != 0).then(|| closed(component(PATH, "socket", 0), Wanted::Write));
                        f.searched_all = flags & 8 != 0;
                    });
                    let verdict = diagnose(&build.0);
                    if verdict.confidence == Likely {
                        assert!(verdict.rival.is_some(), "{errno} {end:?}: {verdict:?}");
                    }
                    if verdict.confidence == Proven {
                        proven += 1;
                        let agrees = match verdict.cause {
                            UnixMissing => matches!(errno, libc::ENOENT | libc::ENOTDIR | libc::ELOOP),
                            UnixPermission => errno == libc::EACCES && flags & 6 == 4,
                            UnixNoListener => errno == libc::ECONNREFUSED && !matches!(end, End::Other(_)),
                            UnixNotASocket => matches!(errno, libc::ECONNREFUSED | libc::EPROTOTYPE),
                            UnixBacklogFull => errno == libc::EAGAIN && flags & 3 == 1,
                            _ => false,
                        };
                        assert!(agrees, "{errno} {end:?} {flags:b}: {verdict:?}");
                    }
                }
            }
        }
    }
    assert!(proven > 0);
}

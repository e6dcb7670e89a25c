//! Failed connects to unix sockets.

use tracer::{
    correlate::{
        Facts,
        unix::{Bound, Component, Elsewhere, End, PoolLine, Refusal, Type, UnixFact, Wanted},
    },
    diagnose::Cause,
    event::{Stage, UnixName},
    nginx::{Candidate, ConfigLine, InForces, Module, Role},
};

use super::Sample;

/// Each with what explains it.
pub(super) fn sockets() -> Vec<Sample> {
    const PATH: &str = "/run/php/php8.2-fpm.sock";
    let fact = |end, file| UnixFact {
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
    };
    let make = |name, cause, errno: i32, path: &str, fact: UnixFact| {
        let mut made = super::sample(name, cause, "proven", Stage::Connect, "0.0.0.0:0");
        let a = &mut made.case.attempt;
        (a.ret, a.no_remote) = (-errno, true);
        a.local = "0.0.0.0:0".parse().unwrap();
        a.unix = Some(UnixName::Path(path.as_bytes().to_vec()));
        made.case.facts = Facts { unix: Some(Box::new(fact)), ..Facts::default() };
        made.case.config = vec![Candidate {
            upstream: Some("php".to_owned()),
            server: format!("unix:{path}"),
            module: Module::Fastcgi,
            lines: vec![
                ConfigLine {
                    role: Role::Server,
                    file: "/etc/nginx/conf.d/shop.conf".into(),
                    line: 4,
                    text: format!("server unix:{path};"),
                },
                ConfigLine {
                    role: Role::Pass,
                    file: "/etc/nginx/conf.d/shop.conf".into(),
                    line: 18,
                    text: "fastcgi_pass php;".to_owned(),
                },
            ],
            connect_timeouts: Vec::new(),
            barred: tracer::nginx::Barred::default(),
            settings: InForces::default(),
            exact: true,
            upstream_server: Some((0, 0)),
            passes: vec![0],
        }];
        made
    };
    let socket = |mode, group: &str| Component {
        path: PATH.to_owned(),
        kind: "socket".into(),
        mode,
        owner: "shop".to_owned(),
        group: group.to_owned(),
    };
    let line = |key: &str, value: &str, line| PoolLine {
        key: key.to_owned(),
        value: value.to_owned(),
        place: format!("/etc/php/8.2/fpm/pool.d/www.conf:{line}"),
    };
    let bound = |queued, limit| Bound {
        kind: Type::Stream,
        listens: true,
        queued,
        limit,
        owner: Some("php-fpm8.2 (pid 4121)".to_owned()),
        stopped: false,
        somaxconn: Some(4096),
    };
    let private = "/tmp/fpm.sock";
    let gone = End::Missing { missing: private.to_owned(), is_folder: false, link: None };
    let mut private_tmp = fact(gone, None);
    private_tmp.own_mounts = true;
    private_tmp.elsewhere = vec![Elsewhere {
        who: "php-fpm8.2 (pid 4121)".to_owned(),
        unit: Some("php8.2-fpm.service".to_owned()),
        host_path: Some("/tmp/systemd-private-1f2e-php8.2-fpm.service-a1B2c3/tmp/fpm.sock".to_owned()),
        private_tmp: true,
    }];
    let mut refused = fact(End::Socket, Some(socket(0o660, "shop")));
    refused.refusal = Some(Refusal {
        at: socket(0o660, "shop"),
        wanted: Wanted::Write,
        because: "the worker is neither its owner nor of its group".to_owned(),
        group_may: true,
        by_list: false,
        own_rules: false,
    });
    refused.bound = Some(bound(0, 511));
    refused.pool =
        vec![line("listen", PATH, 36), line("listen.group", "shop", 49), line("listen.mode", "0660", 50)];
    let mut full = fact(End::Socket, Some(socket(0o660, "www-data")));
    full.bound = Some(bound(512, 511));
    full.pool =
        vec![line("listen", PATH, 36), line("listen.backlog", "511", 41), line("pm.max_children", "5", 119)];
    let left_over = fact(End::Socket, Some(socket(0o660, "www-data")));
    vec![
        make("unix-missing-private-tmp", Cause::UnixMissing, libc::ENOENT, private, private_tmp),
        make("unix-permission", Cause::UnixPermission, libc::EACCES, PATH, refused),
        make("unix-backlog-full", Cause::UnixBacklogFull, libc::EAGAIN, PATH, full),
        make("unix-no-listener", Cause::UnixNoListener, libc::ECONNREFUSED, PATH, left_over),
    ]
}

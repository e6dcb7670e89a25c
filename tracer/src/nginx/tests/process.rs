//! Command lines and executables.

use std::path::{Path, PathBuf};

use crate::nginx::{
    binary::{self, Defaults},
    invocation::{self, InvocationError, ProcessRole},
};

#[track_caller]
fn check(cmdline: &str, conf: &str, globals: Option<&str>) {
    let defaults = Defaults {
        prefix: Some(PathBuf::from("/usr/share/nginx")),
        conf_path: PathBuf::from("/etc/nginx/nginx.conf"),
        ..Defaults::default()
    };
    let found = invocation::invocation(cmdline.as_bytes(), &defaults, Path::new("/home/x")).unwrap();
    assert_eq!(found.conf_path, Path::new(conf), "{cmdline}");
    let text = found.globals.map(|text| String::from_utf8(text).unwrap());
    assert_eq!(text.as_deref(), globals, "{cmdline}");
}

#[test]
fn command_lines() {
    check("nginx: master process nginx\0\0\0", "/etc/nginx/nginx.conf", None);
    check(
        "nginx: master process /usr/sbin/nginx -g daemon on; master_process on;",
        "/etc/nginx/nginx.conf",
        Some("daemon on; master_process on;"),
    );
    check("nginx: master process nginx -c /x/y.conf -g daemon off;\0", "/x/y.conf", Some("daemon off;"));
    check("nginx: master process nginx -g daemon off; -c/x.conf", "/x.conf", Some("daemon off;"));
    check(
        "nginx: master process nginx -g env A=b -c; -c rel.conf",
        "/usr/share/nginx/rel.conf",
        Some("env A=b -c;"),
    );
    check("nginx: master process nginx -p . -c conf/a b.conf", "/home/x/./conf/a b.conf", None);
    check("nginx: master process nginx -p /opt/ -qc n.conf", "/opt/n.conf", None);
    check("angie: master process /usr/sbin/angie -c /etc/angie/angie.conf", "/etc/angie/angie.conf", None);
    check("nginx\0-p\0/opt\0-c\0a b.conf\0-g\0daemon off;\0", "/opt/a b.conf", Some("daemon off;"));
    check("./nginx\0-qp/opt\0-crel\0", "/opt/rel", None);

    let refuse = |line: &str| {
        invocation::invocation(line.as_bytes(), &Defaults::default(), Path::new("/")).unwrap_err()
    };
    assert_eq!(refuse("nginx: worker process"), InvocationError::NotMaster);
    for torn in
        ["nginx: master process /usr/s\0-c\0nginx.conf\0", "nginx: master process nginx -p /o\0-c\0n.conf"]
    {
        assert_eq!(refuse(torn), InvocationError::Torn, "{torn:?}");
    }
    assert_eq!(refuse("nginx: master process nginx -c"), InvocationError::Truncated('c'));
    assert_eq!(refuse("nginx\0-c\0"), InvocationError::Truncated('c'));
    assert!(matches!(refuse("nginx\0run\0"), InvocationError::UnknownOption(_)));
    assert_eq!(
        invocation::role(b"nginx: worker process is shutting down\0"),
        Some(ProcessRole::ShuttingDown)
    );
    assert_eq!(invocation::role(b"nginx: cache manager process"), Some(ProcessRole::Helper));
    assert_eq!(invocation::role(b"nginx\0-t\0"), None);

    let relative = Defaults { prefix: None, ..Defaults::default() };
    let found = invocation::invocation(b"nginx\0", &relative, Path::new("/w")).unwrap();
    assert_eq!((found.conf_path, found.conf_prefix), ("/w/conf/nginx.conf".into(), "/w/conf".into()));
}

#[test]
fn command_lines_never_panic() {
    let mut random = super::Random(7);
    for _ in 0..5000 {
        let line = random.mutate(b"nginx: master process n -g a b; -c x -p y -qe z");
        let _ = invocation::invocation(&line, &Defaults::default(), Path::new("/"));
        let line: Vec<u8> = line.iter().map(|byte| if *byte == b' ' { 0 } else { *byte }).collect();
        let _ = invocation::invocation(&line, &Defaults::default(), Path::new("/"));
        let _ = (invocation::role(&line), invocation::may_be_nginx(&line), binary::build(&line));
    }
}

#[test]
fn configure_arguments() {
    let elf = b"\x7fELF\0nginx version: openresty/1.27.1.2\n\0configure arguments: --prefix=/a/nginx \
                --with-cc-opt='-O2 --conf-path=/no' --conf-path=conf/n.conf\n\0";
    let defaults = binary::build_defaults(elf).unwrap();
    assert_eq!(defaults.prefix, Some(PathBuf::from("/a/nginx")));
    assert_eq!(defaults.conf_path, PathBuf::from("conf/n.conf"));
    assert_eq!(binary::version(elf).as_deref(), Some("1.27.1.2"));
    let bare = binary::build_defaults(b"configure arguments:\n\0").unwrap();
    assert_eq!(bare, Defaults::default());
    let empty = binary::build_defaults(b"configure arguments: --prefix=\n\0").unwrap();
    assert_eq!(empty.prefix, None);
}

#[test]
fn executables() {
    let own = std::env::current_exe().unwrap();
    let others = ["/usr/bin/python3", "/bin/bash", "/usr/bin/curl", "/usr/bin/git", "/usr/sbin/haproxy"];
    for path in others.iter().map(Path::new).chain([own.as_path()]) {
        // Of the others, those that are installed; this one always is.
        if let Ok(bytes) = std::fs::read(path) {
            assert!(!binary::is_nginx_binary(&bytes), "{}", path.display());
        }
    }
}

#[test]
fn the_installed_nginx() {
    let Some(nginx) = super::live::installed() else { return };
    let bytes = std::fs::read(nginx).unwrap();
    assert!(binary::is_nginx_binary(&bytes));
    let build = binary::build(&bytes).unwrap();
    assert!(build.version.starts_with("1."), "{build:?}");
    assert!(binary::build_defaults(&bytes).unwrap().conf_path.ends_with("nginx.conf"));
}

#[test]
fn titles_of_forks() {
    let conf = |title: &str| {
        let defaults = Defaults { conf_path: "/etc/x.conf".into(), ..Defaults::default() };
        invocation::invocation(title.as_bytes(), &defaults, Path::new("/")).map(|found| found.conf_path)
    };
    for (title, path) in [
        ("angie: master process v1.10.0 #1 [/usr/sbin/angie -c /etc/angie/a.conf]", "/etc/angie/a.conf"),
        ("angie: master process v1.10.0 #12 [angie]", "/etc/x.conf"),
        ("angie: master process /usr/sbin/angie -c /etc/angie/a.conf", "/etc/angie/a.conf"),
        ("tengine: master process /t/nginx -c /t/c", "/t/c"),
        ("nginx: master process /usr/local/openresty/nginx/sbin/nginx -p /srv -c c/n.conf", "/srv/c/n.conf"),
        ("nginx: master process nginx -c /etc/[a]", "/etc/[a]"),
    ] {
        assert_eq!(conf(title).unwrap(), Path::new(path), "{title}");
    }
}

/// Each of them tells where a uprobe costs one trap: the current one begins its functions with a landing pad (ENDBR64).
fn probed_where_the_kernel_emulates(nginx: &Path) {
    let elf = std::fs::read(nginx).unwrap();
    let found = crate::nginx::symbols::symbols(&elf).unwrap();
    for function in [found.log, found.answers, found.free_peer].map(Option::unwrap) {
        let at = usize::try_from(function.offset).unwrap();
        assert!(function.cheap, "{:x?}", &elf[at - 4..at + 8]);
    }
}

super::live::asks_each_nginx!(probed_where_the_kernel_emulates);

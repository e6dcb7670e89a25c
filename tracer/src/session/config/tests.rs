use super::title::tests::Titled;
use super::*;
use crate::nginx::{binary::Defaults, invocation};

#[test]
fn reads_a_hosts_file() {
    let file = b"127.0.0.1 localhost\n# 10.0.0.9 app\n10.0.0.1\tdb app # local\nfe80::1%eth0 x\n::2 APP\n";
    assert_eq!(hosts_file(file, "app"), ["10.0.0.1".parse::<IpAddr>().unwrap(), "::2".parse().unwrap()]);
    assert!(hosts_file(file, "nope").is_empty());
}

fn snapshot(text: &str, then: &[(&str, &str)], now: &[(&str, &str)]) -> Snapshot {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nginx.conf");
    std::fs::write(&path, text).unwrap();
    let snapshot = Snapshot::of_file(&path, None, None).unwrap();
    assert_eq!(snapshot.problems, []);
    for (name, ip) in then {
        snapshot.remembered.lock().unwrap().insert((*name).to_owned(), vec![ip.parse().unwrap()]);
    }
    let mut resolved = snapshot.resolved.borrow_mut();
    for name in snapshot.model.names() {
        let ips = now.iter().filter(|(known, _)| *known == name).map(|(_, ip)| ip.parse().unwrap()).collect();
        resolved.insert(name, (ips, Instant::now()));
    }
    drop(resolved);
    snapshot
}

#[test]
fn names_that_have_moved_are_found() {
    let text = "events {} http { upstream u { server app.test:80; server b.test:80 resolve; server c.test:81; } \
                server { location / { proxy_pass http://u; } location /d { proxy_pass http://d.test; } } }";
    let at = |snapshot: &Snapshot, addr: &str| {
        let addr = addr.parse().unwrap();
        let found = snapshot.candidates(addr);
        let servers: Vec<_> = found.iter().map(|c| (c.server.clone(), c.exact)).collect();
        let stale: Vec<_> =
            snapshot.stale_names(addr, &found).into_iter().map(|name| (name.name, name.did)).collect();
        (servers, stale)
    };
    let own = |name: &str, flag: bool| (name.to_owned(), flag);
    let moved =
        snapshot(text, &[("app.test", "10.0.0.5")], &[("app.test", "10.0.0.7"), ("d.test", "10.0.0.8")]);
    assert_eq!(at(&moved, "10.0.0.7:80"), (vec![own("app.test:80", true)], vec![]));
    assert_eq!(
        at(&moved, "10.0.0.5:80"),
        (vec![own("app.test:80", true)], vec![own("app.test", true)]),
        "it did lead there"
    );
    assert_eq!(
        at(&moved, "10.0.0.9:80"),
        (
            vec![own("app.test:80", false), own("b.test:80", false), own("d.test", false)],
            vec![own("app.test", false), own("d.test", false)]
        ),
        "each may have led there; one is resolved again and again"
    );
    assert_eq!(at(&moved, "10.0.0.9:82"), (vec![], vec![]));
    // The answer is used again, also where nothing leads.
    assert_eq!(moved.found.borrow().len(), 4);
}

#[test]
fn files_newer_than_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.conf");
    std::fs::write(&path, "").unwrap();
    let root = RootFs::at(Path::new("/")).unwrap();
    let versions = vec![(path.clone(), version(&root, &path)), ("/none".into(), None)];
    let snapshot = Snapshot { versions, ..Snapshot::default() };
    let now = SystemTime::now();
    assert_eq!(snapshot.newer_than(now + Duration::from_secs(1)), []);
    let newer = snapshot.newer_than(now - Duration::from_secs(5));
    assert!(matches!(newer.as_slice(), [(file, _)] if *file == path), "{newer:?}");
    // The time of modification is what somebody says.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(now + Duration::from_secs(7200)).unwrap();
    let snapshot = Snapshot { versions: vec![(path.clone(), version(&root, &path))], ..Snapshot::default() };
    assert_eq!(snapshot.newer_than(now + Duration::from_secs(1)), []);
}

#[test]
fn files_that_are_not_what_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let all = ["kept", "edited", "gone", "linked", "current/file"].map(at);
    let [kept, edited, gone, linked, within] = &all;
    for name in ["first", "second"] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("file"), "").unwrap();
    }
    std::os::unix::fs::symlink("first", at("current")).unwrap();
    for path in [kept, edited, gone, &at("older")] {
        std::fs::write(path, "").unwrap();
    }
    std::os::unix::fs::symlink("kept", linked).unwrap();
    let root = RootFs::at(Path::new("/")).unwrap();
    let pattern = at("*d");
    let snapshot = Snapshot {
        versions: all.iter().map(|path| (path.clone(), version(&root, path))).collect(),
        globs: vec![(pattern.clone(), expand(&root, &pattern).unwrap())],
        made: Some(SystemTime::now() + 2 * CLOCK_SLACK),
        pid: std::process::id(),
        ..Snapshot::default()
    };
    assert_eq!(snapshot.differences(&root), []);
    thread::sleep(3 * CLOCK_SLACK);
    std::fs::write(edited, "#").unwrap();
    std::fs::remove_file(gone).unwrap();
    std::fs::remove_file(linked).unwrap();
    std::os::unix::fs::symlink("older", linked).unwrap();
    // The file and all that its own name says is old: the way to it leads elsewhere.
    std::fs::remove_file(at("current")).unwrap();
    std::os::unix::fs::symlink("second", at("current")).unwrap();
    std::fs::write(at("found"), "").unwrap();
    let found = snapshot.edited();
    assert!(matches!(found.first(), Some((path, Change::At(_))) if path == edited), "{found:?}");
    assert_eq!(found.get(1), Some(&(gone.clone(), Change::Gone)));
    assert!(matches!(found.get(2), Some((path, Change::At(_))) if path == linked), "{found:?}");
    let rest = [(within.clone(), Change::Other), (at("found"), Change::Added)];
    assert_eq!(found.get(3..), Some(&rest[..]));
    // It is not looked at again at once.
    std::fs::remove_file(kept).unwrap();
    assert_eq!(snapshot.edited().len(), 5);
}

#[test]
fn a_known_command_line_is_not_read_from_the_title_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nginx.conf");
    std::fs::write(&path, "events {}\n").unwrap();
    // Cut off behind -c.
    let process = Titled::new("nginx: master process nginx -c");
    let master = process.master(b"nginx: master process nginx -c");
    let pid = master.pid;
    let started = invocation::invocation(
        format!("nginx\0-c\0{}\0", path.display()).as_bytes(),
        &Defaults::default(),
        Path::new("/"),
    );
    let known = Snapshot { pid, started: started.ok(), ..Snapshot::default() };
    assert_eq!(known.again(&master).main, Some(path));
    // A guess is not worth keeping, and another master has another command line.
    for other in [Snapshot { is_guess: true, ..known }, Snapshot::default()] {
        assert_eq!(other.again(&master).main, None);
    }
}

//! Tests of `process`: titles and grouping on made-up processes, and a real nginx where one is installed.

use std::process::{Child, Command};

use super::*;
use crate::sys::testing;

fn process(pid: u32, ppid: u32, title: &[u8]) -> Process {
    Process {
        pid,
        ppid,
        ns_pids: vec![pid],
        exe: PathBuf::from("/usr/sbin/nginx"),
        exe_deleted: false,
        exe_id: ExeId { dev: 1, ino: 2 },
        title: title.to_vec(),
        role: role_of(title),
        start_ticks: 0,
        started: SystemTime::UNIX_EPOCH,
        credentials: Credentials::default(),
        netns: None,
        root_differs: false,
        mounts_differ: false,
        container: None,
    }
}

#[test]
fn titles() {
    for (title, role) in [
        (&b"nginx: master process /usr/sbin/nginx -g daemon on; master_process on;"[..], Role::Master),
        (b"nginx: worker process", Role::Worker),
        (b"nginx: worker process is shutting down", Role::WorkerShuttingDown),
        (b"nginx: cache manager process", Role::CacheHelper),
        (b"nginx: cache loader process", Role::CacheHelper),
        (b"nginx: privileged agent process", Role::Helper),
        (b"angie: worker process", Role::Worker),
        (b"angie: master process v1.8.0 #1 [angie]", Role::Master),
        (b"angie: worker process #3", Role::Worker),
        (b"angie: worker process #3 is shutting down", Role::WorkerShuttingDown),
        (b"nginx: \x1b[2J", Role::Unknown),
        (b"nginx\0-g\0daemon off; master_process off;", Role::Single),
        (b"nginx\0-c\0-t", Role::Single),
        (b"/usr/sbin/nginx\0-t", Role::Command),
        (b"nginx\0-p\0/x\0-s\0reload", Role::Command),
        (b"nginx\0-Tq", Role::Command),
        (b"nginx", Role::Single),
        (b": worker process", Role::Single),
        (b"\xff\xff: worker process", Role::Single),
        (b"", Role::Single),
    ] {
        assert_eq!(role_of(title), role, "{}", proc::printable(title));
    }
}

#[test]
fn candidates_by_program_name() {
    for (title, expected) in [
        (&b"nginx: worker process"[..], &b"nginx"[..]),
        (b"/usr/local/openresty/nginx/sbin/nginx\0-g\0daemon off;", b"nginx"),
        (b"vim\0/etc/nginx/nginx.conf", b"vim"),
        (b"/opt/nginx/bin/helper", b"helper"),
        (b"\0", b""),
        (b"/", b""),
    ] {
        assert_eq!(program(title), expected);
    }
    assert!(contains_word(b"Angie-debug") && !contains_word(b"ngin"));
}

#[test]
fn grouping_with_upgrade_and_orphans() {
    let scan = group(vec![
        process(10, 1, b"nginx: master process nginx"),
        process(11, 10, b"nginx: worker process is shutting down"),
        process(20, 10, b"nginx: master process nginx"),
        process(21, 20, b"nginx: worker process"),
        process(22, 20, b"nginx: cache manager process"),
        process(23, 20, b"nginx\0-c\0x"),
        process(31, 1, b"nginx: worker process"),
        process(40, 1, b"nginx\0-g\0daemon off; master_process off;"),
        process(50, 1, b"custom\0-c\0x"),
        process(51, 50, b"nginx: worker process"),
        process(60, 1, b"nginx\0-t"),
    ]);
    let masters: Vec<_> =
        scan.instances.iter().map(|one| (one.master.pid, one.upgraded_from, one.workers().count())).collect();
    assert_eq!(masters, [(10, None, 1), (20, Some(10), 1), (40, None, 1), (50, None, 1)]);
    assert_eq!(scan.instances[1].children.len(), 3);
    assert_eq!(scan.instances[1].children[2].role, Role::Unknown);
    assert_eq!(scan.orphans.iter().map(|one| one.pid).collect::<Vec<_>>(), [31]);
}

#[test]
fn limits_file() {
    let text = b"Limit    Soft Limit  Hard Limit  Units\nMax processes  1 2 processes\nMax open files            1024                 unlimited            files     \n";
    assert_eq!(parse_nofile(text), Some((1024, u64::MAX)));
    assert_eq!(parse_nofile(b"Max open files x"), None);
    assert_eq!(parse_nofile(b"\xff"), None);
    let own = fd_usage(std::process::id()).unwrap();
    assert!(own.open >= 3 && own.soft <= own.hard && own.host_open.is_some());
}

#[test]
fn credentials() {
    let found = parse_credentials(b"Uid:\t33\t34\t35\t36\nGid:\t1\t2\t3\t4\nGroups:\t7 8 \n");
    assert_eq!((found.uid, found.fsuid, found.gid, found.fsgid), (34, 36, 2, 4));
    assert_eq!(found.file_groups(), [4, 7, 8]);
    assert_eq!(parse_credentials(b"").uid, u32::MAX);
}

#[test]
fn start_times() {
    let own = stat(std::process::id()).unwrap();
    let age = SystemTime::now().duration_since(started(own.start_ticks)).unwrap();
    assert!(age < Duration::from_secs(600), "{age:?}");
}

/// An nginx of this test's own, stopped on drop.
struct Nginx {
    child: Child,
    folder: PathBuf,
}

impl Nginx {
    fn start(ns: &netns::NetNs, name: &str, globals: &str) -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("why502-process-{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join("logs")).unwrap();
        let events = "daemon off; pid nginx.pid; error_log stderr crit; events {} http { access_log off; \
                      client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; \
                      scgi_temp_path s; server { listen 127.0.0.1:8099; } }";
        fs::write(folder.join("nginx.conf"), format!("{globals} {events}")).unwrap();
        let started = ns
            .run(|| Command::new("nginx").arg("-p").arg(&folder).args(["-c", "nginx.conf"]).spawn())
            .unwrap();
        match started {
            Ok(child) => Some(Self { child, folder }),
            Err(error) => {
                why502_skip::skipped(&format!("nginx cannot be started ({error})"));
                None
            }
        }
    }

    fn instance(&self, finder: &mut Finder, workers: usize) -> Instance {
        testing::poll("the instance", || {
            let scan = finder.find_nginx().unwrap();
            let mut own = scan.instances.into_iter().filter(|one| one.master.pid == self.child.id());
            own.next().filter(|one| one.workers().count() == workers)
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Once is not enough: without a master, a signal between nginx's check and its epoll_wait is slept on.
        testing::poll("nginx's end", || {
            // SAFETY: kill(2) takes no pointers; the child is not reaped yet, so the PID is its own.
            unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
            self.child.try_wait().unwrap()
        });
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn finder() -> Finder {
    Finder::new(|bytes| {
        bytes.windows(17).any(|part| part == b"ngx_http_upstream" || part == b"ngx_event_connect")
    })
}

#[test]
fn a_live_master_with_workers() {
    let Some(ns) = testing::namespace() else { return };
    let Some(nginx) =
        Nginx::start(&ns, "master", "worker_processes 2; user nobody nogroup; worker_rlimit_nofile 777;")
    else {
        return;
    };
    let mut finder = finder();
    let instance = nginx.instance(&mut finder, 2);
    let master = &instance.master;
    assert_eq!((master.role, master.netns, master.credentials.uid), (Role::Master, Some(ns.inum()), 0));
    assert!(master.is_alive() && !master.exe_deleted && !master.root_differs && !master.mounts_differ);
    assert_eq!(master.ns_pids.first(), Some(&master.pid));
    let worker = instance.workers().next().unwrap();
    assert_eq!((worker.role, worker.ppid, worker.exe_id), (Role::Worker, master.pid, master.exe_id));
    assert_ne!(worker.credentials.fsuid, 0);
    assert_eq!(fd_usage(worker.pid).unwrap().soft, 777);
    assert_eq!(worker.title_text(), "nginx: worker process");
    assert!(Finder::new(|_| false).examine(master.pid).unwrap().is_none());
    assert!(finder.examine(std::process::id()).unwrap().is_none());
}

#[test]
fn a_live_single_process() {
    let Some(ns) = testing::namespace() else { return };
    let Some(nginx) = Nginx::start(&ns, "single", "master_process off;") else { return };
    let instance = nginx.instance(&mut finder(), 1);
    assert_eq!((instance.master.role, instance.children.len()), (Role::Single, 0));
}

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

use super::*;

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("why502-walk-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("run/php")).unwrap();
        Self(path)
    }

    fn walk(&self, path: &str) -> Walk {
        let root = open_folder(&self.0).unwrap();
        from(&root, &root, PathBuf::from("/"), path.as_bytes()).unwrap()
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.0.join(path), Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn nobody() -> Walker {
    let credentials = Credentials { uid: 65534, gid: 65534, fsuid: 65534, fsgid: 65534, groups: vec![4] };
    Walker { credentials, ..Walker::default() }
}

fn paths(walk: &Walk) -> Vec<&str> {
    walk.steps.iter().map(|step| step.path.to_str().unwrap()).collect()
}

#[test]
fn ends_and_links() {
    let tree = Tree::new("ends");
    let _server = UnixListener::bind(tree.0.join("run/php/fpm.sock")).unwrap();
    fs::write(tree.0.join("run/file"), "").unwrap();
    symlink("/run", tree.0.join("var")).unwrap();
    symlink("fpm.sock", tree.0.join("run/php/link.sock")).unwrap();
    symlink("gone.sock", tree.0.join("run/php/dangling.sock")).unwrap();
    symlink("circle", tree.0.join("circle")).unwrap();
    let found = tree.walk("/var/php/./link.sock");
    assert_eq!(paths(&found), ["/", "/var", "/run", "/run/php", "/run/php/link.sock", "/run/php/fpm.sock"]);
    assert_eq!(found.file().unwrap().kind, Kind::Socket);
    for (path, place, errno) in [
        ("/run/none/a.sock", "/run/none", libc::ENOENT),
        ("/run/php/a.sock", "/run/php/a.sock", libc::ENOENT),
        ("/run/file/a.sock", "/run/file/a.sock", libc::ENOTDIR),
        ("/run/php/dangling.sock", "/run/php/gone.sock", libc::ENOENT),
        ("/circle", "/circle", libc::ELOOP),
    ] {
        let walk = tree.walk(path);
        assert_eq!(walk.end, Some((PathBuf::from(place), errno)), "{path}");
        assert!(walk.file().is_none());
    }
    // `..` does not lead out of the root.
    assert!(tree.walk("/../../run/../run/php/fpm.sock").file().is_some());
    assert_eq!(tree.walk("run/file").file().unwrap().kind, Kind::File);
}

#[test]
fn the_first_closed_door() {
    let tree = Tree::new("doors");
    let _server = UnixListener::bind(tree.0.join("run/php/fpm.sock")).unwrap();
    for open in ["", "run", "run/php"] {
        tree.mode(open, 0o755);
    }
    let refused = |who: &Walker| {
        let walk = tree.walk("/run/php/fpm.sock");
        walk.refusal(who).map(|(step, wanted, _)| (step.path.clone(), wanted))
    };
    tree.mode("run/php/fpm.sock", 0o666);
    assert_eq!(refused(&nobody()), None);
    tree.mode("run/php/fpm.sock", 0o660);
    assert_eq!(refused(&nobody()), Some(("/run/php/fpm.sock".into(), Wanted::Write)));
    tree.mode("run", 0o750);
    assert_eq!(refused(&nobody()), Some(("/run".into(), Wanted::Search)));
    assert_eq!(refused(&Walker { overrides: true, ..nobody() }), None);
    // That capability goes through folders, and no further.
    let searches = Walker { searches: true, ..nobody() };
    assert_eq!(refused(&searches), Some(("/run/php/fpm.sock".into(), Wanted::Write)));
    let group = tree.walk("/run").file().unwrap().gid;
    let mut member = nobody();
    member.credentials.groups.push(group);
    tree.mode("run/php/fpm.sock", 0o660);
    assert_eq!(refused(&member), None);
    // What cannot be reached keeps nobody out: the folder before it does not let one look.
    let walk = tree.walk("/run/none/x.sock");
    assert_eq!(walk.refusal(&nobody()).map(|(step, ..)| step.path.clone()), Some("/run".into()));
}

#[test]
fn a_link_in_a_folder_for_all() {
    let tree = Tree::new("sticky");
    let _server = UnixListener::bind(tree.0.join("run/php/fpm.sock")).unwrap();
    tree.mode("", 0o755);
    tree.mode("run/php/fpm.sock", 0o666);
    fs::create_dir(tree.0.join("tmp")).unwrap();
    symlink("/run/php/fpm.sock", tree.0.join("tmp/fpm.sock")).unwrap();
    let link = CString::new(tree.0.join("tmp/fpm.sock").as_os_str().as_bytes()).unwrap();
    // SAFETY: a live C string.
    if unsafe { libc::lchown(link.as_ptr(), 1000, 1000) } != 0 {
        why502_skip::skipped("only root can give files away");
        return;
    }
    tree.mode("tmp", 0o1777);
    let refused = |who: &Walker| tree.walk("/tmp/fpm.sock").refusal(who).map(|(_, wanted, _)| wanted);
    assert_eq!(refused(&nobody()), None);
    let protected = Walker { protected_links: true, ..nobody() };
    assert_eq!(refused(&protected), Some(Wanted::Follow));
    tree.mode("tmp", 0o755);
    assert_eq!(refused(&protected), None);
}

#[test]
fn lists_decide_before_modes() {
    let tree = Tree::new("acl");
    let _server = UnixListener::bind(tree.0.join("run/php/fpm.sock")).unwrap();
    tree.mode("run/php/fpm.sock", 0o660);
    let path = CString::new(tree.0.join("run/php/fpm.sock").as_os_str().as_bytes()).unwrap();
    let mut list = vec![2, 0, 0, 0];
    for (tag, allowed, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 6, 65534), (4, 0, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(allowed.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    // SAFETY: live C strings and a buffer of the told size.
    let set = unsafe {
        libc::setxattr(path.as_ptr(), acl::ATTRIBUTE.as_ptr(), list.as_ptr().cast(), list.len(), 0)
    };
    if set != 0 {
        why502_skip::skipped(&format!("no access control lists on {}", tree.0.display()));
        return;
    }
    let walk = tree.walk("/run/php/fpm.sock");
    assert_eq!(walk.file().unwrap().acl.len(), 5);
    assert_eq!(walk.refusal(&nobody()), None);
    let mut other = nobody();
    other.credentials.fsuid = 65533;
    let (step, wanted, entry) = walk.refusal(&other).unwrap();
    assert_eq!((step.kind, wanted, entry.unwrap().tag), (Kind::Socket, Wanted::Write, acl::Tag::Other));
}

#[test]
fn a_process_and_its_paths() {
    let pid = std::process::id();
    let walk = walk(pid, b"/etc/passwd").unwrap();
    assert_eq!(walk.file().unwrap().kind, Kind::File);
    assert!(super::walk(pid, b"none/x").unwrap().end.is_some());
    assert!(Walker::of_pid(pid).is_ok() && Walker::of_pid(0).is_err());
}

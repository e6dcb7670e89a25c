//! Where nginx puts what does not fit its buffers: bodies of requests (`client_body_temp_path`) and of responses
//! (`proxy_temp_path` and the like). Whether the worker may write there, and whether there is room.
//!
//! The master makes these folders as it starts, and gives them to the worker's user; what happens to them or to the folders
//! above them later, nobody tells it. Without a folder in the configuration the one of the build holds.

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{Checked, Finding, Name, Options, Place, Report, Subject, config::view, position::worker};
use crate::{
    nginx::{
        binary::TEMPORARY,
        model::{Layer, Model, Pass},
        tree::NodeId,
    },
    sys::{
        process::Process,
        rootfs::RootFs,
        volume::{self, Volume},
        walk::{self, Kind, Step, Walk, Walker},
    },
};

const WRITABLE: &str = "temp-path-not-writable";
const FULL: &str = "temp-path-full";

/// What is found here.
pub const NAMES: &[Name] = &[
    (WRITABLE, "the worker cannot write where nginx puts bodies that do not fit its buffers"),
    (FULL, "no room is left where nginx puts bodies that do not fit its buffers"),
];

/// Less than this is no room: most bodies that do not fit the buffers are larger.
const ROOM: u64 = 64 << 10;
/// Most folders that are looked into below one.
const MOST_BELOW: usize = 300;
/// Lines of one finding.
const MOST_LINES: usize = 12;

/// A folder that is used.
#[derive(Debug, PartialEq, Eq)]
struct Used {
    /// Such as `proxy`; `client_body` for requests.
    kind: &'static str,
    path: PathBuf,
    /// Where it is set; None for the build's.
    line: Option<NodeId>,
    /// Folders are made below it: it has levels.
    levels: usize,
    /// By index in the model.
    passes: Vec<usize>,
}

/// Looks.
#[must_use]
pub fn inspect(subject: &Subject<'_>, _: &Options) -> Report {
    let snapshot = subject.snapshot;
    let model = &snapshot.model;
    let prefix = snapshot.invocation().map(|started| started.prefix.clone()).unwrap_or_default();
    let used = used(model, &snapshot.temporary, &prefix);
    // Without a worker there is nobody whose place could be taken; `upstreams` says so.
    let Some(worker) = worker(subject).filter(|_| !used.is_empty()) else { return Report::default() };
    let mut findings = Vec::new();
    let mut incomplete = None;
    match Walker::of_pid(worker.pid) {
        Ok(walker) => {
            for one in &used {
                match look(model, one, worker, &walker, subject.master.pid) {
                    Ok(found) => findings.extend(found),
                    Err(why) => incomplete = Some(why),
                }
            }
        }
        Err(error) => incomplete = Some(format!("cannot see what worker {} may do: {error}", worker.pid)),
    }
    let names: Vec<&'static str> = [WRITABLE, FULL]
        .into_iter()
        .filter(|name| findings.iter().any(|one: &Finding| one.name == *name))
        .collect();
    let folders = if used.len() == 1 { "1 folder".to_owned() } else { format!("{} folders", used.len()) };
    let seen = if findings.is_empty() { format!("{folders}: there is room") } else { folders };
    Report { checked: vec![Checked { what: "temporary files", seen, incomplete, findings: names }], findings }
}

/// The folders that the passes of a configuration use. Pure.
fn used(model: &Model, built_in: &BTreeMap<&'static str, PathBuf>, prefix: &Path) -> Vec<Used> {
    let mut found: Vec<Used> = Vec::new();
    for (index, pass) in
        model.passes.iter().enumerate().filter(|(_, pass)| pass.module.layer() == Layer::Http)
    {
        let own = pass.module.prefix().trim_end_matches('_');
        for kind in
            TEMPORARY.iter().filter(|(kind, _)| *kind == "client_body" || *kind == own).map(|(kind, _)| *kind)
        {
            if !needs(model, pass, kind) {
                continue;
            }
            let directive = format!("{kind}_temp_path");
            let line = view::inherited(model, model.config().parent(pass.node), &directive).first().copied();
            let word = |at| line.and_then(|node| model.config().arg(node, at));
            let Some(path) = word(0).map(PathBuf::from).or_else(|| built_in.get(kind).cloned()) else {
                continue;
            };
            let path = prefix.join(path);
            // The defaults of ngx_http_proxy_module.c and the like: 1 2; of ngx_http_core_module.c: none.
            let levels = match line {
                Some(_) => (1..=3).map_while(word).count(),
                None if kind == "client_body" => 0,
                None => 2,
            };
            match found.iter_mut().find(|one| one.kind == kind && one.path == path) {
                Some(one) => one.passes.push(index),
                None => found.push(Used { kind, path, line, levels, passes: vec![index] }),
            }
        }
    }
    found
}

/// Whether a pass can come to write such files.
fn needs(model: &Model, pass: &Pass, kind: &str) -> bool {
    let is = |name: &str, value: &str| view::value(model, pass, name).as_deref() == Some(value);
    if kind == "client_body" {
        // gRPC and memcached have no such directive, and take bodies as they come, or none.
        return is("request_buffering", "on");
    }
    is("buffering", "on") && !is("max_temp_file_size", "0")
}

/// What is wrong with a folder. Errors: it cannot be looked at.
fn look(
    model: &Model,
    used: &Used,
    worker: &Process,
    walker: &Walker,
    master: u32,
) -> Result<Vec<Finding>, String> {
    let path = &used.path;
    let cannot = |error: std::io::Error| format!("cannot look at {}: {error}", path.display());
    let walked = walk::walk(worker.pid, path.as_os_str().as_bytes()).map_err(cannot)?;
    let user = user(worker.pid, walker.credentials.fsuid);
    let finish = |finding: Finding| finish(model, used, finding);
    if let Some((missing, errno)) = &walked.end {
        // What the worker itself may not see is no answer.
        if *errno != libc::ENOENT {
            return Err(format!("cannot look at {}: errno {errno}", missing.display()));
        }
        let finding = Finding::problem(WRITABLE, format!("{} is not there", missing.display()))
            .because("folder", "nginx makes it as it starts, and no worker makes it anew")
            .fix_with(
                "reload nginx, which makes it again and gives it to its user",
                format!("kill -HUP {master}"),
            );
        return Ok(vec![finish(finding)]);
    }
    if let Some(refused) = refusal(&walked, walker).or_else(|| below(used, worker.pid, walker)) {
        return Ok(vec![finish(refused.told(used, &user))]);
    }
    let root = RootFs::of_pid(worker.pid).map_err(cannot)?;
    let Volume { read_only, bytes, files } = volume::of(&root, path, walker.overrides).map_err(cannot)?;
    let here = path.display();
    if read_only {
        let finding = Finding::problem(WRITABLE, format!("{here} lies on a file system that is read-only for nginx"))
            .because("folder", format!("the mount that worker {} sees is read-only", worker.pid))
            .fix_with(
                "let nginx write there: mount it anew, or with systemd's ProtectSystem= add ReadWritePaths= to the unit",
                format!("findmnt -T {here}"),
            )
            .fix(format!("or set {}_temp_path to a folder on another file system, then reload", used.kind));
        return Ok(vec![finish(finding)]);
    }
    let full = match (bytes, files) {
        (bytes, _) if bytes < ROOM => format!("{bytes} bytes are left"),
        (_, Some(0)) => "no inode is left".to_owned(),
        _ => return Ok(Vec::new()),
    };
    let inodes = if files == Some(0) { " -i" } else { "" };
    let finding = Finding::problem(FULL, format!("no room is left in {here}"))
        .because("disk", format!("{full} for {user} on its file system"))
        .fix_with("free some room on it", format!("df{inodes} {here}"))
        .fix(format!("or set {}_temp_path to a folder on another file system, then reload", used.kind));
    Ok(vec![finish(finding)])
}

/// What keeps a worker out.
struct Refused {
    /// The folder that does.
    step: Step,
    /// The one that files are to be made in.
    last: bool,
    /// An access control list has decided.
    by_list: bool,
}

/// The first folder on the way that keeps the worker from making files at its end.
fn refusal(walked: &Walk, walker: &Walker) -> Option<Refused> {
    if let Some((step, _, entry)) = walked.refusal(walker) {
        let last = walked.file() == Some(step);
        return Some(Refused { step: step.clone(), last, by_list: entry.is_some() });
    }
    let step = walked.file().filter(|step| step.kind == Kind::Folder)?;
    let (may, entry) = walker.may(step, walk::Wanted::Search);
    (!may).then(|| Refused { step: step.clone(), last: true, by_list: entry.is_some() })
}

/// The folders that workers have made below it belong to the user that they ran as then.
fn below(used: &Used, pid: u32, walker: &Walker) -> Option<Refused> {
    let root = RootFs::of_pid(pid).ok()?;
    let mut left = MOST_BELOW;
    let mut folders = vec![used.path.clone()];
    for _ in 0..used.levels {
        let mut next = Vec::new();
        for folder in &folders {
            for name in root.list(folder, left).unwrap_or_default() {
                left = left.saturating_sub(1);
                let path = folder.join(std::ffi::OsStr::from_bytes(&name));
                let Ok(walked) = walk::walk(pid, path.as_os_str().as_bytes()) else { continue };
                if walked.file().is_none_or(|step| step.kind != Kind::Folder) {
                    continue;
                }
                if let Some(refused) = refusal(&walked, walker) {
                    return Some(refused);
                }
                next.push(path);
            }
        }
        folders = next;
    }
    None
}

impl Refused {
    fn told(&self, used: &Used, user: &str) -> Finding {
        let (step, path) = (&self.step, used.path.display());
        let here = step.path.display();
        let summary = if self.last {
            format!("{user} may not make files in {here}")
        } else {
            format!("{user} may not go through {here} to {path}")
        };
        let mut finding = Finding::problem(WRITABLE, summary).because(
            "folder",
            format!(
                "{here} has mode {:04o}, owner {} and group {}{}",
                step.mode,
                step.uid,
                step.gid,
                if self.by_list { ", and an access control list that decides" } else { "" }
            ),
        );
        if step.own_rules {
            finding = finding.likely("a file system with rules of its own (NFS, FUSE), which lets it");
        }
        if self.by_list {
            return finding
                .fix_with("see the list, and let the worker's user write there", format!("getfacl {here}"));
        }
        if self.last {
            let modes = if step.mode & 0o300 == 0o300 { "" } else { &format!(" && chmod -R u+wX {path}") };
            finding.fix_with(
                format!("give it to the user that nginx's workers run as, with what is in it: {user}"),
                format!("chown -R {user} {path}{modes}"),
            )
        } else {
            finding
                .fix_with(
                    format!("let {user} alone go through the folder, without listing it"),
                    format!("setfacl -m u:{user}:--x {here}"),
                )
                .fix_with("or let everybody go through it", format!("chmod o+x {here}"))
        }
    }
}

/// Adds what breaks, and the lines.
fn finish(model: &Model, used: &Used, finding: Finding) -> Finding {
    let breaks = if used.kind == "client_body" {
        "Bodies of requests that are larger than client_body_buffer_size are kept there until they are whole: such requests \
         end with 500."
            .to_owned()
    } else {
        format!(
            "What a client does not take as fast as the server sends it is kept there, once {}_buffers are full: such responses \
             are cut.",
            used.kind
        )
    };
    let mut finding = finding.breaks(breaks);
    if let Some(line) = used.line {
        finding = finding.at(Place::of(model, "directive", line));
    }
    for pass in used.passes.iter().filter_map(|pass| model.passes.get(*pass)).take(MOST_LINES) {
        finding = finding.at(Place::of(model, "pass", pass.node));
    }
    finding
}

/// A user's name in the worker's own files, else the number.
fn user(pid: u32, uid: u32) -> String {
    let read = RootFs::of_pid(pid).and_then(|root| root.read(Path::new("/etc/passwd"), 1 << 20));
    let text = read.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    let is_plain = |name: &String| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    name.filter(is_plain).unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::model_of::model;

    fn shown(lines: &str, passes: &str) -> Vec<String> {
        let text = format!("http {{ {lines} server {{ {passes} }} }}");
        let built_in = TEMPORARY.iter().map(|(kind, path)| (*kind, PathBuf::from(path))).collect();
        let used = used(&model(&text), &built_in, Path::new("/srv"));
        used.iter()
            .map(|one| format!("{} {} {} x{}", one.kind, one.path.display(), one.levels, one.passes.len()))
            .collect()
    }

    #[test]
    fn folders_that_passes_use() {
        let two = "location / { proxy_pass http://127.0.0.1:1; } location /f { fastcgi_pass 127.0.0.1:2; }";
        assert_eq!(
            shown("", two),
            [
                "client_body /srv/client_body_temp 0 x2",
                "proxy /srv/proxy_temp 2 x1",
                "fastcgi /srv/fastcgi_temp 2 x1"
            ]
        );
        assert_eq!(
            shown("proxy_temp_path /var/a 1; client_body_temp_path b 1 2 3;", two),
            ["client_body /srv/b 3 x2", "proxy /var/a 1 x1", "fastcgi /srv/fastcgi_temp 2 x1"]
        );
        // What is not buffered is not kept.
        let none: [&str; 0] = [];
        assert_eq!(
            shown(
                "proxy_buffering off; proxy_request_buffering off;",
                "location / { proxy_pass http://127.0.0.1:1; }"
            ),
            none
        );
        assert_eq!(
            shown("proxy_max_temp_file_size 0;", "location / { proxy_pass http://127.0.0.1:1; }"),
            ["client_body /srv/client_body_temp 0 x1"]
        );
        assert_eq!(
            shown("", "location / { grpc_pass 127.0.0.1:1; } location /m { memcached_pass 127.0.0.1:2; }"),
            none
        );
        assert_eq!(shown("", "location / { return 204; }"), none);
    }
}

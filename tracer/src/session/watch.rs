//! Which processes are nginx, which master each belongs to, and with which configuration it was born.

use std::{
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};

use super::{config::Snapshot, maps::Maps, running::Running};
use crate::{
    nginx::binary,
    sys::{
        netns,
        process::{Finder, Process, Role},
    },
};

/// How long an ended process is remembered: its last records may still be under way.
const REMEMBER_S: u64 = 10;
/// How soon after a worker's end a new one is taken for its replacement: nginx forks it at once.
const REPLACED_WITHIN: Duration = Duration::from_millis(500);

/// A watched process.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    /// Its master (itself for a master or single process).
    pub(super) master: u32,
    /// Network namespace (inode), if it could be read.
    pub(super) netns: Option<u32>,
    /// The container, as `docker 0123456789ab`.
    pub(super) container: Option<String>,
    /// The configuration that was on disk when it was born.
    pub(super) config: Rc<Snapshot>,
    /// Its own memory says so.
    pub(super) exact: bool,
    /// When it began.
    pub(super) started: SystemTime,
    /// When it ended.
    ended: Option<Instant>,
    serves: bool,
}

impl Watched {
    /// True if its configuration was read from its memory, or no file is newer than it is.
    pub(super) fn runs_as_shown(&self) -> bool {
        self.exact || self.config.newer_than(self.started).is_empty()
    }
}

/// All watched processes.
pub(super) struct Watch {
    finder: Finder,
    /// `-p`: only these masters or processes, if not empty.
    only: Vec<u32>,
    processes: HashMap<u32, Watched>,
    lost: Lost,
    /// Processes that were there before they were watched.
    new: Vec<u32>,
}

/// The workers that ended while their master still ran what they did: it replaces them, without reading its
/// configuration again.
#[derive(Debug, Default)]
struct Lost(Vec<(u32, Instant)>);

impl Lost {
    fn note(&mut self, master: u32, at: Instant) {
        self.0.retain(|(_, then)| at.duration_since(*then) < REPLACED_WITHIN);
        self.0.push((master, at));
    }

    /// Whether a child that is born now stands for one that has just ended.
    fn is_replaced(&mut self, master: u32, now: Instant) -> bool {
        let fits = |(of, at): &(u32, Instant)| *of == master && now.duration_since(*at) < REPLACED_WITHIN;
        let found = self.0.iter().position(fits);
        found.map(|index| self.0.swap_remove(index)).is_some()
    }
}

impl Watch {
    /// Watches all nginx processes, or only those that belong to `only`.
    #[must_use]
    pub(super) fn new(only: Vec<u32>) -> Self {
        Self {
            finder: Finder::new(binary::is_nginx_binary),
            only,
            processes: HashMap::new(),
            lost: Lost::default(),
            new: Vec::new(),
        }
    }

    /// Looks at all processes of the host and watches what is nginx; problems are returned as sentences.
    ///
    /// # Errors
    /// If /proc cannot be listed or the kernel's table is full.
    pub(super) fn scan(&mut self, maps: &mut Maps) -> Result<Vec<String>> {
        let scan = self.finder.find_nginx().context("cannot list the processes of this host (/proc)")?;
        let mut problems: Vec<String> = scan
            .refused
            .iter()
            .map(|(pid, why)| {
                format!("cannot examine process {pid}, which may be nginx: {why} (CAP_SYS_PTRACE is needed)")
            })
            .collect();
        for instance in &scan.instances {
            let family = || std::iter::once(&instance.master).chain(&instance.children);
            if !self.only.is_empty() && !family().any(|p| self.only.contains(&p.pid)) {
                continue;
            }
            let known = self.processes.get(&instance.master.pid).filter(|p| p.ended.is_none()).cloned();
            let is_new = known.is_none();
            let config = match known {
                Some(known) => known.config,
                None => {
                    let config = snapshot(&instance.master);
                    problems.extend(
                        config.problems.iter().map(|p| format!("nginx (pid {}): {p}", instance.master.pid)),
                    );
                    config
                }
            };
            for process in family() {
                self.add(maps, process, instance.master.pid, &config)?;
            }
            let unread = self.processes.get(&instance.master.pid).and_then(|master| master.config.unread());
            if let Some(unread) = unread.filter(|_| is_new) {
                problems.push(format!("nginx (pid {}): {unread}", instance.master.pid));
            }
        }
        for orphan in &scan.orphans {
            if self.only.is_empty() || self.only.contains(&orphan.pid) {
                let config = snapshot(orphan);
                self.add(maps, orphan, orphan.pid, &config)?;
            }
        }
        Ok(problems)
    }

    fn add(&mut self, maps: &mut Maps, process: &Process, master: u32, config: &Rc<Snapshot>) -> Result<()> {
        if self.processes.get(&process.pid).is_some_and(|p| p.ended.is_none()) {
            return Ok(());
        }
        maps.watch(process.pid, master)?;
        self.new.push(process.pid);
        let (config, exact) = if config.newer_than(process.started).is_empty() {
            (Rc::clone(config), false)
        } else {
            self.own(process.pid, master, config)
        };
        self.processes.insert(
            process.pid,
            Watched {
                master,
                netns: process.netns,
                container: process.container.as_ref().map(ToString::to_string),
                config,
                exact,
                started: process.started,
                ended: None,
                serves: process.role.serves(),
            },
        );
        Ok(())
    }

    /// The configuration that a process runs with, and whether its memory has said so.
    fn own(&self, pid: u32, master: u32, config: &Rc<Snapshot>) -> (Rc<Snapshot>, bool) {
        // Those of its siblings first: they share one.
        let mut known = vec![config];
        for process in self.processes.values().filter(|process| process.master == master) {
            if !known.iter().any(|other| Rc::ptr_eq(other, &process.config)) {
                known.push(&process.config);
            }
        }
        let mut other = None;
        for snapshot in known {
            match snapshot.running(pid) {
                Some(Running::Same) => return (Rc::clone(snapshot), true),
                Some(Running::Other(own)) => other = other.or(Some(*own)),
                None => {}
            }
        }
        match other {
            Some(own) => (with_names(own, pid), true),
            None => (Rc::clone(config), false),
        }
    }

    /// The processes that were there before they were watched, each once.
    pub(super) fn take_new(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.new)
    }

    /// A watched process has a new child; the kernel watches it already, unless it was forked before its parent
    /// was verified.
    ///
    /// # Errors
    /// As [`Watch::scan`].
    pub(super) fn forked(&mut self, maps: &mut Maps, pid: u32, parent: u32) -> Result<Vec<String>> {
        let Some(known) = self.processes.get(&parent).cloned() else {
            return Ok(Vec::new());
        };
        maps.watch(pid, known.master)?;
        // A child of the master after a reload runs with what is on disk now.
        let mut problems = Vec::new();
        let replaces = self.lost.is_replaced(parent, Instant::now());
        let is_stale = known.master == parent && known.config.is_stale(parent);
        let remembered = if is_stale { Some(self.own(pid, parent, &known.config)) } else { None };
        let resolved_again = |config: &Snapshot| known.master == parent && config.was_resolved_again(pid);
        let (config, exact) = if let Some((config, true)) = remembered
            && !resolved_again(&config)
        {
            (config, true)
        } else if is_stale && !replaces || resolved_again(&known.config) {
            let fresh = self
                .finder
                .examine(parent)
                .ok()
                .flatten()
                .map(|master| with_names(known.config.again(&master), pid));
            if let Some(fresh) = &fresh {
                problems.extend(fresh.problems.iter().map(|p| format!("nginx (pid {parent}): {p}")));
            }
            (fresh.unwrap_or_else(|| Rc::clone(&known.config)), false)
        } else {
            (Rc::clone(&known.config), false)
        };
        if let Some(master) = self.processes.get_mut(&parent).filter(|_| known.master == parent) {
            master.config = Rc::clone(&config);
        }
        let netns = netns::inum_of_pid(pid).ok().or(known.netns);
        self.processes.insert(
            pid,
            Watched {
                master: known.master,
                netns,
                container: known.container,
                config,
                exact,
                started: SystemTime::now(),
                ended: None,
                serves: true,
            },
        );
        Ok(problems)
    }

    /// A process executed a program: the executable decides whether it is nginx.
    ///
    /// # Errors
    /// As [`Watch::scan`].
    pub(super) fn executed(&mut self, maps: &mut Maps, pid: u32) -> Result<Vec<String>> {
        self.processes.remove(&pid);
        match self.finder.examine(pid) {
            Ok(Some(process)) if process.role != Role::Command => {
                maps.watch(pid, pid)?;
                let config = snapshot(&process);
                let problems = config.problems.iter().map(|p| format!("nginx (pid {pid}): {p}")).collect();
                self.add(maps, &process, pid, &config)?;
                // Children that it made before it was verified.
                let mut all = vec![format!("following nginx master {pid}")];
                all.extend::<Vec<String>>(problems);
                all.extend(self.scan(maps)?);
                Ok(all)
            }
            Ok(Some(_) | None) => {
                maps.unwatch(pid);
                Ok(Vec::new())
            }
            Err(error) => {
                maps.unwatch(pid);
                let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
                Ok(if gone {
                    Vec::new()
                } else {
                    vec![format!("cannot examine process {pid}, which may be nginx: {error}")]
                })
            }
        }
    }

    /// A watched process ended.
    pub(super) fn exited(&mut self, pid: u32) {
        let now = Instant::now();
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.ended = Some(now);
        let (master, config) = (process.master, Rc::clone(&process.config));
        let still = |of: &Watched| of.ended.is_none() && Rc::ptr_eq(&of.config, &config);
        if master != pid && self.processes.get(&master).is_some_and(still) {
            self.lost.note(master, now);
        }
    }

    /// Forgets processes that ended a while ago.
    pub(super) fn sweep(&mut self) {
        self.processes.retain(|_, p| p.ended.is_none_or(|at| at.elapsed().as_secs() < REMEMBER_S));
    }

    /// The network namespaces of running processes, with one of these each time.
    pub(super) fn namespaces(&self) -> Vec<(u32, u32)> {
        let live = self.processes.iter().filter(|(_, p)| p.ended.is_none());
        live.filter_map(|(pid, p)| Some((p.netns?, *pid))).collect()
    }

    /// Running processes.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().filter(|(_, p)| p.ended.is_none()).map(|(pid, _)| *pid)
    }

    /// A process by PID.
    #[must_use]
    pub(super) fn get(&self, pid: u32) -> Option<&Watched> {
        self.processes.get(&pid)
    }

    /// Running workers (and single processes).
    #[must_use]
    pub(super) fn workers(&self) -> usize {
        self.processes
            .iter()
            .filter(|(pid, p)| p.ended.is_none() && p.serves && !self.is_master(**pid))
            .count()
    }

    /// Running masters (and single processes).
    #[must_use]
    pub(super) fn masters(&self) -> usize {
        self.processes.iter().filter(|(pid, p)| p.ended.is_none() && p.master == **pid).count()
    }

    /// Running masters, and single processes, with what they run with.
    pub(super) fn families(&self) -> Vec<(u32, Rc<Snapshot>)> {
        let live = self.processes.iter().filter(|(pid, p)| p.ended.is_none() && p.master == **pid);
        live.map(|(pid, p)| (*pid, Rc::clone(&p.config))).collect()
    }

    fn is_master(&self, pid: u32) -> bool {
        self.processes.iter().any(|(other, p)| p.master == pid && *other != pid && p.ended.is_none())
    }
}

fn snapshot(master: &Process) -> Rc<Snapshot> {
    with_names(Snapshot::of(master), master.pid)
}

/// `pid`: a process that runs with it.
fn with_names(mut snapshot: Snapshot, pid: u32) -> Rc<Snapshot> {
    snapshot.ask_for_addresses(pid);
    snapshot.remember_names();
    Rc::new(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_worker_is_replaced_once_and_soon() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut lost = Lost::default();
        assert!(!lost.is_replaced(7, start));
        lost.note(7, start);
        lost.note(7, start + ms(10));
        assert!(!lost.is_replaced(8, start + ms(11)));
        assert!(lost.is_replaced(7, start + ms(11)));
        assert!(lost.is_replaced(7, start + ms(12)));
        assert!(!lost.is_replaced(7, start + ms(13)), "both have their successors");
        lost.note(7, start);
        assert!(!lost.is_replaced(7, start + REPLACED_WITHIN), "that is a reload");
    }
}

//! What nginx says of its failures: which executables are probed, and which statement belongs to which attempt.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::SocketAddr,
    ops::RangeInclusive,
    os::unix::fs::FileExt as _,
    rc::Rc,
    time::{Duration, Instant},
};

use aya::Ebpf;

use super::{config::Snapshot, maps::Maps, watch::Watched};
use crate::{
    correlate::story::Word,
    event::{
        Attempt, Stage,
        said::{Identity, REFUSED, Said, Statement},
    },
    nginx::{Located, symbols::Symbols},
    probes::uprobes::{self, Attached, File, Mode, UprobeError},
};

/// How long a statement is kept for its attempt.
const KEEP: Duration = Duration::from_secs(10);
/// Statements that are kept at most: those of all attempts that can wait to be explained.
const MOST: usize = 8192;

/// A master, and what it runs with.
struct Master {
    pid: u32,
    config: Rc<Snapshot>,
    /// It logs healthy requests.
    logs_much: bool,
    /// A log of its is set to a level that leaves out errors.
    hides_errors: bool,
}

impl Master {
    fn new(pid: u32, config: Rc<Snapshot>) -> Self {
        let (logs_much, hides_errors) = (config.model.logs_much().is_some(), config.model.hides_errors());
        Self { pid, config, logs_much, hides_errors }
    }
}

/// An executable, and the masters that run it.
struct Executable {
    file: File,
    masters: Vec<Master>,
    /// What is known of it, or why nothing is.
    symbols: Result<Symbols, UprobeError>,
    attached: Option<Attached>,
    /// It cannot be probed.
    refused: bool,
}

/// The executables of nginx: what their memory looks like, and which are probed.
pub(super) struct Uprobes {
    mode: Mode,
    executables: Vec<Executable>,
}

impl Uprobes {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, executables: Vec::new() }
    }

    /// Reads the executables of these masters, probes them, and no longer those of others; problems are returned as sentences if
    /// the user insists on uprobes.
    pub(super) fn follow(
        &mut self,
        ebpf: &mut Ebpf,
        maps: &mut Maps,
        masters: Vec<(u32, Rc<Snapshot>)>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for executable in &mut self.executables {
            executable.masters.retain(|known| {
                let stays = masters.iter().any(|(pid, _)| *pid == known.pid);
                if !stays {
                    maps.forget_layout(known.pid);
                }
                stays
            });
        }
        for (pid, config) in masters {
            let known = self.executables.iter_mut().flat_map(|e| &mut e.masters).find(|m| m.pid == pid);
            if let Some(known) = known {
                if !Rc::ptr_eq(&known.config, &config) {
                    *known = Master::new(pid, config);
                }
                continue;
            }
            let Ok(file) = uprobes::file_of(pid) else { continue };
            let master = Master::new(pid, config);
            match self.executables.iter_mut().find(|executable| executable.file == file) {
                Some(executable) => executable.masters.push(master),
                None => self.executables.push(Executable {
                    file,
                    masters: vec![master],
                    symbols: uprobes::read(pid),
                    attached: None,
                    refused: false,
                }),
            }
        }
        for executable in &mut self.executables {
            executable.settle(self.mode, ebpf, maps, &mut problems);
        }
        self.executables.retain(|executable| !executable.masters.is_empty());
        problems
    }

    /// True if statements of this master's workers are to be expected.
    #[must_use]
    pub(super) fn hear(&self, master: u32) -> bool {
        self.executables.iter().any(|e| e.attached.is_some() && e.masters.iter().any(|m| m.pid == master))
    }

    /// True if they tell their logs of every failure, and that would be seen.
    #[must_use]
    pub(super) fn would_tell(&self, master: u32) -> bool {
        let tells = |m: &Master| m.pid == master && !m.hides_errors;
        self.executables.iter().any(|e| e.attached.is_some() && e.masters.iter().any(tells))
    }
}

impl Executable {
    /// Attaches or detaches what its masters call for.
    fn settle(&mut self, mode: Mode, ebpf: &mut Ebpf, maps: &mut Maps, problems: &mut Vec<String>) {
        if let Ok(symbols) = &self.symbols {
            for master in &self.masters {
                if let Err(problem) = maps.set_layout(master.pid, uprobes::layout(symbols)) {
                    problems.push(format!("{problem:#}"));
                }
            }
        }
        let quiet = mode == Mode::On || !self.masters.iter().any(|master| master.logs_much);
        if self.masters.is_empty() || !quiet || mode == Mode::Off {
            if let Some(attached) = self.attached.take() {
                uprobes::detach(ebpf, attached);
            }
            return;
        }
        let Some(first) = self.masters.first() else { return };
        let hidden = self.masters.iter().any(|master| master.hides_errors);
        if let Some(attached) = self.attached.take_if(|attached| hidden && !attached.hidden) {
            uprobes::detach(ebpf, attached);
        }
        if self.attached.is_none() && !self.refused {
            let attached = match &self.symbols {
                Ok(symbols) => {
                    uprobes::attach(ebpf, first.pid, symbols, mode, hidden).map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match attached {
                Ok(attached) => {
                    problems.extend(attached.left_out.iter().map(|text| format!("no uprobe on {text}")));
                    self.attached = Some(attached);
                }
                Err(error) => {
                    self.refused = true;
                    if mode == Mode::On {
                        let (pid, lost) = (first.pid, uprobes::LOST);
                        problems.push(format!("no uprobes on nginx (pid {pid}): {error}; lost: {lost}"));
                    }
                }
            }
        }
    }
}

/// A worker, and an attempt of its: socket and [`Attempt::name_ns`].
type Key = (u32, u64, u64);

/// The statements of late.
#[derive(Default)]
pub(super) struct Sayings {
    of_attempts: HashMap<Key, VecDeque<Statement>>,
    /// One for each statement, the oldest first.
    ages: VecDeque<(Instant, Key)>,
    /// The numbers that requests were given.
    ids: HashMap<Identity, u64>,
    id_ages: VecDeque<(Instant, Identity)>,
}

impl Sayings {
    /// Notes a statement.
    pub(super) fn note(&mut self, statement: Statement, now: Instant) {
        let Some((socket, name_ns)) = statement.attempt else {
            return;
        };
        let key = (statement.worker, socket, name_ns);
        // A connection that is kept serves many requests.
        self.of_attempts.entry(key).or_default().push_back(statement);
        self.ages.push_back((now, key));
        if self.ages.len() > MOST
            && let Some((_, oldest)) = self.ages.pop_front()
        {
            self.forget_one(oldest);
        }
    }

    /// Forgets the oldest statement about an attempt.
    fn forget_one(&mut self, key: Key) {
        if let Entry::Occupied(mut known) = self.of_attempts.entry(key) {
            known.get_mut().pop_front();
            if known.get().is_empty() {
                known.remove();
            }
        }
    }

    /// What nginx said of an attempt: of what is told of its exchange, the most telling. A statement about another address is
    /// none about it; where those that remain are about different requests, nobody knows which is meant.
    #[must_use]
    pub(super) fn of(&self, attempt: &Attempt) -> Option<&Statement> {
        // A connection that is kept serves several: of an exchange everything is said before its record is made.
        let talk = attempt.talk.as_deref();
        let since = talk.and_then(|talk| talk.sent_ns).unwrap_or(0);
        let until = talk.map_or(u64::MAX, |_| attempt.end_ns);
        // Where the attempt names no server, the peer that nginx has chosen is no contradiction.
        let remote = Some(attempt.remote).filter(|_| attempt.stage != Stage::Bind && !attempt.no_remote);
        self.find((attempt.worker, attempt.socket, attempt.name_ns), remote, since..=until)
    }

    fn find(&self, key: Key, remote: Option<SocketAddr>, during: RangeInclusive<u64>) -> Option<&Statement> {
        let is_its = |said: &&Statement| {
            let same = said.peer.zip(remote).is_none_or(|(peer, remote)| peer == remote);
            same && during.contains(&said.time_ns)
        };
        let all = || self.of_attempts.get(&key).into_iter().flatten().filter(is_its);
        let best = all().min_by_key(|said| (said.said() == Said::Other, said.silent))?;
        all().all(|other| other.request == best.request).then_some(best)
    }

    /// The number of a request, the same for all its attempts; `next` is the one for a new one.
    pub(super) fn id(&mut self, request: Identity, next: &mut u64, now: Instant) -> u64 {
        if let Some(id) = self.ids.get(&request) {
            return *id;
        }
        let id = *next;
        *next += 1;
        self.ids.insert(request, id);
        self.id_ages.push_back((now, request));
        if self.id_ages.len() > MOST
            && let Some((_, oldest)) = self.id_ages.pop_front()
        {
            self.ids.remove(&oldest);
        }
        id
    }

    /// Forgets what is old.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some((_, key)) = self.ages.pop_front_if(|(since, _)| now.duration_since(*since) >= KEEP) {
            self.forget_one(key);
        }
        // A request may try servers for minutes.
        let long = KEEP * 60;
        while let Some((_, id)) = self.id_ages.pop_front_if(|(since, _)| now.duration_since(*since) >= long) {
            self.ids.remove(&id);
        }
    }
}

/// Reads what the kernel side could not, before anybody looks at it: texts of which nothing of their page had been used in that
/// worker yet, and why a certificate was refused. They lie in the constants of the program and its libraries.
pub(super) fn complete(statement: &mut Statement) {
    for (text, at) in
        [(&mut statement.format, statement.format_at), (&mut statement.action, statement.action_at)]
    {
        if text.is_empty()
            && let Some(found) = constant(statement.worker, at)
        {
            *text = found;
        }
    }
    read_reason(statement);
}

/// Why a certificate was refused, in the library's own words.
fn read_reason(statement: &mut Statement) {
    if statement.format == REFUSED
        && let Some(text) = constant(statement.worker, statement.number)
        && !text.is_empty()
        && text.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
    {
        statement.reason = String::from_utf8(text).ok();
    }
}

/// A string of a process, without its NUL; None if it has none within 64 bytes.
fn constant(pid: u32, at: u64) -> Option<Vec<u8>> {
    if at == 0 {
        return None;
    }
    let mut text = [0; 64];
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let length = memory.read_at(&mut text, at).ok()?;
    let text = text.get(..length)?;
    let end = text.iter().position(|byte| *byte == 0)?;
    text.get(..end).map(<[u8]>::to_vec)
}

/// Where nginx says that the request is, if its worker's configuration has that place.
pub(super) fn place(said: &Statement, worker: &Watched) -> Option<Located> {
    let place = said.place.as_ref()?;
    worker.config.model.place(&place.file, place.line, &place.location)
}

/// What nginx says; `known`: the place that it names is one of the configuration.
pub(super) fn word(said: &Statement, known: bool) -> Word {
    let place = said.place.as_ref().filter(|_| known).cloned();
    Word { text: said.text(), errno: said.errno, place }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::said::tests::sample;

    /// The attempt of [`sample`].
    const KEY: Key = (77, 6, 4);

    fn peer() -> SocketAddr {
        "127.0.0.1:3000".parse().unwrap()
    }

    #[test]
    fn a_statement_belongs_to_its_attempt_alone() {
        let mut sayings = Sayings::default();
        sayings.note(sample(|_| {}), Instant::now());
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_some());
        assert!(
            sayings.find(KEY, Some("127.0.0.1:3001".parse().unwrap()), 0..=u64::MAX).is_none(),
            "another server"
        );
        for key in [(78, 6, 4), (77, 7, 4), (77, 6, 5)] {
            assert!(sayings.find(key, Some(peer()), 0..=u64::MAX).is_none(), "{key:?}");
        }
    }

    #[test]
    fn a_kept_connection_serves_several() {
        let mut sayings = Sayings::default();
        let now = Instant::now();
        sayings.note(sample(|said| said.time_ns = 10), now);
        sayings.note(sample(|said| (said.time_ns, said.client_port) = (20, 1)), now);
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_none(), "two requests");
        assert_eq!(sayings.find(KEY, Some(peer()), 15..=u64::MAX).unwrap().time_ns, 20);
        for number in 21..10_000 {
            sayings.note(sample(|said| (said.time_ns, said.client_port) = (number, 1)), now);
        }
        assert_eq!((sayings.of_attempts[&KEY].len(), sayings.ages.len()), (MOST, MOST), "the oldest go");
        sayings.sweep(now + KEEP);
        assert!(sayings.of_attempts.is_empty() && sayings.ages.is_empty());
    }

    #[test]
    fn the_most_telling_counts() {
        let mut sayings = Sayings::default();
        let now = Instant::now();
        let closed = |said: &mut tracer_ebpf::said::Said| {
            let text = b"upstream prematurely closed connection";
            said.format = [0; tracer_ebpf::said::FORMAT];
            said.format[..text.len()].copy_from_slice(text);
            said.lens[0] = text.len() as u16;
        };
        sayings.note(sample(|_| {}), now);
        sayings.note(sample(closed), now);
        sayings.note(sample(|_| {}), now);
        assert!(matches!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).unwrap().said(), Said::Broken { .. }));
    }

    #[test]
    fn two_requests_for_one_attempt_are_none() {
        let mut sayings = Sayings::default();
        let now = Instant::now();
        sayings.note(sample(|_| {}), now);
        sayings.note(sample(|_| {}), now);
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_some(), "the same once more");
        sayings.note(sample(|said| said.client_port = 1), now);
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_none());
        sayings.note(sample(|_| {}), now);
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_none(), "what was in doubt stays in doubt");
    }

    #[test]
    fn requests_have_numbers_of_their_own() {
        let mut sayings = Sayings::default();
        let (now, mut next) = (Instant::now(), 1);
        let first = sample(|_| {}).request;
        let others = [
            sample(|said| said.began = [9, 11]).request,
            sample(|said| said.client_port = 1).request,
            sample(|said| said.mark = 9).request,
            sample(|said| said.tgid = 78).request,
        ];
        assert_eq!(sayings.id(first, &mut next, now), 1);
        assert_eq!(others.map(|other| sayings.id(other, &mut next, now)), [2, 3, 4, 5]);
        assert_eq!(sayings.id(first, &mut next, now), 1);
    }

    #[test]
    fn what_the_kernel_side_could_not_read() {
        const TEXT: &[u8] = b"no resolver defined to resolve %V\0";
        const ACTION: &[u8] = b"reading upstream\0";
        let blank = |said: &mut tracer_ebpf::said::Said| {
            (said.tgid, said.format_at, said.action_at) =
                (std::process::id(), TEXT.as_ptr() as u64, ACTION.as_ptr() as u64);
            (said.lens[0], said.lens[7]) = (0, 0);
        };
        let mut statement = sample(blank);
        assert_eq!(statement.said(), Said::Other);
        complete(&mut statement);
        assert!(matches!(statement.said(), Said::NoResolver { .. }));
        assert_eq!(statement.action, b"reading upstream");
        let mut known = sample(|said| said.tgid = std::process::id());
        let before = known.format.clone();
        complete(&mut known);
        assert_eq!(known.format, before, "what was read stays");
    }

    #[test]
    fn constants_of_a_process() {
        const NOBODY: u32 = u32::MAX >> 1;
        let at = |text: &'static [u8]| text.as_ptr() as u64;
        let own = std::process::id();
        assert_eq!(constant(own, at(b"certificate has expired\0more")).unwrap(), b"certificate has expired");
        assert_eq!(constant(own, at(&[b'x'; 100])), None, "it does not end");
        assert_eq!(constant(own, 8), None, "nothing is mapped there");
        assert_eq!(constant(NOBODY, at(b"x\0")), None);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut sayings = Sayings::default();
        let now = Instant::now();
        sayings.note(sample(|_| {}), now);
        sayings.sweep(now + KEEP / 2);
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_some());
        sayings.sweep(now + KEEP);
        assert!(sayings.find(KEY, Some(peer()), 0..=u64::MAX).is_none());
        sayings.note(sample(|said| said.upstream_start_ns = 0), now);
        assert!(sayings.of_attempts.is_empty(), "a statement about no attempt");
    }
}

//! The fault lab in guest kernels: two boots a kernel, one of them with SELinux.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::counts::{self, Counts};
use super::live::is_news;
use super::{Session, remarks, results, stream};
use crate::lab::{self, GuestRun, Job, Kernel, Lsm, SERIES, Stream};
use crate::{binaries, process, signals};

/// Guests at a time. Emulated kernels that starve each other stretch nginx's own timers, and that is what is measured; beside
/// a guest that plays several cases at once no core is idle.
const AT_A_TIME: usize = 1;
/// The guest that plays the chaos run as well, thoroughly, on its full tier.
const CHAOS: &str = "6.12";
/// For a whole guest.
const LIMIT: Duration = Duration::from_secs(1500);
/// With everything in it.
const THOROUGH_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// How much of a failed guest's console and of its programs' stderr is shown, in bytes.
const TAIL: usize = 6000;
/// The best comes first.
const TIERS: [&str; 3] = ["full", "kprobe", "tracepoint"];

/// Runs in the guest, in a folder with `why502`, `faultlab` and `data`. Each part is announced, and its status told.
/// `lab PART ARGUMENTS` plays the cases that do not hang on time, `timed` those that do, several times and alone; `tier` is
/// `lab` with a look at the hooks. `$core` is `--core`, or empty if everything is to be played.
const HEAD: &str = r#"
part() { echo "@ $1"; shift; "$@"; echo "@ status $?"; }
cases() { name=$1; shift; part "$name" ./faultlab --why502 ./why502 --cases data --slow 15 --settle-ms 20 "$@"; }
lab() { name=$1; shift; cases "$name" --timing leave "$@"; }
timed() { name=$1; shift; cases "$name timed" --timing only --plays 3 "$@" --jobs 1; }
# Of those whose cause the kernel, and not the configuration, decides.
only=
for name in backlog bind drop firewall- healthy host-unreachable local-port lsm- network-unreachable no-answer refused- rule- stood-tls unix-; do
    only="$only --case $name"
done
uprobes='--case request-http2 --case current-tls- --case tls-client'
if [ -z "$core" ]; then uprobes="$uprobes --case stood-tls-c --case stood-tls-t"; fi
# These kernels offer every hook of every tier: one that is missing is our mistake. But the tracepoint behind every send
# (sock_send_length, sock_recv_length) is there since 6.6 only. SELinux's hooks are there where SELinux is.
hooks() {
    ./why502 doctor --tier $1 > doctor.txt 2>&1 || { cat doctor.txt; return 1; }
    case $1:$(uname -r) in
    tracepoint:[1-5].* | tracepoint:6.[0-5].*) allowed='MISSING  *(upstream-write|upstream-read|unix-write|unix-read) ' ;;
    *) allowed='^$' ;;
    esac
    # Of uprobes nothing: the nginx of a case that runs beside it may be gone before they are tried.
    ! sed '/^uprobes on/,$d' doctor.txt | grep 'MISSING' | grep -vE "$allowed"
}
looked() { wait; cat looked.txt; return $(cat looked.status); }
# The kernel verifies the programs of one start on one processor: both starts go side by side. But before 5.11 locked memory is
# counted over all processes of a user, and why502 tries fentry before it raises its limit.
tier() {
    { hooks $2; echo $? > looked.status; } > looked.txt 2>&1 &
    case $2:$(uname -r) in full:5.*) wait ;; esac
    about=$1 tier=$2; shift 2
    lab "$about$tier" --tier $tier "$@"
    part "${about}doctor $tier" looked
}
"#;

/// What `why502 check` finds: its kernel evidence is what a namespace holds, the same in all kernels.
const CHECK: &str = r#"
if [ -z "$core" ]; then only=; fi
lab check --jobs 4 --check expecting $core $only
"#;
/// States of connections, and how why502 finds them when it starts.
const OLDER: &str = "part older ./faultlab older --why502 ./why502 --slow 15 --tier full\n";
/// What nginx itself is asked: its own functions, and nothing of the kernel.
const UPROBES: &str = "lab uprobes --jobs 4 --tier full --why502-arg=--uprobes=on $uprobes\n";
const SELINUX_CHECK: &str = "lab \"selinux check\" --jobs 1 --check expecting $core --case selinux-\n";

/// Parts that are hardly the kernel's, and the one that plays each of them; thoroughly, every kernel does. They are dealt out so
/// that no guest takes much longer than another.
const ONCE: [(&str, Lsm, &str); 4] = [
    ("5.10", Lsm::Selinux, SELINUX_CHECK),
    ("6.1", Lsm::Apparmor, CHECK),
    ("6.12", Lsm::Apparmor, UPROBES),
    ("6.12", Lsm::Apparmor, OLDER),
];

/// How the script's own lines begin, and the end of a part.
const MARK: &str = "@ ";
const STATUS: &str = "status ";

/// What became of one guest.
struct Outcome {
    counts: Counts,
    /// For the reader, with everything that helps after a failure.
    text: String,
}

pub(super) fn run(session: &mut Session) -> Result<Counts> {
    let prepared = lab::prepare(&session.kernels, false)?;
    let mut total = Counts::default();
    for skipped in &prepared.skipped {
        println!("skip kernel {}: {}", skipped.series, skipped.reason);
        total.add(Counts::one_skipped());
    }
    if let Err(error) = &prepared.nginx {
        println!("skip the current nginx in every guest: {error:#}");
    }
    // The longest first: those without SELinux, and of these the newest kernel. 5.10 has BPF LSM only if it is named.
    let newest_first = || prepared.kernels.iter().rev();
    let queue: VecDeque<(&Kernel, Lsm)> = [Lsm::Apparmor, Lsm::Selinux]
        .into_iter()
        .flat_map(|lsm| newest_first().map(move |kernel| (kernel, lsm)))
        .collect();
    let queue = Mutex::new(queue);
    let sum = Mutex::new(total);
    let session = &*session;
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((kernel, lsm)) = next else { return };
                    let outcome = one(session, kernel, lsm);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    print!("{}", outcome.text);
                    sum.add(outcome.counts);
                }
            });
        }
    });
    Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Boots one kernel with these security modules and runs everything in it that is for them.
fn one(session: &Session, kernel: &Kernel, lsm: Lsm) -> Outcome {
    let name = match lsm {
        Lsm::Selinux => format!("{}-selinux", kernel.series),
        Lsm::Kernel | Lsm::Bpf | Lsm::Apparmor => kernel.series.to_owned(),
    };
    let name = name.as_str();
    if signals::interrupted() {
        return Outcome { counts: Counts::one_skipped(), text: format!("skip kernel {name}: interrupted\n") };
    }
    let boot = || {
        println!("kernel {name} ({}): started", kernel.release);
        let started = Instant::now();
        let mut shown = Progress::default();
        job(session, kernel.series, name, lsm).and_then(|job| {
            lab::run(kernel, &job, &mut |stream, bytes| {
                for part in shown.parts(stream, bytes) {
                    println!("kernel {name}: {part} begins after {:.0} s", started.elapsed().as_secs_f64());
                }
            })
        })
    };
    // Once: a kernel that locks up again does so because of what runs in it. With a BPF program on a stack it is ours.
    let guest = boot().or_else(|error| match error.downcast_ref::<lab::LockedUp>() {
        Some(locked) if !locked.bpf_suspected => {
            println!("kernel {name}: {error:#}\nkernel {name}: once more");
            boot()
        }
        _ => Err(error),
    });
    let guest = match guest {
        Ok(guest) => guest,
        // It ends with the console.
        Err(error) => {
            remarks::note(&format!("kernel {name}"), &format!("failed: {error}"));
            let text = format!("FAIL kernel {name}: {error:#}\n");
            return Outcome { counts: Counts::one_failed(), text };
        }
    };
    let outcome = judge(name, &guest);
    match keep(name, &guest) {
        Ok(()) => outcome,
        Err(error) => Outcome { text: format!("{}(no log: {error:#})\n", outcome.text), ..outcome },
    }
}

/// What runs in a guest. Every kernel plays the core cases that do not hang on time on its best tier; the oldest and the newest
/// play those that the kernel decides on the other tiers too. SELinux is looked at on the best tier. Thoroughly, everything is
/// played everywhere.
fn script(session: &Session, series: &str, lsm: Lsm) -> String {
    let (name, cases) = match lsm {
        // One after the other, as there is one mode and one set of booleans for all. The other cases are not repeated.
        Lsm::Selinux => ("selinux ", "--jobs 1 --case selinux-"),
        Lsm::Kernel | Lsm::Bpf | Lsm::Apparmor => ("", "--jobs 4"),
    };
    let thorough = session.thorough;
    let core = if thorough { "" } else { "--core" };
    let mut script = format!("core={core}\n{HEAD}");
    // First: `check` also finds what the kernel's log holds of cases that were played before it.
    for (kernel, modules, text) in ONCE {
        if modules == lsm && (thorough || kernel == series) {
            script += text;
        }
    }
    for tier in TIERS {
        if !thorough && !is_played(series, lsm, tier) {
            continue;
        }
        let decided = if tier != TIERS[0] && !thorough { "$only" } else { "" };
        script += &format!("tier \"{name}\" {tier} {cases} $core {decided}\n");
        if thorough {
            let file = format!("timed-{tier}.w502");
            script +=
                &format!("timed \"{name}{tier}\" {cases} --tier {tier} --record {file}; touch {file}\n");
        }
    }
    if thorough && lsm != Lsm::Selinux && series == CHAOS {
        script += "part chaos ./faultlab chaos --why502 ./why502 --slow 15 --tier full --requests 1000\n";
    }
    script
}

/// Whether a kernel plays this tier when not everything is played.
fn is_played(series: &str, lsm: Lsm, tier: &str) -> bool {
    let outermost = [SERIES.first(), SERIES.last()].into_iter().flatten().any(|one| one.name == series);
    tier == TIERS[0] || outermost && lsm != Lsm::Selinux
}

/// Where the recording of what hangs on time goes.
fn recording(guest: &str, tier: &str) -> Result<PathBuf> {
    Ok(stream::log_file(&format!("guest-{guest}-{tier}-timed"))?.with_extension("w502"))
}

fn job(session: &Session, series: &str, name: &str, lsm: Lsm) -> Result<Job> {
    let script = script(session, series, lsm);
    let mut job = Job::new(["sh", "-c", script.as_str()]);
    job.copies = vec![
        session.binaries.get("why502")?.to_owned(),
        session.binaries.get("faultlab")?.to_owned(),
        binaries::root().join("tests/data"),
    ];
    for tier in TIERS.into_iter().filter(|_| session.thorough) {
        job.fetch.push((format!("timed-{tier}.w502"), recording(name, tier)?));
    }
    job.lsm = lsm;
    job.timeout = if session.thorough { THOROUGH_LIMIT } else { LIMIT };
    job.memory_mib = 2048;
    Ok(job)
}

/// Finds the beginnings of parts in the guest's output as it comes.
#[derive(Default)]
struct Progress {
    unfinished: Vec<u8>,
}

impl Progress {
    fn parts(&mut self, stream: Stream, bytes: &[u8]) -> Vec<String> {
        if stream != Stream::Stdout {
            return Vec::new();
        }
        self.unfinished.extend_from_slice(bytes);
        let end = self.unfinished.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.unfinished.drain(..end).collect();
        let lines = String::from_utf8_lossy(&lines);
        let begun = lines.lines().filter_map(|line| line.strip_prefix(MARK));
        begun.filter(|text| !text.starts_with(STATUS)).map(str::to_owned).collect()
    }
}

/// Reads what the guest printed.
fn judge(name: &str, guest: &GuestRun) -> Outcome {
    let stdout = String::from_utf8_lossy(&guest.stdout);
    let mut text = format!(
        "kernel {name}: {:.0} s, of which boot {:.0} s\n",
        guest.wall.as_secs_f64(),
        guest.boot.as_secs_f64()
    );
    let log = stream::log_file(&format!("guest-{name}")).ok();
    let mut total = Counts::default();
    let mut part = Part::default();
    for line in stdout.lines() {
        match line.strip_prefix(MARK) {
            Some(end) if end.starts_with(STATUS) => {
                let counts = part.finish(end.strip_prefix(STATUS) == Some("0"));
                text += &part.report(name, counts);
                results::count(&part.place(name), counts, part.recording(name).or_else(|| log.clone()));
                total.add(counts);
                part = Part::default();
            }
            Some(begun) => part = Part { name: begun.to_owned(), ..Part::default() },
            None => {
                remarks::note(&part.place(name), line);
                part.line(line);
            }
        }
    }
    if !part.name.is_empty() {
        remarks::note(&part.place(name), "failed: did not end");
        text += &format!("FAIL kernel {name}, {}: did not end\n", part.name);
        total.add(Counts::one_failed());
        results::count(&part.place(name), Counts::one_failed(), log);
    }
    let total = total.with_status(guest.status == 0);
    if total.failed > 0 {
        for (what, bytes) in [("stderr", &guest.stderr), ("console", &guest.console)] {
            let whole = String::from_utf8_lossy(bytes);
            text += &format!(
                "--- end of the {what} of kernel {name} ---\n{}\n",
                process::tail(whole.trim_end(), TAIL)
            );
        }
    }
    Outcome { counts: total, text }
}

/// One program's output in the guest.
#[derive(Default)]
struct Part {
    name: String,
    counts: Option<Counts>,
    news: String,
    all: String,
}

impl Part {
    fn line(&mut self, line: &str) {
        self.counts = counts::of_faultlab(line).or(self.counts);
        for (text, wanted) in
            [(&mut self.all, true), (&mut self.news, is_news(line) && !self.name.contains("doctor"))]
        {
            if wanted {
                text.push_str("  ");
                text.push_str(line);
                text.push('\n');
            }
        }
    }

    /// Where this is, for the reader and the results.
    fn place(&self, kernel: &str) -> String {
        format!("kernel {kernel}, {}", self.name)
    }

    /// What why502 recorded of it.
    fn recording(&self, kernel: &str) -> Option<PathBuf> {
        let tier = self.name.strip_suffix(" timed")?;
        recording(kernel, tier.rsplit(' ').next()?).ok()
    }

    /// A program that counts nothing counts as one test.
    fn finish(&self, success: bool) -> Counts {
        match self.counts {
            Some(counts) => counts.with_status(success),
            None if success => Counts::one_passed(),
            None => Counts::one_failed(),
        }
    }

    fn report(&self, kernel: &str, counts: Counts) -> String {
        let word = if counts.failed > 0 { "FAIL" } else { "ok" };
        let shown = if counts.failed > 0 && self.counts.is_none() { &self.all } else { &self.news };
        format!("{word} {}: {counts}\n{shown}", self.place(kernel))
    }
}

/// Keeps the guest's whole output.
fn keep(name: &str, guest: &GuestRun) -> Result<()> {
    let path = stream::log_file(&format!("guest-{name}"))?;
    write_all(
        &path,
        &[&guest.stdout, b"\n--- stderr ---\n", &guest.stderr, b"\n--- console ---\n", &guest.console],
    )
}

fn write_all(path: &Path, parts: &[&[u8]]) -> Result<()> {
    fs::write(path, parts.concat()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(stdout: &str, status: i32) -> GuestRun {
        GuestRun {
            status,
            stdout: stdout.into(),
            stderr: b"a hint".to_vec(),
            console: b"Linux version".to_vec(),
            boot: Duration::from_secs(3),
            wall: Duration::from_secs(9),
        }
    }

    #[test]
    fn progress_waits_for_whole_lines() {
        let mut progress = Progress::default();
        assert!(progress.parts(Stream::Stdout, b"@ doc").is_empty());
        assert_eq!(progress.parts(Stream::Stdout, b"tor\n@ status 0\n@ full\npass"), ["doctor", "full"]);
        assert!(progress.parts(Stream::Console, b"@ x\n").is_empty());
    }

    #[test]
    fn what_hangs_on_time_is_played_thoroughly_alone() {
        let of = |thorough, lsm| script(&Session { thorough, ..Session::default() }, CHAOS, lsm);
        for lsm in [Lsm::Apparmor, Lsm::Selinux] {
            let (plain, thorough) = (of(false, lsm), of(true, lsm));
            assert!(plain.lines().any(|line| line.starts_with("tier ")), "{plain}");
            assert!(
                plain.lines().all(|line| !line.starts_with("timed ") && !line.contains(" chaos ")),
                "{plain}"
            );
            assert_eq!(thorough.lines().filter(|line| line.starts_with("timed ")).count(), 3, "{thorough}");
        }
        assert!(of(true, Lsm::Apparmor).contains("faultlab chaos"));
    }

    #[test]
    fn each_tier_and_part_is_played() {
        let of = |thorough, series, lsm| script(&Session { thorough, ..Session::default() }, series, lsm);
        let tiers = |script: &str| script.lines().filter(|line| line.starts_with("tier \"")).count();
        for series in SERIES.iter().map(|series| series.name) {
            for lsm in [Lsm::Apparmor, Lsm::Selinux] {
                let (plain, thorough) = (of(false, series, lsm), of(true, series, lsm));
                let outermost = ["5.10", "7.2"].contains(&series) && lsm != Lsm::Selinux;
                assert_eq!(tiers(&plain), if outermost { 3 } else { 1 }, "{series}");
                assert_eq!(tiers(&thorough), 3, "{series}");
                assert!(plain.contains(" full --jobs") && plain.contains("core=--core\n"));
                assert!(thorough.contains("core=\n"));
                assert!(ONCE.iter().all(|(_, modules, text)| thorough.contains(text) == (*modules == lsm)));
            }
        }
        for (series, lsm, text) in ONCE {
            assert!(of(false, series, lsm).contains(text), "{series} {text}");
        }
    }

    #[test]
    fn parts_are_counted_by_themselves() {
        let good = "@ doctor\nkernel 6.1\n@ status 0\n@ full\npass a\nskip b no tun\n1 passed, 0 failed, 1 skipped\n@ status 0\n";
        let outcome = judge("6.1", &guest(good, 0));
        assert_eq!(outcome.counts, Counts { passed: 2, failed: 0, skipped: 1 });
        assert!(
            outcome.text.contains("skip b no tun") && !outcome.text.contains("pass a"),
            "{}",
            outcome.text
        );
        assert!(!outcome.text.contains("console"), "{}", outcome.text);
    }

    #[test]
    fn failures_show_cases_and_console() {
        let bad = "@ doctor\nno BTF\n@ status 3\n@ full\nFAIL a\n     ! wrong\n0 passed, 1 failed, 0 skipped\n@ status 1\n@ kprobe\npass";
        let outcome = judge("6.1", &guest(bad, 0));
        assert_eq!(outcome.counts, Counts { passed: 0, failed: 3, skipped: 0 });
        for part in ["no BTF", "     ! wrong", "kprobe: did not end", "Linux version", "a hint"] {
            assert!(outcome.text.contains(part), "{part} is not in {}", outcome.text);
        }
    }
}

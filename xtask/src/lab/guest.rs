//! One job in one guest: makes its disks, starts QEMU, streams its output, judges how it ended.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cache::Scratch;
use super::cpio::Cpio;
use super::{Kernel, disk};
use crate::process;

const INITRD_INIT: &[u8] = include_bytes!("initrd-init.sh");
const GUEST_INIT: &[u8] = include_bytes!("guest-init.sh");
/// How often output is looked for.
const POLL: Duration = Duration::from_millis(20);
/// How long QEMU may take to power off once the job has reported its status.
const POWER_OFF: Duration = Duration::from_secs(5);
/// How much of the console and of stderr an error shows, in bytes.
const TAIL: usize = 4000;
/// What the kernel says of a processor that it cannot take back (kernel/watchdog.c).
const LOCKUP: &str = "BUG: soft lockup";
/// How much of the console an error shows if a processor was locked up: the stacks of all processors, twice.
const LOCKUP_TAIL: usize = 16_000;
/// Free space on the job disk.
const JOB_SPACE: disk::Slack = disk::Slack::mib(256);

/// Which security modules the guest kernel starts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Lsm {
    /// What Debian's kernel does by itself: AppArmor, and BPF LSM from 6.1 on
    #[default]
    Kernel,
    /// BPF LSM without SELinux and AppArmor
    Bpf,
    /// SELinux with Debian's default policy loaded, permissive; `setenforce 1` enforces
    Selinux,
    /// AppArmor without profiles (`apparmor_parser` loads them), BPF LSM, and Landlock where the kernel has it
    Apparmor,
}

impl Lsm {
    fn parameters(self) -> &'static [&'static str] {
        match self {
            Lsm::Kernel => &[],
            Lsm::Bpf => &["lsm=lockdown,yama,bpf"],
            Lsm::Selinux => &["lsm=lockdown,yama,selinux,bpf", "selinux=1", "enforcing=0"],
            Lsm::Apparmor => &["lsm=landlock,lockdown,yama,apparmor,bpf", "apparmor=1"],
        }
    }
}

/// What to run in a guest.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Program and arguments; run as root in the job's directory (a disk mounted read-write).
    pub(crate) command: Vec<String>,
    /// Its content becomes the job's directory.
    pub(crate) dir: Option<PathBuf>,
    /// Files and directories to put into the job's directory under their own names.
    pub(crate) copies: Vec<PathBuf>,
    /// Files of the job's directory to bring back afterwards, and where to.
    pub(crate) fetch: Vec<(String, PathBuf)>,
    /// For the whole run with boot.
    pub(crate) timeout: Duration,
    pub(crate) lsm: Lsm,
    /// More kernel parameters.
    pub(crate) parameters: Vec<String>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    /// Whether the kernel logs everything on its console, instead of warnings and worse.
    pub(crate) verbose_kernel: bool,
}

impl Job {
    /// A job with an empty directory and the usual settings.
    pub(crate) fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Job {
        Job {
            command: command.into_iter().map(Into::into).collect(),
            dir: None,
            copies: Vec::new(),
            fetch: Vec::new(),
            timeout: Duration::from_secs(120),
            lsm: Lsm::default(),
            parameters: Vec::new(),
            memory_mib: 1024,
            cpus: 2,
            verbose_kernel: false,
        }
    }
}

/// Where a piece of output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
    /// The kernel's messages.
    Console,
}

/// A run whose command ended by itself, successfully or not.
#[derive(Debug)]
pub(crate) struct GuestRun {
    /// Exit status; 128 + N after signal N, as in a shell.
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) console: Vec<u8>,
    /// From QEMU's start to the command's start.
    pub(crate) boot: Duration,
    /// From QEMU's start to the command's end.
    pub(crate) wall: Duration,
}

/// A processor of the guest that its kernel never took back from a task. The kernel has panicked upon it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LockedUp {
    /// True if a BPF program, or a helper for one, is on a stack that the kernel showed, or if it did not show all.
    pub(crate) bpf_suspected: bool,
}

impl LockedUp {
    fn find(console: &[u8]) -> Option<LockedUp> {
        let console = String::from_utf8_lossy(console);
        let (_, told) = console.split_once(LOCKUP)?;
        let stacks = || told.lines().filter(|line| !line.contains("Modules linked in"));
        // Those of the other processors too (softlockup_all_cpu_backtrace).
        let shows = |what: &str| stacks().any(|line| line.contains(what));
        let shown = shows("Call Trace") && shows("NMI backtrace for cpu");
        let bpf = stacks().any(|line| line.contains("bpf") || line.contains("htab_"));
        Some(LockedUp { bpf_suspected: bpf || !shown })
    }
}

impl fmt::Display for LockedUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.bpf_suspected { "perhaps in a BPF program" } else { "not in a BPF program" };
        write!(f, "a processor of the guest locked up, {whose}")
    }
}

/// Runs `job` in `kernel`; `on_output` gets the output as it comes.
///
/// # Errors
/// If the guest cannot be started, panics, hangs or runs out of time: with the end of its console.
pub(crate) fn run(kernel: &Kernel, job: &Job, on_output: &mut dyn FnMut(Stream, &[u8])) -> Result<GuestRun> {
    let dir = kernel.cache.run_dir()?;
    make_job_disk(job, &dir)?;
    let initrd = make_initrd(kernel, &job.command)?;
    fs::write(dir.join("initrd"), initrd).context("cannot write the guest's initrd")?;

    let mut guest = Guest::start(kernel, job, &dir)?;
    let outcome = guest.watch(job.timeout, on_output);
    let outcome = match LockedUp::find(&guest.console.bytes) {
        Some(locked) => outcome.context(locked),
        None => outcome,
    };
    let reported = outcome.with_context(|| format!("guest {} ({})", kernel.series, kernel.release))?;
    for (file, to) in &job.fetch {
        disk::read_out(&dir.join("job.img"), file, to)?;
    }
    Ok(reported)
}

/// A running QEMU and what it has written so far. Dropping it ends QEMU.
struct Guest {
    qemu: Child,
    started: Instant,
    stdout: Tail,
    stderr: Tail,
    console: Tail,
    status: Tail,
    log: PathBuf,
}

impl Guest {
    fn start(kernel: &Kernel, job: &Job, dir: &Scratch) -> Result<Guest> {
        let log = dir.join("qemu.log");
        let log_file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = qemu_command(kernel, job, dir.path());
        let qemu = command
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().context("cannot share QEMU's log")?)
            .stderr(log_file)
            .spawn()
            .context("cannot start setpriv (util-linux) with QEMU: install what `cargo xtask setup` names")?;
        let tail = |name: &str| Tail { path: dir.join(name), file: None, bytes: Vec::new() };
        Ok(Guest {
            qemu,
            started: Instant::now(),
            stdout: tail("stdout"),
            stderr: tail("stderr"),
            console: tail("console"),
            status: tail("status"),
            log,
        })
    }

    /// Follows the guest to its end.
    fn watch(&mut self, timeout: Duration, on_output: &mut dyn FnMut(Stream, &[u8])) -> Result<GuestRun> {
        let mut boot = None;
        let mut ended: Option<(i32, Duration)> = None;
        loop {
            // Asked first: what QEMU wrote before it ended is read below.
            let gone = self.qemu.try_wait().context("cannot wait for QEMU")?.is_some();
            // The status port is read before the others: what the job printed is complete once it has reported.
            self.status.read_more(|_| {})?;
            self.stdout.read_more(|bytes| on_output(Stream::Stdout, bytes))?;
            self.stderr.read_more(|bytes| on_output(Stream::Stderr, bytes))?;
            self.console.read_more(|bytes| on_output(Stream::Console, bytes))?;

            let elapsed = self.started.elapsed();
            let report = Report::parse(&self.status.bytes);
            if boot.is_none() && report.started {
                boot = Some(elapsed);
            }
            if ended.is_none()
                && let Some(status) = report.exit
            {
                ended = Some((status, elapsed));
            }
            if let Some((status, wall)) = ended
                && (gone || elapsed > wall + POWER_OFF)
            {
                return Ok(GuestRun {
                    status,
                    stdout: std::mem::take(&mut self.stdout.bytes),
                    stderr: std::mem::take(&mut self.stderr.bytes),
                    console: std::mem::take(&mut self.console.bytes),
                    boot: boot.unwrap_or(wall),
                    wall,
                });
            }
            if gone {
                bail!(
                    "the guest ended without reporting a status (a kernel panic?) after {:.1} s\n{}",
                    elapsed.as_secs_f64(),
                    self.last_words()
                );
            }
            if elapsed > timeout {
                let state =
                    if boot.is_some() { "the command still runs" } else { "it has not finished booting" };
                bail!("time-out after {} s, {state}\n{}", timeout.as_secs(), self.last_words());
            }
            thread::sleep(POLL);
        }
    }

    fn last_words(&self) -> String {
        let qemu = fs::read(&self.log).unwrap_or_default();
        let mut text = String::new();
        for (name, bytes) in
            [("console", &self.console.bytes), ("command's stderr", &self.stderr.bytes), ("QEMU", &qemu)]
        {
            let lossy = String::from_utf8_lossy(bytes);
            let limit = if lossy.contains(LOCKUP) { LOCKUP_TAIL } else { TAIL };
            let end = process::tail(lossy.trim_end(), limit);
            if !end.is_empty() {
                text.push_str(&format!("--- end of the {name} ---\n{end}\n"));
            }
        }
        if text.is_empty() {
            text.push_str("no output at all; `cargo xtask lab run SERIES --verbose -- true` shows the boot");
        }
        text
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has usually ended by itself; both fail then, harmlessly.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// What the guest wrote to its status port.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    started: bool,
    exit: Option<i32>,
}

impl Report {
    fn parse(bytes: &[u8]) -> Report {
        let text = String::from_utf8_lossy(bytes);
        // An incomplete last line will be complete the next time.
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        Report {
            started: complete.lines().any(|line| line == "start"),
            exit: complete.lines().find_map(|line| line.strip_prefix("exit ")?.parse().ok()),
        }
    }
}

/// A file that QEMU writes, read as it grows.
struct Tail {
    path: PathBuf,
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Tail {
    fn read_more(&mut self, mut on_bytes: impl FnMut(&[u8])) -> Result<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok(); // QEMU has not made it yet
        }
        if let Some(file) = &mut self.file {
            let known = self.bytes.len();
            file.read_to_end(&mut self.bytes)
                .with_context(|| format!("cannot read {}", self.path.display()))?;
            if self.bytes.len() > known {
                on_bytes(&self.bytes[known..]);
            }
        }
        Ok(())
    }
}

fn make_job_disk(job: &Job, run: &Scratch) -> Result<()> {
    let staged;
    let dir = match &job.dir {
        Some(dir) if job.copies.is_empty() => dir,
        dir => {
            staged = run.join("stage");
            fs::create_dir(&staged).with_context(|| format!("cannot create {}", staged.display()))?;
            let whole = dir.iter().map(|dir| dir.join("."));
            for source in whole.chain(job.copies.iter().cloned()) {
                process::output(Command::new("cp").args(["-a", "--"]).arg(&source).arg(&staged))?;
            }
            &staged
        }
    };
    disk::make(dir, &run.join("job.img"), JOB_SPACE)
}

fn make_initrd(kernel: &Kernel, command: &[String]) -> Result<Vec<u8>> {
    let read = |path: &Path| {
        fs::read(path).with_context(|| {
            format!("cannot read {}: `cargo xtask lab clean`, then build the images again", path.display())
        })
    };
    let mut cpio = Cpio::new();
    for dir in ["dev", "root", "boot-modules"] {
        cpio.directory(dir);
    }
    cpio.file("init", INITRD_INIT);
    cpio.file("guest-init", GUEST_INIT);
    cpio.file("command", shell_script(command).as_bytes());
    cpio.file("busybox", &read(&kernel.root.busybox)?);
    let boot = &kernel.files.boot_modules;
    for entry in fs::read_dir(boot).with_context(|| format!("cannot list {}", boot.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", boot.display()))?;
        cpio.file(&format!("boot-modules/{}", entry.file_name().to_string_lossy()), &read(&entry.path())?);
    }
    Ok(cpio.finish())
}

/// A shell script that becomes `command`, with every argument quoted.
fn shell_script(command: &[String]) -> String {
    let quoted: Vec<String> = command.iter().map(|arg| format!("'{}'", arg.replace('\'', r"'\''"))).collect();
    format!("exec {}\n", quoted.join(" "))
}

fn qemu_command(kernel: &Kernel, job: &Job, run: &Path) -> Command {
    // A guest must not outlive a killed xtask.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(kernel.emulator.words());
    command.env("TMPDIR", run); // for the temporary layers of snapshot=on
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // KVM is much faster where it works; guests were seen to hang in nested KVM, so it has to be asked for.
    let accel = std::env::var("WHY502_LAB_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
    let cpu = if accel == "kvm" { "host" } else { "max,la57=off" };
    command.args(["-machine", "q35", "-accel", &accel, "-cpu", cpu]);
    command.args(["-smp", &job.cpus.to_string(), "-m", &format!("{}M", job.memory_mib)]);
    command.arg("-kernel").arg(&kernel.files.vmlinuz).arg("-initrd").arg(run.join("initrd"));
    command.arg("-append").arg(kernel_parameters(job));
    let drive = |file: &Path, options: &str| format!("file={},format=raw,if=virtio,{options}", escape(file));
    command.arg("-drive").arg(drive(&kernel.root.image, "snapshot=on"));
    command.arg("-drive").arg(drive(&kernel.files.modules_image, "readonly=on"));
    command.arg("-drive").arg(drive(&run.join("job.img"), "cache=unsafe"));
    command.arg("-serial").arg(format!("file:{}", run.join("console").display()));
    command.args(["-device", "virtio-serial-pci"]);
    for name in ["stdout", "stderr", "status"] {
        command.arg("-chardev").arg(format!("file,id={name},path={}", escape(&run.join(name))));
        command.arg("-device").arg(format!("virtserialport,chardev={name},name=lab.{name}"));
    }
    command
}

/// QEMU's option syntax doubles commas in values.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn kernel_parameters(job: &Job) -> String {
    // 5 has the registers and the stack of a lock-up too.
    let loglevel = if job.verbose_kernel { "loglevel=7" } else { "loglevel=5" };
    // An oops caused by a BPF program must fail the run; -no-reboot turns the reboot into QEMU's end.
    let mut parameters = vec!["console=ttyS0", loglevel, "panic=-1", "oops=panic", "mitigations=off"];
    // So must a processor that the kernel never gives back, with the stacks of all, instead of a time-out without them.
    // The limit is twice the threshold: under emulation a busy host can take seconds.
    parameters.extend(["softlockup_panic=1", "softlockup_all_cpu_backtrace=1", "watchdog_thresh=20"]);
    parameters.extend(job.lsm.parameters());
    parameters.extend(job.parameters.iter().map(String::as_str));
    parameters.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_count_complete_lines_only() {
        let parse = |text: &str| Report::parse(text.as_bytes());
        assert_eq!(parse(""), Report { started: false, exit: None });
        assert_eq!(parse("start"), Report { started: false, exit: None });
        assert_eq!(parse("start\nexit 1"), Report { started: true, exit: None });
        assert_eq!(parse("start\nexit 137\n"), Report { started: true, exit: Some(137) });
        assert_eq!(parse("exit x\n"), Report { started: false, exit: None });
    }

    #[test]
    fn lockups_are_told_apart_by_their_stacks() {
        let find = |text: &str| LockedUp::find(text.as_bytes()).map(|locked| locked.bpf_suspected);
        let locked = "[ 9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 44s! [sh:9]\n[ 9.1] Modules linked in: cls_bpf\n";
        assert_eq!(find("[ 9.1] bpf_trace_run2+0x1/0x2\nCall Trace:\n"), None);
        assert_eq!(find(locked), Some(true), "no stack");
        let one = format!("{locked}Call Trace:\n ip_finish_output2+0x1/0x2\n");
        assert_eq!(find(&one), Some(true), "the other processor's is missing");
        assert_eq!(find(&format!("{one}NMI backtrace for cpu 1 skipped: idling\n")), Some(false));
        let locked = format!("{locked}NMI backtrace for cpu 1\n");
        assert_eq!(find(&format!("{locked}Call Trace:\n bpf_trace_run2+0x1/0x2\n")), Some(true));
        assert_eq!(find(&format!("{locked}Call Trace:\n htab_map_update_elem+0x1/0x2\n")), Some(true));
    }

    #[test]
    fn commands_reach_the_guest_unchanged() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "*", ""];
        let script = shell_script(&words.map(str::to_owned));
        let output = process::output(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b|it's|$HOME|*||");
    }

    #[test]
    fn parameters_choose_the_security_modules() {
        let mut job = Job::new(["true"]);
        assert!(!kernel_parameters(&job).contains("lsm="));
        job.lsm = Lsm::Selinux;
        job.parameters.push("quiet".into());
        let text = kernel_parameters(&job);
        assert!(
            text.contains("lsm=lockdown,yama,selinux,bpf selinux=1") && text.ends_with(" quiet"),
            "{text}"
        );
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escape(Path::new("/a,b")), "/a,,b");
    }
}

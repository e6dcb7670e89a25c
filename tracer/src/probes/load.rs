//! Loading the BPF object and attaching its programs.
//!
//! Everything happens on one short-lived thread with a mount namespace of its own: there tracefs is
//! mounted if the system has none (syscall tracepoints need it), and the kernel's type information is
//! hidden once we have read it, because aya would otherwise parse all of it again at every start (100 ms
//! and 20 MB). The system's own mounts are not touched.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::ProgramArray,
    programs::{FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint, TracePoint},
};
use aya_obj::btf::{BtfType, Func, FuncLinkage};
use tracer_ebpf::Settings;

use super::{Attach, PROBES, Probe, Tier, Variant, ask, denials, layout};
use crate::sys::{btf::Btf, caps, kallsyms};

/// Where the kernel keeps its own type information.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const CONNTRACK_BTF: &str = "/sys/kernel/btf/nf_conntrack";

/// The BPF object, built by build.rs. Aligned, because it is parsed in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WHY502_BPF_OBJECT_PATH"));

/// What a kernel has whose tracepoints tell of reads.
const READ_TRACEPOINT: &str = "__traceiter_sock_recv_length";

/// What the command line decides.
#[derive(Debug, Clone)]
pub struct Options {
    /// Forced tier.
    pub tier: Option<Tier>,
    /// Type information from a file instead of the kernel.
    pub btf: Option<PathBuf>,
    /// Size of the ring buffer, bytes: a power of two of at least one page.
    pub ring_bytes: u32,
    /// Capacity of the connection map.
    pub max_connections: u32,
    /// Failures a second that are sent one by one.
    pub one_by_one: u32,
    /// Offer newly executed programs with an nginx-like name.
    pub follow_new: bool,
    /// Debug messages of the BPF programs.
    pub debug: bool,
    /// Send the first bytes of failed exchanges to user space.
    pub payload: bool,
}

/// What became of one probe.
#[derive(Debug, Clone)]
pub enum State {
    /// Attached there.
    Attached(String),
    /// Not attached; the reason, and what to do about it where something can be done.
    Missing(String),
    /// This tier has no way to get this evidence.
    NotInTier,
    /// Nothing is lost without it here; why.
    NotNeeded(String),
    /// Accepted by the kernel; attached there when it is needed.
    Ready(String),
}

/// One line of `doctor`.
#[derive(Debug, Clone)]
pub struct Status {
    /// The probe.
    pub probe: &'static Probe,
    /// What became of it.
    pub state: State,
}

/// A loaded and attached object.
pub struct Loaded {
    /// Maps and programs; dropping it detaches everything.
    pub ebpf: Ebpf,
    /// Tier in use.
    pub tier: Tier,
    /// Why it is not a better one.
    pub tier_reason: Option<String>,
    /// Every probe.
    pub probes: Vec<Status>,
    /// Names of the kernel's drop reasons.
    pub drop_reasons: HashMap<u32, String>,
    /// Functions of BPF LSM that can refuse a connection, by their number in the kernel's type information.
    pub lsm_functions: HashMap<u32, &'static str>,
    /// First bytes of exchanges are told.
    pub payload: bool,
    /// Active security modules, in the kernel's order; None if it does not tell.
    pub modules: Option<Vec<String>>,
}

impl Loaded {
    /// True if nothing that the probe of that name would tell is lost: it is attached, or there is nothing to be told.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        let covered = |s: &Status| matches!(s.state, State::Attached(_) | State::NotNeeded(_));
        self.probes.iter().any(|s| s.probe.name == name && covered(s))
    }

    /// True if the probe of that name can be attached later.
    #[must_use]
    pub fn ready(&self, name: &str) -> bool {
        self.probes.iter().any(|s| s.probe.name == name && matches!(s.state, State::Ready(_)))
    }

    /// True if the probe of that name is attached.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.probes.iter().any(|s| s.probe.name == name && matches!(s.state, State::Attached(_)))
    }
}

/// Loads and attaches.
///
/// # Errors
/// No type information, an unknown kernel layout, missing privileges, or a required probe that cannot be
/// attached; the text says what to do.
pub fn load(options: &Options) -> Result<Loaded> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("why502-load".into())
            .spawn_scoped(scope, || load_here(options))
            .context("cannot start the thread that loads the BPF programs")?;
        worker
            .join()
            .map_err(|_| anyhow!("loading the BPF programs ended unexpectedly; please report this"))?
    })
}

/// Loading and reading configurations need some megabytes (type information, the object, executables), watching does
/// not: call this in between.
pub fn give_memory_back() {
    // SAFETY: returns free pages of the heap to the system; no argument is a pointer.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: a query without arguments.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
    let begin = OBJECT.as_ptr().addr().next_multiple_of(page);
    let end = (OBJECT.as_ptr().addr() + OBJECT.len()) / page * page;
    if begin < end {
        // SAFETY: whole pages inside a read-only mapping of this executable, which come back from its file if
        // they are read again. A refusal costs memory only.
        unsafe {
            libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_DONTNEED);
        }
    }
}

/// Before 5.11 programs and maps count as locked memory, of all processes of the user together.
fn raise_locked_memory() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a pointer to a live value. A refusal shows where the memory is needed.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

fn load_here(options: &Options) -> Result<Loaded> {
    // Before the kernel is asked what it takes: else a second why502 beside a first would be refused the better tiers.
    raise_locked_memory();
    let path = options.btf.as_deref().unwrap_or(Path::new(KERNEL_BTF));
    let data = read_btf(path).with_context(|| no_btf(path))?;
    let btf = Btf::parse(&data)
        .with_context(|| format!("cannot use the type information in {}", path.display()))?;
    let (tier, tier_reason) = match options.tier {
        Some(forced) => (forced, None),
        None => ask::best_tier(&btf),
    };
    if tier == Tier::Full {
        ask::trampolines(&btf)
            .context("--tier full: this kernel refuses fentry/fexit programs; try --tier auto")?;
    }
    if tier == Tier::Kprobe && !ask::kprobes() {
        bail!("--tier kprobe: this kernel has no kprobes (CONFIG_KPROBES); try --tier auto");
    }
    let ranges = symbol_ranges(&btf);
    let conntrack_data = fs::read(CONNTRACK_BTF).ok();
    let conntrack = conntrack_data.as_deref().and_then(|data| Btf::parse_split(data, &btf).ok());
    let mut settings = layout::settings(&btf, conntrack.as_ref(), &ranges)?;
    drop(conntrack);
    let view = private_view();
    let has_tracefs = view.is_ok() || Path::new("/sys/kernel/tracing/events").exists();
    settings.follow_new = u32::from(options.follow_new);
    settings.payload = u32::from(options.payload);
    let buckets = buckets(options.max_connections);
    settings.bucket_mask = buckets - 1;
    settings.one_by_one = options.one_by_one;
    settings.has_connect_exit = u32::from(tier != Tier::Tracepoint || has_tracefs);
    // Before 6.6 tracepoints tell of no reads and writes.
    let reads = tier != Tier::Tracepoint || btf.func(READ_TRACEPOINT).is_some();
    settings.talk = u32::from(reads);
    let functions = functions_for_aya(&btf, tier);
    let drop_reasons = layout::drop_reasons(&btf);
    let known = |function: &str| btf.func(function).is_some();

    let lsm_functions =
        denials::LSM_FUNCTIONS.iter().filter_map(|name| Some((btf.func(name)?, *name))).collect();
    let lsms = caps::active_modules();
    let mut ebpf = open_object(&settings, options)?;
    set_jumps(&mut ebpf)?;
    load_callable(&mut ebpf)?;
    let mut attached = HashSet::new();
    let mut probes = Vec::with_capacity(PROBES.len());
    // The state probe, the first row, goes last: no record begins before all its evidence can be had.
    for probe in PROBES.iter().cycle().skip(1).take(PROBES.len()) {
        let state = match (inactive(probe, lsms.as_deref()), probe.variant(tier)) {
            (Some(why), _) => State::NotNeeded(why),
            (None, None) => State::NotInTier,
            (None, Some(variant)) => match unneeded(probe, variant.attach, &probes, &known) {
                Some(why) => State::NotNeeded(why),
                None => {
                    let ways = probe.ways(tier);
                    let types = functions.as_ref();
                    let state =
                        attach_first(&mut ebpf, probe.name, ways, types, &settings, &known, &mut attached);
                    match state {
                        Ok(state) => state,
                        Err(error) if probe.required => return Err(error),
                        Err(error) => State::Missing(error.to_string()),
                    }
                }
            },
        };
        probes.push(Status { probe, state });
    }
    probes.rotate_right(1);
    let payload = options.payload;
    Ok(Loaded { ebpf, tier, tier_reason, probes, drop_reasons, lsm_functions, payload, modules: lsms })
}

/// Says so if a probe watches a security module that is not active.
fn inactive(probe: &Probe, lsms: Option<&[String]>) -> Option<String> {
    let module = denials::module_of(probe.name)?;
    (!lsms?.iter().any(|l| l == module)).then(|| format!("the security module {module} is not active"))
}

/// Why nothing is lost without a probe on this kernel.
fn unneeded(probe: &Probe, attach: Attach, done: &[Status], known: &dyn Fn(&str) -> bool) -> Option<String> {
    let by_name = matches!(attach, Attach::FExit(_) | Attach::KRetProbe(_) | Attach::KProbe(_));
    if by_name && denials::may_be_absent(probe.name) && !known(attach.target()) {
        return Some(format!("this kernel has no function {}", attach.target()));
    }
    if probe.name == denials::SELINUX_AVC_ENTRY {
        let whole = done.iter().any(|s| {
            s.probe.name == denials::SELINUX_AVC
                && matches!(&s.state, State::Attached(label) if label.starts_with("fexit"))
        });
        return whole.then(|| "the return brings the arguments as well".to_owned());
    }
    None
}

/// Attaches the first way that the kernel takes; the error is that of the last. `attached`: the programs that are.
fn attach_first(
    ebpf: &mut Ebpf,
    probe: &str,
    ways: impl Iterator<Item = &'static Variant>,
    functions: Option<&AyaBtf>,
    settings: &Settings,
    known: &dyn Fn(&str) -> bool,
    attached: &mut HashSet<&'static str>,
) -> Result<State> {
    let mut last = None;
    for way in ways {
        let attach = way.attach;
        // Where it finds the return value follows from the number of arguments.
        let understood = match attach {
            Attach::FExit("tcp_recvmsg") => (4..=6).contains(&settings.tcp_recv_args),
            Attach::FExit("udp_recvmsg" | "udpv6_recvmsg") => (4..=6).contains(&settings.udp_recv_args),
            Attach::FExit("avc_denied") => settings.avc_first == 0 && (8..=9).contains(&settings.avc_args),
            Attach::KProbe("avc_denied") => settings.avc_first <= 1,
            Attach::FExit("__cgroup_bpf_run_filter_sock_addr") => (4..=6).contains(&settings.sock_addr_args),
            Attach::FExit("__secure_computing") => settings.seccomp_args <= 1,
            _ => true,
        };
        let result = if attached.contains(way.program) {
            // Another row's program tells this as well.
            Ok(())
        } else if matches!(attach, Attach::FEntry(f) | Attach::FExit(f) if !known(f)) {
            Err(anyhow!("this kernel has no function {}", attach.target()))
        } else if !understood {
            Err(anyhow!("{} has arguments that are not known here", attach.target()))
        } else if probe == denials::SECCOMP {
            prepare(ebpf, way.program, attach, functions).map_err(|error| explain(&error, attach))
        } else {
            attach_one(ebpf, way.program, attach, functions).map_err(|error| explain(&error, attach))
        };
        match result {
            Ok(()) if probe == denials::SECCOMP => return Ok(State::Ready(attach.label())),
            Ok(()) => {
                attached.insert(way.program);
                return Ok(State::Attached(attach.label()));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow!("no way to attach it")))
}

/// Reads type information; a kernel's has some megabytes, so what is endless is not one.
fn read_btf(path: &Path) -> io::Result<Vec<u8>> {
    const MOST: u64 = 256 << 20;
    let file = fs::File::open(path)?;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(0).min(64 << 20);
    let mut data = Vec::with_capacity(size);
    file.take(MOST).read_to_end(&mut data)?;
    Ok(data)
}

/// Buckets for so many connections: a power of two, as the kernel side masks with it.
fn buckets(connections: u32) -> u32 {
    const WAYS: u32 = tracer_ebpf::WAYS as u32;
    (connections / WAYS).clamp(1, 1 << 20).next_power_of_two()
}

fn no_btf(path: &Path) -> String {
    format!(
        "cannot read the kernel's type information (BTF) at {}: why502 finds every kernel field through it. It \
         needs a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distribution kernels are), or a BTF \
         file for exactly this kernel given with --btf FILE",
        path.display()
    )
}

/// Address ranges, only where `kfree_skb` brings no reason.
fn symbol_ranges(btf: &Btf<'_>) -> HashMap<String, (u64, u64)> {
    if layout::has_drop_reason(btf) {
        return HashMap::new();
    }
    kallsyms::open().and_then(|table| kallsyms::ranges(table, &layout::RANGES)).unwrap_or_default()
}

fn open_object(settings: &Settings, options: &Options) -> Result<Ebpf> {
    let level: u8 = if options.debug { 5 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .override_global("SETTINGS", settings, true)
        .override_global("AYA_LOG_LEVEL", &level, true)
        .map_max_entries("EVENTS", options.ring_bytes)
        .map_max_entries("BUCKETS", settings.bucket_mask + 1)
        .map_max_entries("CONNS", options.max_connections)
        .verifier_log_level(if options.debug { VerifierLogLevel::DEBUG } else { VerifierLogLevel::STATS });
    if !options.debug {
        // Nothing is ever logged: one page instead of 128 KiB.
        loader.map_max_entries("AYA_LOGS", 4096);
    }
    loader.load(OBJECT).context(
        "the kernel did not accept why502's BPF maps. It needs CAP_BPF and CAP_PERFMON, or root (before 5.11 also \
         an unlimited locked-memory limit: ulimit -l unlimited)",
    )
}

/// Just enough type information for aya to find functions by name: every other type is a placeholder, so
/// that the ids are the kernel's.
fn functions_for_aya(btf: &Btf<'_>, tier: Tier) -> Option<AyaBtf> {
    if tier != Tier::Full {
        return None;
    }
    let mut ids: Vec<(u32, &str)> = PROBES
        .iter()
        .flat_map(|p| p.ways(tier))
        .filter_map(|v| match v.attach {
            Attach::FEntry(name) | Attach::FExit(name) => Some((btf.func(name)?, name)),
            Attach::RawTracepoint(_) | Attach::Tracepoint(..) | Attach::KProbe(_) | Attach::KRetProbe(_) => {
                None
            }
        })
        .collect();
    ids.sort_unstable();
    let mut types = AyaBtf::new();
    let mut next = 1;
    for (id, name) in ids {
        while next < id {
            types.add_type(BtfType::Unknown);
            next += 1;
        }
        let name = types.add_string(name);
        types.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Global)));
        next += 1;
    }
    Some(types)
}

/// The program that finds a process for [`ENTER_OLDER`]; both hang on no hook.
pub const FIND_PROCESS: &str = "find_process";
/// The program that enters a connection which is older than why502.
pub const ENTER_OLDER: &str = "enter_older";

/// Loads the programs that user space runs itself.
fn load_callable(ebpf: &mut Ebpf) -> Result<()> {
    for name in [FIND_PROCESS, ENTER_OLDER] {
        let program: &mut RawTracePoint = program_of(ebpf, name)
            .and_then(TryInto::try_into)
            .with_context(|| format!("the program {name}, for connections that stand already"))?;
        program.load().map_err(|error| explain(&error, Attach::RawTracepoint(name)))?;
    }
    Ok(())
}

/// Loads the programs that others go on to. The map holds them as long as this object lives.
fn set_jumps(ebpf: &mut Ebpf) -> Result<()> {
    for (index, name) in (0..).zip(["judge", "client_left", "late_end"]) {
        let what = || format!("the program {name}, to which others jump");
        let program: &mut RawTracePoint =
            program_of(ebpf, name).and_then(TryInto::try_into).with_context(what)?;
        program.load().map_err(|error| explain(&error, Attach::RawTracepoint(name)))?;
        let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?)).with_context(what)?;
        let map = ebpf.map_mut("JUMPS").context("the BPF object holds no map JUMPS")?;
        let mut jumps = ProgramArray::try_from(map).with_context(what)?;
        jumps.set(index, &fd, 0).with_context(|| format!("the kernel did not take {}", what()))?;
    }
    Ok(())
}

/// Has the kernel accept a program without attaching it yet.
fn prepare(
    ebpf: &mut Ebpf,
    name: &str,
    attach: Attach,
    functions: Option<&AyaBtf>,
) -> Result<(), ProgramError> {
    match (attach, program_of(ebpf, name)?, functions) {
        (Attach::FExit(function), Program::FExit(program), Some(types)) => program.load(function, types),
        (Attach::KRetProbe(_), Program::KProbe(program), _) => program.load(),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "not a hook on a function's return").into()),
    }
}

/// Attaches a probe that was [`Ready`](State::Ready).
///
/// # Errors
/// The kernel's refusal, in words.
pub fn attach_ready(ebpf: &mut Ebpf, tier: Tier, probe: &str) -> Result<()> {
    let ways = PROBES.iter().filter(|p| p.name == probe).flat_map(|p| p.ways(tier));
    for way in ways {
        let attached = match program_of(ebpf, way.program)? {
            Program::FExit(program) if program.fd().is_ok() => program.attach().map(drop),
            Program::KProbe(program) if program.fd().is_ok() => {
                program.attach(way.attach.target(), 0).map(drop)
            }
            _ => continue,
        };
        return attached.map_err(|error| explain(&error, way.attach));
    }
    bail!("the probe {probe} was not accepted before")
}

fn program_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramError> {
    let missing =
        || io::Error::new(io::ErrorKind::NotFound, format!("the BPF object holds no program {name}"));
    ebpf.program_mut(name).ok_or_else(|| missing().into())
}

fn attach_one(
    ebpf: &mut Ebpf,
    name: &str,
    attach: Attach,
    functions: Option<&AyaBtf>,
) -> Result<(), ProgramError> {
    let program = program_of(ebpf, name)?;
    let types = || {
        functions
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no type information for trampolines"))
    };
    match attach {
        Attach::RawTracepoint(point) => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(point)?;
        }
        Attach::Tracepoint(category, point) => {
            let program: &mut TracePoint = program.try_into()?;
            program.load()?;
            program.attach(category, point)?;
        }
        Attach::FEntry(function) => {
            let program: &mut FEntry = program.try_into()?;
            program.load(function, types()?)?;
            program.attach()?;
        }
        Attach::FExit(function) => {
            let program: &mut FExit = program.try_into()?;
            program.load(function, types()?)?;
            program.attach()?;
        }
        Attach::KProbe(function) | Attach::KRetProbe(function) => {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(function, 0)?;
        }
    }
    Ok(())
}

/// The kernel's refusal in words, with what to do next.
fn explain(error: &ProgramError, attach: Attach) -> anyhow::Error {
    let label = attach.label();
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let last: Vec<&str> = log.lines().rev().filter(|l| !l.trim().is_empty()).take(12).collect();
        let tail: Vec<&str> = last.into_iter().rev().collect();
        return if io_error.kind() == io::ErrorKind::PermissionDenied && tail.is_empty() {
            anyhow!(
                "{label}: the kernel refused the program ({io_error}); run as root or with CAP_BPF and CAP_PERFMON \
                 (-v shows the verifier's log)"
            )
        } else {
            anyhow!(
                "{label}: the kernel's verifier refused the program ({io_error}; -v shows its log) {}",
                tail.join("\n")
            )
        };
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    anyhow!("{label}: {text}")
}

/// Gives this thread a mount namespace in which tracefs is there and the kernel's type information is not.
fn private_view() -> io::Result<()> {
    // SAFETY: a plain system call; CLONE_FS first, as a mount namespace needs its own fs_struct.
    if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    mount("none", "/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    if !Path::new("/sys/kernel/tracing/events").exists() {
        mount(
            "tracefs",
            "/sys/kernel/tracing",
            Some("tracefs"),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        )?;
    }
    // Only a saving of time: if it cannot be hidden, aya reads it again.
    if Path::new(KERNEL_BTF).exists() {
        let _ = mount("none", "/sys/kernel/btf", Some("tmpfs"), libc::MS_RDONLY);
    }
    Ok(())
}

fn mount(source: &str, target: &str, kind: Option<&str>, flags: libc::c_ulong) -> io::Result<()> {
    let text = |s: &str| CString::new(s).map_err(io::Error::other);
    let (source, target) = (text(source)?, text(target)?);
    let kind = kind.map(text).transpose()?;
    // SAFETY: NUL-terminated strings that outlive the call; a null file system type is allowed for changes
    // of propagation.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ref().map_or(std::ptr::null(), |k| k.as_ptr()),
            flags,
            std::ptr::null(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

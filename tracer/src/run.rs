//! `why502 trace`: preflight, attach, the event loop, exit codes.

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::cli::{Color, Format, Kernel, Trace, Uprobes};
use tracer::{
    probes::{
        Tier,
        load::{self, Loaded, Options, State},
        uprobes::Mode,
    },
    record::{self, Target},
    report::{self, Report, Summary, json::Json, text::Text},
    session::{self, Filter, POLL, Round, Session},
    sys::caps::{self, Capability},
};
use tracer_ebpf::storm::ONE_BY_ONE;

/// Done.
pub(crate) const DONE: u8 = 0;
/// Incidents, or mistakes, were found, and `--exit-code` was given.
pub(crate) const INCIDENTS: u8 = 1;
/// Cannot attach.
const CANNOT_ATTACH: u8 = 3;
/// Events were lost, or could not be written.
pub(crate) const INCOMPLETE: u8 = 4;

/// Runs `trace`.
pub(crate) fn trace(options: &Trace) -> Result<ExitCode> {
    check_privileges()?;
    let _stats = options
        .stats
        .then(|| aya::sys::enable_stats(aya::sys::Stats::RunTime))
        .transpose()
        .context("--stats: the kernel refuses to count run times (CAP_SYS_ADMIN is needed)")?;
    if options.kernel.verbose {
        start_logger();
    }
    let loaded = load::load(&load_options(&options.kernel, options))?;
    warn_missing(&loaded);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(watch(options, loaded))
}

/// What the loader needs to know.
pub(crate) fn kernel_options(kernel: &Kernel) -> Options {
    Options {
        tier: kernel.tier.forced(),
        btf: kernel.btf.clone(),
        ring_bytes: 1 << 20,
        max_connections: 1024,
        one_by_one: ONE_BY_ONE,
        follow_new: true,
        debug: kernel.verbose,
        payload: true,
    }
}

fn load_options(kernel: &Kernel, trace: &Trace) -> Options {
    Options {
        ring_bytes: trace.ring_size,
        max_connections: trace.max_connections,
        one_by_one: trace.one_by_one,
        follow_new: trace.pids.is_empty(),
        payload: !trace.no_payload,
        ..kernel_options(kernel)
    }
}

/// Names the capabilities that are missing before the kernel says only "operation not permitted".
pub(crate) fn check_privileges() -> Result<()> {
    let host = caps::host().context("cannot read this process's privileges from /proc")?;
    if !host.initial_pid_ns {
        return Err(anyhow!(
            "why502 runs in a PID namespace of its own (a container?) and would not recognise nginx's processes; run \
             it on the host, or with the host's PID namespace (docker run --pid=host --privileged …)"
        ));
    }
    let needed = [
        (Capability::Bpf, "to load BPF programs"),
        (Capability::Perfmon, "to attach them to kernel hooks"),
        (Capability::SysPtrace, "to read nginx's executable, configuration and namespaces"),
    ];
    // CAP_SYS_ADMIN contains both BPF capabilities.
    let admin = host.effective.has(Capability::SysAdmin);
    let missing: Vec<String> = needed
        .iter()
        .filter(|(c, _)| !host.effective.has(*c) && (!admin || *c == Capability::SysPtrace))
        .map(|(c, why)| format!("{} ({why})", c.name()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(anyhow!(
        "missing privileges: {}. Run `sudo why502`, or give the program these capabilities: sudo setcap \
         cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search,cap_sys_admin,cap_net_admin+ep $(command -v why502)",
        missing.join(", ")
    ))
}

fn warn_missing(loaded: &Loaded) {
    let problems: Vec<String> = loaded
        .probes
        .iter()
        .filter_map(|status| match &status.state {
            State::Missing(why) => {
                Some(format!("hook {} is missing: {why}; lost: {}", status.probe.name, status.probe.lost))
            }
            State::Attached(_) | State::NotInTier | State::NotNeeded(_) | State::Ready(_) => None,
        })
        .collect();
    session::complain(&problems);
}

async fn watch(options: &Trace, loaded: Loaded) -> Result<ExitCode> {
    let tier = loaded.tier;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut write_out = signal(SignalKind::user_defined1()).context("cannot catch SIGUSR1")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let filter = Filter {
        pids: options.pids.clone(),
        select: options.select.with_pids(&[]),
        record: record_target(options)?,
        count: options.count,
        stats: options.stats,
        trace_rules: options.trace_rules,
        dump_records: options.dump_records.clone(),
        uprobes: Some(match options.uprobes {
            Uprobes::Auto => Mode::Auto,
            Uprobes::On => Mode::On,
            Uprobes::Off => Mode::Off,
        }),
    };
    let mut session = Session::new(
        loaded,
        filter,
        report_for(options.output),
        output(options.output, options.color),
        options.kernel.verbose,
    )?;
    let (_, masters) = session.population();
    if masters == 0 && !options.wait {
        return Err(no_nginx(&options.pids, true));
    }
    announce(&session, tier);
    let descriptor = session.wake_fd().context("cannot wait for the kernel's events")?;
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and AsyncFd owns it until the end.
    let wake = unsafe { AsyncFd::register(descriptor) }.context("cannot wait for the kernel's events")?;
    let deadline = options.duration.map(|d| Instant::now() + d);
    let mut tick = interval(POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Round::Idle;
    loop {
        tokio::select! {
            () = tokio::task::yield_now(), if next == Round::Busy => {}
            _ = tick.tick(), if next != Round::Asleep => {}
            ready = wake.readable() => ready.context("cannot wait for the kernel's events")?.clear_ready(),
            _ = write_out.recv() => {
                session.write_out();
                continue;
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = until(deadline) => break,
        }
        next = session.round()?;
        if next == Round::Done {
            break;
        }
    }
    let summary = session.finish()?;
    Ok(exit_code(&summary, options.exit_code))
}

/// Where a recording goes, if one is wanted; what is there already must not be somebody else's.
fn record_target(options: &Trace) -> Result<Option<Target>> {
    let Some(path) = &options.write else { return Ok(None) };
    let ours = options.keep.is_some()
        || record::file_of_ours(path).with_context(|| format!("cannot record to {}", path.display()))?;
    if !ours {
        return Err(anyhow!(
            "{} exists and is no recording: it is left as it is; name another file with -w",
            path.display()
        ));
    }
    Ok(Some(Target { path: path.clone(), most: options.max_size, keep: options.keep }))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The line that scripts wait for, and READY=1 under systemd.
fn announce(session: &Session<'_>, tier: Tier) {
    let (workers, masters) = session.population();
    let note = match (masters, session.older_connections()) {
        (0, _) => "; no nginx yet, waiting for one".to_owned(),
        (_, 0) => String::new(),
        (_, older) => format!("; {} that stood already", report::plural(older, "upstream connection")),
    };
    session::complain(&[format!(
        "watching {} of {} (tier {tier}){note}",
        report::plural(workers, "worker"),
        report::plural(masters, "nginx master")
    )]);
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET") {
        notify(&path);
    }
}

/// sd_notify(3): one datagram. A failure is systemd's to notice.
fn notify(path: &std::ffi::OsStr) {
    use std::os::{
        linux::net::SocketAddrExt as _,
        unix::ffi::OsStrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(b"READY=1\n", &address);
    }
}

/// Nothing to work on: what was looked for.
pub(crate) fn no_nginx(pids: &[u32], wait: bool) -> anyhow::Error {
    if pids.is_empty() {
        anyhow!(
            "no nginx is running: looked through /proc for processes that are called or titled nginx, angie, openresty \
             or tengine and whose executable is one. Start nginx, or {}",
            if wait { "wait for it with --wait" } else { "read a file with --file" }
        )
    } else {
        let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
        anyhow!(
            "no nginx has PID {}: looked at that process's title and executable. `ps -C nginx -o pid,ppid,args` lists the \
             candidates; without -p every nginx is {}",
            list.join(" or "),
            if wait { "watched" } else { "shown" }
        )
    }
}

/// What shows incidents.
pub(crate) fn report_for(format: Format) -> Box<dyn Report> {
    match format {
        Format::Json => Box::new(Json),
        Format::Text => Box::new(Text::new(terminal_width())),
    }
}

/// Columns of the terminal behind stdout.
pub(crate) fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize to the given pointer.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Where data goes.
pub(crate) fn output(format: Format, color: Color) -> Box<dyn Write> {
    if format == Format::Json {
        return Box::new(io::stdout());
    }
    let choice = match color {
        Color::Auto => anstream::AutoStream::choice(&io::stdout()),
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    };
    Box::new(anstream::AutoStream::new(io::stdout(), choice))
}

fn exit_code(summary: &Summary, wanted: bool) -> ExitCode {
    let incidents: u64 = summary.incidents.values().sum();
    ExitCode::from(if summary.lost() > 0 || summary.unrecorded {
        INCOMPLETE
    } else if wanted && incidents > 0 {
        INCIDENTS
    } else {
        DONE
    })
}

/// Prints an error with its causes; a reader that has gone away is no error.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    let output = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    let written = error.chain().any(|cause| cause.to_string().starts_with("cannot write to stdout"));
    if written && output.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::from(DONE);
    }
    session::complain(&[format!("{error:#}")]);
    ExitCode::from(if written { INCOMPLETE } else { CANNOT_ATTACH })
}

struct StderrLogger;

impl log::Log for StderrLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        session::complain(&[format!("{}: {}", record.level().as_str().to_lowercase(), record.args())]);
    }

    fn flush(&self) {}
}

/// Debug messages of aya and of the BPF programs go to stderr. (aya itself is chatty: its own stay out.)
fn start_logger() {
    static LOGGER: StderrLogger = StderrLogger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

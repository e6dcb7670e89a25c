//! The command line: parses and validates, discovers nothing.

use std::{collections::BTreeSet, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use tracer::{
    check,
    diagnose::Cause,
    errlog::Level,
    nginx::Version,
    probes::Tier,
    report::select::{Network, Select, Status},
};
use tracer_ebpf::storm::ONE_BY_ONE;

/// Explains every failed upstream connection of a live nginx, from kernel evidence.
///
/// Without a subcommand: `trace`. Needs root, or CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and
/// CAP_SYS_ADMIN (to look into network namespaces). Changes nothing on the system, unless --trace-rules is given.
#[derive(Debug, Parser)]
#[command(name = "why502", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub trace: Trace,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch nginx and explain each failed upstream connection (the default).
    Trace(Trace),
    /// Tell a recording (`trace -w FILE`) as its run was told: the same text and JSON, with the same filters. Needs no
    /// privileges, on any machine.
    Replay(Replay),
    /// Look at every running nginx without traffic: is it reloaded, what in its configuration breaks requests, can its
    /// workers reach every upstream server, what did its logs say. Changes nothing, sends no request.
    Check(Check),
    /// Compare what a run has told with nginx's own error logs, line by line: what is missing, what is too much, whose cause or
    /// request is another. Needs no privileges.
    Audit(Audit),
    /// Show the configuration as nginx runs with it: upstreams, who uses them, and every value in force with the
    /// line that it comes from.
    Config(Config),
    /// Explain a cause: what it means, how it is proven, what looks like it, fixes, wrong advice. Without a name: the
    /// list.
    Explain(Explain),
    /// Show what this kernel allows: each hook, why it cannot run, what can no longer be told.
    Doctor(Doctor),
}

/// Options of the kernel side.
#[derive(Debug, Args)]
pub(crate) struct Kernel {
    /// Hooks to use: fentry/fexit, kprobes, or tracepoints alone.
    #[arg(long, value_enum, default_value_t = TierChoice::Auto)]
    pub tier: TierChoice,
    /// Type information (BTF) of this kernel, for kernels that do not carry their own.
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Debug messages of the kernel side, and the verifier's log if a program is refused.
    #[arg(short, long)]
    pub verbose: bool,
}

/// Options of `trace`.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Only this nginx: the PID of its master, or of any of its processes. Repeatable. Default: every nginx, in
    /// any container, those started later included.
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Stop after this time, such as 30, 90s or 5m.
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Stop after this many incidents.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    #[command(flatten)]
    pub select: Selection,
    /// Record every incident that is told, as the complete case that its verdict was made of, for `why502 replay`. Nothing
    /// is recorded that text and JSON would not show.
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Most bytes of the recording, such as 64M: its older half becomes FILE.1 and is dropped when that is reached again.
    #[arg(long, value_name = "SIZE", requires = "write", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Flight recorder: hold what failed in the last minutes, such as 15m, in memory (64 MiB, or --max-size), and write it to
    /// a file named after FILE on SIGUSR1, at the end, and when an incident fits the filters (--cause and the like).
    #[arg(long, value_name = "TIME", requires = "write", value_parser = parse_duration)]
    pub keep: Option<Duration>,
    /// Wait for an nginx if none is running.
    #[arg(long)]
    pub wait: bool,
    /// Exit with 1 if there was an incident.
    #[arg(long)]
    pub exit_code: bool,
    /// Colours; `auto` follows NO_COLOR, CLICOLOR_FORCE and the terminal.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// Size of the buffer between kernel and program, KiB: a power of two from 64 to 65536.
    #[arg(long, value_name = "KIB", default_value = "1024", value_parser = parse_ring)]
    pub ring_size: u32,
    /// Most connections of all nginx that are open at a time.
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1024..=4_194_304))]
    pub max_connections: u32,
    /// Failures a second that are explained one by one. Of further ones that are equal (worker, server, error, evidence) one
    /// a second is, and the rest are counted: nothing is lost, but their requests are not named.
    #[arg(long, value_name = "N", default_value_t = ONE_BY_ONE)]
    pub one_by_one: u32,
    /// Ask nginx itself, through uprobes on its executable, what failed and for which request: what TLS and HTTP/2 hide
    /// from the kernel. `auto` where healthy requests call none of the functions, `on` at the end of every upstream
    /// attempt as well.
    #[arg(long, value_enum, default_value_t = Uprobes::Auto)]
    pub uprobes: Uprobes,
    /// Look at no byte of what failed exchanges with upstream servers said, and show none. (Authorization, cookies and the
    /// like are never shown.) Verdicts that rest on bytes are then weaker, or missing.
    #[arg(long)]
    pub no_payload: bool,
    /// When a firewall rule drops or rejects, let the kernel itself name it for the next such packet: for 10 seconds at
    /// most, a table of why502's own marks the handshakes with that one server (nftrace). The only option that changes
    /// anything on the system.
    #[arg(long)]
    pub trace_rules: bool,
    /// Let the kernel count the run time of why502's programs; the summary then tells the cost.
    #[arg(long)]
    pub stats: bool,
    /// Write every record that the kernel sends to this file, as it came, behind its length (four bytes, little-endian): for
    /// the tests of the decoder.
    #[arg(long, value_name = "FILE", hide = true)]
    pub dump_records: Option<PathBuf>,
    #[command(flatten)]
    pub kernel: Kernel,
}

/// Which incidents are told, live and from a recording.
#[derive(Debug, Args)]
#[command(next_help_heading = "Filters (of several values one must fit; of several filters each)")]
pub(crate) struct Selection {
    /// Only incidents of this cause. Repeatable.
    #[arg(long = "cause", value_name = "NAME", value_parser = Cause::from_str)]
    pub causes: Vec<Cause>,
    /// Only requests for this host, or for all below *.example.com. Repeatable.
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Only requests whose target begins so, such as /api/. Repeatable.
    #[arg(long = "uri", value_name = "PREFIX")]
    pub uris: Vec<String>,
    /// Only requests of this client, or of a network such as 10.0.0.0/8. Repeatable.
    #[arg(long = "client", value_name = "ADDRESS", value_parser = Network::from_str)]
    pub clients: Vec<Network>,
    /// Only this upstream, by its name in the configuration or a server's address. Repeatable.
    #[arg(long = "upstream", value_name = "NAME")]
    pub upstreams: Vec<String>,
    /// Only requests whose client saw this status, such as 502 or 5xx. Repeatable.
    #[arg(long = "status", value_name = "STATUS", value_parser = Status::from_str)]
    pub statuses: Vec<Status>,
}

impl Selection {
    /// The filters, with those of processes.
    pub(crate) fn with_pids(&self, pids: &[u32]) -> Select {
        Select {
            pids: pids.to_vec(),
            causes: self.causes.clone(),
            hosts: self.hosts.clone(),
            uris: self.uris.clone(),
            clients: self.clients.clone(),
            upstreams: self.upstreams.clone(),
            statuses: self.statuses.clone(),
        }
    }
}

/// Options of `replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Recordings; of one that was rotated FILE.1 comes before FILE.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Only incidents of this master or worker. Repeatable.
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Stop after this many incidents.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    #[command(flatten)]
    pub select: Selection,
    /// Show only where today's rules say something else than was said when it was recorded.
    #[arg(long)]
    pub diff: bool,
    /// Exit with 1 if there is an incident; with --diff: if one is told otherwise.
    #[arg(long)]
    pub exit_code: bool,
    /// Colours; `auto` follows NO_COLOR, CLICOLOR_FORCE and the terminal.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

/// Options of `config`.
#[derive(Debug, Args)]
pub(crate) struct Config {
    /// Only this nginx: the PID of its master, or of any of its processes. Repeatable. Default: every nginx.
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Read this file, or a dump made with `nginx -T`, instead of looking for a running nginx.
    #[arg(long, value_name = "PATH", conflicts_with = "pids")]
    pub file: Option<PathBuf>,
    /// The version whose defaults hold for --file. Default: that of the nginx that is installed.
    #[arg(long, value_name = "VERSION", requires = "file")]
    pub nginx_version: Option<Version>,
    /// Show the directives that nothing sets as well, with their defaults. (JSON always has them.)
    #[arg(long)]
    pub all: bool,
    /// Colours; `auto` follows NO_COLOR, CLICOLOR_FORCE and the terminal.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Only this nginx: the PID of its master, or of any of its processes. Repeatable. Default: every nginx.
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Look at this file, or a dump made with `nginx -T`, alone: no process, no log and no server is looked at.
    #[arg(long, value_name = "PATH", conflicts_with = "pids")]
    pub file: Option<PathBuf>,
    /// The version whose defaults hold for --file. Default: that of the nginx that is installed.
    #[arg(long, value_name = "VERSION", requires = "file")]
    pub nginx_version: Option<Version>,
    /// Leave out findings of this name. Repeatable.
    #[arg(long, value_name = "NAME", value_parser = parse_finding)]
    pub ignore: Vec<String>,
    /// How long one server may take to answer.
    #[arg(long, value_name = "TIME", default_value = "3", value_parser = parse_duration)]
    pub timeout: Duration,
    /// How long asking all servers of one nginx may take.
    #[arg(long, value_name = "TIME", default_value = "30", value_parser = parse_duration)]
    pub total: Duration,
    /// Most connections at a time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub parallel: u16,
    /// List what can be found, by the names that --ignore takes.
    #[arg(long, exclusive = true)]
    pub list: bool,
    /// Exit with 1 if anything was found.
    #[arg(long)]
    pub exit_code: bool,
    /// Colours; `auto` follows NO_COLOR, CLICOLOR_FORCE and the terminal.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

/// Options of `audit`.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// What `why502 -o json` has written; - is stdin.
    #[arg(value_name = "INCIDENTS")]
    pub incidents: PathBuf,
    /// The error logs of that nginx, rotated pieces included; - is stdin.
    #[arg(value_name = "LOG", required = true)]
    pub logs: Vec<PathBuf>,
    /// An access log that tells which servers answered with 5xx themselves, written with log_format NAME
    /// '$msec|$pid|$request_uri|$upstream_addr|$upstream_status|$upstream_header_time|$request_time'. Repeatable.
    #[arg(long, value_name = "LOG")]
    pub access: Vec<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// How far the error logs' clock is ahead of UTC, such as +02:00. Default: what makes most incidents fit, else this
    /// machine's.
    #[arg(long, value_name = "OFFSET", value_parser = parse_offset, allow_hyphen_values = true)]
    pub utc_offset: Option<i64>,
    /// Level of the error logs. Default: the lowest that they show.
    #[arg(long, value_name = "LEVEL", value_parser = Level::from_str)]
    pub level: Option<Level>,
    /// How many of each kind are listed. (JSON always has them all.)
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub list: usize,
    /// Exit with 1 if the two do not agree.
    #[arg(long)]
    pub exit_code: bool,
    /// Colours; `auto` follows NO_COLOR, CLICOLOR_FORCE and the terminal.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

/// What `explain` explains.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Explained {
    /// Why requests fail.
    Cause(Cause),
    /// Something that a check finds, by its name.
    Finding(&'static str),
}

/// A cause's name wins: findings that are causes have the cause's page. A wrong name is answered with the nearest.
fn explained(text: &str) -> Result<Explained, String> {
    if let Some(cause) = Cause::ALL.iter().find(|cause| cause.name() == text) {
        return Ok(Explained::Cause(*cause));
    }
    if let Some((name, _)) = check::names().find(|(name, _)| *name == text) {
        return Ok(Explained::Finding(name));
    }
    let near = nearest(text);
    Err(if near.is_empty() {
        format!("nothing is called {text}; `why502 explain` and `why502 check --list` list the names")
    } else {
        format!("nothing is called {text}; did you mean {}?", near.join(", "))
    })
}

/// The names that share a word with a text, or differ from it by a few letters: the nearest first, four at most.
fn nearest(text: &str) -> Vec<&'static str> {
    const MOST: usize = 4;
    let text = text.to_ascii_lowercase();
    let text = text.get(..64).unwrap_or(&text);
    let shares = |name: &str| {
        text.split('-').any(|word| word.len() > 3 && name.split('-').any(|own| own == word))
            || (text.len() > 3 && name.contains(text))
    };
    let names: BTreeSet<&'static str> =
        Cause::ALL.iter().map(|cause| cause.name()).chain(check::names().map(|(name, _)| name)).collect();
    let mut found: Vec<(usize, &'static str)> = names
        .into_iter()
        .map(|name| (distance(name, text), name))
        .filter(|(far, name)| *far <= text.len() / 4 || shares(name))
        .collect();
    found.sort_unstable();
    found.into_iter().take(MOST).map(|(_, name)| name).collect()
}

/// Letters to insert, leave out or change (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (number, a) in one.chars().enumerate() {
        let mut next = vec![number + 1];
        for ((b, above), diagonal) in other.chars().zip(row.iter().skip(1)).zip(&row) {
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(a != b)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The cause, by the name that an incident gives it, or a finding of `why502 check`.
    #[arg(value_name = "NAME", value_parser = explained)]
    pub name: Option<Explained>,
    /// Colours; `auto` follows NO_COLOR, CLICOLOR_FORCE and the terminal.
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub kernel: Kernel,
}

/// `--tier`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TierChoice {
    /// The best that the kernel allows.
    Auto,
    /// fentry/fexit.
    Full,
    /// kprobes.
    Kprobe,
    /// Tracepoints and raw tracepoints.
    Tracepoint,
}

impl TierChoice {
    pub(crate) fn forced(self) -> Option<Tier> {
        match self {
            TierChoice::Auto => None,
            TierChoice::Full => Some(Tier::Full),
            TierChoice::Kprobe => Some(Tier::Kprobe),
            TierChoice::Tracepoint => Some(Tier::Tracepoint),
        }
    }
}

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `--uprobes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Uprobes {
    /// Functions that healthy requests do not call, where the executable can be probed.
    Auto,
    /// Also one that every upstream attempt ends with, for logs that hide errors; says why if it cannot.
    On,
    /// Never.
    Off,
}

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// If stdout is a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text} is no time: write seconds, or a number with s, m or h");
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit @ ('s' | 'm' | 'h'))) => (text.get(..at).unwrap_or_default(), unit),
        _ => (text, 's'),
    };
    let seconds: f64 = number.parse().map_err(|_| bad())?;
    let factor = match unit {
        'm' => 60.0,
        'h' => 3600.0,
        _ => 1.0,
    };
    Duration::try_from_secs_f64(seconds * factor)
        .map_err(|_| bad())
        .and_then(|d| if d.is_zero() { Err(bad()) } else { Ok(d) })
}

/// A size in bytes, or with K, M or G; at least 64 KiB, which hold some incidents.
fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text} is no size of 64K or more: write bytes, or a number with K, M or G");
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at).unwrap_or_default(), 1_u64 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at).unwrap_or_default(), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at).unwrap_or_default(), 1 << 30),
        _ => (text, 1),
    };
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(bad)?;
    if size < 64 << 10 { Err(bad()) } else { Ok(size) }
}

/// `+02:00`, `-0330`, `+2`, `Z`, as seconds.
fn parse_offset(text: &str) -> Result<i64, String> {
    let bad = || format!("{text} is no offset: write Z, or a sign with hours and minutes, such as +02:00");
    if text == "Z" {
        return Ok(0);
    }
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(bad()),
    };
    let digits = rest.replacen(':', "", 1);
    let (hours, minutes) = match digits.len() {
        1 | 2 => (digits.as_str(), "0"),
        4 => digits.split_at_checked(2).ok_or_else(bad)?,
        _ => return Err(bad()),
    };
    let number = |text: &str, most: u8| {
        text.parse::<u8>()
            .ok()
            .filter(|n| *n <= most && !text.starts_with('+'))
            .map(i64::from)
            .ok_or_else(bad)
    };
    Ok(sign * (number(hours, 14)? * 3600 + number(minutes, 59)? * 60))
}

/// A name that a finding can have.
fn parse_finding(text: &str) -> Result<String, String> {
    let names: Vec<&str> = check::names().map(|(name, _)| name).collect();
    if names.contains(&text) {
        return Ok(text.to_owned());
    }
    let shares =
        |name: &&&str| text.split('-').any(|word| word.len() > 2 && name.split('-').any(|own| own == word));
    let near: Vec<&str> = names.iter().filter(shares).copied().collect();
    Err(if near.is_empty() {
        format!("no finding is called {text}; `why502 check --list` lists them")
    } else {
        format!("no finding is called {text}; did you mean {}?", near.join(", "))
    })
}

fn parse_ring(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (64..=65536).contains(&kib) => Ok(kib * 1024),
        _ => Err(format!("{text} is no power of two from 64 to 65536 (KiB)")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn explains_causes_and_findings_and_suggests_the_nearest() {
        assert!(matches!(explained("unix-missing"), Ok(Explained::Cause(Cause::UnixMissing))));
        assert!(matches!(explained("tls-to-port-80"), Ok(Explained::Finding("tls-to-port-80"))));
        for (name, _) in check::names() {
            assert!(explained(name).is_ok(), "{name}");
        }
        assert_eq!(nearest("keepalive-without-http11").first(), Some(&"keepalive-without-effect"));
        assert_eq!(nearest("connect-refused-no-listner").first(), Some(&"connect-refused-no-listener"));
        assert_eq!(nearest("unxi-missing").first(), Some(&"unix-missing"));
        assert!(nearest("selinux").contains(&"blocked-selinux"));
        assert_eq!(nearest("xyzzy"), Vec::<&str>::new());
        assert_eq!(nearest("\u{e9}"), Vec::<&str>::new());
        assert_eq!((distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")), (3, 0, 3));
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "0", "-1", "1d", "1e999", "é"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_sizes() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("65536"), Ok(64 << 10));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        for bad in ["", "M", "1K", "-1", "1.5M", "99999999999G", "é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_offsets() {
        for (text, seconds) in
            [("Z", 0), ("+02:00", 7200), ("-0330", -12_600), ("+2", 7200), ("+14", 50_400), ("-00:00", 0)]
        {
            assert_eq!(parse_offset(text), Ok(seconds), "{text}");
        }
        for bad in ["", "+", "2", "+15:00", "+02:60", "+2:3", "+é1", "++1", "+-1:00", "CET"] {
            assert!(parse_offset(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_ring_sizes() {
        assert_eq!(parse_ring("1024"), Ok(1 << 20));
        assert!(parse_ring("1000").is_err());
        assert!(parse_ring("32").is_err());
    }
}

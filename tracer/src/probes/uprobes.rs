//! Uprobes: what nginx itself says of failures, where its executable can be read.
//!
//! A uprobe belongs to a file and costs every process that runs it; the kernel side looks at watched ones only. By
//! default only functions are probed that healthy requests do not call.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use aya::{
    Ebpf,
    programs::{
        UProbe,
        uprobe::{UProbeLinkId, UProbeScope},
    },
};
use thiserror::Error;
use tracer_ebpf::said::Layout;

use crate::{
    nginx::symbols::{Function, SymbolError, Symbols, symbols},
    sys::proc,
};

/// What is read of an executable, bytes.
const MOST: usize = 64 << 20;

/// `--uprobes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What costs healthy requests nothing, where it can be had.
    Auto,
    /// All, and it is an error that is told if it cannot be had.
    On,
    /// None.
    Off,
}

/// A function that is probed.
struct Row {
    program: &'static str,
    symbol: &'static str,
    function: fn(&Symbols) -> Option<Function>,
    when: When,
}

/// When a function is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Always.
    Always,
    /// Where a log hides errors: else what it tells is told by the log's own function as well.
    Hidden,
    /// Only with [`Mode::On`]: healthy requests call it.
    Hot,
}

const ROWS: &[Row] = &[
    Row { program: "nginx_logs", symbol: "ngx_log_error_core", function: |s| s.log, when: When::Always },
    Row {
        program: "nginx_answers",
        symbol: "ngx_http_special_response_handler",
        function: |s| s.answers,
        when: When::Always,
    },
    Row {
        program: "nginx_connection_error",
        symbol: "ngx_connection_error",
        function: |s| s.connection_error,
        when: When::Hidden,
    },
    Row {
        program: "nginx_frees_peer",
        symbol: "ngx_http_upstream_free_round_robin_peer",
        function: |s| s.free_peer,
        when: When::Hot,
    },
];

/// What they tell, for `doctor`.
pub const TELLS: &str = "what failed inside TLS, and the request, server and location of a failed attempt, for clients of any protocol";
/// What is missing without them.
pub const LOST: &str =
    "requests for which nginx tried no server, the status of its own pages, and what TLS to a server hides";

/// Why there are none.
#[derive(Debug, Error)]
pub enum UprobeError {
    /// The executable cannot be read.
    #[error("cannot read the executable: {0}")]
    Read(#[from] io::Error),
    /// It is not one that can be probed.
    #[error(transparent)]
    Symbols(#[from] SymbolError),
    /// The kernel refuses.
    #[error("{symbol}: {text}")]
    Attach {
        /// The function.
        symbol: &'static str,
        /// The kernel's words.
        text: String,
    },
}

/// A file, by device and inode.
pub type File = (u64, u64);

/// An executable that is probed; [`detach`] ends it.
#[derive(Debug)]
pub struct Attached {
    /// The functions that are probed.
    pub functions: Vec<&'static str>,
    /// Those that are left out, and why.
    pub left_out: Vec<String>,
    links: Vec<(&'static str, UProbeLinkId)>,
    /// Errors that no log shows are told as well.
    pub hidden: bool,
}

/// The executable of a process.
///
/// # Errors
/// If the process is gone.
pub fn file_of(pid: u32) -> io::Result<File> {
    fs::metadata(format!("/proc/{pid}/exe")).map(|m| (m.dev(), m.ino()))
}

/// Not its path: that may lead to another file by now, or into another mount namespace.
fn path_of(pid: u32) -> String {
    format!("/proc/{pid}/exe")
}

/// Reads the executable of a process.
///
/// # Errors
/// [`UprobeError`]: nothing of its memory is understood then.
pub fn read(pid: u32) -> Result<Symbols, UprobeError> {
    Ok(symbols(&proc::read_up_to(path_of(pid), MOST)?)?)
}

/// Where the fields lie that the kernel side reads.
#[must_use]
pub fn layout(symbols: &Symbols) -> Layout {
    Layout { upstream: symbols.upstream, host: symbols.host, start_sec: symbols.start_sec, _pad: 0 }
}

/// Probes the executable of a process, for all processes that run it. `hidden`: a log hides errors.
///
/// # Errors
/// [`UprobeError`]; nothing is attached then.
pub fn attach(
    ebpf: &mut Ebpf,
    pid: u32,
    symbols: &Symbols,
    mode: Mode,
    hidden: bool,
) -> Result<Attached, UprobeError> {
    let path = path_of(pid);
    let hidden = hidden || mode == Mode::On;
    let mut attached = Attached { functions: Vec::new(), left_out: Vec::new(), links: Vec::new(), hidden };
    let wanted = |row: &&Row| match row.when {
        When::Always => true,
        When::Hidden => hidden,
        When::Hot => mode == Mode::On,
    };
    for row in ROWS.iter().filter(wanted) {
        let Some(function) = (row.function)(symbols) else {
            attached.left_out.push(format!("{}: not exported", row.symbol));
            continue;
        };
        if row.when == When::Hot && !function.cheap {
            attached.left_out.push(format!(
                "{}: this build begins it with an instruction that the kernel cannot emulate, so that every upstream \
                 connection would cost 20 microseconds",
                row.symbol
            ));
            continue;
        }
        match attach_one(ebpf, row.program, function.offset, &path) {
            Ok(link) => {
                attached.functions.push(row.symbol);
                attached.links.push((row.program, link));
            }
            Err(text) => {
                detach(ebpf, attached);
                return Err(UprobeError::Attach { symbol: row.symbol, text });
            }
        }
    }
    Ok(attached)
}

/// Ends the probes of an executable.
pub fn detach(ebpf: &mut Ebpf, attached: Attached) {
    for (program, link) in attached.links {
        let program: Option<&mut UProbe> = ebpf.program_mut(program).and_then(|p| p.try_into().ok());
        if let Some(program) = program {
            // It ends with the link's descriptor at the latest.
            let _ = program.detach(link);
        }
    }
}

fn attach_one(ebpf: &mut Ebpf, name: &str, offset: u64, path: &str) -> Result<UProbeLinkId, String> {
    let program = ebpf.program_mut(name).ok_or("the BPF object holds no such program")?;
    let program: &mut UProbe = program.try_into().map_err(|error| words(&error))?;
    if program.fd().is_err() {
        program.load().map_err(|error| words(&error))?;
    }
    program.attach(offset, path, UProbeScope::AllProcesses).map_err(|error| words(&error))
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

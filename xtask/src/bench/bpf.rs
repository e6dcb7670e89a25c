//! Raw bpf() calls: run-time counting, reading other programs' counters, attaching empty programs.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

// Commands and program types of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_ENABLE_STATS: libc::c_long = 32;
const BPF_PROG_TYPE_TRACEPOINT: u32 = 5;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

// include/uapi/linux/perf_event.h
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// Where the kernel's trace events are, or get mounted.
pub(crate) const TRACEFS: &str = "/sys/kernel/tracing";

/// `r0 = 0; exit`.
const RETURN_ZERO: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

#[repr(C)]
struct GetFdById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    len: u32,
    info: u64,
}

#[repr(C)]
struct EnableStats {
    kind: u32,
}

/// `struct bpf_prog_info` up to `verified_insns` (5.16+); what lies between the used fields is not named.
#[repr(C)]
struct RawInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    unused: [u64; 5],
    name: [u8; 16],
    unused2: [u64; 14],
    run_time_ns: u64,
    run_cnt: u64,
    recursion_misses: u64,
    verified_insns: u64,
}

const _: () = {
    assert!(std::mem::offset_of!(RawInfo, name) == 64);
    assert!(std::mem::offset_of!(RawInfo, run_time_ns) == 192);
    assert!(size_of::<RawInfo>() == 224);
};

/// The start of `struct perf_event_attr` (PERF_ATTR_SIZE_VER0, 64 bytes).
#[repr(C)]
#[derive(Default)]
struct PerfAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample: [u64; 2],
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

const _: () = assert!(size_of::<PerfAttr>() == 64);

/// How often a program ran, and for how long.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Runs.
    pub runs: u64,
    /// Their total time, ns, the two readings of the clock included.
    pub ns: u64,
}

impl Cost {
    /// What was added since `earlier`.
    pub(crate) fn since(self, earlier: Cost) -> Cost {
        Cost { runs: self.runs.saturating_sub(earlier.runs), ns: self.ns.saturating_sub(earlier.ns) }
    }

    /// Mean run, ns; None without a run.
    pub(crate) fn mean(self) -> Option<f64> {
        (self.runs > 0).then(|| self.ns as f64 / self.runs as f64)
    }
}

/// Name, machine code size and counters of a loaded program.
#[derive(Debug)]
pub(crate) struct Info {
    /// Up to 15 bytes of the program's name.
    pub name: String,
    /// Size of the machine code, bytes.
    pub jited_bytes: u32,
    /// Instructions that the verifier walked through; 0 before 5.16.
    pub verified: u32,
    /// Counters.
    pub cost: Cost,
}

/// Where a program is attached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hook {
    /// A raw tracepoint.
    RawTracepoint(String),
    /// A trace event, through perf_event_open.
    TraceEvent(String),
}

impl Hook {
    /// Short label.
    pub(crate) fn label(&self) -> String {
        match self {
            Hook::RawTracepoint(name) => format!("raw_tp:{name}"),
            Hook::TraceEvent(name) => format!("tp:{name}"),
        }
    }
}

/// An attached program that does nothing; dropping it detaches it.
#[derive(Debug)]
pub(crate) struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Loads and attaches.
    pub(crate) fn attach(hook: &Hook) -> Result<Self> {
        let done = match hook {
            Hook::RawTracepoint(name) => at_raw_tracepoint(name),
            Hook::TraceEvent(name) => at_trace_event(name),
        };
        done.with_context(|| format!("cannot attach an empty program to {}", hook.label()))
    }

    /// Its counters.
    pub(crate) fn cost(&self) -> Result<Cost> {
        Ok(info(&self.program)?.cost)
    }
}

fn at_raw_tracepoint(name: &str) -> Result<Empty> {
    let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT)?;
    let name = std::ffi::CString::new(name)?;
    let open = RawTracepointOpen { name: name.as_ptr() as u64, prog_fd: program.as_raw_fd() as u32, pad: 0 };
    let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open)?;
    Ok(Empty { program, _link: link })
}

fn at_trace_event(name: &str) -> Result<Empty> {
    let program = load(BPF_PROG_TYPE_TRACEPOINT)?;
    let attr = PerfAttr {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<PerfAttr>() as u32,
        config: event_id(name)?,
        wakeup_events: 1,
        ..PerfAttr::default()
    };
    // A program at a trace event runs on every CPU, whichever the event is opened for.
    let (process, cpu, group) = (-1, 0, -1);
    // SAFETY: `attr` is a live perf_event_attr of the size that it states; the kernel only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(&attr),
            process,
            cpu,
            group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let event = owned(fd).context("perf_event_open")?;
    // SAFETY: both descriptors are open; the argument of this request is a descriptor, not a pointer.
    let set = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()) };
    if set != 0 {
        return Err(io::Error::last_os_error()).context("PERF_EVENT_IOC_SET_BPF");
    }
    // SAFETY: as above; this request takes no argument.
    if unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) } != 0 {
        return Err(io::Error::last_os_error()).context("PERF_EVENT_IOC_ENABLE");
    }
    Ok(Empty { program, _link: event })
}

/// The number of a trace event, whatever its category.
fn event_id(name: &str) -> Result<u64> {
    let categories = fs::read_dir(format!("{TRACEFS}/events")).context("tracefs is not mounted")?;
    for category in categories {
        let file: PathBuf = category?.path().join(name).join("id");
        if let Ok(text) = fs::read_to_string(&file) {
            return text.trim().parse().with_context(|| format!("{} holds no number", file.display()));
        }
    }
    bail!("{TRACEFS}/events has no {name}")
}

fn load(kind: u32) -> Result<OwnedFd> {
    let license = c"GPL";
    let mut prog_name = [0; 16];
    prog_name[..11].copy_from_slice(b"bench_empty");
    let attr = ProgLoad {
        prog_type: kind,
        insn_cnt: RETURN_ZERO.len() as u32,
        insns: RETURN_ZERO.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        ..ProgLoad::default()
    };
    bpf(BPF_PROG_LOAD, &attr).context("cannot load an empty BPF program")
}

/// Lets the kernel count the run times of all programs for as long as the descriptor is open (5.8+).
pub(crate) fn enable_stats() -> Result<OwnedFd> {
    bpf(BPF_ENABLE_STATS, &EnableStats { kind: 0 }).context("the kernel refuses to count BPF run times")
}

/// Opens a program by its number.
pub(crate) fn program(id: u32) -> Result<OwnedFd> {
    let attr = GetFdById { id, next_id: 0, open_flags: 0 };
    bpf(BPF_PROG_GET_FD_BY_ID, &attr).with_context(|| format!("cannot open BPF program {id}"))
}

/// Asks for a program's description.
pub(crate) fn info(program: &OwnedFd) -> Result<Info> {
    // Zeroes ask the kernel for no arrays.
    let mut raw = RawInfo {
        kind: 0,
        id: 0,
        tag: [0; 8],
        jited_len: 0,
        xlated_len: 0,
        unused: [0; 5],
        name: [0; 16],
        unused2: [0; 14],
        run_time_ns: 0,
        run_cnt: 0,
        recursion_misses: 0,
        verified_insns: 0,
    };
    let attr = GetInfo {
        fd: program.as_raw_fd() as u32,
        len: size_of::<RawInfo>() as u32,
        info: std::ptr::from_mut(&mut raw) as u64,
    };
    // SAFETY: `attr` is initialised and its size is passed along; the kernel writes at most `len` bytes to
    // `raw`, which outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, std::ptr::from_ref(&attr), size_of::<GetInfo>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("BPF_OBJ_GET_INFO_BY_FD");
    }
    let end = raw.name.iter().position(|b| *b == 0).unwrap_or(raw.name.len());
    Ok(Info {
        name: String::from_utf8_lossy(&raw.name[..end]).into_owned(),
        jited_bytes: raw.jited_len,
        // The word's second half is padding.
        verified: raw.verified_insns as u32,
        cost: Cost { runs: raw.run_cnt, ns: raw.run_time_ns },
    })
}

/// A bpf() command that returns a descriptor.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a live, initialised repr(C) prefix of union bpf_attr, its size is passed along, and
    // the pointers in it outlive the call; the kernel only reads.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call succeeded and returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_subtract_and_average() {
        let cost = Cost { runs: 30, ns: 3000 }.since(Cost { runs: 10, ns: 1000 });
        assert_eq!(cost.mean(), Some(100.0));
        assert_eq!(Cost::default().mean(), None);
    }
}

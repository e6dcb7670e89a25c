//! Asking the kernel what it allows, before anything is attached.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use aya::programs::Program;
use aya_obj::generated::bpf_prog_info;

use super::Tier;
use crate::sys::btf::Btf;

/// The function whose trampoline is tried: every tier needs it, and it is cold.
pub const TRIAL: &str = "__sys_connect";

/// `union bpf_attr` for BPF_PROG_LOAD, as far as it is used (include/uapi/linux/bpf.h).
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
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    _pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    _pad: u32,
}

/// `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_FEXIT: u32 = 25;

/// `r0 = 0; exit`: the smallest program that a return trampoline takes.
const RETURN_ZERO: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

/// Tries a trivial fexit program: loads and attaches it, then takes it away again.
///
/// # Errors
/// The kernel's answer; `NotFound` if its type information has no [`TRIAL`].
pub fn trampolines(btf: &Btf<'_>) -> io::Result<()> {
    let id = btf.func(TRIAL).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("the kernel's type information has no {TRIAL}"))
    })?;
    let license = c"Dual MIT/GPL";
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_TRACING,
        insn_cnt: RETURN_ZERO.len() as u32,
        insns: RETURN_ZERO.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: BPF_TRACE_FEXIT,
        attach_btf_id: id,
        ..ProgLoad::default()
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let open = RawTracepointOpen { name: 0, prog_fd: program.as_raw_fd() as u32, _pad: 0 };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &open).map(drop)
}

/// True if the kernel has kprobes (a perf event source of that name).
#[must_use]
pub fn kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
}

/// The best tier that the kernel allows, and why it is not the full one.
#[must_use]
pub fn best_tier(btf: &Btf<'_>) -> (Tier, Option<String>) {
    match trampolines(btf) {
        Ok(()) => (Tier::Full, None),
        Err(error) => {
            let why = format!("fentry/fexit programs are refused ({error})");
            if kprobes() {
                (Tier::Kprobe, Some(why))
            } else {
                (Tier::Tracepoint, Some(format!("{why}; kprobes are not compiled in")))
            }
        }
    }
}

/// Runs of a program that the kernel skipped because it was running on that CPU already; None if it is not loaded
/// or the kernel does not tell.
#[must_use]
pub fn skipped_runs(program: &Program) -> Option<u64> {
    let fd = program.fd().ok()?.as_fd();
    // SAFETY: integers and pointers as integers; zero is valid for all of them.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let query = InfoByFd {
        fd: u32::try_from(fd.as_raw_fd()).ok()?,
        len: u32::try_from(size_of::<bpf_prog_info>()).ok()?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `query` is an initialised repr(C) prefix of union bpf_attr; the kernel writes at most `len` bytes
    // to `info`, which lives until the end of this function.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            std::ptr::from_ref(&query),
            size_of::<InfoByFd>(),
        )
    };
    (result == 0).then_some(info.recursion_misses)
}

/// Runs a raw tracepoint program once, in this thread, with these arguments (twelve at most), and gives its return value. No
/// tracepoint needs to fire for it (Linux 5.10).
///
/// # Errors
/// The kernel's answer.
pub fn run(program: &Program, arguments: &[u64]) -> io::Result<u32> {
    let fd = program.fd().map_err(io::Error::other)?.as_fd();
    let mut attr = TestRun {
        prog_fd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
        ctx_size_in: u32::try_from(size_of_val(arguments)).map_err(io::Error::other)?,
        ctx_in: arguments.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: `attr` is a live, initialised repr(C) prefix of union bpf_attr, into which the kernel writes `retval`; it reads
    // `ctx_size_in` bytes of `arguments`, which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if result == 0 { Ok(attr.retval) } else { Err(io::Error::last_os_error()) }
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a live, initialised repr(C) prefix of union bpf_attr, its size is passed along, and
    // the pointers in it outlive the call; the kernel only reads.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call succeeded and returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! Blockers of the real world, made by hand: a system call filter or a Landlock ruleset around a program, a BPF LSM
//! program, programs of a cgroup. Each is as small as it can be, and goes away with its process or cgroup.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::sys;

/// No case takes as long.
const HELD: Duration = Duration::from_secs(3600);

/// `faultlab refuse …`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum What {
    /// Run a program with a system call filter that answers one system call with an error
    Seccomp {
        /// `socket` or `connect`
        #[arg(long)]
        call: String,
        /// Only for this first argument (socket: the address family)
        #[arg(long)]
        first: Option<u32>,
        #[arg(long)]
        errno: u16,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a program that may not connect by TCP (Linux 6.7)
    Landlock {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Attach a program to a cgroup; it stays until the cgroup goes
    Cgroup {
        /// `connect4`, `connect6`, `sock-create` or `egress` (of every port but 8080)
        #[arg(long)]
        kind: String,
        #[arg(long)]
        cgroup: PathBuf,
        #[arg(long, default_value = "lab_refuse")]
        name: String,
    },
    /// Attach a BPF LSM program that refuses a hook to one process; it stays until this process ends
    BpfLsm {
        /// Such as `socket_connect`
        #[arg(long)]
        hook: String,
        #[arg(long)]
        pid: u32,
        #[arg(long)]
        errno: u16,
        #[arg(long, default_value = "lab_refuse")]
        name: String,
        /// Is written once the program is attached
        #[arg(long)]
        ready: PathBuf,
    },
}

pub(crate) fn run(what: &What) -> Result<()> {
    match what {
        What::Seccomp { call, first, errno, command } => {
            filter(call, *first, *errno)?;
            exec(command)
        }
        What::Landlock { command } => {
            landlock()?;
            exec(command)
        }
        What::Cgroup { kind, cgroup, name } => attach_to_cgroup(kind, cgroup, name),
        What::BpfLsm { hook, pid, errno, name, ready } => {
            let _link = bpf_lsm(hook, *pid, *errno, name)?;
            std::fs::write(ready, "").context("cannot say that the program is attached")?;
            // The link goes with this process, which the end of the case interrupts.
            sys::poll_until(HELD, || false);
            Ok(())
        }
    }
}

/// True if Landlock restricts TCP here.
pub(crate) fn has_landlock_tcp() -> bool {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: a null attribute with this flag asks for the version.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    abi >= 4
}

/// True if a program can be attached to a cgroup of the second version, and where these are.
pub(crate) fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })?;
    load(CGROUP_SKB, EGRESS, 0, "lab_try", &[mov(1), EXIT]).ok().map(|_| place)
}

fn exec(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("name a program")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {program}"))
}

fn checked(result: libc::c_long, what: &str) -> Result<libc::c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| what.to_owned());
    }
    Ok(result)
}

fn no_new_privileges() -> Result<()> {
    // SAFETY: integers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    checked(result.into(), "cannot set no_new_privs").map(drop)
}

/// Classic BPF over `struct seccomp_data`: the number at 0, the first argument at 16.
fn filter(call: &str, first: Option<u32>, errno: u16) -> Result<()> {
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    let nr = match call {
        "socket" => libc::SYS_socket,
        "connect" => libc::SYS_connect,
        other => bail!("no filter for {other}"),
    };
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut code = vec![op(LOAD, 0, 0, 0)];
    code.push(op(IF_EQUAL, 0, if first.is_some() { 3 } else { 1 }, u32::try_from(nr)?));
    if let Some(first) = first {
        code.push(op(LOAD, 0, 0, 16));
        code.push(op(IF_EQUAL, 0, 1, first));
    }
    code.push(op(RETURN, 0, 0, ERRNO | u32::from(errno)));
    code.push(op(RETURN, 0, 0, ALLOW));
    let program = libc::sock_fprog { len: u16::try_from(code.len())?, filter: code.as_mut_ptr() };
    no_new_privileges()?;
    // SAFETY: the program and its code outlive the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    checked(result.into(), "the kernel does not take the system call filter").map(drop)
}

/// A ruleset that handles TCP connects and allows none.
fn landlock() -> Result<()> {
    const CONNECT_TCP: u64 = 1 << 1;
    // handled_access_fs, handled_access_net (include/uapi/linux/landlock.h).
    let attributes = [0_u64, CONNECT_TCP];
    // SAFETY: the attributes outlive the call; the size is theirs.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            attributes.as_ptr(),
            size_of_val(&attributes),
            0_usize,
        )
    };
    let fd = owned(checked(result, "no Landlock with rules for TCP")?)?;
    no_new_privileges()?;
    // SAFETY: a descriptor and no flags.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0_usize) };
    checked(result, "cannot restrict this process").map(drop)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    // SAFETY: the kernel has just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

// include/uapi/linux/bpf.h
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const CGROUP_SKB: u32 = 8;
const CGROUP_SOCK: u32 = 9;
const CGROUP_SOCK_ADDR: u32 = 18;
const LSM: u32 = 29;
const EGRESS: u32 = 1;
const SOCK_CREATE: u32 = 2;
const CONNECT4: u32 = 10;
const CONNECT6: u32 = 11;
const LSM_MAC: u32 = 27;
const ALLOW_MULTI: u32 = 2;

/// `code | dst << 8 | src << 12 | offset << 16 | imm << 32`.
const fn op(code: u8, dst_src: u8, offset: i16, imm: i32) -> u64 {
    code as u64
        | (dst_src as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (imm.cast_unsigned() as u64) << 32
}

/// `r0 = value`.
const fn mov(value: i32) -> u64 {
    op(0xb7, 0, 0, value)
}

const EXIT: u64 = op(0x95, 0, 0, 0);

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a prefix of union bpf_attr that lives until the call is over, and so do the places that it
    // points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[repr(C)]
#[derive(Default)]
struct Load {
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
}

fn load(kind: u32, attach: u32, btf_id: u32, name: &str, code: &[u64]) -> Result<OwnedFd> {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid structure; before 5.11 programs count as locked memory.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    let license = c"GPL";
    let mut prog_name = [0; 16];
    ensure!(name.len() < 16, "the name {name} is too long");
    prog_name[..name.len()].copy_from_slice(name.as_bytes());
    let attr = Load {
        prog_type: kind,
        insn_cnt: u32::try_from(code.len())?,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name,
        expected_attach_type: attach,
        attach_btf_id: btf_id,
        ..Load::default()
    };
    owned(bpf(PROG_LOAD, &attr).context("the kernel does not take the program")?)
}

fn attach_to_cgroup(kind: &str, cgroup: &Path, name: &str) -> Result<()> {
    let (kind, attach, code) = match kind {
        "connect4" => (CGROUP_SOCK_ADDR, CONNECT4, vec![mov(0), EXIT]),
        "connect6" => (CGROUP_SOCK_ADDR, CONNECT6, vec![mov(0), EXIT]),
        "sock-create" => (CGROUP_SOCK, SOCK_CREATE, vec![mov(0), EXIT]),
        "egress" => {
            // r0 = __sk_buff.local_port; let nginx's own clients have their answers.
            let load_port = op(0x61, 0x10, 136, 0);
            let code = vec![load_port, op(0x15, 0, 2, 8080), mov(0), EXIT, mov(1), EXIT];
            (CGROUP_SKB, EGRESS, code)
        }
        other => bail!("no program of the kind {other}"),
    };
    let program = load(kind, attach, 0, name, &code)?;
    let dir = std::fs::File::open(cgroup).with_context(|| format!("no cgroup {}", cgroup.display()))?;
    // target_fd, attach_bpf_fd, attach_type, attach_flags.
    let attr = [dir.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), attach, ALLOW_MULTI];
    bpf(PROG_ATTACH, &attr).context("cannot attach the program to the cgroup").map(drop)
}

fn bpf_lsm(hook: &str, pid: u32, errno: u16, name: &str) -> Result<OwnedFd> {
    const GET_CURRENT_PID_TGID: i32 = 14;
    let id = function_id(&format!("bpf_lsm_{hook}"))?;
    let code = [
        op(0x85, 0, 0, GET_CURRENT_PID_TGID),
        op(0x77, 0, 0, 32),
        op(0x55, 0, 2, i32::try_from(pid)?),
        mov(-i32::from(errno)),
        EXIT,
        mov(0),
        EXIT,
    ];
    let program = load(LSM, LSM_MAC, id, name, &code)?;
    let attr = [0_u64, u64::from(program.as_raw_fd().cast_unsigned())];
    owned(bpf(RAW_TRACEPOINT_OPEN, &attr).context("cannot attach the program; is `bpf` among the lsm=?")?)
}

/// The number of a function's type in the kernel's type information (Documentation/bpf/btf.rst).
fn function_id(name: &str) -> Result<u32> {
    const FUNC: u32 = 12;
    let data = std::fs::read("/sys/kernel/btf/vmlinux").context("no kernel type information")?;
    let word = |at: usize| -> Result<u32> {
        let bytes = data.get(at..at + 4).context("the type information is cut")?;
        Ok(u32::from_ne_bytes(bytes.try_into()?))
    };
    let header = word(4)? as usize;
    let (types, end) = (header + word(8)? as usize, header + word(8)? as usize + word(12)? as usize);
    let strings = header + word(16)? as usize;
    let wanted = CString::new(name)?;
    let (mut at, mut id) = (types, 1);
    while at < end {
        let (name_at, info) = (word(at)? as usize, word(at + 4)?);
        let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
        let text = data.get(strings + name_at..).context("the type information is cut")?;
        if kind == FUNC && text.starts_with(wanted.as_bytes_with_nul()) {
            return Ok(id);
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
        id += 1;
    }
    bail!("this kernel has no {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_what_the_kernel_reads() {
        // From the kernel's own macros: BPF_MOV64_IMM(BPF_REG_0, -1), BPF_LDX_MEM(BPF_W, R0, R1, 136).
        assert_eq!(mov(-1).to_le_bytes(), [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(op(0x61, 0x10, 136, 0).to_le_bytes(), [0x61, 0x10, 136, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn functions_have_numbers() {
        if Path::new("/sys/kernel/btf/vmlinux").exists() {
            assert!(function_id("__sys_connect").unwrap() > 0);
            assert!(function_id("no_such_function_here").is_err());
        }
    }
}

//! BPF programs of others that can refuse: which are loaded, which are in force for a cgroup, who holds them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::bpf_prog_info;

use super::{netns::NetNs, proc};

// include/uapi/linux/bpf.h
const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const QUERY_EFFECTIVE: u32 = 1;
/// `BPF_PROG_TYPE_LSM`.
const LSM: u32 = 29;
/// More programs than these are not looked at.
const MOST: usize = 4096;

/// When a cgroup's programs are asked: `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Moment {
    /// A packet leaves.
    Egress = 1,
    /// socket() of IPv4 and IPv6.
    Create = 2,
    /// bind() of IPv4.
    Bind4 = 8,
    /// bind() of IPv6.
    Bind6 = 9,
    /// connect() of IPv4.
    Connect4 = 10,
    /// connect() of IPv6.
    Connect6 = 11,
    /// connect() of unix sockets (6.7).
    ConnectUnix = 49,
}

/// A loaded program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its number.
    pub id: u32,
    /// Its name; may be empty.
    pub name: String,
    /// Who loaded it.
    pub uid: u32,
    /// When, nanoseconds since the boot (CLOCK_BOOTTIME).
    pub loaded_ns: u64,
    /// The kernel function that it is attached to, by its number in the kernel's type information; 0 if the kernel
    /// (before 6.0) does not tell.
    pub function: u32,
}

/// The loaded programs of BPF LSM.
///
/// # Errors
/// No CAP_SYS_ADMIN.
pub fn lsm_programs() -> io::Result<Vec<Program>> {
    let mut found = Vec::new();
    each(|kind, program| {
        if kind == LSM {
            found.push(program);
        }
    })?;
    Ok(found)
}

/// The kinds of all loaded programs: `enum bpf_prog_type`.
///
/// # Errors
/// No CAP_SYS_ADMIN.
pub fn kinds() -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    each(|kind, _| {
        found.insert(kind);
    })?;
    Ok(found)
}

fn each(mut look: impl FnMut(u32, Program)) -> io::Result<()> {
    let mut last = 0;
    for _ in 0..MOST {
        // start_id, next_id, open_flags.
        let mut attr = [last, 0, 0];
        if let Err(error) = call(PROG_GET_NEXT_ID, &mut attr) {
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) };
        }
        last = attr[1];
        if let Some((kind, program)) = by_id(last) {
            look(kind, program);
        }
    }
    Ok(())
}

/// The programs in force for a cgroup, in the order in which they run.
///
/// # Errors
/// The cgroup is not there, or the kernel has no such moment.
pub fn effective(cgroup: &Path, moment: Moment) -> io::Result<Vec<Program>> {
    Ok(query(cgroup, moment, QUERY_EFFECTIVE)?.into_iter().filter_map(|id| Some(by_id(id)?.1)).collect())
}

/// Numbers of the programs that are attached to a cgroup itself.
///
/// # Errors
/// As [`effective`].
pub fn attached(cgroup: &Path, moment: Moment) -> io::Result<Vec<u32>> {
    query(cgroup, moment, 0)
}

/// How many sk_lookup programs choose the sockets of a network namespace (5.9).
///
/// # Errors
/// No CAP_NET_ADMIN, or the namespace is gone.
pub fn sk_lookup(ns: &NetNs) -> io::Result<usize> {
    const SK_LOOKUP: u32 = 36;
    let folder = ns.run(|| File::open("/proc/thread-self/ns/net")).map_err(io::Error::other)??;
    known(ask(folder.as_raw_fd().cast_unsigned(), SK_LOOKUP, 0))
}

/// How many tc programs are attached to an interface of a network namespace without a queueing discipline (tcx, 6.6).
///
/// # Errors
/// As [`sk_lookup`].
pub fn tcx(ns: &NetNs, interface: u32) -> io::Result<usize> {
    const INGRESS: u32 = 46;
    const EGRESS: u32 = 47;
    let count = |moment| known(ask(interface, moment, 0));
    ns.run(|| Ok(count(INGRESS)? + count(EGRESS)?)).map_err(io::Error::other)?
}

/// A kernel that does not know the question has no such program.
fn known(answer: io::Result<Vec<u32>>) -> io::Result<usize> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(0),
        other => other.map(|ids| ids.len()),
    }
}

fn query(cgroup: &Path, moment: Moment, flags: u32) -> io::Result<Vec<u32>> {
    let dir = File::open(cgroup)?;
    ask(dir.as_raw_fd().cast_unsigned(), moment as u32, flags)
}

/// BPF_PROG_QUERY: `target` is a descriptor, or the index of an interface.
fn ask(target: u32, moment: u32, flags: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        _pad: u32,
    }
    let mut ids = [0_u32; 64];
    let mut attr = Query {
        target,
        attach_type: moment,
        query_flags: flags,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        _pad: 0,
    };
    call(PROG_QUERY, &mut attr)?;
    Ok(ids.into_iter().take(attr.prog_cnt as usize).filter(|id| *id != 0).collect())
}

fn by_id(id: u32) -> Option<(u32, Program)> {
    let mut attr = [id, 0, 0];
    let fd = call(PROG_GET_FD_BY_ID, &mut attr).ok()?;
    // SAFETY: the kernel has just returned it, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).ok()?) };
    // SAFETY: integers and pointers as integers; zero is valid for all of them.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    #[repr(C)]
    struct Info {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut attr = Info {
        fd: fd.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<bpf_prog_info>()).ok()?,
        info: (&raw mut info) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    let name: Vec<u8> = info.name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
    let program = Program {
        id: info.id,
        name: proc::printable(&name),
        uid: info.created_by_uid,
        loaded_ns: info.load_time,
        function: info.attach_btf_id,
    };
    Some((info.type_, program))
}

fn call<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is an initialised prefix of union bpf_attr, its size goes along, and what it points to outlives the
    // call, with as much room as it says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The processes that hold one of these programs, or a link of it, by their descriptors: program and PID.
pub fn holders(programs: &[u32]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for pid in proc::pids().into_iter().flatten() {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let is_bpf = fs::read_link(descriptor.path())
                .is_ok_and(|to| to.to_string_lossy().starts_with("anon_inode:bpf"));
            if !is_bpf {
                continue;
            }
            let number = descriptor.file_name();
            let path = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
            let Ok(text) = proc::read_up_to(path, 4096) else { continue };
            let id = proc::field(&text, "prog_id").and_then(|id| id.parse().ok());
            if let Some(id) = id.filter(|id| programs.contains(id))
                && !found.contains(&(id, pid))
            {
                found.push((id, pid));
            }
        }
    }
    found
}

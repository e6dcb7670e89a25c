//! The wire contract of connections that are older than why502: user space tells of each once, and the kernel side enters it.
//!
//! The programs are attached nowhere. User space runs them itself (`BPF_PROG_TEST_RUN`, raw tracepoints since 5.10), their
//! arguments are the words of the context, and their return value is an [`answer`].

/// What a run says.
pub mod answer {
    /// No such process, or no such connection (any more).
    pub const GONE: u32 = 0;
    /// Found; entered.
    pub const DONE: u32 = 1;
    /// The walk is not over: run it again.
    pub const MORE: u32 = 2;
    /// Its hooks have seen it begin.
    pub const KNOWN: u32 = 3;
    /// Bytes passed since user space looked: look again.
    pub const CHANGED: u32 = 4;
    /// There is no room for it.
    pub const FULL: u32 = 5;
}

/// Where the walk through the processes is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// The process that was found (`struct task_struct *` of its first thread); 0: none.
    pub task: u64,
    /// Where to go on; 0: at the beginning.
    pub at: u64,
}

/// Arguments of the program that enters a connection, in the order of its context. Times are microseconds before the run,
/// [`UNKNOWN`] if they are not known or did not happen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Older {
    /// The worker (thread group id), which the walk has found.
    pub tgid: u64,
    /// Its descriptor.
    pub fd: u64,
    /// The socket's inode number, as in /proc/PID/fd.
    pub inode: u64,
    /// What nginx speaks there, see [`proto`](crate::talk::proto); `OTHER` if that is not known.
    pub proto: u64,
    /// When the request was written that is not answered yet; [`UNKNOWN`] if it is not known that there is one.
    pub sent_us: u64,
    /// When bytes came last.
    pub read_us: u64,
    /// `tcp_sock.bytes_received` then.
    pub received: u64,
    /// `tcp_sock.bytes_sent` then.
    pub sent: u64,
}

/// A time that is not known.
pub const UNKNOWN: u64 = u64::MAX;

const _: () = {
    assert!(size_of::<Walk>() == 16);
    // MAX_BPF_FUNC_ARGS (include/linux/bpf.h).
    assert!(size_of::<Older>() <= 12 * 8);
};

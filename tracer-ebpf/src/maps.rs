//! Every map, its capacity beside its reason.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use tracer_ebpf::{
    Bucket, Counters, Entry, Evidence, FlowKey, GivenUp, PeerKey, Proc, Settings, Shared,
    older::Walk,
    request::{self, Awaited, Failed, Moment},
    said::{self, Layout},
    storm::{self, Alike, Repeats},
    talk::{self, Head},
    unix::{self, Standing},
};

/// Facts of the running kernel; written by the loader before the program is verified, so that the
/// verifier sees constants and removes the code of absent features.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = {
    // SAFETY: Settings consists of integers; all zeroes is a valid value.
    unsafe { core::mem::zeroed() }
};

/// Reads one field of [`SETTINGS`] at run time (the loader has replaced the zeroes).
macro_rules! setting {
    ($($field:tt)+) => { $crate::maps::load(&$crate::maps::SETTINGS.$($field)+) };
}
pub(crate) use setting;

/// Reads a setting where the compiler must not assume the zero that it sees.
#[inline(always)]
pub(crate) fn load<T: Copy>(field: &'static T) -> T {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(field) }
}

/// nginx's processes by thread group id. 8192: masters and workers of every container of a large host.
#[map]
pub(crate) static PROCS: HashMap<u32, Proc> = HashMap::with_max_entries(8192, 0);

/// 1 where the lowest bits of a thread group id may be nginx's: what lets every other process of the host leave without a
/// look into a hash table. Set before the process is entered in `PROCS`, never cleared: a stale mark costs that look.
#[map]
pub(crate) static MARKS: Array<u32> = Array::with_max_entries(tracer_ebpf::MARKS, 0);

/// Open connections of watched processes, see `conns`. The loader sets the size: a power of two.
#[map]
pub(crate) static BUCKETS: Array<Bucket> = Array::with_max_entries(4096, 0);

/// Those that find no place in their bucket, by `struct sock *`. The loader sets the size; what does not fit is
/// counted. Pre-allocated, as an allocation a connection costs more than the memory.
#[map]
pub(crate) static CONNS: HashMap<u64, Entry> = HashMap::with_max_entries(16384, 0);

/// Addresses that nginx has connected to: the filter that keeps the packet-level hooks quiet. LRU, since
/// nothing tells when the last connection to one is gone.
#[map]
pub(crate) static PEERS: LruHashMap<PeerKey, u32> = LruHashMap::with_max_entries(tracer_ebpf::PEERS, 0);

/// Packet-level evidence by flow. LRU, since a handshake that succeeds after a drop leaves its entry.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Evidence> = LruHashMap::with_max_entries(tracer_ebpf::FLOWS, 0);

/// The security hook's refusal of the connect() that a thread is in, by pid_tgid. LRU: consumed when
/// connect() returns.
#[map]
pub(crate) static LSM: LruHashMap<u64, i32> = LruHashMap::with_max_entries(256, 0);

/// Equal failures of a storm. User space removes those of workers that have ended.
#[map]
pub(crate) static REPEATS: HashMap<Alike, Repeats> = HashMap::with_max_entries(storm::KINDS, 0);

/// What SELinux was asked, by pid_tgid, until `avc_denied` returns. LRU: a return may be missed.
#[map]
pub(crate) static AVC: LruHashMap<u64, AvcArgs> = LruHashMap::with_max_entries(256, 0);

/// Numbers of one decision of SELinux.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AvcArgs {
    pub ssid: u32,
    pub tsid: u32,
    pub tclass: u32,
    pub requested: u32,
}

/// The last fatal signal that each process was sent, by thread group id. LRU: nothing tells that a handled one is done with.
#[map]
pub(crate) static SIGNALS: LruHashMap<u32, Doomed> = LruHashMap::with_max_entries(4096, 0);

/// When a child of each process ended last, by the parent's thread group id, CLOCK_MONOTONIC ns: a server that forks for each
/// connection closes its own copy of it, and is then the one that closes the connection if its child was faster. LRU: only
/// what was a moment ago counts.
#[map]
pub(crate) static CHILD_ENDS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(1024, 0);

/// Until when a process may close sockets because of such a signal, CLOCK_MONOTONIC ns; 0: no signal of late.
#[map]
pub(crate) static DOOM: Array<u64> = Array::with_max_entries(1, 0);

/// A fatal signal.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Doomed {
    pub time_ns: u64,
    /// Thread group id; 0 for the kernel.
    pub sender: u32,
    pub signal: u32,
    /// 1: the OOM killer's.
    pub oom: u32,
    pub _pad: u32,
    /// The sender's name.
    pub comm: [u64; 2],
}

/// The attempt that each worker gave up last, by thread group id.
#[map]
pub(crate) static GIVEN_UP: LruHashMap<u32, GivenUp> = LruHashMap::with_max_entries(1024, 0);

/// Failed attempts and process events; the loader sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Counters, one set a CPU.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Switches that let the hot path leave early.
#[map]
pub(crate) static SHARED: Array<Shared> = Array::with_max_entries(1, 0);

/// The packet whose drop `kfree_skb` looked at last, by CPU.
#[map]
pub(crate) static LAST_DROP: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// 1 while user space sleeps without a clock: the next record wakes it, further ones do not.
#[map]
pub(crate) static READER: Array<u32> = Array::with_max_entries(1, 0);

/// Requests of which an attempt failed, until nginx answers them. LRU: some clients leave before that.
#[map]
pub(crate) static AWAITED: LruHashMap<Awaited, Moment> = LruHashMap::with_max_entries(request::AWAITED, 0);

/// Failed attempts whose sockets are not closed yet, see `failed`.
#[map]
pub(crate) static FAILED: Array<Failed> = Array::with_max_entries(request::FAILED, 0);

/// Programs that others go on to: what is long is verified once. `judge`, `client_left` and `late_end`.
#[map]
pub(crate) static JUMPS: ProgramArray = ProgramArray::with_max_entries(3, 0);

/// The beginnings of responses, see `probes::talk`: 4 MiB.
#[map]
pub(crate) static HEADS: Array<Head> = Array::with_max_entries(talk::HEADS, 0);

/// Where the walk through the processes is that finds the holders of older connections, see `probes::older`.
#[map]
pub(crate) static OLDER: Array<Walk> = Array::with_max_entries(1, 0);

/// Where fields lie in the nginx of each master (or single process); user space fills it.
#[map]
pub(crate) static LAYOUTS: HashMap<u32, Layout> = HashMap::with_max_entries(said::LAYOUTS, 0);

/// Connections to unix sockets that stand, by `struct sock *`: 2 MiB. LRU: where an end may be missed (the tracepoint tier sees
/// close() alone) its entry must not stay.
#[map]
pub(crate) static STANDING: LruHashMap<u64, Standing> = LruHashMap::with_max_entries(unix::STANDING, 0);

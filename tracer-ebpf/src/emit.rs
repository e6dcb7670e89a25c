//! Building records in the ring buffer.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns, generated::bpf_ringbuf_submit};
use tracer_ebpf::{
    Attempt, CLIENT_WAIT_NS, Conn, Counters, Evidence, FlowKey, GivenUp, Hint, PeerKey, ProcEvent,
    drop_class, flag, kind, loopback::is_own, stage,
};

use crate::{
    kernel::{self, AF_INET6, read},
    maps::{COUNTERS, EVENTS, FLOWS, GIVEN_UP, LSM, PEERS, READER, SHARED, setting},
    repeats::{self, COUNTED, EXEMPLAR},
};

/// Do not wake the reader: it polls. A wake-up a record costs about 10 µs in a storm of failures.
const BPF_RB_NO_WAKEUP: u64 = 1;
/// Wake the reader now: used for process events alone, which are rare and must not wait.
const BPF_RB_FORCE_WAKEUP: u64 = 2;

/// How long after giving up an attempt nginx's close of the client's socket is taken to belong to it;
/// both happen in one call of ngx_http_upstream_check_broken_connection, which takes a fraction of it.
const CLIENT_WATCH_NS: u64 = 20_000_000;
/// The same for a worker that did not sleep meanwhile, of its own time. Interrupts and page faults count as that: 25 ms were
/// seen in an emulated guest.
const OWN_WATCH_NS: u64 = 50_000_000;

/// `PF_EXITING` of include/linux/sched.h, the same since 2.6.
const PF_EXITING: u32 = 0x4;

#[inline(always)]
pub(crate) fn count(f: impl FnOnce(&mut Counters)) {
    if let Some(c) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element; a nested program on the same CPU can at worst lose a count.
        f(unsafe { &mut *c });
    }
}

/// Clears `N` words; written out because LLVM would call a byte-wise `memset`.
#[inline(always)]
unsafe fn clear<const N: usize>(dst: *mut u64) {
    for i in 0..N {
        // SAFETY: the caller owns N words at dst.
        unsafe { core::ptr::write_volatile(dst.add(i), 0) };
    }
}

/// Copies `N` words, as [`clear`].
#[inline(always)]
pub(crate) unsafe fn copy<const N: usize>(dst: *mut u64, src: *const u64) {
    for i in 0..N {
        // SAFETY: the caller owns N words at dst and may read N words at src.
        unsafe { core::ptr::write_volatile(dst.add(i), core::ptr::read_volatile(src.add(i))) };
    }
}

/// Wakes the reader if it sleeps without a clock, once; a reader that is awake polls.
#[inline(always)]
pub(crate) fn wakeup() -> u64 {
    let Some(asleep) = READER.get_ptr_mut(0) else {
        return BPF_RB_NO_WAKEUP;
    };
    // SAFETY: an integer of an array element; two CPUs that both see 1 wake the reader twice, no more.
    unsafe {
        if core::ptr::read_volatile(asleep) == 0 {
            return BPF_RB_NO_WAKEUP;
        }
        core::ptr::write_volatile(asleep, 0);
    }
    BPF_RB_FORCE_WAKEUP
}

/// What the emitting hook knows and the socket does not.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub stage: u8,
    pub old_state: u8,
    pub shutdown: u8,
    pub ret: i32,
    pub sk_err: i32,
    pub flags: u32,
    pub lsm_ret: i32,
}

/// A record without packet-level evidence: the part of [`Attempt`] before it.
type Short = [u64; tracer_ebpf::ATTEMPT_HEAD / 8];

/// Sends the story of one failed attempt, or counts it with its kind: then it returns `COUNTED`, and nothing else is to be told
/// of it. `sk` is 0 if there is no socket.
#[inline(always)]
pub(crate) fn attempt(sk: u64, conn: &Conn, end: &End) -> u32 {
    let mut place = repeats::place(sk, conn, end);
    kernel::forget(&mut place);
    if place != COUNTED {
        send(sk, conn, end, place);
    }
    place
}

/// A function of its own in the object: a dozen places call it. What is found goes straight into the record, since the verifier
/// follows every value on the stack through every branch, but none in the ring buffer.
#[inline(never)]
fn send(sk: u64, conn: &Conn, end: &End, place: u32) -> u32 {
    let mut place_of_seen = MaybeUninit::uninit();
    let seen = Seen::nothing(&mut place_of_seen);
    if sk != 0 && end.stage >= stage::SYN_SENT {
        look_up(seen, sk, conn);
    }
    count(|c| c.failed += 1);
    // SAFETY: the pointers lead to reserved bytes, 8-byte aligned, of which every one is written: the head by
    // `head`, the evidence by `evidence`. Forgotten entries are submitted below.
    unsafe {
        let a: *mut Attempt = if !seen.entry.is_null() || seen.queued != 0 {
            let Some(mut entry) = EVENTS.reserve::<Attempt>(0) else {
                count(|c| c.lost += 1);
                return place;
            };
            let a = entry.as_mut_ptr();
            core::mem::forget(entry);
            head(a, sk, conn, end);
            evidence(a, seen, conn);
            a
        } else {
            let Some(mut entry) = EVENTS.reserve::<Short>(0) else {
                count(|c| c.lost += 1);
                return place;
            };
            let a = entry.as_mut_ptr().cast();
            core::mem::forget(entry);
            head(a, sk, conn, end);
            a
        };
        if place == EXEMPLAR {
            (*a).flags |= flag::EXEMPLAR;
        }
        bpf_ringbuf_submit(a.cast(), wakeup());
    }
    forget_flow(seen);
    count(|c| c.sent += 1);
    place
}

/// A later connection may reuse the ports.
#[inline(always)]
pub(crate) fn forget_flow(seen: &Seen) {
    if !seen.entry.is_null() {
        let _ = FLOWS.remove(&seen.key);
    }
}

/// Packet-level evidence of a connection, and where it is.
#[repr(C)]
pub(crate) struct Seen {
    /// Null if there is none.
    pub(crate) entry: *const Evidence,
    /// The first packet of the socket's error queue; 0 if there is none.
    pub(crate) queued: u64,
    key: FlowKey,
    _pad: [u16; 2],
}

impl Seen {
    /// Nothing; word by word, since the verifier takes for a pointer only what was not written by bytes.
    #[inline(always)]
    pub(crate) fn nothing(place: &mut MaybeUninit<Self>) -> &mut Self {
        // SAFETY: all of its words are written: a null pointer and integers.
        unsafe {
            clear::<{ size_of::<Self>() / 8 }>(place.as_mut_ptr().cast());
            place.assume_init_mut()
        }
    }
}

#[inline(always)]
pub(crate) fn look_up(seen: &mut Seen, sk: u64, conn: &Conn) {
    // SAFETY: fields of a live value.
    unsafe {
        kernel::sock_addr_to(
            &raw mut seen.key.saddr,
            sk,
            conn.family,
            setting!(skc_rcv_saddr),
            setting!(skc_v6_rcv_saddr),
        );
    }
    seen.key.daddr = conn.daddr;
    seen.key.sport = u16::from_be(read(sk, setting!(inet_sport)));
    seen.key.dport = conn.dport;
    kernel::forget(&mut seen.key);
    seen.entry = FLOWS.get_ptr(&seen.key).unwrap_or(core::ptr::null());
    if conn.flags & flag::RST_IN == 0 && conn.family != AF_INET6 {
        seen.queued = first_error(sk);
    }
}

/// Writes every field in front of the evidence.
///
/// # Safety
/// `a` points to at least [`Short`]'s size of writable bytes.
#[inline(always)]
pub(crate) unsafe fn head(a: *mut Attempt, sk: u64, conn: &Conn, end: &End) {
    // SAFETY: by this function's contract.
    unsafe {
        (*a).kind = kind::ATTEMPT;
        (*a).flags = conn.flags | end.flags;
        if conn.nginx != 0 {
            (*a).flags |= flag::ASKED;
        }
        (*a).start_ns = conn.start_ns;
        (*a).end_ns = now_ns();
        (*a).rst_ns = conn.rst_ns;
        (*a).sk = sk;
        // Zero before ESTABLISHED; an attempt that failed after it reads them.
        (*a).bytes_acked = 0;
        (*a).bytes_received = 0;
        (*a).daddr = conn.daddr;
        (*a).tgid = conn.tgid;
        (*a).sk_err = end.sk_err;
        (*a).ret = end.ret;
        (*a).lsm_ret = end.lsm_ret;
        (*a).lsm_id = 0;
        (*a).ifindex = 0;
        (*a).dport = conn.dport;
        (*a).family = conn.family;
        (*a).stage = end.stage;
        (*a).old_state = end.old_state;
        (*a).shutdown = end.shutdown;
        (*a).rst_ttl = conn.rst_ttl;
        (*a)._pad = [0; 4];
        // Of no socket nothing can be read: the addresses near zero give zeroes.
        kernel::sock_addr_to(
            &raw mut (*a).saddr,
            sk,
            conn.family,
            setting!(skc_rcv_saddr),
            setting!(skc_v6_rcv_saddr),
        );
        (*a).sport = u16::from_be(read(sk, setting!(inet_sport)));
        (*a).netns = kernel::sock_netns(sk);
        (*a).sk_err_soft = read(sk, setting!(sk_err_soft));
        (*a).retransmits = u16::from(read::<u8>(sk, setting!(icsk_retransmits)));
        if end.stage >= stage::SYN_SENT && evicted(conn) {
            (*a).flags |= flag::EVIDENCE_GAP;
        }
        if end.shutdown == 3 {
            (*a).flags |= flag::APP_CLOSED;
            if is_exiting() {
                (*a).flags |= flag::TASK_EXITING;
            }
        }
    }
}

/// True if the current task is ending.
#[inline(always)]
pub(crate) fn is_exiting() -> bool {
    // SAFETY: no arguments.
    let task_flags: u32 = read(unsafe { bpf_get_current_task() }, setting!(task_flags));
    task_flags & PF_EXITING != 0
}

/// Writes the evidence, and which parts of it hold.
///
/// # Safety
/// `a` points to a writable record whose head is written.
#[inline(always)]
unsafe fn evidence(a: *mut Attempt, seen: &Seen, conn: &Conn) {
    // SAFETY: by this function's contract; `entry` is a live element of an LRU map: if it is recycled meanwhile the
    // time stamps, which are checked by user space again, no longer fit.
    unsafe {
        let to = &raw mut (*a).evidence;
        if !seen.entry.is_null() {
            let ev = seen.entry;
            copy::<{ size_of::<Evidence>() / 8 }>(to.cast(), ev.cast());
            let start_ns = conn.start_ns;
            let own = (*a).netns;
            let taken = |bit: u32, netns: u32| {
                if is_own(&seen.key.daddr, netns, own) { bit } else { flag::EVIDENCE_GAP }
            };
            if (*to).drop_last_ns != 0 && (*to).drop_last_ns >= start_ns {
                (*a).flags |= taken(flag::DROP, (*to).drop_netns);
            }
            if (*to).icmp_ns != 0 && (*to).icmp_ns >= start_ns {
                (*a).flags |= flag::ICMP;
            }
            if (*to).overflow_ns != 0 && (*to).overflow_ns >= start_ns {
                (*a).flags |= taken(flag::LISTEN_OVERFLOW, (*to).backlog_netns);
            }
        } else {
            clear::<{ size_of::<Evidence>() / 8 }>(to.cast());
        }
        if seen.queued != 0
            && (*a).flags & flag::ICMP == 0
            && let Some((kind, code)) = icmp_of(seen.queued)
        {
            (*to).icmp_type = kind;
            (*to).icmp_code = code;
            (*to).icmp_sender = kernel::ip_source(kernel::network_header(seen.queued));
            (*to).icmp_ns = (*a).end_ns;
            (*a).flags |= flag::ICMP | flag::ICMP_FROM_QUEUE;
        }
    }
}

/// Insertions so far into the evidence and peer maps.
#[inline(always)]
pub(crate) fn sequences() -> (u32, u32) {
    // SAFETY: integers of an array element.
    SHARED.get_ptr(0).map_or((0, 0), |s| unsafe { ((*s).flow_inserts, (*s).peer_inserts) })
}

/// True if evidence of this connection may have been evicted. The kernel's LRU is approximate and each CPU
/// hoards free elements, so a quarter of the capacity is taken as the limit.
#[inline(always)]
fn evicted(conn: &Conn) -> bool {
    let (flows, peers) = sequences();
    flows.wrapping_sub(conn.flow_seq) > tracer_ebpf::FLOWS / 4
        || peers.wrapping_sub(conn.peer_seq) > tracer_ebpf::PEERS / 4
}

/// The first packet of a socket's error queue. An IPv4 ICMP error that arrived while connect() held the socket
/// never sets sk_err (net/ipv4/tcp_ipv4.c, tcp_v4_err), it is only queued.
#[inline(always)]
fn first_error(sk: u64) -> u64 {
    let head = sk + u64::from(setting!(sk_error_queue));
    // struct sk_buff_head: next, prev.
    let links: [u64; 2] = read(head, 0);
    if links[1] == head { 0 } else { links[1] }
}

/// Type and code of the ICMP error that a packet of the error queue stands for.
#[inline(always)]
pub(crate) fn icmp_of(skb: u64) -> Option<(u8, u8)> {
    const SO_EE_ORIGIN_ICMP: u8 = 2;
    // struct sock_extended_err (uapi/linux/errqueue.h): errno u32, origin u8, type u8, code u8.
    let ee: [u8; 8] = read(skb, setting!(skb_cb) + setting!(serr_ee));
    (ee[4] == SO_EE_ORIGIN_ICMP).then_some((ee[5], ee[6]))
}

/// The clock of all records.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no arguments, no side effects.
    unsafe { bpf_ktime_get_ns() }
}

/// Remembers that this worker gave up an attempt, so that its next close of a client's socket can be seen. `quiet`: that client
/// may be the reason, as the server had not ended the connection.
#[inline(always)]
pub(crate) fn watch_client(sk: u64, tgid: u32, quiet: bool) {
    let now = now_ns();
    let (ran_ns, slept) = progress();
    let family: u16 = read(sk, setting!(skc_family));
    let port =
        if family == kernel::AF_UNIX { 0 } else { u32::from(u16::from_be(read(sk, setting!(inet_sport)))) };
    let value = GivenUp { sk, end_ns: now, closed_sk: 0, ran_ns, slept, quiet: u32::from(quiet), port };
    if GIVEN_UP.insert(tgid, value, 0).is_ok()
        && let Some(shared) = SHARED.get_ptr_mut(0)
    {
        // SAFETY: an element of an array map; a lost race with another CPU shortens the window at worst.
        unsafe { (*shared).watch_until_ns = now + CLIENT_WAIT_NS };
    }
}

/// The current thread's time on a CPU, nanoseconds, and how often it has gone to sleep by itself. A run that lasts is added to
/// the time at the clock's ticks and at its end.
#[inline(always)]
fn progress() -> (u64, u64) {
    if !kernel::has(setting!(task_ran)) || !kernel::has(setting!(task_slept)) {
        return (0, 0);
    }
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    (read(task, setting!(task_ran)), read(task, setting!(task_slept)))
}

/// True if the worker, which gave up an attempt then, can still be at it: the other end of its FIN may be woken on its CPU, and
/// run first for several slices. So the clock counts alone if the worker has slept, else its own time does.
#[inline(always)]
pub(crate) fn is_same_moment(last: &GivenUp, now: u64) -> bool {
    let passed = now.wrapping_sub(last.end_ns);
    if passed <= CLIENT_WATCH_NS {
        return true;
    }
    let (ran_ns, slept) = progress();
    passed <= CLIENT_WAIT_NS
        && slept != 0
        && slept == last.slept
        && ran_ns.wrapping_sub(last.ran_ns) <= OWN_WATCH_NS
}

/// The end of the client-watch window, 0 if there is none: what the hot path looks at.
#[inline(always)]
pub(crate) fn watching_until() -> u64 {
    // SAFETY: an element of an array map, plain integers.
    SHARED.get_ptr(0).map_or(0, |s| unsafe { core::ptr::read_volatile(&raw const (*s).watch_until_ns) })
}

/// Takes the security hook's refusal of this thread's connect(), if there was one.
#[inline(always)]
pub(crate) fn take_lsm(pid_tgid: u64) -> Option<i32> {
    // SAFETY: an i32 copied at once.
    let ret = unsafe { LSM.get(pid_tgid) }.copied()?;
    let _ = LSM.remove(pid_tgid);
    Some(ret)
}

/// Tells user space of a process; `urgent` wakes it at once.
#[inline(always)]
pub(crate) fn proc_event(change: u32, tgid: u32, parent: u32, comm: [u8; 16], urgent: bool) {
    let Some(mut entry) = EVENTS.reserve::<ProcEvent>(0) else {
        count(|c| c.proc_lost += 1);
        return;
    };
    entry.write(ProcEvent { kind: kind::PROC, change, tgid, parent, time_ns: now_ns(), comm });
    entry.submit(if urgent { BPF_RB_FORCE_WAKEUP } else { wakeup() });
}

/// Asks user space to look at the listener while a handshake is still unanswered.
#[inline(always)]
pub(crate) fn hint(sk: u64, conn: &Conn) {
    let Some(mut entry) = EVENTS.reserve::<Hint>(0) else {
        count(|c| c.hints_lost += 1);
        return;
    };
    entry.write(Hint {
        kind: kind::HINT,
        tgid: conn.tgid,
        time_ns: now_ns(),
        sk,
        daddr: conn.daddr,
        dport: conn.dport,
        _pad: [0; 6],
    });
    entry.submit(wakeup());
}

/// An all-zero value for new entries of `FLOWS`: in read-only data, since 200 bytes of stack are dear.
static ZERO: Evidence = {
    // SAFETY: integers only.
    unsafe { core::mem::zeroed() }
};

/// The evidence entry of a flow, if its far end is an upstream peer of a watched process.
#[inline(always)]
pub(crate) fn flow_entry(key: &FlowKey) -> Option<*mut Evidence> {
    let peer = PeerKey { addr: key.daddr, port: key.dport, _pad: 0 };
    PEERS.get_ptr(peer)?;
    if let Some(found) = FLOWS.get_ptr_mut(key) {
        return Some(found);
    }
    FLOWS.insert(key, &ZERO, 0).ok()?;
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: an integer of an array element; a lost count is within the margin of `evicted`.
        unsafe { (*shared).flow_inserts = (*shared).flow_inserts.wrapping_add(1) };
    }
    FLOWS.get_ptr_mut(key)
}

/// Classifies a drop reason by the bit sets in the settings. Most drops of a host are not looked at: one test.
#[inline(always)]
pub(crate) fn class_of(reason: u32) -> Option<u8> {
    if reason >= 256 {
        return None;
    }
    let bit = 1u64 << (reason & 63);
    let word = (reason >> 6) as usize & 3;
    let any = match word {
        0 => setting!(any_reason[0]),
        1 => setting!(any_reason[1]),
        2 => setting!(any_reason[2]),
        _ => setting!(any_reason[3]),
    };
    if any & bit == 0 {
        return None;
    }
    let mut class = 1;
    while class < drop_class::COUNT {
        if word_of(class, word) & bit != 0 {
            return Some(class as u8);
        }
        class += 1;
    }
    Some(drop_class::OTHER)
}

#[inline(always)]
fn word_of(class: usize, word: usize) -> u64 {
    match word {
        0 => setting!(reasons[class][0]),
        1 => setting!(reasons[class][1]),
        2 => setting!(reasons[class][2]),
        _ => setting!(reasons[class][3]),
    }
}

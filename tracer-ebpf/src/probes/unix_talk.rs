//! What a worker reads from and writes to unix stream sockets that it has connected, and how that ends.
//!
//! An exchange is followed and judged as on TCP (`talk.rs`), but nothing here has sequence numbers: bytes are counted as they
//! pass, and the far end is another socket of this machine, whose close is seen as well.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint, tracepoint},
    programs::{
        FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
    },
};
use tracer_ebpf::{
    Conn,
    talk::talk_flag,
    unix::{NAME, Standing},
};

use crate::{
    conns,
    emit::{self, count},
    kernel::{self, read, read_user},
    maps::{SHARED, STANDING, setting},
    nginx,
    probes::{connect::empty, talk, unix, unix_end},
    procs,
};

const MSG_PEEK: u32 = 2;
const EAGAIN: i32 = 11;
/// `sun_family` is what stands before the name.
const FAMILY: u64 = 2;

/// `unix_stream_recvmsg(socket, msg, size, flags)`: the return value stands behind the four.
#[fexit(function = "unix_stream_recvmsg")]
fn unix_read_fexit(ctx: FExitContext) -> i32 {
    if procs::marked(kernel::tgid()) {
        let mut socket: u64 = ctx.arg(0);
        kernel::forget(&mut socket);
        let sk = read(socket, setting!(socket_sk));
        talk::go_on(sk, on_read(sk, ctx.arg(4), ctx.arg(3)));
    }
    0
}

#[kretprobe]
fn unix_read_kretprobe(ctx: RetProbeContext) -> i32 {
    if procs::marked(kernel::tgid()) {
        let (nr, fd, _) = kernel::syscall();
        let flags = if nr == setting!(nr_recvfrom) { kernel::fourth_arg() as u32 } else { 0 };
        let sk = kernel::unix_stream_of_fd(fd as u32);
        talk::go_on(sk, on_read(sk, ctx.ret(), flags));
    }
    0
}

/// `unix_stream_sendmsg(socket, msg, len)`.
#[fexit(function = "unix_stream_sendmsg")]
fn unix_write_fexit(ctx: FExitContext) -> i32 {
    if procs::marked(kernel::tgid()) {
        let mut socket: u64 = ctx.arg(0);
        kernel::forget(&mut socket);
        on_write(read(socket, setting!(socket_sk)), ctx.arg(3));
    }
    0
}

#[kretprobe]
fn unix_write_kretprobe(ctx: RetProbeContext) -> i32 {
    if procs::marked(kernel::tgid()) {
        let (_, fd, _) = kernel::syscall();
        on_write(kernel::unix_stream_of_fd(fd as u32), ctx.ret());
    }
    0
}

/// `sock_send_length(sk, ret, flags)`, 6.6+, where `request::sent` is not attached.
#[raw_tracepoint(tracepoint = "sock_send_length")]
fn unix_write_tracepoint(ctx: RawTracePointContext) -> i32 {
    on_write(ctx.arg(0), ctx.arg(1));
    0
}

/// `unix_release(socket)`, of every process: the far end may be ours.
#[fentry(function = "unix_release")]
fn unix_close_fentry(ctx: FEntryContext) -> i32 {
    let mut socket: u64 = ctx.arg(0);
    kernel::forget(&mut socket);
    on_release(read(socket, setting!(socket_sk)));
    0
}

#[kprobe]
fn unix_close_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(socket) = ctx.arg::<u64>(0) {
        on_release(read(socket, setting!(socket_sk)));
    }
    0
}

/// close() alone: an exit closes without it.
#[tracepoint(category = "syscalls", name = "sys_enter_close")]
fn unix_close_tracepoint(ctx: TracePointContext) -> i32 {
    /// 8 bytes of common fields, the system call number (long), then the descriptor.
    const FD: usize = 16;
    if any() && procs::worker().is_some() {
        // SAFETY: within the record of this tracepoint; the verifier checks the offset.
        let fd = unsafe { core::ptr::read_volatile(ctx.as_ptr().byte_add(FD).cast::<u64>()) };
        let sk = kernel::any_sock_of_fd(fd as u32);
        if sk != 0 {
            on_release(sk);
        }
    }
    0
}

/// A worker's connect() to a unix stream socket succeeded.
#[inline(never)]
pub(super) fn begin(sk: u64, fd: u32, addr: u64) -> u32 {
    if setting!(talk) == 0 || read_user::<u16>(addr) != kernel::AF_UNIX || unix::is_libc(addr + FAMILY) {
        return 0;
    }
    let mut conn = empty(kernel::tgid());
    conn.family = kernel::AF_UNIX;
    conn.nginx = nginx::connection_of(sk, fd);
    kernel::forget(&mut conn);
    if STANDING.insert(sk, &ZERO, 0).is_err() {
        count(|c| c.conns_full += 1);
        return 0;
    }
    let Some(s) = STANDING.get_ptr_mut(sk) else {
        return 0;
    };
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: a live array element; whoever writes writes the same.
        unsafe { core::ptr::write_volatile(&raw mut (*shared).standing, 1) };
    }
    let len = kernel::third_arg().saturating_sub(FAMILY).min(NAME as u64);
    // SAFETY: a live map element.
    unsafe {
        (&raw mut (*s).conn).write(conn);
        (*s).talk.flags = talk_flag::UNIX;
        (*s).name_len = len as u16;
        unix::copy_name((&raw mut (*s).name).cast(), addr + FAMILY);
    }
    1
}

/// In read-only data, since it is larger than the stack.
static ZERO: Standing = {
    // SAFETY: integers only.
    unsafe { core::mem::zeroed() }
};

/// The record of an upstream connection; `kind`: `UNIX` of a unix socket, else 0.
#[inline(always)]
pub(crate) fn of(sk: u64, kind: u32) -> Option<*mut Conn> {
    if kind != 0 { STANDING.get_ptr_mut(sk).map(|s| s.cast()) } else { conns::find(sk) }
}

/// Removes it; `kind`: `UNIX` of a unix socket, else 0.
#[inline(always)]
pub(super) fn close(sk: u64, conn: *mut Conn, kind: u32) {
    // Nobody's from now on, whatever becomes of the element: on a starved 7.2 a connection that had been judged was judged once more
    // at its next state.
    // SAFETY: a live map element.
    unsafe { (*conn).tgid = 0 };
    if kind != 0 {
        let _ = STANDING.remove(sk);
    } else {
        conns::close(sk);
    }
}

/// True if there may be any: what spares others the look into the table.
#[inline(always)]
fn any() -> bool {
    // SAFETY: an integer of an array element.
    SHARED.get_ptr(0).is_some_and(|s| unsafe { core::ptr::read_volatile(&raw const (*s).standing) } != 0)
}

/// A worker's read returned. Returns what [`talk::go_on`] is to do.
#[inline(always)]
pub(super) fn on_read(sk: u64, ret: i32, flags: u32) -> u32 {
    if !any() || ret == -EAGAIN || flags & MSG_PEEK != 0 || !procs::marked(kernel::tgid()) {
        return talk::next::NOTHING;
    }
    match STANDING.get_ptr_mut(sk) {
        Some(s) => heard(s, sk, ret),
        None => talk::next::NOTHING,
    }
}

#[inline(never)]
fn heard(s: *mut Standing, sk: u64, ret: i32) -> u32 {
    if s.is_null() {
        return 0;
    }
    // SAFETY: live map elements; only this worker's thread writes these fields.
    unsafe {
        if (*s).conn.tgid != kernel::tgid() {
            return talk::next::NOTHING;
        }
        if ret > 0 {
            (*s).talk.copied_seq = (*s).talk.copied_seq.wrapping_add(ret as u32);
        }
        talk::hear(sk, s.cast(), ret, talk_flag::UNIX)
    }
}

/// A write to a socket returned.
#[inline(always)]
pub(super) fn on_write(sk: u64, ret: i32) {
    if !any() || ret == -EAGAIN || ret == 0 || !procs::marked(kernel::tgid()) {
        return;
    }
    if let Some(s) = STANDING.get_ptr_mut(sk) {
        wrote(s, sk, ret);
    }
}

#[inline(never)]
fn wrote(s: *mut Standing, sk: u64, ret: i32) -> u32 {
    if s.is_null() {
        return 0;
    }
    // SAFETY: as in `heard`.
    unsafe {
        if (*s).conn.tgid != kernel::tgid() {
            return 0;
        }
        if ret < 0 {
            (*s).talk.told_ns = emit::now_ns();
            (*s).talk.told = ret;
            return 0;
        }
        let began = (*s).talk.sent_ns;
        talk::wrote(sk, s.cast(), ret as u32, ret as u32);
        if (*s).talk.sent_ns != began {
            (*s).talk.flags |= talk_flag::UNIX;
            (*s).talk.write_seq = 0;
            (*s).talk.copied_seq = 0;
        }
        (*s).talk.write_seq = (*s).talk.write_seq.wrapping_add(ret as u32);
    }
    0
}

/// A unix socket's last descriptor is closed.
#[inline(always)]
fn on_release(sk: u64) {
    if !any() {
        return;
    }
    if STANDING.get_ptr_mut(sk).is_some() {
        if talk::closing(sk, talk_flag::UNIX) == 0 {
            let _ = STANDING.remove(sk);
        }
        return;
    }
    if !kernel::has(setting!(unix_peer)) {
        return;
    }
    let peer: u64 = read(sk, setting!(unix_peer));
    if peer == 0 {
        return;
    }
    if let Some(s) = STANDING.get_ptr_mut(peer) {
        unix_end::far_end_closed(s, peer);
    }
}

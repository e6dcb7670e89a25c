//! What a worker reads from and writes to unix stream sockets that it has connected, and how that ends.
//!
//! As for TCP (`talk.rs`), but nothing here has sequence numbers: bytes are counted as they pass, and the far end is another
//! socket of this machine, whose close is seen as well.

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint, tracepoint},
    programs::{
        FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext,
    },
};
use tracer_ebpf::{
    Proc, flag,
    request::{Turn, turn},
    talk::talk_flag,
    unix::{LIBC, NAME, Standing},
};

use crate::{
    clients,
    emit::{self, count},
    kernel::{self, read, read_user},
    maps::{STANDING, setting},
    probes::{connect::empty, unix, unix_end},
    procs,
};

const MSG_PEEK: u32 = 2;
const EAGAIN: i32 = 11;
/// `sun_family` is what stands before the name.
const FAMILY: u64 = 2;

/// `unix_stream_recvmsg(socket, msg, size, flags)`: the return value stands behind the four.
#[fexit(function = "unix_stream_recvmsg")]
fn unix_read_fexit(ctx: FExitContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        let mut socket: u64 = ctx.arg(0);
        kernel::forget(&mut socket);
        on_read(read(socket, setting!(socket_sk)), tgid, proc, ctx.arg(4), ctx.arg(3));
    }
    0
}

#[kretprobe]
fn unix_read_kretprobe(ctx: RetProbeContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        let (nr, fd, _) = kernel::syscall();
        let flags = if nr == setting!(nr_recvfrom) { kernel::fourth_arg() as u32 } else { 0 };
        on_read(kernel::unix_stream_of_fd(fd as u32), tgid, proc, ctx.ret(), flags);
    }
    0
}

/// `sock_recv_length(sk, ret, flags)`, 6.6+: behind the read, of sockets of any kind.
#[raw_tracepoint(tracepoint = "sock_recv_length")]
fn unix_read_tracepoint(ctx: RawTracePointContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        on_read(ctx.arg(0), tgid, proc, ctx.arg(1), ctx.arg(2));
    }
    0
}

/// `unix_stream_sendmsg(socket, msg, len)`.
#[fexit(function = "unix_stream_sendmsg")]
fn unix_write_fexit(ctx: FExitContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        let mut socket: u64 = ctx.arg(0);
        kernel::forget(&mut socket);
        on_write(read(socket, setting!(socket_sk)), tgid, proc, ctx.arg(3));
    }
    0
}

#[kretprobe]
fn unix_write_kretprobe(ctx: RetProbeContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        let (_, fd, _) = kernel::syscall();
        on_write(kernel::unix_stream_of_fd(fd as u32), tgid, proc, ctx.ret());
    }
    0
}

/// `sock_send_length(sk, ret, flags)`, 6.6+.
#[raw_tracepoint(tracepoint = "sock_send_length")]
fn unix_write_tracepoint(ctx: RawTracePointContext) -> i32 {
    if let Some((tgid, proc)) = procs::worker() {
        on_write(ctx.arg(0), tgid, proc, ctx.arg(1));
    }
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
    if procs::worker().is_some() {
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
pub(super) fn begin(sk: u64, addr: u64, proc: *mut Proc) {
    if proc.is_null() || read_user::<u16>(addr) != kernel::AF_UNIX || unix::is_libc(addr + FAMILY) {
        return;
    }
    let mut conn = empty(kernel::tgid());
    clients::assign(proc, &mut conn);
    // SAFETY: a live map element that only this worker's thread writes.
    unsafe {
        // Whatever comes next without having been seen, the request is no other's.
        if conn.client != 0 {
            let retry = u16::from(conn.flags & flag::RETRY != 0);
            (*proc).turn = Turn { id: conn.client, sk: 0, kind: turn::CLOSED, number: 0, retry };
        }
    }
    if setting!(follow_unix) == 0 {
        return;
    }
    if STANDING.insert(sk, &ZERO, 0).is_err() {
        count(|c| c.conns_full += 1);
        return;
    }
    let Some(s) = STANDING.get_ptr_mut(sk) else {
        return;
    };
    let len = kernel::third_arg().saturating_sub(FAMILY).min(NAME as u64);
    // SAFETY: a live map element.
    unsafe {
        (*s).talk.flags = talk_flag::WATCHED | talk_flag::UNIX;
        (&raw mut (*s).conn).write(conn);
        (*s).name_len = len as u16;
        unix::copy_name((&raw mut (*s).name).cast(), addr + FAMILY);
    }
}

/// In read-only data, since it is larger than the stack.
static ZERO: Standing = {
    // SAFETY: integers only.
    unsafe { core::mem::zeroed() }
};

/// A worker's read returned.
#[inline(always)]
fn on_read(sk: u64, tgid: u32, proc: *mut Proc, ret: i32, flags: u32) {
    let Some(s) = STANDING.get_ptr_mut(sk) else {
        return;
    };
    if proc.is_null() || flags & MSG_PEEK != 0 || ret == -EAGAIN {
        return;
    }
    // SAFETY: live map elements; only this worker's thread writes these fields.
    unsafe {
        if (*s).conn.tgid != tgid {
            return;
        }
        let now = emit::now_ns();
        if ret <= 0 {
            if (*s).talk.told_ns == 0 {
                (*s).talk.told_ns = now;
                (*s).talk.told = ret;
            }
            if ret == 0 {
                (*s).talk.flags |= talk_flag::EOF;
            }
        } else {
            let first = (*s).talk.first_read_ns == 0;
            if first {
                (*s).talk.first_read_ns = now;
            }
            (*s).talk.read_ns = now;
            (*s).talk.copied_seq = (*s).talk.copied_seq.saturating_add(ret as u32);
            unix_end::keep(s, ret as u32);
            if first && (*s).talk.status >= 500 && (*s).talk.sent_ns != 0 {
                unix_end::tell(s, sk, talk_flag::SAID_5XX);
            }
        }
        if (*s).conn.client != 0 {
            let retry = u16::from((*s).conn.flags & flag::RETRY != 0);
            (*proc).turn = Turn { id: (*s).conn.client, sk, kind: turn::READ_UPSTREAM, number: 0, retry };
        }
    }
}

/// A worker's write returned.
#[inline(always)]
fn on_write(sk: u64, tgid: u32, proc: *mut Proc, ret: i32) {
    let Some(s) = STANDING.get_ptr_mut(sk) else {
        return;
    };
    if proc.is_null() || ret == -EAGAIN || ret == 0 {
        return;
    }
    // SAFETY: as in `on_read`.
    unsafe {
        if (*s).conn.tgid != tgid {
            return;
        }
        let now = emit::now_ns();
        if ret < 0 {
            (*s).talk.told_ns = now;
            (*s).talk.told = ret;
            return;
        }
        if (*s).talk.sent_ns == 0 || ((*s).talk.first_read_ns != 0 && !unix_end::goes_on(s)) {
            exchange(s, proc, now);
            let (at, len) = unix_end::first_written();
            (*s).talk.buf = at;
            (*s).talk.buf_len = len;
            (*s).talk.first = if len >= 8 { read_user(at) } else { 0 };
        }
        (*s).talk.last_sent_ns = now;
        (*s).talk.write_seq = (*s).talk.write_seq.saturating_add(ret as u32);
    }
}

/// The first write of a request and its response.
///
/// # Safety
/// Live map elements of this worker.
#[inline(always)]
unsafe fn exchange(s: *mut Standing, proc: *mut Proc, now: u64) {
    // SAFETY: by this function's contract.
    unsafe {
        let t = &raw mut (*s).talk;
        let last = clients::take(proc);
        if (*t).requests != 0 {
            // A connection that was kept serves whom the worker has just heard.
            let next = last.kind == turn::READ_CLIENT || last.kind == turn::CLOSED;
            (*s).conn.client = if next { last.id } else { 0 };
            (*s).conn.number = match last.kind {
                turn::READ_CLIENT => 1,
                turn::CLOSED if last.number != 0 => last.number.wrapping_add(1),
                _ => 0,
            };
            (*s).conn.flags &= !flag::RETRY;
            if next && last.retry != 0 {
                (*s).conn.flags |= flag::RETRY;
            }
            if last.kind == turn::READ_CLIENT {
                clients::link(&last);
            }
            let idle_us = now.saturating_sub((*t).read_ns) / 1000;
            (*t).idle_us = if idle_us > 0xffff_ffff { 0xffff_ffff } else { idle_us as u32 };
        }
        (*t).requests = (*t).requests.saturating_add(1);
        (*t).sent_ns = now;
        (*t).first_read_ns = 0;
        (*t).read_ns = 0;
        (*t).told_ns = 0;
        (*t).told = 0;
        (*t).client_sk = 0;
        (*t).status = 0;
        (*t).flags = talk_flag::WATCHED | talk_flag::UNIX;
        (*t).head = [0; 2];
        (*s).talk.write_seq = 0;
        (*s).talk.copied_seq = 0;
        (*s).got_len = 0;
        (*s).tail = [0; 2];
    }
}

/// A unix socket's last descriptor is closed.
#[inline(always)]
fn on_release(sk: u64) {
    if let Some(s) = STANDING.get_ptr_mut(sk) {
        unix_end::closed(s, sk);
        let _ = STANDING.remove(sk);
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

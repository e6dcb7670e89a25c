//! What name servers tell a worker that asks them: only replies without an answer, and reads that failed.
//!
//! nginx reads them with `recv()` from connected UDP sockets (ngx_udp_unix_recv). The arguments come from the saved
//! registers, so that one function serves trampolines and kretprobes, of IPv4 and IPv6.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_probe_read_user, bpf_ringbuf_submit},
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use tracer_ebpf::{
    Addr, kind,
    request::{Dns, MOST_DNS},
};

use crate::{
    emit::{self, count},
    kernel::{self, read, read_user},
    maps::{EVENTS, setting},
    procs,
};

const EAGAIN: i32 = 11;
const EINTR: i32 = 4;
const IPPROTO_UDP: u16 = 17;

/// Length of a message's header (RFC 1035, 4.1.1).
const HEADER: i32 = 12;

/// `udp_recvmsg(sk, msg, len, noblock, flags, addr_len)` until 5.18, without `noblock` since, and without
/// `addr_len` by 7.2: the return value stands behind them.
#[inline(always)]
fn returned(ctx: &FExitContext) -> i32 {
    let at = ctx.as_ptr();
    let ret: u64;
    // SAFETY: loads from the context, of which the verifier checks each. Written out because the compiler would load
    // once from an address that it has computed, which the verifier refuses of a context.
    unsafe {
        match setting!(udp_recv_args) {
            6 => core::arch::asm!("{ret} = *(u64 *)({at} + 48)", at = in(reg) at, ret = out(reg) ret),
            5 => core::arch::asm!("{ret} = *(u64 *)({at} + 40)", at = in(reg) at, ret = out(reg) ret),
            4 => core::arch::asm!("{ret} = *(u64 *)({at} + 32)", at = in(reg) at, ret = out(reg) ret),
            _ => return 0,
        }
    }
    ret as i32
}

#[fexit(function = "udp_recvmsg")]
fn dns4_fexit(ctx: FExitContext) -> i32 {
    on_read(returned(&ctx));
    0
}

#[fexit(function = "udpv6_recvmsg")]
fn dns6_fexit(ctx: FExitContext) -> i32 {
    on_read(returned(&ctx));
    0
}

#[kretprobe]
fn dns4_kretprobe(ctx: RetProbeContext) -> u32 {
    on_read(ctx.ret());
    0
}

#[kretprobe]
fn dns6_kretprobe(ctx: RetProbeContext) -> u32 {
    on_read(ctx.ret());
    0
}

#[inline(always)]
fn on_read(ret: i32) {
    if ret == -EAGAIN || ret == -EINTR || (0..HEADER).contains(&ret) {
        return;
    }
    let Some((tgid, _)) = procs::worker() else {
        return;
    };
    let Some((fd, buf)) = kernel::syscall_args(setting!(nr_recvfrom)) else {
        return;
    };
    let mut len = 0;
    if ret > 0 {
        // Identifier, flags, questions, answers.
        let words = read_user::<u64>(buf).to_le_bytes();
        let (reply, truncated) = (words[2] & 0x80 != 0, words[2] & 2 != 0);
        let (code, answers) = (words[3] & 15, words[6] | words[7]);
        if !reply || (code == 0 && answers != 0 && !truncated) {
            return;
        }
        len = ret as u32;
    }
    send(tgid, fd as u32, buf, ret, len);
}

#[repr(C)]
struct Record {
    head: Dns,
    bytes: [u8; MOST_DNS + 1],
}

#[inline(never)]
fn send(tgid: u32, fd: u32, buf: u64, ret: i32, len: u32) {
    let sk = kernel::sock_of_fd(fd, IPPROTO_UDP);
    if sk == 0 {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        count(|c| c.hints_lost += 1);
        return;
    };
    let to = entry.as_mut_ptr();
    core::mem::forget(entry);
    let family: u16 = read(sk, setting!(skc_family));
    // SAFETY: reserved bytes, 8-byte aligned, submitted below; every field of the head is written, and user space
    // reads no more bytes than were copied.
    unsafe {
        let head = &raw mut (*to).head;
        (*head).kind = kind::DNS;
        (*head).tgid = tgid;
        (*head).time_ns = emit::now_ns();
        kernel::sock_addr_to(
            (&raw mut (*head).server).cast::<Addr>(),
            sk,
            family,
            setting!(skc_daddr),
            setting!(skc_v6_daddr),
        );
        (*head).server_port = u16::from_be(read(sk, setting!(skc_dport)));
        (*head)._pad = 0;
        (*head).ret = ret;
        (*head)._pad2 = 0;
        let mut len = u64::from(len).min(MOST_DNS as u64);
        // The verifier wants to see the bound in the register that is used.
        core::arch::asm!("{len} &= 511", len = inlateout(reg) len);
        let bytes = (&raw mut (*to).bytes).cast::<core::ffi::c_void>();
        let done = len != 0 && bpf_probe_read_user(bytes, len as u32, buf as *const _) == 0;
        (*head).len = if done { len as u32 } else { 0 };
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
}

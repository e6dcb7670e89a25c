//! connect() of a worker to a unix stream socket. It fails or succeeds at once; nginx gives a failed one up before it
//! does anything else.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_probe_read_user, bpf_probe_read_user_str, bpf_ringbuf_submit},
};
use tracer_ebpf::{
    Proc, flag, kind,
    unix::{LIBC, NAME, Unix},
};

use super::{connect::empty, unix_talk};
use crate::{
    emit::{self, count},
    kernel::{self, AF_UNIX, read_user},
    maps::{EVENTS, setting},
    nginx,
    probes::said,
    procs,
    repeats::{self, COUNTED, EXEMPLAR},
};

/// `sun_family` is what stands before the name.
const FAMILY: u64 = 2;

/// A connect() of this worker failed that was not one of TCP. `lsm_ret`: what security modules refused it with; 0 if none
/// did. (More than five arguments are not possible.)
#[inline(never)]
pub(super) fn failed(fd: u32, addr: u64, proc: *mut Proc, ret: i32, lsm_ret: i32) {
    let sk = kernel::unix_stream_of_fd(fd);
    if proc.is_null() || sk == 0 || read_user::<u16>(addr) != AF_UNIX {
        return;
    }
    if is_libc(addr + FAMILY) {
        return;
    }
    let mut flags = if lsm_ret == 0 { 0 } else { flag::LSM };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let mut conn = empty(tgid);
    let mut place = repeats::place_unix(sk, addr + FAMILY, conn.start_ns, ret, lsm_ret);
    kernel::forget(&mut place);
    if place == COUNTED {
        count(|c| c.connects += 1);
        return;
    }
    if place == EXEMPLAR {
        flags |= flag::EXEMPLAR;
    }
    conn.nginx = nginx::connection_of(sk, fd);
    // nginx closes it right after this, without a hook.
    if conn.nginx != 0 && said::ask(sk, conn.start_ns, conn.nginx) == nginx::FOUND {
        flags |= flag::ASKED;
    }
    count(|c| {
        c.connects += 1;
        c.failed += 1;
    });
    let Some(mut entry) = EVENTS.reserve::<Unix>(0) else {
        count(|c| c.lost += 1);
        return;
    };
    let to = entry.as_mut_ptr();
    core::mem::forget(entry);
    let len = kernel::third_arg().saturating_sub(FAMILY).min(NAME as u64);
    // SAFETY: reserved bytes, 8-byte aligned, of which every one is written, submitted below.
    unsafe {
        (*to).kind = kind::UNIX;
        (*to).flags = conn.flags | flags;
        (*to).time_ns = conn.start_ns;
        (*to).sk = sk;
        (*to).tgid = tgid;
        (*to).netns = kernel::sock_netns(sk);
        (*to).ret = ret;
        (*to).lsm_ret = lsm_ret;
        (*to).len = len as u16;
        (*to)._pad = [0; 3];
        (*to)._pad2 = 0;
        copy_name((&raw mut (*to).name).cast(), addr + FAMILY);
        bpf_ringbuf_submit(to.cast(), emit::wakeup());
    }
    count(|c| c.sent += 1);
}

/// True for a name by which libc asks daemons.
#[inline(always)]
pub(super) fn is_libc(name: u64) -> bool {
    let begins: [u64; 2] = read_user(name);
    LIBC.iter().any(|asked| {
        let [a, b] = words(*asked);
        begins[0] == a && begins[1] == b
    })
}

/// Copies a name. nginx hands over a whole `sockaddr_un`, whatever the name's length; of a shorter one the page may end
/// behind it.
///
/// # Safety
/// `to` points to [`NAME`] writable bytes.
#[inline(always)]
pub(super) unsafe fn copy_name(to: *mut u8, name: u64) {
    let from = name as *const core::ffi::c_void;
    // SAFETY: by this function's contract.
    unsafe {
        if bpf_probe_read_user(to.cast(), NAME as u32, from) != 0 {
            bpf_probe_read_user_str(to.cast(), NAME as u32, from);
        }
    }
}

/// As two words: comparing bytes would call `memcmp`.
#[inline(always)]
const fn words(bytes: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

/// A connect() succeeded.
#[inline(always)]
pub(super) fn stands() {
    if procs::worker().is_none() {
        return;
    }
    let Some((fd, addr)) = kernel::syscall_args(setting!(nr_connect)) else {
        return;
    };
    let sk = kernel::unix_stream_of_fd(fd as u32);
    if sk != 0 {
        unix_talk::begin(sk, fd as u32, addr);
    }
}

//! How a connection to a unix socket ended: what its record says in the place of TCP's numbers, and who closed the far end.

use core::mem::offset_of;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracer_ebpf::{
    Conn,
    talk::{Broken, talk_flag},
    unix::{Far, NAME, Standing, far},
};

use crate::{
    conns, emit,
    kernel::{self, read},
    maps::setting,
    probes::death,
};

const TCP_ESTABLISHED: u8 = 1;

/// Writes what a record has of a unix socket, over what was read as if it were one of TCP.
#[inline(never)]
pub(crate) fn describe(to: *mut Broken, sk: u64, conn: *mut Conn, more: u32) -> u32 {
    if to.is_null() || conn.is_null() {
        return 0;
    }
    let talk = conns::talk_of(conn);
    // By a helper: the verifier does not know that this is a `Standing`, as its flags say.
    let s = conn as u64;
    // SAFETY: `to` points to a reserved record, `conn` to the beginning of a live `Standing`.
    unsafe {
        let a = to.cast::<tracer_ebpf::Attempt>();
        let nothing = Far { flags: 0, inode: 0, unread: 0, _pad: 0 };
        // After the close, or while the exchange goes on, there is nothing to be looked at.
        let ends = more & (talk_flag::SAID_5XX | talk_flag::ANSWERED_BAD) == 0;
        (*a).saddr = [0; 16];
        *(&raw mut (*a).daddr).cast::<Far>() = if ends { far_of(sk) } else { nothing };
        (*a).family = kernel::AF_UNIX;
        (*a).sport = 0;
        (*a).dport = 0;
        (*a).retransmits = 0;
        (*a).sk_err_soft = 0;
        (*a).bytes_received = u64::from((*talk).copied_seq);
        (*to).sent_bytes = (*talk).write_seq;
        (*to).unacked = 0;
        (*to).total_retrans = 0;
        (*to).srtt_us = 0;
        (*to).name_len = read(s, offset_of!(Standing, name_len) as u32);
        let name = (s + offset_of!(Standing, name) as u64) as *const core::ffi::c_void;
        bpf_probe_read_kernel((&raw mut (*to).name).cast(), NAME as u32 + 4, name);
    }
    1
}

/// The far end of a watched connection is closed, in the process that held it.
#[inline(never)]
pub(super) fn far_end_closed(s: *mut Standing, watched: u64) -> u32 {
    if s.is_null() {
        return 0;
    }
    // SAFETY: a live map element; nothing but this writes this field.
    unsafe {
        // What nginx has not read yet counts as an answer as well.
        let answered = u64::from((*s).talk.copied_seq) + u64::from(unread(watched)) >= death::ANSWER;
        if death::is_told(answered) {
            death::died(watched, 0);
        }
        // After the death is told, whose own time must not be the later of the two: a virtual CPU may lie still in between.
        (*s).talk.fin_ns = emit::now_ns();
    }
    0
}

/// Bytes that have arrived and that nginx has not read: of the first pieces, if there are many.
#[inline(never)]
pub(crate) fn unread(sk: u64) -> u32 {
    if !kernel::has(setting!(sk_receive_queue)) {
        return 0;
    }
    let head = sk + u64::from(setting!(sk_receive_queue));
    let mut at: u64 = read(head, 0);
    let mut sum: u32 = 0;
    let mut piece = 0;
    while piece < 4 {
        if at == head || at == 0 {
            break;
        }
        sum = sum.saturating_add(read::<u32>(at, setting!(skb_len)));
        at = read(at, 0);
        piece += 1;
    }
    sum
}

/// The far end, as nginx closes its own.
#[inline(always)]
fn far_of(sk: u64) -> Far {
    let mut found = Far { flags: 0, inode: 0, unread: 0, _pad: 0 };
    if !kernel::has(setting!(unix_peer)) {
        return found;
    }
    let peer: u64 = read(sk, setting!(unix_peer));
    if peer == 0 || read::<u8>(peer, setting!(skc_state)) != TCP_ESTABLISHED {
        return found;
    }
    found.flags = far::OPEN;
    if kernel::has(setting!(sk_wmem_alloc)) {
        // One is the socket's own.
        let held: u32 = read(sk, setting!(sk_wmem_alloc));
        found.unread = held.saturating_sub(1);
        // As unix_writable() counts (net/unix/af_unix.c).
        if kernel::has(setting!(sk_sndbuf)) && held >= read::<u32>(sk, setting!(sk_sndbuf)) / 4 {
            found.flags |= far::FULL;
        }
    }
    if kernel::has(setting!(sk_socket)) {
        let socket: u64 = read(peer, setting!(sk_socket));
        if socket != 0 {
            found.flags |= far::ACCEPTED;
            if kernel::has(setting!(socket_ino)) {
                found.inode = read(socket, setting!(socket_ino));
            }
        }
    }
    found
}

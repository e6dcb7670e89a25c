//! Connections that are older than why502: user space runs these programs once for each of them, they hang on no hook.
//!
//! Their entries are written out, since aya's `#[raw_tracepoint]` returns 0 whatever its function says.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext as _, helpers::bpf_get_current_task, programs::RawTracePointContext};
use tracer_ebpf::{
    PeerKey, flag,
    older::{Older, UNKNOWN, answer},
    talk::{Talk, proto, talk_flag},
};

use super::state;
use crate::{
    conns, emit,
    kernel::{self, read},
    maps::{OLDER, setting},
    nginx,
};

/// Processes looked at in one run.
const STEPS: u32 = 256;
// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;

/// Looks for a process (the only argument: its thread group id) in the kernel's list of all, and leaves it in `OLDER`. The list
/// is read without a lock: who is not found may be there nevertheless.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn find_process(ctx: *mut c_void) -> u32 {
    find(RawTracePointContext::new(ctx).arg::<u64>(0) as u32)
}

#[inline(always)]
fn find(tgid: u32) -> u32 {
    let Some(walk) = OLDER.get_ptr_mut(0) else {
        return answer::GONE;
    };
    // SAFETY: a live array element that only user space's one thread has written by.
    unsafe {
        (*walk).task = 0;
        let first: u64 = read(bpf_get_current_task(), setting!(task_leader));
        let mut at = if (*walk).at == 0 { first } else { (*walk).at };
        let mut step = 0;
        while step < STEPS {
            if read::<u32>(at, setting!(task_tgid)) == tgid {
                (*walk).task = at;
                (*walk).at = 0;
                return answer::DONE;
            }
            let next: u64 = read(at, setting!(task_tasks));
            if next == 0 {
                // It was freed meanwhile: from the beginning.
                at = 0;
                break;
            }
            at = next.wrapping_sub(u64::from(setting!(task_tasks)));
            if at == first {
                (*walk).at = 0;
                return answer::GONE;
            }
            step += 1;
        }
        (*walk).at = at;
    }
    answer::MORE
}

/// Enters a connection: the arguments are those of [`Older`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn enter_older(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    // SAFETY: the context is as many words as `Older` has; the verifier, and the kernel as it is run, check that.
    let told = unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<Older>()) };
    enter(&told)
}

#[inline(always)]
fn enter(told: &Older) -> u32 {
    let tgid = told.tgid as u32;
    // SAFETY: an integer of an array element.
    let task = OLDER.get_ptr(0).map_or(0, |walk| unsafe { (*walk).task });
    if task == 0 || read::<u32>(task, setting!(task_tgid)) != tgid {
        return answer::GONE;
    }
    let file = kernel::file_of(task, told.fd as u32);
    let socket: u64 = if file == 0 { 0 } else { read(file, setting!(file_private)) };
    let sk: u64 = read(socket, setting!(socket_sk));
    // Another file has something else there.
    let is_socket = kernel::has(setting!(sk_socket)) && read::<u64>(sk, setting!(sk_socket)) == socket;
    if sk == 0 || !is_socket || !kernel::is_tcp(sk) {
        return answer::GONE;
    }
    if kernel::has(setting!(socket_ino)) && read::<u64>(socket, setting!(socket_ino)) != told.inode {
        return answer::GONE;
    }
    let state: u8 = read(sk, setting!(skc_state));
    if state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT {
        return answer::GONE;
    }
    if conns::find(sk).is_some() {
        return answer::KNOWN;
    }
    let Some(mut conn) = state::new_conn(sk, tgid) else {
        return answer::GONE;
    };
    // When it was entered: a name, not a beginning.
    conn.flags = flag::UNKNOWN_START | flag::EVIDENCE_GAP;
    // Whether it is nginx's is seen when it is asked: this is another process.
    conn.nginx = nginx::registered(file);
    state::remember(&PeerKey { addr: conn.daddr, port: conn.dport, _pad: 0 });
    let talk = seed(sk, told, state == TCP_CLOSE_WAIT);
    if !conns::enter(sk, &conn, &talk) {
        return answer::FULL;
    }
    // From now on the hooks follow it. What passed before, and user space does not know of, is the next look's.
    let closed = read::<u8>(sk, setting!(skc_state)) != state;
    let received: u64 = read(sk, setting!(bytes_received));
    let sent: u64 = read(sk, setting!(bytes_sent));
    if closed || received != told.received || sent != told.sent {
        conns::close(sk);
        return answer::CHANGED;
    }
    answer::DONE
}

/// What is known of the exchange at work, if one is.
#[inline(always)]
fn seed(sk: u64, told: &Older, ended: bool) -> Talk {
    // SAFETY: integers only.
    let mut talk: Talk = unsafe { core::mem::zeroed() };
    let now = emit::now_ns();
    let before = |us: u64| now.wrapping_sub(us.wrapping_mul(1000));
    let kind = told.proto as u32 & (talk_flag::PROTO >> talk_flag::PROTO_SHIFT);
    talk.flags = talk_flag::FOUND | talk_flag::BEFORE | kind << talk_flag::PROTO_SHIFT;
    if kind == proto::TLS {
        talk.flags |= talk_flag::TLS | talk_flag::TLS_DATA;
    }
    talk.write_seq = read(sk, setting!(write_seq));
    talk.copied_seq = read(sk, setting!(copied_seq));
    if ended {
        talk.fin_ns = now;
        talk.end_seq = talk.write_seq;
    }
    if told.sent_us != UNKNOWN {
        talk.sent_ns = before(told.sent_us);
        talk.last_sent_ns = talk.sent_ns;
        talk.requests = 1;
        if setting!(talk) != 0 {
            talk.flags |= talk_flag::WATCHED;
        }
    } else if told.read_us != UNKNOWN {
        talk.read_ns = before(told.read_us);
    }
    talk
}

//! Which processes are nginx's.

use tracer_ebpf::{MARKS as PLACES, Proc, role};

use crate::{
    kernel,
    maps::{MARKS, PROCS},
};

/// False if that process is certainly not nginx's.
#[inline(always)]
pub(crate) fn marked(tgid: u32) -> bool {
    // SAFETY: an integer of a live array element.
    MARKS.get_ptr(tgid & (PLACES - 1)).is_some_and(|mark| unsafe { *mark } != 0)
}

/// Watches a process.
#[inline(always)]
pub(crate) fn enter(tgid: u32, proc: &Proc) {
    if let Some(mark) = MARKS.get_ptr_mut(tgid & (PLACES - 1)) {
        // SAFETY: an integer of a live array element; whoever writes writes the same.
        unsafe { *mark = 1 };
    }
    // Full: user space finds it, too, and says so.
    let _ = PROCS.insert(tgid, proc, 0);
}

/// The current process, if it is a verified nginx.
#[inline(always)]
pub(crate) fn worker() -> Option<(u32, *mut Proc)> {
    let tgid = kernel::tgid();
    if !marked(tgid) {
        return None;
    }
    // SAFETY: one integer of a map element.
    PROCS.get_ptr_mut(tgid).filter(|p| unsafe { (**p).role } == role::NGINX).map(|proc| (tgid, proc))
}

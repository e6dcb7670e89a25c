//! What security modules, cgroup programs and system call filters answer to a worker's socket(), bind() and connect().
//!
//! Only refusals look any further (and SELinux's denials, which permissive mode lets through). What was asked for is
//! read from the saved user registers, as the positions of arguments differ from kernel to kernel.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_current_pid_tgid,
    macros::{fexit, kprobe, kretprobe, raw_tracepoint},
    programs::{FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use tracer_ebpf::{
    NONE,
    denial::{Denial, hook},
    kind,
};

use crate::{
    emit::{self, count},
    kernel::{self, read},
    maps::{AVC, AvcArgs, EVENTS, LSM, setting},
    probes::connect,
    procs,
};

/// What one hook said.
#[derive(Clone, Copy)]
struct Word {
    hook: u32,
    ret: i32,
    tgid: u32,
    avc: AvcArgs,
}

const NO_AVC: AvcArgs = AvcArgs { ssid: 0, tsid: 0, tclass: 0, requested: 0 };

/// The two ways to see what a function of so many arguments returns.
macro_rules! answers {
    ($($hook:ident: $fexit:ident, $kretprobe:ident, $arguments:literal;)+) => {$(
        #[fexit]
        fn $fexit(ctx: FExitContext) -> i32 {
            // The return value stands behind the arguments; bpf_get_func_ret is 5.17+.
            on_answer(hook::$hook, ctx.arg($arguments))
        }

        #[kretprobe]
        fn $kretprobe(ctx: RetProbeContext) -> i32 {
            on_answer(hook::$hook, ctx.ret())
        }
    )+};
}

answers! {
    SUM_CONNECT: sum_connect_fexit, sum_connect_kretprobe, 3;
    SUM_UNIX: sum_unix_fexit, sum_unix_kretprobe, 3;
    SUM_CREATE: sum_create_fexit, sum_create_kretprobe, 4;
    SUM_BIND: sum_bind_fexit, sum_bind_kretprobe, 3;
    SUM_PATH: sum_path_fexit, sum_path_kretprobe, 3;
    SELINUX: selinux_connect_fexit, selinux_connect_kretprobe, 3;
    SELINUX: selinux_unix_fexit, selinux_unix_kretprobe, 3;
    SELINUX: selinux_create_fexit, selinux_create_kretprobe, 4;
    SELINUX: selinux_bind_fexit, selinux_bind_kretprobe, 3;
    APPARMOR: apparmor_connect_fexit, apparmor_connect_kretprobe, 3;
    APPARMOR: apparmor_unix_fexit, apparmor_unix_kretprobe, 3;
    APPARMOR: apparmor_create_fexit, apparmor_create_kretprobe, 4;
    APPARMOR: apparmor_bind_fexit, apparmor_bind_kretprobe, 3;
    TOMOYO: tomoyo_connect_fexit, tomoyo_connect_kretprobe, 3;
    TOMOYO: tomoyo_bind_fexit, tomoyo_bind_kretprobe, 3;
    SMACK: smack_connect_fexit, smack_connect_kretprobe, 3;
    SMACK: smack_unix_fexit, smack_unix_kretprobe, 3;
    LANDLOCK: landlock_connect_fexit, landlock_connect_kretprobe, 3;
    LANDLOCK: landlock_bind_fexit, landlock_bind_kretprobe, 3;
    LANDLOCK: landlock_unix_fexit, landlock_unix_kretprobe, 3;
    LANDLOCK: landlock_path_fexit, landlock_path_kretprobe, 3;
    BPF_LSM: bpf_lsm_connect_fexit, bpf_lsm_connect_kretprobe, 3;
    BPF_LSM: bpf_lsm_unix_fexit, bpf_lsm_unix_kretprobe, 3;
    BPF_LSM: bpf_lsm_create_fexit, bpf_lsm_create_kretprobe, 4;
    BPF_LSM: bpf_lsm_bind_fexit, bpf_lsm_bind_kretprobe, 3;
    CGROUP_CREATE: cgroup_create_fexit, cgroup_create_kretprobe, 2;
}

#[inline(always)]
fn on_answer(hook: u32, ret: i32) -> i32 {
    if ret < 0
        && let Some((tgid, _)) = procs::worker()
    {
        if hook == hook::SUM_CONNECT {
            let _ = LSM.insert(bpf_get_current_pid_tgid(), ret, 0);
        }
        tell(&Word { hook, ret, tgid, avc: NO_AVC });
    }
    0
}

/// The return value behind so many arguments, known to the verifier as a constant. Written out because the compiler
/// would load once from an address that it has computed, which the verifier refuses of a context.
macro_rules! behind {
    ($ctx:expr, $count:expr, $($known:literal => $offset:literal),+) => {{
        let at = $ctx.as_ptr();
        let ret: u64;
        // SAFETY: loads from the context, of which the verifier checks each.
        unsafe {
            match $count {
                $($known => core::arch::asm!(
                    concat!("{ret} = *(u64 *)({at} + ", $offset, ")"), at = in(reg) at, ret = out(reg) ret
                ),)+
                _ => return 0,
            }
        }
        ret as i32
    }};
}

/// `__cgroup_bpf_run_filter_sock_addr`: connect4, connect6 and bind programs. Four arguments in 5.10, `flags` since
/// 5.12, `uaddrlen` since 6.7.
#[fexit]
fn cgroup_connect_fexit(ctx: FExitContext) -> i32 {
    let ret = behind!(ctx, setting!(sock_addr_args), 4 => "32", 5 => "40", 6 => "48");
    on_answer(hook::CGROUP_CONNECT, ret)
}

#[kretprobe]
fn cgroup_connect_kretprobe(ctx: RetProbeContext) -> i32 {
    on_answer(hook::CGROUP_CONNECT, ctx.ret())
}

/// `avc_denied` where its first arguments are the decision's numbers (6.4 and later); trampolines take as many
/// arguments as it has since 6.6.
#[fexit]
fn avc_denied_fexit(ctx: FExitContext) -> i32 {
    let ret = behind!(ctx, setting!(avc_args), 8 => "64", 9 => "72");
    let Some((tgid, _)) = procs::worker() else {
        return 0;
    };
    let avc = AvcArgs { ssid: ctx.arg(0), tsid: ctx.arg(1), tclass: ctx.arg(2), requested: ctx.arg(3) };
    tell(&Word { hook: hook::AVC_DENIED, ret, tgid, avc });
    0
}

/// The arguments are kept until [`avc_denied_kretprobe`].
#[kprobe]
fn avc_denied_kprobe(ctx: ProbeContext) -> u32 {
    if procs::worker().is_none() {
        return 0;
    }
    // struct pt_regs of x86-64 to di; copied, as the verifier refuses an address in the context that was computed.
    let regs: [u64; 15] = read(ctx.as_ptr() as u64, 0);
    let [.., r8, _, cx, dx, si, di] = regs.map(|value| value as u32);
    let avc = if setting!(avc_first) == 1 {
        AvcArgs { ssid: si, tsid: dx, tclass: cx, requested: r8 }
    } else {
        AvcArgs { ssid: di, tsid: si, tclass: dx, requested: cx }
    };
    let _ = AVC.insert(bpf_get_current_pid_tgid(), avc, 0);
    0
}

#[kretprobe]
fn avc_denied_kretprobe(ctx: RetProbeContext) -> u32 {
    let Some((tgid, _)) = procs::worker() else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: integers, copied at once.
    let Some(avc) = (unsafe { AVC.get(thread) }).copied() else {
        return 0;
    };
    let _ = AVC.remove(thread);
    tell(&Word { hook: hook::AVC_DENIED, ret: ctx.ret(), tgid, avc });
    0
}

/// What goes into the audit log: also grants, where the policy says `auditallow`.
#[raw_tracepoint(tracepoint = "selinux_audited")]
fn selinux_audited(ctx: RawTracePointContext) -> i32 {
    let Some((tgid, _)) = procs::worker() else {
        return 0;
    };
    let data: u64 = ctx.arg(0);
    let denied: u32 = read(data, setting!(audit_denied));
    if denied == 0 || setting!(audit_ssid) == NONE {
        return 0;
    }
    let avc = AvcArgs {
        ssid: read(data, setting!(audit_ssid)),
        tsid: read(data, setting!(audit_tsid)),
        tclass: u32::from(read::<u16>(data, setting!(audit_tclass))),
        requested: read(data, setting!(audit_requested)),
    };
    let ret = read(data, setting!(audit_result));
    tell(&Word { hook: hook::AVC_AUDIT, ret, tgid, avc });
    0
}

/// `__secure_computing`: a call that a filter answers does not run. One argument until 6.15, none since.
#[fexit]
fn seccomp_fexit(ctx: FExitContext) -> i32 {
    let ret = behind!(ctx, setting!(seccomp_args), 0 => "0", 1 => "8");
    if ret == 0 { 0 } else { on_filter() }
}

#[kretprobe]
fn seccomp_kretprobe(ctx: RetProbeContext) -> i32 {
    if ctx.ret::<i32>() == 0 { 0 } else { on_filter() }
}

/// A function of its own, as the stack is dear.
#[inline(never)]
fn filter_said(ret: i32, tgid: u32) -> u32 {
    tell(&Word { hook: hook::SECCOMP, ret, tgid, avc: NO_AVC });
    1
}

/// The hooks on the call's own function are not reached: what they would tell is told here.
#[inline(always)]
fn on_filter() -> i32 {
    let Some((tgid, _)) = procs::worker() else {
        return 0;
    };
    let Some((nr, ret)) = kernel::syscall_answer() else {
        return 0;
    };
    if nr != setting!(nr_connect) && nr != setting!(nr_bind) && nr != setting!(nr_socket) {
        return 0;
    }
    filter_said(ret, tgid);
    if nr == setting!(nr_connect) {
        connect::on_connect(ret)
    } else if nr == setting!(nr_bind) {
        connect::on_bind(ret)
    } else {
        connect::on_socket(ret)
    }
}

/// Sends what a hook said, with what the system call asked for. Other calls than those for connections are left out:
/// a worker that may not read its files is no upstream failure.
#[inline(never)]
fn tell(word: &Word) {
    let (nr, first, second) = kernel::syscall();
    let socket = nr == setting!(nr_socket);
    if !socket && nr != setting!(nr_connect) && nr != setting!(nr_bind) {
        return;
    }
    let thread = bpf_get_current_pid_tgid() as u32;
    // File operations of thread pools run beside the connecting thread.
    if thread != word.tgid {
        return;
    }
    let (mut sk, mut arg) = (0, 0);
    let (family, dport, daddr) = if socket {
        arg = second as u32;
        (first as u16, 0, [0; 16])
    } else {
        sk = kernel::any_sock_of_fd(first as u32);
        connect::user_sockaddr(second)
    };
    let Some(mut entry) = EVENTS.reserve::<Denial>(0) else {
        count(|c| c.lost += 1);
        return;
    };
    entry.write(Denial {
        kind: kind::DENIAL,
        hook: word.hook,
        tgid: word.tgid,
        tid: thread,
        time_ns: emit::now_ns(),
        sk,
        ret: word.ret,
        dport,
        family,
        daddr,
        ssid: word.avc.ssid,
        tsid: word.avc.tsid,
        tclass: word.avc.tclass,
        requested: word.avc.requested,
        syscall: nr,
        arg,
    });
    entry.submit(emit::wakeup());
}

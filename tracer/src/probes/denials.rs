//! Hooks on what security modules, cgroup programs and system call filters answer.
//!
//! The sum of all modules says *that* one refused; each module's own function says *which*. A module's functions are
//! attached only where it is active: elsewhere they are never called.

use super::{Attach, FULL, KPROBE, Probe, Tier, Variant, everywhere, on};

const BOTH: &[Tier] = &[Tier::Full, Tier::Kprobe];

/// The two ways to see what a function returns.
macro_rules! answer {
    ($name:literal, $function:literal, $fexit:literal, $kretprobe:literal, $tells:literal, $lost:literal) => {
        Probe {
            name: $name,
            tells: $tells,
            lost: $lost,
            required: false,
            variants: {
                const WAYS: &[Variant] = &[
                    on(FULL, $fexit, Attach::FExit($function)),
                    on(KPROBE, $kretprobe, Attach::KRetProbe($function)),
                ];
                WAYS
            },
        }
    };
}

/// One function of one module.
macro_rules! module {
    ($name:literal, $function:literal, $fexit:literal, $kretprobe:literal) => {
        answer!(
            $name,
            $function,
            $fexit,
            $kretprobe,
            "that this module is the one that refused",
            "which module refused: `likely` at best"
        )
    };
}

/// The rows.
pub const ROWS: &[Probe] = &[
    answer!(
        "security-connect",
        "security_socket_connect",
        "sum_connect_fexit",
        "sum_connect_kretprobe",
        "that a security module refused the connect()",
        "refusals by security modules: told from routes by elimination only"
    ),
    answer!(
        "security-create",
        "security_socket_create",
        "sum_create_fexit",
        "sum_create_kretprobe",
        "that a security module refused the socket()",
        "refusals of socket() by security modules: `likely` at best"
    ),
    answer!(
        "security-bind",
        "security_socket_bind",
        "sum_bind_fexit",
        "sum_bind_kretprobe",
        "that a security module refused the bind()",
        "refusals of bind() by security modules: `likely` at best"
    ),
    answer!(
        "security-unix",
        "security_unix_stream_connect",
        "sum_unix_fexit",
        "sum_unix_kretprobe",
        "that a security module refused a connection to a unix socket",
        "refusals of unix connections by security modules: told from file permissions by elimination only"
    ),
    answer!(
        "security-path",
        "security_unix_find",
        "sum_path_fexit",
        "sum_path_kretprobe",
        "that a security module refused the path of a unix socket",
        "refusals of unix sockets by their path"
    ),
    module!(
        "selinux-connect",
        "selinux_socket_connect",
        "selinux_connect_fexit",
        "selinux_connect_kretprobe"
    ),
    module!(
        "selinux-unix",
        "selinux_socket_unix_stream_connect",
        "selinux_unix_fexit",
        "selinux_unix_kretprobe"
    ),
    module!("selinux-create", "selinux_socket_create", "selinux_create_fexit", "selinux_create_kretprobe"),
    module!("selinux-bind", "selinux_socket_bind", "selinux_bind_fexit", "selinux_bind_kretprobe"),
    Probe {
        name: SELINUX_AVC,
        tells: "what SELinux's policy does not allow, silenced denials and permissive mode included",
        lost: "the contexts and permission that SELinux denied, and denials that no log shows",
        required: false,
        variants: &[
            on(FULL, "avc_denied_fexit", Attach::FExit("avc_denied")),
            on(BOTH, "avc_denied_kretprobe", Attach::KRetProbe("avc_denied")),
        ],
    },
    Probe {
        name: SELINUX_AVC_ENTRY,
        tells: "the numbers of SELinux's decision, where no trampoline takes so many arguments (before 6.6)",
        lost: "the contexts and permission that SELinux denied",
        required: false,
        variants: &[on(BOTH, "avc_denied_kprobe", Attach::KProbe("avc_denied"))],
    },
    Probe {
        name: "selinux-audited",
        tells: "which of SELinux's denials go into the audit log",
        lost: "whether a denial was silenced",
        required: false,
        variants: &[everywhere("selinux_audited", "selinux_audited")],
    },
    module!(
        "apparmor-connect",
        "apparmor_socket_connect",
        "apparmor_connect_fexit",
        "apparmor_connect_kretprobe"
    ),
    module!(
        "apparmor-create",
        "apparmor_socket_create",
        "apparmor_create_fexit",
        "apparmor_create_kretprobe"
    ),
    module!("apparmor-bind", "apparmor_socket_bind", "apparmor_bind_fexit", "apparmor_bind_kretprobe"),
    module!(
        "apparmor-unix",
        "apparmor_unix_stream_connect",
        "apparmor_unix_fexit",
        "apparmor_unix_kretprobe"
    ),
    module!("tomoyo-connect", "tomoyo_socket_connect", "tomoyo_connect_fexit", "tomoyo_connect_kretprobe"),
    module!("tomoyo-bind", "tomoyo_socket_bind", "tomoyo_bind_fexit", "tomoyo_bind_kretprobe"),
    module!("smack-connect", "smack_socket_connect", "smack_connect_fexit", "smack_connect_kretprobe"),
    module!("smack-unix", "smack_unix_stream_connect", "smack_unix_fexit", "smack_unix_kretprobe"),
    module!(
        "landlock-connect",
        "hook_socket_connect",
        "landlock_connect_fexit",
        "landlock_connect_kretprobe"
    ),
    module!("landlock-bind", "hook_socket_bind", "landlock_bind_fexit", "landlock_bind_kretprobe"),
    module!("landlock-unix", "hook_unix_stream_connect", "landlock_unix_fexit", "landlock_unix_kretprobe"),
    module!("landlock-path", "hook_unix_find", "landlock_path_fexit", "landlock_path_kretprobe"),
    module!("bpf-connect", "bpf_lsm_socket_connect", "bpf_lsm_connect_fexit", "bpf_lsm_connect_kretprobe"),
    module!("bpf-create", "bpf_lsm_socket_create", "bpf_lsm_create_fexit", "bpf_lsm_create_kretprobe"),
    module!("bpf-bind", "bpf_lsm_socket_bind", "bpf_lsm_bind_fexit", "bpf_lsm_bind_kretprobe"),
    module!("bpf-unix", "bpf_lsm_unix_stream_connect", "bpf_lsm_unix_fexit", "bpf_lsm_unix_kretprobe"),
    answer!(
        "cgroup-connect",
        "__cgroup_bpf_run_filter_sock_addr",
        "cgroup_connect_fexit",
        "cgroup_connect_kretprobe",
        "that a cgroup's connect4, connect6 or bind program refused",
        "refusals by connect4, connect6 and bind programs: `likely` at best"
    ),
    answer!(
        "cgroup-create",
        "__cgroup_bpf_run_filter_sk",
        "cgroup_create_fexit",
        "cgroup_create_kretprobe",
        "that a cgroup's sock_create program refused",
        "refusals by sock_create programs: `likely` at best"
    ),
    answer!(
        "seccomp",
        "__secure_computing",
        "seccomp_fexit",
        "seccomp_kretprobe",
        "that a system call filter answered socket(), bind() or connect()",
        "refusals by system call filters"
    ),
];

/// The row of SELinux's decisions.
pub(super) const SELINUX_AVC: &str = "selinux-avc";
/// The row that [`SELINUX_AVC`] needs where it is a kretprobe.
pub(super) const SELINUX_AVC_ENTRY: &str = "selinux-avc-entry";
/// The row that is attached when a watched process has a system call filter.
pub const SECCOMP: &str = "seccomp";

/// The security module whose function the row watches, as /sys/kernel/security/lsm names it.
#[must_use]
pub fn module_of(probe: &str) -> Option<&'static str> {
    const MODULES: &[&str] = &["selinux", "apparmor", "tomoyo", "smack", "landlock", "bpf"];
    let (first, _) = probe.split_once('-')?;
    MODULES.iter().copied().find(|module| *module == first)
}

/// Rows whose function came with some version of the kernel or depends on its configuration, and without which nothing
/// is lost: what does not exist refuses nothing.
#[must_use]
pub fn may_be_absent(probe: &str) -> bool {
    module_of(probe).is_some()
        || matches!(probe, "security-path" | "cgroup-connect" | "cgroup-create" | SECCOMP)
}

/// The functions that stand for BPF LSM's programs on sockets.
pub const LSM_FUNCTIONS: &[&str] = &[
    "bpf_lsm_socket_connect",
    "bpf_lsm_socket_create",
    "bpf_lsm_socket_post_create",
    "bpf_lsm_socket_bind",
    "bpf_lsm_unix_stream_connect",
];

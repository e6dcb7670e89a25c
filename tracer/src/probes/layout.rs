//! Facts of the running kernel for the BPF object: from type information and symbols to [`Settings`].

use std::collections::HashMap;

use thiserror::Error;
use tracer_ebpf::{NONE, Settings, WIRE_VERSION, drop_class};

use crate::sys::btf::{Btf, BtfError};

/// The kernel lacks what every tier needs.
#[derive(Debug, Error)]
#[error(
    "this kernel's layout is not known: {}. why502 reads these from the kernel's type information; please \
     report the kernel version with this message",
    .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
)]
pub struct LayoutError(pub Vec<BtfError>);

/// Names of the drop reasons by [`drop_class`], without `SKB_DROP_REASON_` (include/net/dropreason-core.h).
/// A reason that a kernel does not have is skipped.
const REASONS: [&[&str]; drop_class::COUNT] = [
    &[
        "NOT_SPECIFIED",
        "QDISC_DROP",
        "CPU_BACKLOG",
        "FULL_RING",
        "NOMEM",
        "TAP_FILTER",
        "DEV_READY",
        "DEV_HDR",
        "IP_INADDRERRORS",
        "IP_INHDR",
        "IP_CSUM",
        "TCP_CSUM",
        "PKT_TOO_BIG",
        "IPV6DISABLED",
        "PROTO_MEM",
        "TCP_MD5NOTFOUND",
        "TCP_MD5UNEXPECTED",
        "TCP_MD5FAILURE",
    ],
    &["NETFILTER_DROP"],
    &["NO_SOCKET"],
    &["IP_RPFILTER"],
    &["BPF_CGROUP_EGRESS", "SOCKET_FILTER"],
    &["TC_INGRESS", "TC_EGRESS"],
    &["NEIGH_FAILED", "NEIGH_QUEUEFULL", "NEIGH_CREATEFAIL", "NEIGH_DEAD"],
    &["IP_INNOROUTES", "IP_OUTNOROUTES"],
    &["XFRM_POLICY"],
    &["TCP_LISTEN_OVERFLOW"],
];

/// Functions whose address ranges are wanted where `kfree_skb` brings no reason.
pub const RANGES: [&str; 3] = ["nf_hook_slow", "tcp_v4_rcv", "tcp_v6_rcv"];

/// System call numbers of the architecture that this program was built for.
const SYSCALLS: [i64; 9] = [
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_socket,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_writev,
    libc::SYS_write,
    libc::SYS_read,
    libc::SYS_readv,
];

/// `THREAD_SIZE` of x86-64 without KASAN (arch/x86/include/asm/page_64_types.h); needed before 5.15 only.
const THREAD_SIZE: u32 = 16384;

struct Reader<'a> {
    btf: &'a Btf<'a>,
    missing: Vec<BtfError>,
}

impl Reader<'_> {
    fn required(&mut self, path: &str) -> u32 {
        match self.btf.field(path) {
            Ok(field) => field.offset,
            Err(error) => {
                self.missing.push(error);
                NONE
            }
        }
    }

    fn optional(&self, path: &str) -> u32 {
        self.btf.field(path).map_or(NONE, |field| field.offset)
    }
}

/// True if `kfree_skb` has a reason argument (5.17).
#[must_use]
pub fn has_drop_reason(btf: &Btf<'_>) -> bool {
    btf.tracepoint_params("kfree_skb").is_some_and(|count| count >= 3)
}

/// Value of each `enum skb_drop_reason` by name, without its prefix.
#[must_use]
pub fn drop_reasons(btf: &Btf<'_>) -> HashMap<u32, String> {
    btf.enum_values("skb_drop_reason")
        .into_iter()
        .filter_map(|(name, value)| {
            let short = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(&name).to_owned();
            Some((u32::try_from(value).ok()?, short))
        })
        .collect()
}

/// Builds the settings. `conntrack` is nf_conntrack's own type information where that is a module.
///
/// # Errors
/// [`LayoutError`] names every missing type and field at once.
pub fn settings(
    btf: &Btf<'_>,
    conntrack: Option<&Btf<'_>>,
    ranges: &HashMap<String, (u64, u64)>,
) -> Result<Settings, LayoutError> {
    let mut r = Reader { btf, missing: Vec::new() };
    let [nr_connect, nr_bind, nr_socket, nr_recvfrom, nr_sendto, nr_writev, nr_write, nr_read, nr_readv] =
        SYSCALLS.map(|nr| u32::try_from(nr).unwrap_or(NONE));
    let reset_skb = btf
        .params("tcp_reset")
        .and_then(|params| params.iter().position(|p| p == "skb"))
        .and_then(|index| u32::try_from(index).ok());
    let protocol = btf.field("sock.sk_protocol");
    if let Err(error) = &protocol {
        r.missing.push(error.clone());
    }
    let ct = conntrack.unwrap_or(btf);
    let ct_field = |path: &str| ct.field(path).map_or(NONE, |f| f.offset);
    let range = |name: &str| ranges.get(name).map_or([0, 0], |(start, end)| [*start, *end]);
    let mut settings = Settings {
        version: WIRE_VERSION,
        has_connect_exit: 0,
        has_task_pt_regs: u32::from(has_helper(btf, "task_pt_regs")),
        has_drop_reason: u32::from(has_drop_reason(btf)),
        thread_size: THREAD_SIZE,
        nr_connect,
        nr_bind,
        nr_socket,
        arg_tcp_reset_skb: reset_skb.unwrap_or(NONE),
        skc_family: r.required("sock_common.skc_family"),
        skc_daddr: r.required("sock_common.skc_daddr"),
        skc_rcv_saddr: r.required("sock_common.skc_rcv_saddr"),
        skc_dport: r.required("sock_common.skc_dport"),
        skc_v6_daddr: r.optional("sock_common.skc_v6_daddr"),
        skc_v6_rcv_saddr: r.optional("sock_common.skc_v6_rcv_saddr"),
        skc_net: r.required("sock_common.skc_net.net"),
        skc_state: r.required("sock_common.skc_state"),
        sk_err: r.required("sock.sk_err"),
        sk_err_soft: r.required("sock.sk_err_soft"),
        sk_shutdown: r.required("sock.sk_shutdown"),
        sk_protocol: protocol.as_ref().map_or(NONE, |f| f.offset),
        sk_protocol_size: protocol.map_or(0, |f| f.size),
        sk_ack_backlog: r.required("sock.sk_ack_backlog"),
        sk_max_ack_backlog: r.required("sock.sk_max_ack_backlog"),
        sk_error_queue: r.required("sock.sk_error_queue"),
        inet_sport: r.required("inet_sock.inet_sport"),
        icsk_retransmits: r.required("inet_connection_sock.icsk_retransmits"),
        bytes_acked: r.required("tcp_sock.bytes_acked"),
        bytes_received: r.required("tcp_sock.bytes_received"),
        total_retrans: r.required("tcp_sock.total_retrans"),
        srtt_us: r.required("tcp_sock.srtt_us"),
        copied_seq: r.required("tcp_sock.copied_seq"),
        write_seq: r.required("tcp_sock.write_seq"),
        rcv_nxt: r.required("tcp_sock.rcv_nxt"),
        bytes_sent: r.required("tcp_sock.bytes_sent"),
        nr_recvfrom,
        nr_sendto,
        nr_writev,
        nr_write,
        nr_read,
        nr_readv,
        talk: 0,
        tcp_recv_args: argument_count(btf, "tcp_recvmsg"),
        snd_una: r.required("tcp_sock.snd_una"),
        regs_arg2: r.required("pt_regs.dx"),
        packed_regs: 0,
        udp_recv_args: argument_count(btf, "udp_recvmsg"),
        skb_head: r.required("sk_buff.head"),
        skb_data: r.required("sk_buff.data"),
        skb_network_header: r.required("sk_buff.network_header"),
        skb_transport_header: r.required("sk_buff.transport_header"),
        skb_dev: r.required("sk_buff.dev"),
        skb_sk: r.required("sk_buff.sk"),
        skb_iif: r.required("sk_buff.skb_iif"),
        skb_cb: r.required("sk_buff.cb"),
        skb_nfct: r.optional("sk_buff._nfct"),
        serr_ee: r.required("sock_exterr_skb.ee"),
        dev_net: r.required("net_device.nd_net.net"),
        net_inum: r.required("net.ns.inum"),
        task_pid: r.required("task_struct.pid"),
        task_tgid: r.required("task_struct.tgid"),
        task_flags: r.required("task_struct.flags"),
        task_files: r.required("task_struct.files"),
        task_stack: r.required("task_struct.stack"),
        files_fdt: r.required("files_struct.fdt"),
        fdt_fd: r.required("fdtable.fd"),
        fdt_max_fds: r.required("fdtable.max_fds"),
        file_private: r.required("file.private_data"),
        socket_sk: r.required("socket.sk"),
        socket_type: r.required("socket.type"),
        regs_size: btf.struct_size("pt_regs").unwrap_or(0),
        regs_arg0: r.required("pt_regs.di"),
        regs_arg1: r.required("pt_regs.si"),
        regs_nr: r.required("pt_regs.orig_ax"),
        ct_tuple: conntrack_tuple(ct),
        tuple_src: ct_field("nf_conntrack_tuple.src.u3"),
        tuple_sport: ct_field("nf_conntrack_tuple.src.u"),
        tuple_l3num: ct_field("nf_conntrack_tuple.src.l3num"),
        tuple_dst: ct_field("nf_conntrack_tuple.dst.u3"),
        tuple_dport: ct_field("nf_conntrack_tuple.dst.u"),
        tuple_proto: ct_field("nf_conntrack_tuple.dst.protonum"),
        regs_ret: r.required("pt_regs.ax"),
        avc_args: argument_count(btf, "avc_denied"),
        avc_first: btf
            .params("avc_denied")
            .and_then(|params| params.iter().position(|p| p == "ssid"))
            .and_then(|index| u32::try_from(index).ok())
            .unwrap_or(NONE),
        sock_addr_args: argument_count(btf, "__cgroup_bpf_run_filter_sock_addr"),
        seccomp_args: argument_count(btf, "__secure_computing"),
        audit_ssid: r.optional("selinux_audit_data.ssid"),
        audit_tsid: r.optional("selinux_audit_data.tsid"),
        audit_tclass: r.optional("selinux_audit_data.tclass"),
        audit_requested: r.optional("selinux_audit_data.requested"),
        audit_denied: r.optional("selinux_audit_data.denied"),
        audit_result: r.optional("selinux_audit_data.result"),
        task_exit_code: r.required("task_struct.exit_code"),
        task_leader: r.required("task_struct.group_leader"),
        task_tasks: r.required("task_struct.tasks"),
        task_parent: r.required("task_struct.real_parent"),
        task_start: r.required("task_struct.start_time"),
        task_comm: r.required("task_struct.comm"),
        task_signal: r.required("task_struct.signal"),
        signal_exit_code: r.required("signal_struct.group_exit_code"),
        task_slept: r.optional("task_struct.nvcsw"),
        task_ran: r.optional("task_struct.se.sum_exec_runtime"),
        sk_socket: r.optional("sock.sk_socket"),
        si_code: r.optional("kernel_siginfo.si_code"),
        mark_victim_task: u32::from(btf.tracepoint_params("mark_victim").is_some_and(|count| count >= 2)),
        payload: 1,
        regs_arg3: r.required("pt_regs.r10"),
        unix_peer: r.optional("unix_sock.peer"),
        sk_receive_queue: r.optional("sock.sk_receive_queue"),
        sk_wmem_alloc: r.optional("sock.sk_wmem_alloc"),
        socket_ino: socket_inode(btf),
        sk_sndbuf: r.optional("sock.sk_sndbuf"),
        socket_file: r.optional("socket.file"),
        file_ep: btf.field("file.f_ep").or_else(|_| btf.field("file.f_ep_links")).map_or(NONE, |f| f.offset),
        file_ep_is_list: u32::from(btf.field("file.f_ep").is_err()),
        epi_link: r.optional("epitem.fllink"),
        epi_data: epoll_data(btf),
        one_by_one: 0,
        skb_len: r.required("sk_buff.len"),
        follow_new: 1,
        packed_common: 0,
        bucket_mask: 0,
        any_reason: [0; 4],
        reasons: [[0; 4]; drop_class::COUNT],
        nf_hook_slow: range("nf_hook_slow"),
        tcp_v4_rcv: range("tcp_v4_rcv"),
        tcp_v6_rcv: range("tcp_v6_rcv"),
    };
    if !r.missing.is_empty() {
        return Err(LayoutError(r.missing));
    }
    let common = (settings.skc_daddr, settings.skc_dport, settings.skc_family);
    settings.packed_common = u32::from(common == (0, 12, 16));
    let regs = (settings.regs_arg1, settings.regs_arg0, settings.regs_nr);
    let third = settings.regs_arg2;
    settings.packed_regs = u32::from(regs == (third + 8, third + 16, third + 24));
    for (value, name) in drop_reasons(btf) {
        let class = REASONS.iter().position(|names| names.contains(&name.as_str()));
        if let (Some(class), Some(word)) = (class, settings_word(value)) {
            settings.reasons[class][word] |= 1 << (value & 63);
            settings.any_reason[word] |= 1 << (value & 63);
        }
    }
    Ok(settings)
}

/// Where the inode number of a socket lies, from the beginning of its `struct socket`: both are parts of `struct
/// socket_alloc`.
fn socket_inode(btf: &Btf<'_>) -> u32 {
    let parts = ["socket_alloc.socket", "socket_alloc.vfs_inode", "inode.i_ino"].map(|path| btf.field(path));
    match parts {
        [Ok(socket), Ok(inode), Ok(number)] => inode.offset - socket.offset + number.offset,
        _ => NONE,
    }
}

/// Where an `epitem` has what the program gave to epoll: `epoll_event` is packed there, events (4 bytes) and data.
fn epoll_data(btf: &Btf<'_>) -> u32 {
    match (btf.field("epitem.event"), btf.field("epoll_event.data"), btf.field("epitem.fllink")) {
        (Ok(event), Ok(data), Ok(_)) => event.offset + data.offset,
        _ => NONE,
    }
}

/// How many arguments a function has; [`NONE`] if the kernel has no such function.
fn argument_count(btf: &Btf<'_>, function: &str) -> u32 {
    btf.params(function).and_then(|params| u32::try_from(params.len()).ok()).unwrap_or(NONE)
}

fn settings_word(value: u32) -> Option<usize> {
    (value < 256).then_some((value >> 6) as usize)
}

/// Offset of the original tuple in `struct nf_conn`, or [`NONE`] if any part of the path is unknown.
fn conntrack_tuple(ct: &Btf<'_>) -> u32 {
    let parts = [ct.field("nf_conn.tuplehash"), ct.field("nf_conntrack_tuple_hash.tuple")];
    let tuple_known = ct.field("nf_conntrack_tuple.dst.protonum").is_ok();
    match parts {
        [Ok(hash), Ok(tuple)] if tuple_known => hash.offset + tuple.offset,
        _ => NONE,
    }
}

/// True if the kernel has the BPF helper: each is declared as `bpf_<name>`, a function, or listed in
/// `enum bpf_func_id`.
fn has_helper(btf: &Btf<'_>, name: &str) -> bool {
    let id = format!("BPF_FUNC_{name}");
    btf.enum_values("bpf_func_id").iter().any(|(known, _)| *known == id)
}

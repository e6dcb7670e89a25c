//! What the BPF object is told before it is loaded.

use crate::drop_class;

/// Facts of the running kernel, set before the program is loaded. Offsets are in bytes from the start of
/// the named struct; [`NONE`] means that this kernel lacks the field and what needs it is left out.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Settings {
    /// [`WIRE_VERSION`](crate::WIRE_VERSION).
    pub version: u32,
    /// 1 if the errno of `connect()` reaches the program by an exit hook.
    pub has_connect_exit: u32,
    /// 1 if `bpf_task_pt_regs` exists (5.15+).
    pub has_task_pt_regs: u32,
    /// 1 if `kfree_skb` brings a reason (5.17+).
    pub has_drop_reason: u32,
    /// `THREAD_SIZE`, bytes; used only without `bpf_task_pt_regs`.
    pub thread_size: u32,
    /// Number of the connect system call, to trust the saved registers.
    pub nr_connect: u32,
    /// Number of the bind system call.
    pub nr_bind: u32,
    /// Number of the socket system call.
    pub nr_socket: u32,
    /// Argument index of the skb in `tcp_reset`; [`NONE`] before 5.15.
    pub arg_tcp_reset_skb: u32,
    /// sock_common.skc_family.
    pub skc_family: u32,
    /// sock_common.skc_daddr.
    pub skc_daddr: u32,
    /// sock_common.skc_rcv_saddr.
    pub skc_rcv_saddr: u32,
    /// sock_common.skc_dport.
    pub skc_dport: u32,
    /// sock_common.skc_v6_daddr.
    pub skc_v6_daddr: u32,
    /// sock_common.skc_v6_rcv_saddr.
    pub skc_v6_rcv_saddr: u32,
    /// sock_common.skc_net.net.
    pub skc_net: u32,
    /// sock_common.skc_state.
    pub skc_state: u32,
    /// sock.sk_err.
    pub sk_err: u32,
    /// sock.sk_err_soft.
    pub sk_err_soft: u32,
    /// sock.sk_shutdown (byte).
    pub sk_shutdown: u32,
    /// sock.sk_protocol.
    pub sk_protocol: u32,
    /// Size of sock.sk_protocol, bytes (1 or 2).
    pub sk_protocol_size: u32,
    /// sock.sk_ack_backlog.
    pub sk_ack_backlog: u32,
    /// sock.sk_max_ack_backlog.
    pub sk_max_ack_backlog: u32,
    /// sock.sk_error_queue.
    pub sk_error_queue: u32,
    /// inet_sock.inet_sport.
    pub inet_sport: u32,
    /// inet_connection_sock.icsk_retransmits (byte).
    pub icsk_retransmits: u32,
    /// tcp_sock.bytes_acked.
    pub bytes_acked: u32,
    /// tcp_sock.bytes_received.
    pub bytes_received: u32,
    /// tcp_sock.total_retrans.
    pub total_retrans: u32,
    /// tcp_sock.srtt_us.
    pub srtt_us: u32,
    /// tcp_sock.copied_seq.
    pub copied_seq: u32,
    /// tcp_sock.write_seq.
    pub write_seq: u32,
    /// tcp_sock.rcv_nxt.
    pub rcv_nxt: u32,
    /// tcp_sock.bytes_sent.
    pub bytes_sent: u32,
    /// Number of the recvfrom system call.
    pub nr_recvfrom: u32,
    /// Number of the sendto system call.
    pub nr_sendto: u32,
    /// Number of the writev system call.
    pub nr_writev: u32,
    /// Number of the write system call.
    pub nr_write: u32,
    /// Number of the read system call.
    pub nr_read: u32,
    /// Number of the readv system call.
    pub nr_readv: u32,
    /// 1 if nginx's reads and writes are seen.
    pub talk: u32,
    /// How many arguments `tcp_recvmsg` has; [`NONE`] if that is not known.
    pub tcp_recv_args: u32,
    /// tcp_sock.snd_una.
    pub snd_una: u32,
    /// pt_regs register of the third system call argument.
    pub regs_arg2: u32,
    /// 1 if third, second, first argument and system call number lie in a row in pt_regs.
    pub packed_regs: u32,
    /// How many arguments `udp_recvmsg` has; [`NONE`] if that is not known.
    pub udp_recv_args: u32,
    /// sk_buff.head.
    pub skb_head: u32,
    /// sk_buff.data.
    pub skb_data: u32,
    /// sk_buff.network_header.
    pub skb_network_header: u32,
    /// sk_buff.transport_header.
    pub skb_transport_header: u32,
    /// sk_buff.dev.
    pub skb_dev: u32,
    /// sk_buff.sk.
    pub skb_sk: u32,
    /// sk_buff.skb_iif.
    pub skb_iif: u32,
    /// sk_buff.cb.
    pub skb_cb: u32,
    /// sk_buff._nfct.
    pub skb_nfct: u32,
    /// sock_exterr_skb.ee within cb.
    pub serr_ee: u32,
    /// net_device.nd_net.net.
    pub dev_net: u32,
    /// net.ns.inum.
    pub net_inum: u32,
    /// task_struct.pid.
    pub task_pid: u32,
    /// task_struct.tgid.
    pub task_tgid: u32,
    /// task_struct.flags.
    pub task_flags: u32,
    /// task_struct.files.
    pub task_files: u32,
    /// task_struct.stack.
    pub task_stack: u32,
    /// files_struct.fdt.
    pub files_fdt: u32,
    /// fdtable.fd.
    pub fdt_fd: u32,
    /// fdtable.max_fds.
    pub fdt_max_fds: u32,
    /// file.private_data.
    pub file_private: u32,
    /// socket.sk.
    pub socket_sk: u32,
    /// socket.type (short).
    pub socket_type: u32,
    /// Size of pt_regs, bytes.
    pub regs_size: u32,
    /// pt_regs register of the first system call argument.
    pub regs_arg0: u32,
    /// pt_regs register of the second.
    pub regs_arg1: u32,
    /// pt_regs.orig_ax.
    pub regs_nr: u32,
    /// nf_conn.tuplehash[0].tuple.
    pub ct_tuple: u32,
    /// Within the tuple: src.u3.
    pub tuple_src: u32,
    /// Within the tuple: src.u.
    pub tuple_sport: u32,
    /// Within the tuple: src.l3num.
    pub tuple_l3num: u32,
    /// Within the tuple: dst.u3.
    pub tuple_dst: u32,
    /// Within the tuple: dst.u.
    pub tuple_dport: u32,
    /// Within the tuple: dst.protonum.
    pub tuple_proto: u32,
    /// 1 if skc_daddr, skc_dport and skc_family lie at 0, 12 and 16: one read fetches them (all known kernels).
    pub packed_common: u32,
    /// pt_regs register of a system call's return value.
    pub regs_ret: u32,
    /// How many arguments `avc_denied` has; [`NONE`] without SELinux.
    pub avc_args: u32,
    /// Which of them is the source's identifier: 1 up to 6.3, 0 since; [`NONE`] without SELinux.
    pub avc_first: u32,
    /// How many arguments `__cgroup_bpf_run_filter_sock_addr` has; [`NONE`] if that is not known.
    pub sock_addr_args: u32,
    /// How many arguments `__secure_computing` has; [`NONE`] if that is not known.
    pub seccomp_args: u32,
    /// selinux_audit_data.ssid.
    pub audit_ssid: u32,
    /// selinux_audit_data.tsid.
    pub audit_tsid: u32,
    /// selinux_audit_data.tclass (two bytes).
    pub audit_tclass: u32,
    /// selinux_audit_data.requested.
    pub audit_requested: u32,
    /// selinux_audit_data.denied.
    pub audit_denied: u32,
    /// selinux_audit_data.result.
    pub audit_result: u32,
    /// task_struct.exit_code.
    pub task_exit_code: u32,
    /// task_struct.group_leader.
    pub task_leader: u32,
    /// task_struct.tasks (the list of all processes).
    pub task_tasks: u32,
    /// task_struct.real_parent.
    pub task_parent: u32,
    /// task_struct.start_time (CLOCK_MONOTONIC).
    pub task_start: u32,
    /// task_struct.comm.
    pub task_comm: u32,
    /// task_struct.signal.
    pub task_signal: u32,
    /// signal_struct.group_exit_code.
    pub signal_exit_code: u32,
    /// task_struct.nvcsw: how often the thread went to sleep by itself; [`NONE`] if unknown.
    pub task_slept: u32,
    /// task_struct.se.sum_exec_runtime: its time on a CPU, nanoseconds; [`NONE`] if unknown.
    pub task_ran: u32,
    /// sock.sk_socket.
    pub sk_socket: u32,
    /// kernel_siginfo.si_code.
    pub si_code: u32,
    /// 1 if the tracepoint `mark_victim` brings a task (6.8), not its number.
    pub mark_victim_task: u32,
    /// 1 if the first bytes of failed exchanges go to user space; 0 with `--no-payload`.
    pub payload: u32,
    /// pt_regs register of the fourth system call argument.
    pub regs_arg3: u32,
    /// unix_sock.peer.
    pub unix_peer: u32,
    /// sock.sk_receive_queue.
    pub sk_receive_queue: u32,
    /// sock.sk_wmem_alloc (32 bits).
    pub sk_wmem_alloc: u32,
    /// Inode number of a `struct socket` from its beginning (`SOCK_INODE`, include/net/sock.h); [`NONE`] if unknown.
    pub socket_ino: u32,
    /// sock.sk_sndbuf.
    pub sk_sndbuf: u32,
    /// socket.file.
    pub socket_file: u32,
    /// file.f_ep, or file.f_ep_links until 5.10.
    pub file_ep: u32,
    /// 1 if that is a list_head itself (until 5.10), not a pointer to a hlist_head.
    pub file_ep_is_list: u32,
    /// epitem.fllink.
    pub epi_link: u32,
    /// epitem.event.data.
    pub epi_data: u32,
    /// Failures a second that are sent one by one, see [`storm`](crate::storm).
    pub one_by_one: u32,
    /// sk_buff.len.
    pub skb_len: u32,
    /// Number of buckets of open connections, less one; a power of two less one.
    pub bucket_mask: u32,
    /// 1 if a newly executed program with an nginx-like name is to be offered to user space.
    pub follow_new: u32,
    /// All reasons that are looked at, as a bit set: the union of `reasons`.
    pub any_reason: [u64; 4],
    /// `enum skb_drop_reason` values of each [`drop_class`], as bit sets of 256; class 0 holds further
    /// reasons worth noting.
    pub reasons: [[u64; 4]; drop_class::COUNT],
    /// Address range of `nf_hook_slow`: the place of drops before 5.17.
    pub nf_hook_slow: [u64; 2],
    /// Address range of `tcp_v4_rcv`.
    pub tcp_v4_rcv: [u64; 2],
    /// Address range of `tcp_v6_rcv`.
    pub tcp_v6_rcv: [u64; 2],
}

/// An offset or argument that the running kernel does not have.
pub const NONE: u32 = u32::MAX;

const _: () = assert!(size_of::<Settings>().is_multiple_of(8));

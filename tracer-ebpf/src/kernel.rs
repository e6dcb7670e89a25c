//! Reading the running kernel's structures through the offsets in `SETTINGS`.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task,
    generated::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs},
};
use tracer_ebpf::{Addr, FlowKey, NONE};

use crate::maps::setting;

pub(crate) const AF_UNIX: u16 = 1;
pub(crate) const AF_INET: u16 = 2;
pub(crate) const AF_INET6: u16 = 10;

/// Reads a `T` of plain integers at `base + off`; all zeroes if the address is bad (the helper clears
/// the destination then), so a wild pointer can at worst lose evidence.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, off: u32) -> T {
    // SAFETY: T is made of integers (all callers); the helper writes size_of::<T>() bytes in every case.
    unsafe {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base + u64::from(off)) as *const core::ffi::c_void,
        );
        value.assume_init()
    }
}

/// As [`read`], from the current process's memory.
#[inline(always)]
pub(crate) fn read_user<T: Copy>(addr: u64) -> T {
    // SAFETY: as in `read`.
    unsafe {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            addr as *const core::ffi::c_void,
        );
        value.assume_init()
    }
}

#[inline(always)]
pub(crate) fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Writes `::ffff:a.b.c.d` for an address in network order.
#[inline(always)]
pub(crate) fn mapped(v4: u32) -> Addr {
    let b = v4.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]]
}

/// Destination (or, with the other offsets, source) address of a socket.
#[inline(always)]
pub(crate) fn sock_addr(sk: u64, family: u16, v4_off: u32, v6_off: u32) -> Addr {
    if family == AF_INET6 { read::<Addr>(sk, v6_off) } else { mapped(read::<u32>(sk, v4_off)) }
}

/// As [`sock_addr`], to a place that the verifier does not follow.
///
/// # Safety
/// `to` points to 16 writable bytes.
#[inline(always)]
pub(crate) unsafe fn sock_addr_to(to: *mut Addr, sk: u64, family: u16, v4_off: u32, v6_off: u32) {
    // SAFETY: by this function's contract.
    unsafe {
        if family == AF_INET6 {
            bpf_probe_read_kernel(to.cast(), 16, (sk + u64::from(v6_off)) as *const core::ffi::c_void);
        } else {
            *to = mapped(read::<u32>(sk, v4_off));
        }
    }
}

/// Makes the verifier forget what it knows of a value on the stack: values that came by different branches are
/// then one state to it, and what follows is verified once. About 15 ns.
#[inline(always)]
pub(crate) fn forget<T: Copy>(value: &mut T) {
    let at = (&raw mut *value).cast::<core::ffi::c_void>();
    // SAFETY: T is made of integers (all callers); copies it onto itself.
    unsafe { bpf_probe_read_kernel(at, size_of::<T>() as u32, at) };
}

/// Inode number of the network namespace of a socket; 0 if it cannot be read.
#[inline(always)]
pub(crate) fn sock_netns(sk: u64) -> u32 {
    let net: u64 = read(sk, setting!(skc_net));
    if net == 0 { 0 } else { read(net, setting!(net_inum)) }
}

/// Inode number of the network namespace in which a packet is; 0 if it cannot be told.
#[inline(always)]
pub(crate) fn skb_netns(skb: u64, sk: u64) -> u32 {
    if sk != 0 {
        return sock_netns(sk);
    }
    let dev: u64 = read(skb, setting!(skb_dev));
    if dev == 0 {
        return 0;
    }
    let net: u64 = read(dev, setting!(dev_net));
    if net == 0 { 0 } else { read(net, setting!(net_inum)) }
}

/// The user-space registers that the current task entered the kernel with, as a kernel address.
#[inline(always)]
fn user_regs() -> u64 {
    // SAFETY: helpers without memory arguments; the result is only read through probe_read_kernel.
    unsafe {
        if setting!(has_task_pt_regs) != 0 {
            bpf_task_pt_regs(bpf_get_current_task_btf()) as u64
        } else {
            // Before 5.15 the frame lies at the very top of the stack (arch/x86 task_pt_regs; the FRED
            // padding came with 6.9).
            let stack: u64 = read(bpf_get_current_task(), setting!(task_stack));
            stack + u64::from(setting!(thread_size)) - u64::from(setting!(regs_size))
        }
    }
}

/// First two arguments of the system call numbered `nr`, if that is what the current task is in. (32-bit
/// callers come through another number: they are left out rather than misread.)
#[inline(always)]
pub(crate) fn syscall_args(nr: u32) -> Option<(u64, u64)> {
    let regs = user_regs();
    let actual: u64 = read(regs, setting!(regs_nr));
    if actual != u64::from(nr) {
        return None;
    }
    Some((read(regs, setting!(regs_arg0)), read(regs, setting!(regs_arg1))))
}

/// Third argument of the system call that the current task is in.
#[inline(always)]
pub(crate) fn third_arg() -> u64 {
    read(user_regs(), setting!(regs_arg2))
}

/// Fourth argument of the system call that the current task is in.
#[inline(always)]
pub(crate) fn fourth_arg() -> u64 {
    read(user_regs(), setting!(regs_arg3))
}

/// Number (of 64-bit callers), first and second argument of the system call that the current task is in.
#[inline(always)]
pub(crate) fn syscall() -> (u32, u64, u64) {
    let regs = user_regs();
    let nr: u64 = read(regs, setting!(regs_nr));
    (nr as u32, read(regs, setting!(regs_arg0)), read(regs, setting!(regs_arg1)))
}

/// Third, second and first argument of the system call that the current task is in, and its number, where the registers lie
/// in that row.
#[inline(always)]
pub(crate) fn call() -> [u64; 4] {
    read(user_regs(), setting!(regs_arg2))
}

/// Number of the system call that the current task is in, and the error that it is going to return as things stand.
#[inline(always)]
pub(crate) fn syscall_answer() -> Option<(u32, i32)> {
    const MAX_ERRNO: i64 = 4095;
    let regs = user_regs();
    let ret: i64 = read(regs, setting!(regs_ret));
    if !(-MAX_ERRNO..0).contains(&ret) {
        return None;
    }
    let nr: u64 = read(regs, setting!(regs_nr));
    Some((nr as u32, ret as i32))
}

const IPPROTO_TCP: u16 = 6;

/// The TCP socket behind a file descriptor of the current task; 0 if it is none.
#[inline(always)]
pub(crate) fn tcp_sock_of_fd(fd: u32) -> u64 {
    sock_of_fd(fd, IPPROTO_TCP)
}

/// The socket of that protocol behind a file descriptor of the current task; 0 if it is none.
#[inline(always)]
pub(crate) fn sock_of_fd(fd: u32, protocol: u16) -> u64 {
    let sk = any_sock_of_fd(fd);
    if sk != 0 && protocol_of(sk) == protocol { sk } else { 0 }
}

/// What would be the socket behind a file descriptor of the current task, if that is one; 0 if there is none.
#[inline(always)]
pub(crate) fn any_sock_of_fd(fd: u32) -> u64 {
    read(private_of_fd(fd), setting!(socket_sk))
}

/// The unix stream socket behind a file descriptor of the current task that is known to be a socket; 0 if it is none.
#[inline(always)]
pub(crate) fn unix_stream_of_fd(fd: u32) -> u64 {
    const SOCK_STREAM: u16 = 1;
    let socket = private_of_fd(fd);
    let sk: u64 = read(socket, setting!(socket_sk));
    let is_stream = read::<u16>(socket, setting!(socket_type)) == SOCK_STREAM;
    if sk != 0 && is_stream && read::<u16>(sk, setting!(skc_family)) == AF_UNIX { sk } else { 0 }
}

/// `private_data` of the file behind a descriptor of the current task: the `struct socket *` of a socket; 0 if there is
/// no such file.
#[inline(always)]
fn private_of_fd(fd: u32) -> u64 {
    let file = file_of_fd(fd);
    if file == 0 { 0 } else { read(file, setting!(file_private)) }
}

/// The `struct file *` behind a descriptor of the current task; 0 if there is none.
#[inline(always)]
fn file_of_fd(fd: u32) -> u64 {
    // SAFETY: no arguments.
    file_of(unsafe { bpf_get_current_task() }, fd)
}

/// The same of any task.
#[inline(always)]
pub(crate) fn file_of(task: u64, fd: u32) -> u64 {
    let files: u64 = read(task, setting!(task_files));
    let fdt: u64 = read(files, setting!(files_fdt));
    let max: u32 = read(fdt, setting!(fdt_max_fds));
    if fd >= max {
        return 0;
    }
    let array: u64 = read(fdt, setting!(fdt_fd));
    read(array + u64::from(fd) * 8, 0)
}

/// True for a socket of TCP: not a log, a name server or a unix socket.
#[inline(always)]
pub(crate) fn is_tcp(sk: u64) -> bool {
    protocol_of(sk) == IPPROTO_TCP
}

#[inline(always)]
fn protocol_of(sk: u64) -> u16 {
    if setting!(sk_protocol_size) == 2 {
        read::<u16>(sk, setting!(sk_protocol))
    } else {
        u16::from(read::<u8>(sk, setting!(sk_protocol)))
    }
}

pub(crate) const TH_SYN: u8 = 0x02;
pub(crate) const TH_RST: u8 = 0x04;
pub(crate) const TH_ACK: u8 = 0x10;

/// The headers of a TCP segment, as far as the hooks need them: 56 bytes of stack, two reads of the packet.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    v6: bool,
    /// The first 40 bytes from the IP header on: all of IPv6's, or IPv4's and TCP's without options.
    ip: [u32; 10],
    /// Source and destination port, network order.
    ports: [u16; 2],
    pub flags: u8,
}

/// Reads the headers of the packet whose IP header lies at kernel address `ip` (RFC 791, RFC 8200, RFC 9293).
/// None for anything but TCP directly behind the IP header.
#[inline(always)]
pub(crate) fn segment_at(ip: u64) -> Option<Segment> {
    const IPPROTO_TCP: u32 = 6;
    let words: [u32; 10] = read(ip, 0);
    let first = words[0].to_ne_bytes()[0];
    let (v6, proto, offset) = match first >> 4 {
        4 => (false, words[2].to_ne_bytes()[1], u32::from(first & 15) * 4),
        6 => (true, words[1].to_ne_bytes()[2], 40),
        _ => return None,
    };
    if u32::from(proto) != IPPROTO_TCP {
        return None;
    }
    // Ports, sequence, acknowledgement, then data offset and flags.
    let tcp: [u32; 4] =
        if offset == 20 { [words[5], words[6], words[7], words[8]] } else { read(ip, offset) };
    let ports = tcp[0].to_ne_bytes();
    Some(Segment {
        v6,
        ip: words,
        ports: [u16::from_ne_bytes([ports[0], ports[1]]), u16::from_ne_bytes([ports[2], ports[3]])],
        flags: tcp[3].to_ne_bytes()[1],
    })
}

impl Segment {
    /// True for the SYN of a handshake, false for a SYN-ACK or RST on the way back, None for the rest.
    #[inline(always)]
    pub(crate) fn forward(&self) -> Option<bool> {
        if self.flags & (TH_SYN | TH_ACK | TH_RST) == TH_SYN {
            Some(true)
        } else if self.flags & (TH_SYN | TH_RST) != 0 {
            Some(false)
        } else {
            None
        }
    }

    #[inline(always)]
    fn addr(&self, source: bool) -> Addr {
        let w = &self.ip;
        let words = match (self.v6, source) {
            (true, true) => [w[2], w[3], w[4], w[5]],
            (true, false) => [w[6], w[7], w[8], w[9]],
            (false, true) => return mapped(w[3]),
            (false, false) => return mapped(w[4]),
        };
        // SAFETY: 16 bytes of integers either way.
        unsafe { core::mem::transmute::<[u32; 4], Addr>(words) }
    }

    /// The address of the connecting (`true`) or the listening side.
    #[inline(always)]
    pub(crate) fn client_addr(&self, forward: bool, client: bool) -> Addr {
        self.addr(forward == client)
    }

    /// The port of the connecting (`true`) or the listening side.
    #[inline(always)]
    pub(crate) fn client_port(&self, forward: bool, client: bool) -> u16 {
        u16::from_be(if forward == client { self.ports[0] } else { self.ports[1] })
    }

    /// The flow as the connecting side sees it.
    #[inline(always)]
    pub(crate) fn flow(&self, forward: bool) -> FlowKey {
        FlowKey {
            saddr: self.client_addr(forward, true),
            daddr: self.client_addr(forward, false),
            sport: self.client_port(forward, true),
            dport: self.client_port(forward, false),
        }
    }
}

/// Kernel address of a packet's network header.
#[inline(always)]
pub(crate) fn network_header(skb: u64) -> u64 {
    let head: u64 = read(skb, setting!(skb_head));
    let offset: u16 = read(skb, setting!(skb_network_header));
    head + u64::from(offset)
}

/// Source address of the IP header at `ip`.
#[inline(always)]
pub(crate) fn ip_source(ip: u64) -> Addr {
    let first: u8 = read(ip, 0);
    if first >> 4 == 6 { read::<Addr>(ip, 8) } else { mapped(read::<u32>(ip, 12)) }
}

/// True if a field exists on this kernel.
#[inline(always)]
pub(crate) fn has(offset: u32) -> bool {
    offset != NONE
}

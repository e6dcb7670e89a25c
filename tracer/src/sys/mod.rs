//! Everything that user space reads from the operating system as evidence: /proc, netlink, namespaces.
//!
//! Nothing here runs until it is asked, nothing stays in memory afterwards, and every call is bounded in
//! time. Netlink is spoken by hand (`netlink.rs`): three families (sock_diag, rtnetlink, ctnetlink) share one
//! exchange loop, filters run in the kernel, and no attribute is trusted before its length is checked.

pub mod acl;
pub mod apparmor;
pub mod bpfprog;
pub mod btf;
pub mod caps;
pub mod conntrack;
pub mod container;
pub mod error;
pub mod fib;
pub mod fpm;
pub mod iptables;
pub mod kallsyms;
pub mod link;
pub mod listen;
pub mod memory;
mod netlink;
pub mod netns;
pub mod nftables;
pub mod nftrace;
pub mod owners;
pub mod proc;
pub mod process;
pub mod qdisc;
pub mod resolve;
pub mod rootfs;
pub mod route;
pub mod ruletext;
pub mod selinux;
pub mod sockdiag;
pub mod standing;
pub mod sysctl;
pub mod tcp_state;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod unit;
pub mod unixdiag;
pub mod volume;
pub mod walk;

pub use error::{Error, Result};

//! What user space found out about the unix socket that a worker could not connect to.

use std::borrow::Cow;

/// A component of the path, in words fit for evidence.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Component {
    /// The path up to here, links followed.
    pub path: String,
    /// `folder`, `socket`, `link`, `file`, `device or FIFO`.
    pub kind: Cow<'static, str>,
    /// Mode bits.
    pub mode: u32,
    /// Owner's name, or number.
    pub owner: String,
    /// Group's name, or number.
    pub group: String,
}

/// What a closed component was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Wanted {
    /// Going through a folder (`x`).
    Search,
    /// Following a link in a folder like /tmp (fs.protected_symlinks).
    Follow,
    /// Connecting (`w`).
    Write,
}

/// The first component that keeps the worker out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// The component.
    pub at: Component,
    /// What it refuses.
    pub wanted: Wanted,
    /// Who the worker is to it: `neither its owner nor of its group`, or the entry of its access control list.
    pub because: String,
    /// Its group would be let in.
    pub group_may: bool,
    /// An access control list decides, not the mode.
    pub by_list: bool,
    /// It lies on a file system that has rules of its own (FUSE, NFS, SMB).
    pub own_rules: bool,
}

/// How the path ends, as the worker sees it now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum End {
    /// A component is not there: `missing` is the first such.
    Missing {
        /// The component.
        missing: String,
        /// It is not the last one.
        is_folder: bool,
        /// A link that leads there, if one does.
        link: Option<String>,
    },
    /// What should be a folder is none (ENOTDIR).
    NotAFolder(String),
    /// Links lead in a circle (ELOOP).
    Circle(String),
    /// A socket file.
    Socket,
    /// Something else: `kind` as in [`Component`].
    Other(Cow<'static, str>),
    /// It cannot be looked at; the errno.
    Unreadable(i32),
    /// An abstract name has no path.
    Abstract,
}

/// Which kind of connection a socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Type {
    /// SOCK_STREAM.
    Stream,
    /// SOCK_DGRAM.
    Datagram,
    /// SOCK_SEQPACKET.
    Seqpacket,
}

/// A socket that is bound to the name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bound {
    /// What it takes.
    pub kind: Type,
    /// It listens.
    pub listens: bool,
    /// Connections that wait for accept().
    pub queued: u32,
    /// Their limit: min(backlog, somaxconn).
    pub limit: u32,
    /// `php-fpm8.2 (pid 4121)`, if the owner could be found.
    pub owner: Option<String>,
    /// The owner is stopped (SIGSTOP, a debugger).
    pub stopped: bool,
    /// net.core.somaxconn of its network namespace.
    pub somaxconn: Option<u32>,
}

impl Bound {
    /// True if a connect() that does not wait fails (`unix_recvq_full`).
    #[must_use]
    pub fn full(&self) -> bool {
        self.queued > self.limit
    }
}

/// A line of the backend's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PoolLine {
    /// `listen.mode`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `/etc/php/8.2/fpm/pool.d/www.conf:36`.
    pub place: String,
}

/// The same name where others see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Elsewhere {
    /// Who: `php-fpm8.2 (pid 4121)`, `the host`.
    pub who: String,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// Where the file lies for the host, if that is known.
    pub host_path: Option<String>,
    /// The folder is one that systemd made for one service (PrivateTmp=).
    pub private_tmp: bool,
}

/// A socket with a similar name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Near {
    /// Its path as the worker sees it, or `@name`.
    pub name: String,
    /// Who listens there, if somebody does.
    pub owner: Option<String>,
    /// Somebody listens there.
    pub listens: bool,
}

/// Everything about the name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UnixFact {
    /// `www-data (groups www-data, adm)`.
    pub worker: String,
    /// The worker's user.
    pub user: String,
    /// The worker's systemd unit.
    pub unit: Option<String>,
    /// The worker's mounts are not the host's (container, PrivateTmp=, chroot).
    pub own_mounts: bool,
    /// How the path ends.
    pub end: End,
    /// The file at the end.
    pub file: Option<Component>,
    /// When the file was last written to; of a socket: when it was bound.
    pub since: Option<String>,
    /// A component has changed since the attempt: what is seen now may be new.
    pub changed_since: bool,
    /// Who keeps the worker out.
    pub refusal: Option<Refusal>,
    /// The socket behind the name.
    pub bound: Option<Bound>,
    /// Every network namespace was searched for it.
    pub searched_all: bool,
    /// The backend's settings of this socket.
    pub pool: Vec<PoolLine>,
    /// Others who have the name.
    pub elsewhere: Vec<Elsewhere>,
    /// Similar names.
    pub near: Vec<Near>,
    /// SELinux is enforcing: it can refuse a folder on the way.
    pub selinux: bool,
    /// The AppArmor profile that is enforced on the worker.
    pub apparmor: Option<String>,
}

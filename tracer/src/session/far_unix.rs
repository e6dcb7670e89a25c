//! The far end of a connection to a unix socket: always on this machine. nginx has closed its own by the time that it is looked
//! at, and what nginx wrote stays in the queue of whoever holds the other.

use super::{
    backends::Server,
    clock::monotonic_ns,
    facts::{Gatherer, owner},
    unix::{self, Sockets},
};
use crate::{
    correlate::backend::{Backend, Far, Holder, Socket, Threads},
    event::{Attempt, UnixName},
    sys::{
        owners::{self, Budget, Owner},
        unixdiag::{self, Waiting},
        walk,
    },
};

/// Who listens on the socket of that name now.
fn listener(worker: u32, name: &UnixName) -> Option<Owner> {
    let sockets = Sockets::read(worker);
    let found = match name {
        UnixName::Path(path) => sockets.of_file(walk::walk(worker, path).ok()?.file()?.id, path)?,
        UnixName::Abstract(name) => sockets.of_name(name)?,
    };
    let inode = found.socket.inode;
    owners::find(&[inode], Budget::default()).get(inode).filter(|_| found.socket.listens).cloned()
}

impl Gatherer {
    /// What is left of it, and who holds it; if nobody has accepted the connection, who listens.
    pub(super) fn look_at_unix(&mut self, attempt: &Attempt) -> Backend {
        let mut found = Backend { here: Some(true), ..Backend::default() };
        let (Some(name), Some(far)) = (&attempt.unix, attempt.talk.as_ref().and_then(|talk| talk.far)) else {
            return found;
        };
        found.looked_us = monotonic_ns().saturating_sub(attempt.end_ns) / 1000;
        if !far.open {
            found.socket = Some(Far::None);
            return found;
        }
        if !far.accepted {
            found.socket = Some(Far::Some(Socket { accepted: false, closed: false, unread: 0, unsent: 0 }));
            if let Some(listener) = listener(attempt.worker, name) {
                found.pool = unix::pool(listener.pid, name.path().unwrap_or_default());
                found.holder = Some(Holder { name: owner(&listener), threads: Threads::default() });
            }
            return found;
        }
        let Some(inode) = far.inode else { return found };
        // Both ends are in the namespace of the one that connected.
        let waiting = self.own(attempt).and_then(|ns| unixdiag::waiting(&ns, inode).ok());
        found.socket = waiting.map(|waiting| match waiting {
            None => Far::None,
            Some(Waiting { unread, .. }) => {
                Far::Some(Socket { accepted: true, closed: false, unread, unsent: 0 })
            }
        });
        found.holder = self.backends.holder_of(Server::Unix(name.clone()), inode);
        found
    }

    /// What php-fpm's master, if it is the parent of a process that ended, says of that pool.
    pub(super) fn pool_of(attempt: &Attempt, backend: &mut Backend) {
        let path = attempt.unix.as_ref().and_then(UnixName::path);
        if let (Some(path), Some(death)) = (path, &backend.death) {
            backend.pool = unix::pool(death.parent, path);
        }
    }
}

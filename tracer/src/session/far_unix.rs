//! The far end of a connection to a unix socket: always on this machine. nginx has closed its own by the time that it is looked
//! at, and what nginx wrote stays in the queue of whoever holds the other.

use super::{backends::Server, clock::monotonic_ns, facts::Gatherer, unix};
use crate::{
    correlate::backend::{Backend, Far, Holder, Socket, Threads},
    event::Attempt,
    sys::unixdiag::{self, Waiting},
};

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
            found.holder = unix::listener(attempt.worker, name)
                .and_then(|bound| bound.owner)
                .map(|name| Holder { name, threads: Threads::default() });
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
}

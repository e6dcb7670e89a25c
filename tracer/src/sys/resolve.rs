//! Names to addresses as nginx asks for them when it reads its configuration: getaddrinfo with `AI_ADDRCONFIG`.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::netns::NetNs;

/// Look-ups at a time.
const PARALLEL: usize = 16;

/// What the system's resolver said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The addresses; never none.
    Addresses(Vec<IpAddr>),
    /// There is no such name, or it has no address: said with authority. The reason in words.
    None(String),
    /// No answer (a name server that fails or is silent). The reason in words.
    Failed(String),
}

/// Looks up names in a network namespace with this process's own files (/etc/hosts, resolv.conf), all together in `limit`.
/// Names without an answer by then are missing.
#[must_use]
pub fn all(ns: &NetNs, names: &[String], limit: Duration) -> HashMap<String, Answer> {
    let names: Arc<Vec<String>> = Arc::new(names.to_vec());
    let next = Arc::new(AtomicUsize::new(0));
    let (send, receive) = mpsc::channel();
    for _ in 0..PARALLEL.min(names.len()) {
        let (names, next, send, ns) = (Arc::clone(&names), Arc::clone(&next), send.clone(), ns.clone());
        // A thread that cannot be had leaves more to the others; one that hangs ends with its look-up.
        let _ = thread::Builder::new().name("why502-dns".into()).spawn(move || {
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Ok(answer) = ns.run(|| look_up(name)) else { return };
                if send.send((name.clone(), answer)).is_err() {
                    return;
                }
            }
        });
    }
    drop(send);
    let end = Instant::now() + limit;
    let mut found = HashMap::new();
    while let Ok((name, answer)) = receive.recv_timeout(end.saturating_duration_since(Instant::now())) {
        found.insert(name, answer);
    }
    found
}

/// One look-up, however long it takes.
fn look_up(name: &str) -> Answer {
    let Ok(name) = CString::new(name) else { return Answer::None("it holds a NUL".to_owned()) };
    // SAFETY: addrinfo is integers and pointers, for which zero is valid.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_socktype = libc::SOCK_STREAM;
    hints.ai_flags = libc::AI_ADDRCONFIG;
    let mut list: *mut libc::addrinfo = ptr::null_mut();
    // SAFETY: the name ends with NUL, hints and list live through the call.
    let status = unsafe { libc::getaddrinfo(name.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if status != 0 {
        // SAFETY: gai_strerror returns a string that is never freed.
        let why = unsafe { CStr::from_ptr(libc::gai_strerror(status)) }.to_string_lossy().into_owned();
        let none = matches!(status, libc::EAI_NONAME | libc::EAI_NODATA);
        return if none { Answer::None(why) } else { Answer::Failed(why) };
    }
    let mut found: Vec<IpAddr> = Vec::new();
    let mut at = list;
    // SAFETY: getaddrinfo gave a list that ends with a null pointer; each entry is valid until it is freed.
    while let Some(entry) = unsafe { at.as_ref() } {
        let ip: Option<IpAddr> = match entry.ai_family {
            libc::AF_INET => {
                // SAFETY: the family says that ai_addr points to a sockaddr_in, perhaps unaligned.
                let sin = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().read_unaligned() };
                Some(Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes()).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let sin6 = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                Some(Ipv6Addr::from(sin6.sin6_addr.s6_addr).into())
            }
            _ => None,
        };
        if let Some(ip) = ip.filter(|ip| !found.contains(ip)) {
            found.push(ip);
        }
        at = entry.ai_next;
    }
    // SAFETY: the list came from getaddrinfo and is not used after this.
    unsafe { libc::freeaddrinfo(list) };
    if found.is_empty() { Answer::None("it has no address".to_owned()) } else { Answer::Addresses(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_together() {
        let names = ["127.0.0.1".to_owned(), "::1".to_owned(), "a\0b".to_owned()];
        let found = all(&NetNs::current().unwrap(), &names, Duration::from_secs(5));
        let one = |ip: &str| Answer::Addresses(vec![ip.parse().unwrap()]);
        assert_eq!(found.get("127.0.0.1"), Some(&one("127.0.0.1")));
        assert_eq!(found.get("::1"), Some(&one("::1")));
        assert!(matches!(found.get("a\0b"), Some(Answer::None(_))));
    }
}

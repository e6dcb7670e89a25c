//! From candidates to words: which rule it was, or which ones it can have been.

use super::{Action, Candidate, Reject};

/// What came back for the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    None,
    /// A RST.
    Reset,
    /// An ICMP error: type, code.
    Icmp(u8, u8),
    /// An error whose kind was not seen, by the errno that the kernel made of it.
    Errno(i32),
}

/// One rule or policy in words.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Named {
    /// `inet filter output`, or `filter chain OUTPUT (legacy)`.
    pub chain: String,
    /// Its handle; None for policies and legacy rules.
    pub handle: Option<u64>,
    /// The how manieth of its chain, from 1; None for policies.
    pub number: Option<usize>,
    /// Its text; for a policy `policy drop`.
    pub text: String,
    /// As iptables would say it, if iptables made it.
    pub iptables: Option<String>,
    /// What would let the connection through, from narrow to wide: text, command.
    pub fix: Vec<(String, Option<String>)>,
}

impl Named {
    /// `rule (handle 7) of inet filter output: tcp dport 3000 drop`.
    #[must_use]
    pub fn words(&self) -> String {
        let what = match (self.handle, self.number) {
            (Some(handle), _) => format!("rule (handle {handle}) of {}", self.chain),
            (None, Some(number)) => format!("rule {number} of {}", self.chain),
            (None, None) => format!("policy of {}", self.chain),
        };
        match &self.iptables {
            Some(form) => format!("{what}: {form}"),
            None => format!("{what}: {}", self.text),
        }
    }
}

/// A rule that the kernel itself named.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Traced {
    /// That rule.
    pub rule: Named,
    /// How long before the verdict, milliseconds.
    pub ago_ms: u64,
}

/// What the rules of the namespace in which the packet was dropped say about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Naming {
    /// Those that fit, in the order in which the packet meets them.
    pub candidates: Vec<Named>,
    /// The rules were changed since why502 looked at them before: it may have been one that is gone.
    pub changed: bool,
    /// Lists the rules of that namespace.
    pub list: String,
    /// What the kernel said of an equal packet (`--trace-rules`).
    pub traced: Option<Traced>,
}

impl Naming {
    /// The one rule that it was, if that is certain.
    #[must_use]
    pub fn only(&self) -> Option<&Named> {
        match (&self.traced, self.candidates.as_slice()) {
            (Some(traced), _) => Some(&traced.rule),
            (None, [one]) if !self.changed => Some(one),
            _ => None,
        }
    }

    /// One line each.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let changed = if self.changed {
            "; but the rules have been changed while why502 was watching: it may have been one that is gone"
        } else {
            ""
        };
        if let Some(traced) = &self.traced {
            return vec![format!("{}; the kernel named it itself (nftrace)", traced.rule.words())];
        }
        match self.candidates.as_slice() {
            [] => Vec::new(),
            [one] if self.changed => vec![format!("{}, the only one that fits now{changed}", one.words())],
            [one] => vec![format!("{}, the only one that fits", one.words())],
            several => several
                .iter()
                .map(|one| format!("one of {} that fit: {}{changed}", several.len(), one.words()))
                .collect(),
        }
    }
}

/// Leaves those candidates that explain the answer. None may be left: then the rules do not explain it.
#[must_use]
pub fn narrow(candidates: &[Candidate], answer: Answer, v6: bool) -> Vec<Candidate> {
    if answer == Answer::None {
        return candidates.to_vec();
    }
    let explains = |c: &&Candidate| match c.action {
        Action::Reject(None) | Action::Unknown => true,
        // A program behind a queue can answer as well, but it is no reject.
        Action::Drop | Action::Queue => false,
        Action::Reject(Some(reject)) => match answer {
            Answer::None => true,
            Answer::Reset => reject == Reject::Reset,
            Answer::Icmp(kind, code) => reject.icmp(v6) == Some((kind, code)),
            Answer::Errno(errno) => match reject.icmp(v6) {
                None => errno == libc::ECONNREFUSED,
                Some((_, code)) => icmp_errno(code, v6) == Some(errno),
            },
        },
    };
    candidates.iter().filter(explains).cloned().collect()
}

/// What the kernel makes of an ICMP error (icmp_err_convert in net/ipv4/icmp.c, icmpv6_err_convert in
/// net/ipv6/icmp.c).
fn icmp_errno(code: u8, v6: bool) -> Option<i32> {
    Some(match (v6, code) {
        (false, 0 | 6 | 9 | 11) | (true, 0) => libc::ENETUNREACH,
        (false, 1 | 10 | 12 | 13 | 14 | 15) | (true, 2 | 3) => libc::EHOSTUNREACH,
        (false, 2) => libc::ENOPROTOOPT,
        (false, 3) | (true, 4) => libc::ECONNREFUSED,
        (true, 1 | 5 | 6) => libc::EACCES,
        _ => return None,
    })
}

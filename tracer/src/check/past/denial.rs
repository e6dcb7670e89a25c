//! Denials in the kernel's and the audit daemon's words.

use crate::diagnose::Cause;

/// One denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Its number in the audit log (`time:serial`), by which two logs are one.
    pub id: String,
    /// Seconds after 1970.
    pub time: i64,
    /// The process.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: String,
    /// The cause that a connection denied like that has; `None` if it is not of connections.
    pub cause: Option<Cause>,
    /// What was denied, the same for equal denials.
    pub what: String,
}

/// Reads a line of audit.log, of the kernel's log or of the journal; `None` for anything else, and for what a
/// permissive mode let through.
pub fn denial(line: &str) -> Option<Denial> {
    let (_, stamp) = line.split_once("audit(")?;
    let (stamp, _) = stamp.split_once(')')?;
    let (time, _) = stamp.split_once(':')?;
    let time = time.split('.').next()?.parse().ok()?;
    let (cause, what) = if line.contains("avc:  denied  {") || line.contains("avc: denied {") {
        selinux(line)?
    } else if line.contains("apparmor=\"DENIED\"") {
        apparmor(line)
    } else if line.contains("type=1326 ") || line.starts_with("type=SECCOMP ") {
        seccomp(line)?
    } else {
        return None;
    };
    let pid = field(line, "pid").and_then(|pid| pid.parse().ok());
    Some(Denial { id: stamp.to_owned(), time, pid, comm: field(line, "comm")?, cause, what })
}

/// The value behind ` key=`, without quotes.
fn field(line: &str, key: &str) -> Option<String> {
    let wanted = format!(" {key}=");
    let (_, rest) = line.split_once(&wanted)?;
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => rest.split(' ').next()?,
    };
    Some(value.to_owned())
}

fn selinux(line: &str) -> Option<(Option<Cause>, String)> {
    if field(line, "permissive").as_deref() == Some("1") {
        return None;
    }
    let (_, rest) = line.split_once('{')?;
    let (permissions, _) = rest.split_once('}')?;
    let class = field(line, "tclass")?;
    let connects = match class.as_str() {
        "tcp_socket" | "udp_socket" => permissions.contains("name_connect") || permissions.contains("create"),
        "unix_stream_socket" => permissions.contains("connectto"),
        "sock_file" => permissions.contains("write"),
        _ => false,
    };
    let target = ["dest", "path", "name"].iter().find_map(|key| Some((*key, field(line, key)?)));
    let target = target.map(|(key, value)| format!(" {key}={value}")).unwrap_or_default();
    let what = format!(
        "SELinux: {{{permissions}}} on {class}{target} ({} → {})",
        field(line, "scontext").unwrap_or_default(),
        field(line, "tcontext").unwrap_or_default()
    );
    Some((connects.then_some(Cause::BlockedSelinux), what))
}

fn apparmor(line: &str) -> (Option<Cause>, String) {
    let operation = field(line, "operation").unwrap_or_default();
    let mask = field(line, "denied_mask").or_else(|| field(line, "denied")).unwrap_or_default();
    let name = field(line, "name").or_else(|| field(line, "addr")).unwrap_or_default();
    let inet = field(line, "family").is_some_and(|family| family.starts_with("inet"));
    let connects = operation == "connect"
        || inet && matches!(operation.as_str(), "create" | "bind" | "sendmsg" | "recvmsg");
    let profile = field(line, "profile").unwrap_or_default();
    let what = format!("AppArmor: {operation} {name} ({mask}) by profile {profile}").replace("  ", " ");
    (connects.then_some(Cause::BlockedApparmor), what)
}

fn seccomp(line: &str) -> Option<(Option<Cause>, String)> {
    let number: u32 = field(line, "syscall")?.parse().ok()?;
    // x86-64 (arch c000003e): socket, connect, bind.
    let name = match (field(line, "arch").as_deref(), number) {
        (Some("c000003e"), 41) => Some("socket"),
        (Some("c000003e"), 42) => Some("connect"),
        (Some("c000003e"), 49) => Some("bind"),
        _ => None,
    };
    let what =
        name.map_or_else(|| format!("seccomp: system call {number}"), |name| format!("seccomp: {name}()"));
    Some((name.map(|_| Cause::BlockedSeccomp), what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AVC: &str = "type=AVC msg=audit(1700000000.123:456): avc:  denied  { name_connect } for  pid=133 comm=\"nginx\" dest=3000 scontext=system_u:system_r:httpd_t:s0 tcontext=system_u:object_r:ntop_port_t:s0 tclass=tcp_socket permissive=0";

    #[test]
    fn connections_that_were_denied() {
        let found = denial(AVC).unwrap();
        assert_eq!(
            (found.id.as_str(), found.time, found.pid, found.comm.as_str()),
            ("1700000000.123:456", 1_700_000_000, Some(133), "nginx")
        );
        assert_eq!(found.cause, Some(Cause::BlockedSelinux));
        assert!(found.what.contains("name_connect") && found.what.contains("dest=3000"), "{found:?}");
        let apparmor = "audit: type=1400 audit(1700000001.5:9): apparmor=\"DENIED\" operation=\"connect\" class=\"file\" profile=\"nginx\" name=\"/run/app.sock\" pid=7 comm=\"nginx\" requested_mask=\"wr\" denied_mask=\"wr\" fsuid=33 ouid=0";
        let found = denial(apparmor).unwrap();
        assert_eq!((found.cause, found.pid), (Some(Cause::BlockedApparmor), Some(7)));
        assert!(found.what.contains("/run/app.sock") && found.what.contains("profile nginx"), "{found:?}");
        let seccomp = "audit: type=1326 audit(1700000002.5:10): auid=1 uid=33 gid=33 ses=1 subj=x pid=8 comm=\"nginx\" exe=\"/usr/sbin/nginx\" sig=0 arch=c000003e syscall=41 compat=0 ip=0x7f code=0x50000";
        assert_eq!(denial(seccomp).unwrap().cause, Some(Cause::BlockedSeccomp));
    }

    #[test]
    fn what_is_no_denied_connection() {
        // Let through.
        assert_eq!(denial(&AVC.replace("permissive=0", "permissive=1")), None);
        // A file: denied, and no upstream's business.
        let file = AVC.replace("name_connect", "read").replace("tcp_socket", "file");
        assert_eq!(denial(&file).unwrap().cause, None);
        let open = "audit(1700000001.5:9): apparmor=\"DENIED\" operation=\"open\" profile=\"nginx\" name=\"/x\" pid=7 comm=\"nginx\" denied_mask=\"r\"";
        assert_eq!(denial(open).unwrap().cause, None);
        for other in [
            "",
            "audit(",
            "audit(x:1): avc:  denied  { a } for comm=\"nginx\" tclass=file",
            "type=SYSCALL msg=audit(1700000000.123:456): arch=c000003e syscall=42 success=no comm=\"nginx\"",
            "audit(1700000001.5:9): apparmor=\"ALLOWED\" operation=\"connect\" comm=\"nginx\"",
            "audit(1700000001.5:9): apparmor=\"STATUS\" operation=\"profile_load\" name=\"nginx\"",
        ] {
            assert_eq!(denial(other), None, "{other}");
        }
        for end in 0..AVC.len() {
            let _ = denial(&AVC[..end]);
        }
    }
}

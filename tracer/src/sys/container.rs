//! Which container a process belongs to, from the names that runtimes give their cgroups.

use std::fmt;

use super::proc;

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerId {
    /// The program that made it, as far as its cgroup's name tells.
    pub runtime: Runtime,
    /// Its full id (64 hexadecimal digits), or its name for LXC and systemd-nspawn.
    pub id: String,
    /// The pod's UID, in Kubernetes.
    pub pod: Option<String>,
}

impl ContainerId {
    /// The id as `docker ps` prints it: 12 digits, names whole.
    pub fn short(&self) -> &str {
        if is_hex_id(&self.id) { self.id.get(..12).unwrap_or(&self.id) } else { &self.id }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.runtime.name(), self.short())
    }
}

/// What made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd (Kubernetes CRI, nerdctl).
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// LXC, LXD, Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// A container id without a known frame.
    Other,
}

impl Runtime {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
            Self::Lxc => "lxc",
            Self::Nspawn => "nspawn",
            Self::Other => "container",
        }
    }
}

/// The container of a process; `None` when it has none or is gone.
pub fn of_pid(pid: u32) -> Option<ContainerId> {
    parse_cgroup(&proc::read_up_to(format!("/proc/{pid}/cgroup"), 64 * 1024).ok()?)
}

/// Parses /proc/PID/cgroup. The innermost container of a path wins (a container inside a container).
pub fn parse_cgroup(bytes: &[u8]) -> Option<ContainerId> {
    bytes.split(|&byte| byte == b'\n').find_map(|line| {
        // hierarchy:controllers:path, and cri-containerd's old paths hold colons themselves.
        let path = line.splitn(3, |&byte| byte == b':').nth(2)?;
        parse_path(std::str::from_utf8(path).ok()?)
    })
}

fn parse_path(path: &str) -> Option<ContainerId> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let pod = parts.iter().rev().find_map(|part| pod_uid(part));
    for (index, part) in parts.iter().enumerate().rev() {
        let before = parts.get(..index).unwrap_or_default();
        if let Some((runtime, id)) = parse_part(part, before) {
            return Some(ContainerId { runtime, id, pod });
        }
    }
    None
}

fn parse_part(part: &str, before: &[&str]) -> Option<(Runtime, String)> {
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return Some((Runtime::Lxc, name.to_owned()));
    }
    if before.last() == Some(&"lxc") {
        return Some((Runtime::Lxc, part.to_owned()));
    }
    let bare = part.strip_suffix(".scope").unwrap_or(part);
    if bare.len() != part.len()
        && before.contains(&"machine.slice")
        && let Some(name) = bare.strip_prefix("machine-")
    {
        return Some((Runtime::Nspawn, name.replace("\\x2d", "-")));
    }
    let (frame, id) = bare.rsplit_once(['-', ':']).unwrap_or(("", bare));
    if !is_hex_id(id) {
        return None;
    }
    let runtime = match frame.rsplit(':').next().unwrap_or(frame) {
        "docker" => Runtime::Docker,
        "cri-containerd" | "nerdctl" | "containerd" => Runtime::Containerd,
        "crio" => Runtime::Crio,
        "libpod" => Runtime::Podman,
        // The monitor process of a container lives beside it, on the host.
        "libpod-conmon" | "crio-conmon" => return None,
        "" => before.iter().rev().find_map(|name| frame_of(name)).unwrap_or(Runtime::Other),
        _ => Runtime::Other,
    };
    Some((runtime, id.to_owned()))
}

fn frame_of(name: &str) -> Option<Runtime> {
    match name {
        "docker" | "ecs" => Some(Runtime::Docker),
        "libpod_parent" | "libpod" => Some(Runtime::Podman),
        "containerd.service" | "default" | "nerdctl" => Some(Runtime::Containerd),
        _ => None,
    }
}

fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `pod<uid>` (cgroupfs) or `kubepods-burstable-pod<uid with underscores>.slice` (systemd).
fn pod_uid(part: &str) -> Option<String> {
    let bare = part.strip_suffix(".slice").unwrap_or(part);
    let uid = bare.strip_prefix("pod").or_else(|| {
        let (before, uid) = bare.rsplit_once("-pod")?;
        before.starts_with("kubepods").then_some(uid)
    })?;
    let uid = uid.replace('_', "-");
    let valid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    valid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const POD: &str = "2e2f0d5a-1111-2222-3333-444455556666";

    #[test]
    fn known_layouts() {
        let pod = POD.replace('-', "_");
        let cases = [
            (format!("0::/system.slice/docker-{ID}.scope"), Runtime::Docker),
            (format!("12:pids:/docker/{ID}\n0::/"), Runtime::Docker),
            (format!("0::/docker/buildx/{ID}"), Runtime::Docker),
            (format!("0::/../../docker-{ID}.scope"), Runtime::Docker),
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice/cri-containerd-{ID}.scope"
                ),
                Runtime::Containerd,
            ),
            (
                format!(
                    "1:cpu:/system.slice/containerd.service/kubepods-burstable-pod{pod}.slice:cri-containerd:{ID}"
                ),
                Runtime::Containerd,
            ),
            (format!("0::/kubepods/besteffort/pod{POD}/{ID}"), Runtime::Other),
            (format!("0::/kubepods.slice/kubepods-pod{pod}.slice/crio-{ID}.scope/container"), Runtime::Crio),
            (format!("0::/machine.slice/libpod-{ID}.scope/container"), Runtime::Podman),
            (
                format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                Runtime::Podman,
            ),
        ];
        for (text, runtime) in cases {
            let found = parse_cgroup(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((found.runtime, found.id.as_str()), (runtime, ID), "{text}");
            let pod = found.pod.as_deref();
            assert_eq!(
                pod.is_some(),
                text.contains("kubepods-") && !text.contains(":cri-") || text.contains("/pod"),
                "{text}"
            );
            assert!(pod.is_none_or(|pod| pod == POD), "{text}");
            assert_eq!(found.short(), "0123456789ab");
        }
    }

    #[test]
    fn named_containers() {
        let lxc = parse_cgroup(b"0::/lxc.payload.web1/system.slice/nginx.service").unwrap();
        assert_eq!((lxc.runtime, lxc.short()), (Runtime::Lxc, "web1"));
        let nspawn = parse_cgroup(b"0::/machine.slice/machine-web\\x2d1.scope/payload").unwrap();
        assert_eq!((nspawn.runtime, nspawn.short()), (Runtime::Nspawn, "web-1"));
    }

    #[test]
    fn not_containers() {
        for text in [
            "0::/system.slice/nginx.service",
            "0::/",
            "",
            "0::/user.slice/user-0.slice/session-1.scope",
            "0::/system.slice/docker.service",
        ] {
            assert_eq!(parse_cgroup(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_cgroup(format!("0::/machine.slice/libpod-conmon-{ID}.scope").as_bytes()), None);
        assert_eq!(parse_cgroup(b"\xff\xff:::::\n::\xff"), None);
    }
}

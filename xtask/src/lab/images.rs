//! Builds what guests boot from: the shared root file system, and kernel, boot modules and modules disk of
//! each kernel. Everything goes into a stamped directory by rename, so that a half-made image is never used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::{self, Archive, ROOT_SUITES};
use super::cache::{self, Cache};
use super::debian::KernelBuild;
use super::disk;
use super::nginx::{self, CurrentNginx};
use crate::process;

/// Goes up when the way images are made changes, so that cached ones are made again.
const RECIPE: &str = "2";

/// What the guest's root file system holds beyond mmdebstrap's `minbase`.
pub(super) const ROOT_PACKAGES: &[&str] = &[
    // The subject.
    "nginx-full",
    "openssl",
    "curl",
    "ca-certificates",
    // A backend of the real world, on a unix socket.
    "php-fpm",
    // More of them, over TCP.
    "python3",
    "gunicorn",
    "uwsgi-plugin-python3",
    "python3-h2",
    "memcached",
    // Networks and firewalls.
    "iproute2",
    "nftables",
    "iptables",
    "conntrack",
    // Mandatory access control.
    "selinux-policy-default",
    "policycoreutils",
    "selinux-utils",
    "setools",
    "secilc",
    "apparmor",
    "apparmor-utils",
    // Looking around.
    "kmod",
    "procps",
    "acl",
    "attr",
    "bpftool",
];

/// Unpacked for the initrd only; not installed.
pub(super) const INITRD_PACKAGE: &str = "busybox-static";

/// Drivers a guest needs before it has its root file system, and for its output.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "virtio_console"];

/// What SELinux's policy calls kernel modules; the modules disk is made outside the root file system.
const MODULES_LABEL: &str = "system_u:object_r:modules_object_t:s0";

/// Files of the shared root file system.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) image: PathBuf,
    pub(super) busybox: PathBuf,
}

/// Files of one kernel.
#[derive(Clone, Debug)]
pub(super) struct KernelFiles {
    pub(super) vmlinuz: PathBuf,
    pub(super) modules_image: PathBuf,
    /// Holds `NN-name.ko`, in loading order.
    pub(super) boot_modules: PathBuf,
}

/// The name of the root file system with these packages, and with this current nginx if there is one.
pub(super) fn root_name(versions: &BTreeMap<String, String>, nginx: Option<&CurrentNginx>) -> String {
    let listed: Vec<String> = versions.iter().map(|(name, version)| format!("{name}={version}")).collect();
    let mut parts = vec![RECIPE];
    parts.extend(listed.iter().map(String::as_str));
    let nginx = nginx.and_then(|nginx| nginx.dir.file_name()).map(|name| name.to_string_lossy());
    parts.extend(nginx.as_deref());
    format!("root-{}", cache::stamp(&parts))
}

pub(super) fn kernel_name(build: &KernelBuild) -> String {
    format!("kernel-{}-{}", build.release, cache::stamp(&[RECIPE, &build.release, &build.version]))
}

/// The root file system if it has been built.
pub(super) fn root(cache: &Cache, name: &str) -> Option<Root> {
    let dir = cache.path(name);
    let root = Root { image: dir.join("root.img"), busybox: dir.join("busybox") };
    root.image.exists().then_some(root)
}

/// The kernel if it has been built.
pub(super) fn kernel(cache: &Cache, name: &str) -> Option<KernelFiles> {
    let dir = cache.path(name);
    let files = KernelFiles {
        vmlinuz: dir.join("vmlinuz"),
        modules_image: dir.join("modules.img"),
        boot_modules: dir.join("boot"),
    };
    files.vmlinuz.exists().then_some(files)
}

/// Makes the root file system under the cache's lock. Takes about a minute.
pub(super) fn build_root(
    cache: &Cache,
    archive: &Archive,
    name: &str,
    busybox: &str,
    nginx: Option<&CurrentNginx>,
) -> Result<()> {
    let work = cache.scratch("build-root")?;
    let (rootfs, out) = (work.join("rootfs"), work.join("out"));
    fs::create_dir(&out).with_context(|| format!("cannot create {}", out.display()))?;

    process::output(
        Command::new("mmdebstrap")
            .args(["--quiet", "--mode=root", "--variant=minbase", "--architectures=amd64"])
            .args(["--aptopt=APT::Sandbox::User \"\"", "--dpkgopt=path-exclude=/usr/share/doc/*"])
            .arg(format!("--include={}", ROOT_PACKAGES.join(",")))
            .args([ROOT_SUITES[0]])
            .arg(&rootfs)
            .args(archive::source_lines(ROOT_SUITES)),
    )
    .context("cannot make the guests' root file system")?;
    for (file, text) in [
        // mmdebstrap copies these from the host.
        ("etc/hostname", "lab\n"),
        ("etc/hosts", "127.0.0.1 localhost lab\n::1 localhost\n"),
        ("etc/resolv.conf", ""),
    ] {
        let path = rootfs.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Mount points need labels too: a confined modprobe may not pass an unlabelled directory.
    for dir in ["usr/lib/modules", "lab"] {
        let path = rootfs.join(dir);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    if let Some(nginx) = nginx {
        nginx::install(nginx, &rootfs)?;
    }
    // setfiles looks at /proc/mounts; a mount namespace of its own leaves nothing behind.
    process::output(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg("mount -t proc proc \"$1/proc\"; exec chroot \"$1\" setfiles -F -q \"$2\" /")
            .arg("label")
            .arg(&rootfs)
            .arg("/etc/selinux/default/contexts/files/file_contexts"),
    )
    .context("cannot label the guests' root file system for SELinux")?;
    disk::make(&rootfs, &out.join("root.img"), disk::Slack::mib(512))?;

    let unpacked = cache.scratch("build-busybox")?;
    archive.unpack(&[format!("{INITRD_PACKAGE}={busybox}")], &unpacked)?;
    let program = first_existing(&[unpacked.join("bin/busybox"), unpacked.join("usr/bin/busybox")])?;
    fs::copy(&program, out.join("busybox")).context("cannot copy busybox")?;
    publish(cache, &out, name)
}

/// Downloads a kernel and makes its files, under the cache's lock. Takes a few seconds.
pub(super) fn build_kernel(cache: &Cache, archive: &Archive, build: &KernelBuild) -> Result<()> {
    let work = cache.scratch("build-kernel")?;
    let unpacked = cache.scratch("build-packages")?;
    archive.unpack(&build.packages, &unpacked)?;
    let release = &build.release;

    // Debian moved modules from /lib to /usr/lib; depmod wants them under lib/.
    let found = first_existing(&[
        unpacked.join(&format!("usr/lib/modules/{release}/kernel")),
        unpacked.join(&format!("lib/modules/{release}/kernel")),
    ])?;
    let (base, out) = (work.join("base"), work.join("out"));
    let boot = out.join("boot");
    let modules = base.join("lib/modules").join(release);
    for dir in [&base.join("lib/modules"), &boot] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let found = found.parent().context("a modules directory has a parent")?;
    fs::rename(found, &modules).with_context(|| format!("cannot move {}", found.display()))?;

    // Unpacking a module in an emulated guest costs far more than the space saved.
    process::output(
        Command::new("find").arg(&modules).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]),
    )?;
    let depmod = process::find_program("depmod").unwrap_or_else(|| "depmod".into());
    process::output(Command::new(depmod).arg("-b").arg(&base).arg(release))?;
    let dependencies = modules.join("modules.dep");
    let dependencies = fs::read_to_string(&dependencies)
        .with_context(|| format!("cannot read {}", dependencies.display()))?;
    for (index, file) in loading_order(&dependencies, BOOT_MODULES).iter().enumerate() {
        let name = file.rsplit('/').next().unwrap_or(file);
        let to = boot.join(format!("{index:02}-{name}"));
        fs::copy(modules.join(file), &to).with_context(|| format!("cannot copy module {file}"))?;
    }
    disk::label(&modules, MODULES_LABEL)?;
    disk::make(&modules, &out.join("modules.img"), disk::Slack::mib(8))?;
    let vmlinuz =
        first_existing(&[modules.join("vmlinuz"), unpacked.join(&format!("boot/vmlinuz-{release}"))])?;
    fs::copy(&vmlinuz, out.join("vmlinuz")).context("cannot copy the kernel")?;
    publish(cache, &out, &kernel_name(build))
}

/// Files of `wanted` modules and what they need, each after its needs, from the text of `modules.dep`.
/// Modules it does not list are built into the kernel.
fn loading_order(modules_dep: &str, wanted: &[&str]) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let line = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| module_name(file) == *name);
        if let Some((file, needs)) = line {
            // depmod lists all needs, the deepest last.
            for module in needs.split_whitespace().rev().chain([file]) {
                if !order.iter().any(|known| known == module) {
                    order.push(module.to_owned());
                }
            }
        }
    }
    order
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

fn publish(cache: &Cache, out: &Path, name: &str) -> Result<()> {
    let to = cache.path(name);
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("cannot replace {}", to.display()))?;
    }
    fs::rename(out, &to).with_context(|| format!("cannot move the image to {}", to.display()))
}

fn first_existing(candidates: &[PathBuf]) -> Result<PathBuf> {
    if let Some(found) = candidates.iter().find(|path| path.exists()) {
        return Ok(found.clone());
    }
    let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    bail!(
        "the package's layout has changed, none of these exists: {}; adapt xtask/src/lab/images.rs",
        tried.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_their_needs() {
        let dep = "\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/other-fs.ko.xz:
";
        let names: Vec<String> = loading_order(dep, &["virtio_pci", "virtio_blk", "ext4"])
            .iter()
            .map(|file| module_name(file))
            .collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_pci", "virtio_blk"]);
        assert_eq!(loading_order(dep, &["other_fs"]), ["kernel/fs/other-fs.ko.xz"]);
        assert!(loading_order("", BOOT_MODULES).is_empty());
    }

    #[test]
    fn names_follow_versions() {
        let one = BTreeMap::from([("nginx-full".to_owned(), "1".to_owned())]);
        let two = BTreeMap::from([("nginx-full".to_owned(), "2".to_owned())]);
        assert_ne!(root_name(&one, None), root_name(&two, None));
        let nginx = CurrentNginx { version: "1".into(), dir: "/x/nginx-1".into() };
        assert_ne!(root_name(&one, None), root_name(&one, Some(&nginx)));
        let build = |version: &str| KernelBuild {
            release: "6.1.0-9-cloud-amd64".into(),
            version: version.into(),
            packages: Vec::new(),
        };
        assert!(kernel_name(&build("1")).starts_with("kernel-6.1.0-9-cloud-amd64-"));
        assert_ne!(kernel_name(&build("1")), kernel_name(&build("2")));
    }
}

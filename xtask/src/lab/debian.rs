//! Pure knowledge of Debian's archive: package indexes, version ordering, and which packages make a kernel.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

/// One package of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
}

/// Reads name and version of the packages in a `Packages` index (deb822) whose name `wanted` accepts.
pub(super) fn parse_index(index: impl BufRead, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Package>> {
    let mut found = Vec::new();
    let mut name: Option<String> = None;
    for line in index.split(b'\n') {
        let line = line?;
        if line.is_empty() {
            name = None;
        } else if let Some(value) = field(&line, b"Package:") {
            name = wanted(&value).then_some(value);
        } else if let Some(version) = field(&line, b"Version:")
            && let Some(name) = name.take()
        {
            found.push(Package { name, version });
        }
    }
    Ok(found)
}

fn field(line: &[u8], key: &[u8]) -> Option<String> {
    let value = line.strip_prefix(key)?;
    Some(String::from_utf8_lossy(value).trim().to_owned())
}

/// A kernel build as the archive has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KernelBuild {
    /// What `uname -r` prints there.
    pub(super) release: String,
    pub(super) version: String,
    /// The packages that hold kernel and modules, in `name=version` form for apt.
    pub(super) packages: Vec<String>,
}

/// Whether a package may belong to a kernel of the lab: keeps the memory for an index small.
pub(super) fn is_kernel_package(name: &str) -> bool {
    name.starts_with("linux-") && name.ends_with("-cloud-amd64")
}

/// The newest `cloud` kernel of `series` (such as `6.12`) among `packages`.
///
/// Up to Linux 6.x one package holds everything; Debian's 7.x packages split it into `linux-binary-*`,
/// `linux-modules-*` and `linux-base-*`.
pub(super) fn newest_kernel(packages: &[Package], series: &str) -> Option<KernelBuild> {
    let in_series = |release: &str| {
        release.strip_prefix(series).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| {
            rest.starts_with(|first: char| first.is_ascii_digit()) && rest.ends_with("-cloud-amd64")
        })
    };
    let (release, version) = packages
        .iter()
        .filter_map(|package| Some((package.name.strip_prefix("linux-image-")?, package.version.as_str())))
        .filter(|(release, _)| in_series(release))
        .max_by(|a, b| compare_versions(a.1, b.1))?;
    let mut parts: Vec<String> = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"]
        .iter()
        .map(|prefix| format!("{prefix}{release}"))
        .filter(|name| packages.iter().any(|p| p.name == *name && p.version == version))
        .map(|name| format!("{name}={version}"))
        .collect();
    parts.dedup();
    Some(KernelBuild { release: release.to_owned(), version: version.to_owned(), packages: parts })
}

/// The newest version of each package.
pub(super) fn newest_versions(packages: &[Package]) -> BTreeMap<String, String> {
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for package in packages {
        let known = newest.entry(package.name.clone()).or_insert_with(|| package.version.clone());
        if compare_versions(&package.version, known).is_gt() {
            known.clone_from(&package.version);
        }
    }
    newest
}

/// Debian's version ordering (deb-version(7)): epoch, upstream version, revision.
pub(super) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_upstream, a_revision) = split_version(a);
    let (b_epoch, b_upstream, b_revision) = split_version(b);
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| compare_part(a_upstream, b_upstream))
        .then_with(|| compare_part(a_revision, b_revision))
}

fn split_version(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
    (epoch.parse().unwrap_or(0), upstream, revision)
}

fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        // First the text up to a digit, character by character; its end sorts before letters, after `~`.
        while a.first().is_some_and(|c| !c.is_ascii_digit()) || b.first().is_some_and(|c| !c.is_ascii_digit())
        {
            let order = text_weight(a.first()).cmp(&text_weight(b.first()));
            if order.is_ne() {
                return order;
            }
            (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
        }
        // Then the number, by value: without leading zeros the longer one is the greater one.
        let (a_number, a_rest) = take_number(a);
        let (b_number, b_rest) = take_number(b);
        let order = a_number.len().cmp(&b_number.len()).then_with(|| a_number.cmp(b_number));
        if order.is_ne() {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
    Ordering::Equal
}

fn text_weight(character: Option<&u8>) -> i32 {
    match character {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_digit() => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

fn take_number(part: &[u8]) -> (&[u8], &[u8]) {
    let digits = part.iter().take_while(|c| c.is_ascii_digit()).count();
    let zeros = part[..digits].iter().take_while(|c| **c == b'0').count();
    (&part[zeros..digits], &part[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
Package: linux-image-6.12.95+deb12-cloud-amd64
Architecture: amd64
Version: 6.12.95-1~bpo12+1
Description: Linux 6.12 for x86-64 cloud

Package: linux-image-6.12.117+deb12-cloud-amd64
Version: 6.12.117-1~deb12u1

Package: linux-image-6.12.117+deb12-cloud-amd64-unsigned
Version: 6.12.117-1~deb12u1

Package: linux-image-6.12-cloud-amd64
Version: 6.12.999-1

Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2

Package: nginx-full
Version: 1.22.1-9+deb12u3

Package: linux-image-7.2.13+deb14-cloud-amd64
Version: 7.2.13-1

Package: linux-binary-7.2.13+deb14-cloud-amd64
Version: 7.2.13-1

Package: linux-modules-7.2.13+deb14-cloud-amd64
Version: 7.2.13-1

Package: linux-base-7.2.13+deb14-cloud-amd64
Version: 7.2.12-1
";

    #[test]
    fn index_keeps_wanted_packages_only() {
        let all = parse_index(INDEX.as_bytes(), |_| true).unwrap();
        assert_eq!(all.len(), 10);
        let nginx = parse_index(INDEX.as_bytes(), |name| name == "nginx-full").unwrap();
        let version = "1.22.1-9+deb12u3".to_owned();
        assert_eq!(nginx, [Package { name: "nginx-full".into(), version }]);
        assert_eq!(parse_index(&b""[..], |_| true).unwrap(), []);
        assert_eq!(parse_index(&b"Package: half\n\nVersion: 1\n"[..], |_| true).unwrap(), []);
        assert_eq!(parse_index(&b"Package: \xff\nVersion: 1"[..], |_| true).unwrap().len(), 1);
    }

    #[test]
    fn newest_kernel_of_a_series() {
        let packages = parse_index(INDEX.as_bytes(), is_kernel_package).unwrap();
        let kernel = newest_kernel(&packages, "6.12").unwrap();
        assert_eq!(kernel.release, "6.12.117+deb12-cloud-amd64");
        assert_eq!(kernel.packages, ["linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1~deb12u1"]);
        assert_eq!(newest_kernel(&packages, "6.1").unwrap().release, "6.1.0-56-cloud-amd64");
        assert_eq!(newest_kernel(&packages, "5.10"), None);
    }

    #[test]
    fn split_kernel_lists_the_parts_of_its_own_version() {
        let packages = parse_index(INDEX.as_bytes(), is_kernel_package).unwrap();
        let names: Vec<String> = newest_kernel(&packages, "7.2").unwrap().packages;
        assert_eq!(
            names,
            [
                "linux-image-7.2.13+deb14-cloud-amd64=7.2.13-1",
                "linux-binary-7.2.13+deb14-cloud-amd64=7.2.13-1",
                "linux-modules-7.2.13+deb14-cloud-amd64=7.2.13-1",
            ]
        );
    }

    #[test]
    fn newest_version_of_each_package() {
        let text = "Package: a\nVersion: 1.9-1\n\nPackage: a\nVersion: 1.10-1\n\nPackage: b\nVersion: 2\n";
        let newest = newest_versions(&parse_index(text.as_bytes(), |_| true).unwrap());
        assert_eq!(newest["a"], "1.10-1");
        assert_eq!(newest["b"], "2");
    }

    #[test]
    fn versions_order_as_dpkg_orders_them() {
        let ascending = [
            "0.9",
            "1.0~~",
            "1.0~~a",
            "1.0~",
            "1.0~rc1-1",
            "1.0",
            "1.0-1~deb12u1",
            "1.0-1",
            "1.0-1+b1",
            "1.0a",
            "1.0+x",
            "1.0.1",
            "1.2",
            "1.10",
            "1:0.1",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        for (a, b) in [("1.0", "1.00"), ("0:1", "1"), ("1-0", "1"), ("1.01-1", "1.1-1")] {
            assert_eq!(compare_versions(a, b), Ordering::Equal, "{a} {b}");
        }
    }
}

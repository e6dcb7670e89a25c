//! Versions of nginx, by which defaults differ.

use std::{fmt, str::FromStr};

use super::binary::Build;

/// A version such as 1.22.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16, pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads three numbers; what follows the third (OpenResty's fourth, `-dev`) is passed over.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.trim().splitn(3, '.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part.get(..digits).and_then(|number| number.parse().ok())
        });
        let mut next = || parts.next().flatten();
        match (next(), next(), next()) {
            (Some(major), Some(minor), Some(patch)) => Ok(Self(major, minor, patch)),
            _ => Err(format!("{text} is no version of nginx: write it like 1.22.1")),
        }
    }
}

/// What decides about defaults besides the configuration itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    /// The version of nginx's own source; `None` where it is not known, as in forks with numbers of their own.
    pub version: Option<Version>,
    /// Size of a memory page, bytes: the default of many buffers.
    pub page: u32,
}

impl Default for Platform {
    /// An unknown version on x86-64.
    fn default() -> Self {
        Self { version: None, page: 4096 }
    }
}

impl Platform {
    /// Where a default comes from, for people.
    pub fn origin(&self) -> String {
        self.version.map_or_else(|| "default".to_owned(), |version| format!("default of nginx {version}"))
    }
}

/// The last release before freenginx went its own way, under the same numbers.
const FREENGINX_LEFT: Version = Version(1, 25, 3);

impl Build {
    /// The version of nginx's source in this build. OpenResty's first three numbers are nginx's; Tengine says
    /// both; Angie, and freenginx since it left, number on their own: `None`.
    pub fn core(&self) -> Option<Version> {
        if let Some(core) = &self.core {
            return core.parse().ok();
        }
        let version: Version = self.version.parse().ok()?;
        match self.flavor.to_ascii_lowercase().as_str() {
            "nginx" | "openresty" => Some(version),
            "freenginx" => Some(version).filter(|version| *version <= FREENGINX_LEFT),
            _ => None,
        }
    }
}

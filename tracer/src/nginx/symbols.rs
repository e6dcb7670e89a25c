//! What uprobes need to know of an nginx executable: where its exported functions begin, and where fields lie in its
//! `ngx_http_request_t`.
//!
//! The fields are not guessed from a version: nginx's own table of variables (`ngx_http_core_variables`,
//! src/http/ngx_http_variables.c) holds `offsetof`s of that structure, and is found by its names. Several entries must
//! agree with each other before anything is believed. Needs the dynamic symbols only, which `strip` leaves.

use std::collections::{BTreeSet, HashMap};

use object::{
    Architecture, Object as _, ObjectSegment as _, ObjectSymbol, RelocationTarget, SegmentFlags,
    read::elf::ElfFile64,
};
use thiserror::Error;

/// Largest offset that is taken for one inside `ngx_http_request_t`.
const MOST: u64 = 8192;
/// Most relocations that are looked at: nginx with all its modules has some ten thousand.
const MOST_RELOCATIONS: usize = 1 << 20;

/// Why an executable cannot be probed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SymbolError {
    /// Not a 64-bit ELF file of x86-64.
    #[error("it is no x86-64 program")]
    Machine,
    /// The table of variables is not there, or says what does not fit together.
    #[error("its request structure is not known: {0}")]
    Layout(&'static str),
}

/// A function of the executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Where a uprobe goes in the file, bytes: at its beginning, or behind a landing pad (ENDBR64) that stands there.
    pub offset: u64,
    /// A uprobe there costs one trap: the kernel emulates the first instruction. Else it costs two.
    pub cheap: bool,
}

/// What there is to probe, and to be read in a worker's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbols {
    /// `ngx_log_error_core`.
    pub log: Option<Function>,
    /// `ngx_connection_error`.
    pub connection_error: Option<Function>,
    /// `ngx_http_special_response_handler`.
    pub answers: Option<Function>,
    /// `ngx_http_upstream_free_round_robin_peer`.
    pub free_peer: Option<Function>,
    /// `upstream` in `ngx_http_request_t`, bytes.
    pub upstream: u32,
    /// `headers_in.host`, bytes.
    pub host: u32,
    /// `start_sec`, bytes.
    pub start_sec: u32,
}

/// Reads an executable.
///
/// # Errors
/// [`SymbolError`]: it cannot be probed.
pub fn symbols(elf: &[u8]) -> Result<Symbols, SymbolError> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf).map_err(|_| SymbolError::Machine)?;
    if file.architecture() != Architecture::X86_64 || !file.is_little_endian() {
        return Err(SymbolError::Machine);
    }
    let image = Image::of(&file);
    let functions: HashMap<&str, u64> = file
        .dynamic_symbols()
        .filter(ObjectSymbol::is_definition)
        .filter_map(|symbol| Some((symbol.name().ok()?, symbol.address())))
        .collect();
    let function = |name: &str| image.function(*functions.get(name)?);
    // Only builds with a cache have it, and a pointer for it before `upstream`.
    let cache = functions.contains_key("ngx_http_file_cache_create");
    let (upstream, host, start_sec) = layout(&image, cache)?;
    Ok(Symbols {
        log: function("ngx_log_error_core"),
        connection_error: function("ngx_connection_error"),
        answers: function("ngx_http_special_response_handler"),
        free_peer: function("ngx_http_upstream_free_round_robin_peer"),
        upstream,
        host,
        start_sec,
    })
}

/// A part of the file that is mapped.
struct Segment<'a> {
    address: u64,
    offset: u64,
    data: &'a [u8],
    executable: bool,
    writable: bool,
}

/// The program as the loader lays it out.
struct Image<'a> {
    segments: Vec<Segment<'a>>,
    /// What the loader writes, by place: the addresses that a position-independent program holds.
    pointers: HashMap<u64, u64>,
}

impl<'a> Image<'a> {
    fn of(file: &ElfFile64<'a>) -> Self {
        let flags = |flags| match flags {
            SegmentFlags::Elf { p_flags } => p_flags,
            _ => 0,
        };
        let segments = file.segments().filter_map(|segment| {
            let bits = flags(segment.flags());
            Some(Segment {
                address: segment.address(),
                offset: segment.file_range().0,
                data: segment.data().ok()?,
                executable: bits & object::elf::PF_X != 0,
                writable: bits & object::elf::PF_W != 0,
            })
        });
        let relocations = file.dynamic_relocations().into_iter().flatten().take(MOST_RELOCATIONS);
        let pointers = relocations
            .filter(|(_, r)| r.target() == RelocationTarget::Absolute)
            .filter_map(|(place, r)| Some((place, u64::try_from(r.addend()).ok()?)))
            .collect();
        Self { segments: segments.collect(), pointers }
    }

    fn bytes(&self, address: u64, length: usize) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            let at = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            segment.data.get(at..at.checked_add(length)?)
        })
    }

    fn function(&self, address: u64) -> Option<Function> {
        let segment = self.segments.iter().find(|segment| {
            let at = address.checked_sub(segment.address).and_then(|at| usize::try_from(at).ok());
            segment.executable && at.is_some_and(|at| at < segment.data.len())
        })?;
        // Every call passes what follows it with its arguments untouched, and that the kernel can emulate.
        const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
        let first = match self.bytes(address, ENDBR64.len()) {
            Some(ENDBR64) => address.checked_add(4)?,
            _ => address,
        };
        let offset = segment.offset.checked_add(first - segment.address)?;
        let cheap = match self.bytes(first, 2)? {
            // push, or push of r8 to r15, or nop (arch/x86/kernel/uprobes.c).
            [0x50..=0x57 | 0x90, _] | [0x41, 0x50..=0x57] => true,
            _ => false,
        };
        Some(Function { offset, cheap })
    }

    fn is_code(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            let at = address.checked_sub(segment.address).and_then(|at| usize::try_from(at).ok());
            segment.executable && at.is_some_and(|at| at < segment.data.len())
        })
    }
}

/// The variables whose entries hold offsets.
const NAMES: [&str; 4] = ["uri", "args", "request_uri", "http_host"];

/// Their entries: who answers, and the offset.
type Entries = [BTreeSet<(u64, u64)>; NAMES.len()];

/// The `ngx_http_variable_t`s of those names: `{{len, data}, set, get, offset, flags, index}`.
fn entries(image: &Image<'_>) -> Entries {
    let mut found = Entries::default();
    for segment in image.segments.iter().filter(|segment| segment.writable) {
        let word = |at: usize| {
            let bytes = segment.data.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let pointer = |at: usize| {
            let place = segment.address.checked_add(u64::try_from(at).ok()?)?;
            image.pointers.get(&place).copied().or_else(|| word(at)).filter(|address| *address != 0)
        };
        // The loader aligns the segment in memory, so that its places count, not those in the file.
        let first = usize::try_from(segment.address.wrapping_neg() % 8).unwrap_or(0);
        for at in (first..segment.data.len()).step_by(8) {
            let Some(length) = word(at).filter(|length| (3..=11).contains(length)) else { continue };
            let names = NAMES.iter().zip(&mut found);
            let of_length = names.filter(|(name, _)| u64::try_from(name.len()).ok() == Some(length));
            for (name, found) in of_length {
                let text = pointer(at + 8).and_then(|address| image.bytes(address, name.len() + 1));
                let is_it = text.and_then(|text| text.strip_suffix(&[0])) == Some(name.as_bytes());
                let get = pointer(at + 24).filter(|address| image.is_code(*address));
                let (Some(get), Some(offset), Some(0)) = (get, word(at + 32), word(at + 48)) else {
                    continue;
                };
                if is_it && offset < MOST && offset.is_multiple_of(8) && offset > 0 {
                    found.insert((get, offset));
                }
            }
        }
    }
    found
}

/// The offsets, from entries that agree (src/http/ngx_http_request.h, 1.14 to 1.31):
/// `… srv_conf, loc_conf, read and write handler, [cache,] upstream, upstream_states, pool, header_in, headers_in {list,
/// [count,] host, …}, …, start_sec, start_msec, method, http_version, request_line, uri, args, exten, unparsed_uri`, with
/// `count` since 1.29.8.
fn layout(image: &Image<'_>, cache: bool) -> Result<(u32, u32, u32), SymbolError> {
    let one = |found: &BTreeSet<(u64, u64)>| match found.iter().copied().collect::<Vec<_>>().as_slice() {
        [only] => Ok(*only),
        [] => Err(SymbolError::Layout("its table of variables was not found")),
        _ => Err(SymbolError::Layout("it has more than one table of variables")),
    };
    let [uri, args, unparsed, host] = entries(image);
    let (uri, args, unparsed, host) = (one(&uri)?, one(&args)?, one(&unparsed)?, one(&host)?);
    let handlers_fit = uri.0 == args.0 && uri.0 == unparsed.0 && host.0 != uri.0;
    let strings_fit = args.1 == uri.1 + 16 && unparsed.1 == uri.1 + 48;
    let upstream = if cache { 72 } else { 64 };
    let upstream = Some(upstream).filter(|upstream| matches!(host.1.checked_sub(*upstream), Some(88 | 96)));
    let start_sec = uri.1.checked_sub(48).filter(|start_sec| *start_sec > host.1);
    match (upstream, start_sec) {
        (Some(upstream), Some(start_sec)) if handlers_fit && strings_fit => {
            let narrow = |offset| u32::try_from(offset).map_err(|_| SymbolError::Layout("it is too long"));
            Ok((narrow(upstream)?, narrow(host.1)?, narrow(start_sec)?))
        }
        _ => Err(SymbolError::Layout("its parts are not where they are in the versions known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This machine's nginx; None where there is none.
    fn installed() -> Option<Vec<u8>> {
        std::fs::read("/usr/sbin/nginx").ok()
    }

    #[test]
    fn reads_the_installed_nginx() {
        let Some(elf) = installed() else { return };
        let found = symbols(&elf).unwrap();
        assert_eq!((found.upstream, found.host), (72, 160), "with a cache, as Debian builds it");
        assert!(found.start_sec > 500 && found.start_sec.is_multiple_of(8), "{found:?}");
        assert!(found.free_peer.is_some_and(|f| f.cheap), "{found:?}");
        let (log, error, answers) =
            (found.log.unwrap(), found.connection_error.unwrap(), found.answers.unwrap());
        assert!(log.offset > 0 && log.offset != error.offset && log.offset != answers.offset);
    }

    #[test]
    fn refuses_what_is_no_nginx() {
        assert_eq!(symbols(b""), Err(SymbolError::Machine));
        assert_eq!(symbols(b"\x7fELF\x02\x01\x01"), Err(SymbolError::Machine));
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(symbols(&own).is_err());
    }

    #[test]
    fn damage_is_an_error() {
        let Some(elf) = installed() else { return };
        let whole = symbols(&elf).unwrap();
        let step = elf.len() / 97;
        for cut in (0..elf.len()).step_by(step.max(1)) {
            // Nothing is asked of the answer but that there is one.
            let _ = symbols(elf.get(..cut).unwrap());
        }
        let mut seed = 502_u64;
        for _ in 0..64 {
            let mut damaged = elf.clone();
            for _ in 0..64 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The headers are where it hurts.
                let most = if seed & 1 == 0 { 4096 } else { damaged.len() as u64 };
                let at = usize::try_from((seed >> 16) % most).unwrap();
                *damaged.get_mut(at).unwrap() = (seed >> 8) as u8;
            }
            let _ = symbols(&damaged);
        }
        assert_eq!(symbols(&elf), Ok(whole));
    }

    #[test]
    fn another_table_of_variables_is_not_believed() {
        let Some(mut elf) = installed() else { return };
        // Renames every variable `request_uri`.
        let needle = b"\0request_uri\0";
        let mut from = 0;
        while let Some(at) = elf.get(from..).and_then(|rest| rest.windows(13).position(|w| w == needle)) {
            elf.get_mut(from + at + 1).map(|byte| *byte = b'R').unwrap();
            from += at + 12;
        }
        assert_eq!(symbols(&elf), Err(SymbolError::Layout("its table of variables was not found")));
    }
}

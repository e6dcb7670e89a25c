//! From a process's command line to its configuration file, as `ngx_get_options` and `ngx_process_options`
//! have it.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::binary::Defaults;

/// What an nginx process is, by its title.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProcessRole {
    /// `nginx: master process …`
    Master,
    /// `nginx: worker process`
    Worker,
    /// `nginx: worker process is shutting down`: it keeps the configuration from before a reload.
    ShuttingDown,
    /// `nginx: cache manager process`, `cache loader process`, `privileged agent process` and other helpers.
    Helper,
}

/// Reads the title that nginx writes over its arguments; `None` for any other command line. With
/// `master_process off` nginx writes none.
pub fn role(cmdline: &[u8]) -> Option<ProcessRole> {
    let title = title(cmdline)?;
    Some(if title.starts_with(b"master process") {
        ProcessRole::Master
    } else if title.starts_with(b"worker process is shutting down") {
        ProcessRole::ShuttingDown
    } else if title.starts_with(b"worker process") {
        ProcessRole::Worker
    } else {
        ProcessRole::Helper
    })
}

/// What stands behind `nginx: `, without the padding of zeros.
fn title(cmdline: &[u8]) -> Option<&[u8]> {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = cmdline.get(..end)?;
    let names: [&[u8]; 4] = [b"nginx: ", b"angie: ", b"tengine: ", b"freenginx: "];
    names.iter().find_map(|name| text.strip_prefix(*name))
}

/// Whether a title may be cut off: nginx writes it over its arguments and environment, so that an empty
/// environment (`env -i nginx …`) leaves too little room. Both lengths in bytes, from `/proc/PID/stat`
/// (`arg_end - arg_start` and `env_end - env_start`).
pub fn may_be_cut_off(cmdline: &[u8], arg_bytes: usize, env_bytes: usize) -> bool {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    title(cmdline).is_some() && end + 2 >= arg_bytes.saturating_add(env_bytes)
}

/// Why a command line does not lead to a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvocationError {
    /// An option without its value: nginx would not have started like this, so the title is cut off.
    #[error(
        "the command line ends behind -{0}: the title is cut off; name the configuration file explicitly"
    )]
    Truncated(char),
    /// An option that nginx does not know.
    #[error("unknown option \"{0}\" on the command line; is this nginx?")]
    UnknownOption(String),
    /// A title with a zero inside: nginx is writing it over its arguments, some of which still stand behind it.
    #[error("the title was read while nginx wrote it: try again")]
    Torn,
    /// A worker or helper: only the master's title holds the arguments.
    #[error("this is a worker or a helper process; the arguments are in its master's command line")]
    NotMaster,
    /// The default, relative path and no prefix to put in front of it.
    #[error("no folder to start from: the current folder of the process is not absolute")]
    NoFolder,
}

/// Which configuration a process runs with. Paths are as the process sees them, in its own root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Prefix: other relative paths (logs, `root`) start here.
    pub prefix: PathBuf,
    /// The main file.
    pub conf_path: PathBuf,
    /// Folder of the main file: relative includes start here.
    pub conf_prefix: PathBuf,
    /// The text of `-g`: directives read before the main file.
    pub globals: Option<Vec<u8>>,
    /// `-e`, or the compiled-in path.
    pub error_log: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Options {
    prefix: Option<Vec<u8>>,
    conf: Option<Vec<u8>>,
    globals: Option<Vec<u8>>,
    error_log: Option<Vec<u8>>,
}

/// Works out the configuration of a master, or of a process without one, from `/proc/PID/cmdline`, the paths
/// compiled in, and the process's current folder. An nginx that daemonizes does not change its folder.
///
/// # Errors
/// A command line that nginx would have refused, which means that it is another program's or cut off.
pub fn invocation(cmdline: &[u8], defaults: &Defaults, cwd: &Path) -> Result<Invocation, InvocationError> {
    let options = match (title(cmdline), role(cmdline)) {
        (Some(title), Some(ProcessRole::Master)) => {
            if title.contains(&0) {
                return Err(InvocationError::Torn);
            }
            let arguments = title.strip_prefix(b"master process").unwrap_or_default();
            title_options(unbracketed(arguments.trim_ascii_start()))?
        }
        (_, Some(ProcessRole::Worker | ProcessRole::ShuttingDown | ProcessRole::Helper)) => {
            return Err(InvocationError::NotMaster);
        }
        (_, Some(ProcessRole::Master) | None) => argv_options(cmdline)?,
    };
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let compiled = || defaults.prefix.clone().unwrap_or_default();
    let prefix = cwd.join(options.prefix.as_deref().map_or_else(compiled, path));
    let conf_path = prefix.join(options.conf.as_deref().map_or_else(|| defaults.conf_path.clone(), path));
    if !conf_path.is_absolute() {
        return Err(InvocationError::NoFolder);
    }
    Ok(Invocation {
        conf_prefix: conf_path.parent().unwrap_or(Path::new("/")).to_path_buf(),
        conf_path,
        error_log: options.error_log.as_deref().map(path).or_else(|| defaults.error_log_path.clone()),
        globals: options.globals,
        prefix,
    })
}

/// Angie puts its version, the generation and brackets around the arguments: `v1.10.0 #1 [angie -c x]`.
fn unbracketed(arguments: &[u8]) -> &[u8] {
    let open = arguments.iter().position(|byte| *byte == b'[');
    let before = open.and_then(|at| arguments.get(..at)).unwrap_or_default();
    let is_version = matches!(before, [b'v', digit, ..] if digit.is_ascii_digit()) && before.contains(&b'#');
    match open.filter(|_| is_version).and_then(|at| arguments.get(at + 1..)) {
        Some(inner) => inner.strip_suffix(b"]").unwrap_or(inner),
        None => arguments,
    }
}

impl Options {
    /// The place for an option's value; `None` for one that stops nginx from running (`-s`).
    fn set(&mut self, option: u8, value: Vec<u8>) {
        match option {
            b'p' => self.prefix = Some(value),
            b'c' => self.conf = Some(value),
            b'g' => self.globals = Some(value),
            b'e' => self.error_log = Some(value),
            _ => {}
        }
    }
}

fn unknown(option: &[u8]) -> InvocationError {
    InvocationError::UnknownOption(String::from_utf8_lossy(option).into_owned())
}

/// Reads real arguments, which a zero ends each.
fn argv_options(cmdline: &[u8]) -> Result<Options, InvocationError> {
    let mut options = Options::default();
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let mut arguments = cmdline.split(|byte| *byte == 0).skip(1);
    while let Some(argument) = arguments.next() {
        let Some(letters) = argument.strip_prefix(b"-") else { return Err(unknown(argument)) };
        for (at, letter) in letters.iter().enumerate() {
            match letter {
                b'?' | b'h' | b'v' | b'V' | b't' | b'T' | b'q' => {}
                b'p' | b'c' | b'g' | b'e' | b's' => {
                    let joined = letters.get(at + 1..).filter(|value| !value.is_empty());
                    let value = joined.or_else(|| arguments.next());
                    let value = value.ok_or(InvocationError::Truncated(char::from(*letter)))?;
                    options.set(*letter, value.to_vec());
                    break;
                }
                _ => return Err(unknown(argument)),
            }
        }
    }
    Ok(options)
}

/// Reads arguments that nginx has joined with spaces for its title, so that a value's own spaces cannot be
/// told from those between arguments: a value ends where the next ` -LETTER` stands, and `-g` besides only
/// behind a `;`, without which nginx would refuse it.
fn title_options(text: &[u8]) -> Result<Options, InvocationError> {
    let mut options = Options::default();
    // The program's own path ends at the first option.
    let mut rest = text.get(next_option(text, false)..).unwrap_or_default();
    while let Some(letters) = rest.trim_ascii_start().strip_prefix(b"-") {
        let word = letters.iter().position(|byte| *byte == b' ').unwrap_or(letters.len());
        let flags = letters.iter().take(word).take_while(|l| b"?hvVtTq".contains(l)).count();
        match letters.get(flags) {
            None | Some(b' ') => rest = letters.get(flags..).unwrap_or_default(),
            Some(letter) if b"pcges".contains(letter) => {
                let value = letters.get(flags + 1..).unwrap_or_default();
                let value = value.strip_prefix(b" ").unwrap_or(value);
                let end = next_option(value, *letter == b'g');
                let (value, after) = value.split_at(end.min(value.len()));
                if value.is_empty() {
                    return Err(InvocationError::Truncated(char::from(*letter)));
                }
                options.set(*letter, value.to_vec());
                rest = after;
            }
            Some(_) => return Err(unknown(letters.get(..word).unwrap_or_default())),
        }
    }
    let rest = rest.trim_ascii();
    if rest.is_empty() { Ok(options) } else { Err(unknown(rest)) }
}

/// Where the next option begins, at the space in front of it; else the end.
fn next_option(text: &[u8], behind_semicolon: bool) -> usize {
    let begins = |at: &usize| {
        let before = || text.get(..*at).unwrap_or_default().trim_ascii_end();
        matches!(text.get(*at..), Some([b' ', b'-', letter, ..]) if b"?hvVtTqpcges".contains(letter))
            && (!behind_semicolon || before().ends_with(b";"))
    };
    (0..text.len()).find(begins).unwrap_or(text.len())
}

/// Whether a command line may belong to an nginx at all: a title of nginx's, or a program called so.
pub fn may_be_nginx(cmdline: &[u8]) -> bool {
    let program = cmdline.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let names: [&[u8]; 5] = [b"nginx", b"openresty", b"angie", b"tengine", b"freenginx"];
    title(cmdline).is_some() || names.iter().any(|known| name.starts_with(known))
}

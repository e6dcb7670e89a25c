//! `why502 audit`: what a run has told, against nginx's own logs.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    cli::{Audit, Format},
    retold::retold,
    run::{DONE, INCIDENTS, INCOMPLETE, output},
};
use tracer::{
    audit::{Logs, Options, Stream, audit},
    record::{self, Reader},
    report::{
        audit::{Shown, json, text},
        local_offset,
    },
    session::complain,
};

/// The command line asks for what cannot be.
const USAGE: u8 = 2;

/// Compares and tells. Exits with 4 if a side is not whole, with 1 if they do not agree and `--exit-code` was given.
pub(crate) fn run(options: &Audit) -> Result<ExitCode> {
    let all = std::iter::once(&options.incidents).chain(&options.logs).chain(&options.access);
    if all.filter(|path| *path == Path::new("-")).count() > 1 {
        complain(&["only one of the files can be -, which is stdin".to_owned()]);
        return Ok(ExitCode::from(USAGE));
    }
    let (stream, logs) = read(options)?;
    let wishes = Options {
        offset: options.utc_offset,
        machine: local_offset(stream.span().map_or(0, |(from, _)| from / 1_000_000)),
        level: options.level,
    };
    let found = audit(&stream, &logs, &wishes);
    let name = |path: &Path| path.to_string_lossy().into_owned();
    let log_names: Vec<String> = options.logs.iter().chain(&options.access).map(|path| name(path)).collect();
    let shown = Shown {
        stream_name: &name(&options.incidents),
        log_names: &log_names,
        stream: &stream,
        logs: &logs,
        audit: &found,
    };
    let mut out = output(options.output, options.color);
    match options.output {
        Format::Json => json(&mut *out, &shown),
        Format::Text => text(&mut *out, &shown, options.list),
    }
    .context("cannot write to stdout")?;
    Ok(ExitCode::from(if !shown.doubts().is_empty() {
        INCOMPLETE
    } else if options.exit_code && !found.agrees() {
        INCIDENTS
    } else {
        DONE
    }))
}

fn read(options: &Audit) -> Result<(Stream, Logs)> {
    let stream = Stream::read(open(&options.incidents)?).with_context(|| unreadable(&options.incidents))?;
    let mut logs = Logs::default();
    for path in &options.logs {
        logs.add_errors(open(path)?, stream.span()).with_context(|| unreadable(path))?;
    }
    for path in &options.access {
        logs.add_access(open(path)?, stream.span()).with_context(|| unreadable(path))?;
    }
    Ok((stream, logs))
}

fn unreadable(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let mut reader = BufReader::new(File::open(path).with_context(|| unreadable(path))?);
    let begin = reader.fill_buf().with_context(|| unreadable(path))?;
    if begin.starts_with(&[0x1f, 0x8b]) {
        return Err(anyhow!(
            "{} is compressed: write <(zcat {}) in its place",
            path.display(),
            path.display()
        ));
    }
    if record::begins_like_ours(begin) {
        let reader = Reader::open(reader).with_context(|| unreadable(path))?;
        return Ok(Box::new(retold(reader)));
    }
    Ok(Box::new(reader))
}

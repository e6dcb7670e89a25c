//! `why502 explain`: the manual of the causes and findings.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    cli::{Explain, Explained, Format},
    run::{DONE, output, terminal_width},
};
use tracer::report::explain;

/// Prints the page of a cause, or the list.
pub(crate) fn run(options: &Explain) -> Result<ExitCode> {
    let mut out = output(Format::Text, options.color);
    let written = match options.name {
        Some(Explained::Cause(cause)) => explain::page(&mut *out, cause, terminal_width()),
        Some(Explained::Finding(name)) => explain::finding(&mut *out, name, terminal_width()).map(|_| ()),
        None => explain::list(&mut *out, terminal_width()),
    };
    written.context("cannot write to stdout")?;
    Ok(ExitCode::from(DONE))
}

//! `why502 explain`: the manual of the causes.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    cli::{Explain, Format},
    run::{DONE, output, terminal_width},
};
use tracer::report::explain;

/// Prints the page of a cause, or the list.
pub(crate) fn run(options: &Explain) -> Result<ExitCode> {
    let mut out = output(Format::Text, options.color);
    let written = match options.cause {
        Some(cause) => explain::page(&mut *out, cause, terminal_width()),
        None => explain::list(&mut *out, terminal_width()),
    };
    written.context("cannot write to stdout")?;
    Ok(ExitCode::from(DONE))
}

//! TLS towards upstream servers: what nginx would say, and what an answer means for it.

use super::{
    probe::{TlsAnswer, TlsAsk},
    targets::Target,
};
use crate::{
    diagnose::Verdict,
    nginx::model::{Model, Pass},
    sys::process::Process,
};

/// The handshake that a pass makes; None if it makes none, or what it would say is not known.
pub(super) fn ask(_model: &Model, _pass: &Pass) -> Option<TlsAsk> {
    None
}

pub(super) fn judge(_: &Model, _: &Process, _: &Target, _: &TlsAnswer) -> Option<Verdict> {
    None
}

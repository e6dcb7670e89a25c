//! What a recording says of the run that it is of.

use std::{fs, time::SystemTime};

use super::watch::Watch;
use crate::{
    moment::Moment,
    nginx::binary::Build,
    probes::{
        Tier,
        load::{Loaded, State},
    },
    record::{Header, Hook, Master},
};

/// Of a file of one line below /proc/sys/kernel; empty if it cannot be read.
fn kernel(name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    text.trim_end().to_owned()
}

/// The hooks of a loaded object.
pub(super) fn hooks(loaded: &Loaded) -> Vec<Hook> {
    let hook = |status: &crate::probes::load::Status| {
        let missing = match &status.state {
            State::Attached(_) | State::Ready(_) => None,
            State::Missing(why) => Some(why.clone()),
            State::NotInTier => Some("not in this tier".to_owned()),
            State::NotNeeded(why) => Some(format!("not needed: {why}")),
        };
        Hook { name: status.probe.name.to_owned(), missing }
    };
    loaded.probes.iter().map(hook).collect()
}

/// The header of a recording that begins now.
pub(super) fn of(tier: Tier, hooks: Vec<Hook>, payload: bool, watch: &Watch) -> Header {
    let mut masters: Vec<Master> = watch
        .families()
        .into_iter()
        .map(|(pid, config)| Master {
            pid,
            config: config.main.as_ref().map(|main| main.to_string_lossy().into_owned()),
            version: config.build.as_ref().and_then(Build::core).map(|version| version.to_string()),
        })
        .collect();
    masters.sort_by_key(|master| master.pid);
    Header {
        why502: env!("CARGO_PKG_VERSION").to_owned(),
        host: kernel("hostname"),
        kernel: kernel("osrelease"),
        machine: std::env::consts::ARCH.to_owned(),
        time: Moment::local(SystemTime::now()),
        tier,
        hooks,
        masters,
        payload,
        part: 1,
    }
}

//! Lints are asked about texts.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::super::Finding;
use crate::nginx::{Files, Model, Platform, Source, Version, parse};

pub(crate) const MAIN: &str = "/etc/nginx/nginx.conf";

struct Text<'a>(&'a str);

impl Files for Text<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == Path::new(MAIN) { Ok(self.0.into()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

pub(crate) fn model(text: &str, version: Version) -> Model {
    let config = parse(&Text(text), Source::new(Path::new(MAIN))).unwrap_or_else(|e| panic!("{e} in {text}"));
    let model = Model::for_platform(config, Platform { version: Some(version), page: 4096 });
    assert!(model.warnings.is_empty(), "{:?} in {text}", model.warnings);
    model
}

type Check = fn(&Model) -> Vec<Finding>;

/// The only finding in a text; it has all that a finding needs.
pub(crate) fn one_in(check: Check, text: &str, version: Version) -> Finding {
    let mut found = check(&model(text, version));
    assert_eq!(found.len(), 1, "{found:#?} in {text}");
    let found = found.remove(0);
    assert!(!found.breaks.is_empty() && !found.fix.is_empty() && !found.at.is_empty(), "{found:#?}");
    assert_eq!(found.rival.is_some(), found.confidence == crate::diagnose::Confidence::Likely, "{found:#?}");
    assert!(super::LINTS.iter().any(|lint| lint.name == found.name), "{} is in no table", found.name);
    found
}

pub(crate) fn clean_in(check: Check, text: &str, version: Version) {
    let found = check(&model(text, version));
    assert!(found.is_empty(), "{found:#?} in {text}");
}

pub(crate) fn one(check: Check, text: &str) -> Finding {
    one_in(check, text, Version(1, 22, 1))
}

pub(crate) fn clean(check: Check, text: &str) {
    clean_in(check, text, Version(1, 22, 1));
}

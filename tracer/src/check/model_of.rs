//! A model of one text, for tests.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::nginx::{Files, Model, Source, parse};

struct One(Vec<u8>);

impl Files for One {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

pub(super) fn model(text: &str) -> Model {
    let main = Path::new("/etc/nginx/nginx.conf");
    Model::new(parse(&One(text.as_bytes().to_vec()), Source::new(main)).unwrap())
}

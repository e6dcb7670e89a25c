//! `why502 check`: the running nginx, its configuration and its upstream servers, looked at without traffic.

mod finding;

pub use finding::{Checked, Finding, Place, Severity};

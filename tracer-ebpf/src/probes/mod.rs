//! Attach areas, one a file.

mod connect;
mod death;
mod denial;
mod dns;
mod drops;
mod icmp;
mod listen;
mod older;
mod proc;
mod read;
mod reset;
pub(crate) mod said;
mod state;
mod talk;
mod unix;
pub(crate) mod unix_end;
pub(crate) mod unix_talk;
mod write;

//! Attach areas, one a file.

mod connect;
mod drops;
mod icmp;
mod listen;
mod proc;
mod reset;
mod state;

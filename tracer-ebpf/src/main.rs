//! The BPF object of why502: module list, licence, panic handler.
//!
//! A probe is a thin entry point that calls a `try_*` or `on_*` function; nothing here formats, blocks or
//! decides what a failure means. Healthy traffic touches `probes/state.rs` alone.
#![no_std]
#![no_main]
// As aya-ebpf itself: inline assembly for BPF is not stable.
#![feature(asm_experimental_arch)]

mod begins;
mod conns;
mod emit;
mod exchange;
mod failed;
mod kernel;
mod length;
mod maps;
mod nginx;
mod probes;
mod procs;
mod repeats;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! The unsafe corner of the demo: a terminal for why502's text, and a link whose far side never answers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A pseudo-terminal as large as the terminal that stdout is, for a program whose output this one passes on: the
/// program finds what it would find there. First this side, then the program's. None if stdout is no terminal.
pub(super) fn terminal() -> Option<(File, OwnedFd)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer; if stdout is no terminal it is an error return.
    if unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) } != 0 {
        return None;
    }
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: openpty writes two descriptors and reads the size; name and termios may be null.
    let opened =
        unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, std::ptr::null_mut(), &raw mut size) };
    if opened != 0 {
        return None;
    }
    // SAFETY: both descriptors were just opened and belong to nobody else.
    unsafe { Some((File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))) }
}

/// Creates the TUN device `name` in this process's network namespace; it swallows packets while the file is open.
pub(super) fn swallow(name: &str) -> io::Result<File> {
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // struct ifreq: the name, then a union of which TUNSETIFF reads the u16 flags.
    let mut request = [0_u8; 40];
    for (to, from) in request.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one ifreq (40 bytes on 64-bit Linux), the size of `request`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

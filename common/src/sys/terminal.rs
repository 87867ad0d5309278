//! Terminals and pseudo-terminals: ioctl_tty(2).

use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{from_mut, from_ref};

use super::{Result, answer, descriptor};

/// Lets the other side of a pseudo-terminal be opened.
///
/// # Errors
/// ENOTTY: `master` is no such thing.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> Result<()> {
    let unlocked: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    answer(c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, from_ref(&unlocked)) }))
        .map(drop)
}

/// The other side of a pseudo-terminal, by no path (TIOCGPTPEER, Linux 4.13).
///
/// # Errors
/// EIO: it is locked.
pub fn peer_terminal(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    descriptor(c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), 0x5441 as _, flags) }))
}

/// Makes a terminal the controlling one of the session that this process leads.
///
/// # Errors
/// EPERM: it is another session's, or this process leads none.
pub fn control_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the argument is a number.
    answer(c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) })).map(drop)
}

/// Gives one terminal the size of another, which tells those who use it.
///
/// # Errors
/// ENOTTY: one is none.
pub fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ stores one struct winsize.
    answer(c_long::from(unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ as _, from_mut(&mut size)) }))?;
    // SAFETY: TIOCSWINSZ reads one struct winsize.
    answer(c_long::from(unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ as _, from_ref(&size)) })).map(drop)
}

/// How many columns the terminal at descriptor `number` has.
///
/// # Errors
/// ENOTTY: it is no terminal.
pub fn columns(number: RawFd) -> Result<u16> {
    // SAFETY: an all-zero winsize is a valid value of this C struct.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ stores one winsize there.
    let n = unsafe { libc::ioctl(number, libc::TIOCGWINSZ, from_mut(&mut size)) };
    answer(c_long::from(n)).map(|_| size.ws_col)
}

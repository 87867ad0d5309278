//! Descriptors by their numbers: dup(2), fcntl(2), close_range(2).

use std::ffi::{c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{CLOSE_RANGE, Errno, PIDFD_GETFD, Result, answer, descriptor};

/// A duplicate, close-on-exec and above the standard ones, of descriptor `number`,
/// which our caller names as handed over (`fd:N`, `--stdin N`). What has come over
/// execve(2) is not close-on-exec, and all that we open is.
///
/// # Errors
/// EBADF: it is not open, or one of ours by chance; EMFILE.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl(2) on a number that is not open answers EBADF.
    let flags = answer(c_long::from(unsafe { libc::fcntl(number, libc::F_GETFD) }))?;
    if flags & c_long::from(libc::FD_CLOEXEC) != 0 { Err(Errno::EBADF) } else { dup_above(number, 3) }
}

/// Duplicates descriptor `number`, close-on-exec, to the lowest free number
/// from `lowest` on.
///
/// # Errors
/// EBADF: it is not open.
pub fn dup_above(number: RawFd, lowest: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl(2) on a number that is not open answers EBADF.
    descriptor(c_long::from(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, lowest) }))
}

/// Duplicates a descriptor of ours, close-on-exec.
///
/// # Errors
/// EMFILE.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    dup_above(fd.as_raw_fd(), 3)
}

/// Marks all descriptors from `first` to `last` close-on-exec (close_range(2),
/// the flag since Linux 5.11).
///
/// # Errors
/// EINVAL before that; ENOSYS before Linux 5.9.
pub fn cloexec_range(first: RawFd, last: RawFd) -> Result<()> {
    // SAFETY: no memory is passed; marking a descriptor does not close it.
    answer(unsafe { libc::syscall(CLOSE_RANGE, first, last, libc::CLOSE_RANGE_CLOEXEC as c_uint) }).map(drop)
}

/// Clears close-on-exec of descriptor `number`.
///
/// # Errors
/// EBADF: it is not open.
pub fn keep_over_exec(number: RawFd) -> Result<()> {
    // SAFETY: fcntl(2) on a number that is not open answers EBADF.
    answer(c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })).map(drop)
}

/// Makes `fd` also known as `number`, which is closed first if open, and stays
/// open over execve(2). For a child that arranges the few numbers it lives on.
///
/// # Errors
/// EBADF, EMFILE: `number` is over the limit.
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: `number` is below 16 and our children own nothing there that
    // Rust believes to hold: they are about to exec or to close everything.
    answer(c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

/// Closes every descriptor from `first` on, whoever opened it.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: only a process that will never drop an OwnedFd again calls this
    // (the holder, which leaves by exit_now).
    answer(unsafe { libc::syscall(CLOSE_RANGE, first, RawFd::MAX, 0) }).map(drop)
}

/// Lends descriptor `number` of this process, known to be open.
pub fn lend(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: callers pass 0-2, which std keeps open, a number that `place` has
    // just filled and that nobody closes, or one that is `inherited`.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Takes ownership of a descriptor that nobody owns yet: a message has just
/// brought it, or the command line named it.
pub fn own(number: RawFd) -> OwnedFd {
    // SAFETY: one that came with a message (SCM_RIGHTS) is known only to who
    // reads the message; one that our caller opened for us and named is used
    // by its number, by one step, which takes it here as the last it does.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A duplicate of descriptor `number` of another process (pidfd_getfd(2),
/// Linux 5.6; needs the right to ptrace it).
///
/// # Errors
/// EPERM; EBADF: that process has none of this number; ESRCH.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    descriptor(unsafe { libc::syscall(PIDFD_GETFD, pidfd.as_raw_fd(), number, 0) })
}

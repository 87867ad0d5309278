//! What the privileged room of uidmap-set calls, which shares no more code than
//! it must.

use std::ffi::{CStr, c_int};
use std::os::fd::OwnedFd;

use super::{Errno, Result};

/// The real uid and gid, of whoever runs this; None if the effective ones
/// differ, as in a set-id program.
pub fn only_ids() -> Option<(u32, u32)> {
    use nix::unistd::{getegid, geteuid, getgid, getuid};
    ((getuid(), getgid()) == (geteuid(), getegid())).then(|| (getuid().as_raw(), getgid().as_raw()))
}

/// O_NOFOLLOW of open(2).
pub const NOFOLLOW: c_int = libc::O_NOFOLLOW;

/// The owner of an open file or directory.
///
/// # Errors
/// Those of fstat(2).
pub fn owner_of(fd: &OwnedFd) -> Result<(u32, u32)> {
    nix::sys::stat::fstat(fd).map(|s| (s.st_uid, s.st_gid))
}

/// Writes `bytes` in one write(2).
///
/// # Errors
/// Those of write(2); EIO: not all was taken.
pub fn write_whole(fd: &OwnedFd, bytes: &[u8]) -> Result<()> {
    if nix::unistd::write(fd, bytes)? == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// Becomes `program`, with these words for its arguments.
pub fn become_program(program: &CStr, words: &[std::ffi::CString]) -> Errno {
    match nix::unistd::execv(program, words) {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

//! The system calls that nix lacks, and all of nskit's unsafe code.
//!
//! Each function is one call: arguments in, the kernel's answer or its errno
//! out. Nothing here knows ids, namespaces or messages. One room for each
//! object of the kernel:
//!
//! * `start`, `panic`, `heap`: what std and the libc would do otherwise
//! * `descriptor`, `file`, `mount`: what is open, and mounted
//! * `process`, `signal`, `terminal`: who runs
//! * `namespace`, `credential`, `capability`, `seccomp`: what they may
//! * `privileged`: for the one room that runs with privilege

#![allow(unsafe_code)]

use std::ffi::c_long;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

pub use nix::errno::Errno;

mod capability;
mod credential;
mod descriptor;
mod file;
#[cfg(panic = "abort")]
mod heap;
mod mount;
mod namespace;
#[cfg(panic = "abort")]
mod panic;
mod privileged;
mod process;
mod seccomp;
mod signal;
mod start;
mod terminal;

pub use capability::*;
pub use credential::*;
pub use descriptor::*;
pub use file::*;
pub use mount::*;
pub use namespace::*;
pub use privileged::*;
pub use process::*;
pub use seccomp::*;
pub use signal::*;
pub use start::*;
pub use terminal::*;

/// What a system call answers: a value, or the errno that it set.
pub type Result<T> = std::result::Result<T, Errno>;

// Call numbers are those of the generic table, which x86-64 and arm64 share
// from 424 on.
const CLONE3: c_long = 435;
const CLOSE_RANGE: c_long = 436;
const OPENAT2: c_long = 437;
const PIDFD_GETFD: c_long = 438;
const OPEN_TREE: c_long = 428;
const MOVE_MOUNT: c_long = 429;
const FSOPEN: c_long = 430;
const FSCONFIG: c_long = 431;
const FSMOUNT: c_long = 432;
const PIDFD_SEND_SIGNAL: c_long = 424;
const PIDFD_OPEN: c_long = 434;
const MOUNT_SETATTR: c_long = 442;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const OPEN_TREE_ATTR: c_long = 467;

fn answer(n: c_long) -> Result<c_long> {
    if n < 0 { Err(Errno::last()) } else { Ok(n) }
}

fn descriptor(n: c_long) -> Result<OwnedFd> {
    let fd = RawFd::try_from(answer(n)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else
    // in this process knows its number, so it has one owner from here on.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether this kernel has open_tree_attr(2) (Linux 6.15).
pub fn has_open_tree_attr() -> bool {
    has(OPEN_TREE_ATTR)
}

/// Whether this kernel has the system call of that number: one of `NEWER`.
pub fn has(call: c_long) -> bool {
    // SAFETY: to all calls that this is asked of, -1 is no descriptor, null no
    // address, and 0 no size: they refuse before anything is read or made.
    answer(unsafe { libc::syscall(call, -1, null::<u8>(), 0, null::<u8>(), 0, 0) }) != Err(Errno::ENOSYS)
}

/// The newer calls without which something does not work: their names, and the
/// release of Linux that has each as it is made here.
pub const NEWER: &[(&str, c_long, &str)] = &[
    ("renameat2", libc::SYS_renameat2, "3.15"),
    ("statx", libc::SYS_statx, "4.11"),
    ("pidfd_send_signal", PIDFD_SEND_SIGNAL, "5.1"),
    ("open_tree", OPEN_TREE, "5.2"),
    ("move_mount", MOVE_MOUNT, "5.2"),
    ("fsopen", FSOPEN, "5.2"),
    ("fsconfig", FSCONFIG, "5.2"),
    ("fsmount", FSMOUNT, "5.2"),
    ("pidfd_open", PIDFD_OPEN, "5.3"),
    ("clone3", CLONE3, "5.3"),
    ("openat2", OPENAT2, "5.6"),
    ("pidfd_getfd", PIDFD_GETFD, "5.6"),
    ("close_range", CLOSE_RANGE, "5.11"),
    ("mount_setattr", MOUNT_SETATTR, "5.12"),
    ("statmount", STATMOUNT, "6.8"),
    ("listmount", LISTMOUNT, "6.8"),
    ("open_tree_attr", OPEN_TREE_ATTR, "6.15"),
];

//! Who the next program is, and its environment: credentials(7), environ(7).

use std::ffi::{CStr, c_long};

use super::{Result, answer};

// The C library's functions of these names first stop all other threads, of
// which there are none: five more system calls for each.

/// Becomes a member of these groups and no others (setgroups(2)).
///
/// # Errors
/// EPERM: not permitted, or denied in this user namespace; EINVAL: unmapped.
pub fn set_groups(ids: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads as many numbers as there are.
    answer(unsafe { libc::syscall(libc::SYS_setgroups, ids.len(), ids.as_ptr()) }).map(drop)
}

/// Makes `id` the real, effective and saved gid (setresgid(2)).
///
/// # Errors
/// EPERM; EINVAL: it is not mapped.
pub fn set_gid(id: u32) -> Result<()> {
    // SAFETY: no memory is passed; nskit has no threads that could differ.
    answer(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) }).map(drop)
}

/// The same for the uid (setresuid(2)).
///
/// # Errors
/// EPERM; EINVAL: it is not mapped; EAGAIN: RLIMIT_NPROC.
pub fn set_uid(id: u32) -> Result<()> {
    // SAFETY: as for `set_gid`.
    answer(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) }).map(drop)
}

/// Sets or takes away a variable of the environment.
///
/// # Errors
/// EINVAL: the name is empty or has `=` in it; ENOMEM.
pub fn set_variable(name: &CStr, value: Option<&CStr>) -> Result<()> {
    let n = match value {
        // SAFETY: both strings end in NUL, and are copied; nskit has no
        // threads, so nobody reads the environment now.
        Some(value) => unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) },
        // SAFETY: the same.
        None => unsafe { libc::unsetenv(name.as_ptr()) },
    };
    answer(c_long::from(n)).map(drop)
}

/// Takes away the whole environment, with what is no variable in it: words
/// without `=`, or with nothing before it.
///
/// # Errors
/// None is known.
pub fn clear_environment() -> Result<()> {
    // SAFETY: as for `set_variable`.
    answer(c_long::from(unsafe { libc::clearenv() })).map(drop)
}

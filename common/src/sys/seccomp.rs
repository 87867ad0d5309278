//! Seccomp filters: our own, and those of another process, by ptrace(2).

use std::ffi::{c_int, c_long, c_uint};
use std::ptr::from_ref;

use super::{Errno, Result, answer};

/// Puts this process under a seccomp filter: instructions of struct
/// sock_filter, eight bytes each.
///
/// # Errors
/// EACCES: neither no_new_privs nor CAP_SYS_ADMIN; EINVAL: no valid program.
pub fn set_filter(bytes: &[u8]) -> Result<()> {
    // Copied, since the kernel wants them aligned.
    let word = |b: &[u8]| b.try_into().map_or(0, u64::from_ne_bytes);
    let program: Vec<u64> = bytes.chunks_exact(8).map(word).collect();
    let len = std::ffi::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: struct sock_filter has eight bytes, of which `filter` names `len`
    // that live over the call; the kernel only reads them. 1 is
    // SECCOMP_SET_MODE_FILTER.
    answer(unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, from_ref(&filter)) }).map(drop)
}

fn ptrace(request: c_uint, pid: i32, at: usize, data: *mut libc::c_void) -> Result<c_long> {
    // musl declares the request as int, glibc as unsigned int.
    #[allow(clippy::cast_possible_wrap)]
    // SAFETY: the requests used here write at most to `data`, which is null or
    // as large as the caller of `filter` has just been told.
    let n = unsafe { libc::ptrace(request as _, pid, at, data) };
    #[allow(clippy::useless_conversion)]
    answer(n.into())
}

/// Traces process `pid` and asks it to stop, which is to be waited for
/// (PTRACE_SEIZE, PTRACE_INTERRUPT). Whoever ends lets go.
///
/// # Errors
/// EPERM: it is not ours to trace, or somebody else traces it; ESRCH.
pub fn trace(pid: i32) -> Result<()> {
    ptrace(0x4206, pid, 0, std::ptr::null_mut())?;
    ptrace(0x4207, pid, 0, std::ptr::null_mut()).map(drop)
}

/// Lets a traced process go on untraced that has stopped with `status`
/// (PTRACE_DETACH). Where that is a signal, and no event above it, the signal
/// was on its way, and is lost if we do not hand it on.
///
/// # Errors
/// ESRCH: it is gone.
pub fn let_go(pid: i32, status: c_int) -> Result<()> {
    let signal = usize::try_from(status).ok().filter(|status| status >> 8 == 0);
    ptrace(0x11, pid, 0, std::ptr::without_provenance_mut(signal.unwrap_or(0))).map(drop)
}

/// The seccomp filter number `at`, counted from the first loaded, of a traced
/// process that has stopped, as `set_filter` takes it (PTRACE_SECCOMP_GET_FILTER,
/// Linux 4.4).
///
/// # Errors
/// ENOENT: it has not so many; EACCES: we lack CAP_SYS_ADMIN in the initial
/// user namespace, or are under a filter ourselves; EIO, EINVAL: the kernel
/// cannot tell (CONFIG_CHECKPOINT_RESTORE); EMEDIUMTYPE: it is no classic BPF.
pub fn filter(pid: i32, at: usize) -> Result<Vec<u8>> {
    const PTRACE_SECCOMP_GET_FILTER: c_uint = 0x420c;
    let count = ptrace(PTRACE_SECCOMP_GET_FILTER, pid, at, std::ptr::null_mut())?;
    let mut words = vec![0u64; usize::try_from(count).unwrap_or(0)];
    ptrace(PTRACE_SECCOMP_GET_FILTER, pid, at, words.as_mut_ptr().cast())?;
    Ok(words.into_iter().flat_map(u64::to_ne_bytes).collect())
}

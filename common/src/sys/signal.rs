//! Signals: what is done with one, and sending one.

use std::ffi::{c_int, c_long};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{from_mut, null};

use super::{Errno, PIDFD_SEND_SIGNAL, Result, answer};

/// Whether this process ignores signal `number`. One that is blocked comes all
/// the same (signal(7)).
pub fn is_ignored(number: c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid value of this C struct.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; `old` is ours and large enough.
    let n = unsafe { libc::sigaction(number, null(), from_mut(&mut old)) };
    n == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// All signals. SigSet::all() lacks those that the C library keeps for itself
/// (musl: 32 to 34), which nskit, without threads, has no use for.
pub fn every_signal() -> nix::sys::signal::SigSet {
    // SAFETY: an all-zero sigset_t is a valid value of this C type.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel's 64 signals are the first 64 bits of it, in both
    // libraries; it has more bits than that, and no bytes that are not bits.
    unsafe { from_mut(&mut set).cast::<u64>().write(u64::MAX) };
    // SAFETY: a set may hold any signals.
    unsafe { nix::sys::signal::SigSet::from_sigset_t_unchecked(set) }
}

/// Sets signal `number` to be ignored by this process.
pub fn ignore_signal(number: c_int) {
    set_disposition(number, libc::SIG_IGN);
}

/// Sets signal `number` to its default action.
pub fn default_signal(number: c_int) {
    set_disposition(number, libc::SIG_DFL);
}

pub(super) fn set_disposition(number: c_int, to: libc::sighandler_t) {
    // SAFETY: `to` is SIG_IGN or SIG_DFL, so no code of ours runs in a handler.
    unsafe { libc::signal(number, to) };
}

/// The bytes that a signalfd gave, as what they are.
pub fn signal_info(bytes: &[u8; size_of::<libc::signalfd_siginfo>()]) -> libc::signalfd_siginfo {
    // SAFETY: as many bytes as the struct has, and any bytes are a valid
    // value of it: it has only integers.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// Sends signal `number` to this process.
pub fn raise(number: c_int) {
    let me = nix::unistd::getpid().as_raw();
    // SAFETY: no handler of ours exists; the default action or none follows.
    unsafe { libc::kill(me, number) };
}

/// Sends signal `number` to a child of this process that has not been reaped,
/// so that its number is still its own.
///
/// # Errors
/// ESRCH: there is no such process; EPERM.
pub fn signal_child(pid: i32, number: c_int) -> Result<()> {
    // To 0 and below are groups, and -1 is everybody.
    let pid = if pid > 0 { pid } else { return Err(Errno::ESRCH) };
    // SAFETY: no memory is passed.
    answer(c_long::from(unsafe { libc::kill(pid, number) })).map(drop)
}

/// Sends signal `number` through a pidfd (0 only asks whether it lives).
///
/// # Errors
/// ESRCH: the process is gone; EPERM.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, number: c_int) -> Result<()> {
    // SAFETY: a null siginfo is allowed and asks for that of kill(2).
    let n = unsafe { libc::syscall(PIDFD_SEND_SIGNAL, pidfd.as_raw_fd(), number, null::<u8>(), 0) };
    answer(n).map(drop)
}

/// Sends signal `number` with `code` for its si_code, which is below 0 and no other's
/// (SI_QUEUE of sigqueue(3) is -1).
///
/// # Errors
/// As `pidfd_signal`; EPERM also: `code` is not below 0.
pub fn pidfd_signal_as(pidfd: BorrowedFd<'_>, number: c_int, code: c_int) -> Result<()> {
    // What follows these three in siginfo_t (rt_sigqueueinfo(2)) stays zero.
    let info: [c_int; 32] = std::array::from_fn(|at| [number, 0, code].get(at).copied().unwrap_or(0));
    // SAFETY: the kernel reads the 128 bytes of a siginfo_t, which are there.
    let n = unsafe { libc::syscall(PIDFD_SEND_SIGNAL, pidfd.as_raw_fd(), number, info.as_ptr(), 0) };
    answer(n).map(drop)
}

/// The same to the group of processes that it leads, also if it has ended itself
/// (PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9).
///
/// # Errors
/// EINVAL: the kernel is older; ESRCH: nobody is in that group; EPERM.
pub fn pidfd_signal_group(pidfd: BorrowedFd<'_>, number: c_int) -> Result<()> {
    const PIDFD_SIGNAL_PROCESS_GROUP: c_int = 4;
    // SAFETY: a null siginfo is allowed and asks for that of kill(2).
    let n = unsafe {
        libc::syscall(PIDFD_SEND_SIGNAL, pidfd.as_raw_fd(), number, null::<u8>(), PIDFD_SIGNAL_PROCESS_GROUP)
    };
    answer(n).map(drop)
}

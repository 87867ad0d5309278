//! Making processes, holding them by pidfds, and what has become of them.

use std::ffi::{c_int, c_long, c_uint};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{from_mut, from_ref};

use super::{CLONE3, Errno, PIDFD_OPEN, Result, answer, descriptor};

/// Which of the two processes after a fork this is.
pub enum Fork {
    /// The new one.
    Child,
    /// The old one, with the new one's number and a pidfd; the number is only
    /// its parent's to rely on, which CLONE_PARENT makes another.
    Parent(i32, OwnedFd),
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with the CLONE_NEW* and CLONE_PARENT `flags` of clone3(2) (Linux 5.3;
/// CLONE_NEWTIME only here, not in clone(2)).
///
/// # Errors
/// Those of clone(2): EPERM, ENOSPC (a limit of user namespaces or nesting),
/// ENOMEM (also: the pid namespace has lost its first process), EINVAL.
pub fn fork(flags: u64) -> Result<Fork> {
    fork_into(flags, None)
}

/// The same, with the child born into the cgroup of an open directory of cgroup2
/// (CLONE_INTO_CGROUP, Linux 5.7).
///
/// # Errors
/// Besides: EACCES: no right to its cgroup.procs; EBUSY: it has controllers for
/// its children; EOPNOTSUPP: it is domain invalid; ENODEV: it was removed.
pub fn fork_into(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Fork> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_PARENT: u64 = 0x8000;
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: flags | CLONE_PIDFD | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        cgroup: cgroup.and_then(|fd| u64::try_from(fd.as_raw_fd()).ok()).unwrap_or(0),
        pidfd: from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes the signal that we ourselves
        // were born with, and refuses another.
        exit_signal: if flags & CLONE_PARENT == 0 { 17 } else { 0 },
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM and no stack, so this returns twice as fork(2) does,
    // on a copy of our memory. nskit has no threads, hence no lock can be
    // held in the copy, and allocating there is sound. musl goes on taking the
    // child for its parent, which matters to raise(3) and abort(3) alone, and
    // both are ours.
    let pid = answer(unsafe { libc::syscall(CLONE3, from_ref(&args), size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: clone3 has stored a new descriptor of ours there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent(i32::try_from(pid).unwrap_or(-1), pidfd))
}

/// What a child does that shares our memory: it dies with its parent, whose
/// number it is given, and else waits to be killed.
extern "C" fn dwell(parent: *mut libc::c_void) -> c_int {
    // SAFETY: this call touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    // SAFETY: nor does this one.
    let now = unsafe { libc::getppid() };
    if usize::try_from(now) != Ok(parent as usize) {
        // The parent ended before the first call.
        exit_now(0);
    }
    loop {
        // SAFETY: nor this, which returns only after a handler: we have none.
        unsafe { libc::pause() };
    }
}

/// A child in a new user namespace that does nothing, its number and a pidfd.
/// It shares our memory (CLONE_VM), so nothing is copied for it: a third of
/// what fork(2) takes.
///
/// # Errors
/// As `fork`.
pub fn user_namespace_child() -> Result<(i32, OwnedFd)> {
    const STACK: usize = 16 << 10;
    const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD;
    // Never freed: the child may live as long as we do.
    let stack: &'static mut [u128] = Box::leak(vec![0; STACK / size_of::<u128>()].into_boxed_slice());
    let mut pidfd: RawFd = -1;
    let parent = std::process::id() as usize as *mut libc::c_void;
    let top = stack.as_mut_ptr_range().end.cast();
    // SAFETY: the stack is the child's alone, aligned, and large enough for the
    // three calls above; it writes to no other memory of ours (errno only if a
    // call failed, and these do not). `pidfd` lives over the call.
    let pid = unsafe { libc::clone(dwell, top, FLAGS, parent, from_mut(&mut pidfd)) };
    let pid = i32::try_from(answer(c_long::from(pid))?).unwrap_or(-1);
    // SAFETY: clone has stored a new descriptor of ours there.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Ends this process at once, running no destructor: for forked children.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(c_int::from(status)) }
}

/// A descriptor for process `pid` (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// ESRCH: there is none; EINVAL: not positive, or a thread's number.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    descriptor(unsafe { libc::syscall(PIDFD_OPEN, pid, 0) })
}

/// The same for a thread by its own number (PIDFD_THREAD, Linux 6.9).
///
/// # Errors
/// ESRCH: there is none; EINVAL: an older kernel.
pub fn pidfd_open_thread(tid: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is passed. PIDFD_THREAD is O_EXCL.
    descriptor(unsafe { libc::syscall(PIDFD_OPEN, tid, libc::O_EXCL) })
}

/// What has become of a child (waitid(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has ended, with this exit status.
    Exited(c_int),
    /// This signal has ended it.
    Killed(c_int),
    /// It has stopped: by this signal or, where we trace it, with an event above
    /// the signal.
    Stopped(c_int),
}

/// The next child that has ended or stopped, or that of `pidfd`, with its
/// number; None while there is no news. Knows real-time signals, which nix
/// does not.
///
/// # Errors
/// ECHILD: there are no children, or it is none.
pub fn child_change(pidfd: Option<BorrowedFd<'_>>) -> Result<Option<(i32, Change)>> {
    let (kind, id) = match pidfd {
        Some(fd) => (libc::P_PIDFD, fd.as_raw_fd()),
        None => (libc::P_ALL, 0),
    };
    // SAFETY: an all-zero siginfo is a valid value of this C struct.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG;
    let id = libc::id_t::try_from(id).unwrap_or(0);
    // The SIGCHLD has been taken already, and would not come again.
    loop {
        // SAFETY: `info` is ours and large enough.
        match answer(c_long::from(unsafe { libc::waitid(kind, id, from_mut(&mut info), flags) })) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            Ok(_) => break,
        }
    }
    // SAFETY: waitid has filled in the fields of a SIGCHLD, or left zeros.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok(match (pid, info.si_code) {
        (0, _) => None,
        (_, libc::CLD_EXITED) => Some((pid, Change::Exited(status))),
        (_, libc::CLD_KILLED | libc::CLD_DUMPED) => Some((pid, Change::Killed(status))),
        (_, _) => Some((pid, Change::Stopped(status))),
    })
}

/// Lets this process get signal `number` when the parent dies (prctl(2),
/// PR_SET_PDEATHSIG).
///
/// # Errors
/// EINVAL: there is no such signal.
pub fn follow_parent(number: c_int) -> Result<()> {
    // SAFETY: no memory is passed.
    answer(c_long::from(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::try_from(number).unwrap_or(0)) }))
        .map(drop)
}

/// A pidfd for the process whose pidfs inode is `inode`, of any user, if it lives
/// in the caller's tree of pid namespaces (handles since Linux 6.14, their root
/// without a pidfd of any process since 6.17).
///
/// # Errors
/// ESTALE: no such process there; EBADF or EINVAL: an older kernel.
pub fn pidfd_by_inode(inode: u64) -> Result<OwnedFd> {
    const FD_PIDFS_ROOT: c_int = -10002;
    #[repr(C)]
    struct Handle {
        bytes: c_uint,
        kind: c_int,
        inode: [u8; 8],
    }
    // 0xfe: FILEID_KERNFS, as pidfs has it, eight bytes, the inode alone.
    let mut handle = Handle { bytes: 8, kind: 0xfe, inode: inode.to_ne_bytes() };
    let at = from_mut(&mut handle).cast::<libc::file_handle>();
    // SAFETY: `handle` is laid out as struct file_handle with 8 bytes behind.
    descriptor(c_long::from(unsafe { libc::open_by_handle_at(FD_PIDFS_ROOT, at, libc::O_CLOEXEC) }))
}

//! The system calls that nix lacks, and all of nskit's unsafe code.
//!
//! Each function is one call: arguments in, the kernel's answer or its errno
//! out. Nothing here knows ids, namespaces or messages. Call numbers are those
//! of the generic table, which x86-64 and arm64 share from 424 on.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{from_mut, from_ref, null, without_provenance};
use std::sync::atomic::{AtomicBool, Ordering};

pub use nix::errno::Errno;

#[cfg(panic = "abort")]
mod heap;

/// What a system call answers: a value, or the errno that it set.
pub type Result<T> = std::result::Result<T, Errno>;

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

// ---- what the process was started with ----

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static CHILD_IGNORED: AtomicBool = AtomicBool::new(false);

/// std sets SIGPIPE to "ignored" before main, we set SIGCHLD to its default,
/// and what is ignored stays so over execve(2): every `PROG | head` below us
/// would misbehave. What the caller really handed us must be seen before std's
/// start-up runs.
extern "C" fn at_start() {
    for (number, ignored) in [(libc::SIGPIPE, &PIPE_IGNORED), (libc::SIGCHLD, &CHILD_IGNORED)] {
        ignored.store(is_ignored(number), Ordering::Relaxed);
    }
    // For what is closed of the first three std opens /dev/null, and aborts where there
    // is none, as in a root without /dev. Nobody gets these: they end at the exec. (Not
    // O_PATH: to poll(2), which std asks, such a one is closed.)
    for number in 0..3 {
        // SAFETY: fcntl(2) on a number that is not open answers EBADF.
        let is_closed = unsafe { libc::fcntl(number, libc::F_GETFD) } < 0;
        // SAFETY: a constant string that ends with NUL.
        if is_closed && unsafe { libc::access(c"/dev/null".as_ptr(), libc::F_OK) } != 0 {
            // SAFETY: the same; it gets this number, the lowest that is free.
            unsafe { libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        }
    }
}

/// Whether this process ignores signal `number`. One that is blocked comes all
/// the same (signal(7)).
pub fn is_ignored(number: c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid value of this C struct.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks; `old` is ours and large enough.
    let n = unsafe { libc::sigaction(number, null(), from_mut(&mut old)) };
    n == 0 && old.sa_sigaction == libc::SIG_IGN
}

// SAFETY: the C runtimes of glibc and musl call the functions listed in
// .init_array before main, single-threaded; ours takes no argument it reads.
#[unsafe(link_section = ".init_array")]
#[used]
static AT_START: extern "C" fn() = at_start;

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

/// Gives SIGPIPE and SIGCHLD the dispositions back that this process was
/// started with.
pub fn restore_signals() {
    for (number, ignored) in [(libc::SIGPIPE, &PIPE_IGNORED), (libc::SIGCHLD, &CHILD_IGNORED)] {
        set_disposition(number, if ignored.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL });
    }
}

/// Sets signal `number` to be ignored by this process.
pub fn ignore_signal(number: c_int) {
    set_disposition(number, libc::SIG_IGN);
}

/// Sets signal `number` to its default action.
pub fn default_signal(number: c_int) {
    set_disposition(number, libc::SIG_DFL);
}

fn set_disposition(number: c_int, to: libc::sighandler_t) {
    // SAFETY: `to` is SIG_IGN or SIG_DFL, so no code of ours runs in a handler.
    unsafe { libc::signal(number, to) };
}

/// Whether the kernel started this program with more privilege than its
/// caller has (AT_SECURE of getauxval(3): file capabilities, a set-id bit).
pub fn is_secure() -> bool {
    // SAFETY: getauxval(3) reads the vector that the kernel put on the stack.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

// ---- what a panic says ----

/// A panic is a mistake of ours, and ends the program with its message, file
/// and line. The frames below it, which std asks for here, would cost each
/// binary 200 KiB to read and name; so there are none.
#[cfg(panic = "abort")]
// SAFETY: std is the only caller, by this name and type (the unwinding ABI);
// ending the walk before the first frame is one of the answers it expects.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_frame: *const u8, _argument: *const u8) -> c_int {
    const END_OF_STACK: c_int = 5;
    END_OF_STACK
}

/// Where std's own landing pads would go on with a panic that is unwinding. None
/// ever is; but the unwinder behind it would be another 50 KiB in each binary.
#[cfg(panic = "abort")]
// SAFETY: as above; it does not return, as the ABI has it.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *const u8) -> ! {
    exit_now(ABORTED)
}

/// Where a panic ends, and an allocation that fails. The libc's would raise SIGABRT,
/// and musl's in a child of `fork_into`, which it takes for the parent still, there.
#[cfg(panic = "abort")]
// SAFETY: whoever calls abort(3) expects that it does not return.
#[unsafe(no_mangle)]
extern "C" fn abort() -> ! {
    exit_now(ABORTED)
}

/// As the shell has it of a program that SIGABRT ended.
#[cfg(panic = "abort")]
const ABORTED: u8 = 128 + 6;

// ---- descriptors ----

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

/// The bytes that a signalfd gave, as what they are.
pub fn signal_info(bytes: &[u8; size_of::<libc::signalfd_siginfo>()]) -> libc::signalfd_siginfo {
    // SAFETY: as many bytes as the struct has, and any bytes are a valid
    // value of it: it has only integers.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

// ---- processes ----

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

/// Sends signal `number` to this process.
pub fn raise(number: c_int) {
    let me = nix::unistd::getpid().as_raw();
    // SAFETY: no handler of ours exists; the default action or none follows.
    unsafe { libc::kill(me, number) };
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

// ---- pseudo-terminals: ioctl_tty(2) ----

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

// ---- namespaces: ioctl_nsfs(2), and PIDFD_GET_*_NAMESPACE ----

fn ioctl(fd: BorrowedFd<'_>, request: u64) -> Result<c_long> {
    // musl declares the request as int, glibc as unsigned long; both hand the
    // low 32 bits on.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: the requests used here take no argument or a zero.
    let n = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) };
    answer(c_long::from(n))
}

/// The user namespace that owns a namespace; of a user namespace, its parent.
///
/// # Errors
/// EPERM: it is outside the caller's; ENOTTY: `ns` is no namespace file.
pub fn ns_owner(ns: BorrowedFd<'_>) -> Result<OwnedFd> {
    descriptor(ioctl(ns, 0xb701)?)
}

/// The kind of a namespace file, as its CLONE_NEW* flag.
///
/// # Errors
/// ENOTTY: it is no namespace file.
pub fn ns_kind(ns: BorrowedFd<'_>) -> Result<u64> {
    Ok(u64::try_from(ioctl(ns, 0xb703)?).unwrap_or(0))
}

/// The number here of process 1 of a pid namespace (NS_GET_PID_FROM_PIDNS of
/// ioctl_nsfs(2), Linux 6.11).
///
/// # Errors
/// ESRCH: there is none (any more); ENOTTY: an older kernel.
pub fn first_process(ns: BorrowedFd<'_>) -> Result<i32> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: the argument is a number.
    let n = unsafe { libc::ioctl(ns.as_raw_fd(), 0x8004_b706_u32 as _, 1) };
    answer(c_long::from(n)).map(|n| i32::try_from(n).unwrap_or(0))
}

/// The uid that owns a user namespace, as the caller sees it.
///
/// # Errors
/// EINVAL: another kind of namespace.
pub fn ns_owner_uid(ns: BorrowedFd<'_>) -> Result<u32> {
    let mut uid: u32 = 0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: NS_GET_OWNER_UID stores one uid_t there.
    let n = unsafe { libc::ioctl(ns.as_raw_fd(), 0xb704 as _, from_mut(&mut uid)) };
    answer(c_long::from(n)).map(|_| uid)
}

// ---- files ----

fn openat2(dir: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: u32, resolve: u64) -> Result<OwnedFd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let flags = u64::try_from(flags | libc::O_CLOEXEC).unwrap_or(0);
    let how = How { flags, mode: u64::from(mode), resolve };
    let open = || {
        // SAFETY: the path ends in NUL; `how` has the size that is passed.
        descriptor(unsafe { libc::syscall(OPENAT2, dir.as_raw_fd(), path.as_ptr(), from_ref(&how), size_of::<How>()) })
    };
    // Where somebody renames or mounts anything meanwhile, the kernel cannot tell
    // that a `..` has not led out: EAGAIN. So it is where it does not know enough.
    let most = if resolve & RESOLVE_CACHED == 0 { 1000 } else { 10 };
    let mut tries = (0..most).map(|_| open());
    tries.find(|opened| !matches!(opened, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN))
}

const RESOLVE_NO_XDEV: u64 = 1;
const RESOLVE_NO_MAGICLINKS: u64 = 2;
const RESOLVE_NO_SYMLINKS: u64 = 4;
const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_CACHED: u64 = 0x20;

/// Opens `path` below `dir`, which stands for `/` (RESOLVE_IN_ROOT of
/// openat2(2), Linux 5.6): no symbolic link and no `..` leads out of it.
/// Links of /proc that jump elsewhere are refused (ELOOP).
///
/// # Errors
/// Those of open(2).
pub fn open_in_root(dir: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: u32) -> Result<OwnedFd> {
    openat2(dir, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

/// The same of a path that the kernel knows without asking a file system, as
/// it does all mount points: who serves that may never answer (RESOLVE_CACHED,
/// Linux 5.12).
///
/// # Errors
/// Those of open(2); EAGAIN: it does not know it.
pub fn open_known_in_root(dir: BorrowedFd<'_>, path: &CStr, flags: c_int) -> Result<OwnedFd> {
    openat2(dir, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_CACHED)
}

/// Opens the file `name` of `dir` itself, to read and write: no link is
/// followed, and nothing that was mounted over it is entered (openat2(2)).
///
/// # Errors
/// Those of open(2); EXDEV: something is mounted there; ELOOP: it is a link.
pub fn open_exactly(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    openat2(dir, name, libc::O_RDWR, 0, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)
}

/// Lets two files of `dir` change their names, both at once (renameat2(2),
/// Linux 3.15).
///
/// # Errors
/// Those of rename(2); EINVAL: the file system cannot.
pub fn exchange(dir: BorrowedFd<'_>, one: &CStr, other: &CStr) -> Result<()> {
    let (dir, flags) = (dir.as_raw_fd(), libc::RENAME_EXCHANGE);
    // SAFETY: both strings end in NUL and live through the call.
    answer(unsafe { libc::syscall(libc::SYS_renameat2, dir, one.as_ptr(), dir, other.as_ptr(), flags) }).map(drop)
}

/// Has the disk begin with what has been written to `fd` (sync_file_range(2)):
/// whoever syncs it later has less to wait for. No promise, and so no error.
pub fn begin_writing(fd: BorrowedFd<'_>) {
    // SAFETY: no memory is passed; the descriptor is open as long as `fd` lives.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

// ---- mounts ----

/// open_tree(2) flag: make a detached copy.
pub const OPEN_TREE_CLONE: c_uint = 1;
/// open_tree(2), mount_setattr(2): submounts too.
pub const AT_RECURSIVE: c_uint = 0x8000;
/// The path is empty: the descriptor itself is meant.
pub const AT_EMPTY_PATH: c_uint = 0x1000;
/// Attributes of mount_setattr(2) and fsmount(2).
pub const MOUNT_ATTR_RDONLY: u64 = 1;
/// Set-id bits and file capabilities have no effect.
pub const MOUNT_ATTR_NOSUID: u64 = 2;
/// Device nodes cannot be opened.
pub const MOUNT_ATTR_NODEV: u64 = 4;
/// Nothing can be executed.
pub const MOUNT_ATTR_NOEXEC: u64 = 8;
/// Reading changes no times.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// The bits of which MOUNT_ATTR_NOATIME is one value: to set it, all of them
/// have to be cleared in the same call (mount_setattr(2)).
const MOUNT_ATTR_ATIME: u64 = 0x70;
/// Shift owners by the maps of a user namespace.
pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
/// Symbolic links are not followed (Linux 5.14).
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// Opens the mount tree at `path`, seen from `dir` (open_tree(2), Linux 5.2).
///
/// # Errors
/// EPERM: the caller may not mount; EINVAL: unbindable, of another mount
/// namespace, or a locked mount lies below and AT_RECURSIVE is missing.
pub fn open_tree(dir: BorrowedFd<'_>, path: &CStr, flags: c_uint) -> Result<OwnedFd> {
    let flags = flags | c_uint::try_from(libc::O_CLOEXEC).unwrap_or(0);
    // SAFETY: the path ends in NUL.
    descriptor(unsafe { libc::syscall(OPEN_TREE, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the detached `tree` on the open directory or file `at`
/// (move_mount(2), Linux 5.2), or with `beneath` under the mount whose root
/// `at` is (Linux 6.5).
///
/// # Errors
/// EINVAL: file on directory or the reverse, or `at` is in another mount
/// namespace, or is no root of a mount with `beneath`; ENOENT: removed
/// meanwhile; EPERM.
pub fn move_mount(tree: BorrowedFd<'_>, at: BorrowedFd<'_>, beneath: bool) -> Result<()> {
    const FROM_AND_TO_EMPTY: c_uint = 0x4 | 0x40;
    const BENEATH: c_uint = 0x200;
    let flags = FROM_AND_TO_EMPTY | if beneath { BENEATH } else { 0 };
    let (from, to) = (tree.as_raw_fd(), at.as_raw_fd());
    // SAFETY: both paths are empty strings that end in NUL.
    answer(unsafe { libc::syscall(MOVE_MOUNT, from, c"".as_ptr(), to, c"".as_ptr(), flags) }).map(drop)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

impl MountAttr {
    fn new(set: u64, userns: Option<BorrowedFd<'_>>) -> MountAttr {
        let userns = userns.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0));
        let clear = if set & MOUNT_ATTR_ATIME == 0 { 0 } else { MOUNT_ATTR_ATIME };
        MountAttr { set, clear, propagation: 0, userns }
    }
}

/// Sets attributes of the detached `tree` (mount_setattr(2), Linux 5.12), with
/// MOUNT_ATTR_IDMAP those of the user namespace `userns`.
///
/// # Errors
/// EPERM, EINVAL, EBUSY: mount_setattr(2) has some thirty causes.
pub fn mount_setattr(tree: BorrowedFd<'_>, recursive: bool, set: u64, userns: Option<BorrowedFd<'_>>) -> Result<()> {
    let attr = MountAttr::new(set, userns);
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let (fd, size) = (tree.as_raw_fd(), size_of::<MountAttr>());
    // SAFETY: `attr` is laid out as struct mount_attr and lives over the call.
    answer(unsafe { libc::syscall(MOUNT_SETATTR, fd, c"".as_ptr(), flags, from_ref(&attr), size) }).map(drop)
}

/// Clears attribute `bit` of the mount whose root `tree` is, not of those below
/// it.
///
/// # Errors
/// EPERM: it is locked (mount_namespaces(7)).
pub fn mount_clear(tree: BorrowedFd<'_>, bit: u64) -> Result<()> {
    let clear = if bit == MOUNT_ATTR_NOATIME { MOUNT_ATTR_ATIME } else { bit };
    let attr = MountAttr { set: 0, clear, propagation: 0, userns: 0 };
    let (fd, size) = (tree.as_raw_fd(), size_of::<MountAttr>());
    // SAFETY: `attr` is laid out as struct mount_attr and lives over the call.
    answer(unsafe { libc::syscall(MOUNT_SETATTR, fd, c"".as_ptr(), AT_EMPTY_PATH, from_ref(&attr), size) }).map(drop)
}

/// Whether a seccomp filter refuses mount(2) as such: the kernel copies its
/// words before it asks anybody else, and cannot copy these (EFAULT).
pub fn mount_is_filtered() -> bool {
    let nowhere = without_provenance::<c_char>(1);
    // SAFETY: the kernel copies from the first page, which nobody has, and
    // mounts nothing.
    let n = unsafe { libc::syscall(libc::SYS_mount, nowhere, nowhere, nowhere, 0, nowhere) };
    answer(n).is_err_and(|e| e != Errno::EFAULT)
}

/// What mount_setattr(2) says of user namespace `userns` alone: that is judged
/// before the path is, and this is no path. ENOENT: it is good, but whether its
/// maps are written is not asked.
pub fn judge_userns(userns: BorrowedFd<'_>) -> Errno {
    let attr = MountAttr::new(MOUNT_ATTR_IDMAP, Some(userns));
    let size = size_of::<MountAttr>();
    // SAFETY: the path ends in NUL; `attr` is laid out as struct mount_attr.
    let n = unsafe { libc::syscall(MOUNT_SETATTR, -1, c"".as_ptr(), 0, from_ref(&attr), size) };
    answer(n).err().unwrap_or(Errno::UnknownErrno)
}

/// `open_tree` and `mount_setattr` in one (open_tree_attr(2), Linux 6.15): the
/// only call that replaces the map of an idmapped mount, in the copy.
///
/// # Errors
/// Those of both; ENOSYS: an older kernel.
pub fn open_tree_attr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: c_uint,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let attr = MountAttr::new(set, userns);
    let flags = flags | c_uint::try_from(libc::O_CLOEXEC).unwrap_or(0);
    let (fd, size) = (dir.as_raw_fd(), size_of::<MountAttr>());
    // SAFETY: the path ends in NUL; `attr` is laid out as struct mount_attr.
    descriptor(unsafe { libc::syscall(OPEN_TREE_ATTR, fd, path.as_ptr(), flags, from_ref(&attr), size) })
}

/// One word of struct statx: at byte `at`, asked for by bit `wanted` (statx(2)).
fn statx(fd: BorrowedFd<'_>, wanted: c_uint, at: usize) -> Result<u64> {
    statx_at(fd, c"", wanted, at)
}

/// The same of what `path` leads to from `dir`.
fn statx_at(dir: BorrowedFd<'_>, path: &CStr, wanted: c_uint, at: usize) -> Result<u64> {
    let mut buffer = [0u8; 256];
    // The kernel knows what is asked for here: no file system has to answer.
    let (dir, flags) = (dir.as_raw_fd(), libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC);
    // SAFETY: the path ends in NUL; struct statx has 256 bytes.
    answer(unsafe { libc::syscall(libc::SYS_statx, dir, path.as_ptr(), flags, wanted, buffer.as_mut_ptr()) })?;
    let word = |at: usize| buffer.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    // Its first field says what the kernel knew.
    if word(0) & u64::from(wanted) == u64::from(wanted) { Ok(word(at)) } else { Err(Errno::ENOSYS) }
}

/// Device and inode of an open file, in words that are only to be compared with
/// another's: no file system is asked for them.
///
/// # Errors
/// Those of statx(2) and fstat(2).
pub fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    match statx(fd, 0, 0x88) {
        Ok(device) => Ok((device, statx(fd, 0x100, 0x20)?)),
        // Filters for system calls that are older than it refuse it in this way.
        Err(Errno::ENOSYS) => nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)),
        Err(e) => Err(e),
    }
}

/// The device of what `path` leads to from `dir`, as `identity` has it.
///
/// # Errors
/// Those of statx(2) and fstatat(2).
pub fn device(dir: BorrowedFd<'_>, path: &CStr) -> Result<u64> {
    match statx_at(dir, path, 0, 0x88) {
        Err(Errno::ENOSYS) => {
            nix::sys::stat::fstatat(dir, path, nix::fcntl::AtFlags::AT_EMPTY_PATH).map(|stat| stat.st_dev)
        }
        device => device,
    }
}

/// The number of the mount that an open file is on, as mountinfo has it
/// (Linux 5.8).
///
/// # Errors
/// ENOSYS: an older kernel.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    statx(fd, 0x1000, 0x90)
}

/// Whether two open files are on the same mount; no, where that is not told.
pub fn share_mount(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    mount_id(one).is_ok_and(|id| mount_id(other) == Ok(id))
}

/// The same as the number that is never used again (Linux 6.8).
///
/// # Errors
/// ENOSYS: an older kernel.
pub fn unique_mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    statx(fd, 0x4000, 0x90)
}

/// Whether an open file is the root of a mount (STATX_ATTR_MOUNT_ROOT, Linux
/// 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn is_mount_root(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(statx(fd, 0, 8)? & 0x2000 != 0)
}

/// The number of a mount namespace (ioctl_nsfs(2), Linux 6.11).
///
/// # Errors
/// ENOTTY: an older kernel, or no mount namespace.
pub fn mount_namespace_id(ns: BorrowedFd<'_>) -> Result<u64> {
    let mut id: u64 = 0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: NS_GET_MNTNS_ID stores one u64 there.
    let n = unsafe { libc::ioctl(ns.as_raw_fd(), 0x8008_b705_u32 as _, from_mut(&mut id)) };
    answer(c_long::from(n)).map(|_| id)
}

#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
    namespace: u64,
}

/// What the kernel says of mount `unique` of namespace `namespace` (0: ours),
/// as far as `mask` asks: a struct statmount with its strings (statmount(2),
/// Linux 6.8).
///
/// # Errors
/// EOVERFLOW: the buffer is too small; ENOENT; EPERM; ENOSYS.
pub fn statmount(unique: u64, namespace: u64, mask: u64, buffer: &mut [u8]) -> Result<()> {
    // The first version of the struct has no namespace.
    let size = if namespace == 0 { 24 } else { 32 };
    let request = MountRequest { size, spare: 0, mount: unique, param: mask, namespace };
    // SAFETY: the request has the size that it says, and so has the buffer.
    answer(unsafe { libc::syscall(STATMOUNT, from_ref(&request), buffer.as_mut_ptr(), buffer.len(), 0) }).map(drop)
}

/// The unique numbers of all mounts below `unique` that are above `last`
/// (listmount(2), Linux 6.8); all ones is the root of the namespace.
///
/// # Errors
/// ENOENT, EPERM, ENOSYS.
pub fn listmount(unique: u64, namespace: u64, last: u64, ids: &mut [u64]) -> Result<usize> {
    let size = if namespace == 0 { 24 } else { 32 };
    let request = MountRequest { size, spare: 0, mount: unique, param: last, namespace };
    // SAFETY: the request has the size that it says, and so has the array.
    let n = answer(unsafe { libc::syscall(LISTMOUNT, from_ref(&request), ids.as_mut_ptr(), ids.len(), 0) })?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// A context for a new mount of type `fstype` (fsopen(2), Linux 5.2).
///
/// # Errors
/// EPERM; ENODEV: no such type.
pub fn fsopen(fstype: &CStr) -> Result<OwnedFd> {
    // SAFETY: the name ends in NUL; 1 is FSOPEN_CLOEXEC.
    descriptor(unsafe { libc::syscall(FSOPEN, fstype.as_ptr(), 1) })
}

/// Sets option `key` of a context (fsconfig(2)), to `value` or as a flag.
///
/// # Errors
/// EINVAL: the file system does not take it; the context has its words.
pub fn fsconfig(context: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> Result<()> {
    let command = c_int::from(value.is_some());
    let value = value.map_or(null(), CStr::as_ptr);
    // SAFETY: both strings end in NUL; command 0 (a flag) takes no value.
    answer(unsafe { libc::syscall(FSCONFIG, context.as_raw_fd(), command, key.as_ptr(), value, 0) }).map(drop)
}

/// Makes the file system of a context and a detached mount of it.
///
/// # Errors
/// Those of mount(2) for this type.
pub fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: c_int = 6;
    let fd = context.as_raw_fd();
    // SAFETY: this command takes neither key nor value.
    answer(unsafe { libc::syscall(FSCONFIG, fd, FSCONFIG_CMD_CREATE, null::<u8>(), null::<u8>(), 0) })?;
    // SAFETY: no memory is passed; 1 is FSMOUNT_CLOEXEC.
    descriptor(unsafe { libc::syscall(FSMOUNT, fd, 1, attributes) })
}

// ---- network ----

/// Sets the loopback interface of this network namespace up, with which it
/// gets its addresses (netdevice(7)).
///
/// # Errors
/// EPERM: no CAP_NET_ADMIN over the namespace.
pub fn raise_loopback() -> Result<()> {
    // SAFETY: no memory is passed.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = descriptor(c_long::from(socket))?;
    // SAFETY: an all-zero ifreq is a valid value of this C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).unwrap_or(0);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: SIOCSIFFLAGS reads one struct ifreq.
    let n = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, from_ref(&request)) };
    answer(c_long::from(n)).map(drop)
}

// ---- capabilities, through capctl ----

fn caps<T>(result: capctl::Result<T>) -> Result<T> {
    result.map_err(|e| Errno::from_raw(e.code()))
}

/// Makes all permitted capabilities inheritable and ambient (capabilities(7),
/// Linux 4.3): a following exec keeps them whatever the uid.
///
/// # Errors
/// EPERM: the securebits forbid it.
pub fn raise_ambient() -> Result<()> {
    let mut state = caps(capctl::CapState::get_current())?;
    state.inheritable = state.permitted;
    caps(state.set_current())?;
    state.permitted.iter().try_for_each(|cap| caps(capctl::ambient::raise(cap)))
}

/// Takes all capabilities out of the inheritable and the ambient set.
///
/// # Errors
/// None in practice.
pub fn clear_ambient() -> Result<()> {
    let mut state = caps(capctl::CapState::get_current())?;
    state.inheritable.clear();
    caps(state.set_current())
}

/// The capabilities in `caps`, a bit for each, by their names without `cap_`.
pub fn capability_names(caps: u64) -> String {
    let set = capctl::CapSet::from_bitmask_truncate(caps);
    let names: Vec<String> = set.iter().map(|cap| cap.to_string().to_ascii_lowercase()).collect();
    let names: Vec<&str> = names.iter().map(|name| name.strip_prefix("cap_").unwrap_or(name)).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

/// The bit of the capability that `name` means, with or without `cap_`.
pub fn capability(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    let cap: capctl::Cap = format!("CAP_{name}").parse().ok()?;
    Some(1 << u32::from(cap as u8))
}

/// What is permitted to this process, a bit for each capability.
pub fn permitted() -> u64 {
    capctl::CapState::get_current().map_or(0, |state| bits(state.permitted))
}

/// What has effect, likewise.
///
/// # Errors
/// None in practice.
pub fn effective() -> Result<u64> {
    caps(capctl::CapState::get_current()).map(|state| bits(state.effective))
}

fn bits(set: capctl::CapSet) -> u64 {
    set.iter().fold(0, |all, cap| all | 1 << u32::from(cap as u8))
}

/// Takes all capabilities out of the bounding set but those in `kept`.
///
/// # Errors
/// EPERM: CAP_SETPCAP is missing.
pub fn bound_capabilities(kept: u64) -> Result<()> {
    let kept = capctl::CapSet::from_bitmask_truncate(kept);
    for cap in capctl::Cap::iter().filter(|cap| !kept.has(*cap)) {
        // SAFETY: PR_CAPBSET_READ takes no pointer.
        match answer(unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap as libc::c_ulong, 0, 0, 0) }.into()) {
            Ok(0) => {}
            Ok(_) => caps(capctl::bounding::drop(cap))?,
            // This kernel knows no more of them.
            Err(Errno::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Has the permitted capabilities outlive a change of the uid (PR_SET_KEEPCAPS,
/// until the next exec).
///
/// # Errors
/// EPERM: the securebits forbid it.
pub fn keep_capabilities() -> Result<()> {
    caps(capctl::prctl::set_keepcaps(true))
}

/// Makes just these capabilities permitted, effective, inheritable and ambient.
///
/// # Errors
/// EPERM: one is not permitted.
pub fn only_ambient(wanted: u64) -> Result<()> {
    let wanted = capctl::CapSet::from_bitmask_truncate(wanted);
    let state = capctl::CapState { permitted: wanted, effective: wanted, inheritable: wanted };
    caps(capctl::ambient::clear())?;
    caps(state.set_current())?;
    wanted.iter().try_for_each(|cap| caps(capctl::ambient::raise(cap)))
}

/// Sets the permitted, the effective, the inheritable and the ambient
/// capabilities, a bit for each.
///
/// # Errors
/// EPERM: one is not permitted, or an ambient one not inheritable.
pub fn set_capabilities([permitted, effective, inheritable, ambient]: [u64; 4]) -> Result<()> {
    let set = capctl::CapSet::from_bitmask_truncate;
    let state =
        capctl::CapState { permitted: set(permitted), effective: set(effective), inheritable: set(inheritable) };
    caps(capctl::ambient::clear())?;
    caps(state.set_current())?;
    set(ambient).iter().try_for_each(|cap| caps(capctl::ambient::raise(cap)))
}

/// Lets those capabilities have effect whose bits are set in `wanted`, as far
/// as they are permitted, and no others.
///
/// # Errors
/// None in practice.
pub fn set_effective(wanted: u64) -> Result<()> {
    let mut state = caps(capctl::CapState::get_current())?;
    state.effective = state.permitted.intersection(capctl::CapSet::from_bitmask_truncate(wanted));
    caps(state.set_current())
}

/// Gives up every capability, for good.
///
/// # Errors
/// None in practice.
pub fn drop_capabilities() -> Result<()> {
    caps(capctl::CapState::empty().set_current())
}

/// Whether one of the capabilities whose bits are set in `wanted` is permitted.
pub fn is_any_permitted(wanted: u64) -> bool {
    let wanted = capctl::CapSet::from_bitmask_truncate(wanted);
    capctl::CapState::get_current().is_ok_and(|state| !state.permitted.intersection(wanted).is_empty())
}

/// Whether a file has the attribute that gives capabilities: xattr(7).
pub fn has_file_capabilities(path: &CStr) -> bool {
    // SAFETY: both strings end in NUL; size 0 only asks for the size.
    let n = unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    n > 0
}

/// Whether an open file has the extended attribute `name`: xattr(7).
pub fn has_attribute(fd: BorrowedFd<'_>, name: &CStr) -> bool {
    // SAFETY: the name ends in NUL; size 0 only asks for the size.
    let n = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) };
    n >= 0
}

// ---- who this process is ----

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

// ---- what the next program finds ----

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

/// Sets the NIS domain name of the uts namespace (setdomainname(2)).
///
/// # Errors
/// EPERM; EINVAL: longer than 64 bytes.
pub fn set_domain_name(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the name has.
    answer(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) }).map(drop)
}

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

// ---- seccomp filters of another process: ptrace(2) ----

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

// ---- for a privileged program, which shares no more code than it must ----

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

// ---- what only ns-show asks ----

const LISTNS: c_long = 470;

/// An ioctl that stores something in `out`.
fn ioctl_into(fd: BorrowedFd<'_>, request: u64, out: &mut [u64; 2]) -> Result<c_long> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: the requests used here store at most 16 bytes, which `out` has.
    let n = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, out.as_mut_ptr()) };
    answer(c_long::from(n))
}

/// The parent of a user or pid namespace.
///
/// # Errors
/// EPERM: it is outside of ours; EINVAL: another kind, which has no parent.
pub fn ns_parent(ns: BorrowedFd<'_>) -> Result<OwnedFd> {
    descriptor(ioctl(ns, 0xb702)?)
}

/// The network namespace that a socket belongs to (SIOCGSKNS, Linux 4.10).
///
/// # Errors
/// EPERM: no CAP_NET_ADMIN over it; ENOTTY: `fd` is no socket.
pub fn socket_namespace(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    descriptor(ioctl(fd, 0x894c)?)
}

/// The number of a namespace that is never used again until reboot (Linux 6.18).
///
/// # Errors
/// ENOTTY: an older kernel, or no namespace file.
pub fn ns_id(ns: BorrowedFd<'_>) -> Result<u64> {
    let mut id = [0; 2];
    ioctl_into(ns, 0x8008_b70d, &mut id).map(|_| id[0])
}

/// The mount namespace after `ns`, or before it, of all that there are (Linux
/// 6.12), whether a process is in it or not.
///
/// # Errors
/// EPERM: only root of the initial user namespace; ENOENT: there is none.
pub fn next_mount_namespace(ns: BorrowedFd<'_>, before: bool) -> Result<OwnedFd> {
    let mut info = [0; 2];
    descriptor(ioctl_into(ns, if before { 0x8010_b70c } else { 0x8010_b70b }, &mut info)?)
}

/// As many namespaces of all kinds as `ids` takes, by their numbers, those
/// after `after`: listns(2), Linux 6.19. Who is not root in the initial user
/// and pid namespace is told of those that he is in.
///
/// # Errors
/// ENOENT: none is after it; ENOSYS: an older kernel.
pub fn listns(after: u64, ids: &mut [u64]) -> Result<usize> {
    let request = [32, after, 0, 0];
    // SAFETY: `request` is laid out as struct ns_id_req of 32 bytes; `ids` is
    // ours and as long as is said.
    let n = unsafe { libc::syscall(LISTNS, request.as_ptr(), ids.as_mut_ptr(), ids.len(), 0) };
    usize::try_from(answer(n)?).map_err(|_| Errno::EIO)
}

/// The namespace whose number is `id`; `whole` also tells its kind and inode,
/// which the kernel wants to hear before Linux 6.19.
///
/// # Errors
/// ESTALE: there is none, or it is not ours to open; EBADF: an older kernel.
pub fn ns_by_id(id: u64, whole: Option<(u64, u64)>) -> Result<OwnedFd> {
    const FD_NSFS_ROOT: c_int = -10003;
    #[repr(C)]
    struct Handle {
        bytes: c_uint,
        kind: c_int,
        id: [u8; 8],
        ns_kind: [u8; 4],
        inode: [u8; 4],
    }
    let short = |n: u64| u32::try_from(n).unwrap_or(0).to_ne_bytes();
    let (kind, inode) = whole.unwrap_or((0, 0));
    let mut handle = Handle { bytes: 16, kind: 0xf1, id: id.to_ne_bytes(), ns_kind: short(kind), inode: short(inode) };
    let at = from_mut(&mut handle).cast::<libc::file_handle>();
    // SAFETY: `handle` is laid out as struct file_handle with 16 bytes behind.
    descriptor(c_long::from(unsafe { libc::open_by_handle_at(FD_NSFS_ROOT, at, libc::O_CLOEXEC) }))
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

/// Where the link `name` in `dir` leads, as far as `out` takes it.
///
/// # Errors
/// Those of readlink(2).
pub fn read_link(dir: BorrowedFd<'_>, name: &CStr, out: &mut [u8]) -> Result<usize> {
    // SAFETY: the name ends in NUL; the kernel writes at most as many bytes as
    // `out` has.
    let n = unsafe { libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), out.as_mut_ptr().cast(), out.len()) };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// The next entries of an open directory, as getdents64(2) has them; 0: none.
///
/// # Errors
/// Those of getdents(2): ENOENT: what it is about has ended.
pub fn read_directory(dir: BorrowedFd<'_>, out: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as `out` has.
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), out.as_mut_ptr(), out.len()) };
    usize::try_from(answer(n)?).map_err(|_| Errno::EIO)
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

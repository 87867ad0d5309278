//! The system calls that the tools make, and what each may fail with for reasons that no tool can
//! foresee: it is out of something, the device is broken, a filter or a security module says no.

use libc::{
    EACCES, EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, EPERM, EPIPE, EROFS,
    ESRCH, ETXTBSY, c_long,
};

/// A system call.
pub(super) struct Call {
    /// Its number on x86_64.
    pub(super) number: c_long,
    /// Its name.
    pub(super) name: &'static str,
    /// What it is made to fail with.
    pub(super) errnos: &'static [i32],
}

macro_rules! calls {
    ($($name:ident $number:literal: $($errno:ident)*;)*) => {
        &[$(Call { number: $number, name: stringify!($name), errnos: &[$($errno),*] },)*]
    };
}

/// Calls that cannot fail, and those by which the C library gets memory (a Rust program that gets
/// none aborts, by design), have no errno here: there the tools are only killed.
const CALLS: &[Call] = calls! {
    read 0: EIO EINTR;
    write 1: EIO ENOSPC;
    open 2: EMFILE EACCES EIO;
    close 3: ;
    stat 4: EACCES EIO;
    fstat 5: EIO;
    lstat 6: EACCES EIO;
    poll 7: ENOMEM EINTR;
    lseek 8: EIO;
    mmap 9: ;
    mprotect 10: ;
    munmap 11: ;
    brk 12: ;
    rt_sigaction 13: ;
    rt_sigprocmask 14: ;
    ioctl 16: EPERM EIO;
    pread64 17: EIO;
    readv 19: EIO;
    writev 20: EIO ENOSPC;
    access 21: EACCES;
    mremap 25: ;
    madvise 28: ;
    dup 32: EMFILE;
    dup2 33: EMFILE;
    pause 34: ;
    nanosleep 35: EINTR;
    getpid 39: ;
    sendfile 40: EIO ENOSPC;
    socket 41: EMFILE EPERM;
    connect 42: EACCES;
    sendto 44: EPIPE;
    recvfrom 45: EIO;
    sendmsg 46: EPIPE ENOMEM;
    recvmsg 47: EIO ENOMEM;
    shutdown 48: ;
    bind 49: EACCES;
    listen 50: EIO;
    getsockname 51: EIO;
    getpeername 52: EIO;
    accept4 288: EMFILE;
    flock 73: EIO;
    truncate 76: EIO;
    inotify_init1 294: EMFILE;
    timerfd_create 283: EMFILE;
    timerfd_settime 286: ;
    eventfd2 290: EMFILE;
    ptrace 101: EPERM;
    getrusage 98: ;
    sysinfo 99: ;
    sched_yield 24: ;
    sched_getaffinity 204: ;
    sched_setaffinity 203: EPERM;
    rt_sigreturn 15: ;
    rt_sigtimedwait 128: EINTR;
    pselect6 270: EINTR;
    getxattr 191: EIO;
    lgetxattr 192: EIO;
    fgetxattr 193: EIO;
    alarm 37: ;
    setitimer 38: ;
    personality 135: ;
    socketpair 53: EMFILE ENOMEM;
    setsockopt 54: ENOMEM;
    getsockopt 55: EPERM;
    clone 56: EAGAIN ENOMEM;
    fork 57: EAGAIN ENOMEM;
    vfork 58: EAGAIN ENOMEM;
    execve 59: EACCES EIO ENOMEM ETXTBSY;
    exit 60: ;
    wait4 61: EINTR;
    kill 62: EPERM ESRCH;
    uname 63: ;
    fcntl 72: EMFILE EINVAL;
    fsync 74: EIO ENOSPC;
    fdatasync 75: EIO ENOSPC;
    ftruncate 77: EIO ENOSPC;
    getcwd 79: ENOENT;
    chdir 80: EACCES;
    fchdir 81: EACCES;
    rename 82: EIO ENOSPC EROFS;
    mkdir 83: ENOSPC EROFS;
    rmdir 84: EIO;
    creat 85: EACCES;
    link 86: ENOSPC EROFS;
    unlink 87: EIO EROFS;
    symlink 88: ENOSPC;
    readlink 89: EACCES EIO;
    chmod 90: EPERM EIO;
    fchmod 91: EPERM EIO;
    chown 92: EPERM EIO;
    fchown 93: EPERM EIO;
    umask 95: ;
    getrlimit 97: ;
    getuid 102: ;
    getgid 104: ;
    setuid 105: EAGAIN EPERM;
    setgid 106: EPERM;
    geteuid 107: ;
    getegid 108: ;
    setpgid 109: EPERM;
    getppid 110: ;
    setsid 112: EPERM;
    setgroups 116: EPERM ENOMEM;
    getgroups 115: EFAULT;
    setresuid 117: EAGAIN EPERM;
    getresuid 118: ;
    setresgid 119: EPERM;
    getresgid 120: ;
    getpgid 121: ESRCH;
    getsid 124: ESRCH;
    capget 125: EPERM;
    capset 126: EPERM;
    statfs 137: EIO;
    fstatfs 138: EIO;
    sigaltstack 131: ;
    prctl 157: EPERM EINVAL;
    arch_prctl 158: ;
    setrlimit 160: EPERM;
    sethostname 170: EPERM;
    setdomainname 171: EPERM;
    chroot 161: EPERM;
    mount 165: EPERM ENOMEM ENOSPC;
    umount2 166: EPERM;
    pivot_root 155: EPERM EINVAL;
    gettid 186: ;
    tkill 200: ;
    time 201: ;
    futex 202: ;
    getdents64 217: EIO;
    set_tid_address 218: ;
    clock_gettime 228: ;
    clock_nanosleep 230: EINTR;
    exit_group 231: ;
    tgkill 234: ;
    waitid 247: EINTR;
    openat 257: EMFILE EACCES EIO ENFILE;
    mkdirat 258: ENOSPC EROFS;
    mknodat 259: EPERM ENOSPC;
    fchownat 260: EPERM EIO;
    newfstatat 262: EACCES EIO;
    unlinkat 263: EIO EROFS;
    renameat 264: EIO ENOSPC EROFS;
    linkat 265: ENOSPC EROFS;
    symlinkat 266: ENOSPC EROFS;
    readlinkat 267: EACCES EIO;
    fchmodat 268: EPERM EIO;
    faccessat 269: EACCES;
    ppoll 271: ENOMEM EINTR;
    unshare 272: EPERM ENOSPC ENOMEM;
    sync_file_range 277: EIO;
    utimensat 280: EPERM;
    epoll_create1 291: EMFILE;
    signalfd4 289: EMFILE;
    pipe2 293: EMFILE ENFILE;
    dup3 292: EMFILE;
    prlimit64 302: EPERM;
    name_to_handle_at 303: EPERM;
    open_by_handle_at 304: EPERM;
    setns 308: EPERM EINVAL ENOMEM;
    renameat2 316: EIO ENOSPC;
    getrandom 318: ;
    execveat 322: EACCES ENOMEM;
    copy_file_range 326: EIO ENOSPC;
    statx 332: EACCES EIO;
    rseq 334: ;
    pidfd_send_signal 424: EPERM ESRCH;
    open_tree 428: EPERM ENOMEM;
    move_mount 429: EPERM EINVAL;
    fsopen 430: EPERM ENOMEM;
    fsconfig 431: EINVAL ENOMEM;
    fsmount 432: EPERM ENOMEM;
    fspick 433: EPERM;
    pidfd_open 434: EMFILE EPERM;
    clone3 435: EAGAIN EPERM ENOMEM;
    close_range 436: EBADF;
    openat2 437: EMFILE EACCES EIO;
    pidfd_getfd 438: EPERM EMFILE;
    faccessat2 439: EACCES;
    mount_setattr 442: EPERM EINVAL;
    seccomp 317: EINVAL;
    statmount 457: EPERM;
    listmount 458: EPERM;
    open_tree_attr 467: EPERM EINVAL;
    listns 470: EPERM;
};

/// The call of that number.
pub(super) fn find(number: c_long) -> &'static Call {
    let unknown = || panic!("system call {number} is not in tests/faults/calls.rs");
    CALLS.iter().find(|call| call.number == number).unwrap_or_else(unknown)
}

/// The number of the call of that name.
pub(super) fn number(name: &str) -> c_long {
    CALLS.iter().find(|call| call.name == name).map_or(-1, |call| call.number)
}

/// The name of an errno.
pub(super) fn errno_name(errno: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno))
}

//! Opening below a directory, and asking for no more than the kernel knows
//! without the file system.

use std::ffi::{CStr, c_int, c_uint};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::from_ref;

use super::{Errno, OPENAT2, Result, answer, descriptor};

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

/// One word of struct statx: at byte `at`, asked for by bit `wanted` (statx(2)).
pub(super) fn statx(fd: BorrowedFd<'_>, wanted: c_uint, at: usize) -> Result<u64> {
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

/// Whether an open file has the extended attribute `name`: xattr(7).
pub fn has_attribute(fd: BorrowedFd<'_>, name: &CStr) -> bool {
    // SAFETY: the name ends in NUL; size 0 only asks for the size.
    let n = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) };
    n >= 0
}

/// Whether a file has the attribute that gives capabilities: xattr(7).
pub fn has_file_capabilities(path: &CStr) -> bool {
    // SAFETY: both strings end in NUL; size 0 only asks for the size.
    let n = unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    n > 0
}

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

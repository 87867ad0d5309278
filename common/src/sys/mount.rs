//! Mounts by descriptors: open_tree(2) and its kin, statmount(2).

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{from_ref, null, without_provenance};

use super::{
    Errno, FSCONFIG, FSMOUNT, FSOPEN, LISTMOUNT, MOUNT_SETATTR, MOVE_MOUNT, OPEN_TREE, OPEN_TREE_ATTR, Result,
    STATMOUNT, answer, descriptor, statx,
};

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

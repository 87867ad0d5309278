//! What a namespace file tells (ioctl_nsfs(2), listns(2)), and two settings of
//! the namespace that we are in.

use std::ffi::{c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{from_mut, from_ref};

use super::{Errno, Result, answer, descriptor};

fn ioctl(fd: BorrowedFd<'_>, request: u64) -> Result<c_long> {
    // musl declares the request as int, glibc as unsigned long; both hand the
    // low 32 bits on.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: the requests used here take no argument or a zero.
    let n = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) };
    answer(c_long::from(n))
}

/// An ioctl that stores something in `out`.
fn ioctl_into(fd: BorrowedFd<'_>, request: u64, out: &mut [u64; 2]) -> Result<c_long> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    // SAFETY: the requests used here store at most 16 bytes, which `out` has.
    let n = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, out.as_mut_ptr()) };
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

/// The mount namespace after `ns`, or before it, of all that there are (Linux
/// 6.12), whether a process is in it or not.
///
/// # Errors
/// EPERM: only root of the initial user namespace; ENOENT: there is none.
pub fn next_mount_namespace(ns: BorrowedFd<'_>, before: bool) -> Result<OwnedFd> {
    let mut info = [0; 2];
    descriptor(ioctl_into(ns, if before { 0x8010_b70c } else { 0x8010_b70b }, &mut info)?)
}

const LISTNS: c_long = 470;

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

/// Sets the NIS domain name of the uts namespace (setdomainname(2)).
///
/// # Errors
/// EPERM; EINVAL: longer than 64 bytes.
pub fn set_domain_name(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the name has.
    answer(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) }).map(drop)
}

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

//! What an open process leads to: its namespaces, its root, the files of its
//! directory in /proc. All through its descriptors, nothing by its number.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, fstat};

use crate::fail::{Because, Errno, Failure, Result};
use crate::id::{self, Extent};
use crate::mind::child;
use crate::ns;
use crate::path::used_up;
use crate::proc::{CAP_NET_ADMIN, Proc, extents, in_brackets, read_all};
use crate::record::Address;
use crate::sys::{self, Change};
use crate::target::Target;
use crate::target::why::untouchable;

/// The inode of an open namespace.
///
/// # Errors
/// None in practice.
pub fn inode(ns: &OwnedFd) -> Result<u64> {
    fstat(ns).map(|s| s.st_ino).map_err(|e| Failure::os("look at the namespace", e))
}

/// The map of `kind` of an open process, read through its own directory.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn map_of(target: &Target, kind: id::Kind) -> std::result::Result<Vec<u8>, Errno> {
    read(target, kind.map_file())
}

/// The file `name` of an open process, read through its own directory.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read(target: &Target, name: &str) -> std::result::Result<Vec<u8>, Errno> {
    read_all(open(target, name)?, usize::MAX)
}

/// Opens the file `name` of an open process for reading.
///
/// # Errors
/// Those of open(2).
pub fn open(target: &Target, name: &str) -> std::result::Result<OwnedFd, Errno> {
    nix::fcntl::openat(&target.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The seccomp filters of a target, those loaded first first; it is stopped
/// for a moment. A child traces it: with its end it goes on, stopped already or
/// not, as one that waits in vfork(2) is not.
///
/// # Errors
/// Those of `sys::trace` and `sys::filter`; ETIMEDOUT: it does not stop.
pub fn filters(target: &Target) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let bytes = child::answer_within(PATIENCE, || Ok(traced(target)?.concat()))?;
    let (mut filters, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((size, others)) = rest.split_first_chunk() {
        let size = usize::try_from(u64::from_ne_bytes(*size)).map_err(|_| Errno::EIO)?;
        let (filter, others) = others.split_at_checked(size).ok_or(Errno::EIO)?;
        filters.push(filter.to_vec());
        rest = others;
    }
    Ok(filters)
}

/// Each with its size before it.
fn traced(target: &Target) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let patience = Instant::now() + Duration::from_secs(2);
    sys::trace(target.pid)?;
    let status = loop {
        match sys::child_change(Some(target.fd.as_fd()))? {
            Some((_, Change::Stopped(status))) => break status,
            Some((_, Change::Exited(_) | Change::Killed(_))) => return Err(Errno::ESRCH),
            None if Instant::now() > patience => return Err(Errno::ETIMEDOUT),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let mut filters = Vec::new();
    let end = loop {
        match sys::filter(target.pid, filters.len()) {
            Ok(filter) => filters.push([&(filter.len() as u64).to_ne_bytes(), &filter[..]].concat()),
            Err(e) => break e,
        }
    };
    sys::let_go(target.pid, status)?;
    if end == Errno::ENOENT { Ok(filters) } else { Err(end) }
}

/// The link of the namespace of `kind` to be entered: that of its children
/// where a process has a pid namespace that it is not in itself, like a holder.
///
/// # Errors
/// Those of readlink(2).
fn link_of(target: &Target, kind: ns::Kind) -> std::result::Result<String, Errno> {
    let link = format!("ns/{}", kind.link());
    if kind != ns::Kind::Pid {
        return Ok(link);
    }
    let children = "ns/pid_for_children";
    match readlinkat(&target.dir, children) {
        Ok(text) => Ok(if readlinkat(&target.dir, link.as_str())? == text { link } else { children.to_owned() }),
        // It has made a pid namespace, and no child in it yet.
        Err(Errno::ENOENT) => Ok(link),
        Err(e) => Err(e),
    }
}

/// The inode of the namespace of `kind` that a target stands for; None where
/// this kernel has no such kind.
///
/// # Errors
/// EACCES: it is another user's, or not dumpable; ENOENT: it is gone.
pub fn namespace_of(proc: &Proc, target: &Target, kind: ns::Kind) -> Result<Option<u64>> {
    let link = link_of(target, kind);
    match link.as_deref().map_err(|e| *e).and_then(|link| readlinkat(&target.dir, link)) {
        Ok(text) => Ok(text.to_str().and_then(in_brackets)),
        Err(Errno::ENOENT) if proc.own_ns(kind)?.is_none() => Ok(None),
        Err(e) => {
            // A zombie has left its namespaces: ENOENT.
            let because = untouchable(proc, &target.who()).filter(|_| e == Errno::EACCES || e == Errno::ENOENT);
            let link = link.unwrap_or_else(|_| format!("ns/{}", kind.link()));
            Err(Failure::os(format!("read /proc/{}/{link}", target.pid), e).because(because))
        }
    }
}

/// The inode of the namespace of `kind` that process `who` stands for.
pub fn namespace_at(proc: &Proc, who: &str, kind: ns::Kind) -> Option<u64> {
    let target = Target::open(proc, Address { pid: proc.ours(who)?, inode: None }).ok()?;
    namespace_of(proc, &target, kind).ok().flatten()
}

/// The pid namespace of a target's children, if the target is not in it itself:
/// setns(2) by a pidfd would enter the one that the target is in.
///
/// # Errors
/// EACCES: it is another user's, or not dumpable.
pub fn pid_namespace_apart(target: &Target) -> Result<Option<OwnedFd>> {
    let said = |e| Failure::os(format!("read /proc/{}/ns/pid", target.pid), e);
    let link = link_of(target, ns::Kind::Pid).map_err(said)?;
    if link == "ns/pid" {
        return Ok(None);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::openat(&target.dir, link.as_str(), flags, Mode::empty());
    opened.map(Some).map_err(|e| Failure::os(format!("open /proc/{}/{link}", target.pid), e))
}

/// Opens `name` in the directory of a target.
fn file_of(proc: &Proc, target: &Target, name: &str, flags: OFlag) -> Result<OwnedFd> {
    let opened = nix::fcntl::openat(&target.dir, name, flags | OFlag::O_CLOEXEC, Mode::empty());
    opened.map_err(|e| {
        // A zombie has left its namespaces: ENOENT.
        let because = untouchable(proc, &target.who()).filter(|_| e == Errno::EACCES || e == Errno::ENOENT);
        Failure::os(format!("open /proc/{}/{name}", target.pid), e).because(because)
    })
}

/// The working directory of a target.
///
/// # Errors
/// As `root`.
pub fn directory(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    file_of(proc, target, "cwd", OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// The root directory of a target.
///
/// # Errors
/// EACCES: it is another user's, or not dumpable; ENOENT: it is gone.
pub fn root(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    file_of(proc, target, "root", OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// No file that is read in the root of a target is longer.
const MOST_BYTES: usize = 4 << 20;

/// How long whoever serves a file of a target may take to answer, in
/// milliseconds.
const PATIENCE: u16 = 3000;

/// The file `path` in the root of a target: no link leads out of it.
///
/// # Errors
/// Those of open(2) and read(2); EINVAL: it is no regular file; ETIMEDOUT: who
/// serves it does not answer.
pub fn file_in(root: &OwnedFd, path: &str) -> std::result::Result<Vec<u8>, Errno> {
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    child::answer_within(PATIENCE, || {
        // A fifo in its place would keep us waiting; a device might do anything.
        let kind = fstat(sys::open_in_root(root.as_fd(), &path, libc::O_PATH, 0)?)?.st_mode & libc::S_IFMT;
        if kind != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        read_all(sys::open_in_root(root.as_fd(), &path, libc::O_RDONLY | libc::O_NONBLOCK, 0)?, MOST_BYTES)
    })
}

/// Whether the root of a target has a file of this path.
///
/// # Errors
/// ETIMEDOUT, as `file_in`.
pub fn is_in(root: &OwnedFd, path: &str) -> std::result::Result<bool, Errno> {
    let path = std::ffi::CString::new(path).unwrap_or_default();
    let found =
        child::answer_within(PATIENCE, || sys::open_in_root(root.as_fd(), &path, libc::O_PATH, 0).map(|_| Vec::new()));
    if found == Err(Errno::ETIMEDOUT) {
        Err(Errno::ETIMEDOUT)
    } else {
        Ok(path.to_bytes().starts_with(b"/") && found.is_ok())
    }
}

/// The parent of a target's user namespace.
///
/// # Errors
/// As `root`; EPERM: it is outside of ours.
pub fn user_parent(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    let ns = user_namespace(proc, target)?;
    sys::ns_owner(ns.as_fd()).map_err(|e| {
        let because = Because::new("the parent of its user namespace is a user namespace outside of ours");
        no_parent(target, e).because((e == Errno::EPERM).then_some(because))
    })
}

fn no_parent(target: &Target, errno: Errno) -> Failure {
    Failure::os(format!("open the parent of the user namespace of {}", target.pid), errno)
}

/// The user namespace that owns the mounts of a target, if that is neither the
/// target's nor ours but one between: the first of two that bubblewrap makes.
///
/// # Errors
/// As `root`; those of NS_GET_USERNS.
pub fn owner_of_mounts(proc: &Proc, target: &Target) -> Result<Option<OwnedFd>> {
    let owner = match sys::ns_owner(namespace(proc, target, ns::Kind::Mnt)?.as_fd()) {
        Ok(owner) => owner,
        // It is outside of ours, which entering the mounts will tell.
        Err(Errno::EPERM) => return Ok(None),
        Err(e) => {
            return Err(Failure::os(format!("open the user namespace that owns the mounts of {}", target.pid), e));
        }
    };
    let theirs = namespace_of(proc, target, ns::Kind::User)?;
    let between = !is_ours(proc, &owner, ns::Kind::User) && Some(inode(&owner)?) != theirs;
    Ok(between.then_some(owner))
}

/// Whether the mounts of a target belong to our user namespace.
///
/// # Errors
/// As `root`.
pub fn mounts_are_ours(proc: &Proc, target: &Target) -> Result<bool> {
    let mounts = namespace(proc, target, ns::Kind::Mnt)?;
    Ok(sys::ns_owner(mounts.as_fd()).is_ok_and(|owner| is_ours(proc, &owner, ns::Kind::User)))
}

/// Whether an open namespace is the one of `kind` that we are in.
pub fn is_ours(proc: &Proc, ns: &OwnedFd, kind: ns::Kind) -> bool {
    fstat(ns).ok().map(|s| s.st_ino) == proc.ns_id("self", kind)
}

/// Whether a namespace belongs to this user namespace, or to one below it.
pub fn belongs(ns: &OwnedFd, user: &OwnedFd) -> bool {
    let inode = |fd: &OwnedFd| fstat(fd).ok().map(|s| s.st_ino);
    let wanted = inode(user);
    let mut owner = sys::ns_owner(ns.as_fd()).ok();
    while let Some(at) = owner {
        if wanted.is_some() && inode(&at) == wanted {
            return true;
        }
        owner = sys::ns_owner(at.as_fd()).ok();
    }
    false
}

/// The user namespace of a target.
///
/// # Errors
/// As `root`.
pub fn user_namespace(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    namespace(proc, target, ns::Kind::User)
}

/// The namespace of `kind` that a target is in.
///
/// # Errors
/// As `root`.
pub fn namespace(proc: &Proc, target: &Target, kind: ns::Kind) -> Result<OwnedFd> {
    file_of(proc, target, &format!("ns/{}", kind.link()), OFlag::O_RDONLY)
}

/// The map of the user namespace that a target is in, its outside ids as this
/// process sees them; empty if none has been written.
///
/// # Errors
/// As `root`.
pub fn map(proc: &Proc, target: &Target, kind: id::Kind) -> Result<Vec<Extent>> {
    let name = kind.map_file();
    let file = file_of(proc, target, name, OFlag::O_RDONLY)?;
    let text = read_all(file, usize::MAX).map_err(|e| Failure::os(format!("read /proc/{}/{name}", target.pid), e))?;
    Ok(extents(&String::from_utf8_lossy(&text)))
}

/// The network namespace of the socket that is descriptor `n` of a target.
///
/// # Errors
/// EBADF: it is not open there; EPERM; ENOTTY: it is no socket.
pub fn network_of_socket(proc: &Proc, target: &Target, n: i32) -> Result<OwnedFd> {
    let pid = target.pid;
    let socket = sys::pidfd_getfd(target.fd.as_fd(), n).map_err(|e| {
        let closed = || Because::new(format!("descriptor {n} of process {pid} is not open"));
        let because = if e == Errno::EPERM { untouchable(proc, &target.who()) } else { used_up(e) };
        Failure::os(format!("pidfd_getfd {pid} {n}"), e).because((e == Errno::EBADF).then(closed).or(because))
    })?;
    sys::socket_namespace(socket.as_fd()).map_err(|e| {
        let lacks = "this needs CAP_NET_ADMIN where the network namespace belongs, and we do not have it here";
        let lacks = (e == Errno::EPERM && !proc.own().can(CAP_NET_ADMIN)).then(|| Because::new(lacks));
        let other = || Because::new(format!("descriptor {n} of process {pid} is no socket"));
        Failure::os(format!("find the network namespace of descriptor {n} of {pid}"), e)
            .because((e == Errno::ENOTTY).then(other).or(lacks))
    })
}

/// The number of a target's mount namespace, for statmount(2).
///
/// # Errors
/// As `root`; ENOTTY: Linux before 6.11.
pub fn mount_namespace_id(proc: &Proc, target: &Target) -> Result<u64> {
    let ns = namespace(proc, target, ns::Kind::Mnt)?;
    sys::mount_namespace_id(ns.as_fd())
        .map_err(|e| Failure::os(format!("read the number of {}'s mounts", target.pid), e))
}

/// Whether a target's root directory is the same as ours, so that a path means
/// the same there.
///
/// # Errors
/// One of them cannot be looked at.
pub fn same_root(proc: &Proc, target: &Target) -> Result<bool> {
    let root = |who: &str| {
        let found = proc.directory(&format!("{who}/root")).and_then(|fd| sys::identity(fd.as_fd()));
        found.map_err(|e| Failure::os(format!("look at /proc/{who}/root"), e).because(used_up(e)))
    };
    Ok(root("self")? == root(&target.who())?)
}

/// The uid that owns the user namespace of a target, as seen from here.
pub fn owner_of_user_namespace(proc: &Proc, target: &Target) -> Option<u32> {
    sys::ns_owner_uid(proc.ns(&target.who(), ns::Kind::User).ok()?.as_fd()).ok()
}

/// A user namespace above a process, or its own.
pub struct Above {
    /// Its inode.
    pub inode: u64,
    /// The uid that owns it, as seen from here.
    pub owner: u32,
    /// It, open.
    pub file: OwnedFd,
}

/// The user namespace of a target and all above it, up to ours.
///
/// # Errors
/// As `root`; EPERM: it is not below ours.
pub fn user_namespaces(proc: &Proc, target: &Target) -> Result<Vec<Above>> {
    let ours = proc.own_ns(ns::Kind::User)?;
    let mut chain = Vec::new();
    let mut at = Some(user_namespace(proc, target)?);
    while let Some(file) = at {
        let inode = inode(&file)?;
        let owner = sys::ns_owner_uid(file.as_fd())
            .map_err(|e| Failure::os(format!("look at the user namespaces above {}", target.pid), e))?;
        at = if Some(inode) == ours {
            None
        } else {
            Some(sys::ns_owner(file.as_fd()).map_err(|e| no_parent(target, e))?)
        };
        chain.push(Above { inode, owner, file });
    }
    Ok(chain)
}

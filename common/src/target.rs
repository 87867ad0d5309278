//! The process (or namespace file) that an operand names: opened once, proven,
//! and from then on known only by its descriptors.
//!
//! * [`why`]    why a process is not for us
//! * [`stream`] the stream on standard input, where that names it
//! * [`given`]  what else a command line names: descriptors, processes
//! * [`files`]  what an open process leads to: namespaces, root, files

pub mod files;
pub mod given;
pub mod stream;
pub mod why;

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, fstatfs};

use crate::fail::{Because, Errno, Failure, Result};
use crate::holder::door;
use crate::id::number;
use crate::path::used_up;
use crate::proc::{PROC_SUPER_MAGIC, Proc, status_in};
use crate::record::Address;
use crate::sys;
use crate::target::why::hidden;
use crate::word::quote;

/// Where ip-netns(8) keeps network namespaces by name.
const NETNS: &str = "/run/netns";

/// What a TARGET operand says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `-`: a stream on standard input.
    Stream,
    /// `PID` or `PID:INODE`.
    Process(Address),
    /// A word with a slash: a namespace file.
    File(PathBuf),
    /// `fd:N`: an open namespace file or pidfd.
    Descriptor(i32),
    /// Anything else: a name.
    Name(String),
}

impl Operand {
    /// Reads a TARGET.
    ///
    /// # Errors
    /// Wrong usage: digits that are no process number, `fd:` without one.
    pub fn parse(word: &OsStr) -> Result<Operand> {
        let bytes = word.as_bytes();
        let bad = |what: &str| Failure::usage(format!("{}: {what}", quote(word)));
        if bytes == b"-" {
            return Ok(Operand::Stream);
        }
        if let Some(n) = bytes.strip_prefix(b"fd:") {
            let n = number(n).and_then(|n| i32::try_from(n).ok());
            return Ok(Operand::Descriptor(n.ok_or_else(|| bad("not a descriptor"))?));
        }
        if let Some(name) = bytes.strip_prefix(b"name:") {
            return Operand::named(name).ok_or_else(|| bad("not a name"));
        }
        if let Some(name) = bytes.strip_prefix(b"netns:") {
            let Some(Operand::Name(name)) = Operand::named(name) else { return Err(bad("not a name")) };
            let plain = !name.contains('/') && !name.starts_with('.');
            return if plain { Ok(Operand::File(Path::new(NETNS).join(name))) } else { Err(bad("not a name")) };
        }
        if bytes.contains(&b'/') {
            return Ok(Operand::File(word.into()));
        }
        // The ids of containers may begin with digits, and go on with letters.
        if bytes.iter().all(|b| b.is_ascii_digit() || *b == b':') && bytes.first().is_some_and(u8::is_ascii_digit) {
            return Ok(Operand::Process(Address::parse(bytes).ok_or_else(|| bad("not PID or PID:INODE"))?));
        }
        Operand::named(bytes).ok_or_else(|| bad("not a target"))
    }

    fn named(name: &[u8]) -> Option<Operand> {
        let name = std::str::from_utf8(name).ok()?;
        // Names of others are shown, too: one a line, and nothing that a terminal obeys.
        let plain = !name.chars().any(|c| c.is_control() || c.is_whitespace());
        (plain && !name.is_empty() && !name.starts_with('-')).then(|| Operand::Name(name.to_owned()))
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Stream => write!(f, "-"),
            Operand::Process(at) => write!(f, "{at}"),
            Operand::File(path) => write!(f, "{}", quote(path)),
            Operand::Descriptor(n) => write!(f, "fd:{n}"),
            Operand::Name(name) => write!(f, "{name}"),
        }
    }
}

/// An open process.
pub struct Target {
    /// Its pidfd.
    pub fd: OwnedFd,
    /// Its directory in /proc, proven to be that of `fd`.
    pub dir: OwnedFd,
    /// Its number in the proc at hand, which may be that of an outer pid namespace.
    pub pid: i32,
    /// How records and plans name it.
    pub address: Address,
}

impl Target {
    /// Its number, as the name of its directory in /proc.
    pub fn who(&self) -> String {
        self.pid.to_string()
    }

    /// Opens a process.
    ///
    /// # Errors
    /// ESRCH, ESTALE: it is gone, or the number is another's by now.
    pub fn open(proc: &Proc, at: Address) -> Result<Target> {
        let said = |e| Failure::os(format!("open process {at}"), e);
        let is_about_it = |e| matches!(e, Errno::ESRCH | Errno::ENOENT | Errno::EINVAL);
        let refused = |e| said(e).because(if is_about_it(e) { another(proc, at) } else { used_up(e) });
        let fd = match at.inode {
            // The inode alone names the process, whatever its number is here.
            Some(inode) => match sys::pidfd_by_inode(inode) {
                Ok(fd) => fd,
                Err(Errno::ESTALE) => return Err(said(Errno::ESRCH).because(another(proc, at))),
                // Older than Linux 6.17: by number, then compared.
                Err(_) => by_number(at.pid).map_err(refused)?,
            },
            None => by_number(at.pid).map_err(refused)?,
        };
        let inode = pidfs_inode(fd.as_fd()).map_err(said)?;
        if at.inode.is_some() && inode != at.inode {
            return Err(said(Errno::ESRCH).because(another(proc, at)));
        }
        let pid = proc.number_of(fd.as_fd()).map_err(said)?.unwrap_or(at.pid);
        let found = Target::with(proc, fd, Address { pid, inode: inode.or(at.inode) });
        found.map_err(|e| if e == Errno::ENOENT { said(e).because(hidden(proc, &pid.to_string())) } else { refused(e) })
    }

    fn with(proc: &Proc, fd: OwnedFd, address: Address) -> std::result::Result<Target, Errno> {
        // Whoever has ended meanwhile has no directory any more.
        let gone = |e| is_alive(fd.as_fd()).err().filter(|_| e == Errno::ENOENT).unwrap_or(e);
        let dir = proc.directory(&address.pid.to_string()).map_err(gone)?;
        // The number was looked up after the pidfd was open, and the process
        // still lives: so the directory is its, and no later one's.
        is_alive(fd.as_fd())?;
        Ok(Target { fd, dir, pid: address.pid, address })
    }

    /// Opens the process that descriptor `n` of ours stands for: a pidfd, or
    /// the directory of a process in /proc.
    ///
    /// # Errors
    /// EBADF: it is not open, or stands for no process; ESRCH: that is gone.
    pub fn from_descriptor(proc: &Proc, n: i32) -> Result<Target> {
        let said = |e| Failure::os(format!("use descriptor {n}"), e);
        let neither = || Because::new(format!("descriptor {n} is neither a pidfd nor a directory of /proc"));
        let fd = sys::inherited(n).map_err(said)?;
        if let Some(pid) = proc.number_of(fd.as_fd()).map_err(said)? {
            let inode = pidfs_inode(fd.as_fd()).map_err(said)?;
            return Target::with(proc, fd, Address { pid, inode }).map_err(said);
        }
        // Opened again: of an O_PATH descriptor the kernel does not tell what
        // it is. No link is followed, and only a process takes a signal.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let again = nix::fcntl::openat(&fd, ".", flags, Mode::empty());
        let given = match again {
            Ok(fd) if fstatfs(&fd).map_err(said)?.filesystem_type() == PROC_SUPER_MAGIC => Some(fd),
            Ok(_) | Err(Errno::ENOTDIR) => None,
            Err(e) => return Err(said(e)),
        };
        is_alive(given.as_ref().unwrap_or(&fd).as_fd())
            .map_err(|e| said(e).because((e == Errno::EBADF).then(neither)))?;
        let given = given.ok_or_else(|| said(Errno::EBADF).because(Some(neither())))?;
        let pid = status_in(&given).map_err(said)?.pids.first().and_then(|pid| i32::try_from(*pid).ok());
        let pid = pid.ok_or_else(|| said(Errno::ESRCH))?;
        let target = Target::open(proc, Address { pid, inode: None })?;
        let place = |fd: &OwnedFd| fstat(fd).map(|s| (s.st_dev, s.st_ino)).map_err(said);
        if place(&given)? != place(&target.dir)? {
            return Err(Failure::refused(format!("descriptor {n} is a directory of another proc file system")));
        }
        Ok(target)
    }

    /// Whether something is mounted over a file of its in /proc.
    pub fn is_covered(&self, proc: &Proc) -> bool {
        let below = format!("/proc/{}/", self.pid);
        proc.mounts("self").iter().any(|m| m.point.as_bytes().starts_with(below.as_bytes()))
    }

    /// Whether the process has gone, or is a zombie. Its number may be another's
    /// by now, so this is asked before anything by number.
    pub fn ended(&self) -> Option<Because> {
        let gone = is_alive(self.fd.as_fd()) == Err(Errno::ESRCH);
        let gone = gone || status_in(&self.dir).is_ok_and(|s| s.has_ended());
        gone.then(|| Because::new(format!("process {} has ended", self.pid)))
    }
}

/// A descriptor for a process or, where the number is that of a thread which is
/// not the first (EINVAL before Linux 6.16, then ENOENT), for the thread.
fn by_number(pid: i32) -> std::result::Result<OwnedFd, Errno> {
    let is_thread = |e| e == Errno::EINVAL || e == Errno::ENOENT;
    sys::pidfd_open(pid).or_else(|e| if is_thread(e) { sys::pidfd_open_thread(pid).map_err(|_| e) } else { Err(e) })
}

/// Whether the process behind a pidfd, or a directory of /proc, is there.
fn is_alive(fd: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    sys::pidfd_signal(fd, 0).or_else(|e| if e == Errno::EPERM { Ok(()) } else { Err(e) })
}

/// The inode of a pidfd in pidfs (Linux 6.9); before, all pidfds shared one.
///
/// # Errors
/// Those of fstatfs(2) and fstat(2).
pub fn pidfs_inode(fd: BorrowedFd<'_>) -> std::result::Result<Option<u64>, Errno> {
    const PID_FS_MAGIC: FsType = FsType(0x5049_4446);
    let is_pidfs = match fstatfs(fd) {
        // A filter of a container's, older than the call.
        Err(Errno::ENOSYS) => false,
        fs => fs?.filesystem_type() == PID_FS_MAGIC,
    };
    Ok(if is_pidfs { Some(fstat(fd)?.st_ino) } else { None })
}

/// Why a process cannot be opened: as far as it can be seen.
fn another(proc: &Proc, at: Address) -> Option<Because> {
    let Some(status) = proc.status(&at.pid.to_string()) else {
        return Some(Because::new(format!("no process has number {} here", at.pid)));
    };
    // The proc at hand may be that of an outer pid namespace: its numbers are
    // not ours, as the one that it has for us shows.
    let outer = proc.own().pids.first().is_some_and(|pid| *pid != std::process::id());
    let ours = sys::pidfd_open(at.pid);
    if outer && ours.is_err() {
        return Some(Because::new(format!("process {} ({}) is outside of our pid namespace", at.pid, status.name)));
    }
    let theirs = pidfs_inode(ours.ok()?.as_fd()).ok()?;
    if at.inode.is_some() && theirs.is_some() && theirs != at.inode {
        return Some(Because::new(format!("number {} belongs to another process ({}) by now", at.pid, status.name)));
    }
    status
        .has_ended()
        .then(|| Because::new(format!("process {} ({}) has ended and waits to be reaped", at.pid, status.name)))
}

/// Attaches this process to a holder: through its door or, where that is not to
/// be had, by a signal, if it is ns-new that would get it.
///
/// # Errors
/// ESRCH: the holder has gone; ENOTSOCK: the process is no holder; EPERM.
pub fn attach(target: &Target) -> std::result::Result<(), Errno> {
    match door::attach(target.fd.as_fd()) {
        Err(e) if is_barred(e) && is_ns_new(target) => door::knock(target.fd.as_fd()),
        done => done,
    }
}

/// Sends a holder signal `number`, which it passes on where somebody has entered in
/// its pipeline (`holder::stage`).
///
/// # Errors
/// As `attach`.
pub fn pass_on(target: &Target, number: i32) -> std::result::Result<(), Errno> {
    match door::is_holder(target.fd.as_fd()) {
        Ok(true) => sys::pidfd_signal(target.fd.as_fd(), number),
        Ok(false) => Err(Errno::ENOTSOCK),
        Err(e) if is_barred(e) && is_ns_new(target) => sys::pidfd_signal(target.fd.as_fd(), number),
        Err(e) => Err(e),
    }
}

/// Whether a holder's door is kept from us: by a seccomp filter, or an old kernel.
fn is_barred(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSYS)
}

fn is_ns_new(target: &Target) -> bool {
    Proc::open().is_ok_and(|proc| proc.name(&target.who()) == "ns-new")
}

//! Files, descriptors and processes that a command line names beside its TARGET.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::fail::{Because, Errno, Failure, Result};
use crate::id::number;
use crate::path::not_opened;
use crate::sys;
use crate::target::Operand;
use crate::word::quote;

/// Opens a namespace file, by path or as descriptor `fd:N`.
///
/// # Errors
/// Those of open(2); a refusal where it is none.
pub fn namespace_file(operand: &Operand) -> Result<Option<(OwnedFd, u64)>> {
    let (fd, said) = match operand {
        Operand::File(path) => {
            // A fifo in its place would keep us waiting.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let opened = open(path.as_path(), flags, Mode::empty());
            (opened.map_err(|e| not_opened(path.as_os_str(), e))?, format!("open {}", quote(path)))
        }
        Operand::Descriptor(n) => {
            let said = format!("use descriptor {n}");
            (sys::inherited(*n).map_err(|e| Failure::os(said.as_str(), e))?, said)
        }
        Operand::Stream | Operand::Process(_) | Operand::Name(_) => return Ok(None),
    };
    match sys::ns_kind(fd.as_fd()) {
        Ok(flag) => Ok(Some((fd, flag))),
        Err(e) => Err(Failure::os(format!("{said} as a namespace"), e).because(no_namespace(&fd, e))),
    }
}

fn no_namespace(fd: &OwnedFd, errno: Errno) -> Option<Because> {
    if errno == Errno::ENOTTY {
        return Some(Because::new("it is not a namespace file"));
    }
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).map_or(OFlag::empty(), OFlag::from_bits_truncate);
    let text = "it has been opened with O_PATH: that is a place in a file system, and no namespace";
    (errno == Errno::EBADF && flags.contains(OFlag::O_PATH)).then(|| Because::new(text))
}

/// A descriptor named on the command line, proven to be our caller's.
///
/// # Errors
/// Wrong usage: it is no number, or not open; EMFILE.
pub fn descriptor(word: &OsStr) -> Result<i32> {
    let n = number(word.as_bytes()).and_then(|n| i32::try_from(n).ok());
    let n = n.ok_or_else(|| Failure::usage(format!("{}: not a descriptor", quote(word))))?;
    match sys::inherited(n) {
        Err(Errno::EBADF) => Err(Failure::usage(format!("descriptor {n} is not open"))),
        Err(e) => Err(Failure::os(format!("copy descriptor {n}"), e)),
        Ok(_) => Ok(n),
    }
}

/// The leader of this process's session: the shell of the terminal.
///
/// # Errors
/// It is in a pid namespace that cannot be seen from here.
fn session_leader() -> Result<i32> {
    match nix::unistd::getsid(None) {
        Ok(pid) if pid.as_raw() > 0 => Ok(pid.as_raw()),
        _ => Err(Failure::refused("the leader of this session is outside of the pid namespace")),
    }
}

/// A duplicate of a descriptor named on the command line.
///
/// # Errors
/// Wrong usage: it is no number, or not open.
pub fn duplicate(word: &OsStr) -> Result<OwnedFd> {
    let n = descriptor(word)?;
    sys::inherited(n).map_err(|e| Failure::os(format!("use descriptor {n}"), e))
}

/// The process that something is to end with: a number, or `tty` for the leader
/// of this session.
///
/// # Errors
/// Wrong usage: it is neither.
pub fn end_with(word: &OsStr) -> Result<i32> {
    if word == "tty" {
        return session_leader();
    }
    let pid = word.to_str().and_then(|w| w.parse::<i32>().ok()).filter(|pid| *pid > 0);
    pid.ok_or_else(|| Failure::usage(format!("--with: {} is not a process number", quote(word))))
}

/// A pidfd of the process with this number, to wait for its end.
///
/// # Errors
/// ESRCH: there is none.
pub fn process(pid: i32) -> Result<OwnedFd> {
    sys::pidfd_open(pid).map_err(|e| Failure::os(format!("open process {pid}"), e))
}

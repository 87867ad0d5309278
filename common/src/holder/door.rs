//! A holder's door, as those come to it who enter, or look after what does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::c_int;
use nix::sys::signal::Signal;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::unistd::{getpid, getppid};

use super::{BESIDE, DOOR, ENDED, HERE, KNOCK, NOT_YET, PATIENCE, Result};
use crate::mind;
use crate::sys;

/// Takes the door of a holder.
fn door(holder: BorrowedFd<'_>) -> Result<OwnedFd> {
    let door = match sys::pidfd_getfd(holder, DOOR) {
        Err(Errno::EBADF) => return Err(Errno::ENOTSOCK),
        other => other?,
    };
    // A record may name any process; whatever has this number there must not
    // be written to, nor may it keep us waiting.
    let fits = getsockopt(&door, sockopt::SockType)? == SockType::SeqPacket;
    if fits { Ok(door) } else { Err(Errno::ENOTSOCK) }
}

/// Whether a process has a door, as a holder has, or none can be seen here.
///
/// # Errors
/// It is not for us, has gone, or cannot be looked at.
pub fn is_holder(process: BorrowedFd<'_>) -> Result<bool> {
    match door(process) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(true),
        Err(Errno::ENOTSOCK) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Tells a holder to go, and waits until it has.
///
/// # Errors
/// ENOTSOCK: the process is no holder; ESRCH: it has gone; ETIMEDOUT.
pub fn release(holder: BorrowedFd<'_>) -> Result<()> {
    door(holder)?;
    // SIGTERM would be for the program of a pipeline.
    sys::pidfd_signal(holder, Signal::SIGINT as c_int)?;
    if mind::ready_within(holder, PATIENCE)? { Ok(()) } else { Err(Errno::ETIMEDOUT) }
}

/// Attaches this process to a holder, which then lives at least as long.
///
/// # Errors
/// ESRCH: the holder has gone; EPERM: it is another user's; ENOTSOCK: the
/// process is no holder.
pub fn attach(holder: BorrowedFd<'_>) -> Result<()> {
    let door = door(holder)?;
    let me = sys::pidfd_open(getpid().as_raw())?;
    mind::send(door.as_fd(), &[HERE], &[me.as_fd()])
}

/// The door of a holder, and the enterer whose child this process is, which
/// `parent` has the other end of. Taken before it crosses: afterwards the door is
/// closed to it, and its parent has no number.
///
/// # Errors
/// As `attach`; ESRCH: the enterer has gone already.
pub fn take(holder: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let door = door(holder)?;
    let enterer = sys::pidfd_open(getppid().as_raw())?;
    // While it has its end open, our parent was the enterer a moment ago.
    if mind::has_hung_up(parent)? { Err(Errno::ESRCH) } else { Ok((door, enterer)) }
}

/// Tells a holder by its door that this process becomes a program that it has to
/// end if the enterer goes first.
///
/// # Errors
/// Those of pidfd_open(2) and sendmsg(2).
pub fn entrust(door: BorrowedFd<'_>, enterer: BorrowedFd<'_>) -> Result<()> {
    give(door, enterer, HERE)
}

/// The same of the child of a stage that becomes a helper: nobody can enter
/// before that is ready, which the holder's parent is told.
///
/// # Errors
/// As `take` and `entrust`.
pub fn hold_back(holder: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> Result<()> {
    let (door, enterer) = take(holder, parent)?;
    give(door.as_fd(), enterer.as_fd(), NOT_YET)
}

fn give(door: BorrowedFd<'_>, enterer: BorrowedFd<'_>, what: u8) -> Result<()> {
    let me = sys::pidfd_open(getpid().as_raw())?;
    mind::send(door, &[what], &[enterer, me.as_fd()])
}

/// Tells a holder that the helper is ready, and leaves `processes` of it, which
/// are below this one, to the holder: if this process is killed, they are ended
/// with the namespaces.
///
/// # Errors
/// As `attach`.
pub fn leave_to(holder: BorrowedFd<'_>, processes: &[OwnedFd]) -> Result<()> {
    let door = door(holder)?;
    let me = sys::pidfd_open(getpid().as_raw())?;
    mind::send(door.as_fd(), &[BESIDE], &[])?;
    processes.iter().try_for_each(|process| mind::send(door.as_fd(), &[BESIDE], &[me.as_fd(), process.as_fd()]))
}

/// Attaches this process by a signal, where a seccomp filter keeps the door
/// from us (pidfd_getfd(2)), as that of many containers does. A process that
/// is no holder may die of it.
///
/// # Errors
/// Those of pidfd_send_signal(2).
pub fn knock(holder: BorrowedFd<'_>) -> Result<()> {
    sys::pidfd_signal(holder, KNOCK)
}

/// Tells a holder, for its parent, that the program died of `signal`, or ended by
/// itself.
pub fn tell_end(holder: BorrowedFd<'_>, signal: Option<c_int>) {
    let byte = signal.map_or(ENDED, |signal| u8::try_from(signal).unwrap_or(ENDED));
    // A holder that has gone needs to know nothing.
    let _ = door(holder).and_then(|door| mind::send(door.as_fd(), &[byte], &[]));
}

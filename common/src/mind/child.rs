//! A child process: made to ask something, told, waited for, ended.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::c_int;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{getpid, getppid, pipe2};

use super::{minded, read_until, say_to, stop_with_it, wait_for, waiting};
use crate::proc::Proc;
use crate::sys;

type Result<T> = std::result::Result<T, Errno>;

/// A child process of this one.
pub struct Child {
    /// Its number in our pid namespace.
    pub pid: i32,
    /// And its descriptor.
    pub fd: OwnedFd,
}

impl Child {
    /// The name of its directory in `proc`, which may be the proc of an outer
    /// pid namespace: there it has another number.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn who(&self, proc: &Proc) -> Result<String> {
        Ok(proc.number_of(self.fd.as_fd())?.unwrap_or(self.pid).to_string())
    }
}

/// Sends a signal to a child: whatever a kernel lacks or a filter refuses, none
/// of ours may be waited for that has not been told to end. Until it is reaped
/// its number is its own.
///
/// # Errors
/// Those of kill(2).
pub fn signal(child: &Child, number: c_int) -> Result<()> {
    match sys::pidfd_signal(child.fd.as_fd(), number) {
        Err(e) if e != Errno::ESRCH || has_not_ended(child) => sys::signal_child(child.pid, number),
        other => other,
    }
}

fn has_not_ended(child: &Child) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::PIDFd(child.fd.as_fd()), flags) == Ok(WaitStatus::StillAlive)
}

/// Ends a child and waits until nothing of it is left: with a pid namespace
/// the kernel reports its first process only after all others have gone.
pub fn end(child: &Child) {
    let _ = signal(child, Signal::SIGKILL as c_int);
    let _ = reap(child);
}

/// Waits for a child that is about to end by itself; answers its exit status,
/// None if a signal ended it.
pub fn reap(child: &Child) -> Option<i32> {
    loop {
        match waitid(Id::PIDFd(child.fd.as_fd()), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, status)) => return Some(status),
            Ok(_) | Err(_) => return None,
        }
    }
}

/// A child that does nothing for as long as this process lives.
///
/// # Errors
/// Those of fork(2).
pub fn stay_behind() -> Result<Child> {
    let parent = getpid();
    match sys::fork(0)? {
        sys::Fork::Child => {
            let follows = sys::follow_parent(Signal::SIGKILL as c_int);
            // It may have gone before that.
            while follows.is_ok() && getppid() == parent {
                nix::unistd::pause();
            }
            sys::exit_now(1)
        }
        sys::Fork::Parent(pid, fd) => Ok(Child { pid, fd }),
    }
}

/// A child that does `what`, and the pipe that comes of it is written into. Its
/// exit status is the errno of what failed, or 0.
///
/// # Errors
/// Those of pipe(2) and fork(2).
pub fn ask_child(what: impl FnOnce() -> Result<Vec<u8>>) -> Result<(Child, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // An inherited "ignore" would make the kernel reap it itself.
    sys::default_signal(Signal::SIGCHLD as c_int);
    match sys::fork(0)? {
        sys::Fork::Child => {
            // All of it before the first byte: nobody may read for a while, and a
            // pipe is soon full.
            let said = what().and_then(|bytes| say_to(theirs.as_raw_fd(), &bytes));
            // All are below 134 (errno(3)).
            sys::exit_now(said.err().map_or(0, |errno| u8::try_from(errno as i32).unwrap_or(u8::MAX)))
        }
        sys::Fork::Parent(pid, fd) => Ok((Child { pid, fd }, ours)),
    }
}

/// What `what` answers, if it does within `limit` milliseconds. A child asks:
/// whoever waits for a file system that a process serves (fuse(4)) waits for
/// ever if that likes, and cannot even be killed.
///
/// # Errors
/// Those of `what`; ETIMEDOUT: it does not answer.
pub fn answer_within(limit: u16, what: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let until = Instant::now() + Duration::from_millis(limit.into());
    let (child, pipe) = ask_child(what)?;
    let bytes = read_until(pipe.as_fd(), until).inspect_err(|_| {
        let _ = signal(&child, Signal::SIGKILL as c_int);
    })?;
    match reap(&child) {
        Some(0) => Ok(bytes),
        Some(number) => Err(Errno::from_raw(number)),
        None => Err(Errno::EIO),
    }
}

/// How long something may take after whoever was told of it has left, or
/// after it was told to end.
pub const GRACE: Duration = Duration::from_secs(2);

/// Why waiting has ended.
pub enum Waited {
    /// What was waited for is there.
    Done,
    /// The child has ended.
    Gone,
    /// Nobody reads any more what was to be done.
    Unread,
    /// This signal has come.
    Signal(c_int),
}

/// Waits for something that the kernel announces by no event: asks `done`
/// again and again, at first every 2 and in the end every 50 milliseconds.
/// `reader`: the end of a pipe whose reader is the one who does it.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn wait_until(child: &Child, reader: Option<RawFd>, done: impl Fn() -> bool) -> Result<Waited> {
    let signals = waiting(minded())?;
    let mut pause = 2;
    let mut unread: Option<Instant> = None;
    loop {
        if done() {
            return Ok(Waited::Done);
        }
        let mut fds = vec![(signals.as_fd(), PollFlags::POLLIN), (child.fd.as_fd(), PollFlags::POLLIN)];
        let watched = reader.filter(|_| unread.is_none());
        fds.extend(watched.map(|number| (sys::lend(number), PollFlags::empty())));
        let ready = wait_for(&fds, Some(pause))?;
        pause = (pause * 2).min(50);
        if ready[1] {
            return Ok(Waited::Gone);
        }
        while let Some(info) = signals.read_signal()? {
            let number = c_int::try_from(info.ssi_signo).unwrap_or(0);
            let fatal = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
            if sys::is_ignored(number) {
                continue;
            }
            if fatal.iter().any(|signal| *signal as c_int == number) {
                return Ok(Waited::Signal(number));
            }
            if number == Signal::SIGTSTP as c_int {
                stop_with_it()?;
            }
        }
        if ready.get(2) == Some(&true) {
            unread = Some(Instant::now());
        }
        // It may be done by whoever left, or by another whom he has told.
        if unread.is_some_and(|since| since.elapsed() > GRACE) && !done() {
            return Ok(Waited::Unread);
        }
    }
}

//! The locks of those files, by the protocol of shadow: .pwd.lock, as
//! lckpwdf(3) takes it, and a FILE.lock for each.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, linkat};

use super::{Etc, errno, temporary};
use crate::fail::{Because, Errno, Failure, Result};
use crate::proc::{Proc, read_all};
use crate::{mind, sys};

/// How long to wait for a lock unless told otherwise, in seconds: as lckpwdf(3).
pub const PATIENCE: u32 = 15;

/// How long between two tries, in milliseconds.
const PAUSE: u16 = 25;

/// Files that are locked against shadow and against ourselves by its own
/// protocol. The locks go when this is dropped; until then no signal but
/// SIGKILL ends us, for whoever it ended would leave them behind. One that is
/// to end us while we wait ends the waiting, and then us.
pub struct Locked {
    etc: Rc<Etc>,
    _password: OwnedFd,
    links: Vec<String>,
    mask: SigSet,
    /// What dead processes had left and was cleared: a sentence each.
    pub cleared: Vec<String>,
}

impl Locked {
    /// Locks .pwd.lock, then each of the files `names` by its own lock, waiting
    /// `patience` in all. `again` is the command with which root does what is
    /// about to be done.
    ///
    /// # Errors
    /// EACCES: not root; EAGAIN, EEXIST: a living process has one of them.
    pub fn take(etc: &Rc<Etc>, names: &[&str], patience: Duration, proc: &Proc, again: &str) -> Result<Locked> {
        let end = Instant::now() + patience;
        let password = lock_passwords(etc, end, proc, again)?;
        // A full disk quota must be an errno, and not the end of us.
        sys::ignore_signal(Signal::SIGXFSZ as libc::c_int);
        let mask = SigSet::thread_get_mask().map_err(|e| Failure::os("read the signal mask", e))?;
        let _ = sys::every_signal().thread_block();
        let mut locked = Locked { etc: etc.clone(), _password: password, links: Vec::new(), mask, cleared: Vec::new() };
        for name in names {
            locked.link(name, end, proc)?;
            locked.sweep(name);
        }
        Ok(locked)
    }

    /// shadow's lock of one file: a hard link named FILE.lock to a file that
    /// holds the locker's number and one NUL byte.
    fn link(&mut self, name: &str, end: Instant, proc: &Proc) -> Result<()> {
        let etc = self.etc.clone();
        let said = |e| Failure::os(format!("lock {}", etc.path(name)), e);
        let (lock, own) = (format!("{name}.lock"), format!("{name}.{}", std::process::id()));
        let number = format!("{}\0", std::process::id());
        let signals = mind::ending().map_err(said)?;
        let file = etc.at(&own, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC, 0o600).map_err(said)?;
        let mut file = File::from(file);
        let written = file.write_all(number.as_bytes()).and_then(|()| file.sync_data()).map_err(errno);
        let try_once = || linkat(&etc.dir, own.as_str(), &etc.dir, lock.as_str(), AtFlags::empty());
        let outcome = written.and_then(|()| {
            loop {
                match try_once() {
                    Err(Errno::EEXIST) => {}
                    other => return other,
                }
                if let Some(pid) = stale(&etc, &lock) {
                    // Safe only because .pwd.lock is ours: two stealers would race.
                    etc.remove(&lock)?;
                    self.cleared.push(format!("{} was left by process {pid}, which is gone", etc.path(&lock)));
                } else if Instant::now() >= end || (lock_pid(&etc, &lock).is_none() && etc.stat(&lock).is_ok()) {
                    return Err(Errno::EEXIST);
                } else if mind::ready_within(signals.as_fd(), PAUSE)? {
                    return Err(Errno::EINTR);
                }
            }
        });
        let _ = etc.remove(&own);
        outcome.map_err(|e| said(e).because(locker(&etc, &lock, proc)))?;
        self.links.push(lock);
        Ok(())
    }

    /// Removes what killed runs have left: the temporary file, whose name nobody
    /// else uses, and the half of a lock that names a process by its own name.
    fn sweep(&mut self, name: &str) {
        let is_left = |left: &str| {
            let end = left.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            left == temporary(name) || end.and_then(|end| process(end.as_bytes())).is_some_and(is_gone)
        };
        for left in self.etc.names().into_iter().filter(|left| is_left(left)) {
            if self.etc.remove(&left).is_ok() {
                self.cleared.push(format!("{} was left by a run that was killed", self.etc.path(&left)));
            }
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        for lock in &self.links {
            let _ = self.etc.remove(lock);
        }
        let _ = self.mask.thread_set_mask();
    }
}

fn lock_passwords(etc: &Etc, end: Instant, proc: &Proc, again: &str) -> Result<OwnedFd> {
    let name = ".pwd.lock";
    let said = |e| {
        let root = proc.own().uid[1] == 0;
        let because = (e == Errno::EACCES && !root).then(|| Because::new("only root can change who has which ids"));
        Failure::os(format!("lock {}", etc.path(name)), e).because(because.map(|b| b.remedy(again.to_owned())))
    };
    let fd = etc.at(name, OFlag::O_WRONLY | OFlag::O_CREAT, 0o600).map_err(said)?;
    // lckpwdf(3) takes a POSIX record lock; one of an open file description
    // excludes it, flock(2) would not.
    while let Err(e) = fcntl(&fd, FcntlArg::F_OFD_SETLK(&whole_file())) {
        if e != Errno::EAGAIN && e != Errno::EACCES {
            return Err(said(e));
        }
        if Instant::now() >= end {
            return Err(said(Errno::EAGAIN).because(holder_of(&fd, proc)));
        }
        std::thread::sleep(Duration::from_millis(PAUSE.into()));
    }
    Ok(fd)
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

fn holder_of(fd: &OwnedFd, proc: &Proc) -> Option<Because> {
    let mut lock = whole_file();
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    (lock.l_pid > 0)
        .then(|| Because::new(format!("process {} ({}) has it", lock.l_pid, proc.name(&lock.l_pid.to_string()))))
}

/// The process that a lock file names.
pub fn lock_pid(etc: &Etc, lock: &str) -> Option<i32> {
    let bytes = read_all(etc.at(lock, OFlag::O_RDONLY, 0).ok()?, 4096).ok()?;
    process(bytes.strip_suffix(b"\0").unwrap_or(&bytes))
}

fn process(digits: &[u8]) -> Option<i32> {
    crate::id::number(digits).and_then(|number| i32::try_from(number).ok()).filter(|pid| *pid > 0)
}

/// The process that left a lock, if that does not exist any more. A lock that
/// names none is an administrator's to judge, as for shadow.
pub fn stale(etc: &Etc, lock: &str) -> Option<i32> {
    lock_pid(etc, lock).filter(|pid| is_gone(*pid))
}

/// Whether there is no such process: /proc may hide one that there is (hidepid).
fn is_gone(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

fn locker(etc: &Etc, lock: &str, proc: &Proc) -> Option<Because> {
    let path = etc.path(lock);
    let Some(pid) = lock_pid(etc, lock) else {
        etc.stat(lock).ok()?;
        let because = Because::new(format!("{path} names no process, so nobody can tell whether it is held"));
        return Some(because.remedy(format!("sudo rm {path}")));
    };
    let name = proc.status(&pid.to_string())?.name;
    Some(Because::new(format!("process {pid} ({name}) holds {path}")))
}

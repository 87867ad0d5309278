//! The administrator's files that several programs change: /etc, or the same
//! directory of another tree. Locked by the protocol of shadow, read, and
//! replaced whole: subuid(5), lckpwdf(3), rename(2).
//!
//! The directory is opened once; whatever happens in it happens through that
//! descriptor, and no link in it is followed. Other files of the tree are read
//! through its root.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, open, openat, renameat};
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Pid, Uid, UnlinkatFlags, fchown, linkat, unlinkat};

use crate::fail::{Because, Errno, Failure, Result};
use crate::proc::{Proc, read_all};
use crate::{mind, sys};

/// A file as it was when it was opened.
pub struct Original {
    /// The open file.
    pub file: File,
    state: State,
}

/// What changes whenever a file does: device, inode, size, time.
type State = (u64, u64, i64, i64, i64);

fn state(stat: &FileStat) -> State {
    (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
}

/// An open directory of administrator's files.
pub struct Etc {
    dir: OwnedFd,
    /// The tree that it is of; None: this machine's.
    root: Option<OwnedFd>,
    shown: PathBuf,
}

type Os<T> = std::result::Result<T, Errno>;

impl Etc {
    /// Opens /etc, or `etc` of the tree at `root` without leaving that.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(root: Option<&Path>) -> Result<Etc> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let shown = root.unwrap_or(Path::new("/")).join("etc");
        let said = |e| Failure::os(format!("open {}", shown.display()), e);
        let root = root.map(|root| open(root, flags | OFlag::O_PATH, Mode::empty())).transpose().map_err(said)?;
        let dir = match &root {
            None => open("/etc", flags, Mode::empty()),
            Some(root) => sys::open_in_root(root.as_fd(), c"etc", flags.bits(), 0),
        };
        Ok(Etc { dir: dir.map_err(said)?, root, shown })
    }

    /// The path of the file `name` in it, for messages.
    pub fn path(&self, name: &str) -> String {
        crate::word::quote(self.shown.join(name))
    }

    fn at(&self, name: &str, flags: OFlag, mode: u32) -> Os<OwnedFd> {
        let safe = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        openat(&self.dir, name, flags | safe, Mode::from_bits_truncate(mode))
    }

    /// What stat(2) says of the file `name`, not following a link.
    ///
    /// # Errors
    /// ENOENT.
    pub fn stat(&self, name: &str) -> Os<FileStat> {
        fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Opens the file `name` for reading. None: it is missing.
    ///
    /// # Errors
    /// ELOOP: it is a symbolic link.
    pub fn file(&self, name: &str) -> Result<Option<Rc<Original>>> {
        let opened = self.at(name, OFlag::O_RDONLY, 0).and_then(|fd| Ok((state(&fstat(&fd)?), fd)));
        match opened {
            Ok((state, fd)) => Ok(Some(Rc::new(Original { file: File::from(fd), state }))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(Failure::os(format!("read {}", self.path(name)), e).because(self.linked(name, e))),
        }
    }

    fn linked(&self, name: &str, errno: Errno) -> Option<Because> {
        let is_link = self.stat(name).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFLNK);
        (is_link && errno == Errno::ELOOP).then(|| {
            Because::new(format!("{} is a symbolic link, which shadow does not follow either", self.path(name)))
        })
    }

    /// The bytes of the file `name`, which others may replace by a link: passwd,
    /// group, login.defs, nsswitch.conf. None of them: it is missing.
    ///
    /// # Errors
    /// Those of open(2) and read(2); it is no regular file, or larger than 256
    /// MiB.
    pub fn text(&self, name: &str) -> Result<Vec<u8>> {
        let said = |e| Failure::os(format!("read {}", self.path(name)), e);
        let open = |flags: OFlag| match &self.root {
            None => openat(&self.dir, name, flags | OFlag::O_CLOEXEC, Mode::empty()),
            Some(root) => {
                let path = CString::new(format!("etc/{name}")).map_err(|_| Errno::EINVAL)?;
                sys::open_in_root(root.as_fd(), &path, flags.bits(), 0)
            }
        };
        // Looked at before it is opened: a device might do anything.
        let place = match open(OFlag::O_PATH) {
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            place => place.map_err(said)?,
        };
        if fstat(&place).map_err(said)?.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Failure::refused(format!("read {}: it is no regular file", self.path(name))));
        }
        open(OFlag::O_RDONLY | OFlag::O_NONBLOCK).and_then(|fd| read_all(fd, 1 << 28)).map_err(said)
    }

    /// The names of all files in it.
    pub fn names(&self) -> Vec<String> {
        let opened = openat(&self.dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let Ok(dir) = opened.and_then(nix::dir::Dir::from_fd) else { return Vec::new() };
        let mut names: Vec<String> = dir
            .into_iter()
            .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort_unstable();
        names
    }

    fn remove(&self, name: &str) -> Os<()> {
        unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)
    }
}

// ---- the locks ----

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
                } else if mind::ready_within(mind::ending(proc)?.as_fd(), PAUSE)? {
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

// ---- replacing a file ----

/// The name of the temporary file for `name`.
pub fn temporary(name: &str) -> String {
    format!("{name}.nskit-new")
}

/// A change of one place of a file: what stands there, in bytes from `at` on,
/// and what is to stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The place of the first byte, from 0.
    pub at: u64,
    /// The bytes that are there.
    pub old: Vec<u8>,
    /// Those to be there.
    pub new: Vec<u8>,
}

/// New contents for one file, written beside it.
pub struct Prepared {
    etc: Rc<Etc>,
    name: String,
    source: Option<Rc<Original>>,
    new: File,
}

/// Writes the file `name` anew beside itself, with its owner and mode: what
/// `source` (the file as it was read; None: there was none) has, with `edits`,
/// which are in ascending order. The disk begins with it, while the next file
/// is written.
///
/// # Errors
/// Those of open(2) and write(2): ENOSPC, EROFS, EACCES.
pub fn prepare(etc: &Rc<Etc>, name: &str, source: Option<Rc<Original>>, edits: &[Edit]) -> Os<Prepared> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let new = File::from(etc.at(&temporary(name), flags, 0o600)?);
    // From here on it is removed again by whatever fails.
    let mut prepared = Prepared { etc: etc.clone(), name: name.to_owned(), source: source.clone(), new };
    let new = &prepared.new;
    let mode = match &source {
        Some(old) => {
            let (old, made) = (fstat(&old.file)?, fstat(new)?);
            if (old.st_uid, old.st_gid) != (made.st_uid, made.st_gid) {
                fchown(new, Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)))?;
            }
            // shadow takes these bits and drops all others.
            old.st_mode & 0o664
        }
        None => 0o644,
    };
    fchmod(new, Mode::from_bits_truncate(mode))?;
    copy(source.as_ref().map(|old| &old.file), edits, &mut prepared.new)?;
    sys::begin_writing(prepared.new.as_fd());
    Ok(prepared)
}

fn copy(source: Option<&File>, edits: &[Edit], new: &mut File) -> Os<()> {
    let Some(mut old) = source else {
        return edits.iter().try_for_each(|edit| new.write_all(&edit.new)).map_err(errno);
    };
    old.seek(SeekFrom::Start(0)).map_err(errno)?;
    let mut at = 0;
    for edit in edits {
        let before = edit.at.checked_sub(at).ok_or(Errno::EINVAL)?;
        // Copied inside the kernel where it can (copy_file_range(2)).
        io::copy(&mut old.take(before), new).map_err(errno)?;
        at = edit.at + edit.old.len() as u64;
        old.seek(SeekFrom::Start(at)).map_err(errno)?;
        new.write_all(&edit.new).map_err(errno)?;
    }
    io::copy(&mut old, new).map(drop).map_err(errno)
}

/// The errno in an error of std's; EIO for one that it made up itself.
fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Prepared {
    /// Makes the new contents safe on the disk.
    ///
    /// # Errors
    /// Those of fsync(2), which may be late ones of write(2): EIO, EDQUOT.
    pub fn sync(&self) -> Os<()> {
        self.new.sync_all().map_err(errno)
    }

    /// The path at which they stand until the rename.
    pub fn path(&self) -> String {
        self.etc.path(&temporary(&self.name))
    }

    /// Whether the file is still as it was read: an editor takes no lock.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn is_current(&self) -> Os<bool> {
        let read = self.source.as_ref().map(|source| source.state);
        match self.etc.stat(&self.name) {
            Ok(there) => Ok(read == Some(state(&there))),
            Err(Errno::ENOENT) => Ok(read.is_none()),
            Err(e) => Err(e),
        }
    }

    /// Puts the new contents in place of the old, at once. The old are kept
    /// beside them until this is dropped, for `put_back`.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn replace(&self) -> Os<()> {
        match self.exchange() {
            // Nothing to exchange it with, or not on this file system.
            Err(Errno::ENOENT | Errno::EINVAL) => {
                renameat(&self.etc.dir, temporary(&self.name).as_str(), &self.etc.dir, self.name.as_str())
            }
            done => done,
        }
    }

    /// Undoes `replace`: the file is as it was, or there is none again.
    ///
    /// # Errors
    /// Those of rename(2) and unlink(2).
    pub fn put_back(&self) -> Os<()> {
        if self.source.is_some() { self.exchange() } else { self.etc.remove(&self.name) }
    }

    fn exchange(&self) -> Os<()> {
        let name = |name: String| CString::new(name).map_err(|_| Errno::EINVAL);
        sys::exchange(self.etc.dir.as_fd(), &name(temporary(&self.name))?, &name(self.name.clone())?)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // What is new there, or what was old.
        let _ = self.etc.remove(&temporary(&self.name));
    }
}

impl Etc {
    /// Makes renames in it safe against a loss of power.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self) -> Os<()> {
        nix::unistd::fsync(&self.dir)
    }
}

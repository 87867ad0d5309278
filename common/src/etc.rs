//! The administrator's files that several programs change: /etc, or the same
//! directory of another tree. Locked (in a room of its own), read, and replaced
//! whole: subuid(5), rename(2).
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

use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use crate::fail::{Because, Errno, Failure, Result, errno};
use crate::path::not_opened;
use crate::proc::read_all;
use crate::sys;

pub mod lock;

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
        let said = |e| not_opened(shown.as_os_str(), e);
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

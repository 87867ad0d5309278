//! Paths: what one leads to while a tool plans, and why one could not be
//! opened: which component of it, and what is wrong with that.
//! path_resolution(7).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::geteuid;

use crate::fail::{Because, Errno, Failure, Result};
use crate::id::Kind;
use crate::proc::Proc;
use crate::sys;
use crate::word::{c, quote};

/// Why no descriptor was to be had (EMFILE): as many are open as this process
/// may have, but for those that have just been closed again.
pub fn used_up(errno: Errno) -> Option<Because> {
    const CLOSED_AGAIN: u64 = 16;
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok()?;
    let open = fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
    let text = format!("no more than {soft} descriptors may be open (ulimit -n)");
    (errno == Errno::EMFILE && soft <= open + CLOSED_AGAIN)
        .then(|| Because::new(text).remedy_if((hard >= soft + 64).then(|| format!("ulimit -Sn {}", soft + 64))))
}

/// A directory or file that was looked at while planning.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its path as typed.
    pub path: OsString,
    /// In whose root directory, if not in ours.
    of: Option<String>,
    /// What is there, opened with O_PATH.
    fd: Rc<OwnedFd>,
    /// Whether it can be had by that descriptor alone: a tree that is attached
    /// nowhere.
    pub is_tree: bool,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Device and inode.
    same: (u64, u64),
}

impl Place {
    /// Looks at `path`.
    ///
    /// # Errors
    /// ENOENT, EACCES and the like, with the component that is to blame.
    pub fn at(path: &OsStr) -> Result<Place> {
        let opened = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        opened.and_then(|fd| Place::new(path, None, fd)).map_err(|e| not_opened(path, e))
    }

    /// Looks at `path` below `root`, which stands for `/`: no symbolic link and
    /// no `..` leads out of it. Plans say that it is in `of`.
    ///
    /// # Errors
    /// As `at`; the component is looked for in `root` too.
    pub fn within(root: &OwnedFd, path: &OsStr, of: &str) -> Result<Place> {
        let look =
            |path: &OsStr| sys::open_in_root(root.as_fd(), &c(path).map_err(|_| Errno::EINVAL)?, libc::O_PATH, 0);
        let name = format!("{} in {of}", quote(path));
        look(path).and_then(|fd| Place::new(path, Some(of.to_owned()), fd)).map_err(|errno| {
            let missing = Path::new(path)
                .ancestors()
                .filter(|p| !p.as_os_str().is_empty())
                .filter(|p| look(p.as_os_str()).err() == Some(Errno::ENOENT))
                .last();
            let because = missing
                .filter(|_| errno == Errno::ENOENT)
                .map(|p| Because::new(format!("there is no {} in the root directory of {of}", quote(p))));
            Failure::os(format!("open {name}"), errno).because(because)
        })
    }

    fn new(path: &OsStr, of: Option<String>, fd: OwnedFd) -> std::result::Result<Place, Errno> {
        let stat = fstat(&fd)?;
        let is_directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        let same = (stat.st_dev, stat.st_ino);
        Ok(Place { path: path.to_owned(), of, fd: Rc::new(fd), is_tree: false, is_directory, same })
    }

    /// What a descriptor called `name` is open for, by its path: in another mount
    /// namespace than that of the descriptor only the path leads there. What it
    /// leads to has to look the same through both. A tree that is attached
    /// nowhere has no path.
    ///
    /// # Errors
    /// Those of fstat(2); a refusal where it is in no directory.
    pub fn held(name: &OsStr, fd: OwnedFd, proc: &Proc) -> Result<Place> {
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
        let failed = |e| Failure::os(format!("fstat {}", quote(name)), e);
        let held = Place::new(name, None, fd).map_err(failed)?;
        if !path.is_absolute() || fstat(held.fd()).map_err(failed)?.st_nlink == 0 {
            return Err(Failure::refused(format!("{}: it is in no directory", quote(name))));
        }
        let mount = sys::mount_id(held.fd()).map_err(failed)?;
        let here = || proc.mounts("self").iter().any(|m| m.id == mount);
        // The root of a tree is called so, too.
        let may_be_tree = path == Path::new("/") && sys::is_mount_root(held.fd()) == Ok(true);
        let seen = |place: &Place| {
            let stat = fstat(place.fd()).ok()?;
            Some((stat.st_uid, stat.st_gid, fstatvfs(place.fd()).ok()?.flags()))
        };
        let same = |at: &Place| at.is_same(&held) && seen(at) == seen(&held);
        let found = Place::at(path.as_os_str()).ok().filter(|at| same(at) && (!may_be_tree || here()));
        Ok(found.unwrap_or(Place { is_tree: true, ..held }))
    }

    /// What plans and failures call it.
    pub fn name(&self) -> String {
        let path = quote(&self.path);
        self.of.as_ref().map_or_else(|| path.clone(), |of| format!("{path} in {of}"))
    }

    /// What is there, shared.
    pub fn descriptor(&self) -> Rc<OwnedFd> {
        self.fd.clone()
    }

    /// Lends what is there.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether set-id bits have no effect there.
    pub fn is_nosuid(&self) -> bool {
        fstatvfs(self.fd()).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOSUID))
    }

    /// Its path without symbolic links, as mountinfo has it; as typed where
    /// that cannot be found out.
    pub fn real(&self) -> PathBuf {
        fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone().into())
    }

    /// The same place looked at once more: in a mount namespace made meanwhile
    /// it is on another mount.
    ///
    /// # Errors
    /// Those of open(2); a refusal where it is another by now.
    pub fn again(&self) -> Result<Place> {
        if self.of.is_some() || self.is_tree {
            return Ok(self.clone());
        }
        let place = Place::at(&self.path)?;
        self.check(place.fd())?;
        Ok(place)
    }

    /// The same as a process sees it whose root directory is `root`.
    ///
    /// # Errors
    /// As `again`.
    pub fn again_from(&self, root: &OwnedFd) -> Result<Place> {
        if self.of.is_some() || self.is_tree {
            return Ok(self.clone());
        }
        let place = Place::within(root, self.real().as_os_str(), "its root")?;
        self.check(place.fd())?;
        Ok(place)
    }

    /// Whether this is the same directory or file as `other`.
    pub fn is_same(&self, other: &Place) -> bool {
        self.same == other.same
    }

    /// Whether `fd` is what was looked at.
    ///
    /// # Errors
    /// Those of fstat(2); a refusal where it is another by now.
    pub fn check(&self, fd: impl AsFd) -> Result<()> {
        let said = format!("open {}", quote(&self.path));
        let stat = fstat(fd).map_err(|e| Failure::os(said.as_str(), e))?;
        if (stat.st_dev, stat.st_ino) == self.same {
            return Ok(());
        }
        Err(Failure::refused(format!("{said}: it is another file by now")))
    }
}

/// The terminal that standard input, output or error is, by the name that it
/// has here.
pub fn terminal() -> Option<Place> {
    [0, 1, 2].into_iter().find_map(|n| {
        let name = nix::unistd::ttyname(sys::lend(n)).ok()?;
        Place::at(name.as_os_str()).ok()
    })
}

/// A path that could not be opened, with its reason.
pub fn not_opened(path: &OsStr, errno: Errno) -> Failure {
    let because = Proc::open().ok().and_then(|proc| reason(path, errno, &proc));
    Failure::os(format!("open {}", quote(path)), errno).because(because)
}

/// The first component of `path` that explains `errno` (ENOENT, ENOTDIR or
/// EACCES); None where everything is as it should be.
pub fn reason(path: &OsStr, errno: Errno, proc: &Proc) -> Option<Because> {
    let mut parent = PathBuf::new();
    for component in Path::new(path).components() {
        let name = match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {
                parent.push(component);
                continue;
            }
            Component::ParentDir => OsString::from(".."),
            Component::Normal(name) => name.to_owned(),
        };
        let whole = parent.join(&name);
        let text = match fs::symlink_metadata(&whole) {
            Err(e) if e.kind() == ErrorKind::NotFound && errno == Errno::ENOENT => {
                format!("{} has no entry {}", said(&parent), quote(&name))
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied && errno == Errno::EACCES => {
                return closed(&parent, proc);
            }
            Err(_) => return None,
            Ok(entry) => match wrong(&whole, &entry, errno) {
                Some(text) => text,
                None => {
                    parent = whole;
                    continue;
                }
            },
        };
        return Some(Because::new(text));
    }
    None
}

fn said(directory: &Path) -> String {
    if directory.as_os_str().is_empty() { "the working directory".to_owned() } else { quote(directory) }
}

/// A directory that may not be searched.
fn closed(directory: &Path, proc: &Proc) -> Option<Because> {
    // Even `.` is looked for in it.
    let (place, stat) = if directory.as_os_str().is_empty() {
        (Path::new("."), proc.stat("self/cwd")?)
    } else {
        (directory, nix::sys::stat::stat(directory).ok()?)
    };
    let mapped = proc.map("self", Kind::Uid)?.iter().any(|e| e.inside().has(stat.st_uid));
    let owner = if mapped { "" } else { "; its owner is not mapped in this user namespace" };
    let text = format!("{} (mode {:03o}) may not be searched{owner}", said(directory), stat.st_mode & 0o7777);
    Some(Because::new(text).remedy(searchable(place, mapped.then_some(stat.st_uid))))
}

/// The command that lets everybody search a directory, or its owner if that is us.
pub fn searchable(directory: &Path, owner: Option<u32>) -> String {
    let (sudo, who) = if owner == Some(geteuid().as_raw()) { ("", "u") } else { ("sudo ", "a") };
    format!("{sudo}chmod {who}+x {}", quote(directory))
}

/// What is wrong with an entry that is there.
fn wrong(path: &Path, entry: &fs::Metadata, errno: Errno) -> Option<String> {
    let shown = quote(path);
    if entry.is_symlink() {
        let to = quote(fs::read_link(path).ok()?);
        return match fs::metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound && errno == Errno::ENOENT => {
                Some(format!("{shown} is a symbolic link to {to}, which is not there"))
            }
            Ok(end) if !end.is_dir() && errno == Errno::ENOTDIR => {
                Some(format!("{shown} is a symbolic link to {to}, {}", kind(&end)))
            }
            Ok(_) | Err(_) => None,
        };
    }
    (!entry.is_dir() && errno == Errno::ENOTDIR).then(|| format!("{shown} is {}", kind(entry)))
}

fn kind(file: &fs::Metadata) -> &'static str {
    let kind = file.file_type();
    if kind.is_file() {
        "a regular file"
    } else if kind.is_fifo() {
        "a fifo"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

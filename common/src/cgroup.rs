//! A cgroup to be born into: cgroups(7), Documentation/admin-guide/cgroup-v2.rst.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{AccessFlags, access};

use crate::fail::{Because, Errno, Failure, Result};
use crate::path::not_opened;
use crate::proc::Proc;
use crate::sys;
use crate::word::quote;

/// A directory of cgroup2, looked at while planning.
pub struct Cgroup {
    path: OsString,
    fd: OwnedFd,
}

impl Cgroup {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// Those of open(2); a refusal where it is no cgroup.
    pub fn at(path: &OsStr) -> Result<Cgroup> {
        const CGROUP2_SUPER_MAGIC: FsType = FsType(0x6367_7270);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| not_opened(path, e))?;
        if !fstatfs(&fd).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            let because = Because::new("it is not on a cgroup2 file system");
            return Err(Failure::refused(format!("use cgroup {}", quote(path))).because(Some(because)));
        }
        Ok(Cgroup { path: path.to_owned(), fd })
    }

    /// Its path, as a shell reads it.
    pub fn name(&self) -> String {
        quote(&self.path)
    }

    /// Its directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Why nobody could be born into it.
    pub fn refused(&self, errno: Errno) -> Option<Because> {
        let file = |name: &str| Path::new(&self.path).join(name);
        let text = |name: &str| std::fs::read_to_string(file(name)).ok();
        let closed = |dir: &Path| access(&dir.join("cgroup.procs"), AccessFlags::W_OK).is_err();
        if errno == Errno::EACCES && closed(Path::new(&self.path)) {
            let because = Because::new(format!("{}/cgroup.procs is not ours to write", self.name()));
            return Some(because.remedy(format!("sudo chown \"$(id -u)\" {0} {0}/cgroup.procs", self.name())));
        }
        if errno == Errno::EACCES {
            let above = self.common_with_ours().filter(|dir| closed(dir))?;
            let above = quote(above);
            let rule = "whoever comes from one cgroup into another needs that of the first that is above both";
            let because = Because::new(format!("{above}/cgroup.procs is not ours to write: {rule}"));
            return Some(because.remedy(format!("echo $$ | sudo tee {}/cgroup.procs", self.name())));
        }
        if errno == Errno::EBUSY {
            let given = text("cgroup.subtree_control").filter(|t| !t.trim().is_empty())?;
            let list = given.trim().to_owned();
            let because =
                Because::new(format!("it gives controllers to its children ({list}), and has no processes then"));
            return Some(because.remedy(format!("mkdir {}/leaf", self.name())));
        }
        None
    }

    /// The nearest cgroup that is above this one and above our own, or is it.
    fn common_with_ours(&self) -> Option<PathBuf> {
        let dir = std::fs::canonicalize(&self.path).ok()?;
        let is_root = |at: &&Path| Cgroup::at(at.as_os_str()).is_ok_and(|c| sys::is_mount_root(c.fd()));
        let top = dir.ancestors().find(is_root)?;
        let own = Proc::open().ok()?.text("self/cgroup")?;
        let own = top.join(own.lines().find_map(|line| line.strip_prefix("0::/"))?);
        dir.ancestors().find(|at| own.starts_with(at)).map(Path::to_owned)
    }
}

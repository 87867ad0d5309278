//! A cgroup to be born into: one that is there, or a new one.
//! cgroups(7), Documentation/admin-guide/cgroup-v2.rst.
//!
//! A new one stands beside our own where that may be: then both have processes,
//! and what is above them may give controllers to its children. Otherwise it
//! stands below. It never stands above the root of our cgroup namespace: that
//! is where systemd and others (nsdelegate) let nobody pass.

use std::cell::OnceCell;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{AccessFlags, access, faccessat};

use crate::fail::{Because, Errno, Failure, Result};
use crate::ns::{INITIAL_CGROUP, Kind};
use crate::path::not_opened;
use crate::proc::{Mount, Proc, read_all};
use crate::sys;
use crate::word::quote;

/// A directory of cgroup2, looked at while planning.
struct Dir {
    path: PathBuf,
    fd: OwnedFd,
}

/// A cgroup that a child is to be born into.
pub struct Cgroup {
    /// Its directory, or that in which it is to be made.
    dir: Dir,
    new: Option<New>,
}

struct New {
    name: String,
    made: OnceCell<OwnedFd>,
}

/// What a new one is called, before the number of the process that makes it.
pub const NAME: &str = "ns-new-";

/// How open(2) is asked for a directory whose entries are wanted.
pub const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Dir {
    fn new(path: PathBuf, fd: OwnedFd) -> Option<Dir> {
        Dir::of(path, fd).ok()?
    }

    /// None: it is no cgroup.
    fn of(path: PathBuf, fd: OwnedFd) -> Result<Option<Dir>> {
        const CGROUP2_SUPER_MAGIC: FsType = FsType(0x6367_7270);
        let fs = fstatfs(&fd).map_err(|e| Failure::os(format!("statfs {}", quote(&path)), e))?;
        Ok((fs.filesystem_type() == CGROUP2_SUPER_MAGIC).then_some(Dir { path, fd }))
    }

    fn name(&self) -> String {
        quote(self.path.as_os_str())
    }

    /// What its file `name` says.
    fn text(&self, name: &str) -> Option<String> {
        let file = openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        Some(String::from_utf8_lossy(&read_all(file, usize::MAX).ok()?).into_owned())
    }

    /// Whether we may write its file `name`, or make directories (`.`).
    fn is_ours(&self, name: &str) -> bool {
        faccessat(&self.fd, name, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
    }

    /// The cgroup above it.
    fn above(&self) -> Option<Dir> {
        if sys::is_mount_root(self.fd.as_fd()) == Ok(true) {
            return None;
        }
        let fd = openat(&self.fd, "..", DIRECTORY, Mode::empty()).ok()?;
        Dir::new(self.path.parent()?.to_owned(), fd)
    }
}

impl Cgroup {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// Those of open(2); a refusal where it is no cgroup.
    pub fn at(path: &OsStr) -> Result<Cgroup> {
        let fd = open(path, DIRECTORY, Mode::empty()).map_err(|e| not_opened(path, e))?;
        let Some(dir) = Dir::of(path.into(), fd)? else {
            let because = Because::new("it is not on a cgroup2 file system");
            return Err(Failure::refused(format!("use cgroup {}", quote(path))).because(Some(because)));
        };
        Ok(Cgroup { dir, new: None })
    }

    /// One that is yet to be made, beside our own or below.
    ///
    /// # Errors
    /// A refusal where our own cannot be seen.
    pub fn fresh(proc: &Proc) -> Result<Cgroup> {
        let (own, is_top) = own(proc)?;
        // systemd's mark on what it has handed over: all of ours is in there.
        let delegated = sys::has_attribute(own.fd.as_fd(), c"user.delegate");
        let above = if is_top || delegated { None } else { own.above() };
        let dir = above.filter(|dir| dir.is_ours(".") && dir.is_ours("cgroup.procs")).unwrap_or(own);
        let plain = format!("{NAME}{}", std::process::id());
        let is_free = |name: &String| fstatat(&dir.fd, name.as_str(), AtFlags::empty()) == Err(Errno::ENOENT);
        // Others may have been left behind by somebody who was killed.
        let names = (2..100).map(|n| format!("{plain}-{n}"));
        let name = std::iter::once(plain.clone()).chain(names).find(is_free).unwrap_or(plain);
        Ok(Cgroup { dir, new: Some(New { name, made: OnceCell::new() }) })
    }

    /// Its path, as a shell reads it.
    pub fn name(&self) -> String {
        let path = self.new.as_ref().map(|new| self.dir.path.join(&new.name));
        quote(path.as_deref().unwrap_or(&self.dir.path).as_os_str())
    }

    /// Its directory.
    ///
    /// # Errors
    /// ENOENT: it has not been made yet, which is a mistake of the plan.
    pub fn fd(&self) -> std::result::Result<BorrowedFd<'_>, Errno> {
        let Some(new) = &self.new else { return Ok(self.dir.fd.as_fd()) };
        new.made.get().map(AsFd::as_fd).ok_or(Errno::ENOENT)
    }

    /// Whether what is in it, and who is born into it, is stopped.
    pub fn is_frozen(&self) -> bool {
        self.dir.text("cgroup.events").is_some_and(|text| text.lines().any(|line| line == "frozen 1"))
    }

    /// Where a new one is made, by what name, and where its directory is kept.
    pub fn place(&self) -> Option<(BorrowedFd<'_>, CString, &OnceCell<OwnedFd>)> {
        let new = self.new.as_ref()?;
        Some((self.dir.fd.as_fd(), CString::new(new.name.as_str()).ok()?, &new.made))
    }

    /// Why it could not be made.
    pub fn not_made(&self, errno: Errno, proc: &Proc) -> Option<Because> {
        let dir = self.dir.name();
        if errno == Errno::EACCES && !self.dir.is_ours(".") {
            let because =
                Because::new(format!("{dir} is not ours to write: the cgroup that we are in is not delegated"));
            return Some(because.remedy_if(delegation(proc)));
        }
        if errno == Errno::EAGAIN {
            return self.full();
        }
        None
    }

    /// Which limit on the number of cgroups has been reached, here or above.
    fn full(&self) -> Option<Because> {
        let mut at = Some(Dir { path: self.dir.path.clone(), fd: self.dir.fd.try_clone().ok()? });
        while let Some(dir) = at {
            let stat = dir.text("cgroup.stat").unwrap_or_default();
            let used = stat.lines().find_map(|line| line.strip_prefix("nr_descendants "))?.parse::<u64>().ok()?;
            let file = dir.path.join("cgroup.max.descendants");
            let limit = dir.text("cgroup.max.descendants").and_then(|t| t.trim().parse::<u64>().ok());
            if let Some(limit) = limit.filter(|limit| *limit <= used) {
                let file = quote(file.as_os_str());
                let because = Because::new(format!("{file} is {limit}, and as many are there"));
                return Some(because.remedy(format!("echo max | sudo tee {file}")));
            }
            at = dir.above();
        }
        None
    }

    /// Why nobody could be born into it.
    pub fn refused(&self, errno: Errno, proc: &Proc) -> Option<Because> {
        let rule = "whoever comes from one cgroup into another needs that of the first that is above both";
        let not_ours = |dir: &str| Because::new(format!("{dir}/cgroup.procs is not ours to write: {rule}"));
        let name = self.name();
        if errno == Errno::EAGAIN {
            return full_at(&std::fs::canonicalize(&self.dir.path).ok()?);
        }
        if errno == Errno::EOPNOTSUPP {
            let at = Dir::new(PathBuf::new(), self.fd().ok()?.try_clone_to_owned().ok()?)?;
            let kind = at.text("cgroup.type")?.trim().to_owned();
            let because =
                Because::new(format!("it is of type {kind}, as one above it is threaded: only threads may enter"));
            let cure = self.new.as_ref().and_then(|_| delegation(proc));
            return (kind == "domain invalid" || kind == "threaded").then(|| because.remedy_if(cure));
        }
        if self.new.is_some() {
            let closed = errno == Errno::EACCES && !self.dir.is_ours("cgroup.procs");
            let above = self.dir.name();
            let cure = format!("sudo chown \"$(id -u)\" {above}/cgroup.procs");
            return closed.then(|| not_ours(&above).remedy(cure));
        }
        if errno == Errno::EACCES && !self.dir.is_ours("cgroup.procs") {
            let because = Because::new(format!("{name}/cgroup.procs is not ours to write"));
            return Some(because.remedy(format!("sudo chown \"$(id -u)\" {name} {name}/cgroup.procs")));
        }
        if errno == Errno::EACCES {
            let closed = |dir: &Path| access(&dir.join("cgroup.procs"), AccessFlags::W_OK).is_err();
            let above = self.common_with_ours(proc).filter(|dir| closed(dir))?;
            return Some(not_ours(&quote(above)).remedy(format!("echo $$ | sudo tee {name}/cgroup.procs")));
        }
        if errno == Errno::EBUSY {
            let given = self.dir.text("cgroup.subtree_control").filter(|t| !t.trim().is_empty())?;
            let list = given.trim().to_owned();
            let because =
                Because::new(format!("it gives controllers to its children ({list}), and has no processes then"));
            return Some(because.remedy(format!("mkdir {name}/leaf")));
        }
        None
    }

    /// The nearest cgroup that is above this one and above our own, or is it.
    fn common_with_ours(&self, proc: &Proc) -> Option<PathBuf> {
        let dir = std::fs::canonicalize(&self.dir.path).ok()?;
        let is_root =
            |at: &&Path| Cgroup::at(at.as_os_str()).is_ok_and(|c| sys::is_mount_root(c.dir.fd.as_fd()) == Ok(true));
        let top = dir.ancestors().find(is_root)?;
        let own = top.join(proc.cgroup("self")?.trim_start_matches('/'));
        dir.ancestors().find(|at| own.starts_with(at)).map(Path::to_owned)
    }
}

/// Why nothing more may be born in the cgroup of `who` (EAGAIN): it, or one
/// above it, has as many processes as it may.
pub fn full(proc: &Proc, who: &str) -> Option<Because> {
    let (text, mounts) = (proc.text(&format!("{who}/cgroup"))?, proc.mounts("self"));
    // A line for each hierarchy: its number, its controllers, the path. The one
    // with `pids` may be of version 1 still.
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let counts = |list: &str| list.split(',').any(|controller| controller == "pids");
        let is_here = |m: &&Mount| match controllers {
            "" => m.fstype == "cgroup2",
            _ => m.fstype == "cgroup" && counts(controllers) && counts(&m.super_options),
        };
        mounts.iter().filter(is_here).find_map(|m| {
            let below = path.strip_prefix(m.root.trim_end_matches('/'))?;
            full_at(&Path::new(&m.point).join(below.trim_start_matches('/')).components().collect::<PathBuf>())
        })
    })
}

fn full_at(path: &Path) -> Option<Because> {
    path.ancestors().find_map(|dir| {
        let file = dir.join("pids.max");
        let number = |file: &Path| crate::id::number(std::fs::read(file).ok()?.trim_ascii());
        let (most, now) = (number(&file)?, number(&dir.join("pids.current"))?);
        let text = format!("pids.max of cgroup {} is {most}, and as many processes and threads are in it", quote(dir));
        let sudo = if access(&file, AccessFlags::W_OK).is_ok() { "" } else { "sudo " };
        let cure = format!("echo {} | {sudo}tee {}", now + 64, quote(&file));
        (now >= most).then(|| Because::new(text).remedy(cure))
    })
}

// ---- the cgroup that we are in ----

/// Its directory, and whether it is the root of our cgroup namespace.
fn own(proc: &Proc) -> Result<(Dir, bool)> {
    let path = proc.own_cgroup()?.unwrap_or_default();
    let mounts = proc.own_mounts()?.into_iter().rev().filter(|m| m.fstype == "cgroup2").collect::<Vec<_>>();
    let is_top = path == "/";
    let (mut shown, mut failed) = (None, None);
    for mount in mounts.iter().filter(|m| !is_read_only(m)) {
        match shown_by(mount, &path) {
            Ok(dir) => shown = shown.or(dir),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    let shown = if shown.is_none() { of_our_namespace(&path, proc)? } else { shown };
    if let Some(dir) = shown {
        return Ok((dir, is_top));
    }
    if let Some(failure) = failed {
        return Err(failure);
    }
    let because = match mounts.iter().find(|m| is_read_only(m) && matches!(shown_by(m, &path), Ok(Some(_)))) {
        _ if mounts.is_empty() => Because::new("no cgroup2 file system is mounted here")
            .remedy("sudo mkdir -p /run/cgroup2 && sudo mount -t cgroup2 none /run/cgroup2"),
        Some(mount) => {
            let point = quote(&mount.point);
            let because = Because::new(format!("cgroup2 is mounted read-only on {point}"));
            because.remedy(format!("sudo mount -o remount,bind,rw {point}"))
        }
        None => Because::new(format!("no mount of cgroup2 shows the cgroup that we are in ({path})")),
    };
    Err(Failure::refused("make a cgroup").because(Some(because)))
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options.split(',').any(|o| o == "ro")
}

/// The cgroup `path` in a mount. What that shows is written as seen from the
/// root of our cgroup namespace, too; with `..` in it, names are missing.
fn shown_by(mount: &Mount, path: &str) -> Result<Option<Dir>> {
    let hidden = Path::new(&mount.root).components().any(|part| part.as_os_str() == "..");
    let below = if hidden { None } else { Path::new(path).strip_prefix(&mount.root).ok() };
    let Some(below) = below else { return Ok(None) };
    let point = Path::new(&mount.point);
    let path = if below.as_os_str().is_empty() { point.to_owned() } else { point.join(below) };
    let fd = open(&path, DIRECTORY, Mode::empty()).map_err(|e| not_opened(path.as_os_str(), e))?;
    Dir::of(path, fd)
}

/// The same by a new mount, attached nowhere, which begins at the root of our
/// cgroup namespace. Not of the initial one: there a mount sets the options of
/// the whole hierarchy anew (cgroup_get_tree()).
///
/// # Errors
/// ENOSYS: fsopen(2) or fsmount(2) is not here.
fn of_our_namespace(path: &str, proc: &Proc) -> Result<Option<Dir>> {
    if proc.ns_id("self", Kind::Cgroup).is_none_or(|id| id == INITIAL_CGROUP) {
        return Ok(None);
    }
    let made = sys::fsopen(c"cgroup2").and_then(|context| sys::fsmount(context.as_fd(), 0));
    if made.as_ref().err() == Some(&Errno::ENOSYS) {
        return Err(Failure::os("make a mount of cgroup2", Errno::ENOSYS));
    }
    let dir = |root: &OwnedFd| {
        let below = Path::new(path).strip_prefix("/").ok()?;
        let fd = openat(root, &Path::new(".").join(below), DIRECTORY, Mode::empty()).ok()?;
        Dir::new(Path::new("CGROUP").join(below), fd)
    };
    Ok(made.ok().as_ref().and_then(dir))
}

/// How to get a cgroup of one's own: from the manager of the user's session, if
/// there is one, or by root.
fn delegation(proc: &Proc) -> Option<String> {
    let manager = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("systemd/private"));
    if manager.is_some_and(|at| std::fs::metadata(at).is_ok_and(|is| is.file_type().is_socket())) {
        return Some("systemd-run --user --scope -p Delegate=yes \"$SHELL\"".to_owned());
    }
    let mount = proc.mounts("self").into_iter().rev().find(|m| m.fstype == "cgroup2")?;
    let top: OsString = Path::new(&mount.point).join("box").into();
    let top = format!("{}-$(id -u)", quote(&top));
    let files = ["", "/cgroup.procs", "/cgroup.threads", "/cgroup.subtree_control"].map(|file| format!("{top}{file}"));
    let given = files.join(" ");
    Some(format!("sudo mkdir -p {top} && sudo chown \"$(id -u)\" {given} && echo $$ | sudo tee {top}/cgroup.procs"))
}

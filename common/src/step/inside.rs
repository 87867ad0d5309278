//! What belongs into the new root, made before it is the root. fsopen(2),
//! openat2(2).
//!
//! A new file system is made by descriptors (fsopen, fsconfig, fsmount): then
//! the kernel says in words what it does not like. Every place is looked up by
//! openat2(2) with RESOLVE_IN_ROOT, made one component at a time, and mounted
//! on as a descriptor: no symbolic link of the root leads out of it, whoever
//! exchanges one meanwhile.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat, umask};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{AccessFlags, faccessat, geteuid, symlinkat, write};

use super::fs::{self, c, new_mount};
use super::mount::{ROOT, full};
use super::overlay;
use super::tree::attribute_names;
use super::{Done, Facts, Hands, Refusal, Step, TREE};
use crate::fail::{Again, Because, Errno, Failure};
use crate::path;
use crate::sys;
use crate::word::quote;

/// An effect in the new root. Paths are as seen from there; what is missing on
/// the way is made.
pub enum Effect {
    /// A new file system.
    New {
        /// As mount(8) knows it.
        fstype: String,
        /// Options with their values, "" for a flag.
        options: Vec<(String, String)>,
        /// MOUNT_ATTR_* bits.
        attributes: u64,
        /// Where.
        at: OsString,
    },
    /// Attach the tree at hand, which is a directory or a file.
    Attach {
        /// Where.
        at: OsString,
        /// Which of the two.
        directory: bool,
    },
    /// A device node of the present root, bound at /dev.
    Device(&'static str, (u64, u64)),
    /// A symbolic link, unless it is there: where it leads, where it is.
    Link(OsString, OsString),
    /// A directory, with this mode: if none is given, 755 where it is made, and
    /// the mode that it has where it is there.
    Directory(OsString, Option<u32>),
    /// A file that is not there yet, with this mode and in it.
    File(OsString, u32, Rc<Vec<u8>>),
    /// Hide what is there: behind an empty directory, or the null device.
    Mask(OsString),
    /// Let what is there only be read, with the mounts below it; with `true` it
    /// need not be there.
    ReadOnly(OsString, bool),
    /// Check that cgroups can be made in the one that is the root of the
    /// cgroup2 mounted here.
    Delegated(OsString),
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, detailing) = (effect.clone(), effect.clone());
        let (doing, asking) = (effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        step.detail(move || detailing.detail()).because(move |errno, facts| asking.because(errno, facts))
    }
}

/// How plans write a place in the new root.
fn there(at: &OsStr) -> String {
    let bytes = at.as_bytes();
    let below = bytes.iter().position(|b| *b != b'/').map_or(&bytes[..0], |n| &bytes[n..]);
    quote(OsStr::from_bytes(&[b"NEWROOT/", below].concat()))
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::New { fstype, at, .. } => format!("mount {} on {}", quote(fstype), there(at)),
            Effect::Attach { at, .. } => format!("move_mount {TREE} {}", there(at)),
            Effect::Device(name, _) => format!("bind /dev/{name} on NEWROOT/dev/{name}"),
            Effect::Link(to, at) => format!("symlink {} {}", quote(to), there(at)),
            Effect::Directory(at, _) => format!("mkdir {}", there(at)),
            Effect::File(at, ..) => format!("create {}", there(at)),
            Effect::Mask(at) => format!("mask {}", there(at)),
            Effect::ReadOnly(at, _) => format!("mount_setattr {} ro", there(at)),
            Effect::Delegated(at) => format!("access {} W_OK", there(at)),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::New { options, attributes, .. } => {
                let option =
                    |(k, v): &(String, String)| quote(if v.is_empty() { k.clone() } else { format!("{k}={v}") });
                let mut words: Vec<String> = options.iter().map(option).collect();
                words.extend(attribute_names(*attributes).map(str::to_owned));
                words.join(",")
            }
            Effect::Directory(_, mode) => mode.map(|mode| format!("mode {mode:o}")).unwrap_or_default(),
            Effect::File(_, mode, bytes) => format!("mode {mode:o}, {} bytes", bytes.len()),
            Effect::Attach { .. }
            | Effect::Device(..)
            | Effect::Link(..)
            | Effect::Mask(_)
            | Effect::ReadOnly(..)
            | Effect::Delegated(_) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::New { fstype, .. } if fstype == "proc" || fstype == "sysfs" => {
                "before the pivot: a user namespace may mount it only while another one is visible"
            }
            Effect::New { .. } => {
                "file systems that a user namespace may mount: tmpfs, devpts, proc, sysfs, mqueue, cgroup2, overlay, FUSE"
            }
            Effect::Attach { .. } => "before the pivot: what is bound can be named only while the old root is there",
            Effect::Device(..) => "a user namespace may not make device nodes; the ones outside can be bound",
            Effect::Link(..) => "programs expect it",
            Effect::Directory(..) | Effect::File(..) => "",
            Effect::Mask(_) => {
                "only for this mount namespace: one that a less privileged one copies cannot take it off"
            }
            Effect::ReadOnly(..) => "a mount over itself: what else shows the same files stays as it is",
            Effect::Delegated(_) => "systemd makes a cgroup for itself and for each unit, and dies where it cannot",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        let root = hands.get(ROOT)?;
        match self {
            Effect::New { fstype, options, attributes, at } => {
                let place = directory_in(root, at)?;
                apart(root, &place)?;
                let tree = new_mount(&c(fstype), options, *attributes)
                    .map_err(|refusal| fs::tried_here(refusal, self.act(), fstype, *attributes))?;
                Ok(sys::move_mount(tree.as_fd(), place.as_fd(), false)?)
            }
            Effect::Attach { at, directory } => {
                let place = if *directory { directory_in(root, at)? } else { file_in(root, at)? };
                apart(root, &place)?;
                if is_directory(&place)? != *directory {
                    return Err(unlike(at));
                }
                let tree = hands.get(TREE)?;
                sys::move_mount(tree, place.as_fd(), false).map_err(|e| not_attached(tree, at, e))?;
                hands.made.retain(|(name, _)| *name != TREE);
                Ok(())
            }
            Effect::Device(name, same) => bind_device(root, name, *same),
            Effect::Link(to, at) => {
                let (parent, name) = parent_in(root, at)?;
                match symlinkat(to.as_os_str(), &parent, name) {
                    // An earlier run has made it.
                    Err(Errno::EEXIST) if readlinkat(&parent, name).as_ref() == Ok(to) => Ok(()),
                    other => Ok(other?),
                }
            }
            Effect::Directory(at, mode) => {
                let place = directory_in(root, at)?;
                let Some(mode) = mode else { return Ok(()) };
                let readable = openat(&place, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
                Ok(fchmod(&readable, Mode::from_bits_truncate(*mode))?)
            }
            Effect::File(at, mode, bytes) => file_with(root, at, *mode, bytes),
            Effect::Mask(at) => mask(root, at),
            Effect::ReadOnly(at, optional) => {
                let place = match sys::open_in_root(root, &c(at), libc::O_PATH, 0) {
                    Err(Errno::ENOENT) if *optional => return Ok(()),
                    other => other.map_err(|e| not_had(root, at, e))?,
                };
                apart(root, &place)?;
                let flags = sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE | sys::AT_EMPTY_PATH;
                let tree = sys::open_tree(place.as_fd(), c"", flags)?;
                sys::mount_setattr(tree.as_fd(), true, sys::MOUNT_ATTR_RDONLY, None)?;
                Ok(sys::move_mount(tree.as_fd(), place.as_fd(), false)?)
            }
            Effect::Delegated(at) => delegated(root, at),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::New { .. } | Effect::Attach { .. } if errno == Errno::ENOSPC => full(None, facts),
            Effect::New { fstype, options, attributes, .. } => {
                let layers = || overlay::options_refused(options, errno, facts.proc).filter(|_| fstype == "overlay");
                fs::refused(fstype, options, *attributes, errno, facts).or_else(layers)
            }
            Effect::Device(name, (major, minor)) if errno == Errno::ENOENT => {
                let because = path::reason(format!("/dev/{name}").as_ref(), errno, facts.proc)?;
                Some(because.remedy(format!("sudo mknod -m 666 /dev/{name} c {major} {minor}")))
            }
            Effect::Attach { .. } | Effect::Device(..) | Effect::Mask(_) | Effect::ReadOnly(..)
                if errno == Errno::EPERM =>
            {
                facts.may_not_mount()
            }
            Effect::Attach { .. }
            | Effect::Device(..)
            | Effect::Link(..)
            | Effect::Directory(..)
            | Effect::File(..)
            | Effect::Mask(_)
            | Effect::ReadOnly(..)
            | Effect::Delegated(_) => None,
        }
    }
}

// ---- places ----

/// What is made has the mode that is asked for, whatever the caller's umask.
pub(super) fn exactly<T>(make: impl FnOnce() -> T) -> T {
    let before = umask(Mode::empty());
    let made = make();
    umask(before);
    made
}

/// A path that could not be made, with its reason if the file system is it.
fn not_made(act: &str, at: &OsStr, errno: Errno, parent: &OwnedFd, root: BorrowedFd<'_>) -> Refusal {
    let read_only = || fstatvfs(parent).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    let closed = || faccessat(parent, ".", AccessFlags::W_OK, AtFlags::AT_EACCESS).is_err();
    let text = if errno == Errno::EROFS && read_only() {
        Some("it is missing, and its parent directory can only be read".to_owned())
    } else if errno == Errno::EACCES && closed() {
        let mode = fstat(parent).map_or(0, |stat| stat.st_mode & 0o7777);
        Some(format!("it is missing, and its parent directory (mode {mode:03o}) may not be written"))
    } else {
        None
    };
    let because = text.map(Because::new);
    let because = because
        .map(|because| if fits_a_layer(parent, root) { because.again(Again::Word("", "--overlay")) } else { because });
    Failure::os(format!("{act} {}", there(at)), errno).because(because).into()
}

/// Whether a layer of the root has room there. What is mounted below it is no
/// part of that, and of other directories an overlay copies the owner, who has
/// to be mapped.
fn fits_a_layer(parent: &OwnedFd, root: BorrowedFd<'_>) -> bool {
    let ours = || fstat(parent).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
    sys::share_mount(root, parent.as_fd()) && (sys::is_mount_root(parent.as_fd()) == Ok(true) || ours())
}

fn is_directory(fd: &OwnedFd) -> std::result::Result<bool, Errno> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// A mount on the new root would be beneath what becomes `/`, unseen.
fn apart(root: BorrowedFd<'_>, place: &OwnedFd) -> Done {
    let same = sys::mount_id(root)? == sys::mount_id(place.as_fd())?;
    if same && sys::is_mount_root(place.as_fd())? {
        Err(Failure::refused("mount on NEWROOT: that is the new root itself").into())
    } else {
        Ok(())
    }
}

/// Only a directory can be mounted on a directory (mount(2)).
fn unlike(at: &OsStr) -> Refusal {
    let because = Because::new("it is a directory, and what is bound is none");
    Failure::os(format!("bind on {}", there(at)), Errno::EISDIR).because(Some(because)).into()
}

/// A directory or file that is held and has been removed cannot be mounted.
fn not_attached(tree: BorrowedFd<'_>, at: &OsStr, errno: Errno) -> Refusal {
    let removed = errno == Errno::ENOENT && fstat(tree).is_ok_and(|stat| stat.st_nlink == 0);
    if !removed {
        return errno.into();
    }
    let because = Because::new("what is to be bound has been removed");
    Failure::os(format!("move_mount {TREE} {}", there(at)), errno).because(Some(because)).into()
}

/// A place that is there and cannot be had, with its reason: a symbolic link to
/// nothing in the new root, no directory, or one on the way that is closed.
fn not_had(root: BorrowedFd<'_>, path: &OsStr, errno: Errno) -> Refusal {
    let called = |at: &Path| if at == Path::new(path) { "it".to_owned() } else { there(at.as_os_str()) };
    let missing = || {
        let look = |at: &Path| sys::open_in_root(root, &c(at), libc::O_PATH, 0);
        let at = Path::new(path).ancestors().filter(|at| look(at).err() == Some(Errno::ENOENT));
        let at = at.filter(|at| !at.as_os_str().is_empty()).last()?;
        let parent = at.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("/"));
        let name = at.file_name()?;
        match readlinkat(&look(parent).ok()?, name) {
            Ok(to) => Some(format!("{} is a symbolic link to {}, which is not in the new root", called(at), quote(to))),
            Err(e) => {
                (e == Errno::ENOENT).then(|| format!("{} has no entry {}", there(parent.as_os_str()), quote(name)))
            }
        }
        .map(Because::new)
    };
    let file = || {
        // The deepest that there is.
        let look = |at: &Path| Some((at.to_owned(), sys::open_in_root(root, &c(at), libc::O_PATH, 0).ok()?));
        let (at, found) = Path::new(path).ancestors().find_map(look)?;
        (is_directory(&found) == Ok(false)).then(|| Because::new(format!("{} is no directory", called(&at))))
    };
    let closed = || {
        let look = |path: &Path| sys::open_in_root(root, &c(path), libc::O_PATH, 0);
        let at = Path::new(path).ancestors().filter(|p| look(p).err() == Some(Errno::EACCES)).last()?;
        let parent = at.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("/"));
        let found = look(parent).ok()?;
        let stat = fstat(&found).ok()?;
        let mode = stat.st_mode & 0o7777;
        let because = Because::new(format!("{} (mode {mode:03o}) may not be searched", there(parent.as_os_str())));
        // What is mounted below the root may have another path outside, or none.
        let outside = readlinkat(AT_FDCWD, format!("/proc/self/fd/{}", found.as_raw_fd()).as_str()).ok();
        let outside = outside.filter(|_| sys::share_mount(root, found.as_fd()));
        Some(because.remedy_if(outside.map(|path| path::searchable(Path::new(&path), Some(stat.st_uid)))))
    };
    let reasons: [(Errno, &dyn Fn() -> Option<Because>); 3] =
        [(Errno::ENOENT, &missing), (Errno::ENOTDIR, &file), (Errno::EACCES, &closed)];
    let because = reasons.into_iter().find(|(of, _)| *of == errno).and_then(|(_, reason)| reason());
    Failure::os(format!("open {}", there(path)), errno).because(because).into()
}

/// The directory of `path` below `root`, and its last component.
fn parent_in<'a>(root: BorrowedFd<'_>, path: &'a OsStr) -> std::result::Result<(OwnedFd, &'a OsStr), Refusal> {
    let (parent, name) = (Path::new(path).parent(), Path::new(path).file_name());
    // A path that ends in `..` of what is not there.
    let name = name.ok_or_else(|| not_had(root, path, Errno::ENOENT))?;
    Ok((directory_in(root, parent.unwrap_or(Path::new("")).as_os_str())?, name))
}

/// Opens the directory `path` below `root`, made if it is missing.
fn directory_in(root: BorrowedFd<'_>, path: &OsStr) -> std::result::Result<OwnedFd, Refusal> {
    let path = if path.is_empty() { OsStr::new("/") } else { path };
    let opened = || sys::open_in_root(root, &c(path), libc::O_PATH | libc::O_DIRECTORY, 0);
    match opened() {
        Err(Errno::ENOENT) => {}
        other => return other.map_err(|e| not_had(root, path, e)),
    }
    let (parent, name) = parent_in(root, path)?;
    match exactly(|| mkdirat(&parent, name, Mode::from_bits_truncate(0o755))) {
        Ok(()) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(&parent, name, flags, Mode::empty()).map_err(|e| not_had(root, path, e))
        }
        // A link that leads nowhere says so when it is opened.
        Err(Errno::EEXIST) => opened().map_err(|e| not_had(root, path, e)),
        Err(e) => Err(not_made("mkdir", path, e, &parent, root)),
    }
}

/// Opens the file `path` below `root`, made empty if it is missing.
fn file_in(root: BorrowedFd<'_>, path: &OsStr) -> std::result::Result<OwnedFd, Refusal> {
    let opened = || sys::open_in_root(root, &c(path), libc::O_PATH, 0);
    let made = match opened() {
        Err(Errno::ENOENT) => created(root, path, 0o644),
        other => other.map_err(|e| not_had(root, path, e)),
    };
    match made {
        Err(Refusal::Os(Errno::EEXIST, _)) => opened().map_err(|e| not_had(root, path, e)),
        other => other,
    }
}

fn created(root: BorrowedFd<'_>, path: &OsStr, mode: u32) -> std::result::Result<OwnedFd, Refusal> {
    let (parent, name) = parent_in(root, path)?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    exactly(|| openat(&parent, name, flags, Mode::from_bits_truncate(mode)))
        .map_err(|e| if e == Errno::EEXIST { e.into() } else { not_made("create", path, e, &parent, root) })
}

// ---- how ----

fn file_with(root: BorrowedFd<'_>, at: &OsStr, mode: u32, bytes: &[u8]) -> Done {
    let file = created(root, at, mode)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match write(&file, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // Writing takes set-id bits away from whoever lacks CAP_FSETID in the initial user namespace.
    Ok(fchmod(&file, Mode::from_bits_truncate(mode))?)
}

/// Whoever makes a cgroup and goes there writes to the directory that it is in,
/// and to the cgroup.procs of that (cgroups(7)).
fn delegated(root: BorrowedFd<'_>, at: &OsStr) -> Done {
    let dir = sys::open_in_root(root, &c(at), libc::O_PATH | libc::O_DIRECTORY, 0)?;
    for name in [".", "cgroup.procs"] {
        let Err(errno) = faccessat(&dir, name, AccessFlags::W_OK, AtFlags::AT_EACCESS) else { continue };
        let read_only = || fstatvfs(&dir).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
        let anothers = || fstatat(&dir, name, AtFlags::empty()).is_ok_and(|stat| stat.st_uid != geteuid().as_raw());
        let text = if errno == Errno::EROFS && read_only() {
            Some("it is mounted read-only")
        } else if errno == Errno::EACCES && anothers() {
            Some("the cgroup that the cgroup namespace was made in is not ours: systemd needs one that is")
        } else {
            None
        };
        let object = format!("access {}/{name} W_OK", there(at));
        return Err(Failure::os(object, errno).because(text.map(Because::new)).into());
    }
    Ok(())
}

/// A device node of ours, from a descriptor proven to be that device: a path
/// could have been exchanged for a link meanwhile.
fn device(name: &str, (major, minor): (u64, u64)) -> std::result::Result<OwnedFd, Refusal> {
    let tree = sys::open_tree(AT_FDCWD, &c(format!("/dev/{name}")), sys::OPEN_TREE_CLONE)?;
    let stat = fstat(&tree)?;
    let is_character = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if !is_character || stat.st_rdev != nix::sys::stat::makedev(major, minor) {
        return Err(Failure::refused(format!("bind /dev/{name}: it is not the device {major}:{minor}")).into());
    }
    Ok(tree)
}

fn bind_device(root: BorrowedFd<'_>, name: &str, number: (u64, u64)) -> Done {
    let tree = device(name, number)?;
    sys::mount_setattr(tree.as_fd(), false, sys::MOUNT_ATTR_NOSUID, None)?;
    // On a tmpfs that is new.
    let at = created(root, OsStr::new(&format!("/dev/{name}")), 0o644)?;
    Ok(sys::move_mount(tree.as_fd(), at.as_fd(), false)?)
}

fn mask(root: BorrowedFd<'_>, at: &OsStr) -> Done {
    let place = match sys::open_in_root(root, &c(at), libc::O_PATH, 0) {
        // There is nothing to hide.
        Err(Errno::ENOENT) => return Ok(()),
        other => other.map_err(|e| not_had(root, at, e))?,
    };
    apart(root, &place)?;
    let attributes = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NOEXEC;
    let cover = if is_directory(&place)? {
        new_mount(c"tmpfs", &[("mode".into(), "755".into())], attributes | sys::MOUNT_ATTR_NODEV)?
    } else {
        let null = device("null", (1, 3))?;
        sys::mount_setattr(null.as_fd(), false, attributes, None)?;
        null
    };
    Ok(sys::move_mount(cover.as_fd(), place.as_fd(), false)?)
}

//! Why a tree could not be copied, changed, attached or taken away.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::stat::Mode;

use super::{ATTRIBUTES, At, clone_flags, copy};
use crate::fail::{Again, Because, Errno};
use crate::path::Place;
use crate::proc::Mount;
use crate::step::Facts;
use crate::sys;
use crate::word::{again, c, quote};

/// Whether mounts below `point` are locked to it, as they are after a copy into
/// a less privileged mount namespace: then it can only be copied with them.
pub(in crate::step) fn is_locked_to(point: impl AsRef<OsStr>) -> bool {
    let copy = |flags| sys::open_tree(AT_FDCWD, &c(&point).map_err(|_| Errno::EINVAL)?, sys::OPEN_TREE_CLONE | flags);
    copy(0).err() == Some(Errno::EINVAL) && copy(sys::AT_RECURSIVE).is_ok()
}

/// The same of an open directory: what is at its path by now may be another.
pub(in crate::step) fn is_locked(fd: BorrowedFd<'_>) -> bool {
    let copy = |flags| sys::open_tree(fd, c"", sys::OPEN_TREE_CLONE | sys::AT_EMPTY_PATH | flags);
    copy(0).err() == Some(Errno::EINVAL) && copy(sys::AT_RECURSIVE).is_ok()
}

/// Whether a mount is locked where it is: then it cannot even be asked to be
/// moved into itself (EINVAL), which another never is (ELOOP). Where one is on
/// top of it, that was copied along with it, and is looked at instead.
pub(in crate::step) fn is_locked_on(mount: &Mount, mounts: &[Mount]) -> bool {
    let Ok(fd) = open(mount.point.as_os_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else { return false };
    let id = sys::mount_id(fd.as_fd());
    let there = mounts.iter().any(|m| id == Ok(m.id) && m.point == mount.point);
    there && sys::move_mount(fd.as_fd(), fd.as_fd(), false) == Err(Errno::EINVAL)
}

/// Whether attribute `bit` of the mount at `point` is locked: a copy refuses to
/// have it set, or to have it cleared.
pub(in crate::step) fn is_kept(point: &OsStr, bit: u64) -> bool {
    let copy = c(point).ok().and_then(|path| sys::open_tree(AT_FDCWD, &path, clone_flags(true)).ok());
    let refused = |tree: OwnedFd| {
        let set = sys::mount_setattr(tree.as_fd(), false, bit, None);
        [set, sys::mount_clear(tree.as_fd(), bit)].contains(&Err(Errno::EPERM))
    };
    copy.is_some_and(refused)
}

/// Why a mount cannot be copied (EINVAL): __do_loopback() in fs/namespace.c.
pub(in crate::step) fn copy_refused(place: &Place, recursive: bool, facts: &Facts<'_>) -> Option<Because> {
    if !recursive && is_locked_to(place.real()) {
        let because = Because::new("mounts below it are locked to it: copy it with them (--recursive)");
        return Some(because.remedy_if(again("--recursive")));
    }
    // By its path: a descriptor from before a new mount namespace was made is
    // of the old one. Who looks for the reason may still be in that.
    let again = if facts.who == "self" { place.again() } else { place.again_from(facts.root?) };
    let id = sys::mount_id(again.ok()?.fd()).ok()?;
    let mounts = facts.proc.mounts(facts.who);
    let Some(mount) = mounts.iter().find(|m| m.id == id) else {
        return elsewhere(place, &mounts);
    };
    let unbindable = mount.propagation.split(' ').any(|p| p == "unbindable");
    unbindable.then(|| {
        let point = quote(&mount.point);
        Because::new(format!("{point} is unbindable")).remedy(format!("mount --make-private {point}"))
    })
}

/// What is on no mount that this namespace has: it is of another one, or of
/// none.
fn elsewhere(place: &Place, mounts: &[Mount]) -> Option<Because> {
    let because = Because::new(format!("{} is on no mount of this mount namespace", place.name()));
    (!mounts.is_empty()).then(|| because.again(Again::Where(place.path.clone())))
}

/// Which of `attributes` is locked: alone, on a copy of the place that we are
/// looking for, it is refused (can_change_locked_flags() in fs/namespace.c).
pub(super) fn locked(attributes: u64, place: &Place) -> Option<Because> {
    // Where even a new file system does not take them, the place is not to blame.
    let context = sys::fsopen(c"tmpfs").ok()?;
    let tmpfs = sys::fsmount(context.as_fd(), 0).ok()?;
    sys::mount_setattr(tmpfs.as_fd(), false, attributes, None).ok()?;
    let refused = |set| {
        let tree = copy(place, true).ok()?;
        sys::mount_setattr(tree.as_fd(), false, set, None).err()
    };
    let (_, name) =
        ATTRIBUTES.into_iter().find(|(bit, _)| attributes & bit != 0 && refused(*bit) == Some(Errno::EPERM))?;
    let path = place.name();
    Some(Because::new(format!("the mount at {path} came from a mount namespace of more privilege, which locks {name}")))
}

/// Why a tree cannot be attached (EINVAL): do_move_mount() in fs/namespace.c.
pub(super) fn attach_refused(at: &At, facts: &Facts<'_>) -> Option<Because> {
    let (place, beneath) = match at {
        At::Place(place) => (place, false),
        At::Beneath(place, _) => (place, true),
        At::Below(..) => {
            let (major, minor) = facts.proc.release()?;
            let text = format!("a tree takes mounts in itself since Linux 6.15, and this is {major}.{minor}");
            return ((major, minor) < (6, 15)).then(|| Because::new(text));
        }
    };
    let mounts = facts.proc.mounts(facts.who);
    let id = sys::mount_id(place.fd()).ok()?;
    let path = place.name();
    let Some(mount) = mounts.iter().find(|m| m.id == id) else {
        return elsewhere(place, &mounts);
    };
    if beneath && sys::is_mount_root(place.fd()) == Ok(false) {
        return Some(Because::new(format!("nothing is mounted at {path}")));
    }
    (beneath && mount.point == "/").then(|| Because::new(format!("{path} is the root, beneath which nothing fits")))
}

/// Who uses the mount: another on it, or a process (umount(2), EBUSY).
pub(super) fn busy(id: u64, facts: &Facts<'_>) -> Option<Because> {
    let proc = facts.proc;
    if let Some(above) = proc.mounts(facts.who).into_iter().find(|m| m.parent == id) {
        let because = Because::new(format!("{} is mounted on it, and has to go first", quote(&above.point)));
        return Some(because.remedy_if(again("--recursive")));
    }
    let on_it = |path: &str| {
        let file = proc.open_at(path, OFlag::O_PATH).ok();
        file.is_some_and(|fd| sys::mount_id(fd.as_fd()) == Ok(id))
    };
    proc.pids().iter().map(i32::to_string).find_map(|who| {
        let files = proc.numbers(&format!("{who}/fd")).into_iter().map(|n| format!("fd/{n}"));
        let mut all = ["cwd", "root", "exe"].into_iter().map(str::to_owned).chain(files);
        let file = all.find(|file| on_it(&format!("{who}/{file}")))?;
        let how = match file.as_str() {
            "cwd" => "has its working directory there",
            "root" => "has its root directory there",
            "exe" => "runs a program from there",
            _ => "has a file open there",
        };
        let name = proc.name(&who);
        Some(Because::new(format!("process {who} ({name}) {how}")))
    })
}

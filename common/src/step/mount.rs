//! Mounts: a new root. mount_namespaces(7), pivot_root(2).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, Statfs, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{chdir, chroot, fchdir, getcwd, geteuid, pivot_root};

use super::fs::{self, c, new_mount};
use super::tree::{self, why};
use super::{Done, Facts, Hands, Step, TREE};
use crate::fail::{Because, Errno};
use crate::path::{Place, not_opened};
use crate::proc::{Mount, Proc};
use crate::sys;
use crate::word::quote;

/// An effect on mounts.
pub enum Effect {
    /// Let no mount of ours reach the namespaces that this one was copied from.
    Slave,
    /// Let all mounts pass on what is mounted below them, both ways (`shared`), or
    /// neither way (`private`).
    Propagate(&'static str),
    /// A new proc over a directory of the present root.
    Proc(OsString),
    /// Cover the kernel's first file system, which cannot be let go, with a copy
    /// that can.
    Cover,
    /// Make a directory a mount of its own: the new root.
    BindRoot(Place),
    /// A new file system that is attached nowhere: whether it can be made.
    Try(&'static str, u64),
    /// Let what is mounted below the new root by now be only read.
    ReadOnlyBelow,
    /// Let the new root be only read; what is mounted below it stays as it is.
    ReadOnly,
    /// Make the new root the root, and let the old one go.
    Pivot,
}

/// What a proc needs to be: nobody has programs or devices there.
const HARMLESS: u64 = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;

/// The name under which the new root is handed on.
pub(super) const ROOT: &str = "new root";

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, detailing) = (effect.clone(), effect.clone());
        let (doing, asking) = (effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        step.detail(move || detailing.detail()).because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Slave => "mount / MS_REC|MS_SLAVE".into(),
            Effect::Propagate(how) => format!("mount / MS_REC|MS_{}", how.to_ascii_uppercase()),
            Effect::Proc(at) => format!("mount proc on {}", quote(at)),
            Effect::BindRoot(place) if place.is_tree => format!("move_mount {} on /", place.name()),
            Effect::BindRoot(place) => format!("bind {} on itself", quote(&place.path)),
            Effect::Try(fstype, _) => format!("fsmount {fstype}"),
            Effect::Cover => "bind / on itself and chroot there".into(),
            Effect::ReadOnlyBelow => "mount_setattr NEWROOT/... ro".into(),
            Effect::ReadOnly => "mount_setattr NEWROOT ro".into(),
            Effect::Pivot => "pivot_root . .".into(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Pivot => "and detach the old root".into(),
            Effect::Proc(_) => tree::attribute_names(HARMLESS).collect::<Vec<_>>().join(","),
            Effect::Slave
            | Effect::Propagate(_)
            | Effect::Cover
            | Effect::BindRoot(_)
            | Effect::Try(..)
            | Effect::ReadOnlyBelow
            | Effect::ReadOnly => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Propagate(_) => "it was asked for",
            Effect::Proc(_) => "a proc shows the pid namespace of whoever mounts it",
            Effect::Slave => "a shared mount passes every mount and umount on to its peers, out of this namespace too",
            Effect::BindRoot(_) => {
                "pivot_root(2) wants a mount, and a locked mount counts only as a copy; with its submounts, since those may be locked to it"
            }
            Effect::Try(..) => "",
            Effect::Cover => "pivot_root(2) lets no root go that is mounted on nothing, as rootfs is: the initramfs",
            Effect::ReadOnlyBelow => "at once, while nothing else is mounted there",
            Effect::ReadOnly => "last, since mount points had to be made",
            Effect::Pivot => {
                "chroot(2) could be left again, and forbids new user namespaces; the old root would stay reachable"
            }
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Slave => {
                Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?)
            }
            Effect::Propagate(how) => {
                let how = if *how == "shared" { MsFlags::MS_SHARED } else { MsFlags::MS_PRIVATE };
                Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | how, None::<&str>)?)
            }
            Effect::Proc(at) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let place = open(at.as_os_str(), flags, Mode::empty()).map_err(|e| not_opened(at, e))?;
                let tree = new_mount(c"proc", &[], HARMLESS);
                let tree = tree.map_err(|refusal| fs::tried_here(refusal, self.act(), "proc", HARMLESS))?;
                Ok(sys::move_mount(tree.as_fd(), place.as_fd(), false)?)
            }
            Effect::Cover => cover_root(),
            Effect::BindRoot(place) => {
                let tree = tree::copy(place, true)?;
                // A tree has no place of its own; on the old root it is out of its way.
                let at = if place.is_tree { OsStr::new("/") } else { place.path.as_os_str() };
                let at = open(at, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
                sys::move_mount(tree.as_fd(), at.as_fd(), false)?;
                hands.put(ROOT, tree);
                Ok(())
            }
            Effect::Try(fstype, attributes) => {
                hands.put(TREE, new_mount(&c(fstype), &[], *attributes)?);
                Ok(())
            }
            Effect::ReadOnlyBelow => read_only_below(hands.get(ROOT)?),
            Effect::ReadOnly => Ok(sys::mount_setattr(hands.get(ROOT)?, false, sys::MOUNT_ATTR_RDONLY, None)?),
            Effect::Pivot => pivot(hands.get(ROOT)?),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Slave | Effect::Propagate(_) if errno == Errno::EINVAL && facts.proc.is_chrooted() => {
                Some(Because::new("this process is chrooted: its / is not a mount point"))
            }
            Effect::Try(fstype, attributes) => fs::refused(fstype, &[], *attributes, errno, facts),
            Effect::Proc(_) => fs::refused("proc", &[], HARMLESS, errno, facts),
            Effect::Slave
            | Effect::Propagate(_)
            | Effect::Cover
            | Effect::BindRoot(_)
            | Effect::ReadOnlyBelow
            | Effect::ReadOnly
            | Effect::Pivot
                if errno == Errno::EPERM =>
            {
                facts.may_not_mount().or_else(|| forbidden(facts))
            }
            Effect::BindRoot(place) if errno == Errno::ENOENT => removed(place),
            Effect::BindRoot(place) if errno == Errno::EINVAL => why::copy_refused(place, true, facts),
            Effect::BindRoot(place) if errno == Errno::ENOSPC => full(Some(place), facts),
            Effect::Pivot if errno == Errno::EINVAL => outside(facts),
            Effect::Slave
            | Effect::Propagate(_)
            | Effect::Cover
            | Effect::BindRoot(_)
            | Effect::ReadOnlyBelow
            | Effect::ReadOnly
            | Effect::Pivot => None,
        }
    }
}

/// What statfs(2) says of a ramfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// The step before all others where `/` is the kernel's first file system.
pub fn cover(proc: &Proc) -> Option<Effect> {
    // rootfs is one of these two.
    let may_be = |fs: Statfs| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.filesystem_type());
    if !statfs("/").is_ok_and(may_be) {
        return None;
    }
    // Its parent is itself; that of any other root is a mount out of sight.
    let first = |m: &Mount| m.point == "/" && m.id == m.parent;
    proc.mounts("self").iter().any(first).then_some(Effect::Cover)
}

// ---- how ----

fn cover_root() -> Done {
    let cwd = getcwd()?;
    let tree = sys::open_tree(AT_FDCWD, c"/", sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE)?;
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::move_mount(tree.as_fd(), root.as_fd(), false)?;
    fchdir(&tree)?;
    // Where the mount namespace has its root from now on, so that this is no
    // chroot to the kernel.
    chroot(".")?;
    Ok(chdir(&cwd)?)
}

/// There is no call for all but the uppermost: that is made writable again, if
/// it was.
fn read_only_below(root: BorrowedFd<'_>) -> Done {
    let writable = !fstatvfs(root)?.flags().contains(FsFlags::ST_RDONLY);
    sys::mount_setattr(root, true, sys::MOUNT_ATTR_RDONLY, None)?;
    if writable {
        sys::mount_clear(root, sys::MOUNT_ATTR_RDONLY)?;
    }
    Ok(())
}

fn pivot(root: BorrowedFd<'_>) -> Done {
    let old = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    fchdir(root)?;
    // The old root is now mounted on the new one, at the same place, so no
    // directory for it is needed and a read-only root will do.
    pivot_root(".", ".")?;
    fchdir(&old)?;
    // Else a shared old root would be unmounted in its peers as well.
    mount(None::<&str>, ".", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

// ---- why not ----

pub(super) fn removed(place: &Place) -> Option<Because> {
    let removed = fstat(place.fd()).is_ok_and(|stat| stat.st_nlink == 0);
    removed.then(|| Because::new(format!("{} has been removed", place.name())))
}

/// Whether mount(2) is refused as such: a type that there is not is ENODEV, but
/// security modules are asked before (path_mount() in fs/namespace.c), and
/// filters before all.
pub(super) fn forbidden(facts: &Facts<'_>) -> Option<Because> {
    let status = facts.proc.text(&format!("{}/status", facts.who))?;
    if !status.lines().any(|line| line == "Seccomp:\t0") {
        let text = "a seccomp filter refuses every mount(2) of this process";
        return sys::mount_is_filtered().then(|| Because::new(text));
    }
    // Tried by the process that was refused, or it would be refused for being another.
    if facts.who != "self" {
        return None;
    }
    let probe = mount(None::<&str>, "/", Some("no such type"), MsFlags::empty(), None::<&str>);
    let text = "a security module refuses every mount(2) of this process, as a Landlock domain does";
    (probe == Err(Errno::EPERM)).then(|| Because::new(text))
}

/// Whether `what`, with all that is mounted below it, is more than may be
/// mounted (ENOSPC): count_mounts() in fs/namespace.c.
pub(super) fn full(what: Option<&Place>, facts: &Facts<'_>) -> Option<Because> {
    let mounts = facts.proc.mounts(facts.who);
    let below = what.map(Place::real).map_or(0, |real| mounts.iter().filter(|m| real_below(m, &real)).count());
    let (now, most) = (mounts.len(), facts.proc.sysctl("fs/mount-max")?);
    let text = format!("{now} mounts and {} more are over the limit of {most} (fs.mount-max)", below + 1);
    let all = u64::try_from(now + below + 1).ok()?;
    // No capability of a user namespace counts for it.
    let sudo = if geteuid().is_root() && facts.proc.in_initial() == Ok(true) { "" } else { "sudo " };
    (all > most).then(|| Because::new(text).remedy(format!("{sudo}sysctl -w fs.mount-max={}", 2 * all)))
}

fn real_below(mount: &Mount, path: &Path) -> bool {
    Path::new(&mount.point).starts_with(path) && Path::new(&mount.point) != path
}

/// Whether the new root, to which this process has gone, is not below the
/// present one (EINVAL): its mount is not in our list.
fn outside(facts: &Facts<'_>) -> Option<Because> {
    let mounts = facts.proc.mounts(facts.who);
    let new = facts.proc.open_at(&format!("{}/cwd", facts.who), OFlag::O_PATH).ok()?;
    let id = sys::mount_id(new.as_fd()).ok()?;
    let text = "the new root is not below the root directory of this process";
    (!mounts.is_empty() && !mounts.iter().any(|m| m.id == id)).then(|| Because::new(text))
}

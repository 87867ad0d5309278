//! Trees: mounts that are attached nowhere yet, where a map can still be set.
//! open_tree(2), mount_setattr(2), move_mount(2).
//!
//! ```text
//! SOURCE --copy--> tree --map, attributes--> tree --look--> tree --attach--> DEST
//! ```
//!
//! Nobody sees a tree before it is attached, so what it shows is compared with
//! what was asked for first.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::fchdir;

use super::{Done, Facts, Hands, Refusal, Step, TREE, USERNS};
use crate::fail::{Because, Errno, Failure};
use crate::ns;
use crate::owners::Owners;
use crate::path::Place;
use crate::proc::{Mount, Proc};
use crate::sys;
use crate::word::{c, quote};
use why::{attach_refused, busy, copy_refused, locked};

pub(super) mod why;

/// An effect on a tree. `&'static str` is the name that it is handed on under.
pub enum Effect {
    /// A copy of the mounts at a path, or of the mount there alone.
    Copy(Place, bool, &'static str),
    /// The same, and another map in place of that which the copy would inherit:
    /// from where, with the mounts below, attributes.
    CopyMapped(Place, bool, u64),
    /// Attributes, and with `mapped` the maps of the user namespace at hand.
    Set {
        /// Of which tree.
        of: &'static str,
        /// MOUNT_ATTR_* bits without that for the map.
        attributes: u64,
        /// Whether it is mapped.
        mapped: bool,
        /// Whether the mounts below in the tree are meant too.
        recursive: bool,
        /// What it is a copy of.
        from: Option<Place>,
    },
    /// Ask what the kernel says of the user namespace at hand, which is always a
    /// refusal: ENOENT is the good one.
    Ask,
    /// Look through the tree whether the owners are as they have to be.
    Check(Rc<Owners>),
    /// Attach a tree.
    Attach(&'static str, At),
    /// Attach the tree in this mount namespace, which nobody else is in, where
    /// the next one copied from it will have it.
    Park,
    /// A copy of that in the next one.
    CopyParked(bool),
    /// Leave the tree open as descriptor N for the program that follows.
    Hand(Rc<OwnedFd>, RawFd),
    /// Take a mount away: its path, and its number in mountinfo.
    Unmount(OsString, u64),
}

/// Where a tree is attached.
pub enum At {
    /// At a place looked at while planning.
    Place(Place),
    /// Beneath the mount at such a place, which is then taken away by this /proc.
    Beneath(Place, Rc<Proc>),
    /// At a path below what an earlier step made, under this name.
    Below(&'static str, OsString),
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

fn below(recursive: bool) -> &'static str {
    if recursive { "|AT_RECURSIVE" } else { "" }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Copy(place, ..) if place.is_tree => format!("dup {}", place.name()),
            Effect::Copy(place, recursive, _) => {
                format!("open_tree {} OPEN_TREE_CLONE{}", place.name(), below(*recursive))
            }
            Effect::CopyMapped(place, recursive, _) => {
                format!("open_tree_attr {} OPEN_TREE_CLONE{} MOUNT_ATTR_IDMAP", place.name(), below(*recursive))
            }
            Effect::Set { of, mapped: true, .. } => format!("mount_setattr {of} MOUNT_ATTR_IDMAP"),
            Effect::Set { of, mapped: false, .. } => format!("mount_setattr {of}"),
            Effect::Ask => "mount_setattr of no path".into(),
            Effect::Check(_) => "look at the owners in the tree".into(),
            Effect::Attach(of, At::Place(place)) => format!("move_mount {of} {}", place.name()),
            Effect::Attach(of, At::Beneath(place, _)) => {
                format!("move_mount {of} {} MOVE_MOUNT_BENEATH", place.name())
            }
            Effect::Attach(of, At::Below(name, path)) => {
                let path = path.to_string_lossy();
                format!("move_mount {of} {}", quote(format!("{name}/{}", path.trim_start_matches('/'))))
            }
            Effect::Park => "move_mount tree on a new tmpfs of this namespace".into(),
            Effect::CopyParked(recursive) => format!("open_tree of it OPEN_TREE_CLONE{}", below(*recursive)),
            Effect::Hand(_, n) => format!("dup2 tree {n}"),
            Effect::Unmount(path, _) => format!("umount {}", quote(path)),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Set { attributes, .. } | Effect::CopyMapped(_, _, attributes) => {
                attribute_names(*attributes).collect::<Vec<_>>().join(",")
            }
            Effect::Attach(_, At::Beneath(..)) => "and detach what is above it".into(),
            Effect::Copy(..)
            | Effect::Ask
            | Effect::Check(_)
            | Effect::Attach(..)
            | Effect::Park
            | Effect::CopyParked(_)
            | Effect::Hand(..)
            | Effect::Unmount(..) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Copy(..) => "a map can be set only on a mount that is not attached anywhere yet",
            Effect::CopyMapped(..) => {
                "a copy inherits the map of an idmapped mount, and only this call may set another"
            }
            Effect::Set { mapped: true, .. } => {
                "the kernel shifts the owners by this user namespace's maps: inside is on disk, outside is seen"
            }
            Effect::Set { mapped: false, .. } => "nobody can use the tree before it has its attributes",
            Effect::Ask => "",
            Effect::Check(_) => "stat(2) through the tree shows the ids as the map makes them, before anybody else can",
            Effect::Attach(_, At::Beneath(..)) => {
                "whoever walks by finds the old mount or the new one, and never neither"
            }
            Effect::Attach(..) => "now it can be seen",
            Effect::Park => {
                "a mount namespace copied into a less privileged user namespace locks the attributes of its mounts"
            }
            Effect::CopyParked(_) => "the copy keeps the locks: ro, nosuid, nodev, noexec and atime cannot be changed",
            Effect::Hand(..) => "a tree lives as long as a descriptor of it, over exec too",
            Effect::Unmount(..) => "the map goes with the mount; on disk nothing was changed",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Copy(place, recursive, name) => {
                let tree = copy(place, *recursive)?;
                hands.put(name, tree);
                Ok(())
            }
            Effect::CopyMapped(place, recursive, attributes) => {
                let set = *attributes | sys::MOUNT_ATTR_IDMAP;
                let userns = hands.get(USERNS)?;
                let tree = opened(place, |dir, path| {
                    sys::open_tree_attr(dir, path, clone_flags(*recursive), set, Some(userns))
                })?;
                hands.put(TREE, tree);
                Ok(())
            }
            Effect::Set { of, attributes, mapped: false, recursive, .. } => {
                Ok(sys::mount_setattr(hands.get(of)?, *recursive, *attributes, None)?)
            }
            Effect::Set { of, attributes, mapped: true, recursive, .. } => {
                let (tree, userns) = (hands.get(of)?, hands.get(USERNS)?);
                Ok(sys::mount_setattr(tree, *recursive, *attributes | sys::MOUNT_ATTR_IDMAP, Some(userns))?)
            }
            Effect::Ask => Err(sys::judge_userns(hands.get(USERNS)?).into()),
            Effect::Check(owners) => Ok(owners.check(hands.get(TREE)?)?),
            Effect::Attach(of, at) => attach(hands, of, at),
            Effect::Park => park(hands.get(TREE)?),
            Effect::CopyParked(recursive) => {
                let tree = sys::open_tree(AT_FDCWD, PARKED, clone_flags(*recursive))?;
                hands.put(TREE, tree);
                Ok(())
            }
            Effect::Hand(_, n) => Ok(sys::place(hands.get(TREE)?, *n)?),
            Effect::Unmount(path, id) => self.unmount(Path::new(path), *id),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Copy(..) | Effect::CopyMapped(..) | Effect::Attach(..) | Effect::CopyParked(_) | Effect::Park
                if errno == Errno::EPERM =>
            {
                facts.may_not_mount()
            }
            Effect::Copy(place, recursive, _) if errno == Errno::EINVAL => copy_refused(place, *recursive, facts),
            Effect::Set { attributes, from: Some(place), .. } if errno == Errno::EPERM => {
                facts.may_not_mount().or_else(|| locked(*attributes, place))
            }
            Effect::Set { from: Some(place), .. } if errno == Errno::EINVAL && place.is_tree => {
                copy_refused(place, true, facts)
            }
            Effect::Attach(_, at) if errno == Errno::EINVAL => attach_refused(at, facts),
            Effect::Unmount(..) if errno == Errno::EPERM => facts.may_not_mount(),
            Effect::Unmount(_, id) if errno == Errno::EBUSY => busy(*id, facts),
            Effect::Copy(..)
            | Effect::CopyMapped(..)
            | Effect::Set { .. }
            | Effect::Ask
            | Effect::Check(_)
            | Effect::Attach(..)
            | Effect::Park
            | Effect::CopyParked(_)
            | Effect::Hand(..)
            | Effect::Unmount(..) => None,
        }
    }

    /// umount(2) takes a path and no descriptor, and another may own a directory on the way: what is
    /// there is looked at and taken away from within the same parent.
    fn unmount(&self, path: &Path, id: u64) -> Done {
        let parent = path.parent().unwrap_or(path);
        let name = path.file_name().unwrap_or(OsStr::new("."));
        fchdir(open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)?;
        // An open descriptor would keep it busy.
        let there = openat(AT_FDCWD, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(|fd| sys::mount_id(fd.as_fd()))?;
        if there != id {
            return Err(Failure::refused(format!("{}: it is another mount by now", self.act())).into());
        }
        Ok(umount2(name, MntFlags::UMOUNT_NOFOLLOW)?)
    }
}

/// The MOUNT_ATTR_* bit that mount(8) calls `name`; 0 for none.
pub fn attribute(name: &str) -> u64 {
    ATTRIBUTES.into_iter().find(|(_, known)| *known == name).map_or(0, |(bit, _)| bit)
}

/// The words of mount(8) for MOUNT_ATTR_* bits.
pub fn attribute_names(attributes: u64) -> impl Iterator<Item = &'static str> {
    ATTRIBUTES.into_iter().filter(move |(bit, _)| attributes & bit != 0).map(|(_, name)| name)
}

const ATTRIBUTES: [(u64, &str); 6] = [
    (sys::MOUNT_ATTR_RDONLY, "ro"),
    (sys::MOUNT_ATTR_NOSUID, "nosuid"),
    (sys::MOUNT_ATTR_NODEV, "nodev"),
    (sys::MOUNT_ATTR_NOEXEC, "noexec"),
    (sys::MOUNT_ATTR_NOATIME, "noatime"),
    (sys::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

// ---- how ----

fn clone_flags(recursive: bool) -> std::ffi::c_uint {
    sys::OPEN_TREE_CLONE | if recursive { sys::AT_RECURSIVE } else { 0 }
}

/// A copy of the mounts at `place`, or the tree that it is. By its path: a descriptor from before a new
/// mount namespace was made is of the old one.
pub(super) fn copy(place: &Place, recursive: bool) -> std::result::Result<OwnedFd, Refusal> {
    if place.is_tree {
        return Ok(sys::duplicate(place.fd())?);
    }
    opened(place, |dir, path| sys::open_tree(dir, path, clone_flags(recursive)))
}

fn opened(
    place: &Place,
    open_tree: impl Fn(BorrowedFd<'_>, &CStr) -> std::result::Result<OwnedFd, Errno>,
) -> std::result::Result<OwnedFd, Refusal> {
    // Not by a descriptor of the working directory: whoever may not search it
    // may name what lies elsewhere all the same.
    let tree = open_tree(AT_FDCWD, &c(&place.path)?)?;
    place.check(&tree)?;
    Ok(tree)
}

fn attach(hands: &mut Hands, of: &'static str, at: &At) -> Done {
    let tree = hands.get(of)?;
    match at {
        At::Place(place) => sys::move_mount(tree, place.fd(), false)?,
        At::Beneath(place, proc) => {
            // umount(2) takes a path. That which leads from a descriptor to its mount is
            // in /proc, and that of the namespace that we are in may be anything.
            proc.enter()?;
            sys::move_mount(tree, place.fd(), true)?;
            umount2(format!("self/fd/{}", place.fd().as_raw_fd()).as_str(), MntFlags::MNT_DETACH)?;
        }
        At::Below(name, path) => {
            let at = sys::open_in_root(hands.get(name)?, &c(path)?, libc::O_PATH, 0)?;
            sys::move_mount(tree, at.as_fd(), false)?;
        }
    }
    // Else the mount could not be taken away again while we live.
    hands.made.retain(|(name, _)| *name != of);
    Ok(())
}

/// The name of a parked tree in the working directory, which follows into a
/// copy of the mount namespace as a descriptor does not.
const PARKED: &CStr = c"tree";

fn park(tree: BorrowedFd<'_>) -> Done {
    let context = sys::fsopen(c"tmpfs")?;
    sys::fsconfig(context.as_fd(), c"mode", Some(c"755"))?;
    let tmpfs = sys::fsmount(context.as_fd(), 0)?;
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::move_mount(tmpfs.as_fd(), root.as_fd(), false)?;
    if SFlag::from_bits_truncate(fstat(tree)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        mkdirat(&tmpfs, PARKED, Mode::from_bits_truncate(0o755))?;
    } else {
        mknodat(&tmpfs, PARKED, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0)?;
    }
    let at = sys::open_in_root(tmpfs.as_fd(), PARKED, libc::O_PATH, 0)?;
    sys::move_mount(tree, at.as_fd(), false)?;
    Ok(fchdir(&tmpfs)?)
}

/// Keeps descriptor `n` free for a tree: it must not be open yet, since what
/// its caller handed on would be lost.
///
/// # Errors
/// Wrong usage: it is in use, or one of the first three.
pub fn reserve(n: RawFd) -> crate::fail::Result<Rc<OwnedFd>> {
    let taken = || Failure::usage(format!("descriptor {n} is in use"));
    let any = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let any = any.map_err(|e| Failure::os("open /", e))?;
    if n < 3 || any.as_raw_fd() > n {
        return Err(taken());
    }
    if any.as_raw_fd() == n {
        return Ok(Rc::new(any));
    }
    let reserved = sys::dup_above(any.as_raw_fd(), n).map_err(|e| Failure::os(format!("use descriptor {n}"), e))?;
    if reserved.as_raw_fd() == n { Ok(Rc::new(reserved)) } else { Err(taken()) }
}

/// The mount of this namespace that `place` is on.
///
/// # Errors
/// It cannot be found out.
pub fn mount_of(place: &Place, proc: &Proc) -> crate::fail::Result<Option<Mount>> {
    let id = sys::mount_id(place.fd()).map_err(|e| unseen(place, e))?;
    Ok(proc.own_mounts()?.into_iter().find(|m| m.id == id))
}

/// The same where `place` is the root of that mount.
///
/// # Errors
/// As `mount_of`.
pub fn mount_at(place: &Place, proc: &Proc) -> crate::fail::Result<Option<Mount>> {
    let Some(mount) = mount_of(place, proc)? else { return Ok(None) };
    Ok(sys::is_mount_root(place.fd()).map_err(|e| unseen(place, e))?.then_some(mount))
}

fn unseen(place: &Place, errno: Errno) -> Failure {
    Failure::os(format!("statx {}", place.name()), errno)
}

/// Whether file systems here have the ids on disk that this process sees: the
/// mount namespace is of its own user namespace. What container root mounted
/// has ids of the container on its disk.
pub fn owners_are_ours(proc: &Proc) -> bool {
    let inode = |fd: OwnedFd| fstat(fd).ok().map(|s| s.st_ino);
    let owner = proc.ns("self", ns::Kind::Mnt).ok().and_then(|ns| sys::ns_owner(ns.as_fd()).ok()).and_then(inode);
    owner.is_some() && owner == proc.ns_id("self", ns::Kind::User)
}

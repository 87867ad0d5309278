//! Why a tree did not take a map: mount_setattr(2) has one errno for many
//! rules. It judges the user namespace before the path, so that a call without
//! a path is about that alone; a user namespace that has just been made is good
//! for every mount that takes maps at all, so it is about the mount alone.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use super::{Idmap, Maps, maps_of, user_namespace};
use crate::fail::{Because, Errno, Failure, Result, errno};
use crate::id::{Both, Extent, Kind as IdKind, Map};
use crate::mounted;
use crate::ns::{INITIAL_USER, Kind};
use crate::path::Place;
use crate::plan::Plan;
use crate::proc::{Mount, Proc};
use crate::step::TREE;
use crate::step::mount;
use crate::step::ns;
use crate::step::tree;
use crate::sys;
use crate::user;
use crate::word::{again, quote};

/// Why `asked` was refused, as far as that can be found.
pub(super) fn refused(asked: &Idmap, errno: Errno, proc: &Rc<Proc>) -> Option<Because> {
    if errno != Errno::EINVAL && errno != Errno::EPERM {
        return None;
    }
    // Where even this is refused, neither the maps nor the mount is to blame.
    if ask(&Good::New, proc) != Some(Errno::ENOENT) {
        return None;
    }
    if let Some(because) = asked.maps.as_ref().and_then(|maps| namespace(maps, proc)) {
        return Some(because);
    }
    let mounts = concerned(&asked.source, asked.recursive, proc).ok()?;
    let found: Vec<Because> = mounts.iter().filter_map(|(mount, at)| reason(mount, at, asked, proc)).collect();
    match found.as_slice() {
        [] => owner(asked, errno, proc),
        [one] => Some(one.clone()),
        more => {
            // Each mount is named, and what is cured is cured one by one.
            let texts: Vec<&str> = more.iter().map(|b| b.text.as_str()).collect();
            Some(Because::new(texts.join("\n  because: ")))
        }
    }
}

// ---- probes ----

/// A user namespace to try.
enum Good<'a> {
    /// One id onto itself.
    New,
    /// That which was asked for.
    Asked(&'a Rc<OwnedFd>),
}

fn fresh() -> Plan {
    let mut plan = Plan::default();
    plan.push(mount::Effect::Try("tmpfs", 0));
    plan
}

/// A copy with what is below, of which the top alone is mapped: a plain copy is
/// refused where a locked mount lies below.
fn copied(place: Place) -> Plan {
    let mut plan = Plan::default();
    plan.push(tree::Effect::Copy(place, true, TREE));
    plan
}

/// What the kernel says of a user namespace alone.
fn ask(user: &Good<'_>, proc: &Rc<Proc>) -> Option<Errno> {
    answer(Plan::default(), user, tree::Effect::Ask, proc)
}

/// What the tree that `plan` makes says to a map; None if it takes it.
fn takes(plan: Plan, user: &Good<'_>, proc: &Rc<Proc>) -> Option<Errno> {
    let set = tree::Effect::Set { of: TREE, attributes: 0, mapped: true, recursive: false, from: None };
    answer(plan, user, set, proc)
}

fn answer(mut plan: Plan, user: &Good<'_>, last: tree::Effect, proc: &Rc<Proc>) -> Option<Errno> {
    match user {
        Good::New => {
            let own = proc.own();
            let one = |id: u32| Map::new(vec![Extent { inside: id, outside: id, count: 1 }]).ok();
            user_namespace(&Both { uid: one(own.uid[1])?, gid: one(own.gid[1])? }, &mut plan);
        }
        Good::Asked(fd) => plan.push(ns::Effect::UseUser((*fd).clone(), String::new())),
    }
    plan.push(last);
    // A probe that failed otherwise says nothing about maps, and ENOSYS is no
    // answer that any rule explains.
    plan.probe(proc).map(|failure| failure.errno().unwrap_or(Errno::ENOSYS))
}

// ---- the user namespace ----

fn namespace(maps: &Maps, proc: &Rc<Proc>) -> Option<Because> {
    let Maps::Of(fd, name) = maps else { return None };
    let said = |text: String| Some(Because::new(text));
    let inode = fstat(fd).ok()?.st_ino;
    let errno = ask(&Good::Asked(fd), proc)?;
    if errno == Errno::EPERM && inode == INITIAL_USER {
        return said(format!("{name} is the initial user namespace, and its ids are those on disk"));
    }
    if errno == Errno::EPERM {
        let uid = sys::ns_owner_uid(fd.as_fd()).map_or_else(|_| "another user".to_owned(), |uid| user::told(uid, proc));
        return said(format!("{name} belongs to {uid}, and we have no CAP_SYS_ADMIN in it"));
    }
    if Some(inode) == proc.ns_id("self", Kind::User) {
        // As that which mounted it, it is refused by a tmpfs that takes others.
        let own = takes(fresh(), &Good::New, proc).is_none();
        let own = own && takes(fresh(), &Good::Asked(fd), proc) == Some(Errno::EINVAL);
        return own.then(|| Because::new(format!("{name} is our own user namespace: maps come from one below it")));
    }
    let written = maps_of(fd, name, proc)?;
    let missing: Vec<&str> =
        IdKind::BOTH.into_iter().filter(|k| written.of(*k).is_none()).map(IdKind::map_file).collect();
    (!missing.is_empty()).then(|| Because::new(format!("{} of {name} has not been written", missing.join(" and "))))
}

/// A mount that takes others and refuses this one, which is good: then this is
/// the namespace that mounted the file system.
fn owner(asked: &Idmap, errno: Errno, proc: &Rc<Proc>) -> Option<Because> {
    let Some(Maps::Of(fd, name)) = &asked.maps else { return None };
    let again = takes(copied(asked.source.clone()), &Good::Asked(fd), proc);
    let mounts = concerned(&asked.source, false, proc).ok()?;
    let (mount, _) = mounts.first().filter(|_| errno == Errno::EINVAL && again == Some(Errno::EINVAL))?;
    let text = format!("{} was mounted by {name} itself: its ids are those on disk", quote(&mount.point));
    Some(Because::new(text))
}

// ---- the mounts ----

/// The mount that `source` is on, and with `recursive` those below it; with
/// where each can be found.
///
/// # Errors
/// Of one it cannot be found out whether it is below.
fn concerned(source: &Place, recursive: bool, proc: &Proc) -> Result<Vec<(Mount, PathBuf)>> {
    // A tree that is attached nowhere has no path.
    let path = if source.is_tree { source.real() } else { resolved(source)? };
    let mounts = proc.own_mounts()?;
    // By its path: the descriptor can be one of another mount namespace by now.
    let id = source.again().ok().and_then(|here| sys::mount_id(here.fd()).ok());
    let top = match id {
        Some(id) => mounts.iter().find(|m| m.id == id),
        None => mounts.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.len()),
    };
    let Some(top) = top else { return Ok(Vec::new()) };
    let is_below = |m: &&Mount| recursive && m.id != top.id && Path::new(&m.point).starts_with(&path);
    let mut below = Vec::new();
    for mount in mounts.iter().filter(is_below) {
        if is_uncovered(mount)? {
            below.push(mount);
        }
    }
    let mut all = vec![(top.clone(), path)];
    // The upper ones first.
    let depth = |m: &Mount| Path::new(&m.point).components().count();
    for level in 0..=below.iter().map(|m| depth(m)).max().unwrap_or(0) {
        let here = below.iter().filter(|m| depth(m) == level);
        all.extend(here.map(|m| ((*m).clone(), PathBuf::from(&m.point))));
    }
    Ok(all)
}

fn resolved(source: &Place) -> Result<PathBuf> {
    match fs::canonicalize(&source.path).map_err(errno) {
        // Through a link of /proc to where no path of ours leads.
        Err(Errno::ENOENT) => Ok(source.real()),
        path => path.map_err(|e| Failure::os(format!("resolve {}", quote(&source.path)), e)),
    }
}

/// Whether the path of a mount leads to it, and not to one that hides it. One that
/// is not for us to see may be there.
fn is_uncovered(mount: &Mount) -> Result<bool> {
    let opened = open(mount.point.as_os_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    match opened.and_then(|fd| sys::mount_id(fd.as_fd())) {
        Ok(id) => Ok(id == mount.id),
        Err(Errno::EACCES) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(e) => Err(Failure::os(format!("look at {}", quote(&mount.point)), e)),
    }
}

/// Why this mount takes no map.
fn reason(mount: &Mount, at: &Path, asked: &Idmap, proc: &Rc<Proc>) -> Option<Because> {
    let place = Place::at(at.as_os_str()).ok()?;
    let (point, fstype) = (quote(&mount.point), &mount.fstype);
    let idmapped = mount.options.split(',').any(|o| o == "idmapped");
    if idmapped && asked.remap {
        return None;
    }
    // What cannot be copied says nothing about maps; an unbindable mount below
    // the source is left out of the copy without a word.
    if copied(place.clone()).probe(proc).is_some() {
        return None;
    }
    let errno = takes(copied(place.clone()), &Good::New, proc)?;
    let text = if errno == Errno::EPERM && idmapped {
        let because = Because::new(format!("{point} is idmapped already{}", its_map(&place)));
        return Some(because.remedy_if(again("--remap").filter(|_| at == asked.source.real())));
    } else if errno == Errno::EPERM {
        let rule = "was mounted by a user namespace above ours, whose root alone can map it";
        format!("{point} ({fstype}) {rule}: it can be attached without a map")
    } else if errno == Errno::EINVAL {
        unsupported(&point, fstype, proc)
    } else {
        return None;
    };
    Some(Because::new(text))
}

fn its_map(place: &Place) -> String {
    let Some(maps) = mounted::under(place.fd()).ok().and_then(|m| m.maps) else { return String::new() };
    let words = |letter: &str, extents: &[Extent]| {
        let word = |e: &Extent| format!("{letter}{}:{}:{}", e.inside, e.outside, e.count);
        let more = if extents.len() > 3 { " ..." } else { "" };
        extents.iter().take(3).map(word).collect::<Vec<_>>().join(" ") + more
    };
    let text = if maps.uid == maps.gid {
        words("", &maps.uid)
    } else {
        format!("{} {}", words("u:", &maps.uid), words("g:", &maps.gid))
    };
    if text.trim().is_empty() { text } else { format!(" ({text})") }
}

/// Since when the file systems that take maps do: mount_setattr(2), and
/// FS_ALLOW_IDMAP in the sources of 6.1, 6.12 and 6.18.
const SINCE: [(&str, (u64, u64)); 14] = [
    ("ext4", (5, 12)),
    ("xfs", (5, 12)),
    ("vfat", (5, 12)),
    ("msdos", (5, 12)),
    ("btrfs", (5, 15)),
    ("ntfs3", (5, 15)),
    ("f2fs", (5, 18)),
    ("erofs", (5, 19)),
    ("squashfs", (6, 2)),
    ("tmpfs", (6, 3)),
    ("ceph", (6, 7)),
    ("hugetlbfs", (6, 9)),
    ("fuse", (6, 12)),
    ("fuseblk", (6, 12)),
];

fn unsupported(point: &str, fstype: &str, proc: &Proc) -> String {
    let a = if fstype.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let is = format!("{point} is {a} {fstype}");
    let base = fstype.split('.').next().unwrap_or(fstype);
    let since = SINCE.iter().find(|(name, _)| *name == base).map(|(_, since)| *since);
    match (since, proc.release()) {
        (Some((major, minor)), Some(now)) if now < (major, minor) => {
            format!(
                "{is} file system, which takes id maps since Linux {major}.{minor}, and this is {}.{}",
                now.0, now.1
            )
        }
        _ if ["fuse", "fuseblk", "virtiofs"].contains(&base) => {
            format!("{is} file system, whose server does not ask for id maps (FUSE_ALLOW_IDMAP)")
        }
        _ if base == "overlay" => {
            format!("{is} file system, which takes no id maps: its layers do, before they are laid over")
        }
        _ if base == "ext2" || base == "ext3" => {
            format!("{is} file system, which takes no id maps: the same disk mounted with type ext4 does")
        }
        _ => format!("{is} file system, which takes no id maps"),
    }
}

// ---- a part of the tree ----

/// A mount below a source.
pub struct Sub {
    /// Where it is.
    pub place: Place,
    /// The same, seen from the source.
    pub below: PathBuf,
    /// Why it takes no map; None if it does.
    pub plain: Option<String>,
}

/// The point of a mount that cannot be copied, and why.
type Left = (OsString, &'static str);

/// What is mounted below `source` and is in no copy of it, in words.
///
/// # Errors
/// Those of `submounts`.
pub fn unbindable(source: &Place, proc: &Proc) -> Result<Vec<String>> {
    let below = concerned(source, true, proc)?.into_iter().skip(1);
    let left = below.filter(|(mount, _)| is_unbindable(mount));
    Ok(left.map(|(mount, _)| format!("left out: {}, {UNBINDABLE}", quote(&mount.point))).collect())
}

const UNBINDABLE: &str = "it is unbindable";

fn is_unbindable(mount: &Mount) -> bool {
    mount.propagation.split(' ').any(|p| p == "unbindable")
}

/// Whether anything is mounted below `source`.
///
/// # Errors
/// Those of `submounts`.
pub fn has_submounts(source: &Place, proc: &Proc) -> Result<bool> {
    Ok(concerned(source, true, proc)?.len() > 1)
}

/// The mounts below `asked`'s source, each before those below it, and the
/// points of those that cannot be copied, with the reason.
///
/// # Errors
/// Of a mount it cannot be found out whether it is below.
pub fn submounts(asked: &Idmap, proc: &Rc<Proc>) -> Result<(Vec<Sub>, Vec<Left>)> {
    let (mut subs, mut left) = (Vec::new(), Vec::new());
    let path = asked.source.real();
    for (mount, at) in concerned(&asked.source, true, proc)?.into_iter().skip(1) {
        let (Ok(place), Ok(below)) = (Place::at(at.as_os_str()), at.strip_prefix(&path)) else {
            left.push((mount.point, "its path cannot be opened"));
            continue;
        };
        if is_unbindable(&mount) {
            left.push((mount.point, UNBINDABLE));
            continue;
        }
        let under_left = left.iter().any(|(point, _): &Left| at.starts_with(point));
        if under_left {
            left.push((mount.point, "what it is mounted on is left out"));
            continue;
        }
        let plain = reason(&mount, &at, asked, proc).map(|b| b.text);
        subs.push(Sub { place, below: below.to_owned(), plain });
    }
    Ok((subs, left))
}

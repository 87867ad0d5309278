//! Namespaces pinned to files: a bind mount of /proc/PID/ns/KIND keeps one
//! alive without a process. namespaces(7), mount_namespaces(7).

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Pid;

use super::{Done, Facts, Hands, Refusal, Step};
use crate::fail::{Because, Errno, Failure, Result, errno};
use crate::ns::Kind;
use crate::path::{not_opened, reason};
use crate::proc::Proc;
use crate::sys;
use crate::word::{quote, sudo};

/// An effect on pins.
pub enum Effect {
    /// Pin the namespace of this kind that the child is in to this file.
    Pin(Kind, OsString),
    /// In the child: be in a mount namespace with a greater number than that of
    /// the parent, which is this one.
    Newer(u64),
    /// Undo that.
    Unpin(OsString),
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, doing, asking) = (effect.clone(), effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

/// Proves, while planning, that something can be pinned to `file`.
///
/// # Errors
/// ENOENT, EBUSY, with what to do about them; EISDIR; ELOOP: it is a symbolic link.
pub fn check(file: &OsString) -> Result<()> {
    let said = |errno| Failure::os(format!("open {}", quote(file)), errno);
    match std::fs::symlink_metadata(file) {
        Ok(is) if is.is_symlink() => {
            // Whoever may change it would choose what root covers.
            let because =
                Because::new("it is a symbolic link, and what is pinned is not followed either when it is let go");
            Err(said(Errno::ELOOP).because(Some(because)))
        }
        Ok(is) if is.is_dir() => {
            let because = Because::new("a namespace is pinned to a file, and this is a directory");
            Err(said(Errno::EISDIR).because(Some(because)))
        }
        Ok(_) if look(file).and_then(|fd| is_pin(&fd)) == Ok(true) => {
            Err(said(Errno::EBUSY).because(Some(pinned(file))))
        }
        Ok(_) => Ok(()),
        Err(e) => {
            let errno = errno(e);
            let parent = std::path::Path::new(file).parent();
            let there = errno == Errno::ENOENT
                && !file.as_bytes().ends_with(b"/")
                && parent.is_none_or(|p| p.as_os_str().is_empty() || p.is_dir());
            if !there {
                return Err(not_opened(file, errno));
            }
            let because = Because::new("a namespace is pinned over a file that is there already");
            Err(said(errno).because(Some(because.remedy(format!("touch {}", quote(file))))))
        }
    }
}

fn pinned(file: &OsString) -> Because {
    Because::new("a namespace is pinned to it already").remedy(format!("{}ns-new --unpin {}", sudo(), quote(file)))
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Pin(kind, file) => format!("bind /proc/CHILD/ns/{} on {}", kind.link(), quote(file)),
            Effect::Newer(_) => "unshare CLONE_NEWNS on another CPU, if this one's number is too low".to_owned(),
            Effect::Unpin(file) => format!("umount {}", quote(file)),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Pin(..) => {
                "a namespace lives as long as a mount of its file; before the program runs, which may need it"
            }
            Effect::Newer(_) => {
                "so that no two can pin each other, only a newer mount namespace is pinned (ELOOP); the numbers that tell are given out by each CPU from its own stock"
            }
            Effect::Unpin(_) => "what nobody lives in goes with the mount",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Pin(kind, file) => {
                // By the same command, for another kind.
                if is_pin(&look(file)?)? {
                    return Err(Failure::os(self.act(), Errno::EBUSY).because(Some(pinned(file))).into());
                }
                let proc = Proc::open()?;
                let child = hands.child.as_ref().ok_or(Errno::ECHILD)?;
                let namespace = proc.ns(&child.who(&proc)?, *kind)?;
                let empty = sys::OPEN_TREE_CLONE | sys::AT_EMPTY_PATH;
                let tree = sys::open_tree(namespace.as_fd(), c"", empty)?;
                let private = keep_private(file, &proc)?;
                let (made, place) = (private.is_some(), private.map_or_else(|| look(file), Ok)?);
                if let Err(e) = sys::move_mount(tree.as_fd(), place.as_fd(), false) {
                    let _ = if made { unpin(file) } else { Ok(()) };
                    return Err(e.into());
                }
                let again = file.clone();
                hands.undo.push(Box::new(move || unpin(&again).unwrap_or_default()));
                Ok(())
            }
            Effect::Newer(parents) => be_newer(*parents),
            Effect::Unpin(file) => {
                if !is_pin(&look(file)?)? {
                    return Err(Failure::refused(format!("{}: no namespace is pinned here", self.act())).into());
                }
                Ok(unpin(file)?)
            }
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Pin(..) | Effect::Unpin(_) if errno == Errno::EPERM => facts.may_not_mount(),
            Effect::Unpin(file) => reason(file, errno, facts.proc),
            Effect::Pin(..) | Effect::Newer(_) => None,
        }
    }
}

/// The number of our mount namespace (Linux 6.11; before, they only grow).
pub fn own_number(proc: &Proc) -> Option<u64> {
    sys::mount_namespace_id(proc.ns("self", Kind::Mnt).ok()?.as_fd()).ok()
}

fn be_newer(parents: u64) -> Done {
    let proc = Proc::open()?;
    let is_newer = || own_number(&proc).is_none_or(|number| number > parents);
    if is_newer() {
        return Ok(());
    }
    let me = Pid::from_raw(0);
    let before = sched_getaffinity(me)?;
    for cpu in (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu).unwrap_or(false)) {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        sched_setaffinity(me, &only)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        if is_newer() {
            break;
        }
    }
    Ok(sched_setaffinity(me, &before)?)
}

fn look(file: &OsString) -> std::result::Result<OwnedFd, Errno> {
    open(file.as_os_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Where a mount passes on what is mounted on it, the file becomes a mount of
/// its own which does not: the kernel refuses to pass a mount namespace on, and
/// whoever got the others would keep them alive.
fn keep_private(file: &OsString, proc: &Proc) -> std::result::Result<Option<OwnedFd>, Refusal> {
    let place = look(file)?;
    let id = sys::mount_id(place.as_fd())?;
    let shared = proc.own_mounts()?.iter().any(|m| m.id == id && m.propagation.contains("shared:"));
    if !shared {
        return Ok(None);
    }
    let own = sys::open_tree(place.as_fd(), c"", sys::OPEN_TREE_CLONE | sys::AT_EMPTY_PATH)?;
    sys::move_mount(own.as_fd(), place.as_fd(), false)?;
    let path = format!("/proc/self/fd/{}", own.as_raw_fd());
    // Only now: what is attached where mounts are passed on becomes shared.
    if let Err(e) = mount(None::<&str>, path.as_str(), None::<&str>, MsFlags::MS_PRIVATE, None::<&str>) {
        let _ = umount2(file.as_os_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        return Err(e.into());
    }
    Ok(Some(own))
}

fn is_pin(file: &OwnedFd) -> std::result::Result<bool, Errno> {
    const NSFS_MAGIC: FsType = FsType(0x6e73_6673);
    Ok(fstatfs(file)?.filesystem_type() == NSFS_MAGIC)
}

/// Takes a pin away, and the mount that was made below it.
fn unpin(file: &OsString) -> std::result::Result<(), Errno> {
    let path = CString::new(file.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let gone = || umount2(path.as_c_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    if is_pin(&look(file)?)? {
        gone()?;
    }
    if is_of_itself(&look(file)?).unwrap_or(false) { gone() } else { Ok(()) }
}

/// Whether what is mounted there is what it is mounted on, as `keep_private` does it.
fn is_of_itself(file: &OwnedFd) -> Option<bool> {
    let id = sys::mount_id(file.as_fd()).ok().filter(|_| sys::is_mount_root(file.as_fd()) == Ok(true))?;
    let mounts = Proc::open().ok()?.own_mounts().ok()?;
    let own = mounts.iter().find(|m| m.id == id)?;
    let on = mounts.iter().find(|m| m.id == own.parent)?;
    let path = Path::new(&on.root).join(Path::new(&own.point).strip_prefix(&on.point).ok()?);
    Some(on.device == own.device && path == Path::new(&own.root))
}

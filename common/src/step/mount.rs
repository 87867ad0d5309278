//! Mounts: a new root and what belongs into it. mount_namespaces(7),
//! pivot_root(2), fsopen(2).
//!
//! A new file system is made by descriptors (fsopen, fsconfig, fsmount): then
//! the kernel says in words what it does not like. Every place inside the new
//! root is looked up by openat2(2) with RESOLVE_IN_ROOT and mounted on as a
//! descriptor, so that no symbolic link of the root leads out of it.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::tree;
use super::{Done, Facts, Hands, Refusal, Step, TREE};
use crate::fail::{Because, Errno, Failure};
use crate::ns::Kind;
use crate::path::{Place, not_opened};
use crate::proc::Mount;
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
    /// Make a directory a mount of its own: the new root.
    BindRoot(Place),
    /// A new file system that is attached nowhere: whether it can be made.
    Try(&'static str, u64),
    /// Make an overlay the new root.
    Overlay(Layers),
    /// Let the new root be only read; what is mounted below it stays as it is.
    ReadOnly,
    /// Make the new root the root, and let the old one go.
    Pivot,
}

/// What an overlay is made of (overlayfs, Documentation/filesystems).
pub struct Layers {
    /// Directories that are only read, the uppermost first; the last is where
    /// the overlay is attached, in this mount namespace alone.
    pub lower: Vec<Place>,
    /// Where changes go, and a directory for the kernel beside it; else a
    /// tmpfs that is gone with the mount namespace.
    pub upper: Option<(Place, Place)>,
    /// Whether it writes user.overlay attributes: in a user namespace it may
    /// not write those of trusted.overlay, and without them a directory cannot
    /// be removed and made again.
    pub userxattr: bool,
}

impl Layers {
    fn root(&self) -> String {
        self.lower.last().map(Place::name).unwrap_or_default()
    }

    fn said(&self) -> String {
        let lower: Vec<String> = self.lower.iter().map(Place::name).collect();
        let upper = self.upper.as_ref().map_or_else(
            || "upper and work on a tmpfs".to_owned(),
            |(upper, work)| format!("upper {} work {}", upper.name(), work.name()),
        );
        let attributes = if self.userxattr { " userxattr" } else { "" };
        format!("lower {} {upper}{attributes}", lower.join(" "))
    }

    /// Which layer it does not take (EINVAL): ovl_fill_super() writes that only
    /// to the kernel's log.
    fn refused(&self) -> Option<Because> {
        if let Some((upper, work)) = &self.upper {
            if sys::mount_id(upper.fd()).ok()? != sys::mount_id(work.fd()).ok()? {
                let text = format!("{} and {} are on different mounts", upper.name(), work.name());
                return Some(Because::new(text));
            }
            if work.real().starts_with(upper.real()) || upper.real().starts_with(work.real()) {
                let text = format!("{} and {} are not beside each other", upper.name(), work.name());
                return Some(Because::new(text));
            }
        }
        None
    }

    /// The failure that layer `n` is the reason of.
    fn locked(&self, n: usize) -> Refusal {
        let name = self.lower.get(n).map(Place::name).unwrap_or_default();
        let text = format!("mounts below {name} are locked to it, and a layer is taken without them");
        Failure::os(format!("mount overlay on {}", self.root()), Errno::EINVAL).because(Some(Because::new(text))).into()
    }
}

/// What a proc needs to be: nobody has programs or devices there.
const HARMLESS: u64 = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;

/// The name under which the new root is handed on.
pub(super) const ROOT: &str = "new root";

pub(super) fn c(path: impl AsRef<OsStr>) -> CString {
    // No NUL: it came from argv or is a constant of ours.
    CString::new(path.as_ref().as_bytes()).unwrap_or_default()
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (doing, asking) = (effect.clone(), effect.clone());
        let step = Step::new(effect.act(), effect.detail(), effect.why(), move |hands| doing.perform(hands));
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Slave => "mount / MS_REC|MS_SLAVE".into(),
            Effect::Propagate(how) => format!("mount / MS_REC|MS_{}", how.to_uppercase()),
            Effect::Proc(at) => format!("mount proc on {}", quote(at)),
            Effect::BindRoot(place) => format!("bind {} on itself", quote(&place.path)),
            Effect::Try(fstype, _) => format!("fsmount {fstype}"),
            Effect::Overlay(layers) => format!("mount overlay on {}", layers.root()),
            Effect::ReadOnly => "mount_setattr NEWROOT ro".into(),
            Effect::Pivot => "pivot_root . .".into(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Overlay(layers) => layers.said(),
            Effect::Pivot => "and detach the old root".into(),
            Effect::Proc(_) => tree::attribute_names(HARMLESS).collect::<Vec<_>>().join(","),
            Effect::Slave | Effect::Propagate(_) | Effect::BindRoot(_) | Effect::Try(..) | Effect::ReadOnly => {
                String::new()
            }
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
            Effect::Overlay(_) => {
                "the directories below are only read; userxattr, since a user namespace may not write the attributes of trusted.overlay"
            }
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
                let tree = new_mount(c"proc", &[], HARMLESS)?;
                Ok(sys::move_mount(tree.as_fd(), place.as_fd(), false)?)
            }
            Effect::BindRoot(place) => {
                let tree = tree::copy(place, true)?;
                let at =
                    open(place.path.as_os_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
                sys::move_mount(tree.as_fd(), at.as_fd(), false)?;
                hands.put(ROOT, tree);
                Ok(())
            }
            Effect::Try(fstype, attributes) => {
                hands.put(TREE, new_mount(&c(fstype), &[], *attributes)?);
                Ok(())
            }
            Effect::Overlay(layers) => {
                hands.put(ROOT, overlay(layers)?);
                Ok(())
            }
            Effect::ReadOnly => Ok(sys::mount_setattr(hands.get(ROOT)?, false, sys::MOUNT_ATTR_RDONLY, None)?),
            Effect::Pivot => pivot(hands.get(ROOT)?),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Slave | Effect::Propagate(_) if errno == Errno::EINVAL && facts.proc.is_chrooted() => {
                Some(Because::new("this process is chrooted: its / is not a mount point"))
            }
            Effect::Try(fstype @ ("proc" | "sysfs"), _) if errno == Errno::EPERM => revealing(fstype, facts),
            Effect::Proc(_) if errno == Errno::EPERM => revealing("proc", facts),
            Effect::Slave
            | Effect::Propagate(_)
            | Effect::BindRoot(_)
            | Effect::Overlay(_)
            | Effect::ReadOnly
            | Effect::Pivot
                if errno == Errno::EPERM =>
            {
                facts.may_not_mount().or_else(|| forbidden(facts))
            }
            Effect::BindRoot(place) if errno == Errno::ENOENT => {
                let removed = fstat(place.fd()).is_ok_and(|stat| stat.st_nlink == 0);
                removed.then(|| Because::new(format!("{} has been removed", place.name())))
            }
            Effect::Overlay(layers) if errno == Errno::EINVAL => layers.refused(),
            Effect::Slave
            | Effect::Propagate(_)
            | Effect::Proc(_)
            | Effect::BindRoot(_)
            | Effect::Try(..)
            | Effect::Overlay(_)
            | Effect::ReadOnly
            | Effect::Pivot => None,
        }
    }
}

// ---- how ----

/// Makes a file system; a refusal carries what the kernel says about it.
pub(super) fn new_mount(
    fstype: &CStr,
    options: &[(String, String)],
    attributes: u64,
) -> std::result::Result<OwnedFd, Refusal> {
    let context = sys::fsopen(fstype)?;
    let made = options
        .iter()
        .try_for_each(|(key, value)| {
            let value = c(value);
            sys::fsconfig(context.as_fd(), &c(key), (!value.is_empty()).then_some(value.as_c_str()))
        })
        .and_then(|()| sys::fsmount(context.as_fd(), attributes));
    made.map_err(|errno| {
        // The messages of fsopen(2): one a read, `e ` before an error.
        let mut text = [0; 512];
        let n = nix::unistd::read(&context, &mut text).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..n]).into_owned();
        Refusal::Os(errno, text.trim().strip_prefix("e ").unwrap_or_default().to_owned())
    })
}

/// Whether mounts below an open directory are locked to it: see `tree`. What is
/// at its path by now may be another.
fn is_locked(fd: &OwnedFd) -> bool {
    let copy = |flags| sys::open_tree(fd.as_fd(), c"", sys::OPEN_TREE_CLONE | sys::AT_EMPTY_PATH | flags);
    copy(0).err() == Some(Errno::EINVAL) && copy(sys::AT_RECURSIVE).is_ok()
}

/// Makes an overlay and attaches it where its last lower directory is. Layers
/// are named by descriptors of ours: a path may have any byte in it, and the
/// options of overlay cannot.
fn overlay(layers: &Layers) -> std::result::Result<OwnedFd, Refusal> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open_again = |place: &Place| -> std::result::Result<OwnedFd, Refusal> {
        let fd = open(place.path.as_os_str(), flags, Mode::empty())?;
        place.check(&fd)?;
        Ok(fd)
    };
    let lower: Vec<OwnedFd> = layers.lower.iter().map(open_again).collect::<std::result::Result<_, _>>()?;
    let at = lower.last().ok_or(Errno::ENOENT)?;
    let named = |fd: &OwnedFd, below: &str| format!("/proc/self/fd/{}{below}", fd.as_raw_fd());
    let (kept, upper, work) = match &layers.upper {
        Some((upper, work)) => {
            let (upper, work) = (open_again(upper)?, open_again(work)?);
            let names = (named(&upper, ""), named(&work, ""));
            (vec![upper, work], names.0, names.1)
        }
        None => {
            let tmpfs = new_mount(c"tmpfs", &[("mode".into(), "700".into())], sys::MOUNT_ATTR_NODEV)?;
            // Attached, since a layer has to be on a mount of this namespace;
            // here, since everything at this place is ours alone to see.
            sys::move_mount(tmpfs.as_fd(), at.as_fd(), false)?;
            // The root directory that will be seen is the upper one.
            let mode = fstat(lower.first().unwrap_or(at))?.st_mode & 0o7777;
            let (upper, work) = ("upper", "work");
            for name in [upper, work] {
                mkdirat(&tmpfs, name, Mode::from_bits_truncate(0o755))?;
                fchmodat(&tmpfs, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
            }
            let names = (named(&tmpfs, "/upper"), named(&tmpfs, "/work"));
            (vec![tmpfs], names.0, names.1)
        }
    };
    let lowers: Vec<String> = lower.iter().map(|fd| named(fd, "")).collect();
    let mut options = vec![("upperdir", upper), ("workdir", work), ("lowerdir", lowers.join(":"))];
    if layers.userxattr {
        options.push(("userxattr", String::new()));
    }
    let options: Vec<(String, String)> = options.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let tree = new_mount(c"overlay", &options, 0).map_err(|refusal| match lower.iter().position(is_locked) {
        Some(n) if matches!(refusal, Refusal::Os(Errno::EINVAL, _)) => layers.locked(n),
        _ => refusal,
    })?;
    let on = if layers.upper.is_none() { kept.first().unwrap_or(at) } else { at };
    sys::move_mount(tree.as_fd(), on.as_fd(), false)?;
    Ok(tree)
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

/// Whether mount(2) is refused as such: a type that there is not is ENODEV, but
/// security modules are asked before (path_mount() in fs/namespace.c).
fn forbidden(facts: &Facts<'_>) -> Option<Because> {
    let status = facts.proc.text(&format!("{}/status", facts.who))?;
    let filtered = !status.lines().any(|line| line == "Seccomp:\t0");
    let probe = mount(None::<&str>, "/", Some("no such type"), MsFlags::empty(), None::<&str>);
    let text = "a security module refuses every mount(2) of this process, as a Landlock domain does";
    (!filtered && probe == Err(Errno::EPERM)).then(|| Because::new(text))
}

/// Directories that are empty in every proc and sysfs for ever: the kernel
/// makes them only to be mounted on, so that a cover hides nothing
/// (proc_create_mount_point(), sysfs_create_mount_point()).
const MOUNT_POINTS: [&str; 14] = [
    "fs/nfsd",
    "openprom",
    "sys/fs/binfmt_misc",
    "firmware/efi/efivars",
    "fs/bpf",
    "fs/cgroup",
    "fs/fuse/connections",
    "fs/pstore",
    "fs/resctrl",
    "fs/selinux",
    "fs/smackfs",
    "kernel/config",
    "kernel/debug",
    "kernel/tracing",
];

/// Why a new proc or sysfs was refused: mount_too_revealing() in
/// fs/namespace.c. In a user namespace one has to be visible already, and
/// without a locked cover on anything.
pub(super) fn revealing(fstype: &str, facts: &Facts<'_>) -> Option<Because> {
    let foreign = if fstype == "proc" { facts.foreign(Kind::Pid, "-p") } else { facts.foreign(Kind::Net, "-n") };
    if foreign.is_some() {
        return foreign;
    }
    let mounts = facts.proc.mounts(facts.who);
    let whole: Vec<&Mount> = mounts.iter().filter(|m| m.fstype == fstype && m.root == "/").collect();
    let Some(first) = whole.first() else {
        let rule = "and a user namespace may only mount what it can see already";
        return Some(Because::new(format!("no {fstype} file system is visible in this mount namespace, {rule}")));
    };
    let covers: Vec<Option<&Mount>> = whole.iter().map(|m| cover(m, &mounts)).collect();
    // One that nothing hides is enough, so each has to be covered.
    let cover = covers.iter().rev().find_map(|c| *c).filter(|_| covers.iter().all(Option::is_some))?;
    let locked = cover.point.as_str();
    if !tree::is_locked_to(&first.point) {
        return None;
    }
    let by = format!("covered at {locked} by {}", cover.fstype);
    Some(Because::new(format!("the {fstype} that is visible here is {by}: a new one would uncover it")))
}

/// A mount that hides a part of `whole`.
fn cover<'a>(whole: &Mount, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let hides = |m: &&Mount| {
        let below = m.point.strip_prefix(&whole.point).map(|p| p.trim_start_matches('/'));
        m.parent == whole.id && below.is_some_and(|p| !MOUNT_POINTS.contains(&p))
    };
    mounts.iter().find(hides)
}

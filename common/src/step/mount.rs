//! Mounts: a new root and what belongs into it. mount_namespaces(7),
//! pivot_root(2), fsopen(2).
//!
//! A new file system is made by descriptors (fsopen, fsconfig, fsmount): then
//! the kernel says in words what it does not like. Every place inside the new
//! root is looked up by openat2(2) with RESOLVE_IN_ROOT and mounted on as a
//! descriptor, so that no symbolic link of the root leads out of it.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{chdir, fchdir, pivot_root, symlinkat};

use super::tree::{self, attribute_names};
use super::{Done, Facts, Hands, Refusal, Step, TREE};
use crate::fail::{Because, Errno, Failure};
use crate::ns::Kind;
use crate::path::Place;
use crate::proc::Mount;
use crate::sys;
use crate::word::quote;

/// An effect on mounts.
pub enum Effect {
    /// Let no mount of ours reach the namespaces that this one was copied from.
    Slave,
    /// Make a directory a mount of its own: the new root.
    BindRoot(Place),
    /// A new file system in the new root: type, options, attributes, where.
    New {
        /// As mount(8) knows it.
        fstype: &'static str,
        /// Options with their values, "" for a flag.
        options: Vec<(&'static str, String)>,
        /// MOUNT_ATTR_* bits.
        attributes: u64,
        /// Where in the new root, without a leading slash.
        at: &'static str,
    },
    /// A new file system that is attached nowhere: whether it can be made.
    Try(&'static str, u64),
    /// A device node of the present root, bound at the same place in the new.
    Device(&'static str, (u64, u64)),
    /// A symbolic link in the new root: where it leads, where it is.
    Link(&'static str, &'static str),
    /// Make the new root the root, and let the old one go.
    Pivot,
}

/// The name under which the new root is handed on.
const ROOT: &str = "new root";

fn c(path: impl AsRef<OsStr>) -> CString {
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
            Effect::BindRoot(place) => format!("bind {} on itself", quote(&place.path)),
            Effect::New { fstype, at, .. } => format!("mount {fstype} on NEWROOT/{at}"),
            Effect::Try(fstype, _) => format!("fsmount {fstype}"),
            Effect::Device(name, _) => format!("bind /dev/{name} on NEWROOT/dev/{name}"),
            Effect::Link(to, at) => format!("symlink {to} NEWROOT/{at}"),
            Effect::Pivot => "pivot_root . .".into(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::New { options, attributes, .. } => {
                let mut words: Vec<String> = options
                    .iter()
                    .map(|(k, v)| if v.is_empty() { (*k).to_owned() } else { format!("{k}={v}") })
                    .collect();
                words.extend(attribute_names(*attributes).map(str::to_owned));
                words.join(",")
            }
            Effect::Pivot => "and detach the old root".into(),
            Effect::Slave | Effect::BindRoot(_) | Effect::Try(..) | Effect::Device(..) | Effect::Link(..) => {
                String::new()
            }
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Slave => "a shared mount passes every mount and umount on to its peers, out of this namespace too",
            Effect::BindRoot(_) => {
                "pivot_root(2) wants a mount, and a locked mount counts only as a copy; with its submounts, since those may be locked to it"
            }
            Effect::New { fstype: "proc" | "sysfs", .. } => {
                "before the pivot: a user namespace may mount it only while another one is visible"
            }
            Effect::New { .. } => {
                "file systems that a user namespace may mount: tmpfs, devpts, proc, sysfs, mqueue, cgroup2, overlay, FUSE"
            }
            Effect::Try(..) => "",
            Effect::Device(..) => "a user namespace may not make device nodes; the ones outside can be bound",
            Effect::Link(..) => "programs expect it",
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
            Effect::BindRoot(place) => {
                let tree = tree::copy(place, true)?;
                let at =
                    open(place.path.as_os_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
                sys::move_mount(tree.as_fd(), at.as_fd(), false)?;
                hands.put(ROOT, tree);
                Ok(())
            }
            Effect::New { fstype, options, attributes, at } => {
                let place = directory_in(hands.get(ROOT)?, at)?;
                let tree = new_mount(&c(fstype), options, *attributes)?;
                Ok(sys::move_mount(tree.as_fd(), place.as_fd(), false)?)
            }
            Effect::Try(fstype, attributes) => {
                hands.put(TREE, new_mount(&c(fstype), &[], *attributes)?);
                Ok(())
            }
            Effect::Device(name, same) => bind_device(hands.get(ROOT)?, name, *same),
            Effect::Link(to, at) => {
                let (parent, name) = parent_in(hands.get(ROOT)?, at)?;
                Ok(symlinkat(*to, &parent, name)?)
            }
            Effect::Pivot => pivot(hands.get(ROOT)?),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Slave if errno == Errno::EINVAL && facts.proc.is_chrooted() => {
                Some(Because::new("this process is chrooted: its / is not a mount point"))
            }
            Effect::New { fstype: fstype @ ("proc" | "sysfs"), .. } | Effect::Try(fstype @ ("proc" | "sysfs"), _)
                if errno == Errno::EPERM =>
            {
                revealing(fstype, facts)
            }
            Effect::Slave | Effect::BindRoot(_) | Effect::New { .. } | Effect::Device(..) | Effect::Pivot
                if errno == Errno::EPERM =>
            {
                facts.may_not_mount()
            }
            Effect::Slave
            | Effect::BindRoot(_)
            | Effect::New { .. }
            | Effect::Try(..)
            | Effect::Device(..)
            | Effect::Link(..)
            | Effect::Pivot => None,
        }
    }
}

// ---- inside the new root ----

/// The directory of `path` below `root`, and its last component.
fn parent_in<'a>(root: BorrowedFd<'_>, path: &'a str) -> std::result::Result<(OwnedFd, &'a str), Errno> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    Ok((sys::open_in_root(root, &c(parent), libc::O_PATH | libc::O_DIRECTORY, 0)?, name))
}

/// Opens the directory `path` below `root`, made if it is missing.
fn directory_in(root: BorrowedFd<'_>, path: &str) -> std::result::Result<OwnedFd, Errno> {
    let opened = || sys::open_in_root(root, &c(path), libc::O_PATH | libc::O_DIRECTORY, 0);
    match opened() {
        Err(Errno::ENOENT) => {
            let (parent, name) = parent_in(root, path)?;
            mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
            opened()
        }
        other => other,
    }
}

/// Makes a file system; a refusal carries what the kernel says about it.
fn new_mount(fstype: &CStr, options: &[(&str, String)], attributes: u64) -> std::result::Result<OwnedFd, Refusal> {
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

/// Binds a device node, from a descriptor proven to be that device: a path
/// could have been exchanged for a link meanwhile.
fn bind_device(root: BorrowedFd<'_>, name: &str, (major, minor): (u64, u64)) -> Done {
    let dev = open("/dev", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let tree = sys::open_tree(dev.as_fd(), &c(name), sys::OPEN_TREE_CLONE)?;
    let stat = fstat(&tree)?;
    let is_character = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if !is_character || stat.st_rdev != nix::sys::stat::makedev(major, minor) {
        return Err(Failure::refused(format!("bind /dev/{name}: it is not the device {major}:{minor}")).into());
    }
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
    let at = sys::open_in_root(root, &c(format!("dev/{name}")), flags, 0o666)?;
    Ok(sys::move_mount(tree.as_fd(), at.as_fd(), false)?)
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
fn revealing(fstype: &str, facts: &Facts<'_>) -> Option<Because> {
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

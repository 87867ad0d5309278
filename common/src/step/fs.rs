//! New file systems, attached nowhere yet, and why one was refused. fsopen(2).
//!
//! They are made by descriptors (fsopen, fsconfig, fsmount): then the kernel
//! says in words what it does not like about the options. Why it refuses as
//! such (EPERM) it does not say.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::makedev;

use super::tree::why;
use super::{Facts, Refusal};
use crate::fail::{Again, Because, Errno, Failure};
use crate::id::{Kind as IdKind, number};
use crate::ns::{INITIAL_USER, Kind};
use crate::proc::{Mount, Proc};
use crate::sys;
use crate::word::quote;

pub(super) fn c(path: impl AsRef<OsStr>) -> CString {
    // No NUL: it came from argv, a line that was looked at, or a constant.
    CString::new(path.as_ref().as_bytes()).unwrap_or_default()
}

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
        // It repeats what it was told, which is not for a terminal to obey.
        let text = String::from_utf8_lossy(&text[..n]).trim().replace(char::is_control, "?");
        Refusal::Os(errno, text.strip_prefix("e ").unwrap_or_default().to_owned())
    })
}

// ---- why not ----

/// Why a file system of type `fstype` could not be made.
pub(super) fn refused(
    fstype: &str,
    options: &[(String, String)],
    attributes: u64,
    errno: Errno,
    facts: &Facts<'_>,
) -> Option<Because> {
    if errno == Errno::EINVAL {
        return unfit(options, facts).or_else(|| fuse(options, facts).filter(|_| fstype == "fuse"));
    }
    if errno == Errno::ENODEV {
        let known = facts.proc.text("filesystems")?;
        let missing = !known.lines().any(|line| line.split('\t').nth(1) == Some(fstype));
        return missing
            .then(|| Because::new(format!("this kernel has no file system {}: see /proc/filesystems", quote(fstype))));
    }
    if errno != Errno::EPERM {
        return None;
    }
    let own = match fstype {
        "proc" | "sysfs" => another(fstype, facts).or_else(|| revealing(fstype, attributes, facts)),
        "mqueue" => facts.foreign(Kind::Ipc),
        "cgroup" => facts.foreign(Kind::Cgroup).or_else(|| hierarchy(options, facts)),
        "cgroup2" => facts.foreign(Kind::Cgroup),
        _ => not_for_us(fstype, facts).filter(|_| facts.may_not_mount().is_none()),
    };
    own.or_else(|| facts.may_not_mount())
}

/// The option that no file system can take here (EINVAL).
fn unfit(options: &[(String, String)], facts: &Facts<'_>) -> Option<Because> {
    // fsconfig(2) copies a value of up to 256 bytes with its NUL.
    if let Some((key, _)) = options.iter().find(|(_, value)| value.len() > 255) {
        return Some(Because::new(format!("the value of option {} has more than 255 bytes", quote(key))));
    }
    options.iter().find_map(|(key, value)| {
        let kind = IdKind::BOTH.into_iter().find(|kind| kind.word() == key)?;
        let id = number(value.as_bytes())?;
        let map = facts.proc.map(facts.who, kind)?;
        let mapped = u32::try_from(id).is_ok_and(|id| map.iter().any(|e| e.inside().has(id)));
        (!mapped).then(|| Because::new(format!("{key} {id} is not mapped in this user namespace")))
    })
}

/// What FUSE wants: a descriptor of its device, on which somebody answers
/// (fuse_fill_super()).
fn fuse(options: &[(String, String)], facts: &Facts<'_>) -> Option<Because> {
    let get = |key: &str| options.iter().find(|(k, _)| k == key).map(|(_, value)| value);
    if let Some(key) = ["fd", "rootmode", "user_id", "group_id"].into_iter().find(|key| get(key).is_none()) {
        return Some(Because::new(format!("{key}= is missing, one of fd=, rootmode=, user_id= and group_id=")));
    }
    let n = number(get("fd")?.as_bytes())?;
    let text = match facts.proc.stat(&format!("{}/fd/{n}", facts.who)) {
        None => format!("descriptor {n} is not open"),
        Some(stat) if stat.st_rdev == makedev(10, 229) => return None,
        Some(_) => format!("descriptor {n} is not one of /dev/fuse"),
    };
    Some(Because::new(text))
}

/// A cgroup hierarchy of version 1 that there is not: only the initial cgroup
/// namespace makes one (cgroup1_root_to_use()).
fn hierarchy(options: &[(String, String)], facts: &Facts<'_>) -> Option<Because> {
    let (there, known) = (facts.proc.text(&format!("{}/cgroup", facts.who))?, facts.proc.text("cgroups")?);
    let is_controller = |word: &str| known.lines().any(|line| line.split('\t').next() == Some(word));
    let is_there = |word: &str| {
        let mut lists = there.lines().filter_map(|line| line.split(':').nth(1));
        lists.any(|list| list.split(',').any(|each| each == word))
    };
    let asked = options.iter().filter_map(|(key, value)| match key.as_str() {
        "name" => Some(format!("name={value}")),
        word => is_controller(word).then(|| word.to_owned()),
    });
    let missing = asked.into_iter().find(|word| !is_there(word))?;
    let text = format!("there is no cgroup hierarchy with {missing}, and only the initial cgroup namespace makes one");
    facts.may_not_mount().is_none().then(|| Because::new(text))
}

/// A type of file system that no user namespace may mount (FS_USERNS_MOUNT):
/// it is refused where another is not.
fn not_for_us(fstype: &str, facts: &Facts<'_>) -> Option<Because> {
    let initial = facts.proc.ns_id(facts.who, Kind::User) == Some(INITIAL_USER);
    let refused = |fstype: &CStr| matches!(new_mount(fstype, &[], 0), Err(Refusal::Os(Errno::EPERM, _)));
    let refused = refused(&c(fstype)) && !refused(c"tmpfs");
    let text = format!("file systems of type {fstype} may not be mounted by a user namespace");
    (!initial && refused).then(|| Because::new(text))
}

/// Directories that are empty in every proc and sysfs for ever: the kernel
/// makes them only to be mounted on, so that a cover hides nothing
/// (proc_create_mount_point(), sysfs_create_mount_point()).
const MOUNT_POINTS: [&str; 17] = [
    "fs/nfsd",
    "openprom",
    "sys/fs/binfmt_misc",
    "xen",
    "firmware/efi/efivars",
    "fs/bpf",
    "fs/cgroup",
    "fs/fuse/connections",
    "fs/pstore",
    "fs/resctrl",
    "fs/selinux",
    "fs/smackfs",
    "hypervisor/s390",
    "kernel/config",
    "kernel/debug",
    "kernel/security",
    "kernel/tracing",
];

/// Why a new proc or sysfs was refused: mount_too_revealing() in
/// fs/namespace.c. In a user namespace one has to be visible already, without a
/// locked cover on anything, and not with less rights than the new one.
fn revealing(fstype: &str, attributes: u64, facts: &Facts<'_>) -> Option<Because> {
    let mounts = facts.proc.mounts(facts.who);
    let whole: Vec<&Mount> = mounts.iter().filter(|m| m.fstype == fstype && m.root == "/").collect();
    if whole.is_empty() {
        let rule = "and a user namespace may only mount what it can see already";
        return Some(Because::new(format!("no {fstype} file system is visible in this mount namespace, {rule}")));
    }
    // One that nothing speaks against is enough, so each has to have something.
    let against: Option<Vec<(bool, String)>> = whole.iter().map(|m| against(m, attributes, &mounts)).collect();
    let against = against?;
    // What can be cured is told first, of the mounts that came last.
    let (_, text) = against.iter().rev().find(|(cured, _)| *cured).or(against.last())?;
    // What is at the usual place can be bound, if it is one.
    let (at, old, new) =
        if fstype == "proc" { ("/proc", "--proc", "--bind=/proc") } else { ("/sys", "--sys", "--bind-ro=/sys") };
    let there = mounts.iter().rfind(|m| m.point == at).is_some_and(|m| m.fstype == fstype);
    let because = Because::new(format!("the {fstype} that is visible here is {text}"));
    Some(if there { because.again(Again::Word(old, new)) } else { because })
}

/// The namespace that a proc or sysfs shows is not for us.
fn another(fstype: &str, facts: &Facts<'_>) -> Option<Because> {
    if fstype == "proc" { foreign_pid(facts) } else { facts.foreign(Kind::Net) }
}

/// The refusal of a new proc or sysfs with its reason, if that is what is
/// visible: which covers are locked only who is in their mount namespace can
/// try out, and a parent may look for reasons from another.
pub(super) fn tried_here(refusal: Refusal, act: String, fstype: &str, attributes: u64) -> Refusal {
    let found = || {
        let proc = Proc::open().ok()?;
        let facts = Facts { proc: &proc, who: "self", child: None, root: None, cwd: None, path: None };
        if another(fstype, &facts).is_some() {
            return None;
        }
        let because = revealing(fstype, attributes, &facts)?;
        Some(Failure::os(act, Errno::EPERM).because(Some(because)).into())
    };
    let asked = matches!(refusal, Refusal::Os(Errno::EPERM, _)) && ["proc", "sysfs"].contains(&fstype);
    if asked { found().unwrap_or(refusal) } else { refusal }
}

/// A pid namespace is for children: who has made one is not in it.
fn foreign_pid(facts: &Facts<'_>) -> Option<Because> {
    let foreign = facts.foreign(Kind::Pid)?;
    let id = |link: &str| facts.proc.stat(&format!("{}/ns/{link}", facts.who)).map(|s| s.st_ino);
    // Until the first child is born the second leads nowhere.
    let waits = id("pid").is_some_and(|own| id("pid_for_children") != Some(own));
    let text = "a pid namespace has been made, and only children will be in it: fork first (ns-new -p)";
    Some(if waits { Because::new(text).again(Again::Namespace('p')) } else { foreign })
}

/// What speaks against a new one beside `whole`, and whether other options
/// would cure that.
fn against(whole: &Mount, attributes: u64, mounts: &[Mount]) -> Option<(bool, String)> {
    let has = |options: &str, word: &str| options.split(',').any(|o| o == word);
    let at = quote(&whole.point);
    let read_only = has(&whole.super_options, "ro")
        || has(&whole.options, "ro") && why::is_kept(&whole.point, sys::MOUNT_ATTR_RDONLY);
    if read_only && attributes & sys::MOUNT_ATTR_RDONLY == 0 {
        return Some((true, format!("read-only at {at}, and a new one would not be")));
    }
    let times = |noatime: bool| if noatime { "noatime" } else { "relatime" };
    let (old, new) = (times(has(&whole.options, "noatime")), times(attributes & sys::MOUNT_ATTR_NOATIME != 0));
    if old != new && why::is_kept(&whole.point, sys::MOUNT_ATTR_NOATIME) {
        return Some((true, format!("{old} at {at}, and a new one would be {new}")));
    }
    let cover = cover(whole, mounts)?;
    let (point, by) = (quote(&cover.point), &cover.fstype);
    Some((false, format!("covered at {point} by {by}: a new one would uncover it")))
}

/// A mount that hides a part of `whole` and is locked.
fn cover<'a>(whole: &Mount, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let hides = |m: &&Mount| {
        let below = Path::new(&m.point).strip_prefix(&whole.point);
        let known = |below: &Path| MOUNT_POINTS.iter().any(|point| below == Path::new(point));
        m.parent == whole.id && below.is_ok_and(|p| !known(p)) && why::is_locked_on(m, mounts)
    };
    mounts.iter().find(hides)
}

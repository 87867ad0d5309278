//! What newer kernels have, asked of the kernel at hand: a version number says
//! little about one that a distribution has changed.

use std::os::fd::AsFd;

use nix::sys::stat::fstat;

use crate::fail::{Because, Errno, Failure};
use crate::ns::Kind;
use crate::proc::Proc;
use crate::sys;
use crate::target::pidfs_inode;

/// Something that not every kernel has.
pub struct Feature {
    /// What it is good for.
    pub what: &'static str,
    /// The first release of Linux that has it.
    pub since: &'static str,
    /// Whether it is here.
    pub here: bool,
}

/// All that nskit uses, or would.
pub fn all(proc: &Proc) -> Vec<Feature> {
    let me = i32::try_from(std::process::id()).unwrap_or(-1);
    let inode = sys::pidfd_open(me).ok().and_then(|fd| pidfs_inode(fd.as_fd()).ok()?);
    let ours = proc.ns("self", Kind::Mnt).ok();
    let id = ours.as_ref().and_then(|ns| sys::ns_id(ns.as_fd()).ok());
    let next = ours.as_ref().map(|ns| sys::next_mount_namespace(ns.as_fd(), false).map(drop));
    let whole = ours.as_ref().and_then(|ns| Some((Kind::Mnt.flag(), fstat(ns).ok()?.st_ino)));
    let list = |what, since, here| Feature { what, since, here };
    vec![
        list(
            "mounts by number, and what each is (listmount, statmount)",
            "6.8",
            sys::listmount(u64::MAX, 0, 0, &mut [0]).is_ok(),
        ),
        list("processes have an inode that no other ever gets (pidfs)", "6.9", inode.is_some()),
        list(
            "mount namespaces one after the other, for root (NS_MNT_GET_NEXT)",
            "6.12",
            next.is_some_and(|next| !matches!(next, Err(Errno::ENOTTY | Errno::EINVAL))),
        ),
        list("a mount copied and idmapped in one call (open_tree_attr)", "6.15", sys::has_open_tree_attr()),
        list("a process can be opened by its inode", "6.17", inode.is_some_and(|i| sys::pidfd_by_inode(i).is_ok())),
        list("namespaces have a number that no other ever gets (NS_GET_ID)", "6.18", id.is_some()),
        list(
            "a namespace can be opened by number, kind and inode",
            "6.18",
            id.is_some_and(|id| sys::ns_by_id(id, whole).is_ok()),
        ),
        list(
            "a namespace can be opened by its number alone",
            "6.19",
            id.is_some_and(|id| sys::ns_by_id(id, None).is_ok()),
        ),
        list("a list of all namespaces (listns)", "6.19", sys::listns(0, &mut [0]) != Err(Errno::ENOSYS)),
    ]
}

/// With the reason for a call that is not there (ENOSYS), which is the same in
/// every tool: those that are not, and what could know them, the kernel or a
/// filter in front of it.
#[cold]
pub fn explained(failure: Failure) -> Failure {
    if failure.errno() == Some(Errno::ENOSYS) && !failure.has_because() { failure.because(missing()) } else { failure }
}

#[cold]
fn missing() -> Option<Because> {
    let mut text = String::new();
    for (name, number, since) in sys::NEWER {
        if !sys::has(*number) {
            let before = if text.is_empty() { "not here: " } else { ", " };
            text.extend([before, name, " (since Linux ", since, ")"]);
        }
    }
    if text.is_empty() {
        return None;
    }
    let proc = Proc::open().ok()?;
    let (major, minor) = proc.release()?;
    let filtered = proc.text("self/status")?.contains("\nSeccomp:\t2\n");
    let filter = if filtered { ", with a seccomp filter" } else { "" };
    Some(Because::new(format!("{text}; this is Linux {major}.{minor}{filter}")))
}

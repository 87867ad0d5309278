//! Why namespaces could not be entered: setns(2), user_namespaces(7).

use std::os::fd::{AsFd, OwnedFd};

use crate::fail::{Again, Because, Errno};
use crate::ns::{self, Kind};
use crate::proc::{CAP_SYS_ADMIN, CAP_SYS_CHROOT, Proc};
use crate::step::Facts;
use crate::sys;
use crate::target::{self, Target};

/// Why those of a process could not be entered.
pub(super) fn refused(target: &Target, kinds: &[Kind], errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let who = target.who();
    if errno == Errno::ESRCH {
        let gone = sys::pidfd_signal(target.fd.as_fd(), 0) == Err(Errno::ESRCH);
        let dead = facts.proc.status(&who).is_none_or(|s| s.has_ended());
        return (gone || dead).then(|| Because::new(format!("process {} has ended", target.pid)));
    }
    if errno != Errno::EPERM {
        return None;
    }
    for kind in kinds {
        let Ok(ns) = facts.proc.ns(&who, *kind) else { return target::why::untouchable(facts.proc, &who) };
        if let Some(because) = beyond_us(ns, *kind, "its", facts.proc) {
            let several = kinds.len() > 1;
            return Some(if several { because.again(Again::Entering("--try", &["--try"])) } else { because });
        }
    }
    without_user(kinds, Some(Again::Entering("-U", &["--user-parent"])), facts)
}

/// Why one could not be entered by its file.
pub(super) fn file_refused(ns: &OwnedFd, kind: Kind, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    if errno == Errno::EINVAL && kind == Kind::Pid {
        return target::why::is_not_below(facts.proc, ns.as_fd());
    }
    if errno != Errno::EPERM {
        return None;
    }
    let again = nix::unistd::dup(ns).ok()?;
    beyond_us(again, kind, "this", facts.proc).or_else(|| without_user(&[kind], None, facts))
}

/// The same before user namespace `user` is, to which it does not belong.
pub fn refused_before(ns: &OwnedFd, kind: Kind, user: &OwnedFd, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let again = nix::unistd::dup(ns).ok()?;
    let lacks = !facts.proc.status(facts.who)?.can(CAP_SYS_ADMIN);
    if errno != Errno::EPERM || !lacks || beyond_us(again, kind, "this", facts.proc).is_some() {
        return file_refused(ns, kind, errno, facts);
    }
    let inode = |ns: &OwnedFd| target::files::inode(&sys::ns_owner(ns.as_fd()).ok()?).ok();
    let text = if inode(ns) == inode(user) {
        "it belongs to the parent of the user namespace that is to be entered (-U), which --user-parent enters"
    } else {
        "it belongs to another user namespace than the one that is to be entered (-U)"
    };
    Some(Because::new(text))
}

/// Whether a namespace belongs to a user namespace in which nothing that we
/// have counts. The checks take the capabilities of before the call.
fn beyond_us(ns: OwnedFd, kind: Kind, whose: &str, proc: &Proc) -> Option<Because> {
    let own = proc.own();
    // NS_GET_USERNS answers only for what is below: EPERM means outside. For a
    // user namespace it gives the parent, which has to be ours or below.
    let owner = sys::ns_owner(ns.as_fd());
    if owner.is_err() {
        let what = if kind == Kind::User { "is a user namespace" } else { "belongs to a user namespace" };
        return Some(Because::new(format!("it {what} outside of ours")));
    }
    let user = if kind == Kind::User { ns } else { owner.ok()? };
    let inode = nix::sys::stat::fstat(&user).ok()?.st_ino;
    let uid = sys::ns_owner_uid(user.as_fd()).ok();
    let mine = uid == Some(own.uid[1]) && proc.ns_id("self", Kind::User) != Some(inode);
    if mine || own.can(CAP_SYS_ADMIN) {
        return None;
    }
    let of = uid.map_or_else(String::new, |uid| format!(" of uid {uid}"));
    let of = if inode == ns::INITIAL_USER { " (the initial one)".to_owned() } else { of };
    let kind = kind.link();
    Some(Because::new(format!(
        "{whose} {kind} namespace belongs to a user namespace{of}, where we have no CAP_SYS_ADMIN"
    )))
}

/// Every kind but the user namespace takes CAP_SYS_ADMIN in the user namespace
/// that one is in, too: the owner has it only after entering his own, by `cure`.
fn without_user(kinds: &[Kind], cure: Option<Again>, facts: &Facts<'_>) -> Option<Because> {
    let (own, alone) = (facts.proc.status(facts.who)?, !kinds.contains(&Kind::User));
    if alone && !own.can(CAP_SYS_ADMIN) {
        let text = "it also needs CAP_SYS_ADMIN in the user namespace that we are in: enter the target's as well (-U)";
        return Some(Because { again: cure, ..Because::new(text) });
    }
    let text = "to enter a mount namespace needs CAP_SYS_CHROOT, too, and we do not have it";
    (alone && kinds.contains(&Kind::Mnt) && !own.can(CAP_SYS_CHROOT)).then(|| Because::new(text))
}

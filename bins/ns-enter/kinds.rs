//! Which of a target's namespaces are entered, and the steps that do it.

use std::rc::Rc;

use common::cgroup::Cgroup;
use common::cli::Args;
use common::fail::{Errno, Failure, Result};
use common::ns::Kind;
use common::plan::{Plan, clone_into};
use common::proc::Proc;
use common::step::{ns, own};
use common::target::{self, Target};

use crate::files;
use crate::tools::Brought;

/// The kinds asked for, or all, and where we are ourselves.
pub(crate) fn asked(args: &Args, proc: &Proc) -> Result<Vec<(Kind, Option<u64>)>> {
    let asked: Vec<Kind> = Kind::ALL.into_iter().filter(|k| args.flag(k.option())).collect();
    let socket = args.flag("net-socket");
    let asked = if asked.is_empty() && !socket || args.flag("all") { Kind::ALL.to_vec() } else { asked };
    let instead = |kind: &Kind| {
        let parent = *kind == Kind::User && args.flag("user-parent");
        parent || *kind == Kind::Net && socket || args.value(kind.option()).is_some()
    };
    asked.into_iter().filter(|kind| !instead(kind)).map(|kind| Ok((kind, proc.own_ns(kind)?))).collect()
}

/// The kinds in which a target is elsewhere. Our own user namespace would be
/// refused (EINVAL), and one that we do not own and do not need would fail the
/// whole call.
pub(crate) fn elsewhere(asked: Vec<(Kind, Option<u64>)>, proc: &Proc, target: &Target) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for (kind, ours) in asked {
        let theirs = target::files::namespace_of(proc, target, kind)?;
        if theirs.is_some() && theirs != ours {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// With --try, those kinds that can be entered, and why each of the others
/// cannot: found by a throw-away child for each.
///
/// # Errors
/// We are out of something, which says nothing about the target.
pub(crate) fn possible(
    kinds: Vec<Kind>,
    args: &Args,
    proc: &Rc<Proc>,
    target: &Rc<Target>,
) -> Result<(Vec<Kind>, Vec<Failure>)> {
    const OUT_OF: [Errno; 5] = [Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE, Errno::EAGAIN, Errno::EIO];
    if !args.flag("try") {
        return Ok((kinds, Vec::new()));
    }
    let is_out =
        |failure: &Failure| !failure.has_because() && failure.errno().is_some_and(|errno| OUT_OF.contains(&errno));
    let refused = |kinds: &[Kind]| {
        let mut inside = Plan::default();
        inside.push(own::Effect::Undumpable);
        match join(args, proc, target, kinds, None) {
            Ok(join) => inside.steps.extend(join.steps),
            Err(failure) => return Some(failure),
        }
        probe(None, inside, proc)
    };
    let (mut possible, mut left_out) = (Vec::new(), Vec::new());
    // The user namespace comes first: the others may need it.
    let mut user = Vec::new();
    for kind in kinds {
        let with: Vec<Kind> = user.iter().copied().chain([kind]).collect();
        match refused(&with) {
            Some(failure) if is_out(&failure) => return Err(failure),
            Some(failure) => left_out.push(failure),
            None => {
                possible.push(kind);
                user.extend((kind == Kind::User).then_some(kind));
            }
        }
    }
    Ok((possible, left_out))
}

/// The failure of a plan in a throw-away child.
pub(crate) fn probe(cgroup: Option<Rc<Cgroup>>, inside: Plan, proc: &Rc<Proc>) -> Option<Failure> {
    let mut plan = Plan::default();
    plan.push(clone_into(cgroup, Vec::new(), "", inside, proc));
    plan.probe(proc)
}

/// The steps that enter `kinds`.
pub(crate) fn join(
    args: &Args,
    proc: &Proc,
    target: &Rc<Target>,
    kinds: &[Kind],
    brought: Option<&Brought>,
) -> Result<Plan> {
    let mut inside = Plan::default();
    if args.flag("user-parent") {
        let parent = target::files::user_parent(proc, target)?;
        if !target::files::is_ours(proc, &parent, Kind::User) {
            let name = format!("{} parent of user", target.address);
            inside.push(ns::Effect::JoinFile(Rc::new(parent), Kind::User, name));
        }
    }
    let early = brought.map(|brought| brought.copy(proc, target, kinds, &mut inside)).transpose()?.unwrap_or(false);
    // A holder is not in its pid namespace itself: then that is entered by file.
    let apart = if kinds.contains(&Kind::Pid) { target::files::pid_namespace_apart(target)? } else { None };
    let at_once = kinds.iter().copied().filter(|k| match k {
        Kind::Pid => apart.is_none(),
        Kind::User => !early,
        Kind::Mnt | Kind::Uts | Kind::Ipc | Kind::Cgroup | Kind::Net | Kind::Time => true,
    });
    let at_once: Vec<Kind> = at_once.collect();
    if !at_once.is_empty() {
        inside.push(ns::Effect::Join(target.clone(), at_once));
    }
    if let Some(file) = apart {
        let file = Rc::new(file);
        let name = format!("{} pid_for_children", target.address);
        inside.push(ns::Effect::JoinFile(file.clone(), Kind::Pid, name));
        inside.push(files::into_pid(file));
    } else if kinds.contains(&Kind::Pid) {
        inside.push(ns::Effect::IntoPid);
    }
    Ok(inside)
}

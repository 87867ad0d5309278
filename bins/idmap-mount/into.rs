//! Attaching in the mount namespace of a target, by a child that goes there.

use std::ffi::OsStr;
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Errno, Failure, Result};
use common::idmap::{Idmap, has_submounts};
use common::ns::Kind;
use common::path::Place;
use common::plan::{Plan, clone};
use common::proc::{CAP_SYS_ADMIN, Proc};
use common::step::tree::{self, At};
use common::step::{Facts, TREE, end, mount, ns, own};
use common::target::{self, Target};
use common::word::quote_all;

/// The DEST of `--into`, looked up in the target's own root directory.
pub(crate) fn place(target: &Target, path: &OsStr, proc: &Proc) -> Result<Place> {
    let root = target::files::root(proc, target)?;
    Place::within(&root, path, &target.address.to_string())
}

/// How the child gets there with the tree.
enum Way {
    /// By the privilege of this process.
    Root,
    /// The same, and what is asked for is out of the container's reach.
    Locked,
    /// Through the user namespace of the target, which is ours: then the tree
    /// can only be made there, and no map set.
    Owner,
}

impl Way {
    /// # Errors
    /// `--locked` where nothing locks.
    fn of(args: &Args, target: &Target, asked: &Idmap, proc: &Proc) -> Result<Way> {
        let theirs = target::files::namespace_of(proc, target, Kind::User)?;
        let shared = theirs == proc.ns_id("self", Kind::User);
        if args.flag("locked") {
            let who = target.address;
            let what = if shared {
                format!("{who} is in")
            } else if target::files::mounts_are_ours(proc, target)? {
                format!("the mounts of {who} belong to")
            } else {
                return Ok(Way::Locked);
            };
            let rule = "our own user namespace, and nothing is locked to whoever is root there";
            return Err(Failure::usage(format!("--locked: {what} {rule}")));
        }
        let able = proc.own().can(CAP_SYS_ADMIN);
        Ok(if able || shared || asked.maps.is_some() { Way::Root } else { Way::Owner })
    }
}

/// The steps of this process and of the child that attaches the tree at `at`;
/// `look` are those that come before.
///
/// # Errors
/// Those of `Way::of` and `ns::Effect::to_mounts`.
pub(crate) fn steps(
    args: &Args,
    target: &Rc<Target>,
    mut asked: Idmap,
    at: At,
    proc: &Rc<Proc>,
    look: Plan,
) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut inside = Plan::default();
    inside.push(own::Effect::Undumpable);
    let recursive = asked.recursive;
    match Way::of(args, target, &asked, proc)? {
        Way::Root => {
            let plain = without_map(args, target, &asked, &at, proc);
            asked.steps(proc, &mut plan);
            if let Some(command) = plain {
                advise(command, &mut plan);
            }
            plan.steps.extend(look.steps);
        }
        Way::Locked => {
            asked.steps(proc, &mut plan);
            plan.steps.extend(look.steps);
            inside.push(ns::Effect::Unshare(vec![Kind::Mnt]));
            inside.push(mount::Effect::Slave);
            inside.push(tree::Effect::Park);
            inside.push(ns::Effect::to_mounts(proc, target)?);
            inside.push(ns::Effect::Unshare(vec![Kind::Mnt]));
            inside.push(tree::Effect::CopyParked(recursive));
        }
        Way::Owner => {
            inside.push(ns::Effect::to_mounts(proc, target)?);
            inside.push(ns::Effect::Unshare(vec![Kind::Mnt]));
            // In the copy all that is mounted below is locked to it.
            asked.recursive |= has_submounts(&asked.source, proc)?;
            asked.steps(proc, &mut inside);
        }
    }
    inside.push(ns::Effect::Join(target.clone(), vec![Kind::Mnt]));
    inside.push(tree::Effect::Attach(TREE, at));
    let why = "the child goes into the other mount namespace; this process stays, and can see why a step was refused";
    plan.push(clone(Vec::new(), why, inside, proc));
    plan.push(end::Effect::Reap);
    Ok(plan)
}

/// What the owner of a container can do in place of what he cannot; in a
/// pipeline it is gone by then, and the next one has its name, too.
fn without_map(args: &Args, target: &Target, asked: &Idmap, at: &At, proc: &Proc) -> Option<String> {
    let (At::Place(place) | At::Beneath(place, _)) = at else { return None };
    let owner = target::files::owner_of_user_namespace(proc, target) == Some(proc.own().uid[1]);
    let words = quote_all(&[&args.value("into")?, OsStr::new("--plain"), &asked.source.path, &place.path]);
    (owner && !proc.own().can(CAP_SYS_ADMIN)).then(|| format!("idmap-mount --into {words}"))
}

fn advise(command: String, plan: &mut Plan) {
    if !plan.steps.is_empty() {
        let first = plan.steps.remove(0);
        let because = move |errno, facts: &Facts<'_>| {
            let found = (errno == Errno::EPERM).then(|| facts.may_not_mount()).flatten();
            found.map(|because| because.remedy(command.clone()))
        };
        plan.steps.insert(0, first.because(because));
    }
}

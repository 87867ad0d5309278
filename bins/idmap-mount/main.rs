//! idmap-mount - attach a tree with its owners shifted
//!
//! A map is INSIDE:OUTSIDE:COUNT here too: INSIDE is the id on disk, OUTSIDE
//! the one seen through the mount.

mod judge;

use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Failure, Result};
use common::id::{Both, Extent, Kind as IdKind, Map, parse_operand};
use common::ns::Kind;
use common::plan::{Plan, clone};
use common::preset::lawful;
use common::proc::Proc;
use common::step::mount::{self, Place};
use common::step::{Facts, Step, end, map, ns};
use common::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID};
use common::tool::{Outcome, run};
use common::word::quote;

const CLI: Cli = Cli {
    name: "idmap-mount",
    purpose: "attach a tree with its owners shifted",
    usage: &["[OPTION...] SOURCE DEST MAP..."],
    options: &[
        Opt { short: "", long: "map-mount", value: "MAP", help: "the same as a MAP operand" },
        Opt { short: "", long: "recursive", value: "", help: "with the mounts below SOURCE" },
        Opt { short: "", long: "suid", value: "", help: "let set-id bits have effect (the default is nosuid)" },
        Opt { short: "", long: "dev", value: "", help: "let device nodes be opened (the default is nodev)" },
    ],
    operands: Operands::Free,
    runs: false,
    stage: false,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let [source, target, rest @ ..] = args.operands.as_slice() else {
        return Err(CLI.usage("SOURCE and DEST are needed"));
    };
    let words: Vec<_> = args.values("map-mount").into_iter().chain(rest.iter().cloned()).collect();
    let mut extents = Both::<Vec<Extent>>::default();
    for word in &words {
        let text = word.to_string_lossy();
        let (kinds, extent) =
            parse_operand(text.as_bytes()).map_err(|e| Failure::usage(format!("{}: {e}", quote(word))))?;
        for kind in kinds {
            extents.of_mut(kind).push(extent);
        }
    }
    if words.is_empty() {
        return Err(CLI.usage("which map? [u:|g:|b:]ON-DISK:SEEN:COUNT"));
    }
    for (here, there, advice) in
        [(IdKind::Uid, IdKind::Gid, ("u:", "groups", "g:")), (IdKind::Gid, IdKind::Uid, ("g:", "users", "u:"))]
    {
        if extents.of(there).is_empty() && !extents.of(here).is_empty() {
            let (alone, ids, other) = advice;
            return Err(Failure::usage(format!(
                "{alone} alone leaves the {ids} without a map, which the kernel refuses: add a {other} map, or use b:"
            )));
        }
    }
    let proc = Rc::new(Proc::open()?);
    let maps = lawful(extents, &proc)?;
    let (source, is_directory) = Place::at(source)?;
    let (target, onto_directory) = Place::at(target)?;
    if is_directory != onto_directory {
        return Err(Failure::usage("SOURCE and DEST have to be both directories or both files"));
    }
    let recursive = args.flag("recursive");
    let bit = |option: &str, bit: u64| if args.flag(option) { 0 } else { bit };
    let attributes = bit("suid", MOUNT_ATTR_NOSUID) | bit("dev", MOUNT_ATTR_NODEV);
    let mut plan = Plan::default();
    plan.push(mount::Effect::CloneTree(source.clone(), recursive));
    user_namespace(&maps, &proc, &mut plan);
    let why = move |errno, _: &Facts<'_>| judge::refused(&source, recursive, errno, &proc);
    plan.push(Step::from(mount::Effect::MapTree { attributes, recursive }).because(why));
    plan.push(mount::Effect::Attach(target));
    Ok(Outcome::Plan(plan))
}

/// The steps that make a user namespace which has these maps and nobody in it.
fn user_namespace(maps: &Both<Map>, proc: &Rc<Proc>, plan: &mut Plan) {
    let mut child = Plan::default();
    child.push(end::Effect::Wait);
    plan.push(clone(
        vec![Kind::User],
        "the maps of a user namespace are what shifts the owners of a mount",
        child,
        proc,
    ));
    for kind in IdKind::BOTH {
        plan.push(map::Effect::Write(map::Whose::Promised("CHILD"), kind, maps.of(kind).clone()));
    }
    plan.push(ns::Effect::TakeUser);
}

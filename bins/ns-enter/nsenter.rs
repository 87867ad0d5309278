//! The spellings of nsenter(1) that say what other options say, or what is so
//! anyway.

use std::os::unix::ffi::OsStrExt;

use common::cli::{Args, Opt, flag, opt, valued};
use common::fail::Result;
use common::id;
use common::path::Place;
use common::plan::Plan;
use common::step::{like, program};
use common::word::quote;

use super::CLI;

pub(crate) const OPTIONS: &[Opt] = &[
    opt("N", "net-socket", "N", "enter the network namespace of its socket N"),
    opt("R", "root", "[=DIR]", "the target's root directory, or DIR of here"),
    opt("w", "wd", "[=DIR]", "the target's working directory, or DIR of here"),
    valued("wdns", "DIR", "start in DIR of the target's"),
    opt("S", "setuid", "UID|follow", "become this uid inside, or the target's"),
    opt("G", "setgid", "GID|follow", "become this gid inside, or the target's"),
    flag("env", "have the target's environment"),
    flag("join-cgroup", "be born into the target's cgroup"),
    flag("follow-context", "have the target's label of a security module"),
    flag("preserve-credentials", "nothing: who is mapped stays who he is"),
    flag("keep-caps", "nothing: they are kept"),
    flag("no-fork", "nothing: the program is always minded"),
];

/// What of --like these options ask for.
pub(crate) fn like(args: &Args) -> Vec<&'static str> {
    let flags = [("env", "env"), ("join-cgroup", "cgroup"), ("follow-context", "label")];
    let bare = [("root", "root"), ("wd", "cwd")];
    let follow = [("setuid", "uid"), ("setgid", "gid")];
    let mut all: Vec<&'static str> = Vec::new();
    all.extend(flags.iter().filter(|(option, _)| args.flag(option)).map(|(_, thing)| *thing));
    let is_bare = |option: &str| args.flag(option) && args.value(option).is_none();
    all.extend(bare.iter().filter(|(option, _)| is_bare(option)).map(|(_, thing)| *thing));
    let follows = |option: &str| args.value(option).is_some_and(|word| word == "follow");
    all.extend(follow.iter().filter(|(option, _)| follows(option)).map(|(_, thing)| *thing));
    all
}

/// The steps that lead into the directories named.
///
/// # Errors
/// One cannot be opened.
pub(crate) fn directories(args: &Args, inside: &mut Plan) -> Result<()> {
    let open = |option: &str| args.value(option).map(|word| Place::at(&word)).transpose();
    if let Some(root) = open("root")? {
        inside.push(like::Effect::Root(root.descriptor()));
    }
    if let Some(directory) = open("wd")? {
        inside.push(like::Effect::Directory(directory.descriptor()));
    }
    if let Some(path) = args.value("wdns") {
        inside.push(program::Effect::Directory(path));
    }
    Ok(())
}

/// The steps to the ids named by number, and the uid; none without one.
///
/// # Errors
/// Wrong usage: no ids.
pub(crate) fn ids(args: &Args) -> Result<Option<(Plan, Option<u32>)>> {
    let id = |option: &str| match args.value(option) {
        None => Ok(None),
        Some(word) if word == "follow" => Ok(None),
        Some(word) => {
            let bad = || CLI.usage(&format!("--{option} {}: not an id, nor follow", quote(&word)));
            id::one(word.as_bytes()).map(Some).ok_or_else(bad)
        }
    };
    let (uid, gid) = (id("setuid")?, id("setgid")?);
    let mut plan = Plan::default();
    if let Some(gid) = gid {
        plan.push(program::Effect::Groups(Vec::new()));
        plan.push(program::Effect::Gid(gid));
    }
    uid.iter().for_each(|uid| plan.push(program::Effect::Uid(*uid, false)));
    Ok((uid.is_some() || gid.is_some()).then_some((plan, uid)))
}

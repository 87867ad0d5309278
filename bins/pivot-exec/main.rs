//! pivot-exec - make a directory the root and become a program in it
//!
//! The last link of a chain: after it, programs are looked up in the new root.
//! A straight line of steps, in the order that the kernel's rules leave:
//!
//! * [`again`]    what stood before it, for advice
//! * [`fstab`]    lines that say what is mounted
//! * [`mounts`]   what belongs into the new root, while the old one is there
//! * [`process`]  what the program is started with, once it is gone
//! * [`systemd`]  both, for systemd

mod again;
mod fstab;
mod mounts;
mod process;
mod systemd;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, KEEP_FD, Operands, Stage, flag, valued};
use common::fail::{Errno, Failure, Result};
use common::id::Kind as IdKind;
use common::ns::Kind;
use common::path::{Place, not_opened};
use common::plan::Plan;
use common::proc::Proc;
use common::step::overlay::Layers;
use common::step::{end, mount, ns, own};
use common::target::given;
use common::tool::{Outcome, run_advised};
use common::word::quote;

pub(crate) const CLI: Cli = Cli {
    name: "pivot-exec",
    purpose: "make a directory the root and become a program in it",
    usage: &["[OPTION...] ROOT PROGRAM [ARGUMENT...]"],
    options: &[&[
        flag("proc", "mount a new proc on /proc"),
        flag("sys", "mount sysfs on /sys, read-only"),
        flag("cgroup2", "mount cgroup2 on /sys/fs/cgroup"),
        flag("dev", "make a small /dev, with pts, shm and the terminal"),
        flag("mqueue", "mount mqueue on /dev/mqueue"),
        flag("tmp", "mount a tmpfs on /tmp"),
        valued("fstab", "FILE|fd:N", "mount what these lines of fstab(5) say"),
        valued("bind", "SOURCE[:PATH[:OPTIONS]]", ""),
        valued("bind-ro", "SOURCE[:PATH[:OPTIONS]]", ""),
        valued("bind-dev", "SOURCE[:PATH[:OPTIONS]]", "bind from outside: as it is; read-only; with nodes"),
        valued("tmpfs", "PATH[:OPTIONS]", "mount a tmpfs"),
        valued("dir", "PATH[:MODE]", "make a directory"),
        valued("file", "N:PATH[:MODE]", "make a file of what descriptor N gives"),
        valued("symlink", "TARGET:PATH", "make a symbolic link"),
        valued("mask", "PATH", ""),
        valued("protect", "PATH", "hide what is there; let it only be read"),
        flag("mask-proc", "hide and protect what podman does in proc"),
        flag("systemd", "what systemd wants: most of the above, and more"),
        flag("overlay", "keep changes of ROOT on a tmpfs, until the end"),
        valued("upper", "DIR", ""),
        valued("work", "DIR", "keep changes of ROOT in the one; its workdir"),
        valued("lower", "DIR", "a layer over ROOT; the first is the uppermost"),
        flag("read-only", "let ROOT only be read"),
        valued("hostname", "NAME", ""),
        valued("domainname", "NAME", "set the host name; the NIS domain name"),
        valued("uid", "ID", ""),
        valued("gid", "ID", "become this uid; this gid"),
        valued("groups", "ID,...", "have these groups beside it, or none"),
        valued("cap-keep", "CAP,...", "let no other capability come back"),
        valued("cap-drop", "CAP,...", "let these not come back"),
        valued("cap-ambient", "CAP,...", "give these to the program whatever its uid"),
        flag("keep-caps", "leave the program its ambient capabilities"),
        flag("no-new-privs", "let no exec give privilege"),
        valued("seccomp", "N", "load the filter that descriptor N gives"),
        valued("rlimit", "NAME=SOFT[:HARD]", "set a limit"),
        valued("umask", "MODE", "set the umask"),
        flag("clear-env", ""),
        valued("keep-env", "NAME", "clear the environment; but for this variable"),
        valued("setenv", "NAME=VALUE", ""),
        valued("unsetenv", "NAME", "set a variable; take one away"),
        valued("chdir", "DIR", "start in this directory"),
        valued("argv0", "WORD", "what the program is told that it is called"),
        flag("shared", "pivot the mount namespace that we are in"),
        KEEP_FD,
        valued("then-fd", "N", "the program is that of descriptor N"),
    ]],
    operands: Operands::Program(1, &[]),
    runs: true,
    stage: Stage::No,
};

fn main() -> ExitCode {
    run_advised(&CLI, decide, again::command)
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    let args = &CLI.preceded(args, &systemd::words(args))?;
    let root = args.operands.first().ok_or_else(|| CLI.usage("which ROOT?"))?;
    if args.program.is_empty() {
        return Err(CLI.usage("which program?"));
    }
    let place = outside(root, &proc)?;
    if !place.is_directory {
        return Err(not_opened(root, Errno::ENOTDIR));
    }
    let layers = layers(args, &place, &proc)?;
    // An overlay is a mount of its own.
    let nosuid = if layers.is_none() { warning(&place, &proc) } else { None };
    let mut plan = Plan::default();
    if args.flag("systemd") {
        plan.push(ns::Effect::CheckFirst);
    }
    // Until the exec this process has the old root; whoever lives in these
    // namespaces already could reach through it.
    plan.push(own::Effect::Undumpable);
    if !args.flag("shared") {
        plan.push(ns::Effect::Unshare(vec![Kind::Mnt]));
    }
    plan.push(mount::Effect::Slave);
    mount::cover(&proc).into_iter().for_each(|effect| plan.push(effect));
    match layers {
        Some(layers) => plan.push(layers),
        None => plan.push(mount::Effect::BindRoot(place)),
    }
    if args.flag("read-only") {
        plan.push(mount::Effect::ReadOnlyBelow);
    }
    mounts::steps(args, &proc, &mut plan)?;
    if args.flag("read-only") {
        plan.push(mount::Effect::ReadOnly);
    }
    if args.flag("systemd") {
        systemd::checks(&proc, &mut plan);
    }
    if let Some(name) = args.value("hostname") {
        plan.push(ns::Effect::Hostname(name));
    }
    let last = process::steps(args)?;
    plan.push(mount::Effect::Pivot);
    nosuid.into_iter().for_each(|text| plan.push(end::Effect::Note(text)));
    plan.steps.extend(last.steps);
    Ok(Outcome::Plan(plan))
}

/// What is outside: a path, or what descriptor `fd:N` is open for.
pub(crate) fn outside(word: &OsStr, proc: &Proc) -> Result<Place> {
    match word.as_bytes().strip_prefix(b"fd:") {
        Some(n) => Place::held(word, given::duplicate(OsStr::from_bytes(n))?, proc),
        None => Place::at(word),
    }
}

fn directory(path: &OsStr) -> Result<Place> {
    let place = Place::at(path)?;
    if place.is_directory { Ok(place) } else { Err(not_opened(path, Errno::ENOTDIR)) }
}

/// A directory that may be new.
fn room(path: &OsStr) -> Result<Place> {
    directory(path).map_err(|failure| {
        let missing = failure.errno() == Some(Errno::ENOENT) && Path::new(path).symlink_metadata().is_err();
        if missing { failure.remedy(format!("mkdir -p {}", quote(path))) } else { failure }
    })
}

/// What an overlay is made of, if one is asked for.
fn layers(args: &Args, root: &Place, proc: &Proc) -> Result<Option<Layers>> {
    let lower = args.values("lower");
    let upper = match (args.value("upper"), args.value("work")) {
        (Some(upper), Some(work)) => Some((room(&upper)?, room(&work)?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(CLI.usage("--upper goes with --work")),
    };
    if upper.is_some() && args.flag("overlay") {
        return Err(CLI.usage("--overlay and --upper are two places for changes"));
    }
    if !lower.is_empty() && upper.is_none() && !args.flag("overlay") {
        return Err(CLI.usage("--lower goes with --overlay, or with --upper and --work"));
    }
    if upper.is_none() && !args.flag("overlay") {
        return Ok(None);
    }
    if root.is_tree {
        let what = format!("{}: it is attached nowhere, and a layer of an overlay has to be", root.name());
        return Err(Failure::refused(what));
    }
    let mut places = lower.iter().map(|path| directory(path)).collect::<Result<Vec<_>>>()?;
    places.push(root.clone());
    let userxattr = !proc.in_initial()?;
    Ok(Some(Layers { lower: places, upper, userxattr }))
}

/// What su(1) would not say: with one id there is nobody to become.
fn warning(root: &Place, proc: &Proc) -> Option<String> {
    if !root.is_nosuid() || proc.in_initial().ok()? {
        return None;
    }
    let ids: u64 = proc.map("self", IdKind::Uid)?.iter().map(|e| u64::from(e.count)).sum();
    let text = format!(
        "pivot-exec: {} is on a mount that is nosuid: su, sudo and the like will not work\n",
        quote(&root.path)
    );
    (ids > 1).then_some(text)
}

//! pivot-exec - make a directory the root and become a program in it
//!
//! The last link of a chain: after it, programs are looked up in the new root.
//! A straight line of steps, in the order that the kernel's rules leave:
//!
//! * [`mounts`]   what belongs into the new root, while the old one is there
//! * [`process`]  what the program is started with, once it is gone

mod mounts;
mod process;

use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Errno, Result};
use common::id::Kind as IdKind;
use common::ns::{self as namespace, Kind};
use common::path::{Place, not_opened};
use common::plan::Plan;
use common::proc::Proc;
use common::step::mount::Layers;
use common::step::tree::mount_of;
use common::step::{end, mount, ns, own};
use common::tool::{Outcome, run};
use common::word::quote;

pub(crate) const CLI: Cli = Cli {
    name: "pivot-exec",
    purpose: "make a directory the root and become a program in it",
    usage: &["[OPTION...] ROOT PROGRAM [ARGUMENT...]"],
    options: &[
        Opt { short: "", long: "proc", value: "", help: "mount a new proc on /proc" },
        Opt { short: "", long: "sys", value: "", help: "mount sysfs on /sys, read-only" },
        Opt { short: "", long: "cgroup2", value: "", help: "mount cgroup2 on /sys/fs/cgroup" },
        Opt { short: "", long: "dev", value: "", help: "make a minimal /dev, with pts, shm and the terminal" },
        Opt { short: "", long: "mqueue", value: "", help: "mount mqueue on /dev/mqueue" },
        Opt { short: "", long: "tmp", value: "", help: "mount a tmpfs on /tmp" },
        Opt { short: "", long: "fstab", value: "FILE|fd:N", help: "mount what these lines of fstab(5) say" },
        Opt { short: "", long: "bind", value: "SOURCE[:PATH[:OPTIONS]]", help: "bind a directory or file of outside" },
        Opt { short: "", long: "bind-ro", value: "SOURCE[:PATH[:OPTIONS]]", help: "the same, read-only" },
        Opt { short: "", long: "bind-dev", value: "SOURCE[:PATH[:OPTIONS]]", help: "the same, with device nodes" },
        Opt { short: "", long: "tmpfs", value: "PATH[:OPTIONS]", help: "mount a tmpfs" },
        Opt { short: "", long: "dir", value: "PATH[:MODE]", help: "make a directory" },
        Opt { short: "", long: "file", value: "N:PATH[:MODE]", help: "make a file of what descriptor N gives" },
        Opt { short: "", long: "symlink", value: "TARGET:PATH", help: "make a symbolic link" },
        Opt { short: "", long: "mask", value: "PATH", help: "hide what is there" },
        Opt { short: "", long: "protect", value: "PATH", help: "let what is there only be read" },
        Opt { short: "", long: "mask-proc", value: "", help: "hide and protect what container managers do in proc" },
        Opt { short: "", long: "overlay", value: "", help: "keep changes of ROOT on a tmpfs that is gone at the end" },
        Opt { short: "", long: "upper", value: "DIR", help: "keep changes of ROOT here; with --work" },
        Opt { short: "", long: "work", value: "DIR", help: "where the kernel prepares them: beside DIR of --upper" },
        Opt { short: "", long: "lower", value: "DIR", help: "a layer over ROOT; the first is the uppermost" },
        Opt { short: "", long: "read-only", value: "", help: "let ROOT only be read" },
        Opt { short: "", long: "hostname", value: "NAME", help: "set the host name" },
        Opt { short: "", long: "domainname", value: "NAME", help: "set the NIS domain name" },
        Opt { short: "", long: "uid", value: "ID", help: "become this uid" },
        Opt { short: "", long: "gid", value: "ID", help: "become this gid" },
        Opt { short: "", long: "groups", value: "ID,...", help: "have these groups beside it, or none" },
        Opt { short: "", long: "cap-keep", value: "CAP,...", help: "let no other capability come back" },
        Opt { short: "", long: "cap-drop", value: "CAP,...", help: "let these not come back" },
        Opt { short: "", long: "cap-ambient", value: "CAP,...", help: "give these to the program whatever its uid" },
        Opt { short: "", long: "keep-caps", value: "", help: "leave the program its ambient capabilities" },
        Opt { short: "", long: "no-new-privs", value: "", help: "let no exec give privilege" },
        Opt { short: "", long: "seccomp", value: "N", help: "load the filter that descriptor N gives" },
        Opt { short: "", long: "rlimit", value: "NAME=SOFT[:HARD]", help: "set a limit" },
        Opt { short: "", long: "umask", value: "MODE", help: "set the umask" },
        Opt { short: "", long: "clear-env", value: "", help: "clear the environment" },
        Opt { short: "", long: "keep-env", value: "NAME", help: "but for this variable" },
        Opt { short: "", long: "setenv", value: "NAME=VALUE", help: "set a variable" },
        Opt { short: "", long: "unsetenv", value: "NAME", help: "take a variable away" },
        Opt { short: "", long: "chdir", value: "DIR", help: "start in this directory" },
        Opt { short: "", long: "argv0", value: "WORD", help: "what the program is told that it is called" },
        Opt { short: "", long: "shared", value: "", help: "pivot the mount namespace that this was started in" },
        Opt { short: "", long: "keep-fd", value: "N", help: "hand descriptor N on to the program" },
        Opt { short: "", long: "then-fd", value: "N", help: "the program is that of descriptor N" },
    ],
    operands: Operands::Program(1, ""),
    runs: true,
    stage: false,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    let root = args.operands.first().ok_or_else(|| CLI.usage("which ROOT?"))?;
    if args.program.is_empty() {
        return Err(CLI.usage("which program?"));
    }
    let place = directory(root)?;
    let nosuid = warning(&place, &proc);
    let mut plan = Plan::default();
    // Until the exec this process has the old root; whoever lives in these
    // namespaces already could reach through it.
    plan.push(own::Effect::Undumpable);
    if !args.flag("shared") {
        plan.push(ns::Effect::Unshare(vec![Kind::Mnt]));
    }
    plan.push(mount::Effect::Slave);
    plan.push(match layers(args, &place, &proc)? {
        Some(layers) => mount::Effect::Overlay(layers),
        None => mount::Effect::BindRoot(place),
    });
    mounts::steps(args, &proc, &mut plan)?;
    if args.flag("read-only") {
        plan.push(mount::Effect::ReadOnly);
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

fn directory(path: &std::ffi::OsStr) -> Result<Place> {
    let place = Place::at(path)?;
    if place.is_directory { Ok(place) } else { Err(not_opened(path, Errno::ENOTDIR)) }
}

/// What an overlay is made of, if one is asked for.
fn layers(args: &Args, root: &Place, proc: &Proc) -> Result<Option<Layers>> {
    let lower = args.values("lower");
    let upper = match (args.value("upper"), args.value("work")) {
        (Some(upper), Some(work)) => Some((directory(&upper)?, directory(&work)?)),
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
    let mut places = lower.iter().map(|path| directory(path)).collect::<Result<Vec<_>>>()?;
    places.push(root.clone());
    let userxattr = proc.ns_id("self", Kind::User) != Some(namespace::INITIAL_USER);
    Ok(Some(Layers { lower: places, upper, userxattr }))
}

/// What su(1) would not say: with one id there is nobody to become.
fn warning(root: &Place, proc: &Proc) -> Option<String> {
    let nosuid = mount_of(root, proc).is_some_and(|m| m.options.split(',').any(|o| o == "nosuid"));
    let ids: u64 = proc.map("self", IdKind::Uid)?.iter().map(|e| u64::from(e.count)).sum();
    let initial = proc.ns_id("self", Kind::User) == Some(namespace::INITIAL_USER);
    let text = format!(
        "pivot-exec: {} is on a mount that is nosuid: su, sudo and the like will not work\n",
        quote(&root.path)
    );
    (nosuid && ids > 1 && !initial).then_some(text)
}

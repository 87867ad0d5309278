//! pivot-exec - make a directory the root and become a program in it
//!
//! The last link of a chain: after it, programs are looked up in the new root.
//! A straight line of steps, in the order that the kernel's rules leave.

use std::process::ExitCode;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Errno, Result};
use common::id::Kind as IdKind;
use common::ns::Kind;
use common::path::{Place, not_opened};
use common::plan::Plan;
use common::proc::Proc;
use common::step::{end, mount, ns, own};
use common::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use common::target;
use common::tool::{Outcome, run};

const CLI: Cli = Cli {
    name: "pivot-exec",
    purpose: "make a directory the root and become a program in it",
    usage: &["[OPTION...] ROOT PROGRAM [ARGUMENT...]"],
    options: &[
        Opt { short: "", long: "proc", value: "", help: "mount a new proc on /proc" },
        Opt { short: "", long: "sys", value: "", help: "mount sysfs on /sys, read-only" },
        Opt { short: "", long: "dev", value: "", help: "make a minimal /dev, with pts and shm" },
        Opt { short: "", long: "tmp", value: "", help: "mount a tmpfs on /tmp" },
        Opt { short: "", long: "hostname", value: "NAME", help: "set the host name" },
        Opt { short: "", long: "shared", value: "", help: "pivot the mount namespace that this was started in" },
        Opt { short: "", long: "keep-caps", value: "", help: "leave the program its ambient capabilities" },
        Opt { short: "", long: "keep-fd", value: "N", help: "hand descriptor N on to the program" },
    ],
    operands: Operands::Program(1, ""),
    runs: true,
    stage: false,
};

/// The devices of a minimal /dev: null(4), full(4), random(4), tty(4).
const DEVICES: [(&str, (u64, u64)); 6] =
    [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0))];

const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "dev/ptmx"),
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Proc::open()?;
    let root = args.operands.first().ok_or_else(|| CLI.usage("which ROOT?"))?;
    if args.program.is_empty() {
        return Err(CLI.usage("which program?"));
    }
    let place = Place::at(root)?;
    if !place.is_directory {
        return Err(not_opened(root, Errno::ENOTDIR));
    }
    let mut plan = Plan::default();
    // Until the exec this process has the old root; whoever lives in these
    // namespaces already could reach through it.
    plan.push(own::Effect::Undumpable);
    if !args.flag("shared") {
        plan.push(ns::Effect::Unshare(vec![Kind::Mnt]));
    }
    plan.push(mount::Effect::Slave);
    plan.push(mount::Effect::BindRoot(place));
    file_systems(args, &proc, &mut plan);
    if let Some(name) = args.value("hostname") {
        plan.push(ns::Effect::Hostname(name));
    }
    plan.push(mount::Effect::Pivot);
    if !args.flag("keep-caps") {
        plan.push(own::Effect::ClearAmbient);
    }
    let kept: Result<_> = args.values("keep-fd").iter().map(|word| target::descriptor(word)).collect();
    plan.push(own::Effect::Close(kept?));
    plan.push(end::Effect::Exec(args.program.clone()));
    Ok(Outcome::Plan(plan))
}

fn file_systems(args: &Args, proc: &Proc, plan: &mut Plan) {
    const HARMLESS: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let mut new = |fstype, options, attributes, at| plan.push(mount::Effect::New { fstype, options, attributes, at });
    let mode = |mode: &str| vec![("mode", mode.to_owned())];
    if args.flag("proc") {
        new("proc", Vec::new(), HARMLESS, "proc");
    }
    if args.flag("sys") {
        new("sysfs", Vec::new(), HARMLESS | MOUNT_ATTR_RDONLY, "sys");
    }
    if args.flag("tmp") {
        new("tmpfs", mode("1777"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, "tmp");
    }
    if !args.flag("dev") {
        return;
    }
    new("tmpfs", mode("755"), MOUNT_ATTR_NOSUID, "dev");
    new("devpts", pts_options(proc), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "dev/pts");
    new("tmpfs", mode("1777"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, "dev/shm");
    for (name, number) in DEVICES {
        plan.push(mount::Effect::Device(name, number));
    }
    for (to, at) in LINKS {
        plan.push(mount::Effect::Link(to, at));
    }
}

/// Terminals belong to group tty, which is 5 everywhere; devpts refuses it
/// where gid 5 is not mapped, as with a map of one id.
fn pts_options(proc: &Proc) -> Vec<(&'static str, String)> {
    let mut options = vec![("newinstance", String::new()), ("ptmxmode", "0666".into()), ("mode", "620".into())];
    let map = proc.map("self", IdKind::Gid).unwrap_or_default();
    if map.iter().any(|e| e.inside().has(5)) {
        options.push(("gid", "5".into()));
    }
    options
}

//! ns-new - create namespaces and look after what lives in them
//!
//! Three forms. With `-` or --detach a *holder* keeps the namespaces and its
//! address is printed, for other tools to map and enter (`hold.rs`). With a
//! program this process moves into them and becomes the program; or a child
//! does, where something has to be done from outside first, or a parent has to
//! mind it (`program.rs`). What is set up inside is the same (`setup.rs`).

mod hold;
mod program;
mod setup;

use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::Result;
use common::plan::Plan;
use common::proc::Proc;
use common::step::pin;
use common::tool::{Outcome, run};

const CLI: Cli = Cli {
    name: "ns-new",
    purpose: "create namespaces and look after what lives in them",
    usage: &[
        "KINDS [OPTION...] -",
        "KINDS [OPTION...] --detach --with PID|tty",
        "KINDS [OPTION...] [PROGRAM [ARGUMENT...]]",
        "--release TARGET",
        "--unpin FILE",
    ],
    options: &[
        Opt { short: "U", long: "user", value: "[=FILE]", help: "a user namespace" },
        Opt { short: "m", long: "mount", value: "[=FILE]", help: "a mount namespace" },
        Opt { short: "p", long: "pid", value: "[=FILE]", help: "a pid namespace" },
        Opt { short: "n", long: "net", value: "[=FILE]", help: "a network namespace" },
        Opt { short: "i", long: "ipc", value: "[=FILE]", help: "an ipc namespace" },
        Opt { short: "u", long: "uts", value: "[=FILE]", help: "a uts namespace" },
        Opt { short: "C", long: "cgroup", value: "[=FILE]", help: "a cgroup namespace" },
        Opt { short: "T", long: "time", value: "[=FILE]", help: "a time namespace" },
        Opt { short: "a", long: "all", value: "", help: "all eight" },
        Opt { short: "r", long: "map-root-user", value: "", help: "with -U: map the own id to 0" },
        Opt {
            short: "",
            long: "map",
            value: "MAP",
            help: "with -U: a map, INSIDE:OUTSIDE:COUNT or a preset; - is the stream",
        },
        Opt { short: "", long: "host-root", value: "", help: "let a map put the real root inside" },
        Opt { short: "", long: "setgroups", value: "allow|deny", help: "what to write to setgroups" },
        Opt { short: "", long: "wait-map", value: "", help: "wait until somebody else has written the maps" },
        Opt { short: "", long: "record-fd", value: "N", help: "descriptor that gets the record for him (2)" },
        Opt {
            short: "",
            long: "keep-caps",
            value: "",
            help: "keep capabilities when the program becomes another user",
        },
        Opt {
            short: "",
            long: "as-owner",
            value: "UID:GID",
            help: "with -U: become these ids first, so that UID owns the namespaces",
        },
        Opt { short: "", long: "into-cgroup", value: "DIR", help: "begin in this cgroup, a directory of cgroup2" },
        Opt { short: "", long: "hostname", value: "NAME", help: "-u, with this host name" },
        Opt { short: "", long: "lo", value: "", help: "-n, with the loopback interface up" },
        Opt { short: "", long: "monotonic", value: "SECONDS", help: "-T, with CLOCK_MONOTONIC ahead by this much" },
        Opt { short: "", long: "boottime", value: "SECONDS", help: "-T, with CLOCK_BOOTTIME ahead by this much" },
        Opt {
            short: "",
            long: "propagation",
            value: "HOW",
            help: "-m, with mounts slave (usual), private, shared or unchanged",
        },
        Opt { short: "", long: "mount-proc", value: "[=DIR]", help: "-m, with a new proc on /proc, or DIR" },
        Opt { short: "", long: "root", value: "DIR", help: "-m, with DIR for the root directory" },
        Opt { short: "", long: "wd", value: "DIR", help: "the program's working directory, looked up in its root" },
        Opt { short: "f", long: "fork", value: "", help: "mind the program as a child, also where it need not be one" },
        Opt {
            short: "",
            long: "kill-child",
            value: "[=SIGNAL]",
            help: "the same; it gets this signal when we die (KILL)",
        },
        Opt { short: "", long: "forward-signals", value: "", help: "nothing: all signals are handed on" },
        Opt { short: "", long: "stop-signal", value: "SIGNAL", help: "the signal handed on in place of TERM" },
        Opt { short: "", long: "init", value: "", help: "with -p: a first process of ours that reaps" },
        Opt { short: "", long: "stdin", value: "N", help: "descriptor N is the program's standard input" },
        Opt { short: "", long: "detach", value: "", help: "print the holder's address and leave it behind" },
        Opt { short: "", long: "with", value: "PID|tty", help: "the process, or terminal session, that it ends with" },
        Opt { short: "", long: "name", value: "NAME", help: "call the holder so: then NAME is a TARGET" },
        Opt { short: "", long: "release", value: "TARGET", help: "end a holder" },
        Opt { short: "", long: "unpin", value: "FILE", help: "let go of the namespace pinned to FILE" },
    ],
    operands: Operands::Program(0, ""),
    runs: true,
    stage: true,
};

/// What a holder has no use for.
const FOR_PROGRAMS: [&str; 15] = [
    "as-owner",
    "into-cgroup",
    "setgroups",
    "wait-map",
    "record-fd",
    "keep-caps",
    "mount-proc",
    "root",
    "wd",
    "fork",
    "kill-child",
    "forward-signals",
    "stop-signal",
    "init",
    "stdin",
];

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    if let Some(word) = args.value("release") {
        return hold::release(&word, &proc);
    }
    let pinned = args.values("unpin");
    if !pinned.is_empty() {
        let mut plan = Plan::default();
        pinned.into_iter().for_each(|file| plan.push(pin::Effect::Unpin(file)));
        return Ok(Outcome::Plan(plan));
    }
    let kinds = setup::kinds(args);
    let holds = args.piped() || args.flag("detach");
    if kinds.is_empty() {
        return Err(CLI.usage("which namespaces? -a is all"));
    }
    if holds && !args.program.is_empty() {
        return Err(CLI.usage("a holder runs no program: ns-enter does"));
    }
    if args.piped() && args.flag("detach") {
        return Err(CLI.usage("- and --detach are two ways to live: with the reader, or with a process"));
    }
    if args.value("with").is_some() && !args.flag("detach") {
        return Err(CLI.usage("--with goes with --detach"));
    }
    if !holds {
        return program::run(args, kinds, &proc);
    }
    if let Some(option) = FOR_PROGRAMS.iter().find(|option| args.flag(option)) {
        return Err(CLI.usage(&format!("--{option} is for a program, and this makes a holder")));
    }
    if let Some(kind) = kinds.iter().find(|kind| args.value(kind.option()).is_some()) {
        return Err(CLI.usage(&format!("--{}=FILE is for a program: a holder keeps what it holds", kind.option())));
    }
    hold::hold(args, kinds, &proc)
}

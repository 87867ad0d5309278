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
mod unshare;

use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, HOST_ROOT, KINDS, Operands, STDIN, Stage, flag, opt, valued};
use common::fail::{Again, Result};
use common::ns::Kind;
use common::plan::Plan;
use common::proc::Proc;
use common::step::pin;
use common::tool::{Outcome, run_advised};
use common::word::{before_others, quote_all};

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
        KINDS,
        &[
            opt("a", "all", "", "all eight"),
            opt("r", "map-root-user", "", "-U, with the own id as 0"),
            valued("map", "MAP", "-U, with INSIDE:OUTSIDE:COUNT, a preset, or -"),
            HOST_ROOT,
            valued("setgroups", "allow|deny", "what to write to setgroups"),
            flag("wait-map", ""),
            valued("record-fd", "N", "let another write them, who is told on N (2)"),
            flag("keep-caps", "keep capabilities whoever the program becomes"),
            valued("as-owner", "UID:GID", "-U, owned by UID: become these ids first"),
            valued("into-cgroup", "DIR", ""),
            flag("new-cgroup", "begin in this cgroup; in a new one, with -C"),
            valued("hostname", "NAME", "-u, with this host name"),
            flag("lo", "-n, with the loopback interface up"),
            valued("monotonic", "SECONDS", ""),
            valued("boottime", "SECONDS", "-T, with this clock so far ahead"),
            valued("propagation", "slave|private|shared|unchanged", "-m, its mounts so (slave)"),
            valued("mount-proc", "[=DIR]", "-m, with a new proc on /proc, or DIR"),
            opt("R", "root", "DIR", "-m, with DIR for the root directory"),
            opt("w", "wd", "DIR", "the program's working directory, in its root"),
            opt("S", "setuid", "UID", ""),
            opt("G", "setgid", "GID", "become these ids inside, last of all"),
            opt("f", "fork", "", ""),
            valued("kill-child", "[=SIGNAL]", "mind it as a child; sent when we die (KILL)"),
            flag("forward-signals", "nothing: all signals are handed on"),
            valued("stop-signal", "SIGNAL", "the signal handed on in place of TERM"),
            flag("init", "with -p: a first process of ours that reaps"),
            valued("ready", "N", "say on descriptor N when it is ready (sd_notify)"),
            STDIN,
            flag("pty", "give the program a terminal of its own"),
            flag("detach", "print the holder's address and leave it behind"),
            valued("with", "PID|tty", "the process, or this session, that it ends with"),
            valued("name", "NAME", "call the holder so: then NAME is a TARGET"),
            valued("release", "TARGET", ""),
            valued("unpin", "FILE", "end a holder; let go of what is pinned"),
        ],
        unshare::OPTIONS,
    ],
    operands: Operands::Program(0, &[]),
    runs: true,
    stage: Stage::First,
};

/// What a holder has no use for.
const FOR_PROGRAMS: [&str; 21] = [
    "as-owner",
    "owner",
    "into-cgroup",
    "new-cgroup",
    "setgroups",
    "wait-map",
    "record-fd",
    "keep-caps",
    "mount-proc",
    "root",
    "wd",
    "setuid",
    "setgid",
    "fork",
    "kill-child",
    "forward-signals",
    "stop-signal",
    "init",
    "ready",
    "stdin",
    "pty",
];

fn main() -> ExitCode {
    run_advised(&CLI, decide, |again, _| match again {
        // A file outside is nothing to be mounted on from in there.
        Again::Namespace('U') if pins() => None,
        Again::Namespace(letter) => Some(quote_all(&before_others(&format!("-{letter}")))),
        Again::Map | Again::Word(..) | Again::Where(_) | Again::Entering(..) => None,
    })
}

/// Whether a namespace is to be pinned to a file.
fn pins() -> bool {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    CLI.parse(&words).is_ok_and(|args| Kind::ALL.iter().any(|kind| args.value(kind.option()).is_some()))
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    let (released, pinned) = (args.values("release"), args.values("unpin"));
    if let Some(word) = released.first() {
        alone(args, "release")?;
        if released.len() > 1 {
            return Err(CLI.usage("--release: one TARGET"));
        }
        return hold::release(word, &proc);
    }
    if !pinned.is_empty() {
        alone(args, "unpin")?;
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
    if args.flag("name") && !holds {
        return Err(CLI.usage("--name is a holder's: - or --detach"));
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

/// Refuses whatever stands beside `deed`, which makes nothing.
fn alone(args: &Args, deed: &str) -> Result<()> {
    let given = |long| args.flag(long) || args.value(long).is_some();
    let mut others = CLI.options.iter().copied().flatten().filter(|opt| opt.long != deed);
    if let Some(other) = others.find(|opt| given(opt.long)) {
        return Err(CLI.usage(&format!("--{deed} and --{} do not go together", other.long)));
    }
    if args.piped() || !args.program.is_empty() {
        return Err(CLI.usage(&format!("--{deed} is all that there is: no operands")));
    }
    Ok(())
}

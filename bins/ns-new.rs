//! ns-new - create namespaces and look after what lives in them
//!
//! Three forms. With `-` or --detach a *holder* keeps the namespaces and its
//! address is printed, for other tools to map and enter. With a program this
//! process (or, for pid and time namespaces, a child) moves into them and
//! becomes the program.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Because, Failure, Result};
use common::holder::Life;
use common::id::{Both, Kind as IdKind, Map};
use common::name;
use common::ns::Kind;
use common::plan::{Plan, clone};
use common::preset::{Me, from_words, lawful};
use common::proc::Proc;
use common::step::{end, map, mount, ns, own};
use common::target::{self, Operand, Target};
use common::tool::{Outcome, run};
use common::user;
use common::word::quote_all;

const CLI: Cli = Cli {
    name: "ns-new",
    purpose: "create namespaces and look after what lives in them",
    usage: &[
        "KINDS [OPTION...] -",
        "KINDS [OPTION...] --detach --with PID|tty",
        "KINDS [OPTION...] [PROGRAM [ARGUMENT...]]",
        "--release TARGET",
    ],
    options: &[
        Opt { short: "U", long: "user", value: "", help: "a user namespace" },
        Opt { short: "m", long: "mount", value: "", help: "a mount namespace" },
        Opt { short: "p", long: "pid", value: "", help: "a pid namespace" },
        Opt { short: "n", long: "net", value: "", help: "a network namespace" },
        Opt { short: "i", long: "ipc", value: "", help: "an ipc namespace" },
        Opt { short: "u", long: "uts", value: "", help: "a uts namespace" },
        Opt { short: "C", long: "cgroup", value: "", help: "a cgroup namespace" },
        Opt { short: "T", long: "time", value: "", help: "a time namespace" },
        Opt { short: "a", long: "all", value: "", help: "all eight" },
        Opt { short: "r", long: "map-root-user", value: "", help: "with -U: map the own id to 0" },
        Opt { short: "", long: "map", value: "MAP", help: "with -U: map the own id: root, same, or INSIDE:OWN:1" },
        Opt { short: "", long: "host-root", value: "", help: "let a map put the real root inside" },
        Opt { short: "", long: "detach", value: "", help: "print the holder's address and leave it behind" },
        Opt { short: "", long: "with", value: "PID|tty", help: "the process, or terminal session, that it ends with" },
        Opt { short: "", long: "name", value: "NAME", help: "call the holder so: then NAME is a TARGET" },
        Opt { short: "", long: "release", value: "TARGET", help: "end a holder" },
    ],
    operands: Operands::Program(0, ""),
    runs: true,
    stage: true,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    if let Some(word) = args.value("release") {
        return release(&word, &proc);
    }
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|k| args.flag("all") || args.flag(k.option())).collect();
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
    if holds {
        return hold(args, kinds, &proc);
    }
    let map = own_map(args, &kinds, &proc)?;
    become_program(args, kinds, map, &proc)
}

// ---- a holder ----

fn release(word: &OsStr, proc: &Proc) -> Result<Outcome> {
    let address = match Operand::parse(word)? {
        Operand::Process(address) => address,
        Operand::Name(name) => name::find(proc, &name)?,
        Operand::Stream | Operand::File(_) | Operand::Descriptor(_) => {
            return Err(CLI.usage("--release: PID, PID:INODE or a name"));
        }
    };
    let mut plan = Plan::default();
    plan.push(ns::Effect::Release(Rc::new(Target::open(proc, address)?)));
    Ok(Outcome::Plan(plan))
}

/// The name for a holder has to be a TARGET, and none of the caller's others'.
fn check_name(args: &Args, proc: &Proc) -> Result<()> {
    let Some(word) = args.value("name") else { return Ok(()) };
    let Ok(Operand::Name(name)) = Operand::parse(&word) else {
        return Err(CLI.usage("--name: a name has neither blank nor slash, and begins neither with a digit nor with -"));
    };
    let own = proc.own().uid[1];
    if name::holders(proc).iter().any(|h| h.uid == own && h.name.as_deref() == Some(name.as_str())) {
        return Err(Failure::refused(format!("a holder is called {name} already")));
    }
    Ok(())
}

fn hold(args: &Args, kinds: Vec<Kind>, proc: &Rc<Proc>) -> Result<Outcome> {
    check_name(args, proc)?;
    if args.flag("map-root-user") || args.value("map").is_some() {
        return Err(CLI.usage("a holder is mapped from outside, by uidmap-set"));
    }
    if args.piped() && !target::has_reader() {
        let advice = Because::new("the namespaces live as long as the reader of a pipe, and this is none")
            .remedy(detached(&kinds, proc));
        return Err(Failure::usage("standard output is not a pipe").because(Some(advice)));
    }
    let act = if args.piped() { "make a holder" } else { "make a holder for the process of --with" };
    let life = if args.piped() { Life::of_this_process() } else { Life::of(with(args)?) };
    let life = Rc::new(life.map_err(|e| Failure::os(act, e))?);
    let other_way = detached(&kinds, proc);
    let has_pid = kinds.contains(&Kind::Pid);
    let outer: Vec<Kind> = kinds.into_iter().filter(|k| *k != Kind::Pid).collect();
    let mut inner = Plan::default();
    if outer.contains(&Kind::Mnt) {
        inner.push(mount::Effect::Slave);
    }
    if args.piped() {
        inner.push(own::Effect::DieWithParent);
    }
    if has_pid {
        inner.push(ns::Effect::Unshare(vec![Kind::Pid]));
        inner.push(clone(Vec::new(), "the holder stays out of it: inside it could be traced", first_process(), proc));
    }
    inner.push(end::Effect::Hold(life.clone()));
    let mut plan = Plan::default();
    plan.push(clone(outer, "the holder is in the new namespaces; this process stays outside", inner, proc));
    plan.push(end::Effect::SayChild { record: args.piped() });
    if args.piped() {
        let note = format!(
            "ns-new: nobody has entered yet. This waits for the reader of its records: a filter between the stages must not hold them back (sed -u), and without a reader it is {other_way}\n"
        );
        plan.push(end::Effect::LingerOverChild(life, note));
    }
    Ok(Outcome::Plan(plan))
}

/// What the first process of a new pid namespace does.
fn first_process() -> Plan {
    let mut plan = Plan::default();
    plan.push(own::Effect::Undumpable);
    plan.push(own::Effect::DieWithParent);
    plan.push(end::Effect::First);
    plan
}

/// The command that keeps namespaces of `kinds` without a pipe, in the words of
/// the shell that started us.
fn detached(kinds: &[Kind], proc: &Proc) -> String {
    let letter = |kind: &Kind| CLI.options.iter().find(|o| o.long == kind.option()).map_or("", |o| o.short);
    let all = kinds.len() == Kind::ALL.len();
    let letters = if all { "a".to_owned() } else { kinds.iter().map(letter).collect::<String>() };
    if proc.is_below_fish() {
        return format!("set t (ns-new -{letters} --detach --with $fish_pid)");
    }
    format!("t=$(ns-new -{letters} --detach --with $$)")
}

/// The process that a detached holder ends with.
fn with(args: &Args) -> Result<i32> {
    let word = args
        .value("with")
        .ok_or_else(|| CLI.usage("--detach needs --with: the process that the holder ends with, as in --with $$"))?;
    target::end_with(&word)
}

// ---- a program ----

/// The map that this process may write for itself: its own id, by -r or --map.
fn own_map(args: &Args, kinds: &[Kind], proc: &Proc) -> Result<Option<Both<Map>>> {
    let mut words = args.values("map");
    if args.flag("map-root-user") {
        words.push("root".into());
    }
    if words.is_empty() {
        return Ok(None);
    }
    if !kinds.contains(&Kind::User) {
        return Err(CLI.usage("a map is for a user namespace: -U"));
    }
    let me = Me::now(proc);
    let extents = from_words(&words, proc, args.flag("host-root"))?;
    let own = |kind: IdKind| extents.of(kind).iter().all(|e| e.count == 1 && e.outside == *me.own.of(kind));
    if !IdKind::BOTH.into_iter().all(own) {
        let words = quote_all(&words);
        let because = Because::new("from inside, only the own uid and gid can be mapped")
            .remedy(format!("ns-new -U -m - | uidmap-set - {words} | ns-enter - sh"));
        return Err(Failure::usage(format!("--map {words}")).because(Some(because)));
    }
    lawful(extents, proc).map(Some)
}

fn become_program(args: &Args, kinds: Vec<Kind>, map: Option<Both<Map>>, proc: &Rc<Proc>) -> Result<Outcome> {
    let program = program(args)?;
    let forks = kinds.contains(&Kind::Pid) || kinds.contains(&Kind::Time);
    let first = kinds.contains(&Kind::Pid);
    let mut inside = Plan::default();
    if let Some(maps) = &map {
        inside.push(map::Effect::Setgroups(map::Whose::Own, false));
        inside.push(map::Effect::Write(map::Whose::Own, IdKind::Uid, maps.uid.clone()));
        inside.push(map::Effect::Write(map::Whose::Own, IdKind::Gid, maps.gid.clone()));
    }
    if kinds.contains(&Kind::Mnt) {
        inside.push(mount::Effect::Slave);
    }
    if map.is_some_and(|m| m.uid.extents().iter().all(|e| e.inside != 0)) {
        inside.push(own::Effect::RaiseAmbient);
    }
    let mut plan = Plan::default();
    if forks {
        inside.push(own::Effect::DieWithParent);
        inside.push(end::Effect::Exec(program));
        plan.push(clone(
            kinds,
            "a process never changes its own pid namespace: a child is born in the new one",
            inside,
            proc,
        ));
        plan.push(end::Effect::Tend(None, first));
    } else {
        plan.push(ns::Effect::Unshare(kinds));
        plan.steps.append(&mut inside.steps);
        plan.push(end::Effect::Exec(program));
    }
    Ok(Outcome::Plan(plan))
}

/// The program that was asked for; on a terminal, without one, a shell.
fn program(args: &Args) -> Result<Vec<OsString>> {
    if !args.program.is_empty() {
        return Ok(args.program.clone());
    }
    if !std::io::stdin().is_terminal() {
        return Err(CLI.usage("which program? (`-` makes a record for other tools)"));
    }
    Ok(vec![user::shell()])
}

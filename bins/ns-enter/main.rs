//! ns-enter - run a program in a target's namespaces
//!
//! This process stays outside and minds the program: a child crosses in one
//! setns(2) call and becomes it. Nothing of outside goes along but what is
//! named.

mod beside;
mod files;
mod home;
mod kinds;
mod like;
mod nsenter;
mod tools;
mod user;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::rc::Rc;

use common::cgroup::Cgroup;
use common::cli::{Args, Cli, KEEP_FD, KINDS, Operands, STDIN, Stage, flag, opt, valued};
use common::container;
use common::fail::{Again, Failure, Result};
use common::id::{Kind as IdKind, Map};
use common::ns::Kind;
use common::plan::{Plan, clone_into};
use common::preset::Me;
use common::proc::Proc;
use common::pty;
use common::step::end::Care;
use common::step::terminal::{Input, Terminal};
use common::step::{end, ns, own, program, terminal};
use common::target::{self, Operand, Target};
use common::tool::{Outcome, run_advised};
use common::user::shell;
use common::word;

use files::File;
use home::home;
use kinds::{asked, elsewhere, join, possible};
use tools::Brought;
use user::Somebody;

const CLI: Cli = Cli {
    name: "ns-enter",
    purpose: "run a program in a target's namespaces",
    usage: &[
        "[KINDS] [OPTION...] TARGET [PROGRAM [ARGUMENT...]]",
        "[KINDS] [OPTION...] - [PROGRAM [ARGUMENT...]]",
        "--KIND=FILE... [OPTION...] [PROGRAM [ARGUMENT...]]",
        "--beside TARGET|- HELPER [ARGUMENT...]",
    ],
    options: &[
        KINDS,
        &[
            opt("a", "all", "", "enter all that differ from ours (the default)"),
            opt("t", "target", "TARGET", "the same as the operand"),
            flag("user-parent", "enter the parent of its user namespace instead"),
            flag("try", "leave out what cannot be entered"),
            valued("as", "USER", "become this user of the target's"),
            opt("", "like", "[=WHAT,...]", "become what the target is, or just these of it"),
            valued("tools", "DIR[=PATH]|auto", "bring programs of outside along"),
            flag("etc", "have the target's resolv.conf and hosts alone"),
            flag("pty", "give the program a terminal of its own"),
            flag("beside", "run PROGRAM outside, as long as the namespaces live"),
            STDIN,
            KEEP_FD,
        ],
        nsenter::OPTIONS,
    ],
    operands: Operands::Program(1, &["target", "user", "mount", "pid", "net", "ipc", "uts", "cgroup", "time"]),
    runs: true,
    stage: Stage::LastBut("beside"),
};

fn main() -> ExitCode {
    run_advised(&CLI, decide, |again, _| match again {
        Again::Entering(option, others) => {
            let is_other = |word: OsString| others.iter().any(|other| word == *other);
            if std::env::args_os().any(is_other) { None } else { word::again(option) }
        }
        Again::Namespace(_) | Again::Map | Again::Word(..) | Again::Where(_) => None,
    })
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    let word = args.value("target").or_else(|| args.operands.first().cloned());
    let operand = word.as_ref().map(|word| Operand::parse(word)).transpose()?;
    if args.flag("beside") {
        return beside::decide(&CLI, args, &proc, operand.as_ref());
    }
    let files = files::named(args, operand.as_ref(), &proc)?;
    let open = |address| Ok(Rc::new(Target::open(&proc, address)?));
    // Before the stream: the stage before us has its own work to do.
    let mut found = Found { word: word.unwrap_or_default(), asked: asked(args, &proc)?, ..Found::default() };
    let target = match &operand {
        Some(Operand::Process(address)) => open(*address)?,
        Some(Operand::Stream) => match from_stream()? {
            (Some(address), holds) => {
                found.holds = holds;
                open(address)?
            }
            (None, _) => return Ok(Outcome::Plan(enter_promised(program(args, || Ok(shell()))?))),
        },
        Some(Operand::Name(name)) => {
            let (target, is_container) = container::find(&proc, name)?;
            found.is_container = is_container;
            target
        }
        None if !has_file(args) => return Err(CLI.usage("which target?")),
        None | Some(Operand::File(_) | Operand::Descriptor(_)) => return enter_files(&files, args, &proc),
    };
    enter(args, &proc, &target, found, files)
}

/// What is known of a target beside the process.
#[derive(Default)]
struct Found {
    /// How it was named.
    word: OsString,
    /// The kinds that are to be entered, if it is elsewhere in them.
    asked: Vec<(Kind, Option<u64>)>,
    /// Whether it is a holder that goes with the last.
    holds: bool,
    /// Whether it was found by the name of a container.
    is_container: bool,
}

fn program(args: &Args, shell: impl FnOnce() -> Result<OsString>) -> Result<Vec<OsString>> {
    if args.program.is_empty() { Ok(vec![shell()?]) } else { Ok(args.program.clone()) }
}

/// Whether the program's root is neither the caller's nor the target's: then
/// nothing is known of its shells.
fn has_other_root(args: &Args, files: &[File]) -> bool {
    args.value("root").is_some() || files.iter().any(|file| file.kind == Kind::Mnt)
}

fn callers_shell(args: &Args, files: &[File]) -> OsString {
    if has_other_root(args, files) { "/bin/sh".into() } else { shell() }
}

/// The plan for a process as a target.
fn enter(args: &Args, proc: &Rc<Proc>, target: &Rc<Target>, found: Found, mut files: Vec<File>) -> Result<Outcome> {
    files.extend(files::of_socket(args, proc, target)?);
    let stream = found.word == "-";
    let input = Input::read(args.value("stdin"), stream)?;
    let own_terminal = own_terminal(args, input, found.is_container)?;
    let somebody = args.value("as").map(|who| named(proc, target, &who)).transpose()?;
    let kinds = elsewhere(found.asked, proc, target)?;
    let (kinds, mut left_out) = possible(kinds, args, proc, target)?;
    let partial = !left_out.is_empty();
    let same_root = kinds.contains(&Kind::Mnt) && target::files::same_root(proc, target)?;
    let is_home = same_root && !files.iter().any(|file| file.kind == Kind::Mnt);
    let brought = tools::read(args, proc, target, &kinds)?;
    let crossing =
        |brought| Ok(files::enter(&files, Some((target, &kinds)), join(args, proc, target, &kinds, brought)?, proc));
    let mut like = like::read(args, proc, target, &kinds, &|| crossing(None))?;
    left_out.append(&mut like.left_out);
    let mut inside = Plan::default();
    if found.holds {
        inside.push(ns::Effect::TakeDoor(target.clone()));
    }
    input.take().into_iter().for_each(|take| inside.push(take));
    inside.steps.append(&mut like.first.steps);
    inside.push(own::Effect::Undumpable);
    inside.steps.extend(crossing(brought.as_ref())?.steps);
    if found.holds {
        // Who has forked into a pid namespace is another than who took the door.
        inside.push(ns::Effect::Entrust(target.clone()));
    }
    let told = !like.directory && !args.flag("wd") && !args.flag("wdns");
    let home = if kinds.contains(&Kind::Mnt) && is_home { home(told, &mut inside)? } else { None };
    // As ourselves still: the ids inside may not be let in there.
    home.iter().for_each(|home| inside.push(home.step(told && brought.is_none())));
    let ids = nsenter::ids(args)?;
    if ids.is_some() && (somebody.is_some() || like.credentials.is_some()) {
        return Err(CLI.usage("--setuid and --setgid: one way to become somebody is enough"));
    }
    let usual = somebody.is_none() && like.credentials.is_none();
    let mut uid = Some(Me::nameless().own.uid);
    if kinds.contains(&Kind::User) && (usual || brought.is_some()) {
        let (effect, its) = own::Effect::settled(&Me::nameless().own, proc, &target.who())?;
        effect.into_iter().for_each(|effect| inside.push(effect));
        uid = its;
    }
    if let Some(brought) = &brought {
        brought.attach(&mut inside);
        home.iter().for_each(|home| inside.push(home.step(told)));
    }
    inside.steps.append(&mut like.entered.steps);
    nsenter::directories(args, &mut inside)?;
    match (&somebody, like.credentials) {
        (Some(somebody), _) => uid = turn_into(somebody, proc, target, &kinds, &mut inside),
        (None, Some((plan, its))) => {
            inside.steps.extend(plan.steps);
            uid = its;
        }
        (None, None) => {
            let (plan, its) = ids.unwrap_or_default();
            inside.steps.extend(plan.steps);
            // An exec by any other uid drops what is not ambient.
            let is_other = args.flag("user-parent") || kinds.contains(&Kind::User) && uid != Some(0);
            if its.is_none() && is_other {
                inside.push(own::Effect::RaiseAmbient);
            }
            uid = its.or(uid);
        }
    }
    let terminal = terminal(own_terminal, input, kinds.contains(&Kind::Pid));
    let open = own_terminal.map(|_| open_terminal(proc, target, &kinds, uid)).transpose()?;
    terminal.take().into_iter().for_each(|take| inside.push(take));
    brought.iter().for_each(|brought| brought.path(&mut inside));
    let has_theirs = if kinds.contains(&Kind::Mnt) { !same_root } else { like.root };
    let theirs = has_theirs && !brought.as_ref().is_some_and(Brought::has_shell);
    let by_name = !has_other_root(args, &files) && (theirs || somebody.is_some());
    let shell = || {
        if by_name {
            user::shell_of(proc, target, theirs, uid.unwrap_or(0), &found.word)
        } else {
            Ok(callers_shell(args, &files))
        }
    };
    finish(args, program(args, shell)?, like.last, &mut inside)?;
    let holder = found.holds.then(|| target.clone());
    let mut plan = around(inside, kept(args)?, like.cgroup, (open, terminal), holder, left_out, proc);
    if partial {
        plan.push(end::Effect::Leave(3));
    }
    Ok(Outcome::Plan(plan))
}

fn has_file(args: &Args) -> bool {
    Kind::ALL.into_iter().any(|kind| args.value(kind.option()).is_some())
}

fn named(proc: &Proc, target: &Target, who: &OsStr) -> Result<Somebody> {
    let who = who.to_str().ok_or_else(|| Failure::usage("--as: this is no name"))?;
    user::named(proc, target, who)
}

/// Whether the program gets a terminal of its own, and if so, whether in place of
/// all three standard descriptors or only of those that are a terminal. Who is
/// found by the name of a container has not been asked whether he is trusted.
fn own_terminal(args: &Args, input: Input, is_container: bool) -> Result<Option<bool>> {
    if !args.flag("pty") {
        return Ok((is_container && pty::has_terminal()).then_some(false));
    }
    if input != Input::Callers {
        return Err(CLI.usage("--pty takes standard input, which `-` and --stdin use for something else"));
    }
    Ok(Some(true))
}

/// The terminal that it is on then, in another pid namespace or not.
fn terminal(own: Option<bool>, input: Input, pid: bool) -> Terminal {
    own.map_or_else(|| Terminal::of_caller(input, pid), Terminal::Own)
}

/// The step that opens it, where the program can find it by name, and for him
/// who the program will be, by his ids outside.
fn open_terminal(proc: &Proc, target: &Target, kinds: &[Kind], uid: Option<u32>) -> Result<terminal::Effect> {
    let root = if kinds.contains(&Kind::Mnt) { Some(Rc::new(target::files::root(proc, target)?)) } else { None };
    let outside = |kind, id| Ok(Map::new(proc.read_map(&target.who(), kind)?).ok().and_then(|map| map.outside(id)));
    let owner = match uid {
        Some(uid) if kinds.contains(&Kind::User) => outside(IdKind::Uid, uid)?.zip(outside(IdKind::Gid, 0)?),
        Some(_) | None => None,
    };
    Ok(terminal::Effect::Open(root, owner))
}

/// What this process does, around what the child does inside.
fn around(
    inside: Plan,
    kept: Vec<i32>,
    cgroup: Option<Rc<Cgroup>>,
    (open, terminal): (Option<terminal::Effect>, Terminal),
    holder: Option<Rc<Target>>,
    left_out: Vec<Failure>,
    proc: &Rc<Proc>,
) -> Plan {
    let mut plan = Plan::default();
    for failure in left_out {
        plan.push(end::Effect::Note(format!("{}: left out: {failure}\n", CLI.name)));
    }
    if let Some(holder) = &holder {
        plan.push(ns::Effect::Attach(holder.clone()));
    }
    open.into_iter().chain(terminal.lend()).for_each(|terminal| plan.push(terminal));
    plan.push(clone_into(
        cgroup,
        Vec::new(),
        "this process stays outside: it can see why a step was refused, and keeps the pipe",
        inside,
        proc,
    ));
    kept.into_iter().filter(|n| *n > 2).for_each(|n| plan.push(own::Effect::Hide(n)));
    plan.push(terminal.tend(Care { holder, ..Care::of(proc) }));
    plan
}

/// The steps by which the program becomes somebody of the target's.
fn turn_into(somebody: &Somebody, proc: &Proc, target: &Target, kinds: &[Kind], inside: &mut Plan) -> Option<u32> {
    let who = if kinds.contains(&Kind::User) { target.who() } else { "self".to_owned() };
    let (uid, gid) = (somebody.user.uid, somebody.user.gid);
    if proc.setgroups(&who) == Some(false) {
        let text = "setgroups is denied in that user namespace: the program keeps the caller's groups";
        inside.push(end::Effect::Note(format!("{}: {text}\n", CLI.name)));
    } else {
        inside.push(program::Effect::Groups(somebody.groups.clone()));
    }
    inside.push(program::Effect::Gid(gid));
    inside.push(program::Effect::Uid(uid, false));
    let name = &somebody.user.name;
    for (variable, value) in [("USER", name), ("LOGNAME", name), ("SHELL", &somebody.user.shell)] {
        inside.push(program::Effect::Variable(variable.into(), value.into()));
    }
    inside.push(program::Effect::Variable("HOME".into(), somebody.home.clone()));
    Some(uid)
}

/// The address in the stream, and whether it is a holder's.
fn from_stream() -> Result<(Option<common::record::Address>, bool)> {
    let stream = target::stream::read_stream()?;
    if stream.has_extents() {
        return Err(Failure::refused(
            "the stream has uid and gid records that nobody has used: uidmap-set is missing before this stage",
        ));
    }
    stream.pid().ok_or_else(|| Failure::refused("the stream has no pid record: ns-new is missing before this stage"))
}

/// What a dry pipeline shows: no process is there to be looked at.
fn enter_promised(program: Vec<OsString>) -> Plan {
    let mut plan = Plan { dry: true, ..Plan::default() };
    plan.push(ns::promised());
    plan.push(end::Effect::Exec(program));
    plan
}

/// The descriptors that the program has, and this process need not have then.
fn kept(args: &Args) -> Result<Vec<i32>> {
    let mut kept: Vec<i32> =
        args.values("keep-fd").iter().map(|word| target::given::descriptor(word)).collect::<Result<_>>()?;
    kept.sort_unstable();
    kept.dedup();
    Ok(kept)
}

fn finish(args: &Args, program: Vec<OsString>, last: Plan, inside: &mut Plan) -> Result<()> {
    inside.push(own::Effect::Close(kept(args)?));
    inside.push(own::Effect::DieWithParent);
    inside.steps.extend(last.steps);
    inside.push(end::Effect::Exec(program));
    Ok(())
}

/// Enters what files stand for, and nothing else.
fn enter_files(files: &[File], args: &Args, proc: &Rc<Proc>) -> Result<Outcome> {
    let of_process = |kind: &Kind| args.flag(kind.option()) && args.value(kind.option()).is_none();
    if let Some(kind) = Kind::ALL.into_iter().find(of_process) {
        return Err(CLI.usage(&format!("--{} needs a file, or a process for a target", kind.option())));
    }
    let of_process = ["all", "user-parent", "try", "like", "etc", "as", "tools", "net-socket"];
    let given = |option: &&&str| args.flag(option) || args.value(option).is_some();
    if let Some(option) = of_process.iter().find(given) {
        return Err(CLI.usage(&format!("--{option} needs a process for a target")));
    }
    if let Some(thing) = nsenter::like(args).first() {
        return Err(CLI.usage(&format!("--like={thing} needs a process for a target")));
    }
    let mut inside = Plan::default();
    let input = Input::read(args.value("stdin"), false)?;
    input.take().into_iter().for_each(|take| inside.push(take));
    inside.push(own::Effect::Undumpable);
    inside.steps.extend(files::enter(files, None, Plan::default(), proc).steps);
    nsenter::directories(args, &mut inside)?;
    inside.steps.extend(nsenter::ids(args)?.unwrap_or_default().0.steps);
    let own = own_terminal(args, input, false)?;
    let terminal = terminal(own, input, files.iter().any(|file| file.kind == Kind::Pid));
    let open = own.map(|_| terminal::Effect::Open(None, None));
    terminal.take().into_iter().for_each(|take| inside.push(take));
    finish(args, program(args, || Ok(callers_shell(args, files)))?, Plan::default(), &mut inside)?;
    Ok(Outcome::Plan(around(inside, kept(args)?, None, (open, terminal), None, Vec::new(), proc)))
}

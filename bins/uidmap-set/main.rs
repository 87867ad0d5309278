//! uidmap-set - write a target's uid_map, gid_map and setgroups
//!
//! Three ways, in this order: by capabilities of this file (`privileged.rs`, a
//! room of its own); directly where the kernel allows the caller to; through
//! newuidmap(1) and newgidmap(1), for which it can also stand in itself
//! (`stand_in.rs`).

mod privileged;
mod stand_in;

use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, HOST_ROOT, Operands, Stage, flag, valued};
use common::fail::{Failure, Result};
use common::helper;
use common::id::{Both, Kind, Map};
use common::name;
use common::plan::Plan;
use common::preset::{NAMES, from_words, lawful};
use common::proc::Proc;
use common::record::Stream;
use common::step::{map, newuidmap};
use common::target::stream::read_stream;
use common::target::{Operand, Target};
use common::tool::{Outcome, called, pass_on, run};

use privileged::Standing;

const CLI: Cli = Cli {
    name: "uidmap-set",
    purpose: "write a target's uid_map, gid_map and setgroups",
    usage: &["[OPTION...] TARGET MAP...", "[OPTION...] - [MAP...]"],
    options: &[&[
        valued("setgroups", "allow|deny|auto", "what to write to setgroups (auto)"),
        flag("show", "print the maps, and what they are to the system"),
        HOST_ROOT,
    ]],
    operands: Operands::Free,
    runs: false,
    stage: Stage::Middle,
};

fn main() -> ExitCode {
    if let Some(kind) = stand_in::named(&called()) {
        return stand_in::run(kind);
    }
    // Before anything else, and until the maps are written: capabilities of
    // this file, if it has any, are permitted but without effect.
    let standing = privileged::begin(false);
    run(&CLI, move |args| decide(args, standing?))
}

fn decide(args: &Args, standing: Standing) -> Result<Outcome> {
    match &standing {
        Standing::Ordinary => {}
        // Whoever serves starts nothing, nor does he once he has served.
        Standing::Serving(_) => helper::forbid(),
        Standing::Elsewhere(why) => {
            privileged::check_system("newuidmap", why)?;
            privileged::check_system("newgidmap", why)?;
        }
    }
    let proc = Proc::open()?;
    let (word, map_words) = args.operands.split_first().ok_or_else(|| CLI.usage("which target?"))?;
    let setgroups = match args.value("setgroups").map(|v| v.to_string_lossy().into_owned()).as_deref() {
        None | Some("auto") => None,
        Some("allow") => Some(true),
        Some("deny") => Some(false),
        Some(other) => return Err(CLI.usage(&format!("--setgroups {other}: allow, deny or auto"))),
    };
    let operand = Operand::parse(word)?;
    let piped = operand == Operand::Stream;
    // Before the stream: the stage before us has its own work to do.
    let asked = (!map_words.is_empty()).then(|| from_words(map_words, &proc, args.flag("host-root")));
    let stream = if piped { read_stream()? } else { Stream::default() };
    let maps = match (stream.has_extents(), asked) {
        (false, Some(asked)) => asked?,
        (true, None) => Both { uid: stream.extents(Kind::Uid), gid: stream.extents(Kind::Gid) },
        (true, Some(_)) => return Err(CLI.usage("the stream has a map already: no MAP operands then")),
        (false, None) => {
            return Err(CLI.usage(&format!("which map? [u:|g:|b:]INSIDE:OUTSIDE:COUNT, or one of {NAMES}")));
        }
    };
    let maps = lawful(maps, &proc)?;
    let (target, hold) = target(operand, &stream, &proc)?;
    let mut plan = Plan { dry: target.is_none(), ..Plan::default() };
    match (standing, &target) {
        (Standing::Serving(caller), Some(target)) => {
            let maps = [(Kind::Uid, maps.uid), (Kind::Gid, maps.gid)];
            if args.dry() {
                let setgroups = privileged::judge(caller, target, &maps, setgroups)?;
                steps(&proc, Some(target), &maps, &[], setgroups, &mut plan)?;
            } else {
                privileged::write(caller, target, &maps, setgroups)?;
            }
        }
        (standing, target) => write(&proc, target.as_ref(), maps, setgroups, &standing, &mut plan)?,
    }
    if args.flag("show") {
        plan.push(map::Effect::Show(target.clone(), piped));
    }
    if piped {
        pass_on(&CLI, stream.consume_extents(), target.filter(|_| hold), &mut plan);
    }
    Ok(Outcome::Plan(plan))
}

/// The process meant, none in a dry pipeline; and whether it is a holder that
/// waits for its reader.
fn target(operand: Operand, stream: &Stream, proc: &Proc) -> Result<(Option<Rc<Target>>, bool)> {
    let (address, hold) = match operand {
        Operand::Process(address) => (Some(address), false),
        Operand::Stream => stream
            .pid()
            .ok_or_else(|| Failure::refused("the stream has no pid record: ns-new is missing before this stage"))?,
        Operand::Descriptor(n) => return Ok((Some(Rc::new(Target::from_descriptor(proc, n)?)), false)),
        Operand::Name(name) => (Some(name::find(proc, &name)?), false),
        Operand::File(_) => {
            return Err(CLI.usage("a map is written through a process: PID, PID:INODE, fd:N or -"));
        }
    };
    Ok((address.map(|at| Target::open(proc, at)).transpose()?.map(Rc::new), hold))
}

// ---- how they are written ----

/// Whoever serves comes here only in a dry run without a target.
fn write(
    proc: &Proc,
    target: Option<&Rc<Target>>,
    mut maps: Both<Map>,
    setgroups: Option<bool>,
    standing: &Standing,
    plan: &mut Plan,
) -> Result<()> {
    let serves = matches!(standing, Standing::Serving(_));
    let ways = newuidmap::ways(target, &mut maps, setgroups, serves)?;
    // Once privileged, we ask for nothing but what the caller has asked for.
    if matches!(standing, Standing::Ordinary) {
        newuidmap::check_grants(target, &maps, &ways.by_helper)?;
    }
    let maps = [(Kind::Uid, maps.uid), (Kind::Gid, maps.gid)];
    steps(proc, target, &maps, &ways.by_helper, ways.setgroups, plan)
}

/// The steps that write setgroups and maps, some by newuidmap and newgidmap.
fn steps(
    proc: &Proc,
    target: Option<&Rc<Target>>,
    maps: &[(Kind, Map)],
    by_helper: &[Kind],
    setgroups: Option<bool>,
    plan: &mut Plan,
) -> Result<()> {
    let open = |file: &str| match target {
        Some(target) => map::open(proc, target, file),
        None => Ok(map::Whose::Promised("?")),
    };
    // Everything is opened and checked before the first byte is written: a
    // namespace with one map is good for nothing but throwing away.
    let mut steps = Vec::new();
    if let Some(allow) = setgroups {
        steps.push(map::Effect::Setgroups(open("setgroups")?, allow));
    }
    for (kind, map) in maps {
        steps.push(if by_helper.contains(kind) {
            map::Effect::Helper(target.cloned(), *kind, map.clone())
        } else {
            map::Effect::Write(open(kind.map_file())?, *kind, map.clone())
        });
    }
    steps.into_iter().for_each(|step| plan.push(step));
    Ok(())
}

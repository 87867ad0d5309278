//! uidmap-set - write a target's uid_map, gid_map and setgroups
//!
//! Three ways, in this order: directly where the kernel allows the caller to;
//! by capabilities of this file (`privileged.rs`, a room of its own); through
//! newuidmap(1) and newgidmap(1).

mod privileged;

use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Because, Failure, Result};
use common::id::{Both, Kind, Map};
use common::name;
use common::plan::Plan;
use common::preset::{NAMES, from_words, lawful};
use common::proc::{CAP_SETGID, CAP_SETUID, Proc};
use common::record::Stream;
use common::step::{end, map};
use common::target::{Operand, Target, read_stream};
use common::tool::{Outcome, run};

const CLI: Cli = Cli {
    name: "uidmap-set",
    purpose: "write a target's uid_map, gid_map and setgroups",
    usage: &["[OPTION...] TARGET MAP...", "[OPTION...] - [MAP...]"],
    options: &[
        Opt {
            short: "",
            long: "setgroups",
            value: "allow|deny",
            help: "what to write to setgroups (deny, unless a gid range is granted)",
        },
        Opt { short: "", long: "host-root", value: "", help: "let a map put the real root inside" },
    ],
    operands: Operands::Free,
    runs: false,
    stage: true,
};

fn main() -> ExitCode {
    // Before anything else, and until the maps are written: capabilities of
    // this file, if it has any, are permitted but without effect.
    let gained = privileged::lower();
    run(&CLI, move |args| decide(args, gained))
}

fn decide(args: &Args, gained: bool) -> Result<Outcome> {
    let proc = Proc::open()?;
    let (word, map_words) = args.operands.split_first().ok_or_else(|| CLI.usage("which target?"))?;
    let setgroups = match args.value("setgroups").map(|v| v.to_string_lossy().into_owned()).as_deref() {
        None => None,
        Some("allow") => Some(true),
        Some("deny") => Some(false),
        Some(other) => return Err(CLI.usage(&format!("--setgroups {other}: allow or deny"))),
    };
    let operand = Operand::parse(word)?;
    let stream = if operand == Operand::Stream { read_stream()? } else { Stream::default() };
    let maps = if stream.has_extents() {
        if !map_words.is_empty() {
            return Err(CLI.usage("the stream has a map already: no MAP operands then"));
        }
        lawful(Both { uid: stream.extents(Kind::Uid), gid: stream.extents(Kind::Gid) })?
    } else {
        if map_words.is_empty() {
            return Err(CLI.usage(&format!("which map? [u:|g:|b:]INSIDE:OUTSIDE:COUNT, or one of {NAMES}")));
        }
        lawful(from_words(map_words, &proc, args.flag("host-root"))?)?
    };
    let (address, hold) = match operand {
        Operand::Process(address) => (Some(address), false),
        Operand::Stream => stream
            .pid()
            .ok_or_else(|| Failure::refused("the stream has no pid record: ns-new is missing before this stage"))?,
        Operand::File(_) | Operand::Descriptor(_) => {
            return Err(CLI.usage("a map is written through a process: PID, PID:INODE or -"));
        }
        Operand::Name(name) => (Some(name::find(&proc, &name)?), false),
    };
    let mut plan = Plan::default();
    let target = match address {
        Some(address) => Some(Rc::new(Target::open(&proc, address)?)),
        None => None,
    };
    match &target {
        Some(target) if gained && !args.dry() => privileged::write(target, &maps, setgroups)?,
        _ => write(&proc, target.as_ref(), maps, (setgroups, gained), &mut plan)?,
    }
    plan.dry = target.is_none();
    if Operand::parse(word)? == Operand::Stream {
        plan.push(end::Effect::Say(stream.consume_extents()));
        plan.push(end::Effect::Linger(target.filter(|_| hold)));
    }
    Ok(Outcome::Plan(plan))
}

// ---- how they are written ----

/// `target` is None in a dry pipeline, where no process was made; `gained` is
/// true only in a dry run of what the privileged room would do.
fn write(
    proc: &Proc,
    target: Option<&Rc<Target>>,
    maps: Both<Map>,
    (setgroups, gained): (Option<bool>, bool),
    plan: &mut Plan,
) -> Result<()> {
    let own = proc.own();
    let me = Both { uid: own.uid[1], gid: own.gid[1] };
    let single = |kind: Kind| matches!(maps.of(kind).extents(), [e] if e.count == 1 && e.outside == *me.of(kind));
    let can = |kind: Kind| gained || own.can(if kind == Kind::Uid { CAP_SETUID } else { CAP_SETGID });
    // Without a grant, dropping groups must not be possible: it would undo
    // permissions that deny something to a group (CVE-2014-8989).
    let deny = setgroups.map_or(single(Kind::Gid) && !can(Kind::Gid), |allow| !allow);
    let by_helper: Vec<Kind> = Kind::BOTH.into_iter().filter(|k| !single(*k) && !can(*k)).collect();
    map::check_helpers(target, &maps, &by_helper)?;
    if !deny && single(Kind::Gid) && !can(Kind::Gid) {
        let because = Because::new("setgroups is allowed there: without CAP_SETGID it has to be denied first");
        return Err(Failure::refused("write gid_map").because(Some(because)));
    }
    let open = |file: &str| match target {
        Some(target) => map::open(proc, target, file),
        None => Ok(map::Whose::Promised("?")),
    };
    // Everything is opened and checked before the first byte is written: a
    // namespace with one map is good for nothing but throwing away.
    let mut steps = Vec::new();
    if deny || setgroups.is_some() {
        steps.push(map::Effect::Setgroups(open("setgroups")?, !deny));
    }
    for kind in Kind::BOTH {
        let map = maps.of(kind).clone();
        steps.push(if by_helper.contains(&kind) {
            map::Effect::Helper(target.cloned(), kind, map)
        } else {
            map::Effect::Write(open(kind.map_file())?, kind, map)
        });
    }
    steps.into_iter().for_each(|step| plan.push(step));
    Ok(())
}

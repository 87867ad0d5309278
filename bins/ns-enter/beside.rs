//! A helper outside, beside the namespaces of a target: it is run, awaited, and
//! ended with them. In the middle of a pipeline it holds the stream back until
//! it is ready.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use common::cli::{Args, Cli};
use common::container;
use common::fail::{Exit, Failure, Result};
use common::holder::door;
use common::plan::{Plan, clone};
use common::proc::Proc;
use common::record::Stream;
use common::step::beside::{Effect, Helper, READY};
use common::step::{Step, end, own};
use common::target::{self, Operand, Target};
use common::tool::Outcome;

/// The options that this one goes along with.
const ALSO: [&str; 7] = ["beside", "target", "keep-fd", "dry-run", "explain", "help", "version"];

pub(crate) fn decide(cli: &Cli, args: &Args, proc: &Rc<Proc>, operand: Option<&Operand>) -> Result<Outcome> {
    if let Some(other) = cli.all().find(|o| !ALSO.contains(&o.long) && args.flag(o.long)) {
        return Err(cli.usage(&format!("--beside and --{} do not go together", other.long)));
    }
    if args.program.is_empty() {
        return Err(cli.usage("--beside: which helper?"));
    }
    let operand = operand.ok_or_else(|| cli.usage("which target?"))?;
    let stage = *operand == Operand::Stream;
    let ((address, holds), stream) = match operand {
        Operand::Stream => {
            let stream = target::stream::read_stream()?;
            let pid = stream
                .pid()
                .ok_or_else(|| Failure::refused("the stream has no pid record: ns-new is missing before this stage"))?;
            (pid, stream)
        }
        Operand::Process(address) => ((Some(*address), false), Stream::default()),
        Operand::Name(name) => ((Some(container::find(proc, name)?.0.address), false), Stream::default()),
        Operand::File(_) | Operand::Descriptor(_) => {
            return Err(cli.usage("--beside needs a process for a target"));
        }
    };
    let Some(address) = address else { return Ok(Outcome::Plan(promised(args, stream))) };
    if stage && target::stream::has_reader() == Ok(false) {
        return Err(Failure::refused("standard output is no pipe, so nobody can enter: the helper would end at once"));
    }
    let target = Rc::new(Target::open(proc, address)?);
    plan(cli, args, proc, (target, holds), stage.then_some(stream)).map(Outcome::Plan)
}

fn plan(
    cli: &Cli,
    args: &Args,
    proc: &Rc<Proc>,
    (target, holds): (Rc<Target>, bool),
    stream: Option<Stream>,
) -> Result<Plan> {
    let (words, says) = filled(&args.program, Some(&target.who()));
    let helper =
        Rc::new(Helper { words, says, target: target.clone(), stage: stream.is_some(), holds, tool: cli.name });
    let holder = (door::is_holder(target.fd.as_fd()) == Ok(true)).then_some(target);
    let mut plan = Plan::default();
    plan.push(Effect::Adopt);
    if says {
        plan.push(Effect::Pipe);
    }
    plan.push(clone(
        Vec::new(),
        "whoever runs in the namespaces cannot touch what runs outside of them",
        inside(args, &helper, holder.clone())?,
        proc,
    ));
    plan.push(Effect::Await(helper.clone()));
    holder.into_iter().for_each(|holder| plan.push(Effect::Entrust(holder)));
    if let Some(stream) = stream {
        plan.push(end::Effect::Say(stream));
    }
    plan.push(Effect::Stay(helper));
    Ok(plan)
}

/// What becomes the helper.
fn inside(args: &Args, helper: &Helper, holder: Option<Rc<Target>>) -> Result<Plan> {
    let mut kept: Vec<i32> =
        args.values("keep-fd").iter().map(|word| target::given::descriptor(word)).collect::<Result<_>>()?;
    let mut inside = Plan::default();
    holder.into_iter().for_each(|holder| inside.push(Effect::HoldBack(holder)));
    inside.push(Effect::Apart);
    if helper.says {
        if kept.contains(&READY) {
            return Err(Failure::usage(format!("--keep-fd {READY}: that is what %r stands for")));
        }
        inside.push(Effect::TakePipe);
        kept.push(READY);
    }
    inside.push(own::Effect::Close(kept));
    inside.push(own::Effect::DieWithParent);
    // That a helper is not there is no exit status of the program's.
    inside.push(Step { exit: |_| Exit::Refused, ..end::Effect::Exec(helper.words.clone()).into() });
    Ok(inside)
}

/// What a dry pipeline shows: no process is there to be told of.
fn promised(args: &Args, stream: Stream) -> Plan {
    let mut plan = Plan { dry: true, ..Plan::default() };
    plan.push(Effect::Adopt);
    plan.push(end::Effect::Exec(filled(&args.program, None).0));
    plan.push(end::Effect::Say(stream));
    plan
}

/// The words of a helper with what stands for the target's number (`%p`) and
/// for the descriptor by which it says that it is ready (`%r`), and whether
/// that one is among them.
fn filled(words: &[OsString], pid: Option<&str>) -> (Vec<OsString>, bool) {
    let mut says = false;
    let mut fill = |word: &OsString| {
        let mut bytes = Vec::new();
        let mut rest = word.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let (with, used) = match (first, after.first()) {
                (b'%', Some(b'p')) => (pid.unwrap_or("%p").to_owned(), 2),
                (b'%', Some(b'r')) => {
                    says = true;
                    (READY.to_string(), 2)
                }
                (b'%', Some(b'%')) => ("%".to_owned(), 2),
                (_, _) => (String::new(), 1),
            };
            if used == 1 {
                bytes.push(*first);
            }
            bytes.extend_from_slice(with.as_bytes());
            rest = rest.get(used..).unwrap_or_default();
        }
        OsString::from_vec(bytes)
    };
    let words = words.iter().map(&mut fill).collect();
    (words, says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in() {
        let fill = |text: &str| {
            let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
            let (words, says) = filled(&words, Some("42"));
            (words.join(" ".as_ref()).into_string().unwrap(), says)
        };
        assert_eq!(fill("pasta --config-net %p"), ("pasta --config-net 42".into(), false));
        assert_eq!(fill("s --ready-fd=%r /proc/%p/ns/net"), ("s --ready-fd=3 /proc/42/ns/net".into(), true));
        assert_eq!(fill("date +%%p%d%"), ("date +%p%d%".into(), false));
    }
}

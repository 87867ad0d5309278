//! Holders: made, left behind, ended.

use std::ffi::OsStr;
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Because, Errno, Failure, Result};
use common::holder::Life;
use common::name;
use common::ns::Kind;
use common::plan::{Plan, clone};
use common::proc::Proc;
use common::record::Address;
use common::step::{end, ns, own};
use common::target::{self, Operand, Target};
use common::tool::Outcome;

use crate::CLI;
use crate::{setup, unshare};

/// Ends a holder.
pub(crate) fn release(word: &OsStr, proc: &Proc) -> Result<Outcome> {
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
    // A digit may begin the id of somebody's container.
    let digit = word.to_string_lossy().starts_with(|c: char| c.is_ascii_digit());
    let name = match Operand::parse(&word) {
        // What is read as another name would be found by no TARGET.
        Ok(Operand::Name(name)) if !digit && *name == *word => name,
        _ => {
            let form = "without blank or slash, that begins with none of: a digit, -, fd:, name:, netns:";
            return Err(CLI.usage(&format!("--name: a name is plain text {form}")));
        }
    };
    let own = proc.own().uid[1];
    if name::holders(proc).iter().any(|h| h.uid == own && h.name.as_deref() == Some(name.as_str())) {
        return Err(Failure::refused(format!("a holder is called {name} already")));
    }
    Ok(())
}

/// A holder of `kinds`.
pub(crate) fn hold(args: &Args, kinds: Vec<Kind>, proc: &Rc<Proc>) -> Result<Outcome> {
    check_name(args, proc)?;
    if args.flag("map-root-user") || args.value("map").is_some() || unshare::maps(args) {
        return Err(CLI.usage("a holder is mapped from outside, by uidmap-set"));
    }
    if args.piped() && !target::stream::has_reader().map_err(|e| Failure::os("fstat standard output", e))? {
        let advice = Because::new("the namespaces live as long as the reader of a pipe, and this is none")
            .remedy(detached(&kinds, proc));
        return Err(Failure::usage("standard output is not a pipe").because(Some(advice)));
    }
    let life = if args.piped() {
        Life::of_this_process().map_err(|e| Failure::os("make a holder", e))
    } else {
        let pid = with(args)?;
        Life::of(pid).map_err(|e| not_found(proc, pid, e))
    };
    let life = Rc::new(life?);
    let asked = kinds.clone();
    let has_pid = kinds.contains(&Kind::Pid);
    let mut outer: Vec<Kind> = kinds.into_iter().filter(|k| *k != Kind::Pid).collect();
    let mut inner = Plan::default();
    setup::clocks(args, &mut outer, &mut inner)?;
    setup::inside(args, &outer, &mut inner)?;
    setup::shared(args).into_iter().for_each(|share| inner.push(share));
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
        let proc = proc.clone();
        let note = move || {
            let other_way = detached(&asked, &proc);
            format!(
                "ns-new: nobody has attached (ns-enter -). This waits for the reader of its records: a filter between the stages must not hold them back (sed -u), and without a reader it is {other_way}\n"
            )
        };
        plan.push(end::Effect::LingerOverChild(life, Box::new(note)));
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
    let all = kinds.len() == Kind::ALL.len();
    let letters = if all { "a".to_owned() } else { kinds.iter().map(|kind| kind.letter()).collect::<String>() };
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
    target::given::end_with(&word)
}

/// That it could not be opened, as for every other process that is named.
fn not_found(proc: &Proc, pid: i32, errno: Errno) -> Failure {
    let opened = Target::open(proc, Address { pid, inode: None });
    opened.err().unwrap_or_else(|| Failure::os("make a holder for the process of --with", errno))
}

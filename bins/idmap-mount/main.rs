//! idmap-mount - attach a tree with its owners shifted
//!
//! A map is INSIDE:OUTSIDE:COUNT here too: INSIDE is the id on disk, OUTSIDE
//! the one seen through the mount.

mod into;
mod partial;
mod show;
mod table;
mod words;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Stage, flag, valued};
use common::container;
use common::fail::{Failure, Result};
use common::id::{Both, Kind, Map};
use common::idmap::{self, Idmap};
use common::mounted;
use common::owners::Owners;
use common::path::Place;
use common::plan::Plan;
use common::proc::Proc;
use common::record::{Address, Stream};
use common::step::tree::{self, At};
use common::step::{Step, TREE, end, ns, own};
use common::target::stream::read_stream;
use common::target::{Operand, Target};
use common::tool::{Outcome, pass_on, run};
use common::word::quote;
use words::Wanted;

const CLI: Cli = Cli {
    name: "idmap-mount",
    purpose: "attach a tree with its owners shifted",
    usage: &[
        "[OPTION...] SOURCE DEST [MAP...]",
        "[OPTION...] --into TARGET SOURCE DEST [MAP...]",
        "[OPTION...] --no-attach SOURCE [MAP...]",
        "[OPTION...] --fd-exec N SOURCE [MAP...] -- PROGRAM [ARGUMENT...]",
        "--show [PATH]",
        "--umount PATH",
    ],
    options: &[&[
        valued("map-mount", "MAP", "the same as a MAP operand"),
        valued("owner-as", "UID[:GID]", "show the owner of SOURCE as this user"),
        valued("like", "TARGET", "take the map of TARGET's user namespace"),
        flag("plain", "attach it without a map"),
        flag("remap", "if SOURCE is idmapped already, replace its map"),
        flag("recursive", "with the mounts below SOURCE"),
        flag("partial", "with those too that take no map, as they are"),
        flag("ro", "let nothing be written there"),
        flag("noexec", "let no program be executed from there"),
        flag("noatime", "let reading change no times"),
        flag("nosymfollow", "follow no symbolic links there"),
        flag("suid", "let set-id bits have effect (the default is nosuid)"),
        flag("dev", "let device nodes be opened (the default is nodev)"),
        flag("host-root", "with --suid: let a map make somebody root"),
        flag("beneath", "exchange the mount at DEST for this one"),
        valued("into", "TARGET", "attach it in TARGET's mount namespace"),
        flag("locked", "with --into: the container's root cannot change it"),
        flag("no-attach", "do everything but attach it: a check"),
        valued("fd-exec", "N", "hand it to PROGRAM as descriptor N, not attached"),
        flag("show", "print what is idmapped here, with the maps"),
        flag("umount", "take an idmapped mount away"),
    ]],
    operands: Operands::FreeThenProgram,
    runs: false,
    stage: Stage::Middle,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    // Before anything of ours can have the number.
    let handed = handed(args)?;
    let proc = Rc::new(Proc::open()?);
    let all: Vec<OsString> = args.operands.iter().chain(&args.program).cloned().collect();
    for (deed, also) in [("show", "into"), ("umount", "recursive")] {
        let others = CLI.options.iter().copied().flatten().filter(|o| o.long != deed && o.long != also);
        if let Some(other) = others.into_iter().find(|o| args.flag(deed) && args.flag(o.long)) {
            return Err(CLI.usage(&format!("--{deed} and --{} do not go together", other.long)));
        }
    }
    if args.flag("show") {
        return show::show(args, &all, &proc);
    }
    if args.flag("umount") {
        return show::umount(args, &all, &proc);
    }
    let attaches = handed.is_none() && !args.flag("no-attach");
    let mut operands = if handed.is_some() { args.operands.clone() } else { all };
    let places = if attaches { 2 } else { 1 };
    if operands.len() < places {
        return Err(CLI.usage(if attaches { "SOURCE and DEST are needed" } else { "SOURCE is needed" }));
    }
    fitting(args, attaches)?;
    let maps = operands.split_off(places);
    let stream = if args.piped() { Some(read_stream()?) } else { None };
    let source = Place::at(&operands[0])?;
    let wanted = Wanted::read(args, &maps, &source, stream.as_ref(), &proc)?;
    let pid = stream.as_ref().and_then(Stream::pid);
    // No process is there to be looked at.
    let dry = pid.is_some_and(|(address, _)| address.is_none());
    wanted.guard(args, dry)?;
    let job = Job::new(args, source, &wanted, proc.clone())?;
    let mut plan = match (handed, operands.get(1)) {
        (Some((reserved, n)), _) => job.hand(args, wanted, reserved, n)?,
        (None, None) => job.tree(wanted)?,
        (None, Some(dest)) => job.attach(args, wanted, dest, stream.as_ref())?,
    };
    plan.dry = dry;
    if let Some(stream) = stream.filter(|_| args.value("fd-exec").is_none()) {
        let holder = pid.filter(|(_, holds)| *holds).and_then(|(address, _)| address);
        let holder = holder.map(|address| Target::open(&proc, address).map(Rc::new)).transpose()?;
        pass_on(&CLI, stream, holder, &mut plan);
    }
    Ok(Outcome::Plan(plan))
}

/// Options that go together only.
fn fitting(args: &Args, attaches: bool) -> Result<()> {
    let wrong = [
        (args.flag("locked") && args.value("into").is_none(), "--locked goes with --into"),
        (!attaches && args.value("into").is_some(), "--into attaches: not with --no-attach or --fd-exec"),
        (!attaches && args.flag("beneath"), "--beneath attaches: not with --no-attach or --fd-exec"),
        (args.flag("plain") && args.flag("remap"), "--remap needs a map: not with --plain"),
        (args.flag("plain") && args.flag("partial"), "--partial is about the map: not with --plain"),
        (args.flag("remap") && args.flag("partial"), "--remap or --partial"),
        (args.operands.iter().any(|o| o == "-"), "the stream is named by an option: --into - or --like -"),
    ];
    wrong.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, text)| Err(CLI.usage(text)))
}

/// The descriptor that a program is to find the tree at.
fn handed(args: &Args) -> Result<Option<(Rc<OwnedFd>, i32)>> {
    let Some(n) = args.number("fd-exec")? else { return Ok(None) };
    let n = i32::try_from(n).ok().filter(|n| (3..16).contains(n));
    let n = n.ok_or_else(|| CLI.usage("--fd-exec: N is a number from 3 to 15"))?;
    if args.program.is_empty() {
        return Err(CLI.usage("--fd-exec: which program? it stands after --"));
    }
    Ok(Some((tree::reserve(n)?, n)))
}

/// The process that an operand means; None in a dry pipeline.
fn addressed(operand: &Operand, stream: Option<&Stream>, proc: &Proc) -> Result<Option<Address>> {
    match operand {
        Operand::Process(address) => Ok(Some(*address)),
        Operand::Name(name) => Ok(Some(container::find(proc, name)?.0.address)),
        Operand::Stream => stream
            .and_then(Stream::pid)
            .map(|(address, _)| address)
            .ok_or_else(|| Failure::refused("the stream has no pid record: ns-new is missing before this stage")),
        Operand::File(_) | Operand::Descriptor(_) => Err(CLI.usage("TARGET is a process: PID, PID:INODE, a name or -")),
    }
}

/// What is to be done, whatever becomes of the tree.
struct Job {
    proc: Rc<Proc>,
    source: Place,
    attributes: u64,
    recursive: bool,
    partial: bool,
    remap: bool,
    /// What the tree has to show, where that can be foretold.
    owners: Option<Rc<Owners>>,
    /// Whether a plan will be read by somebody.
    shown: bool,
    notes: Vec<String>,
}

impl Job {
    fn new(args: &Args, source: Place, wanted: &Wanted, proc: Rc<Proc>) -> Result<Job> {
        // The options have the words of mount(8).
        let on = ["ro", "noexec", "noatime", "nosymfollow"].into_iter().filter(|word| args.flag(word));
        let off = [("suid", "nosuid"), ("dev", "nodev")].into_iter().filter(|(word, _)| !args.flag(word));
        let attributes = on.chain(off.map(|(_, word)| word)).fold(0, |all, word| all | tree::attribute(word));
        let before = if args.flag("remap") { present(&source)? } else { None };
        let owners = wanted.known.clone().filter(|_| tree::owners_are_ours(&proc)).map(|maps| {
            let overflow = |kind: Kind| proc.sysctl(&format!("kernel/overflow{}", kind.word()));
            let overflow = |kind| u32::try_from(overflow(kind).unwrap_or(65534)).unwrap_or(65534);
            let overflow = Both { uid: overflow(Kind::Uid), gid: overflow(Kind::Gid) };
            Rc::new(Owners::of(&source, before.clone(), maps, overflow))
        });
        Ok(Job {
            source,
            attributes,
            recursive: args.flag("recursive") && !args.flag("partial"),
            partial: args.flag("partial"),
            remap: before.is_some(),
            owners,
            shown: args.dry() || args.flag("explain"),
            notes: wanted.known.iter().filter_map(table::slow).collect(),
            proc,
        })
    }

    fn asked(&self, wanted: Wanted) -> Idmap {
        let (source, recursive, attributes, remap) = (self.source.clone(), self.recursive, self.attributes, self.remap);
        Idmap { source, recursive, attributes, maps: wanted.maps, remap }
    }

    /// The steps after the tree has its map and before it can be seen, and those
    /// that tell of it at the end.
    fn look(&self, asked: &Idmap, target: Option<&table::Target>) -> Result<(Plan, Plan)> {
        let (mut plan, mut told) = (Plan::default(), self.notes.clone());
        if self.recursive && !self.shown {
            let unseen = |failure: Failure| vec![format!("what is left out is not known: {failure}")];
            told.extend(idmap::unbindable(&asked.source, &self.proc).unwrap_or_else(unseen));
        }
        if let Some(owners) = &self.owners {
            let mut step = Step::from(tree::Effect::Check(owners.clone()));
            if self.shown {
                step.below = table::lines(owners, target, &self.proc);
                step.below.extend(if self.recursive { table::below(asked, &self.proc)? } else { Vec::new() });
            }
            plan.push(step);
        }
        let mut end = Plan::default();
        if self.partial {
            let (steps, left) = partial::steps(asked, &self.proc)?;
            plan.steps.extend(steps.steps);
            if !left.is_empty() {
                end.push(end::Effect::Leave(3));
            }
            told.extend(left);
        }
        told.into_iter().for_each(|text| end.push(end::Effect::Note(format!("{}: {text}\n", CLI.name))));
        Ok((plan, end))
    }

    /// The plan up to the tree, which is then let go: every rule of the kernel
    /// but those about the place has been kept.
    fn tree(self, wanted: Wanted) -> Result<Plan> {
        let asked = self.asked(wanted);
        let (look, told) = self.look(&asked, None)?;
        let mut plan = Plan::default();
        asked.steps(&self.proc, &mut plan);
        plan.steps.extend(look.steps);
        plan.steps.extend(told.steps);
        Ok(plan)
    }

    fn hand(self, args: &Args, wanted: Wanted, reserved: Rc<OwnedFd>, n: i32) -> Result<Plan> {
        let mut plan = self.tree(wanted)?;
        plan.push(own::Effect::Close(Vec::new()));
        plan.push(tree::Effect::Hand(reserved, n));
        plan.push(end::Effect::Exec(args.program.clone()));
        Ok(plan)
    }

    fn attach(self, args: &Args, wanted: Wanted, dest: &OsString, stream: Option<&Stream>) -> Result<Plan> {
        let Some(word) = args.value("into") else {
            return self.attach_here(args, wanted, dest);
        };
        let address = addressed(&Operand::parse(&word)?, stream, &self.proc)?;
        let asked = self.asked(wanted);
        let Some(address) = address else { return self.promised(asked, dest) };
        let target = Rc::new(Target::open(&self.proc, address)?);
        let place = into::place(&target, dest, &self.proc)?;
        self.same_kind(&place)?;
        let maps = |kind| Map::new(self.proc.map(&target.who(), kind).unwrap_or_default()).ok();
        let eyes = maps(Kind::Uid).zip(maps(Kind::Gid)).map(|(uid, gid)| (address.pid.to_string(), Both { uid, gid }));
        let (look, told) = self.look(&asked, eyes.as_ref())?;
        let mut plan = into::steps(args, &target, asked, at(args, place, &self.proc), &self.proc, look)?;
        plan.steps.extend(told.steps);
        Ok(plan)
    }

    fn attach_here(self, args: &Args, wanted: Wanted, dest: &OsString) -> Result<Plan> {
        let place = Place::at(dest)?;
        self.same_kind(&place)?;
        let like = args.value("like").map(|word| word.to_string_lossy().into_owned());
        let eyes = like.filter(|word| word != "-").zip(wanted.known.clone());
        let asked = self.asked(wanted);
        let (look, told) = self.look(&asked, eyes.as_ref())?;
        let mut plan = Plan::default();
        asked.steps(&self.proc, &mut plan);
        plan.steps.extend(look.steps);
        plan.push(tree::Effect::Attach(TREE, at(args, place, &self.proc)));
        plan.steps.extend(told.steps);
        Ok(plan)
    }

    /// What a dry pipeline shows.
    fn promised(self, asked: Idmap, dest: &OsString) -> Result<Plan> {
        let (look, _) = self.look(&asked, None)?;
        let mut plan = Plan::default();
        asked.steps(&self.proc, &mut plan);
        plan.steps.extend(look.steps);
        plan.push(ns::promised());
        plan.push(tree::Effect::Attach(TREE, At::Below("ROOT", dest.clone())));
        Ok(plan)
    }

    fn same_kind(&self, place: &Place) -> Result<()> {
        if self.source.is_directory == place.is_directory {
            return Ok(());
        }
        Err(Failure::usage("SOURCE and DEST have to be both directories or both files"))
    }
}

/// The maps of a source that is idmapped itself.
fn present(source: &Place) -> Result<Option<Both<Map>>> {
    let said = |e| Failure::os(format!("statmount {}", quote(&source.path)), e);
    let mount = mounted::under(source.fd()).map_err(said)?;
    if !mount.is_idmapped() {
        return Ok(None);
    }
    let map = |extents: &Vec<_>| Map::new(extents.clone()).ok();
    let both = mount.maps.and_then(|maps| Some(Both { uid: map(&maps.uid)?, gid: map(&maps.gid)? }));
    both.map(Some).ok_or_else(|| Failure::refused(format!("the map of {} cannot be read here", quote(&source.path))))
}

fn at(args: &Args, place: Place, proc: &Rc<Proc>) -> At {
    if args.flag("beneath") { At::Beneath(place, proc.clone()) } else { At::Place(place) }
}

//! Records of the map that a preset makes: of all that has been granted, or of
//! a slice that is cut out of it and held.

use std::rc::Rc;

use common::cli::Args;
use common::fail::{Because, Failure, Result};
use common::id::{Both, Extent, Kind, Range};
use common::lease::{self, Lease};
use common::plan::{Plan, clone};
use common::preset::{self, Me, Preset, granted, granting, guard_root, maps};
use common::proc::Proc;
use common::record::{Record, Stream};
use common::step::end;
use common::survey::merged;
use common::target::stream::read_stream;
use common::target::{self, Target};
use common::tool::{Outcome, pass_on};
use common::user::User;

use crate::{CLI, etc, owner};

/// The preset of --map, or `usual`.
pub(crate) fn preset(args: &Args, usual: Preset) -> Result<Preset> {
    let Some(word) = args.value("map") else { return Ok(usual) };
    let word = word.to_string_lossy().into_owned();
    let wrong = || CLI.usage(&format!("--map {word}: the presets are {}", preset::NAMES));
    Preset::named(&word).ok_or_else(wrong)
}

/// The stream before us, to which a map is added.
fn before(args: &Args) -> Result<Stream> {
    let stream = if args.piped() { read_stream()? } else { Stream::default() };
    if stream.has_extents() {
        return Err(CLI.usage("the stream has a map already"));
    }
    Ok(stream)
}

/// The holder in the stream; `dry` is set where an earlier stage runs dry.
fn holder(before: &Stream, proc: &Proc, dry: &mut bool) -> Result<Option<Rc<Target>>> {
    match before.pid() {
        Some((None, _)) => {
            *dry = true;
            Ok(None)
        }
        Some((Some(address), true)) => Ok(Some(Rc::new(Target::open(proc, address)?))),
        Some((Some(_), false)) | None => Ok(None),
    }
}

fn with_maps(mut stream: Stream, maps: &Both<Vec<Extent>>) -> Stream {
    for kind in Kind::BOTH {
        stream.records.extend(maps.of(kind).iter().map(|extent| Record::Extent(kind, *extent)));
    }
    stream
}

/// Whose map it is.
fn me(args: &Args) -> Result<Me> {
    let other: Option<User> = if args.piped() { None } else { owner(args, &*etc(args)?)? };
    Ok(other.map_or_else(Me::now, Me::other))
}

pub(crate) fn map(args: &Args) -> Result<Outcome> {
    let preset = preset(args, Preset::Auto)?;
    let proc = Proc::open()?;
    // Our own work, while the stage before us does its own; but what that says
    // comes first.
    let maps = me(args).and_then(|me| {
        let made = maps(preset, &me, &Kind::BOTH)?;
        guard_root(made.uid.iter().map(|e| e.outside()), &proc, args.flag("host-root"))?;
        Ok(made)
    });
    let before = before(args)?;
    let mut plan = Plan::default();
    let holder = holder(&before, &proc, &mut plan.dry)?;
    pass_on(&CLI, with_maps(before, &maps?), holder, &mut plan);
    Ok(Outcome::Plan(plan))
}

// ---- a cut ----

pub(crate) fn cut(args: &Args) -> Result<Outcome> {
    let count = args.number("cut")?.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let count = count.ok_or_else(|| CLI.usage("--cut: a number of ids, at least 1"))?;
    let preset = preset(args, Preset::Subids)?;
    if preset.is_single() {
        return Err(CLI.usage("--cut: this preset maps no subordinate ids"));
    }
    if !args.piped() && !args.operands.is_empty() {
        return Err(CLI.usage("a cut is out of the caller's own grants"));
    }
    let with = args.value("with").map(|word| target::given::end_with(&word)).transpose()?;
    if args.piped() && with.is_some() {
        return Err(CLI.usage("- and --with are two ways to live: with the pipeline, or with a process"));
    }
    if with.is_none() && target::stream::has_reader() == Ok(false) && !args.dry() {
        return Err(CLI.usage("who holds the ids? a pipeline that reads them (-), or the process of --with"));
    }
    let proc = Rc::new(Proc::open()?);
    let before = before(args)?;
    // The stages after this one leave as soon as they have done their work then.
    if before.pid().is_some_and(|(_, holds)| !holds) {
        return Err(CLI.usage("the target outlives the pipeline that would hold the ids: --with says what does"));
    }
    let me = Me::now();
    // Of all that the slice can be of: a lock leaves a file.
    let granted = granted(&me, &Kind::BOTH)?;
    let most = preset.maps(&me.own, &granted);
    guard_root(most.uid.iter().map(|e| e.outside()), &proc, args.flag("host-root"))?;
    let mut plan = Plan::default();
    let holder = holder(&before, &proc, &mut plan.dry)?;
    let lease = Rc::new(take(&me, granted, count)?);
    let slice = Both { uid: vec![lease.ranges.uid], gid: vec![lease.ranges.gid] };
    let stream = with_maps(before, &preset.maps(&me.own, &slice));
    match with {
        Some(pid) => {
            let until = Rc::new(target::given::process(pid)?);
            let mut keeper = Plan::default();
            keeper.push(end::Effect::KeepWith(lease, until));
            let why = "somebody has to hold the lock after this process has ended";
            plan.push(clone(Vec::new(), why, keeper, &proc));
            plan.push(end::Effect::Say(stream));
        }
        None => {
            plan.push(end::Effect::Say(stream));
            plan.push(end::Effect::Keep(lease, holder));
        }
    }
    Ok(Outcome::Plan(plan))
}

/// A slice of what `me` has been granted. Taken while planning, as every lock
/// is; a dry run lets go of it at once.
fn take(me: &Me, mut granted: Both<Vec<Range>>, count: u32) -> Result<Lease> {
    for kind in Kind::BOTH {
        // Lines that touch are one range to newuidmap(1).
        *granted.of_mut(kind) = merged(granted.of(kind));
    }
    if let Some(lease) = lease::take(me.own.uid, &granted, count)? {
        return Ok(lease);
    }
    let most = |kind| granted.of(kind).iter().map(|r| r.count).max().unwrap_or(0);
    let most = most(Kind::Uid).min(most(Kind::Gid));
    let because = if most < count {
        let because = Because::new(format!("the largest range of {} has {most} ids", me.user));
        // Inside a container what is added may be apart from what there is.
        because.remedy_if(granting(me, Some(count.into()), |_| false))
    } else {
        Because::new(format!("other cuts of {} hold too many: none of the ranges has {count} left in a row", me.user))
    };
    Err(Failure::refused(format!("cut {count} ids")).because(Some(because)))
}

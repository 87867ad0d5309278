//! A program in new namespaces: by this process itself, or by a child that
//! waits, before its first exec, until everything is in place.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::rc::Rc;

use common::cgroup::Cgroup;
use common::cli::Args;
use common::fail::{Errno, Failure, Result};
use common::id::{self, Both, Kind as IdKind, Map};
use common::mind::signal_number;
use common::ns::Kind;
use common::path::{Place, not_opened};
use common::plan::{Plan, clone, clone_into, go};
use common::preset::{Me, from_words_of, lawful};
use common::proc::{CAP_CHOWN, Proc};
use common::step;
use common::step::end::Care;
use common::step::newuidmap::{self, Ways};
use common::step::terminal::{Input, Terminal};
use common::step::{end, map, mount, ns, own, pin, terminal};
use common::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use common::target;
use common::tool::Outcome;
use common::user::{self, User};

use crate::{CLI, setup, unshare};

/// By whom the maps are written.
enum Maps {
    /// By nobody: there is no new user namespace, or it stays without.
    None,
    /// By the process itself: its own id.
    Own(Both<Map>),
    /// By us, from outside, or a helper.
    Outside(Both<Map>, Ways),
    /// By somebody who gets the address at this descriptor; whether he is
    /// known to have left by that having no reader any more.
    Awaited(i32, bool),
}

/// Runs a program in new namespaces of `kinds`.
pub(crate) fn run(args: &Args, mut kinds: Vec<Kind>, proc: &Rc<Proc>) -> Result<Outcome> {
    let owner = owner(args, &kinds)?;
    let maps = maps(args, &kinds, owner.as_ref(), proc)?;
    let minding = Minding::read(args, &kinds)?;
    let program = program(args)?;
    let (first, user) = (kinds.contains(&Kind::Pid), kinds.contains(&Kind::User));
    let cgroup = cgroup(args, proc)?.map(Rc::new);
    let made = cgroup.clone().filter(|_| args.flag("new-cgroup"));
    let pins = pins(args, &kinds)?;
    let waits = matches!(maps, Maps::Outside(..) | Maps::Awaited(..)) || !pins.is_empty();
    let input = Input::read(args.value("stdin"), args.values("map").iter().any(|word| word == "-"))?;
    let mut inside = Plan::default();
    input.take().into_iter().for_each(|take| inside.push(take));
    if let Some(owner) = &owner {
        become_owner(&owner.own, std::mem::take(&mut kinds), &mut inside);
    }
    setup::clocks(args, &mut kinds, &mut inside)?;
    let has_terminal = args.flag("pty");
    let minds = minding.forks || has_terminal || owner.is_some() || cgroup.is_some();
    let forks = first || kinds.contains(&Kind::Time) || waits || minds;
    if cgroup.is_some() && kinds.contains(&Kind::Cgroup) {
        // In one call, the root of the namespace would be our own cgroup.
        kinds.retain(|kind| *kind != Kind::Cgroup);
        inside.push(ns::Effect::Unshare(vec![Kind::Cgroup]));
    }
    if args.value(Kind::Mnt.option()).is_some() {
        pin::own_number(proc).into_iter().for_each(|number| inside.push(pin::Effect::Newer(number)));
    }
    if waits {
        inside.push(end::Effect::Await);
    }
    let as_owner = owner.map(|owner| owner.own);
    let root = root_inside(&maps, as_owner.as_ref(), proc);
    let terminal = terminal(args, input, first)?;
    credentials(args, &maps, as_owner.unwrap_or_else(|| Me::nameless().own), &mut inside, proc);
    setup::inside(args, &setup::kinds(args), &mut inside)?;
    directories(args, proc, &mut inside)?;
    setup::shared(args).into_iter().for_each(|share| inside.push(share));
    unshare::ids(args, &mut inside)?;
    let mut plan = Plan::default();
    if let Some(made) = &made {
        plan.push(step::cgroup::Effect::Make(made.clone(), root));
    }
    if minding.ready.is_some() {
        plan.push(step::notify::Effect::Listen);
    }
    if !forks {
        plan.push(ns::Effect::Unshare(kinds));
        plan.steps.append(&mut inside.steps);
        plan.push(end::Effect::Exec(program));
        return Ok(Outcome::Plan(plan));
    }
    let told = if let Maps::Awaited(number, true) = maps { Some(number) } else { None };
    told.into_iter().chain(minding.ready).for_each(|number| inside.push(own::Effect::Hide(number)));
    inside.push(minding.follow.map_or(own::Effect::DieWithParent, own::Effect::FollowParent));
    become_or_mind(program, &terminal, minding.init, &mut inside, proc);
    let why = if kinds.is_empty() {
        "who makes a user namespace owns it: a child becomes him"
    } else if waits {
        "what comes before the first exec is done from outside: a child waits for it"
    } else {
        "a process never changes its own pid namespace: a child is born in the new one, and has to be minded"
    };
    let open = has_terminal.then_some(terminal::Effect::Open(None, root));
    open.into_iter().chain(terminal.lend()).for_each(|terminal| plan.push(terminal));
    let child = clone_into(cgroup, kinds, why, inside, proc);
    let goes = waits.then(|| go(&child, proc));
    plan.steps.push(child);
    pins.into_iter().for_each(|pin| plan.push(pin));
    from_outside(maps, &mut plan);
    plan.steps.extend(goes);
    if made.is_some() && user {
        plan.push(step::cgroup::Effect::KeepUser);
    }
    let Minding { init, stop, ready, .. } = minding;
    plan.push(terminal.tend(Care { first: first && !init, init, stop, ready, ..Care::of(proc) }));
    if ready.is_some() {
        plan.push(step::notify::Effect::Forget);
    }
    made.into_iter().for_each(|made| plan.push(step::cgroup::Effect::Remove(made)));
    Ok(Outcome::Plan(plan))
}

/// The cgroup that the program begins in.
fn cgroup(args: &Args, proc: &Proc) -> Result<Option<Cgroup>> {
    match (args.value("into-cgroup"), args.flag("new-cgroup")) {
        (Some(_), true) => Err(CLI.usage("--into-cgroup and --new-cgroup are two cgroups to begin in")),
        (Some(dir), false) => Cgroup::at(&dir).map(Some),
        (None, true) => Cgroup::fresh(proc).map(Some),
        (None, false) => Ok(None),
    }
}

/// Who is root inside, as far as that is another than we, and a cgroup can be
/// given to him.
fn root_inside(maps: &Maps, owner: Option<&Both<u32>>, proc: &Proc) -> Option<(u32, u32)> {
    let ids = match maps {
        Maps::Outside(maps, _) => (maps.uid.outside(0)?, maps.gid.outside(0)?),
        Maps::None | Maps::Own(_) | Maps::Awaited(..) => owner.map(|owner| (owner.uid, owner.gid))?,
    };
    let own = proc.own();
    (own.can(CAP_CHOWN) && ids != (own.uid[1], own.gid[1])).then_some(ids)
}

/// Who is to own the new namespaces.
fn owner(args: &Args, kinds: &[Kind]) -> Result<Option<Me>> {
    let Some(word) = args.value("as-owner").or_else(|| args.value("owner")) else { return Ok(None) };
    let ids = word.to_str().and_then(|w| w.split_once(':'));
    let Some((Some(uid), Some(gid))) = ids.map(|(u, g)| (id::one(u.as_bytes()), id::one(g.as_bytes()))) else {
        return Err(CLI.usage("--as-owner: UID:GID, both as numbers"));
    };
    if !kinds.contains(&Kind::User) {
        return Err(CLI.usage("--as-owner is for a user namespace, and what it owns: -U"));
    }
    if args.flag("monotonic") || args.flag("boottime") {
        // A process that has changed its ids is not dumpable.
        return Err(CLI.usage("--as-owner: the clocks can only be set by who was its user from the beginning"));
    }
    let nobody = User { name: uid.to_string(), uid, gid, shell: String::new() };
    let user = User { gid, ..user::by_uid(uid).unwrap_or(nobody) };
    Ok(Some(Me::other(user)))
}

/// The child becomes the owner, and only then makes the namespaces.
fn become_owner(own: &Both<u32>, kinds: Vec<Kind>, inside: &mut Plan) {
    inside.push(own::Effect::Become { uid: Some(own.uid), gid: Some(own.gid), groups: true });
    let forks = kinds.contains(&Kind::Pid) || kinds.contains(&Kind::Time);
    inside.push(ns::Effect::Unshare(kinds));
    if forks {
        inside.push(ns::Effect::IntoPid);
    }
}

/// How the program is minded.
struct Minding {
    forks: bool,
    init: bool,
    follow: Option<i32>,
    stop: Option<i32>,
    ready: Option<i32>,
}

impl Minding {
    fn read(args: &Args, kinds: &[Kind]) -> Result<Minding> {
        let signal = |option: &str| match args.value(option) {
            None => Ok(None),
            Some(word) => match word.to_str().and_then(signal_number) {
                Some(number) => Ok(Some(number)),
                None => Err(CLI.usage(&format!("--{option}: a signal, as TERM, 15 or RTMIN+3"))),
            },
        };
        let init = args.flag("init");
        if init && !kinds.contains(&Kind::Pid) {
            return Err(CLI.usage("--init is the first process of a pid namespace: -p"));
        }
        let (follow, stop) = (signal("kill-child")?, signal("stop-signal")?);
        let ready = not_the_programs(args, "ready")?;
        let forks = ["init", "fork", "kill-child", "stop-signal", "ready"].iter().any(|option| args.flag(option));
        Ok(Minding { forks, init, follow, stop, ready })
    }
}

/// The descriptor that an option names, which is closed to the program.
fn not_the_programs(args: &Args, option: &str) -> Result<Option<i32>> {
    let number = args.value(option).map(|word| target::given::descriptor(&word)).transpose()?;
    if number.is_some_and(|number| number < 3) {
        return Err(CLI.usage(&format!("--{option}: a descriptor that is not the program's, from 3 on")));
    }
    Ok(number)
}

/// The namespaces that are to be kept alive by files, before the program runs.
fn pins(args: &Args, kinds: &[Kind]) -> Result<Vec<pin::Effect>> {
    let wanted = kinds.iter().filter_map(|kind| Some((*kind, args.value(kind.option())?)));
    wanted.map(|(kind, file)| pin::check(&file).map(|()| pin::Effect::Pin(kind, file))).collect()
}

// ---- who writes the maps ----

fn maps(args: &Args, kinds: &[Kind], owner: Option<&Me>, proc: &Proc) -> Result<Maps> {
    let words = unshare::words(args, owner, proc)?;
    let setgroups = match args.value("setgroups").as_ref().map(|word| word.to_str()) {
        None => None,
        Some(Some("allow")) => Some(true),
        Some(Some("deny")) => Some(false),
        Some(_) => return Err(CLI.usage("--setgroups: allow or deny")),
    };
    if args.flag("record-fd") && !args.flag("wait-map") {
        return Err(CLI.usage("--record-fd goes with --wait-map"));
    }
    if !kinds.contains(&Kind::User) && (!words.is_empty() || setgroups.is_some() || args.flag("wait-map")) {
        return Err(CLI.usage("a map is for a user namespace: -U"));
    }
    if args.flag("wait-map") {
        if !words.is_empty() || setgroups.is_some() {
            return Err(CLI.usage("with --wait-map somebody else writes the maps and setgroups"));
        }
        let number = not_the_programs(args, "record-fd")?;
        return Ok(Maps::Awaited(number.unwrap_or(2), number.is_some()));
    }
    if words.is_empty() {
        return if setgroups.is_some() { Err(CLI.usage("--setgroups goes with a map")) } else { Ok(Maps::None) };
    }
    let piped = words.iter().any(|word| word == "-");
    let extents =
        if piped { from_stream(&words)? } else { from_words_of(owner, &words, proc, args.flag("host-root"))? };
    let me = Me::nameless();
    let own = |kind: IdKind| extents.of(kind).iter().all(|e| e.count == 1 && e.outside == *me.own.of(kind));
    let alone = owner.is_none() && !piped && setgroups != Some(true) && IdKind::BOTH.into_iter().all(own);
    let mut maps = lawful(extents, proc)?;
    if alone {
        return Ok(Maps::Own(maps));
    }
    let ways = newuidmap::ways(None, &mut maps, setgroups, false)?;
    newuidmap::check_grants(None, &maps, &ways.by_helper)?;
    Ok(Maps::Outside(maps, ways))
}

/// The maps in the stream on standard input.
fn from_stream(words: &[OsString]) -> Result<Both<Vec<common::id::Extent>>> {
    if words.len() > 1 {
        return Err(CLI.usage("--map -: the stream has the whole map"));
    }
    let stream = target::stream::read_stream()?;
    if stream.pid().is_some() {
        return Err(Failure::refused("the stream has a pid record: uidmap-set maps that process"));
    }
    if !stream.has_extents() {
        return Err(Failure::refused("the stream has no uid and gid records: subid-alloc --map writes them"));
    }
    Ok(Both { uid: stream.extents(IdKind::Uid), gid: stream.extents(IdKind::Gid) })
}

/// What this process does about the maps of its child.
fn from_outside(maps: Maps, plan: &mut Plan) {
    match maps {
        Maps::None | Maps::Own(_) => {}
        Maps::Awaited(number, reader) => {
            plan.push(end::Effect::SayChildTo(number));
            plan.push(map::Effect::Await(reader.then_some(number)));
        }
        Maps::Outside(maps, ways) => {
            let child = map::Whose::Promised("CHILD");
            if let Some(allow) = ways.setgroups {
                plan.push(map::Effect::Setgroups(child.clone(), allow));
            }
            for (kind, map) in [(IdKind::Uid, maps.uid), (IdKind::Gid, maps.gid)] {
                plan.push(if ways.by_helper.contains(&kind) {
                    map::Effect::HelperOfChild(kind, map)
                } else {
                    map::Effect::Write(child.clone(), kind, map)
                });
            }
        }
    }
}

// ---- what the program begins with ----

/// Any uid but 0 needs ambient capabilities for its first exec.
fn credentials(args: &Args, maps: &Maps, me: Both<u32>, inside: &mut Plan, proc: &Rc<Proc>) {
    match maps {
        Maps::None => {}
        Maps::Own(maps) => {
            inside.push(map::Effect::Setgroups(map::Whose::Own, false));
            inside.push(map::Effect::Write(map::Whose::Own, IdKind::Uid, maps.uid.clone()));
            inside.push(map::Effect::Write(map::Whose::Own, IdKind::Gid, maps.gid.clone()));
            if maps.uid.extents().iter().all(|e| e.inside != 0) {
                inside.push(own::Effect::RaiseAmbient);
            }
        }
        Maps::Outside(..) | Maps::Awaited(..) => inside.push(own::Effect::Settle(me, proc.clone())),
    }
    if args.flag("keep-caps") {
        inside.push(own::Effect::RaiseAmbient);
    }
}

/// The terminal that the program is on, in a new pid namespace or not.
fn terminal(args: &Args, input: Input, pid: bool) -> Result<Terminal> {
    if !args.flag("pty") {
        return Ok(Terminal::of_caller(input, pid));
    }
    if input != Input::Callers {
        return Err(CLI.usage("--pty takes standard input, which `--map -` and --stdin use for something else"));
    }
    Ok(Terminal::Own(true))
}

/// The root, /proc and the working directory.
fn directories(args: &Args, proc: &Proc, inside: &mut Plan) -> Result<()> {
    const HARMLESS: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let new = args.flag("mount-proc").then(|| args.value("mount-proc").unwrap_or_else(|| "/proc".into()));
    if let Some(root) = args.value("root") {
        let place = Place::at(&root)?;
        if !place.is_directory {
            return Err(not_opened(&root, Errno::ENOTDIR));
        }
        mount::cover(proc).into_iter().for_each(|effect| inside.push(effect));
        inside.push(mount::Effect::BindRoot(place));
        // Before the pivot: then another proc is still visible.
        if let Some(at) = new {
            let (fstype, options) = ("proc".to_owned(), Vec::new());
            inside.push(step::inside::Effect::New { fstype, options, attributes: HARMLESS, at });
        }
        inside.push(mount::Effect::Pivot);
    } else if let Some(at) = new {
        inside.push(mount::Effect::Proc(at));
    }
    if let Some(directory) = args.value("wd") {
        inside.push(own::Effect::Chdir(PathBuf::from(directory)));
    }
    Ok(())
}

/// The end of what the child does: it becomes the program, or has a child of
/// its own become that, and is its init.
fn become_or_mind(program: Vec<OsString>, terminal: &Terminal, init: bool, inside: &mut Plan, proc: &Rc<Proc>) {
    // A new session is the program's; a group is for all that the keys are for.
    let (early, late) = match terminal {
        Terminal::Own(_) if init => (None, terminal.take()),
        Terminal::Callers | Terminal::Front(_) | Terminal::Own(_) => (terminal.take(), None),
    };
    early.into_iter().for_each(|take| inside.push(take));
    if !init {
        inside.push(end::Effect::Exec(program));
        return;
    }
    // Whoever traced it would reach through what it has open.
    inside.push(own::Effect::Undumpable);
    let mut second = Plan::default();
    late.into_iter().for_each(|take| second.push(take));
    second.push(end::Effect::Exec(program));
    inside.push(clone(Vec::new(), "the first process stays, and reaps", second, proc));
    inside.push(end::Effect::Init);
}

/// The program that was asked for; on a terminal, without one, a shell.
fn program(args: &Args) -> Result<Vec<OsString>> {
    if !args.program.is_empty() {
        return Ok(args.program.clone());
    }
    if !std::io::stdin().is_terminal() {
        return Err(CLI.usage("which program? (`-` makes a record for other tools)"));
    }
    // Ours need not be there in another root.
    Ok(vec![if args.value("root").is_some() { "/bin/sh".into() } else { user::shell() }])
}

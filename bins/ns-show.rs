//! ns-show - show namespaces, owners, id maps, and what is possible here
//!
//! Three answers: one process and its namespaces; the tree of user
//! namespaces; with --can, what this user may do, found by trying it in a
//! child that is thrown away.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Failure, Result};
use common::id::{Extent, Kind as IdKind, Map, Range};
use common::name;
use common::ns::{INITIAL_USER, Kind};
use common::plan::{Plan, clone};
use common::preset::{Me, Preset};
use common::proc::Proc;
use common::step::{map, mount};
use common::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use common::target::{self, Operand, Target, read_stream};
use common::tool::{Outcome, run};
use common::{helper, subid, user};

const CLI: Cli = Cli {
    name: "ns-show",
    purpose: "show namespaces, owners, id maps, and what is possible here",
    usage: &["[TARGET]", "--holders", "--can"],
    options: &[
        Opt { short: "", long: "holders", value: "", help: "list the holders of ns-new that can be entered" },
        Opt { short: "", long: "can", value: "", help: "show what this user may do here, by trying it" },
    ],
    operands: Operands::Free,
    runs: false,
    stage: false,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    if args.operands.len() > 1 {
        return Err(CLI.usage("one TARGET"));
    }
    if args.flag("holders") {
        return Ok(Outcome::Answer(holders(&proc).into_bytes(), 0));
    }
    if args.dry() && args.flag("can") {
        return Ok(Outcome::Plan(Plan {
            steps: tries(&proc).into_iter().flat_map(|(_, plan)| plan.steps).collect(),
            dry: true,
        }));
    }
    if args.flag("can") {
        let (text, status) = can(&proc);
        return Ok(Outcome::Answer(text.into_bytes(), status));
    }
    let Some(word) = args.operands.first() else {
        return Ok(Outcome::Answer(tree(&proc).into_bytes(), 0));
    };
    let address = match Operand::parse(word)? {
        Operand::Process(address) => address,
        Operand::Stream => {
            let pid = read_stream()?.pid().ok_or_else(|| Failure::refused("the stream has no pid record"))?;
            pid.0.ok_or_else(|| Failure::refused("the stream is of a dry run: there is no process to show"))?
        }
        Operand::File(_) | Operand::Descriptor(_) => return Err(CLI.usage("TARGET is a process: PID, PID:INODE or -")),
        Operand::Name(name) => name::find(&proc, &name)?,
    };
    let target = Target::open(&proc, address)?;
    Ok(Outcome::Answer(process(&proc, &target)?.into_bytes(), 0))
}

// ---- holders ----

fn holders(proc: &Proc) -> String {
    let mut text = String::new();
    for holder in name::holders(proc) {
        let who = holder.address.pid.to_string();
        let differs = |kind: &Kind| target::namespace_at(proc, &who, *kind) != proc.ns_id("self", *kind);
        let kinds: Vec<&str> = Kind::ALL.iter().filter(|k| differs(k)).map(|k| k.link()).collect();
        let name = holder.name.as_deref().unwrap_or("-");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {name} {} {}", holder.address, user_name(holder.uid), kinds.join(","));
    }
    text
}

// ---- one process ----

fn process(proc: &Proc, target: &Target) -> Result<String> {
    let who = target.who();
    let status = proc.status(&who).unwrap_or_default();
    let mut text = format!("process {} ({})\n", target.address, status.name);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "  run by       {}", user_name(status.uid[1]));
    if status.pids.len() > 1 {
        let inside: Vec<String> = status.pids.iter().skip(1).map(u32::to_string).collect();
        let _ = writeln!(text, "  pid inside   {}", inside.join(", then "));
    }
    let _ = writeln!(text, "\n  kind    inode       shared with us");
    for kind in Kind::ALL {
        let Some(inode) = target::namespace_of(proc, target, kind)? else { continue };
        let shared = if proc.ns_id("self", kind) == Some(inode) { "yes" } else { "no" };
        let _ = writeln!(text, "  {:<7} {inode:<11} {shared}", kind.link());
    }
    if let Some(owner) = target::owner_of_user_namespace(proc, target) {
        let _ = writeln!(text, "\n  user namespace owned by {}", user_name(owner));
    }
    for kind in IdKind::BOTH {
        let extents = proc.map(&who, kind).unwrap_or_default();
        text.push_str(&drawn(kind, &extents));
    }
    let groups = proc.setgroups(&who).map_or("?", |allowed| if allowed { "allow" } else { "deny" });
    let _ = writeln!(text, "  setgroups    {groups}");
    Ok(text)
}

fn user_name(uid: u32) -> String {
    user::by_uid(uid).map_or_else(|| format!("uid {uid}"), |u| u.to_string())
}

/// A map with the ids on both sides, as two columns of ranges.
fn drawn(kind: IdKind, extents: &[Extent]) -> String {
    let word = kind.word();
    if extents.is_empty() {
        return format!("\n  {word}_map      not written: every {word} is the overflow id inside\n");
    }
    let mut text =
        format!("\n  {:<22} {}\n", format!("{word} inside"), format_args!("{word} outside (seen from here)"));
    for extent in extents {
        let _ = writeln!(text, "  {:<22} {}", extent.inside().to_string(), extent.outside());
    }
    text
}

// ---- the tree of user namespaces ----

/// A user namespace that a visible process is in.
struct Seen {
    parent: Option<u64>,
    owner: Option<u32>,
    processes: Vec<(i32, String)>,
}

fn tree(proc: &Proc) -> String {
    let mut seen: BTreeMap<u64, Seen> = BTreeMap::new();
    let mut hidden = 0;
    for pid in proc.pids() {
        let who = pid.to_string();
        let Some(chain) = target::user_namespaces(proc, &who) else {
            hidden += 1;
            continue;
        };
        for (at, (inode, owner)) in chain.iter().enumerate() {
            let parent = chain.get(at + 1).map(|(inode, _)| *inode);
            let entry = seen.entry(*inode).or_insert(Seen { parent, owner: *owner, processes: Vec::new() });
            if at == 0 {
                entry.processes.push((pid, proc.name(&who)));
            }
        }
    }
    let ours = proc.ns_id("self", Kind::User);
    let mut text = String::new();
    let roots: Vec<u64> =
        seen.iter().filter(|(_, s)| s.parent.is_none_or(|p| !seen.contains_key(&p))).map(|(inode, _)| *inode).collect();
    for root in roots {
        branch(proc, &seen, root, ours, 0, &mut text);
    }
    if hidden > 0 {
        let _ = writeln!(text, "({hidden} processes of other users could not be looked at)");
    }
    text
}

fn branch(proc: &Proc, seen: &BTreeMap<u64, Seen>, inode: u64, ours: Option<u64>, depth: usize, text: &mut String) {
    let Some(this) = seen.get(&inode) else { return };
    let indent = "  ".repeat(depth);
    let initial = if inode == INITIAL_USER { ", the initial one" } else { "" };
    let own = if ours == Some(inode) { ", ours" } else { "" };
    let owner = this.owner.map_or_else(String::new, |uid| format!(" owned by {}", user_name(uid)));
    let _ = writeln!(text, "{indent}user:[{inode}]{owner}{initial}{own}");
    let shown: Vec<String> = this.processes.iter().take(4).map(|(pid, name)| format!("{pid} {name}")).collect();
    let more = this.processes.len().saturating_sub(4);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    if let (Some((first, _)), true) = (this.processes.first(), inode != INITIAL_USER) {
        for kind in IdKind::BOTH {
            let extents = proc.map(&first.to_string(), kind).unwrap_or_default();
            let pairs: Vec<String> = extents.iter().map(|e| format!("{} = {}", e.inside(), e.outside())).collect();
            let pairs = if pairs.is_empty() { "not mapped".to_owned() } else { pairs.join(", ") };
            let _ = writeln!(text, "{indent}  {} inside = here: {pairs}", kind.word());
        }
    }
    if !shown.is_empty() {
        let _ = writeln!(text, "{indent}  processes: {}{more}", shown.join(", "));
    }
    for (child, _) in seen.iter().filter(|(_, s)| s.parent == Some(inode)) {
        branch(proc, seen, *child, ours, depth + 1, text);
    }
}

// ---- what is possible ----

/// The plans that are tried, each by itself in a child.
fn tries(proc: &Rc<Proc>) -> Vec<(String, Plan)> {
    let me = Me::now(proc);
    let one = |kind| Map::new(Preset::Root.extents(*me.own.of(kind), &[])).ok();
    let mapped = || {
        let mut plan = Plan::default();
        if let (Some(uid), Some(gid)) = (one(IdKind::Uid), one(IdKind::Gid)) {
            plan.push(map::Effect::Setgroups(map::Whose::Own, false));
            plan.push(map::Effect::Write(map::Whose::Own, IdKind::Uid, uid));
            plan.push(map::Effect::Write(map::Whose::Own, IdKind::Gid, gid));
        }
        plan
    };
    let try_in = |kinds: Vec<Kind>, inner: Plan| {
        let mut plan = Plan::default();
        plan.push(clone(kinds, "", inner, proc));
        plan
    };
    let mut tries = vec![("make a user namespace".to_owned(), try_in(vec![Kind::User], Plan::default()))];
    tries.push(("map the own id in it".to_owned(), try_in(vec![Kind::User], mapped())));
    for kind in Kind::ALL.into_iter().skip(1) {
        tries.push((
            format!("make {} {} namespace along with it", if kind == Kind::Ipc { "an" } else { "a" }, kind.link()),
            try_in(vec![Kind::User, kind], Plan::default()),
        ));
    }
    let harmless = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    for fstype in ["tmpfs", "devpts", "proc", "sysfs", "mqueue", "cgroup2"] {
        let mut inner = mapped();
        inner.push(mount::Effect::Try(fstype, harmless));
        tries.push((format!("mount {fstype} there"), try_in(Kind::ALL.to_vec(), inner)));
    }
    tries
}

fn can(proc: &Rc<Proc>) -> (String, u8) {
    let mut text = String::new();
    let mut status = 0;
    for (at, (what, plan)) in tries(proc).into_iter().enumerate() {
        match plan.probe(proc) {
            None => drop(writeln!(text, "yes  {what}")),
            Some(failure) => {
                let _ = writeln!(text, "no   {what}\n       {}", failure.to_string().replace('\n', "\n     "));
                // Without a user namespace nothing of the rest is worth asking.
                if at == 0 {
                    return (text, 1);
                }
                status = 3;
            }
        }
    }
    for (yes, line) in subordinate(proc) {
        let _ = writeln!(text, "{}  {line}", if yes { "yes" } else { "no " });
        if !yes {
            status = 3;
        }
    }
    (text, status)
}

/// Subordinate ids, and the programs that map them.
fn subordinate(proc: &Proc) -> Vec<(bool, String)> {
    let me = Me::now(proc);
    let mut lines = Vec::new();
    for (kind, program) in [(IdKind::Uid, "newuidmap"), (IdKind::Gid, "newgidmap")] {
        lines.push(match subid::granted(&me.user, kind) {
            Ok(ranges) if ranges.is_empty() => {
                (false, format!("subordinate {}s: {} has no line for {}", kind.word(), kind.grant_file(), me.user))
            }
            Ok(ranges) => {
                let ranges: Vec<String> = ranges.iter().map(Range::to_string).collect();
                (true, format!("subordinate {}s: {}", kind.word(), ranges.join(", ")))
            }
            Err(failure) => (false, format!("subordinate {}s: {failure}", kind.word())),
        });
        lines.push(match helper::find(program) {
            Some(path) => match helper::gains_privilege(&path) {
                Ok(()) => (true, format!("{} may map them", path.to_string_lossy())),
                Err(why) => (false, format!("{} may map them\n       {why}", path.to_string_lossy())),
            },
            None => (false, format!("{program} is not installed")),
        });
    }
    lines
}

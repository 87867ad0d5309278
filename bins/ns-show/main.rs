//! ns-show - show namespaces, owners, id maps, and what is possible here
//!
//! Three answers: the tree of user namespaces; one process and its namespaces;
//! with --can, what this user may do, found by trying it in a child that is
//! thrown away. As text, as records, as JSON, or as a picture.

mod can;
mod draw;
mod json;
mod level;
mod process;
mod svg;
mod tree;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Stage, flag, valued};
use common::container;
use common::fail::{Failure, Result};
use common::id::Kind as IdKind;
use common::mind::terminal_width;
use common::name;
use common::ns::{INITIAL_USER, Kind};
use common::proc::Proc;
use common::record::{Record, Stream};
use common::target::stream::read_stream;
use common::target::{self, Operand, Target};
use common::tool::{Outcome, run};

use level::Level;
use process::Process;
use tree::{Names, Overview};

const CLI: Cli = Cli {
    name: "ns-show",
    purpose: "show namespaces, owners, id maps, and what is possible here",
    usage: &[
        "[--json|--svg] [TARGET]",
        "--address|--records TARGET",
        "--id ID|--outside ID TARGET",
        "--holders",
        "--can",
    ],
    options: &[&[
        flag("json", "as JSON"),
        flag("svg", "as a picture: a self-contained SVG"),
        flag("address", "print the address of TARGET, PID:INODE"),
        flag("records", "print its maps as records"),
        valued("id", "ID", "what an id inside is outside, level by level"),
        valued("outside", "ID", "what an id here is inside, level by level"),
        flag("holders", "list the holders of ns-new that can be entered"),
        flag("can", "show what this user may do here, by trying it"),
    ]],
    operands: Operands::Free,
    runs: false,
    stage: Stage::Last,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

/// Options that say what is shown; more than one at a time means nothing.
const WHAT: [&str; 8] = ["json", "svg", "address", "records", "id", "outside", "holders", "can"];

fn decide(args: &Args) -> Result<Outcome> {
    let proc = Rc::new(Proc::open()?);
    let given: Vec<&str> = WHAT.into_iter().filter(|long| args.flag(long)).collect();
    if given.len() > 1 {
        return Err(CLI.usage(&format!("--{} and --{} do not go together", given[0], given[1])));
    }
    let what = given.first().copied().unwrap_or("");
    match (args.operands.as_slice(), what) {
        ([], "holders") => whole(&proc, "holders", answer(holders(&proc))),
        ([], "can") if args.dry() => Ok(Outcome::Plan(can::plans(&proc))),
        ([], "can") => {
            // The proc of a pid namespace that we are not in knows nothing of us, and has no maps to write.
            proc.whole("self/status")?;
            let (text, status) = can::can(&proc);
            Ok(Outcome::Answer(text.into_bytes(), status))
        }
        ([], "" | "json" | "svg") => overview(&proc, what),
        ([], _) => Err(CLI.usage(&format!("--{what} of which TARGET?"))),
        ([_], "holders" | "can") => Err(CLI.usage(&format!("--{what} takes no TARGET"))),
        ([word], _) => match Operand::parse(word)? {
            file @ (Operand::File(_) | Operand::Descriptor(_)) => behind(&proc, &file, what),
            process @ (Operand::Stream | Operand::Process(_) | Operand::Name(_)) => {
                one(&proc, open(&proc, &process)?, what, args)
            }
        },
        (_, _) => Err(CLI.usage("one TARGET")),
    }
}

fn answer(text: String) -> Outcome {
    Outcome::Answer(text.into_bytes(), 0)
}

fn open(proc: &Proc, operand: &Operand) -> Result<Rc<Target>> {
    let address = match operand {
        Operand::Process(address) => *address,
        Operand::Stream => {
            let pid = read_stream()?.pid().ok_or_else(|| Failure::refused("the stream has no pid record"))?;
            pid.0.ok_or_else(|| Failure::refused("the stream is of a dry run: there is no process to show"))?
        }
        Operand::File(_) | Operand::Descriptor(_) => {
            return Err(CLI.usage("this TARGET is no process"));
        }
        Operand::Name(name) => return Ok(container::find(proc, name)?.0),
    };
    Target::open(proc, address).map(Rc::new)
}

/// The namespace behind a file.
fn behind(proc: &Rc<Proc>, operand: &Operand, what: &str) -> Result<Outcome> {
    if !matches!(what, "" | "json") {
        return Err(CLI.usage(&format!("--{what} needs a process for a TARGET")));
    }
    let Some((file, _)) = target::given::namespace_file(operand)? else { return Err(CLI.usage("which TARGET?")) };
    let inode = target::files::inode(&file)?;
    let all = Overview::now(proc, Some(file))?;
    if what == "json" {
        return whole(proc, "namespaces", Outcome::Answer(json::overview(&all, Some(inode)), 0));
    }
    let space = all.scan.get(inode).ok_or_else(|| Failure::refused("an unknown kind of namespace"))?;
    whole(proc, "namespaces", answer(tree::one(&all, &Names::new(proc), space, terminal_width())))
}

/// What we were out of something for, or what is broken, would look as if it were
/// not there: then there is no answer.
fn whole(proc: &Proc, what: &str, outcome: Outcome) -> Result<Outcome> {
    proc.missed().map_or(Ok(outcome), |e| Err(Failure::os(format!("look at all {what}"), e)))
}

fn overview(proc: &Rc<Proc>, what: &str) -> Result<Outcome> {
    let names = Names::new(proc);
    let all = Overview::now(proc, None)?;
    let outcome = match what {
        "json" => Outcome::Answer(json::overview(&all, None), 0),
        "svg" => Outcome::Answer(svg::overview(&all, &names), 0),
        _ => answer(tree::text(&all, &names, terminal_width())),
    };
    whole(proc, "namespaces", outcome)
}

fn one(proc: &Rc<Proc>, target: Rc<Target>, what: &str, args: &Args) -> Result<Outcome> {
    match what {
        "address" => return Ok(answer(format!("{}\n", target.address))),
        "records" => return records(proc, &target),
        "id" | "outside" => {
            let id = args.number(what)?.and_then(|id| u32::try_from(id).ok()).filter(|id| *id < u32::MAX);
            let id = id.ok_or_else(|| CLI.usage("ids go from 0 to 4294967294"))?;
            return translate(proc, &target, id, what == "id");
        }
        _ => {}
    }
    let names = Names::new(proc);
    let it = Process::look(proc, target)?;
    Ok(match what {
        "json" => Outcome::Answer(json::process(&it), 0),
        "svg" => Outcome::Answer(svg::process(&it), 0),
        _ => answer(it.text(proc, &names, terminal_width())),
    })
}

/// The maps of a target, outside ids as they are seen from here, as a stream.
fn records(proc: &Proc, target: &Target) -> Result<Outcome> {
    let mut stream = Stream::default();
    for kind in IdKind::BOTH {
        let map = proc.read_map(&target.who(), kind).map_err(|failure| failure.because(target.ended()))?;
        stream.records.extend(map.into_iter().map(|extent| Record::Extent(kind, extent)));
    }
    Ok(Outcome::Answer(stream.bytes(), 0))
}

/// One id through every level, as a uid and as a gid.
fn translate(proc: &Rc<Proc>, target: &Target, id: u32, from_inside: bool) -> Result<Outcome> {
    let levels = level::levels(proc, target)?;
    let through = |kind| {
        if from_inside { level::down_up(&levels, kind, id) } else { level::up_down(&levels, kind, id) }
    };
    let (uids, gids) = (through(IdKind::Uid), through(IdKind::Gid));
    let said = |id: Option<u32>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
    let mut lines = vec![format!("{:<18}  {:<10}  gid", "user namespace", "uid")];
    for (at, Level { inode, .. }) in levels.iter().enumerate() {
        let place = if *inode == INITIAL_USER { ", the initial one" } else { "" };
        let place = match (at, at + 1 == levels.len()) {
            (_, true) => format!("  here{place}"),
            (0, false) => "  inside".to_owned(),
            (_, false) => String::new(),
        };
        let (uid, gid) = (said(uids[at]), said(gids[at]));
        lines.push(format!("{:<18}  {uid:<10}  {gid:<10}{place}", format!("user:[{inode}]")).trim_end().to_owned());
    }
    // From here inwards, it is read the other way.
    if !from_inside {
        lines[1..].reverse();
    }
    let all = uids.iter().chain(&gids).all(Option::is_some);
    Ok(Outcome::Answer((lines.join("\n") + "\n").into_bytes(), if all { 0 } else { 3 }))
}

// ---- holders ----

fn holders(proc: &Rc<Proc>) -> String {
    let names = Names::new(proc);
    let mut text = String::new();
    for holder in name::holders(proc) {
        let who = holder.address.pid.to_string();
        let differs = |kind: &Kind| target::files::namespace_at(proc, &who, *kind) != proc.ns_id("self", *kind);
        let kinds: Vec<&str> = Kind::ALL.iter().filter(|k| differs(k)).map(|k| k.link()).collect();
        let name = holder.name.as_deref().unwrap_or("-");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {name} {} {}", holder.address, names.user(holder.uid), kinds.join(","));
    }
    text
}

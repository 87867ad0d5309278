//! subid-alloc - grant and list ranges of subordinate ids
//!
//! As a stage of a pipeline (--map PRESET -) it adds the map that a preset
//! makes of the caller's grants.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use common::cli::{Args, Cli, Operands, Opt};
use common::fail::{Because, Failure, Result};
use common::id::{Kind, Range};
use common::plan::Plan;
use common::preset::{self, Me, Preset, guard_root, maps};
use common::proc::Proc;
use common::record::{Record, Stream};
use common::step::{end, file};
use common::subid::{Locked, POOL, Table, granted, not_free};
use common::target::{Target, read_stream};
use common::tool::{Outcome, run};
use common::user::{self, User};

const CLI: Cli = Cli {
    name: "subid-alloc",
    purpose: "grant and list ranges of subordinate ids",
    usage: &["[OPTION...] OWNER", "--list [OWNER]", "--map PRESET [OWNER]", "--map PRESET -"],
    options: &[
        Opt { short: "", long: "list", value: "", help: "print the grants (of OWNER)" },
        Opt {
            short: "",
            long: "map",
            value: "PRESET",
            help: "print records of the map: root, same, subids, auto, keep, all",
        },
        Opt { short: "", long: "host-root", value: "", help: "let a map put the real root inside" },
        Opt { short: "", long: "count", value: "N", help: "how many ids to grant (65536)" },
        Opt { short: "", long: "start", value: "ID", help: "the first id to grant (the first that is free)" },
    ],
    operands: Operands::Free,
    runs: false,
    stage: true,
};

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    if args.operands.len() > 1 {
        return Err(CLI.usage("one OWNER"));
    }
    if args.flag("list") {
        return list(args);
    }
    if let Some(word) = args.value("map") {
        let word = word.to_string_lossy().into_owned();
        let preset = Preset::named(&word)
            .ok_or_else(|| CLI.usage(&format!("--map {word}: the presets are {}", preset::NAMES)))?;
        return map(args, preset);
    }
    allocate(args)
}

fn owner(args: &Args) -> Result<Option<User>> {
    let Some(word) = args.operands.first() else { return Ok(None) };
    let word = word.to_string_lossy();
    let unknown = || Failure::refused(format!("no user is called {word}"));
    Ok(Some(user::named(&word).ok_or_else(unknown)?))
}

// ---- list ----

fn list(args: &Args) -> Result<Outcome> {
    let mut text = String::new();
    let owner = owner(args)?;
    for kind in Kind::BOTH {
        let mut line = |name: &str, range: Range| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {name} {} {}", kind.word(), range.first, range.count);
        };
        match &owner {
            Some(user) => granted(user, kind)?.into_iter().for_each(|range| line(&user.name, range)),
            None => Table::read(kind.grant_file().as_ref())?.grants().for_each(|g| line(&g.owner, g.range)),
        }
    }
    let found = !text.is_empty() || owner.is_none();
    Ok(Outcome::Answer(text.into_bytes(), if found { 0 } else { 3 }))
}

// ---- map ----

fn map(args: &Args, preset: Preset) -> Result<Outcome> {
    let proc = Proc::open()?;
    let piped = args.piped();
    // First of all the stream: whoever reads runs dry if its writer does.
    let before = if piped { read_stream()? } else { Stream::default() };
    let me = if piped { None } else { owner(args)? };
    let me = me.map_or_else(|| Me::now(&proc), Me::other);
    if before.has_extents() {
        return Err(CLI.usage("the stream has a map already"));
    }
    guard_root(preset, &me, &proc, args.flag("host-root"))?;
    let maps = maps(preset, &me)?;
    let mut stream = before.clone();
    for kind in Kind::BOTH {
        stream.records.extend(maps.of(kind).iter().map(|extent| Record::Extent(kind, *extent)));
    }
    let mut plan = Plan::default();
    let holder = match before.pid() {
        Some((None, _)) => {
            plan.dry = true;
            None
        }
        Some((Some(address), true)) => Some(Rc::new(Target::open(&proc, address)?)),
        Some((Some(_), false)) | None => None,
    };
    plan.push(end::Effect::Say(stream));
    plan.push(end::Effect::Linger(holder));
    Ok(Outcome::Plan(plan))
}

// ---- allocate ----

fn allocate(args: &Args) -> Result<Outcome> {
    let owner = owner(args)?.ok_or_else(|| CLI.usage("which OWNER?"))?;
    let count = args.number("count")?.unwrap_or(65536);
    let start = args.number("start")?;
    let range = Range::new(start.unwrap_or(0), count)
        .ok_or_else(|| CLI.usage("ids go from 0 to 4294967294, and N is at least 1"))?;
    let proc = Proc::open()?;
    // The lock leaves files in /etc for a moment, so a dry run does without.
    let start_words = start.map_or_else(String::new, |s| format!(" --start {s}"));
    let again = format!("sudo subid-alloc {}{start_words} --count {count}", owner.name);
    let locked = if args.dry() { None } else { Some(Locked::take(&proc, &again)?) };
    let change = file::Change::new(locked);
    let mut plan = Plan::default();
    let mut said = String::new();
    let mut files = Vec::new();
    let tables = Kind::BOTH.map(|kind| Table::read(kind.grant_file().as_ref()));
    let [uids, gids] = tables;
    let tables = [(Kind::Uid, uids?), (Kind::Gid, gids?)];
    // One place for both files, so that uid and gid maps can be the same.
    let place = match start {
        Some(_) => range,
        None => free(&tables, range.count, &owner)?,
    };
    if let Some(why) = start.and_then(|_| not_free(place, &owner)) {
        let act = format!("grant {place} to {owner}: it is not free");
        return Err(Failure::refused(act).because(Some(Because::new(why))));
    }
    for (kind, table) in &tables {
        let has: Vec<Range> = table.of(&owner);
        let kept = match start {
            Some(_) => has.iter().find(|r| r.common(range) == Some(range)),
            None => has.iter().find(|r| r.count >= range.count),
        };
        if kept.is_none() {
            let path = PathBuf::from(kind.grant_file());
            plan.push(file::Effect::Prepare(change.clone(), path.clone(), table.with(&owner.name, place)));
            files.push(path);
        }
        let granted = kept.copied().unwrap_or(place);
        let _ = writeln!(said, "{} {} {} {}", kind.word(), owner.name, granted.first, granted.count);
    }
    if !files.is_empty() {
        plan.push(file::Effect::Replace(change, files));
    }
    plan.push(end::Effect::Answer(said.into_bytes()));
    Ok(Outcome::Plan(plan))
}

/// One place for both files: what the owner has in one of them, if that is
/// free in the other, else the first that is free in both.
fn free(tables: &[(Kind, Table); 2], count: u32, owner: &User) -> Result<Range> {
    let enough = |table: &Table| table.of(owner).into_iter().find(|r| r.count >= count);
    let has = tables.iter().find_map(|(_, table)| enough(table)).map(|r| Range { count, ..r });
    if let Some(range) = has.filter(|range| not_free(*range, owner).is_none()) {
        return Ok(range);
    }
    let align = if count >= 65536 { 65536 } else { 1 };
    let others = tables[1].1.taken();
    let found = tables[0].1.gap(POOL, count, align, &others);
    found.ok_or_else(|| Failure::refused(format!("no {count} ids are free in {POOL}")))
}

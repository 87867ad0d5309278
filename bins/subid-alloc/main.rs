//! subid-alloc - grant, list, cut, free and lint ranges of subordinate ids
//!
//! * here: the command line, and what only looks (--list, --who)
//! * `survey`: both files, read once for one owner
//! * `grant`: a range for OWNER; `nested`: the same inside a user namespace
//! * `free`: takes ranges away
//! * `map`: records of the map that a preset makes, of all grants or of a cut
//! * `fit`: which ids a tree or an archive needs
//! * `check`: what is wrong with the files; `parsers`: who misreads a line;
//!   `sed`: commands that mend one

mod check;
mod fit;
mod free;
mod grant;
mod map;
mod nested;
mod parsers;
mod sed;
mod survey;

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use common::cli::{Args, Cli, HOST_ROOT, Operands, Opt, Stage, flag, opt, valued};
use common::etc::Etc;
use common::etc::lock::{Locked, PATIENCE};
use common::fail::{Because, Failure, Result};
use common::id::{Kind, Range};
use common::proc::Proc;
use common::subid::{self, Grant, Grants};
use common::tool::{Outcome, run};
use common::user::{self, User};
use common::word::quote;

const CLI: Cli = Cli {
    name: "subid-alloc",
    purpose: "grant, list, cut, free and lint ranges of subordinate ids",
    usage: &[
        "[OPTION...] OWNER",
        "--nested [OPTION...] OWNER",
        "--free [OPTION...] OWNER [START:COUNT]",
        "--list [OWNER]",
        "--who ID",
        "--check",
        "--fit PATH|fd:N [--map PRESET] [OWNER]",
        "--map PRESET [OWNER]",
        "--map PRESET -",
        "--cut N [--map PRESET] [--with PID|tty] [-]",
    ],
    options: &[&[
        valued("count", "N", "how many ids to grant (65536)"),
        valued("start", "ID", "the first id to grant (the first that is free)"),
        valued("align", "N", "begin at a multiple of N (65536 from so many on)"),
        flag("uids", "only uids (/etc/subuid)"),
        flag("gids", "only gids (/etc/subgid)"),
        opt("R", "root", "DIR", "the files of the tree at DIR"),
        valued("wait", "SECONDS", "how long to wait for locks (15)"),
        flag("nested", "grant what is mapped in this user namespace"),
        valued("exclude", "ID[-ID]", "with --nested: but not these"),
        flag("free", "take away all grants, or these ids"),
        flag("list", "print the grants (of OWNER)"),
        valued("who", "ID", "print who has been granted ID"),
        flag("check", "say what is wrong with the files and what uses them"),
        valued("fit", "PATH|fd:N", "say which ids a tree or a tar archive needs"),
        valued("map", "PRESET", "print records: root, same, subids, auto, keep, all"),
        valued("cut", "N", "hold N free ids of the grants, and map only these"),
        valued("with", "PID|tty", "the process, or this session, that a cut ends with"),
        HOST_ROOT,
    ]],
    operands: Operands::Free,
    runs: false,
    stage: Stage::MiddleBut(&["nested", "free", "list", "who", "check", "fit"]),
};

type Act = fn(&Args) -> Result<Outcome>;

/// One thing that can be done.
struct Deed {
    /// The option that asks for it.
    option: &'static str,
    /// How many operands it has at most.
    operands: usize,
    /// The options that go with it.
    with: &'static [&'static str],
    act: Act,
}

const fn deed(option: &'static str, operands: usize, with: &'static [&'static str], act: Act) -> Deed {
    Deed { option, operands, with, act }
}

/// What is done without any of the others' options.
const GRANT: Deed = deed("", 1, &["count", "start", "align", "uids", "gids", "root", "wait"], grant::grant);

/// `map` is last: its option goes with others, too.
const DEEDS: [Deed; 8] = [
    deed("nested", 1, &["count", "start", "uids", "gids", "root", "wait", "exclude"], nested::grant),
    deed("free", 2, &["uids", "gids", "root", "wait"], free::free),
    deed("list", 1, &["uids", "gids", "root"], list),
    deed("who", 0, &["uids", "gids", "root"], who),
    deed("check", 0, &["uids", "gids", "root"], check::check),
    deed("fit", 1, &["map"], fit::fit),
    deed("cut", 1, &["map", "with", "host-root"], map::cut),
    deed("map", 1, &["host-root"], map::map),
];

fn main() -> ExitCode {
    run(&CLI, decide)
}

fn decide(args: &Args) -> Result<Outcome> {
    let deed = DEEDS.iter().find(|deed| args.flag(deed.option)).unwrap_or(&GRANT);
    if let Some(other) = given(args).find(|opt| opt.long != deed.option && !deed.with.contains(&opt.long)) {
        let what = if deed.option.is_empty() { "a grant".to_owned() } else { format!("--{}", deed.option) };
        return Err(CLI.usage(&format!("{what} and --{} do not go together", other.long)));
    }
    if args.operands.len() > deed.operands {
        return Err(CLI.usage("too many operands"));
    }
    (deed.act)(args)
}

/// The options that were given, but those that all tools have.
fn given(args: &Args) -> impl Iterator<Item = &'static Opt> {
    CLI.options.iter().copied().flatten().filter(|opt| args.flag(opt.long))
}

// ---- what several rooms ask of the command line ----

/// The kinds of ids that are meant: both, unless told.
fn kinds(args: &Args) -> Vec<Kind> {
    match (args.flag("uids"), args.flag("gids")) {
        (true, false) => vec![Kind::Uid],
        (false, true) => vec![Kind::Gid],
        _ => Kind::BOTH.to_vec(),
    }
}

/// The directory of the files.
fn etc(args: &Args) -> Result<Rc<Etc>> {
    Ok(Rc::new(Etc::open(args.value("root").map(PathBuf::from).as_deref())?))
}

/// The source that nsswitch.conf names in place of the files.
fn provider(etc: &Etc) -> Result<Option<String>> {
    let nsswitch = String::from_utf8_lossy(&etc.text("nsswitch.conf")?).into_owned();
    Ok(subid::provider(&nsswitch).map(str::to_owned))
}

/// Refuses `act` where it is not the files that say who has which ids.
fn guard_files(etc: &Etc, act: impl FnOnce() -> String) -> Result<()> {
    let Some(name) = provider(etc)? else { return Ok(()) };
    let path = etc.path("nsswitch.conf");
    let why = format!("{path} takes subordinate ids from {name}, and shadow does not look into the files");
    Err(Failure::refused(act()).because(Some(Because::new(why))))
}

/// The user that an operand names: in the tree of --root, by its passwd alone.
fn user_named(args: &Args, word: &str, etc: &Etc) -> Result<Option<User>> {
    if args.value("root").is_none() {
        return Ok(user::named(word));
    }
    let uid = common::id::one(word.as_bytes());
    let passwd = etc.text("passwd")?;
    let found = user::entries(&passwd).find(|entry| entry.name == word.as_bytes() || uid == Some(entry.uid));
    Ok(found.map(|entry| entry.user()))
}

/// The user that the first operand names, if there is one.
fn owner(args: &Args, etc: &Etc) -> Result<Option<User>> {
    let Some(word) = args.operands.first().map(|word| word.to_string_lossy()) else { return Ok(None) };
    let unread = || if args.value("root").is_none() { user::unread() } else { None };
    let unknown = || Failure::refused(format!("no user is called {}", quote(&*word))).because(unread());
    user_named(args, &word, etc)?.ok_or_else(unknown).map(Some)
}

/// The same, for whoever looks at lines: there may be some of a number that is nobody's.
fn owner_or_number(args: &Args, etc: &Etc) -> Result<Option<User>> {
    let number = args.operands.first().and_then(|word| common::id::one(word.as_bytes()));
    owner(args, etc).or_else(|failure| {
        // He may be somebody's who could not be looked for.
        let is_unread = failure.errno().is_some() || (args.value("root").is_none() && user::unread().is_some());
        let uid = number.filter(|_| !is_unread).ok_or(failure)?;
        Ok(Some(User { name: uid.to_string(), uid, gid: uid, shell: String::new() }))
    })
}

/// The same command line again, without the options `but`.
fn again(args: &Args, but: &[&str]) -> String {
    let deed = DEEDS.iter().map(|deed| deed.option).find(|option| args.flag(option));
    let mut words = vec!["subid-alloc".to_owned()];
    words.extend(deed.filter(|deed| !but.contains(deed)).map(|deed| format!("--{deed}")));
    words.extend(args.operands.iter().map(quote));
    for opt in given(args).filter(|opt| Some(opt.long) != deed && !but.contains(&opt.long)) {
        if opt.value.is_empty() {
            words.push(format!("--{}", opt.long));
        }
        words.extend(args.values(opt.long).iter().map(|value| format!("--{} {}", opt.long, quote(value))));
    }
    words.join(" ")
}

/// The lock for a change; a dry run does without, since it leaves files in /etc
/// for a moment.
fn lock(args: &Args, etc: &Rc<Etc>, proc: &Proc) -> Result<Option<Locked>> {
    let wrong = || CLI.usage("--wait: a number of seconds up to 4294967295");
    let patience = args.number("wait")?.map_or(Ok(PATIENCE), |n| u32::try_from(n).map_err(|_| wrong()))?;
    if args.dry() {
        return Ok(None);
    }
    let names = Kind::BOTH.map(survey::name);
    Locked::take(etc, &names, Duration::from_secs(patience.into()), proc, &format!("sudo {}", again(args, &[])))
        .map(Some)
}

/// A grant as it is printed: kind, owner, start, count.
fn line(text: &mut String, kind: Kind, owner: &str, range: Range) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} {owner} {} {}", kind.word(), range.first, range.count);
}

// ---- what only looks ----

/// Calls `each` with every grant in the files.
fn each_grant(args: &Args, etc: &Etc, mut each: impl FnMut(Kind, Grant<'_>)) -> Result<()> {
    for kind in kinds(args) {
        let Some(file) = etc.file(survey::name(kind))? else { continue };
        let read = subid::pieces(&file.file, |piece, _| {
            subid::lines(piece).filter_map(subid::grant).for_each(|grant| each(kind, grant));
        });
        read.map_err(|e| Failure::os(format!("read {}", etc.path(survey::name(kind))), e))?;
    }
    Ok(())
}

fn list(args: &Args) -> Result<Outcome> {
    let etc = etc(args)?;
    let mut text = String::new();
    let owner = owner_or_number(args, &etc)?;
    let elsewhere = args.value("root").is_some();
    if owner.is_none() || elsewhere {
        guard_files(&etc, || "list the grants".to_owned())?;
    }
    match &owner {
        None => each_grant(args, &etc, |kind, grant| {
            line(&mut text, kind, &String::from_utf8_lossy(grant.owner), grant.range);
        })?,
        Some(user) => {
            for kind in kinds(args) {
                // Here nsswitch.conf may name another source than the files.
                let ranges =
                    if elsewhere { survey::granted(user, kind, &etc)? } else { Grants::of(user)?.read(kind)? };
                ranges.into_iter().for_each(|range| line(&mut text, kind, &user.name, range));
            }
        }
    }
    let found = !text.is_empty() || owner.is_none();
    Ok(Outcome::Answer(text.into_bytes(), if found { 0 } else { 3 }))
}

fn who(args: &Args) -> Result<Outcome> {
    let id = args.number("who")?.and_then(|id| u32::try_from(id).ok());
    let id = id.ok_or_else(|| CLI.usage("--who: an id from 0 to 4294967295"))?;
    let mut text = String::new();
    let etc = etc(args)?;
    guard_files(&etc, || format!("find who has been granted {id}"))?;
    each_grant(args, &etc, |kind, grant| {
        if grant.range.has(id) {
            line(&mut text, kind, &String::from_utf8_lossy(grant.owner), grant.range);
        }
    })?;
    let status = if text.is_empty() { 3 } else { 0 };
    Ok(Outcome::Answer(text.into_bytes(), status))
}

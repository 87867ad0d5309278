//! A range for OWNER: the same in both files, the first that is free.

use std::collections::BTreeMap;
use std::rc::Rc;

use common::cli::Args;
use common::etc::Etc;
use common::etc::lock::Locked;
use common::fail::{Because, Errno, Failure, Result};
use common::helper;
use common::id::{Kind, Range, without};
use common::plan::Plan;
use common::proc::Proc;
use common::step::{end, file};
use common::subid::{self, Owner, POOL, RESERVED};
use common::survey::{BLOCK, Taken, merged};
use common::tool::Outcome;
use common::user::{self, User};
use common::word::quote;

use crate::survey::{self, Source};
use crate::{CLI, again, etc, guard_files, kinds, line, lock, owner};

/// What is asked for.
struct Request {
    user: User,
    kinds: Vec<Kind>,
    count: u32,
    start: Option<u32>,
    align: u32,
    pool: Range,
}

pub(crate) fn grant(args: &Args) -> Result<Outcome> {
    let etc = etc(args)?;
    let user = owner(args, &etc)?.ok_or_else(|| CLI.usage("which OWNER?"))?;
    let request = request(args, &etc, user)?;
    guard_files(&etc, || format!("grant ids to {}", request.user))?;
    let proc = Proc::open()?;
    let locked = lock(args, &etc, &proc)?;
    let owner = Owner::of(&request.user, &etc.text("passwd")?);
    let mut taken = Taken::nothing(request.align);
    let sources = Source::read(&etc, &request.kinds, &owner, &mut taken)?;
    sources.iter().flat_map(|(_, source)| source.own()).for_each(|range| taken.add(*range));
    let place = place(&request, &sources, taken, args, &etc, &owner)?;
    let mut added = Vec::new();
    let mut said = String::new();
    for (kind, source) in sources {
        let kept = has(&request, &source);
        line(&mut said, kind, &request.user.name, kept.unwrap_or(place));
        if kept.is_none() {
            // No map can have an id twice, and all his lines go into one.
            let new = without(&[place], source.own());
            added.push((kind, source, new));
        }
    }
    let mut notes = Vec::new();
    if let ([(missing, ..)], [_, _]) = (added.as_slice(), request.kinds.as_slice()) {
        let other = if *missing == Kind::Uid { Kind::Gid } else { Kind::Uid };
        let (has, lacks) = (etc.path(survey::name(other)), etc.path(survey::name(*missing)));
        notes.push(format!("{has} granted this already and {lacks} did not: that is made good"));
    }
    Ok(Outcome::Plan(plan(etc, locked, &request.user, added, notes, said)))
}

// ---- what is asked for ----

fn request(args: &Args, etc: &Etc, user: User) -> Result<Request> {
    let defs = Defs::parse(&etc.text("login.defs")?);
    let kinds = kinds(args);
    let (mut pool, mut count) = (POOL, u64::from(BLOCK));
    for kind in &kinds {
        if let Some(theirs) = defs.pool(*kind)? {
            let both = if pool == POOL { Some(theirs) } else { pool.common(theirs) };
            let apart = || Failure::refused("SUB_UID_ and SUB_GID_ of login.defs share no id: use --uids and --gids");
            pool = both.ok_or_else(apart)?;
        }
        count = defs.count(*kind).unwrap_or(count);
    }
    let count = args.number("count")?.unwrap_or(count);
    if count == 0 && args.value("count").is_none() {
        let because = Because::new("SUB_UID_COUNT or SUB_GID_COUNT is 0 in login.defs: nobody gets any by default");
        let with_count = format!("sudo {} --count {BLOCK}", again(args, &[]));
        return Err(Failure::refused("grant 0 ids").because(Some(because.remedy(with_count))));
    }
    let wrong = || CLI.usage("ids go from 0 to 4294967294, and N is at least 1");
    let start = args.number("start")?;
    let range = Range::new(start.unwrap_or(0), count).ok_or_else(wrong)?;
    // What a system in a container expects: a block of its own.
    let usual = if range.count >= BLOCK { BLOCK } else { 1 };
    let align = args.number("align")?.map_or(Some(usual), |n| u32::try_from(n).ok().filter(|n| *n > 0));
    let align = align.ok_or_else(|| CLI.usage("--align: a number from 1 to 4294967295"))?;
    if args.value("align").is_some() && range.first % align != 0 {
        return Err(CLI.usage("--start is no multiple of --align"));
    }
    Ok(Request { user, kinds, count: range.count, start: start.map(|_| range.first), align, pool })
}

/// The SUB_* keys of login.defs(5). shadow's own values, which distributions
/// write there, are nobody's choice.
struct Defs(BTreeMap<String, u64>);

impl Defs {
    fn parse(text: &[u8]) -> Defs {
        let text = String::from_utf8_lossy(text).into_owned();
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let key = words.next().filter(|key| key.starts_with("SUB_"))?;
            Some((key.to_owned(), subid::shadow_number(words.next()?.as_bytes())?))
        };
        let shadows = |key: &str| match key.rsplit('_').next() {
            Some("MIN") => 100_000,
            Some("MAX") => 600_100_000,
            _ => 65536,
        };
        Defs(text.lines().filter_map(entry).filter(|(key, value)| *value != shadows(key)).collect())
    }

    fn get(&self, kind: Kind, what: &str) -> Option<u64> {
        self.0.get(&format!("SUB_{}_{what}", kind.word().to_ascii_uppercase())).copied()
    }

    fn count(&self, kind: Kind) -> Option<u64> {
        self.get(kind, "COUNT")
    }

    fn pool(&self, kind: Kind) -> Result<Option<Range>> {
        let (min, max) = (self.get(kind, "MIN"), self.get(kind, "MAX"));
        if min.is_none() && max.is_none() {
            return Ok(None);
        }
        // With one of them the other is shadow's.
        let (first, last) = (min.unwrap_or(100_000), max.unwrap_or(600_100_000));
        let range = (last + 1).checked_sub(first).and_then(|count| Range::new(first, count));
        let key = format!("SUB_{}", kind.word().to_ascii_uppercase());
        let wrong = || Failure::refused(format!("{key}_MIN {first} and {key}_MAX {last} of login.defs are no range"));
        range.ok_or_else(wrong).map(Some)
    }
}

// ---- where ----

/// What the owner has in one file already, if that is enough: a request may
/// span lines that touch.
fn has(request: &Request, source: &Source) -> Option<Range> {
    let merged = merged(source.own());
    match request.start {
        None => merged.into_iter().find(|r| r.count >= request.count),
        Some(first) => {
            let wanted = Range { first, count: request.count };
            merged.into_iter().find(|r| r.common(wanted) == Some(wanted)).map(|_| wanted)
        }
    }
}

/// One place for all files, so that uid and gid maps can be the same.
fn place(
    request: &Request,
    sources: &[(Kind, Source)],
    mut taken: Taken,
    args: &Args,
    etc: &Etc,
    owner: &Owner,
) -> Result<Range> {
    let has: Vec<Option<Range>> = sources.iter().map(|(_, source)| has(request, source)).collect();
    let kept = has.iter().flatten().next().copied();
    if let Some(range) = kept.filter(|_| has.iter().all(Option::is_some)) {
        // Nothing will be written.
        return Ok(range);
    }
    let mut known = Known::of(args, etc)?;
    // Where one file has it already the other is to have the same: half of a grant.
    if let Some(first) = kept.map(|range| range.first).or(request.start) {
        let range = Range { first, count: request.count };
        known.ask(args, range)?;
        let Some(why) = taken_by(range, request, etc, owner, &known)? else { return Ok(range) };
        let mut because = Because::new(why);
        let lacks = sources.iter().zip(&has).find(|(_, has)| has.is_none()).map(|((kind, _), _)| kind.word());
        if let Some(lacks) = lacks.filter(|_| request.start.is_none()) {
            because = because.remedy(format!("sudo {} --{lacks}s", again(args, &["uids", "gids"])));
        }
        let act = format!("grant {range} to {}: it is not free", request.user);
        return Err(Failure::refused(act).because(Some(because)));
    }
    RESERVED.into_iter().for_each(|range| taken.add(range));
    known.0.keys().for_each(|id| taken.add(Range { first: *id, count: 1 }));
    // The name services may know ids that they do not list: each is one more
    // that is taken, and the search goes on behind it.
    loop {
        let found = taken.gap(request.pool, request.count, request.align);
        let found = found.ok_or_else(|| no_room(request))?;
        match known.ask(args, found)? {
            None => return Ok(found),
            Some(id) => taken.add(Range { first: id, count: 1 }),
        }
    }
}

fn no_room(request: &Request) -> Failure {
    let align = if request.align > 1 { format!(" at a multiple of {}", request.align) } else { String::new() };
    Failure::refused(format!("no {} ids are free in {}{align}", request.count, request.pool))
}

/// Why `range` is not free.
fn taken_by(range: Range, request: &Request, etc: &Etc, owner: &Owner, known: &Known) -> Result<Option<String>> {
    if let Some(reserved) = RESERVED.iter().find(|r| r.common(range).is_some()) {
        return Ok(Some(format!("{reserved} are for users and the system")));
    }
    for kind in &request.kinds {
        let name = survey::name(*kind);
        let Some(file) = etc.file(name)? else { continue };
        let said = |e| Failure::os(format!("read {}", etc.path(name)), e);
        if let Some(line) = subid::taker(&file.file, range, owner).map_err(said)? {
            return Ok(Some(format!("{} has {line}", etc.path(name))));
        }
    }
    let real = known.0.iter().find(|(id, _)| range.has(**id));
    Ok(real.map(|(id, name)| format!("{id} is the id of {}", quote(name))))
}

/// Ids of real users and groups, with their names: a sub-id of that number
/// would be the same user (CVE-2024-56433).
struct Known(BTreeMap<u32, String>);

impl Known {
    /// Those in passwd and group; with the machine's own files also those that
    /// the name services list.
    fn of(args: &Args, etc: &Etc) -> Result<Known> {
        let mut known = Known(BTreeMap::new());
        for file in ["passwd", "group"] {
            known.add(&etc.text(file)?);
            if args.value("root").is_none() {
                known.add(&getent(&[file])?);
            }
        }
        Ok(known)
    }

    fn add(&mut self, text: &[u8]) -> Option<u32> {
        let mut first = None;
        for (name, id) in user::ids_in(text) {
            first = first.or(Some(id));
            self.0.entry(id).or_insert_with(|| String::from_utf8_lossy(name).into_owned());
        }
        first
    }

    /// Asks the name services for the ends of `range` and of the blocks in it:
    /// whoever takes a block for a container answers for its first id.
    fn ask(&mut self, args: &Args, range: Range) -> Result<Option<u32>> {
        if args.value("root").is_some() {
            return Ok(None);
        }
        let last = range.first + (range.count - 1);
        let bases = (range.first / BLOCK..=last / BLOCK).map(|block| block * BLOCK).filter(|id| range.has(*id));
        let ids: Vec<String> = bases.chain([range.first, last]).map(|id| id.to_string()).collect();
        let mut found = None;
        for database in ["passwd", "group"] {
            let words: Vec<&str> = [database].into_iter().chain(ids.iter().map(String::as_str)).collect();
            found = found.or(self.add(&getent(&words)?));
        }
        Ok(found)
    }
}

/// What getent(1) prints; nothing where it is not installed.
fn getent(words: &[&str]) -> Result<Vec<u8>> {
    let Some(program) = helper::find("getent") else { return Ok(Vec::new()) };
    match helper::run(&program, words) {
        Ok(answer) => Ok(answer.output),
        Err(e) => {
            let because = (e == Errno::ETIMEDOUT)
                .then(|| Because::new("the name services have not answered within 10 seconds (nsswitch.conf(5))"));
            Err(Failure::os(format!("run getent {}", words[0]), e).because(because))
        }
    }
}

// ---- the plan ----

/// The plan that adds ranges for `user` to each file, tells `notes` and prints
/// `said`.
pub(crate) fn plan(
    etc: Rc<Etc>,
    locked: Option<Locked>,
    user: &User,
    added: Vec<(Kind, Source, Vec<Range>)>,
    mut notes: Vec<String>,
    said: String,
) -> Plan {
    let word = survey::word(user);
    notes.extend(locked.iter().flat_map(|locked| locked.cleared.clone()));
    let change = file::Change::new(etc, locked);
    let mut plan = Plan::default();
    let mut names = Vec::new();
    for (kind, source, ranges) in added {
        let name = survey::name(kind).to_owned();
        let edits = vec![source.append(&word, &ranges)];
        names.push(name.clone());
        plan.push(file::Effect::Prepare(change.clone(), file::Draft { name, source: source.file, edits }));
    }
    finish(plan, change, names, notes, said)
}

/// Ends the plan of a change.
pub(crate) fn finish(
    mut plan: Plan,
    change: Rc<file::Change>,
    names: Vec<String>,
    notes: Vec<String>,
    said: String,
) -> Plan {
    // Where nothing is to be replaced the locks go here, with the change.
    if !names.is_empty() {
        plan.push(file::Effect::Replace(change, names));
    }
    notes.into_iter().for_each(|note| plan.push(end::Effect::Note(format!("{}: {note}\n", CLI.name))));
    plan.push(end::Effect::Answer(said.into_bytes()));
    plan
}

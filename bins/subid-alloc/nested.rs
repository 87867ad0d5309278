//! A grant inside a user namespace: only what is mapped there can ever be
//! mapped again below it (W16 of the kernel's rules: an outside id has to be in
//! the parent's map), and shadow's programs do not look.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use common::cli::Args;
use common::fail::{Because, Failure, Result};
use common::id::{self, Kind, Range, subject, without};
use common::ns::{INITIAL_USER, Kind as Ns};
use common::proc::Proc;
use common::subid::{self, Owner, Taken};
use common::tool::Outcome;
use common::word::quote;

use crate::survey::Source;
use crate::{CLI, etc, grant, kinds, line, lock, owner};

/// Root of this user namespace: a sub-id of that number would be it.
const ROOT: Range = Range { first: 0, count: 1 };

pub(crate) fn grant(args: &Args) -> Result<Outcome> {
    let etc = etc(args)?;
    let user = owner(args, &etc)?.ok_or_else(|| CLI.usage("which OWNER?"))?;
    let excluded: Vec<Range> = args.values("exclude").iter().map(|word| ids(word)).collect::<Result<_>>()?;
    let window = window(args)?;
    let proc = Proc::open()?;
    if proc.ns_id("self", Ns::User) == Some(INITIAL_USER) {
        let because = Because::new("this is the initial user namespace, where every id is mapped")
            .remedy(format!("sudo subid-alloc {}", user.name));
        return Err(Failure::usage("--nested").because(Some(because)));
    }
    let locked = lock(args, &etc, &proc, &format!("--nested {}", user.name))?;
    let owner = Owner::of(&user, &etc.text("passwd"));
    let (mut added, mut said) = (Vec::new(), String::new());
    for kind in kinds(args) {
        let mut taken = Taken::nothing(1);
        excluded.iter().for_each(|range| taken.add(*range));
        taken.add(ROOT);
        let source = Source::read(&etc, kind, &owner, &mut taken)?;
        let wanted = wanted(kind, source.own(), &taken, window, &proc)?;
        wanted.iter().for_each(|range| line(&mut said, kind, &user.name, *range));
        let new = without(&wanted, source.own());
        if !new.is_empty() {
            added.push((kind, source, new));
        }
    }
    Ok(Outcome::Plan(grant::plan(etc, locked, &user, added, Vec::new(), said)))
}

/// The first id and how many, as far as they are told.
fn window(args: &Args) -> Result<(Option<u32>, Option<u32>)> {
    let number = |option| -> Result<Option<u32>> {
        let wrong = || CLI.usage("ids go from 0 to 4294967294");
        args.number(option)?.map(|n| u32::try_from(n).map_err(|_| wrong())).transpose()
    };
    Ok((number("start")?, number("count")?))
}

/// `ID` or `FIRST-LAST`.
fn ids(word: &OsStr) -> Result<Range> {
    let bytes = word.as_bytes();
    let (first, last) = match bytes.iter().position(|b| *b == b'-') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, bytes),
    };
    let range = id::number(first).zip(id::number(last)).and_then(|(first, last)| {
        let count = (last + 1).checked_sub(first)?;
        Range::new(first, count)
    });
    range.ok_or_else(|| CLI.usage(&format!("--exclude {}: ID or ID-ID", quote(word))))
}

/// What the owner is to have of one kind, who has `own` of it: without a window
/// all that is mapped and not taken.
fn wanted(
    kind: Kind,
    own: &[Range],
    taken: &Taken,
    (start, count): (Option<u32>, Option<u32>),
    proc: &Proc,
) -> Result<Vec<Range>> {
    let map = proc.map("self", kind).unwrap_or_default();
    let mapped = subid::merged(&map.iter().map(|extent| extent.inside()).collect::<Vec<_>>());
    let free = taken.leaves(&mapped);
    let (word, file) = (kind.word(), kind.map_file());
    let Some(count) = count else {
        let from = Range::new(start.unwrap_or(0).into(), u64::from(u32::MAX - start.unwrap_or(0)));
        let found: Vec<Range> = free.iter().filter_map(|range| range.common(from?)).collect();
        let nothing = || Failure::refused(format!("grant {word}s: /proc/self/{file} has none that is free"));
        return if found.is_empty() { Err(nothing()) } else { Ok(found) };
    };
    let Some(first) = start else {
        let has = subid::merged(own).into_iter().find(|r| r.count >= count && within(*r, &mapped));
        let place = has.or(free.iter().copied().find(|range| range.count >= count));
        let nothing = || Failure::refused(format!("grant {count} {word}s: /proc/self/{file} has no such range free"));
        return Ok(vec![Range { count, ..place.ok_or_else(nothing)? }]);
    };
    let range = Range::new(first.into(), count.into()).ok_or_else(|| CLI.usage("ids go from 0 to 4294967294"))?;
    let refused =
        |why: String| Failure::refused(format!("grant {word}s {range}: not free")).because(Some(Because::new(why)));
    match (subid::lacking(range, &mapped), subid::lacking(range, &free)) {
        (missing, _) if !missing.is_empty() => {
            Err(refused(format!("{} not mapped here (/proc/self/{file})", subject(word, &missing))))
        }
        (_, missing) if !missing.is_empty() => {
            Err(refused(format!("{} root's, excluded or granted to others", subject(word, &missing))))
        }
        _ => Ok(vec![range]),
    }
}

fn within(range: Range, ranges: &[Range]) -> bool {
    subid::lacking(range, ranges).is_empty()
}

//! A grant inside a user namespace: only what is mapped there can ever be
//! mapped again below it (W16 of the kernel's rules: an outside id has to be in
//! the parent's map), and shadow's programs do not look.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use common::cli::Args;
use common::fail::{Because, Failure, Result};
use common::id::{self, Kind, Range, subject, without};
use common::proc::Proc;
use common::subid::Owner;
use common::survey::{Taken, lacking, merged};
use common::tool::Outcome;
use common::word::quote;

use crate::survey::Source;
use crate::{CLI, again, etc, grant, guard_files, kinds, line, lock, owner};

/// Root of this user namespace: a sub-id of that number would be it.
const ROOT: Range = Range { first: 0, count: 1 };

pub(crate) fn grant(args: &Args) -> Result<Outcome> {
    let etc = etc(args)?;
    let user = owner(args, &etc)?.ok_or_else(|| CLI.usage("which OWNER?"))?;
    let excluded: Vec<Range> = args.values("exclude").iter().map(|word| ids(word)).collect::<Result<_>>()?;
    let window = window(args)?;
    let proc = Proc::open()?;
    if proc.in_initial()? {
        let because = Because::new("this is the initial user namespace, where every id is mapped")
            .remedy(format!("sudo {}", again(args, &["nested", "exclude"])));
        return Err(Failure::usage("--nested").because(Some(because)));
    }
    guard_files(&etc, || format!("grant ids to {user}"))?;
    let locked = lock(args, &etc, &proc)?;
    let owner = Owner::of(&user, &etc.text("passwd")?);
    let (mut added, mut said) = (Vec::new(), String::new());
    for kind in kinds(args) {
        let mut others = Taken::nothing(1);
        let Some((_, source)) = Source::read(&etc, &[kind], &owner, &mut others)?.pop() else { continue };
        let room = Room { kind, own: source.own(), excluded: &excluded, others: &others };
        let wanted = room.wanted(window, &proc)?;
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
    let number = |option, least| -> Result<Option<u32>> {
        let wrong = || CLI.usage("ids go from 0 to 4294967294, and N is at least 1");
        let in_range = |n| u32::try_from(n).ok().filter(|n| *n >= least);
        args.number(option)?.map(|n| in_range(n).ok_or_else(wrong)).transpose()
    };
    Ok((number("start", 0)?, number("count", 1)?))
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

/// What there is of one kind.
struct Room<'a> {
    kind: Kind,
    /// What the owner has.
    own: &'a [Range],
    excluded: &'a [Range],
    others: &'a Taken,
}

impl Room<'_> {
    /// What the owner is to have: without a window all that is mapped and free.
    fn wanted(&self, (start, count): (Option<u32>, Option<u32>), proc: &Proc) -> Result<Vec<Range>> {
        let map = proc.own_map(self.kind)?;
        let mapped = merged(&map.iter().map(|extent| extent.inside()).collect::<Vec<_>>());
        let free = self.others.leaves(&without(&without(&mapped, self.excluded), &[ROOT]));
        let (word, file) = (self.kind.word(), self.kind.map_file());
        let Some(count) = count else {
            let first = start.unwrap_or(0);
            let window = Range::new(first.into(), u64::from(u32::MAX - first));
            let found: Vec<Range> = free.iter().filter_map(|range| range.common(window?)).collect();
            let nothing = || Failure::refused(format!("grant {word}s: /proc/self/{file} has none that is free"));
            return if found.is_empty() { Err(nothing()) } else { Ok(found) };
        };
        let Some(first) = start else {
            let inside = |range: &Range| lacking(*range, &mapped).is_empty();
            let own = without(&without(&merged(self.own), self.excluded), &[ROOT]);
            let has = own.into_iter().find(|r| r.count >= count && inside(r));
            let place = has.or(free.iter().copied().find(|range| range.count >= count));
            let nothing =
                || Failure::refused(format!("grant {count} {word}s: /proc/self/{file} has no such range free"));
            return Ok(vec![Range { count, ..place.ok_or_else(nothing)? }]);
        };
        let range = Range::new(first.into(), count.into()).ok_or_else(|| CLI.usage("ids go from 0 to 4294967294"))?;
        match self.taken(range, &mapped) {
            None => Ok(vec![range]),
            Some(why) => {
                let act = format!("grant {word}s {range}: not free");
                Err(Failure::refused(act).because(Some(Because::new(why))))
            }
        }
    }

    /// Why `range` may not be granted.
    fn taken(&self, range: Range, mapped: &[Range]) -> Option<String> {
        let word = self.kind.word();
        let missing = lacking(range, mapped);
        if !missing.is_empty() {
            let are = subject(word, &missing);
            return Some(format!("{are} not mapped here (/proc/self/{})", self.kind.map_file()));
        }
        if range.has(0) {
            return Some(format!("{word} 0 is root of this user namespace"));
        }
        if let Some(common) = self.excluded.iter().find_map(|e| e.common(range)) {
            return Some(format!("{} excluded", subject(word, &[common])));
        }
        let left = self.others.leaves(&[range]);
        let granted = without(&[range], &left);
        (!granted.is_empty())
            .then(|| format!("{} granted to others in {}", subject(word, &granted), self.kind.grant_file()))
    }
}

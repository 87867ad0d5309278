//! Id maps, as pure algebra: no kernel, no /proc, no files.
//!
//! A map is a list of extents, each a stretch of ids inside a user namespace
//! and the same number of ids outside (in the parent), as one line of
//! /proc/PID/uid_map has it:
//!
//! ```text
//!            inside  outside  count
//!                 0     1000      1
//!                 1   100000  65536
//!
//!  inside    0 1 . . . . . . . . . . . 65536
//!            | |_______________________|
//!            |             |
//!  outside 1000   100000 . . . . 165535
//! ```
//!
//! Rules: user_namespaces(7); kernel/user_namespace.c, map_write(). The kernel
//! cuts larger numbers modulo 2^32 without a word, so the checks here are the
//! only ones there are.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};

/// The largest number of extents in one map (since Linux 4.15; 5 before).
pub const MAX_EXTENTS: usize = 340;
/// The largest size of a map's text in bytes: it must be less than one page.
pub const MAX_TEXT: usize = 4095;

/// Which ids a map is for: those of users or those of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// uid_map, /etc/subuid
    Uid,
    /// gid_map, /etc/subgid
    Gid,
}

impl Kind {
    /// Both, in the order in which they are always treated.
    pub const BOTH: [Kind; 2] = [Kind::Uid, Kind::Gid];

    /// `uid` or `gid`, as records and messages have it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Uid => "uid",
            Kind::Gid => "gid",
        }
    }

    /// `uid_map` or `gid_map`, the file below /proc/PID.
    pub fn map_file(self) -> &'static str {
        match self {
            Kind::Uid => "uid_map",
            Kind::Gid => "gid_map",
        }
    }

    /// `/etc/subuid` or `/etc/subgid`.
    pub fn grant_file(self) -> &'static str {
        match self {
            Kind::Uid => "/etc/subuid",
            Kind::Gid => "/etc/subgid",
        }
    }
}

/// One value for user ids and one for group ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Both<T> {
    /// The one for uids.
    pub uid: T,
    /// The one for gids.
    pub gid: T,
}

impl<T> Both<T> {
    /// The one for `kind`.
    pub fn of(&self, kind: Kind) -> &T {
        match kind {
            Kind::Uid => &self.uid,
            Kind::Gid => &self.gid,
        }
    }

    /// The one for `kind`, to be changed.
    pub fn of_mut(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Uid => &mut self.uid,
            Kind::Gid => &mut self.gid,
        }
    }
}

/// `count` ids from `first` on. `count` is at least 1, and the last id is at
/// most 4294967294: 4294967295 is (uid_t)-1, which no call can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest id.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// By the first id, then by the count: as one number, since sorting by two takes
/// 2 KiB more in each binary.
impl Ord for Range {
    fn cmp(&self, other: &Range) -> Ordering {
        let key = |range: &Range| u64::from(range.first) << 32 | u64::from(range.count);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Range {
    fn partial_cmp(&self, other: &Range) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Range {
    /// The range, unless it is empty or leaves 0-4294967294.
    pub fn new(first: u64, count: u64) -> Option<Range> {
        let end = first.checked_add(count)?;
        if count == 0 || end > u64::from(u32::MAX) {
            return None;
        }
        Some(Range { first: u32::try_from(first).ok()?, count: u32::try_from(count).ok()? })
    }

    /// One past the last id.
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    /// Whether `id` is one of them.
    pub fn has(self, id: u32) -> bool {
        id >= self.first && u64::from(id) < self.end()
    }

    /// What both have, if anything.
    pub fn common(self, other: Range) -> Option<Range> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        Range::new(first.into(), end.checked_sub(first.into())?)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.end() - 1),
        }
    }
}

/// `ranges` as the subject of a sentence about ids that are called `word`:
/// `uid 5 is`, `uids 5-9, 12 are`.
pub fn subject(word: &str, ranges: &[Range]) -> String {
    match ranges {
        [one] if one.count == 1 => format!("{word} {one} is"),
        _ => format!("{word}s {} are", list(ranges)),
    }
}

/// `ranges` in a sentence: `5-9, 12`.
pub fn list(ranges: &[Range]) -> String {
    ranges.iter().map(Range::to_string).collect::<Vec<_>>().join(", ")
}

/// The parts of `ranges` that none of `taken` covers, in the order of `ranges`.
pub fn without(ranges: &[Range], taken: &[Range]) -> Vec<Range> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let mut left = Vec::new();
    for range in ranges {
        let mut from = u64::from(range.first);
        for t in &taken {
            if let Some(gap) = Range::new(from, u64::from(t.first).min(range.end()).saturating_sub(from)) {
                left.push(gap);
            }
            from = from.max(t.end().min(range.end()));
        }
        left.extend(Range::new(from, range.end() - from));
    }
    left
}

/// One line of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The lowest id inside the user namespace.
    pub inside: u32,
    /// The lowest id outside, in the parent user namespace.
    pub outside: u32,
    /// How many ids.
    pub count: u32,
}

impl Extent {
    /// The extent, unless it is empty or one side leaves 0-4294967294.
    pub fn new(inside: u64, outside: u64, count: u64) -> Option<Extent> {
        let (i, o) = (Range::new(inside, count)?, Range::new(outside, count)?);
        Some(Extent { inside: i.first, outside: o.first, count: i.count })
    }

    /// The ids inside.
    pub fn inside(self) -> Range {
        Range { first: self.inside, count: self.count }
    }

    /// The ids outside.
    pub fn outside(self) -> Range {
        Range { first: self.outside, count: self.count }
    }

    /// Takes in `next`, if it goes on where this one ends, on both sides.
    fn absorb(&mut self, next: Extent) -> bool {
        let touches = self.inside().end() == u64::from(next.inside) && self.outside().end() == u64::from(next.outside);
        if touches {
            self.count += next.count;
        }
        touches
    }

    /// The part whose outside ids are `part`, a piece of `self.outside()`.
    fn at_outside(self, part: Range) -> Extent {
        Extent { inside: self.inside + (part.first - self.outside), outside: part.first, count: part.count }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// Why a list of extents is no map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlawful {
    /// There is no extent.
    Empty,
    /// Two extents share these ids inside.
    InsideTwice(Range),
    /// Two extents share these ids outside.
    OutsideTwice(Range),
    /// More than 340 extents.
    TooMany(usize),
    /// The text is longer than 4095 bytes; so many extents of it would fit.
    TooLong(usize, usize),
}

impl fmt::Display for Unlawful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unlawful::Empty => write!(f, "the map is empty"),
            Unlawful::InsideTwice(r) => write!(f, "{} in two extents", subject("inside id", &[*r])),
            Unlawful::OutsideTwice(r) => write!(f, "{} in two extents", subject("outside id", &[*r])),
            Unlawful::TooMany(n) => write!(f, "{n} extents; the kernel takes {MAX_EXTENTS}"),
            Unlawful::TooLong(n, fit) => {
                write!(f, "the map's text has {n} bytes; the kernel takes {MAX_TEXT}, and the first {fit} extents fit")
            }
        }
    }
}

/// A lawful id map: at least one extent, none overlapping another on either
/// side, within the kernel's limits. The extents are sorted by their inside
/// ids, as the kernel itself sorts them where there are more than five.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map(Vec<Extent>);

impl Map {
    /// The map of `extents`, those that touch on both sides joined.
    ///
    /// # Errors
    /// The first rule of map_write() that is broken.
    pub fn new(mut extents: Vec<Extent>) -> Result<Map, Unlawful> {
        sort(&mut extents);
        if let Some(twice) = overlap(extents.iter().map(|e| e.inside())) {
            return Err(Unlawful::InsideTwice(twice));
        }
        if let Some(twice) = overlap(extents.iter().map(|e| e.outside())) {
            return Err(Unlawful::OutsideTwice(twice));
        }
        extents.dedup_by(|next, last| last.absorb(*next));
        Map::of_lines(extents)
    }

    /// The map whose lines are these parts of a map, not joined again.
    ///
    /// # Errors
    /// There are none, or too many for the kernel.
    pub fn of_lines(parts: Vec<Extent>) -> Result<Map, Unlawful> {
        if parts.is_empty() {
            return Err(Unlawful::Empty);
        }
        if parts.len() > MAX_EXTENTS {
            return Err(Unlawful::TooMany(parts.len()));
        }
        let map = Map(parts);
        match map.text().len() {
            n if n > MAX_TEXT => Err(Unlawful::TooLong(n, map.fitting())),
            _ => Ok(map),
        }
    }

    /// How many of the lines, from the first on, fit into MAX_TEXT.
    fn fitting(&self) -> usize {
        let ends = self.0.iter().scan(0, |end, e| {
            *end += e.to_string().len() + 1;
            Some(*end)
        });
        ends.take_while(|end| *end <= MAX_TEXT).count()
    }

    /// The extents, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// The bytes to write to uid_map or gid_map in one write(2).
    pub fn text(&self) -> String {
        let mut text = String::new();
        for extent in &self.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{extent}");
        }
        text
    }

    /// The id outside for one inside (the kernel's map_id_down()).
    pub fn outside(&self, inside: u32) -> Option<u32> {
        let e = self.0.iter().find(|e| e.inside().has(inside))?;
        Some(e.outside + (inside - e.inside))
    }

    /// The id inside for one outside (the kernel's map_id_up()).
    pub fn inside(&self, outside: u32) -> Option<u32> {
        let e = self.0.iter().find(|e| e.outside().has(outside))?;
        Some(e.inside + (outside - e.outside))
    }

    /// The extents, each cut where one of `lines` ends and the next begins:
    ///
    /// ```text
    ///  self    outside   |--------------------|
    ///  lines            |--------|-----|---------|
    ///  answer  outside   |------|-----|-------|
    /// ```
    ///
    /// With the inside ids of the parent's map for lines this is what the
    /// kernel takes: it wants all outside ids of an extent in one single line
    /// of that map, even where two lines touch.
    ///
    /// # Errors
    /// The outside ids that none of the lines has.
    pub fn split_at(&self, lines: &[Range]) -> Result<Vec<Extent>, Vec<Range>> {
        let wanted: Vec<Range> = self.0.iter().map(|e| e.outside()).collect();
        let missing = without(&wanted, lines);
        if !missing.is_empty() {
            return Err(missing);
        }
        let mut split = Vec::new();
        for extent in &self.0 {
            let mut parts: Vec<Range> = lines.iter().filter_map(|l| l.common(extent.outside())).collect();
            parts.sort_unstable();
            split.extend(parts.into_iter().map(|part| extent.at_outside(part)));
        }
        Ok(split)
    }

    /// The map from our inside straight to the outside of the parent, whose
    /// map has these extents; or the outside ids that the parent does not have.
    ///
    /// # Errors
    /// As `split_at`. The result may have more than 340 extents, so it is a
    /// list and no map.
    pub fn compose(&self, parent: &[Extent]) -> Result<Vec<Extent>, Vec<Range>> {
        let mut whole = self.split_at(&parent.iter().map(|p| p.inside()).collect::<Vec<_>>())?;
        for e in &mut whole {
            let line = parent.iter().find(|p| p.inside().has(e.outside));
            e.outside = line.map_or(e.outside, |p| p.outside + (e.outside - p.inside));
        }
        Ok(whole)
    }

    /// The same pairs of ids with the sides exchanged.
    #[must_use]
    pub fn invert(&self) -> Map {
        let turn = |e: &Extent| Extent { inside: e.outside, outside: e.inside, count: e.count };
        let mut turned: Vec<Extent> = self.0.iter().map(turn).collect();
        sort(&mut turned);
        Map(turned)
    }
}

/// In the order of the inside ids. Two with the same are no map.
fn sort(extents: &mut [Extent]) {
    extents.sort_unstable_by_key(|extent| extent.inside);
}

/// The first ids that two of `ranges` share.
fn overlap(ranges: impl Iterator<Item = Range>) -> Option<Range> {
    let mut sorted: Vec<Range> = ranges.collect();
    sorted.sort_unstable();
    sorted.windows(2).find_map(|w| w[0].common(w[1]))
}

/// A number as nskit takes it: decimal digits only, at most 2^64-1. No sign,
/// blank, hex or octal: shadow reads 0100 as 64, podman as 100.
pub fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) || (word.len() > 1 && word[0] == b'0') {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// A uid or gid: a number below 4294967295, which to setresuid(2) and chown(2)
/// means "leave it".
pub fn one(word: &[u8]) -> Option<u32> {
    number(word).and_then(|n| u32::try_from(n).ok()).filter(|id| *id != u32::MAX)
}

/// Reads a map operand, `[u:|g:|b:]INSIDE:OUTSIDE:COUNT`: for uids, gids or (the
/// default) both.
///
/// # Errors
/// A sentence about what is wrong with it.
pub fn parse_operand(word: &[u8]) -> Result<(Vec<Kind>, Extent), &'static str> {
    let (kinds, rest) = match word {
        [b'u', b':', rest @ ..] => (vec![Kind::Uid], rest),
        [b'g', b':', rest @ ..] => (vec![Kind::Gid], rest),
        [b'b', b':', rest @ ..] => (Kind::BOTH.to_vec(), rest),
        _ => (Kind::BOTH.to_vec(), word),
    };
    let fields: Vec<Option<u64>> = rest.split(|b| *b == b':').map(number).collect();
    let &[inside, outside, count] = fields.as_slice() else {
        return Err("a map is [u:|g:|b:]INSIDE:OUTSIDE:COUNT, or a preset");
    };
    let (Some(inside), Some(outside), Some(count)) = (inside, outside, count) else {
        return Err("INSIDE, OUTSIDE and COUNT are decimal numbers");
    };
    let extent = Extent::new(inside, outside, count);
    Ok((kinds, extent.ok_or("ids go from 0 to 4294967294, and COUNT is at least 1")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A map as a child would write it down: every pair of ids by itself.
    fn naive(extents: &[Extent]) -> Option<BTreeMap<u32, u32>> {
        let mut down = BTreeMap::new();
        let mut up = BTreeMap::new();
        for e in extents {
            for n in 0..e.count {
                if down.insert(e.inside + n, e.outside + n).is_some() || up.insert(e.outside + n, ()).is_some() {
                    return None;
                }
            }
        }
        (!down.is_empty()).then_some(down)
    }

    /// All extents over ids below `universe`.
    fn extents(universe: u64) -> Vec<Extent> {
        let mut all = Vec::new();
        for count in 1..=universe {
            for inside in 0..=universe - count {
                for outside in 0..=universe - count {
                    all.push(Extent::new(inside, outside, count).unwrap());
                }
            }
        }
        all
    }

    /// All lists of up to two extents over ids below `universe`.
    fn lists(universe: u64) -> Vec<Vec<Extent>> {
        let one = extents(universe);
        let pairs = one.iter().flat_map(|a| one.iter().map(|b| vec![*a, *b]));
        one.iter().map(|a| vec![*a]).chain(pairs).collect()
    }

    #[test]
    fn lawful_exactly_where_the_naive_model_is() {
        for list in lists(5) {
            let map = Map::new(list.clone());
            let model = naive(&list);
            assert_eq!(map.is_ok(), model.is_some(), "{list:?}");
            let (Ok(map), Some(model)) = (map, model) else { continue };
            // As few lines as there can be: the order of the list says nothing.
            let joints = model.iter().filter(|(i, o)| **i > 0 && **o > 0 && model.get(&(*i - 1)) == Some(&(*o - 1)));
            assert_eq!(map.extents().len(), model.len() - joints.count(), "{list:?}");
            assert!(map.extents().is_sorted_by_key(|e| e.inside));
            for id in 0..6 {
                assert_eq!(map.outside(id), model.get(&id).copied());
                let up = model.iter().find(|(_, o)| **o == id).map(|(i, _)| *i);
                assert_eq!(map.inside(id), up);
                assert_eq!(map.invert().outside(id), up);
            }
        }
    }

    #[test]
    fn split_and_compose_agree_with_the_naive_model() {
        let maps: Vec<Map> = lists(4).into_iter().filter_map(|l| Map::new(l).ok()).collect();
        for map in &maps {
            for parent in &maps {
                let all_there =
                    map.extents().iter().all(|e| (0..e.count).all(|n| parent.outside(e.outside + n).is_some()));
                let lines: Vec<Range> = parent.extents().iter().map(|p| p.inside()).collect();
                let split = map.split_at(&lines);
                assert_eq!(split.is_ok(), all_there, "{map:?} {parent:?}");
                let Ok(split) = split else { continue };
                assert_eq!(naive(&split), naive(map.extents()));
                for e in &split {
                    assert!(lines.iter().any(|l| l.common(e.outside()) == Some(e.outside())));
                }
                let whole = naive(&map.compose(parent.extents()).unwrap()).unwrap();
                for (inside, outside) in naive(map.extents()).unwrap() {
                    assert_eq!(whole[&inside], parent.outside(outside).unwrap());
                }
            }
        }
    }

    #[test]
    fn without_agrees_with_the_naive_model() {
        let ranges: Vec<Range> = (0..6).flat_map(|f| (1..=6 - f).map(move |c| Range::new(f, c).unwrap())).collect();
        for range in &ranges {
            for a in &ranges {
                for b in &ranges {
                    let left = without(&[*range], &[*a, *b]);
                    for id in 0..7 {
                        let wanted = range.has(id) && !a.has(id) && !b.has(id);
                        let found = left.iter().filter(|r| r.has(id)).count();
                        assert_eq!(found, usize::from(wanted), "{range} - {a} - {b} at {id}: {left:?}");
                    }
                }
            }
        }
    }

    /// A small repeatable generator (xorshift): the seed is in the message.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Ids near the edges of u32 as often as in the middle.
    fn some_id(state: &mut u64) -> u64 {
        let r = random(state);
        match r % 4 {
            0 => r >> 60,
            1 => 0xffff_ffff - (r >> 60),
            _ => (r >> 16) & 0xffff_ffff,
        }
    }

    #[test]
    fn whole_range_properties() {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let mut lawful = 0;
        for round in 0..200_000 {
            let mut list = Vec::new();
            for _ in 0..1 + round % 4 {
                let count = if random(&mut state) % 2 == 0 { 1 } else { some_id(&mut state) % 70_000 };
                let (inside, outside) = (some_id(&mut state), some_id(&mut state));
                let extent = Extent::new(inside, outside, count);
                let fits = count > 0 && inside.max(outside) + count <= 0xffff_ffff;
                assert_eq!(extent.is_some(), fits, "round {round}: {inside} {outside} {count}");
                list.extend(extent);
            }
            let Ok(map) = Map::new(list) else { continue };
            lawful += 1;
            for e in map.extents() {
                let last = e.count - 1;
                assert_eq!(map.outside(e.inside), Some(e.outside));
                assert_eq!(map.outside(e.inside + last), Some(e.outside + last));
                assert_eq!(map.inside(e.outside + last), Some(e.inside + last));
            }
            assert_eq!(map.invert().invert(), map);
            let identity = [Extent::new(0, 0, 0xffff_ffff).unwrap()];
            assert_eq!(map.split_at(&[identity[0].inside()]).as_deref(), Ok(map.extents()));
            assert_eq!(map.compose(&identity).as_deref(), Ok(map.extents()));
            assert_eq!(map.outside(u32::MAX), None);
        }
        assert!(lawful > 10_000, "{lawful}");
    }

    #[test]
    fn limits() {
        // None of them touches another.
        let line = |n: u64| Extent::new(2 * n, 2 * n, 1).unwrap();
        assert!(Map::new((0..340).map(line).collect()).is_ok());
        assert_eq!(Map::new((0..341).map(line).collect()), Err(Unlawful::TooMany(341)));
        let long = |n: u64| Extent::new(4_000_000_000 + 2 * n, 4_000_000_000 + 2 * n, 1).unwrap();
        // 24 bytes a line: 170 make 4080, 171 make 4104.
        assert!(Map::new((0..170).map(long).collect()).is_ok());
        assert_eq!(Map::new((0..171).map(long).collect()), Err(Unlawful::TooLong(4104, 170)));
        assert_eq!(Map::new(Vec::new()), Err(Unlawful::Empty));
        // Those that touch are one, wherever they stand in the list.
        let row = |n: u64| Extent::new(n, n + 5, 1).unwrap();
        let map = Map::new((0..1000).rev().map(row).collect()).unwrap();
        assert_eq!(map.extents(), [Extent::new(0, 5, 1000).unwrap()]);
        // Cut up again they may be too many.
        let cells: Vec<Range> = (0..1005).map(|n| Range::new(n, 1).unwrap()).collect();
        assert_eq!(Map::of_lines(map.split_at(&cells).unwrap()), Err(Unlawful::TooMany(1000)));
    }

    #[test]
    fn operands() {
        assert_eq!(parse_operand(b"0:1000:1"), Ok((Kind::BOTH.to_vec(), Extent::new(0, 1000, 1).unwrap())));
        assert_eq!(parse_operand(b"u:0:1000:2"), Ok((vec![Kind::Uid], Extent::new(0, 1000, 2).unwrap())));
        assert_eq!(parse_operand(b"b:0:0:4294967295").unwrap().1.count, 4_294_967_295);
        let bad = [
            "",
            "0",
            "0:0",
            "0:0:0",
            "0:0:1:1",
            "0x0:0:1",
            "+0:0:1",
            " 0:0:1",
            "00:0:1",
            "0:0:4294967296",
            "4294967295:0:1",
        ];
        for word in bad.iter().chain(&["0:1:18446744073709551616", "x:0:0:1", "1:4294967294:2", "-1:0:1", "0:0:1 "]) {
            assert!(parse_operand(word.as_bytes()).is_err(), "{word}");
        }
    }
}

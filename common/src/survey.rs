//! What a file of subordinate ids says for one owner, and what it leaves free.
//!
//! Each file is read once, in pieces: the owner's ranges are kept, those of all
//! others only as far as the search of a gap needs them.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::fail::Errno;
use crate::id::{Range, without};
use crate::subid::{Owner, clipped, grant, granted, lines, pieces, plain, readings};

/// How many ids there are in a block: those with the same upper sixteen bits,
/// the unit of systemd's container ranges.
pub const BLOCK: u32 = 65536;

/// What has been granted, for the search of a gap.
pub enum Taken {
    /// Each range.
    Ranges(Vec<Range>),
    /// Whole blocks: how many more ranges touch each than the one before it.
    /// Enough where a gap begins and ends with a block, and small.
    Blocks(Vec<i32>),
}

impl Taken {
    /// Nothing is taken; to be asked for gaps that begin at multiples of `align`.
    pub fn nothing(align: u32) -> Taken {
        if align > 0 && align % BLOCK == 0 { Taken::Blocks(vec![0; 65537]) } else { Taken::Ranges(Vec::new()) }
    }

    /// Takes a range.
    #[inline]
    pub fn add(&mut self, range: Range) {
        match self {
            Taken::Ranges(ranges) => ranges.push(range),
            Taken::Blocks(steps) => {
                let (first, last) = (range.first >> 16, (range.first + (range.count - 1)) >> 16);
                steps[first as usize] += 1;
                steps[last as usize + 1] -= 1;
            }
        }
    }

    /// The blocks that are touched, in order.
    fn touched(steps: &[i32]) -> Vec<Range> {
        let mut depth = 0;
        let block = |(block, step): (u64, &i32)| {
            depth += step;
            let first = block * u64::from(BLOCK);
            // The last block has no id 4294967295.
            let count = u64::from(BLOCK).min(u64::from(u32::MAX).saturating_sub(first));
            (depth > 0).then(|| Range::new(first, count)).flatten()
        };
        (0..).zip(steps).filter_map(block).collect()
    }

    /// The first `count` ids in `within`, beginning at a multiple of `align`, of
    /// which none is taken.
    pub fn gap(&mut self, within: Range, count: u32, align: u32) -> Option<Range> {
        match self {
            Taken::Ranges(ranges) => {
                // Files are mostly sorted already, in one or two runs.
                ranges.sort();
                gap(within, count, align, ranges)
            }
            Taken::Blocks(steps) => gap(within, count, align, &Taken::touched(steps)),
        }
    }

    /// The parts of `ranges` that are not taken.
    pub fn leaves(&self, ranges: &[Range]) -> Vec<Range> {
        match self {
            Taken::Ranges(taken) => without(ranges, taken),
            Taken::Blocks(steps) => without(ranges, &Taken::touched(steps)),
        }
    }
}

/// The first `count` ids in `within`, beginning at a multiple of `align`, that
/// none of `taken` has, which is in ascending order.
fn gap(within: Range, count: u32, align: u32, taken: &[Range]) -> Option<Range> {
    let align = u64::from(align.max(1));
    let end = within.end();
    let mut from = u64::from(within.first);
    let place = |from: u64, to: u64| {
        let found = Range::new(from.div_ceil(align) * align, count.into())?;
        (found.end() <= to).then_some(found)
    };
    for range in taken {
        if let Some(found) = place(from, u64::from(range.first).min(end)) {
            return Some(found);
        }
        from = from.max(range.end());
    }
    place(from, end)
}

/// What one file says for one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// What he has been granted, in the file's order.
    pub own: Vec<Range>,
    /// How long the file is, in bytes.
    pub size: u64,
    /// Whether its last line lacks a newline.
    pub open_end: bool,
}

/// Reads `file` once: what is the owner's as shadow reads it; `taken` gets
/// whatever some parser may read in the lines of others. Also answers whether
/// `twin` has the same bytes, as both files have where nobody is ever granted
/// other gids than uids: then it need not be read for what it says.
///
/// # Errors
/// As `pieces`.
pub fn survey(
    file: impl AsFd,
    twin: Option<&fs::File>,
    owner: &Owner,
    taken: &mut Taken,
) -> std::result::Result<(Survey, bool), Errno> {
    let mut survey = Survey::default();
    let mut theirs = Vec::new();
    let mut same = twin.is_some();
    pieces(file, |piece, at| {
        survey.size = at + piece.len() as u64;
        survey.open_end = piece.last() != Some(&b'\n');
        sort_out(piece, owner, &mut survey.own, taken);
        if let Some(twin) = twin.filter(|_| same) {
            theirs.resize(piece.len(), 0);
            same = twin.read_exact_at(&mut theirs, at).is_ok() && is_equal(piece, &theirs);
        }
    })?;
    same &= twin.and_then(|twin| twin.metadata().ok()).is_some_and(|meta| meta.len() == survey.size);
    Ok((survey, same))
}

/// Word by word: memcmp(3) of musl takes a byte at a time. Like `sort_out` not
/// to become a part of its caller, which is compiled to be small.
#[inline(never)]
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let word = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_or(0, u64::from_ne_bytes);
    let (mut ours, mut theirs) = (a.chunks_exact(8), b.chunks_exact(8));
    let words = ours.by_ref().zip(theirs.by_ref()).all(|(a, b)| word(a) == word(b));
    words && ours.remainder() == theirs.remainder()
}

#[inline(never)]
fn sort_out(piece: &[u8], owner: &Owner, own: &mut Vec<Range>, taken: &mut Taken) {
    let mut rest = piece;
    while !rest.is_empty() {
        // Nearly all lines are plain, and are read once.
        let length = if let Some((word, start, count, length)) = plain(rest) {
            if let Some(range) = clipped(start, count) {
                if owner.is(word) && granted(start, count).is_some() {
                    own.push(range);
                } else {
                    taken.add(range);
                }
            }
            length
        } else {
            let line = lines(rest).next().unwrap_or_default();
            match grant(line).filter(|grant| owner.is(grant.owner)) {
                Some(grant) => own.push(grant.range),
                None => readings(line, |range| taken.add(range)),
            }
            (line.len() + 1).min(rest.len())
        };
        rest = &rest[length..];
    }
}

/// `ranges` in ascending order, those that touch or overlap made one: a request
/// may span several lines of one owner.
pub fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut all: Vec<Range> = Vec::new();
    for range in sorted {
        match all.last_mut() {
            Some(last) if last.end() >= u64::from(range.first) => {
                let count = last.end().max(range.end()) - u64::from(last.first);
                last.count = u32::try_from(count).unwrap_or(u32::MAX);
            }
            _ => all.push(range),
        }
    }
    all
}

/// The parts of `range` that `ranges` do not have.
pub fn lacking(range: Range, ranges: &[Range]) -> Vec<Range> {
    without(&[range], ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subid::tests::{alice, file, r};
    use crate::subid::{PIECE, POOL};

    #[test]
    fn files_with_the_same_bytes() {
        let long = "a:100000:65536\n".repeat(PIECE / 4);
        let other = format!("{}7\n", &long[..long.len() - 2]);
        let longer = format!("{long}x");
        for (a, b) in [("", ""), ("a", "b"), ("a", ""), ("", "a"), ("a\n", "a\n"), (&long, &long), (&long, &other)]
            .into_iter()
            .chain([(long.as_str(), longer.as_str()), (longer.as_str(), long.as_str())])
        {
            let (owner, mut taken) = (Owner::of(&alice(), b""), Taken::nothing(65536));
            let twin = file(b.as_bytes());
            let (_, same) = survey(file(a.as_bytes()), Some(&twin), &owner, &mut taken).unwrap();
            assert_eq!(same, a == b);
        }
    }

    fn surveyed(text: &str, align: u32) -> (Survey, Taken) {
        let mut taken = Taken::nothing(align);
        let (survey, _) = survey(file(text.as_bytes()), None, &Owner::of(&alice(), b""), &mut taken).unwrap();
        survey.own.iter().for_each(|range| taken.add(*range));
        (survey, taken)
    }

    #[test]
    fn gaps_avoid_whatever_anybody_may_honour() {
        for (text, wanted) in [
            ("", Some(524_288)),
            ("a:524288:1\n", Some(589_824)),
            ("alice:524288:1\n", Some(589_824)),
            ("a:524288:65536 \nb:589824:65536:x\n", Some(655_360)),
            ("a:0x80000:65536\n", Some(589_824)),
            // 02000000 is 524288 in octal, 2000000 in decimal: both count.
            ("a:02000000:1\n", Some(589_824)),
            ("a:0:4294967295\n", None),
            ("a:524288:99999999999999\n", None),
            ("a:1:524287\nb:1879048191:1\n", Some(524_288)),
        ] {
            // Both ways to look find the same.
            let (_, mut blocks) = surveyed(text, 65536);
            assert!(matches!(blocks, Taken::Blocks(_)));
            assert_eq!(blocks.gap(POOL, 65536, 65536).map(|r| r.first), wanted, "{text}");
            let (_, mut ranges) = surveyed(text, 1);
            assert!(matches!(ranges, Taken::Ranges(_)));
            assert_eq!(ranges.gap(POOL, 65536, 65536).map(|r| r.first), wanted, "{text}");
        }
        let (_, taken) = surveyed("a:5:5\nb:4294967294:1\n", 65536);
        assert_eq!(taken.leaves(&[r(0, 65537), r(4_294_900_000, 67_294)]), [r(65536, 1), r(4_294_900_000, 1760)]);
    }

    #[test]
    fn surveys() {
        let text = "# x\nbob:1:2\nalice:0x10:3\n1501:7:1\nalice:1:2:3\nalice:9:1";
        let (survey, taken) = surveyed(text, 1);
        assert_eq!(survey, Survey { own: vec![r(16, 3), r(7, 1), r(9, 1)], size: text.len() as u64, open_end: true });
        assert_eq!(taken.leaves(&[r(0, 20)]), [r(0, 1), r(3, 4), r(8, 1), r(10, 6), r(19, 1)]);
        assert_eq!(surveyed("", 1).0, Survey::default());
    }

    #[test]
    fn own_lines_are_read_as_everywhere() {
        for line in ["alice:4294967000:295", "alice:4294967000:296", "alice:4294967000:297", "alice:0:4294967296"] {
            let wanted: Vec<Range> = grant(line.as_bytes()).map(|grant| grant.range).into_iter().collect();
            assert_eq!(surveyed(line, 1).0.own, wanted, "{line}");
        }
    }

    /// What a child would do: try every place.
    fn naive(within: Range, count: u32, align: u32, taken: &[Range]) -> Option<Range> {
        (within.first..)
            .take_while(|first| u64::from(*first) + u64::from(count) <= within.end())
            .filter(|first| first % align == 0)
            .map(|first| Range { first, count })
            .find(|place| taken.iter().all(|t| t.common(*place).is_none()))
    }

    #[test]
    fn gaps_are_the_first() {
        let mut seed = 1u32;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..3000 {
            let within = Range { first: next(20), count: 1 + next(60) };
            let mut taken: Vec<Range> = (0..next(8)).map(|_| Range { first: next(80), count: 1 + next(12) }).collect();
            let (count, align) = (1 + next(10), 1 + next(9));
            let wanted = naive(within, count, align, &taken);
            taken.sort_unstable();
            assert_eq!(gap(within, count, align, &taken), wanted, "{within} {count} {align} {taken:?}");
        }
    }

    #[test]
    fn ranges_are_merged() {
        assert_eq!(merged(&[r(10, 5), r(1, 2), r(3, 1), r(12, 10), r(30, 1)]), [r(1, 3), r(10, 12), r(30, 1)]);
        assert_eq!(merged(&[r(0, 4_294_967_295), r(5, 5)]), [r(0, 4_294_967_295)]);
    }
}

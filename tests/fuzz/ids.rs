//! Maps: the kernel's rules as kernel/user_namespace.c has them, written down once more.

use common::id::{Extent, Kind, Map, Range, parse_operand};
use common::preset::Preset;
use common::proc::extents;

/// Three numbers of 64 bits, as a line of a map has them.
type Line = [u64; 3];

/// map_write(): the lines of a text, if the kernel takes it. Its numbers are of 32 bits; larger
/// ones it cuts, and that is never what was meant.
fn kernel(text: &str) -> Option<Vec<Line>> {
    if text.len() >= 4096 {
        return None;
    }
    let mut lines: Vec<Line> = Vec::new();
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        let fields: Vec<u64> = line.split_ascii_whitespace().map(|f| f.parse().ok()).collect::<Option<_>>()?;
        let new: Line = fields.try_into().ok()?;
        let [inside, outside, count] = new;
        if count == 0 || inside + count > 0xffff_ffff || outside + count > 0xffff_ffff {
            return None;
        }
        let meet = |a: u64, b: u64, many: u64| a < b + many && b < a + count;
        if lines.iter().any(|[i, o, n]| meet(inside, *i, *n) || meet(outside, *o, *n)) {
            return None;
        }
        lines.push(new);
    }
    (lines.len() <= 340).then_some(lines)
}

/// map_id_down(): where an id inside is outside.
fn down(lines: &[Line], id: u64) -> Option<u64> {
    lines.iter().find(|[i, _, n]| id >= *i && id - i < *n).map(|[i, o, _]| o + (id - i))
}

fn all(lines: &[Extent]) -> Vec<Line> {
    lines.iter().map(|e| [e.inside.into(), e.outside.into(), e.count.into()]).collect()
}

fn text(lines: &[Extent]) -> String {
    lines.iter().map(|e| format!("{e}\n")).collect()
}

/// The ids at which something can change: the ends of lines and their neighbours. Of very many lines
/// some have to do.
fn edges(lines: &[Line]) -> impl Iterator<Item = u64> + '_ {
    let ends = lines.iter().step_by(lines.len() / 32 + 1).flat_map(|[i, o, n]| [*i, i + n, *o, o + n]);
    ends.flat_map(|at| [at.saturating_sub(1), at, at + 1]).filter(|id| *id <= 0xffff_ffff)
}

fn id(id: u64) -> u32 {
    u32::try_from(id).unwrap()
}

/// A map is lawful exactly where the kernel takes its text, and translates as the kernel does.
fn lawful(given: &[Extent]) -> Option<Map> {
    let taken = kernel(&text(given));
    match Map::new(given.to_vec()) {
        // What touches has been joined, and may fit only so.
        Ok(map) => {
            let lines = kernel(&map.text()).unwrap();
            assert_eq!(extents(&map.text()), map.extents());
            let given = all(given);
            assert!(given.len() > 340 || taken.is_some() || text(map.extents()).len() < 4096);
            for at in edges(&given) {
                assert_eq!(down(&lines, at), down(&given, at), "{at}");
                assert_eq!(map.outside(id(at)).map(u64::from), down(&given, at), "{at}");
            }
            let turned = map.invert();
            assert_eq!(turned.invert(), map);
            for at in edges(&given) {
                assert_eq!(map.inside(id(at)), turned.outside(id(at)), "{at}");
                assert!(map.inside(id(at)).is_none_or(|inside| map.outside(inside) == Some(id(at))));
            }
            Some(map)
        }
        Err(unlawful) => {
            super::message(&unlawful.to_string());
            assert!(taken.is_none(), "the kernel takes it: {unlawful}");
            None
        }
    }
}

/// MAP operands between blanks, then what the kernel makes of them.
pub fn maps(bytes: &[u8]) {
    let mut wanted = [Vec::new(), Vec::new()];
    for word in bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
        match parse_operand(word) {
            Ok((kinds, extent)) => {
                let head = match kinds.as_slice() {
                    [Kind::Uid] => "u:",
                    [Kind::Gid] => "g:",
                    _ => "",
                };
                let said = format!("{head}{}", extent.to_string().replace(' ', ":"));
                assert_eq!(word.strip_prefix(b"b:").unwrap_or(word), said.as_bytes());
                kinds.iter().for_each(|kind| wanted[usize::from(*kind == Kind::Gid)].push(extent));
            }
            Err(what) => super::message(what),
        }
    }
    wanted.iter().for_each(|list| drop(lawful(list)));
    // The same as the text of a map.
    let text = String::from_utf8_lossy(bytes);
    let read = extents(&text);
    assert!(read.iter().all(|e| kernel(&e.to_string()).is_some()));
    if let Some(lines) = kernel(&text).filter(|_| !text.contains("0") && !text.contains('+')) {
        assert_eq!(all(&read), lines);
    }
    lawful(&read);
}

/// The first half of the lines for a child's map, the second for its parent's: what is split has to
/// be what the kernel wants, and what is composed what it answers.
pub fn nested(bytes: &[u8]) {
    // Small ids meet more often.
    let number = |b: &[u8]| u64::from(b[0]) << (b[1] % 25);
    let lines: Vec<Extent> =
        bytes.chunks_exact(6).filter_map(|c| Extent::new(number(c), number(&c[2..]), number(&c[4..]))).collect();
    let (child, parent) = lines.split_at(lines.len() / 2);
    let (Some(child), Some(parent)) = (lawful(child), lawful(parent)) else { return };
    let above: Vec<Range> = parent.extents().iter().map(|e| e.inside()).collect();
    let (before, over) = (all(child.extents()), all(parent.extents()));
    match (child.split_at(&above), child.compose(parent.extents())) {
        (Ok(split), Ok(whole)) => {
            let (after, through) = (all(&split), all(&whole));
            // A line of the child lies in one line of its parent (new_idmap_permitted()).
            for [_, outside, count] in &after {
                assert!(over.iter().any(|[i, _, n]| outside >= i && outside + count <= i + n));
            }
            for at in edges(&before).chain(edges(&after)) {
                assert_eq!(down(&before, at), down(&after, at), "{at}");
                assert_eq!(down(&before, at).map(|mid| down(&over, mid).unwrap()), down(&through, at), "{at}");
            }
        }
        (Err(missing), Err(same)) => {
            assert_eq!(missing, same);
            assert!(!missing.is_empty());
            for range in missing {
                let ends = [u64::from(range.first), range.end() - 1];
                assert!(ends.iter().all(|at| down(&over, *at).is_none() && child.inside(id(*at)).is_some()));
            }
        }
        other => panic!("{other:?}"),
    }
}

/// The own id, then grants: what a preset makes of them has the own id once, and else only what was
/// granted.
pub fn presets(bytes: &[u8]) {
    let Some(([me], rest)) = super::numbers(bytes) else { return };
    if me == u32::MAX {
        return;
    }
    let number = |b: &[u8]| u64::from(b[0]) << (b[1] % 25);
    let granted: Vec<Range> =
        rest.chunks_exact(4).filter_map(|c| Range::new(number(c), number(&c[2..]))).take(300).collect();
    let apart = granted.iter().enumerate().all(|(n, a)| granted[..n].iter().all(|b| a.common(*b).is_none()));
    let many = |ranges: &[Range]| ranges.iter().map(|r| u64::from(r.count)).sum::<u64>();
    let others = many(&granted) - u64::from(apart && granted.iter().any(|r| r.has(me)));
    for name in ["root", "same", "subids", "auto", "keep", "all"] {
        let preset = Preset::named(name).unwrap();
        let made = preset.extents(me, &granted);
        for e in &made {
            let own = e.outside == me && e.count == 1;
            assert!(own || granted.iter().any(|g| g.common(e.outside()) == Some(e.outside())), "{name}: {e}");
        }
        if !apart {
            continue;
        }
        let Some(map) = (if made.is_empty() { None } else { lawful(&made) }) else {
            assert!(made.len() > 100 || made.is_empty(), "{name} of {me} and {granted:?}");
            continue;
        };
        let mapped = map.extents().iter().map(|e| u64::from(e.count)).sum::<u64>();
        let (first, same) = (map.outside(0), map.outside(me));
        match preset {
            Preset::Root => assert_eq!((first, mapped), (Some(me), 1)),
            Preset::Same => assert_eq!((same, mapped), (Some(me), 1)),
            Preset::Subids => assert_eq!((first, mapped), (granted.first().map(|r| r.first), many(&granted))),
            Preset::Auto => assert_eq!((first, mapped), (Some(me), (others + 1).min(0xffff_ffff))),
            Preset::Keep => assert!(same == Some(me) && mapped <= others + 1),
            Preset::All => {
                assert_eq!((same, mapped), (Some(me), others + 1));
                assert!(map.extents().iter().all(|e| e.inside == e.outside));
            }
        }
    }
}

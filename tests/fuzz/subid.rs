//! Files of subordinate ids: shadow's reading, and everybody's, field by field.

use std::io::{Seek as _, Write as _};

use common::id::Range;
use common::subid::{Owner, grant, lines, provider, readings, taker};
use common::survey::{Taken, merged, survey};
use common::user::User;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::message;
use super::parsers::oddities;

/// strtoull(3) in base 0 or 10, all of the field, as C has it; negative ones are no numbers here.
fn strtoull(field: &[u8], base: u32) -> Option<u64> {
    let mut rest = field;
    while let [b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r', after @ ..] = rest {
        rest = after;
    }
    if let [b'+', after @ ..] = rest {
        rest = after;
    }
    let (base, digits) = match rest {
        [b'0', b'x' | b'X', after @ ..] if base == 0 => (16, after),
        [b'0', after @ ..] if base == 0 && !after.is_empty() => (8, after),
        _ => (10, rest),
    };
    let mut value: u64 = 0;
    for digit in digits {
        value = value.checked_mul(base)?.checked_add(char::from(*digit).to_digit(u32::try_from(base).ok()?)?.into())?;
    }
    (!digits.is_empty()).then_some(value)
}

/// What shadow 4.20 reads in a line: lib/subordinateio.c, subordinate_parse().
fn shadow(line: &[u8]) -> Option<(&[u8], Range)> {
    if line.len() > 1023 || line.starts_with(b"+") || line.starts_with(b"-") {
        return None;
    }
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    let [owner, start, count] = fields.as_slice() else { return None };
    if owner.is_empty() {
        return None;
    }
    let (start, count) = (strtoull(start, 0)?, strtoull(count, 0)?);
    // A line may end with the last id, which is none of those that it grants; its
    // numbers are of 32 bits.
    let end = start.checked_add(count).filter(|end| *end <= 1 << 32 && count < 1 << 32)?.min(0xffff_ffff);
    Some((*owner, Range::new(start, end.checked_sub(start)?)?))
}

/// Ids that some program may take from a line, at its edges.
fn anybodys(line: &[u8]) -> Vec<u64> {
    let trim = |field: &[u8]| -> Vec<u8> {
        let blank = |b: &&u8| b.is_ascii_whitespace() || **b == 0x0b;
        let from = field.iter().skip_while(blank).copied().collect::<Vec<u8>>();
        let many = from.len() - from.iter().rev().take_while(blank).count();
        from[..many].to_vec()
    };
    let fields: Vec<Vec<u8>> = line.split(|b| *b == b':').map(trim).collect();
    let [_, start, count, ..] = fields.as_slice() else { return Vec::new() };
    let mut ids = Vec::new();
    for start in [0, 10].into_iter().filter_map(|base| strtoull(start, base)) {
        for count in [0, 10].into_iter().filter_map(|base| strtoull(count, base)) {
            let end = start.saturating_add(count).min(0xffff_ffff);
            ids.extend([start, end.saturating_sub(1)].into_iter().filter(|id| *id >= start && *id < end));
        }
    }
    ids
}

/// A file, with `alice` for its reader: uid 1501, also called `ali`.
pub fn files(bytes: &[u8]) {
    let alice = User { name: "alice".into(), uid: 1501, gid: 1501, shell: String::new() };
    let owner = Owner::of(&alice, b"ali:x:1501:7::/:/bin/sh\nbob:x:1502:7::/:/bin/sh\n");
    let is_hers = |word: &[u8]| [&b"alice"[..], b"ali", b"1501"].contains(&word);
    let all: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    // A newline ends a line, and begins none.
    let ended = if bytes.is_empty() || bytes.ends_with(b"\n") { all.len() - 1 } else { all.len() };
    assert!(lines(bytes).eq(all[..ended].iter().copied()));
    let hers: Vec<Range> = all.iter().filter_map(|l| shadow(l)).filter(|(w, _)| is_hers(w)).map(|(_, r)| r).collect();
    assert_eq!(owner.granted_in(file(bytes)), Ok(hers.clone()));
    for line in &all {
        assert_eq!(grant(line).map(|g| (g.owner, g.range)), shadow(line), "{:?}", String::from_utf8_lossy(line));
        let mut read = Vec::new();
        readings(line, |range| read.push(range));
        let has = |id: &u64| u32::try_from(*id).is_ok_and(|id| read.iter().any(|r| r.has(id)));
        assert!(anybodys(line).iter().all(has), "{:?}: {read:?}", String::from_utf8_lossy(line));
        // A line without an oddity means the same to all.
        let odd = oddities(line);
        odd.iter().for_each(|o| message(&o.text));
        for plain in odd.iter().filter_map(|o| o.plain.as_ref()) {
            assert!(oddities(plain.as_bytes()).is_empty() && grant(plain.as_bytes()).is_some(), "{plain:?}");
        }
        if odd.is_empty() && !line.is_empty() {
            assert_eq!(Some(read), grant(line).map(|g| vec![g.range]), "{:?}", String::from_utf8_lossy(line));
        }
    }
    surveys(bytes, &all, &owner, is_hers, &hers);
    let text = String::from_utf8_lossy(bytes);
    let named = text.split('\n').find(|l| l.len() >= 6 && l.as_bytes()[..6].eq_ignore_ascii_case(b"subid:"));
    let named = named.and_then(|l| l[6..].split_whitespace().next()).filter(|name| *name != "files");
    assert_eq!(provider(&text), named);
}

fn surveys(bytes: &[u8], all: &[&[u8]], owner: &Owner, is_hers: impl Fn(&[u8]) -> bool, hers: &[Range]) {
    let (mut ranges, mut blocks) = (Taken::nothing(1), Taken::nothing(65536));
    let (said, same) = survey(file(bytes), Some(&file(bytes)), owner, &mut ranges).unwrap();
    assert_eq!((said.own.as_slice(), said.size, same), (hers, bytes.len() as u64, true));
    assert_eq!(said.open_end, !bytes.is_empty() && !bytes.ends_with(b"\n"));
    survey(file(bytes), None, owner, &mut blocks).unwrap();
    let theirs = |line: &&&[u8]| !shadow(line).is_some_and(|(word, _)| is_hers(word));
    let ids = all.iter().filter(theirs).flat_map(|line| anybodys(line));
    let ids: Vec<Range> = ids.map(|id| Range::new(id, 1).unwrap()).collect();
    assert_eq!((ranges.leaves(&ids), blocks.leaves(&ids)), (Vec::new(), Vec::new()));
    // Of whoever has her name for an owner nothing is said, however odd his line.
    let strange = |line: &&&[u8]| !is_hers(line.split(|b| *b == b':').next().unwrap_or_default());
    if let Some(id) = all.iter().filter(strange).find_map(|line| anybodys(line).pop()) {
        message(&taker(file(bytes), Range::new(id, 1).unwrap(), owner).unwrap().unwrap());
    }
    // Whole blocks are found by both ways, and the same.
    let within = Range { first: 65536, count: 0x7000_0000 };
    let found = [ranges.gap(within, 65536, 65536), blocks.gap(within, 65536, 65536)];
    assert_eq!(found[0], found[1]);
    let joined = merged(hers);
    assert!(joined.windows(2).all(|w| w[0].end() < u64::from(w[1].first)));
    assert!(hers.iter().all(|r| joined.iter().any(|j| j.common(*r) == Some(*r))));
}

/// A file with these bytes, to be read from its beginning.
fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = std::fs::File::from(memfd_create(c"subid", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

//! A line of /etc/subuid or /etc/subgid: as shadow 4.20 reads it, and as any
//! other parser may. Pure; the plain form, which nearly all lines have, is read
//! eight bytes at a time, since files of a million lines are real.

use crate::id::Range;

/// One line that grants something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    /// As it stands in the file.
    pub owner: &'a [u8],
    /// The ids.
    pub range: Range,
}

/// The longest line that shadow reads, in bytes without its newline: it has a
/// buffer of 1024 (lib/subordinateio.c).
const MAX_LINE: usize = 1023;

/// The plain form that all parsers agree on: a name, two decimal numbers
/// without sign, blank or leading zero, nothing else. Takes the line from the
/// beginning of `text`, and answers how long it is with its newline.
#[inline(always)]
pub(crate) fn plain(text: &[u8]) -> Option<(&[u8], u64, u64, usize)> {
    let colon = colon(text)?;
    let owner = &text[..colon];
    if matches!(owner.first()?, b'+' | b'-' | b'#' | b' ' | b'\t') {
        return None;
    }
    let (start, many) = digits(&text[colon + 1..])?;
    let second = colon + 1 + many;
    if text.get(second) != Some(&b':') {
        return None;
    }
    let (count, many) = digits(&text[second + 1..])?;
    let end = second + 1 + many;
    let ended = text.get(end).is_none_or(|b| *b == b'\n');
    (ended && end <= MAX_LINE).then_some((owner, start, count, (end + 1).min(text.len())))
}

/// Eight bytes of one value, to be compared with eight others at once.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Where the first colon is, if it comes before the end of the line. Names are
/// short: to call memchr for each would take longer.
#[inline(always)]
fn colon(text: &[u8]) -> Option<usize> {
    // The high bit of each byte that is zero; one that borrows spoils only what
    // comes after it.
    let zeros = |word: u64| word.wrapping_sub(EACH) & !word & (0x80 * EACH);
    let mut at = 0;
    while let Some(eight) = text[at..].first_chunk() {
        let word = u64::from_le_bytes(*eight);
        let found = zeros(word ^ (0x3a * EACH)) | zeros(word ^ (0x0a * EACH));
        if found != 0 {
            at += found.trailing_zeros() as usize / 8;
            return (text[at] == b':').then_some(at);
        }
        at += 8;
    }
    at += text[at..].iter().position(|byte| matches!(byte, b':' | b'\n'))?;
    (text[at] == b':').then_some(at)
}

/// The decimal number that `text` begins with, and how many digits it has.
#[inline(always)]
fn digits(text: &[u8]) -> Option<(u64, usize)> {
    let (mut value, mut many) = text.first_chunk().map_or((0, 0), eight_digits);
    if many % 8 == 0 {
        for byte in &text[many..] {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            // Nineteen digits cannot leave 64 bits.
            if many == 19 {
                return None;
            }
            value = value * 10 + u64::from(digit);
            many += 1;
        }
    }
    (many == 1 || (many > 1 && text[0] != b'0')).then_some((value, many))
}

/// The same for the first eight bytes, all at once: a million lines are read a
/// third faster.
#[inline(always)]
fn eight_digits(text: &[u8; 8]) -> (u64, usize) {
    let digits = u64::from_le_bytes(*text) ^ (0x30 * EACH);
    // The high bit of each byte that is no digit; one that carries spoils only
    // what comes after it.
    let others = (digits.wrapping_add(0x76 * EACH) | digits) & (0x80 * EACH);
    let many = others.trailing_zeros() / 8;
    if many == 0 {
        return (0, 0);
    }
    // Zeros before them; then neighbours are put together: to tens, hundreds,
    // and all.
    let digits = digits << (64 - 8 * many);
    let tens = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let odd = (tens & 0xff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let even = (tens >> 16 & 0xff_0000_00ff).wrapping_mul(0x2710_0000_0001);
    (odd.wrapping_add(even) >> 32, many as usize)
}

/// What isspace(3) has for a blank, and strtoull(3) skips: with the vertical tab.
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A field without the blanks around it.
pub fn trimmed(field: &[u8]) -> &[u8] {
    let from = field.iter().position(|b| !is_blank(*b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !is_blank(*b)).map_or(from, |last| last + 1);
    &field[from..end]
}

/// A number as shadow reads it: strtoull(3) in base 0, with blanks and a `+`
/// before it. So `0100` is 64.
pub fn shadow_number(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_start_matches(|c| u8::try_from(c).is_ok_and(is_blank));
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, base).ok() }
}

/// What a line grants, as shadow 4.20 reads it.
pub fn grant(line: &[u8]) -> Option<Grant<'_>> {
    if let Some((owner, start, count, _)) = plain(line) {
        return Some(Grant { owner, range: granted(start, count)? });
    }
    let fields: [&[u8]; 3] = three_fields(line)?;
    let owner = fields[0];
    if owner.is_empty() || matches!(owner[0], b'+' | b'-') || line.len() > MAX_LINE {
        return None;
    }
    Some(Grant { owner, range: granted(shadow_number(fields[1])?, shadow_number(fields[2])?)? })
}

fn three_fields(line: &[u8]) -> Option<[&[u8]; 3]> {
    let mut fields = line.split(|b| *b == b':');
    let three = [fields.next()?, fields.next()?, fields.next()?];
    fields.next().is_none().then_some(three)
}

/// As many of `count` ids from `start` on as there are: a parser may cut what
/// leaves 32 bits.
pub(crate) fn clipped(start: u64, count: u64) -> Option<Range> {
    Range::new(start, count.min(u64::from(u32::MAX).saturating_sub(start)))
}

/// The ids that shadow 4.20 takes from `count` of them from `start` on, as far as
/// a map can have them: it takes 4294967295, too, which none can.
pub fn granted(start: u64, count: u64) -> Option<Range> {
    let range = clipped(start, count)?;
    (count <= u64::from(u32::MAX) && count - u64::from(range.count) <= 1).then_some(range)
}

/// Every range that some parser may read in a line: numbers in base 0 and in
/// base 10, fields after the third and blanks around any ignored.
pub fn readings(line: &[u8], mut each: impl FnMut(Range)) {
    if let Some((_, start, count, _)) = plain(line) {
        clipped(start, count).into_iter().for_each(each);
        return;
    }
    let mut fields = line.split(|b| *b == b':').map(trimmed);
    let (Some(_), Some(start), Some(count)) = (fields.next(), fields.next(), fields.next()) else { return };
    let decimal = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let both = |field: &[u8]| {
        let (shadow, other) = (shadow_number(field), decimal(field));
        [shadow, other.filter(|_| other != shadow)].into_iter().flatten()
    };
    for start in both(start) {
        both(count).filter_map(|count| clipped(start, count)).for_each(&mut each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_plain_lines() {
        let number = |text: &str| digits(text.as_bytes()).map(|(value, many)| (value, text.len() - many));
        for text in
            ["7", "42", "1234567", "12345678", "123456789", "4294967295", "9999999999999999999", "10000000", "90000009"]
        {
            for end in ["", ":", ":1:2345678", "\n", "\u{ff}\u{ff}99999999", "/", "a"] {
                let wanted = Some((text.parse().unwrap(), end.len()));
                assert_eq!(number(&format!("{text}{end}")), wanted, "{text}{end}");
            }
        }
        for text in ["", "00", "0100", "012345678", ":1234567", "99999999999999999999", "x"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert_eq!(number("0"), Some((0, 0)));
        // Every length and every digit in every place.
        for n in (0..20).map(|n| 1 << n).chain((0..2_000_000).step_by(977)) {
            assert_eq!(number(&format!("{n}:xxxxxxx")), Some((n, 8)), "{n}");
        }
    }
}

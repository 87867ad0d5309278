//! Comparing what was expected with what came.

use crate::script::Want;
use crate::varies::Varies;

const FREE: &str = " (~)";
const GLOB: &str = " (glob)";

/// Where each expected line stands in the output, if this is as expected.
pub(crate) fn lines(want: &[Want], got: &[String], varies: &Varies) -> Option<Vec<usize>> {
    align(want, got, |want| want.text == "...", |want, got| same(&want.text, got, varies))
}

/// Whether this is as expected but for reasons of refusals that are not given.
pub(crate) fn lines_but_reasons(want: &[Want], got: &[String], varies: &Varies) -> bool {
    let is_reason = |line: &str| line.starts_with("  because: ") || line.starts_with("  try: ");
    let mut got = got.iter().peekable();
    let found = |want: &Want| got.next_if(|got| same(&want.text, got, varies)).is_some() || is_reason(&want.text);
    want.iter().all(found) && got.next().is_none()
}

/// What was expected (-) and what came (+), without the difference where there is none.
pub(crate) fn difference(want: &[Want], got: &[String], varies: &Varies) -> Vec<String> {
    let same = |(want, got): &(&Want, &String)| same(&want.text, got, varies);
    let head = want.iter().zip(got).take_while(same).count();
    let (want, rest) = (&want[head..], &got[head..]);
    let tail = want.iter().rev().zip(rest.iter().rev()).take_while(same).count();
    let (came, after) = rest.split_at(rest.len() - tail);
    let mut told = Vec::new();
    told.extend(got[..head].iter().map(|line| format!(" {}", visible(line))));
    told.extend(want[..want.len() - tail].iter().map(|want| format!("-{}", visible(&want.text))));
    told.extend(came.iter().map(|line| format!("+{}", visible(line))));
    told.extend(after.iter().map(|line| format!(" {}", visible(line))));
    told
}

/// Puts what came into the lines whose numbers are free to vary; no other line is ever changed.
pub(crate) fn record(file: &mut [String], want: &[Want], got: &[String], places: &[usize]) {
    for (want, &place) in want.iter().zip(places).filter(|(want, _)| want.text.ends_with(FREE)) {
        let line = &mut file[want.line - 1];
        line.truncate(line.len() - want.text.len());
        line.push_str(got[place].strip_suffix(FREE).unwrap_or(&got[place]));
        line.push_str(FREE);
    }
}

/// Whether a line is as expected. A line that itself ends like a mark is expected as it is.
fn same(want: &str, got: &str, varies: &Varies) -> bool {
    if let Some(free) = want.strip_suffix(FREE) {
        return want == got || loose(free) == loose(got);
    }
    if let Some(glob) = want.strip_suffix(GLOB) {
        let pattern: Vec<char> = glob.chars().collect();
        let letters: Vec<char> = got.chars().collect();
        return want == got || align(&pattern, &letters, |c| *c == '*', char::eq).is_some();
    }
    want == got || varies.fits(want, got)
}

/// The line with every number and every stretch of blanks replaced by a token.
fn loose(line: &str) -> String {
    let mut tokens: Vec<char> = line.trim().chars().collect();
    for token in &mut tokens {
        match *token {
            '0'..='9' => *token = '0',
            '\t' => *token = ' ',
            _ => {}
        }
    }
    tokens.dedup_by(|a, b| a == b && matches!(b, '0' | ' '));
    tokens.into_iter().collect()
}

/// Where each element of the pattern `want` stands in `got`, if `got` follows it; `star` says
/// which elements stand for any number of others.
fn align<W, G>(want: &[W], got: &[G], star: impl Fn(&W) -> bool, same: impl Fn(&W, &G) -> bool) -> Option<Vec<usize>> {
    let mut places = vec![0; want.len()];
    let (mut w, mut g) = (0, 0);
    // The last star, and where what it stands for ends: when all else fails it takes one more.
    let mut last: Option<(usize, usize)> = None;
    while w < want.len() || g < got.len() {
        if w < want.len() && star(&want[w]) {
            last = Some((w, g));
            places[w] = g;
            w += 1;
        } else if w < want.len() && g < got.len() && same(&want[w], &got[g]) {
            places[w] = g;
            (w, g) = (w + 1, g + 1);
        } else {
            let (star, end) = last.filter(|&(_, end)| end < got.len())?;
            last = Some((star, end + 1));
            (w, g) = (star + 1, end + 1);
        }
    }
    Some(places)
}

/// The line with what cannot be seen made visible.
fn visible(line: &str) -> String {
    let mut shown = String::new();
    for letter in line.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

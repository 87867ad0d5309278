//! Commands for sed(1) that go by what a line says, not by its number: others
//! that are pasted before them may add lines, or take some away.

use std::fmt::Write as _;

use common::word::quote;

/// Deletes the lines of `path` that read `line`.
pub(crate) fn delete(path: &str, line: &[u8]) -> String {
    command(path, &format!("/^{}$/d", pattern(line)))
}

/// Deletes those that come after the first.
pub(crate) fn delete_again(path: &str, line: &[u8]) -> String {
    let line = pattern(line);
    command(path, &format!("0,/^{line}$/!{{/^{line}$/d}}"))
}

/// Puts `new` in the place of each that reads `line`.
pub(crate) fn replace(path: &str, line: &[u8], new: &str) -> String {
    command(path, &format!("s/^{}$/{}/", pattern(line), replacement(new)))
}

/// Does what `script` says to `path`.
pub(crate) fn command(path: &str, script: &str) -> String {
    // Elsewhere a byte that is a part of no letter matches nothing.
    let locale = if script.contains("\\x") { "env LC_ALL=C " } else { "" };
    format!("sudo {locale}sed -i {} {}", quote(script), quote(path))
}

/// The regular expression of `line`; bytes that no terminal should see as `\xHH`.
fn pattern(line: &[u8]) -> String {
    let plain = std::str::from_utf8(line).ok().filter(|text| !text.chars().any(char::is_control));
    let chars: Vec<char> = plain.map_or_else(|| line.iter().map(|b| char::from(*b)).collect(), |t| t.chars().collect());
    let mut text = String::new();
    for c in chars {
        if matches!(c, '\\' | '.' | '*' | '[' | '^' | '$' | '/') {
            text.push('\\');
        }
        if plain.is_some() || matches!(c, ' '..='~') {
            text.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{:02x}", u32::from(c));
        }
    }
    text
}

/// A line as sed(1) is to put it in place of another.
pub(crate) fn replacement(line: &str) -> String {
    let mut text = String::new();
    for c in line.chars() {
        if matches!(c, '\\' | '&' | '/') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

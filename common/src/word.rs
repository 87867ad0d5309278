//! Words as a shell reads them back: for plans, failures and `try` lines.

use std::ffi::{CString, OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::fail::{Failure, Result};

/// `word` as it can be pasted into bash, zsh, ksh or fish: bare, in single
/// quotes, or (with bytes that no terminal should see) in `$'...'`.
pub fn quote(word: impl AsRef<OsStr>) -> String {
    let bytes = word.as_ref().as_bytes();
    let bare = |b: &u8| b.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(b);
    if !bytes.is_empty() && bytes.iter().all(bare) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() || c == '\'') => format!("'{text}'"),
        _ => dollar_quote(bytes),
    }
}

fn dollar_quote(bytes: &[u8]) -> String {
    let mut out = String::from("$'");
    for b in bytes {
        match b {
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b'\'' | b'\\' => {
                out.push('\\');
                out.push(char::from(*b));
            }
            0x20..0x7f => out.push(char::from(*b)),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "\\x{b:02x}")),
        }
    }
    out.push('\'');
    out
}

/// `words` quoted, with blanks between.
pub fn quote_all<W: AsRef<OsStr>>(words: &[W]) -> String {
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// What mountinfo(5) and fstab(5) write as `\040` and the like: three octal
/// digits for a byte.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let (value, length) = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 3)
            }
            _ => (*first, 0),
        };
        bytes.push(value);
        rest = &after[length..];
    }
    bytes
}

/// The command that this process was started by, with one more option: what a
/// failure advises. None for a stage of a pipeline, which is not one by itself, and
/// where the option is there already.
pub fn again(option: &str) -> Option<String> {
    let line = before_others(option);
    (!line.iter().skip(2).any(|word| word == "-" || word == option)).then(|| format!("{}{}", sudo(), quote_all(&line)))
}

/// The words that this process was started by, with one more before the others.
pub fn before_others(option: &str) -> Vec<OsString> {
    let mut words = std::env::args_os();
    let first = words.next().into_iter().chain([option.into()]);
    first.chain(words).collect()
}

/// Whoever came through sudo(8) has to come through it again.
pub fn sudo() -> &'static str {
    if std::env::var_os("SUDO_COMMAND").is_some() { "sudo " } else { "" }
}

/// `word` as the kernel takes it.
///
/// # Errors
/// Wrong usage: a NUL byte (possible only in what a file said, not in argv).
pub fn c(word: impl AsRef<OsStr>) -> Result<CString> {
    let word: OsString = word.as_ref().to_owned();
    CString::new(word.into_vec()).map_err(|e| Failure::usage(format!("NUL byte in {:?}", e.into_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_bytes() {
        for (text, wanted) in
            [(&b"/a\\040b\\134"[..], &b"/a b\\"[..]), (b"/a\\9", b"/a\\9"), (b"\\+07\\777\\04", b"\\+07\\777\\04")]
        {
            assert_eq!(unescape(text), wanted);
        }
    }

    #[test]
    fn quoted_words() {
        for (word, wanted) in [
            (&b"/bin/sh"[..], "/bin/sh"),
            (b"", "''"),
            (b"a b", "'a b'"),
            (b"it's", "$'it\\'s'"),
            (b"\xff\n", "$'\\xff\\n'"),
            ("größe".as_bytes(), "'größe'"),
            (b"*", "'*'"),
            (b"~", "'~'"),
        ] {
            assert_eq!(quote(OsStr::from_bytes(word)), wanted);
        }
    }
}

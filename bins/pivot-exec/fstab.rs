//! Lines of fstab(5), read: pure functions from bytes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use common::step::tree::attribute;
use common::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use common::word::unescape;

/// A line, without its last two fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) source: OsString,
    pub(crate) at: OsString,
    pub(crate) fstype: String,
    pub(crate) options: Vec<OsString>,
}

impl Line {
    pub(crate) fn has(&self, words: &[&str]) -> bool {
        self.options.iter().any(|o| words.iter().any(|word| o == word))
    }

    /// MOUNT_ATTR_* bits: what cannot do harm unless it is asked for.
    pub(crate) fn attributes(&self) -> u64 {
        let mut all = match self.fstype.as_str() {
            "proc" | "sysfs" | "cgroup" | "cgroup2" | "mqueue" => {
                MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
            }
            "devpts" => MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            _ => MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        };
        for word in self.options.iter().filter_map(|o| o.to_str()) {
            all |= attribute(word);
            all &= !match word {
                "rw" => attribute("ro"),
                "relatime" => attribute("noatime"),
                other => attribute(&format!("no{other}")),
            };
        }
        all
    }
}

/// The lines of a file but for comments.
///
/// # Errors
/// The number of the first one that is wrong, and what is.
pub(crate) fn lines(bytes: &[u8]) -> Result<Vec<Line>, (usize, String)> {
    let all = (1..).zip(bytes.split(|b| *b == b'\n'));
    let said = all.filter(|(_, line)| fields(line).next().is_some_and(|first| !first.starts_with(b"#")));
    said.map(|(n, line)| parse(line).map_err(|what| (n, what))).collect()
}

/// As getmntent(3) sees them: between blanks and tabs.
fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b' ' || *b == b'\t').filter(|field| !field.is_empty())
}

/// Reads one line that is no comment.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Line, String> {
    let fields: Vec<OsString> = fields(line).map(|f| OsString::from_vec(unescape(f))).collect();
    if fields.iter().any(|field| field.as_bytes().contains(&0)) {
        return Err("a NUL byte".to_owned());
    }
    let (source, at, fstype, options) = match fields.as_slice() {
        [source, at, fstype] => (source, at, fstype, None),
        [source, at, fstype, options] | [source, at, fstype, options, _] | [source, at, fstype, options, _, _] => {
            (source, at, fstype, Some(options))
        }
        _ => return Err("a line has three to six fields: SOURCE PATH TYPE OPTIONS".to_owned()),
    };
    let options = options.map_or(&b""[..], |o| o.as_bytes()).split(|b| *b == b',').filter(|o| !o.is_empty());
    let options: Vec<OsString> = options.map(|o| OsStr::from_bytes(o).to_owned()).collect();
    let fstype = fstype.to_str().ok_or("the type is not UTF-8")?.to_owned();
    let at = place(at).ok_or("an empty PATH")?;
    let line = Line { source: source.clone(), at, fstype, options };
    if (line.fstype == "none" || line.fstype == "bind") && !line.has(&["bind", "rbind"]) {
        return Err(format!("type {} goes with the option bind or rbind", line.fstype));
    }
    Ok(line)
}

/// A place in the new root as it was typed: whatever it is, a slash at its end
/// says no more. Empty it is none.
pub(crate) fn place(word: &OsStr) -> Option<OsString> {
    let kept = word.as_bytes().iter().rposition(|b| *b != b'/').map_or(1, |last| last + 1);
    word.as_bytes().get(..kept).map(|bytes| OsStr::from_bytes(bytes).to_owned())
}

/// The same of what is made: it needs a name.
pub(crate) fn entry(word: &OsStr) -> Option<OsString> {
    place(word).filter(|at| Path::new(at).file_name().is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines() {
        let line = parse(b"/a\\040b\t/c\\134 none rbind,ro 0 0").ok().unwrap();
        assert_eq!((line.source.to_str(), line.at.to_str()), (Some("/a b"), Some("/c\\")));
        assert_eq!(line.attributes(), attribute("ro") | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
        assert!(parse(b"a b").is_err() && parse(b"a b c d 0 0 0").is_err() && parse(b"a /b none ro").is_err());
        assert_eq!(parse(b"tmpfs /t tmpfs suid,dev,ro,rw").ok().unwrap().attributes(), 0);
    }
}

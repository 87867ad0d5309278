//! Who reads a line of /etc/subuid how. Seven parsers are in use: shadow
//! (newuidmap, getsubids), containers/storage (podman, buildah), moby/sys/user
//! (docker, rootlesskit), unshare --map-auto, crun, LXC, incus. Only a plain
//! line means the same to all of them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use common::subid::{grant, granted, is_blank, shadow_number, trimmed};
use common::word::quote;

/// What is odd about a line, in a sentence; and how the line should read, if
/// it is clear what was meant.
pub(crate) struct Oddity {
    pub(crate) text: String,
    pub(crate) plain: Option<String>,
}

fn oddity(text: impl Into<String>) -> Oddity {
    Oddity { text: text.into(), plain: None }
}

/// What two of the seven read differently in `line`.
pub(crate) fn oddities(line: &[u8]) -> Vec<Oddity> {
    if line.is_empty() {
        return Vec::new();
    }
    if line.len() > 1023 {
        return vec![oddity("longer than the 1023 bytes that shadow reads")];
    }
    match line[0] {
        b'#' => return vec![oddity("a comment: moby takes it for a grant of nothing, all others skip it")],
        b'+' | b'-' => return vec![oddity("shadow skips the line, and writes new lines only behind it")],
        _ => {}
    }
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    let [owner, start, count, more @ ..] = fields.as_slice() else {
        return vec![oddity("not OWNER:START:COUNT: no program reads a grant in it")];
    };
    let mut found: Vec<Oddity> = blanks(line, owner, start, count).into_iter().chain(numbers(start, count)).collect();
    if !more.is_empty() {
        found.push(oddity(
            "more than three fields: moby, crun and incus read the first three, shadow 4.20 skips the line, podman rejects the whole file, unshare --map-auto fails",
        ));
    }
    if found.is_empty() && grant(line).is_none() {
        found.push(oddity("not OWNER:START:COUNT: shadow skips the line"));
    }
    // With an octal number nobody can tell what was meant.
    let octal = |field: &&[u8]| trimmed(field).len() > 1 && trimmed(field).starts_with(b"0");
    let plain = if octal(start) || octal(count) { None } else { plain(owner, start, count) };
    for each in &mut found {
        each.plain.clone_from(&plain);
    }
    found
}

fn blanks(line: &[u8], owner: &[u8], start: &[u8], count: &[u8]) -> Option<Oddity> {
    let blank = |b: Option<&u8>| b.is_some_and(|b| is_blank(*b));
    if line.ends_with(b"\r") || blank(line.last()) {
        return Some(oddity(
            "a blank at the end: podman, moby and crun read the grant, shadow and incus skip the line, LXC warns, unshare --map-auto fails",
        ));
    }
    if blank(owner.first()) || blank(owner.last()) {
        return Some(oddity("a blank beside the owner, which shadow takes for a part of the name"));
    }
    (blank(start.first()) || blank(count.first()) || start.starts_with(b"+") || count.starts_with(b"+"))
        .then(|| oddity("a blank or + before a number, which shadow skips and a parser of decimals may not"))
}

fn numbers(start: &[u8], count: &[u8]) -> Vec<Oddity> {
    let mut found = Vec::new();
    for field in [start, count].map(trimmed) {
        let text = quote(OsStr::from_bytes(field));
        if field.starts_with(b"0x") || field.starts_with(b"0X") {
            found.push(oddity(format!(
                "{text} is hexadecimal: shadow and LXC read it, moby and crun read 0, incus skips the line, podman rejects the whole file, unshare --map-auto fails"
            )));
        } else if field.len() > 1 && field.starts_with(b"0") && field.iter().all(u8::is_ascii_digit) {
            let octal = shadow_number(field).map_or_else(|| "nothing".to_owned(), |n| n.to_string());
            found.push(oddity(format!(
                "{text} is {octal} to shadow and LXC, which take it for octal, and {} to all others",
                text.trim_start_matches('0')
            )));
        }
    }
    let (first, many) = (shadow_number(start), shadow_number(count));
    match (first, many) {
        (_, Some(0)) => found.push(oddity("a grant of no ids")),
        (Some(first), Some(many)) if first > 0 && first.checked_add(many) == Some(1 << 32) => {
            found.push(oddity("it has id 4294967295, which no map can have"));
        }
        (Some(first), Some(many)) if granted(first, many).is_none() => {
            found.push(oddity("it goes beyond id 4294967294, which no map can have: shadow 4.20 skips the line"));
        }
        _ => {}
    }
    found
}

/// The plain form of a line whose numbers shadow can read.
fn plain(owner: &[u8], start: &[u8], count: &[u8]) -> Option<String> {
    let owner = std::str::from_utf8(trimmed(owner)).ok().filter(|owner| !owner.is_empty())?;
    let owner = Some(owner).filter(|owner| !owner.starts_with(['+', '-', '#']))?;
    let range = granted(shadow_number(trimmed(start))?, shadow_number(trimmed(count))?)?;
    Some(format!("{owner}:{}:{}", range.first, range.count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> String {
        oddities(line.as_bytes()).iter().map(|o| o.text.as_str()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_plain_line_is_the_same_to_all() {
        for line in ["alice:100000:65536", "1501:1:1", "", "a b:5:6"] {
            assert_eq!(told(line), "", "{line}");
        }
    }

    #[test]
    fn each_row_of_the_table_has_its_sentence() {
        for (line, part) in [
            ("alice:1:2 ", "a blank at the end"),
            ("alice:1:2\r", "a blank at the end"),
            ("alice:1:2:", "more than three fields"),
            ("alice:0100:1", "0100 is 64 to shadow and LXC, which take it for octal, and 100 to all others"),
            ("alice:0x10:1", "0x10 is hexadecimal"),
            (" alice:1:2", "beside the owner"),
            ("alice: 1:2", "before a number"),
            ("# x", "a comment"),
            ("+alice:1:2", "only behind it"),
            ("alice:1:0", "no ids"),
            ("alice:4294967295:1", "it has id 4294967295"),
            ("alice:4294967000:296", "it has id 4294967295"),
            ("alice:4294967000:297", "beyond id 4294967294"),
            ("alice:0:4294967296", "beyond id 4294967294"),
            ("alice:-1:5", "shadow skips the line"),
            ("alice:1", "no program"),
            (&"x".repeat(2000), "1023"),
        ] {
            assert!(told(line).contains(part), "{line}: {}", told(line));
        }
    }

    #[test]
    fn what_was_meant() {
        let plain = |line: &str| oddities(line.as_bytes()).into_iter().find_map(|o| o.plain);
        assert_eq!(plain(" alice: 100:1 ").as_deref(), Some("alice:100:1"));
        assert_eq!(plain("alice:0100:1 "), None);
        assert_eq!(plain("alice:1:0"), None);
        assert_eq!(plain(" +alice:1:1"), None);
        assert_eq!(plain("alice:4294967000:296").as_deref(), Some("alice:4294967000:295"));
        assert_eq!(plain("alice:4294967295:1"), None);
        assert_eq!(plain("alice:4294967000:297"), None);
    }
}

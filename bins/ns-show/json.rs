//! The same answers for programs: JSON (RFC 8259), an object a line.

use std::ffi::OsStr;
use std::fmt::Write as _;

use common::id::{Both, Extent, Kind as IdKind};
use common::ns::INITIAL_USER;
use common::scan::Space;

use crate::process::{Process, SETS, named};
use crate::tree::Overview;

/// A text that grows. In an object everything has a key, in a list it is "".
#[derive(Default)]
struct Json {
    text: String,
    /// Something stands before, so that a comma has to.
    after: bool,
}

impl Json {
    fn key(&mut self, key: &str) {
        self.text.push_str(if self.after { ", " } else { "" });
        self.after = true;
        if !key.is_empty() {
            self.quoted(key);
            self.text.push_str(": ");
        }
    }

    fn quoted(&mut self, value: &str) {
        self.text.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => self.text.extend(['\\', c]),
                // Writing to a String cannot fail. DEL and C1 may stand there
                // by the RFC, but not on a terminal.
                c if c.is_control() => drop(write!(self.text, "\\u{:04x}", u32::from(c))),
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn word(&mut self, key: &str, value: impl AsRef<OsStr>) {
        self.key(key);
        // JSON is UTF-8: U+FFFD stands for what is not.
        self.quoted(&value.as_ref().to_string_lossy());
    }

    /// A number or `true`, as it stands; nothing where it is not known.
    fn bare(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.key(key);
            self.text.push_str(value);
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        self.bare(key, value.map(|n| n.to_string()).as_deref());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.bare(key, Some(if value { "true" } else { "false" }));
    }

    fn open(&mut self, key: &str, bracket: char) {
        self.key(key);
        self.text.push(bracket);
        self.after = false;
    }

    fn close(&mut self, bracket: char) {
        self.text.push(bracket);
        self.after = true;
    }

    /// A line of its own, for an object in a list.
    fn line(&mut self) {
        self.key("");
        self.text.push_str("\n{");
        self.after = false;
    }

    fn numbers(&mut self, key: &str, values: &[u32]) {
        self.open(key, '[');
        values.iter().for_each(|n| self.number("", Some(u64::from(*n))));
        self.close(']');
    }

    /// `[[INSIDE, OUTSIDE, COUNT], ...]`
    fn maps(&mut self, both: &Both<Vec<Extent>>) {
        for kind in IdKind::BOTH {
            self.open(kind.map_file(), '[');
            both.of(kind).iter().for_each(|e| self.numbers("", &[e.inside, e.outside, e.count]));
            self.close(']');
        }
    }

    /// `[{A: N, B: N}, ...]`
    fn pairs(&mut self, key: &str, (a, b): (&str, &str), pairs: &[(i32, i32)]) {
        self.open(key, '[');
        for pair in pairs {
            self.open("", '{');
            self.number(a, u64::try_from(pair.0).ok());
            self.number(b, u64::try_from(pair.1).ok());
            self.close('}');
        }
        self.close(']');
    }

    fn space(&mut self, all: &Overview, space: &Space) {
        let inode = space.inode;
        self.line();
        self.word("kind", space.kind.link());
        self.number("inode", Some(inode));
        self.number("id", space.id);
        self.number("owner", space.owner);
        self.number("parent", space.parent);
        self.number("owner_uid", space.owner_uid.map(u64::from));
        self.flag("initial", inode == INITIAL_USER);
        self.flag("ours", all.is_ours(inode));
        self.open("processes", '[');
        space.processes.iter().for_each(|pid| self.number("", u64::try_from(*pid).ok()));
        self.close(']');
        self.pairs("threads", ("pid", "tid"), &space.threads);
        self.pairs("descriptors", ("pid", "fd"), &space.descriptors);
        self.open("mounts", '[');
        for (inside, point) in &space.mounts {
            self.open("", '{');
            self.number("mnt", Some(*inside));
            self.word("path", point);
            self.close('}');
        }
        self.close(']');
        if let Some(both) = all.maps(inode) {
            self.maps(both);
        }
        self.close('}');
    }

    fn bytes(mut self) -> Vec<u8> {
        self.text.push('\n');
        self.text.into_bytes()
    }
}

/// All namespaces, or the one with this inode.
pub(crate) fn overview(all: &Overview, only: Option<u64>) -> Vec<u8> {
    let mut json = Json::default();
    json.open("", '{');
    json.open("namespaces", '[');
    let wanted = all.scan.spaces.iter().filter(|space| only.is_none_or(|inode| inode == space.inode));
    wanted.for_each(|space| json.space(all, space));
    json.close(']');
    json.open("not_seen", '{');
    json.number("processes", u64::try_from(all.scan.hidden).ok());
    json.number("descriptors", u64::try_from(all.scan.closed).ok());
    json.number("mounts", u64::try_from(all.scan.unread).ok());
    json.close('}');
    json.close('}');
    json.bytes()
}

pub(crate) fn process(it: &Process) -> Vec<u8> {
    let mut json = Json::default();
    json.open("", '{');
    json.word("address", it.target.address.to_string());
    json.number("pid", u64::try_from(it.target.pid).ok());
    json.word("name", &it.name);
    json.numbers("uid", &it.numbers("Uid"));
    json.numbers("gid", &it.numbers("Gid"));
    json.numbers("groups", &it.numbers("Groups"));
    json.numbers("pids", &it.numbers("NSpid"));
    json.open("capabilities", '{');
    for (key, name) in SETS {
        json.open(name, '[');
        named(it.set(key)).iter().for_each(|name| json.word("", name));
        json.close(']');
    }
    json.close('}');
    json.flag("no_new_privs", it.field("NoNewPrivs") == "1");
    json.number("seccomp", it.numbers("Seccomp").first().copied().map(u64::from));
    if let Some(label) = &it.label {
        json.word("label", label);
    }
    json.word("cgroup", &it.cgroup);
    json.word("setgroups", &it.setgroups);
    json.maps(&it.maps);
    json.open("namespaces", '[');
    for space in &it.spaces {
        json.line();
        json.word("kind", space.link());
        json.number("inode", Some(space.inode));
        json.number("id", space.told.id);
        json.number("owner", space.told.owner);
        json.flag("shared", space.shared);
        json.close('}');
    }
    json.close(']');
    json.open("levels", '[');
    for level in &it.levels {
        json.line();
        json.number("inode", Some(level.inode));
        json.number("owner_uid", Some(level.owner.into()));
        json.maps(&level.maps);
        json.close('}');
    }
    json.close(']');
    json.open("idmapped_mounts", '[');
    for (point, both) in &it.mounts {
        json.line();
        json.word("path", point);
        both.iter().for_each(|both| json.maps(both));
        json.close('}');
    }
    json.close(']');
    json.close('}');
    json.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_rfc_has_it() {
        let mut json = Json::default();
        json.open("", '{');
        json.numbers("a", &[0, 4_294_967_295]);
        json.number("b", None);
        json.numbers("c", &[]);
        json.word("d", "\"\\\n\u{1b}\u{9b}ö");
        json.open("e", '[');
        json.line();
        json.flag("f", true);
        json.close('}');
        json.line();
        json.close('}');
        json.close(']');
        json.close('}');
        let wanted = "{\"a\": [0, 4294967295], \"c\": [], \"d\": \"\\\"\\\\\\u000a\\u001b\\u009bö\", \
                      \"e\": [\n{\"f\": true}, \n{}]}\n";
        assert_eq!(String::from_utf8(json.bytes()).unwrap(), wanted);
    }
}

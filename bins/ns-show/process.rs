//! One process against ours: who it is, what it may, and each of its
//! namespaces.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use common::fail::{Failure, Result};
use common::id::{Both, Extent, Kind as IdKind, Range};
use common::mounted::{self, Mounted};
use common::ns::{INITIAL_USER, Kind};
use common::proc::Proc;
use common::scan::{Told, told};
use common::step::program::capability_names;
use common::target::{self, Target};
use common::word::quote;

use crate::draw::{Row, intervals};
use crate::level::{Level, columns, levels, read_maps, reverse};
use crate::tree::Names;

/// One of its namespaces.
pub(crate) struct In {
    pub(crate) kind: Kind,
    /// Whether only its children will be born there (`pid_for_children`).
    of_children: bool,
    pub(crate) inode: u64,
    pub(crate) told: Told,
    pub(crate) shared: bool,
}

impl In {
    /// Its name below /proc/PID/ns.
    pub(crate) fn link(&self) -> &'static str {
        if self.of_children { "pid_for_children" } else { self.kind.link() }
    }
}

/// A process, as far as it can be seen.
pub(crate) struct Process {
    pub(crate) target: Rc<Target>,
    /// What it calls itself: any bytes.
    pub(crate) name: OsString,
    /// The whole of /proc/PID/status.
    status: String,
    pub(crate) spaces: Vec<In>,
    /// From its user namespace up to ours.
    pub(crate) levels: Vec<Level>,
    /// The maps of its user namespace, as /proc shows them.
    pub(crate) maps: Both<Vec<Extent>>,
    pub(crate) setgroups: String,
    pub(crate) cgroup: OsString,
    /// Idmapped mounts: where, and the maps where the kernel tells them.
    pub(crate) mounts: Vec<(OsString, Option<Both<Vec<Extent>>>)>,
    pub(crate) label: Option<String>,
}

/// The sets, as /proc names them and as capabilities(7) does.
pub(crate) const SETS: [(&str, &str); 5] = [
    ("CapEff", "effective"),
    ("CapPrm", "permitted"),
    ("CapInh", "inheritable"),
    ("CapAmb", "ambient"),
    ("CapBnd", "bounding"),
];

/// The names of the capabilities in a set; the number of one that is newer than
/// this program.
pub(crate) fn named(set: u64) -> Vec<String> {
    let name = |n: u32| Some(capability_names(1 << n)).filter(|name| name != "none").unwrap_or_else(|| n.to_string());
    (0..64).filter(|n| set >> n & 1 == 1).map(name).collect()
}

/// A set in words; `last` is the last one that the kernel knows.
fn said(set: u64, last: u64) -> String {
    let all = u64::MAX >> (63 - last.min(63));
    let (has, lacks) = (named(set & all), named(all & !set));
    match (has.len(), lacks.len()) {
        (0, _) => "none".to_owned(),
        (n, 0) => format!("all {n}"),
        (n, m) if m < n => format!("all but {}", lacks.join(", ")),
        (_, _) => has.join(", "),
    }
}

/// The name of a process or thread, as it has chosen it: any bytes.
pub(crate) fn name_in(mut comm: Vec<u8>) -> OsString {
    comm.truncate(comm.strip_suffix(b"\n").unwrap_or(&comm).len());
    OsString::from_vec(comm)
}

impl Process {
    /// Looks at a process. What cannot be seen of it is no answer: it would look
    /// like what is not there.
    pub(crate) fn look(proc: &Rc<Proc>, target: Rc<Target>) -> Result<Process> {
        let mut spaces = Vec::new();
        for kind in Kind::ALL {
            if target::files::namespace_of(proc, &target, kind)?.is_none() {
                continue;
            }
            let own = target::files::namespace(proc, &target, kind)?;
            let apart = if kind == Kind::Pid { target::files::pid_namespace_apart(&target)? } else { None };
            let not_told = |e| Failure::os(format!("look at the {} namespace of {}", kind.link(), target.pid), e);
            for (of_children, file) in std::iter::once((false, own)).chain(apart.map(|file| (true, file))) {
                let (inode, told) = (target::files::inode(&file)?, told(&file).map_err(not_told)?);
                let shared = proc.own_ns(kind)? == Some(inode);
                spaces.push(In { kind, of_children, inode, told, shared });
            }
        }
        let read = |name: &str| {
            let failed = |e| Failure::os(format!("read /proc/{}/{name}", target.pid), e).because(target.ended());
            target::files::read(&target, name).map_err(failed)
        };
        let text = |name: &str| Ok(String::from_utf8_lossy(&read(name)?).into_owned());
        let cgroup = read("cgroup")?;
        let mut lines = cgroup.split(|b| *b == b'\n');
        let first = lines.clone().next().filter(|line| !line.is_empty());
        let cgroup = lines.find_map(|line| line.strip_prefix(b"0::")).or(first).unwrap_or(b"?");
        // Most kernels have no security module that knows labels: EINVAL, ENOENT.
        let label = target::files::read(&target, "attr/current").unwrap_or_default();
        let label = String::from_utf8_lossy(&label).trim_matches(['\0', '\n']).to_owned();
        Ok(Process {
            name: name_in(read("comm")?),
            status: text("status")?,
            spaces,
            levels: levels(proc, &target)?,
            maps: read_maps(proc, &target.who())?,
            setgroups: text("setgroups")?.trim().to_owned(),
            cgroup: OsStr::from_bytes(cgroup).to_owned(),
            mounts: idmapped(proc, &target.who()),
            label: Some(label).filter(|l| !l.is_empty()),
            target,
        })
    }

    /// A line of /proc/PID/status.
    pub(crate) fn field(&self, key: &str) -> &str {
        let value = |line: &'_ str| line.strip_prefix(key)?.strip_prefix(':').map(str::len);
        self.status.lines().find_map(|line| value(line).map(|n| line[line.len() - n..].trim())).unwrap_or("")
    }

    pub(crate) fn numbers(&self, key: &str) -> Vec<u32> {
        self.field(key).split_whitespace().filter_map(|w| w.parse().ok()).collect()
    }

    fn ids(&self, kind: IdKind) -> Vec<u32> {
        self.numbers(if kind == IdKind::Uid { "Uid" } else { "Gid" })
    }

    pub(crate) fn set(&self, key: &str) -> u64 {
        u64::from_str_radix(self.field(key), 16).unwrap_or(0)
    }

    pub(crate) fn user_inode(&self) -> u64 {
        self.spaces.iter().find(|s| s.kind == Kind::User).map_or(0, |s| s.inode)
    }

    fn shares(&self, wanted: Kind) -> bool {
        self.spaces.iter().any(|s| s.kind == wanted && s.shared)
    }

    pub(crate) fn text(&self, proc: &Proc, names: &Names, width: Option<usize>) -> String {
        let mut text = format!("process {} ({})\n", self.target.address, quote(&self.name));
        self.credentials(proc, names, &mut text);
        self.namespaces(names, &mut text);
        self.id_maps(width, &mut text);
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "  setgroups    {}", self.setgroups);
        if !self.mounts.is_empty() {
            let _ = writeln!(text, "\n  idmapped mounts");
        }
        for (point, maps) in &self.mounts {
            let _ = writeln!(text, "  {}", quote(point));
            let Some(maps) = maps else {
                let _ = writeln!(text, "    the map is told since Linux 6.15");
                continue;
            };
            for kind in IdKind::BOTH {
                for e in maps.of(kind) {
                    let _ =
                        writeln!(text, "    {} {} on disk = {} seen from here", kind.word(), e.inside(), e.outside());
                }
            }
        }
        text
    }

    fn credentials(&self, proc: &Proc, names: &Names, text: &mut String) {
        let (uids, gids) = (self.ids(IdKind::Uid), self.ids(IdKind::Gid));
        let mut line = |key: &str, value: String| text.push_str(&format!("  {key:<12} {value}\n"));
        line("run by", uids.get(1).map_or_else(|| "?".to_owned(), |uid| names.user(*uid)));
        for (key, ids) in [("uid", &uids), ("gid", &gids)] {
            if ids.iter().any(|id| Some(id) != ids.first()) {
                let parts = ["real", "effective", "saved", "file system"].iter().zip(ids);
                line(key, parts.map(|(word, id)| format!("{word} {id}")).collect::<Vec<_>>().join(", "));
            }
        }
        let inside = |kind| {
            let id = *self.ids(kind).get(1)?;
            Some(format!(
                "{} {}",
                kind.word(),
                crate::level::up_down(self.levels.get(..1)?, kind, id).first()?.as_ref()?
            ))
        };
        if !self.shares(Kind::User) {
            let ids: Vec<String> = IdKind::BOTH.into_iter().filter_map(inside).collect();
            let none = "not mapped: the overflow ids (65534)".to_owned();
            line("inside", if ids.is_empty() { none } else { ids.join(", ") });
        }
        let pids: Vec<&str> = self.field("NSpid").split_whitespace().skip(1).collect();
        if !pids.is_empty() {
            line("pid inside", pids.join(", then "));
        }
        let groups = self.field("Groups").split_whitespace().collect::<Vec<_>>().join(", ");
        line("groups", if groups.is_empty() { "none".into() } else { groups });
        line("cgroup", quote(&self.cgroup));
        let last = proc.sysctl("kernel/cap_last_cap").unwrap_or(40);
        for (at, (key, name)) in SETS.iter().enumerate() {
            let head = if at == 0 { "capabilities" } else { "" };
            let set = said(self.set(key), last);
            let again = at > 0 && set.contains(',') && self.set(key) == self.set("CapEff");
            line(head, format!("{name:<11} {}", if again { "the same" } else { &set }));
        }
        let filters = self.field("Seccomp_filters");
        line("no_new_privs", if self.field("NoNewPrivs") == "1" { "yes".into() } else { "no".to_owned() });
        line(
            "seccomp",
            match self.field("Seccomp") {
                "0" => "none".to_owned(),
                "1" => "strict".to_owned(),
                _ => format!("filters: {filters}"),
            },
        );
        if let Some(label) = &self.label {
            line("LSM label", quote(label));
        }
    }

    fn namespaces(&self, names: &Names, text: &mut String) {
        let with_id = self.spaces.iter().any(|s| s.told.id.is_some());
        let id = |id: &str| if with_id { format!("{id:<10} ") } else { String::new() };
        let width = self.spaces.iter().map(|space| space.link().len()).fold(7, usize::max);
        let _ = writeln!(text, "\n  {:width$} inode       {}shared with us  belongs to", "kind", id("id"));
        for space in &self.spaces {
            let number = space.told.id.map_or_else(|| "?".to_owned(), |id| id.to_string());
            let shared = if space.shared { "yes" } else { "no" };
            let owner = match space.told.owner {
                Some(owner) if space.kind != Kind::User && owner == self.user_inode() => {
                    "its user namespace".to_owned()
                }
                Some(owner) => format!("user:[{owner}]"),
                None if space.inode == INITIAL_USER => "nobody: the initial one".to_owned(),
                None => "a user namespace outside of ours".to_owned(),
            };
            let _ = writeln!(text, "  {:width$} {:<11} {}{shared:<15} {owner}", space.link(), space.inode, id(&number));
        }
        let _ = writeln!(text, "\n  user namespaces, from the inside out");
        for (at, level) in self.levels.iter().enumerate() {
            let owner = format!(" owned by {}", names.user(level.owner));
            let initial = if level.inode == INITIAL_USER { ", the initial one" } else { &owner };
            let ours = if at + 1 == self.levels.len() { ", ours" } else { "" };
            let _ = writeln!(text, "  user:[{}]{initial}{ours}", level.inode);
        }
    }

    fn id_maps(&self, width: Option<usize>, text: &mut String) {
        if self.user_inode() == INITIAL_USER {
            text.push('\n');
            return;
        }
        let there = if self.shares(Kind::User) { "in the parent" } else { "seen from here" };
        for kind in IdKind::BOTH {
            let (word, extents) = (kind.word(), self.maps.of(kind));
            if extents.is_empty() {
                let _ = writeln!(text, "\n  {word}_map      not written: every {word} is the overflow id inside");
                continue;
            }
            if let Some(width) = width.filter(|_| !self.shares(Kind::User)) {
                let _ = writeln!(text, "\n  {word}");
                text.push_str(&intervals(&rows(&self.levels, kind), width, "  "));
                continue;
            }
            let _ = writeln!(text, "\n  {:<22} {word} outside ({there})", format!("{word} inside"));
            for extent in extents {
                let _ = writeln!(text, "  {:<22} {}", extent.inside().to_string(), extent.outside());
            }
            let _ = writeln!(text, "\n  {:<22} {word} inside", format!("{word} outside"));
            for (range, inside) in reverse(extents) {
                let inside = inside.map_or_else(|| "none, seen as 65534".to_owned(), |r: Range| r.to_string());
                let _ = writeln!(text, "  {:<22} {inside}", range.to_string());
            }
        }
    }
}

/// A row for each level, named and with its part of each extent.
pub(crate) fn rows(levels: &[Level], kind: IdKind) -> Vec<Row> {
    let columns = columns(levels, kind);
    let label = |at: usize, level: &Level| match at {
        0 => format!("inside  user:[{}]", level.inode),
        _ if at + 1 == levels.len() => format!("here    user:[{}]", level.inode),
        _ => format!("        user:[{}]", level.inode),
    };
    let row = |(at, level): (usize, &Level)| Row {
        label: label(at, level),
        cells: columns.iter().map(|column| column[at]).collect(),
    };
    levels.iter().enumerate().map(row).collect()
}

/// Mounts that shift owners: statmount(2) says how, mountinfo only which.
fn idmapped(proc: &Proc, who: &str) -> Vec<(OsString, Option<Both<Vec<Extent>>>)> {
    let told = proc.ns(who, Kind::Mnt).and_then(|ns| mounted::of(ns.as_fd()));
    let all = told.unwrap_or_else(|_| proc.mounts(who).iter().map(Mounted::from_line).collect());
    all.into_iter().filter(Mounted::is_idmapped).map(|m| (m.point, m.maps)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_by_name() {
        let last = 40;
        assert_eq!(said(0, last), "none");
        assert_eq!(said(0x1ff_ffff_ffff, last), "all 41");
        assert_eq!(said(0x1ff_feff_ffff, last), "all but sys_resource");
        assert_eq!(said(0xc0, last), "setgid, setuid");
        assert_eq!(named(1 << 21 | 1 << 45), ["sys_admin", "45"]);
    }
}

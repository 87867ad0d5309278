//! The overview: a tree of user namespaces, with what each owns and what keeps
//! it.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use common::fail::{Failure, Result};
use common::id::{Both, Extent, Kind as IdKind, Range};
use common::ns::{INITIAL_USER, Kind};
use common::proc::Proc;
use common::scan::{Scan, Space};
use common::user;
use common::word::quote;

use crate::draw::{Row, intervals};
use crate::level::{maps_behind, maps_of};
use crate::process::name_in;

/// Users and processes by name. Each user is asked for once: one who is in no
/// file costs a process.
pub(crate) struct Names {
    proc: Rc<Proc>,
    users: RefCell<Vec<(u32, String)>>,
}

impl Names {
    pub(crate) fn new(proc: &Rc<Proc>) -> Names {
        Names { proc: proc.clone(), users: RefCell::default() }
    }

    /// `alice (uid 1501)`, or `uid 100000` for one whom nobody knows.
    pub(crate) fn user(&self, uid: u32) -> String {
        if let Some((_, name)) = self.users.borrow().iter().find(|(known, _)| *known == uid) {
            return name.clone();
        }
        let name = user::told(uid, &self.proc);
        self.users.borrow_mut().push((uid, name.clone()));
        name
    }

    /// The name of a process or thread, harmless on a terminal.
    pub(crate) fn command(&self, who: &str) -> String {
        quote(name_in(self.proc.seen(self.proc.read(&format!("{who}/comm"))).unwrap_or_default()))
    }

    /// `4242 sh`
    pub(crate) fn process(&self, pid: i32) -> String {
        format!("{pid} {}", self.command(&pid.to_string()))
    }

    /// `4242 sh, 4243 sleep, ... (7 more)`, at most `most` of them.
    pub(crate) fn processes(&self, pids: &[i32], most: usize) -> String {
        let shown: Vec<String> = pids.iter().take(most).map(|pid| self.process(*pid)).collect();
        match pids.len() - shown.len() {
            0 => shown.join(", "),
            more => format!("{}, ... ({more} more)", shown.join(", ")),
        }
    }
}

/// All namespaces, with the maps of the user namespaces among them.
pub(crate) struct Overview {
    pub(crate) scan: Scan,
    /// By inode, of those that are for us to see: inside, and here.
    maps: Vec<(u64, Both<Vec<Extent>>)>,
    ours: Vec<u64>,
    /// The option of /proc that hides processes.
    hides: Option<String>,
}

impl Overview {
    /// With `own` for a namespace file that this process has.
    pub(crate) fn now(proc: &Rc<Proc>, own: Option<OwnedFd>) -> Result<Overview> {
        let scan = Scan::now(proc, own).map_err(|e| Failure::os("list /proc", e))?;
        let ours = Kind::ALL.into_iter().map(|kind| proc.own_ns(kind)).collect::<Result<Vec<_>>>()?;
        let ours: Vec<u64> = ours.into_iter().flatten().collect();
        let mut maps = Vec::new();
        for space in scan.spaces.iter().filter(|s| s.kind == Kind::User) {
            let us = ours.contains(&space.inode).then(|| "self".to_owned());
            let processes = space.processes.iter().map(i32::to_string);
            let threads = space.threads.iter().map(|(pid, tid)| format!("{pid}/task/{tid}"));
            // Each of the others may end meanwhile.
            let found = us.into_iter().chain(processes).chain(threads).find_map(|who| maps_of(proc, &who));
            let behind = || maps_behind(proc, space.file.as_ref()?.try_clone().ok()?);
            maps.extend(found.or_else(behind).map(|map| (space.inode, map)));
        }
        Ok(Overview { scan, maps, ours, hides: proc.hides() })
    }

    /// The maps of a user namespace, if they are for us to see.
    pub(crate) fn maps(&self, inode: u64) -> Option<&Both<Vec<Extent>>> {
        self.maps.iter().find(|(of, _)| *of == inode).map(|(_, maps)| maps)
    }

    pub(crate) fn is_ours(&self, inode: u64) -> bool {
        self.ours.contains(&inode)
    }

    /// User namespaces whose parent cannot be seen.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Space> {
        self.owned(None).into_iter().filter(|s| s.kind == Kind::User)
    }

    /// What a user namespace owns: the other kinds first, in their usual order.
    pub(crate) fn owned(&self, owner: Option<u64>) -> Vec<&Space> {
        let seen = |o: Option<u64>| o.filter(|o| self.scan.get(*o).is_some());
        let mut owned = Vec::new();
        for kind in Kind::ALL.into_iter().cycle().skip(1).take(Kind::ALL.len()) {
            owned.extend(self.scan.spaces.iter().filter(|s| s.kind == kind && seen(s.owner) == owner));
        }
        owned
    }

    /// `user:[N] owned by alice (uid 1501), ours`
    pub(crate) fn head(&self, space: &Space, names: &Names) -> String {
        let inode = space.inode;
        let mut head = format!("user:[{inode}]");
        if inode == INITIAL_USER {
            head.push_str(" the initial one");
        } else if let Some(owner) = space.owner_uid {
            head.push_str(" owned by ");
            head.push_str(&names.user(owner));
        }
        if self.is_ours(inode) {
            head.push_str(", ours");
        }
        let real = self.maps(inode).is_some_and(|m| m.uid.iter().any(|e| e.outside == 0));
        if real && inode != INITIAL_USER && self.is_ours(INITIAL_USER) {
            head.push_str(", the real root is inside");
        }
        head
    }

    /// What keeps a namespace, in words; names of at most `most` of each.
    pub(crate) fn kept(&self, space: &Space, names: &Names, most: usize) -> Vec<String> {
        let whole = space.owner.and_then(|owner| self.scan.get(owner));
        let same = space.kind != Kind::User && whole.is_some_and(|w| w.processes == space.processes);
        self.kept_by(space, names, most, same)
    }

    /// With `same`, the processes are those that have just been named.
    fn kept_by(&self, space: &Space, names: &Names, most: usize, same: bool) -> Vec<String> {
        let mut kept = Vec::new();
        match space.processes.len() {
            0 => kept.push("no process".to_owned()),
            1 if same => kept.push("the same process".to_owned()),
            n if same => kept.push(format!("the same {n} processes")),
            1 => kept.push(format!("1 process: {}", names.processes(&space.processes, most))),
            n => kept.push(format!("{n} processes: {}", names.processes(&space.processes, most))),
        }
        let listed = |all: Vec<String>, kept: &mut Vec<String>| {
            let more = all.len().saturating_sub(most);
            kept.extend(all.into_iter().take(most));
            if more > 0 {
                kept.push(format!("({more} more)"));
            }
        };
        let thread = |(pid, tid): &(i32, i32)| {
            format!("thread {tid} {} of {}", names.command(&format!("{pid}/task/{tid}")), names.process(*pid))
        };
        listed(space.threads.iter().map(thread).collect(), &mut kept);
        let descriptor = |(pid, fd): &(i32, i32)| format!("descriptor {fd} of {}", names.process(*pid));
        listed(space.descriptors.iter().map(descriptor).collect(), &mut kept);
        let mount = |(inside, point): &(u64, OsString)| {
            let there = if self.is_ours(*inside) { String::new() } else { format!(" in mnt:[{inside}]") };
            format!("mounted on {}{there}", quote(point))
        };
        listed(space.mounts.iter().map(mount).collect(), &mut kept);
        kept
    }
}

/// The whole tree as text; with `width` for a terminal.
pub(crate) fn text(all: &Overview, names: &Names, width: Option<usize>) -> String {
    let mut text = String::new();
    for root in all.roots() {
        branch(all, names, root, 0, width, &mut text);
    }
    let apart: Vec<&Space> = all.owned(None).into_iter().filter(|s| s.kind != Kind::User).collect();
    if !apart.is_empty() {
        text.push_str("the owner of these cannot be seen from here\n");
        lines(all, names, &apart, "  ", &mut text);
    }
    text.push_str(&unseen(all));
    text
}

/// One namespace: where it belongs, what keeps it; a user namespace with its
/// maps and all that it owns.
pub(crate) fn one(all: &Overview, names: &Names, space: &Space, width: Option<usize>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    if space.kind == Kind::User {
        branch(all, names, space, 0, width, &mut text);
    } else {
        let ours = if all.is_ours(space.inode) { ", ours" } else { "" };
        let _ = writeln!(text, "{}:[{}]{ours}", space.kind.link(), space.inode);
        let _ = writeln!(text, "  {}", all.kept_by(space, names, 8, false).join("; "));
    }
    let belongs = if space.kind == Kind::User { "below" } else { "belongs to" };
    match space.owner.and_then(|owner| all.scan.get(owner)) {
        Some(owner) => drop(writeln!(text, "  {belongs} {}", all.head(owner, names))),
        None if space.inode == INITIAL_USER => {}
        None => drop(writeln!(text, "  {belongs} what cannot be seen from here")),
    }
    if let Some(id) = space.id {
        let _ = writeln!(text, "  id {id}");
    }
    text.push_str(&unseen(all));
    text
}

/// In place of maps that may not be read.
pub(crate) const NOT_OURS: &str = "its maps are not ours to see";

/// What we were not allowed to see.
pub(crate) fn unseen(all: &Overview) -> String {
    let scan = &all.scan;
    let processes = |n: usize| if n == 1 { "1 process".to_owned() } else { format!("{n} processes") };
    let mut parts = Vec::new();
    if scan.hidden > 0 {
        parts.push(format!("the namespaces of {}", processes(scan.hidden)));
    }
    if scan.closed > 0 {
        parts.push(format!("the descriptors of {}", processes(scan.closed)));
    }
    match scan.unread {
        0 => {}
        1 => parts.push("the mounts of 1 namespace that nobody is in".to_owned()),
        n => parts.push(format!("the mounts of {n} namespaces that nobody is in")),
    }
    if let Some(option) = &all.hides {
        parts.push(format!("processes that /proc hides ({option})"));
    }
    if parts.is_empty() { String::new() } else { format!("(not ours to see: {})\n", parts.join(", ")) }
}

fn branch(all: &Overview, names: &Names, this: &Space, depth: usize, width: Option<usize>, text: &mut String) {
    let inode = this.inode;
    let indent = "  ".repeat(depth);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{indent}{}", all.head(this, names));
    let _ = writeln!(text, "{indent}  {}", all.kept(this, names, 4).join("; "));
    if inode != INITIAL_USER {
        let there = if all.is_ours(inode) { "outside" } else { "here" };
        match all.maps(inode) {
            Some(maps) => text.push_str(&maps_text(maps, there, &format!("{indent}  "), width)),
            None => drop(writeln!(text, "{indent}  {NOT_OURS}")),
        }
    }
    let owned = all.owned(Some(inode));
    let others: Vec<&Space> = owned.iter().filter(|s| s.kind != Kind::User).copied().collect();
    lines(all, names, &others, &format!("{indent}  "), text);
    for child in owned.into_iter().filter(|s| s.kind == Kind::User) {
        branch(all, names, child, depth + 1, width, text);
    }
}

fn lines(all: &Overview, names: &Names, spaces: &[&Space], indent: &str, text: &mut String) {
    for space in spaces {
        let ours = if all.is_ours(space.inode) { "ours; " } else { "" };
        let kept = all.kept(space, names, 3).join("; ");
        let _ = writeln!(text, "{indent}{:<19} {ours}{kept}", format!("{}:[{}]", space.kind.link(), space.inode));
    }
}

/// Both maps, as lines or, on a terminal, as intervals.
fn maps_text(maps: &Both<Vec<Extent>>, there: &str, indent: &str, width: Option<usize>) -> String {
    let mut text = String::new();
    let same = maps.uid == maps.gid;
    for kind in IdKind::BOTH {
        let (word, extents) = match (same, kind) {
            (true, IdKind::Gid) => continue,
            (true, IdKind::Uid) => ("uid and gid", &maps.uid),
            (false, _) => (kind.word(), maps.of(kind)),
        };
        match width {
            _ if extents.is_empty() => {
                let _ = writeln!(text, "{indent}{word}: not mapped");
            }
            Some(width) => {
                let cells = |side: fn(&Extent) -> Range| extents.iter().map(|e| Some(side(e))).collect();
                let rows = [
                    Row { label: format!("{word} inside"), cells: cells(|e| e.inside()) },
                    Row { label: there.to_owned(), cells: cells(|e| e.outside()) },
                ];
                text.push_str(&intervals(&rows, width, indent));
            }
            None => {
                let pairs: Vec<String> = extents.iter().map(|e| format!("{} = {}", e.inside(), e.outside())).collect();
                let _ = writeln!(text, "{indent}{word} inside = {there}: {}", pairs.join(", "));
            }
        }
    }
    text
}

//! The maps of a user namespace: /proc/PID/uid_map, gid_map and setgroups.
//!
//! Rules: user_namespaces(7); kernel/user_namespace.c. Numbers W1-W16 in the
//! comments are the kernel's checks in its own order.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::{Done, Facts, Hands, Step};
use crate::fail::{Because, Errno, Failure, Result};
use crate::helper;
use crate::id::{Both, Kind, Map, Range, subject, without};
use crate::ns;
use crate::proc::{CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, Proc};
use crate::subid;
use crate::sys;
use crate::target::{self, Target};
use crate::user;

/// Whose files they are.
#[derive(Clone)]
pub enum Whose {
    /// The files of this process itself, which is yet to enter its namespace.
    Own,
    /// Those of another process: its number, and the file, opened and checked.
    Of(String, Rc<OwnedFd>),
    /// Those of the child that an earlier step of the plan forks, under the
    /// name that plans print: `CHILD`, or `?` where no process is made at all.
    Promised(&'static str),
}

/// An effect on the maps of a user namespace.
pub enum Effect {
    /// Write `allow` or `deny` to setgroups.
    Setgroups(Whose, bool),
    /// Write a whole map.
    Write(Whose, Kind, Map),
    /// Have newuidmap(1) or newgidmap(1) write it; no target in a dry pipeline.
    Helper(Option<Rc<Target>>, Kind, Map),
}

impl Whose {
    fn who(&self) -> &str {
        match self {
            Whose::Own => "self",
            Whose::Of(who, _) => who,
            Whose::Promised(name) => name,
        }
    }

    fn write(&self, file: &str, text: &str, hands: &Hands) -> std::result::Result<(), Errno> {
        let write = |fd: &OwnedFd| {
            // One write(2): what a first part says is the whole map (W3).
            nix::unistd::write(fd, text.as_bytes()).and_then(|n| if n == text.len() { Ok(()) } else { Err(Errno::EIO) })
        };
        let below_proc = |who: &str| {
            let proc = Proc::open().map_err(|_| Errno::ENOENT)?;
            write(&proc.open_at(&format!("{who}/{file}"), OFlag::O_WRONLY)?)
        };
        match self {
            Whose::Own => below_proc("self"),
            Whose::Of(_, fd) => write(fd),
            Whose::Promised(_) => {
                let proc = Proc::open().map_err(|_| Errno::ENOENT)?;
                below_proc(&hands.child.as_ref().ok_or(Errno::ECHILD)?.who(&proc))
            }
        }
    }
}

/// Opens a file of `target` for writing, through its proven directory.
///
/// # Errors
/// EACCES: another user's process, or not dumpable; EROFS; ESRCH.
pub fn open(proc: &Proc, target: &Target, file: &str) -> Result<Whose> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(&target.dir, file, flags, Mode::empty()) {
        // The kernel would let root deny setgroups to the initial namespace,
        // and with it to the whole system, for good.
        Ok(_) if file == "setgroups" && not_unshared(proc, &target.who()).is_some() => {
            let act = format!("write /proc/{}/{file}", target.pid);
            Err(Failure::refused(act).because(not_unshared(proc, &target.who())))
        }
        Ok(fd) => Ok(Whose::Of(target.who(), Rc::new(fd))),
        Err(e) => {
            let because = if e == Errno::EACCES { not_opened(proc, &target.who()) } else { None };
            Err(Failure::os(format!("open /proc/{}/{file}", target.pid), e).because(because))
        }
    }
}

/// Why the maps of `who` cannot be opened for writing (EACCES).
pub fn not_opened(proc: &Proc, who: &str) -> Option<Because> {
    target::untouchable(proc, who).or_else(|| not_unshared(proc, who))
}

/// Whether `who` is in the same user namespace as we are (W1).
fn not_unshared(proc: &Proc, who: &str) -> Option<Because> {
    let theirs = proc.ns_id(who, ns::Kind::User);
    let same = theirs.is_some() && theirs == proc.ns_id("self", ns::Kind::User);
    let name = proc.name(who);
    same.then(|| Because::new(format!("process {who} ({name}) has not created a user namespace: it is in ours")))
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (doing, asking) = (effect.clone(), effect.clone());
        let step = Step::new(effect.act(), effect.detail(), effect.why(), move |hands| doing.perform(hands));
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Setgroups(whose, _) => format!("write /proc/{}/setgroups", whose.who()),
            Effect::Write(whose, kind, _) => format!("write /proc/{}/{}", whose.who(), kind.map_file()),
            Effect::Helper(target, kind, map) => {
                let pid = target.as_ref().map_or_else(|| "?".to_owned(), |t| t.who());
                format!("run {}", helper_words(*kind, pid, map).join(" "))
            }
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Setgroups(_, allow) => (if *allow { "allow" } else { "deny" }).to_owned(),
            Effect::Write(_, _, map) => format!("'{}'", map.text().trim_end().replace('\n', ", ")),
            Effect::Helper(..) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Setgroups(..) => {
                "whoever may drop groups may pass by permissions that deny a group: without an administrator's grant it must be off before gid_map is written"
            }
            Effect::Write(_, Kind::Uid, _) => {
                "without a map every id is the overflow id (65534) and owns nothing; it can be written once, in one write(2), from this or the parent user namespace"
            }
            Effect::Write(_, Kind::Gid, _) => "the same for groups",
            Effect::Helper(..) => {
                "more than the own id needs CAP_SETUID or CAP_SETGID in the parent user namespace; this program has it and enforces /etc/subuid and /etc/subgid"
            }
        }
    }

    fn perform(&self, hands: &Hands) -> Done {
        match self {
            Effect::Setgroups(whose, allow) => {
                Ok(whose.write("setgroups", if *allow { "allow" } else { "deny" }, hands)?)
            }
            Effect::Write(whose, kind, map) => Ok(whose.write(kind.map_file(), &map.text(), hands)?),
            Effect::Helper(target, kind, map) => Ok(run_helper(target.as_ref().ok_or(Errno::ESRCH)?, *kind, map)?),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Setgroups(whose, allow) => setgroups_reason(whose, *allow, errno, facts),
            // A child that writes its own is a number to us who look.
            Effect::Write(Whose::Own, kind, map) => write_reason(facts.proc, facts.who, By::Itself, *kind, map, errno),
            Effect::Write(Whose::Of(who, _), kind, map) => write_reason(facts.proc, who, By::Us, *kind, map, errno),
            Effect::Write(Whose::Promised(_), kind, map) => {
                write_reason(facts.proc, facts.child?, By::Us, *kind, map, errno)
            }
            Effect::Helper(..) => None,
        }
    }
}

fn setgroups_reason(whose: &Whose, allow: bool, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let who = if let Whose::Of(who, _) = whose { who } else { facts.who };
    if errno == Errno::EPERM { setgroups_refused(facts.proc, who, allow) } else { None }
}

/// Why `allow` or `deny` could not be written to setgroups (EPERM).
pub fn setgroups_refused(proc: &Proc, who: &str, allow: bool) -> Option<Because> {
    if allow {
        let denied = proc.setgroups(who) == Some(false);
        return denied.then(|| Because::new("setgroups is already denied there, and a denial is for good"));
    }
    let there = proc.map(who, Kind::Gid)?;
    let first = there.first()?;
    let more = if there.len() > 1 { ", ..." } else { "" };
    Some(Because::new(format!(
        "gid_map is already written ({first}{more}), and setgroups can be denied only before that"
    )))
}

/// By what right a map is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// That of this process, which is outside of the namespace.
    Us,
    /// That of the process itself, which is inside.
    Itself,
    /// CAP_SETUID and CAP_SETGID of a program that has been asked.
    Privileged,
}

/// Why the kernel refused a map, by its own checks in its own order.
pub fn write_reason(proc: &Proc, who: &str, by: By, kind: Kind, map: &Map, errno: Errno) -> Option<Because> {
    if errno != Errno::EPERM {
        return None;
    }
    let said = |text: String| Some(Because::new(text));
    let ours = proc.ns_id("self", ns::Kind::User)?;
    // W1
    if by != By::Itself {
        if let Some(because) = not_unshared(proc, who) {
            return Some(because);
        }
    }
    // W6
    let there = proc.map(who, kind)?;
    if let Some(first) = there.first() {
        let more = if there.len() > 1 { ", ..." } else { "" };
        return said(format!("it is already written ({first}{more}), and a map is written once"));
    }
    let theirs = proc.ns(who, ns::Kind::User).ok()?;
    // W2
    let parent = sys::ns_owner(theirs.as_fd()).ok()?;
    let parent = nix::sys::stat::fstat(parent).ok()?.st_ino;
    if by != By::Itself && parent != ours {
        return said("its user namespace is not a child of ours: only the parent can write the map".into());
    }
    let own = proc.own();
    // W7
    let owner = sys::ns_owner_uid(theirs.as_fd()).ok()?;
    if owner != own.uid[1] && !own.can(CAP_SYS_ADMIN) {
        return said(format!("its user namespace belongs to uid {owner}, and we are uid {}", own.uid[1]));
    }
    // What follows asks for capabilities in the parent: the program has them.
    if by == By::Privileged {
        return uncovered(proc, kind, map);
    }
    // W14
    if kind == Kind::Uid && map.extents().iter().any(|e| e.outside == 0) && !own.can(CAP_SETFCAP) {
        return said("mapping outside id 0 needs CAP_SETFCAP (since Linux 5.12), and we do not have it".into());
    }
    let me = if kind == Kind::Uid { own.uid[1] } else { own.gid[1] };
    let (cap, name) = if kind == Kind::Uid { (CAP_SETUID, "CAP_SETUID") } else { (CAP_SETGID, "CAP_SETGID") };
    // W15
    if !own.can(cap) {
        let single = matches!(map.extents(), [e] if e.count == 1 && e.outside == me);
        if !single {
            return said(format!("more than the own {} ({me}) needs {name} in the parent user namespace", kind.word()));
        }
        if kind == Kind::Gid && proc.setgroups(who)? {
            return said("setgroups is allowed there: without CAP_SETGID it has to be denied first".into());
        }
    }
    // W16
    uncovered(proc, kind, map)
}

fn uncovered(proc: &Proc, kind: Kind, map: &Map) -> Option<Because> {
    let parent = Map::new(proc.map("self", kind)?).ok()?;
    match map.split_at(&parent) {
        Err(missing) => {
            let word = format!("outside {}", kind.word());
            Some(Because::new(format!("{} not mapped in our user namespace", subject(&word, &missing))))
        }
        Ok(split) if split.len() != map.extents().len() => {
            Some(Because::new("an extent crosses a boundary between two lines of our own map: split it there"))
        }
        Ok(_) => None,
    }
}

// ---- newuidmap and newgidmap ----

fn helper_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Uid => "newuidmap",
        Kind::Gid => "newgidmap",
    }
}

fn helper_words(kind: Kind, pid: String, map: &Map) -> Vec<String> {
    let mut words = vec![helper_name(kind).to_owned(), pid];
    words.extend(map.extents().iter().flat_map(|e| [e.inside.to_string(), e.outside.to_string(), e.count.to_string()]));
    words
}

/// Proves, while planning, that the helper is there, and that the second one
/// will not refuse what the first has half done: a user namespace with one map
/// is good for nothing.
///
/// # Errors
/// A helper is missing, or gids are not granted although the uids are.
pub fn check_helpers(target: Option<&Rc<Target>>, maps: &Both<Map>, kinds: &[Kind]) -> Result<()> {
    let pid = target.map_or_else(|| "?".to_owned(), |t| t.who());
    for kind in kinds {
        if helper::find(helper_name(*kind)).is_none() {
            let act = format!("run {}", helper_words(*kind, pid, maps.of(*kind)).join(" "));
            return Err(Failure::os(act, Errno::ENOENT).because(Some(missing(*kind))));
        }
    }
    if kinds.contains(&Kind::Gid) && not_granted(Kind::Uid, &maps.uid).is_none() {
        if let Some(because) = not_granted(Kind::Gid, &maps.gid) {
            let act = format!("run {}: not allowed", helper_words(Kind::Gid, pid, &maps.gid).join(" "));
            return Err(Failure::refused(act).because(Some(because)));
        }
    }
    Ok(())
}

/// What a missing helper means.
fn missing(kind: Kind) -> Because {
    let (name, cap) = if kind == Kind::Uid { ("newuidmap", "CAP_SETUID") } else { ("newgidmap", "CAP_SETGID") };
    let rule = format!("and more than the own {} needs {cap}", kind.word());
    if std::path::Path::new("/usr/bin").join(name).exists() {
        return Because::new(format!("{name} is not in PATH, {rule}"));
    }
    let because = Because::new(format!("{name} is not installed, {rule}"));
    if helper::find("apt-get").is_some() { because.remedy("sudo apt-get install uidmap") } else { because }
}

fn run_helper(target: &Target, kind: Kind, map: &Map) -> std::result::Result<(), Failure> {
    let words = helper_words(kind, target.who(), map);
    let act = format!("run {}", words.join(" "));
    let program = helper::find(helper_name(kind)).ok_or_else(|| Failure::os(act.as_str(), Errno::ENOENT))?;
    let answer = helper::run(&program, &words[1..]).map_err(|e| Failure::os(act.as_str(), e))?;
    // The helper knows the process by a number only; what counts is the map
    // of the process that we hold.
    let written = target::map_of(target, kind).unwrap_or_default();
    if answer.status == 0 && !written.is_empty() {
        return Ok(());
    }
    let proc = Proc::open()?;
    let because = target::untouchable(&proc, &target.who())
        .or_else(|| not_granted(kind, map))
        .or_else(|| write_reason(&proc, &target.who(), By::Privileged, kind, map, Errno::EPERM));
    let mut what = format!("{act}: exit status {}", answer.status);
    let said = String::from_utf8_lossy(&answer.output).trim().replace('\n', "; ");
    if because.is_none() && !said.is_empty() {
        what.push_str(&format!(" ({said})"));
    }
    Err(Failure::refused(what).because(because))
}

/// The outside ids that nobody has granted to the user of this process.
pub fn not_granted(kind: Kind, map: &Map) -> Option<Because> {
    let proc = Proc::open().ok()?;
    let own = proc.own();
    let (uid, me) = (own.uid[0], if kind == Kind::Uid { own.uid[0] } else { own.gid[0] });
    let user = user::by_uid(uid)?;
    let mut covered = subid::granted(&user, kind).ok()?;
    covered.push(Range { first: me, count: 1 });
    let wanted: Vec<Range> = map.extents().iter().map(|e| e.outside()).collect();
    let missing = without(&wanted, &covered);
    let first = missing.first()?;
    let are = subject("outside id", &missing);
    let because = Because::new(format!("{are} not granted to {user} in {}", kind.grant_file()));
    // Only what may be granted is advised.
    if subid::not_free(*first, &user).is_some() {
        return Some(because);
    }
    Some(because.remedy(format!("sudo subid-alloc {} --start {} --count {}", user.name, first.first, first.count)))
}

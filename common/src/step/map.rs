//! The maps of a user namespace: /proc/PID/uid_map, gid_map and setgroups.
//!
//! Rules: user_namespaces(7); kernel/user_namespace.c. Numbers W1-W16 in the
//! comments are the kernel's checks in its own order.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::fcntl::OFlag;

use super::newuidmap;
use super::{Done, Facts, Hands, Refusal, Step};
use crate::fail::{Because, Errno, Failure, Result};
use crate::id::{Extent, Kind, Map, Range, subject};
use crate::mind;
use crate::mind::child::{self, Waited};
use crate::ns;
use crate::proc::{self, CAP_DAC_OVERRIDE, CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, Proc};
use crate::record::Address;
use crate::sys;
use crate::target::{self, Target};

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
    /// The same for the child that an earlier step forks.
    HelperOfChild(Kind, Map),
    /// Wait until somebody has written both maps of the child; with it, as long
    /// as this pipe has a reader.
    Await(Option<RawFd>),
    /// Print the maps that a process has; on standard error if the flag is set.
    Show(Option<Rc<Target>>, bool),
}

impl Whose {
    fn who(&self) -> &str {
        match self {
            Whose::Own => "self",
            Whose::Of(who, _) => who,
            Whose::Promised(name) => name,
        }
    }

    /// The file, open to be read and written.
    fn file(&self, file: &str, hands: &Hands) -> std::result::Result<Rc<OwnedFd>, Refusal> {
        let proc = Proc::open()?;
        let below_proc = |who: &str| Ok(Rc::new(proc.open_at(&format!("{who}/{file}"), OFlag::O_RDWR)?));
        match self {
            Whose::Own => below_proc("self"),
            Whose::Of(_, fd) => Ok(fd.clone()),
            Whose::Promised(_) => below_proc(&hands.child.as_ref().ok_or(Errno::ECHILD)?.who(&proc)?),
        }
    }
}

/// Opens a file of `target` to be written, through its proven directory.
///
/// # Errors
/// EACCES: another user's process, or not dumpable, or no CAP_SYS_ADMIN over
/// its user namespace (setgroups); EPERM: hidden; EROFS; ESRCH; EXDEV.
pub fn open(proc: &Proc, target: &Target, file: &str) -> Result<Whose> {
    let name = CString::new(file).unwrap_or_default();
    match sys::open_exactly(target.dir.as_fd(), &name) {
        Ok(fd) => {
            // The kernel would let root deny setgroups to the initial
            // namespace, and with it to the whole system, for good.
            let because = if file == "setgroups" { not_unshared(proc, &target.who()) } else { None };
            if because.is_some() {
                return Err(Failure::refused(format!("write /proc/{}/{file}", target.pid)).because(because));
            }
            Ok(Whose::Of(target.who(), Rc::new(fd)))
        }
        Err(e) => {
            let because = not_opened(proc, target, e);
            Err(Failure::os(format!("open /proc/{}/{file}", target.pid), e).because(because))
        }
    }
}

/// Why the maps or setgroups of `target` were not opened to be written.
pub fn not_opened(proc: &Proc, target: &Target, errno: Errno) -> Option<Because> {
    let who = target.who();
    if errno == Errno::EACCES {
        // Whoever may open any file is kept only from setgroups.
        let any = proc.own().can(CAP_DAC_OVERRIDE);
        let closed = if any { None } else { target::why::untouchable(proc, &who) };
        let closed = closed.or_else(|| not_unshared(proc, &who)).or_else(|| not_owner(proc, &who));
        return closed.or_else(|| target::why::outside(proc, &who));
    }
    if errno == Errno::EPERM || errno == Errno::ENOENT {
        return if proc.status(&who).is_none() { target::why::untouchable(proc, &who) } else { None };
    }
    if errno == Errno::ESRCH {
        return target.ended();
    }
    if errno == Errno::EROFS {
        return read_only(proc);
    }
    if errno == Errno::EXDEV && target.is_covered(proc) {
        return Some(Because::new("something is mounted over a file of that process in /proc"));
    }
    None
}

fn read_only(proc: &Proc) -> Option<Because> {
    proc.is_read_only().then(|| Because::new("/proc is mounted read-only"))
}

/// Whether `who` is in the same user namespace as we are (W1).
fn not_unshared(proc: &Proc, who: &str) -> Option<Because> {
    let theirs = proc.ns_id(who, ns::Kind::User);
    let same = theirs.is_some() && theirs == proc.ns_id("self", ns::Kind::User);
    same.then(|| {
        let name = proc.name(who);
        Because::new(format!("process {who} ({name}) is in our own user namespace: only one that it has created can be mapped, from outside"))
    })
}

/// Whether the user namespace of `who` is another user's, over which we have
/// no CAP_SYS_ADMIN (W7).
fn not_owner(proc: &Proc, who: &str) -> Option<Because> {
    let theirs = proc.ns(who, ns::Kind::User).ok()?;
    let (owner, own) = (sys::ns_owner_uid(theirs.as_fd()).ok()?, proc.own());
    (owner != own.uid[1] && !own.can(CAP_SYS_ADMIN)).then(|| {
        let me = own.uid[1];
        Because::new(format!("its user namespace belongs to uid {owner}, and we are uid {me} without CAP_SYS_ADMIN"))
    })
}

/// Writes a whole map to the open file called `name` and compares what the
/// kernel has made of it.
///
/// # Errors
/// Those of write(2); a refusal where another map is read back.
pub fn write_map(fd: &OwnedFd, name: &str, map: &Map) -> std::result::Result<(), Refusal> {
    // One write(2): what a first part says is the whole map (W3).
    sys::write_whole(fd, map.text().as_bytes())?;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match nix::sys::uio::pread(fd, &mut piece, i64::try_from(text.len()).unwrap_or(i64::MAX))? {
            0 => break,
            n => text.extend_from_slice(&piece[..n]),
        }
    }
    let there = proc::extents(&String::from_utf8_lossy(&text));
    if there == map.extents() {
        return Ok(());
    }
    let list = list(&there).unwrap_or_else(|| "nothing".into());
    Err(Failure::refused(format!("read {name} back: it says {list} in place of what was written")).into())
}

/// The head of a map, for messages; None if it has nothing.
fn list(extents: &[Extent]) -> Option<String> {
    let more = if extents.len() > 1 { ", ..." } else { "" };
    extents.first().map(|first| format!("{first}{more}"))
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, detailing) = (effect.clone(), effect.clone());
        let (doing, asking) = (effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        step.detail(move || detailing.detail()).because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Setgroups(whose, _) => format!("write /proc/{}/setgroups", whose.who()),
            Effect::Write(whose, kind, _) => format!("write /proc/{}/{}", whose.who(), kind.map_file()),
            Effect::Helper(target, kind, map) => {
                let pid = target.as_ref().map_or_else(|| "?".to_owned(), |t| t.who());
                format!("run {}", newuidmap::words(*kind, pid, map).join(" "))
            }
            Effect::HelperOfChild(kind, map) => {
                format!("run {}", newuidmap::words(*kind, "CHILD".to_owned(), map).join(" "))
            }
            Effect::Await(_) => "wait for the maps of CHILD".to_owned(),
            Effect::Show(..) => "print the maps".to_owned(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Setgroups(_, allow) => (if *allow { "allow" } else { "deny" }).to_owned(),
            Effect::Write(_, _, map) => format!("'{}'", map.text().trim_end().replace('\n', ", ")),
            Effect::Helper(..) | Effect::HelperOfChild(..) | Effect::Await(_) | Effect::Show(..) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Setgroups(..) => {
                "whoever may drop groups may pass by permissions that deny a group: without an administrator's grant it must be off before gid_map is written"
            }
            Effect::Write(_, Kind::Uid, _) => {
                "without a map no id exists inside (each is shown as 65534); it can be written once, in one write(2), from this or the parent user namespace"
            }
            Effect::Write(_, Kind::Gid, _) => "the same for groups",
            Effect::Await(_) => "a map is written from outside; the kernel announces it by no event",
            Effect::Helper(..) | Effect::HelperOfChild(..) => {
                "more than the own id needs CAP_SETUID or CAP_SETGID in the parent user namespace; this program has it and enforces /etc/subuid and /etc/subgid"
            }
            Effect::Show(..) => {
                "outside ids are those of our user namespace; what files belong to are the ids of the initial one"
            }
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Setgroups(whose, allow) => {
                let text = if *allow { "allow" } else { "deny" };
                Ok(sys::write_whole(&*whose.file("setgroups", hands)?, text.as_bytes())?)
            }
            Effect::Write(whose, kind, map) => {
                let file = kind.map_file();
                write_map(&*whose.file(file, hands)?, &format!("/proc/{}/{file}", whose.who()), map)
            }
            Effect::Helper(target, kind, map) => by_helper(target.as_ref().ok_or(Errno::ESRCH)?, *kind, map),
            Effect::HelperOfChild(kind, map) => {
                let child = hands.child.as_ref().ok_or(Errno::ECHILD)?;
                let at = Address { pid: child.pid, inode: target::pidfs_inode(child.fd.as_fd())? };
                by_helper(&Target::open(&Proc::open()?, at)?, *kind, map)
            }
            Effect::Await(reader) => await_maps(*reader, hands),
            Effect::Show(target, aside) => {
                let text = shown(target.as_ref().ok_or(Errno::ESRCH)?)?;
                if *aside {
                    mind::tell(&text);
                    return Ok(());
                }
                match mind::say(text.as_bytes()) {
                    // A reader that has left is no failure of ours.
                    Ok(()) | Err(Errno::EPIPE) => Ok(()),
                    Err(e) => Err(Failure::os("write to standard output", e).into()),
                }
            }
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            _ if errno == Errno::EROFS => read_only(facts.proc),
            Effect::Setgroups(whose, allow) => setgroups_reason(whose, *allow, errno, facts),
            // A child that writes its own is a number to us who look.
            Effect::Write(Whose::Own, kind, map) => write_reason(facts.proc, facts.who, By::Itself, *kind, map, errno),
            Effect::Write(Whose::Of(who, _), kind, map) => write_reason(facts.proc, who, By::Us, *kind, map, errno),
            Effect::Write(Whose::Promised(_), kind, map) => {
                write_reason(facts.proc, facts.child?, By::Us, *kind, map, errno)
            }
            Effect::Helper(..) | Effect::HelperOfChild(..) | Effect::Await(_) | Effect::Show(..) => None,
        }
    }
}

fn by_helper(target: &Target, kind: Kind, map: &Map) -> Done {
    let reason = |proc: &Proc| write_reason(proc, &target.who(), By::Privileged, kind, map, Errno::EPERM);
    Ok(newuidmap::run(target, kind, map, reason)?)
}

fn await_maps(reader: Option<RawFd>, hands: &mut Hands) -> Done {
    let proc = Proc::open()?;
    let child = hands.child.as_ref().ok_or(Errno::ECHILD)?;
    let who = child.who(&proc)?;
    let written = |kind| proc.map(&who, kind).is_some_and(|map| !map.is_empty());
    let act = "wait for the maps of the child";
    let failure = match child::wait_until(child, reader, || Kind::BOTH.into_iter().all(written))? {
        Waited::Done => return Ok(()),
        Waited::Gone => Failure::refused(format!("{act}: it has ended")),
        Waited::Unread => Failure::refused(act)
            .because(Some(Because::new("nobody reads its record any more, and the maps are not written"))),
        Waited::Signal(number) => {
            hands.died = Some(number);
            Failure::told_elsewhere()
        }
    };
    Err(failure.into())
}

/// The maps of `target` as a table, with what the outside ids are one step
/// further out: in the initial user namespace, if ours is a child of it.
fn shown(target: &Target) -> std::result::Result<String, Refusal> {
    let proc = Proc::open()?;
    let initial = proc.in_initial()?;
    let last = if initial { "initial" } else { "parent's" };
    let mut text = format!("{:>14} {:>10} {:>10} {last:>10}\n", "inside", "outside", "count");
    for kind in Kind::BOTH {
        let there = proc::extents(&String::from_utf8_lossy(&target::files::map_of(target, kind)?));
        let ours = proc.own_map(kind)?;
        for e in there {
            let further = Map::of_lines(vec![e]).ok().and_then(|map| map.compose(&ours).ok()).unwrap_or_default();
            let further = further.first().map_or_else(|| "-".to_owned(), |e| e.outside.to_string());
            let word = kind.word();
            text.push_str(&format!("{word} {:>10} {:>10} {:>10} {further:>10}\n", e.inside, e.outside, e.count));
        }
    }
    if !initial {
        text.push_str(
            "The last column is outside of our own user namespace. Whether that is the initial one cannot be seen from here.\n",
        );
    }
    Ok(text)
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
    let there = list(&proc.map(who, Kind::Gid)?)?;
    Some(Because::new(format!("gid_map is already written ({there}), and setgroups can be denied only before that")))
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
    // W1, and W2 from below
    if by != By::Itself {
        let because = not_unshared(proc, who).or_else(|| target::why::outside(proc, who));
        if because.is_some() {
            return because;
        }
    }
    // W6
    if let Some(there) = list(&proc.map(who, kind)?) {
        return said(format!("it is already written ({there}), and a map is written once"));
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
    if let Some(because) = not_owner(proc, who) {
        return Some(because);
    }
    // What follows asks for capabilities in the parent: the program has them.
    if by == By::Privileged {
        return uncovered(proc, kind, map);
    }
    // W14
    if kind == Kind::Uid && map.extents().iter().any(|e| e.outside == 0) && !own.can(CAP_SETFCAP) {
        return said("to map outside uid 0 takes CAP_SETFCAP (since Linux 5.12), and we do not have it".into());
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
    let lines: Vec<Range> = proc.map("self", kind)?.iter().map(|e| e.inside()).collect();
    let missing = map.split_at(&lines).err()?;
    let word = format!("outside {}", kind.word());
    Some(Because::new(format!("{} not mapped in our user namespace", subject(&word, &missing))))
}

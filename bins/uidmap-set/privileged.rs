//! The privileged room: what this program does with CAP_SETUID and CAP_SETGID
//! of its own file, for a caller who has neither. To be read in one sitting.
//!
//! 1. `begin`: the first thing is to take the effect from the capabilities, so
//!    that the command line is read as the caller. Who he is comes
//!    from files that root alone can write. Where that cannot be, the
//!    capabilities are dropped for good, and newuidmap(1) is asked.
//! 2. `authorise`: what newuidmap(1) and newgidmap(1) check. No other program
//!    is started.
//! 3. `write`: the files are opened through the target's own directory, and
//!    written, with the capabilities in effect that this needs, or none.
//! 4. Then every capability is dropped for good; only after that is a refusal
//!    explained.
//!
//! The binary is never setuid, and whoever runs it stays who he is: the owner
//! of the target's user namespace.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use common::fail::{Because, Errno, Failure, Result, errno};
use common::id::{Kind, Map, Range, without};
use common::mind;
use common::proc::{CAP_SETFCAP, CAP_SETGID, CAP_SETUID, Proc, read_all};
use common::step::Refusal;
use common::step::map::{By, not_opened, setgroups_refused, write_map, write_reason};
use common::step::newuidmap::{not_granted, not_primary};
use common::subid::{Owner, provider};
use common::sys;
use common::target::Target;
use common::target::why::untouchable;
use common::user::{Entry, entries};
use common::word::quote;

/// What this process is, once the kernel has started it.
pub(crate) enum Standing {
    /// Whatever its caller is.
    Ordinary,
    /// It has capabilities of its own, not in effect, and serves him.
    Serving(Caller),
    /// It had some and has dropped them: somebody else has to judge, for this
    /// reason.
    Elsewhere(String),
}

/// Who runs this program. Whoever stops serving him has laid everything down.
pub(crate) struct Caller {
    uid: u32,
    gid: u32,
    /// Whether /etc/passwd gives him this gid, under any of his names.
    is_primary: bool,
    /// The words by which lines of grants may name him.
    owner: Owner,
}

/// Takes away the effect of capabilities, if we serve with them: those of this
/// file, or all that `in_place_of_newuidmap` finds, which asks its files even
/// for root.
///
/// # Errors
/// This program is set-id; a file is not root's alone. Nothing is left then.
pub(crate) fn begin(in_place_of_newuidmap: bool) -> Result<Standing> {
    let serves = sys::is_secure() || in_place_of_newuidmap;
    if !serves || !sys::is_any_permitted(1 << CAP_SETUID | 1 << CAP_SETGID) {
        return Ok(Standing::Ordinary);
    }
    if let Err(e) = sys::set_effective(0) {
        not_laid_down(e);
    }
    // In a user namespace without a root nothing is root's, and no file can be
    // trusted; nor is there anybody whose grants they could be.
    let found = look_around().or_else(|failure| match Proc::open().ok().and_then(|proc| proc.map("self", Kind::Uid)) {
        Some(map) if !map.iter().any(|e| e.inside().has(0)) => {
            Ok(Standing::Elsewhere("uid 0 is not mapped in our user namespace".to_owned()))
        }
        Some(_) | None => Err(failure),
    });
    if !matches!(found, Ok(Standing::Serving(_))) {
        lay_down();
    }
    found
}

impl Drop for Caller {
    fn drop(&mut self) {
        lay_down();
    }
}

/// Drops every capability for good; but gives root, whose own they are, all
/// their effect again.
fn lay_down() {
    let done = if sys::is_secure() { sys::drop_capabilities() } else { sys::set_effective(u64::MAX) };
    if let Err(e) = done {
        not_laid_down(e);
    }
}

/// Never in practice; nothing may follow with capabilities in effect.
fn not_laid_down(e: Errno) -> ! {
    mind::tell(&format!("uidmap-set: {}\n", Failure::os("capset", e)));
    sys::exit_now(1);
}

fn look_around() -> Result<Standing> {
    let (uid, gid) = sys::only_ids().ok_or_else(|| {
        let run = std::fs::read_link("/proc/self/exe").ok();
        let because =
            Because::new("its real and effective ids differ: it is to have file capabilities, and no set-id bit")
                .remedy_if(run.map(|file| format!("sudo chmod ug-s {}", quote(&file))));
        Failure::refused("serve the caller: not allowed").because(Some(because))
    })?;
    let nsswitch = text_if_there("/etc/nsswitch.conf")?;
    if let Some(name) = provider(&String::from_utf8_lossy(&nsswitch)) {
        return Ok(Standing::Elsewhere(format!("/etc/nsswitch.conf takes subordinate ids from {name}")));
    }
    let passwd = text("/etc/passwd")?;
    let mut names = entries(&passwd).filter(|entry| entry.uid == uid).peekable();
    let Some(first) = names.peek().map(Entry::user) else {
        return Ok(Standing::Elsewhere(format!("uid {uid} has no line in /etc/passwd")));
    };
    let is_primary = names.any(|entry| entry.gid == gid);
    Ok(Standing::Serving(Caller { uid, gid, is_primary, owner: Owner::of(&first, &passwd) }))
}

/// Becomes the system's own `program` (newuidmap, newgidmap), which asks
/// whoever has to be asked; answers why not.
pub(crate) fn become_system(program: &str, words: &[OsString], why: &str) -> Failure {
    if let Err(failure) = check_system(program, why) {
        return failure;
    }
    let path = format!("/usr/bin/{program}");
    let all = std::iter::once(program.as_bytes()).chain(words.iter().map(|w| w.as_bytes()));
    let all: Vec<CString> = all.filter_map(|w| CString::new(w).ok()).collect();
    let errno = sys::become_program(&CString::new(path.as_str()).unwrap_or_default(), &all);
    Failure::os(format!("exec {path}, since {why}"), errno)
}

/// Proves that the system's `program` is another than this one.
///
/// # Errors
/// It is not, or cannot be told.
pub(crate) fn check_system(program: &str, why: &str) -> Result<()> {
    let path = format!("/usr/bin/{program}");
    let place = |path: &str| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let own = place("/proc/self/exe");
    if own.is_none() || own == place(&path) {
        let because = Because::new(format!("{why}, and a privileged program asks nobody: {path} would have to"));
        return Err(Failure::refused(format!("run {path}: it is this program")).because(Some(because)));
    }
    Ok(())
}

/// Authorises and writes. The file's capabilities are gone afterwards.
///
/// # Errors
/// It is not allowed, or the kernel refuses.
pub(crate) fn write(caller: Caller, target: &Target, maps: &[(Kind, Map)], setgroups: Option<bool>) -> Result<()> {
    let written = authorise(&caller, target, maps, setgroups).and_then(|setgroups| write_all(target, maps, setgroups));
    drop(caller);
    written.map_err(|refused| refused.explain(target))
}

/// What `write` would write to setgroups, if anything. The file's capabilities are
/// gone afterwards.
///
/// # Errors
/// It is not allowed.
pub(crate) fn judge(
    caller: Caller,
    target: &Target,
    maps: &[(Kind, Map)],
    setgroups: Option<bool>,
) -> Result<Option<bool>> {
    let judged = authorise(&caller, target, maps, setgroups);
    drop(caller);
    judged.map_err(|refused| refused.explain(target))
}

/// A refusal that is explained only without capabilities.
enum Refused {
    Failure(Failure),
    NotGranted(Kind, Map),
    NotOwner(Kind),
    Open(&'static str, Errno),
    Write(Kind, Map, Refusal),
    Setgroups(bool, Errno),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused::Failure(failure)
    }
}

impl Refused {
    fn explain(self, target: &Target) -> Failure {
        let (pid, who) = (target.pid, target.who());
        let found = |reason: &dyn Fn(&Proc) -> Option<Because>| Proc::open().ok().and_then(|proc| reason(&proc));
        match self {
            Refused::Failure(failure) => failure,
            Refused::NotGranted(kind, map) => {
                let what = format!("write /proc/{pid}/{}: not allowed", kind.map_file());
                Failure::refused(what).because(not_granted(kind, &map))
            }
            Refused::NotOwner(kind) => {
                let theirs = |proc: &Proc| untouchable(proc, &who).or_else(|| not_primary(proc));
                let because = target.ended().or_else(|| found(&theirs));
                Failure::refused(format!("write /proc/{pid}/{}: not allowed", kind.map_file())).because(because)
            }
            Refused::Open(file, errno) => {
                let because = found(&|proc| not_opened(proc, target, errno));
                Failure::os(format!("open /proc/{pid}/{file}"), errno).because(because)
            }
            Refused::Write(kind, map, Refusal::Os(errno, _)) => {
                let because = found(&|proc| write_reason(proc, &who, By::Privileged, kind, &map, errno));
                Failure::os(format!("write /proc/{pid}/{}", kind.map_file()), errno).because(because)
            }
            Refused::Write(_, _, Refusal::Whole(failure)) => *failure,
            Refused::Setgroups(allow, errno) => {
                let because =
                    if errno == Errno::EPERM { found(&|proc| setgroups_refused(proc, &who, allow)) } else { None };
                Failure::os(format!("write /proc/{pid}/setgroups"), errno).because(because)
            }
        }
    }
}

// ---- what newuidmap and newgidmap check ----

/// Whether the caller may have these maps; answers what has to be written to
/// setgroups, if anything.
fn authorise(
    caller: &Caller,
    target: &Target,
    maps: &[(Kind, Map)],
    setgroups: Option<bool>,
) -> std::result::Result<Option<bool>, Refused> {
    let first = maps.first().map_or(Kind::Uid, |(kind, _)| *kind);
    let owner = sys::owner_of(&target.dir).map_err(|e| Failure::os(format!("look at /proc/{}", target.pid), e))?;
    if owner != (caller.uid, caller.gid) || !(caller.is_primary || any_group_will_do()?) {
        return Err(Refused::NotOwner(first));
    }
    let mut any_gid_granted = false;
    for (kind, map) in maps {
        let own = if *kind == Kind::Uid { caller.uid } else { caller.gid };
        let own = Range { first: own, count: 1 };
        let wanted: Vec<Range> = map.extents().iter().map(|e| e.outside()).collect();
        let more = without(&wanted, &[own]);
        // Of the own uid there is nothing to be asked; of the own gid, whether
        // it has been granted for all that.
        if *kind == Kind::Uid && more.is_empty() {
            continue;
        }
        let file = trusted(kind.grant_file(), sys::NOFOLLOW)?;
        let said = |e| Failure::os(format!("read {}", kind.grant_file()), e);
        let mut granted = caller.owner.granted_in(file).map_err(said)?;
        any_gid_granted |= *kind == Kind::Gid && without(&wanted, &granted) != wanted;
        granted.push(own);
        if !without(&wanted, &granted).is_empty() {
            return Err(Refused::NotGranted(*kind, map.clone()));
        }
    }
    // Only an administrator's grant of groups is leave to drop groups
    // (CVE-2018-7169).
    let gids = maps.iter().any(|(kind, _)| *kind == Kind::Gid);
    if setgroups == Some(true) && !any_gid_granted {
        return Err(Failure::refused("setgroups may be allowed only where a gid range of /etc/subgid is mapped").into());
    }
    Ok(setgroups.or((gids && !any_gid_granted).then_some(false)))
}

/// Whether the administrator lets any group of the caller's stand for his
/// primary one (login.defs(5)).
fn any_group_will_do() -> Result<bool> {
    let key = b"GRANT_AUX_GROUP_SUBIDS";
    let text = text_if_there("/etc/login.defs")?;
    let mut values = text.split(|b| *b == b'\n').filter_map(|line| line.trim_ascii().strip_prefix(key));
    Ok(values.next_back().is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"yes")))
}

/// A file that nobody but root can have written.
fn trusted(path: &str, flags: i32) -> Result<std::fs::File> {
    let said = |e: std::io::Error| Failure::os(format!("read {path}"), errno(e));
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path).map_err(said)?;
    let stat = file.metadata().map_err(said)?;
    if !stat.is_file() || stat.uid() != 0 || stat.mode() & 0o022 != 0 {
        return Err(Failure::refused(format!("{path} is not a file that root alone can write")));
    }
    Ok(file)
}

/// Its text, at most 64 MiB of it.
fn text(path: &str) -> Result<Vec<u8>> {
    read_all(trusted(path, 0)?, 1 << 26).map_err(|e| Failure::os(format!("read {path}"), e))
}

/// The same; nothing, where there is no such file: shadow has its defaults then.
fn text_if_there(path: &str) -> Result<Vec<u8>> {
    text(path).or_else(|e| if e.errno() == Some(Errno::ENOENT) { Ok(Vec::new()) } else { Err(e) })
}

// ---- the act ----

/// The one capability that a map needs in the parent user namespace; with it,
/// for root alone, the one without which nobody maps root.
fn needed(kind: Kind, map: &Map) -> u64 {
    let cap = if kind == Kind::Uid { CAP_SETUID } else { CAP_SETGID };
    let maps_root = map.extents().iter().any(|e| e.outside == 0);
    1 << cap | if maps_root { 1 << CAP_SETFCAP } else { 0 }
}

fn write_all(target: &Target, maps: &[(Kind, Map)], setgroups: Option<bool>) -> std::result::Result<(), Refused> {
    let hold = |caps: u64| sys::set_effective(caps).map_err(|e| Failure::os("set capabilities", e));
    let open =
        |file: &'static str, name| sys::open_exactly(target.dir.as_fd(), name).map_err(|e| Refused::Open(file, e));
    // Everything is open before anything is written. The kernel looks at the
    // capabilities of who opened a map as well as of who writes it; setgroups
    // is for the owner, and takes none.
    let groups = match setgroups {
        Some(allow) => Some((allow, open("setgroups", c"setgroups")?)),
        None => None,
    };
    let mut opened: Vec<(&(Kind, Map), OwnedFd)> = Vec::new();
    for map in maps {
        hold(needed(map.0, &map.1))?;
        opened.push((
            map,
            match map.0 {
                Kind::Uid => open("uid_map", c"uid_map")?,
                Kind::Gid => open("gid_map", c"gid_map")?,
            },
        ));
    }
    hold(0)?;
    if let Some((allow, groups)) = groups {
        let text: &[u8] = if allow { b"allow" } else { b"deny" };
        sys::write_whole(&groups, text).map_err(|e| Refused::Setgroups(allow, e))?;
    }
    // Nothing comes between the two that can be refused: one map is good for nothing.
    hold(maps.iter().fold(0, |all, (kind, map)| all | needed(*kind, map)))?;
    for ((kind, map), file) in opened {
        let name = format!("/proc/{}/{}", target.pid, kind.map_file());
        write_map(&file, &name, map).map_err(|refusal| Refused::Write(*kind, map.clone(), refusal))?;
    }
    Ok(())
}

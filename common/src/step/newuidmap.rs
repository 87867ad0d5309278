//! newuidmap(1) and newgidmap(1), who write what takes CAP_SETUID and
//! CAP_SETGID: how they are called, and why they refuse.

use std::rc::Rc;

use crate::fail::{Because, Errno, Failure, Result};
use crate::helper;
use crate::id::{Both, Extent, Kind, Map, Range, subject, without};
use crate::proc::{self, CAP_SETGID, CAP_SETUID, Proc, read_all};
use crate::subid::{self, Grants};
use crate::sys;
use crate::target::{self, Target};
use crate::user;

/// The program that writes the map of `kind`.
pub fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Uid => "newuidmap",
        Kind::Gid => "newgidmap",
    }
}

fn capability(kind: Kind) -> (u32, &'static str) {
    match kind {
        Kind::Uid => (CAP_SETUID, "CAP_SETUID"),
        Kind::Gid => (CAP_SETGID, "CAP_SETGID"),
    }
}

/// The command line, beginning with the program's name.
pub fn words(kind: Kind, pid: String, map: &Map) -> Vec<String> {
    let mut words = vec![name(kind).to_owned(), pid];
    words.extend(map.extents().iter().flat_map(|e| [e.inside.to_string(), e.outside.to_string(), e.count.to_string()]));
    words
}

/// `map` with the own id in an extent of its own: these programs take it there
/// or in a grant, and nowhere else.
///
/// # Errors
/// So many extents are more than the kernel takes.
fn own_apart(kind: Kind, map: &Map, own: u32) -> Result<Map> {
    let own = u64::from(own);
    let cuts =
        [Range::new(0, own), Range::new(own, 1), Range::new(own + 1, u64::from(u32::MAX).saturating_sub(own + 1))];
    let cuts: Vec<Range> = cuts.into_iter().flatten().collect();
    match map.split_at(&cuts) {
        Ok(parts) if parts.len() > map.extents().len() => {
            Map::of_lines(parts).map_err(|e| Failure::usage(format!("{} map, split at the own id: {e}", kind.word())))
        }
        Ok(_) | Err(_) => Ok(map.clone()),
    }
}

/// Proves, while planning, that the helper is there.
///
/// # Errors
/// It is missing.
fn check_there(target: Option<&Rc<Target>>, maps: &Both<Map>, kinds: &[Kind]) -> Result<()> {
    for kind in kinds {
        let pid = target.map_or_else(|| "?".to_owned(), |t| t.who());
        if helper::find(name(*kind)).is_none() {
            let act = format!("run {}", words(*kind, pid, maps.of(*kind)).join(" "));
            return Err(Failure::os(act, Errno::ENOENT).because(Some(missing(*kind))));
        }
    }
    Ok(())
}

/// Proves, while planning, that the second helper will not refuse what the
/// first has half done: a user namespace with one map is good for nothing.
///
/// # Errors
/// Gids are not granted although the uids are.
pub fn check_grants(target: Option<&Rc<Target>>, maps: &Both<Map>, kinds: &[Kind]) -> Result<()> {
    if kinds.contains(&Kind::Gid) && not_granted(Kind::Uid, &maps.uid).is_none() {
        if let Some(because) = not_granted(Kind::Gid, &maps.gid) {
            let pid = target.map_or_else(|| "?".to_owned(), |t| t.who());
            let act = format!("run {}: not allowed", words(Kind::Gid, pid, &maps.gid).join(" "));
            return Err(Failure::refused(act).because(Some(because)));
        }
    }
    Ok(())
}

/// How maps are written, and what has to be written to setgroups.
pub struct Ways {
    /// The kinds of ids for which a helper is asked.
    pub by_helper: Vec<Kind>,
    /// Whether setgroups is allowed or denied; None: it stays.
    pub setgroups: Option<bool>,
}

/// The ways by which this process gets `maps` written for `target` (None: a
/// child yet to be made), which are cut where a helper wants them cut.
/// `serves`: it has the capabilities for both, though not in effect.
///
/// # Errors
/// A helper is missing; `setgroups` cannot be as wanted.
pub fn ways(target: Option<&Rc<Target>>, maps: &mut Both<Map>, setgroups: Option<bool>, serves: bool) -> Result<Ways> {
    let effective = sys::effective().map_err(|e| Failure::os("read the own capabilities", e))?;
    let me = user::own_ids();
    let is_own = |kind: Kind, map: &Map| matches!(map.extents(), [e] if e.count == 1 && e.outside == *me.of(kind));
    let single = Both { uid: is_own(Kind::Uid, &maps.uid), gid: is_own(Kind::Gid, &maps.gid) };
    let can = |kind: Kind| serves || effective >> capability(kind).0 & 1 == 1;
    let by_helper: Vec<Kind> = Kind::BOTH.into_iter().filter(|k| !single.of(*k) && !can(*k)).collect();
    for kind in &by_helper {
        *maps.of_mut(*kind) = own_apart(*kind, maps.of(*kind), *me.of(*kind))?;
    }
    check_there(target, maps, &by_helper)?;
    // Without a grant, dropping groups must not be possible: it would undo
    // permissions that deny something to a group (CVE-2014-8989).
    let alone = single.gid && !can(Kind::Gid);
    if alone && setgroups == Some(true) {
        let because = Because::new("without CAP_SETGID a gid map can be written only where setgroups is denied");
        return Err(Failure::refused("write gid_map").because(Some(because)));
    }
    Ok(Ways { by_helper, setgroups: setgroups.or(alone.then_some(false)) })
}

/// What a missing helper means.
pub fn missing(kind: Kind) -> Because {
    let name = name(kind);
    let rule = format!("and more than the own {} needs {}", kind.word(), capability(kind).1);
    if std::path::Path::new("/usr/bin").join(name).exists() {
        return Because::new(format!("{name} is not in PATH, {rule}"));
    }
    let because = Because::new(format!("{name} is not installed, {rule}"));
    if helper::find("apt-get").is_some() { because.remedy("sudo apt-get install uidmap") } else { because }
}

/// Has the helper write a map, and looks at what it wrote. `reason` finds why
/// the kernel would refuse.
///
/// # Errors
/// It failed, or something else is in the map.
pub fn run(
    target: &Target,
    kind: Kind,
    map: &Map,
    reason: impl FnOnce(&Proc) -> Option<Because>,
) -> std::result::Result<(), Failure> {
    let words = words(kind, target.who(), map);
    let act = format!("run {}", words.join(" "));
    let program = helper::find(name(kind)).ok_or_else(|| Failure::os(act.as_str(), Errno::ENOENT))?;
    // The helper knows the process by a number only; what counts is the map of
    // the process that we hold. That may have ended by then, if it waited for
    // nothing else (ns-new --wait-map): what is open is its namespace's.
    let opened = target::files::open(target, kind.map_file());
    let answer = helper::run(&program, &words[1..]).map_err(|e| Failure::os(act.as_str(), e))?;
    let read_back = |e| Failure::os(format!("read /proc/{}/{} back", target.pid, kind.map_file()), e);
    let written = match opened.and_then(|file| read_all(&file, usize::MAX)) {
        // Why it refused, and that the target has ended, is found below.
        Err(e) if answer.status == 0 && e != Errno::ESRCH && e != Errno::ENOENT => return Err(read_back(e)),
        text => text.unwrap_or_default(),
    };
    let written = proc::extents(&String::from_utf8_lossy(&written));
    // Whoever wrote it may have joined what touches.
    let joined = |extents: &[Extent]| Map::new(extents.to_vec());
    if answer.status == 0 && joined(&written) == joined(map.extents()) {
        return Ok(());
    }
    let proc = Proc::open()?;
    let because = target
        .ended()
        .or_else(|| target::why::untouchable(&proc, &target.who()))
        .or_else(|| not_primary(&proc))
        .or_else(|| not_granted(kind, map))
        .or_else(|| powerless(&proc, kind, &program))
        .or_else(|| reason(&proc))
        .or_else(|| not_done(&program, answer.status, &written));
    let mut what = format!("{act}: exit status {}", answer.status);
    let said = String::from_utf8_lossy(&answer.output).trim().replace('\n', "; ");
    if because.is_none() && !said.is_empty() {
        what.push_str(&format!(" ({said})"));
    }
    Err(Failure::refused(what).because(because))
}

// ---- why not ----

/// Whether our gid is another than the primary one, as after newgrp(1): they
/// serve nobody then.
pub fn not_primary(proc: &Proc) -> Option<Because> {
    let own = proc.own();
    let user = user::by_uid(own.uid[0])?;
    let text = format!("our gid is {}, and {user} has {} for primary group", own.gid[0], user.gid);
    (user.gid != own.gid[0]).then(|| Because::new(text))
}

/// Whether a helper runs without the privilege that it is for.
fn powerless(proc: &Proc, kind: Kind, program: &std::ffi::CStr) -> Option<Because> {
    let path = program.to_string_lossy();
    let (cap, cap_name) = capability(kind);
    if proc.own().bounding >> cap & 1 == 0 {
        let text = format!("{path} runs without privilege: {cap_name} is not in our bounding set");
        return Some(Because::new(text));
    }
    let why = helper::gains_privilege(program).err()?;
    let because = Because::new(format!("{path} runs without privilege: {why}"));
    let usual = format!("/usr/bin/{}", name(kind));
    let usual_works = std::ffi::CString::new(usual.as_str()).is_ok_and(|p| helper::gains_privilege(&p).is_ok());
    Some(if *path != *usual && usual_works {
        because.remedy("export PATH=/usr/bin:$PATH")
    } else if *path == *usual && why == helper::NOT_SETUID {
        because.remedy(format!("sudo chmod u+s {usual}"))
    } else {
        because
    })
}

/// Whether a program said that it had done what it had not.
fn not_done(program: &std::ffi::CStr, status: u8, written: &[Extent]) -> Option<Because> {
    let path = program.to_string_lossy();
    let there = if written.is_empty() { "nothing is written" } else { "something else is written" };
    (status == 0).then(|| Because::new(format!("{path} ended well, and {there}")))
}

/// The outside ids that nobody has granted to the user of this process.
pub fn not_granted(kind: Kind, map: &Map) -> Option<Because> {
    let proc = Proc::open().ok()?;
    let own = proc.own();
    let (uid, me) = (own.uid[0], if kind == Kind::Uid { own.uid[0] } else { own.gid[0] });
    let user = user::by_uid(uid)?;
    let grants = Grants::of(&user).ok()?;
    let mut covered = grants.read(kind).ok()?;
    covered.push(Range { first: me, count: 1 });
    let wanted: Vec<Range> = map.extents().iter().map(|e| e.outside()).collect();
    let missing = without(&wanted, &covered);
    let first = missing.first()?;
    let are = subject("outside id", &missing);
    if let Grants::Provider(name, _) = &grants {
        return Some(Because::new(format!("{are} not granted to {user} by {name} (/etc/nsswitch.conf)")));
    }
    let because = Because::new(format!("{are} not granted to {user} in {}", kind.grant_file()));
    // Only what may be granted is advised, and would be of use.
    let here: Vec<Range> = proc.own_map(kind).ok()?.iter().map(|extent| extent.inside()).collect();
    if !without(&[*first], &here).is_empty() || subid::not_free(*first, &user).is_some() {
        return Some(because);
    }
    Some(because.remedy(format!("sudo subid-alloc {} --start {} --count {}", user.name, first.first, first.count)))
}

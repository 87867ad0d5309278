//! This process itself: credentials, directory, descriptors. credentials(7),
//! capabilities(7).

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{chdir, getegid, geteuid, isatty, pipe2};

use super::{Done, Facts, Hands, Step};
use crate::fail::{Because, Errno, Failure, Result};
use crate::id::{Both, Kind, Map};
use crate::mind;
use crate::path;
use crate::proc::{CAP_SETGID, CAP_SETUID, Proc, Status};
use crate::sys;
use crate::word::quote;

/// An effect on this process.
pub enum Effect {
    /// Take this uid and gid, dropping groups if that is allowed.
    Become {
        /// All of real, effective and saved uid; None: it stays.
        uid: Option<u32>,
        /// The same of the gid.
        gid: Option<u32>,
        /// Whether setgroups(2) is allowed: then all other groups go.
        groups: bool,
    },
    /// Be somebody who is mapped, as `settled`, decided only now: the maps were
    /// not known before.
    Settle(Both<u32>, Rc<Proc>),
    /// Keep capabilities over the next exec although the uid is not 0.
    RaiseAmbient,
    /// Give those up again.
    ClearAmbient,
    /// Go to a directory.
    Chdir(PathBuf),
    /// Standard input: this descriptor, or else the terminal.
    Stdin(Option<RawFd>),
    /// Die when the parent does.
    DieWithParent,
    /// Get this signal when the parent dies.
    FollowParent(i32),
    /// Let nobody trace or read this process while it crosses.
    Undumpable,
    /// Close this descriptor, which our caller has opened for us.
    Hide(RawFd),
    /// Hand on no descriptor above 2 but these.
    Close(Vec<RawFd>),
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
    /// What makes somebody who is mapped in the user namespace of `who` of this
    /// process, whose ids outside are `me`: each that is not mapped becomes 0, if
    /// that is. And the uid that it has there then.
    ///
    /// # Errors
    /// The maps cannot be read, or whether setgroups(2) is allowed.
    pub fn settled(me: &Both<u32>, proc: &Proc, who: &str) -> Result<(Option<Effect>, Option<u32>)> {
        let id = |kind: Kind| id_inside(*me.of(kind), proc, who, kind);
        let (uid, gid) = (id(Kind::Uid)?, id(Kind::Gid)?);
        let its = uid.map(|(uid, _)| uid);
        if [uid, gid].into_iter().flatten().all(|(_, keeps)| keeps) {
            return Ok((None, its));
        }
        let groups = may_drop_groups(proc, who)?;
        Ok((Some(Effect::Become { uid: its, gid: gid.map(|(gid, _)| gid), groups }), its))
    }

    fn act(&self) -> String {
        match self {
            Effect::Become { uid, gid, .. } => {
                let one = |kind: Kind, id: &Option<u32>| id.map(|id| format!(" {} {id}", kind.word()));
                let both = [one(Kind::Uid, uid), one(Kind::Gid, gid)];
                format!("become{}", both.into_iter().flatten().collect::<String>())
            }
            Effect::Settle(..) => "stay who we are, or become uid 0 gid 0 where that is not mapped".into(),
            Effect::RaiseAmbient => "raise ambient capabilities".into(),
            Effect::ClearAmbient => "clear ambient capabilities".into(),
            Effect::Chdir(path) => format!("chdir to {}", quote(path)),
            Effect::Stdin(Some(n)) => format!("dup descriptor {n} to standard input"),
            Effect::Stdin(None) => "dup the terminal to standard input".into(),
            Effect::DieWithParent => "prctl PR_SET_PDEATHSIG SIGKILL".into(),
            Effect::FollowParent(number) => format!("prctl PR_SET_PDEATHSIG {number}"),
            Effect::Undumpable => "prctl PR_SET_DUMPABLE 0".into(),
            Effect::Hide(number) => format!("close {number}"),
            Effect::Close(_) => "close_range 3 ~0 CLOSE_RANGE_CLOEXEC".into(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Become { groups: true, .. } => "with no other groups".into(),
            Effect::Become { groups: false, .. } => "keeping the groups: setgroups is denied here".into(),
            Effect::Close(kept) if !kept.is_empty() => {
                let kept: Vec<String> = kept.iter().map(RawFd::to_string).collect();
                format!("but {}", kept.join(", "))
            }
            Effect::Stdin(None) => "or /dev/null".into(),
            Effect::RaiseAmbient
            | Effect::Settle(..)
            | Effect::ClearAmbient
            | Effect::Chdir(_)
            | Effect::Stdin(_)
            | Effect::DieWithParent
            | Effect::FollowParent(_)
            | Effect::Undumpable
            | Effect::Hide(_)
            | Effect::Close(_) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Become { .. } | Effect::Settle(..) => {
                "an exec by an id that is not mapped here drops every capability that is not ambient"
            }
            Effect::RaiseAmbient => "an exec by a uid other than 0 drops every capability that is not ambient",
            Effect::ClearAmbient => "what the chain needed on its way is not meant for the program",
            Effect::Chdir(_) => "entering a mount namespace leaves the working directory at its root",
            Effect::Stdin(_) => "standard input was the stream of records, not the program's",
            Effect::DieWithParent | Effect::FollowParent(_) => {
                "set after the last change of credentials, which clears it; else SIGKILL to the parent would leave the program behind"
            }
            Effect::Undumpable => {
                "whoever lives in the namespaces entered could trace us, with our descriptors, until the exec"
            }
            Effect::Hide(_) => "its reader would wait for the end of the program",
            Effect::Close(_) => "an open directory of outside is a way out",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Become { uid, gid, groups } => {
                if *groups {
                    sys::set_groups(&[])?;
                }
                gid.map_or(Ok(()), sys::set_gid)?;
                Ok(uid.map_or(Ok(()), sys::set_uid)?)
            }
            Effect::Settle(me, proc) => {
                let me = Both {
                    uid: seen_from_within(me.uid, geteuid().as_raw(), Kind::Uid, proc)?,
                    gid: seen_from_within(me.gid, getegid().as_raw(), Kind::Gid, proc)?,
                };
                let (effect, uid) = Effect::settled(&me, proc, "self")?;
                effect.map_or(Ok(()), |effect| effect.perform(hands))?;
                // Any other needs ambient capabilities for its first exec.
                if uid == Some(0) { Ok(()) } else { Ok(sys::raise_ambient()?) }
            }
            Effect::RaiseAmbient => Ok(sys::raise_ambient()?),
            Effect::ClearAmbient => Ok(sys::clear_ambient()?),
            Effect::Chdir(path) => self.go(path),
            Effect::Stdin(Some(n)) => Ok(sys::place(sys::lend(*n), 0)?),
            Effect::Stdin(None) => Ok(terminal()?),
            Effect::DieWithParent | Effect::FollowParent(_) => {
                let number = if let Effect::FollowParent(number) = self { *number } else { Signal::SIGKILL as i32 };
                sys::follow_parent(number)?;
                // It may have died before that: then nobody reads any more.
                match &hands.report {
                    Some(report) if mind::has_hung_up(report)? => sys::exit_now(125),
                    _ => Ok(()),
                }
            }
            Effect::Undumpable => Ok(nix::sys::prctl::set_dumpable(false)?),
            Effect::Hide(number) => {
                drop(sys::own(*number));
                Ok(())
            }
            Effect::Close(kept) => Ok(close(kept)?),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Become { uid, gid, groups } => {
                if errno == Errno::EPERM && *groups && facts.proc.setgroups(facts.who) == Some(false) {
                    return Some(Because::new("setgroups is denied in this user namespace"));
                }
                let able = |s: Status| s.can(CAP_SETUID) && s.can(CAP_SETGID);
                if errno == Errno::EPERM && facts.proc.status(facts.who).is_some_and(|s| !able(s)) {
                    return Some(Because::new(
                        "to become somebody else takes CAP_SETUID and CAP_SETGID, and we do not have both",
                    ));
                }
                if errno != Errno::EINVAL {
                    return None;
                }
                let unmapped = |kind: Kind, id: &Option<u32>| {
                    let (id, map) = ((*id)?, facts.proc.map(facts.who, kind)?);
                    (!map.iter().any(|e| e.inside().has(id)))
                        .then(|| Because::new(format!("{} {id} is not mapped in this user namespace", kind.word())))
                };
                unmapped(Kind::Gid, gid).or_else(|| unmapped(Kind::Uid, uid))
            }
            Effect::RaiseAmbient
            | Effect::Settle(..)
            | Effect::ClearAmbient
            | Effect::Chdir(_)
            | Effect::Stdin(_)
            | Effect::DieWithParent
            | Effect::FollowParent(_)
            | Effect::Undumpable
            | Effect::Hide(_)
            | Effect::Close(_) => None,
        }
    }

    fn go(&self, path: &Path) -> Done {
        let refused = |e| {
            // From where this process is by now; a command would be one outside.
            let because = Proc::open().ok().and_then(|proc| path::reason(path.as_os_str(), e, &proc));
            Failure::os(self.act(), e).because(because.map(|because| Because::new(because.text)))
        };
        Ok(chdir(path).map_err(refused)?)
    }
}

/// The id in the user namespace of `who` that somebody has whose id outside is
/// `own`: his own, if that is mapped, else 0, if that is; and whether it is his own.
///
/// # Errors
/// The map cannot be read.
pub fn id_inside(own: u32, proc: &Proc, who: &str, kind: Kind) -> Result<Option<(u32, bool)>> {
    let Ok(map) = Map::new(proc.read_map(who, kind)?) else { return Ok(None) };
    Ok(map.inside(own).map(|id| (id, true)).or_else(|| map.outside(0).map(|_| (0, false))))
}

/// Our id of outside, `id`, as the map of the user namespace that we are in now has
/// it: seen from within, that is in the ids of its parent, which need not be where
/// we come from. `now`: what we are called here, the overflow id where we are not
/// mapped; then no id at all.
fn seen_from_within(id: u32, now: u32, kind: Kind, proc: &Proc) -> Result<u32> {
    let Ok(map) = Map::new(proc.own_map(kind)?) else { return Ok(id) };
    let nobody = proc.sysctl(&format!("kernel/overflow{}", kind.word()));
    let is_mapped = nobody.is_some_and(|nobody| nobody != u64::from(now)) || map.inside(id) == Some(now);
    Ok(map.outside(now).filter(|_| is_mapped).unwrap_or(u32::MAX))
}

/// Whether setgroups(2) is allowed in the user namespace of `who`, which it is
/// nowhere without a gid map.
///
/// # Errors
/// That cannot be read.
pub fn may_drop_groups(proc: &Proc, who: &str) -> Result<bool> {
    Ok(!proc.read_map(who, Kind::Gid)?.is_empty() && proc.whole(&format!("{who}/setgroups"))?.trim() == "allow")
}

/// The terminal under standard input: what is behind standard output or error
/// if that is one (so that ttyname(3) finds its name), else the controlling
/// one, else nothing.
fn terminal() -> std::result::Result<(), Errno> {
    for number in [1, 2] {
        let fd = sys::lend(number);
        let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
        if isatty(fd).unwrap_or(false) && flags & OFlag::O_ACCMODE.bits() == OFlag::O_RDWR.bits() {
            return sys::place(fd, 0);
        }
    }
    let fd = open("/dev/tty", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .or_else(|_| open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()))
        // Where there is neither, what nobody writes to is at its end as well.
        .or_else(|_| pipe2(OFlag::O_CLOEXEC).map(|(read, _)| read))?;
    sys::place(std::os::fd::AsFd::as_fd(&fd), 0)
}

fn close(kept: &[RawFd]) -> std::result::Result<(), Errno> {
    sys::cloexec_range(3, RawFd::MAX)?;
    kept.iter().try_for_each(|number| sys::keep_over_exec(*number))
}

//! Becoming like somebody: the ids and the environment that a target gives.
//! credentials(7), environ(7).

use std::ffi::OsString;
use std::rc::Rc;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{Done, Facts, Hands, Step};
use crate::fail::{Because, Errno};
use crate::id::Kind;
use crate::sys;
use crate::word::quote;

/// An effect on who this process is.
pub enum Effect {
    /// Take these ids.
    Ids {
        /// All of real, effective and saved uid.
        uid: u32,
        /// The same of the gid.
        gid: u32,
        /// The other groups; None: they cannot be changed here, and stay.
        groups: Option<Vec<u32>>,
    },
    /// Set these variables.
    Environment(Vec<(&'static str, OsString)>),
    /// Not all of what was asked for could be done: what would be 0 is 3.
    Partial,
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
            Effect::Ids { uid, gid, .. } => format!("become uid {uid} gid {gid}"),
            Effect::Environment(variables) => {
                let words: Vec<String> =
                    variables.iter().map(|(name, value)| format!("{name}={}", quote(value))).collect();
                format!("setenv {}", words.join(" "))
            }
            Effect::Partial => "leave with status 3 in place of 0".into(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Ids { groups: Some(groups), .. } if groups.is_empty() => "with no other groups".into(),
            Effect::Ids { groups: Some(groups), .. } => {
                let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                format!("with groups {}", groups.join(","))
            }
            Effect::Ids { groups: None, .. } => "keeping the groups: setgroups is denied here".into(),
            Effect::Environment(_) | Effect::Partial => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Ids { .. } => "groups first, the uid last: with it the right to change the others goes",
            Effect::Environment(_) => "programs find their files by it",
            Effect::Partial => "something was left out",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Ids { uid, gid, groups } => {
                if let Some(groups) = groups {
                    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
                    setgroups(&groups)?;
                }
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                setresgid(gid, gid, gid)?;
                Ok(setresuid(uid, uid, uid)?)
            }
            Effect::Environment(variables) => {
                variables.iter().for_each(|(name, value)| sys::set_variable(name, value));
                Ok(())
            }
            Effect::Partial => {
                if hands.status == 0 {
                    hands.status = 3;
                }
                Ok(())
            }
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Ids { uid, gid, groups } if errno == Errno::EINVAL => {
                let unmapped = |kind: Kind, id: u32| {
                    let map = facts.proc.map(facts.who, kind)?;
                    (!map.iter().any(|e| e.inside().has(id)))
                        .then(|| Because::new(format!("{} {id} is not mapped in this user namespace", kind.word())))
                };
                let groups = groups.iter().flatten().chain([gid]);
                groups
                    .map(|gid| unmapped(Kind::Gid, *gid))
                    .find(Option::is_some)
                    .flatten()
                    .or_else(|| unmapped(Kind::Uid, *uid))
            }
            Effect::Ids { .. } if errno == Errno::EPERM => {
                let lacks = facts.proc.status(facts.who).is_some_and(|s| !s.can(crate::proc::CAP_SETUID));
                lacks.then(|| Because::new("this needs CAP_SETUID and CAP_SETGID, and we do not have them"))
            }
            Effect::Ids { .. } | Effect::Environment(_) | Effect::Partial => None,
        }
    }
}

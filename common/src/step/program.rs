//! What a program is started with: ids, capabilities, limits, environment,
//! directory; and the exec by descriptor. credentials(7), capabilities(7),
//! getrlimit(2), seccomp(2), environ(7).

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{AtFlags, OFlag, open};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{execve, execveat, fchdir};

use super::exec;
use super::{Done, Facts, Hands, Step};
use crate::fail::{Again, Because, Errno, Exit, Failure};
use crate::id::{Kind, number};
use crate::ns;
use crate::path;
use crate::proc::{CAP_SETGID, CAP_SETPCAP, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_RESOURCE};
use crate::sys;
use crate::word::{c, quote, quote_all};

/// An effect on what the program will find.
pub enum Effect {
    /// Take the other capabilities out of the bounding set: a bit for each
    /// that stays.
    Bound(u64),
    /// These supplementary groups and no others.
    Groups(Vec<u32>),
    /// All of real, effective and saved gid.
    Gid(u32),
    /// The same of the uid; with `true` what is permitted stays until the exec,
    /// else no capability outlasts that, unless the uid is 0.
    Uid(u32, bool),
    /// Just these capabilities, a bit for each, permitted and ambient: the
    /// program has them whatever its uid.
    Ambient(u64),
    /// No exec gives more privilege than there is.
    NoNewPrivileges,
    /// A limit by its name in prlimit(1): soft, hard.
    Limit(&'static str, u64, u64),
    /// The mask of modes.
    Umask(u32),
    /// Only these variables stay.
    Environment(Vec<OsString>),
    /// Set a variable.
    Variable(OsString, OsString),
    /// Take a variable away.
    NoVariable(OsString),
    /// The working directory, in the root that is now ours.
    Directory(OsString),
    /// The NIS domain name of the uts namespace.
    DomainName(OsString),
    /// A filter program as seccomp(2) takes it.
    Filter(Rc<Vec<u8>>),
    /// Become the program of this descriptor, or the one of this path, with
    /// these words as its arguments.
    Exec(Result<RawFd, OsString>, Vec<OsString>),
}

/// The limits of setrlimit(2): as prlimit(1) and /proc/PID/limits name them.
const LIMITS: [(&str, &str, Resource); 16] = [
    ("as", "Max address space", Resource::RLIMIT_AS),
    ("core", "Max core file size", Resource::RLIMIT_CORE),
    ("cpu", "Max cpu time", Resource::RLIMIT_CPU),
    ("data", "Max data size", Resource::RLIMIT_DATA),
    ("fsize", "Max file size", Resource::RLIMIT_FSIZE),
    ("locks", "Max file locks", Resource::RLIMIT_LOCKS),
    ("memlock", "Max locked memory", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", "Max msgqueue size", Resource::RLIMIT_MSGQUEUE),
    ("nice", "Max nice priority", Resource::RLIMIT_NICE),
    ("nofile", "Max open files", Resource::RLIMIT_NOFILE),
    ("nproc", "Max processes", Resource::RLIMIT_NPROC),
    ("rss", "Max resident set", Resource::RLIMIT_RSS),
    ("rtprio", "Max realtime priority", Resource::RLIMIT_RTPRIO),
    ("rttime", "Max realtime timeout", Resource::RLIMIT_RTTIME),
    ("sigpending", "Max pending signals", Resource::RLIMIT_SIGPENDING),
    ("stack", "Max stack size", Resource::RLIMIT_STACK),
];

/// The limit that `word` names, as prlimit(1) or setrlimit(2) does.
pub fn limit(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let word = word.strip_prefix("rlimit_").unwrap_or(&word);
    LIMITS.iter().find(|(name, ..)| *name == word).map(|(name, ..)| *name)
}

/// The amount that `word` says, a number or `unlimited`.
pub fn amount_in(word: &str) -> Option<u64> {
    if word == "unlimited" { Some(UNLIMITED) } else { number(word.as_bytes()) }
}

/// The limits in the text of /proc/PID/limits: name, soft, hard.
pub fn limits_in(text: &str) -> Vec<(&'static str, u64, u64)> {
    let line = |line: &str| {
        // The title takes 26 columns (fs/proc/base.c).
        let (title, rest) = line.split_at_checked(26)?;
        let (name, ..) = LIMITS.into_iter().find(|(_, known, _)| *known == title.trim_end())?;
        let mut words = rest.split_whitespace();
        Some((name, amount_in(words.next()?)?, amount_in(words.next()?)?))
    };
    text.lines().filter_map(line).collect()
}

/// The bit of the capability that `name` means, with or without `cap_`.
pub fn capability(name: &str) -> Option<u64> {
    sys::capability(name)
}

/// The capabilities in `caps`, a bit for each, by their names without `cap_`.
pub fn capability_names(caps: u64) -> String {
    sys::capability_names(caps)
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, detailing) = (effect.clone(), effect.clone());
        let (doing, asking) = (effect.clone(), effect.clone());
        let mut step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        if matches!(*effect, Effect::Exec(..)) {
            step.exit = |errno| if errno == Errno::ENOENT { Exit::NotFound } else { Exit::NotExecutable };
        }
        step.detail(move || detailing.detail()).because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        let listed = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        match self {
            Effect::Bound(kept) => format!("prctl PR_CAPBSET_DROP all but {}", sys::capability_names(*kept)),
            Effect::Groups(ids) if ids.is_empty() => "setgroups to none".into(),
            Effect::Groups(ids) => format!("setgroups {}", listed(ids)),
            Effect::Gid(id) => format!("setresgid {id}"),
            Effect::Uid(id, _) => format!("setresuid {id}"),
            Effect::Ambient(caps) => format!("prctl PR_CAP_AMBIENT_RAISE {}", sys::capability_names(*caps)),
            Effect::NoNewPrivileges => "prctl PR_SET_NO_NEW_PRIVS 1".into(),
            Effect::Limit(name, soft, hard) => format!("setrlimit {name} {}:{}", amount(*soft), amount(*hard)),
            Effect::Umask(mode) => format!("umask {mode:03o}"),
            Effect::Environment(_) => "clear the environment".into(),
            Effect::Variable(name, value) => format!("setenv {} {}", quote(name), quote(value)),
            Effect::NoVariable(name) => format!("unsetenv {}", quote(name)),
            Effect::Directory(path) => format!("chdir to {}", quote(path)),
            Effect::DomainName(name) => format!("setdomainname {}", quote(name)),
            Effect::Filter(_) => "seccomp SECCOMP_SET_MODE_FILTER".into(),
            Effect::Exec(Ok(n), words) => format!("execveat {n} AT_EMPTY_PATH {}", quote_all(words)),
            Effect::Exec(Err(path), words) => format!("exec {} as {}", quote(path), quote_all(words)),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Environment(kept) if !kept.is_empty() => format!("but {}", quote_all(kept)),
            Effect::Uid(_, true) => "with PR_SET_KEEPCAPS".into(),
            Effect::Uid(1.., false) => "without ambient capabilities".into(),
            Effect::Filter(bytes) => format!("{} instructions", bytes.len() / FILTER),
            Effect::Bound(_)
            | Effect::Groups(_)
            | Effect::Gid(_)
            | Effect::Uid(0, false)
            | Effect::Ambient(_)
            | Effect::NoNewPrivileges
            | Effect::Limit(..)
            | Effect::Umask(_)
            | Effect::Environment(_)
            | Effect::Variable(..)
            | Effect::NoVariable(_)
            | Effect::Directory(_)
            | Effect::DomainName(_)
            | Effect::Exec(..) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Bound(_) => "an exec by uid 0 gives all that is in the bounding set, and nothing else",
            Effect::Groups(_) => "before the uid, since it needs CAP_SETGID",
            Effect::Gid(_) => "before the uid, for the same",
            Effect::Uid(..) => {
                "to go from uid 0 to another takes away all capabilities, from any other none of those that are ambient"
            }
            Effect::Ambient(_) => "an exec by a uid other than 0 drops every capability that is not ambient",
            Effect::NoNewPrivileges => {
                "set-id bits and file capabilities have no effect from here on, also for children"
            }
            Effect::Limit(..) => {
                "to raise a hard limit needs CAP_SYS_RESOURCE in the initial user namespace, so that comes before the uid"
            }
            Effect::Directory(_) => {
                "looked up in the new root, by the ids of the program; links of /proc are not followed"
            }
            Effect::DomainName(_) => "a new uts namespace begins with a copy of the old name",
            Effect::Filter(_) => "last, since it may forbid the calls that were needed until here",
            Effect::Exec(Ok(_), _) => {
                "a descriptor from before the pivot is a program of the old root: it has to be static"
            }
            Effect::Umask(_)
            | Effect::Environment(_)
            | Effect::Variable(..)
            | Effect::NoVariable(_)
            | Effect::Exec(Err(_), _) => "",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Bound(kept) => Ok(sys::bound_capabilities(*kept)?),
            Effect::Groups(ids) => Ok(sys::set_groups(ids)?),
            Effect::Gid(id) => Ok(sys::set_gid(*id)?),
            Effect::Uid(id, keep) => {
                // Where they are not kept they never were: an exec has ended that.
                if *keep {
                    sys::keep_capabilities()?;
                }
                sys::set_uid(*id)?;
                if *keep || *id == 0 {
                    return Ok(());
                }
                Ok(sys::clear_ambient().map_err(|e| Failure::os("clear ambient capabilities", e))?)
            }
            Effect::Ambient(caps) => Ok(sys::only_ambient(*caps)?),
            Effect::NoNewPrivileges => Ok(nix::sys::prctl::set_no_new_privs()?),
            Effect::Limit(name, soft, hard) => {
                let (.., resource) = LIMITS.iter().find(|(known, ..)| known == name).ok_or(Errno::EINVAL)?;
                Ok(setrlimit(*resource, *soft, *hard)?)
            }
            Effect::Umask(mode) => {
                umask(Mode::from_bits_truncate(*mode));
                Ok(())
            }
            Effect::Environment(kept) => {
                let value = |name: &OsString| Some((name.clone(), std::env::var_os(name)?));
                let kept: Vec<_> = kept.iter().filter_map(value).collect();
                sys::clear_environment()?;
                kept.iter().try_for_each(|(name, value)| variable(name, Some(value)))
            }
            Effect::Variable(name, value) => variable(name, Some(value)),
            Effect::NoVariable(name) => variable(name, None),
            Effect::Directory(path) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = open("/", flags, Mode::empty())?;
                let path = c(path).map_err(|_| Errno::EINVAL)?;
                let there = sys::open_in_root(root.as_fd(), &path, libc::O_PATH | libc::O_DIRECTORY, 0)?;
                Ok(fchdir(&there)?)
            }
            Effect::DomainName(name) => Ok(sys::set_domain_name(name.as_bytes())?),
            Effect::Filter(bytes) => Ok(sys::set_filter(bytes)?),
            Effect::Exec(what, words) => Err(exec(what, words, hands).into()),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        let unmapped = |kind: Kind, ids: &[u32]| {
            let map = facts.proc.map(facts.who, kind)?;
            let id = ids.iter().find(|id| !map.iter().any(|e| e.inside().has(**id)))?;
            Some(Because::new(format!("{} {id} is not mapped in this user namespace", kind.word())))
        };
        match self {
            Effect::Groups(_) if errno == Errno::EPERM && facts.proc.setgroups(facts.who) == Some(false) => {
                Some(Because::new("setgroups is denied in this user namespace"))
            }
            Effect::Bound(_) if errno == Errno::EPERM => lacks(CAP_SETPCAP, "CAP_SETPCAP", facts),
            Effect::Groups(_) | Effect::Gid(_) if errno == Errno::EPERM => lacks(CAP_SETGID, "CAP_SETGID", facts),
            Effect::Uid(..) if errno == Errno::EPERM => lacks(CAP_SETUID, "CAP_SETUID", facts),
            Effect::Groups(ids) if errno == Errno::EINVAL => unmapped(Kind::Gid, ids),
            Effect::Gid(id) if errno == Errno::EINVAL => unmapped(Kind::Gid, &[*id]),
            Effect::Uid(id, _) if errno == Errno::EINVAL => unmapped(Kind::Uid, &[*id]),
            Effect::Ambient(caps) if errno == Errno::EPERM => {
                let missing = caps & !sys::permitted();
                let text = format!("{} is not among the capabilities that we have", sys::capability_names(missing));
                (missing != 0).then(|| Because::new(text))
            }
            Effect::Limit(name, _, hard) if errno == Errno::EPERM => over(name, *hard, facts),
            Effect::Limit(_, soft, hard) if errno == Errno::EINVAL => {
                (soft > hard).then(|| Because::new("the soft limit is over the hard one"))
            }
            // From `/` on, where this process is by now; a command would be one outside.
            Effect::Directory(path) => {
                let because = path::reason(Path::new("/").join(path).as_os_str(), errno, facts.proc)?;
                Some(Because::new(because.text))
            }
            Effect::DomainName(name) if errno == Errno::EINVAL => super::ns::too_long(name),
            Effect::DomainName(_) if errno == Errno::EPERM => facts.foreign(ns::Kind::Uts),
            Effect::Filter(_) if errno == Errno::EACCES => {
                let may = facts.proc.status(facts.who).is_some_and(|s| s.no_new_privs || s.can(CAP_SYS_ADMIN));
                let text = "a filter needs no_new_privs (--no-new-privs), or CAP_SYS_ADMIN";
                (!may).then(|| Because::new(text).again(Again::Word("", "--no-new-privs")))
            }
            Effect::Exec(Err(path), _) => exec::refused(path, errno, facts),
            Effect::Exec(Ok(n), _) => exec::descriptor_refused(*n, errno, facts),
            Effect::Bound(_)
            | Effect::Groups(_)
            | Effect::Gid(_)
            | Effect::Uid(..)
            | Effect::Ambient(_)
            | Effect::NoNewPrivileges
            | Effect::Limit(..)
            | Effect::Umask(_)
            | Effect::Environment(_)
            | Effect::Variable(..)
            | Effect::NoVariable(_)
            | Effect::DomainName(_)
            | Effect::Filter(_) => None,
        }
    }
}

pub(super) fn variable(name: &OsStr, value: Option<&OsString>) -> Done {
    let c = |word: &OsStr| c(word).map_err(|_| Errno::EINVAL);
    let value = value.map(|value| c(value)).transpose()?;
    Ok(sys::set_variable(&c(name)?, value.as_deref())?)
}

/// The size of struct sock_filter.
const FILTER: usize = 8;

/// What setrlimit(2) takes for no limit.
const UNLIMITED: u64 = libc::RLIM_INFINITY;

fn amount(n: u64) -> String {
    if n == UNLIMITED { "unlimited".to_owned() } else { n.to_string() }
}

pub(super) fn lacks(cap: u32, name: &str, facts: &Facts<'_>) -> Option<Because> {
    let lacks = facts.proc.status(facts.who).is_some_and(|s| !s.can(cap));
    lacks.then(|| Because::new(format!("this needs {name}, and we do not have it")))
}

/// Why a hard limit was refused: do_prlimit() in kernel/sys.c.
fn over(name: &str, hard: u64, facts: &Facts<'_>) -> Option<Because> {
    // Asked of everybody.
    let most = facts.proc.sysctl("fs/nr_open").filter(|most| name == "nofile" && hard > *most);
    if let Some(most) = most {
        return Some(Because::new(format!("the hard limit of nofile is at most fs.nr_open, which is {most}")));
    }
    let may = facts.proc.status(facts.who).is_some_and(|s| s.can(CAP_SYS_RESOURCE));
    let initial = facts.proc.ns_id(facts.who, ns::Kind::User) == Some(ns::INITIAL_USER);
    let (.., resource) = LIMITS.iter().find(|(known, ..)| *known == name)?;
    let (_, now) = nix::sys::resource::getrlimit(*resource).ok()?;
    let text = format!("the hard limit of {name} is {}, and may only be lowered", amount(now));
    (hard > now && !(may && initial)).then(|| Because::new(text))
}

/// Executes with the signal state that we were started with; only its failure
/// returns.
fn exec(what: &Result<RawFd, OsString>, words: &[OsString], hands: &Hands) -> Errno {
    let strings = |words: Vec<Vec<u8>>| words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let variable = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let words = strings(words.iter().map(|w| w.as_bytes().to_vec()).collect());
    let (Ok(words), Ok(environment)) = (words, strings(std::env::vars_os().map(variable).collect())) else {
        return Errno::EINVAL;
    };
    sys::restore_signals();
    if let Err(e) = hands.mask.thread_set_mask() {
        return e;
    }
    let path = match what {
        Ok(n) => {
            return match execveat(sys::lend(*n), c"", &words, &environment, AtFlags::AT_EMPTY_PATH) {
                Err(e) => e,
                Ok(never) => match never {},
            };
        }
        Err(path) => path.as_bytes(),
    };
    let search = exec::searched();
    let places: Vec<Vec<u8>> = if path.contains(&b'/') {
        vec![path.to_vec()]
    } else {
        search.as_bytes().split(|b| *b == b':').map(|dir| exec::within(dir, path)).collect()
    };
    let mut last = Errno::ENOENT;
    for place in places {
        let Ok(place) = CString::new(place) else { return Errno::EINVAL };
        match execve(&place, &words, &environment) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => last = Errno::EACCES,
            Err(e) => return e,
            Ok(never) => match never {},
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max realtime timeout      1                    2                    us        \n\
                    Max new thing             1                    2                    things    \n";
        assert_eq!(limits_in(text), [("cpu", UNLIMITED, UNLIMITED), ("rttime", 1, 2)]);
        // The kernel's own text has a line for each that we know.
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(limits_in(&text).len(), LIMITS.len());
    }
}

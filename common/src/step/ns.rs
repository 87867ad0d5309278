//! Namespaces: made, entered, held. namespaces(7), unshare(2), setns(2).

pub mod join;
pub mod limit;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};

use super::{Done, Facts, Hands, Step, USERNS};
use crate::fail::{Again, Because, Errno, Failure, Result};
use crate::holder::door;
use crate::id;
use crate::mind;
use crate::mind::child::{self, Child};
use crate::ns::{Kind, flag_names, flags};
use crate::proc::{CAP_SYS_ADMIN, Proc};
use crate::sys;
use crate::target::{self, Target};

/// An effect on namespaces.
pub enum Effect {
    /// Leave the present ones for new ones.
    Unshare(Vec<Kind>),
    /// Enter those of a process.
    Join(Rc<Target>, Vec<Kind>),
    /// Enter one by its file: descriptor, kind, name.
    JoinFile(Rc<OwnedFd>, Kind, String),
    /// Fork, so that what follows runs in the pid namespace just entered.
    IntoPid,
    /// Tell a holder that it has to live at least as long as this process.
    Attach(Rc<Target>),
    /// Take its door, in the child, while that is to be had.
    TakeDoor(Rc<Target>),
    /// Tell it by that which program to end if the parent goes first.
    Entrust(Rc<Target>),
    /// Tell a holder to go.
    Release(Rc<Target>),
    /// Keep the user namespace of the child and end the child: it was made for
    /// its maps, and nobody has to live in it.
    TakeUser,
    /// Make a user namespace around a child that does nothing, to be mapped.
    NewUser,
    /// Use a user namespace that is there already: descriptor and name.
    UseUser(Rc<OwnedFd>, String),
    /// Name the machine.
    Hostname(OsString),
    /// Be the first process of a pid namespace, or give up.
    CheckFirst,
    /// Set the loopback interface up.
    Loopback,
    /// A new time namespace in which clocks are ahead by this much: MONOTONIC
    /// and BOOTTIME.
    Clocks(Ahead, Ahead),
}

/// Seconds and nanoseconds, as timens_offsets takes them: time_namespaces(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// May be negative.
    pub seconds: i64,
    /// 0 to 999999999, always counted forward.
    pub nanoseconds: u32,
}

impl Ahead {
    /// Reads seconds, negative too, with a fraction of up to nine digits.
    pub fn parse(word: &str) -> Option<Ahead> {
        let (minus, digits) = word.strip_prefix('-').map_or((false, word), |rest| (true, rest));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
        if part.is_empty() || part.len() > 9 {
            return None;
        }
        let seconds = i64::try_from(id::number(whole.as_bytes())?).ok()?;
        let zeros = "0".repeat(9 - part.len());
        let digits = part.bytes().all(|b| b.is_ascii_digit()).then(|| format!("{part}{zeros}"))?;
        let nanoseconds: u32 = digits.parse().ok()?;
        Some(match (minus, nanoseconds) {
            (false, _) => Ahead { seconds, nanoseconds },
            (true, 0) => Ahead { seconds: -seconds, nanoseconds },
            (true, _) => Ahead { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    }
}

const CLONE_PARENT: u64 = 0x8000;

/// The names under which a holder's door is handed on, and the enterer whose
/// program this process becomes.
const DOOR: &str = "door";
const ENTERER: &str = "enterer";

fn bits(kinds: &[Kind]) -> CloneFlags {
    // nix has no name for CLONE_NEWTIME.
    CloneFlags::from_bits_retain(i32::try_from(flags(kinds)).unwrap_or(0))
}

/// What stands in a dry pipeline for entering a process that was not made.
pub fn promised() -> Step {
    let why = "one call for all that differ from ours: the kernel enters all or none";
    Step::new(|| "setns ? (the process that ns-new would make)".into(), why, |_| Err(Errno::ESRCH.into()))
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, doing, asking) = (effect.clone(), effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    /// Into the user namespace of a target or, where another owns its mounts, into
    /// that: to enter these takes capabilities there.
    ///
    /// # Errors
    /// Those of `target::files::owner_of_mounts`.
    pub fn to_mounts(proc: &Proc, target: &Rc<Target>) -> Result<Effect> {
        let owner = target::files::owner_of_mounts(proc, target)?.map(Rc::new);
        let by_file = |owner| Effect::JoinFile(owner, Kind::User, format!("{} owner of mnt", target.address));
        Ok(owner.map_or_else(|| Effect::Join(target.clone(), vec![Kind::User]), by_file))
    }

    fn act(&self) -> String {
        match self {
            Effect::Unshare(kinds) => format!("unshare {}", flag_names(kinds)),
            Effect::Join(target, kinds) => format!("setns {} {}", target.address, flag_names(kinds)),
            Effect::JoinFile(_, kind, name) => format!("setns {name} {}", kind.flag_name()),
            Effect::IntoPid => "fork".to_owned(),
            Effect::Attach(target) => format!("attach to holder {}", target.address),
            Effect::TakeDoor(target) => format!("take the door of holder {}", target.address),
            Effect::Entrust(target) => format!("entrust the program to holder {}", target.address),
            Effect::Release(target) => format!("release holder {}", target.address),
            Effect::TakeUser => "open /proc/CHILD/ns/user".to_owned(),
            Effect::NewUser => "clone CLONE_NEWUSER|CLONE_VM".to_owned(),
            Effect::UseUser(_, name) => format!("open {name}"),
            Effect::Loopback => "set lo up".to_owned(),
            Effect::Clocks(monotonic, boottime) => {
                let clock = |name: &str, ahead: &Ahead| format!("{name} {} {}", ahead.seconds, ahead.nanoseconds);
                let both = [clock("monotonic", monotonic), clock("boottime", boottime)].join(", ");
                format!("unshare CLONE_NEWTIME, write /proc/self/timens_offsets '{both}', enter")
            }
            Effect::Hostname(name) => format!("sethostname {}", crate::word::quote(name)),
            Effect::CheckFirst => "check that getpid is 1".to_owned(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Unshare(_) => {
                "new namespaces belong to the user namespace that makes them; a user namespace in the same call owns the others"
            }
            Effect::Join(..) => {
                "one call for all that differ: setns(2) checks everything first with the credentials of before, and enters all or none"
            }
            Effect::JoinFile(..) => "a namespace file stands for one namespace",
            Effect::IntoPid => {
                "a process keeps its pid namespace for life; only its children are born in the one just entered"
            }
            Effect::TakeDoor(_) => "afterwards the holder is another's to us: ptrace(2)",
            Effect::Entrust(_) => {
                "a change of ids clears the program's parent-death signal: a kill of this process would leave it behind"
            }
            Effect::Release(_) => "its namespaces go with it, and a pid namespace with all that lives there",
            Effect::Attach(_) => "the namespaces go with the last one who is attached, however he ends",
            Effect::NewUser => "the maps of a user namespace are what shifts the owners of a mount",
            Effect::TakeUser | Effect::UseUser(..) => {
                "the kernel takes the map of a mount from a user namespace; nobody has to live in it"
            }
            Effect::Loopback => "in a new network namespace it is down, and nothing listens on 127.0.0.1",
            Effect::Clocks(..) => "offsets can be written only while nobody is in the namespace",
            Effect::Hostname(_) => "a new uts namespace begins with a copy of the old name",
            Effect::CheckFirst => "an init is the first process of its pid namespace, to which all orphans fall",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Unshare(kinds) => Ok(unshare(bits(kinds))?),
            Effect::Join(target, kinds) => Ok(setns(&target.fd, bits(kinds))?),
            Effect::JoinFile(fd, kind, _) => Ok(setns(fd.as_fd(), bits(&[*kind]))?),
            Effect::IntoPid => into_pid(hands),
            Effect::Attach(target) => as_allowed(target::attach(target)),
            Effect::TakeDoor(target) => {
                let parent = hands.report.as_ref().ok_or(Errno::ECHILD)?;
                as_allowed(door::take(target.fd.as_fd(), parent.as_fd()).map(|(door, enterer)| {
                    hands.put(DOOR, door);
                    hands.put(ENTERER, enterer);
                }))
            }
            Effect::Entrust(_) => match (hands.get(DOOR), hands.get(ENTERER)) {
                (Ok(door), Ok(enterer)) => as_allowed(door::entrust(door, enterer)),
                _ => Ok(()),
            },
            Effect::Release(target) => Ok(door::release(target.fd.as_fd())?),
            Effect::TakeUser => {
                let proc = Proc::open()?;
                let child = hands.child.take().ok_or(Errno::ECHILD)?;
                let made = child.who(&proc).and_then(|who| proc.ns(&who, Kind::User));
                child::end(&child);
                hands.put(USERNS, made?);
                Ok(())
            }
            Effect::NewUser => {
                let (pid, fd) = sys::user_namespace_child()?;
                hands.child = Some(Child { pid, fd });
                Ok(())
            }
            Effect::UseUser(fd, _) => {
                hands.put(USERNS, sys::duplicate(fd.as_fd())?);
                Ok(())
            }
            Effect::Hostname(name) => Ok(nix::unistd::sethostname(name)?),
            Effect::CheckFirst => is_first(),
            Effect::Loopback => Ok(sys::raise_loopback()?),
            Effect::Clocks(monotonic, boottime) => clocks(*monotonic, *boottime),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Unshare(kinds) => refused(kinds, errno, facts),
            Effect::NewUser => refused(&[Kind::User], errno, facts),
            Effect::Join(target, kinds) => join::refused(target, kinds, errno, facts),
            Effect::Hostname(name) if errno == Errno::EINVAL => too_long(name),
            Effect::Hostname(_) => facts.foreign(Kind::Uts).filter(|_| errno == Errno::EPERM),
            Effect::Loopback => facts.foreign(Kind::Net).filter(|_| errno == Errno::EPERM),
            Effect::Clocks(monotonic, boottime) => clocks_refused([monotonic.seconds, boottime.seconds], errno, facts),
            Effect::JoinFile(fd, kind, _) => join::file_refused(fd, *kind, errno, facts),
            Effect::Attach(target) | Effect::Release(target) if errno == Errno::ENOTSOCK => {
                Some(Because::new(format!("process {} is no holder of ns-new", target.pid)))
            }
            Effect::Attach(target) | Effect::TakeDoor(target) if errno == Errno::ESRCH => target.ended(),
            Effect::Entrust(target) if errno == Errno::EPIPE => target.ended(),
            Effect::Release(target) if errno == Errno::EPERM => target::why::untouchable(facts.proc, &target.who()),
            Effect::Attach(_)
            | Effect::Release(_)
            | Effect::IntoPid
            | Effect::CheckFirst
            | Effect::TakeDoor(_)
            | Effect::Entrust(_)
            | Effect::TakeUser
            | Effect::UseUser(..) => None,
        }
    }
}

/// Whoever may not say it has still the pipe to hold on to.
fn as_allowed(said: std::result::Result<(), Errno>) -> Done {
    match said {
        Ok(()) | Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn clocks(monotonic: Ahead, boottime: Ahead) -> Done {
    unshare(bits(&[Kind::Time]))?;
    let proc = Proc::open()?;
    let line = |name: &str, ahead: Ahead| format!("{name} {} {}\n", ahead.seconds, ahead.nanoseconds);
    let text = line("monotonic", monotonic) + &line("boottime", boottime);
    sys::write_whole(&proc.open_at("self/timens_offsets", OFlag::O_WRONLY)?, text.as_bytes())?;
    // Children would be born there; who is alone may also go by himself.
    let made = proc.open_at("self/ns/time_for_children", OFlag::O_RDONLY)?;
    Ok(setns(made, bits(&[Kind::Time]))?)
}

/// Forks so that the new process has the same parent as this one, tells that
/// parent which it is, and ends this one. Whoever cannot tell ends the new one.
fn into_pid(hands: &mut Hands) -> Done {
    let report = hands.report.as_ref().ok_or(Errno::ECHILD)?;
    match sys::fork(CLONE_PARENT)? {
        sys::Fork::Child => Ok(()),
        sys::Fork::Parent(pid, fd) => {
            let told = mind::send(report.as_fd(), format!("P {pid}").as_bytes(), &[fd.as_fd()]);
            if told.is_ok() {
                sys::exit_now(0)
            }
            let _ = sys::pidfd_signal(fd.as_fd(), nix::libc::SIGKILL);
            Ok(told?)
        }
    }
}

/// Whether this is the first process; the number is that in its own namespace.
fn is_first() -> Done {
    let number = std::process::id();
    if number == 1 {
        return Ok(());
    }
    let text =
        format!("this is process {number} of its pid namespace: the first is the program of ns-new -p, without --init");
    let because = Because::new(text).again(Again::Namespace('p'));
    Err(Failure::refused("be process 1").because(Some(because)).into())
}

// ---- why not ----

/// Why the clocks of a new time namespace could not be set.
fn clocks_refused(ahead: [i64; 2], errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    // KTIME_SEC_MAX / 2 (kernel/time/namespace.c): 146 years.
    const MOST: i64 = 4_611_686_018;
    // PROC_TIME_INIT_INO (include/linux/proc_ns.h).
    const INITIAL_TIME: u64 = 0xEFFF_FFFA;
    if errno != Errno::ERANGE {
        return refused(&[Kind::Time], errno, facts);
    }
    // In another time namespace that is not what offsets are from.
    if facts.proc.ns_id("self", Kind::Time) != Some(INITIAL_TIME) {
        return None;
    }
    let up = facts.proc.text("uptime")?;
    let up: i64 = up.split('.').next()?.parse().ok()?;
    let [one, other] = ahead;
    if one.max(other) > MOST - up {
        return Some(Because::new(format!("a clock would be past {MOST} seconds, which is the last one")));
    }
    (one.min(other) < -up)
        .then(|| Because::new(format!("a clock would become negative: this system has been up for {up} seconds")))
}

/// Why namespaces of `kinds` were not created.
pub fn refused(kinds: &[Kind], errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let proc = facts.proc;
    if errno == Errno::ENOSPC {
        return limit::reached(proc, kinds);
    }
    if errno == Errno::EAGAIN {
        return limit::too_many(facts);
    }
    if errno == Errno::EINVAL && kinds.contains(&Kind::Pid) {
        return elsewhere(facts);
    }
    if errno == Errno::ENOMEM {
        return target::why::is_dead(children(facts)?.as_fd());
    }
    if errno != Errno::EPERM || kinds.is_empty() {
        return None;
    }
    // Without a flag it changes nothing, and only a filter can refuse it.
    if proc.own().seccomp != 0 && unshare(CloneFlags::empty()) == Err(Errno::EPERM) {
        return Some(Because::new("a seccomp filter refuses unshare(2) to this process"));
    }
    if kinds.contains(&Kind::User) {
        return user_refused(proc);
    }
    let lacks = facts.lacks_admin()?;
    // Advised is only what can be.
    if lacks.again.is_some() || user_refused(proc).is_some() || proc.sysctl("user/max_user_namespaces") == Some(0) {
        return Some(lacks);
    }
    let because = Because::new("without a user namespace (ns-new -U) this needs CAP_SYS_ADMIN, and we do not have it");
    Some(because.again(Again::Namespace('U')))
}

/// Why nothing can be executed (EAGAIN): whoever has become a user with too many
/// processes may not go on as a new program.
pub(super) fn user_is_full(facts: &Facts<'_>) -> Option<Because> {
    // What an option has set is not mended by ulimit.
    limit::of_user(facts).map(|because| because.remedy_if(None))
}

/// The pid namespace that our children are born in.
fn children(facts: &Facts<'_>) -> Option<OwnedFd> {
    facts.proc.open_at("self/ns/pid_for_children", OFlag::O_RDONLY).ok()
}

/// Whether our children are born in another pid namespace than we are in.
fn elsewhere(facts: &Facts<'_>) -> Option<Because> {
    let apart = children(facts).is_none_or(|ns| !target::files::is_ours(facts.proc, &ns, Kind::Pid));
    let text = "our children would be born in a new pid namespace already (unshare --pid without --fork), and one of these has to begin before another can be made";
    apart.then(|| Because::new(text))
}

/// Names are in struct new_utsname, 64 bytes each: uname(2).
pub(super) fn too_long(name: &OsStr) -> Option<Because> {
    (name.len() > 64).then(|| Because::new(format!("a name has at most 64 bytes, and this one has {}", name.len())))
}

fn user_refused(proc: &Proc) -> Option<Because> {
    let said = |text: String| Some(Because::new(text));
    let own = proc.own();
    // Debian's switch asks for the capability in the initial user namespace.
    let admin = own.can(CAP_SYS_ADMIN) && proc.in_initial().unwrap_or(true);
    for (name, value, may, rule) in [
        ("kernel/unprivileged_userns_clone", 0, admin, "making user namespaces is switched off for ordinary users"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            1,
            own.uid[1] == 0,
            "AppArmor leaves making user namespaces to programs that have a profile for it",
        ),
    ] {
        if proc.sysctl(name) == Some(value) && !may {
            let setting = name.replace('/', ".");
            let cure = format!("sudo sysctl -w {setting}={}", 1 - value);
            return Some(Because::new(format!("{rule} ({setting} is {value})")).remedy(cure));
        }
    }
    if proc.is_chrooted() {
        return said("this process is chrooted, and a user namespace would let it out: pivot_root(2) instead".into());
    }
    for (kind, me) in [(id::Kind::Uid, own.uid[1]), (id::Kind::Gid, own.gid[1])] {
        let map = proc.map("self", kind)?;
        if !map.iter().any(|e| e.inside().has(me)) {
            return said(format!("our own {} is not mapped in the user namespace that we are in", kind.word()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_with_fractions() {
        let at = |word| Ahead::parse(word).map(|a| (a.seconds, a.nanoseconds));
        assert_eq!(at("86400"), Some((86400, 0)));
        assert_eq!(at("0.5"), Some((0, 500_000_000)));
        assert_eq!(at("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(at("-3"), Some((-3, 0)));
        assert_eq!(at("1.000000001"), Some((1, 1)));
        for bad in ["", "-", ".5", "1.", "1.0000000001", "1e3", "+1", "--1", "1.-5", "99999999999999999999"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }
}

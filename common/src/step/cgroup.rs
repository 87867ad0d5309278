//! A cgroup made for a program, and taken away after it. cgroups(7).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::poll::PollFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::kill;
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Pid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::{Done, Facts, Hands, Step, USERNS};
use crate::cgroup::{Cgroup, DIRECTORY, NAME};
use crate::fail::{Because, Errno, Failure};
use crate::mind;
use crate::mind::child::{self, Child};
use crate::ns::Kind;
use crate::proc::Proc;
use crate::sys;

/// An effect on a new cgroup.
pub enum Effect {
    /// Make it, for this user and group.
    Make(Rc<Cgroup>, Option<(u32, u32)>),
    /// Keep the user namespace of the child.
    KeepUser,
    /// End what is still in it, and take it away with what is below.
    Remove(Rc<Cgroup>),
}

/// What a cgroup's new owner gets beside its directory (/sys/kernel/cgroup/delegate
/// has more on newer kernels, for limits that are his own).
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

/// How long what was killed in a cgroup may take to go.
const PATIENCE: Duration = Duration::from_secs(2);

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
            Effect::Make(cgroup, _) => format!("mkdir {}", cgroup.name()),
            Effect::KeepUser => "open /proc/CHILD/ns/user".to_owned(),
            Effect::Remove(cgroup) => format!("rmdir {}", cgroup.name()),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Make(_, Some((uid, gid))) => format!("for {uid}:{gid}"),
            Effect::Remove(_) => "with what is in it".to_owned(),
            Effect::Make(_, None) | Effect::KeepUser => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Make(..) => "a process is born into one that is there; beside our own if that may be, or below",
            Effect::KeepUser => "what ids of its make in the cgroup may be beyond our reach from outside",
            Effect::Remove(_) => "a cgroup stays until it is removed, which it can be when it is empty",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Make(cgroup, owner) => {
                // A signal may not part us from what we have made.
                mind::block_signals()?;
                make(cgroup, *owner)?;
                let made = cgroup.clone();
                hands.undo.push(Box::new(move || remove(&made, None).unwrap_or_default()));
                Ok(())
            }
            Effect::KeepUser => {
                let proc = Proc::open()?;
                let who = hands.child.as_ref().ok_or(Errno::ECHILD)?.who(&proc)?;
                // A first process of ours lets nobody look; then it is done without.
                if let Ok(userns) = proc.ns(&who, Kind::User) {
                    hands.put(USERNS, userns);
                }
                Ok(())
            }
            Effect::Remove(cgroup) => {
                if let Err(errno) = remove(cgroup, hands.get(USERNS).ok()) {
                    // The program has ended, and its exit status is what counts.
                    mind::tell(&format!("ns-new: {}\n", Failure::os(self.act(), errno)));
                }
                Ok(())
            }
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Make(cgroup, _) => cgroup.not_made(errno, facts.proc),
            Effect::KeepUser | Effect::Remove(_) => None,
        }
    }
}

fn make(cgroup: &Cgroup, owner: Option<(u32, u32)>) -> std::result::Result<(), Errno> {
    let (above, name, made) = cgroup.place().ok_or(Errno::EINVAL)?;
    clear(above);
    mkdirat(above, name.as_c_str(), Mode::from_bits_truncate(0o755))?;
    let finish = || {
        let dir = openat(above, name.as_c_str(), DIRECTORY, Mode::empty())?;
        // Whatever the umask: other users inside look for their own in there.
        fchmod(&dir, Mode::from_bits_truncate(0o755))?;
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            for file in DELEGATED.into_iter().chain(["."]) {
                fchownat(&dir, file, uid, gid, AtFlags::empty())?;
            }
        }
        Ok(dir)
    };
    match finish() {
        Ok(dir) => made.set(dir).map_err(|_| Errno::EEXIST),
        Err(errno) => {
            let _ = unlinkat(above, name.as_c_str(), UnlinkatFlags::RemoveDir);
            Err(errno)
        }
    }
}

/// Takes away what was left by those who were killed: no process has the number
/// that it is called by, and the kernel finds it empty. Not what has just been
/// made, perhaps in another pid namespace, and is about to get a process.
fn clear(above: BorrowedFd<'_>) {
    let is_old = |name: &CStr| {
        let made = fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|stat| stat.st_ctime).unwrap_or(i64::MAX);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        i64::try_from(now).unwrap_or(0).saturating_sub(made) > 1
    };
    let Ok(mut dir) = Dir::openat(above, ".", DIRECTORY, Mode::empty()) else { return };
    for entry in dir.iter().flatten() {
        let name = entry.file_name();
        let number = name.to_str().ok().and_then(|name| name.strip_prefix(NAME)?.split('-').next()?.parse().ok());
        let gone = number.is_some_and(|pid| pid > 0 && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH));
        if gone && is_old(name) {
            let _ = unlinkat(above, name, UnlinkatFlags::RemoveDir);
        }
    }
}

/// Takes a cgroup away. Where that is not ours to do, a child does it that is
/// root in `userns`.
fn remove(cgroup: &Cgroup, userns: Option<BorrowedFd<'_>>) -> std::result::Result<(), Errno> {
    let (above, name, made) = cgroup.place().ok_or(Errno::EINVAL)?;
    let Some(dir) = made.get() else { return Ok(()) };
    let all = || {
        empty(dir)?;
        unlinkat(above, name.as_c_str(), UnlinkatFlags::RemoveDir)
    };
    match (patiently(dir, all), userns) {
        (Err(Errno::EACCES), Some(userns)) => match sys::fork(0)? {
            sys::Fork::Child => {
                let gone = setns(userns, CloneFlags::CLONE_NEWUSER).and_then(|()| patiently(dir, || empty(dir)));
                sys::exit_now(u8::from(gone.is_err()));
            }
            sys::Fork::Parent(pid, fd) => {
                child::reap(&Child { pid, fd });
                patiently(dir, all)
            }
        },
        (done, _) => done,
    }
}

/// Ends what runs in a cgroup, and does `what` as soon as that is possible.
fn patiently(dir: &OwnedFd, what: impl Fn() -> std::result::Result<(), Errno>) -> std::result::Result<(), Errno> {
    let file = |name: &str, flags| openat(dir, name, flags | OFlag::O_CLOEXEC, Mode::empty());
    // Since Linux 5.14; before, who is left in there stays.
    if let Ok(kill) = file("cgroup.kill", OFlag::O_WRONLY) {
        let _ = sys::write_whole(&kill, b"1");
    }
    let begin = Instant::now();
    loop {
        match what() {
            Err(Errno::EBUSY) if begin.elapsed() < PATIENCE => {}
            done => return done,
        }
        // Changes when the last process has gone, of which the news may be old.
        let events = file("cgroup.events", OFlag::O_RDONLY)?;
        mind::wait_for(&[(events.as_fd(), PollFlags::POLLPRI)], Some(20))?;
    }
}

/// Takes away the cgroups below `dir`, the lowest first.
fn empty(dir: &OwnedFd) -> std::result::Result<(), Errno> {
    let mut names = Vec::new();
    // Closed before going down, where each level needs a descriptor.
    for entry in Dir::openat(dir, ".", DIRECTORY, Mode::empty())?.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if entry.file_type() == Some(nix::dir::Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    for name in names {
        empty(&openat(dir, name.as_c_str(), DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?)?;
        unlinkat(dir, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

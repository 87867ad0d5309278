//! Holders: who keeps namespaces that nobody lives in yet.
//!
//! A holder is two processes where there is a new pid namespace. The one whose
//! address is handed out stays *outside* of that namespace: in it, and as the
//! user that it is, the root of the container could trace it, and reach through
//! it whatever it sees and may. The other is the first process inside, which
//! reaps and can be touched by nobody: it is not dumpable, and it has forked
//! only, so that what counts over its memory is the user namespace of outside
//! (ptrace(2); __ptrace_may_access() in kernel/ptrace.c).
//!
//! Enterers attach through the holder's *door*, a socket that they take from it
//! by pidfd_getfd(2), and pass a pidfd of themselves and one of their program.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::poll::PollFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{chdir, getpid, setsid};

use crate::lease::Lease;
use crate::mind;
use crate::mind::child::Child;
use crate::mind::program::PASSED_ON;
use crate::sys;

pub mod door;
pub mod stage;

type Result<T> = std::result::Result<T, Errno>;

/// Where a holder keeps its end for whoever wants to attach: pidfd_getfd(2)
/// needs a number that both sides know.
pub const DOOR: RawFd = 3;

/// How long a holder stays when the last one has left, in milliseconds: of two
/// enterers on one stream (tee(1)) one may be done before the other has begun.
const GRACE: u16 = 200;

/// How long nobody has to have attached before the user is told, and how long
/// a holder may take to end, in milliseconds.
const PATIENCE: u16 = 2000;

/// What an enterer says when it attaches; any other byte is the signal that its
/// program died of.
const HERE: u8 = 0;

/// What a stage says that makes a helper ready, before which nobody can enter.
const NOT_YET: u8 = u8::MAX - 1;

/// What it says when that is ready, or leaves to us.
const BESIDE: u8 = u8::MAX;

/// What an enterer says whose program has ended by itself.
const ENDED: u8 = 128;

/// What it says of one that was killed: SIGKILL.
const KILLED: u8 = 9;

/// The signal of an enterer who cannot get to the door: a real-time one, of which
/// two that come at once stay two (signal(7)).
const KNOCK: c_int = 36;

/// What a holder lives for.
pub struct Life {
    /// Readable or hung up as soon as it is over: the other end of a socket,
    /// or a pidfd.
    until: OwnedFd,
    /// The two ends of the holder's door: its own, and that which enterers take.
    door: (OwnedFd, OwnedFd),
    /// What the parent keeps open as long as it lives, if it is for the parent.
    parent: Option<OwnedFd>,
}

impl Life {
    /// A holder that lives as long as this process, its parent.
    ///
    /// # Errors
    /// Those of socketpair(2); ENOSYS: without pidfd_open(2) it could not watch
    /// whoever enters, and without pidfd_send_signal(2) nobody could enter.
    pub fn of_this_process() -> Result<Life> {
        sys::pidfd_signal(sys::pidfd_open(getpid().as_raw())?.as_fd(), 0)?;
        let (parent, until) = mind::pair()?;
        Ok(Life { until, door: mind::pair()?, parent: Some(parent) })
    }

    /// A holder that lives as long as process `pid`.
    ///
    /// # Errors
    /// ESRCH: there is none.
    pub fn of(pid: i32) -> Result<Life> {
        Ok(Life { until: sys::pidfd_open(pid)?, door: mind::pair()?, parent: None })
    }
}

// ---- the first process of a pid namespace ----

/// Reaps whatever is left to it, for ever: the holder, its parent, ends it.
///
/// # Errors
/// Those of the calls that leave everything else behind.
pub fn be_first() -> Result<()> {
    leave_everything()?;
    sys::close_from(DOOR)?;
    let children: SigSet = [Signal::SIGCHLD].into_iter().collect();
    loop {
        while let Ok(Some(_)) = sys::child_change(None) {}
        let _ = children.wait();
    }
}

/// Out of the terminal's reach, in no directory that could not be unmounted
/// then, and without the standard descriptors: somebody may wait for the end
/// of what he reads from them.
fn leave_everything() -> Result<()> {
    setsid()?;
    chdir("/")?;
    let nothing = mind::nothing()?;
    (0..3).try_for_each(|number| sys::place(nothing.as_fd(), number))
}

// ---- the holder ----

/// Somebody who is attached, and what has to go with him.
struct Guest {
    enterer: OwnedFd,
    program: Option<OwnedFd>,
}

/// Holds the namespaces of this process until its life is over or, once
/// somebody has attached, until the last of those has gone; then ends `first`,
/// and with it all that lives in its pid namespace. Closes everything else at
/// the beginning, also what it was told to report on: that says it is ready.
///
/// # Errors
/// Those of the calls until then.
pub fn hold(life: &Life, first: Option<Child>, report: &mut Option<OwnedFd>) -> Result<()> {
    // First out of the way of the numbers that are about to be taken.
    let lowest = DOOR + 5;
    let high = |fd: BorrowedFd<'_>| sys::dup_above(fd.as_raw_fd(), lowest);
    *report = report.as_ref().map(|fd| high(fd.as_fd())).transpose()?;
    leave_everything()?;
    // Two for each guest.
    let _ = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    let signals = mind::waiting(mind::minded())?;
    let kept: Vec<BorrowedFd<'_>> = [life.door.1.as_fd(), life.door.0.as_fd(), life.until.as_fd(), signals.as_fd()]
        .into_iter()
        .chain(first.as_ref().map(|f| f.fd.as_fd()))
        .collect();
    let away: Vec<OwnedFd> = kept.iter().map(|fd| high(*fd)).collect::<Result<_>>()?;
    for (number, fd) in (DOOR..).zip(&away) {
        sys::place(fd.as_fd(), number)?;
    }
    let first = first.map(|f| (f, sys::lend(DOOR + 4)));
    sys::close_from(if first.is_some() { lowest } else { lowest - 1 })?;
    let mut left = Vec::new();
    let (door, until, signals) = (sys::lend(DOOR + 1), sys::lend(DOOR + 2), sys::lend(DOOR + 3));
    let _ = watch(door, until, signals, first.as_ref().map(|(_, fd)| *fd), life.parent.is_some(), &mut left);
    if let Some((_, fd)) = first {
        if sys::pidfd_signal(fd, Signal::SIGKILL as c_int).is_ok() {
            // Reported only once nothing is left in its pid namespace.
            let _ = waitid(Id::PIDFd(fd), WaitPidFlag::WEXITED);
        }
    }
    left.iter().for_each(end_helper);
    // Nothing that is dropped here may close a number twice.
    sys::exit_now(0)
}

/// Ends a helper that was left to us, with the group that it leads or has led. A
/// stage that is there does so, too, and waits longer before it kills; one that
/// is being killed is seen to be gone only a moment after its pipe.
fn end_helper(left: &Guest) {
    let Some(helper) = &left.program else { return };
    let _ = sys::pidfd_signal(helper.as_fd(), Signal::SIGTERM as c_int);
    if mind::ready_within(left.enterer.as_fd(), GRACE) == Ok(true) {
        left.end_program();
        let _ = sys::pidfd_signal_group(helper.as_fd(), Signal::SIGKILL as c_int);
    }
}

fn watch(
    door: BorrowedFd<'_>,
    until: BorrowedFd<'_>,
    signals: BorrowedFd<'_>,
    first: Option<BorrowedFd<'_>>,
    piped: bool,
    left: &mut Vec<Guest>,
) -> Result<()> {
    let mut guests: Vec<Guest> = Vec::new();
    // Unlimited until somebody has been attached and nobody is any more.
    let mut limit = None;
    loop {
        let mut fds = vec![(until, PollFlags::POLLIN), (door, PollFlags::POLLIN), (signals, PollFlags::POLLIN)];
        fds.extend(first.map(|fd| (fd, PollFlags::POLLIN)));
        let others = fds.len();
        fds.extend(guests.iter().map(|g| (g.enterer.as_fd(), PollFlags::POLLIN)));
        let ready = mind::wait_for(&fds, limit)?;
        let over = ready[0] || (first.is_some() && ready[3]) || (limit.is_some() && !ready[1] && !ready[2]);
        let had = !guests.is_empty();
        let mut gone = ready[others..].iter();
        guests.retain(|guest| {
            let stays = gone.next() != Some(&true);
            if !stays {
                guest.end_program();
            }
            stays
        });
        let heard = if ready[2] { hear(signals)? } else { Heard::default() };
        for pid in &heard.knocked {
            // Who cannot get to the door will not say how its program ended.
            [HERE, ENDED].iter().for_each(|byte| tell(until, *byte));
            guests.extend(sys::pidfd_open(*pid).ok().map(|enterer| Guest { enterer, program: None }));
        }
        // Who came before a signal did is here when that is looked at; and what the last
        // one said before he left is for our parent.
        while mind::ready_within(door, 0)?
            && let Some(guest) = take_in(door, until, left)?
        {
            guests.extend(guest);
        }
        // In a pipeline it is for the program, if there is one (`stage::Parting`).
        let passes_on = |number: &c_int| piped && guests.iter().filter(|guest| guest.tell(*number)).count() > 0;
        if over || heard.goes || !heard.ends.iter().all(passes_on) {
            guests.iter().for_each(Guest::end_program);
            return Ok(());
        }
        if had || limit.is_some() || heard.knocked.iter().any(|pid| *pid > 0) {
            limit = guests.is_empty().then_some(GRACE);
        }
    }
}

impl Guest {
    /// Whether this is who has entered, and has been told of signal `number`: another
    /// user's cannot be.
    fn tell(&self, number: c_int) -> bool {
        self.program.is_none() && sys::pidfd_signal_as(self.enterer.as_fd(), number, PASSED_ON).is_ok()
    }

    /// An enterer that was killed leaves a program behind which has cleared its
    /// parent-death signal, as every change of ids does.
    fn end_program(&self) {
        if let Some(program) = &self.program {
            let _ = sys::pidfd_signal(program.as_fd(), Signal::SIGKILL as c_int);
        }
    }
}

/// Takes one message: a guest, or how a program ended. The parent, if we live for
/// it, is told both. Or a helper that is `left` to us.
fn take_in(door: BorrowedFd<'_>, until: BorrowedFd<'_>, left: &mut Vec<Guest>) -> Result<Option<Option<Guest>>> {
    let mut byte = [0; 1];
    match mind::receive(door, &mut byte) {
        Ok((_, fds)) => {
            let mut fds = fds.into_iter();
            let guest = fds.next().map(|enterer| Guest { enterer, program: fds.next() });
            tell(until, byte[0]);
            if [NOT_YET, BESIDE].contains(&byte[0]) {
                left.extend(guest);
                return Ok(Some(None));
            }
            Ok(Some(guest))
        }
        // A guest, and no descriptor left for him: the others stay.
        Err(Errno::ENOBUFS) => Ok(Some(None)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Tells the parent, if we live for it, and if it reads.
fn tell(until: BorrowedFd<'_>, byte: u8) {
    let _ = mind::send(until, &[byte], &[]);
}

/// What the signals at hand say.
#[derive(Default)]
struct Heard {
    /// To go.
    goes: bool,
    /// That it is time to end: these.
    ends: Vec<c_int>,
    /// That these are here; 0 stands for somebody of an outer pid namespace.
    knocked: Vec<i32>,
}

fn hear(signals: BorrowedFd<'_>) -> Result<Heard> {
    let mut heard = Heard::default();
    loop {
        // nix reads only through a SignalFd that owns its descriptor; ours is
        // known by a number.
        let mut bytes = [0u8; size_of::<libc::signalfd_siginfo>()];
        match nix::unistd::read(signals, &mut bytes) {
            Ok(n) if n == bytes.len() => {}
            Err(Errno::EINTR) => {}
            Ok(_) | Err(Errno::EAGAIN) => return Ok(heard),
            Err(e) => return Err(e),
        }
        let info = sys::signal_info(&bytes);
        let number = c_int::try_from(info.ssi_signo).unwrap_or(0);
        match number {
            libc::SIGINT | libc::SIGQUIT => heard.goes = true,
            libc::SIGTERM | libc::SIGHUP => heard.ends.push(number),
            KNOCK => heard.knocked.push(i32::try_from(info.ssi_pid).unwrap_or(0)),
            _ => {}
        }
    }
}

// ---- the holder of a lease ----

/// Holds `lease` until the process of `until` has ended, then leaves. Closes
/// everything else at the beginning, also what it was told to report on.
///
/// # Errors
/// Those of the calls until then.
pub fn keep(lease: &Lease, until: &OwnedFd, report: &mut Option<OwnedFd>) -> Result<()> {
    // Above what they are then placed on.
    let lowest = DOOR + 4;
    let high = |fd: &OwnedFd| sys::dup_above(fd.as_raw_fd(), lowest);
    *report = report.as_ref().map(high).transpose()?;
    leave_everything()?;
    let away: Vec<OwnedFd> = [until].into_iter().chain(lease.files()).map(high).collect::<Result<_>>()?;
    let mut next = DOOR;
    for fd in &away {
        sys::place(fd.as_fd(), next)?;
        next += 1;
    }
    sys::close_from(next)?;
    let _ = mind::wait_for(&[(sys::lend(DOOR), PollFlags::POLLIN)], None);
    // Nothing that is dropped here may close a number twice.
    sys::exit_now(0)
}

//! The foreground of the caller's terminal, lent to a program in another pid
//! namespace: tcsetpgrp(3), credentials(7).
//!
//! The process group that a shell put us into has no number in there. An
//! interactive shell begins by asking which group it is in, and at its end makes
//! that the foreground again: with 0 for a number it fails. So the program leads a
//! group of its own, and that is in front.
//!
//! Whoever minds it goes with it, since the keys become signals for the whole
//! group, and the kernel drops what the first process of a pid namespace does
//! not handle; and is back in the old group whenever it stops, and at the end:
//! the shell continues that one, and nobody else.

use std::cell::{Cell, RefCell};
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::c_int;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, getpid, getsid, isatty, setpgid, tcgetpgrp, tcsetpgrp};

use crate::mind::child::{self, Child};
use crate::proc::Proc;
use crate::sys;

/// A terminal, and who was in front of it.
pub struct Front {
    terminal: OwnedFd,
    /// The group of ours, and of the other stages.
    group: Pid,
    /// Who stays in it: the other stages may end, and nobody can go into a group
    /// that has gone.
    keeper: RefCell<Option<Child>>,
    /// Whether the program's group is in front, or one that it has put there: what
    /// a shell has taken is not ours to take back.
    lent: Cell<bool>,
    /// Who is to be in front once we go on: a job of the program's, perhaps.
    next: Cell<Option<Pid>>,
}

impl Front {
    /// The terminal that is standard output, if the program reads from it too
    /// (descriptor `stdin`; None: the terminal is found for it), and our group is
    /// in front of it. Who leads a session cannot leave it.
    pub fn find(stdin: Option<RawFd>) -> Option<Front> {
        let is_terminal = |number| isatty(sys::lend(number)) == Ok(true);
        if !is_terminal(1) || !stdin.is_none_or(is_terminal) {
            return None;
        }
        let group = getpgrp();
        // 0 for both where neither has a number in our pid namespace.
        if group.as_raw() == 0 || tcgetpgrp(sys::lend(1)) != Ok(group) || getsid(None) == Ok(getpid()) {
            return None;
        }
        let terminal = sys::duplicate(sys::lend(1)).ok()?;
        let (keeper, lent, next) = (RefCell::new(None), Cell::new(false), Cell::new(None));
        Some(Front { terminal, group, keeper, lent, next })
    }

    /// A child is about to `lead`.
    pub fn lend(&self) {
        self.lent.set(true);
    }

    /// Makes this process lead a group of its own, and that the foreground. SIGTTOU
    /// has to be blocked.
    ///
    /// # Errors
    /// EPERM: it leads a session; ENOTTY: the terminal has gone.
    pub fn lead(&self) -> Result<(), Errno> {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        tcsetpgrp(&self.terminal, getpid())
    }

    /// Goes into the group of `child`, which leads it: what comes from the terminal
    /// comes here, too.
    pub fn join(&self, child: &Child) {
        if self.group != getpid() && self.keeper.borrow().is_none() {
            let Ok(keeper) = child::stay_behind() else { return };
            self.keeper.replace(Some(keeper));
        }
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(child.pid));
    }

    /// Goes back for good, and our group is in front again.
    pub fn leave(&self) {
        let _ = self.back();
        self.keeper.take().iter().for_each(child::end);
    }

    fn back(&self) -> Result<(), Errno> {
        setpgid(Pid::from_raw(0), self.group)?;
        if self.lent.take() {
            self.next.set(tcgetpgrp(&self.terminal).ok().filter(|now| *now != self.group));
            tcsetpgrp(&self.terminal, self.group)?;
        }
        Ok(())
    }

    /// A key has been pressed that is a signal for all that are in front: the
    /// other stages would be, and a script that waits for them.
    pub fn spread(&self, number: c_int) {
        if let Ok(signal) = Signal::try_from(number) {
            let _ = kill(Pid::from_raw(-self.group.as_raw()), signal);
        }
    }

    /// Whether our group is in front, and the program's was not told: a shell sends
    /// no SIGCONT to a job that runs when it brings that to the front.
    pub fn is_unheard(&self) -> bool {
        !self.lent.get() && tcgetpgrp(&self.terminal) == Ok(self.group)
    }

    /// `child` has stopped, by signal `number`; answers whether we are to stop, too.
    /// Not where our group is in front: a shell may have put it there late, or not
    /// have told; and not where nobody could continue us: the kernel drops the key
    /// then.
    pub fn stops(&self, child: &Child, number: c_int, proc: &Proc) -> bool {
        let reads = [Signal::SIGTTIN, Signal::SIGTTOU].iter().any(|signal| *signal as c_int == number);
        let early = reads && tcgetpgrp(&self.terminal) == Ok(self.group);
        if !early && self.back().is_ok() && !is_orphaned(proc) {
            return true;
        }
        self.go_on(child);
        false
    }

    /// We have been continued, and `child` is, in front if we are.
    pub fn go_on(&self, child: &Child) {
        let leader = Pid::from_raw(child.pid);
        self.lent.set(tcgetpgrp(&self.terminal) == Ok(self.group));
        if self.lent.get() {
            self.join(child);
            let next = self.next.take().unwrap_or(leader);
            let _ = tcsetpgrp(&self.terminal, next).or_else(|_| tcsetpgrp(&self.terminal, leader));
        }
        let _ = kill(Pid::from_raw(-child.pid), Signal::SIGCONT);
    }
}

/// Whether no shell has an eye on our group: setpgid(2), orphaned process group.
fn is_orphaned(proc: &Proc) -> bool {
    // As proc counts, which may be that of an outer pid namespace.
    let Some([mut above, group, session]) = proc.job("self") else { return true };
    loop {
        match proc.job(&above.to_string()) {
            Some([parent, its, _]) if its == group => above = parent,
            Some([_, _, its]) => return its != session,
            None => return true,
        }
    }
}

//! How a stage of a pipeline stays once it has done its work: as long as its reader,
//! and as the holder that keeps the namespaces.
//!
//! To who ends it the pipeline is one program. A key reaches all stages and is for the
//! program, so it waits (`mind::be_patient`). SIGTERM and SIGHUP come to one of them
//! (timeout(1), a supervisor) or to all (`kill %1`, a terminal that is closed), and are
//! for the program as well: stage, holder, enterer, program.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::libc::c_int;
use nix::poll::PollFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{Shutdown, shutdown};

use super::{BESIDE, ENDED, HERE, KILLED, Life, NOT_YET, PATIENCE, Result};
use crate::mind;
use crate::mind::child::{self, Child};
use crate::mind::program::FOR_ALL;
use crate::sys;

/// Stays until the reader of standard output has gone, or the holder, which `tell`
/// passes a signal on to.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn linger(mask: &SigSet, holder: BorrowedFd<'_>, tell: Tell<'_>) -> Result<()> {
    mind::be_patient(mask)?;
    stay(mask, holder, tell)?;
    leave();
    Ok(())
}

/// The same without a holder: who is told to end does so two seconds later, since
/// what is kept here is used by a program that has been told as well.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn keep(mask: &SigSet) -> Result<()> {
    let signals = listen(mask)?;
    if !mind::wait_for(&[reader(), (signals.as_fd(), PollFlags::POLLIN)], None)?[0] {
        let gone = mind::wait_for(&[reader()], Some(PATIENCE))?[0];
        if let Some(info) = signals.read_signal()?.filter(|_| !gone) {
            mind::die_of(c_int::try_from(info.ssi_signo).unwrap_or(0), mask);
        }
    }
    leave();
    Ok(())
}

fn leave() {
    // The first stage dies after us, then: `die_last`.
    if mind::key().is_none() {
        mind::leave();
    }
}

/// No event asked for: POLLERR and POLLHUP come all the same.
fn reader() -> (BorrowedFd<'static>, PollFlags) {
    (sys::lend(1), PollFlags::empty())
}

fn stay(mask: &SigSet, holder: BorrowedFd<'_>, tell: Tell<'_>) -> Result<()> {
    let (signals, mut parting) = (listen(mask)?, Parting::by(tell));
    loop {
        let fds = [reader(), (holder, PollFlags::POLLIN), (signals.as_fd(), PollFlags::POLLIN)];
        let ready = mind::wait_for(&fds, parting.left())?;
        if ready[0] {
            return Ok(());
        }
        if ready[1] || parting.is_over() {
            break;
        }
        parting.hear(&signals)?;
    }
    if let Some(signal) = parting.told {
        mind::die_of(signal, mask);
    }
    Ok(())
}

/// The same for the parent of a holder, which then ends that. Where nobody has
/// attached after two seconds, nobody may ever: `$(...)` and `| while read` wait for
/// us to end, as we wait for them. Then `note` is told, once.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn linger_over(mask: &SigSet, child: &Child, life: &Life, note: &dyn Fn() -> String) -> Result<()> {
    let (mut said, mut told) = (None, None);
    let over = wait_over(mask, child, life, note, (&mut said, &mut told));
    if let Some(parent) = &life.parent {
        // It ends its pid namespace first, which we cannot wait for ourselves.
        let _ = shutdown(parent.as_raw_fd(), Shutdown::Write);
        let _ = mind::ready_within(child.fd.as_fd(), PATIENCE);
        while mind::ready_within(parent.as_fd(), 0) == Ok(true)
            && let Ok(Some(byte)) = mind::heard(parent.as_fd())
        {
            said = word(byte).or(said);
        }
    }
    child::end(child);
    let signal = match said {
        Some(ENDED) => None,
        Some(signal) if signal != KILLED => Some(signal.into()),
        // A filter between the stages that dies of what all were sent takes the
        // others with it, which kills a program that had caught it.
        killed => mind::key().or(told).or(killed.map(c_int::from)),
    };
    if let Some(signal) = signal {
        mind::die_last(signal, mask);
    }
    over
}

/// What a byte from the holder says of a program's end: the signal that it died of,
/// or ENDED.
fn word(byte: u8) -> Option<u8> {
    Some(byte).filter(|byte| ![HERE, NOT_YET, BESIDE].contains(byte))
}

/// Reads all that the holder says, which would wait for room otherwise. A signal is its
/// to judge: it knows before us whether somebody is there whose program could hear it,
/// and ends where nobody is.
fn wait_over(
    mask: &SigSet,
    child: &Child,
    life: &Life,
    note: &dyn Fn() -> String,
    (said, told): (&mut Option<u8>, &mut Option<c_int>),
) -> Result<()> {
    let gone = [reader(), (child.fd.as_fd(), PollFlags::POLLIN)];
    let tell = |number| child::signal(child, number);
    let (signals, mut limit, mut parting) = (listen(mask)?, Some(PATIENCE), Parting::by(&tell));
    while let Some(parent) = &life.parent {
        let told_by = [(parent.as_fd(), PollFlags::POLLIN), (signals.as_fd(), PollFlags::POLLIN)];
        let ready = mind::wait_for(&[gone, told_by].concat(), limit.into_iter().chain(parting.left()).min())?;
        parting.hear(&signals)?;
        *told = parting.told;
        if ready[0] || ready[1] || parting.is_over() {
            return Ok(());
        }
        if !ready.contains(&true) {
            mind::tell(&note());
            limit = None;
        }
        if !ready[2] {
            continue;
        }
        let Some(byte) = mind::heard(parent.as_fd())? else { break };
        limit = (byte == BESIDE).then_some(PATIENCE);
        *said = word(byte).or(*said);
    }
    mind::wait_for(&gone, None).map(drop)
}

/// Has what is `FOR_ALL` wait, but for what our caller blocks or ignores.
fn listen(mask: &SigSet) -> Result<SignalFd> {
    let mut signals = mind::not_ignored(&FOR_ALL);
    mask.iter().for_each(|blocked| signals.remove(blocked));
    signals.iter().fold(mind::patient(mask), |mask, signal| mask | signal).thread_set_mask()?;
    mind::waiting(signals)
}

/// How a holder is told of a signal.
pub type Tell<'a> = &'a dyn Fn(c_int) -> Result<()>;

/// Passes on what comes.
pub struct Parting<'a> {
    tell: Tell<'a>,
    /// The last that has come.
    pub told: Option<c_int>,
    /// When it is over, whatever the program does.
    until: Option<Instant>,
}

impl<'a> Parting<'a> {
    /// To a holder.
    pub fn by(tell: Tell<'a>) -> Parting<'a> {
        Parting { tell, told: None, until: None }
    }

    fn hear(&mut self, signals: &SignalFd) -> Result<()> {
        while let Some(info) = signals.read_signal()? {
            self.pass_on(c_int::try_from(info.ssi_signo).unwrap_or(0));
        }
        Ok(())
    }

    /// Answers whether signal `number` is for the program, and passes it on. Who does
    /// not hear SIGHUP goes with his terminal, two seconds later; and nobody waits
    /// where the holder cannot be told.
    pub fn pass_on(&mut self, number: c_int) -> bool {
        if !FOR_ALL.iter().any(|signal| *signal as c_int == number) {
            return false;
        }
        self.told = Some(number);
        let now = Instant::now();
        if (self.tell)(number).is_err() {
            self.until = Some(now);
        } else if number == Signal::SIGHUP as c_int {
            self.until.get_or_insert(now + Duration::from_millis(PATIENCE.into()));
        }
        true
    }

    /// For how long to wait, in milliseconds.
    pub fn left(&self) -> Option<u16> {
        self.until.map(mind::left)
    }

    /// Whether the program has had its time.
    pub fn is_over(&self) -> bool {
        self.left() == Some(0)
    }
}

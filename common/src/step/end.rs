//! How a plan ends: with a program, or with waiting. execve(2).

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::sys::signal::SigSet;

use super::{Done, Facts, Hands, NOTIFY, Step, exec};
use crate::fail::{Because, Errno, Exit, Failure};
use crate::front::Front;
use crate::holder::{self, Life, door, stage};
use crate::lease::Lease;
use crate::mind;
use crate::mind::child::{self, Child};
use crate::mind::program::{self, Ended, Manner};
use crate::proc::Proc;
use crate::ready::Ready;
use crate::record::{Address, Record, Stream};
use crate::sys;
use crate::target::{Target, pass_on, pidfs_inode};
use crate::word::{quote, quote_all};

/// An effect that ends a plan, or writes the stream.
pub enum Effect {
    /// Write records to standard output, then `end`.
    Say(Stream),
    /// Write lines to standard output that are an answer and no stream.
    Answer(Vec<u8>),
    /// Tell this on standard error.
    Note(String),
    /// Write the record of the child just made, a holder if the flag is set,
    /// or its bare address.
    SayChild {
        /// Whether it is a record, with `hold`, or a bare address.
        record: bool,
    },
    /// Write the record of the child just made to this descriptor.
    SayChildTo(RawFd),
    /// In a child: say that it is ready for what the parent does to it, and wait
    /// for the parent's word.
    Await,
    /// Be the init of a pid namespace, for the child.
    Init,
    /// Stay as long as the reader, or as the holder that the records name.
    Linger(Option<Rc<Target>>),
    /// Stay as long as the reader, then end the holder that is our child; the
    /// note is for a user whose shell waits for us.
    LingerOverChild(Rc<Life>, Box<dyn Fn() -> String>),
    /// Hold the namespaces of this process, and of the child if there is one.
    Hold(Rc<Life>),
    /// Keep a lease as long as the reader of standard output, and as the holder
    /// that the records name.
    Keep(Rc<Lease>, Option<Rc<Target>>),
    /// Keep a lease as long as the process of this descriptor.
    KeepWith(Rc<Lease>, Rc<OwnedFd>),
    /// Be the first process of a pid namespace.
    First,
    /// Wait to be ended by the parent, or with it.
    Wait,
    /// Wait until the child has done its part.
    Reap,
    /// Leave with this exit status where it would be 0.
    Leave(u8),
    /// Mind the child until it ends.
    Tend(Care),
    /// Become a program.
    Exec(Vec<OsString>),
}

/// How the program, our child, is minded.
pub struct Care {
    /// Where it is looked at: opened before it began.
    pub proc: Rc<Proc>,
    /// Which holder has to outlive it.
    pub holder: Option<Rc<Target>>,
    /// It is the first process of a pid namespace, and the program itself.
    pub first: bool,
    /// It is an init of ours.
    pub init: bool,
    /// What it gets in place of SIGTERM: a signal of any number.
    pub stop: Option<i32>,
    /// The descriptor by which to tell that the program is ready.
    pub ready: Option<RawFd>,
    /// The terminal that its group is in front of.
    pub front: Option<Rc<Front>>,
}

/// The step that waits to be ended by the parent, or with it: alone, for
/// whoever does not end in a program and need not have all of this.
pub fn waiting() -> Step {
    Step::new(|| Effect::Wait.act(), Effect::Wait.why(), wait)
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, saying) = (effect.clone(), effect.clone());
        let (doing, asking) = (effect.clone(), effect.clone());
        let mut step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        if matches!(*effect, Effect::Say(_) | Effect::SayChild { .. }) {
            step.says = Some(Rc::new(move || saying.dry()));
        }
        step.waits = matches!(*effect, Effect::Await);
        if matches!(*effect, Effect::Exec(_)) {
            step.exit = |errno| if errno == Errno::ENOENT { Exit::NotFound } else { Exit::NotExecutable };
        }
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Say(_) => "write the records to standard output".into(),
            Effect::Answer(_) => "print what was granted".into(),
            Effect::Note(text) => format!("say {}", quote(text.trim_end())),
            Effect::SayChild { record: true } => "write the record of the holder to standard output".into(),
            Effect::SayChild { record: false } => "write the address of the holder to standard output".into(),
            Effect::SayChildTo(number) => format!("write the record of CHILD to descriptor {number}"),
            Effect::Await => "wait until the parent has done its part".into(),
            Effect::Init => "reap, and hand signals to the program".into(),
            Effect::Linger(_) | Effect::LingerOverChild(..) => "stay as long as the reader of standard output".into(),
            Effect::Keep(..) => "hold the ids as long as the reader of standard output stays".into(),
            Effect::KeepWith(..) => "hold the ids as long as the process of --with lives".into(),
            Effect::Hold(_) => "hold the namespaces".into(),
            Effect::First => "reap".into(),
            Effect::Wait => "wait to be ended".into(),
            Effect::Reap => "wait for the child".into(),
            Effect::Leave(status) => format!("leave with status {status} in place of 0"),
            Effect::Tend(_) => "wait for the program".into(),
            Effect::Exec(words) => format!("exec {}", quote_all(words)),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Say(_) | Effect::SayChild { .. } => "the next stage reads it",
            Effect::SayChildTo(_) => "whoever reads it writes the maps",
            Effect::Await => "what takes privilege over the new namespaces from outside can only be done there",
            Effect::Init => {
                "the kernel drops signals to a first process that does not handle them; this one handles all"
            }
            Effect::Linger(_) => "the stages before us live as long as we do",
            Effect::LingerOverChild(..) => "the holder lives as long as we do, and with it the namespaces",
            Effect::Keep(..) | Effect::KeepWith(..) => "the lock on them goes with this process, however it ends",
            Effect::Hold(_) => "namespaces are gone with their last process",
            Effect::First => "a pid namespace ends with its first process, to which all orphans in it fall",
            Effect::Wait => "a namespace is gone with its last process",
            Effect::Tend(_) => "signals go in, the exit status comes out",
            Effect::Leave(_) => "something was left out",
            Effect::Answer(_) | Effect::Note(_) | Effect::Reap | Effect::Exec(_) => "",
        }
    }

    fn dry(&self) -> Vec<u8> {
        match self {
            Effect::Say(stream) => stream.clone().dry().bytes(),
            Effect::SayChild { record: true } => Stream { records: vec![Record::Pid(None, true)] }.bytes(),
            Effect::SayChild { record: false } => b"?\n".to_vec(),
            Effect::Linger(_)
            | Effect::LingerOverChild(..)
            | Effect::SayChildTo(_)
            | Effect::Await
            | Effect::Init
            | Effect::Keep(..)
            | Effect::KeepWith(..)
            | Effect::Hold(_)
            | Effect::First
            | Effect::Wait
            | Effect::Reap
            | Effect::Leave(_)
            | Effect::Tend(_)
            | Effect::Answer(_)
            | Effect::Note(_)
            | Effect::Exec(_) => Vec::new(),
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Say(stream) => Ok(say(&stream.bytes())?),
            Effect::Answer(bytes) => Ok(say(bytes)?),
            Effect::Note(text) => {
                mind::tell(text);
                Ok(())
            }
            Effect::SayChild { record } => {
                let child = hands.child.as_ref().ok_or(Errno::ECHILD)?;
                let at = Address { pid: child.pid, inode: pidfs_inode(child.fd.as_fd())? };
                let stream = Stream { records: vec![Record::Pid(Some(at), true)] };
                Ok(say(&if *record { stream.bytes() } else { format!("{at}\n").into_bytes() })?)
            }
            Effect::SayChildTo(number) => {
                let child = hands.child.as_ref().ok_or(Errno::ECHILD)?;
                let at = Address { pid: child.pid, inode: pidfs_inode(child.fd.as_fd())? };
                let stream = Stream { records: vec![Record::Pid(Some(at), false)] };
                Ok(mind::say_to(*number, &stream.bytes())?)
            }
            Effect::Await => await_word(hands),
            Effect::Init => {
                let program = hands.child.take().ok_or(Errno::ECHILD)?;
                // It has other words from here on than those of a failure.
                let line = hands.report.take().ok_or(Errno::ECHILD)?;
                // The program's terminal is minded outside.
                hands.made.clear();
                hands.status = program::be_init(&program, line.as_fd()).unwrap_or_else(|e| {
                    mind::tell(&format!("ns-new: {}\n", Failure::os(self.act(), e)));
                    125
                });
                Ok(())
            }
            Effect::Linger(_) if !mind::is_pipe(1)? => Ok(()),
            Effect::Linger(None) => Ok(()),
            Effect::Linger(Some(holder)) => Ok(linger(holder, &hands.mask)?),
            Effect::LingerOverChild(life, note) => {
                let child = hands.child.take().ok_or(Errno::ECHILD)?;
                Ok(stage::linger_over(&hands.mask, &child, life, note)?)
            }
            Effect::Keep(_, Some(holder)) => Ok(linger(holder, &hands.mask)?),
            Effect::Keep(_, None) => Ok(stage::keep(&hands.mask)?),
            Effect::KeepWith(lease, until) => Ok(holder::keep(lease, until, &mut hands.report)?),
            Effect::Hold(life) => {
                let first = hands.child.take();
                Ok(holder::hold(life, first, &mut hands.report)?)
            }
            Effect::First => Ok(holder::be_first()?),
            Effect::Wait => wait(hands),
            Effect::Reap => {
                let child = hands.child.take().ok_or(Errno::ECHILD)?;
                // What the child was given would be kept in use by us.
                hands.made.clear();
                match child::reap(&child) {
                    Some(0) => Ok(()),
                    Some(_) | None => Err(Failure::refused("the child did not come to its end").into()),
                }
            }
            Effect::Leave(status) => {
                if hands.status == 0 {
                    hands.status = *status;
                }
                Ok(())
            }
            Effect::Tend(care) => care.tend(hands, program::tend),
            Effect::Exec(words) => Err(exec(words, hands).into()),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Exec(words) => exec::refused(words.first()?, errno, facts),
            Effect::Say(_)
            | Effect::Answer(_)
            | Effect::Note(_)
            | Effect::SayChild { .. }
            | Effect::SayChildTo(_)
            | Effect::Await
            | Effect::Init
            | Effect::Linger(_)
            | Effect::LingerOverChild(..)
            | Effect::Keep(..)
            | Effect::KeepWith(..)
            | Effect::Hold(_)
            | Effect::First
            | Effect::Wait
            | Effect::Reap
            | Effect::Leave(_)
            | Effect::Tend(_) => None,
        }
    }
}

impl Care {
    /// The least that there is.
    pub fn of(proc: &Rc<Proc>) -> Care {
        Care { proc: proc.clone(), holder: None, first: false, init: false, stop: None, ready: None, front: None }
    }

    /// Minds the child by `how`, and takes over how it ends. Where it cannot be
    /// minded, it stays in hand, to be ended.
    ///
    /// # Errors
    /// Those of `how`.
    pub fn tend(&self, hands: &mut Hands, how: impl Fn(&Child, &Manner<'_>, &Proc) -> Result<Ended, Errno>) -> Done {
        let line = hands.line.take();
        let socket = self.ready.map(|_| sys::duplicate(hands.get(NOTIFY)?)).transpose()?;
        let manner = Manner {
            holder: self.holder.as_ref().map(|t| t.fd.as_fd()),
            first: self.first,
            stop: self.stop,
            init: line.as_ref().filter(|_| self.init).map(AsFd::as_fd),
            ready: self.ready.and_then(|number| Some(Ready::new(socket.as_ref()?.as_fd(), number))),
            front: self.front.as_deref(),
        };
        let child = hands.child.as_ref().ok_or(Errno::ECHILD)?;
        let ended = how(child, &manner, &self.proc)?;
        hands.child = None;
        match ended {
            Ended::Status(status) => hands.status = status,
            Ended::Signal(signal) => hands.died = Some(signal),
        }
        if let Some(holder) = manner.holder {
            door::tell_end(holder, hands.died);
            mind::leave();
        }
        Ok(())
    }
}

fn linger(holder: &Target, mask: &SigSet) -> std::result::Result<(), Errno> {
    stage::linger(mask, holder.fd.as_fd(), &|number| pass_on(holder, number))
}

/// Says that it is ready, and waits for the word. A parent that has gone
/// gives none, and everything ends here.
fn await_word(hands: &Hands) -> Done {
    let report = hands.report.as_ref().ok_or(Errno::ECHILD)?;
    mind::send(report.as_fd(), b"A", &[])?;
    match mind::heard(report.as_fd())? {
        Some(_) => Ok(()),
        None => sys::exit_now(125),
    }
}

/// Says that it is ready, and waits for SIGKILL.
fn wait(hands: &mut Hands) -> Done {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // Closing it is the word; a parent that has gone meanwhile ends us here.
    let report = hands.report.take().ok_or(Errno::ECHILD)?;
    if mind::has_hung_up(&report)? {
        sys::exit_now(125);
    }
    drop(report);
    loop {
        nix::unistd::pause();
    }
}

/// Writes a stream. A reader that has left has said why; then there is nobody
/// to stay for either.
fn say(bytes: &[u8]) -> Result<(), Errno> {
    match mind::say(bytes) {
        Err(Errno::EPIPE) => Ok(()),
        other => other,
    }
}

/// Executes a program with the signal state that we were started with; only
/// its failure returns.
fn exec(words: &[OsString], hands: &Hands) -> Errno {
    let Ok(words) = words.iter().map(|w| CString::new(w.as_bytes())).collect::<Result<Vec<_>, _>>() else {
        return Errno::EINVAL;
    };
    let Some(program) = words.first() else { return Errno::ENOENT };
    sys::restore_signals();
    if let Err(e) = hands.mask.thread_set_mask() {
        return e;
    }
    match nix::unistd::execvp(program, &words) {
        // Of the last place in PATH: it is a file, and nothing was found.
        Err(Errno::ENOTDIR) if !program.as_bytes().contains(&b'/') => Errno::ENOENT,
        Err(e) => e,
        Ok(never) => match never {},
    }
}

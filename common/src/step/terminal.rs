//! A pseudo-terminal: opened outside, given to the program, minded outside.
//! pty(7).

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;

use super::end::{self, Care};
use super::{Done, Hands, Step, own};
use crate::fail::Result;
use crate::front::Front;
use crate::proc::Proc;
use crate::pty;
use crate::sys;
use crate::target::given;

/// An effect on a pseudo-terminal.
pub enum Effect {
    /// Open one: in the devpts of this root, and for this uid and gid, as they
    /// are outside.
    Open(Option<Rc<OwnedFd>>, Option<(u32, u32)>),
    /// Take it for the controlling terminal, and for standard input, output and
    /// error: all, or those only that are a terminal.
    Take(bool),
    /// Let a child be in front of the caller's terminal, until that is over.
    Lend(Rc<Front>),
    /// Lead a group of processes that is in front of the caller's terminal.
    Lead(Rc<Front>),
    /// Mind the child until it ends, and what is typed and written; the flag is
    /// that of `Take`.
    Proxy(Care, bool),
}

/// What a program has for standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The caller's.
    Callers,
    /// This descriptor of the caller's.
    Given(RawFd),
    /// The terminal, or nothing: the caller's is a stream of records.
    Terminal,
}

impl Input {
    /// By the value of `--stdin`, and whether the caller's is a stream.
    ///
    /// # Errors
    /// Wrong usage: it is no descriptor that is open.
    pub fn read(word: Option<OsString>, stream: bool) -> Result<Input> {
        match word {
            Some(word) => given::descriptor(&word).map(Input::Given),
            None if stream => Ok(Input::Terminal),
            None => Ok(Input::Callers),
        }
    }

    /// The step that takes it.
    pub fn take(self) -> Option<own::Effect> {
        match self {
            Input::Callers => None,
            Input::Given(number) => Some(own::Effect::Stdin(Some(number))),
            Input::Terminal => Some(own::Effect::Stdin(None)),
        }
    }
}

/// The terminal that a program is on.
pub enum Terminal {
    /// The caller's, or none.
    Callers,
    /// The caller's, and its own group is in front.
    Front(Rc<Front>),
    /// One of its own: in place of standard input, output and error, or only of
    /// those that are a terminal.
    Own(bool),
}

impl Terminal {
    /// The caller's, for a program in another pid namespace or not.
    pub fn of_caller(input: Input, pid: bool) -> Terminal {
        let stdin = match input {
            Input::Callers => Some(0),
            Input::Given(number) => Some(number),
            Input::Terminal => None,
        };
        let front = if pid { Front::find(stdin) } else { None };
        front.map_or(Terminal::Callers, |front| Terminal::Front(Rc::new(front)))
    }

    /// What is done before the program's process is there; one of its own is opened
    /// by whoever knows for whom.
    pub fn lend(&self) -> Option<Effect> {
        match self {
            Terminal::Front(front) => Some(Effect::Lend(front.clone())),
            Terminal::Callers | Terminal::Own(_) => None,
        }
    }

    /// The last but one that the program does.
    pub fn take(&self) -> Option<Effect> {
        match self {
            Terminal::Callers => None,
            Terminal::Front(front) => Some(Effect::Lead(front.clone())),
            Terminal::Own(all) => Some(Effect::Take(*all)),
        }
    }

    /// The step that minds the program.
    pub fn tend(self, care: Care) -> Step {
        match self {
            Terminal::Callers => end::Effect::Tend(care).into(),
            Terminal::Front(front) => end::Effect::Tend(Care { front: Some(front), ..care }).into(),
            Terminal::Own(all) => Effect::Proxy(care, all).into(),
        }
    }
}

const MASTER: &str = "master of the pseudo-terminal";
const TERMINAL: &str = "pseudo-terminal";

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let naming = effect.clone();
        Step::new(move || naming.act(), effect.why(), move |hands| effect.perform(hands))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Open(Some(_), _) => "open a pseudo-terminal of the target's devpts".into(),
            Effect::Open(None, _) => "open a pseudo-terminal".into(),
            Effect::Take(_) => "setsid, and take the pseudo-terminal".into(),
            Effect::Lend(_) => "lend the child the foreground of the caller's terminal".into(),
            Effect::Lead(_) => "setpgid, and tcsetpgrp of the caller's terminal".into(),
            Effect::Proxy(..) => "wait for the program, and pass on what is typed and written".into(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Open(..) => {
                "whoever has our terminal open can type into it (TIOCSTI), and change its modes for whom it is left to"
            }
            Effect::Take(_) => "keys become signals for the session that the terminal controls",
            Effect::Lend(_) => "keys become signals for the group of processes that is in front",
            Effect::Lead(_) => {
                "a shell gives the terminal back to the group that it was in, and that has no number in another pid namespace"
            }
            Effect::Proxy(..) => "outside: a proxy in there could be seized by the target's root",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Open(root, owner) => {
                let proc = Proc::open()?;
                let (master, terminal) = pty::open(root.as_deref(), *owner, &proc)?;
                hands.put(MASTER, master);
                hands.put(TERMINAL, terminal);
                Ok(())
            }
            Effect::Take(all) => {
                let terminal = hands.get(TERMINAL)?;
                Ok(pty::take(terminal, *all)?)
            }
            Effect::Lend(front) => {
                front.lend();
                let front = front.clone();
                hands.undo.push(Box::new(move || front.leave()));
                Ok(())
            }
            Effect::Lead(front) => Ok(front.lead()?),
            Effect::Proxy(care, all) => {
                // Its side stays open here: where nobody has it open a read fails (EIO),
                // and no event tells when somebody has again.
                let master = sys::duplicate(hands.get(MASTER)?)?;
                care.tend(hands, |child, manner, proc| pty::proxy(child, manner, &master, *all, proc))
            }
        }
    }
}

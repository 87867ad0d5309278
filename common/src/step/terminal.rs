//! A pseudo-terminal: opened outside, given to the program, minded outside.
//! pty(7).

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::{Done, Hands, Step};
use crate::fail::Errno;
use crate::holder;
use crate::mind::Ended;
use crate::proc::Proc;
use crate::pty;
use crate::sys;
use crate::target::Target;

/// An effect on a pseudo-terminal.
pub enum Effect {
    /// Open one: in the devpts of this root, and for this uid and gid, as they
    /// are outside.
    Open(Option<Rc<OwnedFd>>, Option<(u32, u32)>),
    /// Take it for the controlling terminal, and for standard input, output and
    /// error: all, or those only that are a terminal.
    Take(bool),
    /// Mind the child until it ends, and what is typed and written. The holder
    /// has to outlive it; the flag is that of `Take`.
    Proxy(Option<Rc<Target>>, bool),
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
            Effect::Proxy(..) => "wait for the program, and pass on what is typed and written".into(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Open(..) => {
                "whoever has our terminal open can type into it (TIOCSTI), and change its modes for whom it is left to"
            }
            Effect::Take(_) => "keys become signals for the session that the terminal controls",
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
            Effect::Proxy(holder, all) => {
                let child = hands.child.take().ok_or(Errno::ECHILD)?;
                let proc = Proc::open()?;
                // With its side open here nobody would see the program leave.
                hands.made.retain(|(name, _)| *name != TERMINAL);
                let master = sys::duplicate(hands.get(MASTER)?)?;
                let holder = holder.as_ref().map(|t| t.fd.as_fd());
                match pty::proxy(&child, holder, &master, *all, &proc)? {
                    Ended::Status(status) => hands.status = status,
                    Ended::Signal(signal) => {
                        if let Some(holder) = holder {
                            holder::tell_death(holder, signal);
                        }
                        hands.died = Some(signal);
                    }
                }
                Ok(())
            }
        }
    }
}

//! One effect on the system, of whatever kernel object: how it is said, why it
//! is needed, how it is done, and why it could be refused.
//!
//! Each kernel object has one file below here with an exhaustive enum of its
//! effects. A step carries that object's functions with it, so that a tool
//! links only what it can do.

pub mod beside;
pub mod bring;
pub mod cgroup;
pub mod end;
mod exec;
pub mod file;
mod fs;
pub mod inside;
pub mod like;
pub mod map;
pub mod mount;
pub mod newuidmap;
pub mod notify;
pub mod ns;
pub mod overlay;
pub mod own;
pub mod pin;
pub mod program;
pub mod terminal;
pub mod tree;

pub use exec::searched;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::sys::signal::SigSet;

use crate::fail::{Again, Because, Errno, Exit, Failure};
use crate::feature;
use crate::id;
use crate::mind::child::Child;
use crate::ns::Kind;
use crate::path::used_up;
use crate::proc::{CAP_SYS_ADMIN, Proc};
use crate::target::files::belongs;

/// What a refusing system call said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An errno, and the kernel's own words where it has any (fsopen(2)).
    Os(Errno, String),
    /// A failure told as a whole, by a process or helper further on.
    Whole(Box<Failure>),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal::Os(errno, String::new())
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Whole(Box::new(failure))
    }
}

/// What doing a step answers.
pub type Done = std::result::Result<(), Refusal>;

/// What steps hand to later steps, and how the whole is being performed.
pub struct Hands {
    /// Descriptors that a step made, under the name that plans print.
    pub made: Vec<(&'static str, OwnedFd)>,
    /// The process made by the last fork.
    pub child: Option<Child>,
    /// The other end of what that child reports on, while it waits for a word.
    pub line: Option<OwnedFd>,
    /// What is to be undone where a later step fails, in the order in which it
    /// was done.
    pub undo: Vec<Box<dyn Fn()>>,
    /// In a child: where failures go, to the process that can see.
    pub report: Option<OwnedFd>,
    /// The signal mask that this program was started with.
    pub mask: SigSet,
    /// Whether each step is printed before it is done.
    pub explain: bool,
    /// The exit status, once everything is done.
    pub status: u8,
    /// The signal that the program died of, of which we die then.
    pub died: Option<i32>,
}

/// The name under which a user namespace made for its maps is handed on.
pub const USERNS: &str = "userns";
/// The name under which the socket is handed on where a program says that it is
/// ready.
pub const NOTIFY: &str = "notify";
/// The name under which a tree is handed on: a mount that is attached nowhere.
pub const TREE: &str = "tree";

impl Hands {
    /// Empty hands.
    pub fn new(mask: SigSet) -> Hands {
        Hands {
            made: Vec::new(),
            child: None,
            line: None,
            undo: Vec::new(),
            report: None,
            mask,
            explain: false,
            status: 0,
            died: None,
        }
    }

    /// The descriptor made under `name`.
    ///
    /// # Errors
    /// EBADF: no earlier step made one, which is a mistake of the plan.
    pub fn get(&self, name: &str) -> std::result::Result<BorrowedFd<'_>, Errno> {
        let found = self.made.iter().rev().find(|(n, _)| *n == name);
        found.map(|(_, fd)| fd.as_fd()).ok_or(Errno::EBADF)
    }

    /// Keeps a descriptor under `name` for later steps.
    pub fn put(&mut self, name: &'static str, fd: OwnedFd) {
        self.made.push((name, fd));
    }
}

/// Where reasons are looked for: /proc, and the process that was refused.
pub struct Facts<'a> {
    /// Seen from outside of whatever was crossed.
    pub proc: &'a Proc,
    /// The process: its number, or `self`.
    pub who: &'a str,
    /// A child of it that it worked on.
    pub child: Option<&'a str>,
    /// Its root directory, as it saw it.
    pub root: Option<&'a OwnedFd>,
    /// Its working directory.
    pub cwd: Option<&'a OwnedFd>,
    /// The directories in which it looked for programs (PATH), where it told.
    pub path: Option<OsString>,
}

impl Facts<'_> {
    /// Whether the namespace of `kind` that was worked on belongs neither to the
    /// user namespace that the process is in nor to one below: then no
    /// capability of its is worth anything over it.
    pub fn foreign(&self, kind: Kind) -> Option<Because> {
        let (ns, user) = (self.proc.ns(self.who, kind).ok()?, self.proc.ns(self.who, Kind::User).ok()?);
        if belongs(&ns, &user) {
            return None;
        }
        let (name, letter) = (kind.link(), kind.letter());
        let text = format!(
            "the {name} namespace belongs to another user namespace: create it along with ours (ns-new -{letter})"
        );
        Some(Because::new(text).again(Again::Namespace(letter)))
    }

    /// Why no mount may be made or changed at all (EPERM).
    pub fn may_not_mount(&self) -> Option<Because> {
        if let Some(foreign) = self.foreign(Kind::Mnt) {
            return Some(foreign);
        }
        self.lacks_admin()
    }

    /// That CAP_SYS_ADMIN is missing, if it is, and how it was lost.
    pub fn lacks_admin(&self) -> Option<Because> {
        let lacks = self.proc.status(self.who).is_some_and(|s| !s.can(CAP_SYS_ADMIN));
        let has_no_map = || self.proc.map(self.who, id::Kind::Uid).is_some_and(|map| map.is_empty());
        let text = "no map was written for our user namespace (ns-new -r), and who is not root in it loses CAP_SYS_ADMIN when a program begins";
        match lacks {
            true if has_no_map() => Some(Because::new(text).again(Again::Map)),
            true => Some(Because::new("this needs CAP_SYS_ADMIN, and we do not have it")),
            false => None,
        }
    }
}

type Text = Box<dyn Fn() -> String>;
type Perform = Box<dyn Fn(&mut Hands) -> Done>;
type Reason = Box<dyn Fn(Errno, &Facts<'_>) -> Option<Because>>;

/// One effect, ready to be printed or done.
pub struct Step {
    /// Act and object: the head of a failure's first line.
    pub act: Text,
    /// What else the plan prints: values, flags.
    pub detail: Text,
    /// The kernel rule that makes it necessary.
    pub why: &'static str,
    /// What else is printed below it: tables.
    pub below: Vec<String>,
    /// What a forked child does, to be printed below.
    pub inner: Option<Rc<Vec<Step>>>,
    /// Whether this step writes the stream and nothing else: then a dry run
    /// does it, with `?` for an address.
    pub says: Option<Rc<dyn Fn() -> Vec<u8>>>,
    /// Whether a child waits here for its parent's word.
    pub waits: bool,
    /// What a refusal means for the exit status.
    pub exit: fn(Errno) -> Exit,
    /// How it is done.
    pub perform: Perform,
    /// Why it was refused, as far as that can be found.
    pub because: Reason,
}

impl Step {
    /// A step that says `act`, is needed for `why`, and is done by `perform`.
    /// Reasons and the rest are added by the object's module.
    pub fn new(
        act: impl Fn() -> String + 'static,
        why: &'static str,
        perform: impl Fn(&mut Hands) -> Done + 'static,
    ) -> Step {
        Step {
            act: Box::new(act),
            detail: Box::new(String::new),
            why,
            below: Vec::new(),
            inner: None,
            says: None,
            waits: false,
            exit: |_| Exit::Refused,
            perform: Box::new(perform),
            because: Box::new(|_, _| None),
        }
    }

    /// The same with what else is printed.
    #[must_use]
    pub fn detail(self, detail: impl Fn() -> String + 'static) -> Step {
        Step { detail: Box::new(detail), ..self }
    }

    /// The same with a way to find reasons.
    #[must_use]
    pub fn because(self, reason: impl Fn(Errno, &Facts<'_>) -> Option<Because> + 'static) -> Step {
        Step { because: Box::new(reason), ..self }
    }

    /// The same with another way, for where the first finds nothing.
    #[must_use]
    pub fn or_because(mut self, reason: impl Fn(Errno, &Facts<'_>) -> Option<Because> + 'static) -> Step {
        let first = std::mem::replace(&mut self.because, Box::new(|_, _| None));
        self.because = Box::new(move |errno, facts| first(errno, facts).or_else(|| reason(errno, facts)));
        self
    }

    /// The failure that `refusal` of this step is.
    pub fn failure(&self, refusal: Refusal, facts: &Facts<'_>) -> Failure {
        let failure = match refusal {
            Refusal::Whole(failure) => *failure,
            Refusal::Os(errno, text) => {
                let because = (self.because)(errno, facts).or_else(|| used_up(errno));
                let told = if text.is_empty() { None } else { Some(Because::new(format!("the kernel says: {text}"))) };
                Failure::os((self.act)(), errno).because(because.or(told)).exit((self.exit)(errno))
            }
        };
        feature::explained(failure)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&(self.act)())?;
        let detail = (self.detail)();
        if detail.is_empty() { Ok(()) } else { write!(f, " {detail}") }
    }
}

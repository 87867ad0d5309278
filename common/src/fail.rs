//! One kind of failure for every call site, and how it is told.
//!
//! ```text
//! uidmap-set: write /proc/4242/uid_map: Operation not permitted (EPERM)
//!   because: outside ids 165536-231071 are not granted to alice (uid 1000) in /etc/subuid
//!   try: sudo subid-alloc alice --start 165536 --count 65536
//! ```
//!
//! This module knows the form and not a single reason: those are found by the
//! module of the kernel object concerned.

use std::ffi::OsString;
use std::fmt;

pub use nix::errno::Errno;

/// The errno in an error of std's; EIO for one that it made up itself.
pub fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A value, or what went wrong.
pub type Result<T> = std::result::Result<T, Failure>;

/// Which exit status a failure means (nskit(7), EXIT STATUS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The system said no.
    Refused,
    /// The command line is wrong; nothing was touched.
    Usage,
    /// The program was found and cannot be executed.
    NotExecutable,
    /// The program was not found.
    NotFound,
}

/// A change of the command line that would cure a refusal. What stood before it
/// in the chain only the tool itself may know, so that this is no command yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Again {
    /// The namespace of this letter of ns-new, as well.
    Namespace(char),
    /// A map for the user namespace, before a program begins in it.
    Map,
    /// The second word in place of the first, or before all others where that is
    /// empty.
    Word(&'static str, &'static str),
    /// In the mount namespace that this path leads to.
    Where(OsString),
    /// This option of ns-enter, unless one of the others is there.
    Entering(&'static str, &'static [&'static str]),
}

/// Why something refused by the system was refused, as found on this system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Because {
    /// The rule that was broken: one sentence.
    pub text: String,
    /// A command that cures it, to be pasted; empty where there is none.
    pub remedy: String,
    /// The change that one would be made of, where there is none.
    pub again: Option<Again>,
}

impl Because {
    /// A reason without a cure.
    pub fn new(text: impl Into<String>) -> Because {
        Because { text: text.into(), remedy: String::new(), again: None }
    }

    /// The same with a cure.
    #[must_use]
    pub fn remedy(mut self, command: impl Into<String>) -> Because {
        self.remedy = command.into();
        self
    }

    /// The same with a change that cures it.
    #[must_use]
    pub fn again(self, change: Again) -> Because {
        Because { again: Some(change), ..self }
    }

    /// The same with a cure, if there is one.
    #[must_use]
    pub fn remedy_if(self, command: Option<String>) -> Because {
        Because { remedy: command.unwrap_or_default(), ..self }
    }
}

/// A refusal or an error, ready to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    what: String,
    errno: Option<Errno>,
    because: Option<Because>,
    exit: Exit,
    silent: bool,
}

impl Failure {
    /// A system call that failed: `act` and its object, and the errno.
    pub fn os(act: impl Into<String>, errno: Errno) -> Failure {
        Failure { what: act.into(), errno: Some(errno), because: None, exit: Exit::Refused, silent: false }
    }

    /// Something that this tool refuses by itself.
    pub fn refused(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), errno: None, because: None, exit: Exit::Refused, silent: false }
    }

    /// A wrong command line.
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, ..Failure::refused(what) }
    }

    /// An earlier stage of the pipeline failed and has said so.
    pub fn told_upstream() -> Failure {
        Failure { silent: true, ..Failure::refused("an earlier stage failed") }
    }

    /// One that another stage of the pipeline has told, or will tell.
    pub fn told_elsewhere() -> Failure {
        Failure { silent: true, ..Failure::refused("another stage failed") }
    }

    /// The same with its reason, if one was found.
    #[must_use]
    pub fn because(mut self, because: Option<Because>) -> Failure {
        self.because = because;
        self
    }

    /// The same with a cure of the reason, if one was found.
    #[must_use]
    pub fn remedy(mut self, command: String) -> Failure {
        self.because = self.because.map(|because| because.remedy(command));
        self
    }

    /// The same with the command that `tool` makes of the change that cures it.
    #[must_use]
    pub fn advised(self, tool: impl FnOnce(&Again) -> Option<String>) -> Failure {
        let command = self.because.as_ref().and_then(|because| because.again.as_ref()).and_then(tool);
        command.into_iter().fold(self, Failure::remedy)
    }

    /// Whether a reason was found.
    pub fn has_because(&self) -> bool {
        self.because.is_some()
    }

    /// The same with another exit status.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Failure {
        self.exit = exit;
        self
    }

    /// Whether somebody has told it already.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// The errno of the call that failed, if one did.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What it means for the exit status.
    pub fn kind(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(errno) = self.errno {
            // strerror(3), of which std appends the number to the text.
            let text = std::io::Error::from_raw_os_error(errno as i32).to_string();
            write!(f, ": {} ({errno:?})", text.split(" (os error").next().unwrap_or_default())?;
        }
        if let Some(because) = &self.because {
            write!(f, "\n  because: {}", because.text)?;
            if !because.remedy.is_empty() {
                write!(f, "\n  try: {}", because.remedy)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form() {
        let failure = Failure::os("write /proc/1/uid_map", Errno::EPERM);
        assert_eq!(failure.to_string(), "write /proc/1/uid_map: Operation not permitted (EPERM)");
        let failure = failure.because(Some(Because::new("no").remedy("yes")));
        assert!(failure.to_string().ends_with("(EPERM)\n  because: no\n  try: yes"));
    }
}

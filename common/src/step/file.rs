//! Files below /etc that several programs keep: replaced whole, safely, both
//! or neither. subuid(5), rename(2).

use std::cell::RefCell;
use std::rc::Rc;

use super::{Done, Refusal, Step};
use crate::etc::lock::Locked;
use crate::etc::{self, Edit, Etc, Original, Prepared, temporary};
use crate::fail::{Because, Errno, Failure};
use crate::word::quote;

/// What is kept from one step to the next: the lock, and what is prepared.
pub struct Change {
    etc: Rc<Etc>,
    // Before the lock, for fields are dropped in their order: whoever has that
    // next writes files of these names.
    prepared: RefCell<Vec<Prepared>>,
    locked: RefCell<Option<Locked>>,
}

/// A file as it was read while planning, and what is to be changed in it.
pub struct Draft {
    /// Its name in the directory.
    pub name: String,
    /// The open file; None: there is none yet.
    pub source: Option<Rc<Original>>,
    /// The changes, in ascending order.
    pub edits: Vec<Edit>,
}

/// An effect on the files of a change.
pub enum Effect {
    /// Write new contents beside the file.
    Prepare(Rc<Change>, Draft),
    /// Make everything prepared safe on the disk, rename it over the old files,
    /// in order, and unlock: their names.
    Replace(Rc<Change>, Vec<String>),
}

impl Change {
    /// A change in `etc` under `locked`; None only where nothing will be done
    /// (a dry run may not touch /etc, and its lock files stand there).
    pub fn new(etc: Rc<Etc>, locked: Option<Locked>) -> Rc<Change> {
        Rc::new(Change { etc, prepared: RefCell::default(), locked: RefCell::new(locked) })
    }
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, detailing, doing) = (effect.clone(), effect.clone(), effect.clone());
        Step::new(move || naming.act(), effect.why(), move |_| doing.perform()).detail(move || detailing.detail())
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Prepare(change, draft) => format!("write {}", change.etc.path(&temporary(&draft.name))),
            Effect::Replace(change, names) => {
                let files: Vec<String> = names.iter().map(|name| change.etc.path(name)).collect();
                format!("rename over {}", files.join(" and "))
            }
        }
    }

    /// The lines that go and those that come.
    fn detail(&self) -> String {
        match self {
            Effect::Prepare(_, draft) => {
                let lines = |bytes: &[u8]| -> Vec<String> {
                    let text = String::from_utf8_lossy(bytes).into_owned();
                    text.lines().filter(|line| !line.is_empty()).map(quote).collect()
                };
                let list = |word: &str, lines: Vec<String>| {
                    if lines.is_empty() { Vec::new() } else { vec![format!("{word} {}", lines.join(" "))] }
                };
                let gone = draft.edits.iter().flat_map(|e| lines(&e.old)).collect();
                let come = draft.edits.iter().flat_map(|e| lines(&e.new)).collect();
                [list("without", gone), list("with", come)].concat().join(" ")
            }
            Effect::Replace(..) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Prepare(..) => "a crash while the file itself is written would leave half of it",
            Effect::Replace(..) => {
                "once both are safe on the disk: rename(2) shows every reader the old file or the new one; then the directory is synced"
            }
        }
    }

    /// A rename that failed: those done already are undone.
    fn not_done(&self, done: &[Prepared], errno: Errno) -> Refusal {
        let Effect::Replace(change, names) = self else { return errno.into() };
        if done.iter().all(|each| each.put_back().is_ok()) {
            return errno.into();
        }
        let done = done.len();
        let file = |n: usize| names.get(n).map_or_else(String::new, |name| change.etc.path(name));
        let act = format!("rename over {} ({} is replaced already: run this again)", file(done), file(0));
        Failure::os(act, errno).into()
    }

    fn perform(&self) -> Done {
        match self {
            Effect::Prepare(change, draft) => {
                let prepared = etc::prepare(&change.etc, &draft.name, draft.source.clone(), &draft.edits)?;
                change.prepared.borrow_mut().push(prepared);
            }
            Effect::Replace(change, _) => {
                // Out of the change first: what fails is removed again here.
                let prepared: Vec<Prepared> = change.prepared.borrow_mut().drain(..).collect();
                for each in &prepared {
                    each.sync().map_err(|e| Failure::os(format!("write {}", each.path()), e))?;
                }
                for each in &prepared {
                    if !each.is_current()? {
                        let act = format!("{}: it has been changed meanwhile", self.act());
                        let because = Because::new("who changed it took no lock, as an editor does: begin again");
                        return Err(Failure::refused(act).because(Some(because)).into());
                    }
                }
                for (n, each) in prepared.iter().enumerate() {
                    each.replace().map_err(|e| self.not_done(&prepared[..n], e))?;
                }
                change.etc.sync()?;
                // Before the lock goes: the next one writes a file of that name.
                drop(prepared);
                drop(change.locked.borrow_mut().take());
            }
        }
        Ok(())
    }
}

//! Files below /etc that several programs keep: replaced whole, safely, both
//! or neither. subuid(5), rename(2).

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Done, Step};
use crate::fail::Errno;
use crate::subid::{self, Locked, Prepared};

/// What is kept from one step to the next: the lock, and what is prepared.
pub struct Change {
    locked: RefCell<Option<Locked>>,
    prepared: RefCell<Vec<Prepared>>,
}

/// An effect on the files of a change.
pub enum Effect {
    /// Write new contents beside the file and make them safe on the disk.
    Prepare(Rc<Change>, PathBuf, Vec<u8>),
    /// Rename everything prepared over the old files, in order.
    Replace(Rc<Change>, Vec<PathBuf>),
}

impl Change {
    /// A change under `locked`; None only where nothing will be done (a dry
    /// run may not touch /etc, and its lock files stand there).
    pub fn new(locked: Option<Locked>) -> Rc<Change> {
        Rc::new(Change { locked: RefCell::new(locked), prepared: RefCell::default() })
    }
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let doing = effect.clone();
        Step::new(effect.act(), effect.detail(), effect.why(), move |_| doing.perform())
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Prepare(_, file, _) => format!("write {}.nskit-new", file.display()),
            Effect::Replace(_, files) => {
                let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
                format!("rename over {}", files.join(" and "))
            }
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Prepare(_, _, text) => {
                let last = text.strip_suffix(b"\n").unwrap_or(text).rsplit(|b| *b == b'\n').next().unwrap_or_default();
                format!("ending in '{}'", String::from_utf8_lossy(last))
            }
            Effect::Replace(..) => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Prepare(..) => "a crash while the file itself is written would leave half of it",
            Effect::Replace(..) => {
                "rename(2) shows every reader the old file or the new one; then the directory is synced"
            }
        }
    }

    fn perform(&self) -> Done {
        let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
        match self {
            Effect::Prepare(change, file, text) => {
                let prepared = subid::prepare(file, text).map_err(errno)?;
                change.prepared.borrow_mut().push(prepared);
            }
            Effect::Replace(change, files) => {
                for prepared in change.prepared.borrow_mut().drain(..) {
                    prepared.rename().map_err(errno)?;
                }
                let first = files.first().map_or(Path::new("/etc/subuid"), PathBuf::as_path);
                subid::sync_directory(first).map_err(errno)?;
                drop(change.locked.borrow_mut().take());
            }
        }
        Ok(())
    }
}

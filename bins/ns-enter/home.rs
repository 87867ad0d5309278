//! The working directory: that of the caller, where the root that is entered is the
//! caller's too, and has it.

use std::env::{current_dir, set_current_dir};
use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use common::fail::{Errno, Failure, Result, errno};
use common::mind;
use common::plan::Plan;
use common::step::{Done, Step, end};
use common::word::quote;

use super::CLI;

/// Where the caller is: the path, and the device and inode of what is there.
pub(crate) struct Home {
    path: PathBuf,
    same: (u64, u64),
}

/// The working directory; none where it has been removed, or may not be searched,
/// which the program says as it begins, if that is `told`.
///
/// # Errors
/// It cannot be found out.
pub(crate) fn home(told: bool, inside: &mut Plan) -> Result<Option<Rc<Home>>> {
    match current_dir().map_err(errno).and_then(|path| Ok(Rc::new(Home { path, same: here()? }))) {
        Ok(home) => Ok(Some(home)),
        Err(e @ (Errno::ENOENT | Errno::EACCES)) => {
            if told {
                inside.push(end::Effect::Note(note(&Failure::os(FIND, e))));
            }
            Ok(None)
        }
        Err(e) => Err(Failure::os(FIND, e)),
    }
}

const FIND: &str = "find the working directory";

fn here() -> std::result::Result<(u64, u64), Errno> {
    metadata(".").map(|stat| (stat.dev(), stat.ino())).map_err(errno)
}

fn go(path: &Path) -> std::result::Result<(), Errno> {
    set_current_dir(path).map_err(errno)
}

fn note(why: &Failure) -> String {
    format!("{}: {why}: the program begins in /\n", CLI.name)
}

impl Home {
    /// What goes back to it or, where that is not to be had any more, stays in `/`,
    /// and says so if that is `told`.
    pub(crate) fn step(self: &Rc<Home>, told: bool) -> Step {
        let (naming, going) = (self.clone(), self.clone());
        let why = "entering a mount namespace leaves the working directory at its root";
        Step::new(move || naming.act(), why, move |_| going.go(told))
    }

    fn act(&self) -> String {
        format!("chdir to {}", quote(&self.path))
    }

    fn go(&self, told: bool) -> Done {
        let missed = match go(&self.path) {
            Ok(()) if here()? == self.same => return Ok(()),
            Ok(()) => Failure::refused(format!("{}: there it is another directory", self.act())),
            Err(e @ (Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES)) => Failure::os(self.act(), e),
            Err(e) => return Err(e.into()),
        };
        go(Path::new("/"))?;
        if told {
            mind::tell(&note(&missed));
        }
        Ok(())
    }
}

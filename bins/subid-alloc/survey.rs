//! Both files, read once for one owner.

use std::rc::Rc;

use common::etc::{Edit, Etc, Original};
use common::fail::{Failure, Result};
use common::id::{Kind, Range};
use common::subid::{self, Owner, Survey, Taken};
use common::user::User;

/// The name of the file of grants in /etc.
pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Uid => "subuid",
        Kind::Gid => "subgid",
    }
}

/// One file, as it was read.
#[derive(Default)]
pub(crate) struct Source {
    /// The open file; None: there is none yet.
    pub(crate) file: Option<Rc<Original>>,
    /// What it says.
    pub(crate) survey: Survey,
}

impl Source {
    /// Reads the file of `kind` in `etc` for `owner`; `taken` gets what all have.
    pub(crate) fn read(etc: &Etc, kind: Kind, owner: &Owner, taken: &mut Taken) -> Result<Source> {
        let Some(file) = etc.file(name(kind))? else { return Ok(Source::default()) };
        let said = |e| Failure::os(format!("read {}", etc.path(name(kind))), e);
        let survey = subid::survey(&file.file, owner, taken).map_err(said)?;
        Ok(Source { file: Some(file), survey })
    }

    /// The file of another kind, if it has the same bytes: then it need not be
    /// read for what it says.
    pub(crate) fn same(&self, etc: &Etc, kind: Kind) -> Result<Option<Source>> {
        let (Some(mine), Some(theirs)) = (&self.file, etc.file(name(kind))?) else { return Ok(None) };
        let same = subid::is_same(&mine.file, &theirs.file).unwrap_or(false);
        Ok(same.then(|| Source { file: Some(theirs), survey: self.survey.clone() }))
    }

    /// What the owner has been granted.
    pub(crate) fn own(&self) -> &[Range] {
        &self.survey.own
    }

    /// The change that adds lines at the end. shadow 4.20 rejects a file whose
    /// last line is not ended, so that is made good.
    pub(crate) fn append(&self, owner: &str, ranges: &[Range]) -> Edit {
        let mut new = if self.survey.open_end { "\n".to_owned() } else { String::new() };
        for range in ranges {
            new.push_str(&format!("{owner}:{}:{}\n", range.first, range.count));
        }
        Edit { at: self.survey.size, old: Vec::new(), new: new.into_bytes() }
    }
}

/// What `user` has been granted of `kind` by the file in `etc`.
pub(crate) fn granted(user: &User, kind: Kind, etc: &Etc) -> Result<Vec<Range>> {
    let owner = Owner::of(user, &etc.text("passwd"));
    let Some(file) = etc.file(name(kind))? else { return Ok(Vec::new()) };
    owner.granted_in(&file.file).map_err(|e| Failure::os(format!("read {}", etc.path(name(kind))), e))
}

/// How a line names `user`: by login name, or by uid where shadow would take
/// the name for something else (a number, a NIS line, a comment).
pub(crate) fn word(user: &User) -> String {
    let odd = user.name.starts_with(['+', '-', '#', ' ']) || user.name.bytes().all(|b| b.is_ascii_digit());
    if odd { user.uid.to_string() } else { user.name.clone() }
}

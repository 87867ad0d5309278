//! Both files, read once for one owner.

use std::rc::Rc;

use common::etc::{Edit, Etc, Original};
use common::fail::{Failure, Result};
use common::id::{Kind, Range};
use common::subid::Owner;
use common::survey::{Survey, Taken, survey};
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
    /// Reads the files of `kinds` in `etc` for `owner`; `taken` gets what others
    /// have.
    pub(crate) fn read(etc: &Etc, kinds: &[Kind], owner: &Owner, taken: &mut Taken) -> Result<Vec<(Kind, Source)>> {
        let mut sources: Vec<(Kind, Source)> = Vec::new();
        let mut twin = None;
        for (n, kind) in kinds.iter().enumerate() {
            if let Some(source) = twin.take() {
                sources.push((*kind, source));
                continue;
            }
            let Some(file) = etc.file(name(*kind))? else {
                sources.push((*kind, Source::default()));
                continue;
            };
            let next = kinds.get(n + 1).map(|next| etc.file(name(*next))).transpose()?.flatten();
            let said = |e| Failure::os(format!("read {}", etc.path(name(*kind))), e);
            let other = next.as_ref().map(|next| &next.file);
            let (survey, same) = survey(&file.file, other, owner, taken).map_err(said)?;
            twin = next.filter(|_| same).map(|next| Source { file: Some(next), survey: survey.clone() });
            sources.push((*kind, Source { file: Some(file), survey }));
        }
        Ok(sources)
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
    let owner = Owner::of(user, &etc.text("passwd")?);
    let Some(file) = etc.file(name(kind))? else { return Ok(Vec::new()) };
    owner.granted_in(&file.file).map_err(|e| Failure::os(format!("read {}", etc.path(name(kind))), e))
}

/// How a line names `user`: by login name, or by uid where shadow would take
/// the name for something else (a number, a NIS line, a comment).
pub(crate) fn word(user: &User) -> String {
    let odd = user.name.starts_with(['+', '-', '#', ' ']) || user.name.bytes().all(|b| b.is_ascii_digit());
    if odd { user.uid.to_string() } else { user.name.clone() }
}

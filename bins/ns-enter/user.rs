//! Who the program is to be inside, and which shell is his: by the target's own
//! passwd and group files, looked up in its root and never out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use common::fail::{Because, Errno, Exit, Failure, Result};
use common::id;
use common::proc::Proc;
use common::target::{self, Target};
use common::user::{self, User};
use common::word::quote;

/// Somebody in the target.
pub(crate) struct Somebody {
    pub(crate) user: User,
    pub(crate) home: OsString,
    /// All groups that have him for a member.
    pub(crate) groups: Vec<u32>,
}

/// Whom `word` names in the target: a login name, or a uid in digits.
///
/// # Errors
/// There is no such user, or no passwd file.
pub(crate) fn named(proc: &Proc, target: &Target, word: &str) -> Result<Somebody> {
    let uid = id::one(word.as_bytes());
    let root = target::files::root(proc, target)?;
    let passwd =
        target::files::file_in(&root, "/etc/passwd").map_err(|e| Failure::os("open the target's /etc/passwd", e))?;
    let entry = user::entries(&passwd)
        .find(|entry| entry.name == word.as_bytes() || uid == Some(entry.uid))
        .ok_or_else(|| Failure::refused(format!("--as: the target's /etc/passwd has no user {}", quote(word))))?;
    let user = entry.user();
    let group = match target::files::file_in(&root, "/etc/group") {
        Err(Errno::ENOENT) => Vec::new(),
        other => other.map_err(|e| Failure::os("open the target's /etc/group", e))?,
    };
    let mut groups: Vec<u32> = user::groups_in(&group, &user.name).filter(|gid| *gid != user.gid).collect();
    groups.sort_unstable();
    groups.dedup();
    let home = if entry.home.is_empty() { b"/" } else { entry.home };
    Ok(Somebody { user, home: OsStr::from_bytes(home).into(), groups })
}

/// The shell of `uid` by the target's passwd file, if it is there in the root
/// that the program has, `theirs` or ours; else /bin/sh.
///
/// # Errors
/// That is not there either; `word` is how the target was named.
pub(crate) fn shell_of(proc: &Proc, target: &Target, theirs: bool, uid: u32, word: &OsStr) -> Result<OsString> {
    let their_root = target::files::root(proc, target)?;
    let ours = if theirs { None } else { Some(proc.directory("self/root").map_err(|e| Failure::os("open /", e))?) };
    let root = ours.as_ref().unwrap_or(&their_root);
    let is_there =
        |path: &str| target::files::is_in(root, path).map_err(|e| Failure::os(format!("look for {path}"), e));
    let passwd = match target::files::file_in(&their_root, "/etc/passwd") {
        Err(Errno::ETIMEDOUT) => return Err(Failure::os("open the target's /etc/passwd", Errno::ETIMEDOUT)),
        other => other.unwrap_or_default(),
    };
    let named = user::entries(&passwd).find(|entry| entry.uid == uid).map(|entry| entry.user().shell);
    let shell = match named {
        Some(shell) if is_there(&shell)? => shell,
        Some(_) | None => "/bin/sh".to_owned(),
    };
    if is_there(&shell)? {
        return Ok(shell.into());
    }
    let because = Because::new("there is no such file in the root that the program would run in");
    let remedy = format!("ns-enter --tools auto {}", quote(word));
    let because = if theirs && word != "-" { because.remedy(remedy) } else { because };
    Err(Failure::os(format!("exec {shell}"), Errno::ENOENT).because(Some(because)).exit(Exit::NotFound))
}

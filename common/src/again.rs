//! The command line once more, changed so that it works: what a failure advises.
//! Redirections are the shell's, and not in it.
//!
//! pivot-exec is the last link of a chain. What stood before it has become
//! pivot-exec, or waits in another process; but what it has made can be seen:
//! the namespaces, and the map.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::id::{Extent, Kind as IdKind};
use crate::ns::{INITIAL_USER, Kind};
use crate::proc::Proc;
use crate::target::files::belongs;
use crate::word::{quote, quote_all};

fn words() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// Whether these words call `tool`.
fn call(words: &[OsString], tool: &str) -> bool {
    words.first().is_some_and(|word| Path::new(word).file_name() == Some(OsStr::new(tool)))
}

fn before_others(mut words: Vec<OsString>, options: &[&str]) -> Vec<OsString> {
    let after = words.len().min(1);
    words.splice(after..after, options.iter().map(OsString::from));
    words
}

/// Whoever came through sudo(8) has to come through it again.
fn sudo() -> &'static str {
    if std::env::var_os("SUDO_COMMAND").is_some() { "sudo " } else { "" }
}

/// With one more option. None for a stage of a pipeline, which is not one by
/// itself.
pub fn with(option: &str) -> Option<String> {
    let words = before_others(words(), &[option]);
    (!words.iter().any(|word| word == "-")).then(|| format!("{}{}", sudo(), quote_all(&words)))
}

/// With the namespaces of these letters, of ns-new itself or of what stood
/// before pivot-exec, which `who` is. None of other tools.
pub fn with_namespaces(letters: &str, proc: &Proc, who: &str) -> Option<String> {
    let words = words();
    if call(&words, "ns-new") {
        return Some(quote_all(&before_others(words, &[&format!("-{letters}")])));
    }
    below(letters, words, proc, who)
}

/// ns-enter with one more option. None of other tools, nor along with one of
/// `others`.
pub fn entering(option: &str, others: &[&str]) -> Option<String> {
    let words = words();
    let has_other = words.iter().any(|word| others.iter().any(|other| word == other));
    if call(&words, "ns-enter") && !has_other { with(option) } else { None }
}

/// pivot-exec with `new` in place of its word `old`, or before all others where
/// that is empty. None where it has no such word.
pub fn with_word(old: &str, new: &str, proc: &Proc, who: &str) -> Option<String> {
    let mut words = words();
    if old.is_empty() {
        words = before_others(words, &[new]);
    } else {
        *words.iter_mut().find(|word| *word == old)? = new.into();
    }
    below("", words, proc, who)
}

/// pivot-exec in the mount namespace of process `number`, where its word `old` is
/// called `new`.
pub fn entered(number: u32, old: &str, new: &str) -> Option<String> {
    let mut words = words();
    let whole = call(&words, "pivot-exec");
    *words.iter_mut().find(|word| whole && *word == old)? = new.into();
    let ns_enter = quote(Path::new(words.first()?).with_file_name("ns-enter"));
    Some(format!("{}{ns_enter} {number} {}", sudo(), quote_all(&words)))
}

/// These words of pivot-exec, after a ns-new that makes what `who` is in and the
/// namespaces of `letters`.
fn below(letters: &str, words: Vec<OsString>, proc: &Proc, who: &str) -> Option<String> {
    if !call(&words, "pivot-exec") {
        return None;
    }
    let user = proc.ns(who, Kind::User).ok()?;
    let initial = proc.ns_id(who, Kind::User) == Some(INITIAL_USER);
    let ours = |kind: &Kind| *kind == Kind::User || proc.ns(who, *kind).is_ok_and(|ns| belongs(&ns, &user));
    let made = Kind::ALL.into_iter().filter(|kind| !initial && ours(kind));
    let mut all: String = made.map(Kind::letter).collect();
    all.extend(letters.chars().filter(|letter| !all.contains(*letter)).collect::<Vec<_>>());
    if all.is_empty() {
        return Some(format!("{}{}", sudo(), quote_all(&words)));
    }
    let map = match (all.contains(Kind::User.letter()), initial) {
        (true, true) => "r".to_owned(),
        (true, false) => map(proc, who)?,
        (false, _) => String::new(),
    };
    let all = if all.len() == Kind::ALL.len() { "a" } else { &all };
    // systemd can do nothing with a cgroup that others are in.
    let cgroup = if words.iter().any(|word| word == "--systemd") { " --new-cgroup" } else { "" };
    let ns_new = quote(Path::new(words.first()?).with_file_name("ns-new"));
    Some(format!("{}{ns_new} -{all}{map}{cgroup} {}", sudo(), quote_all(&words)))
}

/// How ns-new is told the map of `who`, after its other letters.
fn map(proc: &Proc, who: &str) -> Option<String> {
    let (uid, gid) = (proc.map(who, IdKind::Uid)?, proc.map(who, IdKind::Gid)?);
    let (first, group) = (uid.first()?, gid.first()?);
    if uid.len() + gid.len() == 2 && first.count + group.count == 2 {
        let host = if first.outside == 0 { " --host-root" } else { "" };
        return match (first.inside, group.inside) {
            (0, 0) => Some(format!("r{host}")),
            _ if (first.inside, group.inside) == (first.outside, group.outside) => Some(format!(" --map same{host}")),
            _ => None,
        };
    }
    let root = |extents: &[Extent]| extents.iter().any(|extent| extent.outside == 0);
    if root(&uid) || root(&gid) || !is_below_initial(proc, who) {
        return None;
    }
    let same = uid == gid;
    let mut words = String::new();
    for (letter, extents) in [(if same { "" } else { "u:" }, &uid), ("g:", &gid)] {
        for extent in extents.iter().filter(|_| !(same && letter == "g:")) {
            words += &format!(" --map {letter}{}:{}:{}", extent.inside, extent.outside, extent.count);
        }
    }
    Some(words)
}

/// Whether the user namespace around that of `who` is the initial one, so that
/// the outside ids of its map are those that a shell there would name.
fn is_below_initial(proc: &Proc, who: &str) -> bool {
    let map = |who: &str| proc.text(&format!("{who}/uid_map"));
    let own = map(who);
    let mut parent = proc.status(who).map_or(0, |status| status.parent);
    while parent != 0 && map(&parent.to_string()) == own {
        parent = proc.status(&parent.to_string()).map_or(0, |status| status.parent);
    }
    // All ids but the last, which is none.
    map(&parent.to_string()).is_some_and(|text| text.trim_end().ends_with(" 4294967295"))
}

//! The command line once more, changed so that it works: what a failure advises.
//! Redirections are the shell's, and not in it.
//!
//! pivot-exec is the last link of a chain. What stood before it has become
//! pivot-exec, or waits in another process; but what it has made can be seen:
//! the namespaces, and the map. Where a shell inside has begun pivot-exec, there
//! is no such chain: what is advised is for that shell.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::fail::Again;
use common::id::{Extent, Kind as IdKind};
use common::ns::{INITIAL_USER, Kind};
use common::proc::Proc;
use common::target::files::belongs;
use common::word::{before_others, quote, quote_all, sudo};

/// The command of a change that cures what this process was refused.
pub(crate) fn command(again: &Again, proc: &Proc) -> Option<String> {
    match again {
        // A new user namespace may map nothing that was mounted in another.
        Again::Namespace('U') | Again::Map if words().iter().any(has_map) => None,
        Again::Namespace(letter) => below(Some(*letter), &words(), proc),
        // Who is not mapped cannot make a user namespace either.
        Again::Map if has_shell(proc) => None,
        Again::Map => below(Some(Kind::User.letter()), &words(), proc),
        Again::Entering(..) => None,
        Again::Word("", new) => below(None, &before_others(new), proc),
        Again::Word(old, new) => below(None, &exchanged(old.as_ref(), new.as_ref())?, proc),
        Again::Where(path) => {
            let (number, there) = path.to_str()?.strip_prefix("/proc/")?.split_once("/root/")?;
            let number: u32 = number.parse().ok()?;
            let words = exchanged(path, format!("/{there}").as_ref())?;
            Some(format!("{}{} {number} {}", sudo(), beside("ns-enter")?, quote_all(&words)))
        }
    }
}

fn words() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// Whether a word binds something with a map.
fn has_map(word: &OsString) -> bool {
    word.as_bytes().split(|b| b":,".contains(b)).any(|part| part.starts_with(b"idmap="))
}

/// With `new` in place of the word `old`, if there is one.
fn exchanged(old: &OsStr, new: &OsStr) -> Option<Vec<OsString>> {
    let mut words = words();
    *words.iter_mut().find(|word| *word == old)? = new.to_owned();
    Some(words)
}

/// Another tool, called as this one was.
fn beside(tool: &str) -> Option<String> {
    std::env::args_os().next().map(|word| quote(Path::new(&word).with_file_name(tool)))
}

/// Whether it was begun by a program that is in our user namespace, and so within
/// all that stands before.
fn has_shell(proc: &Proc) -> bool {
    let parent = proc.status("self").map_or(0, |status| status.parent).to_string();
    let theirs = proc.ns_id(&parent, Kind::User);
    theirs.is_some()
        && theirs == proc.ns_id("self", Kind::User)
        && !["ns-new", "ns-enter"].contains(&&*proc.name(&parent))
}

/// What would be refused next without a namespace of the same owner, and which.
const NEED: [(&[u8], &str); 5] =
    [(b"--proc", "p"), (b"--sys", "n"), (b"--mqueue", "i"), (b"--hostname", "u"), (b"--systemd", "mpiuC")];

/// These words after a ns-new that makes what this process is in, unless a shell is
/// in there too, and the namespace of `letter`.
fn below(letter: Option<char>, words: &[OsString], proc: &Proc) -> Option<String> {
    let user = proc.ns("self", Kind::User).ok()?;
    let initial = proc.ns_id("self", Kind::User) == Some(INITIAL_USER) || has_shell(proc);
    let ours = |kind: &Kind| *kind == Kind::User || proc.ns("self", *kind).is_ok_and(|ns| belongs(&ns, &user));
    let made = Kind::ALL.into_iter().filter(|kind| !initial && ours(kind));
    let mut all: String = made.map(Kind::letter).collect();
    let has = |option: &[u8]| words.iter().any(|word| word.as_bytes().split(|b| *b == b'=').next() == Some(option));
    let next = NEED.iter().filter(|(option, _)| letter == Some(Kind::User.letter()) && has(option));
    for letter in letter.into_iter().chain(next.flat_map(|(_, letters)| letters.chars())) {
        all.extend(Some(letter).filter(|letter| !all.contains(*letter)));
    }
    if all.is_empty() {
        return Some(format!("{}{}", sudo(), quote_all(words)));
    }
    let map = match (all.contains(Kind::User.letter()), initial) {
        (true, true) => "r".to_owned(),
        (true, false) => map(proc)?,
        (false, _) => String::new(),
    };
    let all = if all.len() == Kind::ALL.len() { "a" } else { &all };
    // systemd can do nothing with a cgroup that others are in.
    let cgroup = if words.iter().any(|word| word == "--systemd") { " --new-cgroup" } else { "" };
    Some(format!("{}{} -{all}{map}{cgroup} {}", sudo(), beside("ns-new")?, quote_all(words)))
}

/// How ns-new is told our map, after its other letters.
fn map(proc: &Proc) -> Option<String> {
    let (uid, gid) = (proc.map("self", IdKind::Uid)?, proc.map("self", IdKind::Gid)?);
    if uid.is_empty() && gid.is_empty() {
        return Some("r".to_owned());
    }
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
    if root(&uid) || root(&gid) || !is_below_initial(proc) {
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

/// Whether the user namespace around ours is the initial one, so that
/// the outside ids of its map are those that a shell there would name.
fn is_below_initial(proc: &Proc) -> bool {
    let map = |who: &str| proc.text(&format!("{who}/uid_map"));
    let own = map("self");
    let mut parent = proc.status("self").map_or(0, |status| status.parent);
    while parent != 0 && map(&parent.to_string()) == own {
        parent = proc.status(&parent.to_string()).map_or(0, |status| status.parent);
    }
    // All ids but the last, which is none.
    map(&parent.to_string()).is_some_and(|text| text.trim_end().ends_with(" 4294967295"))
}

//! Targets by name: holders that were started with `ns-new --name`, and what
//! container runtimes note down about theirs.
//!
//! There is no registry. A holder is found where it is, among the processes:
//! by what it runs, by leading a session, by its door; its name is on its
//! command line.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::fail::{Because, Errno, Failure, Result};
use crate::holder::DOOR;
use crate::holder::door::is_holder;
use crate::proc::{Proc, read_all};
use crate::record::Address;
use crate::target::{Operand, Target};
use crate::word::quote;

/// A holder of the caller's, or of anybody's for root.
pub struct Holder {
    /// Where it is.
    pub address: Address,
    /// What it was called, if anything.
    pub name: Option<String>,
    /// Whose it is.
    pub uid: u32,
}

/// All holders that the caller could enter, by number.
pub fn holders(proc: &Proc) -> Vec<Holder> {
    proc.pids().into_iter().filter_map(|pid| holder(proc, pid)).collect()
}

fn holder(proc: &Proc, pid: i32) -> Option<Holder> {
    let who = pid.to_string();
    let status = proc.status(&who)?;
    if status.name != "ns-new" || proc.job(&who)?[2] != pid {
        return None;
    }
    let target = opened(proc, pid)?;
    // Where a door cannot be seen (pidfd_getfd(2)): the first process of its pid
    // namespace has nothing there.
    if !proc.seen(is_holder(target.fd.as_fd()))? || !proc.numbers(&format!("{who}/fd")).contains(&DOOR) {
        return None;
    }
    let line = proc.seen(proc.read(&format!("{who}/cmdline")))?;
    let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let mut given = words.iter().enumerate().filter_map(|(at, word)| match word.strip_prefix("--name") {
        Some("") => words.get(at + 1).cloned(),
        Some(rest) => rest.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    // It may have been made by another program than ours, which knows no rules.
    let is_name = |word: &String| {
        !proc.is_below(&status) && matches!(Operand::parse(word.as_ref()), Ok(Operand::Name(name)) if name == *word)
    };
    Some(Holder { address: target.address, name: given.next_back().filter(is_name), uid: status.uid[1] })
}

/// A process that may be meant, if it is there.
pub fn opened(proc: &Proc, pid: i32) -> Option<Target> {
    let target = Target::open(proc, Address { pid: proc.ours(&pid.to_string())?, inode: None });
    proc.seen(target.map_err(|failure| failure.errno().unwrap_or(Errno::ESRCH)))
}

/// The caller's holder that is called `name`. Others' do not count, though root
/// could enter them: whoever took the name first would be who root enters.
///
/// # Errors
/// There is none; there are several.
pub fn find(proc: &Proc, name: &str) -> Result<Address> {
    let own = proc.own().uid[1];
    let mut found = holders(proc).into_iter().filter(|h| h.uid == own && h.name.as_deref() == Some(name));
    let first = found.next().ok_or_else(|| none(proc, "holder", name, None))?;
    match found.next() {
        None => Ok(first.address),
        Some(second) => {
            let both = format!("{} and {}", first.address, second.address);
            Err(Failure::refused(format!("several holders are called {name}: {both}")))
        }
    }
}

/// Nothing of that `kind` has been found by this name. `instead`: what else has it.
pub fn none(proc: &Proc, kind: &str, name: &str, instead: Option<Because>) -> Failure {
    match proc.missed() {
        Some(errno) => Failure::os(format!("look for {}", quote(name)), errno),
        None => {
            let failure = Failure::refused(format!("no {kind} is called {}", quote(name)));
            failure.because(of_others(proc, name).or(instead))
        }
    }
}

/// That somebody else's holder has the name.
fn of_others(proc: &Proc, name: &str) -> Option<Because> {
    let own = proc.own().uid[1];
    let other = holders(proc).into_iter().find(|h| h.uid != own && h.name.as_deref() == Some(name))?;
    let (address, uid) = (other.address, other.uid);
    Some(Because::new(format!("that is holder {address} of uid {uid}, and a name counts for its owner alone")))
}

// ---- what others have noted down ----

/// No runtime's file is longer, and no directory of theirs has more entries.
const MOST_BYTES: usize = 4 << 20;
const MOST_ENTRIES: usize = 10_000;

/// A file in which a program has noted something down.
pub struct Note {
    /// What it says.
    pub bytes: Vec<u8>,
    /// Whose it is: the caller's or root's.
    pub uid: u32,
    /// When it was written, in seconds since 1970.
    pub written: i64,
}

/// Whether what is open here could be written by nobody but root and the
/// caller: then it is to be believed.
fn is_believed(proc: &Proc, fd: &OwnedFd, kind: SFlag) -> Option<(u32, i64)> {
    let stat = proc.seen(fstat(fd))?;
    let (own, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let is_kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind;
    let others = if [0, group].contains(&stat.st_gid) { 0o002 } else { 0o022 };
    (is_kind && [0, own].contains(&stat.st_uid) && stat.st_mode & others == 0).then_some((stat.st_uid, stat.st_mtime))
}

/// Opens directory `base`, which is believed, and `below` it step by step: no
/// link is followed, and each step is somebody's who is believed.
fn directory(proc: &Proc, base: &str, below: &[&str]) -> Option<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut at = proc.seen(open(base, flags, Mode::empty()))?;
    is_believed(proc, &at, SFlag::S_IFDIR)?;
    for step in below {
        at = proc.seen(openat(&at, *step, flags | OFlag::O_NOFOLLOW, Mode::empty()))?;
        is_believed(proc, &at, SFlag::S_IFDIR)?;
    }
    Some(at)
}

/// The entries of a directory of notes whose names can be names of targets;
/// none if it is not to be believed.
pub fn noted_in(proc: &Proc, base: &str, below: &[&str]) -> Vec<String> {
    let dir = directory(proc, base, below).and_then(|fd| proc.seen(nix::dir::Dir::from_fd(fd)));
    let Some(dir) = dir else { return Vec::new() };
    let name = |entry: nix::Result<nix::dir::Entry>| {
        let name = proc.seen(entry)?.file_name().to_str().ok()?.to_owned();
        let plain = name.len() <= 255 && !name.starts_with('.') && !name.chars().any(|c| c.is_control());
        plain.then_some(name)
    };
    dir.into_iter().take(MOST_ENTRIES).filter_map(name).collect()
}

/// The note `file` in directory `below` of `base`.
pub fn note(proc: &Proc, base: &str, below: &[&str], file: &str) -> Option<Note> {
    let dir = directory(proc, base, below)?;
    // A fifo in its place would keep us waiting.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = proc.seen(openat(&dir, file, flags, Mode::empty()))?;
    let (uid, written) = is_believed(proc, &fd, SFlag::S_IFREG)?;
    Some(Note { bytes: proc.seen(read_all(fd, MOST_BYTES))?, uid, written })
}

/// Whether directory `path` is there and in a directory of somebody's who is
/// believed: only he can have made it.
pub fn is_made_by_believed(proc: &Proc, path: &str) -> bool {
    let Some((above, last)) = path.trim_end_matches('/').rsplit_once('/') else { return false };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    directory(proc, above, &[]).is_some_and(|dir| proc.seen(openat(&dir, last, flags, Mode::empty())).is_some())
}

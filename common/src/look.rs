//! What every process is in: read from /proc, as little as possible of each.
//!
//! There is no list of namespaces (before Linux 6.19), so every process is
//! looked at: eight links, the number of its threads, that of its descriptors.
//! A socket costs two calls more, and closing what they open.
//! With many processes a child of ours does one half.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::fail::Errno;
use crate::id::number;
use crate::mind;
use crate::mind::child;
use crate::ns::Kind;
use crate::proc::{Proc, numbers, read_all};
use crate::sys;

/// What one process is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub pid: i32,
    /// The inode of each kind; 0: not to be seen, or the kernel has none.
    pub inodes: [u64; Kind::ALL.len()],
    /// It does not let itself be looked at.
    pub hidden: bool,
    /// It keeps its descriptors to itself.
    pub closed: bool,
    /// Threads that are elsewhere: number, kind (its place in ALL), inode.
    pub threads: Vec<[u64; 3]>,
    /// Descriptors of namespaces: likewise.
    pub descriptors: Vec<[u64; 3]>,
    /// Descriptors of sockets in another network namespace: likewise.
    pub sockets: Vec<[u64; 3]>,
}

/// From so many processes on, the work is shared.
const MANY: usize = 1000;

/// All processes that there are but this one.
///
/// # Errors
/// Those of open(2) and getdents(2) for /proc.
pub fn at_all(proc: &Proc) -> Result<Vec<Found>, Errno> {
    // Not ourselves: whoever looks for what keeps a namespace means others.
    let own = proc.own().pids;
    let me = own.first().and_then(|pid| i32::try_from(*pid).ok());
    // In the proc of an outer pid namespace no number means for a call what it
    // means there.
    let sockets = (own.len() == 1).then(mind::pair).and_then(|pair| proc.seen(pair));
    let device = |fd: BorrowedFd<'_>| proc.seen(sys::device(fd, c""));
    let nsfs = proc.seen(proc.ns("self", Kind::User)).and_then(|ns| device(ns.as_fd()));
    let on = On { nsfs, sockfs: sockets.and_then(|(socket, _)| device(socket.as_fd())) };
    let at = |pid: i32| at(proc, pid, &on);
    let listed = numbers(&proc.open_at(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)?;
    let pids: Vec<i32> = listed.into_iter().filter(|pid| Some(*pid) != me).collect();
    let half = if pids.len() < MANY { pids.len() } else { pids.len() / 2 };
    let (ours, theirs) = pids.split_at(half);
    let helper = if theirs.is_empty() {
        None
    } else {
        let half = || {
            let all: Vec<u8> = theirs.iter().flat_map(|pid| encode(&at(*pid))).collect();
            // What was missed is missed by us, then.
            proc.missed().map_or(Ok(all), Err)
        };
        child::ask_child(half).ok()
    };
    let mut all: Vec<Found> = ours.iter().map(|pid| at(*pid)).collect();
    let told = helper.and_then(|(child, pipe)| {
        let bytes = read_all(pipe, usize::MAX).unwrap_or_default();
        let whole = child::reap(&child) == Some(0);
        decode(&bytes).filter(|found| whole && found.len() == theirs.len())
    });
    // A child that did not do its half leaves it to us.
    all.extend(told.unwrap_or_else(|| theirs.iter().map(|pid| at(*pid)).collect()));
    Ok(all)
}

/// The devices of the file systems that namespaces and sockets are files of:
/// a link in /proc/PID/fd does not tell, since what was opened where it is
/// mounted is called by its path there.
struct On {
    nsfs: Option<u64>,
    /// None: sockets are not looked at.
    sockfs: Option<u64>,
}

/// One process.
fn at(proc: &Proc, pid: i32, on: &On) -> Found {
    let mut found = Found { pid, ..Found::default() };
    let dir = proc.directory(&format!("{pid}/ns"));
    found.hidden = dir.as_ref().err() == Some(&Errno::EACCES);
    let Some(dir) = proc.seen(dir) else { return found };
    match spaces(proc, &dir) {
        Ok(inodes) => found.inodes = inodes,
        Err(_) => {
            found.hidden = true;
            return found;
        }
    }
    threads(proc, &mut found);
    // A zombie has left all but its user namespace, and has no descriptors.
    let [_, mnt, ..] = found.inodes;
    if mnt == 0 && found.threads.is_empty() {
        return found;
    }
    let looked = descriptors(proc, &mut found, on);
    found.closed = looked == Err(Errno::EACCES);
    proc.seen(looked);
    found
}

/// The links of Kind::ALL.
const LINKS: [&CStr; Kind::ALL.len()] = [c"user", c"mnt", c"uts", c"ipc", c"pid", c"cgroup", c"net", c"time"];

/// The inodes of the namespaces in one directory of links.
///
/// # Errors
/// EACCES: who may not see one may not see any (ptrace(2)).
fn spaces(proc: &Proc, dir: &OwnedFd) -> Result<[u64; Kind::ALL.len()], Errno> {
    let (mut inodes, mut text) = ([0; Kind::ALL.len()], [0; 64]);
    for (inode, name) in inodes.iter_mut().zip(LINKS) {
        match sys::read_link(dir.as_fd(), name, &mut text) {
            Ok(n) => *inode = link(&text[..n]).map_or(0, |(_, inode)| inode),
            Err(e @ (Errno::EACCES | Errno::EPERM)) => return Err(e),
            // It has ended, or there is no such kind.
            Err(e) => drop(proc.seen::<()>(Err(e))),
        }
    }
    Ok(inodes)
}

fn threads(proc: &Proc, found: &mut Found) {
    let path = format!("{}/task", found.pid);
    // The links of this directory: two, and one for each thread.
    if proc.stat(&path).is_none_or(|s| s.st_nlink <= 3) {
        return;
    }
    for tid in proc.numbers(&path).into_iter().filter(|tid| *tid != found.pid) {
        let Some(dir) = proc.seen(proc.directory(&format!("{path}/{tid}/ns"))) else { continue };
        for (at, inode) in spaces(proc, &dir).unwrap_or_default().into_iter().enumerate() {
            if inode != 0 && inode != found.inodes[at] {
                found.threads.push([word(tid), at as u64, inode]);
            }
        }
    }
}

/// The descriptors that are namespaces, of a process that has more than three:
/// looking at the standard input, output and error of every sleeping daemon
/// would cost half as much again as all the rest.
///
/// # Errors
/// EACCES: the process keeps them to itself.
fn descriptors(proc: &Proc, found: &mut Found, on: &On) -> Result<(), Errno> {
    let path = format!("{}/fd", found.pid);
    // Their number since Linux 6.2, before always 0.
    let count = proc.stat(&path).map_or(0, |s| s.st_size);
    if (1..=3).contains(&count) {
        return Ok(());
    }
    let dir = proc.open_at(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let mut sockets = Vec::new();
    for fd in numbers(&dir)? {
        let Ok(name) = CString::new(fd.to_string()) else { continue };
        let device = proc.seen(sys::device(dir.as_fd(), &name));
        if device.is_some() && device == on.nsfs {
            let file = proc.seen(proc.open_at(&format!("{path}/{fd}"), OFlag::O_RDONLY | OFlag::O_NONBLOCK));
            let known = file.and_then(|file| known(proc, &file));
            found.descriptors.extend(known.map(|(kind, inode)| [word(fd), position(kind), inode]));
        } else if device.is_some() && device == on.sockfs {
            sockets.push(fd);
        }
    }
    if let Some(process) = (!sockets.is_empty()).then(|| tried(proc, sys::pidfd_open(found.pid))).flatten() {
        let (net, ours) = (position(Kind::Net), Kind::ALL.into_iter().zip(found.inodes));
        let own = ours.into_iter().find(|(kind, _)| *kind == Kind::Net).map_or(0, |(_, inode)| inode);
        for fd in sockets {
            let inode = tried(proc, behind(&process, fd).and_then(fstat)).map_or(own, |stat| stat.st_ino);
            if inode != own {
                found.sockets.push([word(fd), net, inode]);
            }
        }
    }
    Ok(())
}

/// The kind and inode of an open namespace.
pub fn known(proc: &Proc, ns: &OwnedFd) -> Option<(Kind, u64)> {
    let kind = Kind::ALL.into_iter().find(|k| sys::ns_kind(ns.as_fd()) == Ok(k.flag()))?;
    Some((kind, proc.seen(fstat(ns))?.st_ino))
}

/// The network namespace of the socket that is descriptor `fd` of a process.
///
/// # Errors
/// EPERM: who may not trace a process may not (ptrace(2)); ENOTTY: it has none.
pub fn behind(process: &OwnedFd, fd: i32) -> Result<OwnedFd, Errno> {
    sys::socket_namespace(sys::pidfd_getfd(process.as_fd(), fd)?.as_fd())
}

/// As `Proc::seen`; where the call is not here, less is looked at.
pub fn tried<T>(proc: &Proc, looked: Result<T, Errno>) -> Option<T> {
    if looked.as_ref().err() == Some(&Errno::ENOSYS) { None } else { proc.seen(looked) }
}

/// The kind and inode of a namespace, from `KIND:[INODE]` as links have it.
pub fn link(text: &[u8]) -> Option<(Kind, u64)> {
    let at = text.iter().position(|b| *b == b':')?;
    let inode = text[at + 1..].strip_prefix(b"[")?.strip_suffix(b"]")?;
    let kind = Kind::ALL.into_iter().find(|k| k.link().as_bytes() == &text[..at])?;
    Some((kind, number(inode)?))
}

fn position(kind: Kind) -> u64 {
    Kind::ALL.iter().position(|k| *k == kind).map_or(0, |at| at as u64)
}

fn word(number: i32) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

// ---- from the child to us ----

fn encode(found: &Found) -> Vec<u8> {
    let mut words = vec![word(found.pid), u64::from(found.hidden) | u64::from(found.closed) << 1];
    words.extend(found.inodes);
    for list in [&found.threads, &found.descriptors, &found.sockets] {
        words.push(list.len() as u64);
        words.extend(list.iter().flatten());
    }
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

fn decode(bytes: &[u8]) -> Option<Vec<Found>> {
    let mut words = bytes.chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_ne_bytes));
    let mut all = Vec::new();
    while let Some(pid) = words.next() {
        let flags = words.next()?;
        let (hidden, closed) = (flags & 1 != 0, flags & 2 != 0);
        let mut found = Found { pid: i32::try_from(pid).ok()?, hidden, closed, ..Found::default() };
        for inode in &mut found.inodes {
            *inode = words.next()?;
        }
        for list in [&mut found.threads, &mut found.descriptors, &mut found.sockets] {
            for _ in 0..words.next()? {
                list.push([words.next()?, words.next()?, words.next()?]);
            }
        }
        all.push(found);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_tells() {
        let one = Found { pid: 7, inodes: [1, 2, 3, 4, 5, 6, 7, 8], closed: true, ..Found::default() };
        let two = Found { pid: 8, hidden: true, ..Found::default() };
        let descriptors = vec![[3, 6, 5], [4, 0, 6]];
        let three = Found { pid: 9, threads: vec![[10, 1, 99]], descriptors, sockets: vec![[5, 6, 98]], ..one.clone() };
        let all = [one, two, three];
        let bytes: Vec<u8> = all.iter().flat_map(encode).collect();
        assert_eq!(decode(&bytes).unwrap(), all);
        assert_eq!(decode(&bytes[..bytes.len() - 8]), None);
    }

    #[test]
    fn links() {
        assert_eq!(link(b"net:[4026531840]"), Some((Kind::Net, 4_026_531_840)));
        for text in
            [&b"socket:[17]"[..], b"pipe:[17]", b"/dev/null", b"net:[x]", b"net:4", b"", b"anon_inode:[eventfd]"]
        {
            assert_eq!(link(text), None);
        }
    }
}

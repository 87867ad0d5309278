//! Why a process, or the namespace that it is in, is not for us.

use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::fail::{Because, Errno};
use crate::ns;
use crate::proc::Proc;
use crate::sys;
use crate::user;

/// Whether /proc hides process `who` from us (ENOENT, EPERM).
pub(super) fn hidden(proc: &Proc, who: &str) -> Option<Because> {
    let option = proc.hides()?;
    proc.status(who)
        .is_none()
        .then(|| Because::new(format!("/proc is mounted with {option}: process {who} is not ours")))
}

/// Why files of process `who` are not for us (EACCES; EPERM from setns(2)):
/// the kernel's ptrace check, in the order of its rules.
pub fn untouchable(proc: &Proc, who: &str) -> Option<Because> {
    let said = |text: String| Some(Because::new(text));
    let Some(theirs) = proc.status(who) else { return hidden(proc, who) };
    let own = proc.own();
    let process = format!("process {who} ({})", theirs.name);
    if theirs.state == 'Z' {
        return said(zombie(proc, who, &process));
    }
    if theirs.uid[..3] != [own.uid[0]; 3] {
        return said(format!("{process} belongs to {}", user::told(theirs.uid[0], proc)));
    }
    if let Some(gid) = theirs.gid[..3].iter().find(|gid| **gid != own.gid[0]) {
        return said(format!("{process} has gid {gid}, and we have {}", own.gid[0]));
    }
    if let Some(because) = outside(proc, who) {
        return Some(because);
    }
    // Files in /proc/PID belong to another than the process's user exactly
    // while it is not dumpable (proc_pid(5)); the directory itself stays his.
    let file = proc.open_at(&format!("{who}/uid_map"), OFlag::O_PATH).ok()?;
    let anothers = fstat(file).ok()?.st_uid != theirs.uid[1];
    // Or once it has no memory any more, as one that is about to end.
    let has_memory = || proc.text(&format!("{who}/status")).is_some_and(|status| status.contains("\nVmSize:"));
    (anothers && has_memory()).then(|| Because::new(format!("{process} is not dumpable (PR_SET_DUMPABLE)")))
}

/// What a zombie is, which has left its namespaces: a process that has ended, or
/// the first thread of one that has not.
fn zombie(proc: &Proc, who: &str, process: &str) -> String {
    let lives = |tid: &i32| proc.status(&format!("{who}/task/{tid}")).is_some_and(|thread| thread.state != 'Z');
    match proc.numbers(&format!("{who}/task")).into_iter().find(lives) {
        Some(tid) => format!("the first thread of {process} has ended: name one that has not, like {tid}"),
        None => format!("{process} has ended and waits to be reaped"),
    }
}

/// Whether process `who` is in a user namespace that is not below ours: those
/// of its outside ids that we do not have then read as -1.
pub fn outside(proc: &Proc, who: &str) -> Option<Because> {
    let map = proc.text(&format!("{who}/uid_map"))?;
    let name = proc.name(who);
    map.lines()
        .any(|line| line.split_whitespace().nth(1) == Some("4294967295"))
        .then(|| Because::new(format!("process {who} ({name}) is in a user namespace outside of ours")))
}

/// Why nothing can be born in a pid namespace (ENOMEM): its first process has
/// ended (pid_namespaces(7)).
pub fn is_dead(ns: BorrowedFd<'_>) -> Option<Because> {
    (sys::first_process(ns) == Err(Errno::ESRCH))
        .then(|| Because::new("the first process of the pid namespace has ended: no other can begin there"))
}

/// Whether a pid namespace is other than ours and those below it.
pub fn is_not_below(proc: &Proc, ns: BorrowedFd<'_>) -> Option<Because> {
    let ours = proc.ns_id("self", ns::Kind::Pid)?;
    let inode = |ns: BorrowedFd<'_>| fstat(ns).ok().map(|s| s.st_ino);
    let mut at = ns.try_clone_to_owned().ok()?;
    while inode(at.as_fd())? != ours {
        match sys::ns_parent(at.as_fd()) {
            Ok(parent) => at = parent,
            Err(Errno::EPERM) => return Some(Because::new("it is a pid namespace that is not below ours")),
            Err(_) => return None,
        }
    }
    None
}

//! Limits that have been reached: of namespaces (ENOSPC, namespaces(7)), and of
//! processes (EAGAIN, fork(2)).

use std::os::fd::AsFd;

use nix::unistd::{AccessFlags, access};

use crate::cgroup;
use crate::fail::Because;
use crate::id::number;
use crate::ns::Kind;
use crate::proc::{CAP_SYS_ADMIN, CAP_SYS_RESOURCE, Proc};
use crate::step::Facts;
use crate::sys;

/// Which limit of user.max_*_namespaces has been reached.
pub(super) fn reached(proc: &Proc, kinds: &[Kind]) -> Option<Because> {
    for kind in kinds {
        let name = format!("user.max_{}_namespaces", kind.link());
        let limit = proc.sysctl(&name.replace('.', "/"))?;
        let text = match limit {
            0 => format!("{name} is 0 here: none can be made"),
            _ if limit <= used(proc, *kind) => format!("{name} is {limit} here, and all are in use"),
            _ => continue,
        };
        let sudo = if proc.own().can(CAP_SYS_RESOURCE) { "" } else { "sudo " };
        return Some(Because::new(text).remedy(format!("{sudo}sysctl -w {name}={}", limit + 64)));
    }
    // That user namespaces nest 33 deep and no deeper is the other cause; how
    // deep one is cannot be seen from inside.
    None
}

/// How many namespaces of `kind` can be seen in use that our user namespace
/// counts for our uid: so many at least count against the limit.
pub fn used(proc: &Proc, kind: Kind) -> u64 {
    let (Some(ours), own) = (proc.ns_id("self", Kind::User), proc.own()) else { return 0 };
    let mut seen: Vec<u64> = Vec::new();
    for who in proc.pids().iter().map(i32::to_string) {
        let Ok(ns) = proc.ns(&who, kind) else { continue };
        let inode = |fd| nix::sys::stat::fstat(fd).ok().map(|s| s.st_ino);
        // Who made another kind is not told; that it is in use by us is.
        let mine = match kind {
            Kind::User => sys::ns_owner_uid(ns.as_fd()) == Ok(own.uid[1]),
            Kind::Mnt | Kind::Uts | Kind::Ipc | Kind::Pid | Kind::Cgroup | Kind::Net | Kind::Time => {
                proc.status(&who).is_some_and(|s| s.uid[1] == own.uid[1])
            }
        };
        if mine && sys::ns_owner(ns.as_fd()).ok().and_then(inode) == Some(ours) {
            seen.extend(inode(ns).filter(|n| !seen.contains(n)));
        }
    }
    u64::try_from(seen.len()).unwrap_or(u64::MAX)
}

/// Why there may be no more processes: of this user, in this cgroup, or at all.
pub(super) fn too_many(facts: &Facts<'_>) -> Option<Because> {
    of_user(facts).or_else(|| cgroup::full(facts.proc, facts.who)).or_else(|| of_all(facts.proc))
}

/// Numbers below this one are not given a second time (RESERVED_PIDS in
/// include/linux/pid.h).
const RESERVED: u64 = 300;

/// Whether the system has as many threads as it may, or our pid namespace no
/// number left: since Linux 6.14 each has a limit of its own.
fn of_all(proc: &Proc) -> Option<Because> {
    // In the last field but one: those that run, and all (proc(5)).
    let now = proc.text("loadavg")?.split([' ', '/']).nth(4).and_then(|n| number(n.as_bytes()))?;
    let most = proc.sysctl("kernel/threads-max")?;
    if now >= most {
        let text = format!("kernel.threads-max is {most}, and the system has {now} processes and threads");
        return Some(Because::new(text).remedy_if(raised("threads-max", now)));
    }
    let most = proc.sysctl("kernel/pid_max")?;
    let free = most.saturating_sub(RESERVED);
    // Also: the numbers in /proc have to be those of our pid namespace.
    if now < free || proc.own().pids.len() != 1 {
        return None;
    }
    let threads = proc.pids().into_iter().flat_map(|pid| proc.numbers(&format!("{pid}/task")));
    let given = threads.filter(|tid| u64::try_from(*tid).is_ok_and(|tid| tid >= RESERVED)).count();
    let text = format!("kernel.pid_max is {most} here, and all numbers from {RESERVED} on are in use");
    (given as u64 >= free).then(|| Because::new(text).remedy_if(raised("pid_max", most)))
}

/// By the shell itself, which can begin no program either.
fn raised(name: &str, from: u64) -> Option<String> {
    let file = format!("/proc/sys/kernel/{name}");
    access(file.as_str(), AccessFlags::W_OK).ok().map(|()| format!("echo {} >{file}", from + 64))
}

/// Whether our user has as many processes, of which each thread counts, as
/// RLIMIT_NPROC allows: those that can be seen are as many at least.
pub(super) fn of_user(facts: &Facts<'_>) -> Option<Because> {
    let proc = facts.proc;
    let own = proc.status(facts.who)?;
    // Who may do as he likes is not asked (copy_process() in kernel/fork.c).
    let exempt = own.can(CAP_SYS_RESOURCE) || own.can(CAP_SYS_ADMIN) || own.uid[0] == 0;
    if exempt && proc.in_initial().unwrap_or(true) {
        return None;
    }
    let text = proc.text(&format!("{}/limits", facts.who))?;
    let mut words = text.lines().find_map(|line| line.strip_prefix("Max processes "))?.split_whitespace();
    // Where it is `unlimited` it is not the reason.
    let soft = number(words.next()?.as_bytes())?;
    let hard = number(words.next()?.as_bytes()).unwrap_or(u64::MAX);
    let statuses = proc.pids().into_iter().filter_map(|pid| proc.status(&pid.to_string()));
    let count: u64 = statuses.filter(|s| s.uid[0] == own.uid[0]).map(|s| s.threads).sum();
    let text = format!("RLIMIT_NPROC (ulimit -u) is {soft}, and uid {} has {count} processes and threads", own.uid[0]);
    // The shell can begin no program either; dash has another letter for it.
    let can =
        hard >= count + 64 && proc.shell().is_some_and(|name| ["bash", "zsh", "mksh", "fish"].contains(&name.as_str()));
    (count >= soft).then(|| Because::new(text).remedy_if(can.then(|| format!("ulimit -Su {}", count + 64))))
}

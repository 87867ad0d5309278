//! Facts out of /proc: read through one descriptor that was proven to be a
//! proc file system and opened before any namespace was crossed. Writes
//! nothing, judges nothing.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::string::FromUtf8Error;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::sys::statfs::{FsType, fstatfs};

use crate::fail::{Errno, Failure, Result};
use crate::id::{self, Extent, number};
use crate::ns;
use crate::sys;

mod mountinfo;
mod status;

use mountinfo::parse_mounts;
pub use mountinfo::{Mount, parse_mount};
pub use status::*;

/// What statfs(2) says of a proc file system.
pub const PROC_SUPER_MAGIC: FsType = FsType(0x9fa0);

/// An open /proc.
pub struct Proc {
    fd: OwnedFd,
    /// Why something could not be looked at.
    missed: Cell<Option<Errno>>,
}

impl Proc {
    /// Opens /proc.
    ///
    /// # Errors
    /// ENOENT: there is none; a refusal where it is no proc file system.
    pub fn open() -> Result<Proc> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(AT_FDCWD, "/proc", flags, Mode::empty()).map_err(|e| Failure::os("open /proc", e))?;
        match fstatfs(&fd) {
            Ok(fs) if fs.filesystem_type() == PROC_SUPER_MAGIC => Ok(Proc { fd, missed: Cell::default() }),
            Ok(_) => Err(Failure::refused("/proc is not a proc file system")),
            Err(e) => Err(Failure::os("statfs /proc", e)),
        }
    }

    /// Makes it the working directory, for calls that take a path.
    ///
    /// # Errors
    /// Those of fchdir(2).
    pub fn enter(&self) -> std::result::Result<(), Errno> {
        nix::unistd::fchdir(&self.fd)
    }

    /// Opens `path` below it, close-on-exec.
    ///
    /// # Errors
    /// Those of open(2); EACCES: the process is another user's, or not dumpable
    /// (ptrace(2), access mode checking); ENOENT, ESRCH: it is gone.
    pub fn open_at(&self, path: &str, flags: OFlag) -> std::result::Result<OwnedFd, Errno> {
        openat(&self.fd, path, flags | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// The whole of the file `path`.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn read(&self, path: &str) -> std::result::Result<Vec<u8>, Errno> {
        read_all(&self.open_at(path, OFlag::O_RDONLY)?, usize::MAX)
    }

    /// The whole of the file `path` as text, if it can be read.
    pub fn text(&self, path: &str) -> Option<String> {
        let lossy = |e: FromUtf8Error| String::from_utf8_lossy(e.as_bytes()).into_owned();
        Some(String::from_utf8(self.seen(self.read(path))?).unwrap_or_else(lossy))
    }

    /// What has been looked at, if it could be. What we are out of something for, what is
    /// broken, or what takes a system call that is not here, may be there all the same,
    /// and is noted: see `missed`.
    pub fn seen<T>(&self, looked: std::result::Result<T, Errno>) -> Option<T> {
        let error = looked.as_ref().err().copied();
        let other =
            error.filter(|e| [Errno::EIO, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOSYS].contains(e));
        self.missed.set(other.or(self.missed.get()));
        looked.ok()
    }

    /// Why whatever was looked for in many places may be in one that could not be
    /// looked at, if there was one.
    pub fn missed(&self) -> Option<Errno> {
        self.missed.get()
    }

    /// The same, for whoever cannot do without.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn whole(&self, path: &str) -> Result<String> {
        let text = self.read(path).map_err(|e| Failure::os(format!("read /proc/{path}"), e))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The number in /proc/sys/`name`.
    pub fn sysctl(&self, name: &str) -> Option<u64> {
        number(self.text(&format!("sys/{name}"))?.trim().as_bytes())
    }

    /// The version of the running kernel: 6 and 18.
    pub fn release(&self) -> Option<(u64, u64)> {
        let text = self.text("sys/kernel/osrelease")?;
        let mut parts = text.split(['.', '-', '\n']).map(|part| number(part.as_bytes()));
        Some((parts.next()??, parts.next()??))
    }

    /// The numbers of all processes that can be seen, in their order.
    pub fn pids(&self) -> Vec<i32> {
        self.numbers(".")
    }

    /// The numbers of our children, as we count them, where the kernel lists
    /// them (CONFIG_PROC_CHILDREN).
    pub fn children(&self) -> Vec<i32> {
        let listed = self.text("thread-self/children").unwrap_or_default();
        listed.split_whitespace().filter_map(|number| self.ours(number)).collect()
    }

    /// The number that a process, `number` in this proc, has in our pid namespace. This
    /// proc may be that of an outer one: then our number is the last of several, and
    /// that of the process has the same place.
    pub fn ours(&self, number: &str) -> Option<i32> {
        let depth = self.own().pids.len().saturating_sub(1);
        let here = if depth == 0 { number.parse().ok() } else { self.status(number)?.pids.get(depth).copied() };
        i32::try_from(here?).ok()
    }

    /// The entries of directory `path` that are numbers.
    pub fn numbers(&self, path: &str) -> Vec<i32> {
        let dir = self.seen(self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY));
        dir.map_or_else(Vec::new, |dir| self.seen(numbers(&dir)).unwrap_or_default())
    }

    /// What fstatat(2) says of `path`, a link followed.
    pub fn stat(&self, path: &str) -> Option<FileStat> {
        fstatat(&self.fd, path, AtFlags::empty()).ok()
    }

    /// The status of `who` (a number, or `self`).
    pub fn status(&self, who: &str) -> Option<Status> {
        Some(parse_status(&self.text(&format!("{who}/status"))?))
    }

    /// The capabilities and ids of this process, for a reason.
    pub fn own(&self) -> Status {
        self.status("self").unwrap_or_else(|| {
            // Not readable (no descriptor left): the ids are known all the same.
            let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            Status { uid: [uid; 4], gid: [gid; 4], ..Status::default() }
        })
    }

    /// Whether a process is in a pid namespace below ours. Whoever is root in a
    /// container of ours has our uid, and calls himself what he likes.
    pub fn is_below(&self, status: &Status) -> bool {
        status.pids.len() > self.own().pids.len().max(1)
    }

    /// The map of the user namespace of `who`, its outside ids as this
    /// process sees them; empty if none has been written.
    pub fn map(&self, who: &str, kind: id::Kind) -> Option<Vec<Extent>> {
        Some(extents(&self.text(&format!("{who}/{}", kind.map_file()))?))
    }

    /// The map of the user namespace of this process, for a decision.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn own_map(&self, kind: id::Kind) -> Result<Vec<Extent>> {
        self.read_map("self", kind)
    }

    /// That of `who`, for whoever cannot do without.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_map(&self, who: &str, kind: id::Kind) -> Result<Vec<Extent>> {
        Ok(extents(&self.whole(&format!("{who}/{}", kind.map_file()))?))
    }

    /// Whether setgroups(2) is allowed in the user namespace of `who`.
    pub fn setgroups(&self, who: &str) -> Option<bool> {
        self.text(&format!("{who}/setgroups")).map(|t| t.trim() == "allow")
    }

    /// The namespace of `kind` that `who` is in.
    ///
    /// # Errors
    /// EACCES: another user's process, or not dumpable (ptrace(2)).
    pub fn ns(&self, who: &str, kind: ns::Kind) -> std::result::Result<OwnedFd, Errno> {
        self.open_at(&format!("{who}/ns/{}", kind.link()), OFlag::O_RDONLY)
    }

    /// The inode of the namespace of `kind` that `who` is in.
    pub fn ns_id(&self, who: &str, kind: ns::Kind) -> Option<u64> {
        let link = readlinkat(&self.fd, format!("{who}/ns/{}", kind.link()).as_str()).ok()?;
        in_brackets(link.to_str()?)
    }

    /// The inode of the namespace of `kind` that this process is in, for a
    /// decision; None where this kernel has no such kind.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn own_ns(&self, kind: ns::Kind) -> Result<Option<u64>> {
        let said = |e| Failure::os(format!("read /proc/self/ns/{}", kind.link()), e);
        match readlinkat(&self.fd, format!("self/ns/{}", kind.link()).as_str()) {
            Ok(link) => Ok(link.to_str().and_then(in_brackets)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(said(e)),
        }
    }

    /// Whether this process is in the initial user namespace.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn in_initial(&self) -> Result<bool> {
        Ok(self.own_ns(ns::Kind::User)? == Some(ns::INITIAL_USER))
    }

    /// The path of the cgroup of version 2 that `who` is in, as seen from the root
    /// of our cgroup namespace (cgroups(7)).
    pub fn cgroup(&self, who: &str) -> Option<String> {
        version_2(&self.text(&format!("{who}/cgroup"))?)
    }

    /// The same of this process; None: there is no version 2.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn own_cgroup(&self) -> Result<Option<String>> {
        Ok(version_2(&self.whole("self/cgroup")?))
    }

    /// The mounts that `who` sees.
    pub fn mounts(&self, who: &str) -> Vec<Mount> {
        parse_mounts(&self.seen(self.read(&format!("{who}/mountinfo"))).unwrap_or_default())
    }

    /// Those that this process sees.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn own_mounts(&self) -> Result<Vec<Mount>> {
        let text = self.read("self/mountinfo").map_err(|e| Failure::os("read /proc/self/mountinfo", e))?;
        Ok(parse_mounts(&text))
    }

    /// The mount that is /proc.
    fn mount(&self) -> Option<Mount> {
        self.mounts("self").into_iter().rev().find(|m| m.point == "/proc" && m.fstype == "proc")
    }

    /// Whether /proc is mounted read-only.
    pub fn is_read_only(&self) -> bool {
        let ro = |options: &str| options.split(',').any(|o| o == "ro");
        self.mount().is_some_and(|m| ro(&m.options) || ro(&m.super_options))
    }

    /// The option of /proc that hides the processes of others, if it has one
    /// (proc(5)): `hidepid=invisible` and the like.
    pub fn hides(&self) -> Option<String> {
        let mount = self.mount()?;
        let mut options = mount.super_options.split(',').filter(|o| o.starts_with("hidepid="));
        options.find(|o| !matches!(*o, "hidepid=0" | "hidepid=off")).map(str::to_owned)
    }

    /// Whether the root directory of this process is other than that of its
    /// mount namespace. The kernel compares the two; from here it shows by `/`
    /// being no mount point.
    pub fn is_chrooted(&self) -> bool {
        let mounts = self.mounts("self");
        !mounts.is_empty() && !mounts.iter().any(|m| m.point == "/")
    }

    /// The name of the program that process `who` runs, quoted for messages.
    pub fn name(&self, who: &str) -> String {
        self.status(who).map(|s| s.name).unwrap_or_default()
    }

    /// The parent of `who`, its process group and its session, the two by the number
    /// of their leader (proc_pid_stat(5)). 0 is one that this proc does not see.
    pub fn job(&self, who: &str) -> Option<[i32; 3]> {
        // The name in parentheses may have blanks and parentheses in it.
        let stat = self.text(&format!("{who}/stat"))?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(1).map(|field| field.parse().ok());
        Some([fields.next()??, fields.next()??, fields.next()??])
    }

    /// When `who` began, in clock ticks since boot (proc_pid_stat(5)): of all
    /// processes that ever had its number only one began then.
    pub fn started(&self, who: &str) -> Option<u64> {
        let stat = self.text(&format!("{who}/stat"))?;
        number(stat.rsplit(')').next()?.split_whitespace().nth(19)?.as_bytes())
    }

    /// When `who` began, in seconds since 1970.
    pub fn began(&self, who: &str) -> Option<i64> {
        // The kernel counts 100 ticks a second towards user space (USER_HZ).
        let since_boot = i64::try_from(self.started(who)? / 100).ok()?;
        let stat = self.text("stat")?;
        let boot: i64 = stat.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
        boot.checked_add(since_boot)
    }

    /// The number in this proc of the process behind a pidfd of ours; None: it
    /// has none here, or is no pidfd.
    ///
    /// # Errors
    /// It cannot be found out: any other number could be another process's.
    pub fn number_of(&self, pidfd: BorrowedFd<'_>) -> std::result::Result<Option<i32>, Errno> {
        let info = match self.read(&format!("self/fdinfo/{}", pidfd.as_raw_fd())) {
            // We are in a pid namespace that this proc does not see.
            Err(Errno::ENOENT) => return Ok(None),
            info => info?,
        };
        let lines = info.split(|b| *b == b'\n');
        let line = lines.filter_map(|line| std::str::from_utf8(line.strip_prefix(b"Pid:")?).ok()).next();
        Ok(line.and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 0))
    }

    /// The nearest shell above this process: its parent, unless that is
    /// timeout(1) or the like.
    pub fn shell(&self) -> Option<String> {
        const SHELLS: [&str; 8] = ["fish", "bash", "dash", "sh", "zsh", "ksh", "mksh", "busybox"];
        let mut who = "self".to_owned();
        let mut above = (0..4).map(|_| {
            who = self.status(&who).map_or(0, |s| s.parent).to_string();
            self.name(&who)
        });
        above.find(|name| SHELLS.contains(&name.as_str()))
    }

    /// Whether that is fish, whose language is another.
    pub fn is_below_fish(&self) -> bool {
        self.shell().is_some_and(|name| name == "fish")
    }

    /// `open`, as a path of another process could be: for O_PATH directories.
    ///
    /// # Errors
    /// As `open_at`.
    pub fn directory(&self, path: &str) -> std::result::Result<OwnedFd, Errno> {
        self.open_at(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }
}

/// The inode in the text of a link to a namespace: `user:[4026531837]`.
pub fn in_brackets(link: &str) -> Option<u64> {
    number(link.split(['[', ']']).nth(1)?.as_bytes())
}

/// The entries of a directory in /proc that are numbers, in the kernel's order:
/// theirs but for threads (fs/proc/base.c, next_tgid()).
///
/// # Errors
/// Those of getdents64(2).
pub fn numbers(dir: &OwnedFd) -> std::result::Result<Vec<i32>, Errno> {
    let (mut numbers, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let n = sys::read_directory(dir.as_fd(), &mut piece)?;
        // A piece may be a short one where a signal waits.
        if n == 0 {
            return Ok(numbers);
        }
        let mut rest = &piece[..n];
        // struct linux_dirent64: its length at 16, the name from 19 on.
        while let Some(&[low, high]) = rest.get(16..18) {
            let (entry, after) = rest.split_at(usize::from(u16::from_ne_bytes([low, high])).clamp(19, rest.len()));
            let name = entry[19..].split(|b| *b == 0).next().unwrap_or_default();
            numbers.extend(number(name).and_then(|n| i32::try_from(n).ok()));
            rest = after;
        }
    }
}

/// The whole of what `fd` gives, at most `limit` bytes.
///
/// # Errors
/// Those of read(2); E2BIG over the limit.
pub fn read_all(fd: impl AsFd, limit: usize) -> std::result::Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match nix::unistd::read(fd.as_fd(), &mut piece) {
            Ok(0) => return Ok(all),
            Ok(n) if all.len() + n > limit => return Err(Errno::E2BIG),
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// What the `status` of an open directory /proc/PID says.
///
/// # Errors
/// Those of open(2) and read(2); ESRCH: the process has gone.
pub fn status_in(dir: impl AsFd) -> std::result::Result<Status, Errno> {
    let file = openat(dir, "status", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(parse_status(&String::from_utf8_lossy(&read_all(file, usize::MAX)?)))
}

fn version_2(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The extents in the text of a uid_map or gid_map.
pub fn extents(text: &str) -> Vec<Extent> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace().map(|w| number(w.as_bytes()));
        let (i, o, n) = (fields.next()??, fields.next()??, fields.next()??);
        Extent::new(i, o, n)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_facts_are_those_of_the_kernel() {
        let proc = Proc::open().unwrap();
        let own = proc.own();
        assert_eq!(own.uid[1], nix::unistd::geteuid().as_raw());
        assert_eq!(own.pids.first().map(|p| i32::try_from(*p).unwrap()), Some(nix::unistd::getpid().as_raw()));
        assert!(proc.pids().contains(&nix::unistd::getpid().as_raw()));
        assert!(proc.mounts("self").iter().any(|m| m.point == "/proc" && m.fstype == "proc"));
        assert!(proc.ns_id("self", ns::Kind::User).is_some());
    }

    #[test]
    fn extents_of_a_map() {
        let extents = extents("         0       1000          1\n         1     100000      65536\n");
        assert_eq!(extents, [Extent::new(0, 1000, 1).unwrap(), Extent::new(1, 100_000, 65536).unwrap()]);
    }
}

//! The process (or namespace file) that an operand names: opened once, proven,
//! and from then on known only by its descriptors.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, fstatfs};

use crate::fail::{Because, Errno, Failure, Result};
use crate::holder;
use crate::id::{self, number};
use crate::mind;
use crate::ns;
use crate::path::used_up;
use crate::proc::{CAP_NET_ADMIN, PROC_SUPER_MAGIC, Proc, in_brackets, read_all, status_in};
use crate::record::{Address, MAX_STREAM, Record, Stream};
use crate::sys;
use crate::word::quote;

/// Where ip-netns(8) keeps network namespaces by name.
const NETNS: &str = "/run/netns";

/// What a TARGET operand says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `-`: a stream on standard input.
    Stream,
    /// `PID` or `PID:INODE`.
    Process(Address),
    /// A word with a slash: a namespace file.
    File(PathBuf),
    /// `fd:N`: an open namespace file or pidfd.
    Descriptor(i32),
    /// Anything else: a name.
    Name(String),
}

impl Operand {
    /// Reads a TARGET.
    ///
    /// # Errors
    /// Wrong usage: digits that are no process number, `fd:` without one.
    pub fn parse(word: &OsStr) -> Result<Operand> {
        let bytes = word.as_bytes();
        let bad = |what: &str| Failure::usage(format!("{}: {what}", quote(word)));
        if bytes == b"-" {
            return Ok(Operand::Stream);
        }
        if let Some(n) = bytes.strip_prefix(b"fd:") {
            let n = number(n).and_then(|n| i32::try_from(n).ok());
            return Ok(Operand::Descriptor(n.ok_or_else(|| bad("not a descriptor"))?));
        }
        if let Some(name) = bytes.strip_prefix(b"name:") {
            return Operand::named(name).ok_or_else(|| bad("not a name"));
        }
        if let Some(name) = bytes.strip_prefix(b"netns:") {
            let Some(Operand::Name(name)) = Operand::named(name) else { return Err(bad("not a name")) };
            let plain = !name.contains('/') && !name.starts_with('.');
            return if plain { Ok(Operand::File(Path::new(NETNS).join(name))) } else { Err(bad("not a name")) };
        }
        if bytes.contains(&b'/') {
            return Ok(Operand::File(word.into()));
        }
        // The ids of containers may begin with digits, and go on with letters.
        if bytes.iter().all(|b| b.is_ascii_digit() || *b == b':') && bytes.first().is_some_and(u8::is_ascii_digit) {
            return Ok(Operand::Process(Address::parse(bytes).ok_or_else(|| bad("not PID or PID:INODE"))?));
        }
        Operand::named(bytes).ok_or_else(|| bad("not a target"))
    }

    fn named(name: &[u8]) -> Option<Operand> {
        let name = std::str::from_utf8(name).ok()?;
        // Names of others are shown, too: one a line, and nothing that a terminal obeys.
        let plain = !name.chars().any(|c| c.is_control() || c.is_whitespace());
        (plain && !name.is_empty() && !name.starts_with('-')).then(|| Operand::Name(name.to_owned()))
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Stream => write!(f, "-"),
            Operand::Process(at) => write!(f, "{at}"),
            Operand::File(path) => write!(f, "{}", quote(path)),
            Operand::Descriptor(n) => write!(f, "fd:{n}"),
            Operand::Name(name) => write!(f, "{name}"),
        }
    }
}

/// An open process.
pub struct Target {
    /// Its pidfd.
    pub fd: OwnedFd,
    /// Its directory in /proc, proven to be that of `fd`.
    pub dir: OwnedFd,
    /// Its number in our pid namespace.
    pub pid: i32,
    /// How records and plans name it.
    pub address: Address,
}

impl Target {
    /// Its number, as the name of its directory in /proc.
    pub fn who(&self) -> String {
        self.pid.to_string()
    }

    /// Opens a process.
    ///
    /// # Errors
    /// ESRCH, ESTALE: it is gone, or the number is another's by now.
    pub fn open(proc: &Proc, at: Address) -> Result<Target> {
        let said = |e| Failure::os(format!("open process {at}"), e);
        let is_about_it = |e| matches!(e, Errno::ESRCH | Errno::ENOENT | Errno::EINVAL);
        let refused = |e| said(e).because(if is_about_it(e) { another(proc, at) } else { used_up(e) });
        let fd = match at.inode {
            // The inode alone names the process, whatever its number is here.
            Some(inode) => match sys::pidfd_by_inode(inode) {
                Ok(fd) => fd,
                Err(Errno::ESTALE) => return Err(said(Errno::ESRCH).because(another(proc, at))),
                // Older than Linux 6.14: by number, then compared.
                Err(_) => by_number(at.pid).map_err(refused)?,
            },
            None => by_number(at.pid).map_err(refused)?,
        };
        let inode = pidfs_inode(fd.as_fd()).map_err(said)?;
        if at.inode.is_some() && inode != at.inode {
            return Err(said(Errno::ESRCH).because(another(proc, at)));
        }
        let pid = proc.number_of(fd.as_fd()).unwrap_or(at.pid);
        let found = Target::with(proc, fd, Address { pid, inode: inode.or(at.inode) });
        found.map_err(|e| if e == Errno::ENOENT { said(e).because(hidden(proc, &pid.to_string())) } else { refused(e) })
    }

    fn with(proc: &Proc, fd: OwnedFd, address: Address) -> std::result::Result<Target, Errno> {
        // Whoever has ended meanwhile has no directory any more.
        let gone = |e| is_alive(fd.as_fd()).err().filter(|_| e == Errno::ENOENT).unwrap_or(e);
        let dir = proc.directory(&address.pid.to_string()).map_err(gone)?;
        // The number was looked up after the pidfd was open, and the process
        // still lives: so the directory is its, and no later one's.
        is_alive(fd.as_fd())?;
        Ok(Target { fd, dir, pid: address.pid, address })
    }

    /// Opens the process that descriptor `n` of ours stands for: a pidfd, or
    /// the directory of a process in /proc.
    ///
    /// # Errors
    /// EBADF: it is not open, or stands for no process; ESRCH: that is gone.
    pub fn from_descriptor(proc: &Proc, n: i32) -> Result<Target> {
        let said = |e| Failure::os(format!("use descriptor {n}"), e);
        let neither = || Because::new(format!("descriptor {n} is neither a pidfd nor a directory of /proc"));
        let fd = sys::dup_above(n, 3).map_err(said)?;
        if let Some(pid) = proc.number_of(fd.as_fd()) {
            let inode = pidfs_inode(fd.as_fd()).map_err(said)?;
            return Target::with(proc, fd, Address { pid, inode }).map_err(said);
        }
        // Opened again: of an O_PATH descriptor the kernel does not tell what
        // it is. No link is followed, and only a process takes a signal.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let again = nix::fcntl::openat(&fd, ".", flags, Mode::empty());
        let given = match again {
            Ok(fd) if fstatfs(&fd).map_err(said)?.filesystem_type() == PROC_SUPER_MAGIC => Some(fd),
            Ok(_) | Err(_) => None,
        };
        is_alive(given.as_ref().unwrap_or(&fd).as_fd())
            .map_err(|e| said(e).because((e == Errno::EBADF).then(neither)))?;
        let given = given.ok_or_else(|| said(Errno::EBADF).because(Some(neither())))?;
        let pid =
            status_in(&given).and_then(|s| i32::try_from(*s.pids.first()?).ok()).ok_or_else(|| said(Errno::ESRCH))?;
        let target = Target::open(proc, Address { pid, inode: None })?;
        let place = |fd: &OwnedFd| fstat(fd).map(|s| (s.st_dev, s.st_ino)).map_err(said);
        if place(&given)? != place(&target.dir)? {
            return Err(Failure::refused(format!("descriptor {n} is a directory of another proc file system")));
        }
        Ok(target)
    }

    /// Whether something is mounted over a file of its in /proc.
    pub fn is_covered(&self, proc: &Proc) -> bool {
        let below = format!("/proc/{}/", self.pid);
        proc.mounts("self").iter().any(|m| m.point.starts_with(&below))
    }

    /// Whether the process has gone, or is a zombie. Its number may be another's
    /// by now, so this is asked before anything by number.
    pub fn ended(&self) -> Option<Because> {
        let gone = is_alive(self.fd.as_fd()) == Err(Errno::ESRCH);
        let gone = gone || status_in(&self.dir).is_some_and(|s| s.state == 'Z');
        gone.then(|| Because::new(format!("process {} has ended", self.pid)))
    }
}

/// A descriptor for a process or, where the number is that of a thread which is
/// not the first (EINVAL before Linux 6.16, then ENOENT), for the thread.
fn by_number(pid: i32) -> std::result::Result<OwnedFd, Errno> {
    let is_thread = |e| e == Errno::EINVAL || e == Errno::ENOENT;
    sys::pidfd_open(pid).or_else(|e| if is_thread(e) { sys::pidfd_open_thread(pid).map_err(|_| e) } else { Err(e) })
}

/// Whether the process behind a pidfd, or a directory of /proc, is there.
fn is_alive(fd: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    sys::pidfd_signal(fd, 0).or_else(|e| if e == Errno::EPERM { Ok(()) } else { Err(e) })
}

/// Whether /proc hides process `who` from us (ENOENT, EPERM).
fn hidden(proc: &Proc, who: &str) -> Option<Because> {
    let option = proc.hides()?;
    proc.status(who)
        .is_none()
        .then(|| Because::new(format!("/proc is mounted with {option}: process {who} is not ours")))
}

/// The inode of a pidfd in pidfs (Linux 6.9); before, all pidfds shared one.
///
/// # Errors
/// Those of fstatfs(2) and fstat(2).
pub fn pidfs_inode(fd: BorrowedFd<'_>) -> std::result::Result<Option<u64>, Errno> {
    const PID_FS_MAGIC: FsType = FsType(0x5049_4446);
    let is_pidfs = match fstatfs(fd) {
        // A filter of a container's, older than the call.
        Err(Errno::ENOSYS) => false,
        fs => fs?.filesystem_type() == PID_FS_MAGIC,
    };
    Ok(if is_pidfs { Some(fstat(fd)?.st_ino) } else { None })
}

/// Why a process cannot be opened: as far as it can be seen.
fn another(proc: &Proc, at: Address) -> Option<Because> {
    let Some(status) = proc.status(&at.pid.to_string()) else {
        return Some(Because::new(format!("no process has number {} here", at.pid)));
    };
    // The proc at hand may be that of an outer pid namespace: its numbers are
    // not ours, as the one that it has for us shows.
    let outer = proc.own().pids.first().is_some_and(|pid| *pid != std::process::id());
    let ours = sys::pidfd_open(at.pid);
    if outer && ours.is_err() {
        return Some(Because::new(format!("process {} ({}) is outside of our pid namespace", at.pid, status.name)));
    }
    let theirs = pidfs_inode(ours.ok()?.as_fd()).ok()?;
    if at.inode.is_some() && theirs.is_some() && theirs != at.inode {
        return Some(Because::new(format!("number {} belongs to another process ({}) by now", at.pid, status.name)));
    }
    (status.state == 'Z')
        .then(|| Because::new(format!("process {} ({}) has ended and waits to be reaped", at.pid, status.name)))
}

/// Why files of process `who` are not for us (EACCES; EPERM from setns(2)):
/// the kernel's ptrace check, in the order of its rules.
pub fn untouchable(proc: &Proc, who: &str) -> Option<Because> {
    let said = |text: String| Some(Because::new(text));
    let Some(theirs) = proc.status(who) else { return hidden(proc, who) };
    let own = proc.own();
    let process = format!("process {who} ({})", theirs.name);
    if theirs.state == 'Z' {
        return said(format!("{process} has ended and waits to be reaped"));
    }
    let mapped = |id: u32| proc.map("self", id::Kind::Uid).is_some_and(|m| m.iter().any(|e| e.inside().has(id)));
    if theirs.uid[..3] != [own.uid[0]; 3] {
        if !mapped(theirs.uid[0]) {
            return said(format!("{process} belongs to a user who is not mapped in this user namespace"));
        }
        let name = crate::user::by_uid(theirs.uid[0]).map_or_else(|| theirs.uid[0].to_string(), |u| u.to_string());
        return said(format!("{process} belongs to {name}"));
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
    (fstat(file).ok()?.st_uid != theirs.uid[1])
        .then(|| Because::new(format!("{process} is not dumpable (PR_SET_DUMPABLE)")))
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

/// What `read_bytes` has read, for `farewell`: standard input can be read once.
static READ: OnceLock<Vec<u8>> = OnceLock::new();

/// Tells the holder that the stream names, if any, that this process has come
/// and gone: it then ends, though a filter in between (cat, tee) would keep its
/// pipe open for ever. For a stage that fails, whether it had read or not.
pub fn farewell() {
    if READ.get().is_none() && mind::is_pipe(0) == Ok(true) {
        let _ = read_bytes();
    }
    let lines = READ.get().into_iter().flat_map(|bytes| bytes.split(|b| *b == b'\n'));
    let holder = lines.filter_map(|line| Record::parse(line).ok()).find_map(|record| match record {
        Record::Pid(Some(at), true) => Some(at),
        Record::Pid(..) | Record::Extent(..) | Record::Failed | Record::Other(_) => None,
    });
    let target = holder.and_then(|at| Target::open(&Proc::open().ok()?, at).ok());
    if let Some(target) = target {
        let _ = attach(&target);
    }
}

/// Attaches this process to a holder: through its door or, where that is not to
/// be had, by a signal, if it is ns-new that would get it.
///
/// # Errors
/// ESRCH: the holder has gone; ENOTSOCK: the process is no holder; EPERM.
pub fn attach(target: &Target) -> std::result::Result<(), Errno> {
    let done = holder::attach(target.fd.as_fd());
    let barred = matches!(done, Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS));
    let is_ns_new = || Proc::open().is_ok_and(|proc| proc.name(&target.who()) == "ns-new");
    if barred && is_ns_new() { holder::knock(target.fd.as_fd()) } else { done }
}

/// Reads the stream on standard input up to `end`.
///
/// # Errors
/// It breaks off, is no stream, or an earlier stage failed.
pub fn read_stream() -> Result<Stream> {
    if nix::unistd::isatty(sys::lend(0)).unwrap_or(false) {
        return Err(Failure::usage("`-` reads records from a pipe, and standard input is a terminal"));
    }
    read_bytes()?;
    Stream::parse(READ.get().map_or(&[], Vec::as_slice))
}

fn read_bytes() -> Result<()> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    // Not to the end of file: the stages before us stay as long as we do.
    while !complete(&bytes) && bytes.len() <= MAX_STREAM {
        match nix::unistd::read(sys::lend(0), &mut piece) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Failure::os("read standard input", e)),
        }
    }
    let too_long = bytes.len() > MAX_STREAM;
    let _ = READ.set(bytes);
    if too_long {
        let text = format!("standard input is not a stream of records (no `end` within {MAX_STREAM} bytes)");
        return Err(Failure::refused(text));
    }
    Ok(())
}

fn complete(bytes: &[u8]) -> bool {
    let has = |line: &[u8]| bytes.starts_with(&line[1..]) || memchr::memmem::find(bytes, line).is_some();
    has(b"
end
") || has(b"
failed
")
}

/// Opens a namespace file, by path or as descriptor `fd:N`.
///
/// # Errors
/// Those of open(2); a refusal where it is none.
pub fn namespace_file(operand: &Operand) -> Result<Option<(OwnedFd, u64)>> {
    let (fd, said) = match operand {
        Operand::File(path) => {
            let said = format!("open {}", quote(path));
            // A fifo in its place would keep us waiting.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            (open(path.as_path(), flags, Mode::empty()), said)
        }
        Operand::Descriptor(n) => (sys::dup_above(*n, 3), format!("use descriptor {n}")),
        Operand::Stream | Operand::Process(_) | Operand::Name(_) => return Ok(None),
    };
    let fd = fd.map_err(|e| Failure::os(said.as_str(), e))?;
    match sys::ns_kind(fd.as_fd()) {
        Ok(flag) => Ok(Some((fd, flag))),
        Err(e) => Err(Failure::os(format!("{said} as a namespace"), e).because(no_namespace(&fd, e))),
    }
}

fn no_namespace(fd: &OwnedFd, errno: Errno) -> Option<Because> {
    if errno == Errno::ENOTTY {
        return Some(Because::new("it is not a namespace file"));
    }
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).map_or(OFlag::empty(), OFlag::from_bits_truncate);
    let text = "it has been opened with O_PATH: that is a place in a file system, and no namespace";
    (errno == Errno::EBADF && flags.contains(OFlag::O_PATH)).then(|| Because::new(text))
}

/// The inode of an open namespace.
///
/// # Errors
/// None in practice.
pub fn inode(ns: &OwnedFd) -> Result<u64> {
    fstat(ns).map(|s| s.st_ino).map_err(|e| Failure::os("look at the namespace", e))
}

/// The map of `kind` of an open process, read through its own directory.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn map_of(target: &Target, kind: id::Kind) -> std::result::Result<Vec<u8>, Errno> {
    read(target, kind.map_file())
}

/// The file `name` of an open process, read through its own directory.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read(target: &Target, name: &str) -> std::result::Result<Vec<u8>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    read_all(nix::fcntl::openat(&target.dir, name, flags, Mode::empty())?, usize::MAX)
}

/// The seccomp filters of a target, those loaded first first; it is stopped
/// for a moment.
///
/// # Errors
/// Those of `sys::trace` and `sys::filter`; ETIMEDOUT: it does not stop.
pub fn filters(target: &Target) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let patience = Instant::now() + Duration::from_secs(2);
    sys::trace(target.pid)?;
    while sys::child_change(Some(target.fd.as_fd()))?.is_none() {
        if Instant::now() > patience {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut filters = Vec::new();
    let end = loop {
        match sys::filter(target.pid, filters.len()) {
            Ok(filter) => filters.push(filter),
            Err(e) => break e,
        }
    };
    sys::let_go(target.pid)?;
    if end == Errno::ENOENT { Ok(filters) } else { Err(end) }
}

/// Whether standard output is something whose reader can be seen to leave.
///
/// # Errors
/// Those of fstat(2).
pub fn has_reader() -> std::result::Result<bool, Errno> {
    mind::is_pipe(1)
}

/// The link of the namespace of `kind` to be entered: that of its children
/// where a process has a pid namespace that it is not in itself, like a holder.
///
/// # Errors
/// Those of readlink(2).
fn link_of(target: &Target, kind: ns::Kind) -> std::result::Result<String, Errno> {
    let link = format!("ns/{}", kind.link());
    if kind != ns::Kind::Pid {
        return Ok(link);
    }
    let children = "ns/pid_for_children";
    match readlinkat(&target.dir, children) {
        Ok(text) => Ok(if readlinkat(&target.dir, link.as_str())? == text { link } else { children.to_owned() }),
        // It has made a pid namespace, and no child in it yet.
        Err(Errno::ENOENT) => Ok(link),
        Err(e) => Err(e),
    }
}

/// The inode of the namespace of `kind` that a target stands for; None where
/// this kernel has no such kind.
///
/// # Errors
/// EACCES: it is another user's, or not dumpable; ENOENT: it is gone.
pub fn namespace_of(proc: &Proc, target: &Target, kind: ns::Kind) -> Result<Option<u64>> {
    let link = link_of(target, kind);
    match link.as_deref().map_err(|e| *e).and_then(|link| readlinkat(&target.dir, link)) {
        Ok(text) => Ok(text.to_str().and_then(in_brackets)),
        Err(Errno::ENOENT) if proc.own_ns(kind)?.is_none() => Ok(None),
        Err(e) => {
            // A zombie has left its namespaces: ENOENT.
            let because = untouchable(proc, &target.who()).filter(|_| e == Errno::EACCES || e == Errno::ENOENT);
            let link = link.unwrap_or_else(|_| format!("ns/{}", kind.link()));
            Err(Failure::os(format!("read /proc/{}/{link}", target.pid), e).because(because))
        }
    }
}

/// The inode of the namespace of `kind` that process `who` stands for.
pub fn namespace_at(proc: &Proc, who: &str, kind: ns::Kind) -> Option<u64> {
    let target = Target::open(proc, Address::parse(who.as_bytes())?).ok()?;
    namespace_of(proc, &target, kind).ok().flatten()
}

/// The pid namespace of a target's children, if the target is not in it itself:
/// setns(2) by a pidfd would enter the one that the target is in.
///
/// # Errors
/// EACCES: it is another user's, or not dumpable.
pub fn pid_namespace_apart(target: &Target) -> Result<Option<OwnedFd>> {
    let said = |e| Failure::os(format!("read /proc/{}/ns/pid", target.pid), e);
    let link = link_of(target, ns::Kind::Pid).map_err(said)?;
    if link == "ns/pid" {
        return Ok(None);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::openat(&target.dir, link.as_str(), flags, Mode::empty());
    opened.map(Some).map_err(|e| Failure::os(format!("open /proc/{}/{link}", target.pid), e))
}

/// Opens `name` in the directory of a target.
fn file_of(proc: &Proc, target: &Target, name: &str, flags: OFlag) -> Result<OwnedFd> {
    let opened = nix::fcntl::openat(&target.dir, name, flags | OFlag::O_CLOEXEC, Mode::empty());
    opened.map_err(|e| {
        // A zombie has left its namespaces: ENOENT.
        let because = untouchable(proc, &target.who()).filter(|_| e == Errno::EACCES || e == Errno::ENOENT);
        Failure::os(format!("open /proc/{}/{name}", target.pid), e).because(because)
    })
}

/// The working directory of a target.
///
/// # Errors
/// As `root`.
pub fn directory(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    file_of(proc, target, "cwd", OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// The root directory of a target.
///
/// # Errors
/// EACCES: it is another user's, or not dumpable; ENOENT: it is gone.
pub fn root(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    file_of(proc, target, "root", OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// No file that is read in the root of a target is longer.
const MOST_BYTES: usize = 4 << 20;

/// The file `path` in the root of a target: no link leads out of it.
///
/// # Errors
/// Those of open(2) and read(2); EINVAL: it is no regular file.
pub fn file_in(root: &OwnedFd, path: &str) -> std::result::Result<Vec<u8>, Errno> {
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    // A fifo in its place would keep us waiting; a device might do anything.
    let kind = fstat(sys::open_in_root(root.as_fd(), &path, libc::O_PATH, 0)?)?.st_mode & libc::S_IFMT;
    if kind != libc::S_IFREG {
        return Err(Errno::EINVAL);
    }
    read_all(sys::open_in_root(root.as_fd(), &path, libc::O_RDONLY | libc::O_NONBLOCK, 0)?, MOST_BYTES)
}

/// Whether the root of a target has a file of this path.
pub fn is_in(root: &OwnedFd, path: &str) -> bool {
    let path = std::ffi::CString::new(path).unwrap_or_default();
    path.to_bytes().starts_with(b"/") && sys::open_in_root(root.as_fd(), &path, libc::O_PATH, 0).is_ok()
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

/// The parent of a target's user namespace.
///
/// # Errors
/// As `root`; EPERM: it is outside of ours.
pub fn user_parent(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    let ns = user_namespace(proc, target)?;
    sys::ns_owner(ns.as_fd()).map_err(|e| {
        let because = Because::new("the parent of its user namespace is a user namespace outside of ours");
        Failure::os(format!("open the parent of the user namespace of {}", target.pid), e)
            .because((e == Errno::EPERM).then_some(because))
    })
}

/// Whether an open namespace is the one of `kind` that we are in.
pub fn is_ours(proc: &Proc, ns: &OwnedFd, kind: ns::Kind) -> bool {
    fstat(ns).ok().map(|s| s.st_ino) == proc.ns_id("self", kind)
}

/// Whether a namespace belongs to this user namespace, or to one below it.
pub fn belongs(ns: &OwnedFd, user: &OwnedFd) -> bool {
    let inode = |fd: &OwnedFd| fstat(fd).ok().map(|s| s.st_ino);
    let wanted = inode(user);
    let mut owner = sys::ns_owner(ns.as_fd()).ok();
    while let Some(at) = owner {
        if wanted.is_some() && inode(&at) == wanted {
            return true;
        }
        owner = sys::ns_owner(at.as_fd()).ok();
    }
    false
}

/// The user namespace of a target.
///
/// # Errors
/// As `root`.
pub fn user_namespace(proc: &Proc, target: &Target) -> Result<OwnedFd> {
    file_of(proc, target, "ns/user", OFlag::O_RDONLY)
}

/// The network namespace of the socket that is descriptor `n` of a target.
///
/// # Errors
/// EBADF: it is not open there; EPERM; ENOTTY: it is no socket.
pub fn network_of_socket(proc: &Proc, target: &Target, n: i32) -> Result<OwnedFd> {
    let pid = target.pid;
    let socket = sys::pidfd_getfd(target.fd.as_fd(), n).map_err(|e| {
        let closed = || Because::new(format!("descriptor {n} of process {pid} is not open"));
        let because = if e == Errno::EPERM { untouchable(proc, &target.who()) } else { used_up(e) };
        Failure::os(format!("pidfd_getfd {pid} {n}"), e).because((e == Errno::EBADF).then(closed).or(because))
    })?;
    sys::socket_namespace(socket.as_fd()).map_err(|e| {
        let lacks = "this needs CAP_NET_ADMIN where the network namespace belongs, and we do not have it here";
        let lacks = (e == Errno::EPERM && !proc.own().can(CAP_NET_ADMIN)).then(|| Because::new(lacks));
        let other = || Because::new(format!("descriptor {n} of process {pid} is no socket"));
        Failure::os(format!("find the network namespace of descriptor {n} of {pid}"), e)
            .because((e == Errno::ENOTTY).then(other).or(lacks))
    })
}

/// The number of a target's mount namespace, for statmount(2).
///
/// # Errors
/// As `root`; ENOTTY: Linux before 6.11.
pub fn mount_namespace_id(proc: &Proc, target: &Target) -> Result<u64> {
    let ns = file_of(proc, target, "ns/mnt", OFlag::O_RDONLY)?;
    sys::mount_namespace_id(ns.as_fd())
        .map_err(|e| Failure::os(format!("read the number of {}'s mounts", target.pid), e))
}

/// Whether a target's root directory is the same as ours, so that a path means
/// the same there.
pub fn same_root(proc: &Proc, target: &Target) -> bool {
    let root = |who: &str| {
        proc.directory(&format!("{who}/root")).ok().and_then(|fd| fstat(fd).ok()).map(|s| (s.st_dev, s.st_ino))
    };
    let ours = root("self");
    ours.is_some() && ours == root(&target.who())
}

/// The working directory: its path and its inode.
///
/// # Errors
/// ENOENT: it has been removed.
pub fn working_directory() -> Result<(PathBuf, (u64, u64))> {
    let said = |e| Failure::os("find the working directory", e);
    let path = nix::unistd::getcwd().map_err(said)?;
    let stat = open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).and_then(fstat).map_err(said)?;
    Ok((path, (stat.st_dev, stat.st_ino)))
}

/// A descriptor named on the command line, proven to be open.
///
/// # Errors
/// Wrong usage: it is no number, or not open; EMFILE.
pub fn descriptor(word: &OsStr) -> Result<i32> {
    let n = number(word.as_bytes()).and_then(|n| i32::try_from(n).ok());
    let n = n.ok_or_else(|| Failure::usage(format!("{}: not a descriptor", quote(word))))?;
    match sys::dup_above(n, 3) {
        Err(Errno::EBADF) => Err(Failure::usage(format!("descriptor {n} is not open"))),
        Err(e) => Err(Failure::os(format!("copy descriptor {n}"), e)),
        Ok(_) => Ok(n),
    }
}

/// The leader of this process's session: the shell of the terminal.
///
/// # Errors
/// It is in a pid namespace that cannot be seen from here.
fn session_leader() -> Result<i32> {
    match nix::unistd::getsid(None) {
        Ok(pid) if pid.as_raw() > 0 => Ok(pid.as_raw()),
        _ => Err(Failure::refused("the leader of this session is outside of the pid namespace")),
    }
}

/// A duplicate of a descriptor named on the command line.
///
/// # Errors
/// Wrong usage: it is no number, or not open.
pub fn duplicate(word: &OsStr) -> Result<OwnedFd> {
    let n = descriptor(word)?;
    sys::dup_above(n, 3).map_err(|e| Failure::os(format!("use descriptor {n}"), e))
}

/// The process that something is to end with: a number, or `tty` for the leader
/// of this session.
///
/// # Errors
/// Wrong usage: it is neither.
pub fn end_with(word: &OsStr) -> Result<i32> {
    if word == "tty" {
        return session_leader();
    }
    let pid = word.to_str().and_then(|w| w.parse::<i32>().ok()).filter(|pid| *pid > 0);
    pid.ok_or_else(|| Failure::usage(format!("--with: {} is not a process number", quote(word))))
}

/// A pidfd of the process with this number, to wait for its end.
///
/// # Errors
/// ESRCH: there is none.
pub fn process(pid: i32) -> Result<OwnedFd> {
    sys::pidfd_open(pid).map_err(|e| Failure::os(format!("open process {pid}"), e))
}

/// The uid that owns the user namespace of a target, as seen from here.
pub fn owner_of_user_namespace(proc: &Proc, target: &Target) -> Option<u32> {
    sys::ns_owner_uid(proc.ns(&target.who(), ns::Kind::User).ok()?.as_fd()).ok()
}

/// A user namespace above a process.
pub struct Above {
    /// Its inode.
    pub inode: u64,
    /// The uid that owns it, as seen from here.
    pub owner: Option<u32>,
    /// It, open.
    pub file: OwnedFd,
}

/// The user namespace of process `who` and all above it that can be seen: the
/// last one is ours, unless the process is outside of it.
pub fn user_namespaces(proc: &Proc, who: &str) -> Option<Vec<Above>> {
    let mut chain = Vec::new();
    let mut at = Some(proc.ns(who, ns::Kind::User).ok()?);
    while let Some(file) = at {
        at = sys::ns_owner(file.as_fd()).ok();
        chain.push(Above { inode: fstat(&file).ok()?.st_ino, owner: sys::ns_owner_uid(file.as_fd()).ok(), file });
    }
    Some(chain)
}

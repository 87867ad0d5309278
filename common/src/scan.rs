//! All namespaces that can be seen, and what keeps each of them: processes,
//! threads, descriptors, bind mounts, and what they own. namespaces(7).

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use crate::fail::Errno;
use crate::look::{self, Found, link, tried};
use crate::mounted;
use crate::ns::Kind;
use crate::proc::Proc;
use crate::sys;

/// A namespace, and whatever has been found to keep it.
pub struct Space {
    /// Its inode.
    pub inode: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its number that is never used again (Linux 6.18).
    pub id: Option<u64>,
    /// The user namespace that owns it; of a user namespace, its parent.
    pub owner: Option<u64>,
    /// Of a pid namespace, its parent.
    pub parent: Option<u64>,
    /// Of a user namespace, the uid that owns it, as seen from here.
    pub owner_uid: Option<u32>,
    /// The processes in it.
    pub processes: Vec<i32>,
    /// Threads in it that are not where their process is: process, thread.
    pub threads: Vec<(i32, i32)>,
    /// Descriptors that refer to it, or to a socket in it: process, number.
    pub descriptors: Vec<(i32, i32)>,
    /// Where it is mounted: in which mount namespace, at which path.
    pub mounts: Vec<(u64, OsString)>,
    /// An open file of it, where no process or thread in it leads there.
    pub file: Option<OwnedFd>,
}

impl Space {
    /// Notes a mount; what is mounted once more over itself is told once.
    fn pinned(&mut self, at: (u64, OsString)) {
        if self.mounts.last() != Some(&at) {
            self.mounts.push(at);
        }
    }
}

/// What could be seen.
#[derive(Default)]
pub struct Scan {
    /// The namespaces, sorted by inode.
    pub spaces: Vec<Space>,
    /// How many processes did not let themselves be looked at.
    pub hidden: usize,
    /// How many of the others kept their descriptors to themselves.
    pub closed: usize,
    /// How many mount namespaces that nobody is in did not let their mounts be read.
    pub unread: usize,
}

/// What a namespace itself tells.
pub struct Told {
    /// Its number that is never used again (Linux 6.18).
    pub id: Option<u64>,
    /// The inode of the user namespace that owns it.
    pub owner: Option<u64>,
}

/// Asks the namespace behind a file of it.
///
/// # Errors
/// Those of ioctl_nsfs(2), but for an owner outside of ours (EPERM), and a kernel
/// that has no such numbers (ENOTTY).
pub fn told(ns: &OwnedFd) -> sys::Result<Told> {
    let owner = match sys::ns_owner(ns.as_fd()) {
        Err(Errno::EPERM) => None,
        owner => Some(fstat(&owner?)?.st_ino),
    };
    let id = match sys::ns_id(ns.as_fd()) {
        Err(Errno::ENOTTY) => None,
        id => Some(id?),
    };
    Ok(Told { id, owner })
}

impl Scan {
    /// Looks at everything; a namespace file that we have ourselves is one more.
    ///
    /// # Errors
    /// All that is in /proc cannot be listed. What else could not be looked at is
    /// noted there: `Proc::missed`.
    pub fn now(proc: &Proc, own: Option<OwnedFd>) -> Result<Scan, Errno> {
        let mut scan = Scan::default();
        let all = look::at_all(proc)?;
        all.iter().for_each(|found| scan.add(found));
        scan.add_sockets(&all);
        scan.ask_members(proc);
        if let Some(file) = own {
            scan.found_file(proc, file);
        }
        scan.ask_descriptors(proc);
        scan.mount_namespaces(proc);
        scan.unfound(proc);
        // What is mounted in one may be another.
        let mut looked = Vec::new();
        while let Some((inode, look)) = scan.to_be_looked_into(&looked) {
            looked.push(inode);
            scan.pins(proc, inode, &look);
        }
        Ok(scan)
    }

    fn place(&self, inode: u64) -> Result<usize, usize> {
        self.spaces.binary_search_by_key(&inode, |space| space.inode)
    }

    /// The namespace with this inode, if it has been seen.
    pub fn get(&self, inode: u64) -> Option<&Space> {
        self.place(inode).ok().and_then(|at| self.spaces.get(at))
    }

    fn space(&mut self, inode: u64, kind: Kind) -> &mut Space {
        let at = self.place(inode).unwrap_or_else(|at| {
            self.spaces.insert(
                at,
                Space {
                    inode,
                    kind,
                    id: None,
                    owner: None,
                    parent: None,
                    owner_uid: None,
                    processes: Vec::new(),
                    threads: Vec::new(),
                    descriptors: Vec::new(),
                    mounts: Vec::new(),
                    file: None,
                },
            );
            at
        });
        &mut self.spaces[at]
    }

    fn add(&mut self, found: &Found) {
        self.hidden += usize::from(found.hidden);
        self.closed += usize::from(found.closed && !found.hidden);
        for (inode, kind) in found.inodes.iter().zip(Kind::ALL).filter(|(inode, _)| **inode != 0) {
            self.space(*inode, kind).processes.push(found.pid);
        }
        let known = |n: u64| usize::try_from(n).ok().and_then(|n| Kind::ALL.get(n)).copied();
        for [tid, kind, inode] in &found.threads {
            if let (Some(kind), Ok(tid)) = (known(*kind), i32::try_from(*tid)) {
                self.space(*inode, kind).threads.push((found.pid, tid));
            }
        }
        for [fd, kind, inode] in &found.descriptors {
            if let (Some(kind), Ok(fd)) = (known(*kind), i32::try_from(*fd)) {
                self.space(*inode, kind).descriptors.push((found.pid, fd));
            }
        }
    }

    /// Sockets count where nobody is: a process that was handed one of another
    /// network namespace keeps that, but only then is it of interest.
    fn add_sockets(&mut self, all: &[Found]) {
        for found in all {
            for [fd, _, inode] in &found.sockets {
                let is_in = |s: &Space| !s.processes.is_empty() || !s.threads.is_empty();
                if let (false, Ok(fd)) = (self.get(*inode).is_some_and(is_in), i32::try_from(*fd)) {
                    self.space(*inode, Kind::Net).descriptors.push((found.pid, fd));
                }
            }
        }
    }

    /// Owner and parent of each namespace, asked through a process or thread
    /// in it; one may end meanwhile, hence several.
    fn ask_members(&mut self, proc: &Proc) {
        let inodes: Vec<u64> = self.spaces.iter().map(|s| s.inode).collect();
        for inode in inodes {
            let Some(space) = self.get(inode) else { continue };
            let kind = space.kind;
            let processes = space.processes.iter().map(i32::to_string);
            let threads = space.threads.iter().map(|(pid, tid)| format!("{pid}/task/{tid}"));
            let opened = processes.take(3).chain(threads.take(3)).find_map(|who| {
                let ns = proc.seen(proc.ns(&who, kind))?;
                (proc.seen(fstat(&ns))?.st_ino == inode).then_some(ns)
            });
            if let Some(ns) = opened {
                self.ask(proc, inode, &ns);
            }
        }
    }

    /// The same for namespaces that only descriptors lead to.
    fn ask_descriptors(&mut self, proc: &Proc) {
        let alone = |s: &&Space| s.processes.is_empty() && s.threads.is_empty();
        let ways: Vec<(i32, i32)> =
            self.spaces.iter().filter(alone).filter_map(|s| s.descriptors.first().copied()).collect();
        for (pid, fd) in ways {
            let file = proc.open_at(&format!("{pid}/fd/{fd}"), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
            // ENXIO: a socket cannot be opened.
            let socket = || tried(proc, sys::pidfd_open(pid).and_then(|process| look::behind(&process, fd)));
            let file = proc.seen(file).or_else(socket);
            if let Some(ns) = file {
                self.found_file(proc, ns);
            }
        }
    }

    /// Takes in a namespace file by whatever way it was come by.
    fn found_file(&mut self, proc: &Proc, ns: OwnedFd) -> Option<u64> {
        let (kind, inode) = look::known(proc, &ns)?;
        let alone = self.get(inode).is_none_or(|s| s.processes.is_empty() && s.threads.is_empty() && s.file.is_none());
        if alone {
            self.space(inode, kind);
            self.ask(proc, inode, &ns);
            self.space(inode, kind).file = Some(ns);
        }
        Some(inode)
    }

    fn ask(&mut self, proc: &Proc, inode: u64, ns: &OwnedFd) {
        let file_of = |fd: sys::Result<OwnedFd>| proc.seen(fd).and_then(|fd| Some((proc.seen(fstat(&fd))?.st_ino, fd)));
        let owner = file_of(sys::ns_owner(ns.as_fd()));
        let Ok(at) = self.place(inode) else { return };
        let space = &mut self.spaces[at];
        space.owner = owner.as_ref().map(|(inode, _)| *inode);
        space.id = proc.seen(sys::ns_id(ns.as_fd()));
        match space.kind {
            Kind::User => space.owner_uid = proc.seen(sys::ns_owner_uid(ns.as_fd())),
            Kind::Pid => space.parent = file_of(sys::ns_parent(ns.as_fd())).map(|(inode, _)| inode),
            Kind::Mnt | Kind::Uts | Kind::Ipc | Kind::Cgroup | Kind::Net | Kind::Time => {}
        }
        // An owner that nobody is in any more lives as long as what it owns.
        if let Some((owner, fd)) = owner {
            if self.get(owner).is_none() {
                self.found_file(proc, fd);
            }
        }
    }

    // ---- mounts ----

    /// All mount namespaces, for root of the initial user and pid namespace.
    fn mount_namespaces(&mut self, proc: &Proc) {
        let Some(ours) = proc.seen(proc.ns("self", Kind::Mnt)) else { return };
        for before in [true, false] {
            let mut next = sys::next_mount_namespace(ours.as_fd(), before);
            while let Some(ns) = tried(proc, next) {
                next = sys::next_mount_namespace(ns.as_fd(), before);
                self.found_file(proc, ns);
            }
        }
    }

    /// A mount namespace that is none of `looked`, and how to read it.
    fn to_be_looked_into(&self, looked: &[u64]) -> Option<(u64, Look)> {
        let look = |space: &Space| match (space.processes.first(), space.threads.first(), &space.file) {
            (Some(pid), ..) => Some(Look::By(pid.to_string())),
            (None, Some((pid, tid)), _) => Some(Look::By(format!("{pid}/task/{tid}"))),
            (None, None, Some(file)) => file.try_clone().ok().map(Look::Behind),
            (None, None, None) => None,
        };
        let mut left = self.spaces.iter().filter(|s| s.kind == Kind::Mnt && !looked.contains(&s.inode));
        left.find_map(|s| Some((s.inode, look(s)?)))
    }

    /// The namespaces that are mounted in one mount namespace.
    fn pins(&mut self, proc: &Proc, inside: u64, look: &Look) {
        match look {
            Look::By(who) => {
                let text = proc.seen(proc.read(&format!("{who}/mountinfo"))).unwrap_or_default();
                // Most have none, and parsing takes longer than reading.
                if memchr::memmem::find(&text, b" - nsfs ").is_none() {
                    return;
                }
                for mount in proc.mounts(who).into_iter().filter(|m| m.fstype == "nsfs") {
                    let Some((kind, inode)) = link(mount.root.as_bytes()) else { continue };
                    if self.get(inode).is_none() {
                        if let Some(ns) = open_below(proc, who, &mount.point) {
                            self.found_file(proc, ns);
                        }
                    }
                    self.space(inode, kind).pinned((inside, mount.point));
                }
            }
            Look::Behind(file) => {
                let mounts = mounted::of(file.as_fd());
                self.unread += usize::from(mounts.is_err());
                for mount in mounts.unwrap_or_default() {
                    if let Some((kind, inode)) = link(mount.root.as_bytes()) {
                        self.space(inode, kind).pinned((inside, mount.point));
                    }
                }
            }
        }
    }

    /// What nothing above has led to: the kernel's own list (Linux 6.19; before,
    /// its first answer is ENOSYS).
    fn unfound(&mut self, proc: &Proc) {
        let (mut ids, mut after) = ([0; 512], 0);
        while let Some(n @ 1..) = tried(proc, sys::listns(after, &mut ids)) {
            let known: Vec<u64> = self.spaces.iter().filter_map(|s| s.id).collect();
            for id in ids[..n].iter().filter(|id| !known.contains(id)) {
                if let Some(ns) = tried(proc, sys::ns_by_id(*id, None)) {
                    self.found_file(proc, ns);
                }
            }
            if ids[n - 1] <= after {
                return;
            }
            after = ids[n - 1];
        }
    }
}

/// How the mounts of a mount namespace can be read.
enum Look {
    /// In /proc, as this process or thread sees them.
    By(String),
    /// From the kernel, where nobody is in it.
    Behind(OwnedFd),
}

/// The file at `point`, seen from the root of `who`.
fn open_below(proc: &Proc, who: &str, point: &OsStr) -> Option<OwnedFd> {
    let root = proc.seen(proc.directory(&format!("{who}/root")))?;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    tried(proc, sys::open_known_in_root(root.as_fd(), &CString::new(point.as_bytes()).ok()?, flags.bits()))
}

//! What is brought along into a mount namespace that was entered, where nobody
//! sees it but the program. open_tree(2), move_mount(2), unshare(2).
//!
//! The target's mounts are copied first, and the copy is gone with the program.
//! Nothing of the target's is written to: where a mount point is missing, the
//! directory that would have it is covered by a tmpfs that has all its entries
//! again.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::{chroot, fchdir, symlinkat};

use super::fs::{c, new_mount};
use super::inside::exactly;
use super::{Done, Facts, Hands, Refusal, Step, tree};
use crate::fail::{Because, Errno};
use crate::path::{self, Place};
use crate::sys;
use crate::word::quote;

/// What is brought along.
pub struct Tools {
    /// Trees of outside: from where, and at which path.
    pub trees: Vec<(Place, OsString)>,
    /// Symbolic links: to what, and at which path.
    pub links: Vec<(OsString, OsString)>,
}

/// A file by its path, and what is seen there.
pub type Covered = (&'static str, Rc<Vec<u8>>);

/// An effect with what is brought along.
pub enum Effect {
    /// Copy the trees, while they can be seen.
    Copy(Rc<Tools>),
    /// Attach the copies, and make the links.
    Attach(Rc<Tools>),
    /// Cover files of these paths by others: their bytes.
    Cover(Vec<Covered>),
}

/// The name under which copies are handed on, in their order.
const TOOL: &str = "tool";
/// No directory that has to be covered has more entries.
const MOST_ENTRIES: usize = 1000;
/// Nobody changes what is shared with the machine, or gains by it.
const HARMLESS: u64 = sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV;

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, doing, asking) = (effect.clone(), effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |hands| doing.perform(hands));
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Copy(tools) => {
                let from: Vec<String> = tools.trees.iter().map(|(place, _)| place.name()).collect();
                format!("open_tree {} OPEN_TREE_CLONE|AT_RECURSIVE ro,nosuid,nodev", from.join(" "))
            }
            Effect::Attach(tools) => {
                let to: Vec<String> = tools.trees.iter().map(|(_, at)| quote(at)).collect();
                let links = tools.links.iter().map(|(to, at)| format!(", symlink {} {}", quote(to), quote(at)));
                format!("move_mount tools {}{}", to.join(" "), links.collect::<String>())
            }
            Effect::Cover(files) => {
                let files: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
                format!("cover {}", files.join(" "))
            }
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Copy(_) => {
                "in a copy of our mounts: that belongs to whoever may mount, and what is in it can be seen"
            }
            Effect::Attach(_) => "in a copy of the target's mounts: it does not see them, and they go with the program",
            Effect::Cover(_) => "in a copy of our mounts: nobody else's files change",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Copy(tools) => {
                for (place, _) in &tools.trees {
                    let copy = tree::copy(place, true)?;
                    sys::mount_setattr(copy.as_fd(), true, HARMLESS, None)?;
                    hands.put(TOOL, copy);
                }
                Ok(())
            }
            Effect::Attach(tools) => attach(tools, hands),
            Effect::Cover(files) => cover(files),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::Copy(_) | Effect::Attach(_) | Effect::Cover(_) if errno == Errno::EPERM => facts.may_not_mount(),
            Effect::Cover(files) => {
                let needed = files.iter().filter(|(_, bytes)| !bytes.is_empty());
                needed.map(|(path, _)| path).find_map(|path| path::reason(path.as_ref(), errno, facts.proc))
            }
            Effect::Copy(_) | Effect::Attach(_) => None,
        }
    }
}

/// A root directory, and which mounts in it are ours to write on.
struct View {
    root: OwnedFd,
    ours: Vec<u64>,
    /// What is still to come: the entries there will be others.
    pending: Vec<OsString>,
}

fn attach(tools: &Tools, hands: &mut Hands) -> Done {
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let all = tools.trees.iter().map(|(_, at)| at).chain(tools.links.iter().map(|(_, at)| at));
    let mut view = View { root, ours: Vec::new(), pending: all.cloned().collect() };
    let (trees, rest): (Vec<_>, Vec<_>) = hands.made.drain(..).partition(|(name, _)| *name == TOOL);
    hands.made = rest;
    for ((place, at), (_, tree)) in tools.trees.iter().zip(trees) {
        let there = match view.open(at, place.is_directory) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                let parent = view.parent(at)?;
                let name = Path::new(at).file_name().ok_or(Errno::EINVAL)?;
                empty(&parent, name, place.is_directory)?;
                view.open(at, place.is_directory)?
            }
            other => other?,
        };
        sys::move_mount(tree.as_fd(), there.as_fd(), false)?;
        view.pending.retain(|pending| pending != at);
    }
    for (to, at) in &tools.links {
        if !view.leads(at, to) {
            let parent = view.parent(at)?;
            symlinkat(to.as_os_str(), &parent, Path::new(at).file_name().ok_or(Errno::EINVAL)?)?;
        }
        view.pending.retain(|pending| pending != at);
    }
    Ok(())
}

impl View {
    fn open(&self, path: &OsStr, directory: bool) -> Result<OwnedFd, Errno> {
        let flags = libc::O_PATH | if directory { libc::O_DIRECTORY } else { 0 };
        sys::open_in_root(self.root.as_fd(), &c(path), flags, 0)
    }

    /// Whether there is such a link already.
    fn leads(&self, at: &OsStr, to: &OsStr) -> bool {
        let link = sys::open_in_root(self.root.as_fd(), &c(at), libc::O_PATH | libc::O_NOFOLLOW, 0);
        link.and_then(|link| readlinkat(&link, "")).is_ok_and(|text| text == to)
    }

    /// The directory of `path`, where we may write: made, or covered.
    fn parent(&mut self, path: &OsStr) -> Result<OwnedFd, Refusal> {
        let parent = Path::new(path).parent().ok_or(Errno::EINVAL)?;
        let mut missing: Vec<&OsStr> = Vec::new();
        for above in parent.ancestors() {
            match self.open(above.as_os_str(), true) {
                Ok(directory) => {
                    let mut at = self.writable(above, directory)?;
                    for name in missing.iter().rev() {
                        at = empty(&at, name, true)?;
                    }
                    return Ok(at);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => missing.extend(above.file_name()),
                Err(e) => return Err(e.into()),
            }
        }
        Err(Errno::ENOENT.into())
    }

    fn writable(&mut self, path: &Path, directory: OwnedFd) -> Result<OwnedFd, Refusal> {
        if self.ours.contains(&sys::mount_id(directory.as_fd())?) {
            return Ok(directory);
        }
        let without = |at: &OsString| Path::new(at).strip_prefix(path).ok()?.iter().next().map(OsStr::to_owned);
        let without: Vec<OsString> = self.pending.iter().filter_map(without).collect();
        let tmpfs = again(&directory, &without)?;
        self.ours.push(sys::mount_id(tmpfs.as_fd())?);
        if path == Path::new("/") {
            fchdir(&tmpfs)?;
            // It is the uppermost mount on the root, so this is no jail to get
            // out of, and user namespaces can still be made.
            chroot(".")?;
            self.root = sys::duplicate(tmpfs.as_fd())?;
        }
        Ok(tmpfs)
    }
}

/// Covers a directory by a tmpfs that has all entries again, but those that
/// will be others.
fn again(directory: &OwnedFd, without: &[OsString]) -> Result<OwnedFd, Refusal> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let listed = nix::dir::Dir::from_fd(openat(directory, ".", flags, Mode::empty())?)?;
    let mut entries = Vec::new();
    for entry in listed {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." || without.contains(&name) {
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        entries.push((openat(directory, name.as_os_str(), flags, Mode::empty())?, name));
        if entries.len() > MOST_ENTRIES {
            return Err(Errno::E2BIG.into());
        }
    }
    let mode = fstat(directory)?.st_mode & 0o7777;
    let tmpfs = new_mount(c"tmpfs", &[("mode".into(), format!("{mode:o}"))], sys::MOUNT_ATTR_NOSUID)?;
    sys::move_mount(tmpfs.as_fd(), directory.as_fd(), false)?;
    for (entry, name) in entries {
        match SFlag::from_bits_truncate(fstat(&entry)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFLNK => symlinkat(readlinkat(&entry, "")?.as_os_str(), &tmpfs, name.as_os_str())?,
            kind => {
                let place = empty(&tmpfs, &name, kind == SFlag::S_IFDIR)?;
                let flags = sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE | sys::AT_EMPTY_PATH;
                match sys::open_tree(entry.as_fd(), c"", flags) {
                    Ok(tree) => sys::move_mount(tree.as_fd(), place.as_fd(), false)?,
                    // It is marked unbindable, and stays out.
                    Err(Errno::EINVAL) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }
    Ok(tmpfs)
}

/// An empty directory or file, opened.
fn empty(parent: &OwnedFd, name: &OsStr, directory: bool) -> Result<OwnedFd, Errno> {
    let made = exactly(|| {
        if directory {
            mkdirat(parent, name, Mode::from_bits_truncate(0o755))
        } else {
            mknodat(parent, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0)
        }
    });
    made.or_else(|e| if e == Errno::EEXIST { Ok(()) } else { Err(e) })?;
    openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Covers files by others, which lie on a tmpfs that is attached only until
/// they are. What is not there needs no cover that is empty.
fn cover(files: &[Covered]) -> Done {
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let here = open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let tmpfs = new_mount(c"tmpfs", &[("mode".into(), "755".into())], HARMLESS & !sys::MOUNT_ATTR_RDONLY)?;
    // Before that covers the root: `..` in a link would lead into it.
    let there = |(path, bytes): &Covered| match sys::open_in_root(root.as_fd(), &c(path), libc::O_PATH, 0) {
        Err(Errno::ENOENT) if bytes.is_empty() => Ok(None),
        other => other.map(Some),
    };
    let all = files.iter().map(there).collect::<Result<Vec<_>, _>>()?;
    sys::move_mount(tmpfs.as_fd(), root.as_fd(), false)?;
    for (number, ((_, bytes), there)) in files.iter().zip(all).enumerate() {
        let Some(there) = there else { continue };
        let name = c(number.to_string());
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = exactly(|| openat(&tmpfs, name.as_c_str(), flags, Mode::from_bits_truncate(0o444)))?;
        sys::write_whole(&file, bytes)?;
        let copy = sys::open_tree(tmpfs.as_fd(), &name, sys::OPEN_TREE_CLONE)?;
        sys::mount_setattr(copy.as_fd(), false, sys::MOUNT_ATTR_RDONLY, None)?;
        sys::move_mount(copy.as_fd(), there.as_fd(), false)?;
    }
    // Its root covers ours, which is still where paths begin.
    fchdir(&tmpfs)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(fchdir(&here)?)
}

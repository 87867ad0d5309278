//! Slices of a user's own subordinate ids, each held by one process at a time.
//!
//! A lease is a lock (F_OFD_SETLK of fcntl_locking(2)) on those bytes of a file
//! whose offsets are the ids: the kernel never grants a byte twice, and takes
//! it back when the process ends, however that happens. The file stays empty.
//!
//! ```text
//!  offset   0 ...... 100000 ....... 165535 ....   4294967296 + gid ....
//!                    |---- A ----||-B-|
//! ```
//!
//! Every process of a user has to see the same file. /tmp is seen by all but
//! those with a /tmp of their own, /run/user/UID is there only for somebody
//! who has logged in: so a lease is taken in each of the two that is there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, lstat};

use crate::fail::{Because, Errno, Failure, Result};
use crate::id::{Both, Kind, Range};
use crate::word::quote;

/// Where gids begin in the file.
const GIDS: i64 = 1 << 32;

/// A slice of uids and one of gids; free again when this is dropped, or with
/// this process.
pub struct Lease {
    /// The ids.
    pub ranges: Both<Range>,
    files: Vec<OwnedFd>,
}

/// The files of user `uid` that are there.
fn files(uid: u32) -> Result<Vec<OwnedFd>> {
    let run = PathBuf::from(format!("/run/user/{uid}"));
    let mut paths = vec![PathBuf::from(format!("/tmp/nskit-leases-{uid}"))];
    // Of others it must not be; pam_systemd(8) makes it, root may remove it.
    if lstat(&run).is_ok_and(|s| s.st_uid == uid && s.st_mode & libc::S_IFMT == libc::S_IFDIR) {
        paths.push(run.join("nskit-leases"));
    }
    paths.iter().map(|path| file(path, uid)).collect()
}

fn file(path: &Path, uid: u32) -> Result<OwnedFd> {
    let said = |e| Failure::os(format!("open {}", quote(path)), e);
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR);
    let stat = opened.as_ref().map_or_else(|_| lstat(path), fstat);
    let of_others =
        |s: FileStat| s.st_uid != uid || s.st_mode & (libc::S_IFMT | 0o022) != libc::S_IFREG || s.st_nlink != 1;
    if stat.is_ok_and(of_others) {
        // Whoever else can write it could hold every slice of ours.
        let because = Because::new(format!("it is not a file that uid {uid} alone can write"));
        let act = Failure::refused(format!("use {}", quote(path)));
        return Err(act.because(Some(because.remedy(format!("sudo rm -r {}", quote(path))))));
    }
    let file = opened.map_err(said)?;
    // Made under a umask that takes this away it could not be opened again.
    let own = Mode::S_IRUSR | Mode::S_IWUSR;
    if !Mode::from_bits_truncate(fstat(&file).map_err(said)?.st_mode).contains(own) {
        fchmod(&file, own).map_err(said)?;
    }
    Ok(file)
}

fn bytes(kind: Kind, range: Range, of: libc::c_int) -> libc::flock {
    let start = i64::from(range.first) + if kind == Kind::Gid { GIDS } else { 0 };
    let l_type = i16::try_from(of).unwrap_or_default();
    libc::flock { l_type, l_whence: 0, l_start: start, l_len: i64::from(range.count), l_pid: 0 }
}

/// Takes `count` ids of each kind out of what `granted` has, in a row and free.
/// None: there are not as many.
///
/// # Errors
/// Those of open(2) and fcntl(2); a refusal where the file is not the user's.
pub fn take(uid: u32, granted: &Both<Vec<Range>>, count: u32) -> Result<Option<Lease>> {
    let files = files(uid)?;
    let mut found = Vec::new();
    for kind in Kind::BOTH {
        let said = |e| Failure::os(format!("lock {count} {}s", kind.word()), e);
        match granted.of(kind).iter().find_map(|range| slice(&files, kind, *range, count).transpose()) {
            Some(range) => found.push(range.map_err(said)?),
            None => return Ok(None),
        }
    }
    let &[uid, gid] = found.as_slice() else { return Ok(None) };
    Ok(Some(Lease { ranges: Both { uid, gid }, files }))
}

/// Locks the first `count` ids of `range` that nobody holds.
fn slice(files: &[OwnedFd], kind: Kind, range: Range, count: u32) -> std::result::Result<Option<Range>, Errno> {
    let mut from = u64::from(range.first);
    'places: while from + u64::from(count) <= range.end() {
        let Some(place) = Range::new(from, count.into()) else { return Ok(None) };
        for file in files {
            let mut lock = bytes(kind, place, libc::F_WRLCK);
            fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
            if libc::c_int::from(lock.l_type) != libc::F_UNLCK {
                let end = lock.l_start + lock.l_len - if kind == Kind::Gid { GIDS } else { 0 };
                from = u64::try_from(end).unwrap_or(u64::MAX / 2).max(from + 1);
                continue 'places;
            }
        }
        // Somebody may have come in between: then this one is his.
        for (n, file) in files.iter().enumerate() {
            match fcntl(file, FcntlArg::F_OFD_SETLK(&bytes(kind, place, libc::F_WRLCK))) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    for taken in &files[..n] {
                        fcntl(taken, FcntlArg::F_OFD_SETLK(&bytes(kind, place, libc::F_UNLCK)))?;
                    }
                    continue 'places;
                }
                Err(e) => return Err(e),
            }
        }
        return Ok(Some(place));
    }
    Ok(None)
}

impl Lease {
    /// The descriptors that hold it: whoever has a duplicate of them all holds
    /// it too.
    pub fn files(&self) -> &[OwnedFd] {
        &self.files
    }
}

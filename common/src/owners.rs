//! The owners of files: on disk, and as a mount with a map has to show them.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use crate::fail::{Errno, Failure, Result};
use crate::id::{Both, Kind, Map};
use crate::path::Place;
use crate::word::quote;

/// The owners of some files of a source, and what they have to be in the tree.
pub struct Owners {
    /// Which files: the source itself first, then the first few entries with
    /// another owner.
    pub files: Vec<Owned>,
    /// The map of the source itself, where that is idmapped.
    pub before: Option<Both<Map>>,
    /// The map from disk to what is seen.
    pub maps: Both<Map>,
    /// What stands for an id without a map.
    pub overflow: Both<u32>,
    source: Place,
}

/// A file and its owner.
pub struct Owned {
    /// Its name, `.` for the source itself.
    pub name: OsString,
    /// The ids on disk; None where they have no place in the source's own map.
    pub disk: Both<Option<u32>>,
}

/// How many entries of a directory are looked at, and how many are shown: an
/// example is meant, and no tree is walked over.
const LOOKED_AT: usize = 100;
/// See above.
const SHOWN: usize = 8;

impl Owners {
    /// The owners of the first files of `source`.
    pub fn of(source: &Place, before: Option<Both<Map>>, maps: Both<Map>, overflow: Both<u32>) -> Owners {
        let mut owners = Owners { files: Vec::new(), before, maps, overflow, source: source.clone() };
        for name in std::iter::once(".".into()).chain(names(source)) {
            let Ok(stat) = look(source.fd(), &name) else { continue };
            let disk = owners.disk(&stat);
            if owners.files.iter().all(|file| file.disk != disk) {
                owners.files.push(Owned { name, disk });
            }
            if owners.files.len() == SHOWN {
                break;
            }
        }
        owners
    }

    /// The id of `kind` that is seen for one on disk.
    pub fn seen(&self, kind: Kind, disk: Option<u32>) -> u32 {
        disk.and_then(|id| self.maps.of(kind).outside(id)).unwrap_or(*self.overflow.of(kind))
    }

    fn disk(&self, stat: &FileStat) -> Both<Option<u32>> {
        let disk = |kind, shown| match &self.before {
            Some(maps) => maps.of(kind).inside(shown),
            None => Some(shown),
        };
        Both { uid: disk(Kind::Uid, stat.st_uid), gid: disk(Kind::Gid, stat.st_gid) }
    }

    /// Compares what `tree` shows with what it has to. What was changed or
    /// covered by another mount meanwhile says nothing.
    ///
    /// # Errors
    /// A file has another owner than it has to.
    pub fn check(&self, tree: BorrowedFd<'_>) -> Result<()> {
        for file in &self.files {
            let source = || look(self.source.fd(), &file.name);
            let (Ok(before), Ok(there), Ok(after)) = (source(), look(tree, &file.name), source()) else { continue };
            let same = |a: &FileStat, b: &FileStat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
            let steady = (before.st_uid, before.st_gid) == (after.st_uid, after.st_gid);
            if !same(&before, &after) || !same(&before, &there) || !steady || unmapped(&before, &self.overflow) {
                continue;
            }
            let disk = self.disk(&before);
            let wanted = (self.seen(Kind::Uid, disk.uid), self.seen(Kind::Gid, disk.gid));
            if (there.st_uid, there.st_gid) != wanted {
                let said = format!(
                    "look at {} in the tree: {}:{} is seen as {}:{} and not as {}:{}; nothing is attached",
                    quote(&file.name),
                    before.st_uid,
                    before.st_gid,
                    there.st_uid,
                    there.st_gid,
                    wanted.0,
                    wanted.1
                );
                return Err(Failure::refused(said));
            }
        }
        Ok(())
    }
}

/// Whether an id that is shown may stand for any without a map.
fn unmapped(stat: &FileStat, overflow: &Both<u32>) -> bool {
    stat.st_uid == overflow.uid || stat.st_gid == overflow.gid
}

fn look(dir: BorrowedFd<'_>, name: &OsString) -> std::result::Result<FileStat, Errno> {
    if name == "." { fstat(dir) } else { fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) }
}

/// The names in a directory, as far as they are looked at.
fn names(place: &Place) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(dir) = nix::dir::Dir::openat(place.fd(), ".", flags, Mode::empty()) else { return Vec::new() };
    let entries = dir.into_iter().filter_map(std::result::Result::ok).map(|e| e.file_name().to_bytes().to_vec());
    entries.filter(|name| name != b"." && name != b"..").take(LOOKED_AT).map(OsString::from_vec).collect()
}

/// The owner of what is there, as this process sees it.
///
/// # Errors
/// Those of fstat(2).
pub fn owner_of(place: &Place) -> Result<(u32, u32)> {
    let stat = fstat(place.fd()).map_err(|e| Failure::os(format!("stat {}", place.name()), e))?;
    Ok((stat.st_uid, stat.st_gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_overflow_id() {
        let mut stat = fstat(std::fs::File::open("/").unwrap()).unwrap();
        for (uid, gid, wanted) in [(1, 2, false), (65534, 2, true), (1, 65533, true), (1, 65534, false)] {
            (stat.st_uid, stat.st_gid) = (uid, gid);
            assert_eq!(unmapped(&stat, &Both { uid: 65534, gid: 65533 }), wanted, "{uid}:{gid}");
        }
    }
}

//! What is mounted, with the maps: statmount(2), since Linux 6.8, which tells
//! maps since 6.15. mountinfo has no more of them than the word `idmapped`.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use crate::fail::Errno;
use crate::id::{Both, Extent, Kind, number};
use crate::proc::Mount;
use crate::sys;
use crate::word::quote;

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Its number, never used again.
    pub id: u64,
    /// What part of the file system it shows.
    pub root: String,
    /// Where it is, seen from the root directory of this process.
    pub point: OsString,
    /// The type of the file system, with its subtype.
    pub fstype: String,
    /// MOUNT_ATTR_* bits.
    pub attributes: u64,
    /// The extents of its maps, the seen ids as this process sees them; None
    /// where this kernel does not tell.
    pub maps: Option<Both<Vec<Extent>>>,
}

impl Mounted {
    /// Whether its owners are shifted.
    pub fn is_idmapped(&self) -> bool {
        self.attributes & sys::MOUNT_ATTR_IDMAP != 0
    }

    /// What mountinfo says of a mount, where there is no statmount(2): Linux
    /// before 6.8.
    pub fn from_line(mount: &Mount) -> Mounted {
        let idmapped = mount.options.split(',').any(|o| o == "idmapped");
        let attributes = if idmapped { sys::MOUNT_ATTR_IDMAP } else { 0 };
        let (point, fstype) = (mount.point.clone(), mount.fstype.clone());
        Mounted { id: mount.id, root: mount.root.clone(), point, fstype, attributes, maps: None }
    }
}

const MNT_BASIC: u64 = 2;
const MNT_ROOT: u64 = 8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
const FS_SUBTYPE: u64 = 0x100;
const UIDMAP: u64 = 0x2000;
const GIDMAP: u64 = 0x4000;
/// Where the strings of struct statmount begin.
const STRINGS: usize = 512;

/// The mount that `fd` is on.
///
/// # Errors
/// ENOSYS: Linux before 6.8; ENOENT: it is of another mount namespace.
pub fn under(fd: BorrowedFd<'_>) -> Result<Mounted, Errno> {
    one(sys::unique_mount_id(fd)?, 0)
}

/// All mounts of namespace `namespace` (0: ours) that can be seen, the oldest
/// first.
///
/// # Errors
/// ENOSYS: Linux before 6.8; EPERM, ENOENT: the namespace is not for us.
pub fn all(namespace: u64) -> Result<Vec<Mounted>, Errno> {
    const ROOT: u64 = u64::MAX;
    let mut ids = Vec::new();
    let mut piece = [0; 512];
    loop {
        let last = ids.last().copied().unwrap_or(0);
        let n = sys::listmount(ROOT, namespace, last, &mut piece)?;
        ids.extend_from_slice(&piece[..n]);
        if n < piece.len() {
            break;
        }
    }
    // What went away meanwhile is not there any more.
    ids.into_iter().map(|id| one(id, namespace)).filter(|one| *one != Err(Errno::ENOENT)).collect()
}

/// The same of an open mount namespace.
///
/// # Errors
/// As `all`; ENOTTY: Linux before 6.11.
pub fn of(ns: BorrowedFd<'_>) -> Result<Vec<Mounted>, Errno> {
    sys::mount_namespace_id(ns).and_then(all)
}

fn one(id: u64, namespace: u64) -> Result<Mounted, Errno> {
    let mask = MNT_BASIC | MNT_ROOT | MNT_POINT | FS_TYPE | FS_SUBTYPE | UIDMAP | GIDMAP;
    let mut buffer = vec![0u8; 4096];
    loop {
        match sys::statmount(id, namespace, mask, &mut buffer) {
            // 340 extents of three numbers each, twice, and a path.
            Err(Errno::EOVERFLOW) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(e) => return Err(e),
            Ok(()) => return Ok(parse(&buffer)),
        }
    }
}

/// Reads a struct statmount: include/uapi/linux/mount.h.
pub fn parse(buffer: &[u8]) -> Mounted {
    let long = |at: usize| buffer.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let short = |at: usize| {
        let n = buffer.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        usize::try_from(n).unwrap_or(usize::MAX)
    };
    let word = |at: usize| {
        let from = buffer.get(STRINGS.saturating_add(at)..).unwrap_or_default();
        from.split(|b| *b == 0).next().unwrap_or_default()
    };
    let text = |at: usize| String::from_utf8_lossy(word(at)).into_owned();
    let mask = long(8);
    let extents = |count: usize, at: usize| {
        let from = buffer.get(STRINGS.saturating_add(at)..).unwrap_or_default();
        from.split(|b| *b == 0).take(count).filter_map(extent).collect()
    };
    let mut maps = Both::default();
    *maps.of_mut(Kind::Uid) = extents(short(152), short(156));
    *maps.of_mut(Kind::Gid) = extents(short(160), short(164));
    let attributes = long(64);
    // A mount without a map has neither bit, and neither has an old kernel.
    let told = mask & UIDMAP != 0 || attributes & sys::MOUNT_ATTR_IDMAP == 0;
    let subtype = if mask & FS_SUBTYPE == 0 { String::new() } else { format!(".{}", text(short(120))) };
    Mounted {
        id: long(40),
        root: text(short(104)),
        point: OsStr::from_bytes(word(short(108))).to_owned(),
        // The subtype is whatever a user of FUSE said.
        fstype: quote(text(short(36)) + &subtype),
        attributes,
        maps: told.then_some(maps),
    }
}

fn extent(line: &[u8]) -> Option<Extent> {
    let fields: Option<Vec<u64>> = line.split(|b| *b == b' ').map(number).collect();
    let &[disk, seen, count] = fields?.as_slice() else { return None };
    Extent::new(disk, seen, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_statmount() {
        let mut buffer = vec![0u8; STRINGS];
        let mut put = |at: usize, bytes: &[u8]| buffer[at..at + bytes.len()].copy_from_slice(bytes);
        put(8, &(MNT_BASIC | MNT_POINT | FS_TYPE | UIDMAP | GIDMAP).to_ne_bytes());
        put(40, &77u64.to_ne_bytes());
        put(64, &(sys::MOUNT_ATTR_IDMAP | sys::MOUNT_ATTR_NODEV).to_ne_bytes());
        put(104, &5u32.to_ne_bytes());
        put(108, &5u32.to_ne_bytes());
        put(152, &2u32.to_ne_bytes());
        put(156, &8u32.to_ne_bytes());
        put(160, &1u32.to_ne_bytes());
        put(164, &20u32.to_ne_bytes());
        buffer.extend_from_slice(b"ext4\0/m\x000 5 1\x001 7 2\x003 4 5\0");
        let at = parse(&buffer);
        assert_eq!((at.id, at.root.as_str(), at.fstype.as_str()), (77, "/m", "ext4"));
        assert_eq!(at.point, "/m");
        let maps = at.maps.unwrap();
        assert_eq!(maps.uid, [Extent::new(0, 5, 1).unwrap(), Extent::new(1, 7, 2).unwrap()]);
        assert_eq!(maps.gid, [Extent::new(3, 4, 5).unwrap()]);
        // Any bytes are survived.
        for at in 0..buffer.len() {
            let mut broken = buffer.clone();
            broken[at] = 0xff;
            parse(&broken);
            parse(&buffer[..at]);
        }
    }
}

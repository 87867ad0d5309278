//! The lines of /proc/PID/mountinfo: proc_pid_mountinfo(5). Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::id::number;
use crate::word::{quote, unescape};

/// One line of mountinfo: proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u64,
    /// The number of the mount that it is on.
    pub parent: u64,
    /// The device number of the file system.
    pub device: String,
    /// What part of the file system it shows.
    pub root: String,
    /// Where it is, seen from the reader's root.
    pub point: OsString,
    /// `rw,nosuid,...` of the mount.
    pub options: String,
    /// `shared:N` and the like.
    pub propagation: String,
    /// The type of the file system, quoted.
    pub fstype: String,
    /// `rw,...` of the file system itself.
    pub super_options: String,
}

/// Reads a line of mountinfo: proc_pid_mountinfo(5).
pub fn parse_mount(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let at = memchr::memmem::find(line, b" - ")?;
    let (mount, fs) = (&line[..at], &line[at + 3..]);
    let mut fields = mount.split(|b| *b == b' ');
    Some(Mount {
        id: number(fields.next()?)?,
        parent: number(fields.next()?)?,
        device: text(fields.next()?),
        root: text(&unescape(fields.next()?)),
        point: OsString::from_vec(unescape(fields.next()?)),
        options: text(fields.next()?),
        propagation: fields.map(text).collect::<Vec<_>>().join(" "),
        // The part behind the dot, as in fuse.sshfs, is whatever its user said.
        fstype: quote(OsStr::from_bytes(fs.split(|b| *b == b' ').next()?)),
        super_options: text(fs.rsplit(|b| *b == b' ').next()?),
    })
}

/// Reads all lines.
pub(super) fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(parse_mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let line = b"36 35 98:0 /m\\0401 /m\xff\\0401 rw,noatime shared:1 master:2 - ext3 /dev/root rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(
            (mount.root.as_str(), mount.propagation.as_str(), mount.fstype.as_str()),
            ("/m 1", "shared:1 master:2", "ext3")
        );
        assert_eq!((mount.point.as_bytes(), mount.super_options.as_str()), (&b"/m\xff 1"[..], "rw"));
    }
}

//! Why a path could not be opened: which component of it, and what is wrong
//! with that. path_resolution(7).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::fail::{Because, Errno};
use crate::id::Kind;
use crate::proc::Proc;
use crate::word::quote;

/// The first component of `path` that explains `errno` (ENOENT, ENOTDIR or
/// EACCES); None where everything is as it should be.
pub fn reason(path: &OsStr, errno: Errno, proc: &Proc) -> Option<Because> {
    let mut parent = PathBuf::new();
    for component in Path::new(path).components() {
        let name = match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {
                parent.push(component);
                continue;
            }
            Component::ParentDir => OsString::from(".."),
            Component::Normal(name) => name.to_owned(),
        };
        let whole = parent.join(&name);
        let text = match fs::symlink_metadata(&whole) {
            Err(e) if e.kind() == ErrorKind::NotFound && errno == Errno::ENOENT => {
                format!("{} has no entry {}", said(&parent), quote(&name))
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied && errno == Errno::EACCES => closed(&parent, proc)?,
            Err(_) => return None,
            Ok(entry) => match wrong(&whole, &entry, errno) {
                Some(text) => text,
                None => {
                    parent = whole;
                    continue;
                }
            },
        };
        return Some(Because::new(text));
    }
    None
}

fn said(directory: &Path) -> String {
    if directory.as_os_str().is_empty() { "the working directory".to_owned() } else { quote(directory) }
}

/// A directory that may not be searched.
fn closed(directory: &Path, proc: &Proc) -> Option<String> {
    let stat = fs::metadata(if directory.as_os_str().is_empty() { Path::new(".") } else { directory }).ok()?;
    let mapped = proc.map("self", Kind::Uid)?.iter().any(|e| e.inside().has(stat.uid()));
    let owner = if mapped { "" } else { "; its owner is not mapped in this user namespace" };
    Some(format!("{} (mode {:03o}) may not be searched{owner}", said(directory), stat.mode() & 0o7777))
}

/// What is wrong with an entry that is there.
fn wrong(path: &Path, entry: &fs::Metadata, errno: Errno) -> Option<String> {
    let shown = quote(path);
    if entry.is_symlink() {
        let to = quote(fs::read_link(path).ok()?);
        return match fs::metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound && errno == Errno::ENOENT => {
                Some(format!("{shown} is a symbolic link to {to}, which is not there"))
            }
            Ok(end) if !end.is_dir() && errno == Errno::ENOTDIR => {
                Some(format!("{shown} is a symbolic link to {to}, {}", kind(&end)))
            }
            Ok(_) | Err(_) => None,
        };
    }
    (!entry.is_dir() && errno == Errno::ENOTDIR).then(|| format!("{shown} is {}", kind(entry)))
}

fn kind(file: &fs::Metadata) -> &'static str {
    let kind = file.file_type();
    if kind.is_file() {
        "a regular file"
    } else if kind.is_fifo() {
        "a fifo"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

//! Why a program could not be executed: execve(2).

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::Facts;
use super::ns::user_is_full;
use crate::fail::{Because, Errno};
use crate::proc::read_all;
use crate::sys;
use crate::word::quote;

/// The directories that a program is looked for in: PATH, or what execvp(3) of
/// musl takes where that is not set.
pub fn searched() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into())
}

/// A program in one of them, of which an empty one is the working directory
/// (environ(7)).
pub(super) fn within(dir: &[u8], program: &[u8]) -> Vec<u8> {
    if dir.is_empty() { program.to_vec() } else { [dir, b"/", program].concat() }
}

/// The most bytes of a program that are looked at.
const MOST: usize = 64 << 20;

/// Why `program` could not be executed, looked up in the root of the process
/// that tried: execve(2).
pub(super) fn refused(program: &OsStr, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    if errno == Errno::EAGAIN {
        return user_is_full(facts);
    }
    let bytes = program.as_bytes();
    if !bytes.contains(&b'/') {
        return not_in_path(bytes, errno, facts);
    }
    let from = start(bytes, facts)?;
    match look(from, bytes) {
        Ok(fd) => not_executable(&quote(program), &fd, errno, facts),
        Err(e) if errno == Errno::ENOENT && is_absence(e) => dangling(from, bytes)
            .or_else(|| Some(Because::new("there is no such file in the root that the program would run in"))),
        Err(Errno::EACCES) if errno == Errno::EACCES => closed(from, bytes).map(|(_, text)| Because::new(text)),
        Err(_) => None,
    }
}

/// The same for the program that descriptor `n` is open for.
pub(super) fn descriptor_refused(n: RawFd, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let fd = sys::lend(n).try_clone_to_owned().ok()?;
    let name = format!("descriptor {n}");
    if let Some(because) = not_executable(&name, &fd, errno, facts) {
        return Some(because);
    }
    let closes = fcntl(sys::lend(n), FcntlArg::F_GETFD).is_ok_and(|flags| flags & FdFlag::FD_CLOEXEC.bits() != 0);
    let is_script = read_all(open_again(facts, &fd)?, MOST).ok()?.starts_with(b"#!");
    let text = format!("{name} is a script, and is closed before its interpreter can read it (--keep-fd {n})");
    (errno == Errno::ENOENT && closes && is_script).then(|| Because::new(text))
}

/// Where a path begins; none if the working directory is not to be seen.
fn start<'a>(path: &[u8], facts: &Facts<'a>) -> Option<&'a OwnedFd> {
    if path.starts_with(b"/") { facts.root } else { facts.cwd }
}

/// The same for a program that was looked for in the directories of PATH.
fn not_in_path(program: &[u8], errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let path = facts.path.as_ref()?;
    let (mut barred, mut leads_nowhere) = (None, None);
    for dir in path.as_bytes().split(|b| *b == b':') {
        let file = within(dir, program);
        let from = start(&file, facts)?;
        match look(from, &file) {
            Ok(fd) => return not_executable(&quote(OsStr::from_bytes(&file)), &fd, errno, facts),
            Err(Errno::EACCES) => barred = barred.or_else(|| Some((dir, closed(from, &file)?))),
            Err(e) if is_absence(e) => leads_nowhere = leads_nowhere.or_else(|| dangling(from, &file)),
            Err(_) => return None,
        }
    }
    if errno == Errno::ENOENT {
        let none = || Because::new(format!("no directory of PATH has it there ({})", quote(path)));
        return Some(leads_nowhere.unwrap_or_else(none));
    }
    let (dir, (place, text)) = barred.filter(|_| errno == Errno::EACCES)?;
    if place != Path::new(OsStr::from_bytes(dir)) {
        return Some(Because::new(text));
    }
    let dir = quote(&place);
    Some(Because::new(format!("{dir} in PATH may not be searched, and no other directory of PATH has it")))
}

/// The directory on the way that may not be searched (EACCES), and the sentence.
fn closed(from: &OwnedFd, path: &[u8]) -> Option<(PathBuf, String)> {
    let above = Path::new(OsStr::from_bytes(path)).ancestors().skip(1);
    let above: Vec<&Path> = above.filter(|dir| !dir.as_os_str().is_empty()).collect();
    // The last one that can be reached; where even the first cannot, where the path begins.
    let reached = above.iter().rev().map_while(|dir| Some((*dir, look(from, dir.as_os_str().as_bytes()).ok()?)));
    let (dir, fd) = reached.last().map_or_else(|| Some((Path::new("."), from.try_clone().ok()?)), Some)?;
    // A link behind it may lead elsewhere.
    if openat(&fd, ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).err() != Some(Errno::EACCES) {
        return None;
    }
    let mode = fstat(fd).ok()?.st_mode & 0o7777;
    Some((dir.to_owned(), format!("{} (mode {mode:03o}) may not be searched", quote(dir))))
}

/// That the last part of a path is a symbolic link which leads to nothing.
fn dangling(from: &OwnedFd, path: &[u8]) -> Option<Because> {
    let name = CString::new(path).ok()?;
    let link = sys::open_in_root(from.as_fd(), &name, libc::O_PATH | libc::O_NOFOLLOW, 0).ok()?;
    let to = readlinkat(&link, "").ok()?;
    let (name, to) = (quote(OsStr::from_bytes(path)), quote(&to));
    Some(Because::new(format!("{name} is a symbolic link to {to}, which is not there")))
}

fn look(dir: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    sys::open_in_root(dir.as_fd(), &path, libc::O_PATH, 0)
}

/// Whether nothing is there: of what could not be looked at, that is not known.
fn is_absence(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}

/// What `file`, quoted or described, is, that it cannot be executed.
fn not_executable(file: &str, fd: &OwnedFd, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let stat = fstat(fd).ok()?;
    if errno == Errno::ENOENT {
        let interpreter = interpreter(facts, fd)?;
        if look(start(&interpreter, facts)?, &interpreter).is_err_and(is_absence) {
            return Some(Because::new(format!(
                "{file} is there, but not its interpreter {}",
                quote(OsStr::from_bytes(&interpreter))
            )));
        }
        return None;
    }
    if errno == Errno::ETXTBSY {
        return written(file, &stat, facts);
    }
    if errno == Errno::ENOEXEC {
        let text = format!("{file} is neither a program of this machine nor a script that begins with #!");
        return is_foreign(facts, fd)?.then(|| Because::new(text));
    }
    if errno != Errno::EACCES {
        return None;
    }
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Some(Because::new(format!("{file} is not a regular file")));
    }
    if stat.st_mode & 0o111 == 0 {
        let because = Because::new(format!("{file} has no execute permission (mode {:o})", stat.st_mode & 0o7777));
        return Some(because);
    }
    let flags = nix::sys::statvfs::fstatvfs(fd).ok()?.flags();
    flags
        .contains(nix::sys::statvfs::FsFlags::ST_NOEXEC)
        .then(|| Because::new(format!("{file} is on a mount that is noexec")))
}

/// Who else has a file open for writing (ETXTBSY), as far as that can be seen.
fn written(file: &str, stat: &FileStat, facts: &Facts<'_>) -> Option<Because> {
    let proc = facts.proc;
    let is_it = |path: &str| proc.stat(path).is_some_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
    let writes = |who: &str, n: &i32| {
        let info = proc.text(&format!("{who}/fdinfo/{n}"))?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        Some(i32::from_str_radix(flags.trim(), 8).ok()? & OFlag::O_ACCMODE.bits() != OFlag::O_RDONLY.bits())
    };
    let own = proc.own().pids.first().copied();
    let others = proc.pids().into_iter().filter(|pid| u32::try_from(*pid).ok() != own).map(|pid| pid.to_string());
    let mut writers = others.filter(|who| {
        let numbers = proc.numbers(&format!("{who}/fd"));
        numbers.iter().any(|n| is_it(&format!("{who}/fd/{n}")) && writes(who, n) == Some(true))
    });
    let who = writers.next()?;
    Some(Because::new(format!("{file} is open for writing in process {who} ({})", proc.name(&who))))
}

/// Whether a file is no script and has another beginning than this program: its
/// class and byte order, or the machine that it is for (elf(5)).
fn is_foreign(facts: &Facts<'_>, fd: &OwnedFd) -> Option<bool> {
    let ours = facts.proc.open_at("self/exe", OFlag::O_RDONLY).ok()?;
    let (file, ours) = (read_all(open_again(facts, fd)?, MOST).ok()?, read_all(ours, MOST).ok()?);
    let same = |from, to| file.get(from..to) == ours.get(from..to);
    Some(!(file.starts_with(b"#!") || same(0, 6) && same(18, 20)))
}

/// The same file once more, from its beginning: one that was opened with O_PATH
/// cannot be read. By now it may be a FIFO, whose writer is not waited for.
fn open_again(facts: &Facts<'_>, fd: &OwnedFd) -> Option<OwnedFd> {
    facts.proc.open_at(&format!("self/fd/{}", fd.as_raw_fd()), OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()
}

/// The interpreter that a program names: behind `#!`, or in the PT_INTERP
/// header of an ELF file (elf(5)).
fn interpreter(facts: &Facts<'_>, fd: &OwnedFd) -> Option<Vec<u8>> {
    let bytes = read_all(open_again(facts, fd)?, MOST).ok()?;
    if let Some(rest) = bytes.strip_prefix(b"#!") {
        let line = rest.split(|b| *b == b'\n').next()?.trim_ascii_start();
        return Some(line.split(|b| *b == b' ' || *b == b'\t').next()?.to_vec());
    }
    if !bytes.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let number = |at: usize, size: usize| {
        let field = bytes.get(at..at + size)?;
        usize::try_from(field.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let at = (0..count).map(|n| table + n * size).find(|at| number(*at, 4) == Some(3))?;
    let (from, length) = (number(at + 8, 8)?, number(at + 32, 8)?);
    Some(bytes.get(from..from + length)?.strip_suffix(b"\0")?.to_vec())
}

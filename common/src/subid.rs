//! The files of subordinate ids, /etc/subuid and /etc/subgid: subuid(5).
//!
//! Both are keyed by user, one grant a line, `OWNER:START:COUNT`, OWNER a login
//! name or a uid in digits. Lines are read as shadow 4.20 reads them, since its
//! newuidmap is what most systems enforce; but a line that any other parser
//! might honour counts as taken. It knows owners, gaps, the locks and the
//! replacing of the files; nothing of maps.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::stat::Mode;

use crate::fail::{Because, Errno, Failure, Result};
use crate::helper;
use crate::id::{Kind, Range, without};
use crate::proc::{Proc, read_all};
use crate::user::User;

/// Where ranges are allocated: systemd's UIDS-GIDS document keeps these for
/// containers, and user homes map them.
pub const POOL: Range = Range { first: 524_288, count: 1_879_048_192 - 524_288 };

/// The text of one file.
#[derive(Clone, Debug, Default)]
pub struct Table {
    text: Vec<u8>,
}

/// One line that grants something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// As it stands in the file.
    pub owner: String,
    /// The ids.
    pub range: Range,
}

/// A number as shadow reads it: strtoull(3) in base 0, with blanks and a `+`
/// before it. So `0100` is 64.
fn shadow_number(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_start_matches([' ', '\t']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, base).ok() }
}

fn grant(line: &[u8]) -> Option<Grant> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    let [owner, start, count] = fields.as_slice() else { return None };
    if owner.is_empty() || matches!(owner[0], b'+' | b'-') {
        return None;
    }
    let range = Range::new(shadow_number(start)?, shadow_number(count)?)?;
    Some(Grant { owner: String::from_utf8_lossy(owner).into_owned(), range })
}

/// Every range that some parser may read in a line: numbers in base 0 and in
/// base 10, fields after the third and blanks around any ignored.
fn readings(line: &[u8]) -> Vec<Range> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').map(<[u8]>::trim_ascii).collect();
    let [_, start, count, ..] = fields.as_slice() else { return Vec::new() };
    let decimal = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let both = |field: &[u8]| [shadow_number(field), decimal(field)];
    let starts = both(start).into_iter().flatten();
    starts
        .flat_map(|s| {
            both(count)
                .into_iter()
                .flatten()
                .filter_map(move |c| Range::new(s, c.min(u64::from(u32::MAX).saturating_sub(s))))
        })
        .collect()
}

impl Table {
    /// The table in `text`.
    pub fn parse(text: Vec<u8>) -> Table {
        Table { text }
    }

    /// Reads a file. One that is missing is an empty table.
    ///
    /// # Errors
    /// ELOOP: it is a symbolic link, which shadow does not follow either.
    pub fn read(path: &Path) -> Result<Table> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let said = |e| Failure::os(format!("read {}", path.display()), e);
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Table::parse(read_all(fd, usize::MAX).map_err(said)?)),
            Err(Errno::ENOENT) => Ok(Table::default()),
            Err(e) => Err(said(e)),
        }
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.text.split(|b| *b == b'\n')
    }

    /// The grants, in the order of the file.
    pub fn grants(&self) -> impl Iterator<Item = Grant> + '_ {
        self.lines().filter_map(grant)
    }

    /// What `user` has been granted, by name or by uid, in the file's order.
    pub fn of(&self, user: &User) -> Vec<Range> {
        let uid = user.uid.to_string();
        self.grants().filter(|g| g.owner == user.name || g.owner == uid).map(|g| g.range).collect()
    }

    /// Every range that any parser may read in it.
    pub fn taken(&self) -> Vec<Range> {
        self.lines().flat_map(readings).collect()
    }

    /// The first `count` ids in `within`, beginning at a multiple of `align`,
    /// of which nobody may believe to have been granted one.
    pub fn gap(&self, within: Range, count: u32, align: u32, others: &[Range]) -> Option<Range> {
        let mut taken = self.taken();
        taken.extend_from_slice(others);
        let align = u64::from(align.max(1));
        without(&[within], &taken).into_iter().find_map(|free| {
            let first = u64::from(free.first).div_ceil(align) * align;
            let found = Range::new(first, count.into())?;
            (found.end() <= free.end()).then_some(found)
        })
    }

    /// The text with one more grant at its end, every byte before kept; a
    /// missing last newline is added, since shadow 4.20 rejects the file else.
    pub fn with(&self, owner: &str, range: Range) -> Vec<u8> {
        let mut text = self.text.clone();
        if text.last().is_some_and(|b| *b != b'\n') {
            text.push(b'\n');
        }
        text.extend_from_slice(format!("{owner}:{}:{}\n", range.first, range.count).as_bytes());
        text
    }
}

/// The provider that nsswitch.conf names on its `subid:` line, read as shadow
/// reads it; None for the files.
pub fn provider(nsswitch: &str) -> Option<&str> {
    let line = nsswitch.lines().find(|l| l.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("subid:")))?;
    let name = line[6..].split_whitespace().next()?;
    (name != "files").then_some(name)
}

/// What `user` has been granted of `kind`: from the file, or from the provider
/// that nsswitch.conf names, through getsubids(1).
///
/// # Errors
/// The file cannot be read, or the provider cannot be asked.
pub fn granted(user: &User, kind: Kind) -> Result<Vec<Range>> {
    let nsswitch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let Some(name) = provider(&nsswitch) else {
        return Ok(Table::read(Path::new(kind.grant_file()))?.of(user));
    };
    let words: &[&str] = if kind == Kind::Gid { &["-g", &user.name] } else { &[&user.name] };
    let cannot =
        |why: &str| Failure::refused(format!("subordinate ids come from {name} (/etc/nsswitch.conf), and {why}"));
    let program = helper::find("getsubids").ok_or_else(|| cannot("getsubids is not installed"))?;
    let answer = helper::run(&program, words).map_err(|e| cannot(e.desc()))?;
    if answer.status != 0 {
        return Err(cannot("getsubids found none: no ranges, an unknown user, or the service is not reached"));
    }
    // N: OWNER START COUNT
    let range = |line: &[u8]| {
        let mut words = line.split(|b| *b == b' ').rev().map(crate::id::number);
        let (count, start) = (words.next()??, words.next()??);
        Range::new(start, count)
    };
    Ok(answer.output.split(|b| *b == b'\n').filter_map(range).collect())
}

/// Ids that are never granted: those of users, services and the system (below
/// 65536), systemd's foreign images, and what signed numbers make negative
/// (UIDS-GIDS of systemd).
const RESERVED: [Range; 3] = [
    Range { first: 0, count: 65536 },
    Range { first: 2_147_352_576, count: 65536 },
    Range { first: 2_147_483_648, count: 2_147_483_647 },
];

/// Why `range` may not be granted to `user`: it is reserved, or a line of
/// somebody else may be read as having one of its ids.
pub fn not_free(range: Range, user: &User) -> Option<String> {
    if let Some(reserved) = RESERVED.iter().find(|r| r.common(range).is_some()) {
        return Some(format!("{reserved} are for users and the system"));
    }
    let uid = user.uid.to_string();
    for kind in Kind::BOTH {
        let table = Table::read(Path::new(kind.grant_file())).ok()?;
        let others = |line: &&[u8]| {
            line.split(|b| *b == b':').next().is_some_and(|o| o != user.name.as_bytes() && o != uid.as_bytes())
        };
        let taken = |line: &&[u8]| readings(line).iter().any(|r| r.common(range).is_some());
        if let Some(line) = table.lines().filter(others).find(taken) {
            return Some(format!("{} has {}", kind.grant_file(), String::from_utf8_lossy(line).trim()));
        }
    }
    None
}

// ---- the locks ----

/// How long to wait for the lock of the password file, as lckpwdf(3) does.
const PATIENCE: Duration = Duration::from_secs(15);

/// Both files, locked against shadow and against ourselves by its own
/// protocol. The locks go when this is dropped.
pub struct Locked {
    _password: OwnedFd,
    links: Vec<PathBuf>,
}

impl Locked {
    /// Locks /etc/.pwd.lock, then each file's own lock. `again` is the command
    /// with which root does what is about to be done.
    ///
    /// # Errors
    /// EACCES: not root; EAGAIN, EEXIST: a living process has one of them.
    pub fn take(proc: &Proc, again: &str) -> Result<Locked> {
        let path = "/etc/.pwd.lock";
        let said = |e| {
            let root = proc.own().uid[1] == 0;
            let because = (e == Errno::EACCES && !root).then(|| Because::new("only root can change who has which ids"));
            Failure::os(format!("lock {path}"), e).because(because.map(|b| b.remedy(again.to_owned())))
        };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(said)?;
        // lckpwdf(3) takes a POSIX record lock; one of an open file
        // description excludes it, flock(2) would not.
        let start = Instant::now();
        while let Err(e) = fcntl(&fd, FcntlArg::F_OFD_SETLK(&whole_file())) {
            if e != Errno::EAGAIN && e != Errno::EACCES {
                return Err(said(e));
            }
            if start.elapsed() > PATIENCE {
                return Err(said(Errno::EAGAIN).because(holder_of(&fd, proc)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut locked = Locked { _password: fd, links: Vec::new() };
        for kind in Kind::BOTH {
            locked.link(kind, proc)?;
        }
        Ok(locked)
    }

    /// shadow's lock of one file: a hard link named FILE.lock to a file that
    /// holds the locker's number and one NUL byte.
    fn link(&mut self, kind: Kind, proc: &Proc) -> Result<()> {
        let file = kind.grant_file();
        let lock = PathBuf::from(format!("{file}.lock"));
        let own = PathBuf::from(format!("{file}.{}", std::process::id()));
        let said =
            |e: std::io::Error| Failure::os(format!("lock {file}"), Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        let number = format!("{}\0", std::process::id());
        let mut made =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&own).map_err(said)?;
        let written = made.write_all(number.as_bytes()).and_then(|()| made.sync_data());
        let mut linked = written.and_then(|()| fs::hard_link(&own, &lock));
        if linked.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EEXIST)) && is_stale(&lock, proc) {
            // Safe only because .pwd.lock is ours: two stealers would race.
            linked = fs::remove_file(&lock).and_then(|()| fs::hard_link(&own, &lock));
        }
        let _ = fs::remove_file(&own);
        linked.map_err(|e| said(e).because(locker(&lock, proc)))?;
        self.links.push(lock);
        Ok(())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        for lock in &self.links {
            let _ = fs::remove_file(lock);
        }
    }
}

fn whole_file() -> libc::flock {
    libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

fn holder_of(fd: &OwnedFd, proc: &Proc) -> Option<Because> {
    let mut lock = whole_file();
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    (lock.l_pid > 0)
        .then(|| Because::new(format!("process {} ({}) has it", lock.l_pid, proc.name(&lock.l_pid.to_string()))))
}

/// The number that a lock file holds.
fn lock_pid(lock: &Path) -> Option<u64> {
    let bytes = fs::read(lock).ok()?;
    crate::id::number(bytes.strip_suffix(b"\0").unwrap_or(&bytes)).filter(|pid| *pid > 0)
}

/// Stale is only what names a process that does not exist; a lock that names
/// none is an administrator's to judge, as for shadow.
fn is_stale(lock: &Path, proc: &Proc) -> bool {
    lock_pid(lock).is_some_and(|pid| proc.status(&pid.to_string()).is_none())
}

fn locker(lock: &Path, proc: &Proc) -> Option<Because> {
    let Some(pid) = lock_pid(lock) else {
        fs::symlink_metadata(lock).ok()?;
        let path = lock.display();
        let because = Because::new(format!("{path} names no process, so nobody can tell whether it is held"));
        return Some(because.remedy(format!("sudo rm {path}")));
    };
    let name = proc.status(&pid.to_string())?.name;
    Some(Because::new(format!("process {pid} ({name}) holds {}", lock.display())))
}

// ---- replacing the files ----

/// New contents for one file, written beside it and safe on the disk.
pub struct Prepared {
    temporary: PathBuf,
    file: PathBuf,
}

/// The name of the temporary file for `file`.
fn temporary(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".nskit-new");
    name.into()
}

/// Writes `text` beside `file`, with its owner and mode, and syncs it.
///
/// # Errors
/// Those of open(2), write(2) and fsync(2): ENOSPC, EROFS, EACCES.
pub fn prepare(file: &Path, text: &[u8]) -> std::io::Result<Prepared> {
    let temporary = temporary(file);
    // What a killed run of ours has left; nobody else uses this name, and the
    // files are locked.
    let _ = fs::remove_file(&temporary);
    let prepared = Prepared { temporary, file: file.to_owned() };
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&prepared.temporary)?;
    let (uid, gid, mode) = match fs::symlink_metadata(file) {
        Ok(old) => (old.uid(), old.gid(), old.mode() & 0o664),
        Err(_) => (0, 0, 0o644),
    };
    std::os::unix::fs::fchown(&new, Some(uid), Some(gid))?;
    new.set_permissions(fs::Permissions::from_mode(mode))?;
    new.write_all(text)?;
    new.sync_all()?;
    Ok(prepared)
}

impl Prepared {
    /// Puts the new contents in place of the old, at once.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(self) -> std::io::Result<()> {
        fs::rename(&self.temporary, &self.file)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Gone already after a rename.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Makes renames in the directory of `file` safe against a loss of power.
///
/// # Errors
/// Those of open(2) and fsync(2).
pub fn sync_directory(file: &Path) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new(OsStr::from_bytes(b"/")));
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        Table::parse(text.as_bytes().to_vec())
    }

    fn alice() -> User {
        User { name: "alice".into(), uid: 1501, gid: 1501, shell: String::new() }
    }

    fn r(first: u64, count: u64) -> Range {
        Range::new(first, count).unwrap()
    }

    #[test]
    fn lines_as_shadow_reads_them() {
        for (line, wanted) in [
            ("alice:100000:65536", Some(r(100_000, 65536))),
            ("1501:5:6", Some(r(5, 6))),
            ("alice:0x186a0:10", Some(r(100_000, 10))),
            ("alice:0100:1", Some(r(64, 1))),
            ("alice: 5: +6", Some(r(5, 6))),
            ("alice:0:4294967295", Some(r(0, 4_294_967_295))),
            ("alice:5:0", None),
            ("alice:-1:5", None),
            ("alice:5:6:", None),
            ("alice:5:6 ", None),
            ("alice:5:6 # c", None),
            (" alice:5:6", None),
            ("Alice:5:6", None),
            ("+alice:5:6", None),
            ("alice:4294967295:1", None),
            ("alice:4294967296:1", None),
            ("# alice:5:6", None),
            ("alice::6", None),
            ("bob:5:6", None),
        ] {
            assert_eq!(table(line).of(&alice()).first().copied(), wanted, "{line}");
        }
    }

    #[test]
    fn gaps_avoid_whatever_anybody_may_honour() {
        let gap = |text: &str| table(text).gap(POOL, 65536, 65536, &[]).map(|r| r.first);
        assert_eq!(gap(""), Some(524_288));
        assert_eq!(gap("a:524288:1\n"), Some(589_824));
        assert_eq!(gap("a:524288:65536 \nb:589824:65536:x\n"), Some(655_360));
        assert_eq!(gap("a:0x80000:65536\n"), Some(589_824));
        // 02000000 is 524288 in octal, 2000000 in decimal: both count.
        assert_eq!(gap("a:02000000:1\n"), Some(589_824));
        assert_eq!(gap("a:0:4294967295\n"), None);
        assert_eq!(gap("a:524288:99999999999999\n"), None);
        assert_eq!(gap("a:1:524287\nb:1879048191:1\n"), Some(524_288));
        assert_eq!(table("").gap(r(524_288, 65535), 65536, 65536, &[]), None);
        assert_eq!(table("").gap(POOL, 65536, 65536, &[r(524_288, 65536)]).map(|r| r.first), Some(589_824));
    }

    #[test]
    fn every_other_byte_is_kept() {
        assert_eq!(table("# x\n\nbob:1:2").with("alice", r(7, 8)), b"# x\n\nbob:1:2\nalice:7:8\n");
        assert_eq!(table("").with("alice", r(7, 8)), b"alice:7:8\n");
    }

    #[test]
    fn providers() {
        assert_eq!(provider("passwd: files\nsubid: sss\n"), Some("sss"));
        assert_eq!(provider("SUBID:tst files\n"), Some("tst"));
        assert_eq!(provider("subid: files tst\n"), None);
        assert_eq!(provider(" subid: tst\n#subid: tst\nsubid:\nsubid: x\n"), None);
        assert_eq!(provider(""), None);
    }
}

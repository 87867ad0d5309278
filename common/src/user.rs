//! Users by name and number: from /etc/passwd, then from whatever else the
//! machine is configured to ask, through getent(1). Not by getpwnam(3): in a
//! static program it loads foreign code or crashes.

use std::fmt;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, fstat};

use crate::fail::{Because, Errno, Failure};
use crate::helper;
use crate::id::{self, Both};
use crate::proc::{Proc, read_all};

/// One user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The login name; the number in digits for a uid that nobody knows.
    pub name: String,
    /// The uid.
    pub uid: u32,
    /// The primary gid.
    pub gid: u32,
    /// The login shell.
    pub shell: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (uid {})", self.name, self.uid)
    }
}

/// The effective ids of this process.
pub fn own_ids() -> Both<u32> {
    Both { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
}

/// A line of a passwd file, as far as it is of interest: passwd(5).
pub struct Entry<'a> {
    /// The login name.
    pub name: &'a [u8],
    /// The uid.
    pub uid: u32,
    /// The primary gid.
    pub gid: u32,
    /// The home directory.
    pub home: &'a [u8],
    /// The login shell.
    pub shell: &'a [u8],
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Entry<'a>> {
        let mut fields = line.split(|b| *b == b':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (_, home, shell) = (fields.next()?, fields.next()?, fields.next()?);
        fields.next().is_none().then_some(())?;
        Some(Entry { name, uid: id::one(uid)?, gid: id::one(gid)?, home, shell })
    }

    /// Whom it names.
    pub fn user(&self) -> User {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        User { name: text(self.name), uid: self.uid, gid: self.gid, shell: text(self.shell) }
    }
}

/// The lines of a passwd file.
pub fn entries(text: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    text.split(|b| *b == b'\n').filter_map(Entry::parse)
}

/// The name and the id in each line of a passwd or group file: both have the
/// id third.
pub fn ids_in(text: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        Some((name, id::one(id)?))
    })
}

/// The groups that have `name` for a member, in the text of a group file.
pub fn groups_in<'a>(text: &'a [u8], name: &'a str) -> impl Iterator<Item = u32> + 'a {
    text.split(|b| *b == b'\n').filter_map(move |line| {
        let mut fields = line.split(|b| *b == b':').skip(2);
        let (gid, members) = (fields.next()?, fields.next()?);
        let is_member = members.split(|b| *b == b',').any(|member| member == name.as_bytes());
        id::one(gid).filter(|_| is_member)
    })
}

/// The text of /etc/passwd.
///
/// # Errors
/// Those of open(2) and read(2); EINVAL: it is no regular file.
pub fn passwd() -> std::result::Result<Vec<u8>, Errno> {
    // A FIFO in its place would keep us waiting.
    let file = open("/etc/passwd", OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
    let is_regular = fstat(&file)?.st_mode & libc::S_IFMT == libc::S_IFREG;
    if is_regular { read_all(file, usize::MAX) } else { Err(Errno::EINVAL) }
}

/// Why somebody was not found who may be there.
pub fn unread() -> Option<Because> {
    let errno = passwd().err().filter(|e| *e != Errno::ENOENT)?;
    Some(Because::new(Failure::os("read /etc/passwd", errno).to_string()))
}

fn find(key: &str, is_meant: impl Fn(&Entry<'_>) -> bool) -> Option<User> {
    let named_in = |text: &[u8]| entries(text).find(&is_meant).map(|entry| entry.user());
    let text = match passwd() {
        // getent(1) would wait for what is no file, too.
        Err(Errno::EINVAL) => return None,
        text => text.unwrap_or_default(),
    };
    named_in(&text).or_else(|| {
        let answer = helper::run(&helper::find("getent")?, &["passwd", key]).ok()?;
        named_in(&answer.output)
    })
}

/// The user with this uid.
pub fn by_uid(uid: u32) -> Option<User> {
    find(&uid.to_string(), |entry| entry.uid == uid)
}

/// Who has `uid`, as the kernel tells it: of everybody who is not mapped in our
/// user namespace it tells the overflow id (proc_sys_kernel(5)), which may be
/// mapped as well.
pub fn told(uid: u32, proc: &Proc) -> String {
    let map = proc.map("self", id::Kind::Uid).unwrap_or_default();
    let named = || by_uid(uid).map_or_else(|| format!("uid {uid}"), |user| user.to_string());
    let all_are_mapped = map.iter().map(|extent| u64::from(extent.count)).sum::<u64>() == u64::from(u32::MAX);
    let unmapped = "a user who is not mapped in this user namespace";
    if all_are_mapped || proc.sysctl("kernel/overflowuid").unwrap_or(65534) != u64::from(uid) {
        named()
    } else if map.iter().any(|extent| extent.inside().has(uid)) {
        format!("{} or {unmapped}", named())
    } else {
        unmapped.to_owned()
    }
}

/// The user that `word` names: by name, or by uid in digits.
pub fn named(word: &str) -> Option<User> {
    match id::one(word.as_bytes()) {
        Some(uid) => by_uid(uid),
        None => find(word, |entry| entry.name == word.as_bytes()),
    }
}

/// The shell of this process's user, as unshare(1) and nsenter(1) choose it:
/// $SHELL, that of the passwd entry, /bin/sh.
pub fn shell() -> std::ffi::OsString {
    let named = std::env::var_os("SHELL").filter(|s| !s.is_empty());
    named.unwrap_or_else(|| {
        let user = by_uid(nix::unistd::getuid().as_raw());
        user.map(|u| u.shell).filter(|s| !s.is_empty()).unwrap_or_else(|| "/bin/sh".into()).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines() {
        let text = b"root:x:0:0:root:/root:/bin/sh\n+::::::\nbad:x:1\nalice:x:1501:1502::/:/bin/bash\n";
        let names: Vec<&[u8]> = entries(text).map(|entry| entry.name).collect();
        assert_eq!(names, [&b"root"[..], b"alice"]);
        let alice = entries(text).find(|entry| entry.uid == 1501).unwrap();
        assert_eq!((alice.gid, alice.home, alice.shell), (1502, &b"/"[..], &b"/bin/bash"[..]));
        assert_eq!(alice.user().to_string(), "alice (uid 1501)");
        let groups = b"a:x:1:alice\nb:x:2:bob,alice\nc:x:3:alices\nd:x:4294967296:alice\ne:x:5\nalice:x:6:\n";
        assert_eq!(groups_in(groups, "alice").collect::<Vec<_>>(), [1, 2]);
    }
}

//! The files of subordinate ids, /etc/subuid and /etc/subgid: subuid(5).
//!
//! Both are keyed by user, one grant a line, `OWNER:START:COUNT`, OWNER a login
//! name or a uid in digits. Lines are read as shadow 4.20 reads them, since its
//! newuidmap is what most systems enforce; but a line that any other parser
//! might honour counts as taken. Files of a million lines are read in pieces,
//! never held, and nothing is allocated for a line. It knows owners and lines;
//! nothing of maps, and nothing of how the files are changed.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::fail::{Errno, Failure, Result, errno};
use crate::helper;
use crate::id::{Kind, Range};
use crate::user::{User, passwd};
use crate::word::quote;

mod line;

pub use line::{Grant, grant, granted, is_blank, readings, shadow_number, trimmed};
pub(crate) use line::{clipped, plain};

/// Where ranges are allocated: systemd's UIDS-GIDS document keeps these for
/// containers, and user homes map them.
pub const POOL: Range = Range { first: 524_288, count: 1_879_048_192 - 524_288 };

/// Ids that are never granted: those of users, services and the system (below
/// 65536), systemd's foreign images, and what signed numbers make negative
/// (UIDS-GIDS of systemd).
pub const RESERVED: [Range; 3] = [
    Range { first: 0, count: 65536 },
    Range { first: 2_147_352_576, count: 65536 },
    Range { first: 2_147_483_648, count: 2_147_483_647 },
];

// ---- files ----

/// How many bytes are read at a time: they stay in the processor's cache.
pub(crate) const PIECE: usize = 128 << 10;

/// Reads `file` to its end: `each` gets pieces of whole lines and the place of
/// their first byte in the file, in bytes from 0. Only the last piece may lack
/// its newline.
///
/// # Errors
/// Those of read(2); EFBIG: a line is longer than any file of this kind has.
pub fn pieces(file: impl AsFd, mut each: impl FnMut(&[u8], u64)) -> std::result::Result<(), Errno> {
    let mut buffer = vec![0; PIECE];
    let (mut filled, mut at) = (0, 0);
    loop {
        if filled == buffer.len() {
            return Err(Errno::EFBIG);
        }
        match nix::unistd::read(file.as_fd(), &mut buffer[filled..]) {
            Ok(0) => {
                if filled > 0 {
                    each(&buffer[..filled], at);
                }
                return Ok(());
            }
            Ok(n) => {
                let end = filled + n;
                let whole = memchr::memrchr(b'\n', &buffer[filled..end]).map_or(0, |last| filled + last + 1);
                if whole > 0 {
                    each(&buffer[..whole], at);
                }
                buffer.copy_within(whole..end, 0);
                filled = end - whole;
                at += whole as u64;
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The lines of a piece, without their newlines.
pub fn lines(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest);
        let line = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[], |end| &rest[end + 1..]);
        Some(line)
    })
}

/// The words by which lines may name a user: the login name, the uid, and
/// other login names with the same uid, as newuidmap(1) has it.
#[derive(Clone, Debug)]
pub struct Owner(Vec<Vec<u8>>);

impl Owner {
    /// The words for `user`; `passwd` is the text in which others are looked
    /// for that have his uid.
    pub fn of(user: &User, passwd: &[u8]) -> Owner {
        let uid = user.uid.to_string();
        let others = crate::user::entries(passwd).filter(|other| other.uid == user.uid).map(|other| other.name);
        let mut words: Vec<Vec<u8>> = Vec::new();
        // A line is found by each: nobody is to have it twice.
        for word in [user.name.as_bytes(), uid.as_bytes()].into_iter().chain(others) {
            if !words.iter().any(|known| known == word) {
                words.push(word.to_vec());
            }
        }
        Owner(words)
    }

    /// Whether a line with this owner is meant.
    #[inline]
    pub fn is(&self, owner: &[u8]) -> bool {
        // Most differ in their ends, and are told apart without a call.
        self.0.iter().any(|word| word.len() == owner.len() && word.last() == owner.last() && word == owner)
    }

    /// What the owner has been granted in `file`, in the file's order. Lines that
    /// do not begin with a word of his are not looked at.
    ///
    /// # Errors
    /// As `pieces`.
    pub fn granted_in(&self, file: impl AsFd) -> std::result::Result<Vec<Range>, Errno> {
        self.lines_in(file, &mut Lack::Line)
    }

    /// The same; `lack` becomes that of a grant where he has lines.
    fn lines_in(&self, file: impl AsFd, lack: &mut Lack) -> std::result::Result<Vec<Range>, Errno> {
        let needles: Vec<Vec<u8>> = self.0.iter().map(|word| [b"\n", word.as_slice(), b":"].concat()).collect();
        let searches: Vec<_> = needles.iter().map(memchr::memmem::Finder::new).collect();
        let (mut found, mut starts) = (Vec::new(), Vec::new());
        pieces(file, |piece, _| {
            for search in &searches {
                starts.extend(piece.starts_with(&search.needle()[1..]).then_some(0));
                starts.extend(search.find_iter(piece).map(|at| at + 1));
            }
            if !starts.is_empty() {
                *lack = Lack::Grant;
            }
            starts.sort_unstable();
            let line = |start: usize| lines(&piece[start..]).next().unwrap_or_default();
            found.extend(starts.drain(..).filter_map(|start| Some(grant(line(start))?.range)));
        })?;
        Ok(found)
    }
}

/// Opens a file of grants for reading. None: it is missing, and so grants
/// nothing.
///
/// # Errors
/// ELOOP: it is a symbolic link, which shadow does not follow either.
pub fn open_grants(kind: Kind) -> Result<Option<std::os::fd::OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(kind.grant_file(), flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(Failure::os(format!("read {}", kind.grant_file()), e)),
    }
}

// ---- what a user has ----

/// The provider that nsswitch.conf names on its `subid:` line, read as shadow
/// reads it; None for the files.
pub fn provider(nsswitch: &str) -> Option<&str> {
    let line = nsswitch.lines().find(|l| l.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("subid:")))?;
    let name = line[6..].split_whitespace().next()?;
    (name != "files").then_some(name)
}

/// The provider of this machine; None for the files, as without nsswitch.conf.
fn configured() -> Result<Option<String>> {
    match fs::read("/etc/nsswitch.conf") {
        Ok(text) => Ok(provider(&String::from_utf8_lossy(&text)).map(str::to_owned)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::os("read /etc/nsswitch.conf", errno(e))),
    }
}

/// Where it is written what a user has been granted: found once, for both kinds.
pub enum Grants<'a> {
    /// In the files, in lines of this owner.
    Files(Owner),
    /// With the provider that nsswitch.conf names.
    Provider(String, &'a User),
}

impl Grants<'_> {
    /// For `user`.
    ///
    /// # Errors
    /// nsswitch.conf cannot be read: whoever may, as newuidmap(1), might be told
    /// another source.
    pub fn of(user: &User) -> Result<Grants<'_>> {
        Ok(match configured()? {
            Some(name) => Grants::Provider(name, user),
            None => Grants::Files(Owner::of(user, &passwd().unwrap_or_default())),
        })
    }

    /// What he has been granted of `kind`: from the file, or from the provider
    /// through getsubids(1).
    ///
    /// # Errors
    /// The file cannot be read, or the provider cannot be asked.
    pub fn read(&self, kind: Kind) -> Result<Vec<Range>> {
        self.look(kind, &mut Lack::Line)
    }

    /// The same; `lack` becomes what is lacking where that is nothing.
    ///
    /// # Errors
    /// As `read`.
    pub fn look(&self, kind: Kind, lack: &mut Lack) -> Result<Vec<Range>> {
        *lack = Lack::Line;
        match self {
            Grants::Provider(name, user) => provided(name, user, kind),
            Grants::Files(owner) => {
                let Some(file) = open_grants(kind)? else {
                    *lack = Lack::File;
                    return Ok(Vec::new());
                };
                let said = |e| Failure::os(format!("read {}", kind.grant_file()), e);
                owner.lines_in(file, lack).map_err(said)
            }
        }
    }
}

/// What is lacking where nothing is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// There is no file.
    File,
    /// No line is the user's.
    Line,
    /// His lines are not read as grants, though other programs may read them so.
    Grant,
}

impl Lack {
    /// The sentence about `user`.
    pub fn text(self, kind: Kind, user: &User) -> String {
        let (head, tail) = match self {
            Lack::File => ("is missing, and so is a line for", ""),
            Lack::Line => ("has no line for", ""),
            Lack::Grant => ("has a line for", " that is not read as a grant"),
        };
        format!("{} {head} {user}{tail}", kind.grant_file())
    }
}

/// What the provider `name` grants. getsubids(1) goes on with the files where
/// it cannot load a provider, and tells a user without ranges, an unknown one
/// and a service that is out of reach apart in no way: so each that can be seen
/// from here is looked at, and whatever is left is refused.
fn provided(name: &str, user: &User, kind: Kind) -> Result<Vec<Range>> {
    let words: &[&str] = if kind == Kind::Gid { &["-g", &user.name] } else { &[&user.name] };
    let what = format!("subordinate {}s come from {name} (/etc/nsswitch.conf)", kind.word());
    let cannot = |why: &str| Failure::refused(format!("{what}, and {why}"));
    let program = helper::find("getsubids").ok_or_else(|| cannot("getsubids is not installed"))?;
    let answer = helper::run(&program, words).map_err(|e| {
        let late = cannot("it has not answered within 10 seconds");
        if e == Errno::ETIMEDOUT { late } else { Failure::os(format!("run getsubids, as {what}"), e) }
    })?;
    let output = String::from_utf8_lossy(&answer.output).into_owned();
    if output.lines().any(|line| line.contains(&format!("libsubid_{name}.so"))) {
        return Err(cannot(&format!("libsubid_{name}.so cannot be loaded")));
    }
    if answer.status != 0 {
        return Err(cannot(&format!("it has none for {user}, does not know him, or is out of reach")));
    }
    // N: OWNER START COUNT
    let range = |line: &str| {
        let mut words = line.rsplit(' ').map(|w| crate::id::number(w.as_bytes()));
        let (count, start) = (words.next()??, words.next()??);
        Range::new(start, count)
    };
    Ok(output.lines().filter_map(range).collect())
}

/// Why `range` may not be granted to `user`: it is reserved, or a line of
/// somebody else may be read as having one of its ids.
pub fn not_free(range: Range, user: &User) -> Option<String> {
    if let Some(reserved) = RESERVED.iter().find(|r| r.common(range).is_some()) {
        return Some(format!("{reserved} are for users and the system"));
    }
    let owner = Owner::of(user, &passwd().unwrap_or_default());
    Kind::BOTH.into_iter().find_map(|kind| {
        let file = open_grants(kind).ok()??;
        let taker = taker(file, range, &owner).ok()??;
        Some(format!("{} has {taker}", kind.grant_file()))
    })
}

/// The first line of `file` that is not the owner's and may be read as having
/// an id of `range`.
///
/// # Errors
/// As `pieces`.
pub fn taker(file: impl AsFd, range: Range, owner: &Owner) -> std::result::Result<Option<String>, Errno> {
    let mut found = None;
    let others = |line: &&[u8]| !owner.is(line.split(|b| *b == b':').next().unwrap_or_default());
    pieces(file, |piece, _| {
        if found.is_none() {
            found = lines(piece).filter(others).find_map(|line| {
                let mut hit = false;
                readings(line, |r| hit |= r.common(range).is_some());
                hit.then(|| quote(OsStr::from_bytes(trimmed(line))))
            });
        }
    })?;
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write as _;

    pub(crate) fn alice() -> User {
        User { name: "alice".into(), uid: 1501, gid: 1501, shell: String::new() }
    }

    pub(crate) fn r(first: u64, count: u64) -> Range {
        Range::new(first, count).unwrap()
    }

    /// A file with this text, to be read from its beginning.
    pub(crate) fn file(text: &[u8]) -> std::fs::File {
        let name = format!("nskit-subid-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(text).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    #[test]
    fn lines_as_shadow_reads_them() {
        for (line, wanted) in [
            ("alice:100000:65536", Some(r(100_000, 65536))),
            ("1501:5:6", Some(r(5, 6))),
            ("alice:0x186a0:10", Some(r(100_000, 10))),
            ("alice:0100:1", Some(r(64, 1))),
            ("alice: 5: +6", Some(r(5, 6))),
            ("alice:\x0b5:\x0c6", Some(r(5, 6))),
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
            ("alice:4294967000:295", Some(r(4_294_967_000, 295))),
            ("alice:4294967000:296", Some(r(4_294_967_000, 295))),
            ("alice:4294967000:0x128", Some(r(4_294_967_000, 295))),
            ("alice:4294967000:297", None),
            ("alice:1:4294967295", Some(r(1, 4_294_967_294))),
            ("alice:0:4294967296", None),
            ("alice:1:18446744073709551615", None),
            ("alice:4294967296:1", None),
            ("# alice:5:6", None),
            ("alice::6", None),
            ("bob:5:6", None),
            ("alice:99999999999999999999:1", None),
        ] {
            let owner = Owner::of(&alice(), b"");
            assert_eq!(owner.granted_in(file(line.as_bytes())).unwrap().first().copied(), wanted, "{line}");
            let ended = format!("alicea:1:1\n{line}\nalic:2:2\n");
            assert_eq!(owner.granted_in(file(ended.as_bytes())).unwrap().first().copied(), wanted, "{line}");
        }
    }

    #[test]
    fn other_names_with_the_uid_count() {
        let passwd = b"bob:x:1501:1501::/:/bin/sh\ncarol:x:7:7::/:/bin/sh\n";
        let owner = Owner::of(&alice(), passwd);
        let text = b"bob:1:1\ncarol:2:1\nalice:3:1\n1501:4:1\nalice:5:1\n";
        assert_eq!(owner.granted_in(file(text)).unwrap(), [r(1, 1), r(3, 1), r(4, 1), r(5, 1)]);
    }

    #[test]
    fn pieces_are_whole_lines() {
        // Lines of all lengths, so that they end everywhere in a piece.
        let mut text = String::new();
        for n in 0..60_000 {
            text.push_str(&"x".repeat(n % 23));
            text.push_str(if n % 7 == 0 { "\nalice:9:9\n" } else { "\n" });
        }
        text.push_str("alice:1:2");
        let (mut seen, mut places, mut lengths) = (Vec::new(), 0, 0);
        pieces(file(text.as_bytes()), |piece, at| {
            assert_eq!(at, lengths);
            lengths += piece.len() as u64;
            places += 1;
            seen.extend(lines(piece).map(<[u8]>::to_vec));
        })
        .unwrap();
        assert!(places > 3);
        assert!(seen.iter().map(Vec::as_slice).eq(text.as_bytes().split(|b| *b == b'\n')));
        let granted = Owner::of(&alice(), b"").granted_in(file(text.as_bytes())).unwrap();
        assert_eq!((granted.len(), granted.last().copied()), (60_000 / 7 + 2, Some(r(1, 2))));
        assert_eq!(pieces(file(&vec![b'x'; PIECE + 1]), |_, _| {}), Err(Errno::EFBIG));
        assert_eq!(lines(b"a\n\nb\n").count(), 3);
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

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

/// One line that grants something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    /// As it stands in the file.
    pub owner: &'a [u8],
    /// The ids.
    pub range: Range,
}

// ---- lines ----

/// The longest line that shadow reads, in bytes without its newline: it has a
/// buffer of 1024 (lib/subordinateio.c).
const MAX_LINE: usize = 1023;

/// The plain form that all parsers agree on: a name, two decimal numbers
/// without sign, blank or leading zero, nothing else. Takes the line from the
/// beginning of `text`, and answers how long it is with its newline.
#[inline(always)]
pub(crate) fn plain(text: &[u8]) -> Option<(&[u8], u64, u64, usize)> {
    let colon = colon(text)?;
    let owner = &text[..colon];
    if matches!(owner.first()?, b'+' | b'-' | b'#' | b' ' | b'\t') {
        return None;
    }
    let (start, many) = digits(&text[colon + 1..])?;
    let second = colon + 1 + many;
    if text.get(second) != Some(&b':') {
        return None;
    }
    let (count, many) = digits(&text[second + 1..])?;
    let end = second + 1 + many;
    let ended = text.get(end).is_none_or(|b| *b == b'\n');
    (ended && end <= MAX_LINE).then_some((owner, start, count, (end + 1).min(text.len())))
}

/// Eight bytes of one value, to be compared with eight others at once.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Where the first colon is, if it comes before the end of the line. Names are
/// short: to call memchr for each would take longer.
#[inline(always)]
fn colon(text: &[u8]) -> Option<usize> {
    // The high bit of each byte that is zero; one that borrows spoils only what
    // comes after it.
    let zeros = |word: u64| word.wrapping_sub(EACH) & !word & (0x80 * EACH);
    let mut at = 0;
    while let Some(eight) = text[at..].first_chunk() {
        let word = u64::from_le_bytes(*eight);
        let found = zeros(word ^ (0x3a * EACH)) | zeros(word ^ (0x0a * EACH));
        if found != 0 {
            at += found.trailing_zeros() as usize / 8;
            return (text[at] == b':').then_some(at);
        }
        at += 8;
    }
    at += text[at..].iter().position(|byte| matches!(byte, b':' | b'\n'))?;
    (text[at] == b':').then_some(at)
}

/// The decimal number that `text` begins with, and how many digits it has.
#[inline(always)]
fn digits(text: &[u8]) -> Option<(u64, usize)> {
    let (mut value, mut many) = text.first_chunk().map_or((0, 0), eight_digits);
    if many % 8 == 0 {
        for byte in &text[many..] {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            // Nineteen digits cannot leave 64 bits.
            if many == 19 {
                return None;
            }
            value = value * 10 + u64::from(digit);
            many += 1;
        }
    }
    (many == 1 || (many > 1 && text[0] != b'0')).then_some((value, many))
}

/// The same for the first eight bytes, all at once: a million lines are read a
/// third faster.
#[inline(always)]
fn eight_digits(text: &[u8; 8]) -> (u64, usize) {
    let digits = u64::from_le_bytes(*text) ^ (0x30 * EACH);
    // The high bit of each byte that is no digit; one that carries spoils only
    // what comes after it.
    let others = (digits.wrapping_add(0x76 * EACH) | digits) & (0x80 * EACH);
    let many = others.trailing_zeros() / 8;
    if many == 0 {
        return (0, 0);
    }
    // Zeros before them; then neighbours are put together: to tens, hundreds,
    // and all.
    let digits = digits << (64 - 8 * many);
    let tens = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let odd = (tens & 0xff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let even = (tens >> 16 & 0xff_0000_00ff).wrapping_mul(0x2710_0000_0001);
    (odd.wrapping_add(even) >> 32, many as usize)
}

/// What isspace(3) has for a blank, and strtoull(3) skips: with the vertical tab.
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A field without the blanks around it.
pub fn trimmed(field: &[u8]) -> &[u8] {
    let from = field.iter().position(|b| !is_blank(*b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !is_blank(*b)).map_or(from, |last| last + 1);
    &field[from..end]
}

/// A number as shadow reads it: strtoull(3) in base 0, with blanks and a `+`
/// before it. So `0100` is 64.
pub fn shadow_number(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_start_matches(|c| u8::try_from(c).is_ok_and(is_blank));
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, base).ok() }
}

/// What a line grants, as shadow 4.20 reads it.
pub fn grant(line: &[u8]) -> Option<Grant<'_>> {
    if let Some((owner, start, count, _)) = plain(line) {
        return Some(Grant { owner, range: granted(start, count)? });
    }
    let fields: [&[u8]; 3] = three_fields(line)?;
    let owner = fields[0];
    if owner.is_empty() || matches!(owner[0], b'+' | b'-') || line.len() > MAX_LINE {
        return None;
    }
    Some(Grant { owner, range: granted(shadow_number(fields[1])?, shadow_number(fields[2])?)? })
}

fn three_fields(line: &[u8]) -> Option<[&[u8]; 3]> {
    let mut fields = line.split(|b| *b == b':');
    let three = [fields.next()?, fields.next()?, fields.next()?];
    fields.next().is_none().then_some(three)
}

/// As many of `count` ids from `start` on as there are: a parser may cut what
/// leaves 32 bits.
pub(crate) fn clipped(start: u64, count: u64) -> Option<Range> {
    Range::new(start, count.min(u64::from(u32::MAX).saturating_sub(start)))
}

/// The ids that shadow 4.20 takes from `count` of them from `start` on, as far as
/// a map can have them: it takes 4294967295, too, which none can.
pub fn granted(start: u64, count: u64) -> Option<Range> {
    let range = clipped(start, count)?;
    (count <= u64::from(u32::MAX) && count - u64::from(range.count) <= 1).then_some(range)
}

/// Every range that some parser may read in a line: numbers in base 0 and in
/// base 10, fields after the third and blanks around any ignored.
pub fn readings(line: &[u8], mut each: impl FnMut(Range)) {
    if let Some((_, start, count, _)) = plain(line) {
        clipped(start, count).into_iter().for_each(each);
        return;
    }
    let mut fields = line.split(|b| *b == b':').map(trimmed);
    let (Some(_), Some(start), Some(count)) = (fields.next(), fields.next(), fields.next()) else { return };
    let decimal = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let both = |field: &[u8]| {
        let (shadow, other) = (shadow_number(field), decimal(field));
        [shadow, other.filter(|_| other != shadow)].into_iter().flatten()
    };
    for start in both(start) {
        both(count).filter_map(|count| clipped(start, count)).for_each(&mut each);
    }
}

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
    fn numbers_in_plain_lines() {
        let number = |text: &str| digits(text.as_bytes()).map(|(value, many)| (value, text.len() - many));
        for text in
            ["7", "42", "1234567", "12345678", "123456789", "4294967295", "9999999999999999999", "10000000", "90000009"]
        {
            for end in ["", ":", ":1:2345678", "\n", "\u{ff}\u{ff}99999999", "/", "a"] {
                let wanted = Some((text.parse().unwrap(), end.len()));
                assert_eq!(number(&format!("{text}{end}")), wanted, "{text}{end}");
            }
        }
        for text in ["", "00", "0100", "012345678", ":1234567", "99999999999999999999", "x"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert_eq!(number("0"), Some((0, 0)));
        // Every length and every digit in every place.
        for n in (0..20).map(|n| 1 << n).chain((0..2_000_000).step_by(977)) {
            assert_eq!(number(&format!("{n}:xxxxxxx")), Some((n, 8)), "{n}");
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

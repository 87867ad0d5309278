//! The lines that the tools exchange in a pipeline: nskit-record(5).
//!
//! ```text
//! pid 4242:1711 hold
//! uid 0 1000 1
//! gid 0 1000 1
//! end
//! ```
//!
//! Pure text: nothing is opened here.

use std::fmt;

use crate::fail::{Failure, Result};
use crate::id::{Extent, Kind, number};

/// The longest line that is read, in bytes without its newline.
pub const MAX_LINE: usize = 4096;
/// The longest stream that is read, in bytes: two full maps and much besides.
pub const MAX_STREAM: usize = 1 << 20;

/// A process, named so that no other can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its number, in the pid namespace of whoever reads the line.
    pub pid: i32,
    /// Its inode in pidfs (Linux 6.9): 64 bits, unique until reboot. None on
    /// older kernels, where a holder's number is kept from reuse instead.
    pub inode: Option<u64>,
}

impl Address {
    /// Reads `PID` or `PID:INODE`.
    pub fn parse(word: &[u8]) -> Option<Address> {
        let (pid, inode) = match word.iter().position(|b| *b == b':') {
            Some(at) => (&word[..at], Some(number(&word[at + 1..]).filter(|n| *n > 0)?)),
            None => (word, None),
        };
        let pid = i32::try_from(number(pid)?).ok().filter(|pid| *pid > 0)?;
        Some(Address { pid, inode })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inode {
            Some(inode) => write!(f, "{}:{inode}", self.pid),
            None => write!(f, "{}", self.pid),
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The process whose namespaces are meant, and whether it waits for its
    /// reader and may be told to go. None: `?`, of a dry run.
    Pid(Option<Address>, bool),
    /// One extent of a map.
    Extent(Kind, Extent),
    /// An earlier stage failed and has said why.
    Failed,
    /// What this version does not know: passed on as it is.
    Other(Vec<u8>),
}

impl Record {
    /// Reads one line, without its newline.
    ///
    /// # Errors
    /// A known word with wrong fields.
    pub fn parse(line: &[u8]) -> Result<Record> {
        let bad =
            || Failure::refused(format!("bad record: {}", crate::word::quote(String::from_utf8_lossy(line).as_ref())));
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ' || *b == b'\t').filter(|f| !f.is_empty()).collect();
        let address = |word: &[u8]| if word == b"?" { Some(None) } else { Address::parse(word).map(Some) };
        match fields.as_slice() {
            [b"pid", at] => Ok(Record::Pid(address(at).ok_or_else(bad)?, false)),
            [b"pid", at, b"hold"] => Ok(Record::Pid(address(at).ok_or_else(bad)?, true)),
            [word @ (b"uid" | b"gid"), i, o, n] => {
                let kind = if *word == b"uid" { Kind::Uid } else { Kind::Gid };
                let (Some(i), Some(o), Some(n)) = (number(i), number(o), number(n)) else { return Err(bad()) };
                Ok(Record::Extent(kind, Extent::new(i, o, n).ok_or_else(bad)?))
            }
            [b"pid" | b"uid" | b"gid" | b"end", ..] => Err(bad()),
            [b"failed", ..] => Ok(Record::Failed),
            // A line that is only an address counts as a pid record.
            [only] if only[0].is_ascii_digit() => Ok(Record::Pid(Some(Address::parse(only).ok_or_else(bad)?), false)),
            _ => Ok(Record::Other(line.to_vec())),
        }
    }

    /// The line, with its newline.
    pub fn line(&self) -> Vec<u8> {
        let text = match self {
            Record::Pid(None, hold) => format!("pid ?{}", if *hold { " hold" } else { "" }),
            Record::Pid(Some(at), hold) => format!("pid {at}{}", if *hold { " hold" } else { "" }),
            Record::Extent(kind, extent) => format!("{} {extent}", kind.word()),
            Record::Failed => "failed".to_owned(),
            Record::Other(bytes) => return [bytes, &b"\n"[..]].concat(),
        };
        (text + "\n").into_bytes()
    }
}

/// A whole stream: what stood before `end`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The records, in order.
    pub records: Vec<Record>,
}

impl Stream {
    /// Reads a stream from its bytes up to `end`.
    ///
    /// # Errors
    /// No `end`: an earlier stage did not finish. A bad record, a NUL byte, a
    /// line over 4096 bytes, two `pid` records.
    pub fn parse(bytes: &[u8]) -> Result<Stream> {
        let mut stream = Stream::default();
        let mut addressed = false;
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let line = &rest[..at];
            rest = &rest[at + 1..];
            if line.len() > MAX_LINE || memchr::memchr(0, line).is_some() {
                return Err(Failure::refused(
                    "standard input is not a stream of records (a NUL byte or a line over 4096 bytes)",
                ));
            }
            if line == b"end" {
                return Ok(stream);
            }
            let record = Record::parse(line)?;
            match record {
                Record::Failed => return Err(Failure::told_upstream()),
                Record::Pid(..) if addressed => return Err(Failure::refused("two pid records in one stream")),
                Record::Pid(..) => addressed = true,
                Record::Extent(..) | Record::Other(_) => {}
            }
            stream.records.push(record);
        }
        Err(Failure::refused("the stream broke off before `end`: an earlier stage did not finish"))
    }

    /// The bytes of the stream, `end` included.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.records.iter().flat_map(Record::line).collect();
        bytes.extend_from_slice(b"end\n");
        bytes
    }

    /// The address, whether it is a holder's; None if there is no pid record.
    pub fn pid(&self) -> Option<(Option<Address>, bool)> {
        self.records.iter().find_map(|r| match r {
            Record::Pid(at, hold) => Some((*at, *hold)),
            Record::Extent(..) | Record::Failed | Record::Other(_) => None,
        })
    }

    /// The extents for `kind`, in order.
    pub fn extents(&self, kind: Kind) -> Vec<Extent> {
        self.records.iter().filter_map(|r| extent_of(r, kind)).collect()
    }

    /// Whether there is any extent that nobody has used yet.
    pub fn has_extents(&self) -> bool {
        Kind::BOTH.iter().any(|kind| !self.extents(*kind).is_empty())
    }

    /// The stream as a dry run writes it: `?` in place of an address.
    #[must_use]
    pub fn dry(mut self) -> Stream {
        for record in &mut self.records {
            if let Record::Pid(at, _) = record {
                *at = None;
            }
        }
        self
    }

    /// The stream without its extents: they have been used.
    #[must_use]
    pub fn consume_extents(mut self) -> Stream {
        self.records.retain(|r| Kind::BOTH.iter().all(|kind| extent_of(r, *kind).is_none()));
        self
    }
}

fn extent_of(record: &Record, wanted: Kind) -> Option<Extent> {
    match record {
        Record::Extent(kind, extent) if *kind == wanted => Some(*extent),
        Record::Extent(..) | Record::Pid(..) | Record::Failed | Record::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_are_bytes_out() {
        let text = b"pid 4242:1711 hold\n# a comment\nuid 0 1000 1\ngid 0 1000 1\nlater 1 \xff\n\nend\n";
        assert_eq!(Stream::parse(text).unwrap().bytes(), text);
        let dry = b"pid ? hold\nend\n";
        assert_eq!(Stream::parse(dry).unwrap().bytes(), dry);
        assert_eq!(Stream::parse(b"12:34\nend\n").unwrap().pid(), Some((Address::parse(b"12:34"), false)));
    }

    #[test]
    fn what_follows_end_is_not_read() {
        assert_eq!(Stream::parse(b"end\npid 0\n").unwrap(), Stream::default());
    }

    #[test]
    fn broken_streams() {
        let long = [b"x".repeat(MAX_LINE + 1), b"\nend\n".to_vec()].concat();
        for text in [
            &b""[..],
            b"end",
            b"pid 1\n",
            b"pid 0\nend\n",
            b"pid -1\nend\n",
            b"pid 1:0\nend\n",
            b"pid 1:\nend\n",
            b"pid 1 2\nend\n",
            b"pid 1\npid 2\nend\n",
            b"1\n2\nend\n",
            b"uid 0 0\nend\n",
            b"uid 0 0 0\nend\n",
            b"uid 0 4294967295 1\nend\n",
            b"gid 0 0x1 1\nend\n",
            b"a\0b\nend\n",
            b"end now\nend\n",
            b"12x\nend\n",
            b"pid 99999999999\nend\n",
            &long,
        ] {
            assert!(Stream::parse(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
        assert!(Stream::parse(b"failed uidmap-set\n").unwrap_err().is_silent());
    }
}

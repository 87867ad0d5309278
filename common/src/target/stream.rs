//! The stream on standard input: read once, and answered even by a stage that
//! fails.

use std::sync::OnceLock;

use crate::fail::{Errno, Failure, Result};
use crate::mind;
use crate::proc::Proc;
use crate::record::{MAX_STREAM, Record, Stream};
use crate::sys;
use crate::target::{Target, attach};

/// What `read_bytes` has read, for `farewell`: standard input can be read once.
static READ: OnceLock<Vec<u8>> = OnceLock::new();

/// Tells the holder that the stream names, if any, that this process has come
/// and gone: it then ends, though a filter in between (cat, tee) would keep its
/// pipe open for ever. For a stage that fails, whether it had read or not.
pub fn farewell() {
    if READ.get().is_none() && mind::is_pipe(0) == Ok(true) {
        let _ = read_bytes();
    }
    let lines = READ.get().into_iter().flat_map(|bytes| bytes.split(|b| *b == b'\n'));
    let holder = lines.filter_map(|line| Record::parse(line).ok()).find_map(|record| match record {
        Record::Pid(Some(at), true) => Some(at),
        Record::Pid(..) | Record::Extent(..) | Record::Failed | Record::Other(_) => None,
    });
    let target = holder.and_then(|at| Target::open(&Proc::open().ok()?, at).ok());
    if let Some(target) = target {
        let _ = attach(&target);
    }
}

/// Reads the stream on standard input up to `end`.
///
/// # Errors
/// It breaks off, is no stream, or an earlier stage failed.
pub fn read_stream() -> Result<Stream> {
    if nix::unistd::isatty(sys::lend(0)).unwrap_or(false) {
        return Err(Failure::usage("`-` reads records from a pipe, and standard input is a terminal"));
    }
    read_bytes()?;
    Stream::parse(READ.get().map_or(&[], Vec::as_slice))
}

fn read_bytes() -> Result<()> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    // Not to the end of file: the stages before us stay as long as we do.
    while !complete(&bytes) && bytes.len() <= MAX_STREAM {
        match nix::unistd::read(sys::lend(0), &mut piece) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Failure::os("read standard input", e)),
        }
    }
    let too_long = bytes.len() > MAX_STREAM;
    let _ = READ.set(bytes);
    if too_long {
        let text = format!("standard input is not a stream of records (no `end` within {MAX_STREAM} bytes)");
        return Err(Failure::refused(text));
    }
    Ok(())
}

fn complete(bytes: &[u8]) -> bool {
    let has = |line: &[u8]| bytes.starts_with(&line[1..]) || memchr::memmem::find(bytes, line).is_some();
    has(b"\nend\n") || has(b"\nfailed\n")
}

/// Whether standard output is something whose reader can be seen to leave.
///
/// # Errors
/// Those of fstat(2).
pub fn has_reader() -> std::result::Result<bool, Errno> {
    mind::is_pipe(1)
}

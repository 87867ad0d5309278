//! The only poll loop: whoever of nskit waits, waits here.
//!
//! * `holder` and `holder::stage` have their own loops, out of the same pieces.
//! * `program`: the parent of the program, which passes signals in and the exit
//!   status out so that the two look like one process.
//! * `child`: a child of ours that does one thing.
//!
//! It knows processes and descriptors, not what they are for.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::c_int;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Pid, read, write};

use crate::sys;

pub mod child;
pub mod program;

type Result<T> = std::result::Result<T, Errno>;

/// Writes a message to standard error in one write(2), so that the stages of
/// a pipeline do not interleave. Nobody can be told if that fails.
pub fn tell(text: &str) {
    let _ = write(sys::lend(2), text.as_bytes());
}

/// Writes all of `bytes` to standard output.
///
/// # Errors
/// Those of write(2); EPIPE: the reader has left.
pub fn say(bytes: &[u8]) -> Result<()> {
    say_to(1, bytes)
}

/// The same to descriptor `number`, known to be open.
///
/// # Errors
/// As `say`.
pub fn say_to(number: RawFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(sys::lend(number), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What stands for a standard descriptor that has nothing to do with the caller's. A
/// root may have no /dev: what cannot be read or written either will do.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn nothing() -> Result<OwnedFd> {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .or_else(|_| open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()))
}

/// Whether descriptor `number` is a pipe or a socket, whose other side can be
/// seen to leave.
///
/// # Errors
/// Those of fstat(2); a descriptor that is not open is none.
pub fn is_pipe(number: RawFd) -> Result<bool> {
    match fstat(sys::lend(number)) {
        Ok(stat) => {
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            Ok(kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK)
        }
        Err(Errno::EBADF) => Ok(false),
        Err(e) => Err(e),
    }
}

/// How wide the terminal at standard output is, in columns, if it is one.
pub fn terminal_width() -> Option<usize> {
    sys::columns(1).ok().map(|n| if n == 0 { 80 } else { usize::from(n) })
}

/// The signals that the parent of a program takes in its loop: all, so that none
/// can end it and leave the program behind. (A fault of our own ends us all the
/// same: signal(7).)
pub fn minded() -> SigSet {
    sys::every_signal()
}

/// The number of the signal that is called `word`: TERM, SIGTERM, 15, RTMIN+3.
pub fn signal_number(word: &str) -> Option<c_int> {
    let known = |name: &str| name.parse::<Signal>().ok().map(|signal| signal as c_int);
    let bare = word.strip_prefix("SIG").unwrap_or(word);
    let real = |rest: &str| match rest {
        "" => Some(0),
        more => more.strip_prefix('+').filter(|digits| !digits.starts_with('+'))?.parse::<u8>().ok(),
    };
    // As shells count: musl leaves 35 and above to programs, glibc 34.
    let number = match bare.strip_prefix("RTMIN") {
        Some(rest) => real(rest).map(|n| 34 + c_int::from(n)),
        None => bare.parse().ok().or_else(|| known(&format!("SIG{bare}"))),
    };
    number.filter(|n| (1..=64).contains(n))
}

/// Blocks the signals that `tend` and `hold` read in their loops. A program to
/// be executed gets the mask back that this one was started with.
///
/// # Errors
/// None in practice.
pub fn block_signals() -> Result<()> {
    // An inherited "ignore" would make the kernel reap our children itself.
    sys::default_signal(Signal::SIGCHLD as c_int);
    minded().thread_block()
}

/// Waits until one of `fds` (with the events asked for) is ready, for at most
/// `limit` milliseconds (none: for ever); answers which are.
///
/// # Errors
/// EINVAL: there are more than RLIMIT_NOFILE.
pub fn wait_for(fds: &[(BorrowedFd<'_>, PollFlags)], limit: Option<u16>) -> Result<Vec<bool>> {
    let mut set: Vec<PollFd<'_>> = fds.iter().map(|(fd, events)| PollFd::new(*fd, *events)).collect();
    loop {
        match poll(&mut set, limit.map_or(PollTimeout::NONE, PollTimeout::from)) {
            Ok(_) => return Ok(set.iter().map(|p| p.revents().is_none_or(|r| !r.is_empty())).collect()),
            Err(Errno::EINTR) => {}
            // The kernel's own memory, which comes back: no program is ended for that.
            Err(Errno::ENOMEM) => std::thread::sleep(MOMENT),
            Err(e) => return Err(e),
        }
    }
}

/// Whether `fd` becomes readable, or its other side leaves, within `limit`
/// milliseconds.
///
/// # Errors
/// Those of poll(2).
pub fn ready_within(fd: BorrowedFd<'_>, limit: u16) -> Result<bool> {
    Ok(wait_for(&[(fd, PollFlags::POLLIN)], Some(limit))?[0])
}

/// Waits until `fd` is ready for `what`, or for two seconds more than a signal that
/// is to end this process: that one. None of them is taken: signals are for whoever
/// minds the program, once there is one.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn told_to_end(fd: BorrowedFd<'_>, what: PollFlags) -> Result<Option<c_int>> {
    let within = |limit: u16| Ok(wait_for(&[(fd, what)], Some(limit))?[0]);
    if within(100)? {
        return Ok(None);
    }
    let (signals, stops) = (ending()?, waiting(not_ignored(&[Signal::SIGTSTP]))?);
    loop {
        let fds = [(fd, what), (signals.as_fd(), PollFlags::POLLIN), (stops.as_fd(), PollFlags::POLLIN)];
        let ready = wait_for(&fds, None)?;
        if ready[0] {
            return Ok(None);
        }
        if ready[1] {
            break;
        }
        // A child that has the key too is stopped by it before it is a program.
        if stops.read_signal()?.is_some() {
            stop_with_it()?;
        }
    }
    if within(PATIENCE)? {
        return Ok(None);
    }
    Ok(signals.read_signal()?.and_then(|info| c_int::try_from(info.ssi_signo).ok()))
}

/// Stops as the program has, or as a key would have it, which waits while signals
/// are blocked. On a terminal the shell must see its whole job stopped, by whatever
/// means; SIGCONT comes through the loop when it is continued. Without one nobody
/// would ever continue us: we go on waiting.
///
/// # Errors
/// None in practice.
pub fn stop_with_it() -> Result<()> {
    if is_job() { kill(Pid::from_raw(0), Signal::SIGSTOP) } else { Ok(()) }
}

/// Whether there is a terminal whose shell could continue us.
pub fn is_job() -> bool {
    open("/dev/tty", OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty()).is_ok()
}

/// The signals by which a user has this process end, without those that it was
/// told to ignore; blocked, they make this readable.
///
/// # Errors
/// Those of signalfd(2).
pub fn ending() -> Result<SignalFd> {
    waiting(not_ignored(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]))
}

/// Those of `signals` that wait, being blocked, make this readable.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn waiting(signals: SigSet) -> Result<SignalFd> {
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Without those that this process was told to ignore, which would wait as well.
pub fn not_ignored(signals: &[Signal]) -> SigSet {
    signals.iter().copied().filter(|signal| !sys::is_ignored(*signal as c_int)).collect()
}

/// How long a process may take to end once it has closed its files, and the kernel
/// to have memory again.
const MOMENT: Duration = Duration::from_millis(50);

/// How long a child that has not become a program yet may go on when it is over,
/// in milliseconds.
const PATIENCE: u16 = 2000;

/// Whether the other side of `fd` has gone.
///
/// # Errors
/// Those of poll(2).
pub fn has_hung_up(fd: impl AsFd) -> Result<bool> {
    let mut set = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    Ok(poll(&mut set, PollTimeout::ZERO)? > 0)
}

/// Two connected sockets that keep messages apart, close-on-exec.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message, and descriptors with it.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        rights,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )
    .map(drop)
}

/// Receives one message into `bytes`: its length (0: the other side has gone)
/// and the descriptors that came with it.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut iov = [IoSliceMut::new(bytes)];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            message => break message?,
        }
    };
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            fds.extend(raw.into_iter().map(sys::own));
        }
    }
    Ok((message.bytes, fds))
}

/// The next byte that comes from the other side of `fd`; None: it has gone.
///
/// # Errors
/// Those of read(2).
pub fn heard(fd: BorrowedFd<'_>) -> Result<Option<u8>> {
    let mut byte = [0; 1];
    loop {
        match read(fd, &mut byte) {
            Err(Errno::EINTR) => {}
            n => return Ok((n? == 1).then_some(byte[0])),
        }
    }
}

// ---- a stage of a pipeline ----

/// Dies of signal `number`, as the program did, after the reader of standard output
/// where that is a key's: a script goes on or not by how the last of its pipeline
/// ended, and bash takes for that whoever it reaps last. The stages in the middle
/// do not know how the program died. Who does not mind the key is not waited for
/// longer than two seconds; and who has left its pipe has ended a moment later,
/// which nothing tells.
pub fn die_last(number: c_int, mask: &SigSet) {
    if KEYS.iter().any(|key| *key as c_int == number) {
        let _ = wait_for(&[(sys::lend(1), PollFlags::empty())], Some(PATIENCE));
        std::thread::sleep(MOMENT);
    }
    die_of(number, mask);
}

/// Closes standard input: the stages before us live as long as we read it, and
/// may come to their ends while we come to ours.
pub fn leave() {
    let _ = nix::unistd::close(0);
}

/// The keys that are for the program at the end of the pipeline, which may catch
/// them: they do not end us.
const KEYS: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

/// Lets them wait.
///
/// # Errors
/// None in practice.
pub fn be_patient(mask: &SigSet) -> Result<()> {
    patient(mask).thread_set_mask()
}

/// A mask with which they wait.
pub fn patient(mask: &SigSet) -> SigSet {
    KEYS.into_iter().fold(*mask, |mask, key| mask | key)
}

/// The one that waits, if any; then it does no more.
pub fn key() -> Option<c_int> {
    let info = waiting(not_ignored(&KEYS)).and_then(|keys| keys.read_signal()).ok()??;
    c_int::try_from(info.ssi_signo).ok()
}

/// All that comes through `pipe`, if its other side has gone by `until`.
///
/// # Errors
/// Those of read(2); ETIMEDOUT: it is there still.
pub fn read_until(pipe: BorrowedFd<'_>, until: Instant) -> Result<Vec<u8>> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = left(until);
        if left == 0 || !ready_within(pipe, left)? {
            return Err(Errno::ETIMEDOUT);
        }
        match read(pipe, &mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The milliseconds until then, as far as they can be counted.
pub fn left(until: Instant) -> u16 {
    u16::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u16::MAX)
}

/// Dies of signal `number`, as the program did, so that the shell sees it;
/// answers 128+N where that cannot be (a first process does not die of its own).
pub fn die_of(number: c_int, mask: &SigSet) -> u8 {
    // The core, if any, has been dumped by the program.
    let _ = nix::sys::prctl::set_dumpable(false);
    sys::default_signal(number);
    let mut open = *mask;
    match Signal::try_from(number) {
        Ok(signal) => open.remove(signal),
        Err(_) => open = SigSet::empty(),
    }
    let _ = open.thread_set_mask();
    sys::raise(number);
    u8::try_from(128 + number).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name() {
        let words = [
            "TERM",
            "SIGTERM",
            "15",
            "SIGRTMIN+3",
            "RTMIN",
            "64",
            "65",
            "0",
            "-1",
            "sigterm",
            "RTMIN+31",
            "",
            "RTMIN+-3",
            "RTMIN++3",
            "RTMIN+2147483647",
        ];
        let numbers = words.map(signal_number);
        let some = [Some(15), Some(15), Some(15), Some(37), Some(34), Some(64)];
        assert_eq!((&numbers[..6], &numbers[6..]), (&some[..], &[None; 9][..]));
    }
}

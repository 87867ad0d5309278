//! The only poll loop: whoever of nskit waits, waits here.
//!
//! * `holder` has its own loop, out of the same pieces.
//! * `linger`: a stage that has done its work and stays as long as its reader.
//! * `program`: the parent of the program, which passes signals in and the exit
//!   status out so that the two look like one process.
//!
//! It knows processes and descriptors, not what they are for.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::c_int;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{getpid, getppid, pipe2, read, write};

use crate::proc::Proc;
use crate::sys;

pub mod program;

type Result<T> = std::result::Result<T, Errno>;

/// A child process of this one.
pub struct Child {
    /// Its number in our pid namespace.
    pub pid: i32,
    /// And its descriptor.
    pub fd: OwnedFd,
}

impl Child {
    /// The name of its directory in `proc`, which may be the proc of an outer
    /// pid namespace: there it has another number.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn who(&self, proc: &Proc) -> Result<String> {
        Ok(proc.number_of(self.fd.as_fd())?.unwrap_or(self.pid).to_string())
    }
}

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
pub fn told_to_end(fd: BorrowedFd<'_>, what: PollFlags, proc: &Proc) -> Result<Option<c_int>> {
    let within = |limit: u16| Ok(wait_for(&[(fd, what)], Some(limit))?[0]);
    if within(100)? {
        return Ok(None);
    }
    let signals = ending(proc)?;
    if wait_for(&[(fd, what), (signals.as_fd(), PollFlags::POLLIN)], None)?[0] || within(PATIENCE)? {
        return Ok(None);
    }
    Ok(signals.read_signal()?.and_then(|info| c_int::try_from(info.ssi_signo).ok()))
}

/// The signals by which a user has this process end, without those that it was
/// told to ignore; blocked, they make this readable.
///
/// # Errors
/// Those of signalfd(2).
pub fn ending(proc: &Proc) -> Result<SignalFd> {
    let ignored = proc.own().ignored;
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    let ends: SigSet = ends.into_iter().filter(|signal| ignored >> (*signal as c_int - 1) & 1 == 0).collect();
    SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
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

/// Stays until the reader of standard output has gone, or `other` has (the
/// holder, its pidfd).
///
/// # Errors
/// Those of poll(2).
pub fn linger(mask: &SigSet, other: Option<BorrowedFd<'_>>) -> Result<()> {
    be_patient(mask)?;
    // No event asked for: POLLERR and POLLHUP come all the same.
    let mut fds = vec![(sys::lend(1), PollFlags::empty())];
    fds.extend(other.map(|fd| (fd, PollFlags::POLLIN)));
    wait_for(&fds, None)?;
    // The first stage dies after us, then: `die_last`.
    if key().is_none() {
        leave();
    }
    Ok(())
}

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
    KEYS.into_iter().fold(*mask, |mask, key| mask | key).thread_set_mask()
}

/// The one that waits, if any; then it does no more.
pub fn key() -> Option<c_int> {
    let keys: SigSet = KEYS.into_iter().collect();
    let waiting = SignalFd::with_flags(&keys, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    let info = waiting.and_then(|waiting| waiting.read_signal()).ok()??;
    c_int::try_from(info.ssi_signo).ok()
}

/// Sends a signal to a child: whatever a kernel lacks or a filter refuses, none
/// of ours may be waited for that has not been told to end. Until it is reaped
/// its number is its own.
///
/// # Errors
/// Those of kill(2).
pub fn signal(child: &Child, number: c_int) -> Result<()> {
    match sys::pidfd_signal(child.fd.as_fd(), number) {
        Err(e) if e != Errno::ESRCH => sys::signal_child(child.pid, number),
        other => other,
    }
}

/// Ends a child and waits until nothing of it is left: with a pid namespace
/// the kernel reports its first process only after all others have gone.
pub fn end(child: &Child) {
    let _ = signal(child, Signal::SIGKILL as c_int);
    let _ = reap(child);
}

/// Waits for a child that is about to end by itself; answers its exit status,
/// None if a signal ended it.
pub fn reap(child: &Child) -> Option<i32> {
    loop {
        match waitid(Id::PIDFd(child.fd.as_fd()), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, status)) => return Some(status),
            Ok(_) | Err(_) => return None,
        }
    }
}

/// A child that does nothing for as long as this process lives.
///
/// # Errors
/// Those of fork(2).
pub fn stay_behind() -> Result<Child> {
    let parent = getpid();
    match sys::fork(0)? {
        sys::Fork::Child => {
            let follows = sys::follow_parent(Signal::SIGKILL as c_int);
            // It may have gone before that.
            while follows.is_ok() && getppid() == parent {
                nix::unistd::pause();
            }
            sys::exit_now(1)
        }
        sys::Fork::Parent(pid, fd) => Ok(Child { pid, fd }),
    }
}

/// A child that does `what`, and the pipe that comes of it is written into. Its
/// exit status is the errno of what failed, or 0.
///
/// # Errors
/// Those of pipe(2) and fork(2).
pub fn ask_child(what: impl FnOnce() -> Result<Vec<u8>>) -> Result<(Child, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // An inherited "ignore" would make the kernel reap it itself.
    sys::default_signal(Signal::SIGCHLD as c_int);
    match sys::fork(0)? {
        sys::Fork::Child => {
            // All of it before the first byte: nobody may read for a while, and a
            // pipe is soon full.
            let said = what().and_then(|bytes| say_to(theirs.as_raw_fd(), &bytes));
            // All are below 134 (errno(3)).
            sys::exit_now(said.err().map_or(0, |errno| u8::try_from(errno as i32).unwrap_or(u8::MAX)))
        }
        sys::Fork::Parent(pid, fd) => Ok((Child { pid, fd }, ours)),
    }
}

/// What `what` answers, if it does within `limit` milliseconds. A child asks:
/// whoever waits for a file system that a process serves (fuse(4)) waits for
/// ever if that likes, and cannot even be killed.
///
/// # Errors
/// Those of `what`; ETIMEDOUT: it does not answer.
pub fn answer_within(limit: u16, what: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let until = Instant::now() + Duration::from_millis(limit.into());
    let (child, pipe) = ask_child(what)?;
    let bytes = read_until(pipe.as_fd(), until).inspect_err(|_| {
        let _ = signal(&child, Signal::SIGKILL as c_int);
    })?;
    match reap(&child) {
        Some(0) => Ok(bytes),
        Some(number) => Err(Errno::from_raw(number)),
        None => Err(Errno::EIO),
    }
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

/// How long something may take after whoever was told of it has left, or
/// after it was told to end.
pub const GRACE: Duration = Duration::from_secs(2);

/// Why waiting has ended.
pub enum Waited {
    /// What was waited for is there.
    Done,
    /// The child has ended.
    Gone,
    /// Nobody reads any more what was to be done.
    Unread,
    /// This signal has come.
    Signal(c_int),
}

/// Waits for something that the kernel announces by no event: asks `done`
/// again and again, at first every 2 and in the end every 50 milliseconds.
/// `reader`: the end of a pipe whose reader is the one who does it.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn wait_until(child: &Child, reader: Option<RawFd>, done: impl Fn() -> bool) -> Result<Waited> {
    let signals = SignalFd::with_flags(&minded(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut pause = 2;
    let mut unread: Option<Instant> = None;
    loop {
        if done() {
            return Ok(Waited::Done);
        }
        let mut fds = vec![(signals.as_fd(), PollFlags::POLLIN), (child.fd.as_fd(), PollFlags::POLLIN)];
        let watched = reader.filter(|_| unread.is_none());
        fds.extend(watched.map(|number| (sys::lend(number), PollFlags::empty())));
        let ready = wait_for(&fds, Some(pause))?;
        pause = (pause * 2).min(50);
        if ready[1] {
            return Ok(Waited::Gone);
        }
        while let Some(info) = signals.read_signal()? {
            let number = c_int::try_from(info.ssi_signo).unwrap_or(0);
            let fatal = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
            if fatal.iter().any(|signal| *signal as c_int == number) {
                return Ok(Waited::Signal(number));
            }
        }
        if ready.get(2) == Some(&true) {
            unread = Some(Instant::now());
        }
        // It may be done by whoever left, or by another whom he has told.
        if unread.is_some_and(|since| since.elapsed() > GRACE) && !done() {
            return Ok(Waited::Unread);
        }
    }
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

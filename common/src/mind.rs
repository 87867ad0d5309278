//! The only poll loop: whoever of nskit waits, waits here.
//!
//! * `holder` has its own loop, out of the same pieces.
//! * `linger`: a stage that has done its work and stays as long as its reader.
//! * `tend`: the parent of the program, which passes signals in and the exit
//!   status out so that the two look like one process.
//!
//! It knows processes and descriptors, not what they are for.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

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
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid, write};

use crate::proc::Proc;
use crate::sys;

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
    pub fn who(&self, proc: &Proc) -> String {
        proc.number_of(self.fd.as_fd()).unwrap_or(self.pid).to_string()
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
pub fn say(mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(sys::lend(1), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether descriptor `number` is a pipe or a socket, whose other side can be
/// seen to leave.
pub fn is_pipe(number: RawFd) -> bool {
    fstat(sys::lend(number)).is_ok_and(|s| {
        let kind = SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK
    })
}

/// How wide the terminal at standard output is, in columns, if it is one.
pub fn terminal_width() -> Option<usize> {
    sys::columns(1).ok().map(|n| if n == 0 { 80 } else { usize::from(n) })
}

/// The signals that the parent of a program takes in its loop.
const MINDED: [Signal; 13] = [
    Signal::SIGCHLD,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Those as a set.
pub fn minded() -> SigSet {
    MINDED.into_iter().collect()
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
/// Those of poll(2).
pub fn wait_for(fds: &[(BorrowedFd<'_>, PollFlags)], limit: Option<u16>) -> Result<Vec<bool>> {
    let mut set: Vec<PollFd<'_>> = fds.iter().map(|(fd, events)| PollFd::new(*fd, *events)).collect();
    loop {
        match poll(&mut set, limit.map_or(PollTimeout::NONE, PollTimeout::from)) {
            Ok(_) => return Ok(set.iter().map(|p| p.revents().is_none_or(|r| !r.is_empty())).collect()),
            Err(Errno::EINTR) => {}
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
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            fds.extend(raw.into_iter().map(sys::received));
        }
    }
    Ok((message.bytes, fds))
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
    wait_for(&fds, None).map(drop)
}

/// SIGINT and SIGQUIT are for the program at the end of the pipeline, which may
/// catch them: they do not end us.
///
/// # Errors
/// None in practice.
pub fn be_patient(mask: &SigSet) -> Result<()> {
    sys::ignore_signal(Signal::SIGINT as c_int);
    sys::ignore_signal(Signal::SIGQUIT as c_int);
    mask.thread_set_mask()
}

/// Ends a child and waits until nothing of it is left: with a pid namespace
/// the kernel reports its first process only after all others have gone.
pub fn end(child: &Child) {
    let _ = sys::pidfd_signal(child.fd.as_fd(), Signal::SIGKILL as c_int);
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

// ---- the parent of the program ----

/// How a program ended.
pub enum Ended {
    /// With this exit status.
    Status(u8),
    /// By this signal.
    Signal(Signal),
}

/// Minds the program `child` until it ends, and answers how. `holder` has to
/// outlive the program, else the program is killed. `first`: it is the first
/// process of a pid namespace.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn tend(child: &Child, holder: Option<BorrowedFd<'_>>, first: bool, proc: &Proc) -> Result<Ended> {
    let signals = SignalFd::with_flags(&minded(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut killed_for = None;
    let mut holder = holder;
    loop {
        let mut fds = vec![(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(holder.map(|fd| (fd, PollFlags::POLLIN)));
        let ready = wait_for(&fds, None)?;
        if ready.get(1) == Some(&true) {
            let _ = sys::pidfd_signal(child.fd.as_fd(), Signal::SIGKILL as c_int);
            holder = None;
        }
        while let Some(info) = signals.read_signal()? {
            let Ok(signal) = Signal::try_from(c_int::try_from(info.ssi_signo).unwrap_or(0)) else { continue };
            if signal != Signal::SIGCHLD {
                killed_for = pass_on(child, signal, info.ssi_code, first, proc).or(killed_for);
            }
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(child.fd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(Ended::Status(u8::try_from(status & 0xff).unwrap_or(1))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ended::Signal(killed_for.unwrap_or(signal))),
            Ok(WaitStatus::Stopped(..)) => stop_with_it()?,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The program has stopped. On a terminal the shell must see its whole job
/// stopped, by whatever means; SIGCONT comes through the loop when it is
/// continued. Without one nobody would ever continue us: we go on waiting.
fn stop_with_it() -> Result<()> {
    if open("/dev/tty", OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty()).is_err() {
        return Ok(());
    }
    kill(Pid::from_raw(0), Signal::SIGSTOP)
}

/// Hands a signal to the program, unless the terminal has already done so: it
/// signals the whole foreground group. The kernel drops for a first process
/// what it neither catches nor ignores (pid_namespaces(7)), so it gets
/// SIGKILL in place of that; answers the signal that was meant then.
fn pass_on(child: &Child, signal: Signal, code: i32, first: bool, proc: &Proc) -> Option<Signal> {
    const SI_KERNEL: i32 = 0x80;
    // That it has ended meanwhile is what the loop will see next.
    let send = |signal: Signal| sys::pidfd_signal(child.fd.as_fd(), signal as c_int).unwrap_or_default();
    let stops = matches!(signal, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU);
    let harmless = matches!(signal, Signal::SIGCONT | Signal::SIGWINCH);
    if first && !harmless {
        let handled = proc.status(&child.who(proc)).map_or(0, |s| s.handled);
        if handled >> (signal as c_int - 1) & 1 == 0 {
            send(if stops { Signal::SIGSTOP } else { Signal::SIGKILL });
            return (!stops).then_some(signal);
        }
    }
    if code != SI_KERNEL {
        send(signal);
    }
    None
}

/// Dies of `signal`, as the program did, so that the shell sees it; answers
/// 128+N where that cannot be (a first process does not die of its own).
pub fn die_of(signal: Signal, mask: &SigSet) -> u8 {
    // The core, if any, has been dumped by the program.
    let _ = nix::sys::prctl::set_dumpable(false);
    sys::default_signal(signal as c_int);
    let mut open = *mask;
    open.remove(signal);
    let _ = open.thread_set_mask();
    let _ = kill(getpid(), signal);
    u8::try_from(128 + signal as c_int).unwrap_or(255)
}

//! The only poll loop: whoever of nskit waits, waits here.
//!
//! * `hold`: a holder, first process of its pid namespace if there is a new
//!   one. It reaps, and goes when the one it lives for has gone.
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
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{chdir, getpid, setsid, write};

use crate::proc::Proc;
use crate::sys;

type Result<T> = std::result::Result<T, Errno>;

/// A child process of this one.
pub struct Child {
    /// Its number here.
    pub pid: i32,
    /// And its descriptor.
    pub fd: OwnedFd,
}

/// Where a holder keeps its end for whoever wants to attach: pidfd_getfd(2)
/// needs a number that both sides know.
const DOOR: RawFd = 3;

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

fn minded() -> SigSet {
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
fn wait_for(fds: &[(BorrowedFd<'_>, PollFlags)], limit: Option<u16>) -> Result<Vec<bool>> {
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

/// Sends one message, and descriptors with it.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
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

/// How long nobody has to have attached before the user is told, in
/// milliseconds.
const PATIENCE: u16 = 2000;

/// Stays as `linger` does, over a holder that is this process's child, and then
/// ends it. Where nobody has attached after two seconds, nobody may ever:
/// `$(...)` and `| while read` wait for us to end, as we wait for them. Then
/// `note` is told, once.
///
/// # Errors
/// Those of poll(2).
pub fn linger_over(mask: &SigSet, child: &Child, life: &Life, note: &str) -> Result<()> {
    let over = wait_over(mask, child, life, note);
    end(child);
    over
}

fn wait_over(mask: &SigSet, child: &Child, life: &Life, note: &str) -> Result<()> {
    if let Some(parent) = &life.parent {
        be_patient(mask)?;
        let gone = [(sys::lend(1), PollFlags::empty()), (child.fd.as_fd(), PollFlags::POLLIN)];
        let fds = [gone[0], gone[1], (parent.as_fd(), PollFlags::POLLIN)];
        let ready = wait_for(&fds, Some(PATIENCE))?;
        if ready[0] || ready[1] {
            return Ok(());
        }
        if !ready[2] {
            tell(note);
        }
    }
    linger(mask, Some(child.fd.as_fd()))
}

/// SIGINT and SIGQUIT are for the program at the end of the pipeline, which may
/// catch them: they do not end us.
fn be_patient(mask: &SigSet) -> Result<()> {
    sys::ignore_signal(Signal::SIGINT as c_int);
    sys::ignore_signal(Signal::SIGQUIT as c_int);
    mask.thread_set_mask()
}

/// Ends a child and waits until nothing of it is left: with a pid namespace
/// the kernel reports its first process only after all others have gone.
pub fn end(child: &Child) {
    let _ = sys::pidfd_signal(child.fd.as_fd(), Signal::SIGKILL as c_int);
    reap(child);
}

/// Waits for a child that is about to end by itself.
pub fn reap(child: &Child) {
    while waitid(Id::PIDFd(child.fd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
}

// ---- a holder ----

/// What a holder lives for.
pub struct Life {
    /// Readable or hung up as soon as it is over: the other end of a socket,
    /// or a pidfd.
    until: OwnedFd,
    /// The two ends of the holder's door: its own, and that which enterers take.
    door: (OwnedFd, OwnedFd),
    /// What the parent keeps open as long as it lives, if it is for the parent.
    parent: Option<OwnedFd>,
}

impl Life {
    /// A holder that lives as long as this process, its parent.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn of_this_process() -> Result<Life> {
        let (parent, until) = pair()?;
        Ok(Life { until, door: pair()?, parent: Some(parent) })
    }

    /// A holder that lives as long as process `pid`.
    ///
    /// # Errors
    /// ESRCH: there is none.
    pub fn of(pid: i32) -> Result<Life> {
        Ok(Life { until: sys::pidfd_open(pid)?, door: pair()?, parent: None })
    }
}

/// Two connected sockets that keep messages apart, close-on-exec.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// How long a holder stays when the last one has left, in milliseconds: of two
/// enterers on one stream (tee(1)) one may be done before the other has begun.
const GRACE: u16 = 200;

/// Holds the namespaces of this process until its life is over or, once
/// somebody has attached, until the last of those has gone. Closes everything
/// else first, also what it was told to report on: that says it is ready.
pub fn hold(life: &Life) -> ! {
    let status = match keep(life) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    sys::exit_now(status)
}

fn keep(life: &Life) -> Result<()> {
    // Out of the terminal's reach: Ctrl-C and Ctrl-Z are for the program.
    let _ = setsid();
    // Nor does it keep a directory from being unmounted.
    chdir("/")?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    // First out of the way of the numbers that are about to be taken.
    let high = |fd: &OwnedFd| sys::dup_above(fd.as_raw_fd(), 16);
    let places = [high(&life.door.1)?, high(&life.door.0)?, high(&life.until)?];
    for number in 0..3 {
        sys::place(null.as_fd(), number)?;
    }
    for (number, fd) in (DOOR..).zip(&places) {
        sys::place(fd.as_fd(), number)?;
    }
    let (door, until) = (sys::lend(DOOR + 1), sys::lend(DOOR + 2));
    let signals = SignalFd::with_flags(&minded(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    sys::place(signals.as_fd(), DOOR + 3)?;
    sys::close_from(DOOR + 4)?;
    // `signals` was closed under its old number; its place is what is used.
    std::mem::forget(signals);
    let signals = sys::lend(DOOR + 3);
    let mut attached: Vec<OwnedFd> = Vec::new();
    // Unlimited until somebody has been attached and nobody is any more.
    let mut limit = None;
    loop {
        let mut fds = vec![(until, PollFlags::POLLIN), (door, PollFlags::POLLIN), (signals, PollFlags::POLLIN)];
        fds.extend(attached.iter().map(|fd| (fd.as_fd(), PollFlags::POLLIN)));
        let ready = wait_for(&fds, limit)?;
        if ready[0] || (ready[2] && ends_holder(signals)?) || (limit.is_some() && !ready[1] && !ready[2]) {
            return Ok(());
        }
        let had = !attached.is_empty();
        let mut gone = ready[3..].iter();
        attached.retain(|_| gone.next() != Some(&true));
        if ready[1] {
            match receive(door, &mut [0; 1]) {
                Ok((_, fds)) => attached.extend(fds),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
            // The parent, if we live for it, need not tell its user anything.
            let _ = write(until, b"+");
        }
        if had || limit.is_some() {
            limit = attached.is_empty().then_some(GRACE);
        }
    }
}

/// Reaps, and tells whether one of the signals at hand means to go.
fn ends_holder(signals: BorrowedFd<'_>) -> Result<bool> {
    let mut ends = false;
    while let Some(info) = read_signal(signals)? {
        match Signal::try_from(c_int::try_from(info.ssi_signo).unwrap_or(0)) {
            Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT) => ends = true,
            Ok(Signal::SIGCHLD) => {
                while let Ok(status) = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(ends)
}

fn read_signal(fd: BorrowedFd<'_>) -> Result<Option<siginfo>> {
    // nix reads only through a SignalFd that owns its descriptor; ours is
    // known by a number.
    let mut bytes = [0u8; size_of::<siginfo>()];
    match nix::unistd::read(fd, &mut bytes) {
        Ok(n) if n == bytes.len() => Ok(Some(sys::signal_info(&bytes))),
        Ok(_) | Err(Errno::EAGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Attaches this process to a holder: it then lives at least as long.
///
/// # Errors
/// ESRCH: the holder has gone; EPERM: it is another user's; ENOTSOCK, EBADF:
/// the process is no holder.
pub fn attach(holder: BorrowedFd<'_>) -> Result<()> {
    let door = sys::pidfd_getfd(holder, DOOR)?;
    let me = sys::pidfd_open(getpid().as_raw())?;
    send(door.as_fd(), b"+", &[me.as_fd()])
}

// ---- the parent of the program ----

/// Minds the program `child` until it ends, and answers its exit status; where
/// a signal ended it, so does the same signal this process. `holder` has to
/// outlive the program, else the program is killed. `first`: it is the first
/// process of a pid namespace.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn tend(mask: &SigSet, child: &Child, holder: Option<BorrowedFd<'_>>, first: bool, proc: &Proc) -> Result<u8> {
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
            Ok(WaitStatus::Exited(_, status)) => return Ok(u8::try_from(status & 0xff).unwrap_or(1)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(die_of(killed_for.unwrap_or(signal), mask)),
            // The shell must see its job stopped; SIGCONT comes through the
            // loop above when it is continued.
            Ok(WaitStatus::Stopped(..)) => kill(getpid(), Signal::SIGSTOP)?,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
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
        let handled = proc.status(&child.pid.to_string()).map_or(0, |s| s.handled);
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
fn die_of(signal: Signal, mask: &SigSet) -> u8 {
    // The core, if any, has been dumped by the program.
    let _ = nix::sys::prctl::set_dumpable(false);
    sys::default_signal(signal as c_int);
    let mut open = *mask;
    open.remove(signal);
    let _ = open.thread_set_mask();
    let _ = kill(getpid(), signal);
    u8::try_from(128 + signal as c_int).unwrap_or(255)
}

//! A pseudo-terminal between the program and ours: pty(7). The program never
//! has our terminal open, so nothing that it does there (TIOCSTI, modes, a
//! reader left behind) reaches the shell that we came from.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_int};
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcgetsid, tcsetattr,
};
use nix::unistd::{Gid, Pid, Uid, fchown, getpgrp, isatty, read, tcgetpgrp, write};

use crate::mind::child::Child;
use crate::mind::program::{Ended, Manner, Minder, News, handles};
use crate::mind::{is_job, stop_with_it, told_to_end, wait_for};
use crate::proc::Proc;
use crate::sys;

type Result<T> = std::result::Result<T, Errno>;

/// Whether one of standard input, output and error is a terminal.
pub fn has_terminal() -> bool {
    (0..=2).any(is_terminal)
}

/// Whether this is our terminal and another group is in front of it: then it is that
/// one's to read from and to change.
fn is_behind(number: c_int) -> bool {
    tcgetpgrp(sys::lend(number)).is_ok_and(|front| front != getpgrp())
}

fn is_terminal(number: c_int) -> bool {
    isatty(sys::lend(number)).unwrap_or(false)
}

/// Opens a pseudo-terminal, and answers both sides: in the devpts of `root` if
/// it has one, so that it has a name there, else in ours. The program's side is
/// given to `owner`, if it can be.
///
/// # Errors
/// ENOSPC: there are no more; ENOENT: no devpts.
pub fn open(root: Option<&OwnedFd>, owner: Option<(u32, u32)>, proc: &Proc) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let theirs = root.and_then(|root| multiplexer(root, flags, proc));
    let master = match theirs {
        Some(master) => master,
        None => nix::fcntl::open("/dev/ptmx", flags, nix::sys::stat::Mode::empty())?,
    };
    sys::unlock_terminal(master.as_fd())?;
    let terminal = sys::peer_terminal(master.as_fd())?;
    if let Some((uid, gid)) = owner {
        let _ = fchown(&terminal, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    }
    Ok((master, terminal))
}

/// The multiplexer of the devpts in a foreign root. What stands there is
/// proven to be one before it is opened.
fn multiplexer(root: &OwnedFd, flags: OFlag, proc: &Proc) -> Option<OwnedFd> {
    const DEVPTS_SUPER_MAGIC: FsType = FsType(0x1cd1);
    let place = sys::open_in_root(root.as_fd(), c"/dev/pts/ptmx", libc::O_PATH | libc::O_NOFOLLOW, 0).ok()?;
    if fstatfs(&place).ok()?.filesystem_type() != DEVPTS_SUPER_MAGIC {
        return None;
    }
    let number = std::os::fd::AsRawFd::as_raw_fd(&place);
    proc.open_at(&format!("self/fd/{number}"), flags).ok()
}

/// Makes `terminal` the controlling one of a new session, and standard input,
/// output and error: all three, or those only that are a terminal now.
///
/// # Errors
/// EPERM: this process leads a group.
pub fn take(terminal: BorrowedFd<'_>, all: bool) -> Result<()> {
    let which: Vec<c_int> = (0..=2).filter(|n| all || is_terminal(*n)).collect();
    nix::unistd::setsid()?;
    sys::control_terminal(terminal)?;
    which.into_iter().try_for_each(|number| sys::place(terminal, number))
}

/// Our own terminal: as it was, and raw as long as the program is in front.
struct Own {
    number: c_int,
    before: Option<Termios>,
}

impl Own {
    fn find() -> Own {
        let number = (0..=2).find(|n| is_terminal(*n));
        Own { number: number.unwrap_or(0), before: None }
    }

    fn make_raw(&mut self, master: &OwnedFd) {
        let fd = sys::lend(self.number);
        if self.before.is_some() {
            return;
        }
        if let Ok(before) = tcgetattr(fd) {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(fd, SetArg::TCSADRAIN, &raw);
            self.before = Some(before);
            self.tell_size(master);
        }
    }

    fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            let _ = tcsetattr(sys::lend(self.number), SetArg::TCSADRAIN, &before);
        }
    }

    fn tell_size(&self, master: &OwnedFd) {
        let _ = sys::copy_window_size(sys::lend(self.number), master.as_fd());
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.restore();
    }
}

/// What goes one way and has not gone yet.
#[derive(Default)]
struct Flow {
    bytes: Vec<u8>,
    /// The last byte that has come.
    last: Option<u8>,
    ended: bool,
    /// Why no more can be written: what comes is thrown away.
    failed: Option<Errno>,
}

impl Flow {
    const MOST: usize = 16384;
    /// More than that and what a pseudo-terminal has in it: 8 KiB and a piece of
    /// what was written, and 4 KiB that can be read (drivers/tty).
    const HELD: usize = 4 * Flow::MOST;

    fn has_room(&self) -> bool {
        !self.ended && self.bytes.len() < Flow::MOST
    }

    /// Reads once.
    fn fill(&mut self, from: BorrowedFd<'_>) {
        let mut piece = [0; 4096];
        match read(from, &mut piece) {
            Ok(0) => self.ended = true,
            Ok(n) => {
                self.bytes.extend_from_slice(&piece[..n]);
                self.last = piece[..n].last().copied();
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.ended = true,
        }
    }

    /// Passes on what is still in there: what a program wrote last. Who else writes
    /// is not waited for. Answers the signal that ends us where nobody reads it.
    fn empty(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Option<c_int>> {
        let mut before = None;
        while before != Some(self.bytes.len()) && self.bytes.len() < Flow::HELD {
            before = Some(self.bytes.len());
            self.fill(from);
        }
        while !self.bytes.is_empty() {
            if let Some(signal) = told_to_end(to, PollFlags::POLLOUT)? {
                return Ok(Some(signal));
            }
            self.drain(to);
        }
        Ok(None)
    }

    /// Writes once, and no more than a pipe takes that has room.
    fn drain(&mut self, to: BorrowedFd<'_>) {
        let piece = self.bytes.len().min(libc::PIPE_BUF);
        match write(to, self.bytes.get(..piece).unwrap_or_default()) {
            Ok(n) => drop(self.bytes.drain(..n)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => {
                self.bytes.clear();
                self.failed = Some(e);
            }
        }
    }
}

/// How often, in milliseconds, to look whether we are in front again: a shell need not
/// send SIGCONT to a job that runs.
const AGAIN: u16 = 200;

/// Minds the program `child` until it ends, as `mind::program::tend` does, and
/// passes on what is typed and what it writes: with `all` even if standard input
/// is no terminal, else that is the program's own.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn proxy(child: &Child, manner: &Manner<'_>, master: &OwnedFd, all: bool, proc: &Proc) -> Result<Ended> {
    let mut minder = Minder::new(child, manner, proc)?;
    // Ours alone: the program has another description of its side.
    fcntl(master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut own = Own::find();
    own.tell_size(master);
    let output = sys::lend((1..=2).find(|n| all || is_terminal(*n)).unwrap_or(1));
    let mut typed = Flow { ended: !all && !is_terminal(0), ..Flow::default() };
    let mut written = Flow::default();
    loop {
        let behind = is_behind(own.number);
        if !behind {
            own.make_raw(master);
        }
        let types = typed.has_room() && !is_behind(0);
        let wants = |yes: bool, what: PollFlags| if yes { what } else { PollFlags::empty() };
        let both = wants(written.has_room(), PollFlags::POLLIN) | wants(!typed.bytes.is_empty(), PollFlags::POLLOUT);
        let mut fds = minder.awaited();
        let nobody = fds.first().map_or(output, |(signals, _)| *signals);
        // Who is not asked is left out: a hang-up would come all the same.
        let ours = [
            (if both.is_empty() { nobody } else { master.as_fd() }, both),
            (if types { sys::lend(0) } else { nobody }, PollFlags::POLLIN),
            (if written.bytes.is_empty() { nobody } else { output }, PollFlags::POLLOUT),
        ];
        let first = fds.len();
        fds.extend(ours);
        let ready = wait_for(&fds, behind.then_some(AGAIN))?;
        let is_ready = |n: usize| ready.get(first + n) == Some(&true);
        if types && is_ready(1) {
            take_keys(&mut typed, &mut minder, manner.first, master, proc);
        }
        if !typed.bytes.is_empty() {
            typed.drain(master.as_fd());
        }
        if written.has_room() && is_ready(0) {
            written.fill(master.as_fd());
        }
        if !written.bytes.is_empty() && is_ready(2) {
            let before = written.failed;
            written.drain(output);
            // As if the terminal had gone.
            if before.is_none() && written.failed.is_some() {
                minder.hand(Signal::SIGHUP as c_int, false);
            }
        }
        while let Some(news) = minder.turn()? {
            match news {
                News::Signal(number, _) => pass_on(number, &mut minder, master, &mut own),
                News::Stopped(_) => {
                    own.restore();
                    stop_with_it()?;
                }
                News::Ended(ended) => {
                    let told = written.empty(master.as_fd(), output)?;
                    return match written.failed {
                        Some(Errno::EPIPE) => Ok(Ended::Signal(Signal::SIGPIPE as c_int)),
                        Some(e) => Err(e),
                        None => Ok(told.map_or(ended, Ended::Signal)),
                    };
                }
            }
        }
    }
}

/// Who leads the session of the pseudo-terminal, with his number in `proc`.
fn leader(master: &OwnedFd, proc: &Proc) -> Option<(Pid, String)> {
    let pid = tcgetsid(master).ok()?;
    let number = proc.number_of(sys::pidfd_open(pid.as_raw()).ok()?.as_fd()).ok()?;
    Some((pid, number.unwrap_or(pid.as_raw()).to_string()))
}

/// Reads what has been typed, and does what the kernel would not.
fn take_keys(typed: &mut Flow, minder: &mut Minder<'_>, first: bool, master: &OwnedFd, proc: &Proc) {
    let before = typed.bytes.len();
    typed.fill(sys::lend(0));
    // From behind a read fails (EIO, as SIGTTIN is blocked).
    typed.ended &= !is_behind(0);
    if typed.ended {
        typed.bytes.push(END_OF_FILE);
        // In the middle of a line the first ends only that: termios(3), VEOF.
        if typed.last.is_some_and(|last| last != b'\n') && modes(master, LocalFlags::ICANON).is_some() {
            typed.bytes.push(END_OF_FILE);
        }
    }
    let Some(modes) = modes(master, LocalFlags::ISIG) else { return };
    for key in typed.bytes.split_off(before) {
        match dropped(key, &modes, first, master, proc) {
            Some((Signal::SIGTSTP, leader)) if is_job() => {
                let _ = kill(Pid::from_raw(-leader.as_raw()), Signal::SIGSTOP);
            }
            // Nobody could continue it from here either.
            Some((Signal::SIGTSTP, _)) => {}
            Some((signal, _)) => minder.hand(signal as c_int, true),
            None => typed.bytes.push(key),
        }
    }
}

/// What ends the input of a program that reads lines, by default.
const END_OF_FILE: u8 = 4;

/// The modes of the program's terminal, if `one` is among them.
fn modes(master: &OwnedFd, one: LocalFlags) -> Option<Termios> {
    tcgetattr(master).ok().filter(|modes| modes.local_flags.contains(one))
}

/// The signal that a key means, and whom, where the kernel will drop it: the stop
/// of the first program of a session, since nobody in the session could continue
/// it (but we can); and what the first process of a pid namespace does not handle.
fn dropped(key: u8, modes: &Termios, first: bool, master: &OwnedFd, proc: &Proc) -> Option<(Signal, Pid)> {
    use SpecialCharacterIndices::{VINTR, VQUIT, VSUSP};
    let keys = [(VSUSP, Signal::SIGTSTP), (VINTR, Signal::SIGINT), (VQUIT, Signal::SIGQUIT)];
    let keys = &keys[..if first { 3 } else { 1 }];
    let (_, signal) = keys.iter().find(|(which, _)| modes.control_chars.get(*which as usize) == Some(&key))?;
    let (leader, who) = leader(master, proc).filter(|(leader, _)| tcgetpgrp(master) == Ok(*leader))?;
    (!handles(proc, &who, *signal as c_int)).then_some((*signal, leader))
}

fn pass_on(number: c_int, minder: &mut Minder<'_>, master: &OwnedFd, own: &mut Own) {
    let is = |signal: Signal| signal as c_int == number;
    let group = |signal: Signal| {
        let leader = tcgetsid(master).map(|leader| Pid::from_raw(-leader.as_raw()));
        let _ = leader.and_then(|group| kill(group, signal));
    };
    if is(Signal::SIGWINCH) {
        own.tell_size(master);
    } else if is(Signal::SIGCONT) {
        group(Signal::SIGCONT);
    } else if is(Signal::SIGTSTP) {
        group(Signal::SIGSTOP);
    } else if !is(Signal::SIGTTIN) && !is(Signal::SIGTTOU) {
        // Those two are for who uses our own terminal.
        minder.hand(number, false);
    }
}

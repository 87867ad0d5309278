//! The parent of a program: signals go in, the exit status comes out, and the
//! two look like one process.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::c_int;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{getpid, getsid};

use super::child::{Child, signal};
use super::{heard, minded, ready_within, send, stop_with_it, wait_for, waiting};
use crate::front::Front;
use crate::proc::Proc;
use crate::ready::Ready;
use crate::sys;

type Result<T> = std::result::Result<T, Errno>;

/// How a program ended.
pub enum Ended {
    /// With this exit status.
    Status(u8),
    /// By this signal.
    Signal(c_int),
}

/// How a program is minded.
pub struct Manner<'a> {
    /// Who has to outlive the program, else it is killed.
    pub holder: Option<BorrowedFd<'a>>,
    /// Whether it is the first process of a pid namespace.
    pub first: bool,
    /// What it gets in place of SIGTERM.
    pub stop: Option<c_int>,
    /// Where the init that the child is tells what its program does.
    pub init: Option<BorrowedFd<'a>>,
    /// Who waits for the program to be ready.
    pub ready: Option<Ready<'a>>,
    /// The terminal, if the program's group is in front of it.
    pub front: Option<&'a Front>,
}

/// Whether the kernel has sent a signal to a whole process group: for a key, or a
/// terminal that has gone or come. By itself it sends others: a timer's to us alone.
fn is_terminals(number: c_int, code: i32) -> bool {
    const SI_KERNEL: i32 = 0x80;
    const ALL: [Signal; 8] = [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        Signal::SIGCONT,
        Signal::SIGWINCH,
    ];
    code == SI_KERNEL && ALL.iter().any(|signal| *signal as c_int == number)
}

/// What comes to any stage of a pipeline and is for the program.
pub const FOR_ALL: [Signal; 2] = [Signal::SIGTERM, Signal::SIGHUP];

/// The si_code of a signal that a holder passes on.
pub const PASSED_ON: c_int = -36;

/// Within which time a signal that comes by two ways is one.
const AT_ONCE: Duration = Duration::from_millis(250);

/// What an init says on its line: its program has stopped; any other byte is
/// the signal that it died of.
const STOPPED: u8 = 0;

/// Minds the program `child` until it ends, and answers how.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn tend(child: &Child, manner: &Manner<'_>, proc: &Proc) -> Result<Ended> {
    let mut minder = Minder::new(child, manner, proc)?;
    manner.front.iter().for_each(|front| front.join(child));
    let ended = 'ended: loop {
        wait_for(&minder.awaited(), None)?;
        while let Some(news) = minder.turn()? {
            match news {
                News::Ended(ended) => break 'ended ended,
                News::Signal(number, terminals) => minder.hand_on(number, terminals),
                News::Stopped(number) => match manner.front {
                    Some(front) if !front.stops(child, number, proc) => {}
                    Some(_) | None => stop_with_it()?,
                },
            }
        }
    };
    // Whoever comes next, a shell or a script, finds itself in front.
    manner.front.iter().for_each(|front| front.leave());
    Ok(ended)
}

/// What may happen to a program, and to whoever minds it.
pub(crate) enum News {
    /// A signal has come that is for the program, and whether its terminal's group
    /// has got it.
    Signal(c_int, bool),
    /// The program has stopped, by this signal; 0 where only its init knows.
    Stopped(c_int),
    /// It has ended.
    Ended(Ended),
}

/// The loop, without its waiting: for `tend`, and for whoever has more to wait for.
pub(crate) struct Minder<'a> {
    child: &'a Child,
    manner: &'a Manner<'a>,
    proc: &'a Proc,
    signals: SignalFd,
    holder: Option<BorrowedFd<'a>>,
    init: Option<BorrowedFd<'a>>,
    /// The signal that was meant where SIGKILL was sent.
    killed_for: Option<c_int>,
    /// What the init said that its program died of.
    said: Option<c_int>,
    /// The last of each of `FOR_ALL`: whether by the holder, and when.
    last: [Option<(bool, Instant)>; 2],
}

impl<'a> Minder<'a> {
    pub(crate) fn new(child: &'a Child, manner: &'a Manner<'a>, proc: &'a Proc) -> Result<Minder<'a>> {
        let signals = waiting(minded())?;
        let (holder, init) = (manner.holder, manner.init);
        Ok(Minder { child, manner, proc, signals, holder, init, killed_for: None, said: None, last: [None; 2] })
    }

    /// What is to be waited for before the next turn.
    pub(crate) fn awaited(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let socket = self.manner.ready.as_ref().map(|ready| ready.socket);
        let others = [self.holder, self.init, socket].into_iter().flatten();
        [self.signals.as_fd()].into_iter().chain(others).map(|fd| (fd, PollFlags::POLLIN)).collect()
    }

    /// One piece of news, if there is any. What needs no answer is seen to.
    pub(crate) fn turn(&mut self) -> Result<Option<News>> {
        if let Some(waiting) = &self.manner.ready {
            // A word is not taken from somebody who may be another's child.
            let _ = self.child.who(self.proc).map(|who| waiting.hear(&who, self.proc));
        }
        let is_gone = |holder: BorrowedFd<'_>| ready_within(holder, 0) == Ok(true);
        if self.holder.is_some_and(is_gone) {
            self.holder = None;
            let _ = signal(self.child, Signal::SIGKILL as c_int);
        }
        while let Some(fd) = self.init.filter(|fd| ready_within(*fd, 0) == Ok(true)) {
            match heard(fd)? {
                None => self.init = None,
                Some(STOPPED) => return Ok(Some(News::Stopped(0))),
                Some(signal) => self.said = Some(c_int::from(signal)),
            }
        }
        while let Some(info) = self.signals.read_signal()? {
            let number = c_int::try_from(info.ssi_signo).unwrap_or(0);
            // One of our own making is not for the program: a child's, SIGPIPE.
            let is_ours = is_news(number, info.ssi_code) || info.ssi_pid == std::process::id();
            if !is_ours && !self.is_same(number, info.ssi_code == PASSED_ON) {
                return Ok(Some(News::Signal(number, is_terminals(number, info.ssi_code))));
            }
        }
        match sys::child_change(Some(self.child.fd.as_fd())) {
            Ok(Some((_, sys::Change::Exited(status)))) => {
                let status = u8::try_from(status & 0xff).unwrap_or(1);
                Ok(Some(News::Ended(self.said.map_or(Ended::Status(status), Ended::Signal))))
            }
            Ok(Some((_, sys::Change::Killed(signal)))) => Ok(Some(News::Ended(self.killed(signal)))),
            Ok(Some((_, sys::Change::Stopped(number)))) => Ok(Some(News::Stopped(number))),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether the program has had this one: what was sent to all stages comes to us,
    /// and by the holder once more from each of the others.
    fn is_same(&mut self, number: c_int, by_holder: bool) -> bool {
        let at = FOR_ALL.iter().position(|signal| *signal as c_int == number);
        let Some(last) = at.and_then(|at| self.last.get_mut(at)) else { return false };
        let same = last.is_some_and(|(was, then)| (by_holder || was) && then.elapsed() < AT_ONCE);
        if !same {
            *last = Some((by_holder, Instant::now()));
        }
        same
    }

    fn killed(&self, signal: c_int) -> Ended {
        let signal = self.killed_for.unwrap_or(signal);
        // The kernel's word for "stopped" and "restart": nobody has sent it.
        let reboot = self.killed_for.is_none() && (self.manner.first || self.manner.init.is_some());
        let word = [Signal::SIGINT, Signal::SIGHUP].iter().any(|word| *word as c_int == signal);
        if reboot && word { Ended::Status(128 + u8::try_from(signal).unwrap_or(0)) } else { Ended::Signal(signal) }
    }

    /// Hands a signal to the program, unless the terminal has already done so: it
    /// signals the whole foreground group.
    fn hand_on(&mut self, number: c_int, terminals: bool) {
        let is = |signals: &[Signal]| signals.iter().any(|signal| *signal as c_int == number);
        if let Some(front) = self.manner.front {
            if is(&[Signal::SIGCONT]) {
                return front.go_on(self.child);
            }
            if terminals && front.is_unheard() {
                front.go_on(self.child);
                return self.hand(number, false);
            }
            if terminals && is(&[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP]) {
                front.spread(number);
            }
        }
        // Who leads the session is told that the terminal has gone, in front or not.
        let alone = is(&[Signal::SIGHUP]) && getsid(None) == Ok(getpid());
        self.hand(number, terminals && !alone);
    }

    /// Hands a signal to the program, unless it `has` it. The kernel drops for a
    /// first process what it neither catches nor ignores nor blocks
    /// (pid_namespaces(7)), so it gets SIGKILL in place of that, or SIGSTOP.
    pub(crate) fn hand(&mut self, number: c_int, has: bool) {
        let is = |signals: &[Signal]| signals.iter().any(|signal| *signal as c_int == number);
        let number = if is(&[Signal::SIGTERM]) { self.manner.stop.unwrap_or(number) } else { number };
        let stops = is(&[Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU]);
        // The default action of these is none.
        let harmless = is(&[Signal::SIGCONT, Signal::SIGWINCH, Signal::SIGURG]);
        // That it has ended meanwhile is what the next turn will see.
        let send = |number: c_int| signal(self.child, number).unwrap_or_default();
        if self.manner.first && !harmless && !self.handles(number) {
            send(if stops { Signal::SIGSTOP as c_int } else { Signal::SIGKILL as c_int });
            self.killed_for = self.killed_for.or((!stops).then_some(number));
        } else if !has {
            send(number);
        }
    }

    fn handles(&self, number: c_int) -> bool {
        self.child.who(self.proc).is_ok_and(|who| handles(self.proc, &who, number))
    }
}

/// How often, and after how long each time, to look whether a signal is still blocked.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(10));

/// Whether the process that is called `who` in `proc` catches, ignores or blocks signal
/// `number`. What a first process blocks for a moment only, while it makes a child or
/// becomes a program, the kernel drops as soon as that is over.
pub(crate) fn handles(proc: &Proc, who: &str, number: c_int) -> bool {
    let has = |signals: u64| signals >> (number - 1) & 1 == 1;
    for _ in 0..LOOKS.0 {
        let Some(status) = proc.status(who) else { return false };
        if has(status.caught | status.ignored) {
            return true;
        }
        if !has(status.blocked) {
            return false;
        }
        std::thread::sleep(LOOKS.1);
    }
    true
}

/// Whether a signal is what the kernel says of a child; anybody may send SIGCHLD.
fn is_news(number: c_int, code: i32) -> bool {
    number == Signal::SIGCHLD as c_int && code > 0
}

/// Is the init of a pid namespace: reaps what is left to it, hands every signal
/// to `program`, says on `line` what becomes of that, and answers its exit
/// status once it has ended.
///
/// # Errors
/// Those of poll(2) and signalfd(2).
pub fn be_init(program: &Child, line: BorrowedFd<'_>) -> Result<u8> {
    let signals = SignalFd::with_flags(&minded(), SfdFlags::SFD_CLOEXEC)?;
    send(line, b"R", &[])?;
    loop {
        while let Some((pid, change)) = sys::child_change(None)? {
            let byte = match change {
                _ if pid != program.pid => continue,
                sys::Change::Exited(status) => return Ok(u8::try_from(status & 0xff).unwrap_or(1)),
                sys::Change::Killed(signal) => u8::try_from(signal).unwrap_or(0),
                sys::Change::Stopped(_) => STOPPED,
            };
            let _ = send(line, &[byte], &[]);
            if byte != STOPPED {
                return Ok(128 + byte);
            }
        }
        let info = match signals.read_signal() {
            Ok(Some(info)) => info,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
        };
        let number = c_int::try_from(info.ssi_signo).unwrap_or(0);
        // The terminal has signalled the program as well.
        if !is_news(number, info.ssi_code) && !is_terminals(number, info.ssi_code) {
            let _ = signal(program, number);
        }
    }
}

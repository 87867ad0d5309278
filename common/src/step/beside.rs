//! A helper outside, for as long as the namespaces live: pasta(1),
//! slirp4netns(1), ip-link(8).
//!
//! Helpers go into the background by leaving their parent. So this process
//! becomes the one to whom the orphans below it fall (PR_SET_CHILD_SUBREAPER of
//! prctl(2)): all its children are the helper's, and all of these end with it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use nix::fcntl::{OFlag, open};
use nix::libc::c_int;
use nix::poll::PollFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::Mode;
use nix::unistd::{getpid, pipe2, read, setsid};

use super::{Done, Hands, Step};
use crate::fail::{Because, Errno, Failure};
use crate::holder::door;
use crate::holder::stage::Parting;
use crate::id::number;
use crate::mind;
use crate::mind::child::{Child, GRACE};
use crate::proc::{CAP_NET_BIND_SERVICE, Proc};
use crate::sys::{self, Change};
use crate::target::{Target, pass_on};
use crate::word::{quote, quote_all};

/// An effect on what is below this process.
pub enum Effect {
    /// Let all orphans below this process fall to it.
    Adopt,
    /// In the helper: let the holder know that nobody enters before it is ready,
    /// and end it if its parent cannot.
    HoldBack(Rc<Target>),
    /// Make the pipe by which the helper says that it is ready.
    Pipe,
    /// In the helper: leave the terminal, and have nothing of the stream.
    Apart,
    /// In the helper: have the pipe as descriptor `READY`.
    TakePipe,
    /// Wait until the helper is ready.
    Await(Rc<Helper>),
    /// Let the holder end what it has put into the background, too.
    Entrust(Rc<Target>),
    /// Stay as long as the target, and as the reader of standard output in a
    /// pipeline; then end the helper.
    Stay(Rc<Helper>),
}

/// A helper, and whom it is for.
pub struct Helper {
    /// Its words.
    pub words: Vec<OsString>,
    /// Whether it writes to `READY` when it is ready; else it ends then.
    pub says: bool,
    /// The process whose namespaces it is for.
    pub target: Rc<Target>,
    /// In the middle of a pipeline: the stages before and after live by it.
    pub stage: bool,
    /// Whether the target is the holder of that.
    pub holds: bool,
    /// The name of this tool, for what it tells.
    pub tool: &'static str,
}

/// The descriptor of the helper's that it says by that it is ready.
pub const READY: i32 = 3;

const PIPE: &str = "pipe of the helper";
const PIPE_END: &str = "its end of the pipe of the helper";

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let naming = effect.clone();
        Step::new(move || naming.act(), effect.why(), move |hands| effect.perform(hands))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Adopt => "prctl PR_SET_CHILD_SUBREAPER 1".into(),
            Effect::HoldBack(target) => format!("entrust itself to holder {}, and come first", target.address),
            Effect::Pipe => "pipe".into(),
            Effect::Apart => "setsid, with /dev/null for standard input and standard error for output".into(),
            Effect::TakePipe => format!("dup the pipe to descriptor {READY}"),
            Effect::Await(helper) if helper.says => format!("wait until it writes to descriptor {READY}"),
            Effect::Await(_) => "wait until it has ended with status 0".into(),
            Effect::Entrust(target) => format!("entrust what is below us to holder {}", target.address),
            Effect::Stay(helper) => {
                let whom = if helper.stage { "the reader of standard output" } else { "the target" };
                format!("stay as long as {whom}, then end the helper")
            }
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Adopt => "a helper that goes into the background leaves its parent, and then is ours to end",
            Effect::HoldBack(_) => {
                "a kill of its parent would leave it behind; and where nobody enters, the holder's parent says so"
            }
            Effect::Pipe | Effect::TakePipe => "one that stays in the foreground says so when it is ready",
            Effect::Apart => "keys that are for the program at the end of the pipeline would signal it, too",
            Effect::Await(_) => "what it makes in the namespaces is there before a program is",
            Effect::Entrust(_) => "a kill of this process would leave those behind that have left their parent",
            Effect::Stay(_) => "a helper of this kind does not know when the namespaces are gone",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Adopt => {
                // By this alone what comes to us is ended: not without it.
                sys::pidfd_open(getpid().as_raw())?;
                Ok(nix::sys::prctl::set_child_subreaper(true)?)
            }
            // Whoever cannot say it does what can be done here.
            Effect::HoldBack(target) => {
                let report = hands.report.as_ref().ok_or(Errno::ECHILD)?;
                let _ = door::hold_back(target.fd.as_fd(), report.as_fd());
                Ok(())
            }
            Effect::Pipe => {
                let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
                hands.put(PIPE, ours);
                hands.put(PIPE_END, theirs);
                Ok(())
            }
            Effect::Apart => {
                let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
                sys::place(null.as_fd(), 0)?;
                sys::place(sys::lend(2), 1)?;
                setsid()?;
                Ok(())
            }
            Effect::TakePipe => {
                // Out of the way of that number, whichever they had.
                let high = |fd: BorrowedFd<'_>| sys::dup_above(fd.as_raw_fd(), READY + 1);
                hands.report = hands.report.as_ref().map(|fd| high(fd.as_fd())).transpose()?;
                let end = high(hands.get(PIPE_END)?)?;
                Ok(sys::place(end.as_fd(), READY)?)
            }
            Effect::Await(helper) => {
                let child = hands.child.take().ok_or(Errno::ECHILD)?;
                hands.made.retain(|(name, _)| *name != PIPE_END);
                let pipe = if helper.says { hands.made.pop().map(|(_, fd)| fd) } else { None };
                let begun = begin(helper, &child, pipe, &hands.mask);
                let tool = helper.tool;
                if !matches!(begun, Ok(Begun::Ready)) {
                    end(tool);
                }
                match begun? {
                    Begun::Ready => hands.undo.push(Box::new(move || end(tool))),
                    Begun::Failed(how) => return Err(helper.failure(&how).into()),
                    Begun::Unread => return Err(Failure::told_elsewhere().into()),
                    Begun::Signal(signal) => {
                        mind::die_of(signal, &hands.mask);
                        return Err(Failure::told_elsewhere().into());
                    }
                }
                Ok(())
            }
            Effect::Entrust(target) => {
                let _ = door::leave_to(target.fd.as_fd(), &children());
                Ok(())
            }
            Effect::Stay(helper) => {
                let over = stay(helper, &hands.mask);
                end(helper.tool);
                if let Some(signal) = over? {
                    hands.status = mind::die_of(signal, &hands.mask);
                }
                Ok(())
            }
        }
    }
}

// ---- from its start until it is ready ----

/// How the start of a helper went.
enum Begun {
    Ready,
    /// It has ended, or cannot become ready any more: how.
    Failed(String),
    /// Whoever was to enter has gone, and has told why.
    Unread,
    Signal(c_int),
}

const GONE: &str = "it was not ready before the target ended";

/// How long to wait for it in silence, in milliseconds.
const PATIENCE: u16 = 2000;

/// How long to wait for its end when it can no more say that it is ready.
const MUTE: u16 = 500;

fn begin(helper: &Helper, child: &Child, mut pipe: Option<OwnedFd>, mask: &SigSet) -> Result<Begun, Errno> {
    let watch = Watch::begin(mask)?;
    let mute = format!("it closed descriptor {READY}, and had written nothing");
    let (mut limit, mut ended) = (Some(PATIENCE), false);
    loop {
        let mut fds = helper.watched(&watch.signals);
        let at = fds.len();
        fds.extend(pipe.as_ref().map(|fd| (fd.as_fd(), PollFlags::POLLIN)));
        let ready = mind::wait_for(&fds, limit)?;
        while let Some((pid, change)) = next_end() {
            match change {
                _ if pid != child.pid => {}
                Change::Exited(0) if !helper.says => return Ok(Begun::Ready),
                Change::Exited(0) => ended = true,
                // A holder that goes takes it along, a moment before its own end.
                Change::Killed(signal)
                    if signal == Signal::SIGTERM as c_int
                        && mind::ready_within(helper.target.fd.as_fd(), PATIENCE)? =>
                {
                    return Ok(Begun::Failed(GONE.into()));
                }
                Change::Exited(_) | Change::Killed(_) | Change::Stopped(_) => return Ok(Begun::Failed(said(change))),
            }
        }
        if let Some(signal) = watch.fatal(false)? {
            return Ok(Begun::Signal(signal));
        }
        if ready[1] {
            return Ok(Begun::Failed(GONE.into()));
        }
        if ready[2..at].contains(&true) {
            return Ok(Begun::Unread);
        }
        if let Some(fd) = pipe.take_if(|_| ready[at..].contains(&true)) {
            if read(&fd, &mut [0; 1])? > 0 {
                return Ok(Begun::Ready);
            }
            // Whoever fails ends now, and his status says more.
            limit = Some(MUTE);
        }
        let over = !ready.contains(&true);
        if helper.says && pipe.is_none() && (ended || over) {
            return Ok(Begun::Failed(mute));
        }
        if over {
            limit = None;
            helper.tell_what_for();
        }
    }
}

impl Helper {
    /// What ends the wait for it or with it: signals, the target, the reader of
    /// standard output.
    fn watched<'a>(&'a self, signals: &'a SignalFd) -> Vec<(BorrowedFd<'a>, PollFlags)> {
        let mut fds = vec![(signals.as_fd(), PollFlags::POLLIN), (self.target.fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.stage.then(|| (sys::lend(1), PollFlags::empty())));
        fds
    }

    fn name(&self) -> String {
        quote(self.words.first().map_or(OsStr::new(""), |word| word))
    }

    fn tell_what_for(&self) {
        let name = self.name();
        let text = if self.says {
            format!("waiting for {name} to write to descriptor {READY}")
        } else {
            format!(
                "waiting for {name} to end, or to go into the background. One that does not says by %r when it is ready"
            )
        };
        mind::tell(&format!("{}: {text}\n", self.tool));
    }

    fn failure(&self, how: &str) -> Failure {
        let because = Proc::open().ok().and_then(|proc| self.target.ended().or_else(|| low_port(&self.words, &proc)));
        Failure::refused(format!("run {}: {how}", quote_all(&self.words))).because(because)
    }
}

fn said(change: Change) -> String {
    match change {
        Change::Exited(status) => format!("exit status {status}"),
        Change::Killed(signal) => format!("signal {signal}"),
        Change::Stopped(_) => "stopped".into(),
    }
}

// ---- until the namespaces are gone ----

/// Answers the signal that ended it, if one did.
fn stay(helper: &Helper, mask: &SigSet) -> Result<Option<c_int>, Errno> {
    let watch = Watch::begin(mask)?;
    let tell = |number| pass_on(&helper.target, number);
    let mut parting = Parting::by(&tell);
    loop {
        while let Some((_, change)) = next_end() {
            if change != Change::Exited(0) {
                mind::tell(&format!("{}: {} has ended: {}\n", helper.tool, helper.name(), said(change)));
            }
        }
        if !helper.stage && sys::child_change(None) == Err(Errno::ECHILD) {
            return Ok(None);
        }
        let ready = mind::wait_for(&helper.watched(&watch.signals), parting.left())?;
        while let Some(signal) = watch.fatal(helper.stage)? {
            if !helper.holds || !parting.pass_on(signal) {
                return Ok(Some(signal));
            }
        }
        if ready.get(2) == Some(&true) {
            return Ok(None);
        }
        if ready[1] || parting.is_over() {
            return Ok(parting.told);
        }
    }
}

/// The next process of the helper's that has ended.
fn next_end() -> Option<(i32, Change)> {
    loop {
        match sys::child_change(None) {
            Ok(Some((_, Change::Stopped(_)))) => {}
            Ok(found) => return found,
            Err(_) => return None,
        }
    }
}

/// The signals that are to end this process, but not before it has ended the
/// helper. One that stops it does: a shell waits for the whole job.
struct Watch {
    signals: SignalFd,
}

impl Watch {
    /// What our caller blocks waits on.
    fn begin(mask: &SigSet) -> Result<Watch, Errno> {
        let mut all = mind::minded();
        [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().for_each(|signal| all.remove(signal));
        all.thread_set_mask()?;
        mask.iter().for_each(|blocked| all.remove(blocked));
        all.add(Signal::SIGCHLD);
        Ok(Watch { signals: mind::waiting(all)? })
    }

    /// The next one. The keys of a terminal are for the program at the end of
    /// the pipeline, if there is one: `patient`.
    fn fatal(&self, patient: bool) -> Result<Option<c_int>, Errno> {
        const HARMLESS: [Signal; 5] =
            [Signal::SIGCHLD, Signal::SIGCONT, Signal::SIGWINCH, Signal::SIGURG, Signal::SIGPIPE];
        const KEYS: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];
        while let Some(info) = self.signals.read_signal()? {
            let number = c_int::try_from(info.ssi_signo).unwrap_or(0);
            let is = |among: &[Signal]| among.iter().any(|signal| *signal as c_int == number);
            if !(sys::is_ignored(number) || is(&HARMLESS) || patient && is(&KEYS)) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// Ends what is left of the helper, and waits until it is gone. What falls to
/// us when its parent goes has its turn in the next round.
fn end(tool: &str) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let until = Instant::now() + GRACE;
        loop {
            let children = children();
            if children.is_empty() {
                break;
            }
            for child in &children {
                let _ = sys::pidfd_signal(child.as_fd(), signal as c_int);
            }
            let fds: Vec<_> = children.iter().map(|child| (child.as_fd(), PollFlags::POLLIN)).collect();
            let gone = mind::wait_for(&fds, Some(mind::left(until))).unwrap_or_default();
            while next_end().is_some() {}
            if !gone.contains(&true) {
                break;
            }
        }
    }
    if sys::child_change(None) != Err(Errno::ECHILD) {
        mind::tell(&format!("{tool}: what is left of the helper does not let itself be ended\n"));
    }
}

/// Our children, by descriptor. A number is believed only if it is a child's:
/// it is not reaped while we look, so it is nobody else's.
fn children() -> Vec<OwnedFd> {
    let numbers = Proc::open().map(|proc| proc.children()).unwrap_or_default();
    let opened = numbers.into_iter().filter_map(|pid| sys::pidfd_open(pid).ok());
    opened.filter(|fd| sys::child_change(Some(fd.as_fd())).is_ok()).collect()
}

// ---- why not ----

/// The port that pasta(1) was told to forward and may not bind: without it, it
/// ends (conf_ports() in its conf.c), and does not say why.
fn low_port(words: &[OsString], proc: &Proc) -> Option<Because> {
    let name = std::path::Path::new(words.first()?).file_name()?.to_str()?;
    let first = proc.sysctl("net/ipv4/ip_unprivileged_port_start")?;
    if !["pasta", "passt"].contains(&name) || proc.own().can(CAP_NET_BIND_SERVICE) {
        return None;
    }
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let value = |pair: &&[&str]| match pair {
        ["-t" | "-u" | "--tcp-ports" | "--udp-ports", value] => Some((*value).to_owned()),
        _ => None,
    };
    let port = words.windows(2).filter_map(|pair| value(&pair)).find_map(|spec| low(&spec, first))?;
    let text = format!(
        "port {port} is below {first} (net.ipv4.ip_unprivileged_port_start), and we have no CAP_NET_BIND_SERVICE"
    );
    Some(Because::new(text).remedy(format!("sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}")))
}

/// The lowest of the ports `[ADDRESS/]PORT[-PORT][:TO],...`, if all are below
/// `first`.
fn low(spec: &str, first: u64) -> Option<u64> {
    let ports = spec.rsplit('/').next()?.split(',').map(|range| range.split(':').next().unwrap_or_default());
    let range = |range: &str| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some((number(from.as_bytes())?, number(to.as_bytes())?))
    };
    let ranges: Option<Vec<(u64, u64)>> = ports.map(range).collect();
    let ranges = ranges?;
    if ranges.iter().any(|(_, to)| *to >= first) {
        return None;
    }
    ranges.into_iter().map(|(from, _)| from).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_pasta() {
        let found = |spec| low(spec, 1024);
        assert_eq!(
            (found("80"), found("127.0.0.1%lo/443:8443,80-90"), found("1023")),
            (Some(80), Some(80), Some(1023))
        );
        // One that may be bound is enough.
        for other in ["80,8080", "80-1024", "none", "all", "auto", "~80", "", "8080:80"] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}

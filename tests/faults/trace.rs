//! Runs a command line below ptrace(2), and lets one system call fail.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use libc::c_long;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::calls::{errno_name, number};
use super::judge::processes;

/// A process of one of our tools: its command line, and for a child which one, as ` >0 >1`.
pub(super) type Process = String;

/// What happens at a call.
#[derive(Clone, Copy)]
pub(super) enum How {
    /// It fails.
    Errno(i32),
    /// It is not made: a signal arrives.
    Signal(i32),
}

/// One fault.
pub(super) struct Fault {
    pub(super) process: Process,
    pub(super) call: &'static str,
    /// Which of the calls of this name that the process makes, from 1 on. Others may come once more
    /// or less, depending on who is first.
    pub(super) nth: usize,
    pub(super) how: How,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Errno(errno) => errno_name(errno),
            How::Signal(signal) => Signal::try_from(signal).map_or("signal", Signal::as_str).to_owned(),
        };
        write!(f, "{how} at {} {} of `{}`", self.call, self.nth, self.process)
    }
}

/// What a run came to.
#[derive(Default)]
pub(super) struct Ran {
    /// The calls of each process.
    pub(super) calls: BTreeMap<Process, Vec<c_long>>,
    /// How each of them ended, for those that were still ours then: status, or 128 and the signal.
    pub(super) ends: BTreeMap<Process, i32>,
    pub(super) output: String,
    pub(super) errors: String,
    /// That of the shell.
    pub(super) status: i32,
    /// It did not end by itself.
    pub(super) hung: bool,
    /// A program that is no helper of ours had been started when the fault happened.
    pub(super) started: bool,
    /// The process that made the call, once the fault has happened.
    pub(super) happened: Option<Pid>,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}, output {:?}, errors {:?}", self.status, self.output, self.errors)
    }
}

struct Tracee {
    /// None before it has become one of our tools.
    process: Option<Process>,
    /// Its calls are looked at.
    watched: bool,
    /// It has stopped for the first time before its parent told of it, and waits for that.
    held: bool,
    children: usize,
    /// What the call under way is to return.
    fails_with: Option<i32>,
}

impl Tracee {
    /// Without a fault all calls of our tools are looked at; with one those of its process, up to it.
    fn new(process: Option<Process>, fault: Option<&Fault>, ran: &Ran) -> Tracee {
        let meant = |fault: &Fault| process.as_ref() == Some(&fault.process) && ran.happened.is_none();
        let watched = process.is_some() && fault.is_none_or(meant);
        Tracee { process, watched, held: false, children: 0, fails_with: None }
    }

    fn go(&self, pid: Pid) {
        self.go_with(pid, 0);
    }

    #[allow(unsafe_code)]
    fn go_with(&self, pid: Pid, signal: i32) {
        let how = if self.watched { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        // One that has been killed meanwhile does not go on, and is seen to be gone.
        // SAFETY: no memory is passed; nix knows no real-time signals.
        unsafe { libc::ptrace(how, pid.as_raw(), 0 as c_long, c_long::from(signal)) };
    }
}

pub(super) const TOOLS: [&str; 7] =
    ["subid-alloc", "ns-new", "uidmap-set", "ns-enter", "idmap-mount", "pivot-exec", "ns-show"];
/// What a tracee stops by at a call (PTRACE_O_TRACESYSGOOD).
const CALL: i32 = libc::SIGTRAP | 0x80;
/// More than any machine needs that has other things to do.
const PATIENCE: Duration = Duration::from_secs(40);

fn is_helper(pid: Pid) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    ["newuidmap", "newgidmap", "getent", "getsubids"].iter().any(|name| program.ends_with(name))
}

/// The name that a process goes by if it is one of our tools.
fn tool(pid: Pid) -> Option<Process> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.file_name()?.to_str()?;
    if !TOOLS.contains(&name) {
        return None;
    }
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ");
    Some(words.split(' ').map(nameless).collect::<Vec<_>>().join(" "))
}

/// A pid or an address is another one each time.
fn nameless(word: &str) -> &str {
    let is_number = |word: &str| word.parse::<u64>().is_ok();
    match word.split(':').collect::<Vec<_>>().as_slice() {
        [pid] if is_number(pid) => "N",
        [pid, inode] if is_number(pid) && is_number(inode) => "N:N",
        _ => word,
    }
}

// The tracer reaps: its wait is for all of them.
#[allow(clippy::zombie_processes)]
/// Runs `command` as `user`, with that fault if there is one.
pub(super) fn run(user: &str, command: &str, fault: Option<&Fault>) -> Ran {
    let there = processes();
    // It stops before it does anything, so that nothing is missed.
    let mut child = Command::new("setpriv")
        .args([
            "--reuid",
            user,
            "--regid",
            user,
            "--init-groups",
            "sh",
            "-c",
            "kill -STOP $$; exec sh -c \"$1\"",
            "sh",
            command,
        ])
        .env("HOME", if user == "root" { "/home/root".to_owned() } else { format!("/home/{user}") })
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let shell = Pid::from_raw(i32::try_from(child.id()).unwrap());
    waitpid(shell, Some(WaitPidFlag::WUNTRACED)).unwrap();
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(shell, options).unwrap();
    kill(shell, Signal::SIGCONT).unwrap();
    let readers = [
        child.stdout.take().map(|mut pipe| thread::spawn(move || read(&mut pipe))).unwrap(),
        child.stderr.take().map(|mut pipe| thread::spawn(move || read(&mut pipe))).unwrap(),
    ];
    let (over, is_over) = channel();
    let patience = thread::spawn(move || end_in_time(&is_over, &there));
    let mut ran = Ran::default();
    follow(shell, fault, &mut ran);
    let [output, errors] = readers.map(|reader| reader.join().unwrap());
    ran.output = output;
    ran.errors = errors;
    drop(over);
    ran.hung = patience.join().unwrap();
    ran
}

/// Ends what is not over after a time, all but those processes; answers whether that was needed.
fn end_in_time(is_over: &Receiver<()>, there: &BTreeMap<i32, String>) -> bool {
    let mut limit = PATIENCE;
    let waits = |limit| is_over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
    let mut hangs = false;
    while waits(limit) {
        hangs = true;
        for pid in processes().keys().filter(|pid| !there.contains_key(pid)) {
            // One that is gone already is gone.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        limit = Duration::from_millis(100);
    }
    hangs
}

fn read(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    // A reader that fails has what it has.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The next change of any of them. nix knows no real-time signals, of which a tracee may stop or die.
#[allow(unsafe_code)]
fn next_change() -> Result<(Pid, i32), Errno> {
    let mut status = 0;
    // SAFETY: the status is an integer of ours, which the call fills.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    Errno::result(pid).map(|pid| (Pid::from_raw(pid), status))
}

fn follow(shell: Pid, fault: Option<&Fault>, ran: &mut Ran) {
    let mut tracees = BTreeMap::from([(shell, Tracee::new(None, fault, ran))]);
    while !tracees.is_empty() {
        let (pid, status) = match next_change() {
            Ok(change) => change,
            Err(Errno::EINTR) => continue,
            Err(_) => break,
        };
        if libc::WIFEXITED(status) {
            gone(pid, libc::WEXITSTATUS(status), shell, &mut tracees, ran);
        } else if libc::WIFSIGNALED(status) {
            gone(pid, 128 + libc::WTERMSIG(status), shell, &mut tracees, ran);
        } else if libc::WIFSTOPPED(status) {
            // The event stands above the signal (ptrace(2)).
            match (status >> 16, libc::WSTOPSIG(status)) {
                (0, CALL) => {
                    let had_happened = ran.happened.is_some();
                    if let Some(tracee) = tracees.get_mut(&pid) {
                        at_call(pid, tracee, fault, ran);
                        if !had_happened && ran.happened.is_some() {
                            ran.started |= is_in_exec(&tracees);
                        }
                    }
                    if let Some(tracee) = tracees.get(&pid) {
                        tracee.go(pid);
                    }
                }
                (0, signal) => {
                    if let Some(tracee) = tracees.get(&pid) {
                        tracee.go_with(pid, signal);
                    }
                }
                (event, _) => at_event(pid, event, fault, &mut tracees, ran),
            }
        }
    }
}

/// Whether one of ours is another program already, which is told to us only after its files marked
/// close-on-exec have been closed: whoever waits for that may be the first to go on.
fn is_in_exec(tracees: &BTreeMap<Pid, Tracee>) -> bool {
    let has_exe = |pid: Pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    let mut ours = tracees.iter().filter(|(_, tracee)| tracee.process.is_some());
    ours.any(|(pid, _)| has_exe(*pid) && tool(*pid).is_none() && !is_helper(*pid))
}

fn gone(pid: Pid, code: i32, shell: Pid, tracees: &mut BTreeMap<Pid, Tracee>, ran: &mut Ran) {
    if pid == shell {
        ran.status = code;
    }
    if let Some(process) = tracees.remove(&pid).and_then(|tracee| tracee.process) {
        ran.ends.insert(process, code);
    }
}

/// At the beginning or the end of a call of one of ours.
fn at_call(pid: Pid, tracee: &mut Tracee, fault: Option<&Fault>, ran: &mut Ran) {
    let (Some(process), Ok(info)) = (&tracee.process, ptrace::syscall_info(pid)) else { return };
    let Ok(mut registers) = ptrace::getregs(pid) else { return };
    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
        let call = c_long::from_ne_bytes(registers.orig_rax.to_ne_bytes());
        let made = ran.calls.entry(process.clone()).or_default();
        made.push(call);
        let nth = made.iter().filter(|other| **other == call).count();
        let Some(fault) = fault.filter(|fault| number(fault.call) == call && fault.nth == nth) else { return };
        ran.happened = Some(pid);
        match fault.how {
            How::Errno(errno) => {
                // No call has this number.
                registers.orig_rax = u64::MAX;
                tracee.fails_with = Some(errno);
                let _ = ptrace::setregs(pid, registers);
            }
            How::Signal(signal) => {
                tracee.watched = false;
                let _ = kill(pid, Signal::try_from(signal).ok());
            }
        }
    } else if let Some(errno) = tracee.fails_with.take() {
        tracee.watched = false;
        registers.rax = u64::from_ne_bytes(i64::from(-errno).to_ne_bytes());
        let _ = ptrace::setregs(pid, registers);
    }
}

fn at_event(pid: Pid, event: i32, fault: Option<&Fault>, tracees: &mut BTreeMap<Pid, Tracee>, ran: &mut Ran) {
    match event {
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
            let Some(parent) = tracees.get_mut(&pid) else { return };
            let process = parent.process.as_ref().map(|name| format!("{name} >{}", parent.children));
            parent.children += 1;
            let child = ptrace::getevent(pid).ok().and_then(|n| i32::try_from(n).ok()).map(Pid::from_raw);
            parent.go(pid);
            let Some(child) = child else { return };
            let tracee = Tracee::new(process, fault, ran);
            if tracees.get(&child).is_some_and(|child| child.held) {
                tracee.go(child);
            }
            tracees.insert(child, tracee);
        }
        libc::PTRACE_EVENT_EXEC => {
            let was_ours = tracees.remove(&pid).is_some_and(|tracee| tracee.process.is_some());
            let process = tool(pid).map(|name| told_apart(name, ran));
            if was_ours && process.is_none() {
                ran.started |= ran.happened.is_none() && !is_helper(pid);
                let _ = ptrace::detach(pid, None);
                return;
            }
            let tracee = Tracee::new(process, fault, ran);
            tracee.go(pid);
            tracees.insert(pid, tracee);
        }
        // A new child, or a group-stop.
        _ => match tracees.get_mut(&pid) {
            Some(tracee) => tracee.go(pid),
            None => drop(tracees.insert(pid, Tracee { held: true, ..Tracee::new(None, fault, ran) })),
        },
    }
}

/// The same command line twice: told apart by the order of their exec.
fn told_apart(name: Process, ran: &mut Ran) -> Process {
    let again = ran.calls.keys().filter(|known| known.split(" #").next() == Some(&name)).count();
    let name = if again == 0 { name } else { format!("{name} #{again}") };
    ran.calls.insert(name.clone(), Vec::new());
    name
}

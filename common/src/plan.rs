//! A plan: a straight line of steps, printed or performed.
//!
//! A tool looks and decides first, then hands its whole plan over; what can be
//! printed is exactly what would be done. A plan may fork: the child performs
//! a plan of its own and, once it has crossed into other namespaces, can no
//! longer see why it was refused. So a refused child sends the step's number
//! and the errno up a socket and stops; its parent, still outside, reads the
//! facts, tells, and ends it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::fcntl::{OFlag, open};
use nix::libc::SIGKILL;
use nix::poll::PollFlags;
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;

use crate::cgroup::Cgroup;
use crate::fail::{Errno, Exit, Failure, Result};
use crate::feature;
use crate::mind;
use crate::mind::child::{self, Child};
use crate::ns::{Kind, flag_names, flags};
use crate::proc::Proc;
use crate::step::ns::refused;
use crate::step::{Done, Facts, Hands, Refusal, Step, searched};
use crate::sys;

/// What a tool has decided to do.
#[derive(Default)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Whether an earlier stage runs dry, so that this one does too.
    pub dry: bool,
}

impl Plan {
    /// Adds a step at the end.
    pub fn push(&mut self, step: impl Into<Step>) {
        self.steps.push(step.into());
    }

    /// The plan as text, a step a line, children indented; with `explain` the
    /// kernel rule stands under each.
    pub fn text(&self, explain: bool) -> String {
        let mut text = String::new();
        print(&self.steps, &mut text, 0, explain);
        text
    }

    /// What a dry run writes into the pipe in place of what would be written.
    pub fn dry_stream(&self) -> Vec<u8> {
        self.steps.iter().filter_map(|s| s.says.as_ref()).flat_map(|says| says()).collect()
    }

    /// Does everything, in order, and answers the exit status.
    ///
    /// # Errors
    /// The first step that was refused; no child is left, and what `undo` is
    /// told of is undone.
    pub fn perform(&self, hands: &mut Hands, proc: &Proc) -> Result<u8> {
        let Err((at, refusal)) = run(&self.steps, hands) else {
            return Ok(hands.died.map_or(hands.status, |signal| mind::die_of(signal, &hands.mask)));
        };
        let child = hands.child.as_ref().and_then(|c| c.who(proc).ok());
        let failure = failure(
            &self.steps,
            at,
            refusal,
            Seen { proc, who: "self", child: child.as_deref(), places: &own_places(), path: Some(searched()) },
        );
        if let Some(child) = hands.child.take() {
            child::end(&child);
        }
        hands.undo.drain(..).rev().for_each(|undo| undo());
        hands.died.map_or(Err(failure), |signal| Ok(mind::die_of(signal, &hands.mask)))
    }

    /// Performs a plan that leaves nothing here, since it forks at once, and
    /// answers its failure: how `ns-show --can` finds out what is possible.
    pub fn probe(&self, proc: &Proc) -> Option<Failure> {
        let mask = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty());
        let mut hands = Hands::new(mask);
        let outcome = self.perform(&mut hands, proc);
        if let Some(child) = hands.child.take() {
            child::end(&child);
        }
        let _ = mask.thread_set_mask();
        outcome.err()
    }
}

/// What `look` finds in the child that `plan` forks first and leaves waiting,
/// which then ends.
pub fn glance<T>(plan: &Plan, proc: &Proc, look: impl Fn(&str) -> Option<T>) -> Option<T> {
    let mask = SigSet::thread_get_mask().ok()?;
    let mut hands = Hands::new(mask);
    let done = plan.perform(&mut hands, proc);
    let child = hands.child.take();
    let found = child.as_ref().filter(|_| done.is_ok()).and_then(|c| look(&c.who(proc).ok()?));
    child.iter().for_each(child::end);
    let _ = mask.thread_set_mask();
    found
}

fn print(steps: &[Step], text: &mut String, depth: usize, explain: bool) {
    let indent = "    ".repeat(depth);
    for step in steps {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{indent}{step}");
        for line in &step.below {
            let _ = writeln!(text, "{indent}    {line}");
        }
        if explain && !step.why.is_empty() {
            let _ = writeln!(text, "{indent}    # {}", step.why);
        }
        print(step.inner.as_deref().map_or(&[], Vec::as_slice), text, depth + 1, explain);
    }
}

fn run(steps: &[Step], hands: &mut Hands) -> std::result::Result<(), (usize, Refusal)> {
    for (at, step) in steps.iter().enumerate() {
        if hands.explain {
            let below: String = step.below.iter().map(|line| format!("    {line}\n")).collect();
            let rule = if step.why.is_empty() { String::new() } else { format!("    # {}\n", step.why) };
            mind::tell(&format!("{step}\n{below}{rule}"));
        }
        (step.perform)(hands).map_err(|refusal| (at, refusal))?;
    }
    Ok(())
}

// ---- reasons, found by a process that can see ----

/// What the process that looks for a reason sees.
struct Seen<'a> {
    proc: &'a Proc,
    who: &'a str,
    child: Option<&'a str>,
    places: &'a [OwnedFd],
    path: Option<OsString>,
}

fn failure(steps: &[Step], at: usize, refusal: Refusal, seen: Seen<'_>) -> Failure {
    let Some(step) = steps.get(at) else { return Failure::refused("the child died before it began") };
    let (root, cwd) = (seen.places.first(), seen.places.get(1));
    step.failure(refusal, &Facts { proc: seen.proc, who: seen.who, child: seen.child, root, cwd, path: seen.path })
}

/// The root and the working directory of this process, for whoever looks for
/// reasons: a process that is not dumpable cannot be looked at from outside.
fn own_places() -> Vec<OwnedFd> {
    let place = |path: &str| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    ["/", "."].into_iter().filter_map(|path| place(path).ok()).collect()
}

// ---- children ----

/// The step that forks, with new namespaces of `kinds` around the child: it
/// performs `inner`, and the parent goes on once the child has executed a
/// program, said that it is ready (by closing its end), or failed.
pub fn clone(kinds: Vec<Kind>, why: &'static str, inner: Plan, proc: &Rc<Proc>) -> Step {
    clone_into(None, kinds, why, inner, proc)
}

/// The same, with the child born into a cgroup.
pub fn clone_into(
    cgroup: Option<Rc<Cgroup>>,
    kinds: Vec<Kind>,
    why: &'static str,
    inner: Plan,
    proc: &Rc<Proc>,
) -> Step {
    let said = if kinds.is_empty() { "fork".to_owned() } else { format!("clone {}", flag_names(&kinds)) };
    let said = cgroup.as_ref().map_or_else(|| said.clone(), |c| format!("{said} into {}", c.name()));
    let asked = cgroup.clone();
    let inner = Rc::new(inner.steps);
    let (proc, steps, bits) = (proc.clone(), inner.clone(), flags(&kinds));
    let perform = move |hands: &mut Hands| {
        // From here on a signal must neither get lost nor kill us between the
        // fork and the loop that minds the child.
        mind::block_signals()?;
        let (ours, theirs) = mind::pair()?;
        let born = cgroup.as_ref().map(|c| c.fd()).transpose()?;
        match sys::fork_into(bits, born)? {
            sys::Fork::Child => {
                drop(ours);
                hands.report = Some(theirs);
                be_child(&steps, hands)
            }
            sys::Fork::Parent(pid, fd) => {
                drop(theirs);
                hands.child = Some(Child { pid, fd });
                if steps.first().is_some_and(|step| step.waits) {
                    // It does nothing before, so nothing has to be waited for.
                    hands.line = Some(ours);
                    return Ok(());
                }
                watch_child(&steps, hands, ours, &proc, false)
            }
        }
    };
    let step = Step::new(move || said.clone(), why, perform).because(move |errno, facts| {
        let closed = asked.as_ref().and_then(|cgroup| cgroup.refused(errno, facts.proc));
        closed.or_else(|| refused(&kinds, errno, facts))
    });
    Step { inner: Some(inner), ..step }
}

/// The step that lets the child of `first`, which has come to a step that
/// waits for a word, go on.
pub fn go(first: &Step, proc: &Rc<Proc>) -> Step {
    let (proc, steps) = (proc.clone(), first.inner.clone().unwrap_or_default());
    let why = "the first exec comes only when everything is in place: an id without a map loses every capability there";
    let perform = move |hands: &mut Hands| {
        let line = hands.line.take().ok_or(Errno::ECHILD)?;
        mind::send(line.as_fd(), b"G", &[])?;
        watch_child(&steps, hands, line, &proc, true)
    };
    Step::new(|| "let CHILD go on".to_owned(), why, perform)
}

/// No report of a child is longer, in bytes: its PATH is left out of one that
/// would be.
const MESSAGE: usize = 4096;

fn be_child(steps: &[Step], hands: &mut Hands) -> Done {
    let status = match run(steps, hands) {
        Ok(()) => hands.status,
        Err((at, refusal)) => {
            let message = match refusal {
                Refusal::Os(errno, text) => format!("F {at} {} {text}", errno as i32),
                Refusal::Whole(failure) => {
                    let kind = failure.kind() as i32;
                    format!("W {at} {kind} {}", feature::explained(*failure))
                }
            };
            if let Some(report) = &hands.report {
                let places = own_places();
                let fds: Vec<BorrowedFd<'_>> = places.iter().map(AsFd::as_fd).collect();
                let with_path = [message.as_bytes(), b"\0", searched().as_bytes()].concat();
                let whole = if with_path.len() <= MESSAGE { &with_path[..] } else { message.as_bytes() };
                let _ = mind::send(report.as_fd(), whole, &fds);
                // The parent reads the facts from us as we are now; it closes
                // its end when it is done, or dies, and then we go.
                let _ = mind::heard(report.as_fd());
            }
            125
        }
    };
    sys::exit_now(status)
}

/// Waits until the child has done its part; `told` is whether it has been given
/// its word.
fn watch_child(steps: &[Step], hands: &mut Hands, ours: OwnedFd, proc: &Proc, told: bool) -> Done {
    let mut message = [0; MESSAGE];
    loop {
        if let Some(signal) = mind::told_to_end(ours.as_fd(), PollFlags::POLLIN)? {
            // It may be in a call that nothing ends: not to be waited for.
            hands.child.take().iter().for_each(|child| child::signal(child, SIGKILL).unwrap_or_default());
            hands.died = Some(signal);
            return Err(Failure::told_elsewhere().into());
        }
        let (n, places) = match mind::receive(ours.as_fd(), &mut message) {
            Ok((0, _)) => return Ok(()),
            Ok(received) => received,
            Err(e) => return Err(e.into()),
        };
        let mut parts = message[..n].splitn(2, |b| *b == 0);
        let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let mut words = text.splitn(4, ' ');
        let what = words.next().unwrap_or_default();
        let number = words.next().and_then(|w| w.parse::<i32>().ok()).unwrap_or(-1);
        if what == "A" && told {
            continue;
        }
        if what == "A" || what == "R" {
            // It waits for a word, or is an init: there is something to be done
            // from here.
            hands.line = Some(ours);
            return Ok(());
        }
        if what == "P" {
            // The child has forked on our behalf (CLONE_PARENT): its number is
            // that of an unreaped child of ours, so it cannot be another's.
            let Some(fd) = places.into_iter().next() else {
                // We have no descriptor left for it.
                let _ = sys::signal_child(number, SIGKILL);
                return Err(Errno::EMFILE.into());
            };
            if let Some(old) = hands.child.replace(Child { pid: number, fd }) {
                let _ = child::reap(&old);
            }
            continue;
        }
        let second: i32 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        let rest = words.next().unwrap_or_default().to_owned();
        let refusal = if what == "F" {
            Refusal::Os(Errno::from_raw(second), rest)
        } else {
            let exits = [Exit::Refused, Exit::Usage, Exit::NotExecutable, Exit::NotFound];
            let exit = exits.into_iter().find(|exit| *exit as i32 == second).unwrap_or(Exit::Refused);
            Failure::refused(rest).exit(exit).into()
        };
        let who = hands.child.as_ref().map_or_else(|| Ok("self".to_owned()), |c| c.who(proc)).unwrap_or_default();
        let path = parts.next().map(|path| OsStr::from_bytes(path).to_owned());
        let seen = Seen { proc, who: &who, child: None, places: &places, path };
        let failure = failure(steps, usize::try_from(number).unwrap_or(usize::MAX), refusal, seen);
        drop(ours);
        if let Some(child) = hands.child.take() {
            let _ = child::reap(&child);
        }
        return Err(failure.into());
    }
}

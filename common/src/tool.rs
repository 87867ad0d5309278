//! What every tool does around its own decision: read the command line, ask
//! the tool for its outcome, print or perform it, tell a failure, leave.

use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use crate::cli::{Args, Cli};
use crate::fail::{Again, Errno, Exit, Failure, Result};
use crate::feature;
use crate::mind;
use crate::plan::Plan;
use crate::proc::Proc;
use crate::record::Stream;
use crate::step::{Hands, end};
use crate::sys;
use crate::target::{self, Target};

/// What a tool has decided.
pub enum Outcome {
    /// Print this on standard output and leave with this status: for tools
    /// that list, check and show.
    Answer(Vec<u8>, u8),
    /// Perform this.
    Plan(Plan),
}

/// The body of a tool's main.
pub fn run(cli: &Cli, decide: impl FnOnce(&Args) -> Result<Outcome>) -> ExitCode {
    run_advised(cli, decide, |_, _| None)
}

/// A command of a change that would cure what this process was refused.
pub type Advice = fn(&Again, &Proc) -> Option<String>;

/// The same for a tool that knows what stands before it in a chain.
pub fn run_advised(cli: &Cli, decide: impl FnOnce(&Args) -> Result<Outcome>, advice: Advice) -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let status = match work(cli, &words, decide, advice) {
        Ok(status) => status,
        Err(failure) => {
            let failure = feature::explained(failure);
            if !failure.is_silent() {
                mind::tell(&format!("{}: {failure}\n", cli.name));
            }
            leave_pipe(cli, &words);
            status_of(cli, failure.kind())
        }
    };
    ExitCode::from(status)
}

/// The file name of the word that this program was called by.
pub fn called() -> OsString {
    let word = std::env::args_os().next().unwrap_or_default();
    std::path::Path::new(&word).file_name().unwrap_or_default().to_owned()
}

/// The body of main for a program that stands in for `name`, which has no
/// options and one exit status for whatever fails.
pub fn stand_in(name: &str, decide: impl FnOnce(&[OsString]) -> Result<Plan>) -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let work = || decide(&words)?.perform(&mut Hands::new(SigSet::empty()), &Proc::open()?);
    match work() {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            mind::tell(&format!("{name}: {}\n", feature::explained(failure)));
            ExitCode::FAILURE
        }
    }
}

/// Lets the other stages of a pipeline go when this one has failed.
fn leave_pipe(cli: &Cli, words: &[OsString]) {
    let (reads, writes) = cli.guess(words).map_or((false, false), |args| cli.streams(&args));
    // The stages after us then know that somebody has told the reason.
    if writes && mind::is_pipe(1) == Ok(true) {
        let _ = mind::say(b"failed\n");
    }
    if reads {
        target::stream::farewell();
    }
}

/// The end of a stage: writes `stream` on, and stays as long as its reader, or
/// `holder`. A record that no other stage reads is good for nothing, since the
/// namespaces end with us; but somebody may want to look at it.
pub fn pass_on(cli: &Cli, stream: Stream, holder: Option<Rc<Target>>, plan: &mut Plan) {
    plan.push(end::Effect::Say(stream));
    if holder.is_some() && target::stream::has_reader() == Ok(false) {
        let note = "standard output is no pipe, so nobody can enter: the namespaces end now";
        plan.push(end::Effect::Note(format!("{}: {note}\n", cli.name)));
    }
    plan.push(end::Effect::Linger(holder));
}

fn work(cli: &Cli, words: &[OsString], decide: impl FnOnce(&Args) -> Result<Outcome>, advice: Advice) -> Result<u8> {
    let args = cli.parse(words)?;
    if args.flag("help") {
        return print(cli.help().as_bytes(), 0);
    }
    if args.flag("version") {
        return print(concat!("nskit ", env!("CARGO_PKG_VERSION"), "\n").as_bytes(), 0);
    }
    let mask = SigSet::thread_get_mask().map_err(|e| Failure::os("read the signal mask", e))?;
    match decide(&args)? {
        Outcome::Answer(bytes, status) => print(&bytes, status),
        Outcome::Plan(plan) if args.dry() || plan.dry => {
            let text = plan.text(args.flag("explain"));
            let stream = plan.dry_stream();
            // Standard output belongs to the records, if there are any.
            if cli.streams(&args) != (false, false) || !stream.is_empty() {
                let text: String = text.lines().map(|line| format!("{}: {line}\n", cli.name)).collect();
                mind::tell(&text);
                print(&stream, 0)
            } else {
                print(text.as_bytes(), 0)
            }
        }
        Outcome::Plan(plan) => {
            let proc = Proc::open()?;
            let mut hands = Hands::new(mask);
            hands.explain = args.flag("explain");
            plan.perform(&mut hands, &proc).map_err(|failure| failure.advised(|again| advice(again, &proc)))
        }
    }
}

/// A reader that has left is no failure of ours.
fn print(bytes: &[u8], status: u8) -> Result<u8> {
    match mind::say(bytes) {
        Ok(()) | Err(Errno::EPIPE) => Ok(status),
        Err(e) => Err(Failure::os("write to standard output", e)),
    }
}

fn status_of(cli: &Cli, exit: Exit) -> u8 {
    match (exit, cli.runs) {
        (Exit::NotExecutable, _) => 126,
        (Exit::NotFound, _) => 127,
        (Exit::Refused | Exit::Usage, true) => 125,
        (Exit::Refused, false) => 1,
        (Exit::Usage, false) => 2,
    }
}

/// How far long work is, on a terminal and nowhere else: one line, renewed a
/// few times a second and gone at the end.
pub struct Progress {
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Progress {
        Progress { shown: None, terminal: nix::unistd::isatty(sys::lend(2)).unwrap_or(false) }
    }

    /// Shows `text`, unless something has been shown a moment ago.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        let due = self.shown.is_none_or(|at| at.elapsed() > Duration::from_millis(200));
        if self.terminal && due {
            mind::tell(&format!("\r\x1b[K{}", text()));
            self.shown = Some(Instant::now());
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            mind::tell("\r\x1b[K");
        }
    }
}

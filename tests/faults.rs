//! Every system call failed in turn.
//!
//! Each command line of tests/faults/list is run once to see which system calls our tools make in
//! it; then once for each of these calls and each errno that the call is known for, with that call
//! made to fail; and once for each call with the tool killed there by SIGKILL, and by SIGTERM.
//! After a failed call the tools have either done all that they do, or they have said which call
//! failed, once, and left nothing: no process, no mount, no file, no program that ran.
//!
//!     faults [--sample N] [--seed SEED] [--seconds S] [NAME...]
//!
//! All of them, or N of each command line, chosen by SEED: the same for the same seed. Of all
//! command lines or those of these names, of which none begins after S seconds.
//!
//! Run by `make faults`, a sample by `make test`, in the private world. The tracer is this program,
//! and what it follows ends at the exec of a program that is not ours.

// The rules of the tools do not bind their tests: no tool prints or unwraps.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, clippy::panic)]
#![cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(unused))]

#[path = "faults/calls.rs"]
mod calls;
#[path = "faults/judge.rs"]
mod judge;
#[path = "faults/trace.rs"]
mod trace;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use judge::{Verdict, World};
use trace::{Fault, How, Ran};

/// A command line of the list.
struct Case {
    name: String,
    user: String,
    run: String,
}

fn cases() -> Vec<Case> {
    let text = fs::read_to_string("tests/faults/list").unwrap();
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            let name = name.trim_end_matches(']').to_owned();
            cases.push(Case { name, user: "root".to_owned(), run: String::new() });
        } else if let (Some((word, rest)), Some(case)) = (line.split_once(' '), cases.last_mut()) {
            match word {
                "as" => rest.clone_into(&mut case.user),
                "run" => rest.clone_into(&mut case.run),
                _ => panic!("tests/faults/list: {line}"),
            }
        }
    }
    cases
}

/// What is tried on a call.
fn faults(ran: &Ran) -> Vec<Fault> {
    let mut all = Vec::new();
    for (process, made) in &ran.calls {
        for (at, number) in made.iter().enumerate() {
            let call = calls::find(*number);
            let nth = made[..=at].iter().filter(|other| *other == number).count();
            let fault = |how| Fault { process: process.clone(), call: call.name, nth, how };
            all.extend(call.errnos.iter().map(|errno| fault(How::Errno(*errno))));
            all.push(fault(How::Signal(libc::SIGTERM)));
            all.push(fault(How::Signal(libc::SIGKILL)));
        }
    }
    all
}

/// Which faults are tried.
struct Choice {
    /// So many of each command line.
    sample: usize,
    seed: u64,
    seconds: u64,
    names: Vec<String>,
}

impl Choice {
    fn read(words: impl Iterator<Item = String>) -> Option<Choice> {
        let mut words = words.filter(|word| !word.is_empty());
        let mut choice = Choice { sample: usize::MAX, seed: 1, seconds: u64::MAX, names: Vec::new() };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--sample" => choice.sample = words.next()?.parse().ok()?,
                "--seed" => choice.seed = words.next()?.parse().ok()?,
                "--seconds" => choice.seconds = words.next()?.parse().ok()?,
                _ if word.starts_with('-') => return None,
                _ => choice.names.push(word),
            }
        }
        Some(choice)
    }

    /// Those of a command line, in the order in which they are tried: that of two of them depends on
    /// nothing but the two. Who comes first of two processes, or what else there is on a machine, may
    /// make a call more or less, and does not change the sample.
    fn ordered(&self, case: &Case, mut all: Vec<Fault>) -> Vec<Fault> {
        if self.is_sample() {
            all.sort_by_cached_key(|fault| Chance::of(self.seed, &format!("{} {fault}", case.name)).next());
        }
        all
    }

    fn is_sample(&self) -> bool {
        self.sample < usize::MAX
    }
}

/// Numbers without a pattern that matters here (splitmix64).
struct Chance(u64);

impl Chance {
    fn of(seed: u64, text: &str) -> Chance {
        Chance(text.bytes().fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    }
}

/// What has been counted.
#[derive(Default)]
struct Count {
    cases: usize,
    errors: usize,
    kills: usize,
    failed: usize,
    /// The calls that may fail, and nothing is missing.
    harmless: BTreeMap<&'static str, usize>,
    /// The exceptions, by their reasons.
    excused: BTreeMap<&'static str, usize>,
}

fn main() -> ExitCode {
    if env::var_os("NSKIT_PRIVATE").is_none() {
        eprintln!("faults: this changes the machine: make faults runs it in a private world");
        return ExitCode::FAILURE;
    }
    let Some(choice) = Choice::read(env::args().skip(1)) else {
        eprintln!("usage: faults [--sample N] [--seed SEED] [--seconds S] [NAME...]");
        return ExitCode::FAILURE;
    };
    let cases = cases();
    if let Some(word) = choice.names.iter().find(|word| !cases.iter().any(|case| case.name == **word)) {
        eprintln!("faults: {word} is not in tests/faults/list");
        return ExitCode::FAILURE;
    }
    let is_named = |case: &&Case| choice.names.is_empty() || choice.names.contains(&case.name);
    let mut turns: Vec<&Case> = cases.iter().filter(is_named).collect();
    if choice.is_sample() {
        // Where the time is not enough, another seed leaves others out.
        turns.sort_by_cached_key(|case| Chance::of(choice.seed, &case.name).next());
    }
    stay_here();
    let (begin, mut count) = (Instant::now(), Count::default());
    for case in &turns {
        if begin.elapsed() > Duration::from_secs(choice.seconds) {
            break;
        }
        count.cases += 1;
        if let Err(why) = try_case(case, &choice, &mut count) {
            println!("FAIL {}: {why}", case.name);
            count.failed += 1;
        }
    }
    if !choice.is_sample() {
        println!("harmless where they failed: {:?}", count.harmless);
        count.excused.iter().for_each(|(reason, n)| println!("excused {n} times: {reason}"));
    }
    let Count { errors, kills, failed, .. } = count;
    println!(
        "seed {}: {} of {} command lines, {errors} errors, {kills} kills, {failed} failures",
        choice.seed,
        count.cases,
        turns.len()
    );
    if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// On one processor with all that is traced: each stop would wake up the other one, and two processes
/// take turns more nearly the same way each time.
fn stay_here() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

/// The faults of a command line, or some of them.
fn try_case(case: &Case, choice: &Choice, count: &mut Count) -> Result<(), String> {
    // What a first run makes for good, as a directory for leases, is there from here on.
    let before = World::save();
    trace::run(&case.user, &case.run, None);
    before.reset();
    let world = World::save();
    let plain = trace::run(&case.user, &case.run, None);
    let changed = world.changed();
    let after = world.reset();
    if let Some(why) = judge::plain(&plain).err().or(changed) {
        return Err(format!("without a fault: {why}"));
    }
    let (mut runs, mut bad, mut missed) = (0, 0, 0);
    for fault in &choice.ordered(case, faults(&plain)) {
        if runs == choice.sample {
            break;
        }
        // Who comes first is not the same every time, and so are a few calls.
        let tries = (0..3).map(|_| trace::run(&case.user, &case.run, Some(fault)));
        let Some(ran) = tries.into_iter().find(|ran| ran.happened.is_some() || ran.hung) else {
            missed += 1;
            continue;
        };
        runs += 1;
        match fault.how {
            How::Errno(_) => count.errors += 1,
            How::Signal(_) => count.kills += 1,
        }
        let mut wrong = Vec::new();
        match judge::fault(fault, &plain, &ran) {
            Ok(Verdict::Harmless) => *count.harmless.entry(fault.call).or_default() += 1,
            Ok(Verdict::Excused(reason)) => *count.excused.entry(reason).or_default() += 1,
            Ok(Verdict::Told) => {}
            Err(why) => wrong.push(why),
        }
        wrong.extend(aftermath(case, fault, &plain, &world, &after));
        bad += usize::from(!wrong.is_empty());
        wrong.iter().for_each(|why| println!("FAIL {}: {fault}: {why}", case.name));
    }
    if bad != 0 || !choice.is_sample() {
        let verdict = if bad == 0 { "ok" } else { "FAIL" };
        println!("{verdict} {}: {runs} runs, {bad} failures, {missed} not reached", case.name);
    }
    count.failed += bad;
    // Else a case that goes by another name each time would look fine.
    let most = if choice.is_sample() { runs } else { 1 + runs / 10 };
    if missed > most { Err(format!("{missed} faults were never reached")) } else { Ok(()) }
}

/// What is wrong with the world after a fault; then it is as before. What SIGKILL has left is for
/// the next run, which makes it whole.
fn aftermath(case: &Case, fault: &Fault, plain: &Ran, world: &World, after: &judge::Contents) -> Vec<String> {
    let mut wrong = Vec::new();
    if matches!(fault.how, How::Signal(libc::SIGKILL)) {
        let done_already = judge::contents() == *after;
        let again = trace::run(&case.user, &case.run, None);
        let same = again.status == plain.status && again.output == plain.output;
        // Only a command line that changes the files may say something else the second time.
        let whole = world.differs(after) && (done_already || judge::contents() == *after);
        if !same && !whole {
            wrong.push(format!("the next run: {again}"));
        }
    }
    if fault.call.starts_with("unlink") {
        // What cannot be removed stays.
        world.clear();
    } else if let Some(changed) = world.changed() {
        wrong.push(format!("left: {changed}"));
        world.clear();
    }
    let now = world.reset();
    if now != *after && world.differs(&now) {
        wrong.push("the files are neither old nor new".to_owned());
    }
    wrong
}

//! Every system call failed in turn.
//!
//! Each command line of tests/faults/list is run once to see which system calls our tools make in
//! it; then once for each of these calls and each errno that the call is known for, with that call
//! made to fail; and once for each call with the tool killed there by SIGKILL, and by SIGTERM.
//! After a failed call the tools have either done all that they do, or they have said which call
//! failed, once, and left nothing: no process, no mount, no file, no program that ran.
//!
//!     faults [--sample N] [NAME...]      every Nth of the runs; only these command lines
//!
//! Run by `make faults`, in the private world. The tracer is this program, and what it follows ends
//! at the exec of a program that is not ours.

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
use std::{env, fs};

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
            let fault = |how| Fault { process: process.clone(), at, call: call.name, how };
            all.extend(call.errnos.iter().map(|errno| fault(How::Errno(*errno))));
            all.push(fault(How::Signal(libc::SIGTERM)));
            all.push(fault(How::Signal(libc::SIGKILL)));
        }
    }
    all
}

/// What has been counted.
#[derive(Default)]
struct Count {
    runs: usize,
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
    let mut words: Vec<String> = env::args().skip(1).filter(|word| !word.is_empty()).collect();
    let mut every = 1;
    if words.first().is_some_and(|word| word == "--sample") {
        every = words.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
        words.drain(..2);
    }
    let cases = cases();
    if let Some(word) = words.iter().find(|word| !cases.iter().any(|case| case.name == **word)) {
        eprintln!("faults: {word} is not in tests/faults/list");
        return ExitCode::FAILURE;
    }
    let mut count = Count::default();
    for case in cases.iter().filter(|case| words.is_empty() || words.contains(&case.name)) {
        if let Err(why) = try_case(case, every, &mut count) {
            println!("FAIL {}: {why}", case.name);
            count.failed += 1;
        }
    }
    println!("harmless where they failed: {:?}", count.harmless);
    count.excused.iter().for_each(|(reason, n)| println!("excused {n} times: {reason}"));
    println!("{} faults, {} failures", count.runs, count.failed);
    if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every `every`th fault of a command line.
fn try_case(case: &Case, every: usize, count: &mut Count) -> Result<(), String> {
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
    for fault in faults(&plain).iter().step_by(every) {
        // Who comes first is not the same every time, and so are a few calls.
        let tries = (0..3).map(|_| trace::run(&case.user, &case.run, Some(fault)));
        let Some(ran) = tries.into_iter().find(|ran| ran.happened || ran.hung) else {
            missed += 1;
            continue;
        };
        runs += 1;
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
    println!(
        "{} {}: {runs} runs, {bad} failures, {missed} not reached",
        if bad == 0 { "ok" } else { "FAIL" },
        case.name
    );
    count.runs += runs;
    count.failed += bad;
    // Else a case that goes by another name each time would look fine.
    if missed * 10 > runs { Err(format!("{missed} faults were never reached")) } else { Ok(()) }
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
    if let Some(changed) = world.changed() {
        // What cannot be removed stays.
        if !fault.call.starts_with("unlink") {
            wrong.push(format!("left: {changed}"));
        }
        world.clear();
    }
    let now = world.reset();
    if now != *after && world.differs(&now) {
        wrong.push("the files are neither old nor new".to_owned());
    }
    wrong
}

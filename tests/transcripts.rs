//! Runs the shell sessions that stand in Markdown files, and compares what they print.
//!
//! A session is a block indented by four spaces, or a fenced block marked `console`, that begins
//! with a prompt: `$ ` is the ordinary user alice, `2$ ` alice again, in a second shell, `# ` root,
//! `bob$ ` and `carol$ ` these two.
//! A line with `> ` continues the command above it. What follows, up to the next prompt, is what
//! the command prints, standard output and standard error together; a last line `[N]` is its
//! exit status where that is not 0. There is one shell a prompt for the whole file.
//!
//! Lines are compared exactly, but for three marks:
//!
//! * `some 42 text (~)`: any number may stand for a number, any blanks for blanks
//! * `some * text (glob)`: `*` stands for anything; for output, too, that looks like a prompt
//! * `...` alone: any lines, or none
//!
//! `<!-- needs: WORD... -->` says what the file cannot be run without: `root`, `alice` (the users
//! of the private world), `userns` (user namespaces for the ordinary user), `debian` (the archive of
//! tests/debian at target/debian.tar), or a program. `long` keeps the file out of a quick run.
//!
//! With `terminal` among them the commands are typed into shells on terminals, as people do. A
//! command may start another shell there, which then reads what follows. No status is seen there:
//! a command that prints nothing has to succeed.
//!
//! `<!-- varies: 4242 Nov_26 -->` names words that stand for others of their shape. From where one
//! is first printed it is, in output and commands alike, what was printed; `_` is a blank.
//!
//! The environment: `NSKIT_RECORD=1` writes today's values into the lines marked `(~)`.
//! `NSKIT_LONG=1` runs the long files too, `NSKIT_LONG=only` nothing else. With
//! `NSKIT_MUST_WORK=1` or `CI=true` to skip is to fail. `NSKIT_TIMEOUT` is in seconds a command.
//!
//! With `NSKIT_WITHOUT=CALL,...` the shells run as on a kernel without these system calls
//! (tests/without). There a refusal may come without its reason, and a command may differ if it says
//! which of them is not here and since when Linux has it: what follows in the file builds on it, and
//! is not run. `<!-- differs: CALL... -->` names those without which a file differs and nothing tells:
//! what is said then goes where it is not compared, or another reason is as true; `all`: it sees
//! the filter. None may crash.

// The rules of the tools do not bind their tests: no tool starts threads or prints by itself.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr)]

#[path = "transcripts/compare.rs"]
mod compare;
#[path = "transcripts/left.rs"]
mod left;
#[path = "transcripts/script.rs"]
mod script;
#[path = "transcripts/shell.rs"]
mod shell;
#[path = "transcripts/varies.rs"]
mod varies;
#[path = "transcripts/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs, io};

use left::Before;
use script::Case;
use shell::Shell;
use varies::Varies;
use world::World;

enum Outcome {
    Passed,
    Failed(Vec<String>),
    Skipped(String),
}

fn main() -> ExitCode {
    // Options are for the usual harness, and may come from `cargo test`.
    let option = |word: &String| word.starts_with('-');
    let files: Vec<PathBuf> = env::args().skip(1).filter(|word| !option(word)).map(PathBuf::from).collect();
    match World::new().and_then(|world| run_all(&world, &files)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("transcripts: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the files named, or all there are, and says how each went. True if none failed.
fn run_all(world: &World, files: &[PathBuf]) -> io::Result<bool> {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for path in select(world, files)? {
        let begin = Instant::now();
        let outcome = match run_file(world, &path) {
            Ok(Outcome::Skipped(why)) if world.must_work => {
                Outcome::Failed(vec![format!("nothing may be skipped here, but it {why}")])
            }
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(vec![error.to_string()]),
        };
        let path = path.display();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("ok {path} ({:.1} s)", begin.elapsed().as_secs_f32());
            }
            Outcome::Failed(details) => {
                failed += 1;
                println!("FAIL {path}\n  {}", details.join("\n  "));
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                println!("skip {path}: {why}");
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}

/// The files to run. Below a directory only those that hold a session and have their turn today.
fn select(world: &World, wanted: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let everything = [PathBuf::from("README.md"), PathBuf::from("man/labs"), PathBuf::from("tests")];
    let mut chosen = Vec::new();
    for path in if wanted.is_empty() { &everything } else { wanted } {
        if !path.is_dir() {
            if world.quick || !wanted.is_empty() {
                chosen.push(path.clone());
            }
            continue;
        }
        for file in markdown_below(path)? {
            let script = script::parse(&fs::read_to_string(&file)?);
            let today = if script.long { world.long } else { world.quick };
            if today && !script.cases.is_empty() {
                chosen.push(file);
            }
        }
    }
    Ok(chosen)
}

fn markdown_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        entries.push(entry?.path());
    }
    entries.sort();
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() && !path.is_symlink() {
            found.extend(markdown_below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(found)
}

fn run_file(world: &World, path: &Path) -> io::Result<Outcome> {
    let text = fs::read_to_string(path)?;
    let script = script::parse(&text);
    if script.cases.is_empty() {
        return Ok(Outcome::Failed(vec!["there is no session in it".into()]));
    }
    if let Some(why) = world.missing(&script) {
        return Ok(Outcome::Skipped(why));
    }
    let before = Before::look(world)?;
    let mark = format!("{}.{}", world.mark, world::secret()?);
    let (mut shells, mut homes) = (BTreeMap::new(), BTreeMap::new());
    let mut varies = Varies::new(&script.varies);
    let mut details = Vec::new();
    let mut told_at = None;
    let mut recorded: Vec<String> = text.split('\n').map(String::from).collect();
    for case in &script.cases {
        let user = case.user;
        if !homes.contains_key(user.name) {
            homes.insert(user.name, world.make_home(user.name)?);
        }
        if !shells.contains_key(user.prompt) {
            let shell = Shell::start(world, user, &homes[user.name], &mark, script.terminal)?;
            shells.insert(user.prompt, shell);
        }
        let Some(shell) = shells.get_mut(user.prompt) else {
            continue;
        };
        let told = run_case(case, shell, world, &mut varies, &mut recorded);
        let gone = told.is_err();
        let told = told.unwrap_or_else(|told| told);
        if world.says_what_is_gone(&told) {
            told_at = Some(case.line);
            break;
        }
        if !told.is_empty() {
            let command = case.command.replace('\n', "\n  > ");
            details.push(format!("{}:{}: {command}", path.display(), case.line));
            details.extend(told.into_iter().map(|line| format!("   {line}")));
        }
        if gone {
            break;
        }
    }
    for shell in shells.into_values() {
        shell.end()?;
    }
    let homes: Vec<PathBuf> = homes.into_values().collect();
    let left = before.left(world, &mark, &homes)?;
    match told_at {
        // What follows would have taken it away.
        Some(line) => println!("told in line {line}:"),
        None => details.extend(left),
    }
    let may_differ = |name: &String| *name == world.without || name == "all";
    let is_worse = |line: &String| ["panicked", "Segmentation"].iter().any(|what| line.contains(what));
    let differs = !world.without.is_empty() && script.differs.iter().any(may_differ);
    if differs && !details.is_empty() && !details.iter().any(is_worse) {
        println!("differs, as it says:");
        details.clear();
    }
    let recorded = recorded.join("\n");
    if env::var("NSKIT_RECORD").is_ok_and(|value| value == "1") && recorded != text {
        fs::write(path, recorded)?;
    }
    Ok(if details.is_empty() { Outcome::Passed } else { Outcome::Failed(details) })
}

/// What is wrong with this command: nothing, or so much that no other can follow (`Err`).
fn run_case(
    case: &Case,
    shell: &mut Shell,
    world: &World,
    varies: &mut Varies,
    recorded: &mut [String],
) -> Result<Vec<String>, Vec<String>> {
    let (got, status) = shell.run(&varies.fill(&case.command), world.timeout);
    // On a terminal a failure is what it says.
    let unseen = shell.terminal && !got.is_empty();
    let expected = |status: i32| unseen || status == case.status;
    let places = compare::lines(&case.want, &got, varies);
    let mut told = Vec::new();
    match &places {
        // To look for a reason takes calls, too.
        None if !world.without.is_empty() && compare::lines_but_reasons(&case.want, &got, varies) => {}
        None => told = compare::difference(&case.want, &got, varies),
        Some(places) if status.clone().is_ok_and(expected) => {
            compare::record(recorded, &case.want, &got, places);
            for (want, &place) in case.want.iter().zip(places) {
                let learnt = got.get(place).map_or(Ok(()), |got| varies.learn(&want.text, got));
                told.extend(learnt.err());
            }
        }
        Some(_) => {}
    }
    match status {
        Ok(status) if expected(status) => Ok(told),
        Ok(status) => {
            told.push(format!("wanted status {}, got {status}", case.status));
            Ok(told)
        }
        Err(why) => {
            told.push(why);
            Err(told)
        }
    }
}

//! The command line: options as data, operands as bytes, help.
//!
//! getopts does the reading. It knows only UTF-8, so every byte travels
//! through it as the character of the same number and comes back as the byte.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use getopts::{HasArg, Matches, Occur, Options, ParsingStyle};

use crate::fail::{Failure, Result};

/// One option.
pub struct Opt {
    /// Its letter, or "".
    pub short: &'static str,
    /// Its long name.
    pub long: &'static str,
    /// What its value is called in help; "" for an option without a value,
    /// `[=VALUE]` for one that may go without, which has it after its long name.
    pub value: &'static str,
    /// What it does, in half a line; "" where it is told together with the next.
    pub help: &'static str,
}

/// How wide --help is, and its column of options.
const WIDTH: usize = 80;
const NAMES: usize = 28;

impl Opt {
    /// As it stands in help: `  -m, --mount[=FILE]`.
    fn name(&self) -> String {
        let short = if self.short.is_empty() { String::new() } else { format!("-{},", self.short) };
        let gap = if self.value.is_empty() || self.value.starts_with('[') { "" } else { " " };
        format!("  {short:<3} --{}{gap}{}", self.long, self.value)
    }

    fn may_be_named(&self, word: &[u8]) -> bool {
        match word.strip_prefix(b"--") {
            Some(long) => long.split(|b| *b == b'=').next() == Some(self.long.as_bytes()),
            // Letters may stand together.
            None => word.first() == Some(&b'-') && self.short.bytes().any(|letter| word.contains(&letter)),
        }
    }
}

/// An option without a letter and without a value.
pub const fn flag(long: &'static str, help: &'static str) -> Opt {
    Opt { short: "", long, value: "", help }
}

/// An option without a letter, with a value.
pub const fn valued(long: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt { short: "", long, value, help }
}

/// An option with a letter.
pub const fn opt(short: &'static str, long: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt { short, long, value, help }
}

/// The kinds of namespaces, as in unshare(1) and nsenter(1).
pub const KINDS: &[Opt] = &[
    opt("U", "user", "[=FILE]", ""),
    opt("m", "mount", "[=FILE]", ""),
    opt("p", "pid", "[=FILE]", ""),
    opt("n", "net", "[=FILE]", ""),
    opt("i", "ipc", "[=FILE]", ""),
    opt("u", "uts", "[=FILE]", ""),
    opt("C", "cgroup", "[=FILE]", ""),
    opt("T", "time", "[=FILE]", "these kinds; FILE: where one is pinned"),
];

/// For a tool whose own standard input may be the stream.
pub const STDIN: Opt = valued("stdin", "N", "descriptor N is the program's standard input");

/// For a tool that closes what it was not told to hand on.
pub const KEEP_FD: Opt = valued("keep-fd", "N", "hand descriptor N on to the program");

/// For a tool that writes maps.
pub const HOST_ROOT: Opt = flag("host-root", "let a map put the real root inside");

/// Where options end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// Nowhere: they may stand around all operands, until `--`.
    Free,
    /// The same, and what stands after `--` is a program.
    FreeThenProgram,
    /// At the program to run, which is the operand after this many others, or
    /// after none where one of the named options has a value: it stands for them.
    Program(usize, &'static [&'static str]),
}

/// What a tool has to do with a stream of records, where `-` says that it has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing: its `-` is a word like others.
    No,
    /// It writes one.
    First,
    /// It reads one and writes it on.
    Middle,
    /// The same, but with one of these options nothing.
    MiddleBut(&'static [&'static str]),
    /// It reads one.
    Last,
    /// The same, and writes it on with this option.
    LastBut(&'static str),
}

/// A tool's command line.
pub struct Cli {
    /// The name of the tool.
    pub name: &'static str,
    /// What it does, in one line.
    pub purpose: &'static str,
    /// Its forms without the name, a line each.
    pub usage: &'static [&'static str],
    /// Its options by groups, without those that all tools have.
    pub options: &'static [&'static [Opt]],
    /// Where they end.
    pub operands: Operands,
    /// Whether failures leave with 125, as for every tool that ends in a
    /// program with exit statuses of its own.
    pub runs: bool,
    /// What it does with streams.
    pub stage: Stage,
}

/// The options that every tool has.
pub const COMMON: &[Opt] = &[
    flag("dry-run", ""),
    flag("explain", "print the plan and stop; print why, step by step"),
    opt("h", "help", "", ""),
    opt("V", "version", "", "print this; the version"),
];

/// A command line as it was typed.
pub struct Args {
    given: Vec<Rc<Matches>>,
    /// The long names of those options that getopts was told of.
    named: Vec<&'static str>,
    /// The long names whose letters stand apart.
    letters: Vec<(&'static str, &'static str)>,
    /// The operands, without the program to run.
    pub operands: Vec<OsString>,
    /// The program to run and its arguments.
    pub program: Vec<OsString>,
}

/// getopts takes `--m` for `-m`. With this after the letter it is no option.
const APART: char = '\u{100}';

fn widen(word: &OsStr) -> String {
    let mut wide: String = word.as_bytes().iter().map(|b| char::from(*b)).collect();
    if matches!(word.as_bytes(), [b'-', b'-', _] | [b'-', b'-', _, b'=', ..]) {
        let end = wide.char_indices().nth(3).map_or(wide.len(), |(at, _)| at);
        wide.insert(end, APART);
    }
    wide
}

fn narrow(word: &str) -> OsString {
    OsString::from_vec(
        word.chars().filter(|c| *c != APART).map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect(),
    )
}

/// What getopts says of a word, with nothing in it that a terminal obeys.
fn told(what: &getopts::Fail) -> String {
    let mut text = String::new();
    for c in narrow(&what.to_string()).to_string_lossy().chars() {
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

impl Cli {
    /// All its options, in the order of its manual page.
    pub fn all(&self) -> impl Iterator<Item = &Opt> {
        self.options.iter().copied().flatten().chain(COMMON)
    }

    fn grammar(style: ParsingStyle, named: &[&Opt]) -> Options {
        let mut options = Options::new();
        options.parsing_style(style);
        for opt in named {
            let (mut short, mut has) = (opt.short, if opt.value.is_empty() { HasArg::No } else { HasArg::Yes });
            if opt.value.starts_with('[') {
                // The letter would take the word after it for the value.
                if !short.is_empty() {
                    options.optflagmulti(short, "", "");
                }
                (short, has) = ("", HasArg::Maybe);
            }
            options.opt(short, opt.long, "", opt.value, has, Occur::Multi);
        }
        options
    }

    /// Reads the words after the tool's name.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn parse(&self, words: &[OsString]) -> Result<Args> {
        let mut rest: Vec<String> = words.iter().map(|w| widen(w)).collect();
        // getopts is told of no other: to tell it of fifty, and to ask it, takes
        // longer than what a tool is for.
        let is_named = |opt: &&Opt| words.iter().any(|word| opt.may_be_named(word.as_bytes()));
        let named: Vec<&Opt> = self.all().filter(is_named).collect();
        let apart = named.iter().filter(|o| o.value.starts_with('[') && !o.short.is_empty());
        let letters = apart.map(|o| (o.long, o.short)).collect();
        let longs = named.iter().map(|opt| opt.long).collect();
        let mut args = Args { given: Vec::new(), named: longs, letters, operands: Vec::new(), program: Vec::new() };
        let style = match self.operands {
            Operands::Free | Operands::FreeThenProgram => ParsingStyle::FloatingFrees,
            Operands::Program(..) => ParsingStyle::StopAtFirstFree,
        };
        loop {
            let grammar = Cli::grammar(style, &named);
            let given = grammar.parse(&rest).map_err(|e| self.usage(&told(&e)))?;
            let free = given.free.clone();
            // After `--` nothing is an option any more, unless it is itself the value of one, or of a program;
            // getopts has eaten it.
            let ends = |at: usize| {
                let is_clear = |b: Matches| style == ParsingStyle::FloatingFrees || b.free.is_empty();
                rest[at] == "--" && grammar.parse(&rest[..at]).is_ok_and(is_clear)
            };
            let end = (0..rest.len()).find(|at| ends(*at));
            let ended = end.is_some();
            args.given.push(Rc::new(given));
            let Operands::Program(wanted, instead) = self.operands else {
                let apart = end.filter(|_| self.operands == Operands::FreeThenProgram);
                let split = apart.map_or(free.len(), |end| free.len() - (rest.len() - end - 1));
                args.operands = free[..split].iter().map(|w| narrow(w)).collect();
                args.program = free[split..].iter().map(|w| narrow(w)).collect();
                return Ok(args);
            };
            let wanted = if instead.iter().any(|option| args.value(option).is_some()) { 0 } else { wanted };
            let is_operand = |word: &String| {
                args.operands.len() < wanted || (wanted == 0 && args.operands.is_empty() && word == "-")
            };
            if ended || free.first().is_none_or(|word| !is_operand(word)) {
                let split = if ended { wanted.saturating_sub(args.operands.len()).min(free.len()) } else { 0 };
                args.operands.extend(free[..split].iter().map(|w| narrow(w)));
                args.program = free[split..].iter().map(|w| narrow(w)).collect();
                return Ok(args);
            }
            args.operands.push(narrow(&free[0]));
            rest = free[1..].to_vec();
        }
    }

    /// The same of words that are wrong, without the first that is, and so on: as
    /// far as can be told what was meant.
    pub fn guess(&self, words: &[OsString]) -> Option<Args> {
        /// Each takes a parse of all before it.
        const MOST: usize = 100;
        let mut words = words.to_vec();
        loop {
            if let Ok(args) = self.parse(&words) {
                return Some(args);
            }
            words.truncate(MOST);
            let right = (0..words.len()).rev().find(|n| self.parse(&words[..*n]).is_ok())?;
            words.remove(right);
        }
    }

    /// Whether what was typed reads a stream, and whether it writes one.
    pub fn streams(&self, args: &Args) -> (bool, bool) {
        if !args.piped() {
            return (false, false);
        }
        match self.stage {
            Stage::No => (false, false),
            Stage::First => (false, true),
            Stage::Middle => (true, true),
            Stage::MiddleBut(options) => {
                let is_one = !options.iter().any(|option| args.flag(option));
                (is_one, is_one)
            }
            Stage::Last => (true, false),
            Stage::LastBut(option) => (true, args.flag(option)),
        }
    }

    /// The same command line with `words`, options that another one stands for,
    /// typed before all others.
    ///
    /// # Errors
    /// Wrong usage, which is a mistake of the tool.
    pub fn preceded(&self, args: &Args, words: &[OsString]) -> Result<Args> {
        let mut all = self.parse(words)?;
        all.given.extend(args.given.iter().cloned());
        all.named.extend(&args.named);
        all.letters.extend(&args.letters);
        Ok(Args { operands: args.operands.clone(), program: args.program.clone(), ..all })
    }

    /// A wrong command line, said with where to read on.
    pub fn usage(&self, what: &str) -> Failure {
        let what = what.trim_end_matches('.');
        // Many forms would hide what was wrong.
        if self.usage.len() > 3 {
            return Failure::usage(format!("{what}\n  try: {} --help", self.name));
        }
        let forms = self.usage.join(&format!("\n       {} ", self.name));
        Failure::usage(format!("{what}\nusage: {} {forms}", self.name))
    }

    /// What --help prints: a screen.
    pub fn help(&self) -> String {
        let mut text = format!("{} - {}\n\n", self.name, self.purpose);
        for (n, form) in self.usage.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {} {form}", if n == 0 { "usage:" } else { "      " }, self.name);
        }
        text.push('\n');
        let mut line = String::new();
        for opt in self.all() {
            let name = opt.name();
            if line.len() + name.len() > WIDTH {
                let _ = writeln!(text, "{line}");
                line.clear();
            }
            if line.is_empty() {
                line.push_str(&name);
            } else {
                line.push_str("  ");
                line.push_str(name.trim_start());
            }
            if opt.help.is_empty() {
                continue;
            }
            if line.len() + 2 + opt.help.len() > WIDTH {
                let _ = writeln!(text, "{line}");
                line.clear();
            }
            let column = if line.len() < NAMES { NAMES } else { line.len() + 1 };
            let _ = writeln!(text, "{line:<column$} {}", opt.help);
            line.clear();
        }
        let _ = writeln!(text, "\nManual: man {}; the whole: man nskit", self.name);
        text
    }
}

impl Args {
    /// Whether the option was given, without a value if it may have one.
    pub fn flag(&self, long: &str) -> bool {
        if !self.named.contains(&long) {
            return false;
        }
        let letter = self.letters.iter().find(|(known, _)| *known == long).map(|(_, letter)| *letter);
        let given = |name: &str| self.given.iter().any(|m| m.opt_defined(name) && m.opt_present(name));
        given(long) || letter.is_some_and(given)
    }

    /// The last value given for an option, as is usual on Unix.
    pub fn value(&self, long: &str) -> Option<OsString> {
        self.values(long).pop()
    }

    /// All values given for an option, in order.
    pub fn values(&self, long: &str) -> Vec<OsString> {
        if !self.named.contains(&long) {
            return Vec::new();
        }
        let defined = self.given.iter().filter(|m| m.opt_defined(long));
        defined.flat_map(|m| m.opt_strs(long)).map(|v| narrow(&v)).collect()
    }

    /// All values given for these options, in the order in which they were
    /// typed, each with its option.
    pub fn in_order(&self, options: &[&'static str]) -> Vec<(&'static str, OsString)> {
        let mut all = Vec::new();
        for given in &self.given {
            let mut here: Vec<(usize, &'static str, OsString)> = Vec::new();
            for long in options.iter().filter(|long| given.opt_defined(long)) {
                for (at, value) in given.opt_strs_pos(long) {
                    let place = here.iter().take_while(|(before, ..)| *before < at).count();
                    here.insert(place, (at, long, narrow(&value)));
                }
            }
            all.extend(here.into_iter().map(|(_, long, value)| (long, value)));
        }
        all
    }

    /// The value of an option as a decimal number.
    ///
    /// # Errors
    /// Wrong usage: it is none.
    pub fn number(&self, long: &str) -> Result<Option<u64>> {
        let Some(word) = self.value(long) else { return Ok(None) };
        let bad = || Failure::usage(format!("--{long}: {} is not a decimal number", crate::word::quote(&word)));
        Ok(Some(crate::id::number(word.as_bytes()).ok_or_else(bad)?))
    }

    /// Whether only the plan is wanted.
    pub fn dry(&self) -> bool {
        self.flag("dry-run")
    }

    /// Whether an operand is `-`, or what `--into`, `--like` or `--target` names: this
    /// is a stage of a pipeline.
    pub fn piped(&self) -> bool {
        let named = ["into", "like", "target"].iter().any(|option| self.value(option).is_some_and(|v| v == "-"));
        named || self.operands.iter().any(|o| o == "-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cli(operands: Operands) -> Cli {
        const OPTIONS: &[Opt] = &[opt("m", "mount", "", ""), opt("p", "pid", "", ""), valued("target", "T", "")];
        Cli { name: "t", purpose: "", usage: &[""], options: &[OPTIONS], operands, runs: false, stage: Stage::No }
    }

    fn parse(operands: Operands, line: &str) -> (Vec<String>, Vec<String>, bool, bool) {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let args = cli(operands).parse(&words).unwrap();
        let text = |w: &[OsString]| w.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        (text(&args.operands), text(&args.program), args.flag("mount"), args.flag("pid"))
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_end_at_the_program() {
        let enter = Operands::Program(1, &["target"]);
        assert_eq!(parse(enter, "-m 12 -p ls -m"), (words("12"), words("ls -m"), true, true));
        assert_eq!(parse(enter, "-mp 12"), (words("12"), vec![], true, true));
        assert_eq!(parse(enter, "12 -- -m"), (words("12"), words("-m"), false, false));
        assert_eq!(parse(enter, "-- 12 -m"), (words("12"), words("-m"), false, false));
        assert_eq!(parse(enter, "--target 12 ls -p"), (vec![], words("ls -p"), false, false));
        let new = Operands::Program(0, &[]);
        assert_eq!(parse(new, "-m ls - -p"), (vec![], words("ls - -p"), true, false));
        assert_eq!(parse(new, "-m - -p"), (words("-"), vec![], true, true));
        assert_eq!(parse(new, "-m -- - x"), (vec![], words("- x"), true, false));
        assert_eq!(parse(Operands::Free, "a -m b -p -- -x"), (words("a b -x"), vec![], true, true));
        let then = Operands::FreeThenProgram;
        assert_eq!(parse(then, "a -m b -- x -p"), (words("a b"), words("x -p"), true, false));
        assert_eq!(parse(then, "a -m b"), (words("a b"), vec![], true, false));
        assert_eq!(parse(then, "a -- x -- y"), (words("a"), words("x -- y"), false, false));
        assert_eq!(parse(then, "--target -- a -- x"), (words("a"), words("x"), false, false));
        assert_eq!(parse(Operands::Program(1, &[]), "--target -- a -m x"), (words("a"), words("x"), true, false));
        assert_eq!(parse(then, "a --"), (words("a"), vec![], false, false));
    }

    #[test]
    fn an_option_stands_for_others() {
        let cli = cli(Operands::Program(1, &[]));
        let args = cli.parse(&["--target=1".into(), "x".into(), "-p".into(), "ls".into()]).unwrap();
        let all = cli.preceded(&args, &["--target=2".into(), "-m".into()]).unwrap();
        assert!(all.flag("mount") && all.flag("pid") && !args.flag("mount"));
        assert_eq!(all.in_order(&["target"]), [("target", "2".into()), ("target", "1".into())]);
        assert_eq!((all.operands, all.program), (args.operands, args.program));
    }

    #[test]
    fn bytes_stay_bytes() {
        let all: Vec<u8> = (1..=255).collect();
        let word = OsString::from_vec(all);
        assert_eq!(narrow(&widen(&word)), word);
        let args = cli(Operands::Free).parse(&["--target".into(), OsString::from_vec(vec![0xff])]).unwrap();
        assert_eq!(args.value("target"), Some(OsString::from_vec(vec![0xff])));
        assert!(cli(Operands::Free).parse(&["--bogus".into()]).is_err());
        assert!(cli(Operands::Free).parse(&["--mou".into()]).is_err());
        let failure = cli(Operands::Free).parse(&["--bo\u{1b}gus\u{e9}".into()]).err().unwrap().to_string();
        assert!(failure.contains("'bo\\u{1b}gus\u{e9}'"), "{failure}");
        assert!(cli(Operands::Free).parse(&["-m".into(), "--m".into()]).is_err());
        let args = cli(Operands::Free).parse(&["--target".into(), "--m".into(), "--".into(), "--p".into()]).unwrap();
        assert_eq!((args.value("target"), args.operands), (Some("--m".into()), vec!["--p".into()]));
    }
}

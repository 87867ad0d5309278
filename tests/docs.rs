//! The manual and the tools say the same: every option, every form of the
//! command line, every exit status, every reason that the manual quotes.
//!
//! The pages are read as what they are, mdoc(7): a line that begins with a dot
//! is a macro with its arguments, any other is text.

// The rules of the tools do not bind their tests: no tool starts a program by itself.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The tools, and whether each ends in a program with exit statuses of its own.
const TOOLS: [(&str, &str, bool); 7] = [
    ("subid-alloc", env!("CARGO_BIN_EXE_subid-alloc"), false),
    ("ns-new", env!("CARGO_BIN_EXE_ns-new"), true),
    ("uidmap-set", env!("CARGO_BIN_EXE_uidmap-set"), false),
    ("ns-enter", env!("CARGO_BIN_EXE_ns-enter"), true),
    ("idmap-mount", env!("CARGO_BIN_EXE_idmap-mount"), false),
    ("pivot-exec", env!("CARGO_BIN_EXE_pivot-exec"), true),
    ("ns-show", env!("CARGO_BIN_EXE_ns-show"), false),
];

/// Words of a reason that a tool fills in.
const BLANKS: [&str; 12] =
    ["NUMBER", "PID", "NAME", "USER", "FILE", "DIR", "KIND", "TYPE", "TEXT", "LIST", "IDS", "LINE"];

// ---- pages ----

fn top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn page(name: &str) -> String {
    fs::read_to_string(top("man").join(name)).unwrap_or_else(|e| panic!("man/{name}: {e}"))
}

fn pages() -> BTreeMap<String, String> {
    let names = fs::read_dir(top("man")).unwrap().map(|entry| entry.unwrap());
    let files = names.filter(|entry| entry.path().is_file());
    files.map(|entry| entry.file_name().into_string().unwrap()).map(|name| (name.clone(), page(&name))).collect()
}

/// The lines of a section, without its title.
fn section<'a>(page: &'a str, title: &str) -> Vec<&'a str> {
    let head = format!(".Sh {title}");
    page.lines().skip_while(|line| **line != head).skip(1).take_while(|line| !line.starts_with(".Sh ")).collect()
}

/// The lines of a subsection, without its title.
fn subsection<'a>(page: &'a str, title: &str) -> Vec<&'a str> {
    let (head, ends) = (format!(".Ss {title}"), |line: &&str| line.starts_with(".Ss ") || line.starts_with(".Sh "));
    page.lines().skip_while(|line| **line != head).skip(1).take_while(|line| !ends(line)).collect()
}

/// What follows `.It` on the lines that begin an item.
fn items<'a>(lines: &[&'a str]) -> impl Iterator<Item = &'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(".It "))
}

/// The options that an item is about: `Fl r , Fl -map-root-user` is -r and --map-root-user.
fn flags(item: &str) -> Vec<String> {
    let words: Vec<&str> = item.split(' ').collect();
    words.windows(2).filter(|pair| pair[0] == "Fl").map(|pair| format!("-{}", pair[1])).collect()
}

/// A macro line as text: brackets around Op, a dash before each flag. Blanks
/// mean nothing here, and arguments have no capitals in the manual.
fn text(line: &str) -> String {
    let mut text = String::new();
    let mut open = 0;
    let mut flag = false;
    for word in line.trim_start_matches('.').split(' ') {
        match word {
            "Op" => {
                text.push('[');
                open += 1;
            }
            "Fl" => {
                text.push('-');
                flag = true;
                continue;
            }
            "Ar" | "Cm" | "Ns" => {}
            other => text.push_str(other),
        }
        assert!(!flag || word.starts_with(['-', '|']) || word.len() == 1, "an odd flag in {line}");
        flag = false;
    }
    text.push_str(&"]".repeat(open));
    text.to_lowercase()
}

/// The forms of the command line in a page, without the name.
fn forms(page: &str) -> Vec<String> {
    let mut forms: Vec<String> = Vec::new();
    for line in section(page, "SYNOPSIS") {
        if line == ".Nm" {
            forms.push(String::new());
        } else {
            forms.last_mut().unwrap().push_str(&text(line));
        }
    }
    forms
}

// ---- tools ----

fn output(program: &str, argument: &str) -> Output {
    Command::new(program).arg(argument).output().unwrap()
}

fn help(program: &str) -> String {
    String::from_utf8(output(program, "--help").stdout).unwrap()
}

/// The forms in --help, written as in `forms`.
fn usage(help: &str, tool: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| !line.starts_with("usage: ")).take_while(|line| !line.is_empty());
    let form = |line: &str| line.trim_start_matches("usage:").trim_start().strip_prefix(tool).unwrap().replace(' ', "");
    lines.map(|line| form(line).to_lowercase()).collect()
}

/// The options in --help: letter (or none) and long name, with dashes. Several may be told together
/// on a line; two blanks are between them.
fn options(help: &str) -> Vec<(Option<String>, String)> {
    let mut found = Vec::new();
    for entry in help.lines().filter(|line| line.starts_with("  ")).flat_map(|line| line.split("  ")) {
        let (letter, long) = match entry.trim().split_once(", ") {
            Some((letter, long)) if letter.len() == 2 => (Some(letter.to_owned()), long),
            Some(_) | None => (None, entry.trim()),
        };
        if long.starts_with("--") {
            // Without its value: --name VALUE, --name[=VALUE].
            found.push((letter, long.split([' ', '[']).next().unwrap().to_owned()));
        }
    }
    found
}

// ---- the tests ----

#[test]
fn options_are_in_the_manual_and_no_others() {
    for (tool, program, _) in TOOLS {
        let page = page(&format!("{tool}.1"));
        let told: Vec<Vec<String>> =
            items(&section(&page, "DESCRIPTION")).map(flags).filter(|flags| !flags.is_empty()).collect();
        let real: Vec<Vec<String>> =
            options(&help(program)).into_iter().map(|(s, l)| s.into_iter().chain([l]).collect()).collect();
        assert!(real.len() >= 4, "{tool}");
        assert_eq!(told, real, "man/{tool}.1 and {tool} --help, in this order");
    }
}

#[test]
fn help_is_one_screen() {
    for (tool, program, _) in TOOLS {
        let help = help(program);
        assert!(help.lines().count() <= 47, "{tool} --help has {} lines", help.lines().count());
        // One form is longer.
        for line in help.lines().filter(|line| !line.contains(" -- PROGRAM")) {
            assert!(line.len() <= 80, "{tool} --help: {line}");
        }
    }
}

#[test]
fn the_synopsis_is_the_usage() {
    for (tool, program, _) in TOOLS {
        assert_eq!(forms(&page(&format!("{tool}.1"))), usage(&help(program), tool), "{tool}");
    }
}

#[test]
fn the_one_line_is_the_same_everywhere() {
    let front = page("nskit.7");
    let readme = fs::read_to_string(top("README.md")).unwrap();
    for (tool, program, _) in TOOLS {
        let help = help(program);
        let purpose = help.lines().next().unwrap().strip_prefix(&format!("{tool} - ")).unwrap().to_owned();
        let page = page(&format!("{tool}.1"));
        assert!(page.contains(&format!(".Nm {tool}\n.Nd {purpose}\n")), "man/{tool}.1 has another purpose");
        let lines = front.split(&format!(".It Xr {tool} 1\n")).nth(1).unwrap().split("\n.It ").next().unwrap();
        let lines: Vec<&str> = lines.split("\n.El").next().unwrap().lines().collect();
        let told: Vec<&str> = lines.iter().map(|line| line.trim_start_matches(".Pa ")).collect();
        assert_eq!(told.join(" ").replace(" ,", ","), purpose, "nskit.7, {tool}");
        assert!(readme.contains(&format!("| `{tool}` | {purpose} |")), "README.md, {tool}");
    }
}

#[test]
fn a_letter_means_the_same_everywhere() {
    let front = page("nskit.7");
    let mut told = BTreeMap::new();
    for flags in items(&section(&front, "SHORT OPTIONS")).map(flags) {
        let [letter, long] = flags.as_slice() else { panic!("nskit.7, SHORT OPTIONS: {flags:?}") };
        assert!(told.insert(letter.clone(), long.clone()).is_none(), "{letter} twice");
    }
    let mut real = BTreeMap::new();
    for (tool, program, _) in TOOLS {
        for (letter, long) in options(&help(program)) {
            let Some(letter) = letter else {
                // Who has it at all has it with its letter.
                assert!(!told.values().any(|known| *known == long), "{tool} has {long} without its letter");
                continue;
            };
            let before = real.insert(letter.clone(), long.clone());
            assert!(before.is_none_or(|before| before == long), "{tool}: {letter} is {long}");
        }
    }
    assert_eq!(told, real, "nskit.7, SHORT OPTIONS");
}

#[test]
fn exit_statuses_are_those_of_the_design() {
    let front = page("nskit.7");
    let table = section(&front, "EXIT STATUS").join("\n");
    for (tool, program, runs) in TOOLS {
        let page = page(&format!("{tool}.1"));
        let told: Vec<&str> = items(&section(&page, "EXIT STATUS")).collect();
        if runs {
            assert_eq!(told, ["125", "126", "127"], "{tool}");
        } else {
            assert_eq!(told[..3], ["0", "1", "2"], "{tool}");
            assert!(told[3..].iter().all(|status| *status == "3"), "{tool}");
            let partial = table.lines().find(|line| line.contains(" Ta 3 Ta ")).unwrap();
            assert_eq!(partial.contains(tool), told.len() == 4, "nskit.7, status 3: {tool}");
        }
        assert!(table.contains(tool), "nskit.7, EXIT STATUS: {tool}");
        let status = output(program, "--no-such-option").status.code();
        assert_eq!(status, Some(if runs { 125 } else { 2 }), "{tool} --no-such-option");
        assert_eq!(output(program, "--version").status.code(), Some(0), "{tool}");
    }
}

/// The program text, without comments and unit tests.
fn code() -> String {
    fn below(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, text);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let code = fs::read_to_string(&path).unwrap();
                let code = code.lines().take_while(|line| *line != "#[cfg(test)]");
                let code = code.filter(|line| !line.trim_start().starts_with("//"));
                text.extend(code.map(|line| line.replace("\\\"", "''") + "\n"));
            }
        }
    }
    let mut text = String::new();
    below(&top("bins"), &mut text);
    below(&top("common/src"), &mut text);
    text
}

/// The parts of a sentence between its blanks, without brackets at their ends.
fn literal_parts(sentence: &str) -> Vec<String> {
    let mut parts = vec![sentence.to_owned()];
    for blank in BLANKS {
        parts = parts.iter().flat_map(|part| part.split(blank)).map(str::to_owned).collect();
    }
    let bare = |part: String| part.trim_matches([' ', '(', ')']).to_owned();
    parts.into_iter().map(bare).filter(|part| !part.is_empty()).collect()
}

/// Whether the tools say this: in one string, or in up to three that they put
/// together.
fn is_said(part: &str, strings: &str) -> bool {
    let mut words: Vec<&str> = part.split(' ').collect();
    for _ in 0..3 {
        let known = (1..=words.len()).rev().find(|n| strings.contains(&words[..*n].join(" ")));
        words.drain(..known.unwrap_or(0));
    }
    words.is_empty()
}

#[test]
fn reasons_in_the_manual_are_in_the_tools() {
    let code = code();
    let strings: Vec<&str> = code.split('"').skip(1).step_by(2).collect();
    let strings = strings.join("\n");
    let (mut count, mut unknown) = (0, Vec::new());
    for (name, page) in pages() {
        for item in items(&section(&page, "DIAGNOSTICS")) {
            let parts = literal_parts(item);
            assert!(!parts.is_empty(), "man/{name}: `{item}` says nothing");
            unknown.extend(parts.iter().filter(|part| !is_said(part, &strings)).map(|part| format!("{name}: {part}")));
            count += 1;
        }
    }
    assert!(unknown.is_empty(), "no tool says this:\n{}", unknown.join("\n"));
    assert!(count > 40, "only {count} reasons: are they still read?");
}

/// Found where a reason is made; by its longest part, since the manual leaves
/// out what is filled in.
#[test]
fn reasons_in_the_tools_are_in_the_manual() {
    let manual = pages().into_values().collect::<Vec<_>>().join("\n");
    let code = code();
    let mut missing = Vec::new();
    for made in ["Because::new(", "said("] {
        for rest in code.split(made).skip(1).map(str::trim_start) {
            let rest = rest.strip_prefix("format!(").map_or(rest, str::trim_start);
            let Some(sentence) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
            let parts = sentence.split(['{', '}']).step_by(2).map(|part| part.trim_matches([' ', '(', ')', ',']));
            let longest = parts.max_by_key(|part| part.len()).unwrap_or_default();
            if !manual.contains(longest) {
                missing.push(sentence);
            }
        }
    }
    assert!(missing.is_empty(), "no page has these reasons in its DIAGNOSTICS:\n{}", missing.join("\n"));
}

/// The lines that a page displays, as they are read: each `.Dl`, each literal block.
fn displays(lines: &[&str]) -> Vec<Vec<String>> {
    let plain = |line: &str| line.replace("\\&", "").replace("\\e", "\\");
    let (mut found, mut block) = (Vec::new(), None);
    for line in lines {
        if let Some(line) = line.strip_prefix(".Dl ") {
            found.push(vec![plain(line)]);
        } else if line.starts_with(".Bd -literal") {
            block = Some(Vec::new());
        } else if *line == ".Ed" {
            found.extend(block.take());
        } else if let Some(block) = &mut block {
            block.push(plain(line));
        }
    }
    found
}

/// Whether these stand together, in this order.
fn has(all: &[&str], wanted: &[String]) -> bool {
    all.windows(wanted.len()).any(|some| some == wanted)
}

/// Typed as they stand in the page, in a transcript that says what then comes. An example with
/// prompts is one with its output, and has that there.
#[test]
fn examples_in_the_manual_are_run() {
    let files = fs::read_dir(top("tests/examples")).unwrap();
    let run = files.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect::<Vec<_>>().join("\n");
    let shown: Vec<&str> = run.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect();
    let prompts = ["$ ", "2$ ", "# ", "> "];
    let typed = shown.iter().filter_map(|line| prompts.iter().find_map(|prompt| line.strip_prefix(prompt)));
    let typed: Vec<&str> = typed.collect();
    let mut missing = Vec::new();
    for (name, page) in pages() {
        let lines = match name.as_str() {
            "nskit.7" => subsection(&page, "A pipeline"),
            _ => section(&page, "EXAMPLES"),
        };
        let examples = displays(&lines);
        assert!(examples.len() > 1, "man/{name} has no examples");
        let is_session = |example: &[String]| example[0].starts_with(['$', '#']);
        let is_run = |example: &Vec<String>| has(if is_session(example) { &shown } else { &typed }, example);
        let told = |example: &Vec<String>| format!("man/{name}:\n{}", example.join("\n"));
        missing.extend(examples.iter().filter(|example| !is_run(example)).map(told));
    }
    assert!(missing.is_empty(), "not in tests/examples:\n{}", missing.join("\n"));
}

/// The tables of the kernel's reasons name the files that provoke them, that of attacks those in which
/// they are tried.
#[test]
fn tables_of_refusals_name_files_that_are_there() {
    let mut count = 0;
    for table in ["refusals/README.md", "refusals/ROOTS.md", "attacks/PRIVILEGED.md", "attacks/RACES.md"] {
        let table = top("tests").join(table);
        let (text, dir) = (fs::read_to_string(&table).unwrap(), table.parent().unwrap());
        for name in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".md")) {
            assert!(dir.join(name).is_file(), "{}: {name}", table.display());
            count += 1;
        }
    }
    assert!(count > 100, "only {count} names: are they still read?");
}

/// Each defence that can be taken out stands beside its attack.
#[test]
fn tables_of_attacks_name_all_defences() {
    let table = |name| fs::read_to_string(top("tests/attacks").join(name)).unwrap();
    let text = table("README.md") + &table("PRIVILEGED.md");
    let named: BTreeSet<&str> = text.split('`').skip(1).step_by(2).collect();
    let names =
        fs::read_dir(top("tests/defences")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let missing: Vec<String> = names.filter(|name| name != "run" && !named.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "in no table of tests/attacks: {missing:?}");
}

/// The long options in `lines`, each with the tool before it; that of options before any is `tool`.
fn used<'a>(lines: impl Iterator<Item = &'a str>, tool: &'a str) -> BTreeSet<(&'a str, &'a str)> {
    let mut tool = tool;
    let mut found = BTreeSet::new();
    for word in lines.flat_map(|line| line.split([' ', '(', '=', ';'])) {
        if TOOLS.iter().any(|(name, ..)| *name == word) {
            tool = word;
        } else if word.starts_with("--") {
            found.insert((tool, word));
        }
    }
    found
}

/// Every mode that an example shows has its system calls failed.
#[test]
fn what_the_examples_show_is_in_the_list_of_faults() {
    let list = fs::read_to_string(top("tests/faults/list")).unwrap();
    let tried = used(list.lines().filter(|line| line.starts_with("run ")), "");
    let mut count = 0;
    for (tool, program, _) in TOOLS {
        // Those of other programs are not ours to try.
        let known: Vec<String> = options(&help(program)).into_iter().map(|(_, long)| long).collect();
        for (name, page) in pages() {
            let lines = section(&page, "EXAMPLES");
            for (_, option) in used(lines.into_iter(), name.trim_end_matches(".1")).iter().filter(|(t, _)| *t == tool) {
                let is_tried = tried.contains(&(tool, *option)) || !known.iter().any(|long| long == option);
                assert!(is_tried, "man/{name}, EXAMPLES: {tool} {option} has no line in tests/faults/list");
                count += 1;
            }
        }
    }
    assert!(count > 40, "only {count} options: are they still read?");
}

#[test]
fn pages_name_pages_that_are_there() {
    let pages = pages();
    let ours: BTreeSet<&str> = pages.keys().map(String::as_str).collect();
    for (tool, ..) in TOOLS {
        assert!(ours.contains(format!("{tool}.1").as_str()), "{tool}");
    }
    for (name, page) in &pages {
        for reference in page.lines().filter_map(|line| line.strip_prefix(".Xr ")) {
            let mut words = reference.split(' ');
            let (title, number) = (words.next().unwrap(), words.next().unwrap());
            let is_ours = title.starts_with("nskit") || TOOLS.iter().any(|(tool, ..)| *tool == title);
            assert!(!is_ours || ours.contains(format!("{title}.{number}").as_str()), "man/{name}: {reference}");
        }
    }
}

#[test]
fn the_readme_is_short_and_whole() {
    let readme = fs::read_to_string(top("README.md")).unwrap();
    assert!(readme.lines().count() < 150);
    for word in ["make demo", "make test", "ns-new -a -", "LICENSE", "nix", "libc", "getopts", "capctl", "memchr"] {
        assert!(readme.contains(word), "{word}");
    }
    let licence = fs::read_to_string(top("LICENSE")).unwrap();
    assert!(licence.contains("MIT OR Apache-2.0") && licence.contains("MIT License"));
    assert!(licence.contains("END OF TERMS AND CONDITIONS"));
}

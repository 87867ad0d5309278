//! The rules of the house that the compiler does not know: which module may
//! use which, where unsafe code and system calls stand, who prints and exits.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module of common may use of the others. In this order nothing
/// points upward: a module uses only those above it.
const MODULES: &[(&str, &[&str])] = &[
    ("id", &[]),
    ("ns", &[]),
    ("sys", &[]),
    ("fail", &[]),
    ("word", &["fail"]),
    ("record", &["fail", "id", "word"]),
    ("cli", &["fail", "id", "word"]),
    ("proc/mountinfo", &["id", "word"]),
    ("proc/status", &["word"]),
    ("proc", &["fail", "id", "ns", "sys"]),
    ("path", &["fail", "id", "proc", "sys", "word"]),
    ("cgroup", &["fail", "id", "ns", "path", "proc", "sys", "word"]),
    ("mounted", &["fail", "id", "proc", "sys", "word"]),
    ("owners", &["fail", "id", "path", "word"]),
    ("ready", &["id", "ns", "proc", "sys"]),
    ("mind", &["sys"]),
    ("mind/child", &["proc", "sys"]),
    ("front", &["mind/child", "proc", "sys"]),
    ("mind/program", &["front", "proc", "ready", "sys"]),
    ("pty", &["mind", "mind/child", "mind/program", "proc", "sys"]),
    ("lease", &["fail", "id", "word"]),
    ("look", &["fail", "id", "mind", "mind/child", "ns", "proc", "sys"]),
    ("scan", &["fail", "look", "mounted", "ns", "proc", "sys"]),
    ("holder", &["lease", "mind", "mind/child", "mind/program", "sys"]),
    ("holder/door", &["mind", "sys"]),
    ("holder/stage", &["mind", "mind/child", "mind/program", "sys"]),
    ("helper", &["fail", "mind", "sys"]),
    ("user", &["fail", "helper", "id", "proc"]),
    ("subid/line", &["id"]),
    ("subid", &["fail", "helper", "id", "user", "word"]),
    ("survey", &["fail", "id", "subid"]),
    ("etc", &["fail", "path", "proc", "sys", "word"]),
    ("etc/lock", &["fail", "id", "mind", "proc", "sys"]),
    ("preset", &["fail", "id", "proc", "subid", "user", "word"]),
    ("target/why", &["fail", "ns", "proc", "sys", "user"]),
    ("target", &["target/why", "fail", "holder/door", "id", "path", "proc", "record", "sys", "word"]),
    ("target/stream", &["target", "fail", "mind", "proc", "record", "sys"]),
    ("target/given", &["target", "fail", "id", "path", "sys", "word"]),
    ("target/files", &["target", "target/why", "fail", "id", "mind/child", "ns", "path", "proc", "record", "sys"]),
    ("feature", &["fail", "ns", "proc", "sys", "target"]),
    ("name", &["fail", "holder", "holder/door", "proc", "record", "target", "word"]),
    ("container/notes", &["id"]),
    ("container", &["fail", "name", "proc", "target", "word"]),
    ("step", &["fail", "feature", "id", "mind/child", "ns", "path", "proc", "target/files"]),
    ("step/cgroup", &["step", "cgroup", "fail", "mind", "mind/child", "ns", "proc", "sys"]),
    ("step/notify", &["step", "fail", "mind", "sys", "word"]),
    ("step/newuidmap", &["step", "fail", "helper", "id", "proc", "subid", "sys", "target", "user"]),
    (
        "step/map",
        &["step", "step/newuidmap", "fail", "id", "mind", "mind/child", "ns", "proc", "record", "sys", "target"],
    ),
    ("step/tree/why", &["step", "fail", "path", "proc", "sys", "word"]),
    ("step/tree", &["step", "fail", "ns", "owners", "path", "proc", "sys", "word"]),
    ("step/ns/join", &["step", "fail", "ns", "proc", "sys", "target"]),
    ("step/ns/limit", &["step", "cgroup", "fail", "id", "ns", "proc", "sys"]),
    ("step/ns", &["step", "fail", "holder/door", "id", "mind", "mind/child", "ns", "proc", "sys", "target", "word"]),
    ("step/fs", &["step", "step/tree", "fail", "id", "ns", "proc", "sys", "word"]),
    ("step/mount", &["step", "step/fs", "step/tree", "fail", "path", "proc", "sys", "word"]),
    ("step/overlay", &["step", "step/fs", "step/mount", "step/tree", "fail", "path", "proc", "sys", "word"]),
    ("step/inside", &["step", "step/fs", "step/mount", "step/overlay", "step/tree", "fail", "path", "sys", "word"]),
    ("step/own", &["step", "fail", "id", "mind", "path", "proc", "sys", "word"]),
    ("step/pin", &["step", "fail", "ns", "path", "proc", "sys", "word"]),
    ("step/file", &["step", "etc", "etc/lock", "fail", "word"]),
    (
        "step/beside",
        &["step", "fail", "holder/door", "holder/stage", "id", "mind", "mind/child", "proc", "sys", "target", "word"],
    ),
    ("step/exec", &["step", "step/ns", "fail", "proc", "sys", "word"]),
    (
        "step/end",
        &[
            "step",
            "step/exec",
            "fail",
            "front",
            "holder",
            "lease",
            "mind",
            "mind/child",
            "mind/program",
            "proc",
            "ready",
            "record",
            "sys",
            "target",
            "word",
        ],
    ),
    ("step/terminal", &["step", "step/end", "step/own", "fail", "front", "proc", "pty", "sys", "target/given"]),
    ("step/program", &["step", "step/exec", "step/ns", "fail", "id", "ns", "path", "proc", "sys", "word"]),
    ("step/bring", &["step", "step/fs", "step/inside", "step/tree", "fail", "path", "sys", "word"]),
    ("step/like", &["step", "step/program", "fail", "proc", "sys", "target", "word"]),
    ("plan", &["cgroup", "step", "step/ns", "fail", "feature", "mind", "mind/child", "ns", "proc", "sys"]),
    ("idmap", &["fail", "id", "ns", "path", "plan", "proc", "step", "step/end", "step/map", "step/ns", "step/tree"]),
    (
        "idmap/judge",
        &[
            "fail",
            "id",
            "mounted",
            "ns",
            "path",
            "plan",
            "proc",
            "step",
            "step/mount",
            "step/ns",
            "step/tree",
            "sys",
            "user",
            "word",
        ],
    ),
    ("tool", &["cli", "fail", "feature", "mind", "plan", "proc", "record", "step", "sys", "target"]),
];

/// The rooms that may call `sys`: one, by design (design: safety rules).
const PRIVILEGED: &str = "bins/uidmap-set/privileged.rs";

fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned()
}

/// The code of a file: without its tests, comments and what stands in quotes.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap().to_owned();
    let lines = text.lines().map(|l| l.split("//").next().unwrap_or_default());
    let mut bare = String::new();
    for line in lines {
        bare.extend(line.replace("\\\"", "").split('"').step_by(2));
        bare.push('\n');
    }
    bare
}

/// The modules of common that `code` names by paths that begin with `head`.
fn used(code: &str, head: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(head) {
        let rest = &code[at + head.len()..];
        let paths: Vec<&str> = match rest.strip_prefix('{') {
            // use crate::{a, b::{c, d}}: what stands at the first depth
            Some(list) => {
                let mut depth = 0;
                let mut starts = vec![list];
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => starts.push(list[i + 1..].trim_start()),
                        _ => {}
                    }
                }
                starts
            }
            None => vec![rest],
        };
        for path in paths {
            let first = word(path.trim_start());
            // Rooms that are named by their house: step::own, target::files.
            let below = path.trim_start().split_once("::").map(|(house, room)| format!("{house}/{}", word(room)));
            let below = below.filter(|room| MODULES.iter().any(|(m, _)| m == room));
            found.insert(below.unwrap_or(first));
        }
    }
    found.remove("");
    found
}

#[test]
fn arrows_point_down() {
    for (at, (module, may)) in MODULES.iter().enumerate() {
        for other in *may {
            let above = MODULES.iter().position(|(m, _)| m == other).unwrap();
            assert!(above < at, "{module} may not use {other}: it comes later");
        }
    }
    let mut seen = BTreeSet::new();
    for path in rust_files("common/src") {
        let module = name(&path).trim_start_matches("common/src/").trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        if module.starts_with("sys/") {
            assert_eq!(used(&code(&path), "crate::"), BTreeSet::new(), "{module}");
            continue;
        }
        let (_, may) =
            MODULES.iter().find(|(m, _)| *m == module).unwrap_or_else(|| panic!("{module} is new: give it its place"));
        let mut uses = used(&code(&path), "crate::");
        if module.starts_with("step/") {
            uses.insert("step".to_owned());
            uses.extend(
                used(&code(&path), "super::")
                    .iter()
                    .map(|w| format!("step/{w}"))
                    .filter(|w| MODULES.iter().any(|(m, _)| m == w)),
            );
        }
        for other in &uses {
            assert!(may.contains(&other.as_str()), "{module} uses {other}");
        }
        for other in *may {
            assert!(uses.contains(*other), "{module} does not use {other} any more");
        }
        seen.insert(module);
    }
    assert_eq!(seen.len(), MODULES.len());
}

#[test]
fn unsafe_code_is_in_sys() {
    let files = rust_files("common/src").into_iter().chain(rust_files("bins"));
    let with: Vec<String> = files.filter(|p| code(p).contains("unsafe")).map(|p| name(&p)).collect();
    let is_sys = |name: &String| name == "common/src/sys.rs" || name.starts_with("common/src/sys/");
    assert!(with.iter().any(is_sys));
    let outside: Vec<&String> = with.iter().filter(|name| !is_sys(name)).collect();
    assert_eq!(outside, Vec::<&String>::new());
}

#[test]
fn tools_decide_and_do_nothing_themselves() {
    for path in rust_files("bins") {
        let (code, name) = (code(&path), name(&path));
        for word in ["nix::", "libc::", "println!", "print!(", "process::exit", "Command", "std::thread", "getopts"] {
            let whole = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            assert!(!code.match_indices(word).any(|(at, _)| whole(at)), "{name}: {word}");
        }
        // Constants of mounts are names of the kernel's, not calls.
        let calls = code.replace("sys::{MOUNT_ATTR", "").replace("sys::MOUNT_ATTR", "");
        assert!(name == PRIVILEGED || !calls.contains("sys::"), "{name} uses sys");
    }
}

#[test]
fn the_privileged_room_is_small() {
    let code = code(&Path::new(env!("CARGO_MANIFEST_DIR")).join(PRIVILEGED));
    let uses = used(&code, "common::");
    let may = [
        "fail",
        "id",
        "mind",
        "proc",
        "step",
        "step/map",
        "step/newuidmap",
        "subid",
        "sys",
        "target",
        "target/why",
        "user",
        "word",
    ];
    assert!(uses.iter().all(|m| may.contains(&m.as_str())), "{uses:?}");
    assert!(!uses.contains("helper") && !uses.contains("plan"));
}

/// One forgotten arm `_` over an enum of ours would let a new effect go
/// undone, unnamed or unexplained.
#[test]
fn effects_are_matched_one_by_one() {
    for path in rust_files("common/src/step") {
        let text = fs::read_to_string(&path).unwrap();
        for body in text.split("match self {").skip(1) {
            let body = body.split("\n        }\n").next().unwrap();
            assert!(!body.contains("\n            _ =>"), "{}", name(&path));
        }
    }
}

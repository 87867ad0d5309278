//! What belongs into the new root: from the command line and lines of fstab(5)
//! to steps. All mounts are such lines; the options are short forms of them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Because, Errno, Failure, Result, errno};
use common::id::Kind as IdKind;
use common::idmap::{Idmap, Maps};
use common::path::{self, Place};
use common::plan::Plan;
use common::preset::{from_words, lawful};
use common::proc::{Proc, read_all};
use common::step::inside::Effect;
use common::step::tree::attribute;
use common::sys::{MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use common::target::{self, Operand};
use common::word::quote;

use super::fstab::{Line, entry, lines, parse, place};
use super::{CLI, outside};

/// What each short form mounts.
const SHORT: [(&str, &str); 7] = [
    ("proc", "proc /proc proc"),
    ("sys", "sysfs /sys sysfs ro"),
    ("cgroup2", "cgroup2 /sys/fs/cgroup cgroup2"),
    ("tmp", "tmpfs /tmp tmpfs mode=1777"),
    ("dev", "tmpfs /dev tmpfs mode=755"),
    ("dev", "devpts /dev/pts devpts newinstance,ptmxmode=0666,mode=620"),
    ("dev", "tmpfs /dev/shm tmpfs mode=1777"),
];

/// The devices of a minimal /dev: null(4), full(4), random(4), tty(4).
const DEVICES: [(&str, (u64, u64)); 6] =
    [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0))];

const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// What container managers hide, and what they let only be read: the defaults
/// of the OCI runtime specification.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
const PROTECTED: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const TYPED: [&str; 9] = ["bind", "bind-ro", "bind-dev", "tmpfs", "dir", "file", "symlink", "mask", "protect"];

/// The steps in the order that shows everything: what each tool knows first,
/// then the lines of files, then the options as they were typed.
pub(crate) fn steps(args: &Args, proc: &Rc<Proc>, plan: &mut Plan) -> Result<()> {
    for (option, text) in SHORT {
        if args.flag(option) {
            short(text, proc, plan)?;
        }
    }
    if args.flag("dev") {
        devices(proc, plan);
    }
    if args.flag("mqueue") {
        short("mqueue /dev/mqueue mqueue", proc, plan)?;
    }
    for word in args.values("fstab") {
        for line in fstab(&word)?.into_iter().filter(|line| !line.has(&["noauto"])) {
            line.steps(proc, plan)?;
        }
    }
    for (option, word) in args.in_order(&TYPED) {
        typed(option, &word, proc, plan)?;
    }
    if args.flag("mask-proc") {
        let there = |path: &&&str| {
            args.flag("proc") && path.starts_with("/proc") || args.flag("sys") && path.starts_with("/sys")
        };
        MASKED.iter().filter(there).for_each(|path| plan.push(Effect::Mask((*path).into())));
        PROTECTED.iter().filter(there).for_each(|path| plan.push(Effect::ReadOnly((*path).into(), true)));
    }
    Ok(())
}

fn short(text: &str, proc: &Rc<Proc>, plan: &mut Plan) -> Result<()> {
    let mut line = parse(text.as_bytes()).map_err(Failure::usage)?;
    // Terminals belong to group tty, which is 5 everywhere; devpts refuses it
    // where gid 5 is not mapped, as with a map of one id.
    if line.fstype == "devpts" && proc.own_map(IdKind::Gid)?.iter().any(|e| e.inside().has(5)) {
        line.options.push("gid=5".into());
    }
    line.steps(proc, plan)
}

fn devices(proc: &Rc<Proc>, plan: &mut Plan) {
    DEVICES.into_iter().for_each(|(name, number)| plan.push(Effect::Device(name, number)));
    LINKS.into_iter().for_each(|(to, at)| plan.push(Effect::Link(to.into(), at.into())));
    // The terminal is one of another devpts, where ttyname(3) would not find
    // it; the console is where it looks next.
    if let Some(terminal) = path::terminal() {
        let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
        bind(terminal, "/dev/console".into(), attributes, None, proc, plan);
    }
}

fn bind(source: Place, at: OsString, attributes: u64, maps: Option<Maps>, proc: &Rc<Proc>, plan: &mut Plan) {
    let directory = source.is_directory;
    Idmap { source, recursive: true, attributes, maps, remap: false }.steps(proc, plan);
    plan.push(Effect::Attach { at, directory });
}

// ---- lines ----

impl Line {
    fn steps(self, proc: &Rc<Proc>, plan: &mut Plan) -> Result<()> {
        if self.has(&["bind", "rbind"]) {
            return self.bind(proc, plan);
        }
        let attributes = self.attributes();
        let mut options = Vec::new();
        // What has no device calls itself by its type; that needs no saying.
        if self.source != "none" && self.source != self.fstype.as_str() {
            options.push(("source".to_owned(), text(&self.source)?));
        }
        if self.fstype == "overlay" && !self.has(&["userxattr"]) && !proc.in_initial()? {
            options.push(("userxattr".to_owned(), String::new()));
        }
        for word in self.options.iter().filter(|word| !is_ours(word)) {
            let word = text(word)?;
            let (key, value) = word.split_once('=').unwrap_or((&word, ""));
            options.push((key.to_owned(), value.to_owned()));
        }
        plan.push(Effect::New { fstype: self.fstype, options, attributes, at: self.at });
        Ok(())
    }

    fn bind(self, proc: &Rc<Proc>, plan: &mut Plan) -> Result<()> {
        let attributes = self.attributes();
        let mut words = Vec::new();
        for word in &self.options {
            // The second is mount(8)'s, which has blanks between maps.
            let map =
                [&b"idmap="[..], b"X-mount.idmap="].into_iter().find_map(|head| word.as_bytes().strip_prefix(head));
            if let Some(map) = map {
                words.extend(map.split(|b| *b == b' ').map(|map| OsStr::from_bytes(map).to_owned()));
            } else if !is_ours(word) {
                return Err(Failure::usage(format!("bind {}: unknown option {}", quote(&self.at), quote(word))));
            }
        }
        let maps = if words.is_empty() { None } else { Some(maps(&words, proc)?) };
        let source = match outside(&self.source, proc) {
            Err(e) if self.has(&["optional", "nofail"]) && e.errno() == Some(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        bind(source, self.at, attributes, maps, proc, plan);
        Ok(())
    }
}

/// The maps that owners are shifted by: extents, or those of a user namespace
/// whose file is named.
fn maps(words: &[OsString], proc: &Rc<Proc>) -> Result<Maps> {
    if let Some(file) = words.iter().find(|word| word.as_bytes().starts_with(b"/")) {
        let opened = target::given::namespace_file(&Operand::File(file.into()))?;
        let (fd, _) = opened.filter(|_| words.len() == 1).ok_or_else(|| CLI.usage("one user namespace, or maps"))?;
        return Ok(Maps::Of(Rc::new(fd), quote(file)));
    }
    // As in idmap-mount: everybody may see his own files as the real root's.
    Ok(Maps::New(lawful(from_words(words, proc, true)?, proc)?))
}

/// Whether an option is one of mounts, not of a type of file system.
fn is_ours(word: &OsStr) -> bool {
    const WORDS: [&str; 13] = [
        "defaults",
        "bind",
        "rbind",
        "optional",
        "nofail",
        "rw",
        "suid",
        "dev",
        "exec",
        "atime",
        "relatime",
        "symfollow",
        "auto",
    ];
    let known = |word: &str| {
        // Mount points are made in any case.
        WORDS.contains(&word) || attribute(word) != 0 || word.starts_with("x-") || word == "X-mount.mkdir"
    };
    word.to_str().is_some_and(known)
}

fn text(word: &OsStr) -> Result<String> {
    word.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{}: not UTF-8", quote(word))))
}

/// The lines of a file, or of what a descriptor gives.
fn fstab(word: &OsStr) -> Result<Vec<Line>> {
    let bytes = match word.as_bytes().strip_prefix(b"fd:") {
        Some(n) => given(OsStr::from_bytes(n))?,
        None => {
            let opened = fs::File::open(word);
            let opened = opened.map_err(|e| path::not_opened(word, errno(e)))?;
            read_all(opened, MOST).map_err(|e| not_read(quote(word), e))?
        }
    };
    lines(&bytes).map_err(|(n, what)| Failure::usage(format!("{}: line {n}: {what}", quote(word))))
}

/// The most bytes that a file or descriptor may give.
const MOST: usize = 16 << 20;

/// All that the descriptor which `word` names gives.
pub(crate) fn given(word: &OsStr) -> Result<Vec<u8>> {
    let name = format!("descriptor {}", word.to_string_lossy());
    read_all(target::given::duplicate(word)?, MOST).map_err(|e| not_read(name, e))
}

fn not_read(name: String, errno: Errno) -> Failure {
    let because = Because::new(format!("it gives more than {MOST} bytes"));
    Failure::os(format!("read {name}"), errno).because((errno == Errno::E2BIG).then_some(because))
}

// ---- options ----

/// The parts of a word between colons, the last with what is left; `\:` is a
/// colon in a path.
fn parts(word: &OsStr, most: usize) -> Vec<OsString> {
    let mut parts = vec![Vec::new()];
    let mut bytes = word.as_bytes().iter().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = *byte == b'\\' && bytes.peek().is_some_and(|next| **next == b':' || **next == b'\\');
        match (byte, escaped) {
            (b':', _) if parts.len() < most => parts.push(Vec::new()),
            _ => {
                let byte = if escaped { bytes.next().unwrap_or(byte) } else { byte };
                parts.last_mut().iter_mut().for_each(|part| part.push(*byte));
            }
        }
    }
    parts.into_iter().map(OsString::from_vec).collect()
}

/// The same of what is bound, which `fd:N` may name.
fn bound(word: &OsStr) -> Vec<OsString> {
    let Some(rest) = word.as_bytes().strip_prefix(b"fd:") else { return parts(word, 3) };
    let mut parts = parts(OsStr::from_bytes(rest), 3);
    parts.iter_mut().take(1).for_each(|first| *first = OsString::from_vec([b"fd:", first.as_bytes()].concat()));
    parts
}

fn typed(option: &str, word: &OsStr, proc: &Rc<Proc>, plan: &mut Plan) -> Result<()> {
    let wrong = |form: &str| CLI.usage(&format!("--{option} {}: not {form}", quote(word)));
    let words = |word: Option<&OsString>| -> Vec<OsString> {
        let split = word.map_or(&b""[..], |w| w.as_bytes()).split(|b| *b == b',').filter(|o| !o.is_empty());
        split.map(|o| OsStr::from_bytes(o).to_owned()).collect()
    };
    let mode = |word: Option<&OsString>, usual: u32| match word {
        None => Ok(usual),
        Some(word) => octal(word).ok_or_else(|| wrong("with a MODE in octal")),
    };
    let at = |word: &OsStr| place(word).ok_or_else(|| wrong("a PATH"));
    let parts = match option {
        "mask" | "protect" => vec![word.to_owned()],
        "tmpfs" | "dir" | "symlink" => parts(word, 2),
        "bind" | "bind-ro" | "bind-dev" => bound(word),
        _ => parts(word, 3),
    };
    let first = parts.first().cloned().unwrap_or_default();
    match option {
        "bind" | "bind-ro" | "bind-dev" => {
            let at = parts.get(1).filter(|at| !at.is_empty()).unwrap_or(&first);
            let at = place(at).filter(|at| at.as_bytes().starts_with(b"/"));
            let at = at.ok_or_else(|| wrong("SOURCE:PATH with an absolute PATH"))?;
            let mut options = vec![OsString::from("bind")];
            options.extend(option.strip_prefix("bind-").map(OsString::from));
            options.extend(words(parts.get(2)));
            Line { source: first, at, fstype: "none".into(), options }.steps(proc, plan)?;
        }
        "tmpfs" => {
            let options = words(parts.get(1));
            Line { source: "tmpfs".into(), at: at(&first)?, fstype: "tmpfs".into(), options }.steps(proc, plan)?;
        }
        "dir" => {
            let asked = parts.get(1).map(|_| mode(parts.get(1), 0)).transpose()?;
            plan.push(Effect::Directory(at(&first)?, asked));
        }
        "file" => {
            let at = parts.get(1).and_then(|at| entry(at)).ok_or_else(|| wrong("N:PATH"))?;
            plan.push(Effect::File(at, mode(parts.get(2), 0o644)?, Rc::new(given(&first)?)));
        }
        "symlink" => {
            let at = parts.get(1).and_then(|at| entry(at)).filter(|_| !first.is_empty());
            plan.push(Effect::Link(first, at.ok_or_else(|| wrong("TARGET:PATH"))?));
        }
        "mask" => plan.push(Effect::Mask(at(&first)?)),
        _ => plan.push(Effect::ReadOnly(at(&first)?, false)),
    }
    Ok(())
}

/// A mode as chmod(1) takes it in digits.
pub(crate) fn octal(word: &OsStr) -> Option<u32> {
    let digits = word.to_str().filter(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit()))?;
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn words_between_colons() {
        let split = |word: &str, most| {
            let parts = parts(OsStr::new(word), most);
            parts.iter().map(|p| p.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(split("/a:/b:idmap=0:1:2", 3), ["/a", "/b", "idmap=0:1:2"]);
        assert_eq!(split("/a\\:b\\\\c:/d\\e", 3), ["/a:b\\c", "/d\\e"]);
        assert_eq!(split("/a", 3), ["/a"]);
        assert_eq!(split("", 2), [""]);
        assert_eq!(bound(OsStr::new("fd:9:/a\\:b:ro")), ["fd:9", "/a:b", "ro"]);
    }

    #[test]
    fn modes() {
        assert_eq!(
            (octal(OsStr::new("0755")), octal(OsStr::new("8")), octal(OsStr::new("+7"))),
            (Some(0o755), None, None)
        );
    }
}

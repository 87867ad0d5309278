//! What is wrong with the files, and with what reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;

use common::cli::Args;
use common::etc::Etc;
use common::etc::lock::{lock_pid, stale};
use common::fail::{Failure, Result};
use common::helper;
use common::id::{self, Kind, Range, subject, without};
use common::proc::Proc;
use common::subid::{self, Grants, RESERVED};
use common::survey::lacking;
use common::tool::{Outcome, Progress};
use common::user::{self, User};
use common::word::quote;

use crate::parsers::oddities;
use crate::{etc, kinds, provider, sed, survey};

/// What was found, ready to be printed.
struct Findings(String);

impl Findings {
    /// `at` is a file, or a file and a line; `try_it` a command that mends it.
    fn add(&mut self, at: &str, text: &str, try_it: Option<String>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{at}: {text}");
        if let Some(command) = try_it {
            let _ = writeln!(self.0, "  try: {command}");
        }
    }
}

pub(crate) fn check(args: &Args) -> Result<Outcome> {
    let etc = etc(args)?;
    let here = args.value("root").is_none();
    let proc = Proc::open()?;
    let mut findings = Findings(String::new());
    let users: Vec<User> = user::entries(&etc.text("passwd")?).map(|entry| entry.user()).collect();
    // With another source nobody looks into the files.
    let kinds = if provider(&etc)?.is_some() { Vec::new() } else { kinds(args) };
    for kind in kinds {
        let mut file = File::new(kind, etc.path(survey::name(kind)), args.value("root"));
        file.look(&etc, &users, here.then_some(&proc))?;
        file.found.sort_by_key(|(line, ..)| *line);
        for (line, text, command) in file.found {
            let at = if line == 0 { file.path.clone() } else { format!("{}:{line}", file.path) };
            findings.add(&at, &text, command);
        }
        left_behind(&etc, kind, &mut findings);
    }
    name_service(&etc, here, &mut findings)?;
    if here {
        helpers(&mut findings);
    }
    let status = if findings.0.is_empty() { 0 } else { 3 };
    Ok(Outcome::Answer(findings.0.into_bytes(), status))
}

// ---- one file ----

/// A grant: the ids, whose (an index), on which line.
type Numbered = (Range, usize, u32);

/// Somebody whom lines name.
struct Owner {
    name: String,
    /// The first line.
    line: u32,
    /// How many.
    lines: u32,
}

struct File {
    kind: Kind,
    path: String,
    /// The option for the tree that it is of, if it is not this machine's.
    root: String,
    grants: Vec<Numbered>,
    owners: Vec<Owner>,
    /// Lines that are better deleted.
    going: BTreeSet<u32>,
    /// Line (0: the whole file), what is wrong, what mends it.
    found: Vec<(u32, String, Option<String>)>,
}

impl File {
    fn new(kind: Kind, path: String, root: Option<OsString>) -> File {
        let root = root.map_or_else(String::new, |dir| format!(" --root {}", quote(dir)));
        let (grants, owners, going, found) = (Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
        File { kind, path, root, grants, owners, going, found }
    }

    fn add(&mut self, line: u32, text: impl Into<String>, command: Option<String>) {
        self.found.push((line, text.into(), command));
    }

    /// The command that takes `range` from the owner number `whose`.
    fn free(&self, whose: usize, range: Range) -> Option<String> {
        Some(format!("{} {}:{}", self.free_all(&self.owners[whose].name), range.first, range.count))
    }

    /// The command that takes from `owner` all that this file grants.
    fn free_all(&self, owner: &str) -> String {
        format!("sudo subid-alloc --free --{}s{} {}", self.kind.word(), self.root, quote(owner))
    }

    /// The command that takes from a line with `range` what the owner has by another,
    /// that of `before`, which begins no later.
    fn apart(&self, whose: usize, range: Range, before: Range) -> String {
        let line = |range: Range| format!("{}:{}:{}", self.owners[whose].name, range.first, range.count);
        let now = line(range);
        match without(&[range], &[before]).first() {
            Some(rest) => sed::replace(&self.path, now.as_bytes(), &line(*rest)),
            None if range == before => sed::delete_again(&self.path, now.as_bytes()),
            None => sed::delete(&self.path, now.as_bytes()),
        }
    }

    /// Looks at everything; `proc` is there if it is about this machine.
    fn look(&mut self, etc: &Etc, users: &[User], proc: Option<&Proc>) -> Result<()> {
        let name = survey::name(self.kind);
        let opened = match etc.file(name) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let text = format!("missing: nobody has subordinate {}s", self.kind.word());
                self.add(0, text, Some(format!("sudo touch {}", quote(&self.path))));
                return Ok(());
            }
            Err(failure) => {
                self.add(0, failure.to_string().replace("\n  because: ", ": "), None);
                return Ok(());
            }
        };
        let mode = etc.stat(name).map_err(|e| Failure::os(format!("look at {}", self.path), e))?.st_mode;
        if mode & 0o022 != 0 {
            let text = "others than its owner can write it: a privileged uidmap-set refuses it";
            self.add(0, text, Some(format!("sudo chmod go-w {}", quote(&self.path))));
        }
        self.read(&opened.file)?;
        self.owners(users, proc.is_some())?;
        self.overlaps(users);
        self.real_ids(etc, users, proc.is_some())?;
        if let Some(proc) = proc {
            self.unmapped(proc)?;
        }
        let free = |command: &String| command.starts_with("sudo subid-alloc ");
        for (line, _, command) in &mut self.found {
            // With the line its grant goes, too.
            if self.going.contains(line) && command.as_ref().is_some_and(free) {
                *command = None;
            }
        }
        Ok(())
    }

    /// Reads the lines.
    fn read(&mut self, opened: &std::fs::File) -> Result<()> {
        let mut index: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        let (mut number, mut ended, mut nul) = (0, true, false);
        let read = subid::pieces(opened, |piece, _| {
            ended = piece.last() == Some(&b'\n');
            nul |= piece.contains(&0);
            for text in subid::lines(piece) {
                number += 1;
                self.line(number, text, &mut index);
            }
        });
        read.map_err(|e| Failure::os(format!("read {}", self.path), e))?;
        if !ended {
            let text = "the last line has no newline: shadow 4.20 rejects the whole file, for every user";
            self.add(0, text, Some(format!("echo | sudo tee -a {}", quote(&self.path))));
        }
        if nul {
            let command = format!("sudo sed -i 's/\\x00//g' {}", quote(&self.path));
            self.add(0, "a NUL byte: shadow rejects the whole file, for every user", Some(command));
        }
        Ok(())
    }

    fn line(&mut self, line: u32, text: &[u8], index: &mut BTreeMap<Vec<u8>, usize>) {
        // Without its NUL bytes, which are to go first, it may be as good as any.
        let odd = if text.contains(&0) { Vec::new() } else { oddities(text) };
        for odd in odd {
            if odd.plain.is_none() {
                self.going.insert(line);
            }
            let delete = || sed::delete(&self.path, text);
            let command = odd.plain.map_or_else(delete, |plain| sed::replace(&self.path, text, &plain));
            self.add(line, odd.text, Some(command));
        }
        let Some(grant) = subid::grant(text) else { return };
        let whose = *index.entry(grant.owner.to_vec()).or_insert(self.owners.len());
        if whose == self.owners.len() {
            let name = String::from_utf8_lossy(grant.owner).into_owned();
            self.owners.push(Owner { name, line, lines: 0 });
        }
        self.owners[whose].lines += 1;
        if self.owners[whose].lines == 2 {
            let name = quote(&self.owners[whose].name);
            let text =
                format!("a second line of {name}: unshare --map-auto and crun use the first alone, LXC the last alone");
            self.add(line, text, None);
        }
        self.grants.push((grant.range, whose, line));
    }

    /// Owners whom nobody knows, or not everybody by this word.
    fn owners(&mut self, users: &[User], here: bool) -> Result<()> {
        let names: BTreeMap<&str, &User> = users.iter().map(|user| (user.name.as_str(), user)).collect();
        let uids: BTreeMap<String, &User> = users.iter().map(|user| (user.uid.to_string(), user)).collect();
        let strangers: Vec<&str> =
            self.owners.iter().map(|o| without_blanks(&o.name)).filter(|n| !names.contains_key(n)).collect();
        let elsewhere = if here { known_elsewhere(&strangers)? } else { Vec::new() };
        let mut found = Vec::new();
        for owner in &self.owners {
            let (name, line) = (owner.name.as_str(), owner.line);
            let free = self.free_all(name);
            let meant = without_blanks(name);
            let known = names.contains_key(meant) || elsewhere.iter().any(|user| user.name == meant);
            // Blanks beside an owner are told of with the line, and that command is
            // to be the only one: --free would take what it gives.
            if known || (meant != name && uids.contains_key(meant)) {
                continue;
            }
            if let Some(user) = uids.get(name) {
                let command = sed::command(&self.path, &format!("s/^{name}:/{}:/", sed::replacement(&user.name)));
                found.push((line, "the owner is a uid: crun and LXC look for names only".to_owned(), Some(command)));
            } else if let Some((_, user)) = names.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)) {
                let text = format!("no user is called {}, but incus takes it for {}", quote(name), quote(&user.name));
                found.push((line, text, Some(free)));
            } else {
                let text = format!("no user is called {}: whoever is one day has these ids", quote(name));
                found.push((line, text, Some(free)));
            }
        }
        self.found.append(&mut found);
        Ok(())
    }

    /// Ids that two lines grant.
    fn overlaps(&mut self, users: &[User]) {
        // What is taken from a name goes from the lines with his uid, too.
        let uid = |whose: usize| {
            let name = &self.owners[whose].name;
            let uid = id::one(name.as_bytes());
            uid.or_else(|| users.iter().find(|user| user.name == *name).map(|user| user.uid))
        };
        let same = |one, other| one == other || (uid(one).is_some() && uid(one) == uid(other));
        self.grants.sort_unstable();
        // The one of those before that reaches furthest.
        let mut furthest: Option<Numbered> = None;
        let (mut found, mut cut) = (Vec::new(), BTreeSet::new());
        for &(range, whose, line) in &self.grants {
            if let Some((before, other, first)) = furthest {
                if let Some(common) = before.common(range) {
                    let are = subject(self.kind.word(), &[common]);
                    let text = format!("{are} in line {first} too, {}'s", quote(&self.owners[other].name));
                    // What is taken from a line is to stay in the other.
                    let stays = !cut.contains(&first) && !self.going.contains(&first) && !self.going.contains(&line);
                    let command = if !same(whose, other) {
                        self.free(whose, common)
                    } else if whose == other && stays {
                        cut.insert(line);
                        Some(self.apart(whose, range, before))
                    } else {
                        None
                    };
                    found.push((line, text, command));
                }
            }
            if furthest.is_none_or(|(before, ..)| before.end() < range.end()) {
                furthest = Some((range, whose, line));
            }
        }
        self.found.append(&mut found);
    }

    /// Ids of users and groups: whoever has been granted one is that user.
    fn real_ids(&mut self, etc: &Etc, users: &[User], here: bool) -> Result<()> {
        let database = if self.kind == Kind::Uid { "passwd" } else { "group" };
        let mut text = etc.text(database)?;
        if let Some(program) = helper::find("getent").filter(|_| here) {
            text.extend(helper::run(&program, &[database]).map_err(|e| Failure::os("run getent", e))?.output);
        }
        let real: BTreeMap<u32, String> =
            user::ids_in(&text).map(|(name, id)| (id, String::from_utf8_lossy(name).into_owned())).collect();
        let word = self.kind.word();
        let own = |user: &User| if self.kind == Kind::Uid { user.uid } else { user.gid };
        let mut found = Vec::new();
        for &(range, whose, line) in &self.grants {
            let owner = &self.owners[whose].name;
            let inside = real.range(range.first..=range.first + (range.count - 1));
            let (mine, others): (Vec<_>, Vec<_>) =
                inside.partition(|(id, _)| users.iter().any(|user| user.name == *owner && own(user) == **id));
            let owner = quote(owner);
            let free = |list: &[(&u32, &String)]| match list {
                [(id, _)] => self.free(whose, Range { first: **id, count: 1 }),
                _ => None,
            };
            if let [(id, _), ..] = mine.as_slice() {
                found.push((line, format!("{word} {id} is {owner}'s own: no map can have it twice"), free(&mine)));
            }
            if !others.is_empty() {
                let list: Vec<String> = others.iter().map(|(id, name)| format!("{} ({id})", quote(name))).collect();
                let text = format!("{owner} can be {} to every file: they are real {word}s", list.join(", "));
                found.push((line, text, free(&others)));
            }
        }
        self.found.append(&mut found);
        Ok(())
    }

    /// Ids that no map can have here, or that are kept for others.
    fn unmapped(&mut self, proc: &Proc) -> Result<()> {
        let initial = proc.in_initial()?;
        let mapped: Vec<Range> = proc.own_map(self.kind)?.iter().map(|extent| extent.inside()).collect();
        let mut found = Vec::new();
        for &(range, whose, line) in &self.grants {
            let missing = lacking(range, &mapped);
            if let Some(first) = missing.first() {
                let are = subject(self.kind.word(), &missing);
                let text = format!("{are} not mapped in this user namespace: newuidmap will be refused");
                found.push((line, text, self.free(whose, *first)));
            }
            // Inside a container all ids are below these.
            if let Some(common) = RESERVED.iter().find_map(|r| r.common(range)).filter(|_| initial) {
                let text = format!("{} for users and the system", subject(self.kind.word(), &[common]));
                found.push((line, text, self.free(whose, common)));
            }
        }
        self.found.append(&mut found);
        Ok(())
    }
}

/// A name without the blanks around it.
fn without_blanks(name: &str) -> &str {
    name.trim_matches(|c| u8::try_from(c).is_ok_and(subid::is_blank))
}

/// Those of `names` that the name services know: asked some at a time.
fn known_elsewhere(names: &[&str]) -> Result<Vec<User>> {
    let Some(program) = helper::find("getent").filter(|_| !names.is_empty()) else { return Ok(Vec::new()) };
    let (mut known, mut progress) = (Vec::new(), Progress::new());
    for (n, some) in names.chunks(500).enumerate() {
        progress.show(|| format!("{} of {} owners", n * 500, names.len()));
        let words: Vec<&str> = ["passwd", "--"].iter().chain(some).copied().collect();
        let answer = helper::run(&program, &words).map_err(|e| Failure::os("run getent passwd", e))?;
        known.extend(user::entries(&answer.output).map(|entry| entry.user()));
    }
    Ok(known)
}

// ---- beside the files ----

/// Locks and temporary files of processes that are gone.
fn left_behind(etc: &Etc, kind: Kind, findings: &mut Findings) {
    let name = survey::name(kind);
    let lock = format!("{name}.lock");
    let remove = |file: &str| Some(format!("sudo rm {}", quote(etc.path(file))));
    let is_there = etc.stat(&lock).is_ok();
    if let Some(pid) = stale(etc, &lock) {
        findings.add(&etc.path(&lock), &format!("left by process {pid}, which is gone"), remove(&lock));
    } else if is_there && lock_pid(etc, &lock).is_none() {
        let text = "names no process: nobody can change the file as long as it is there";
        findings.add(&etc.path(&lock), text, remove(&lock));
    } else if is_there {
        // Somebody is at work: his other files are his.
        return;
    }
    for left in etc.names() {
        let Some(end) = left.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else { continue };
        if end == "nskit-new" || end.starts_with("cio") || end.bytes().all(|b| b.is_ascii_digit()) {
            findings.add(
                &etc.path(&left),
                "left by a program that was killed while it changed the file",
                remove(&left),
            );
        }
    }
}

/// The `subid:` lines of nsswitch.conf, which shadow reads by itself and in its
/// own way.
fn name_service(etc: &Etc, here: bool, findings: &mut Findings) -> Result<()> {
    let text = etc.text("nsswitch.conf")?;
    let path = etc.path("nsswitch.conf");
    let mut first = None;
    for (number, bytes) in (1..).zip(subid::lines(&text)) {
        let line = String::from_utf8_lossy(bytes);
        let at = format!("{path}:{number}");
        let begins = |line: &str| line.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("subid:"));
        if !begins(&line) {
            if begins(line.trim_start()) {
                let text = "a blank before subid: hides the line from shadow";
                findings.add(&at, text, Some(sed::delete(&path, bytes)));
            }
            continue;
        }
        if let Some(used) = first {
            let text = format!("a second subid: line, which shadow ignores: it reads line {used}");
            // It may read as the first one does, or will.
            findings.add(&at, &text, Some(sed::command(&path, "0,/^subid:/I!{/^subid:/Id}")));
            continue;
        }
        first = Some(number);
        let sources: Vec<&str> = line[6..].split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        let Some((source, more)) = sources.split_first() else { continue };
        let sed = |to: &str| Some(sed::replace(&path, bytes, &format!("subid: {to}")));
        if source.starts_with('[') {
            findings.add(
                &at,
                &format!("{source} is the name of a source to shadow, which then takes the files"),
                sed("files"),
            );
        } else if !more.is_empty() {
            let text = format!("only {source} is asked: shadow reads one source, and falls back to none");
            findings.add(&at, &text, sed(source));
        }
        if here && *source != "files" {
            let root = user::by_uid(0);
            if let Some(Err(failure)) = root.map(|user| Grants::of(&user)?.read(Kind::Uid)) {
                let text = failure.to_string();
                // Whether root himself has any does not matter here.
                if text.contains("cannot be loaded") || text.contains("not installed") || text.contains("answered") {
                    findings.add(&at, &text, None);
                }
            }
        }
    }
    Ok(())
}

/// Whether newuidmap and newgidmap can do what they are for.
fn helpers(findings: &mut Findings) {
    for name in ["newuidmap", "newgidmap"] {
        let Some(path) = helper::find(name) else {
            findings.add(name, "not installed: an ordinary user can map the own id alone", installing());
            continue;
        };
        let shown = path.to_string_lossy().into_owned();
        if let Err(why) = helper::gains_privilege(&path) {
            let command = why.starts_with("it is neither").then(|| format!("sudo chmod u+s {}", quote(&shown)));
            findings.add(&shown, &why, command);
        }
    }
}

fn installing() -> Option<String> {
    helper::find("apt-get").map(|_| "sudo apt-get install uidmap".to_owned())
}

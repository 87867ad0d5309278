//! Containers by name or by the beginning of their id, without asking a daemon:
//! from the files in which runtimes note theirs down, from cgroups, and from the
//! command lines of what they leave outside: conmon, the monitor of lxc.
//!
//! All of it may have been written by anybody. Files and cgroups count only if
//! they are root's or the caller's, and a process only if it is the one that
//! was noted down: by its start time, its cgroup, or its age.

pub mod notes;

use std::rc::Rc;

use crate::fail::{Because, Failure, Result};
use crate::name;
use crate::proc::Proc;
use crate::target::{self, Operand, Target};
use crate::word::quote;

use notes::Said;

/// What somebody says about a container, not yet proven.
struct Claim {
    engine: &'static str,
    id: String,
    said: Said,
    /// Whose note says so, and of when; None: it shows, now.
    note: Option<(u32, i64)>,
}

/// A container that lives.
struct Container {
    engine: &'static str,
    /// All that it is called; its ids first.
    words: Vec<String>,
    /// Its first process.
    target: Target,
}

/// The target that is called `word`, a holder of the caller's or a container,
/// and whether it is a container.
///
/// # Errors
/// There is none, or more than one: these are listed.
pub fn find(proc: &Proc, word: &str) -> Result<(Rc<Target>, bool)> {
    let own = proc.own().uid[1];
    let holders = name::holders(proc).into_iter().filter(|h| h.uid == own && h.name.as_deref() == Some(word));
    let mut found: Vec<(Target, bool, String)> = Vec::new();
    for holder in holders {
        found.push((Target::open(proc, holder.address)?, false, format!("{word} (a holder of ns-new)")));
    }
    let all = containers(proc);
    let is_called = |c: &Container| c.words.iter().any(|w| w == word);
    let begins = |c: &Container| c.words.iter().any(|w| notes::is_id(w) && w.starts_with(word));
    let by_name = !found.is_empty() || all.iter().any(is_called);
    for container in all {
        if if by_name { is_called(&container) } else { begins(&container) } {
            let words: Vec<String> = container.words.iter().map(quote).collect();
            found.push((container.target, true, format!("{} ({})", words.join(" "), container.engine)));
        }
    }
    if found.len() > 1 {
        let lines: String = found.iter().map(|(target, _, text)| format!("\n  {} {text}", target.address)).collect();
        return Err(Failure::refused(format!("{} can mean each of these:{lines}", quote(word))));
    }
    let none = || name::none(proc, "holder or container", word, network(word));
    let (target, is_container, _) = found.pop().ok_or_else(none)?;
    Ok((Rc::new(target), is_container))
}

/// That a network namespace of ip-netns(8) has the name.
fn network(word: &str) -> Option<Because> {
    let word = format!("netns:{word}");
    let Ok(Operand::File(path)) = Operand::parse(word.as_ref()) else { return None };
    path.exists().then(|| Because::new(format!("that is a network namespace of ip-netns(8): {}", quote(&word))))
}

/// All containers that can be seen and proven.
fn containers(proc: &Proc) -> Vec<Container> {
    let mut claims = noted(proc);
    claims.extend(by_conmon(proc));
    claims.extend(by_process(proc));
    let mut found: Vec<Container> = Vec::new();
    for claim in claims {
        let Some(target) = prove(proc, &claim) else { continue };
        let at = found.iter().position(|c| c.target.address == target.address);
        let at = at.unwrap_or_else(|| {
            found.push(Container { engine: claim.engine, words: Vec::new(), target });
            found.len() - 1
        });
        let Some(container) = found.get_mut(at) else { continue };
        for word in std::iter::once(claim.id).chain(claim.said.names) {
            if !container.words.contains(&word) {
                container.words.push(word);
            }
        }
    }
    found
}

/// The first process of a container, if what is claimed of it is true.
fn prove(proc: &Proc, claim: &Claim) -> Option<Target> {
    let target = name::opened(proc, claim.said.pid?)?;
    let who = target.who();
    let Some((uid, written)) = claim.note else { return Some(target) };
    let fits = match claim.said.start {
        Some(start) => proc.started(&who)? == start,
        // A number alone may be another process's by now, which then began
        // later; a second for the clock that a file's time is taken from.
        None => in_cgroup_of(proc, &who, &claim.id) || proc.began(&who)? <= written.saturating_add(1),
    };
    // Somebody's note makes a process his only if the kernel says so, too.
    let his = uid == 0
        || proc.status(&who)?.uid[1] == uid
        || target::files::owner_of_user_namespace(proc, &target) == Some(uid);
    // It still lives, so the number was its own while it was looked at.
    (fits && his && target.ended().is_none()).then_some(target)
}

fn in_cgroup_of(proc: &Proc, who: &str, id: &str) -> bool {
    let text = proc.text(&format!("{who}/cgroup")).unwrap_or_default();
    notes::is_id(id) && text.lines().any(|line| line.contains(id))
}

// ---- notes ----

/// Where the storage of podman and cri-o lists its containers: those that are to
/// outlive a crash, and others (`--rm`).
const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

type Reader = fn(&[u8]) -> Option<Said>;

/// How a runtime lays out its directory.
struct Layout {
    engine: &'static str,
    /// Below it a directory for each container, or first one for each set.
    base: String,
    sets: bool,
    /// Where the files are in the directory of a container.
    inner: &'static [&'static str],
    /// The file with the process.
    state: &'static str,
    /// How that is read.
    read: Reader,
    /// The file with the names.
    names: &'static str,
}

fn layouts(proc: &Proc) -> Vec<Layout> {
    let own = proc.own().uid[1];
    let variable = |name| std::env::var(name).ok().filter(|dir: &String| dir.starts_with('/'));
    let mut found = Vec::new();
    let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{own}"));
    let data = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")? + "/.local/share"));
    for (run, lib) in [(Some("/run".to_owned()), Some("/var/lib".to_owned())), (Some(runtime), data)] {
        let mut add = |engine, base: Option<String>, sets, inner, (state, read), names| {
            found.extend(base.map(|base| Layout { engine, base, sets, inner, state, read, names }));
        };
        let below = |dir: &Option<String>, path: &str| dir.as_ref().map(|dir| format!("{dir}/{path}"));
        let json = notes::json as Reader;
        let pid = notes::pid_file as Reader;
        add("crun", below(&run, "crun"), false, &[][..], ("status", json), "");
        add("runc", below(&run, "runc"), false, &[], ("state.json", json), "");
        add("docker", below(&lib, "docker/containers"), false, &[], ("config.v2.json", json), "");
        add("docker", below(&run, "docker/runtime-runc"), true, &[], ("state.json", json), "");
        add("containerd", below(&run, "containerd/runc"), true, &[], ("state.json", json), "");
        let tasks = below(&run, "containerd/io.containerd.runtime.v2.task");
        add("containerd", tasks, true, &[], ("init.pid", pid), "config.json");
        for storage in ["containers/storage", "containers"] {
            for driver in ["overlay-containers", "vfs-containers"] {
                let base = below(&run, &format!("{storage}/{driver}"));
                add("podman or cri-o", base, false, &["userdata"], ("pidfile", pid), "config.json");
            }
        }
    }
    found
}

/// What the runtimes have noted down.
fn noted(proc: &Proc) -> Vec<Claim> {
    let mut claims = Vec::new();
    for layout in layouts(proc) {
        let sets = if layout.sets { name::noted_in(proc, &layout.base, &[]) } else { vec![String::new()] };
        for set in &sets {
            let set: Vec<&str> = if layout.sets { vec![set.as_str()] } else { Vec::new() };
            for id in name::noted_in(proc, &layout.base, &set) {
                claims.extend(claim(proc, &layout, &set, id));
            }
        }
    }
    for id in name::noted_in(proc, "/run/systemd/machines", &[]) {
        let Some(note) = name::note(proc, "/run/systemd/machines", &[], &id) else { continue };
        let Some(said) = notes::machine(&note.bytes) else { continue };
        claims.push(Claim { engine: "nspawn", id, said, note: Some((note.uid, note.written)) });
    }
    claims
}

fn claim(proc: &Proc, layout: &Layout, set: &[&str], id: String) -> Option<Claim> {
    let dir: Vec<&str> = set.iter().copied().chain([id.as_str()]).chain(layout.inner.iter().copied()).collect();
    let note = name::note(proc, &layout.base, &dir, layout.state)?;
    let mut said = (layout.read)(&note.bytes)?;
    if let Some(more) = name::note(proc, &layout.base, &dir, layout.names).and_then(|note| notes::json(&note.bytes)) {
        said.names.extend(more.names);
    }
    Some(Claim { engine: layout.engine, id, said, note: Some((note.uid, note.written)) })
}

// ---- processes ----

/// The first process of each container that can be told by its cgroup, or by its
/// parent: the command line of that which lxc leaves outside has the name, too.
fn by_process(proc: &Proc) -> Vec<Claim> {
    let mounts = proc.mounts("self");
    let hierarchies: Vec<&str> =
        mounts.iter().filter(|m| m.fstype == "cgroup2" && m.root == "/").filter_map(|m| m.point.to_str()).collect();
    let mut found: Vec<(usize, Claim)> = Vec::new();
    for pid in proc.pids() {
        let who = pid.to_string();
        let Some(status) = proc.status(&who).filter(|s| s.pids.last() == Some(&1)) else { continue };
        // Of several the one that is the first in the fewest pid namespaces.
        let depth = status.pids.len();
        let path = proc.cgroup(&who).unwrap_or_default();
        let by_path = notes::cgroup(&path).and_then(|(engine, id, up_to)| {
            // Whoever may make cgroups somewhere may call them what he likes.
            let is_made = |at: &&str| name::is_made_by_believed(proc, &format!("{at}{up_to}"));
            hierarchies.iter().any(is_made).then_some((engine, id))
        });
        let by_parent = || {
            let line = if depth > 1 { believed_line(proc, &status.parent.to_string())? } else { return None };
            notes::lxc_monitor(&line).map(|name| ("lxc", name)).or_else(|| nspawn(proc, &who, &line))
        };
        let Some((engine, id)) = by_path.or_else(by_parent) else { continue };
        let said = Said { pid: Some(pid), ..Said::default() };
        let claim = Claim { engine, id, said, note: None };
        match found.iter_mut().find(|(_, c)| (c.engine, &c.id) == (engine, &claim.id)) {
            Some(known) if known.0 <= depth => {}
            Some(known) => *known = (depth, claim),
            None => found.push((depth, claim)),
        }
    }
    found.into_iter().map(|(_, claim)| claim).collect()
}

/// The name of the container around a process whose parent is systemd-nspawn:
/// that of the directory through which mounts come in.
fn nspawn(proc: &Proc, who: &str, parent: &[u8]) -> Option<(&'static str, String)> {
    let program = parent.split(|b| *b == 0).next()?;
    let mounts = if program.ends_with(b"systemd-nspawn") { proc.mounts(who) } else { Vec::new() };
    let mount = mounts.into_iter().find(|m| m.point == "/run/host/incoming")?;
    let (_, name) = mount.root.split_once("nspawn/propagate/")?;
    notes::is_name(name).then(|| ("nspawn", name.to_owned()))
}

/// What podman and cri-o have said to conmon: it names the file with the number
/// of the process, wherever that is. The name that it was told may be another's
/// by now (podman-rename(1)): what counts is that in the list of the storage.
fn by_conmon(proc: &Proc) -> Vec<Claim> {
    let claim = |pid: i32| {
        let who = pid.to_string();
        let line = (proc.status(&who)?.name == "conmon").then(|| believed_line(proc, &who))??;
        let told = notes::conmon(&line)?;
        let (dir, file) = told.pid_file.rsplit_once('/')?;
        let note = name::note(proc, dir, &[], file)?;
        let lists = LISTS.iter().filter_map(|list| name::note(proc, &told.storage, &[], list));
        let names = lists.flat_map(|list| notes::listed(&list.bytes, &told.id)).collect();
        let said = Said { names, ..notes::pid_file(&note.bytes)? };
        Some(Claim { engine: "podman or cri-o", id: told.id, said, note: Some((note.uid, note.written)) })
    };
    proc.pids().into_iter().filter_map(claim).collect()
}

/// The command line of a process that is root's or the caller's, and no
/// container's. In a user namespace 0 may be anybody, who is then the caller.
fn believed_line(proc: &Proc, who: &str) -> Option<Vec<u8>> {
    let status = proc.status(who).filter(|s| s.uid[1] == 0 || s.uid[1] == proc.own().uid[1])?;
    (!proc.is_below(&status) && status.state != 'Z').then(|| proc.seen(proc.read(&format!("{who}/cmdline"))))?
}

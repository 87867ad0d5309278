//! What a file leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use crate::world::World;

/// How long what a file started may take to disappear after it.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// What there was before a file: whatever is new after it is a fault of it, and is taken away so
/// that the next file starts from the same.
pub(crate) struct Before {
    processes: BTreeSet<Process>,
    mounts: Vec<String>,
    etc: BTreeMap<PathBuf, Vec<u8>>,
}

impl Before {
    pub(crate) fn look(world: &World) -> io::Result<Before> {
        let mut before = Before { processes: processes(), mounts: Vec::new(), etc: BTreeMap::new() };
        if world.private {
            before.mounts = mounts()?;
            before.etc = etc()?;
        }
        Ok(before)
    }

    pub(crate) fn left(&self, world: &World, mark: &str, homes: &[PathBuf]) -> io::Result<Vec<String>> {
        let mut told = self.left_running(world, mark)?;
        if world.private {
            told.extend(self.left_mounted()?);
            self.restore_etc()?;
        }
        for home in homes {
            if let Err(error) = fs::remove_dir_all(home) {
                told.push(format!("{}: {error}", home.display()));
            }
        }
        Ok(told.into_iter().map(|what| format!("left behind: {what}")).collect())
    }

    /// In a private world every process is of this file; elsewhere those with its mark are.
    fn left_running(&self, world: &World, mark: &str) -> io::Result<Vec<String>> {
        let deadline = Instant::now() + GRACE;
        let found = loop {
            // A list from before a moment in which all stood still would be no last look.
            let is_last = Instant::now() > deadline;
            let mut found = processes();
            found.retain(|process| !self.processes.contains(process));
            found.retain(|process| world.private || process.bears(mark));
            if found.is_empty() || is_last {
                break found;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let mut told = Vec::new();
        for process in found {
            told.push(format!("process {}: {}", process.pid, process.command()));
            kill(&process.pid.to_string())?;
        }
        Ok(told)
    }

    fn left_mounted(&self) -> io::Result<Vec<String>> {
        let mut told = Vec::new();
        for mount in mounts()?.iter().rev().filter(|mount| !self.mounts.contains(mount)) {
            let point = mount.rsplit(' ').next().unwrap_or_default();
            told.push(format!("a mount on {point}"));
            run("umount", &["--lazy", point])?;
        }
        Ok(told)
    }

    /// To change /etc is no fault: root's commands may grant ids. But the next file starts afresh.
    fn restore_etc(&self) -> io::Result<()> {
        let now = etc()?;
        for path in now.keys().filter(|path| !self.etc.contains_key(*path)) {
            fs::remove_file(path)?;
        }
        for (path, content) in &self.etc {
            if now.get(path) != Some(content) {
                fs::write(path, content)?;
            }
        }
        Ok(())
    }
}

/// Known by number and start time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    start: u64,
}

impl Process {
    /// None if it has ended, or is dead and only waits for process 1.
    fn look(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let start = fields.split(' ').nth(19)?.parse().ok()?;
        if fields.starts_with("Z 1 ") { None } else { Some(Process { pid, start }) }
    }

    fn bears(&self, mark: &str) -> bool {
        let mark = format!("NSKIT_TEST_RUN={mark}");
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(mark.as_bytes()))
    }

    fn command(&self) -> String {
        let words = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned()
    }
}

/// All but this one.
fn processes() -> BTreeSet<Process> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(pid.and_then(Process::look).filter(|other| other.pid != process::id()));
    }
    found
}

/// Number, parent, device, root and mount point of each.
fn mounts() -> io::Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let identity = |line: &str| line.split(' ').take(5).collect::<Vec<_>>().join(" ");
    Ok(table.lines().map(identity).collect())
}

/// The files directly in /etc.
fn etc() -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/etc")? {
        let path = entry?.path();
        if path.is_file() && !path.is_symlink() {
            found.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(found)
}

/// Ends a process, or a group (`-PGID`). By the word of the shell: a program of this name is not on
/// every machine.
pub(crate) fn kill(whom: &str) -> io::Result<()> {
    run("sh", &["-c", "kill -KILL \"$1\"", "sh", whom])
}

/// Whether it works will be seen.
fn run(program: &str, words: &[&str]) -> io::Result<()> {
    Command::new(program).args(words).stderr(Stdio::null()).status().map(|_| ())
}

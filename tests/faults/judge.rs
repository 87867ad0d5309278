//! What may come of a fault.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use super::calls::errno_name;
use super::trace::{Fault, How, Ran, TOOLS};

/// The files that a command line may change: both as before, or both as after.
const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// Where something could be left.
const PLACES: [&str; 7] = ["/etc", "/tmp", "/run", "/dev/shm", "/mnt", "/var/tmp", "/home"];

/// The private world, as it is to be found again.
pub(super) struct World {
    contents: Contents,
    around: BTreeMap<String, String>,
}

/// What the world has that outlives a process, and the processes.
fn look() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        found.insert(format!("mount {line}"), String::new());
    }
    for place in PLACES {
        below(Path::new(place), &mut found);
    }
    found.extend(processes().iter().map(|(pid, words)| (format!("process {pid} {words}"), String::new())));
    found
}

/// Those that live in the private world, but its process 1 and the tracer, with their command lines.
pub(super) fn processes() -> BTreeMap<i32, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let lives = !stat.contains(") Z ") && !stat.is_empty();
        if lives && pid > 1 && pid.unsigned_abs() != std::process::id() {
            found.insert(pid, String::from_utf8_lossy(&words).into_owned());
        }
    }
    found
}

fn below(dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(data) = path.symlink_metadata() else { continue };
        if FILES.iter().any(|file| path == Path::new(file)) {
            continue;
        }
        let how = if data.is_dir() { "directory".to_owned() } else { format!("{} bytes", data.len()) };
        found.insert(format!("file {}", path.display()), how);
        if data.is_dir() {
            below(&path, found);
        }
    }
}

/// What the files hold.
pub(super) type Contents = [Vec<u8>; 2];

/// What they hold now.
pub(super) fn contents() -> Contents {
    FILES.map(|file| fs::read(file).unwrap_or_default())
}

impl World {
    pub(super) fn save() -> World {
        World { contents: contents(), around: look() }
    }

    /// Puts the files back, and says what they were.
    pub(super) fn reset(&self) -> Contents {
        let now = contents();
        for (file, bytes) in FILES.iter().zip(&self.contents) {
            fs::write(file, bytes).unwrap();
        }
        now
    }

    /// Whether the files held something else.
    pub(super) fn differs(&self, other: &Contents) -> bool {
        self.contents != *other
    }

    /// What is there now and was not, or is no longer; what ends by itself gets a moment to do so.
    pub(super) fn changed(&self) -> Option<String> {
        let mut differs = String::new();
        for _ in 0..500 {
            let now = look();
            let new = now
                .iter()
                .filter(|(what, how)| self.around.get(*what) != Some(how))
                .map(|(what, _)| format!("+{what} "));
            // A mount of the machine's goes with its directory, whoever removes that.
            let gone = self.around.keys().filter(|what| !now.contains_key(*what) && !what.starts_with("mount "));
            let gone = gone.map(|what| format!("-{what} "));
            differs = new.chain(gone).collect();
            if differs.is_empty() {
                return None;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Some(differs)
    }

    /// Takes away what is left, so that the next run begins as this one did.
    pub(super) fn clear(&self) {
        for (what, _) in look().iter().filter(|(what, _)| !self.around.contains_key(*what)) {
            let mut words = what.split(' ');
            match (words.next(), words.next()) {
                (Some("file"), Some(path)) => drop(fs::remove_file(path).or_else(|_| fs::remove_dir_all(path))),
                (Some("process"), Some(pid)) => {
                    let pid = pid.parse().map(nix::unistd::Pid::from_raw);
                    let _ = pid.map(|pid| nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL));
                }
                _ => {}
            }
        }
    }
}

/// A run without a fault does what the list says.
pub(super) fn plain(ran: &Ran) -> Result<(), String> {
    if ran.hung || ran.status != 0 || !ran.errors.is_empty() || ran.calls.is_empty() {
        return Err(ran.to_string());
    }
    Ok(())
}

/// Why a run may come to something else than one message of the tool whose call failed.
fn excused(fault: &Fault, ran: &Ran) -> Option<&'static str> {
    let command = fault.process.strip_suffix(" >0").unwrap_or_default();
    let is_holder = command.starts_with("ns-new") && (command.ends_with(" -") || command.contains("--detach"));
    if is_holder && ran.happened.is_some_and(|holder| is_gone(&holder.to_string(), command, ran)) {
        // It has given its standard error away, as whoever outlives the pipeline must.
        return Some("a holder that fails ends; who comes to enter says so, and whoever has entered is killed");
    }
    if ran.errors.contains(" as long as the reader of standard output") {
        return Some("a stage fails after its record has been read: two tools, two failures");
    }
    if ["recvmsg", "sendmsg"].contains(&fault.call) && ran.output.contains("ran") {
        return Some("who does not hear that a program has begun ends, and it as well: it may have begun");
    }
    let is_not_ours = matches!(fault.how, How::Errno(libc::EACCES | libc::EPERM | libc::ESRCH));
    if is_not_ours && [" holder is called ", " holder or container is called "].iter().any(|s| ran.errors.contains(s)) {
        return Some("what has gone or is not ours is passed over where a name is looked for, and so nothing has it");
    }
    let is_closed = matches!(fault.how, How::Errno(libc::EACCES | libc::EPERM));
    if is_closed && fault.process.split(" >").next() == Some("ns-show") {
        return Some("what may not be looked at is not shown, and counted where it is a process");
    }
    let waits = ran.errors.contains("ns-new: wait for the maps of ") || fault.process.contains(" --wait-map ");
    if waits && ran.errors.contains("uidmap-set: ") {
        return Some("with --wait-map the one that maps is no stage: two tools, two failures");
    }
    if fault.process.starts_with("ns-show --records") && ran.errors.contains("the stream broke off") {
        return Some("what is no stage tells the next one nothing: two tools, two failures");
    }
    if ran.errors.contains("uidmap-set: capset: ") {
        return Some("who cannot lay its privilege down does nothing more, nor tell the next stage");
    }
    let is_refused = matches!(fault.how, How::Errno(libc::EPERM)) && fault.call == "ioctl";
    if is_refused && fault.process.starts_with("ns-show ") && ran.output.contains("outside of ours") {
        return Some("by EPERM the kernel says itself that the owner of a namespace is outside of ours");
    }
    if fault.call == "poll" && fault.nth == 1 && ran.errors.contains("Segmentation fault") {
        return Some("musl ends a program with privilege that cannot see its standard descriptors");
    }
    None
}

/// Whether all that has come of a run is that this holder has gone: the one who needs it next says
/// so, of that process or its name, and nothing has run; or a program was in it already, and is killed.
fn is_gone(holder: &str, command: &str, ran: &Ran) -> bool {
    if ran.errors == "Killed\n" {
        // That is the shell, of the last one of ours.
        let killed = 128 + libc::SIGKILL;
        let mut ends = ran.ends.iter();
        return ran.status == killed && ends.any(|(process, end)| process.starts_with("ns-enter ") && *end == killed);
    }
    // A helper that was left to the holder is ended by it, which its stage sees.
    let is_helper = |line: &str| line.starts_with("ns-enter: ") && line.ends_with(" has ended: signal 15");
    let mut told = ran.errors.lines().filter(|line| !line.starts_with(' ') && is_told(line) && !is_helper(line));
    let (Some(message), None) = (told.next(), told.next()) else { return false };
    let reasons: Vec<&str> = ran.errors.lines().filter(|line| line.starts_with(' ')).map(str::trim_start).collect();
    let has_ended = |reason: &str| {
        reason == format!("because: no process has number {holder} here")
            || reason.starts_with(&format!("because: process {holder} ")) && reason.contains(" has ended")
    };
    let first = "because: the first process of the pid namespace has ended: no other can begin there";
    let names_it = message.split([' ', ':', '/']).any(|word| word == holder);
    let no_fork = message == "ns-enter: fork: Out of memory (ENOMEM)";
    let name = command.split_once(" --name ").and_then(|(_, rest)| rest.split(' ').next());
    let is_nameless = || name.is_some_and(|name| message.ends_with(&format!(" is called {name}")));
    let is_true = match reasons.as_slice() {
        // One that is about to end has left its namespaces: ENOENT.
        [] => no_fork || names_it && ["(ESRCH)", "(ENOENT)"].iter().any(|e| message.ends_with(e)) || is_nameless(),
        [reason] if *reason == first => no_fork,
        [reason] => has_ended(reason),
        _ => false,
    };
    let is_nsenter = names_it && message.starts_with("nsenter: cannot open /proc/");
    (is_true || is_nsenter) && ran.status != 0 && !ran.output.contains("ran")
}

/// Whether a line is the message of one of our tools, by whatever name, or of nsenter(1).
fn is_told(line: &str) -> bool {
    TOOLS.iter().chain(&["newuidmap", "newgidmap", "nsenter"]).any(|tool| line.starts_with(&format!("{tool}: ")))
}

/// What came of a run with a fault, where that is as it should be.
pub(super) enum Verdict {
    /// What the plain run did, and not a word.
    Harmless,
    /// A failure, told as it must be; or a death by the signal.
    Told,
    /// Neither, for a reason.
    Excused(&'static str),
}

/// Whether a run with a fault did all the same what the plain run did, and otherwise said what it
/// must have said.
pub(super) fn fault(fault: &Fault, plain: &Ran, ran: &Ran) -> Result<Verdict, String> {
    if ran.hung {
        return Err("it hangs".to_owned());
    }
    if let Some(reason) = excused(fault, ran) {
        return Ok(Verdict::Excused(reason));
    }
    if ran.errors.contains("panicked") || ran.ends.values().any(|end| [101, 134, 139].contains(end)) {
        return Err(format!("it crashes: {ran}"));
    }
    let How::Errno(errno) = fault.how else { return Ok(Verdict::Told) };
    if ran.status == plain.status && ran.output == plain.output {
        return Ok(if ran.errors.is_empty() { Verdict::Harmless } else { Verdict::Told });
    }
    let tool = fault.process.split(' ').next().unwrap_or_default();
    if ran.output.contains(&format!("({})", errno_name(errno))) && ran.errors.is_empty() {
        // A finding of those who look for what is wrong.
        return Ok(Verdict::Told);
    }
    if ran.output.contains("left") {
        return Err(format!("something is left: {ran}"));
    }
    let told: Vec<&str> = ran
        .errors
        .lines()
        .filter(|line| TOOLS.iter().chain([&tool]).any(|t| line.starts_with(&format!("{t}: "))))
        .collect();
    let [message] = told.as_slice() else { return Err(format!("{} messages: {ran}", told.len())) };
    if !message.starts_with(&format!("{tool}: ")) || !message.contains(&format!("({})", errno_name(errno))) {
        return Err(format!("the message names another failure: {ran}"));
    }
    if ran.errors.contains("because:") {
        return Err(format!("there is no cause to be found: {ran}"));
    }
    if ran.errors.contains(" left out: ") && fault.process.contains(" --try ") && ran.status == 3 {
        // As it was asked to.
        return Ok(Verdict::Told);
    }
    // Who waits for maps begins once they are written, whatever becomes then of who wrote them.
    let waits = tool == "uidmap-set" && plain.calls.keys().any(|process| process.contains(" --wait-map "));
    if ran.output.contains("ran") && !ran.started && !waits {
        return Err(format!("the program ran: {ran}"));
    }
    let runs = ["ns-new", "ns-enter", "pivot-exec"].contains(&tool);
    let own = without_numbers(&fault.process);
    match ran.ends.get(own) {
        Some(125..=127) if runs => Ok(Verdict::Told),
        Some(1..=3) if !runs => Ok(Verdict::Told),
        end => Err(format!("it ends with {end:?}: {ran}")),
    }
}

/// The command line of a process, without the numbers of children after it: a
/// ` >` may stand in the command line itself.
fn without_numbers(process: &str) -> &str {
    match process.rsplit_once(" >") {
        Some((above, number)) if number.parse::<u32>().is_ok() => without_numbers(above),
        _ => process,
    }
}

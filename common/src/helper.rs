//! Other programs, run to the end with a deadline: getent, getsubids,
//! newuidmap. They run with this process's credentials and no privilege more.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{AccessFlags, Pid, access, execv, pipe2, setpgid};

use crate::fail::Failure;
use crate::{mind, sys};

/// How long a helper may take, in milliseconds: name services behind a network
/// answer within seconds or not at all.
pub const DEADLINE: u64 = 10_000;

/// What a helper did.
pub struct Answer {
    /// Its exit status; 128+N after signal N.
    pub status: u8,
    /// What it wrote to standard output and standard error.
    pub output: Vec<u8>,
}

static FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// From here on nothing is found, and so nothing is run.
pub fn forbid() {
    FORBIDDEN.store(true, Ordering::Relaxed);
}

/// Finds `name` in the directories of PATH, or of the usual ones. Where the
/// kernel has given this program more privilege than its caller has, it was the
/// caller who wrote PATH: then only /usr/bin counts, even after the privilege
/// has been given up.
pub fn find(name: &str) -> Option<CString> {
    if FORBIDDEN.load(Ordering::Relaxed) {
        return None;
    }
    let given = if sys::is_secure() { Some("/usr/bin".into()) } else { std::env::var_os("PATH") };
    let path = given.unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let candidates = path.as_bytes().split(|b| *b == b':').filter(|dir| !dir.is_empty());
    candidates
        .filter_map(|dir| CString::new([dir, b"/", name.as_bytes()].concat()).ok())
        .find(|file| access(file.as_c_str(), AccessFlags::X_OK).is_ok())
}

/// Runs `program` with `arguments` (without its own name) and waits for it.
///
/// # Errors
/// Those of fork(2) and execve(2); ETIMEDOUT: it was killed at the deadline.
pub fn run<A: AsRef<OsStr>>(program: &CString, arguments: &[A]) -> Result<Answer, Errno> {
    let mut words = vec![program.clone()];
    for argument in arguments {
        words.push(CString::new(argument.as_ref().as_bytes()).map_err(|_| Errno::EINVAL)?);
    }
    run_words(program, &words)
}

/// The same with its own name before them; apart, since `run` is there once for each
/// type of its arguments.
fn run_words(program: &CString, words: &[CString]) -> Result<Answer, Errno> {
    let nothing = mind::nothing()?;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    // Closed by the exec, or told why there is none.
    let (failed, fails) = pipe2(OFlag::O_CLOEXEC)?;
    // An inherited "ignore" would make the kernel reap it, status and all.
    sys::default_signal(nix::libc::SIGCHLD);
    let (pid, pid_fd, end) = match sys::fork(0)? {
        sys::Fork::Child => {
            let placed = [(nothing.as_fd(), 0), (theirs.as_fd(), 1), (theirs.as_fd(), 2)];
            let error = match placed.iter().try_for_each(|(fd, number)| sys::place(*fd, *number)) {
                Err(e) => e,
                Ok(()) => {
                    // Keys are not for it: stopped, it would keep us waiting.
                    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                    sys::restore_signals();
                    let _ = SigSet::empty().thread_set_mask();
                    match execv(program, words) {
                        Err(e) => e,
                        Ok(never) => match never {},
                    }
                }
            };
            let _ = nix::unistd::write(&fails, &(error as i32).to_ne_bytes());
            sys::exit_now(127);
        }
        sys::Fork::Parent(pid, fd) => (pid, fd, Instant::now() + Duration::from_millis(DEADLINE)),
    };
    drop((theirs, fails));
    // It may close its output, and go on.
    let ends =
        |output| if mind::ready_within(pid_fd.as_fd(), mind::left(end))? { Ok(output) } else { Err(Errno::ETIMEDOUT) };
    let outcome = mind::read_until(ours.as_fd(), end).and_then(ends);
    if outcome.is_err() {
        let _ = sys::signal_child(pid, nix::libc::SIGKILL);
    }
    let status = loop {
        match waitid(Id::PIDFd(pid_fd.as_fd()), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, status)) => break u8::try_from(status & 0xff).unwrap_or(1),
            Ok(WaitStatus::Signaled(_, signal, _)) => break u8::try_from(128 + signal as i32).unwrap_or(255),
            Ok(_) | Err(_) => break 1,
        }
    };
    let output = outcome?;
    let mut error = [0; 4];
    match nix::unistd::read(&failed, &mut error) {
        Ok(4) => Err(Errno::from_raw(i32::from_ne_bytes(error))),
        Ok(_) | Err(_) => Ok(Answer { status, output }),
    }
}

// ---- what a program can do that we cannot ----

/// What `gains_privilege` says of a program that is like any other.
pub const NOT_SETUID: &str = "it is neither setuid root nor has it file capabilities";

/// Whether executing the file at `path` gives the privilege to map ids: it is
/// setuid root or has file capabilities, on a mount that honours them, and
/// this process may still gain any.
///
/// # Errors
/// What stands against it.
pub fn gains_privilege(path: &CStr) -> std::result::Result<(), String> {
    let closed = |e| Failure::os("it cannot be opened", e).to_string();
    let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(closed)?;
    let stat = fstat(&file).map_err(closed)?;
    let flags = fstatvfs(&file).map_err(closed)?.flags();
    let setuid = stat.st_mode & nix::libc::S_ISUID != 0;
    let against = if nix::sys::prctl::get_no_new_privs().unwrap_or(false) {
        "no_new_privs is set for this process"
    } else if flags.contains(FsFlags::ST_NOSUID) {
        "it is on a mount that is nosuid"
    } else if setuid && stat.st_uid != 0 {
        "it is setuid, and its owner is not root in our user namespace"
    } else if setuid || sys::has_file_capabilities(path) {
        return Ok(());
    } else {
        NOT_SETUID
    };
    Err(against.to_owned())
}

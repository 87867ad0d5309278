//! What the process was started with, which std changes before `main` is reached.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{is_ignored, set_disposition};

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static CHILD_IGNORED: AtomicBool = AtomicBool::new(false);

/// std sets SIGPIPE to "ignored" before main, we set SIGCHLD to its default,
/// and what is ignored stays so over execve(2): every `PROG | head` below us
/// would misbehave. What the caller really handed us must be seen before std's
/// start-up runs.
extern "C" fn at_start() {
    for (number, ignored) in [(libc::SIGPIPE, &PIPE_IGNORED), (libc::SIGCHLD, &CHILD_IGNORED)] {
        ignored.store(is_ignored(number), Ordering::Relaxed);
    }
    // For what is closed of the first three std opens /dev/null, and aborts where there
    // is none, as in a root without /dev. Nobody gets these: they end at the exec. (Not
    // O_PATH: to poll(2), which std asks, such a one is closed.)
    for number in 0..3 {
        // SAFETY: fcntl(2) on a number that is not open answers EBADF.
        let is_closed = unsafe { libc::fcntl(number, libc::F_GETFD) } < 0;
        // SAFETY: a constant string that ends with NUL.
        if is_closed && unsafe { libc::access(c"/dev/null".as_ptr(), libc::F_OK) } != 0 {
            // SAFETY: the same; it gets this number, the lowest that is free.
            unsafe { libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        }
    }
}

// SAFETY: the C runtimes of glibc and musl call the functions listed in
// .init_array before main, single-threaded; ours takes no argument it reads.
#[unsafe(link_section = ".init_array")]
#[used]
static AT_START: extern "C" fn() = at_start;

/// Gives SIGPIPE and SIGCHLD the dispositions back that this process was
/// started with.
pub fn restore_signals() {
    for (number, ignored) in [(libc::SIGPIPE, &PIPE_IGNORED), (libc::SIGCHLD, &CHILD_IGNORED)] {
        set_disposition(number, if ignored.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL });
    }
}

/// Whether the kernel started this program with more privilege than its
/// caller has (AT_SECURE of getauxval(3): file capabilities, a set-id bit).
pub fn is_secure() -> bool {
    // SAFETY: getauxval(3) reads the vector that the kernel put on the stack.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

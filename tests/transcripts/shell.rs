//! A user's shell, which lives as long as the file.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::left::{GRACE, kill};
use crate::world::{World, secret};

/// The shell's side of the conversation. Commands come through standard input, ended by NUL, and
/// never see it. After each the shell prints the mark that was sent to it first, which no command
/// can know, and the status. Descriptors are closed because make and others leave theirs open.
const SHELL: &str = "exec 2>&1; umask 022; ulimit -c 0; \
    for __fd in /proc/$$/fd/*; do __fd=${__fd##*/}; [ $__fd -le 2 ] || exec {__fd}>&-; done; \
    IFS= read -r -d '' __mark; __status=0; \
    while IFS= read -r -d '' __command; do \
    (exit $__status); eval \"$__command\" </dev/null; __status=$?; \
    printf '%s %d\\n' \"$__mark\" $__status; done";

/// More output than this, from one command, is not compared but refused.
const FLOOD: usize = 1 << 20;

pub(crate) struct Shell {
    child: Child,
    home: PathBuf,
    output: Receiver<Vec<u8>>,
    mark: String,
    /// Read, but not yet used: something in the background may print at any time.
    pending: Vec<u8>,
}

impl Shell {
    /// `mark` is what is left behind is known by.
    pub(crate) fn start(world: &World, user: &str, mark: &str) -> io::Result<Shell> {
        let home = world.make_home(user)?;
        let bash = ["bash", "--noprofile", "--norc", "-c", SHELL, "bash"];
        let mut command = world.command(user, &bash);
        command.env("HOME", &home).env("TMPDIR", &home).current_dir(&home);
        command.env("NSKIT_TEST_RUN", mark).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (send, output) = sync_channel(1);
        let pipe = child.stdout.take();
        // A thread, because it may outlive the shell: the background may hold the pipe.
        thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            if let Some(mut pipe) = pipe {
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    if send.send(buffer[..count].to_vec()).is_err() {
                        break;
                    }
                }
            }
        });
        let mut shell = Shell { child, home, output, mark: secret()?, pending: Vec::new() };
        shell.say(&shell.mark.clone())?;
        Ok(shell)
    }

    fn say(&mut self, words: &str) -> io::Result<()> {
        if let Some(pipe) = &mut self.child.stdin {
            pipe.write_all(words.as_bytes())?;
            pipe.write_all(b"\0")?;
        }
        Ok(())
    }

    /// What the command printed, and its status, or why that will never be known. Then the shell
    /// and its children are ended.
    pub(crate) fn run(&mut self, command: &str, timeout: Duration) -> (Vec<String>, Result<i32, String>) {
        let deadline = Instant::now() + timeout;
        // A shell that is gone is noticed below, after the last of its output.
        let _ = self.say(command);
        let why = loop {
            if let Some((output, status)) = self.answer() {
                return (lines(&output), Ok(status));
            }
            if self.pending.len() > FLOOD {
                break format!("more than {FLOOD} bytes of output");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.pending.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    break format!("no end after {} s", timeout.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => break "the shell is gone".to_owned(),
            }
        };
        let _ = kill(&format!("-{}", self.child.id()));
        let mut output = lines(&String::from_utf8_lossy(&self.pending));
        output.truncate(100);
        (output, Err(why))
    }

    /// The output before the mark and the status after it, as soon as both are there.
    fn answer(&mut self) -> Option<(String, i32)> {
        let text = String::from_utf8_lossy(&self.pending);
        let (output, rest) = text.split_once(&self.mark)?;
        let (status, rest) = rest.split_once('\n')?;
        let answer = (output.to_owned(), status.trim().parse().ok()?);
        self.pending = rest.as_bytes().to_vec();
        Some(answer)
    }

    /// No more commands: a shell that idles ends by itself; one that does not, is ended. Its home.
    pub(crate) fn end(mut self) -> io::Result<PathBuf> {
        self.child.stdin = None;
        let deadline = Instant::now() + GRACE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(self.home)
    }
}

fn lines(output: &str) -> Vec<String> {
    if output.is_empty() {
        return Vec::new();
    }
    output.strip_suffix('\n').unwrap_or(output).split('\n').map(String::from).collect()
}

//! A user's shell, which lives as long as the file.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::left::{GRACE, kill};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, tcgetattr, tcsetattr};

use crate::world::{User, World, secret};

/// The shell's side of the conversation. Commands come through standard input, ended by NUL, and
/// never see it. After each the shell prints the mark that was sent to it first, which no command
/// can know, and the status. Descriptors are closed because make and others leave theirs open.
const SHELL: &str = "exec 2>&1; umask 022; ulimit -c 0; \
    for __fd in /proc/$$/fd/*; do __fd=${__fd##*/}; [ $__fd -le 2 ] || exec {__fd}>&-; done; \
    IFS= read -r -d '' __mark; __status=0; \
    while IFS= read -r -d '' __command; do \
    (exit $__status); eval \"$__command\" </dev/null; __status=$?; \
    printf '%s %d\\n' \"$__mark\" $__status; done";

/// A shell as people have it, on a terminal. Its prompt is the mark and the status, and so is that of
/// any shell started later: some read these files, others the environment.
const TERMINAL: &str = "umask 022; ulimit -c 0; exec bash --noprofile";
const STARTUP: [&str; 2] = [".bashrc", ".profile"];

/// More output than this, from one command, is not compared but refused.
const FLOOD: usize = 1 << 20;

pub(crate) struct Shell {
    child: Child,
    /// A pipe, or the far side of its terminal.
    input: Option<File>,
    pub(crate) terminal: bool,
    output: Receiver<Vec<u8>>,
    mark: String,
    /// Read, but not yet used: something in the background may print at any time.
    pending: Vec<u8>,
}

impl Shell {
    /// `mark` is what is left behind is known by.
    pub(crate) fn start(world: &World, user: &User, home: &Path, mark: &str, terminal: bool) -> io::Result<Shell> {
        let (options, program): (&[&str], &[&str]) = if terminal {
            (&["--ctty"], &["sh", "-c", TERMINAL])
        } else {
            (&[], &["bash", "--noprofile", "--norc", "-c", SHELL, "bash"])
        };
        let mut command = world.command(user.name, options, program);
        command.env("HOME", home).env("TMPDIR", home).current_dir(home).env("NSKIT_TEST_RUN", mark);
        let word = secret()?;
        let (child, input, mut output) = if terminal {
            let prompt = format!("{word} $?\n");
            for file in STARTUP {
                fs::write(home.join(file), "PS1=$NSKIT_PROMPT PS2=; set +o emacs\n")?;
            }
            let pty = screen()?;
            if world.private {
                fchown(&pty.slave, Some(user.id), None)?;
            }
            command.env("PS1", &prompt).env("NSKIT_PROMPT", &prompt).env("PS2", "").env("SHELL", "/bin/bash");
            // A shell that is to find a locale has to, and a new root has none.
            command.env_remove("LC_ALL").env("LANG", "C.UTF-8");
            command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
            let child = command.spawn()?;
            (child, File::from(pty.master.try_clone()?), File::from(pty.master))
        } else {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let gone = || io::Error::other("a pipe is missing");
            let input = OwnedFd::from(child.stdin.take().ok_or_else(gone)?);
            let output = OwnedFd::from(child.stdout.take().ok_or_else(gone)?);
            (child, File::from(input), File::from(output))
        };
        let (send, received) = sync_channel(1);
        // A thread, because it may outlive the shell: the background may hold the pipe.
        thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let input = Some(input);
        let mut shell = Shell { child, input, terminal, output: received, mark: word, pending: Vec::new() };
        if terminal {
            shell.await_answer(Instant::now() + world.timeout).map_err(io::Error::other)?;
        } else {
            shell.say(&shell.mark.clone())?;
        }
        Ok(shell)
    }

    fn say(&mut self, words: &str) -> io::Result<()> {
        let end = if self.terminal { b"\n" } else { b"\0" };
        if let Some(input) = &mut self.input {
            input.write_all(words.as_bytes())?;
            input.write_all(end)?;
        }
        Ok(())
    }

    /// What the command printed, and its status, or why that will never be known. Then the shell
    /// and its children are ended.
    pub(crate) fn run(&mut self, command: &str, timeout: Duration) -> (Vec<String>, Result<i32, String>) {
        // A shell that is gone is noticed below, after the last of its output.
        let _ = self.say(command);
        match self.await_answer(Instant::now() + timeout) {
            Ok((output, status)) => (lines(&output), Ok(status)),
            Err(why) => {
                let _ = kill(&format!("-{}", self.child.id()));
                let mut output = lines(&String::from_utf8_lossy(&self.pending));
                output.truncate(100);
                (output, Err(why))
            }
        }
    }

    fn await_answer(&mut self, deadline: Instant) -> Result<(String, i32), String> {
        let begin = Instant::now();
        loop {
            if let Some((output, status)) = self.answer() {
                // A terminal in this one may end its lines so.
                let output = if self.terminal { output.replace("\r\n", "\n") } else { output };
                return Ok((output, status));
            }
            if self.pending.len() > FLOOD {
                return Err(format!("more than {FLOOD} bytes of output"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.pending.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("no end after {} s", deadline.duration_since(begin).as_secs_f32().round()));
                }
                Err(RecvTimeoutError::Disconnected) => return Err("the shell is gone".to_owned()),
            }
        }
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

    /// No more commands: a shell that idles ends by itself; one that does not, is ended.
    pub(crate) fn end(mut self) -> io::Result<()> {
        if let (true, Some(input)) = (self.terminal, &mut self.input) {
            // The end of input, on a terminal.
            let _ = input.write_all(b"\x04");
        }
        self.input = None;
        let deadline = Instant::now() + GRACE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// A terminal that shows what programs write, and not what is typed.
fn screen() -> io::Result<OpenptyResult> {
    let pty = openpty(Some(&Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }), None)?;
    let mut how = tcgetattr(&pty.slave)?;
    how.local_flags.remove(LocalFlags::ECHO);
    how.output_flags.remove(OutputFlags::ONLCR);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &how)?;
    Ok(pty)
}

fn lines(output: &str) -> Vec<String> {
    if output.is_empty() {
        return Vec::new();
    }
    output.strip_suffix('\n').unwrap_or(output).split('\n').map(String::from).collect()
}

//! Whether a program has said that it is ready: sd_notify(3), the server's side.
//!
//! Anybody who finds the socket may write to it. What counts is said by the
//! program or a process below it; where the sender has ended already, by an id
//! that is the caller's or the program's. The rest is read and thrown away, so
//! that nobody who writes has to wait.

use std::cell::Cell;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
use nix::unistd::write;

use crate::id::Kind;
use crate::ns;
use crate::proc::Proc;
use crate::sys;

/// Somebody waits to be told that a program is ready.
pub struct Ready<'a> {
    /// Where the program says so.
    pub socket: BorrowedFd<'a>,
    /// What he reads, until it has been told.
    teller: Cell<Option<RawFd>>,
}

/// How many messages are read in a row: whoever sends without end must not keep
/// us from the rest.
const TURN: usize = 64;

impl Ready<'_> {
    /// Listens on `socket`, and tells by descriptor `teller`, which is ours.
    pub fn new(socket: BorrowedFd<'_>, teller: RawFd) -> Ready<'_> {
        Ready { socket, teller: Cell::new(Some(teller)) }
    }

    /// Reads what has come; `program` is its number in `proc`.
    pub fn hear(&self, program: &str, proc: &Proc) {
        let mut bytes = [0; 4096];
        for _ in 0..TURN {
            match receive(self.socket, &mut bytes) {
                Ok(Some((sender, text))) if self.teller.get().is_some() => {
                    let is_ready = text.split(|b| *b == b'\n').any(|line| line == b"READY=1");
                    if is_ready && counts(&sender, program, proc) {
                        self.tell();
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn tell(&self) {
        if let Some(number) = self.teller.take() {
            // Whoever does not read what little is in a pipe will see its end.
            let teller = sys::own(number);
            let _ = nix::fcntl::fcntl(&teller, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK));
            let _ = write(&teller, b"ready\n");
        }
    }
}

/// One whole message, and who sent it. Descriptors that come with it are closed:
/// that is the answer to BARRIER=1.
fn receive<'a>(socket: BorrowedFd<'_>, bytes: &'a mut [u8]) -> Result<Option<(UnixCredentials, &'a [u8])>, Errno> {
    // As many as a message can have (SCM_MAX_FD): one that does not fit is an error.
    let mut space = nix::cmsg_space!(UnixCredentials, [RawFd; 253]);
    let (n, sender) = {
        let mut iov = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
        let mut sender = None;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmCredentials(who) = part {
                sender = Some(who);
            } else if let ControlMessageOwned::ScmRights(fds) = part {
                fds.into_iter().for_each(|fd| drop(sys::own(fd)));
            }
        }
        (message.bytes, sender.filter(|_| whole))
    };
    Ok(sender.and_then(|sender| Some((sender, bytes.get(..n)?))))
}

fn counts(sender: &UnixCredentials, program: &str, proc: &Proc) -> bool {
    // Its number is that of our pid namespace, 0 if it is not in there.
    match sys::pidfd_open(sender.pid()) {
        Ok(alive) => is_below(alive.as_fd(), program, proc),
        Err(Errno::ESRCH) => {
            let inside = proc.ns_id(program, ns::Kind::User) != proc.ns_id("self", ns::Kind::User);
            let map = proc.map(program, Kind::Uid).filter(|_| inside).unwrap_or_default();
            proc.own().uid[1] == sender.uid() || map.iter().any(|e| e.outside().has(sender.uid()))
        }
        Err(_) => false,
    }
}

/// Whether a process is `program`, or one below it. `proc` may be that of
/// another pid namespace than ours.
fn is_below(process: BorrowedFd<'_>, program: &str, proc: &Proc) -> bool {
    let mut who = proc.number_of(process).ok().flatten().map(|n| n.to_string());
    // No tree is deeper: one process takes more than a page.
    for _ in 0..1 << 16 {
        match who {
            Some(number) if number == program => return true,
            Some(number) if number != "0" => who = proc.status(&number).map(|s| s.parent.to_string()),
            Some(_) | None => return false,
        }
    }
    false
}

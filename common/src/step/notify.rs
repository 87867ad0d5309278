//! A socket on which the program says that it is ready: unix(7), sd_notify(3).

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::kill;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, getsockname, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, geteuid, getpid, unlink};

use super::{Done, Hands, NOTIFY, Step};
use crate::fail::Errno;
use crate::mind;
use crate::sys;
use crate::word::c;

/// An effect on that socket.
#[derive(Clone, Copy)]
pub enum Effect {
    /// Make it, and tell the program.
    Listen,
    /// Take it away.
    Forget,
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        Step::new(move || effect.act(), effect.why(), move |hands| effect.perform(hands))
            .detail(move || effect.detail())
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::Listen => "make a socket for NOTIFY_SOCKET".to_owned(),
            Effect::Forget => "remove the socket of NOTIFY_SOCKET".to_owned(),
        }
    }

    fn detail(&self) -> String {
        match self {
            Effect::Listen => format!("in {}", crate::word::quote(directory())),
            Effect::Forget => String::new(),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::Listen => {
                "with a path, which other mount namespaces show as well: a name without one belongs to a network namespace"
            }
            Effect::Forget => "its path outlives it",
        }
    }

    fn perform(&self, hands: &mut Hands) -> Done {
        match self {
            Effect::Listen => listen(hands),
            Effect::Forget => {
                let at = getsockname::<UnixAddr>(hands.get(NOTIFY)?.as_raw_fd())?;
                at.path().into_iter().for_each(remove);
                Ok(())
            }
        }
    }
}

fn listen(hands: &mut Hands) -> Done {
    // Who says something is known by it: without, nobody would ever be heard.
    sys::pidfd_open(getpid().as_raw())?;
    // A signal may not part us from what we have made.
    mind::block_signals()?;
    let dir = directory();
    // It goes to others, who are in another directory (sd_notify(3)).
    let dir = std::path::absolute(&dir).map_err(|_| Errno::ENOENT)?;
    clear(&dir);
    let socket = datagram()?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    // For whatever ids the program has; who counts is seen by his process.
    let mask = umask(Mode::from_bits_truncate(0o111));
    let bound = bind_in(&dir, &socket);
    umask(mask);
    let path = bound?;
    let value = c(path.as_os_str()).map_err(|_| Errno::EINVAL)?;
    hands.undo.push(Box::new(move || remove(&path)));
    sys::set_variable(c"NOTIFY_SOCKET", Some(&value))?;
    hands.put(NOTIFY, socket);
    Ok(())
}

fn directory() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    named.map_or_else(|| "/tmp".into(), PathBuf::from)
}

fn datagram() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Datagram, flags, None)
}

const NAME: &str = "ns-new-";

/// Anybody may have taken the first names.
fn bind_in(dir: &Path, socket: &OwnedFd) -> Result<PathBuf, Errno> {
    let plain = format!("{NAME}{}", getpid());
    let others = (2..100).map(|n| format!("{plain}-{n}"));
    for name in std::iter::once(plain.clone()).chain(others) {
        let path = dir.join(name);
        match bind(socket.as_raw_fd(), &UnixAddr::new(&path)?) {
            Err(Errno::EADDRINUSE) => {}
            done => return done.map(|()| path),
        }
    }
    Err(Errno::EADDRINUSE)
}

/// Takes away what was left by those who were killed: the user's, whose process
/// is gone and which nobody listens on, if in another pid namespace.
fn clear(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(NAME)?.split('-').next()?.parse().ok());
        let Some(pid) = number.map(Pid::from_raw).filter(|pid| pid.as_raw() > 0) else { continue };
        let is_ours =
            entry.metadata().is_ok_and(|data| data.file_type().is_socket() && data.uid() == geteuid().as_raw());
        if is_ours && kill(pid, None) == Err(Errno::ESRCH) && is_deaf(&entry.path()) {
            remove(&entry.path());
        }
    }
}

fn is_deaf(path: &Path) -> bool {
    let reached = || connect(datagram()?.as_raw_fd(), &UnixAddr::new(path)?);
    reached() == Err(Errno::ECONNREFUSED)
}

fn remove(socket: &Path) {
    let _ = unlink(socket);
}

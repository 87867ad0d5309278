//! A socket on which the program says that it is ready: unix(7), sd_notify(3).

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket, sockopt};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{mkdtemp, unlink};

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
            Effect::Listen => format!("in a directory of {}", crate::word::quote(std::env::temp_dir())),
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
    // A signal may not part us from what we have made.
    mind::block_signals()?;
    let dir = mkdtemp(&std::env::temp_dir().join("ns-new-XXXXXX"))?;
    let path = dir.join("notify");
    let undone = path.clone();
    hands.undo.push(Box::new(move || remove(&undone)));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
    // For whatever ids the program has; who counts is seen by his process.
    open_to_all(&path, 0o666)?;
    open_to_all(&dir, 0o711)?;
    let value = c(path.as_os_str()).map_err(|_| Errno::EINVAL)?;
    sys::set_variable(c"NOTIFY_SOCKET", Some(&value))?;
    hands.put(NOTIFY, socket);
    Ok(())
}

fn open_to_all(path: &Path, mode: u32) -> Result<(), Errno> {
    fchmodat(AT_FDCWD, path, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
}

/// Nobody else may put anything into the directory.
fn remove(socket: &Path) {
    let _ = unlink(socket);
    let _ = socket.parent().map(std::fs::remove_dir);
}

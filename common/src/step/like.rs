//! What a program takes over from a process that runs already. proc(5),
//! chroot(2), capabilities(7).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::unistd::{chroot, fchdir};

use super::program::{lacks, variable};
use super::{Done, Facts, Step};
use crate::fail::{Because, Errno};
use crate::proc::{CAP_SYS_CHROOT, Proc, read_all};
use crate::sys;
use crate::target::{self, Target};
use crate::word::quote;

/// An effect that makes this process like another.
pub enum Effect {
    /// Read its environment into this.
    ReadEnvironment(Rc<Target>, Rc<RefCell<Vec<u8>>>),
    /// Have what has been read for the environment.
    Environment(Rc<RefCell<Vec<u8>>>),
    /// Its root directory.
    Root(Rc<OwnedFd>),
    /// Its working directory.
    Directory(Rc<OwnedFd>),
    /// What the kernel adds when it looks for somebody to kill: -1000 to 1000.
    OomScore(i32),
    /// Its label of a security module, from the exec on: the directory of files
    /// that is about labels, and what is to be written there.
    Label(&'static str, String),
    /// Its capabilities, a bit for each: permitted, effective, inheritable,
    /// ambient.
    Capabilities([u64; 4]),
}

/// The kernel lets no program begin with more: three quarters of _STK_LIM
/// (fs/exec.c, bprm_stack_limits()).
const MOST_BYTES: usize = 6 << 20;

impl From<Effect> for Step {
    fn from(effect: Effect) -> Step {
        let effect = Rc::new(effect);
        let (naming, doing, asking) = (effect.clone(), effect.clone(), effect.clone());
        let step = Step::new(move || naming.act(), effect.why(), move |_| doing.perform());
        step.because(move |errno, facts| asking.because(errno, facts))
    }
}

impl Effect {
    fn act(&self) -> String {
        match self {
            Effect::ReadEnvironment(target, _) => format!("read /proc/{}/environ", target.pid),
            Effect::Environment(_) => "take that for the environment".into(),
            Effect::Root(_) => "chroot to the root of the target".into(),
            Effect::Directory(_) => "chdir to the working directory of the target".into(),
            Effect::OomScore(score) => format!("write /proc/self/oom_score_adj {score}"),
            Effect::Label(dir, text) => format!("write /proc/self/{dir}/exec {}", quote(text)),
            Effect::Capabilities([permitted, _, inheritable, ambient]) => format!(
                "capset permitted {} inheritable {} ambient {}",
                sys::capability_names(*permitted),
                sys::capability_names(*inheritable),
                sys::capability_names(*ambient)
            ),
        }
    }

    fn why(&self) -> &'static str {
        match self {
            Effect::ReadEnvironment(..) => {
                "only now: before its user namespace is entered the file belongs to somebody else, and after the uid is changed we may lack what it takes"
            }
            Effect::Environment(_) => "last, so that nothing in it is for anybody but the program",
            Effect::Root(_) => "entering a mount namespace leads to its root, which need not be that of the process",
            Effect::Directory(_) => "by descriptor: the path may lead elsewhere by now",
            Effect::OomScore(_) | Effect::Label(..) => "before this process cannot write to its own files any more",
            Effect::Capabilities(_) => "an exec by uid 0 gives all of the bounding set, one by another what is ambient",
        }
    }

    fn perform(&self) -> Done {
        match self {
            Effect::ReadEnvironment(target, read) => {
                read.replace(environment_of(target)?);
                Ok(())
            }
            Effect::Environment(read) => environment(&read.borrow()),
            Effect::Root(root) => {
                fchdir(root)?;
                Ok(chroot(".")?)
            }
            Effect::Directory(directory) => Ok(fchdir(directory)?),
            Effect::OomScore(score) => write("self/oom_score_adj", &score.to_string()),
            Effect::Label(dir, text) => write(&format!("self/{dir}/exec"), text),
            Effect::Capabilities(sets) => Ok(sys::set_capabilities(*sets)?),
        }
    }

    fn because(&self, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
        match self {
            Effect::ReadEnvironment(target, _) if errno == Errno::EACCES => {
                target::why::untouchable(facts.proc, &target.who())
            }
            Effect::ReadEnvironment(target, _) if errno == Errno::ESRCH => target.ended(),
            Effect::Root(_) if errno == Errno::EPERM => lacks(CAP_SYS_CHROOT, "CAP_SYS_CHROOT", facts),
            Effect::Label(dir, _) => confined(dir, errno, facts),
            Effect::ReadEnvironment(..)
            | Effect::Environment(_)
            | Effect::Root(_)
            | Effect::Directory(_)
            | Effect::OomScore(_)
            | Effect::Capabilities(_) => None,
        }
    }
}

fn write(file: &str, text: &str) -> Done {
    let file = Proc::open()?.open_at(file, OFlag::O_WRONLY)?;
    Ok(sys::write_whole(&file, text.as_bytes())?)
}

/// Whether a profile of AppArmor is what keeps us from another one
/// (aa_change_profile() in security/apparmor/domain.c).
fn confined(dir: &str, errno: Errno, facts: &Facts<'_>) -> Option<Because> {
    let label = facts.proc.text(&format!("{}/{dir}/current", facts.who))?;
    let (name, _) = label.trim_end().strip_suffix(')')?.rsplit_once(" (")?;
    let name = quote(name);
    let text = if errno == Errno::EACCES {
        format!("AppArmor has us confined by {name}, whose change_profile rules say what we may become")
    } else if errno == Errno::EPERM && facts.proc.status(facts.who)?.no_new_privs {
        format!("no_new_privs is set here, and AppArmor has us confined by {name}")
    } else {
        return None;
    };
    Some(Because::new(text))
}

/// What a process has for its environment. With its memory, which goes with an
/// exec and with its end, goes what has not been read yet: none is had then.
fn environment_of(target: &Target) -> Result<Vec<u8>, Errno> {
    for _ in 0..3 {
        let file = target::files::open(target, "environ")?;
        let bytes = read_all(&file, MOST_BYTES)?;
        let is_there = File::from(file).read_at(&mut [0], 0).is_ok_and(|n| n == 1);
        if is_there {
            return Ok(bytes);
        }
        if target::files::read(target, "statm")?.starts_with(b"0 ") {
            return Err(Errno::ESRCH);
        }
    }
    Ok(Vec::new())
}

/// These variables and no others. Of two with one name the first counts, as for
/// getenv(3).
fn environment(bytes: &[u8]) -> Done {
    sys::clear_environment()?;
    for line in bytes.split(|b| *b == 0).rev() {
        let Some(at) = line.iter().position(|b| *b == b'=').filter(|at| *at > 0) else { continue };
        let (name, value) = line.split_at(at);
        variable(OsStr::from_bytes(name), Some(&OsStr::from_bytes(&value[1..]).to_owned()))?;
    }
    Ok(())
}

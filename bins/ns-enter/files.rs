//! Namespaces by their files: an operand, or --KIND=FILE.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Errno, Failure, Result};
use common::ns::Kind;
use common::plan::Plan;
use common::preset::Me;
use common::proc::Proc;
use common::step::{Step, ns, own};
use common::target::{self, Operand, Target};

use super::CLI;

/// A namespace file.
pub(crate) struct File {
    pub(crate) kind: Kind,
    fd: Rc<OwnedFd>,
    name: String,
}

/// Those named on the command line, and `operand` if it is one: in the order in
/// which the kernel would enter them.
///
/// # Errors
/// Those of open(2); one is no namespace, or of another kind.
pub(crate) fn named(args: &Args, operand: Option<&Operand>, proc: &Proc) -> Result<Vec<File>> {
    let mut files: Vec<File> = operand.map(|file| open(file, None)).transpose()?.into_iter().flatten().collect();
    for kind in Kind::ALL {
        let Some(word) = args.value(kind.option()) else { continue };
        files.retain(|file| file.kind != kind);
        files.extend(open(&operand_of(&word)?, Some(kind))?);
    }
    // Our own user namespace would be refused. Our own mount namespace need not
    // have the root directory that we have.
    files.retain(|file| file.kind == Kind::Mnt || !target::files::is_ours(proc, &file.fd, file.kind));
    files.sort_by_key(|file| Kind::ALL.iter().position(|kind| *kind == file.kind));
    Ok(files)
}

/// The network namespace of a socket that the target has open, unless it is ours.
///
/// # Errors
/// Wrong usage; there is no such socket, or it is not ours to take.
pub(crate) fn of_socket(args: &Args, proc: &Proc, target: &Target) -> Result<Option<File>> {
    let Some(n) = args.number("net-socket")? else { return Ok(None) };
    let n = i32::try_from(n).map_err(|_| CLI.usage("--net-socket: not a descriptor"))?;
    let fd = Rc::new(target::files::network_of_socket(proc, target, n)?);
    let name = format!("{} net of descriptor {n}", target.address);
    Ok((!target::files::is_ours(proc, &fd, Kind::Net)).then_some(File { kind: Kind::Net, fd, name }))
}

/// A file needs no slash here, where it can be nothing else.
fn operand_of(word: &OsStr) -> Result<Operand> {
    let marked = [&b"fd:"[..], b"netns:"].iter().any(|mark| word.as_bytes().starts_with(mark));
    if marked { Operand::parse(word) } else { Ok(Operand::File(word.into())) }
}

fn open(file: &Operand, wanted: Option<Kind>) -> Result<Option<File>> {
    let Some((fd, flag)) = target::given::namespace_file(file)? else { return Ok(None) };
    let kind = Kind::ALL.into_iter().find(|k| k.flag() == flag);
    let kind = kind.ok_or_else(|| Failure::refused(format!("{file} is an unknown kind of namespace")))?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != kind) {
        let (option, kind) = (wanted.option(), kind.link());
        return Err(Failure::refused(format!("--{option}: {file} is a namespace of another kind: {kind}")));
    }
    Ok(Some(File { kind, fd: Rc::new(fd), name: file.to_string() }))
}

/// The steps that enter them, and by `join` those `kinds` of a target's. What
/// belongs to a user namespace that is entered as well takes the capabilities
/// that one has there; all else takes those of before.
pub(crate) fn enter(files: &[File], target: Option<(&Target, &[Kind])>, join: Plan, proc: &Rc<Proc>) -> Plan {
    let (who, kinds) = target.map_or((String::new(), &[][..]), |(target, kinds)| (target.who(), kinds));
    let theirs = |kind: Kind| kinds.contains(&kind).then(|| proc.ns(&who, kind).ok()).flatten().map(Rc::new);
    let file = files.iter().find(|file| file.kind == Kind::User);
    let user = file.map(|file| file.fd.clone()).or_else(|| theirs(Kind::User));
    let place = |kind: Kind, ns: &OwnedFd| match &user {
        _ if kind == Kind::User => 1,
        Some(user) if target::files::belongs(ns, user) => 2,
        Some(_) | None => 0,
    };
    let of_target = Kind::ALL.into_iter().find_map(|kind| Some(place(kind, &*theirs(kind)?)));
    let mut all = vec![(of_target.unwrap_or(0), join)];
    all.extend(files.iter().map(|file| (place(file.kind, &file.fd), one(file, user.as_ref(), proc))));
    all.sort_by_key(|(place, _)| *place);
    Plan { steps: all.into_iter().flat_map(|(_, plan)| plan.steps).collect(), ..Plan::default() }
}

fn one(file: &File, user: Option<&Rc<OwnedFd>>, proc: &Rc<Proc>) -> Plan {
    let mut plan = Plan::default();
    let mut step = Step::from(ns::Effect::JoinFile(file.fd.clone(), file.kind, file.name.clone()));
    if let Some(user) = user.filter(|user| file.kind != Kind::User && !target::files::belongs(&file.fd, user)) {
        let (fd, kind, user) = (file.fd.clone(), file.kind, user.clone());
        step = step.because(move |errno, facts| ns::join::refused_before(&fd, kind, &user, errno, facts));
    }
    plan.push(step);
    match file.kind {
        Kind::User => plan.push(own::Effect::Settle(Me::nameless().own, proc.clone())),
        Kind::Pid => plan.push(into_pid(file.fd.clone())),
        Kind::Mnt | Kind::Uts | Kind::Ipc | Kind::Cgroup | Kind::Net | Kind::Time => {}
    }
    plan
}

/// The fork into a pid namespace that has just been entered by its file, and
/// may have outlived its first process.
pub(crate) fn into_pid(ns: Rc<OwnedFd>) -> Step {
    let is_dead = move |errno| target::why::is_dead(ns.as_fd()).filter(|_| errno == Errno::ENOMEM);
    Step::from(ns::Effect::IntoPid).or_because(move |errno, _| is_dead(errno))
}

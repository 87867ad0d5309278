//! --like: the program becomes what the target is, as far as the kernel lets
//! that be seen and taken over.
//!
//! Of what a list names each thing is an order: what cannot be had is a refusal.
//! Without a list each is tried by a throw-away child, and what cannot be had
//! is told and left out.

mod credentials;

use std::path::Path;
use std::rc::Rc;

use common::cgroup::Cgroup;
use common::cli::Args;
use common::fail::{Because, Errno, Failure, Result};
use common::ns::{INITIAL_USER, Kind};
use common::plan::Plan;
use common::proc::{CAP_SYS_ADMIN, Mount, Proc, Status, status_in};
use common::step::like::Effect;
use common::step::program::{Effect as Own, limits_in};
use common::step::{Step, own};
use common::target::{self, Target};
use common::word::quote;

use super::kinds::probe;
use super::{CLI, nsenter};

/// What can be taken over, as the option names it.
const THINGS: [&str; 14] = [
    "uid",
    "gid",
    "groups",
    "caps",
    "no-new-privs",
    "seccomp",
    "limits",
    "umask",
    "oom",
    "cgroup",
    "env",
    "root",
    "cwd",
    "label",
];

/// What is done to be like the target, by when it is done.
#[derive(Default)]
pub(crate) struct Like {
    /// Where the program is born.
    pub(crate) cgroup: Option<Rc<Cgroup>>,
    /// Before anything is entered.
    pub(crate) first: Plan,
    /// When everything has been.
    pub(crate) entered: Plan,
    /// Whether its root and its working directory are among that.
    pub(crate) root: bool,
    pub(crate) directory: bool,
    /// In place of the usual credentials, and the uid that is had then.
    pub(crate) credentials: Option<(Plan, Option<u32>)>,
    /// Just before the program.
    pub(crate) last: Plan,
    /// What has been left out, and why.
    pub(crate) left_out: Vec<Failure>,
}

/// Both sides, and what was asked for.
struct Look<'a> {
    wanted: Vec<&'static str>,
    strict: bool,
    target: &'a Rc<Target>,
    proc: &'a Rc<Proc>,
    /// The status of the two.
    theirs: Status,
    ours: Status,
    /// Whether the user namespace is entered, or its parent with the ids kept.
    user: bool,
    parent: bool,
    /// What enters all.
    enter: &'a dyn Fn() -> Result<Plan>,
    left_out: Vec<Failure>,
}

/// What --like asks for; nothing without it.
///
/// # Errors
/// Wrong usage; what a list names cannot be taken over.
pub(crate) fn read(
    args: &Args,
    proc: &Rc<Proc>,
    target: &Rc<Target>,
    kinds: &[Kind],
    enter: &dyn Fn() -> Result<Plan>,
) -> Result<Like> {
    if !args.flag("like") && nsenter::like(args).is_empty() {
        return Ok(Like::default());
    }
    if args.value("as").is_some() {
        return Err(CLI.usage("--as and --like are two ways to become somebody"));
    }
    let (mut wanted, strict) = wanted(args)?;
    let mut left_out = Vec::new();
    if args.value("tools").is_some() {
        // They are no part of the target's root, which would hide them.
        let places = |thing: &&str| ["root", "cwd"].contains(thing);
        if strict && wanted.iter().any(places) {
            return Err(CLI.usage("--like=root and --like=cwd would lead away from --tools"));
        }
        if !strict {
            left_out.push(Failure::refused("its root and working directory would lead away from --tools"));
        }
        wanted.retain(|thing| !places(thing));
    }
    let not_read = |e| Failure::os(format!("read /proc/{}/status", target.pid), e).because(target.ended());
    let theirs = status_in(&target.dir).map_err(not_read)?;
    let ours = proc.own();
    let (user, parent) = (kinds.contains(&Kind::User), args.flag("user-parent"));
    let mut look = Look { wanted, strict, target, proc, theirs, ours, user, parent, enter, left_out };
    let mut like = Like { cgroup: look.cgroup()?, ..Like::default() };
    look.oom(&mut like.first)?;
    look.label(&mut like.first)?;
    (like.root, like.directory) = look.places(&mut like.entered, kinds)?;
    look.umask(&mut like.entered);
    let mut filters = look.filters(args.dry())?;
    like.credentials = look.credentials()?;
    look.environment(&mut like.entered, &mut like.last)?;
    look.no_new_privileges(&mut like.last)?;
    // With no_new_privs anybody may load filters; without it takes a capability.
    let early = !look.theirs.no_new_privs && !filters.steps.is_empty();
    let when = if early { &mut like.entered } else { &mut like.last };
    // They may forbid it.
    look.limits(&mut like.first, when)?;
    when.steps.append(&mut filters.steps);
    like.left_out = look.left_out;
    Ok(like)
}

fn wanted(args: &Args) -> Result<(Vec<&'static str>, bool)> {
    let mut lists: Vec<String> = args.values("like").iter().map(|list| list.to_string_lossy().into_owned()).collect();
    if lists.is_empty() && args.flag("like") {
        return Ok((THINGS.to_vec(), false));
    }
    lists.extend(nsenter::like(args).into_iter().map(str::to_owned));
    let words = lists.join(",");
    let known = |word: &str| {
        let found = THINGS.into_iter().find(|thing| *thing == word);
        found.ok_or_else(|| CLI.usage(&format!("--like: {} is none of {}", quote(word), THINGS.join(", "))))
    };
    Ok((words.split(',').map(known).collect::<Result<_>>()?, true))
}

impl Look<'_> {
    fn wants(&self, thing: &str) -> bool {
        self.wanted.contains(&thing)
    }

    /// What cannot be had: a refusal if it was named, else noted.
    fn without(&mut self, failure: Failure) -> Result<()> {
        if self.strict {
            return Err(failure);
        }
        self.left_out.push(failure);
        Ok(())
    }

    /// Adds steps if they can be done, alone or once everything is entered.
    fn add(&mut self, plan: &mut Plan, entered: bool, make: &dyn Fn() -> Step) -> Result<bool> {
        if !self.strict {
            let mut inside = Plan::default();
            if entered {
                inside.push(own::Effect::Undumpable);
                inside.steps.extend((self.enter)()?.steps);
            }
            inside.push(make());
            if let Some(failure) = probe(None, inside, self.proc) {
                self.left_out.push(failure);
                return Ok(false);
            }
        }
        plan.push(make());
        Ok(true)
    }

    /// The files `name` of the target and of ourselves, if `thing` is wanted.
    fn both(&mut self, thing: &str, name: &str) -> Result<Option<(String, String)>> {
        if !self.wants(thing) {
            return Ok(None);
        }
        match target::files::read(self.target, name) {
            Ok(theirs) => {
                let ours = self.proc.whole(&format!("self/{name}"))?;
                Ok(Some((String::from_utf8_lossy(&theirs).into_owned(), ours)))
            }
            Err(e) => {
                let failure = Failure::os(format!("read /proc/{}/{name}", self.target.pid), e);
                self.without(failure.because(self.target.ended()))?;
                Ok(None)
            }
        }
    }

    fn cgroup(&mut self) -> Result<Option<Rc<Cgroup>>> {
        let Some((theirs, ours)) = self.both("cgroup", "cgroup")?.filter(|(theirs, ours)| theirs != ours) else {
            return Ok(None);
        };
        let (new, old): (Vec<&str>, Vec<&str>) = theirs.lines().partition(|line| line.starts_with("0::"));
        if old.iter().any(|line| !ours.lines().any(|own| own == *line)) {
            self.without(Failure::refused("its cgroups of version 1 are not taken over"))?;
        }
        let Some(path) = new.first().map(|line| &line[3..]).filter(|path| !ours.contains(&format!("0::{path}\n")))
        else {
            return Ok(None);
        };
        let mut mounts = self.proc.own_mounts()?.into_iter().filter(|m| m.fstype == "cgroup2" && m.root == "/");
        let shown = |m: &Mount| Cgroup::at(Path::new(&m.point).join(path.trim_start_matches('/')).as_os_str());
        let mut failed = None;
        let found = mounts.find_map(|m| match shown(&m) {
            Ok(cgroup) => Some(cgroup),
            Err(failure) => {
                // It may be shown by another one.
                let missing = matches!(failure.errno(), None | Some(Errno::ENOENT));
                failed = failed.take().or((!missing).then_some(failure));
                None
            }
        });
        let Some(cgroup) = found.map(Rc::new) else {
            let none = || Failure::refused(format!("no cgroup2 file system here shows its cgroup {}", quote(path)));
            self.without(failed.unwrap_or_else(none))?;
            return Ok(None);
        };
        if cgroup.is_frozen() {
            let text = format!("its cgroup {} is frozen, and would stop the program at once", quote(path));
            self.without(Failure::refused(text))?;
            return Ok(None);
        }
        if !self.strict {
            if let Some(failure) = probe(Some(cgroup.clone()), Plan::default(), self.proc) {
                self.left_out.push(failure);
                return Ok(None);
            }
        }
        Ok(Some(cgroup))
    }

    fn oom(&mut self, plan: &mut Plan) -> Result<()> {
        let both = self.both("oom", "oom_score_adj")?.filter(|(theirs, ours)| theirs != ours);
        match both.and_then(|(theirs, _)| theirs.trim().parse().ok()) {
            Some(score) => self.add(plan, false, &|| Effect::OomScore(score).into()).map(drop),
            None => Ok(()),
        }
    }

    /// The root and the working directory, where the mounts are entered or these
    /// are others than ours in them; and which is had then.
    fn places(&mut self, plan: &mut Plan, kinds: &[Kind]) -> Result<(bool, bool)> {
        let (mut has_root, mut has_directory) = (false, false);
        let is_elsewhere = || Ok(kinds.contains(&Kind::Mnt) || !target::files::same_root(self.proc, self.target)?);
        if self.wants("root") && is_elsewhere()? {
            let root = Rc::new(target::files::root(self.proc, self.target)?);
            has_root = self.add(plan, true, &|| Effect::Root(root.clone()).into())?;
        }
        if self.wants("cwd") {
            let directory = Rc::new(target::files::directory(self.proc, self.target)?);
            has_directory = self.add(plan, true, &|| Effect::Directory(directory.clone()).into())?;
        }
        Ok((has_root, has_directory))
    }

    fn umask(&self, plan: &mut Plan) {
        if let Some(mask) = self.theirs.umask.filter(|_| self.wants("umask") && self.theirs.umask != self.ours.umask) {
            plan.push(Own::Umask(mask));
        }
    }

    /// The limits. A hard one is raised before anything is entered: only in the
    /// initial user namespace somebody may. Low ones come when nothing more is opened.
    fn limits(&mut self, first: &mut Plan, plan: &mut Plan) -> Result<()> {
        let Some((theirs, ours)) = self.both("limits", "limits")? else { return Ok(()) };
        let ours = limits_in(&ours);
        for (name, soft, hard) in limits_in(&theirs) {
            let Some((_, our_soft, our_hard)) = ours.iter().find(|(known, ..)| *known == name) else { continue };
            let mut has = (*our_soft, *our_hard);
            if hard > has.1 {
                has = (soft.max(has.0), hard);
                if !self.add(first, false, &|| Own::Limit(name, has.0, has.1).into())? {
                    continue;
                }
            }
            if has != (soft, hard) {
                self.add(plan, false, &|| Own::Limit(name, soft, hard).into())?;
            }
        }
        Ok(())
    }

    fn no_new_privileges(&mut self, plan: &mut Plan) -> Result<()> {
        if !self.wants("no-new-privs") || self.theirs.no_new_privs == self.ours.no_new_privs {
            return Ok(());
        }
        if self.theirs.no_new_privs {
            plan.push(Own::NoNewPrivileges);
            return Ok(());
        }
        self.without(Failure::refused("no_new_privs is set here, and cannot be taken off"))
    }

    /// The seccomp filters. They are read while planning; where nothing may be
    /// done the target is not stopped for it.
    fn filters(&mut self, dry: bool) -> Result<Plan> {
        let mut plan = Plan::default();
        if !self.wants("seccomp") {
            return Ok(plan);
        }
        let pid = self.target.pid;
        if self.ours.seccomp != 0 {
            self.without(Failure::refused("we are under a seccomp filter, which stays"))?;
        }
        match self.theirs.seccomp {
            2 if dry => {
                let act = format!("load the seccomp filters of {pid}");
                plan.push(Step::new(move || act.clone(), "", |_| Ok(())));
            }
            2 => match target::files::filters(self.target) {
                Ok(filters) => filters.into_iter().for_each(|filter| plan.push(Own::Filter(Rc::new(filter)))),
                Err(e) => {
                    let failure = Failure::os(format!("read the seccomp filters of {pid}"), e);
                    self.without(failure.because(self.no_filters(e)))?;
                }
            },
            1 => self.without(Failure::refused("its strict mode of seccomp would not let a program begin"))?,
            _ => {}
        }
        Ok(plan)
    }

    fn no_filters(&self, errno: Errno) -> Option<Because> {
        let initial = self.proc.ns_id("self", Kind::User) == Some(INITIAL_USER);
        let may = initial && self.ours.can(CAP_SYS_ADMIN);
        match (errno, self.theirs.tracer) {
            (Errno::EPERM, pid @ 1..) => Some(Because::new(format!("process {pid} traces it already"))),
            (Errno::EPERM, 0) => target::why::untouchable(self.proc, &self.target.who()),
            (Errno::EACCES, _) if !may => {
                Some(Because::new("to read them takes CAP_SYS_ADMIN in the initial user namespace"))
            }
            _ => None,
        }
    }

    fn environment(&mut self, plan: &mut Plan, last: &mut Plan) -> Result<()> {
        let (target, read) = (self.target.clone(), Rc::default());
        if self.wants("env")
            && self.add(plan, true, &|| Effect::ReadEnvironment(target.clone(), Rc::clone(&read)).into())?
        {
            last.push(Effect::Environment(read));
        }
        Ok(())
    }

    /// What a security module has it confined by. AppArmor has a directory of its
    /// own (Linux 5.8); else it is that of the one module which keeps labels of
    /// processes: EINVAL where none does, ENOENT from a kernel without any.
    fn label(&mut self, plan: &mut Plan) -> Result<()> {
        if !self.wants("label") {
            return Ok(());
        }
        for dir in ["attr/apparmor", "attr"] {
            let file = format!("{dir}/current");
            let theirs = match target::files::read(self.target, &file) {
                Err(Errno::EINVAL | Errno::ENOENT) => continue,
                Err(e) => return self.without(Failure::os("read the security label of the target", e)),
                Ok(label) => label,
            };
            if self.proc.read(&format!("self/{file}")).as_ref() == Ok(&theirs) {
                return Ok(());
            }
            let text = to_be_written(String::from_utf8_lossy(&theirs).trim_end_matches(['\n', '\0']));
            return self.add(plan, false, &|| Effect::Label(dir, text.clone()).into()).map(drop);
        }
        Ok(())
    }
}

/// What gives the label to the next program: AppArmor, which tells it as `NAME
/// (MODE)` or `unconfined`, wants `exec NAME`; SELinux the context as it stands.
fn to_be_written(label: &str) -> String {
    match label.strip_suffix(')').and_then(|label| label.rsplit_once(" (")) {
        Some((name, _)) => format!("exec {name}"),
        None if label == "unconfined" => format!("exec {label}"),
        None => label.to_owned(),
    }
}

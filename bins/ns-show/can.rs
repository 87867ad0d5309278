//! What this user may do here. Nothing is guessed: each thing is done, in a
//! child that is thrown away, or with something that nobody else sees.

mod ids;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use common::fail::{Because, Errno, Failure, errno};
use common::feature;
use common::helper;
use common::id::{Both, Extent, Kind as IdKind, Map};
use common::idmap;
use common::ns::Kind;
use common::path::Place;
use common::plan::{Plan, clone};
use common::preset::{Me, Preset};
use common::proc::{CAP_SYS_ADMIN, Mount, Proc};
use common::step::{Step, TREE, inside, map, mount, ns, tree};
use common::sys::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use common::user;
use common::word::quote;

/// What was found: a heading, and under it whether and why not.
struct Found {
    text: String,
    all: bool,
}

impl Found {
    fn new() -> Found {
        Found { text: String::new(), all: true }
    }

    fn heading(&mut self, text: &str) {
        let blank = if self.text.is_empty() { "" } else { "\n" };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.text, "{blank}{text}");
    }

    fn yes(&mut self, what: &str) {
        let _ = writeln!(self.text, "yes  {what}");
    }

    fn no(&mut self, what: &str, why: &str) {
        self.all = false;
        let _ = writeln!(self.text, "no   {what}");
        if !why.is_empty() {
            let _ = writeln!(self.text, "       {}", why.replace('\n', "\n     "));
        }
    }

    fn answer(&mut self, what: &str, failure: Option<Failure>) -> bool {
        match &failure {
            None => self.yes(what),
            Some(failure) => self.no(what, &failure.to_string()),
        }
        failure.is_none()
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(self.text, "       {text}");
    }
}

/// The answers, and the exit status.
pub(crate) fn can(proc: &Rc<Proc>) -> (String, u8) {
    let mut found = Found::new();
    found.heading("user namespaces");
    for (at, (what, plan)) in user_namespaces(proc).into_iter().enumerate() {
        let made = found.answer(&what, plan.probe(proc));
        if !made {
            settings(proc, &mut found);
        }
        // Without a user namespace nothing of the rest is worth asking.
        if at == 0 && !made {
            return (found.text, 1);
        }
    }
    limits(proc, &mut found);
    found.heading("many ids in one");
    ids::many_ids(proc, &mut found);
    found.heading("file systems in one");
    for (what, plan) in file_systems(proc) {
        found.answer(&what, plan.probe(proc));
    }
    found.heading("idmapped mounts");
    for (what, plan) in idmapped(proc) {
        found.answer(&what, plan.probe(proc));
    }
    host_file_systems(proc, &mut found);
    found.heading("cgroups");
    cgroups(proc, &mut found);
    found.heading("network");
    network(proc, &mut found);
    let status = if found.all { 0 } else { 3 };
    found.heading("kernel");
    for feature in feature::all(proc) {
        let what = format!("{} (Linux {})", feature.what, feature.since);
        if feature.here { found.yes(&what) } else { found.no(&what, "") }
    }
    (found.text, status)
}

/// What would be tried, for a dry run.
pub(crate) fn plans(proc: &Rc<Proc>) -> Plan {
    let named = |tries: Vec<(String, Plan)>| tries.into_iter().map(|(_, plan)| plan);
    let mut all: Vec<Plan> = named(user_namespaces(proc)).collect();
    all.extend(ids::with_child(proc, &mut Found::new()));
    all.extend(named(file_systems(proc)).chain(named(idmapped(proc))));
    all.extend(host_mounts(proc).iter().filter_map(host_plan));
    all.extend(cgroup(proc).map(|(_, plan)| plan));
    all.push(tun());
    Plan { steps: all.into_iter().flat_map(|plan| plan.steps).collect(), dry: true }
}

// ---- user namespaces ----

/// A child in new namespaces of `kinds` that does what `inner` says.
fn child(kinds: &[Kind], inner: Plan, proc: &Rc<Proc>) -> Plan {
    let mut plan = Plan::default();
    plan.push(clone(kinds.to_vec(), "", inner, proc));
    plan
}

/// The map of the own ids, which everybody may write.
fn mapped() -> Plan {
    let me = Me::now();
    let one = |kind| Map::new(Preset::Root.extents(*me.own.of(kind), &[])).ok();
    let mut plan = Plan::default();
    if let (Some(uid), Some(gid)) = (one(IdKind::Uid), one(IdKind::Gid)) {
        plan.push(map::Effect::Setgroups(map::Whose::Own, false));
        plan.push(map::Effect::Write(map::Whose::Own, IdKind::Uid, uid));
        plan.push(map::Effect::Write(map::Whose::Own, IdKind::Gid, gid));
    }
    plan
}

fn user_namespaces(proc: &Rc<Proc>) -> Vec<(String, Plan)> {
    let mut tries = vec![
        ("make a user namespace".to_owned(), child(&[Kind::User], Plan::default(), proc)),
        ("map the own id in it".to_owned(), child(&[Kind::User], mapped(), proc)),
    ];
    for kind in Kind::ALL.into_iter().skip(1) {
        let a = if kind == Kind::Ipc { "an" } else { "a" };
        let what = format!("make {a} {} namespace along with it", kind.link());
        tries.push((what, child(&[Kind::User, kind], Plan::default(), proc)));
    }
    tries
}

/// Settings that are known to stand against user namespaces, as they are.
fn settings(proc: &Proc, found: &mut Found) {
    for name in ["kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns"] {
        if let Some(value) = proc.sysctl(name) {
            found.note(&format!("{} is {value}", name.replace('/', ".")));
        }
    }
    if let Ok(list) = fs::read_to_string("/sys/kernel/security/lsm") {
        found.note(&format!("security modules: {}", list.trim()));
    }
}

/// How many there may be: of this user, in this user namespace.
fn limits(proc: &Proc, found: &mut Found) {
    let limit = |kind: &Kind| Some((kind.link(), proc.sysctl(&format!("user/max_{}_namespaces", kind.link()))?));
    let limits: Vec<(&str, u64)> = Kind::ALL.iter().filter_map(limit).collect();
    let list = match limits.first() {
        Some((_, n)) if limits.iter().all(|(_, other)| other == n) => format!("{n} of each kind"),
        _ => limits.iter().map(|(kind, n)| format!("{kind} {n}")).collect::<Vec<_>>().join(", "),
    };
    if limits.is_empty() {
        return;
    }
    let used = ns::limit::used(proc, Kind::User);
    found.note(&format!("limit (user.max_*_namespaces): {list}; {used} user namespaces of ours can be seen"));
}

// ---- mounts ----

const HARMLESS: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

fn file_systems(proc: &Rc<Proc>) -> Vec<(String, Plan)> {
    let mut tries = Vec::new();
    for fstype in ["tmpfs", "devpts", "proc", "sysfs", "mqueue", "cgroup2"] {
        let mut inner = mapped();
        inner.push(mount::Effect::Try(fstype, HARMLESS));
        tries.push((format!("mount {fstype} there"), child(&Kind::ALL, inner, proc)));
    }
    tries.extend(
        overlay(proc).map(|inner| ("mount overlay there".to_owned(), child(&[Kind::User, Kind::Mnt], inner, proc))),
    );
    tries.extend(fuse(proc).map(|inner| ("mount FUSE there".to_owned(), child(&[Kind::User, Kind::Mnt], inner, proc))));
    tries
}

/// A copy of the root to mount in: nothing of it reaches the mounts of others.
fn private_root(proc: &Proc) -> Option<Plan> {
    let root = Place::at(OsStr::new("/")).ok()?;
    let mut plan = mapped();
    plan.push(mount::Effect::Slave);
    mount::cover(proc).into_iter().for_each(|effect| plan.push(effect));
    plan.push(mount::Effect::BindRoot(root));
    Some(plan)
}

fn new(fstype: &str, options: &[(&str, &str)]) -> inside::Effect {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    inside::Effect::New { fstype: fstype.to_owned(), options, attributes: HARMLESS, at: "/tmp".into() }
}

/// On a tmpfs, which is the hardest of the file systems that can be had.
fn overlay(proc: &Proc) -> Option<Plan> {
    let mut plan = private_root(proc)?;
    plan.push(new("tmpfs", &[]));
    plan.push(mount::Effect::Pivot);
    plan.push(Step::new(
        || "mkdir /tmp/lower /tmp/upper /tmp/work".to_owned(),
        "",
        |_| ["/tmp/lower", "/tmp/upper", "/tmp/work"].iter().try_for_each(fs::create_dir).map_err(|e| errno(e).into()),
    ));
    plan.push(new("overlay", &[("lowerdir", "/tmp/lower"), ("upperdir", "/tmp/upper"), ("workdir", "/tmp/work")]));
    Some(plan)
}

/// The kernel wants the device opened in the same user namespace, and named by
/// a number that stands in the plan: so one is kept for it, and whatever is
/// free below is filled.
fn fuse(proc: &Proc) -> Option<Plan> {
    let kept = File::open("/dev/null").ok()?;
    let number = kept.as_raw_fd();
    let kept = RefCell::new(vec![kept]);
    let mut plan = private_root(proc)?;
    plan.push(Step::new(
        || "open /dev/fuse".to_owned(),
        "",
        move |_| {
            let mut kept = kept.borrow_mut();
            kept.clear();
            while kept.last().is_none_or(|device: &File| device.as_raw_fd() < number) {
                kept.push(OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(errno)?);
            }
            Ok(())
        },
    ));
    let number = number.to_string();
    plan.push(new("fuse", &[("fd", &number), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]));
    Some(plan)
}

/// The steps that make a user namespace which maps one id, to `outside`, and
/// set its maps on the tree at hand.
fn shift(plan: &mut Plan, outside: u32) {
    let map = Map::new(Extent::new(0, outside.into(), 1).into_iter().collect());
    if let Ok(map) = map {
        idmap::user_namespace(&Both { uid: map.clone(), gid: map }, plan);
    }
    plan.push(tree::Effect::Set { of: TREE, attributes: 0, mapped: true, recursive: false, from: None });
}

fn idmapped(proc: &Rc<Proc>) -> Vec<(String, Plan)> {
    let mut inner = mapped();
    inner.push(mount::Effect::Try("tmpfs", HARMLESS));
    shift(&mut inner, 0);
    vec![("idmap a tmpfs of the own user namespace".to_owned(), child(&[Kind::User, Kind::Mnt], inner, proc))]
}

/// One mount of each type of file system, where nothing covers it.
fn host_mounts(proc: &Proc) -> Vec<Mount> {
    let all = proc.mounts("self");
    let mut chosen: Vec<Mount> = Vec::new();
    for mount in &all {
        let covered = all.iter().any(|m| m.parent == mount.id && m.point == mount.point);
        // Looking at it would mount something.
        let skip = covered || mount.fstype == "autofs" || chosen.iter().any(|m| m.fstype == mount.fstype);
        if !skip {
            chosen.push(mount.clone());
        }
    }
    // The first refusal of who may not mount at all stands for all.
    chosen.truncate(if proc.own().can(CAP_SYS_ADMIN) { usize::MAX } else { 1 });
    chosen
}

fn host_plan(mount: &Mount) -> Option<Plan> {
    let mut plan = Plan::default();
    plan.push(tree::Effect::Copy(Place::at(OsStr::new(&mount.point)).ok()?, false, TREE));
    shift(&mut plan, 1);
    Some(plan)
}

fn host_file_systems(proc: &Rc<Proc>, found: &mut Found) {
    let mounts = host_mounts(proc);
    if !proc.own().can(CAP_SYS_ADMIN) {
        let plan = mounts.first().and_then(host_plan);
        let failure = plan.and_then(|plan| plan.probe(proc));
        found.answer("idmap the file systems mounted here", failure);
        return;
    }
    let mut refused: Vec<(Errno, String)> = Vec::new();
    for mount in &mounts {
        let Some(plan) = host_plan(mount) else { continue };
        let name = format!("{} ({})", mount.fstype, quote(&mount.point));
        match plan.probe(proc) {
            None => found.yes(&format!("idmap {name}")),
            Some(failure) => refused.push((failure.errno().unwrap_or(Errno::EINVAL), name)),
        }
    }
    // That proc and its like cannot be idmapped stands in nobody's way.
    let list: Vec<String> = refused.into_iter().map(|(errno, name)| format!("{name} {errno:?}")).collect();
    if !list.is_empty() {
        found.note(&format!("refused: {}", list.join(", ")));
    }
}

// ---- what is not the kernel's alone ----

/// A cgroup below ours, made and taken away, and where.
fn cgroup(proc: &Proc) -> Option<(PathBuf, Plan)> {
    let mount = proc.mounts("self").into_iter().find(|m| m.fstype == "cgroup2")?;
    let ours = proc.cgroup("self").unwrap_or_else(|| "/".to_owned());
    let below = ours.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(&ours);
    let dir: PathBuf = Path::new(&mount.point).join(below.trim_matches('/')).components().collect();
    let at = dir.join(format!("ns-show-{}", std::process::id()));
    let (said, above) = (format!("mkdir {}", quote(&at)), dir.clone());
    let mkdir = Step::new(
        move || said.clone(),
        "",
        move |_| {
            fs::create_dir(&at).map_err(errno)?;
            Ok(fs::remove_dir(&at).map_err(errno)?)
        },
    );
    let mut plan = Plan::default();
    plan.push(mkdir.because(move |errno, facts| {
        let owner = fs::metadata(&above).ok()?.uid();
        let text = || format!("our cgroup belongs to {}: it has not been delegated", user::told(owner, facts.proc));
        (errno == Errno::EACCES && owner != facts.proc.own().uid[1]).then(|| Because::new(text()))
    }));
    Some((dir, plan))
}

fn cgroups(proc: &Proc, found: &mut Found) {
    let what = "make a cgroup below ours";
    let Some((dir, plan)) = cgroup(proc) else {
        found.no(what, "no cgroup2 file system is mounted here");
        return;
    };
    let failure = plan.probe(proc);
    let what = if failure.is_none() { format!("{what} ({})", quote(&dir)) } else { what.to_owned() };
    if found.answer(&what, failure) {
        let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        let list = controllers.split_whitespace().collect::<Vec<_>>().join(", ");
        found.note(&format!("controllers: {}", if list.is_empty() { "none" } else { &list }));
    }
}

fn tun() -> Plan {
    let mut plan = Plan::default();
    plan.push(Step::new(
        || "open /dev/net/tun".to_owned(),
        "",
        |_| {
            OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(errno)?;
            Ok(())
        },
    ));
    plan
}

fn network(proc: &Proc, found: &mut Found) {
    let helpers: Vec<String> = ["pasta", "slirp4netns"]
        .iter()
        .filter_map(|name| Some(helper::find(name)?.to_string_lossy().into_owned()))
        .collect();
    if helpers.is_empty() {
        found.no("connect a net namespace: neither pasta nor slirp4netns is installed", "");
    } else {
        found.yes(&format!("connect a net namespace: {}", helpers.join(", ")));
    }
    found.answer("open /dev/net/tun", tun().probe(proc));
    if let Some(first) = proc.sysctl("net/ipv4/ip_unprivileged_port_start") {
        found.note(&format!("ports from {first} on are for everybody (net.ipv4.ip_unprivileged_port_start)"));
    }
}

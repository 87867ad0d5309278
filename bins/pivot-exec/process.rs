//! What the program is started with, in the order that the kernel's rules
//! leave: ids before capabilities go, the filter last.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Failure, Result};
use common::id::one;
use common::plan::Plan;
use common::step::program::{Effect, amount_in, capability, limit};
use common::step::{end, own};
use common::target;
use common::word::quote;

use super::CLI;
use super::mounts::{given, octal};

/// The steps after the pivot, the last of which becomes the program.
pub(crate) fn steps(args: &Args) -> Result<Plan> {
    let mut plan = Plan::default();
    if let Some(name) = args.value("domainname") {
        plan.push(Effect::DomainName(name));
    }
    for word in args.values("rlimit") {
        plan.push(rlimit(&word)?);
    }
    credentials(args, &mut plan)?;
    if let Some(path) = args.value("chdir") {
        plan.push(Effect::Directory(path));
    }
    if let Some(word) = args.value("umask") {
        let mode = octal(&word).filter(|mode| *mode <= 0o777);
        plan.push(Effect::Umask(mode.ok_or_else(|| wrong("umask", &word, "a mode in octal"))?));
    }
    environment(args, &mut plan)?;
    if args.flag("no-new-privs") {
        plan.push(Effect::NoNewPrivileges);
    }
    let kept: Result<_> = args.values("keep-fd").iter().map(|word| target::given::descriptor(word)).collect();
    plan.push(own::Effect::Close(kept?));
    for word in args.values("seccomp") {
        let program = given(&word)?;
        if program.is_empty() || program.len() % 8 != 0 {
            return Err(wrong("seccomp", &word, "a descriptor that gives instructions of eight bytes"));
        }
        plan.push(Effect::Filter(Rc::new(program)));
    }
    let mut words = args.program.clone();
    let first = words.first().cloned().unwrap_or_default();
    let argv0 = args.value("argv0");
    let Some(slot) = words.first_mut() else { return Err(CLI.usage("which program?")) };
    match (args.value("then-fd"), argv0) {
        (None, None) => plan.push(end::Effect::Exec(words)),
        (fd, argv0) => {
            argv0.into_iter().for_each(|word| *slot = word);
            let what = fd.map_or(Ok(Err(first)), |word| target::given::descriptor(&word).map(Ok))?;
            plan.push(Effect::Exec(what, words));
        }
    }
    Ok(plan)
}

fn wrong(option: &str, word: &OsStr, form: &str) -> Failure {
    CLI.usage(&format!("--{option} {}: not {form}", quote(word)))
}

/// Ids and capabilities. A uid other than 0 has none after the exec but those
/// that are ambient, and uid 0 all of the bounding set.
fn credentials(args: &Args, plan: &mut Plan) -> Result<()> {
    let (keep, drop, ambient) = (caps(args, "cap-keep")?, caps(args, "cap-drop")?, caps(args, "cap-ambient")?);
    let named = args.value("uid").is_some() || keep.is_some() || drop.is_some() || ambient.is_some();
    if args.flag("keep-caps") && named {
        return Err(CLI.usage("--keep-caps leaves all as it is: name them with --cap-ambient"));
    }
    let bound = keep.unwrap_or(u64::MAX) & !drop.unwrap_or(0);
    if bound != u64::MAX {
        plan.push(Effect::Bound(bound));
    }
    let (uid, gid) = (id(args, "uid")?, id(args, "gid")?);
    if let Some(word) = args.value("groups") {
        let ids = word.as_bytes().split(|b| *b == b',').filter(|w| !w.is_empty() && *w != b"none");
        let ids = ids.map(|w| one(w).ok_or_else(|| wrong("groups", &word, "a list of ids, or none")));
        plan.push(Effect::Groups(ids.collect::<Result<_>>()?));
    }
    gid.into_iter().for_each(|id| plan.push(Effect::Gid(id)));
    uid.into_iter().for_each(|id| plan.push(Effect::Uid(id, ambient.is_some())));
    match ambient {
        Some(caps) => plan.push(Effect::Ambient(caps & bound)),
        None if args.flag("keep-caps") => {}
        None => plan.push(own::Effect::ClearAmbient),
    }
    Ok(())
}

fn id(args: &Args, option: &str) -> Result<Option<u32>> {
    let read = |word: OsString| one(word.as_bytes()).ok_or_else(|| wrong(option, &word, "an id"));
    args.value(option).map(read).transpose()
}

/// The capabilities that an option lists, a bit for each.
fn caps(args: &Args, option: &str) -> Result<Option<u64>> {
    let given = args.values(option);
    let mut all = 0;
    for word in &given {
        for name in word.to_string_lossy().split(',').filter(|name| !name.is_empty() && *name != "none") {
            let bits = if name == "all" { Some(u64::MAX) } else { capability(name) };
            all |= bits.ok_or_else(|| wrong(option, OsStr::new(name), "a capability"))?;
        }
    }
    Ok((!given.is_empty()).then_some(all))
}

fn rlimit(word: &OsStr) -> Result<Effect> {
    let form = "NAME=SOFT[:HARD], with a NAME of prlimit(1) and numbers, or unlimited";
    let read = || {
        let (name, amounts) = word.to_str()?.split_once('=')?;
        let (soft, hard) = amounts.split_once(':').unwrap_or((amounts, amounts));
        Some(Effect::Limit(limit(name)?, amount_in(soft)?, amount_in(hard)?))
    };
    read().ok_or_else(|| wrong("rlimit", word, form))
}

fn environment(args: &Args, plan: &mut Plan) -> Result<()> {
    let kept = args.values("keep-env");
    if args.flag("clear-env") {
        plan.push(Effect::Environment(kept));
    } else if !kept.is_empty() {
        return Err(CLI.usage("--keep-env goes with --clear-env"));
    }
    for name in args.values("unsetenv") {
        plan.push(Effect::NoVariable(checked("unsetenv", &name, name.clone())?));
    }
    for word in args.values("setenv") {
        let Some(at) = word.as_bytes().iter().position(|b| *b == b'=') else {
            return Err(wrong("setenv", &word, "NAME=VALUE"));
        };
        let (name, value) = word.as_bytes().split_at(at);
        let name = checked("setenv", &word, OsStr::from_bytes(name).to_owned())?;
        plan.push(Effect::Variable(name, OsStr::from_bytes(&value[1..]).to_owned()));
    }
    Ok(())
}

/// The name of a variable: not empty, and without `=`.
fn checked(option: &str, word: &OsStr, name: OsString) -> Result<OsString> {
    if name.is_empty() || name.as_bytes().contains(&b'=') { Err(wrong(option, word, "a name")) } else { Ok(name) }
}

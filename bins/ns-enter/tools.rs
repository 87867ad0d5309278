//! What of outside the program finds inside: --tools, --etc.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Errno, Failure, Result};
use common::ns::Kind;
use common::path::Place;
use common::plan::Plan;
use common::proc::{CAP_SYS_ADMIN, Proc};
use common::step::bring::{Covered, Effect, Tools};
use common::step::{mount, ns, program};
use common::target::{self, Target};
use common::word::quote;

use super::CLI;

/// The directories that have programs, and what these need.
const OF_SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What is brought along.
pub(crate) enum Brought {
    /// Trees, into a copy of the target's mounts.
    Tools(Rc<Tools>),
    /// Files, into a copy of ours.
    Etc(Vec<Covered>),
}

/// What --tools or --etc brings along.
///
/// # Errors
/// Wrong usage; a directory cannot be opened.
pub(crate) fn read(args: &Args, proc: &Proc, target: &Target, kinds: &[Kind]) -> Result<Option<Brought>> {
    let words = args.values("tools");
    let elsewhere = |option: &str, kind: Kind| {
        let theirs = || target::files::namespace_of(proc, target, kind).ok();
        let ours = !kinds.contains(&kind) && theirs() == Some(proc.ns_id("self", kind));
        let refused = || Failure::usage(format!("{option}: the target's {} namespace is ours", kind.link()));
        if ours { Err(refused()) } else { Ok(()) }
    };
    if args.flag("etc") {
        if !words.is_empty() {
            return Err(CLI.usage("--etc or --tools: the one is in our mounts, the other in the target's"));
        }
        elsewhere("--etc", Kind::Net)?;
        if kinds.contains(&Kind::Mnt) || !kinds.contains(&Kind::Net) {
            return Err(CLI.usage("--etc is for a network namespace without its mounts: -n"));
        }
        return Ok(Some(Brought::Etc(name_service(proc, target)?)));
    }
    if words.is_empty() {
        return Ok(None);
    }
    elsewhere("--tools", Kind::Mnt)?;
    if !kinds.contains(&Kind::Mnt) {
        return Err(CLI.usage("--tools is for a target with other mounts than ours: -m"));
    }
    let mut tools = Tools { trees: Vec::new(), links: Vec::new() };
    for word in words {
        if word == "auto" {
            of_system(&mut tools)?;
        } else {
            named(&word, &mut tools)?;
        }
    }
    Ok(Some(Brought::Tools(Rc::new(tools))))
}

/// The target's files about names. One that it has not is an empty one: ours would
/// tell the program names of another network.
fn name_service(proc: &Proc, target: &Target) -> Result<Vec<Covered>> {
    let root = target::files::root(proc, target)?;
    let covered = |path| match target::files::file_in(&root, path) {
        Ok(bytes) => Ok((path, Rc::new(bytes))),
        Err(Errno::ENOENT) => Ok((path, Rc::default())),
        Err(e) => Err(Failure::os(format!("open the target's {path}"), e)),
    };
    ["/etc/resolv.conf", "/etc/hosts"].into_iter().map(covered).collect()
}

/// DIR, at the same path inside, or DIR=/PATH.
fn named(word: &OsStr, tools: &mut Tools) -> Result<()> {
    let bytes = word.as_bytes();
    let (from, at) = match bytes.windows(2).rposition(|pair| pair == b"=/") {
        Some(n) => (OsStr::from_bytes(&bytes[..n]), OsStr::from_bytes(&bytes[n + 1..]).to_owned()),
        None => (word, Place::at(word)?.real().into_os_string()),
    };
    let names = at.as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty());
    if names.clone().count() == 0 || names.clone().any(|name| name == b"..") {
        return Err(CLI.usage(&format!("--tools {}: not a path below the root", quote(word))));
    }
    tools.trees.push((Place::at(from)?, at));
    Ok(())
}

/// The same as on this machine: what is a link here is one there.
fn of_system(tools: &mut Tools) -> Result<()> {
    for path in OF_SYSTEM {
        match fs::read_link(path) {
            Ok(to) => tools.links.push((to.into_os_string(), path.into())),
            Err(_) if Path::new(path).is_dir() => tools.trees.push((Place::at(path.as_ref())?, path.into())),
            Err(_) => {}
        }
    }
    Ok(())
}

impl Brought {
    /// The steps that copy trees of ours before all is entered, by whoever may not
    /// mount outside of them in a user namespace; and whether the target's has been.
    ///
    /// # Errors
    /// The user namespace cannot be opened.
    pub(crate) fn copy(&self, proc: &Proc, target: &Rc<Target>, kinds: &[Kind], inside: &mut Plan) -> Result<bool> {
        let Brought::Tools(tools) = self else { return Ok(false) };
        let mut early = false;
        if kinds.contains(&Kind::User) && !proc.own().can(CAP_SYS_ADMIN) {
            let user = ns::Effect::to_mounts(proc, target)?;
            early = matches!(user, ns::Effect::Join(..));
            inside.push(user);
        }
        inside.push(ns::Effect::Unshare(vec![Kind::Mnt]));
        inside.push(Effect::Copy(tools.clone()));
        Ok(early)
    }

    /// The steps that attach it, once all is entered.
    pub(crate) fn attach(&self, inside: &mut Plan) {
        inside.push(ns::Effect::Unshare(vec![Kind::Mnt]));
        inside.push(mount::Effect::Slave);
        inside.push(match self {
            Brought::Tools(tools) => Effect::Attach(tools.clone()),
            Brought::Etc(files) => Effect::Cover(files.clone()),
        });
    }

    /// Whether this machine's programs are where they are here.
    pub(crate) fn has_shell(&self) -> bool {
        match self {
            Brought::Tools(tools) => tools.trees.iter().any(|(_, at)| at == "/usr"),
            Brought::Etc(_) => true,
        }
    }

    /// The step that lets programs in it be found, after all others.
    pub(crate) fn path(&self, inside: &mut Plan) {
        let Brought::Tools(tools) = self else { return };
        let own: Vec<_> = tools.trees.iter().filter(|(_, at)| !OF_SYSTEM.iter().any(|path| at == path)).collect();
        if own.is_empty() {
            return;
        }
        let mut all = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into());
        for (_, at) in own {
            for below in ["/bin", "/sbin", ""] {
                all.push(":");
                all.push(at);
                all.push(below);
            }
        }
        inside.push(program::Effect::Variable("PATH".into(), all));
    }
}

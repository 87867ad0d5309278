//! What is idmapped already, with the maps; and how it is taken away.

use std::ffi::OsString;
use std::fmt::Write as _;

use common::cli::Args;
use common::fail::{Errno, Failure, Result};
use common::id::{Extent, Kind};
use common::mounted::{self, Mounted};
use common::path::Place;
use common::plan::Plan;
use common::proc::{Mount, Proc};
use common::step::tree::{self, attribute_names, mount_at, mount_of};
use common::target::{self, Operand, Target};
use common::tool::Outcome;
use common::word::quote;

use super::{CLI, addressed};

pub(crate) fn show(args: &Args, operands: &[OsString], proc: &Proc) -> Result<Outcome> {
    let mut text = String::new();
    match operands {
        [] => {
            let found = mounts(args, proc)?;
            found.iter().filter(|m| m.is_idmapped()).for_each(|m| draw(m, &mut text));
        }
        [path] if args.value("into").is_none() => {
            let place = Place::at(path)?;
            let mount = mounted::under(place.fd()).or_else(|e| by_word(e, &place, proc))?;
            if !mount.is_idmapped() {
                let (path, point, fstype) = (quote(path), quote(&mount.point), mount.fstype);
                return Err(Failure::refused(format!("{path} is on {point} ({fstype}), which is not idmapped")));
            }
            draw(&mount, &mut text);
        }
        _ => return Err(CLI.usage("--show takes one PATH, or --into TARGET")),
    }
    Ok(Outcome::Answer(text.into_bytes(), 0))
}

/// The mounts here, or in the namespace of a target.
fn mounts(args: &Args, proc: &Proc) -> Result<Vec<Mounted>> {
    let Some(word) = args.value("into") else {
        return mounted::all(0).or_else(|e| {
            let words: Vec<_> = proc.mounts("self").iter().map(by_line).collect();
            if e == Errno::ENOSYS { Ok(words) } else { Err(Failure::os("listmount", e)) }
        });
    };
    let operand = Operand::parse(&word)?;
    if operand == Operand::Stream {
        return Err(CLI.usage("--show: TARGET is a process or a name"));
    }
    let address = addressed(&operand, None, proc)?;
    let address = address.ok_or_else(|| CLI.usage("--show: TARGET is a process or a name"))?;
    let target = Target::open(proc, address)?;
    let namespace = target::files::mount_namespace_id(proc, &target)?;
    mounted::all(namespace).map_err(|e| Failure::os(format!("listmount in {}", target.address), e))
}

fn by_word(errno: Errno, place: &Place, proc: &Proc) -> Result<Mounted> {
    let said = || Failure::os(format!("statmount {}", quote(&place.path)), errno);
    if errno != Errno::ENOSYS {
        return Err(said());
    }
    mount_of(place, proc)?.map(|mount| by_line(&mount)).ok_or_else(said)
}

/// What mountinfo says, with its attributes.
fn by_line(line: &Mount) -> Mounted {
    let mount = Mounted::from_line(line);
    let attributes = line.options.split(',').fold(mount.attributes, |bits, word| bits | tree::attribute(word));
    Mounted { attributes, ..mount }
}

fn draw(mount: &Mounted, text: &mut String) {
    let attributes: Vec<&str> = attribute_names(mount.attributes).collect();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" {}", attributes.join(",")) };
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{} ({}){attributes}", quote(&mount.point), mount.fstype);
    let Some(maps) = &mount.maps else {
        text.push_str("  idmapped; the map is told since Linux 6.15\n");
        return;
    };
    if maps.uid == maps.gid {
        columns("id", &maps.uid, text);
        return;
    }
    Kind::BOTH.into_iter().for_each(|kind| columns(kind.word(), maps.of(kind), text));
}

fn columns(word: &str, extents: &[Extent], text: &mut String) {
    if extents.is_empty() {
        let _ = writeln!(text, "  no {word} that it shows is mapped in our user namespace");
        return;
    }
    let _ = writeln!(text, "  {:<22} {word} seen here", format!("{word} on disk"));
    for extent in extents {
        let _ = writeln!(text, "  {:<22} {}", extent.inside().to_string(), extent.outside());
    }
}

/// The plan that takes an idmapped mount away, deepest first with those below.
pub(crate) fn umount(args: &Args, operands: &[OsString], proc: &Proc) -> Result<Outcome> {
    let [path] = operands else { return Err(CLI.usage("--umount: which PATH?")) };
    let place = Place::at(path)?;
    let Some(mount) = mount_at(&place, proc)? else {
        return Err(Failure::refused(format!("nothing is mounted at {}", quote(path))));
    };
    if !Mounted::from_line(&mount).is_idmapped() {
        let text =
            format!("the mount at {} is not idmapped, so it is not ours to take away: umount(8) does", quote(path));
        return Err(Failure::refused(text));
    }
    let mut mounts = Vec::new();
    if args.flag("recursive") {
        below(mount.id, &proc.own_mounts()?, &mut mounts);
    }
    let mut plan = Plan::default();
    for mount in mounts {
        plan.push(tree::Effect::Unmount(mount.point, mount.id));
    }
    plan.push(tree::Effect::Unmount(place.real().into(), mount.id));
    Ok(Outcome::Plan(plan))
}

/// The mounts below mount `id` in the order in which they can go: each after those on it, and after
/// what is mounted over the way to it.
fn below(id: u64, all: &[Mount], mounts: &mut Vec<Mount>) {
    let mut on_it: Vec<&Mount> = all.iter().filter(|m| m.parent == id && m.id != id).collect();
    on_it.sort_by_key(|m| m.point.len());
    for mount in on_it {
        below(mount.id, all, mounts);
        mounts.push(mount.clone());
    }
}

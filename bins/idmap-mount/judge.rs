//! Why a tree did not take a map: each mount of it is judged by a map that is
//! known to be good, so that the answer is about that mount alone.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use common::fail::{Because, Errno};
use common::id::{Both, Extent, Map};
use common::plan::Plan;
use common::proc::{Mount, Proc};
use common::step::mount::{self, Place};
use common::word::quote;

/// The first mount at or (with `recursive`) below `source` that takes no map
/// at all, and why.
pub(crate) fn refused(source: &Place, recursive: bool, errno: Errno, proc: &Rc<Proc>) -> Option<Because> {
    if errno != Errno::EINVAL && errno != Errno::EPERM {
        return None;
    }
    let path = std::fs::canonicalize(&source.path).ok()?;
    let mounts = proc.mounts("self");
    let top = mounts.iter().filter(|m| path.starts_with(&m.point)).max_by_key(|m| m.point.len())?;
    let below = mounts.iter().filter(|m| recursive && m.id != top.id && Path::new(&m.point).starts_with(&path));
    std::iter::once((top, path.clone()))
        .chain(below.map(|m| (m, PathBuf::from(&m.point))))
        .find_map(|(mount, at)| reason(mount, &at, proc))
}

fn reason(mount: &Mount, at: &Path, proc: &Rc<Proc>) -> Option<Because> {
    let (place, _) = Place::at(at.as_os_str()).ok()?;
    // A recursive copy, of which the top alone is mapped: a plain copy is
    // refused where a locked mount lies below.
    let refusal = judge(mount::Effect::CloneTree(place, true), proc)?;
    // Where even a new tmpfs is refused, the mount is not to blame.
    if judge(mount::Effect::Try("tmpfs", 0), proc).is_some() {
        return None;
    }
    let (point, fstype) = (quote(&mount.point), &mount.fstype);
    let idmapped = mount.options.split(',').any(|o| o == "idmapped");
    let a = if fstype.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let text = if refusal == Errno::EINVAL {
        format!("{point} is {a} {fstype} file system, which does not take id maps here")
    } else if refusal == Errno::EPERM && idmapped {
        format!("{point} is idmapped already")
    } else if refusal == Errno::EPERM {
        format!("{point} ({fstype}) was mounted by a user namespace above ours")
    } else {
        return None;
    };
    Some(Because::new(text))
}

/// What the tree that an effect makes says to a map of one id onto itself; None
/// if it takes it.
fn judge(tree: mount::Effect, proc: &Rc<Proc>) -> Option<Errno> {
    let own = proc.own();
    let one = |id: u32| Map::new(vec![Extent { inside: id, outside: id, count: 1 }]).ok();
    let maps = Both { uid: one(own.uid[1])?, gid: one(own.gid[1])? };
    let mut plan = Plan::default();
    plan.push(tree);
    super::user_namespace(&maps, proc, &mut plan);
    plan.push(mount::Effect::MapTree { attributes: 0, recursive: false });
    plan.probe(proc)?.errno()
}

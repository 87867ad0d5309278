//! What the map does, by the real owners of the source: three columns, and who
//! may create files.

use common::fail::Result;
use common::id::{Both, Kind, Map};
use common::idmap::{Idmap, submounts};
use common::owners::Owners;
use common::proc::Proc;
use common::word::quote;
use std::rc::Rc;

use super::words::INLINE_EXTENTS;

/// Another pair of eyes: the name of a process and the maps of its namespace.
pub(crate) type Target = (String, Both<Map>);

/// The lines below the step that looks through the tree.
pub(crate) fn lines(owners: &Owners, target: Option<&Target>, proc: &Proc) -> Vec<String> {
    let id = |id: Option<u32>| id.map_or_else(|| "?".to_owned(), |id| id.to_string());
    let pair = |uid: String, gid: String| format!("{uid}:{gid}");
    let mut rows = vec![["file", "on disk", "seen here", ""].map(str::to_owned)];
    if let Some((name, _)) = target {
        rows[0][3] = format!("seen in {name}");
    }
    for file in &owners.files {
        let seen = |kind| owners.seen(kind, *file.disk.of(kind));
        let inside = target.map_or_else(String::new, |(_, maps)| {
            let inside = |kind| maps.of(kind).inside(seen(kind)).unwrap_or(*owners.overflow.of(kind)).to_string();
            pair(inside(Kind::Uid), inside(Kind::Gid))
        });
        rows.push([
            quote(&file.name),
            pair(id(file.disk.uid), id(file.disk.gid)),
            pair(seen(Kind::Uid).to_string(), seen(Kind::Gid).to_string()),
            inside,
        ]);
    }
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut lines: Vec<String> = rows
        .iter()
        .map(|[a, b, c, d]| {
            format!("{a:<0$}  {b:<1$}  {c:<2$}  {d}", widths[0], widths[1], widths[2]).trim_end().to_owned()
        })
        .collect();
    lines.push(creating(owners, proc));
    lines
}

/// What becomes of a file that this user creates there: may_create() and
/// fsuidgid_has_mapping() in the kernel.
fn creating(owners: &Owners, proc: &Proc) -> String {
    let own = proc.own();
    let me = Both { uid: own.uid[1], gid: own.gid[1] };
    let has = |kind, id: Option<u32>| id.is_some_and(|id| owners.maps.of(kind).outside(id).is_some());
    let missing = |kind: &Kind| owners.maps.of(*kind).inside(*me.of(*kind)).is_none();
    if owners.files.first().is_some_and(|top| Kind::BOTH.into_iter().any(|kind| !has(kind, *top.disk.of(kind)))) {
        // Whether a new file could have an owner is asked before whether the directory may be written.
        let errno = if Kind::BOTH.iter().any(missing) { "EOVERFLOW" } else { "EACCES" };
        return format!("the source's own owner or group has no map: nobody can create anything in it ({errno})");
    }
    match (Kind::BOTH.into_iter().find(missing), owners.maps.uid.inside(me.uid)) {
        (None, Some(disk)) => format!("what uid {} (you) creates there belongs to {disk} on disk", me.uid),
        (kind, _) => {
            let kind = kind.unwrap_or(Kind::Uid);
            let (word, id) = (kind.word(), me.of(kind));
            format!("{word} {id} (yours) is not among the seen ids: creating a file there fails with EOVERFLOW")
        }
    }
}

/// The mounts below the source, and whether each takes the map.
pub(crate) fn below(asked: &Idmap, proc: &Rc<Proc>) -> Result<Vec<String>> {
    let (subs, left) = submounts(asked, proc)?;
    let subs = subs.iter().map(|sub| match &sub.plain {
        None => format!("{} takes the map", quote(&sub.place.path)),
        Some(why) => format!("no map: {why}"),
    });
    Ok(subs.chain(left.iter().map(|(point, why)| format!("left out: {}, {why}", quote(point)))).collect())
}

/// A warning, where the map makes every look-up slower: tests/bench/RESULTS.md.
pub(crate) fn slow(maps: &Both<Map>) -> Option<String> {
    let most = Kind::BOTH.into_iter().map(|kind| maps.of(kind).extents().len()).max().unwrap_or(0);
    (most > INLINE_EXTENTS).then(|| {
        format!(
            "{most} extents: more than {INLINE_EXTENTS} are searched, and stat(2) through the mount takes a quarter longer and more"
        )
    })
}

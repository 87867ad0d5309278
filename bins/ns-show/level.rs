//! The user namespaces from a process up to ours, and ids translated through
//! all of them.
//!
//! The kernel shows every map with the outside ids as the reader sees them,
//! however deep the namespace is. From these, what one level is to the next
//! follows: no extent of a map crosses a boundary of its parent's.
//!
//! ```text
//!  level 0   inside    |-----|        |-----|
//!  level 1             |---------------------|      (its map, seen from here)
//!  here                   |-----|  |-----|
//! ```

use std::os::fd::OwnedFd;
use std::rc::Rc;

use common::fail::{Failure, Result};
use common::id::{Both, Extent, Kind as IdKind, Map, Range};
use common::idmap;
use common::ns::Kind;
use common::proc::Proc;
use common::target::Target;
use common::target::files::user_namespaces;

/// A user namespace, and how its ids are known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// Its inode.
    pub(crate) inode: u64,
    /// The uid that owns it, as seen from here.
    pub(crate) owner: u32,
    /// Inside, and here.
    pub(crate) maps: Both<Vec<Extent>>,
}

/// Where ids are that every namespace passes on unchanged: our own.
fn same() -> Vec<Extent> {
    Extent::new(0, 0, u32::MAX.into()).into_iter().collect()
}

/// From the user namespace of a target up to ours.
///
/// # Errors
/// One of them may not be looked at; its maps cannot be read.
pub(crate) fn levels(proc: &Rc<Proc>, target: &Target) -> Result<Vec<Level>> {
    let ours = proc.ns_id("self", Kind::User);
    let mut levels = Vec::new();
    for (at, above) in user_namespaces(proc, target)?.into_iter().enumerate() {
        let maps = if Some(above.inode) == ours {
            Both { uid: same(), gid: same() }
        } else if at == 0 {
            read_maps(proc, &target.who())?
        } else {
            let members = proc.pids().into_iter().map(|pid| pid.to_string());
            let mut members = members.filter(|who| proc.ns_id(who, Kind::User) == Some(above.inode));
            // Each may end meanwhile.
            let found = members.find_map(|who| maps_of(proc, &who)).or_else(|| maps_behind(proc, above.file));
            found.ok_or_else(|| Failure::refused(format!("the maps of user:[{}] are not ours to see", above.inode)))?
        };
        levels.push(Level { inode: above.inode, owner: above.owner, maps });
    }
    Ok(levels)
}

/// The maps of the user namespace of `who`, for whoever cannot do without.
///
/// # Errors
/// They cannot be read.
pub(crate) fn read_maps(proc: &Proc, who: &str) -> Result<Both<Vec<Extent>>> {
    Ok(Both { uid: proc.read_map(who, IdKind::Uid)?, gid: proc.read_map(who, IdKind::Gid)? })
}

/// The maps of the user namespace that process `who` is in.
pub(crate) fn maps_of(proc: &Proc, who: &str) -> Option<Both<Vec<Extent>>> {
    Some(Both { uid: proc.map(who, IdKind::Uid)?, gid: proc.map(who, IdKind::Gid)? })
}

/// The maps of a user namespace that nobody is in: a child of ours enters it,
/// if it may, to be looked at.
pub(crate) fn maps_behind(proc: &Rc<Proc>, file: OwnedFd) -> Option<Both<Vec<Extent>>> {
    let maps = idmap::maps_of(&Rc::new(file), "it", proc)?;
    let extents = |map: Option<Map>| map.map_or_else(Vec::new, |map| map.extents().to_vec());
    Some(Both { uid: extents(maps.uid), gid: extents(maps.gid) })
}

/// One id of the first level, in every level; None where it is not mapped.
pub(crate) fn down_up(levels: &[Level], kind: IdKind, inside: u32) -> Vec<Option<u32>> {
    let here = levels.first().and_then(|first| outside(first.maps.of(kind), inside));
    let above = levels.iter().skip(1).map(|level| inside_of(level.maps.of(kind), here?));
    levels.first().map(|_| Some(inside)).into_iter().chain(above).collect()
}

/// One id here, in every level.
pub(crate) fn up_down(levels: &[Level], kind: IdKind, here: u32) -> Vec<Option<u32>> {
    levels.iter().map(|level| inside_of(level.maps.of(kind), here)).collect()
}

fn outside(map: &[Extent], inside: u32) -> Option<u32> {
    let extent = map.iter().find(|e| e.inside().has(inside))?;
    Some(extent.outside + (inside - extent.inside))
}

fn inside_of(map: &[Extent], outside: u32) -> Option<u32> {
    let extent = map.iter().find(|e| e.outside().has(outside))?;
    Some(extent.inside + (outside - extent.outside))
}

/// Extents by one of their sides. They are at most 340.
fn in_order(map: &[Extent], side: fn(&Extent) -> u32) -> Vec<Extent> {
    let mut order: Vec<Extent> = Vec::new();
    for extent in map {
        order.insert(order.partition_point(|e| side(e) < side(extent)), *extent);
    }
    order
}

/// The extents of the first level, each in every level: a column for each
/// extent, sorted by its ids inside.
pub(crate) fn columns(levels: &[Level], kind: IdKind) -> Vec<Vec<Option<Range>>> {
    let Some(first) = levels.first() else { return Vec::new() };
    let extents = in_order(first.maps.of(kind), |e| e.inside);
    let at = |level: &Level, e: &Extent| {
        let first = inside_of(level.maps.of(kind), e.outside)?;
        Range::new(first.into(), e.count.into())
    };
    extents.iter().map(|e| levels.iter().map(|level| at(level, e)).collect()).collect()
}

/// All ids here, cut where a map begins or ends: which are seen from inside,
/// and as what.
pub(crate) fn reverse(map: &[Extent]) -> Vec<(Range, Option<Range>)> {
    let (mut all, mut from) = (Vec::new(), 0);
    for extent in in_order(map, |e| e.outside) {
        all.extend(Range::new(from, u64::from(extent.outside).saturating_sub(from)).map(|gap| (gap, None)));
        all.push((extent.outside(), Some(extent.inside())));
        from = extent.outside().end();
    }
    all.extend(Range::new(from, u64::from(u32::MAX).saturating_sub(from)).map(|gap| (gap, None)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(u64, u64, u64)]) -> Vec<Extent> {
        lines.iter().map(|(i, o, n)| Extent::new(*i, *o, *n).unwrap()).collect()
    }

    fn level(lines: &[(u64, u64, u64)]) -> Level {
        Level { inode: 0, owner: 0, maps: Both { uid: map(lines), gid: Vec::new() } }
    }

    /// Three deep, as the kernel shows it from outside: 0:1000:1 1:100000:65536,
    /// in it 0:5:10, in that 3:4:2.
    #[test]
    fn through_every_level() {
        let levels = [
            level(&[(3, 100_008, 2)]),
            level(&[(0, 100_004, 10)]),
            level(&[(0, 1000, 1), (1, 100_000, 65536)]),
            level(&[(0, 0, 4_294_967_295)]),
        ];
        assert_eq!(down_up(&levels, IdKind::Uid, 3), [Some(3), Some(4), Some(9), Some(100_008)]);
        assert_eq!(down_up(&levels, IdKind::Uid, 5), [Some(5), None, None, None]);
        assert_eq!(up_down(&levels, IdKind::Uid, 1000), [None, None, Some(0), Some(1000)]);
        assert_eq!(up_down(&levels, IdKind::Uid, 100_009), [Some(4), Some(5), Some(10), Some(100_009)]);
        let r = |first, count| Range::new(first, count);
        assert_eq!(columns(&levels, IdKind::Uid), [[r(3, 2), r(4, 2), r(9, 2), r(100_008, 2)]]);
        assert_eq!(down_up(&levels, IdKind::Gid, 3), [Some(3), None, None, None]);
    }

    #[test]
    fn every_id_once() {
        let r = |first, count| Range::new(first, count).unwrap();
        let wanted =
            vec![(r(0, 5), None), (r(5, 1), Some(r(7, 1))), (r(6, 4), Some(r(0, 4))), (r(10, 4_294_967_285), None)];
        assert_eq!(reverse(&map(&[(0, 6, 4), (7, 5, 1)])), wanted);
        assert_eq!(reverse(&map(&[(0, 0, 4_294_967_295)])), [(r(0, 4_294_967_295), Some(r(0, 4_294_967_295)))]);
        assert_eq!(reverse(&[]), [(r(0, 4_294_967_295), None)]);
    }
}

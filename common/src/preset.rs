//! Maps by name, from what a user has: his own ids and his subordinate ids.
//!
//! ```text
//!          inside 0   1 .....        1000          ids of uid 1000 with 100000:65536
//!  root           1000
//!  same                              1000
//!  subids         100000 ................................. 165535
//!  auto           1000 100000 ............................ 165535
//!  keep           100000 ..... 100999 1000 101000 ........ 165535
//!  all                               1000        (inside 100000-165535: the same)
//! ```

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::stat;
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::fail::{Because, Failure, Result};
use crate::id::{Both, Extent, Kind, Map, Range, Unlawful, parse_operand, without};
use crate::proc::Proc;
use crate::subid::{Grants, Lack, POOL};
use crate::user::{self, User};
use crate::word::quote;

/// The name of a preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// 0 is me.
    Root,
    /// I am me.
    Same,
    /// 0.. are my subordinate ids.
    Subids,
    /// 0 is me, 1.. are my subordinate ids: podman's default.
    Auto,
    /// I am me, my subordinate ids around me: podman's keep-id.
    Keep,
    /// Everything that I have, identically.
    All,
}

/// Their names, for help and messages.
pub const NAMES: &str = "root, same, subids, auto, keep, all";

impl Preset {
    /// The preset called `word`.
    pub fn named(word: &str) -> Option<Preset> {
        Some(match word {
            "root" => Preset::Root,
            "same" => Preset::Same,
            "subids" => Preset::Subids,
            "auto" => Preset::Auto,
            "keep" => Preset::Keep,
            "all" => Preset::All,
            _ => return None,
        })
    }

    /// Whether it has only the own id, which needs no privilege.
    pub fn is_single(self) -> bool {
        matches!(self, Preset::Root | Preset::Same)
    }

    /// The extents for both kinds of ids: `own`, and `granted` in their order.
    pub fn maps(self, own: &Both<u32>, granted: &Both<Vec<Range>>) -> Both<Vec<Extent>> {
        let of = |kind| self.extents(*own.of(kind), granted.of(kind));
        Both { uid: of(Kind::Uid), gid: of(Kind::Gid) }
    }

    /// The extents for one kind of ids: `me`, and `granted` in their order.
    pub fn extents(self, me: u32, granted: &[Range]) -> Vec<Extent> {
        let own = Range { first: me, count: 1 };
        // A grant may by mistake have the own id in it: no map can have it twice.
        let subids = without(granted, &[own]);
        let at = |inside: u64, outside: Range| Extent::new(inside, outside.first.into(), outside.count.into());
        match self {
            Preset::Root => at(0, own).into_iter().collect(),
            Preset::Same => at(me.into(), own).into_iter().collect(),
            Preset::Subids => in_a_row(0, &without(granted, &[])),
            Preset::Auto => at(0, own).into_iter().chain(in_a_row(1, &subids)).collect(),
            Preset::Keep => {
                let (below, above) = split(&subids, me);
                let rest = in_a_row(u64::from(me) + 1, &above);
                in_a_row(0, &below).into_iter().chain(at(me.into(), own)).chain(rest).collect()
            }
            Preset::All => {
                let all = std::iter::once(own).chain(subids);
                all.filter_map(|range| at(range.first.into(), range)).collect()
            }
        }
    }
}

/// Extents with `ranges` one after the other from `inside` on, as far as ids go.
fn in_a_row(mut inside: u64, ranges: &[Range]) -> Vec<Extent> {
    let mut extents = Vec::new();
    for range in ranges {
        let room = u64::from(u32::MAX).saturating_sub(inside).min(range.count.into());
        extents.extend(Extent::new(inside, range.first.into(), room));
        inside += room;
    }
    extents
}

/// The first `count` ids of `ranges`, and the others.
fn split(ranges: &[Range], count: u32) -> (Vec<Range>, Vec<Range>) {
    let (mut first, mut rest, mut left) = (Vec::new(), Vec::new(), count);
    for range in ranges {
        let taken = range.count.min(left);
        left -= taken;
        first.extend(Range::new(range.first.into(), taken.into()));
        rest.extend(Range::new(u64::from(range.first) + u64::from(taken), (range.count - taken).into()));
    }
    (first, rest)
}

/// The user of this process: by uid, his name and what he has been granted.
#[derive(Clone, Debug)]
pub struct Me {
    /// Name, uid and gid as this process has them.
    pub user: User,
    /// The effective ids.
    pub own: Both<u32>,
}

impl Me {
    /// Who this process is.
    pub fn now() -> Me {
        let me = Me::nameless();
        Me { user: user::by_uid(me.own.uid).unwrap_or(me.user), own: me.own }
    }

    /// The same without a look at who has this uid.
    pub fn nameless() -> Me {
        let own = user::own_ids();
        let user = User { name: own.uid.to_string(), uid: own.uid, gid: own.gid, shell: String::new() };
        Me { user, own }
    }

    /// `user` in place of whoever this process is.
    pub fn other(user: User) -> Me {
        let own = Both { uid: user.uid, gid: user.gid };
        Me { user, own }
    }
}

/// The maps of `preset` for `me`, for these kinds of ids.
///
/// # Errors
/// There are no subordinate ids of a kind, or they cannot be found out; one has
/// been granted twice.
pub fn maps(preset: Preset, me: &Me, kinds: &[Kind]) -> Result<Both<Vec<Extent>>> {
    let granted = if preset.is_single() { Both::default() } else { granted(me, kinds)? };
    let mut made = Both::<Vec<Extent>>::default();
    for kind in kinds {
        let extents = preset.extents(*me.own.of(*kind), granted.of(*kind));
        if let Err(e @ Unlawful::OutsideTwice(_)) = Map::new(extents.clone()) {
            return Err(twice(me, *kind, &e));
        }
        *made.of_mut(*kind) = extents;
    }
    Ok(made)
}

/// What has been granted to `me`, at least one id of each of these kinds.
///
/// # Errors
/// There are no subordinate ids of a kind, or they cannot be found out.
pub fn granted(me: &Me, kinds: &[Kind]) -> Result<Both<Vec<Range>>> {
    let mut granted = Both::<Vec<Range>>::default();
    let (grants, mut lack) = (Grants::of(&me.user)?, Lack::Line);
    for kind in kinds {
        *granted.of_mut(*kind) = grants.look(*kind, &mut lack)?;
        if granted.of(*kind).is_empty() {
            return Err(none(me, *kind, lack));
        }
    }
    Ok(granted)
}

/// The maps that operands say: presets and `[u:|g:|b:]INSIDE:OUTSIDE:COUNT`,
/// one after the other, not yet proven lawful.
///
/// # Errors
/// Wrong usage; there are no subordinate ids; a preset would put the real root
/// inside, and `host_root` is not said.
pub fn from_words(words: &[OsString], proc: &Proc, host_root: bool) -> Result<Both<Vec<Extent>>> {
    from_words_of(None, words, proc, host_root)
}

/// The same, with the ids of somebody else for the presets.
///
/// # Errors
/// As `from_words`.
pub fn from_words_of(
    other: Option<&Me>,
    words: &[OsString],
    proc: &Proc,
    host_root: bool,
) -> Result<Both<Vec<Extent>>> {
    let mut all = Both::<Vec<Extent>>::default();
    for word in words {
        let (kinds, name) = match word.as_bytes() {
            [b'u', b':', name @ ..] => (&[Kind::Uid][..], name),
            [b'g', b':', name @ ..] => (&[Kind::Gid][..], name),
            name => (&Kind::BOTH[..], name),
        };
        if let Some(preset) = std::str::from_utf8(name).ok().and_then(Preset::named) {
            // Who has the own id is nobody's business where it is all there is.
            let me = || if preset.is_single() { Me::nameless() } else { Me::now() };
            let me = other.cloned().unwrap_or_else(me);
            let made = maps(preset, &me, kinds)?;
            guard_root(made.uid.iter().map(|e| e.outside()), proc, host_root)?;
            kinds.iter().for_each(|kind| all.of_mut(*kind).extend_from_slice(made.of(*kind)));
            continue;
        }
        let said = |e| Failure::usage(format!("{}: {e}", quote(word)));
        let (kinds, extent) = parse_operand(word.as_bytes()).map_err(said)?;
        for kind in kinds {
            all.of_mut(kind).push(extent);
        }
    }
    Ok(all)
}

/// The lawful maps of extents, for both kinds, to be written for a child of
/// our user namespace: touching extents joined, and each cut where our own map
/// is cut.
///
/// # Errors
/// Wrong usage: the first rule that is broken.
pub fn lawful(all: Both<Vec<Extent>>, proc: &Proc) -> Result<Both<Map>> {
    Ok(Both { uid: lawful_one(Kind::Uid, all.uid, proc)?, gid: lawful_one(Kind::Gid, all.gid, proc)? })
}

/// `lawful` for one kind.
///
/// # Errors
/// As there.
pub fn lawful_one(kind: Kind, extents: Vec<Extent>, proc: &Proc) -> Result<Map> {
    let wrong = |what: &str, e| Failure::usage(format!("{} {what} {e}", kind.word()));
    let map = Map::new(extents).map_err(|e| wrong("map:", e))?;
    // A single id cannot cross anything.
    if map.extents().iter().all(|e| e.count == 1) {
        return Ok(map);
    }
    let lines: Vec<Range> = proc.own_map(kind)?.iter().map(|e| e.inside()).collect();
    match map.split_at(&lines) {
        Ok(parts) => Map::of_lines(parts).map_err(|e| wrong("map, split at the extents of our own:", e)),
        // Ids that we do not have ourselves: the kernel says so.
        Err(_) => Ok(map),
    }
}

fn none(me: &Me, kind: Kind, lack: Lack) -> Failure {
    let because = unnamed(me).unwrap_or_else(|| {
        let command = match lack {
            Lack::Grant => Some("subid-alloc --check".to_owned()),
            Lack::File | Lack::Line => {
                granting(me, None, |room| Kind::BOTH.iter().all(|kind| !room.of(*kind).is_empty()))
            }
        };
        Because::new(lack.text(kind, &me.user)).remedy_if(command)
    });
    Failure::refused(format!("no subordinate {}s", kind.word())).because(Some(because))
}

fn twice(me: &Me, kind: Kind, e: &Unlawful) -> Failure {
    let because = Because::new(format!("they have been granted to {} twice", me.user));
    let in_files = matches!(Grants::of(&me.user), Ok(Grants::Files(_)));
    let because = because.remedy_if(in_files.then(|| "subid-alloc --check".to_owned()));
    Failure::refused(format!("{} map: {e}", kind.word())).because(Some(because))
}

/// Why `me` has no name, to whom newuidmap(1) gives nothing.
fn unnamed(me: &Me) -> Option<Because> {
    let uid = me.user.uid;
    if me.user.name != uid.to_string() || user::by_uid(uid).is_some() {
        return None;
    }
    Some(user::unread().unwrap_or_else(|| Because::new(format!("uid {uid} has no line in /etc/passwd"))))
}

/// Whether root of this user namespace could change the files: it may be over the
/// /etc of another, whose owner is not mapped.
fn can_be_granted() -> bool {
    let read_only = statvfs("/etc").is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    !read_only && stat("/etc").is_ok_and(|etc| etc.st_uid == 0)
}

/// The command that has `me` granted subordinate ids, `count` of them if that is
/// said. In a container, where those of the pool cannot be mapped, it is all that
/// can, if they are `enough`. None: a grant would be of no use.
pub fn granting(me: &Me, count: Option<u64>, enough: impl Fn(&Both<Vec<Range>>) -> bool) -> Option<String> {
    let Ok(Grants::Files(_)) = Grants::of(&me.user) else { return None };
    if unnamed(me).is_some() || !can_be_granted() {
        return None;
    }
    let proc = Proc::open().ok()?;
    let mut room = Both::<Vec<Range>>::default();
    for kind in Kind::BOTH {
        *room.of_mut(kind) = proc.own_map(kind).ok()?.iter().map(|extent| extent.inside()).collect();
    }
    let name = quote(&me.user.name);
    if Kind::BOTH.iter().all(|kind| without(&[POOL], room.of(*kind)).is_empty()) {
        let many = count.map_or_else(String::new, |count| format!(" --count {count}"));
        return count.is_none_or(|n| n <= POOL.count.into()).then(|| format!("sudo subid-alloc {name}{many}"));
    }
    // Root of this place is granted to nobody, and the own id is no subordinate one.
    let uid = me.own.uid;
    let kept = [0, uid].map(|first| Range { first, count: 1 });
    for kind in Kind::BOTH {
        *room.of_mut(kind) = without(room.of(kind), &kept);
    }
    let sudo = if user::own_ids().uid == 0 { "" } else { "sudo " };
    let but = if uid == 0 { String::new() } else { format!(" --exclude {uid}") };
    enough(&room).then(|| format!("{sudo}subid-alloc --nested {name}{but}"))
}

/// Refuses outside uids, of a map that nobody wrote out, that would put uid 0
/// of the initial user namespace inside: it would be the real root there,
/// whatever the namespace takes from it.
///
/// # Errors
/// It is among them, and was not said aloud.
pub fn guard_root(mut uids: impl Iterator<Item = Range>, proc: &Proc, host_root: bool) -> Result<()> {
    if host_root || !uids.any(|range| range.has(0)) || !proc.in_initial()? {
        return Ok(());
    }
    Err(Failure::usage(
        "this maps uid 0 of the initial user namespace, the real root: say --host-root if that is meant",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(preset: Preset, me: u32, granted: &[(u64, u64)]) -> String {
        let ranges: Vec<Range> = granted.iter().map(|(f, c)| Range::new(*f, *c).unwrap()).collect();
        let map = Map::new(preset.extents(me, &ranges)).unwrap();
        map.text().trim_end().replace('\n', ", ")
    }

    #[test]
    fn as_the_drawing_says() {
        let granted = &[(100_000, 65536)];
        assert_eq!(text(Preset::Root, 1000, granted), "0 1000 1");
        assert_eq!(text(Preset::Same, 1000, granted), "1000 1000 1");
        assert_eq!(text(Preset::Subids, 1000, granted), "0 100000 65536");
        assert_eq!(text(Preset::Auto, 1000, granted), "0 1000 1, 1 100000 65536");
        assert_eq!(text(Preset::Keep, 1000, granted), "0 100000 1000, 1000 1000 1, 1001 101000 64536");
        assert_eq!(text(Preset::All, 1000, granted), "1000 1000 1, 100000 100000 65536");
    }

    #[test]
    fn edges() {
        // Fewer subordinate ids than the own number: there is nothing above.
        assert_eq!(text(Preset::Keep, 1000, &[(5000, 10)]), "0 5000 10, 1000 1000 1");
        // Several grants, and the own id in one of them.
        assert_eq!(text(Preset::Auto, 1000, &[(999, 3), (50, 2)]), "0 1000 1, 1 999 1, 2 1001 1, 3 50 2");
        assert_eq!(text(Preset::Keep, 0, &[(100, 5)]), "0 0 1, 1 100 5");
        // What touches is joined.
        assert_eq!(text(Preset::Auto, 7, &[(8, 4_294_967_287)]), "0 7 4294967288");
        // A whole-world grant does not wrap.
        assert_eq!(text(Preset::Auto, 0, &[(0, 4_294_967_295)]), "0 0 4294967295");
    }
}

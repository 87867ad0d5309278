//! What the command line says about the map: extents in two spellings, the
//! owner as somebody, the map of a target.

use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use common::cli::Args;
use common::fail::{Failure, Result};
use common::id::{self, Both, Extent, Kind, Map, number};
use common::idmap::{Maps, maps_of};
use common::ns::Kind as NsKind;
use common::owners::owner_of;
use common::path::Place;
use common::preset::{NAMES, from_words, lawful};
use common::proc::Proc;
use common::record::Stream;
use common::target::{self, Operand, Target};
use common::user;
use common::word::quote;

use super::{CLI, addressed};

/// The map asked for.
pub(crate) struct Wanted {
    /// Where the kernel takes it from; None: `--plain`.
    pub(crate) maps: Option<Maps>,
    /// What it says, if that can be known.
    pub(crate) known: Option<Both<Map>>,
}

/// Up to so many extents the kernel keeps in one cache line and looks through;
/// more it searches (include/linux/user_namespace.h).
pub(crate) const INLINE_EXTENTS: usize = 5;

impl Wanted {
    pub(crate) fn read(
        args: &Args,
        words: &[std::ffi::OsString],
        source: &Place,
        stream: Option<&Stream>,
        proc: &Rc<Proc>,
    ) -> Result<Wanted> {
        let words: Vec<_> = args.values("map-mount").into_iter().chain(words.iter().cloned()).collect();
        let owner_as = args.value("owner-as");
        let says = [!words.is_empty() || owner_as.is_some(), args.value("like").is_some(), args.flag("plain")];
        match says.iter().filter(|said| **said).count() {
            0 => {
                let ways = "--owner-as, --like, or --plain for none";
                return Err(CLI.usage(&format!("which map? [u:|g:|b:]ON-DISK:SEEN:COUNT, one of {NAMES}, {ways}")));
            }
            1 => {}
            _ => return Err(CLI.usage("MAP or --owner-as, --like, --plain: one of these three")),
        }
        if args.flag("plain") {
            return Ok(Wanted { maps: None, known: None });
        }
        if let Some(word) = args.value("like") {
            return like(&word, stream, proc);
        }
        let mut extents = Both::<Vec<Extent>>::default();
        if let Some(word) = owner_as {
            extents = as_somebody(&word, source)?;
        }
        for word in &words {
            let more = match named(word.as_bytes()) {
                Some(named) => named.map_err(|e| Failure::usage(format!("{}: {e}", quote(word))))?,
                // Everybody may see the real root's files as his own: what
                // counts here is nosuid, which is another question.
                None => from_words(std::slice::from_ref(word), proc, true)?,
            };
            extents.uid.extend(more.uid);
            extents.gid.extend(more.gid);
        }
        alone(&extents)?;
        let known = lawful(extents, proc)?;
        Ok(Wanted { maps: Some(Maps::New(known.clone())), known: Some(known) })
    }

    /// With set-id bits in effect a disk id that is seen as 0 is root: refused
    /// unless it was said aloud. In a `dry` pipeline there is no target to have a map.
    ///
    /// # Errors
    /// A map does that, or may: it is not known.
    pub(crate) fn guard(&self, args: &Args, dry: bool) -> Result<()> {
        if !args.flag("suid") || args.flag("host-root") {
            return Ok(());
        }
        let extents = self.known.iter().flat_map(|maps| maps.uid.extents());
        let root = extents.into_iter().find(|e| e.outside == 0 && e.inside != 0);
        match (root, &self.known, &self.maps) {
            (Some(e), ..) => Err(Failure::usage(format!(
                "with --suid whoever is uid {} on disk can make programs that run as uid 0, root: say --host-root if that is meant",
                e.inside
            ))),
            (None, None, Some(Maps::Of(_, name))) if !dry => Err(Failure::refused(format!(
                "read the maps of {name}: they are not written, or not for us to see, and with --suid it has to be known whom they make root"
            ))),
            _ => Ok(()),
        }
    }
}

/// The kernel wants both maps of a user namespace written.
fn alone(extents: &Both<Vec<Extent>>) -> Result<()> {
    for (here, there, advice) in
        [(Kind::Uid, Kind::Gid, ("u:", "groups", "g:")), (Kind::Gid, Kind::Uid, ("g:", "users", "u:"))]
    {
        if extents.of(there).is_empty() && !extents.of(here).is_empty() {
            let (alone, ids, other) = advice;
            return Err(Failure::usage(format!(
                "{alone} alone leaves the {ids} without a map, which the kernel refuses: add a {other} map, or use b:"
            )));
        }
    }
    Ok(())
}

/// `[u:|g:|b:]disk=N,seen=N[,count=N]` in any order; None if it is no such word.
fn named(word: &[u8]) -> Option<std::result::Result<Both<Vec<Extent>>, &'static str>> {
    let (kinds, rest) = match word {
        [b'u', b':', rest @ ..] => (vec![Kind::Uid], rest),
        [b'g', b':', rest @ ..] => (vec![Kind::Gid], rest),
        [b'b', b':', rest @ ..] => (Kind::BOTH.to_vec(), rest),
        _ => (Kind::BOTH.to_vec(), word),
    };
    rest.contains(&b'=').then(|| {
        let extent = named_extent(rest)?;
        let mut all = Both::<Vec<Extent>>::default();
        kinds.into_iter().for_each(|kind| all.of_mut(kind).push(extent));
        Ok(all)
    })
}

fn named_extent(text: &[u8]) -> std::result::Result<Extent, &'static str> {
    const FORM: &str = "a map by names is disk=N,seen=N[,count=N]";
    let mut fields = [None; 3];
    for part in text.split(|b| *b == b',') {
        let at = part.iter().position(|b| *b == b'=').ok_or(FORM)?;
        let name = ["disk", "seen", "count"].iter().position(|name| name.as_bytes() == &part[..at]).ok_or(FORM)?;
        let value = number(&part[at + 1..]).ok_or("disk, seen and count are decimal numbers")?;
        if fields[name].replace(value).is_some() {
            return Err("each of disk, seen and count stands once");
        }
    }
    let (Some(disk), Some(seen)) = (fields[0], fields[1]) else { return Err(FORM) };
    Extent::new(disk, seen, fields[2].unwrap_or(1)).ok_or("ids go from 0 to 4294967294, and count is at least 1")
}

/// The owner of the source is seen as `word`: a user, or UID[:GID].
fn as_somebody(word: &std::ffi::OsStr, source: &Place) -> Result<Both<Vec<Extent>>> {
    let text = word.to_string_lossy();
    let (user, group) = text.split_once(':').map_or((&*text, None), |(user, group)| (user, Some(group)));
    let id = |word: &str| id::one(word.as_bytes());
    let known = user::named(user);
    let uid = id(user).or_else(|| known.as_ref().map(|u| u.uid));
    let uid = uid.ok_or_else(|| Failure::usage(format!("--owner-as: there is no user {}", quote(user))))?;
    let gid = match group {
        Some(group) => id(group),
        None => known.map(|u| u.gid),
    };
    let gid = gid.ok_or_else(|| CLI.usage("--owner-as: which group? UID:GID"))?;
    let (owner, group) = owner_of(source)?;
    let one = |disk: u32, seen: u32| Extent::new(disk.into(), seen.into(), 1).into_iter().collect();
    Ok(Both { uid: one(owner, uid), gid: one(group, gid) })
}

/// The map of a target's user namespace.
fn like(word: &std::ffi::OsStr, stream: Option<&Stream>, proc: &Rc<Proc>) -> Result<Wanted> {
    let operand = Operand::parse(word)?;
    if operand == Operand::Stream {
        // Nobody has written them yet: they say what will be.
        if let Some(stream) = stream.filter(|s| s.has_extents()) {
            let known = lawful(Both { uid: stream.extents(Kind::Uid), gid: stream.extents(Kind::Gid) }, proc)?;
            return Ok(Wanted { maps: Some(Maps::New(known.clone())), known: Some(known) });
        }
    }
    if let Some((fd, flag)) = target::given::namespace_file(&operand)? {
        if flag != NsKind::User.flag() {
            let kind = NsKind::ALL.into_iter().find(|k| k.flag() == flag).map_or("unknown", NsKind::link);
            return Err(Failure::usage(format!(
                "--like {}: that is a {kind} namespace, not a user namespace",
                quote(word)
            )));
        }
        let (fd, name) = (Rc::new(fd), operand.to_string());
        let known = maps_of(&fd, &name, proc).and_then(|maps| Some(Both { uid: maps.uid?, gid: maps.gid? }));
        return Ok(Wanted { maps: Some(Maps::Of(fd, name)), known });
    }
    let Some(address) = addressed(&operand, stream, proc)? else {
        // Of a dry run: nobody will use it.
        let fd = proc.ns("self", NsKind::User).map_err(|e| Failure::os("open /proc/self/ns/user", e))?;
        return Ok(Wanted { maps: Some(Maps::Of(Rc::new(fd), "/proc/?/ns/user".to_owned())), known: None });
    };
    let target = Target::open(proc, address)?;
    let fd = target::files::user_namespace(proc, &target)?;
    // One that nobody has written yet is none.
    let map = |kind| Ok(Map::new(target::files::map(proc, &target, kind)?).ok());
    let known = map(Kind::Uid)?.zip(map(Kind::Gid)?).map(|(uid, gid)| Both { uid, gid });
    Ok(Wanted { maps: Some(Maps::Of(Rc::new(fd), format!("/proc/{}/ns/user", target.pid))), known })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_order() {
        let one = |word: &str| named(word.as_bytes()).unwrap();
        let extent = Extent::new(0, 1000, 65536).unwrap();
        for word in ["disk=0,seen=1000,count=65536", "count=65536,seen=1000,disk=0", "b:seen=1000,count=65536,disk=0"] {
            assert_eq!(one(word), Ok(Both { uid: vec![extent], gid: vec![extent] }));
        }
        let single = Extent::new(5, 7, 1).unwrap();
        assert_eq!(one("u:disk=5,seen=7"), Ok(Both { uid: vec![single], gid: vec![] }));
        assert_eq!(one("g:seen=7,disk=5"), Ok(Both { uid: vec![], gid: vec![single] }));
        for word in [
            "disk=1",
            "disk=,seen=1",
            "disk=1,seen=2,",
            "disk=1,seen=2,seen=3",
            "disk=1,seen=2,count=0",
            "disk=1,seen=0x2",
            "disk=4294967295,seen=0",
            "inside=1,seen=2",
            "disk=1=2,seen=3",
        ] {
            assert!(one(word).is_err(), "{word}");
        }
        assert!(named(b"0:1000:1").is_none() && named(b"auto").is_none());
    }
}

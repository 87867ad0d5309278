//! What unshare(1) calls by other names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use common::cli::{Args, Opt, flag, opt, valued};
use common::fail::{Failure, Result};
use common::id::{self, Both, Kind, Range};
use common::plan::Plan;
use common::preset::{self, Me, Preset, guard_root};
use common::proc::Proc;
use common::step::{own, program};
use common::user;
use common::word::quote;

use crate::CLI;

/// Its options for maps and owners.
pub(crate) const OPTIONS: &[Opt] = &[
    opt("c", "map-current-user", "", ""),
    valued("map-user", "UID", ""),
    valued("map-group", "GID", ""),
    valued("map-users", "MAP", ""),
    valued("map-groups", "MAP", ""),
    flag("map-auto", ""),
    flag("map-subids", ""),
    valued("owner", "UID:GID", "as in unshare(1)"),
];

/// Whether one of them asks for a map.
pub(crate) fn maps(args: &Args) -> bool {
    OPTIONS.iter().any(|option| option.long != "owner" && args.flag(option.long))
}

/// The words of --map that all options for maps come to. One id and a preset of
/// the subordinate ids together are another preset.
pub(crate) fn words(args: &Args, owner: Option<&Me>, proc: &Proc) -> Result<Vec<OsString>> {
    let mut words = args.values("map");
    let (root, same) = (args.flag("map-root-user"), args.flag("map-current-user"));
    let subids = if root {
        "auto"
    } else if same {
        "keep"
    } else {
        "subids"
    };
    let guard = |kind, ranges: &[Range]| match kind {
        Kind::Uid => guard_root(ranges.iter().copied(), proc, args.flag("host-root")),
        Kind::Gid => Ok(()),
    };
    let mut alone = Both { uid: true, gid: true };
    for kind in Kind::BOTH {
        let before = words.len();
        let letter = if kind == Kind::Uid { "u" } else { "g" };
        let own = Range { first: *Me::nameless().own.of(kind), count: 1 };
        if let Some(inside) = inside(args, kind)? {
            guard(kind, &[own])?;
            words.push(format!("{letter}:{inside}:{}:1", own.first).into());
        }
        let mut given = args.values(if kind == Kind::Uid { "map-users" } else { "map-groups" });
        given.extend(args.flag("map-auto").then(|| "auto".into()));
        given.extend(args.flag("map-subids").then(|| "subids".into()));
        for word in given {
            match word.to_str() {
                Some("auto") => {
                    words.push(format!("{letter}:{subids}").into());
                    *alone.of_mut(kind) = false;
                }
                Some(name @ ("subids" | "all")) => {
                    let ranges: Vec<Range> = if name == "all" {
                        proc.map("self", kind).unwrap_or_default().iter().map(|e| e.inside()).collect()
                    } else {
                        let me = owner.cloned().unwrap_or_else(Me::now);
                        preset::maps(Preset::Subids, &me, &[kind])?.of(kind).iter().map(|e| e.outside()).collect()
                    };
                    guard(kind, &ranges)?;
                    words.extend(ranges.iter().map(|r| format!("{letter}:{0}:{0}:{1}", r.first, r.count).into()));
                }
                Some(map) => words.push(format!("{letter}:{map}").into()),
                None => return Err(CLI.usage("--map-users: INSIDE:OUTSIDE:COUNT, auto, subids or all")),
            }
        }
        // unshare leaves what nobody named unmapped, whose owner is nobody then.
        if words.len() == before && maps(args) && !root && !same && args.values("map").is_empty() {
            guard(kind, &[own])?;
            words.push(format!("{letter}:{0}:{0}:1", own.first).into());
        }
    }
    let me = if root { Some("root") } else { same.then_some("same") };
    words.extend(me.and_then(|preset| match (alone.uid, alone.gid) {
        (true, true) => Some(preset.into()),
        (true, false) => Some(format!("u:{preset}").into()),
        (false, true) => Some(format!("g:{preset}").into()),
        (false, false) => None,
    }));
    Ok(words)
}

/// The id that --map-user or --map-group makes of the own one.
fn inside(args: &Args, kind: Kind) -> Result<Option<u32>> {
    let option = if kind == Kind::Uid { "map-user" } else { "map-group" };
    let Some(word) = args.value(option) else { return Ok(None) };
    let number = id::one(word.as_bytes());
    let named = || word.to_str().and_then(user::named).map(|user| user.uid);
    let (id, what) = match kind {
        Kind::Uid => (number.or_else(named), "there is no user"),
        Kind::Gid => (number, "not a gid:"),
    };
    id.map(Some).ok_or_else(|| Failure::usage(format!("--{option}: {what} {}", quote(&word))))
}

/// The ids that the program gets last of all.
pub(crate) fn ids(args: &Args, inside: &mut Plan) -> Result<()> {
    let id = |option: &str| -> Result<Option<u32>> {
        let bad = |word: OsString| CLI.usage(&format!("--{option} {}: not an id", quote(&word)));
        args.value(option).map(|word| id::one(word.as_bytes()).ok_or_else(|| bad(word))).transpose()
    };
    if let Some(gid) = id("setgid")? {
        inside.push(program::Effect::Groups(Vec::new()));
        inside.push(program::Effect::Gid(gid));
    }
    if let Some(uid) = id("setuid")? {
        inside.push(program::Effect::Uid(uid, args.flag("keep-caps")));
        if args.flag("keep-caps") {
            inside.push(own::Effect::RaiseAmbient);
        }
    }
    Ok(())
}

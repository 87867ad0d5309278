//! What unshare(1) calls by other names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use common::cli::{Args, Opt, flag, opt, valued};
use common::fail::Result;
use common::id::{self, Both, Kind};
use common::plan::Plan;
use common::preset::{Me, granted};
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
    let mut alone = Both { uid: true, gid: true };
    for kind in Kind::BOTH {
        let before = words.len();
        let letter = if kind == Kind::Uid { "u" } else { "g" };
        let own = Me::nameless().own;
        let one = args.value(if kind == Kind::Uid { "map-user" } else { "map-group" });
        if let Some(word) = one {
            let known = if kind == Kind::Uid { word.to_str().and_then(user::named) } else { None };
            let id = known.map_or_else(|| word.to_string_lossy().into_owned(), |user| user.uid.to_string());
            words.push(format!("{letter}:{id}:{}:1", own.of(kind)).into());
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
                Some("subids") => {
                    let me = owner.cloned().unwrap_or_else(Me::now);
                    let ranges = granted(&me)?;
                    let same = ranges.of(kind).iter().map(|r| format!("{letter}:{0}:{0}:{1}", r.first, r.count));
                    words.extend(same.map(OsString::from));
                }
                Some("all") => {
                    let all = proc.map("self", kind).unwrap_or_default();
                    words.extend(all.iter().map(|e| format!("{letter}:{0}:{0}:{1}", e.inside, e.count).into()));
                }
                Some(map) => words.push(format!("{letter}:{map}").into()),
                None => return Err(CLI.usage("--map-users: INSIDE:OUTSIDE:COUNT, auto, subids or all")),
            }
        }
        // unshare leaves what nobody named unmapped, whose owner is nobody then.
        if words.len() == before && maps(args) && !root && !same && args.values("map").is_empty() {
            words.push(format!("{letter}:{0}:{0}:1", own.of(kind)).into());
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

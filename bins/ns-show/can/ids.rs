//! Whether this user may map many ids: what has been granted, and who writes
//! such a map.

use std::ffi::CString;
use std::rc::Rc;

use common::fail::{Errno, Failure};
use common::helper;
use common::id::{Extent, Kind as IdKind, Map, list};
use common::ns::Kind;
use common::plan::Plan;
use common::preset::{Me, Preset};
use common::proc::{CAP_SETGID, CAP_SETUID, Proc};
use common::step::{Step, end, map, newuidmap};
use common::subid::{Grants, Lack};

use super::{Found, child};

fn may_map(proc: &Proc) -> bool {
    let own = proc.own();
    own.can(CAP_SETUID) && own.can(CAP_SETGID)
}

fn privileged(program: &str) -> Option<CString> {
    helper::find(program).filter(|path| helper::gains_privilege(path).is_ok())
}

pub(super) fn many_ids(proc: &Rc<Proc>, found: &mut Found) {
    let what = if may_map(proc) { "map many ids (CAP_SETUID, CAP_SETGID)" } else { ALL };
    if let Some(plan) = with_child(proc, found) {
        found.answer(what, plan.probe(proc));
    }
}

const ALL: &str = "map them all";

/// The ids that this user has been granted, and who may map them; what is no map is
/// left out.
fn granted(found: &mut Found) -> Vec<(IdKind, Map)> {
    let (me, ours) = (Me::now(), privileged("uidmap-set"));
    let (mut maps, mut unlawful, mut lack) = (Vec::new(), None, Lack::Line);
    for kind in IdKind::BOTH {
        let what = format!("subordinate {}s", kind.word());
        match Grants::of(&me.user).and_then(|grants| grants.look(kind, &mut lack)) {
            Ok(ranges) if ranges.is_empty() => found.no(&what, &lack.text(kind, &me.user)),
            Ok(ranges) => {
                found.yes(&format!("{what}: {}", list(&ranges)));
                match Map::new(Preset::Subids.extents(0, &ranges)) {
                    Ok(map) => maps.push((kind, map)),
                    Err(e) => unlawful = Some(e),
                }
            }
            Err(failure) => found.no(&what, &failure.to_string()),
        }
        match helper::find(newuidmap::name(kind)) {
            Some(path) => {
                let what = format!("{} may map them", path.to_string_lossy());
                match helper::gains_privilege(&path) {
                    Ok(()) => found.yes(&what),
                    Err(why) => found.no(&what, &why),
                }
            }
            None if ours.is_some() => {}
            None => found.no(&newuidmap::missing(kind).text, ""),
        }
    }
    // Ours does the same, where it was given the privilege.
    ours.iter().for_each(|path| found.yes(&format!("{} may map them", path.to_string_lossy())));
    unlawful.iter().for_each(|e| found.no(ALL, &e.to_string()));
    maps
}

/// As many ids as a container has, of those that are mapped here.
fn any_ids(proc: &Proc) -> Vec<(IdKind, Map)> {
    let most = |kind| proc.map("self", kind)?.into_iter().map(|e| e.inside()).max_by_key(|r| r.count);
    let map = |kind| {
        let range = most(kind)?;
        let extent = Extent::new(0, range.first.into(), range.count.min(65536).into())?;
        Some((kind, Map::new(vec![extent]).ok()?))
    };
    IdKind::BOTH.into_iter().filter_map(map).collect()
}

/// Writes maps for a child of ours: directly, by newuidmap and newgidmap, or by
/// our own program that has their privilege; None: there are none to write.
pub(super) fn with_child(proc: &Rc<Proc>, found: &mut Found) -> Option<Plan> {
    let direct = may_map(proc);
    let maps = if direct { any_ids(proc) } else { granted(found) };
    let usual = IdKind::BOTH.into_iter().all(|kind| privileged(newuidmap::name(kind)).is_some());
    let ours = privileged("uidmap-set").filter(|_| !direct && !usual);
    let mut inner = Plan::default();
    inner.push(end::waiting());
    let mut plan = child(&[Kind::User], inner, proc);
    let both = maps.len() == 2;
    match ours {
        Some(path) => plan.push(by_uidmap_set(path, &maps, proc)),
        None => maps.into_iter().for_each(|(kind, map)| {
            plan.push(if direct {
                map::Effect::Write(map::Whose::Promised("CHILD"), kind, map)
            } else {
                map::Effect::HelperOfChild(kind, map)
            });
        }),
    }
    both.then_some(plan)
}

fn by_uidmap_set(path: CString, maps: &[(IdKind, Map)], proc: &Rc<Proc>) -> Step {
    let word = |kind: IdKind, e: &Extent| format!("{}:{}:{}:{}", &kind.word()[..1], e.inside, e.outside, e.count);
    let words: Vec<String> = maps.iter().flat_map(|(kind, map)| map.extents().iter().map(|e| word(*kind, e))).collect();
    let (said, proc) = (format!("run uidmap-set CHILD {}", words.join(" ")), proc.clone());
    Step::new(
        move || said.clone(),
        "",
        move |hands| {
            let who = hands.child.as_ref().ok_or(Errno::ECHILD)?.who(&proc)?;
            let answer = helper::run(&path, &[&[who], words.as_slice()].concat())?;
            let told = || Failure::refused(String::from_utf8_lossy(&answer.output).trim_end().to_owned());
            if answer.status == 0 { Ok(()) } else { Err(told().into()) }
        },
    )
}

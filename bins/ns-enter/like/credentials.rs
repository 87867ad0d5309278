//! The ids, the groups and the capabilities of the target.

use common::fail::{Failure, Result};
use common::id::{Kind as IdKind, Map};
use common::plan::Plan;
use common::proc::Status;
use common::step::like::Effect;
use common::step::own::{self, id_inside, may_drop_groups};
use common::step::program::{Effect as Own, capability_names};

use super::Look;

impl Look<'_> {
    /// The id inside that the program has, and whether it has to be changed.
    fn id(&mut self, kind: IdKind) -> Result<Option<(u32, bool)>> {
        let effective = |of: &Status| if kind == IdKind::Uid { of.uid[1] } else { of.gid[1] };
        let (theirs, own) = (effective(&self.theirs), effective(&self.ours));
        if self.wants(kind.word()) {
            match self.inside(kind, theirs)? {
                Some(id) => return Ok(Some((id, theirs != own))),
                None => self.without(self.unmapped(kind, theirs))?,
            }
        }
        if !self.user {
            return Ok(Some((own, false)));
        }
        let id = id_inside(own, self.proc, &self.target.who(), kind)?;
        Ok(id.map(|(id, keeps)| (id, !keeps)))
    }

    fn unmapped(&self, kind: IdKind, id: u32) -> Failure {
        Failure::refused(format!("its {} {id} is not mapped in its own user namespace", kind.word()))
    }

    fn inside(&self, kind: IdKind, outside: u32) -> Result<Option<u32>> {
        if !self.user {
            return Ok(Some(outside));
        }
        Ok(Map::new(self.proc.read_map(&self.target.who(), kind)?).ok().and_then(|map| map.inside(outside)))
    }

    /// The steps in place of the usual credentials, and the uid that is had then.
    pub(super) fn credentials(&mut self) -> Result<Option<(Plan, Option<u32>)>> {
        if !["uid", "gid", "groups", "caps"].iter().any(|thing| self.wants(thing)) {
            return Ok(None);
        }
        let mut plan = Plan::default();
        let (uid, gid) = (self.id(IdKind::Uid)?, self.id(IdKind::Gid)?);
        let root = uid.is_some_and(|(uid, _)| uid == 0);
        let sets = if self.wants("caps") { Some(self.capabilities(root, &mut plan)?) } else { None };
        let is_other = |id: Option<(u32, bool)>| id.is_some_and(|(_, changes)| changes);
        if self.wants("groups") {
            self.groups(&mut plan)?;
        } else if is_other(gid) || self.user && is_other(uid) {
            let who = if self.user { self.target.who() } else { "self".to_owned() };
            plan.steps.extend(may_drop_groups(self.proc, &who)?.then(|| Own::Groups(Vec::new()).into()));
        }
        if let Some((gid, true)) = gid {
            plan.push(Own::Gid(gid));
        }
        if let Some((uid, true)) = uid {
            plan.push(Own::Uid(uid, sets.is_some()));
        }
        match (sets, uid) {
            (Some(sets), _) => plan.push(Effect::Capabilities(sets)),
            (None, Some((1.., false))) if self.wants("uid") => plan.push(own::Effect::ClearAmbient),
            (None, _) if self.wants("uid") => {}
            (None, _) if self.parent || self.user && !root => plan.push(own::Effect::RaiseAmbient),
            (None, _) => {}
        }
        Ok(Some((plan, uid.map(|(uid, _)| uid))))
    }

    fn groups(&mut self, plan: &mut Plan) -> Result<()> {
        let sorted = |of: &Status| {
            let mut ids = of.groups.clone();
            ids.sort_unstable();
            ids
        };
        let theirs = sorted(&self.theirs);
        if theirs == sorted(&self.ours) {
            return Ok(());
        }
        let mut inside = Vec::new();
        for id in theirs {
            match self.inside(IdKind::Gid, id)? {
                Some(id) => inside.push(id),
                None => self.without(self.unmapped(IdKind::Gid, id))?,
            }
        }
        self.add(plan, true, &|| Own::Groups(inside.clone()).into()).map(drop)
    }

    /// Its permitted, effective, inheritable and ambient capabilities, as far as
    /// they are ours to have. An exec by uid 0 would give all of the bounding
    /// set: what is not permitted to the target goes from there, too.
    fn capabilities(&mut self, root: bool, plan: &mut Plan) -> Result<[u64; 4]> {
        let Status { permitted, effective, inheritable, ambient, bounding, .. } = self.theirs;
        let all = (2 << self.proc.sysctl("kernel/cap_last_cap").unwrap_or(62)) - 1;
        let own = |set: u64| if self.user { all } else { set };
        let have = own(self.ours.permitted);
        let bound = bounding & if root { permitted } else { u64::MAX };
        if own(self.ours.bounding) & !bound != 0 {
            self.add(plan, true, &|| Own::Bound(bound).into())?;
        }
        if permitted & !have != 0 {
            let names = capability_names(permitted & !have);
            self.without(Failure::refused(format!("its capabilities {names} are not ours to have")))?;
        }
        let inheritable = inheritable & if root { permitted } else { u64::MAX };
        Ok([permitted, effective, inheritable, ambient].map(|set| set & have))
    }
}

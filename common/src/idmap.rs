//! A tree with its owners shifted: the steps from a source to a detached tree,
//! for whoever attaches it where he likes.
//!
//! ```text
//!     map          inside   outside          files of SOURCE     seen in the tree
//!                     |        |
//!     b:0:100000:65536         |             0     on disk  -->  100000
//!                                            1000  on disk  -->  101000
//! ```

mod judge;

use std::os::fd::OwnedFd;
use std::rc::Rc;

pub use judge::{Sub, has_submounts, submounts, unbindable};

use crate::fail::Errno;
use crate::id::{Both, Kind as IdKind, Map};
use crate::ns::Kind;
use crate::path::Place;
use crate::plan::{Plan, clone, glance};
use crate::proc::Proc;
use crate::step::end;
use crate::step::map;
use crate::step::ns;
use crate::step::tree;
use crate::step::{Step, TREE};

/// Where the maps come from: the kernel takes them from a user namespace.
pub enum Maps {
    /// One that is made for them.
    New(Both<Map>),
    /// One that is there: its descriptor and name.
    Of(Rc<OwnedFd>, String),
}

/// What is asked for.
pub struct Idmap {
    /// What is attached once more.
    pub source: Place,
    /// With the mounts below it.
    pub recursive: bool,
    /// MOUNT_ATTR_* bits.
    pub attributes: u64,
    /// The maps; None: the owners stay as they are.
    pub maps: Option<Maps>,
    /// Whether the source's own map, if it has one, gives way to this.
    pub remap: bool,
}

impl Idmap {
    /// The steps that leave the tree in hand, under the name TREE.
    pub fn steps(self, proc: &Rc<Proc>, plan: &mut Plan) {
        let (source, recursive, attributes) = (self.source.clone(), self.recursive, self.attributes);
        let mapped = self.maps.is_some();
        let asked = Rc::new(self);
        if asked.remap {
            asked.user_namespace(plan);
            plan.push(asked.judged(tree::Effect::CopyMapped(source, recursive, attributes), proc));
            return;
        }
        let copy = Step::from(tree::Effect::Copy(source.clone(), recursive, TREE));
        // Each tree counts as a mount namespace.
        plan.push(copy.or_because(|errno, facts| {
            (errno == Errno::ENOSPC).then(|| ns::refused(&[Kind::Mnt], errno, facts)).flatten()
        }));
        asked.user_namespace(plan);
        if mapped || attributes != 0 {
            let set = tree::Effect::Set { of: TREE, attributes, mapped, recursive, from: Some(source) };
            plan.push(if mapped { asked.judged(set, proc) } else { set.into() });
        }
    }

    fn user_namespace(&self, plan: &mut Plan) {
        match &self.maps {
            Some(Maps::New(maps)) => user_namespace(maps, plan),
            Some(Maps::Of(fd, name)) => plan.push(ns::Effect::UseUser(fd.clone(), name.clone())),
            None => {}
        }
    }

    /// An effect that the kernel judges by the maps and each mount.
    fn judged(self: &Rc<Idmap>, effect: tree::Effect, proc: &Rc<Proc>) -> Step {
        let (asked, proc) = (self.clone(), proc.clone());
        Step::from(effect).or_because(move |errno, _| judge::refused(&asked, errno, &proc))
    }
}

/// The steps that make a user namespace which has these maps and nobody in it.
pub fn user_namespace(maps: &Both<Map>, plan: &mut Plan) {
    plan.push(ns::Effect::NewUser);
    for kind in IdKind::BOTH {
        plan.push(map::Effect::Write(map::Whose::Promised("CHILD"), kind, maps.of(kind).clone()));
    }
    plan.push(ns::Effect::TakeUser);
}

/// The maps of a user namespace, its outside ids as this process sees them. A
/// namespace file does not tell: a child goes in to be looked at.
///
/// None: it is not for us. An unwritten map is None in the pair.
pub fn maps_of(user: &Rc<OwnedFd>, name: &str, proc: &Rc<Proc>) -> Option<Both<Option<Map>>> {
    let mut inside = Plan::default();
    inside.push(ns::Effect::JoinFile(user.clone(), Kind::User, name.to_owned()));
    inside.push(end::waiting());
    let mut plan = Plan::default();
    plan.push(clone(Vec::new(), "", inside, proc));
    glance(&plan, proc, |who| {
        let map = |kind| proc.map(who, kind).map(|extents| Map::new(extents).ok());
        Some(Both { uid: map(IdKind::Uid)?, gid: map(IdKind::Gid)? })
    })
}

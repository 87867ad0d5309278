//! A tree of the mounts below a source that take the map, with the others as
//! they are: assembled before anybody sees it.

use std::rc::Rc;

use common::fail::Result;
use common::idmap::{Idmap, submounts};
use common::plan::Plan;
use common::proc::Proc;
use common::step::TREE;
use common::step::tree::{self, At};
use common::word::quote;

/// The name of the tree that is attached in the other next.
const PART: &str = "part";

/// The steps that bring what is below `asked`'s source into the tree, and what
/// is to be told of those that could not be mapped.
///
/// # Errors
/// Those of `submounts`.
pub(crate) fn steps(asked: &Idmap, proc: &Rc<Proc>) -> Result<(Plan, Vec<String>)> {
    let (subs, left) = submounts(asked, proc)?;
    let (mut plan, mut told) = (Plan::default(), Vec::new());
    for sub in subs {
        let from = Some(sub.place.clone());
        let (attributes, mapped) = (asked.attributes, sub.plain.is_none());
        plan.push(tree::Effect::Copy(sub.place.clone(), false, PART));
        if mapped || attributes != 0 {
            plan.push(tree::Effect::Set { of: PART, attributes, mapped, recursive: false, from });
        }
        plan.push(tree::Effect::Attach(PART, At::Below(TREE, sub.below.into_os_string())));
        told.extend(sub.plain.map(|why| format!("without the map: {why}")));
    }
    told.extend(left.iter().map(|(point, why)| format!("left out: {}, {why}", quote(point))));
    Ok((plan, told))
}

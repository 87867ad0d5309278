//! In place of newuidmap(1) or newgidmap(1), called by their names: their
//! arguments, their exit statuses, their one map each.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use common::fail::{Failure, Result};
use common::id::{Extent, Kind, number};
use common::plan::Plan;
use common::preset::lawful_one;
use common::proc::Proc;
use common::target::{Operand, Target};
use common::tool;
use common::word::quote;

use crate::privileged::{self, Caller, Standing};
use crate::steps;

/// The map that a program of this name is for.
pub(crate) fn named(name: &OsString) -> Option<Kind> {
    match name.as_bytes() {
        b"newuidmap" => Some(Kind::Uid),
        b"newgidmap" => Some(Kind::Gid),
        _ => None,
    }
}

/// The body of its main.
pub(crate) fn run(kind: Kind) -> ExitCode {
    let name = if kind == Kind::Uid { "newuidmap" } else { "newgidmap" };
    let standing = privileged::begin(true);
    tool::stand_in(name, move |words| match standing? {
        Standing::Elsewhere(why) => Err(privileged::become_system(name, words, &why)),
        Standing::Serving(caller) => act(kind, name, words, Some(caller)),
        Standing::Ordinary => act(kind, name, words, None),
    })
}

fn act(kind: Kind, name: &str, words: &[OsString], caller: Option<Caller>) -> Result<Plan> {
    let proc = Proc::open()?;
    let (target, numbers) = match words.split_first() {
        Some((target, numbers)) if !numbers.is_empty() => (target, numbers),
        _ => return Err(usage(name, "which process, and which map?")),
    };
    let map = lawful_one(kind, extents(name, numbers)?, &proc)?;
    let target = match Operand::parse(target)? {
        Operand::Process(address) => Target::open(&proc, address)?,
        Operand::Descriptor(n) => Target::from_descriptor(&proc, n)?,
        Operand::Stream | Operand::File(_) | Operand::Name(_) => {
            return Err(usage(name, &format!("{}: not a process", quote(target))));
        }
    };
    let mut plan = Plan::default();
    match caller {
        Some(caller) => privileged::write(caller, &target, &[(kind, map)], None)?,
        // What the kernel allows anybody: the own id, and no other.
        None => {
            let own = matches!(map.extents(), [e] if e.count == 1 && e.outside == proc.own().gid[1]);
            let deny = (kind == Kind::Gid && own).then_some(false);
            steps(&proc, Some(&target.into()), &[(kind, map)], &[], deny, &mut plan)?;
        }
    }
    Ok(plan)
}

fn extents(name: &str, numbers: &[OsString]) -> Result<Vec<Extent>> {
    let bad = |words: &[OsString], what: &str| {
        let words: Vec<String> = words.iter().map(quote).collect();
        usage(name, &format!("{}: {what}", words.join(" ")))
    };
    let extent = |words: &[OsString]| {
        let fields: Vec<Option<u64>> = words.iter().map(|w| number(w.as_bytes())).collect();
        match fields.as_slice() {
            [Some(inside), Some(outside), Some(count)] => Extent::new(*inside, *outside, *count)
                .ok_or_else(|| bad(words, "ids go from 0 to 4294967294, and COUNT is at least 1")),
            [_, _, _] => Err(bad(words, "these are not three decimal numbers")),
            _ => Err(bad(words, "a map is INSIDE OUTSIDE COUNT, and that again")),
        }
    };
    numbers.chunks(3).map(extent).collect()
}

fn usage(name: &str, what: &str) -> Failure {
    Failure::usage(format!("{what}\nusage: {name} PID|fd:N INSIDE OUTSIDE COUNT [INSIDE OUTSIDE COUNT]..."))
}

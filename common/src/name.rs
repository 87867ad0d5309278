//! Targets by name: holders that were started with `ns-new --name`.
//!
//! There is no registry. A holder is found where it is, among the processes:
//! by what it runs, by leading a session, by its door; its name is on its
//! command line.

use std::os::fd::AsFd;

use crate::fail::{Failure, Result};
use crate::holder::is_holder;
use crate::proc::Proc;
use crate::record::Address;
use crate::target::{Operand, Target};

/// A holder of the caller's, or of anybody's for root.
pub struct Holder {
    /// Where it is.
    pub address: Address,
    /// What it was called, if anything.
    pub name: Option<String>,
    /// Whose it is.
    pub uid: u32,
}

/// All holders that the caller could enter, by number.
pub fn holders(proc: &Proc) -> Vec<Holder> {
    proc.pids().into_iter().filter_map(|pid| holder(proc, pid)).collect()
}

fn holder(proc: &Proc, pid: i32) -> Option<Holder> {
    let who = pid.to_string();
    let status = proc.status(&who)?;
    if status.name != "ns-new" || proc.session(&who)? != pid {
        return None;
    }
    let target = Target::open(proc, Address { pid, inode: None }).ok()?;
    if !is_holder(target.fd.as_fd()) {
        return None;
    }
    let line = proc.read(&format!("{who}/cmdline")).ok()?;
    let words: Vec<String> = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let mut given = words.iter().enumerate().filter_map(|(at, word)| match word.strip_prefix("--name") {
        Some("") => words.get(at + 1).cloned(),
        Some(rest) => rest.strip_prefix('=').map(str::to_owned),
        None => None,
    });
    // It may have been made by another program than ours, which knows no rules.
    let is_name = |word: &String| matches!(Operand::parse(word.as_ref()), Ok(Operand::Name(_)));
    Some(Holder { address: target.address, name: given.next_back().filter(is_name), uid: status.uid[1] })
}

/// The caller's holder that is called `name`. Others' do not count, though root
/// could enter them: whoever took the name first would be who root enters.
///
/// # Errors
/// There is none; there are several.
pub fn find(proc: &Proc, name: &str) -> Result<Address> {
    let own = proc.own().uid[1];
    let mut found = holders(proc).into_iter().filter(|h| h.uid == own && h.name.as_deref() == Some(name));
    let first = found.next().ok_or_else(|| Failure::refused(format!("no holder is called {name}")))?;
    match found.next() {
        None => Ok(first.address),
        Some(second) => {
            let both = format!("{} and {}", first.address, second.address);
            Err(Failure::refused(format!("several holders are called {name}: {both}")))
        }
    }
}

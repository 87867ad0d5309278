//! Takes ranges away from an owner, who may be gone already.

use common::cli::Args;
use common::etc::{Edit, Etc};
use common::fail::{Failure, Result};
use common::id::{Kind, Range, without};
use common::plan::Plan;
use common::proc::Proc;
use common::step::file;
use common::subid;
use common::tool::Outcome;
use common::word::quote;

use crate::survey;
use crate::{CLI, etc, grant, guard_files, kinds, line, lock, user_named};

pub(crate) fn free(args: &Args) -> Result<Outcome> {
    let etc = etc(args)?;
    let word = args.operands.first().ok_or_else(|| CLI.usage("--free: whose?"))?.to_string_lossy().into_owned();
    let only = args.operands.get(1).map(|word| range(&word.to_string_lossy())).transpose()?;
    // Lines by name and by uid; not those of another name with that uid.
    let mut words = vec![word.clone()];
    if let Some(user) = user_named(args, &word, &etc)? {
        words.extend([user.name, user.uid.to_string()]);
    }
    guard_files(&etc, || format!("free ids of {}", quote(&word)))?;
    let proc = Proc::open()?;
    let locked = lock(args, &etc, &proc)?;
    let notes = locked.iter().flat_map(|locked| locked.cleared.clone()).collect();
    let change = file::Change::new(etc.clone(), locked);
    let (mut plan, mut names, mut said) = (Plan::default(), Vec::new(), String::new());
    for kind in kinds(args) {
        let mut gone = Vec::new();
        let draft = draft(&etc, kind, &words, only, &mut gone)?;
        gone.iter().for_each(|range| line(&mut said, kind, &word, *range));
        if !draft.edits.is_empty() {
            names.push(draft.name.clone());
            plan.push(file::Effect::Prepare(change.clone(), draft));
        }
    }
    if names.is_empty() {
        let what = only.map_or_else(String::new, |range| format!(" in {range}"));
        return Err(Failure::refused(format!("{} has no grant{what}", quote(&word))));
    }
    Ok(Outcome::Plan(grant::finish(plan, change, names, notes, said)))
}

/// `START:COUNT`, as a line of the files ends.
fn range(word: &str) -> Result<Range> {
    let number = |w: &str| common::id::number(w.as_bytes());
    let found = word.split_once(':').and_then(|(start, count)| Range::new(number(start)?, number(count)?));
    found.ok_or_else(|| CLI.usage(&format!("{}: START:COUNT", quote(word))))
}

/// The file without the lines whose owner is one of `words`, or without those
/// of their ids that `only` has; `gone` takes the ranges.
fn draft(etc: &Etc, kind: Kind, words: &[String], only: Option<Range>, gone: &mut Vec<Range>) -> Result<file::Draft> {
    let name = survey::name(kind);
    let mut draft = file::Draft { name: name.to_owned(), source: etc.file(name)?, edits: Vec::new() };
    let Some(source) = draft.source.clone() else { return Ok(draft) };
    let read = subid::pieces(&source.file, |piece, at| {
        let mut from = 0;
        for line in subid::lines(piece) {
            // With its newline, which the last may lack.
            let end = (from + line.len() + 1).min(piece.len());
            if let Some((new, freed)) = without_ids(line, words, only) {
                gone.extend(freed);
                draft.edits.push(Edit { at: at + from as u64, old: piece[from..end].to_vec(), new });
            }
            from = end;
        }
    });
    read.map_err(|e| Failure::os(format!("read {}", etc.path(name)), e))?;
    Ok(draft)
}

/// What is left of a line, and the ids that go; None: it stays as it is.
fn without_ids(line: &[u8], words: &[String], only: Option<Range>) -> Option<(Vec<u8>, Vec<Range>)> {
    let grant = subid::grant(line).filter(|grant| words.iter().any(|word| word.as_bytes() == grant.owner))?;
    let freed = only.map_or(Some(grant.range), |only| only.common(grant.range))?;
    let owner = String::from_utf8_lossy(grant.owner);
    let left = without(&[grant.range], &[freed]);
    let lines: String = left.iter().map(|r| format!("{owner}:{}:{}\n", r.first, r.count)).collect();
    Some((lines.into_bytes(), vec![freed]))
}

//! Which ids a root file system or a tar archive needs, and whether a map has
//! them: the answer to "there might not be enough IDs available".

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::cli::Args;
use common::fail::{Because, Errno, Failure, Result};
use common::id::{Both, Extent, Kind, Range, list, subject, without};
use common::path::Place;
use common::preset::{Me, Preset, granting, maps};
use common::survey::merged;
use common::target;
use common::tool::{Outcome, Progress};
use common::word::quote;

use crate::{again, etc, map, owner};

/// What was found.
#[derive(Default)]
struct Needs {
    ids: Both<BTreeSet<u32>>,
    /// How many files were looked at.
    files: u64,
    /// Directories that could not be read: the answer is only of the others.
    closed: u64,
}

impl Needs {
    fn add(&mut self, uid: u32, gid: u32, progress: &mut Progress) {
        self.ids.uid.insert(uid);
        self.ids.gid.insert(gid);
        self.files += 1;
        progress.show(|| format!("{} files", self.files));
    }

    fn ranges(&self, kind: Kind) -> Vec<Range> {
        merged(&self.ids.of(kind).iter().filter_map(|id| Range::new((*id).into(), 1)).collect::<Vec<_>>())
    }

    /// Those that `maps` do not have inside.
    fn beyond(&self, kind: Kind, maps: &Both<Vec<Extent>>) -> Vec<Range> {
        without(&self.ranges(kind), &maps.of(kind).iter().map(|extent| extent.inside()).collect::<Vec<_>>())
    }
}

pub(crate) fn fit(args: &Args) -> Result<Outcome> {
    let word = args.value("fit").unwrap_or_default();
    let preset = map::preset(args, Preset::Auto)?;
    let me = owner(args, &*etc(args)?)?.map_or_else(Me::now, Me::other);
    let needs = match word.as_bytes().strip_prefix(b"fd:") {
        Some(number) => in_archive(File::from(target::given::duplicate(OsStr::from_bytes(number))?), &word, None)?,
        None => in_path(Path::new(&word), &again(args, &["fit"]))?,
    };
    // Without any sub-ids the single map is all that there is.
    let maps = maps(preset, &me, &Kind::BOTH).or_else(|_| maps(Preset::Root, &me, &Kind::BOTH))?;
    let mut text = String::new();
    let mut lacks = Vec::new();
    for kind in Kind::BOTH {
        let missing = needs.beyond(kind, &maps);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {}", kind.word(), list(&needs.ranges(kind)));
        if !missing.is_empty() {
            lacks.push(format!("{} not inside", subject(kind.word(), &missing)));
        }
    }
    let name = args.value("map").map_or_else(|| "auto".to_owned(), |word| word.to_string_lossy().into_owned());
    let verdict = if lacks.is_empty() { "has them".to_owned() } else { lacks.join(", ") };
    let _ = writeln!(text, "the map {name} of {}: {verdict}", me.user);
    if !lacks.is_empty() {
        text.push_str(&remedy(&needs, preset, &me));
    }
    if needs.closed > 0 {
        let _ = writeln!(text, "{} directories may not be read by us, and were left out", needs.closed);
    }
    let status = if lacks.is_empty() && needs.closed == 0 { 0 } else { 3 };
    Ok(Outcome::Answer(text.into_bytes(), status))
}

/// What would make a map large enough: presets put the sub-ids inside from 0
/// or 1 on, as many as there are; or have none.
fn remedy(needs: &Needs, preset: Preset, me: &Me) -> String {
    const BLOCK: u64 = 65536;
    let highest = Kind::BOTH.into_iter().filter_map(|kind| needs.ids.of(kind).last()).max();
    let count = (u64::from(highest.copied().unwrap_or(0)) + 1).div_ceil(BLOCK) * BLOCK;
    if preset == Preset::All || preset.is_single() {
        return String::new();
    }
    let fits = |room: &_| {
        let maps = preset.maps(&me.own, room);
        Kind::BOTH.iter().all(|kind| needs.beyond(*kind, &maps).is_empty())
    };
    granting(me, Some(count), fits).map_or_else(String::new, |command| format!("  try: {command}\n"))
}

// ---- a tree ----

fn in_path(path: &Path, again: &str) -> Result<Needs> {
    if Place::at(path.as_os_str())?.is_directory {
        return in_tree(path);
    }
    let opened = File::open(path).map_err(|e| failure(&format!("read {}", quote(path)), &e))?;
    in_archive(opened, path.as_os_str(), Some(again))
}

/// Everything below `root` that is on its file system.
fn in_tree(root: &Path) -> Result<Needs> {
    let (mut needs, mut progress) = (Needs::default(), Progress::new());
    let said = |path: &Path, e: &std::io::Error| failure(&format!("read {}", quote(path)), e);
    let top = fs::metadata(root).map_err(|e| said(root, &e))?;
    needs.add(top.uid(), top.gid(), &mut progress);
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                needs.closed += 1;
                continue;
            }
            Err(e) => return Err(said(&dir, &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| said(&dir, &e))?;
            let stat = match entry.metadata() {
                Ok(stat) => stat,
                // Gone meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                // Names can be read, and what they stand for cannot.
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    needs.closed += 1;
                    break;
                }
                Err(e) => return Err(said(&entry.path(), &e)),
            };
            needs.add(stat.uid(), stat.gid(), &mut progress);
            if stat.is_dir() && stat.dev() == top.dev() {
                open.push(entry.path());
            }
        }
    }
    Ok(needs)
}

// ---- an archive ----

/// `again` is the command that reads another one: a descriptor is good for this process alone.
fn in_archive(mut file: File, name: &OsStr, again: Option<&str>) -> Result<Needs> {
    let act = format!("read {}", quote(name));
    let said = |e: &std::io::Error| failure(&act, e);
    let mut head = [0; 6];
    // Looked at only where it can be read again.
    if file.rewind().is_ok() && file.read(&mut head).is_ok() {
        file.rewind().map_err(|e| said(&e))?;
        if let Some(program) = compressor(&head) {
            let command = again.map(|again| format!("{program} -dc {} | {again} --fit fd:0", quote(name)));
            let because = Because::new("it is compressed").remedy_if(command);
            return Err(Failure::refused(format!("{act}: no tar archive")).because(Some(because)));
        }
    }
    let (mut needs, mut progress) = (Needs::default(), Progress::new());
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries().map_err(|e| said(&e))? {
        let entry = entry.map_err(|e| said(&e))?;
        let id = |value: std::io::Result<u64>| {
            let value = value.map_err(|e| said(&e))?;
            u32::try_from(value).map_err(|_| Failure::refused(format!("{act}: {value} is no id")))
        };
        needs.add(id(entry.header().uid())?, id(entry.header().gid())?, &mut progress);
    }
    if needs.files == 0 {
        return Err(Failure::refused(format!("{act}: there is no file in it")));
    }
    Ok(needs)
}

fn compressor(head: &[u8]) -> Option<&'static str> {
    let magic: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")];
    magic.into_iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, program)| program)
}

fn failure(act: &str, error: &std::io::Error) -> Failure {
    match error.raw_os_error() {
        Some(errno) => Failure::os(act, Errno::from_raw(errno)),
        // Its words would quote what stands in the archive.
        None => Failure::refused(format!("{act}: no tar archive, or a part of one")),
    }
}

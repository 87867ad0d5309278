//! Random maps, and what the kernel says of them.
//!
//! A round has three levels: this process, which is root in the initial user namespace; a namespace
//! with a random map; and another one in that. In the middle lives a helper that writes the inner
//! maps, and by which their second level is read.
//!
//! ```text
//!  level 0   run            writes the middle maps, reads the inner ones
//!  level 1     middle       writes the inner maps, reads them
//!  level 2       inner      becomes each id, gives files to each, sees the files of others
//! ```

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use common::fail::Errno;
use common::id::{Both, Extent, Kind, Map, Range};
use common::proc::extents;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fchown, fork, getpid, pipe};

use crate::Random;

/// What the kernel shows for an id that has no place in a namespace.
const NOBODY: u32 = 65534;
const ALL: Range = Range { first: 0, count: u32::MAX };

/// Everything about a round is decided before it begins.
struct Round {
    /// The middle maps.
    middle: Both<Map>,
    /// What is written first for the inner ones, in this order; it may be refused.
    wanted: Both<Vec<Extent>>,
    /// The ids that are tried inside, and those outside of all that files belong to.
    ids: Both<Vec<u32>>,
    owners: Vec<(u32, u32)>,
}

/// How many rounds differed.
pub(crate) fn run(rounds: u64, seed: u64) -> u64 {
    let (mut failed, mut seen) = (0, Seen::default());
    for number in seed..seed + rounds {
        let round = Round::new(&mut Random::new(number));
        for kind in Kind::BOTH {
            seen.count(round.middle.of(kind), round.wanted.of(kind));
        }
        if let Err(what) = one(&round) {
            failed += 1;
            println!("round {number} differs: {what}\n{}", round.text());
        }
    }
    println!("{rounds} rounds, {failed} differ");
    eprintln!(
        "{} maps compared, {} written as they were, {} split, {} refused for overlap or limits, {} for ids that are not there",
        2 * rounds,
        seen.fit,
        seen.split,
        seen.unlawful,
        seen.lacking
    );
    failed
}

/// What came of the inner maps.
#[derive(Default)]
struct Seen {
    fit: u64,
    split: u64,
    unlawful: u64,
    lacking: u64,
}

impl Seen {
    fn count(&mut self, middle: &Map, wanted: &[Extent]) {
        *match judge(middle, wanted) {
            Ok(()) => &mut self.fit,
            Err(Errno::EINVAL) => &mut self.unlawful,
            Err(_) if fitting(middle, wanted).0 => &mut self.split,
            Err(_) => &mut self.lacking,
        } += 1;
    }
}

// ---- what is tried ----

impl Round {
    fn new(random: &mut Random) -> Round {
        let mut middle = || loop {
            let bits = random.below(33);
            let from = random.below(1 << bits);
            // Somewhere, or everywhere.
            let within = Range::new(from, 1 << 20).unwrap_or(ALL);
            let parts = places(random, &[within], false);
            if let Ok(map) = Map::new(inside(random, parts)) {
                return map;
            }
        };
        let middle = Both { uid: middle(), gid: middle() };
        let mut wanted = |kind: Kind| {
            let there: Vec<Range> = middle.of(kind).extents().iter().map(|e| e.inside()).collect();
            let odd = random.one_in(4);
            let parts = places(random, &there, odd);
            let mut list = inside(random, parts);
            if random.one_in(12) {
                // Something twice, on one side or on both.
                let (a, b) = (random.pick(&list), random.pick(&list));
                list.extend(Extent::new(a.inside.into(), b.outside.into(), 1 + random.below(3)));
            }
            random.shuffle(&mut list);
            list
        };
        let wanted = Both { uid: wanted(Kind::Uid), gid: wanted(Kind::Gid) };
        let mut ids = |kind: Kind| edges(random, wanted.of(kind).iter().map(|e| e.inside()));
        let ids = Both { uid: ids(Kind::Uid), gid: ids(Kind::Gid) };
        let mut owner = |kind: Kind| {
            let whole = fitting(middle.of(kind), wanted.of(kind)).1.compose(middle.of(kind).extents()).unwrap();
            edges(random, whole.iter().map(|e| e.outside()))
        };
        let (uids, gids) = (owner(Kind::Uid), owner(Kind::Gid));
        Round { middle, wanted, ids, owners: uids.into_iter().zip(gids).take(6).collect() }
    }

    fn text(&self) -> String {
        let one = |kind: Kind| {
            let inner: String = self.wanted.of(kind).iter().map(|e| format!("    {e}\n")).collect();
            let middle = self.middle.of(kind).text().replace('\n', "\n    ");
            format!("  {} map in the middle:\n    {}\n  inner:\n{inner}", kind.word(), middle.trim_end())
        };
        Kind::BOTH.map(one).concat()
    }
}

/// Stretches of the ids in `within`, none of which has an id of another; `odd` ones may go on where
/// a range has ended.
fn places(random: &mut Random, within: &[Range], odd: bool) -> Vec<Range> {
    let most = if random.one_in(25) { 345 } else { 1 + random.below(12) };
    let (wide, gaps) = (random.below(if most > 12 { 2 } else { 20 }), random.one_in(2));
    let mut found = Vec::new();
    let mut from = 0;
    for range in within {
        from = u64::max(from, range.first.into());
        if range.count > 1000 && random.one_in(2) {
            from += random.below(u64::from(range.count) / 2);
        }
        while from < range.end() && (found.len() as u64) < most {
            from += if gaps && random.one_in(2) { random.below(1 << wide) + 1 } else { 0 };
            let mut count = 1 + random.below(1 << wide);
            if !odd || random.one_in(2) {
                count = count.min(range.end().saturating_sub(from));
            }
            found.extend(Range::new(from, count));
            from += count;
        }
    }
    random.shuffle(&mut found);
    if found.is_empty() { vec![Range { first: within[0].first, count: 1 }] } else { found }
}

/// An extent for each of these, one after the other inside.
fn inside(random: &mut Random, outside: Vec<Range>) -> Vec<Extent> {
    let mut from = random.pick(&[0, 0, 0, 1, 1000, 65530, 65536, 2_147_483_640, 4_294_000_000]);
    let mut list = Vec::new();
    for range in outside {
        let bits = random.below(12);
        from += if random.one_in(3) { random.below(1 << bits) } else { 0 };
        list.extend(Extent::new(from, range.first.into(), range.count.into()));
        from += u64::from(range.count);
    }
    if list.is_empty() { vec![Extent { inside: 0, outside: 0, count: 1 }] } else { list }
}

/// Ids at the ends of some ranges, beside them and anywhere.
fn edges(random: &mut Random, ranges: impl Iterator<Item = Range>) -> Vec<u32> {
    let mut ranges: Vec<Range> = ranges.collect();
    random.shuffle(&mut ranges);
    let mut ids = vec![0, u32::MAX - 1, u32::try_from(random.below(0xffff_ffff)).unwrap()];
    for range in ranges.into_iter().take(6) {
        let last = range.first + (range.count - 1);
        let within = u64::from(range.first) + random.below(range.count.into());
        ids.extend([range.first, range.first.saturating_sub(1), last, last.saturating_add(1)]);
        ids.push(u32::try_from(within).unwrap());
    }
    ids.retain(|id| *id != u32::MAX);
    random.shuffle(&mut ids);
    ids
}

// ---- what we say ----

/// What the kernel has to answer when these lines are written below this map.
fn judge(middle: &Map, lines: &[Extent]) -> Result<(), Errno> {
    if Map::new(lines.to_vec()).is_err() || lines.len() > 340 || text(lines).len() > 4095 {
        return Err(Errno::EINVAL);
    }
    let one_line = |e: &Extent| middle.extents().iter().any(|m| m.inside().common(e.outside()) == Some(e.outside()));
    if lines.iter().all(one_line) { Ok(()) } else { Err(Errno::EPERM) }
}

/// The map that is written where the first was refused: the same, split; or what is left of it. And
/// whether it is the same.
fn fitting(middle: &Map, lines: &[Extent]) -> (bool, Map) {
    let there: Vec<Range> = middle.extents().iter().map(|e| e.inside()).collect();
    let map = Map::new(lines.to_vec());
    if let Some(map) = map.ok().and_then(|map| Map::of_lines(map.split_at(&there).ok()?).ok()) {
        return (true, map);
    }
    let one = Extent::new(7, there[0].first.into(), there[0].count.min(100).into());
    (false, Map::new(one.into_iter().collect()).unwrap())
}

fn text(lines: &[Extent]) -> String {
    lines.iter().map(|e| format!("{e}\n")).collect()
}

// ---- what the kernel says ----

type Said = Result<(), String>;

fn same<T: PartialEq + std::fmt::Debug>(what: impl FnOnce() -> String, kernel: T, ours: T) -> Said {
    if kernel == ours { Ok(()) } else { Err(format!("{}: the kernel says {kernel:?}, we say {ours:?}", what())) }
}

fn told(act: &str) -> impl FnOnce(Errno) -> String + '_ {
    move |e| format!("{act}: {e}")
}

/// Waits for the other end, or tells it to go on.
struct Channel {
    here: File,
    there: File,
}

impl Channel {
    fn new() -> Channel {
        let (here, there) = pipe().unwrap();
        Channel { here: here.into(), there: there.into() }
    }

    fn wait(&mut self) -> Said {
        let mut byte = [0];
        self.here.read_exact(&mut byte).map_err(|_| "the other process has ended".to_owned())
    }

    fn go(&mut self) -> Said {
        self.there.write_all(b".").map_err(|e| e.to_string())
    }
}

/// A child that does this and says by its status whether all was well.
fn child(work: impl FnOnce() -> Said) -> nix::unistd::Pid {
    // SAFETY: there is one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Whoever waits for a process that failed waits for ever: both end with the first.
            // SAFETY: it changes an attribute of this process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let said = work();
            if let Err(what) = &said {
                println!("  {what}");
            }
            std::process::exit(i32::from(said.is_err()));
        }
    }
}

fn ended(pid: nix::unistd::Pid) -> Said {
    match waitpid(pid, None) {
        Ok(WaitStatus::Exited(_, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn one(round: &Round) -> Said {
    let files: Vec<OwnedFd> =
        (0..=round.owners.len()).map(|_| memfd_create(c"owned", MFdFlags::MFD_CLOEXEC).unwrap()).collect();
    let (mut made, mut mapped, mut nested, mut written, mut done) =
        (Channel::new(), Channel::new(), Channel::new(), Channel::new(), Channel::new());
    let mut looked = Channel::new();
    let inner = child(|| {
        inside_of_both(round, &files, [&mut made, &mut mapped, &mut nested, &mut written, &mut done, &mut looked])
    });
    // Both ends of a pipe are open here, so a process that ended early is seen by its status.
    let mut after = || -> Said {
        wait_or_end(&mut made, inner)?;
        for kind in Kind::BOTH {
            write_at(inner, kind, &round.middle.of(kind).text()).map_err(told("write the map in the middle"))?;
        }
        mapped.go()?;
        wait_or_end(&mut done, inner)?;
        for kind in Kind::BOTH {
            let whole = installed(round, kind).compose(round.middle.of(kind).extents()).unwrap();
            same(|| format!("{} seen from level 0", kind.map_file()), read_at(inner, kind), sorted(whole))?;
        }
        looked.go()
    };
    after().and_then(|()| ended(inner))
}

/// Waits; if the process ends instead, it has said why.
fn wait_or_end(channel: &mut Channel, pid: nix::unistd::Pid) -> Said {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let mut waited = 0u32;
    loop {
        let mut fds = [PollFd::new(channel.here.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(20u8)).map_err(|e| e.to_string())? > 0 {
            return channel.wait();
        }
        let state = waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        waited += 1;
        if state != Ok(WaitStatus::StillAlive) || waited > 3000 {
            return Err(format!("{state:?}"));
        }
    }
}

/// The inner map that is there in the end.
fn installed(round: &Round, kind: Kind) -> Map {
    let (middle, wanted) = (round.middle.of(kind), round.wanted.of(kind));
    match judge(middle, wanted) {
        Ok(()) => Map::of_lines(sorted(wanted.clone())).unwrap(),
        Err(_) => fitting(middle, wanted).1,
    }
}

/// What it has to do: as it was wanted, whatever lines that took.
fn meant(round: &Round, kind: Kind) -> Map {
    let (middle, wanted) = (round.middle.of(kind), round.wanted.of(kind));
    let whole = judge(middle, wanted).is_ok() || fitting(middle, wanted).0;
    Map::new(wanted.clone()).ok().filter(|_| whole).unwrap_or_else(|| installed(round, kind))
}

/// In the kernel's own order where it has one.
fn sorted(mut lines: Vec<Extent>) -> Vec<Extent> {
    lines.sort_by_key(|e| e.inside);
    lines
}

fn write_at(pid: nix::unistd::Pid, kind: Kind, text: &str) -> Result<(), Errno> {
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
    let file = File::options().write(true).open(format!("/proc/{pid}/{}", kind.map_file())).map_err(errno)?;
    nix::unistd::write(&file, text.as_bytes()).map(|_| ())
}

fn read_at(pid: nix::unistd::Pid, kind: Kind) -> Vec<Extent> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{}", kind.map_file())).unwrap_or_default();
    // What is not there for the reader is shown as 4294967295.
    sorted(extents(&text))
}

// ---- level 1 ----

fn middle(
    round: &Round,
    inner: nix::unistd::Pid,
    files: &[OwnedFd],
    nested: &mut Channel,
    written: &mut Channel,
) -> Said {
    nested.wait()?;
    for kind in Kind::BOTH {
        let (middle, wanted) = (round.middle.of(kind), round.wanted.of(kind));
        let judged = judge(middle, wanted);
        same(|| format!("write to the inner {}", kind.map_file()), write_at(inner, kind, &text(wanted)), judged)?;
        if judged.is_err() {
            let text = fitting(middle, wanted).1.text();
            write_at(inner, kind, &text).map_err(told("write what fits"))?;
        }
        let map = installed(round, kind);
        same(|| format!("{} seen from level 1", kind.map_file()), read_at(inner, kind), map.extents().to_vec())?;
    }
    // The kernel's way from outside to inside.
    for (file, (uid, gid)) in files.iter().zip(&round.owners) {
        let stat = nix::sys::stat::fstat(file).map_err(told("stat"))?;
        let seen = |kind: Kind, id: u32| round.middle.of(kind).inside(id).unwrap_or(NOBODY);
        same(
            || format!("{uid}:{gid} at level 1"),
            (stat.st_uid, stat.st_gid),
            (seen(Kind::Uid, *uid), seen(Kind::Gid, *gid)),
        )?;
    }
    written.go()
}

// ---- level 2 ----

fn inside_of_both(round: &Round, files: &[OwnedFd], channels: [&mut Channel; 6]) -> Said {
    let [made, mapped, nested, written, done, looked] = channels;
    let open = || File::open("/proc/self/status").map_err(|e| e.to_string());
    // Each of these shows ids as whoever opened it sees them.
    let from_0 = open()?;
    let (own, owned) = files.split_last().unwrap();
    for (file, (uid, gid)) in owned.iter().zip(&round.owners) {
        fchown(file, Some((*uid).into()), Some((*gid).into())).map_err(told("chown at level 0"))?;
    }
    let first = |kind: Kind| installed(round, kind).extents()[0];
    let outside =
        |kind: Kind, id: u32| installed(round, kind).outside(id).and_then(|id| round.middle.of(kind).outside(id));
    let mine = Kind::BOTH.map(|kind| outside(kind, first(kind).inside).unwrap());
    fchown(own, Some(mine[0].into()), Some(mine[1].into())).map_err(told("chown at level 0"))?;

    unshare(CloneFlags::CLONE_NEWUSER).map_err(told("unshare"))?;
    made.go()?;
    mapped.wait()?;
    let from_1 = open()?;
    let me = getpid();
    let helper = child(|| middle(round, me, owned, nested, written));
    // To make a namespace one has to have ids.
    keep_capabilities()?;
    let somebody = |kind: Kind| round.middle.of(kind).extents()[0].inside;
    let (uid, gid) = (somebody(Kind::Uid), somebody(Kind::Gid));
    nix::unistd::setresgid(gid.into(), gid.into(), gid.into()).map_err(told("setresgid at level 1"))?;
    nix::unistd::setresuid(uid.into(), uid.into(), uid.into()).map_err(told("setresuid at level 1"))?;
    // SAFETY: it changes an attribute of this process: the files in /proc are its own again.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(told("unshare in it"))?;
    nested.go()?;
    wait_or_end(written, helper)?;
    ended(helper)?;
    let from_2 = open()?;
    for kind in Kind::BOTH {
        same(
            || format!("{} seen from level 2", kind.map_file()),
            read_at(me, kind),
            installed(round, kind).extents().to_vec(),
        )?;
    }
    keep_capabilities()?;
    for kind in Kind::BOTH {
        let (inner, middle) = (meant(round, kind), round.middle.of(kind));
        for id in round.ids.of(kind) {
            let at_1 = inner.outside(*id);
            let expected = at_1.map(|at_1| [Some(*id), Some(at_1), middle.outside(at_1)].map(Option::unwrap));
            let what = || format!("{} {id}", kind.word());
            let became =
                become_real(kind, *id).is_ok().then(|| [&from_2, &from_1, &from_0].map(|file| real(file, kind)));
            same(|| what() + " of the process at levels 2, 1, 0", became, expected)?;
            let gave = give(own, kind, *id).map(|()| nix::sys::stat::fstat(own).unwrap());
            let gave = gave.map(|stat| if kind == Kind::Uid { stat.st_uid } else { stat.st_gid });
            same(|| what() + " of a file", gave, at_1.map(|_| *id).ok_or(Errno::EINVAL))?;
        }
    }
    for (file, (uid, gid)) in owned.iter().zip(&round.owners) {
        let meta = File::from(file.try_clone().map_err(|e| e.to_string())?).metadata().map_err(|e| e.to_string())?;
        let seen = |kind: Kind, id: u32| {
            let at_1 = round.middle.of(kind).inside(id);
            at_1.and_then(|id| meant(round, kind).inside(id)).unwrap_or(NOBODY)
        };
        same(
            || format!("{uid}:{gid} at level 2"),
            (meta.uid(), meta.gid()),
            (seen(Kind::Uid, *uid), seen(Kind::Gid, *gid)),
        )?;
    }
    done.go()?;
    looked.wait()
}

/// Another uid takes none away: SECBIT_NO_SETUID_FIXUP.
fn keep_capabilities() -> Said {
    // SAFETY: it changes an attribute of this process.
    let done = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 1 << 2) };
    Errno::result(done).map(|_| ()).map_err(told("prctl"))
}

/// Makes an id the real one, and leaves the others.
fn become_real(kind: Kind, id: u32) -> Result<(), Errno> {
    let done = match kind {
        // SAFETY: they change an id of this process, which has one thread.
        Kind::Uid => unsafe { libc::setresuid(id, u32::MAX, u32::MAX) },
        // SAFETY: as above.
        Kind::Gid => unsafe { libc::setresgid(id, u32::MAX, u32::MAX) },
    };
    Errno::result(done).map(|_| ())
}

fn give(file: &OwnedFd, kind: Kind, id: u32) -> Result<(), Errno> {
    match kind {
        Kind::Uid => fchown(file, Some(id.into()), None),
        Kind::Gid => fchown(file, None, Some(id.into())),
    }
}

/// The real id in a status.
fn real(status: &File, kind: Kind) -> u32 {
    let mut text = vec![0; 4096];
    let n = status.read_at(&mut text, 0).unwrap();
    let text = String::from_utf8_lossy(&text[..n]).into_owned();
    let key = if kind == Kind::Uid { "Uid:" } else { "Gid:" };
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

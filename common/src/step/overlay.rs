//! Overlays: what is seen of directories one over the other, of which only the
//! uppermost is written. Documentation/filesystems/overlayfs.rst.
//!
//! Which layer it does not take the kernel says only to its log (EINVAL), so
//! the layers are looked at here once it has refused.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat};

use super::fs::new_mount;
use super::mount::{ROOT, forbidden, removed};
use super::tree::{self, why};
use super::{Refusal, Step};
use crate::fail::{Because, Errno, Failure};
use crate::path::{self, Place};
use crate::proc::Proc;
use crate::sys;
use crate::word::quote;

/// What an overlay is made of.
pub struct Layers {
    /// Directories that are only read, the uppermost first; the last is where
    /// the overlay is attached, in this mount namespace alone.
    pub lower: Vec<Place>,
    /// Where changes go, and a directory for the kernel beside it; else a
    /// tmpfs that is gone with the mount namespace.
    pub upper: Option<(Place, Place)>,
    /// Whether it writes user.overlay attributes: in a user namespace it may
    /// not write those of trusted.overlay, and without them a directory cannot
    /// be removed and made again.
    pub userxattr: bool,
}

impl From<Layers> for Step {
    fn from(layers: Layers) -> Step {
        let why = "the directories below are only read; userxattr, since a user namespace may not write the attributes of trusted.overlay";
        let layers = Rc::new(layers);
        let (naming, saying, making) = (layers.clone(), layers.clone(), layers.clone());
        let step = Step::new(
            move || format!("mount overlay on {}", naming.root()),
            why,
            move |hands| {
                hands.put(ROOT, making.make()?);
                Ok(())
            },
        );
        let step = step.detail(move || saying.said());
        step.because(move |errno, facts| {
            if errno == Errno::EPERM {
                return facts.may_not_mount().or_else(|| forbidden(facts));
            }
            layers.places().find_map(removed).filter(|_| errno == Errno::ENOENT)
        })
    }
}

impl Layers {
    pub(super) fn root(&self) -> String {
        self.lower.last().map(Place::name).unwrap_or_default()
    }

    /// All of them.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        let upper = self.upper.iter().flat_map(|(upper, work)| [upper, work]);
        self.lower.iter().chain(upper)
    }

    pub(super) fn said(&self) -> String {
        let lower: Vec<String> = self.lower.iter().map(Place::name).collect();
        let upper = self.upper.as_ref().map_or_else(
            || "upper and work on a tmpfs".to_owned(),
            |(upper, work)| format!("upper {} work {}", upper.name(), work.name()),
        );
        let attributes = if self.userxattr { " userxattr" } else { "" };
        format!("lower {} {upper}{attributes}", lower.join(" "))
    }

    /// Makes it and attaches it where its last lower directory is. Layers are
    /// named by descriptors of ours: a path may have any byte in it, and the
    /// options of overlay cannot.
    pub(super) fn make(&self) -> std::result::Result<OwnedFd, Refusal> {
        let lower = self.lower.iter().map(Place::again).collect::<std::result::Result<Vec<_>, _>>()?;
        let at = lower.last().ok_or(Errno::ENOENT)?;
        let upper = self.upper.as_ref().map(|(upper, work)| Ok((upper.again()?, work.again()?)));
        let upper: Option<(Place, Place)> = upper.transpose().map_err(|e: Failure| e)?;
        let tmpfs = if upper.is_none() { Some(throw_away(&lower)?) } else { None };
        let (above, work) = match (&upper, &tmpfs) {
            (Some((upper, work)), _) => (named(upper.fd()), named(work.fd())),
            (None, Some(tmpfs)) => (named(tmpfs.as_fd()) + "/upper", named(tmpfs.as_fd()) + "/work"),
            (None, None) => return Err(Errno::ENOENT.into()),
        };
        let lowers: Vec<String> = lower.iter().map(|place| named(place.fd())).collect();
        let mut options = vec![("upperdir", above), ("workdir", work)];
        if fits(&lower) {
            options.push(("lowerdir", lowers.join(":")));
        } else {
            options.extend(lowers.into_iter().map(|layer| ("lowerdir+", layer)));
        }
        if self.userxattr {
            options.push(("userxattr", String::new()));
        }
        let options: Vec<(String, String)> = options.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let tree = new_mount(c"overlay", &options, 0).map_err(|refusal| {
            let Refusal::Os(errno, text) = refusal else { return refusal };
            let pair = upper.as_ref().map(|(upper, work)| (upper, work));
            match refused(&lower, pair, errno).or_else(|| too_old(&lower, errno)) {
                None => {
                    Refusal::Os(errno, renamed(text, lower.iter().chain(pair.into_iter().flat_map(|(u, w)| [u, w]))))
                }
                because => Failure::os(format!("mount overlay on {}", self.root()), errno).because(because).into(),
            }
        })?;
        sys::move_mount(tree.as_fd(), tmpfs.as_ref().map_or(at.fd(), AsFd::as_fd), false)?;
        Ok(tree)
    }
}

/// Whether layers can be named in one option: fsconfig(2) copies up to 256 bytes with the NUL. One
/// by one is Linux 6.8.
fn fits(lower: &[Place]) -> bool {
    lower.iter().map(|place| named(place.fd()).len() + 1).sum::<usize>() <= 256
}

fn named(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The kernel's words, with the paths of layers in place of our descriptors.
fn renamed<'a>(mut text: String, places: impl Iterator<Item = &'a Place>) -> String {
    let mut left: Vec<&Place> = places.collect();
    // The highest number first: /proc/self/fd/12 begins with /proc/self/fd/1.
    while let Some(at) = (0..left.len()).max_by_key(|at| left[*at].fd().as_raw_fd()) {
        let place = left.swap_remove(at);
        text = text.replace(&named(place.fd()), &place.name());
    }
    text
}

/// A tmpfs with directories `upper` and `work`, over the last of `lower`.
fn throw_away(lower: &[Place]) -> std::result::Result<OwnedFd, Refusal> {
    let (Some(first), Some(at)) = (lower.first(), lower.last()) else { return Err(Errno::ENOENT.into()) };
    let tmpfs = new_mount(c"tmpfs", &[("mode".into(), "700".into())], sys::MOUNT_ATTR_NODEV)?;
    // Attached, since a layer has to be on a mount of this namespace; here,
    // since everything at this place is ours alone to see.
    sys::move_mount(tmpfs.as_fd(), at.fd(), false)?;
    // The root directory that will be seen is the upper one.
    let mode = Mode::from_bits_truncate(fstat(first.fd())?.st_mode & 0o7777);
    for name in ["upper", "work"] {
        mkdirat(&tmpfs, name, Mode::from_bits_truncate(0o755))?;
        fchmodat(&tmpfs, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    Ok(tmpfs)
}

// ---- why not ----

/// The most lower directories that there may be (OVL_MAX_STACK).
const MOST: usize = 500;

/// Which layers are not taken: ovl_fill_super(), ovl_parse_param() and
/// ovl_check_overlapping_layers().
fn refused(lower: &[Place], upper: Option<(&Place, &Place)>, errno: Errno) -> Option<Because> {
    let text = if errno == Errno::ELOOP {
        let all: Vec<&Place> = upper.into_iter().flat_map(|(u, w)| [u, w]).chain(lower).collect();
        twice(&all).or_else(|| lower.iter().find_map(|place| nested(place, &all)))
    } else if errno != Errno::EINVAL {
        None
    } else if lower.len() > MOST {
        Some(format!("{} lower directories are more than {MOST}", lower.len()))
    } else {
        upper.and_then(|(upper, work)| not_beside(upper, work)).or_else(|| lower.iter().find_map(no_layer))
    };
    text.map(Because::new)
}

/// Whether layers that do not fit in one option are not taken one by one.
fn too_old(lower: &[Place], errno: Errno) -> Option<Because> {
    let (major, minor) = Proc::open().ok()?.release()?;
    let old = errno == Errno::EINVAL && !fits(lower) && (major, minor) < (6, 8);
    let text =
        format!("lower directories in more than 255 bytes are taken since Linux 6.8, and this is {major}.{minor}");
    old.then(|| Because::new(text))
}

fn twice(all: &[&Place]) -> Option<String> {
    let twice = all.iter().enumerate().find(|(n, place)| all[..*n].iter().any(|other| other.is_same(place)));
    twice.map(|(_, place)| format!("{} is two of the directories at once", place.name()))
}

/// Whether a lower directory is inside of another one. Only on the same mount
/// is what a path says what the kernel compares; by now a tmpfs can be over it.
fn nested(place: &Place, all: &[&Place]) -> Option<String> {
    let at = |place: &Place| Some((sys::mount_id(place.fd()).ok()?, fs::read_link(named(place.fd())).ok()?));
    let (mount, path) = at(place)?;
    let around = |other: &Place| at(other).is_some_and(|(id, around)| id == mount && path.starts_with(around));
    let other = all.iter().find(|other| !other.is_same(place) && around(other))?;
    Some(format!("{} is inside of {}", place.name(), other.name()))
}

fn not_beside(upper: &Place, work: &Place) -> Option<String> {
    let pair = format!("{} and {}", upper.name(), work.name());
    if sys::mount_id(upper.fd()).ok()? != sys::mount_id(work.fd()).ok()? {
        return Some(format!("{pair} are on different mounts"));
    }
    let inside = work.real().starts_with(upper.real()) || upper.real().starts_with(work.real());
    inside.then(|| format!("{pair} are not beside each other"))
}

/// What is wrong with a lower directory by itself.
fn no_layer(place: &Place) -> Option<String> {
    let name = place.name();
    if why::is_locked(place.fd()) {
        return Some(format!("mounts below {name} are locked to it, and a layer is taken without them"));
    }
    // A directory twice is ELOOP, once each of the two has been found good.
    let twice = |path: &str| {
        let options = [("lowerdir".to_owned(), format!("{path}:{path}")), ("userxattr".to_owned(), String::new())];
        new_mount(c"overlay", &options, 0).err()
    };
    let is = |refusal: Option<Refusal>, errno| matches!(refusal, Some(Refusal::Os(e, _)) if e == errno);
    let bad = is(twice(&named(place.fd())), Errno::EINVAL) && is(twice("/no/such/directory"), Errno::ENOENT);
    let proc = Proc::open().ok()?;
    let mount = tree::mount_of(place, &proc).ok()?.filter(|_| bad)?;
    Some(format!("{name} is on a {} file system, which cannot be a layer", mount.fstype))
}

/// Why an overlay was refused that is asked for by options of mount(8).
pub(super) fn options_refused(options: &[(String, String)], errno: Errno, proc: &Proc) -> Option<Because> {
    let get = |key: &str| options.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    let lower = get("lowerdir").unwrap_or_default();
    let mut lower: Vec<String> = separated(lower).into_iter().filter(|path| !path.is_empty()).collect();
    // One a time, and nothing means anything in them.
    lower.extend(options.iter().filter(|(k, _)| k == "lowerdir+").map(|(_, path)| path.clone()));
    let fit = |(k, _): &(String, String)| ["source", "upperdir", "workdir", "userxattr"].contains(&k.as_str());
    if errno == Errno::EINVAL && options.iter().all(fit) {
        return Some(Because::new("lowerdir= is missing"));
    }
    let upper = get("upperdir").zip(get("workdir"));
    let words = lower.iter().map(String::as_str).chain(upper.into_iter().flat_map(|(u, w)| [u, w]));
    // A file is EINVAL as well.
    let wrong = if errno == Errno::EINVAL { Errno::ENOTDIR } else { errno };
    if let Some(because) = words.into_iter().find_map(|word| path::reason(word.as_ref(), wrong, proc)) {
        return Some(because);
    }
    let place = |path: &str| Place::at(path.as_ref()).ok();
    let lower: Option<Vec<Place>> = lower.iter().map(|path| place(path)).collect();
    let (lower, pair) = (lower?, upper.and_then(|(upper, work)| place(upper).zip(place(work))));
    if errno == Errno::EINVAL {
        if let Some(option) =
            options.iter().find(|(k, v)| matches!(k.as_str(), "metacopy" | "redirect_dir") && v == "on")
        {
            return Some(Because::new(format!("{}=on does not go with userxattr", option.0)))
                .filter(|_| get("userxattr").is_some());
        }
        if get("upperdir").is_some() && get("workdir").is_none() {
            return Some(Because::new("upperdir= goes with workdir="));
        }
        if pair.is_none() && lower.len() == 1 {
            return Some(Because::new(format!(
                "{} alone is no overlay: two lower directories, or an upper one",
                quote(&lower[0].path)
            )));
        }
    }
    refused(&lower, pair.as_ref().map(|(upper, work)| (upper, work)), errno)
}

/// The paths of lowerdir=, between colons that have no backslash before them.
fn separated(value: &str) -> Vec<String> {
    let mut paths = vec![String::new()];
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match (letter, paths.last_mut()) {
            (':', _) => paths.push(String::new()),
            ('\\', Some(path)) => path.extend(letters.next()),
            (_, Some(path)) => path.push(letter),
            (_, None) => {}
        }
    }
    paths
}

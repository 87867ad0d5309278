//! The privileged room: what uidmap-set does with CAP_SETUID and CAP_SETGID of
//! its own file, for a caller who has neither. To be read in one sitting.
//!
//! 1. `lower`: from the first instruction on the capabilities are without
//!    effect, so that the command line is read as the caller.
//! 2. `authorise`: what newuidmap(1) and newgidmap(1) check, from files that
//!    root alone can write. No other program is asked.
//! 3. `write`: with the capabilities in effect, three files are opened through
//!    the target's own directory and written.
//! 4. Then every capability is dropped for good; only after that is a refusal
//!    explained.
//!
//! The binary is never setuid, and whoever runs it stays who he is: the owner
//! of the target's user namespace.

use std::os::unix::fs::MetadataExt;

use common::fail::{Because, Failure, Result};
use common::id::{Both, Kind, Map, Range, without};
use common::proc::Proc;
use common::step::map::{By, not_granted, not_opened, setgroups_refused, write_reason};
use common::subid::{Table, provider};
use common::sys::{self, Errno};
use common::target::{Target, untouchable};
use common::user::in_passwd;

/// Takes away the effect of capabilities that this file gave us, and answers
/// whether there are any.
pub(crate) fn lower() -> bool {
    let gained = sys::is_secure() && sys::may_setid();
    if gained && sys::set_effective_setid(false).is_err() {
        // Never in practice; then nothing may follow with them in effect.
        sys::exit_now(1);
    }
    gained
}

/// Authorises and writes both maps. The capabilities are gone afterwards.
pub(crate) fn write(target: &Target, maps: &Both<Map>, setgroups: Option<bool>) -> Result<()> {
    let written = authorise(target, maps, setgroups).and_then(|groups| {
        sys::set_effective_setid(true).map_err(|e| Failure::os("raise CAP_SETUID and CAP_SETGID", e))?;
        write_all(target, maps, groups)
    });
    sys::drop_capabilities().map_err(|e| Failure::os("drop capabilities", e))?;
    written.map_err(|refused| refused.explain(target, maps))
}

/// A refusal that is explained only without capabilities.
enum Refused {
    Failure(Failure),
    NotGranted(Kind),
    NotOwner,
    Open(&'static str, Errno),
    Write(Kind, Errno),
    Setgroups(bool, Errno),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused::Failure(failure)
    }
}

impl Refused {
    fn explain(self, target: &Target, maps: &Both<Map>) -> Failure {
        let proc = match Proc::open() {
            Ok(proc) => proc,
            Err(failure) => return failure,
        };
        let (pid, who) = (target.pid, target.who());
        match self {
            Refused::Failure(failure) => failure,
            Refused::NotGranted(kind) => {
                let what = format!("write /proc/{pid}/{}: not allowed", kind.map_file());
                Failure::refused(what).because(not_granted(kind, maps.of(kind)))
            }
            Refused::NotOwner => {
                let group = || Because::new("our gid is not the primary group that /etc/passwd gives us");
                let because = untouchable(&proc, &who).unwrap_or_else(group);
                Failure::refused(format!("write /proc/{pid}/uid_map: not allowed")).because(Some(because))
            }
            Refused::Open(file, errno) => {
                let because = if errno == Errno::EACCES { not_opened(&proc, &who) } else { None };
                Failure::os(format!("open /proc/{pid}/{file}"), errno).because(because)
            }
            Refused::Write(kind, errno) => {
                let because = write_reason(&proc, &who, By::Privileged, kind, maps.of(kind), errno);
                Failure::os(format!("write /proc/{pid}/{}", kind.map_file()), errno).because(because)
            }
            Refused::Setgroups(allow, errno) => {
                let because = if errno == Errno::EPERM { setgroups_refused(&proc, &who, allow) } else { None };
                Failure::os(format!("write /proc/{pid}/setgroups"), errno).because(because)
            }
        }
    }
}

// ---- what newuidmap and newgidmap check ----

/// Whether the caller may have these maps; answers what has to be written to
/// setgroups, if anything.
fn authorise(target: &Target, maps: &Both<Map>, setgroups: Option<bool>) -> std::result::Result<Option<bool>, Refused> {
    let (uid, gid) = sys::real_ids();
    let has_nsswitch = std::fs::symlink_metadata("/etc/nsswitch.conf").is_ok();
    let nsswitch = if has_nsswitch { trusted("/etc/nsswitch.conf")? } else { Vec::new() };
    if let Some(name) = provider(&String::from_utf8_lossy(&nsswitch)) {
        let because = Because::new(format!(
            "/etc/nsswitch.conf takes subordinate ids from {name}, and a privileged program asks nobody"
        ));
        return Err(Failure::refused("authorise the map")
            .because(Some(because.remedy("sudo setcap -r \"$(command -v uidmap-set)\"")))
            .into());
    }
    let passwd = trusted("/etc/passwd")?;
    let user = in_passwd(&passwd, |user| user.uid == uid);
    let user = user.ok_or_else(|| Failure::refused(format!("uid {uid} has no line in /etc/passwd")))?;
    let owner = sys::owner_of(&target.dir).map_err(|e| Failure::os(format!("look at /proc/{}", target.pid), e))?;
    if owner != (uid, gid) || user.gid != gid {
        return Err(Refused::NotOwner);
    }
    let granted = |kind: Kind| -> std::result::Result<Vec<Range>, Refused> {
        Ok(Table::parse(trusted(kind.grant_file())?).of(&user))
    };
    let grants = Both { uid: granted(Kind::Uid)?, gid: granted(Kind::Gid)? };
    for (kind, own) in [(Kind::Uid, uid), (Kind::Gid, gid)] {
        let of_own = |e: &common::id::Extent| e.count == 1 && e.outside == own;
        let wanted: Vec<Range> = maps.of(kind).extents().iter().filter(|e| !of_own(e)).map(|e| e.outside()).collect();
        if !without(&wanted, grants.of(kind)).is_empty() {
            return Err(Refused::NotGranted(kind));
        }
    }
    // Only an administrator's grant of groups is leave to drop groups.
    let any_granted = maps.gid.extents().iter().any(|e| without(&[e.outside()], &grants.gid).is_empty());
    if setgroups == Some(true) && !any_granted {
        return Err(Failure::refused("setgroups may be allowed only where a gid range of /etc/subgid is mapped").into());
    }
    Ok(setgroups.or((!any_granted).then_some(false)))
}

/// The text of a file that nobody but root can have written.
fn trusted(path: &str) -> Result<Vec<u8>> {
    let said = |e: std::io::Error| Failure::os(format!("read {path}"), Errno::from_raw(e.raw_os_error().unwrap_or(0)));
    let mut file = std::fs::File::open(path).map_err(said)?;
    let stat = file.metadata().map_err(said)?;
    if !stat.is_file() || stat.uid() != 0 || stat.mode() & 0o022 != 0 {
        return Err(Failure::refused(format!("{path} is not a file that root alone can write")));
    }
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut text).map_err(said)?;
    Ok(text)
}

// ---- the act ----

fn write_all(target: &Target, maps: &Both<Map>, setgroups: Option<bool>) -> std::result::Result<(), Refused> {
    let open = |file: &'static str| sys::open_for_writing(&target.dir, file).map_err(|e| Refused::Open(file, e));
    // Both maps are open before anything is written.
    let uids = open("uid_map")?;
    let gids = open("gid_map")?;
    if let Some(allow) = setgroups {
        let text = if allow { "allow" } else { "deny" };
        let groups = open("setgroups")?;
        sys::write_whole(&groups, text.as_bytes()).map_err(|e| Refused::Setgroups(allow, e))?;
    }
    sys::write_whole(&uids, maps.uid.text().as_bytes()).map_err(|e| Refused::Write(Kind::Uid, e))?;
    sys::write_whole(&gids, maps.gid.text().as_bytes()).map_err(|e| Refused::Write(Kind::Gid, e))
}

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

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use common::fail::{Because, Failure, Result};
use common::id::{Both, Kind, Map, Range, without};
use common::proc::Proc;
use common::step::map::{not_granted, write_reason};
use common::subid::{Table, provider};
use common::sys::{self, Errno};
use common::target::Target;
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
    let written = authorise(target, maps, setgroups).and_then(|deny| {
        sys::set_effective_setid(true).map_err(|e| Failure::os("raise CAP_SETUID and CAP_SETGID", e))?;
        write_all(target, maps, deny)
    });
    sys::drop_capabilities().map_err(|e| Failure::os("drop capabilities", e))?;
    written.map_err(|refused| refused.explain(target, maps))
}

/// A refusal that is explained only without capabilities.
enum Refused {
    Failure(Failure),
    NotGranted(Kind),
    Call(&'static str, Option<Kind>, Errno),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Refused {
        Refused::Failure(failure)
    }
}

impl Refused {
    fn explain(self, target: &Target, maps: &Both<Map>) -> Failure {
        match self {
            Refused::Failure(failure) => failure,
            Refused::NotGranted(kind) => {
                let what = format!("write /proc/{}/{}: not allowed", target.pid, kind.map_file());
                Failure::refused(what).because(not_granted(kind, maps.of(kind)))
            }
            Refused::Call(file, kind, errno) => {
                let reason = |kind: Kind| {
                    let proc = Proc::open().ok()?;
                    write_reason(&proc, &target.who(), false, kind, maps.of(kind), errno)
                };
                Failure::os(format!("write /proc/{}/{file}", target.pid), errno).because(kind.and_then(reason))
            }
        }
    }
}

// ---- what newuidmap and newgidmap check ----

/// Whether the caller may have these maps; answers whether setgroups has to be
/// denied.
fn authorise(target: &Target, maps: &Both<Map>, setgroups: Option<bool>) -> std::result::Result<bool, Refused> {
    let (uid, gid) = sys::real_ids();
    let nsswitch = trusted("/etc/nsswitch.conf").unwrap_or_default();
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
        let (of, and) = owner;
        return Err(Failure::refused(format!(
            "process {} belongs to uid {of} gid {and}; {user} with gid {} is uid {uid} gid {gid} here",
            target.pid, user.gid
        ))
        .into());
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
    Ok(setgroups.map_or(!any_granted, |allow| !allow))
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

fn write_all(target: &Target, maps: &Both<Map>, deny: bool) -> std::result::Result<(), Refused> {
    let open =
        |file: &'static str, kind| sys::open_for_writing(&target.dir, file).map_err(|e| Refused::Call(file, kind, e));
    let put = |fd: &OwnedFd, text: &str, file, kind| {
        sys::write_whole(fd, text.as_bytes()).map_err(|e| Refused::Call(file, kind, e))
    };
    let groups = if deny { Some(open("setgroups", None)?) } else { None };
    let uids = open("uid_map", Some(Kind::Uid))?;
    let gids = open("gid_map", Some(Kind::Gid))?;
    if let Some(groups) = groups {
        put(&groups, "deny", "setgroups", None)?;
    }
    put(&uids, &maps.uid.text(), "uid_map", Some(Kind::Uid))?;
    put(&gids, &maps.gid.text(), "gid_map", Some(Kind::Gid))
}

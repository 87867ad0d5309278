//! Capabilities, through capctl: a bit for each, as in capabilities(7).

use super::{Errno, Result, answer};

fn caps<T>(result: capctl::Result<T>) -> Result<T> {
    result.map_err(|e| Errno::from_raw(e.code()))
}

/// Makes all permitted capabilities inheritable and ambient (capabilities(7),
/// Linux 4.3): a following exec keeps them whatever the uid.
///
/// # Errors
/// EPERM: the securebits forbid it.
pub fn raise_ambient() -> Result<()> {
    let mut state = caps(capctl::CapState::get_current())?;
    state.inheritable = state.permitted;
    caps(state.set_current())?;
    state.permitted.iter().try_for_each(|cap| caps(capctl::ambient::raise(cap)))
}

/// Takes all capabilities out of the inheritable and the ambient set.
///
/// # Errors
/// None in practice.
pub fn clear_ambient() -> Result<()> {
    let mut state = caps(capctl::CapState::get_current())?;
    state.inheritable.clear();
    caps(state.set_current())
}

/// The capabilities in `caps`, a bit for each, by their names without `cap_`.
pub fn capability_names(caps: u64) -> String {
    let set = capctl::CapSet::from_bitmask_truncate(caps);
    let names: Vec<String> = set.iter().map(|cap| cap.to_string().to_ascii_lowercase()).collect();
    let names: Vec<&str> = names.iter().map(|name| name.strip_prefix("cap_").unwrap_or(name)).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

/// The bit of the capability that `name` means, with or without `cap_`.
pub fn capability(name: &str) -> Option<u64> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    let cap: capctl::Cap = format!("CAP_{name}").parse().ok()?;
    Some(1 << u32::from(cap as u8))
}

/// What is permitted to this process, a bit for each capability.
pub fn permitted() -> u64 {
    capctl::CapState::get_current().map_or(0, |state| bits(state.permitted))
}

/// What has effect, likewise.
///
/// # Errors
/// None in practice.
pub fn effective() -> Result<u64> {
    caps(capctl::CapState::get_current()).map(|state| bits(state.effective))
}

fn bits(set: capctl::CapSet) -> u64 {
    set.iter().fold(0, |all, cap| all | 1 << u32::from(cap as u8))
}

/// Takes all capabilities out of the bounding set but those in `kept`.
///
/// # Errors
/// EPERM: CAP_SETPCAP is missing.
pub fn bound_capabilities(kept: u64) -> Result<()> {
    let kept = capctl::CapSet::from_bitmask_truncate(kept);
    for cap in capctl::Cap::iter().filter(|cap| !kept.has(*cap)) {
        // SAFETY: PR_CAPBSET_READ takes no pointer.
        match answer(unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap as libc::c_ulong, 0, 0, 0) }.into()) {
            Ok(0) => {}
            Ok(_) => caps(capctl::bounding::drop(cap))?,
            // This kernel knows no more of them.
            Err(Errno::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Has the permitted capabilities outlive a change of the uid (PR_SET_KEEPCAPS,
/// until the next exec).
///
/// # Errors
/// EPERM: the securebits forbid it.
pub fn keep_capabilities() -> Result<()> {
    caps(capctl::prctl::set_keepcaps(true))
}

/// Makes just these capabilities permitted, effective, inheritable and ambient.
///
/// # Errors
/// EPERM: one is not permitted.
pub fn only_ambient(wanted: u64) -> Result<()> {
    let wanted = capctl::CapSet::from_bitmask_truncate(wanted);
    let state = capctl::CapState { permitted: wanted, effective: wanted, inheritable: wanted };
    caps(capctl::ambient::clear())?;
    caps(state.set_current())?;
    wanted.iter().try_for_each(|cap| caps(capctl::ambient::raise(cap)))
}

/// Sets the permitted, the effective, the inheritable and the ambient
/// capabilities, a bit for each.
///
/// # Errors
/// EPERM: one is not permitted, or an ambient one not inheritable.
pub fn set_capabilities([permitted, effective, inheritable, ambient]: [u64; 4]) -> Result<()> {
    let set = capctl::CapSet::from_bitmask_truncate;
    let state =
        capctl::CapState { permitted: set(permitted), effective: set(effective), inheritable: set(inheritable) };
    caps(capctl::ambient::clear())?;
    caps(state.set_current())?;
    set(ambient).iter().try_for_each(|cap| caps(capctl::ambient::raise(cap)))
}

/// Lets those capabilities have effect whose bits are set in `wanted`, as far
/// as they are permitted, and no others.
///
/// # Errors
/// None in practice.
pub fn set_effective(wanted: u64) -> Result<()> {
    let mut state = caps(capctl::CapState::get_current())?;
    state.effective = state.permitted.intersection(capctl::CapSet::from_bitmask_truncate(wanted));
    caps(state.set_current())
}

/// Gives up every capability, for good.
///
/// # Errors
/// None in practice.
pub fn drop_capabilities() -> Result<()> {
    caps(capctl::CapState::empty().set_current())
}

/// Whether one of the capabilities whose bits are set in `wanted` is permitted.
pub fn is_any_permitted(wanted: u64) -> bool {
    let wanted = capctl::CapSet::from_bitmask_truncate(wanted);
    capctl::CapState::get_current().is_ok_and(|state| !state.permitted.intersection(wanted).is_empty())
}

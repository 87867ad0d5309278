//! What systemd wants to find as the first process of a container: its
//! "Container Interface" (systemd.io/CONTAINER_INTERFACE). All but the checks
//! are options that could have been typed.

use std::env::var_os;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use common::cli::Args;
use common::id::Kind as IdKind;
use common::plan::Plan;
use common::proc::Proc;
use common::step::{end, inside};

/// What --systemd stands for. The rest of /run is a tmpfs of systemd's own; with
/// CAP_SYS_RAWIO its units mount file systems that a user namespace may not
/// mount, which fails.
const WORDS: &str = "--proc --sys --cgroup2 --dev --mqueue --tmp --tmpfs=/run:mode=755 --tmpfs=/run/lock:mode=1777 \
    --cap-drop=sys_rawio --clear-env --keep-env=TERM --setenv=container=nskit";

/// The ids that Debian's and systemd's own users have, nobody being the last.
const IDS: u32 = 65535;

/// The options that --systemd stands for, if it was given.
pub(crate) fn words(args: &Args) -> Vec<OsString> {
    if !args.flag("systemd") {
        return Vec::new();
    }
    let mut words: Vec<OsString> = WORDS.split(' ').map(OsString::from).collect();
    // Where readiness is told (sd_notify(3)): a path of outside, or the name of
    // an abstract socket, which nobody in another network namespace can reach.
    if let Some(socket) = var_os("NOTIFY_SOCKET").filter(|name| name.as_bytes().starts_with(b"/")) {
        words.push(bind(&socket, "/run/host/notify"));
        words.push("--setenv=NOTIFY_SOCKET=/run/host/notify".into());
    }
    words
}

fn bind(source: &OsStr, at: &str) -> OsString {
    let mut word = b"--bind=".to_vec();
    for byte in source.as_bytes() {
        if matches!(byte, b':' | b'\\') {
            word.push(b'\\');
        }
        word.push(*byte);
    }
    word.extend([b":", at.as_bytes()].concat());
    OsString::from_vec(word)
}

/// What systemd dies of, or does without and does not say.
pub(crate) fn checks(proc: &Proc, plan: &mut Plan) {
    plan.push(inside::Effect::Delegated("/sys/fs/cgroup".into()));
    let mapped = |kind| proc.map("self", kind).unwrap_or_default();
    let count = |kind| mapped(kind).iter().map(|e| e.count.min(IDS.saturating_sub(e.inside))).sum::<u32>();
    if IdKind::BOTH.into_iter().any(|kind| count(kind) < IDS) {
        note(plan, "not all uids and gids 0-65534 are mapped here: a unit with one that is missing will fail");
    }
    if var_os("NOTIFY_SOCKET").is_some_and(|name| !name.as_bytes().starts_with(b"/")) {
        note(plan, "NOTIFY_SOCKET is no path: a name without one belongs to a network namespace, and nobody is told");
    }
    if let Some(text) = crowd(proc) {
        note(plan, &text);
    }
}

fn note(plan: &mut Plan, text: &str) {
    plan.push(end::Effect::Note(format!("pivot-exec: {text}\n")));
}

/// Other processes in what becomes systemd's cgroup. Only a cgroup without
/// processes gives controllers to those below it (cgroups(7)).
fn crowd(proc: &Proc) -> Option<String> {
    let own = proc.cgroup("self")?;
    let stat = proc.text("self/stat")?;
    let me = stat.split(' ').next()?;
    let mut others = proc.pids().into_iter().map(|pid| pid.to_string()).filter(|who| who != me);
    let other = others.find(|who| proc.cgroup(who).is_some_and(|at| at == own))?;
    let name = proc.name(&other);
    Some(format!(
        "process {other} ({name}) is in the same cgroup: systemd can give its units no controllers (ns-new --new-cgroup)"
    ))
}

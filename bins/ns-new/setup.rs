//! What is set up in new namespaces, for a holder and for a program alike.

use common::cli::Args;
use common::fail::Result;
use common::ns::Kind;
use common::plan::Plan;
use common::step::ns::Ahead;
use common::step::{mount, ns};

use crate::CLI;

/// Options that mean a kind of namespaces as well.
const IMPLIED: [(&str, Kind); 8] = [
    ("propagation", Kind::Mnt),
    ("mount-proc", Kind::Mnt),
    ("root", Kind::Mnt),
    ("hostname", Kind::Uts),
    ("lo", Kind::Net),
    ("monotonic", Kind::Time),
    ("boottime", Kind::Time),
    ("new-cgroup", Kind::Cgroup),
];

/// The kinds that were asked for.
pub(crate) fn kinds(args: &Args) -> Vec<Kind> {
    let implied = |kind: Kind| IMPLIED.iter().any(|(option, means)| *means == kind && args.flag(option));
    Kind::ALL.into_iter().filter(|k| args.flag("all") || args.flag(k.option()) || implied(*k)).collect()
}

/// The step that sets the clocks of a time namespace and makes it, which is then
/// none of those that the child is born into.
///
/// # Errors
/// Wrong usage.
pub(crate) fn clocks(args: &Args, kinds: &mut Vec<Kind>, plan: &mut Plan) -> Result<()> {
    let ahead = |option: &str| match args.value(option) {
        None => Ok(Ahead::default()),
        Some(word) => word.to_str().and_then(Ahead::parse).ok_or_else(|| {
            CLI.usage(&format!("--{option}: seconds, with at most nine digits after the point, as 86400 or -0.5"))
        }),
    };
    let (monotonic, boottime) = (ahead("monotonic")?, ahead("boottime")?);
    if args.flag("monotonic") || args.flag("boottime") {
        kinds.retain(|kind| *kind != Kind::Time);
        plan.push(ns::Effect::Clocks(monotonic, boottime));
    }
    Ok(())
}

/// The steps that set the other namespaces up.
///
/// # Errors
/// Wrong usage.
pub(crate) fn inside(args: &Args, kinds: &[Kind], plan: &mut Plan) -> Result<()> {
    let propagation = args.value("propagation").unwrap_or_else(|| "slave".into());
    match propagation.to_str() {
        // The bind that makes it a mount would be seen outside.
        Some("unchanged") if args.flag("root") => {
            return Err(CLI.usage("--root and --propagation unchanged do not go together"));
        }
        Some("unchanged") => {}
        Some("slave") if !kinds.contains(&Kind::Mnt) => {}
        // Shared at the end: pivot_root(2) takes no shared mounts, and what is made
        // inside is for those alone who come to be peers there.
        Some("slave" | "shared") => plan.push(mount::Effect::Slave),
        Some("private") => plan.push(mount::Effect::Propagate("private")),
        Some(_) | None => return Err(CLI.usage("--propagation: slave, private, shared or unchanged")),
    }
    if let Some(name) = args.value("hostname") {
        plan.push(ns::Effect::Hostname(name));
    }
    if args.flag("lo") {
        plan.push(ns::Effect::Loopback);
    }
    Ok(())
}

/// The step that comes after the root has got its place.
pub(crate) fn shared(args: &Args) -> Option<mount::Effect> {
    args.value("propagation").filter(|how| how == "shared").map(|_| mount::Effect::Propagate("shared"))
}

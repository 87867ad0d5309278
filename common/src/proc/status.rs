//! The text of /proc/PID/status: proc_pid_status(5). Pure.

use crate::word::quote;

/// What /proc/PID/status says, as far as it is a reason for a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `Name:`, quoted
    pub name: String,
    /// `Uid:` real, effective, saved, file system.
    pub uid: [u32; 4],
    /// `Gid:` likewise.
    pub gid: [u32; 4],
    /// `Groups:` the supplementary ones.
    pub groups: Vec<u32>,
    /// `Umask:` the mask of modes, where it can be seen.
    pub umask: Option<u32>,
    /// `TracerPid:` who traces it, 0 for nobody.
    pub tracer: u32,
    /// `PPid:` the number of its parent, 0 for none.
    pub parent: u32,
    /// `NSpid:` its number in each pid namespace, ours first.
    pub pids: Vec<u32>,
    /// `Threads:`
    pub threads: u64,
    /// `CapPrm:` a bit for each capability.
    pub permitted: u64,
    /// `CapEff:`
    pub effective: u64,
    /// `CapInh:`
    pub inheritable: u64,
    /// `CapAmb:`
    pub ambient: u64,
    /// `CapBnd:`
    pub bounding: u64,
    /// `NoNewPrivs:`
    pub no_new_privs: bool,
    /// `Seccomp:` 0 for none, 1 for the strict mode, 2 for filters.
    pub seccomp: u32,
    /// `SigBlk:` a bit for each signal, that of signal 1 first. What is blocked may
    /// be read by signalfd(2).
    pub blocked: u64,
    /// `SigIgn:` likewise.
    pub ignored: u64,
    /// `SigCgt:` likewise.
    pub caught: u64,
    /// `State:` its letter, Z for a zombie.
    pub state: char,
}

impl Status {
    /// Whether it is a zombie, and not just the first thread of a process whose
    /// others live.
    pub fn has_ended(&self) -> bool {
        self.state == 'Z' && self.threads < 2
    }

    /// Whether capability number `cap` is effective.
    pub fn can(&self, cap: u32) -> bool {
        self.effective >> cap & 1 == 1
    }
}

/// Capabilities: bit numbers of include/uapi/linux/capability.h.
pub const CAP_CHOWN: u32 = 0;
/// See above.
pub const CAP_DAC_OVERRIDE: u32 = 1;
/// See above.
pub const CAP_SETGID: u32 = 6;
/// See above.
pub const CAP_SETUID: u32 = 7;
/// See above.
pub const CAP_SETPCAP: u32 = 8;
/// See above.
pub const CAP_NET_BIND_SERVICE: u32 = 10;
/// See above.
pub const CAP_NET_ADMIN: u32 = 12;
/// See above.
pub const CAP_SYS_CHROOT: u32 = 18;
/// See above.
pub const CAP_SYS_ADMIN: u32 = 21;
/// See above.
pub const CAP_SYS_RESOURCE: u32 = 24;
/// See above. Needed since Linux 5.12 to map the parent's id 0.
pub const CAP_SETFCAP: u32 = 31;

/// Reads the text of /proc/PID/status: proc_pid_status(5).
pub fn parse_status(text: &str) -> Status {
    let mut status = Status { state: '?', ..Status::default() };
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        // Most lines are of no interest here.
        let value = || value.trim();
        let hex = || u64::from_str_radix(value(), 16).unwrap_or(0);
        let number = || value().parse().unwrap_or(0);
        let all = || value().split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let four = || {
            let mut ids = [0; 4];
            for (id, word) in ids.iter_mut().zip(value().split_whitespace()) {
                *id = word.parse().unwrap_or(0);
            }
            ids
        };
        match key {
            // Anybody may call a process anything, also what a terminal obeys.
            "Name" => status.name = quote(value()),
            "State" => status.state = value().chars().next().unwrap_or('?'),
            "Uid" => status.uid = four(),
            "Gid" => status.gid = four(),
            "Groups" => status.groups = all(),
            "NSpid" => status.pids = all(),
            "PPid" => status.parent = number(),
            "TracerPid" => status.tracer = number(),
            "Umask" => status.umask = u32::from_str_radix(value(), 8).ok(),
            "Threads" => status.threads = number().into(),
            "CapPrm" => status.permitted = hex(),
            "CapEff" => status.effective = hex(),
            "CapInh" => status.inheritable = hex(),
            "CapAmb" => status.ambient = hex(),
            "CapBnd" => status.bounding = hex(),
            "NoNewPrivs" => status.no_new_privs = value() == "1",
            "Seccomp" => status.seccomp = number(),
            "SigBlk" => status.blocked = hex(),
            "SigIgn" => status.ignored = hex(),
            "SigCgt" => status.caught = hex(),
            _ => {}
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let status = parse_status(
            "Name:\ta\x1b b\nState:\tZ (zombie)\nUid:\t1\t2\t3\t4\nSigIgn:\t1\nSigCgt:\t2\nSigBlk:\t4\nCapEff:\t80\n\
             Umask:\t0027\nGroups:\t7 8 \n",
        );
        assert_eq!(status.name, "$'a\\x1b b'");
        assert_eq!((status.uid[1], status.caught, status.state, status.can(CAP_SETUID)), (2, 2, 'Z', true));
        assert_eq!((status.ignored, status.blocked, status.umask, status.groups), (1, 4, Some(0o27), vec![7, 8]));
    }
}

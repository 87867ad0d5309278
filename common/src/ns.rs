//! The kinds of namespaces: names, letters, flags. namespaces(7).

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// user_namespaces(7), Linux 3.8
    User,
    /// mount_namespaces(7)
    Mnt,
    /// uts_namespaces(7)
    Uts,
    /// ipc_namespaces(7)
    Ipc,
    /// pid_namespaces(7)
    Pid,
    /// cgroup_namespaces(7), Linux 4.6
    Cgroup,
    /// network_namespaces(7)
    Net,
    /// time_namespaces(7), Linux 5.6
    Time,
}

impl Kind {
    /// All, in the order in which the kernel enters them (kernel/nsproxy.c,
    /// validate_nsset()).
    pub const ALL: [Kind; 8] =
        [Kind::User, Kind::Mnt, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Cgroup, Kind::Net, Kind::Time];

    /// The name of its link below /proc/PID/ns.
    pub fn link(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Mnt => "mnt",
            Kind::Uts => "uts",
            Kind::Ipc => "ipc",
            Kind::Pid => "pid",
            Kind::Cgroup => "cgroup",
            Kind::Net => "net",
            Kind::Time => "time",
        }
    }

    /// Its long option in unshare(1), nsenter(1) and here.
    pub fn option(self) -> &'static str {
        match self {
            Kind::Mnt => "mount",
            Kind::User | Kind::Uts | Kind::Ipc | Kind::Pid | Kind::Cgroup | Kind::Net | Kind::Time => self.link(),
        }
    }

    /// Its letter in unshare(1), nsenter(1) and here.
    pub fn letter(self) -> char {
        match self {
            Kind::User => 'U',
            Kind::Mnt => 'm',
            Kind::Uts => 'u',
            Kind::Ipc => 'i',
            Kind::Pid => 'p',
            Kind::Cgroup => 'C',
            Kind::Net => 'n',
            Kind::Time => 'T',
        }
    }

    /// Its bit in clone(2), unshare(2) and setns(2).
    pub fn flag(self) -> u64 {
        match self {
            Kind::User => 0x1000_0000,
            Kind::Mnt => 0x2_0000,
            Kind::Uts => 0x400_0000,
            Kind::Ipc => 0x800_0000,
            Kind::Pid => 0x2000_0000,
            Kind::Cgroup => 0x200_0000,
            Kind::Net => 0x4000_0000,
            Kind::Time => 0x80,
        }
    }

    /// The name of that bit.
    pub fn flag_name(self) -> &'static str {
        match self {
            Kind::User => "CLONE_NEWUSER",
            Kind::Mnt => "CLONE_NEWNS",
            Kind::Uts => "CLONE_NEWUTS",
            Kind::Ipc => "CLONE_NEWIPC",
            Kind::Pid => "CLONE_NEWPID",
            Kind::Cgroup => "CLONE_NEWCGROUP",
            Kind::Net => "CLONE_NEWNET",
            Kind::Time => "CLONE_NEWTIME",
        }
    }
}

/// The bits of `kinds` together.
pub fn flags(kinds: &[Kind]) -> u64 {
    kinds.iter().fold(0, |all, kind| all | kind.flag())
}

/// The names of the bits of `kinds`, as C would have them.
pub fn flag_names(kinds: &[Kind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|k| k.flag_name()).collect();
    names.join("|")
}

/// The inode of the initial user namespace (include/linux/proc_ns.h,
/// PROC_USER_INIT_INO): the same on every machine.
pub const INITIAL_USER: u64 = 0xEFFF_FFFD;

/// The same of the initial cgroup namespace (PROC_CGROUP_INIT_INO).
pub const INITIAL_CGROUP: u64 = 0xEFFF_FFFB;

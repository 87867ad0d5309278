//! What is the same for all files: where the commands run, and as whom.

use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use crate::script::Script;

/// Somebody who can have a shell, known by its prompt.
pub(crate) struct User {
    pub(crate) prompt: &'static str,
    pub(crate) name: &'static str,
    pub(crate) id: u32,
}

pub(crate) const USERS: [User; 5] = [
    User { prompt: "$ ", name: "alice", id: 1501 },
    User { prompt: "2$ ", name: "alice", id: 1501 },
    User { prompt: "# ", name: "root", id: 0 },
    User { prompt: "bob$ ", name: "bob", id: 1502 },
    User { prompt: "carol$ ", name: "carol", id: 1503 },
];

/// Programs whose Debian package has another name.
const PACKAGES: [(&str, &str); 22] = [
    ("busybox", "busybox-static"),
    ("bwrap", "bubblewrap"),
    ("capsh", "libcap2-bin"),
    ("getcap", "libcap2-bin"),
    ("getfacl", "acl"),
    ("getfattr", "attr"),
    ("ip", "iproute2"),
    ("ipcs", "util-linux"),
    ("lxc-usernsexec", "lxc"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.erofs", "erofs-utils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mksquashfs", "squashfs-tools"),
    ("newgidmap", "uidmap"),
    ("newuidmap", "uidmap"),
    ("perl", "perl-base"),
    ("pgrep", "procps"),
    ("ps", "procps"),
    ("setcap", "libcap2-bin"),
    ("setfacl", "acl"),
    ("systemd-nspawn", "systemd-container"),
];

pub(crate) struct World {
    /// Root in a private world, where every process and every mount is ours. Otherwise we are an
    /// ordinary user who plays alice.
    pub(crate) private: bool,
    pub(crate) must_work: bool,
    pub(crate) long: bool,
    pub(crate) quick: bool,
    pub(crate) timeout: Duration,
    /// System calls that the shells do not have (tests/without), or nothing.
    pub(crate) without: String,
    /// Ours carry it in their environment.
    pub(crate) mark: String,
    /// Below it everybody's home.
    homes: PathBuf,
    path: String,
    /// Made here, and removed at the end. Holds a copy of this program that everybody can run.
    scratch: PathBuf,
}

impl World {
    pub(crate) fn new() -> io::Result<World> {
        let set = |name: &str| env::var(name).unwrap_or_default();
        let root = fs::metadata("/proc/self")?.uid() == 0;
        let private = !set("NSKIT_PRIVATE").is_empty();
        if root && !private {
            let why = "as root this would change the machine; use tests/run, or tests/private";
            return Err(io::Error::other(why));
        }
        let scratch = env::temp_dir().join(format!("transcripts-{}", secret()?));
        make_dir(&scratch)?;
        fs::copy("/proc/self/exe", scratch.join("transcripts"))?;
        fs::set_permissions(scratch.join("transcripts"), fs::Permissions::from_mode(0o755))?;
        // A runner started by a transcript leaves the homes to the one above it.
        let nested = !set("TRANSCRIPTS").is_empty();
        let homes = if root && !nested { PathBuf::from("/home") } else { scratch.clone() };
        let mut path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        if !private && !set("NSKIT_BIN").is_empty() {
            path = format!("{}:{path}", set("NSKIT_BIN"));
        }
        Ok(World {
            private: root,
            must_work: set("CI") == "true" || set("NSKIT_MUST_WORK") == "1",
            long: matches!(set("NSKIT_LONG").as_str(), "1" | "only"),
            quick: set("NSKIT_LONG") != "only",
            timeout: Duration::from_secs(set("NSKIT_TIMEOUT").parse().unwrap_or(60)),
            without: set("NSKIT_WITHOUT"),
            mark: set("NSKIT_TEST_RUN"),
            homes,
            path,
            scratch,
        })
    }

    /// Why this file cannot be run here.
    pub(crate) fn missing(&self, script: &Script) -> Option<String> {
        if let Some(case) = script.cases.iter().find(|case| case.user.name != "alice") {
            if !self.private {
                return Some(format!("has commands for {}", case.user.name));
            }
        }
        script.needs.iter().find_map(|word| match word.as_str() {
            "root" if self.private => None,
            "root" => Some("needs root".to_owned()),
            "alice" if self.private => None,
            "alice" => Some("needs the users of the private world".to_owned()),
            "debian" if Path::new("target/debian.tar").exists() => None,
            "debian" => Some("needs target/debian.tar (tests/debian)".to_owned()),
            "userns" if self.has_userns() => None,
            "userns" => Some("needs user namespaces for ordinary users".to_owned()),
            program => self.missing_program(program),
        })
    }

    fn missing_program(&self, name: &str) -> Option<String> {
        if self.path.split(':').any(|dir| Path::new(dir).join(name).exists()) {
            return None;
        }
        let package = PACKAGES.iter().find(|(program, _)| *program == name);
        let package = package.map_or(name, |(_, package)| package);
        Some(format!("needs {name} (Debian package {package})"))
    }

    fn has_userns(&self) -> bool {
        let mut command = self.command("alice", &[], &["unshare", "--user", "true"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Whether, of what is wrong with a command, it says itself what is not here. Some transcripts
    /// keep only the first line of a failure, which has no more than the errno; a call that is named
    /// is the one that is not here.
    pub(crate) fn says_what_is_gone(&self, told: &[String]) -> bool {
        let says =
            |line: &String| line.starts_with('+') && (line.contains("(ENOSYS)") || line.contains("since Linux "));
        let names_another = |line: &String| line.contains("not here: ") && !line.contains(&self.without);
        !self.without.is_empty() && told.iter().any(says) && !told.iter().any(names_another)
    }

    /// A program as this user, with little in its environment, and in a session of its own so that
    /// it has no terminal, or with `--ctty` that on its standard input.
    pub(crate) fn command(&self, user: &str, session: &[&str], program: &[&str]) -> Command {
        let mut command = Command::new("setsid");
        command.args(session);
        if env::var_os("NSKIT_WITHOUT").is_some() {
            command.args(["/srv/nskit/tests/without", &self.without]);
        }
        if self.private && user != "root" {
            command.args(["setpriv", "--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.args(program).env_clear().stdin(Stdio::null());
        command.env("PATH", &self.path).env("LC_ALL", "C.UTF-8").env("TERM", "dumb");
        command.env("TRANSCRIPTS", self.scratch.join("transcripts")).env("USER", user);
        let own_name = if self.private { None } else { Some("USER") };
        for kept in ["NSKIT_PRIVATE", "NSKIT_ROOT", "NSKIT_LONG"].into_iter().chain(own_name) {
            if let Some(value) = env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command
    }

    /// An empty directory of this user.
    pub(crate) fn make_home(&self, user: &str) -> io::Result<PathBuf> {
        let home = self.homes.join(user);
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        make_dir(&home)?;
        for user in USERS.iter().filter(|known| known.name == user && self.private) {
            chown(&home, Some(user.id), Some(user.id))?;
        }
        Ok(home)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// A word that nobody can guess.
pub(crate) fn secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

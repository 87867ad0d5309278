//! What container runtimes write down, read: pure functions from bytes.
//!
//! The bytes may be anybody's. Whatever they are, the answer is a claim that
//! has to be proven, or none.

use crate::id::number;
use serde_json::Value;

/// What a file says of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The number of its first process.
    pub pid: Option<i32>,
    /// When that began, in clock ticks since boot.
    pub start: Option<u64>,
    /// What the container is called.
    pub names: Vec<String>,
}

/// The annotations by which Kubernetes and nerdctl name containers in the OCI
/// configuration.
const NAMES: [&str; 5] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri-o.ContainerName",
    "io.kubernetes.container.name",
    "io.kubernetes.cri-o.Name",
    "nerdctl/name",
];

/// The state of crun or runc, the configuration of an OCI container, or that of
/// docker: each says what the others do not.
pub fn json(bytes: &[u8]) -> Option<Said> {
    let json: Value = serde_json::from_slice(bytes).ok()?;
    let first = |places: &[&str]| places.iter().find_map(|place| json.pointer(place).and_then(Value::as_u64));
    let pid = first(&["/pid", "/init_process_pid", "/State/Pid"]);
    let mut names: Vec<String> = Vec::new();
    let mut add = |value: Option<&Value>| {
        let name = value.and_then(Value::as_str).map(|n| n.trim_start_matches('/'));
        names.extend(name.filter(|n| is_name(n)).map(str::to_owned));
    };
    add(json.get("Name"));
    for key in NAMES {
        add(json.get("annotations").and_then(|a| a.get(key)));
    }
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    Some(Said { pid, start: first(&["/process-start-time", "/init_process_start"]), names })
}

/// A file with a process number and nothing else.
pub fn pid_file(bytes: &[u8]) -> Option<Said> {
    let pid = number(bytes.trim_ascii()).and_then(|n| i32::try_from(n).ok()).filter(|pid| *pid > 0);
    pid.map(|pid| Said { pid: Some(pid), ..Said::default() })
}

/// What systemd-machined writes: lines of KEY=value.
pub fn machine(bytes: &[u8]) -> Option<Said> {
    let line = bytes.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"LEADER="))?;
    pid_file(line)
}

/// Whether something can be the name of a container, and so of a TARGET.
pub fn is_name(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 255
        && !word.starts_with('-')
        && !word.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// Whether something is one of the ids that people shorten: a name that is
/// hexadecimal, of at least 32 digits.
pub fn is_id(word: &str) -> bool {
    (32..=255).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The container that a cgroup is of: engine, id or name, and the path up to
/// there.
pub fn cgroup(path: &str) -> Option<(&'static str, String, &str)> {
    let mut end = 0;
    let mut above = "";
    let mut found = None;
    for part in path.split_inclusive('/') {
        end += part.len();
        let part = part.trim_end_matches('/');
        if let Some((engine, name)) = part_of_cgroup(part, above) {
            found = Some((engine, name, path.get(..end)?.trim_end_matches('/')));
        }
        above = part;
    }
    found
}

fn part_of_cgroup(part: &str, above: &str) -> Option<(&'static str, String)> {
    let scope = part.strip_suffix(".scope");
    for (engine, prefix) in [
        ("docker", "docker-"),
        ("podman", "libpod-"),
        ("cri-o", "crio-"),
        ("containerd", "cri-containerd-"),
        ("containerd", "nerdctl-"),
    ] {
        let id = scope.unwrap_or(part).strip_prefix(prefix).filter(|id| is_id(id));
        if let Some(id) = id {
            return Some((engine, id.to_owned()));
        }
    }
    if is_id(part) {
        let pod = above.starts_with("pod");
        return (above == "docker" || pod).then(|| (if pod { "containerd" } else { "docker" }, part.to_owned()));
    }
    let nspawn = part.strip_suffix(".service").and_then(|p| p.strip_prefix("systemd-nspawn@"));
    let machine = nspawn.or_else(|| scope.and_then(|p| p.strip_prefix("machine-")));
    let (engine, name) = match part.strip_prefix("lxc.payload.") {
        Some(name) => ("lxc", name.to_owned()),
        None => ("nspawn", unescape(machine?)),
    };
    is_name(&name).then_some((engine, name))
}

/// systemd writes what may not stand in the name of a unit as \x2d and the like.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.strip_prefix(b"x").filter(|_| *first == b'\\').and_then(|h| h.get(..2));
        let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let value = hex.and_then(|h| Some(digit(&h[0])? << 4 | digit(&h[1])?));
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the command line of conmon says, which podman and cri-o start for each
/// container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conmon {
    /// The id of the container.
    pub id: String,
    /// The file with the number of its process.
    pub pid_file: String,
    /// The directory of its storage, in which it has one of its own.
    pub storage: String,
}

/// Reads the command line of conmon.
pub fn conmon(line: &[u8]) -> Option<Conmon> {
    let words: Vec<&str> = line.split(|b| *b == 0).map(|w| std::str::from_utf8(w).unwrap_or_default()).collect();
    let after = |option: &str| words.windows(2).find(|w| w.first() == Some(&option)).and_then(|w| w.get(1).copied());
    let (id, pid_file, bundle) = (after("-c")?, after("-p")?, after("-b")?);
    let storage = bundle.strip_suffix("/userdata").and_then(|dir| dir.strip_suffix(id)).unwrap_or_default();
    let plain = is_id(id) && pid_file.starts_with('/') && bundle.starts_with('/');
    plain.then(|| Conmon { id: id.to_owned(), pid_file: pid_file.to_owned(), storage: storage.to_owned() })
}

/// What the storage of podman and cri-o lists as the names of container `id`.
pub fn listed(bytes: &[u8], id: &str) -> Vec<String> {
    let list: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let is_it = |container: &&Value| container.get("id").and_then(Value::as_str) == Some(id);
    let container = list.as_array().and_then(|all| all.iter().find(is_it));
    let names = container.and_then(|container| container.get("names")?.as_array());
    names.into_iter().flatten().filter_map(Value::as_str).filter(|name| is_name(name)).map(str::to_owned).collect()
}

/// The name on the command line of the process that lxc leaves outside of a
/// container: `[lxc monitor] DIR NAME`.
pub fn lxc_monitor(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\0');
    let (_, name) = line.strip_prefix("[lxc monitor] /")?.rsplit_once(' ')?;
    is_name(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn states() {
        let crun = json(br#"{"pid":42,"process-start-time":7,"cgroup-path":"","rootfs":"/x"}"#).unwrap();
        assert_eq!((crun.pid, crun.start), (Some(42), Some(7)));
        let runc = json(br#"{"id":"box","init_process_pid":43,"init_process_start":8}"#).unwrap();
        assert_eq!((runc.pid, runc.start), (Some(43), Some(8)));
        let docker = json(br#"{"State":{"Running":true,"Pid":44},"Name":"/web"}"#).unwrap();
        assert_eq!((docker.pid, docker.names), (Some(44), vec!["web".to_owned()]));
        let pod = json(br#"{"annotations":{"io.kubernetes.cri.container-name":"app"}}"#).unwrap();
        assert_eq!(pod, Said { names: vec!["app".into()], ..Said::default() });
        for bad in [&b"{\"pid\":0}"[..], b"{\"pid\":-1}", b"{\"pid\":4294967297}", b"{\"pid\":\"1\"}", b"{\"pid\":1.5}"]
        {
            assert_eq!(json(bad).unwrap().pid, None);
        }
        assert!(json(&[b'['; 100_000]).is_none());
        let list = format!(
            r#"[{{"id":"0"}},{{"id":"{ID}","names":["web",3,"","a b","shop"]}},{{"id":"{ID}","names":["no"]}}]"#
        );
        assert_eq!(listed(list.as_bytes(), ID), ["web", "shop"]);
        for bad in [&b"{}"[..], b"", b"[[]]", br#"[{"id":"1","names":{}}]"#] {
            assert!(listed(bad, "1").is_empty());
        }
        assert_eq!(pid_file(b"45\n").unwrap().pid, Some(45));
        assert!(pid_file(b"").is_none() && pid_file(b"-1").is_none() && pid_file(b"0").is_none());
        assert_eq!(machine(b"# x\nNAME=box\nLEADER=46\n").unwrap().pid, Some(46));
    }

    #[test]
    fn cgroups() {
        let of = |path: &str| cgroup(path).map(|(engine, id, at)| (engine, id, at.to_owned()));
        let pod = "kubepods-besteffort-pod1_2.slice";
        for (path, engine, end) in [
            (format!("/system.slice/docker-{ID}.scope/init.scope"), "docker", format!("docker-{ID}.scope")),
            (format!("/docker/{ID}"), "docker", ID.to_owned()),
            (format!("/libpod_parent/libpod-{ID}"), "podman", format!("libpod-{ID}")),
            (format!("/machine.slice/libpod-{ID}.scope/container"), "podman", format!("libpod-{ID}.scope")),
            (format!("/kubepods.slice/{pod}/crio-{ID}.scope"), "cri-o", format!("crio-{ID}.scope")),
            (format!("/{pod}/cri-containerd-{ID}.scope"), "containerd", format!("cri-containerd-{ID}.scope")),
            (format!("/kubepods/burstable/pod1-2/{ID}"), "containerd", ID.to_owned()),
        ] {
            let found = of(&path).unwrap();
            assert_eq!((found.0, found.1.as_str()), (engine, ID), "{path}");
            assert!(found.2.ends_with(&end), "{path}");
        }
        assert_eq!(of("/lxc.payload.box/a").unwrap(), ("lxc", "box".into(), "/lxc.payload.box".into()));
        assert_eq!(of("/machine.slice/machine-a\\x2db.scope").unwrap().1, "a-b");
        assert_eq!(of("/machine.slice/systemd-nspawn@box.service/payload").unwrap().1, "box");
        for other in
            [&format!("/libpod-conmon-{ID}.scope"), &format!("/crio-conmon-{ID}.scope"), "/", "", "/lxc.payload."]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn command_lines() {
        let line = format!("conmon\0-s\0-c\0{ID}\0-b\0/a b/{ID}/userdata\0-p\0/run/x y/pidfile\0-n\0no\0-p\0no\0");
        let told = Conmon { id: ID.into(), pid_file: "/run/x y/pidfile".into(), storage: "/a b/".into() };
        assert_eq!(conmon(line.as_bytes()), Some(told));
        assert_eq!(conmon(line.replace("-p", "-q").as_bytes()), None);
        assert_eq!(lxc_monitor(b"[lxc monitor] /a b/lxc box\0\0"), Some("box".into()));
        for other in ["[lxc monitor] box", "[lxc monitor] /var/lib/lxc", "[lxc monitor] /var/lib/lxc ", "lxc-start box"]
        {
            assert_eq!(lxc_monitor(other.as_bytes()), None, "{other}");
        }
    }

    /// Whatever stands there: an answer in time, and no panic.
    #[test]
    fn anything() {
        let seeds: [&[u8]; 6] = [
            br#"{"pid":42,"State":{"Pid":3},"annotations":{"nerdctl/name":"\u00e9"},"Name":"/x"}"#,
            br#"[{"id":"0","names":["web"]}]"#,
            b"conmon\0-c\0abcdef0123456789abcdef0123456789abcdef\0-b\0/x/userdata\0-p\0/x/pidfile\0",
            b"/a/machine-\\x2d\\x.scope/lxc.payload.b/docker-",
            b"LEADER=12\n",
            b"[lxc monitor] /var/lib/lxc box\0",
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % 1_000_003).unwrap() % below
        };
        for _ in 0..20_000 {
            let mut bytes = seeds[next(6)].to_vec();
            for _ in 0..=next(4) {
                let at = next(bytes.len());
                match next(3) {
                    0 => bytes[at] = u8::try_from(next(256)).unwrap(),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, b"\\\0{[\"/\xff."[next(8)]),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let names = json(&bytes).map(|s| s.names).unwrap_or_default();
            let rest = [listed(&bytes, "0").pop(), lxc_monitor(&bytes), cgroup(&text).map(|c| c.1)];
            assert!(names.into_iter().chain(rest.into_iter().flatten()).all(|n| is_name(&n)));
            let _ = (pid_file(&bytes), machine(&bytes), conmon(&bytes));
        }
    }
}

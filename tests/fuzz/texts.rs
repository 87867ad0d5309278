//! What the kernel, users and container runtimes write into files, and the records of a pipeline.

use std::os::unix::ffi::OsStrExt as _;

use common::container::notes;
use common::id::{Both, Kind, Range};
use common::mounted;
use common::proc::{Mount, Status, parse_mount, parse_status};
use common::record::{Record, Stream};
use common::user::{entries, groups_in, ids_in};
use common::word::quote;

use super::{fstab as read_fstab, message};

/// What is printed of a stream reads as the same stream.
pub fn records(bytes: &[u8]) {
    match Stream::parse(bytes) {
        Ok(stream) => {
            let printed = stream.bytes();
            assert_eq!(Stream::parse(&printed), Ok(stream.clone()));
            assert_eq!(Stream::parse(&printed).unwrap().bytes(), printed);
            let ids = |kind| stream.extents(kind).into_iter().flat_map(|e| [e.inside().end(), e.outside().end()]);
            assert!(Kind::BOTH.into_iter().flat_map(ids).all(|end| end <= 0xffff_ffff));
            let used = stream.clone().consume_extents();
            assert!(!used.has_extents() && used.pid() == stream.pid());
            assert!(stream.clone().dry().pid().is_none_or(|(address, _)| address.is_none()));
            // Only what a tool knows is written in another way than it came.
            let known = |line: &&[u8]| !matches!(Record::parse(line), Ok(Record::Other(_)));
            let others = |text: &[u8]| -> Vec<Vec<u8>> {
                let lines = text.split(|b| *b == b'\n').take_while(|line| *line != b"end");
                lines.filter(|line| !known(line)).map(<[u8]>::to_vec).collect()
            };
            assert_eq!(others(bytes), others(&printed));
        }
        Err(failure) => message(&failure.to_string()),
    }
}

/// Blank, tab, newline and backslash, as getmntent(3) and the kernel write them.
fn escaped(bytes: &[u8]) -> Vec<u8> {
    let one = |b: &u8| match b {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}").into_bytes(),
        _ => vec![*b],
    };
    bytes.iter().flat_map(one).collect()
}

/// What is printed of a line reads as the same line.
pub fn fstab(bytes: &[u8]) {
    match read_fstab::lines(bytes) {
        Ok(lines) => {
            let mut printed = Vec::new();
            for line in &lines {
                let options = line.options.iter().map(|o| o.as_bytes()).collect::<Vec<_>>().join(&b","[..]);
                let options = if options.is_empty() { b",".to_vec() } else { options };
                for field in [line.source.as_bytes(), line.at.as_bytes(), line.fstype.as_bytes(), &options] {
                    assert!(!field.is_empty() && !field.contains(&0));
                    printed.extend(escaped(field));
                    printed.push(b' ');
                }
                printed.extend(b"0 0\n");
                // Whatever is said of rw, suid and the like, nothing but bits of mounts comes of it.
                assert_eq!(line.attributes() & !0x0030_00ff, 0);
            }
            // A source may begin as a comment does, if the # was escaped.
            if lines.iter().all(|line| !line.source.as_bytes().starts_with(b"#")) {
                assert_eq!(read_fstab::lines(&printed), Ok(lines));
            }
        }
        Err((at, what)) => {
            assert!(at >= 1 && at <= bytes.split(|b| *b == b'\n').count());
            message(&what);
        }
    }
}

/// What is printed of a mount reads as the same mount.
pub fn mountinfo(bytes: &[u8]) {
    for line in bytes.split(|b| *b == b'\n') {
        let Some(mount) = parse_mount(line) else { continue };
        // A dash alone is where the tags end; no path is one.
        let text = |field: &[u8]| if field == b"-" { br"\055".to_vec() } else { escaped(field) };
        let tags = if mount.propagation.is_empty() { String::new() } else { format!(" {}", mount.propagation) };
        let printed = [
            format!("{} {} {} ", mount.id, mount.parent, mount.device).into_bytes(),
            text(mount.root.as_bytes()),
            b" ".to_vec(),
            text(mount.point.as_bytes()),
            format!(" {}{tags} - {} none {}", mount.options, mount.fstype, mount.super_options).into_bytes(),
        ]
        .concat();
        // Its type is quoted each time.
        let fstype = quote(&mount.fstype);
        assert_eq!(parse_mount(&printed), Some(Mount { fstype, ..mount }), "{printed:?}");
    }
}

/// Any bytes make a mount, with extents that can be.
pub fn statmount(bytes: &[u8]) {
    let mount = mounted::parse(bytes);
    let Both { uid, gid } = mount.maps.clone().unwrap_or_default();
    for e in uid.iter().chain(&gid) {
        assert!(e.count > 0 && e.inside().end() <= 0xffff_ffff && e.outside().end() <= 0xffff_ffff);
    }
    assert!(![mount.root, mount.fstype].iter().any(|text| text.contains('\0')));
    assert!(!mount.point.as_bytes().contains(&0));
}

/// What is printed of a status reads as the same status, and a name of a process as words.
pub fn status(bytes: &[u8]) {
    let read = parse_status(&String::from_utf8_lossy(bytes));
    assert!(!read.name.chars().any(char::is_control), "{:?}", read.name);
    fn all(ids: &[u32]) -> String {
        ids.iter().map(u32::to_string).collect::<Vec<_>>().join("\t")
    }
    // By name, so that a field which is added must be printed as well.
    let Status {
        name: _,
        uid,
        gid,
        groups,
        umask,
        tracer,
        parent,
        pids,
        threads,
        permitted,
        effective,
        inheritable,
        ambient,
        bounding,
        no_new_privs,
        seccomp,
        blocked,
        ignored,
        caught,
        state,
    } = &read;
    let mut printed = format!(
        "State:\t{state}\nPPid:\t{parent}\nTracerPid:\t{tracer}\nThreads:\t{threads}\nSeccomp:\t{seccomp}\n\
         Uid:\t{}\nGid:\t{}\nGroups:\t{}\nNSpid:\t{}\nNoNewPrivs:\t{}\n",
        all(uid),
        all(gid),
        all(groups),
        all(pids),
        u8::from(*no_new_privs)
    );
    let masks = [
        ("SigBlk", blocked),
        ("SigIgn", ignored),
        ("SigCgt", caught),
        ("CapInh", inheritable),
        ("CapPrm", permitted),
        ("CapEff", effective),
        ("CapBnd", bounding),
        ("CapAmb", ambient),
    ];
    printed.extend(masks.map(|(key, mask)| format!("{key}:\t{mask:016x}\n")));
    printed.extend(umask.map(|umask| format!("Umask:\t{umask:04o}\n")));
    assert_eq!(parse_status(&printed), Status { name: String::new(), ..read });
}

/// Notes of container runtimes: what they claim is a process number and names, or nothing. What a
/// runtime would write of it reads as the same.
pub fn containers(bytes: &[u8]) {
    let said = [notes::json(bytes), notes::pid_file(bytes), notes::machine(bytes)];
    for said in said.into_iter().flatten() {
        assert!(said.pid.is_none_or(|pid| pid > 0));
        assert!(said.names.iter().all(|name| notes::is_name(name)));
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""));
        for form in ["process-start-time", "init_process_start"] {
            let (pid, start) = (said.pid.unwrap_or_default(), said.start.unwrap_or_default());
            let name = quoted(said.names.first().map_or("", String::as_str).trim_start_matches('/'));
            let state = format!("{{\"init_process_pid\":{pid},\"{form}\":{start},\"Name\":{name}}}");
            let again = notes::json(state.as_bytes()).unwrap();
            assert_eq!((again.pid, again.start), (said.pid, Some(start)));
            assert!(again.names.len() <= 1 && again.names.iter().all(|n| said.names[0].ends_with(n.as_str())));
        }
    }
    let digits = bytes.trim_ascii();
    let plain = digits.iter().all(u8::is_ascii_digit) && !digits.starts_with(b"0");
    let number = std::str::from_utf8(digits).ok().filter(|_| plain).and_then(|d| d.parse::<i32>().ok());
    assert_eq!(notes::pid_file(bytes).and_then(|said| said.pid), number);
    if let Some(said) = notes::conmon(bytes) {
        let notes::Conmon { id, pid_file, storage } = &said;
        assert!(notes::is_id(id) && pid_file.starts_with('/') && (storage.is_empty() || storage.starts_with('/')));
        let line = format!("conmon\0-c\0{id}\0-p\0{pid_file}\0-b\0{storage}{id}/userdata\0");
        assert!(storage.is_empty() || notes::conmon(line.as_bytes()) == Some(said));
    }
    assert!(notes::listed(bytes, "0").iter().all(|name| notes::is_name(name)));
    if let Some(name) = notes::lxc_monitor(bytes) {
        assert_eq!(notes::lxc_monitor(format!("[lxc monitor] /x {name}\0").as_bytes()), Some(name));
    }
    let path = String::from_utf8_lossy(bytes);
    if let Some((engine, name, up_to)) = notes::cgroup(&path) {
        assert!(["docker", "podman", "cri-o", "containerd", "lxc", "nspawn"].contains(&engine));
        assert!(notes::is_name(&name) && path.starts_with(up_to) && !up_to.ends_with('/'));
        // Of the path up to there it is the container, too.
        assert_eq!(notes::cgroup(up_to), Some((engine, name, up_to)));
    }
}

/// Users, groups and homes, field by field.
pub fn passwd(bytes: &[u8]) {
    let id = |field: &[u8]| -> Option<u32> {
        let text = std::str::from_utf8(field).ok()?;
        let number = text.parse::<u32>().ok().filter(|n| *n < 0xffff_ffff)?;
        (number.to_string() == text).then_some(number)
    };
    let lossy = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let lines: Vec<Vec<&[u8]>> = bytes.split(|b| *b == b'\n').map(|l| l.split(|b| *b == b':').collect()).collect();
    let users = lines.iter().filter(|f| f.len() == 7).filter_map(|f| Some((lossy(f[0]), id(f[2])?, id(f[3])?, f)));
    let users: Vec<_> = users.collect();
    let read: Vec<_> =
        entries(bytes).map(|e| (e.user(), e.home)).map(|(u, h)| (u.name, u.uid, u.gid, u.shell, h)).collect();
    let wanted: Vec<_> =
        users.iter().map(|(name, uid, gid, f)| (name.clone(), *uid, *gid, lossy(f[6]), f[5])).collect();
    assert_eq!(read, wanted);
    let ids = lines.iter().filter_map(|f| Some((f[0], id(f.get(2)?)?)));
    assert!(ids_in(bytes).eq(ids));
    assert!(ids_in(bytes).all(|(_, id)| Range::new(id.into(), 1).is_some()));
    for (name, ..) in &users {
        let is_in = |f: &[&[u8]]| f.get(3)?.split(|b| *b == b',').any(|m| m == name.as_bytes()).then_some(());
        let groups = lines.iter().filter_map(|f| is_in(f).and_then(|()| id(f[2])));
        assert!(groups_in(bytes, name).eq(groups));
    }
}

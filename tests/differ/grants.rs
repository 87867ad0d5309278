//! getsubids(1) of Debian 12, which is shadow 4.13, on files with odd spellings.

use std::fs;
use std::process::Command;

use common::subid::{Owner, is_blank, shadow_number};
use common::user::User;

use crate::Random;

/// Where 4.13 reads a line as 4.20, and we, do not: all of it is known, and printed with how often
/// it came.
const KNOWN: [&str; 4] = [
    "more than three fields: 4.13 drops those after the third, 4.20 and we skip the line",
    "a negative number: 4.13 takes it modulo 2^64, 4.20 and we skip the line",
    "no ids: 4.13 lists the line, which grants nothing",
    "beyond id 4294967294: 4.13 lists the line, 4.20 and we skip it",
];

/// How many differed otherwise.
pub(crate) fn run(files: u64, seed: u64) -> u64 {
    let (mut failed, mut lines, mut known) = (0, 0, [0u64; 4]);
    for round in 0..files {
        let mut random = Random::new(seed + round);
        let (file, option) = if random.one_in(2) { ("/etc/subuid", "-u") } else { ("/etc/subgid", "-g") };
        let text = text(&mut random);
        fs::write(file, &text).unwrap();
        let mut command = Command::new("getsubids");
        if option == "-g" {
            command.arg(option);
        }
        let theirs = listed(&String::from_utf8_lossy(&command.arg("alice").output().unwrap().stdout));
        let ours = expected(&text, &mut known);
        lines += text.split(|b| *b == b'\n').count();
        if theirs != ours {
            failed += 1;
            println!("file {} differs:\n{}", seed + round, text.escape_ascii().to_string().replace("\\n", "\n"));
            println!("  getsubids: {theirs:?}\n  we:        {ours:?}");
        }
    }
    println!("{files} files compared, {failed} differ");
    eprintln!("{lines} lines");
    KNOWN.iter().zip(known).for_each(|(what, many)| eprintln!("{many}: {what}"));
    failed
}

/// `N: OWNER START COUNT`
fn listed(output: &str) -> Vec<(u64, u64)> {
    let numbers = |line: &str| {
        let mut words = line.rsplit(' ').map(|word| word.parse::<u64>().ok());
        let (count, start) = (words.next()??, words.next()??);
        Some((start, count))
    };
    output.lines().filter_map(numbers).collect()
}

/// What we read, and what 4.13 reads besides.
fn expected(text: &[u8], known: &mut [u64; 4]) -> Vec<(u64, u64)> {
    let alice = User { name: "alice".into(), uid: 1501, gid: 1501, shell: String::new() };
    let owner = Owner::of(&alice, b"");
    let mut all = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let mut whole =
            std::fs::File::from(nix::sys::memfd::memfd_create(c"line", nix::sys::memfd::MFdFlags::empty()).unwrap());
        std::io::Write::write_all(&mut whole, line).unwrap();
        std::io::Seek::rewind(&mut whole).unwrap();
        let ours = owner.granted_in(whole).unwrap();
        if let [range] = ours.as_slice() {
            // Theirs may have one more, 4294967295, which no map can have.
            let count = line.split(|b| *b == b':').nth(2).and_then(shadow_number);
            let more = count.is_some_and(|count| count > range.count.into());
            all.push((range.first.into(), u64::from(range.count) + u64::from(more)));
            continue;
        }
        let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        let [word, start, count, more @ ..] = fields.as_slice() else { continue };
        let (start, count) = (signed(start), signed(count));
        let (Some((start, below)), Some((count, under)), true) = (start, count, owner.is(word)) else { continue };
        let reasons =
            [!more.is_empty(), below || under, count == 0, u128::from(start) + u128::from(count) > 0xffff_ffff];
        reasons.iter().zip(known.iter_mut()).for_each(|(is, many)| *many += u64::from(*is));
        if line.len() < 1024 && reasons.contains(&true) {
            all.push((start, count));
        }
    }
    all
}

/// A number, and whether it has been negative.
fn signed(field: &[u8]) -> Option<(u64, bool)> {
    let blanks = field.iter().take_while(|b| is_blank(**b)).count();
    match field[blanks..].strip_prefix(b"-") {
        Some(digits) if digits.first().is_some_and(u8::is_ascii_digit) => {
            Some((shadow_number(digits)?.wrapping_neg(), true))
        }
        Some(_) => None,
        None => Some((shadow_number(field)?, false)),
    }
}

fn text(random: &mut Random) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..1 + random.below(30) {
        if random.one_in(20) {
            // A long line; up to 1023 bytes are read.
            let many = 990 + random.below(60);
            text.extend(b"alice:".iter().chain(std::iter::repeat_n(&b' ', usize::try_from(many).unwrap())));
            text.extend(b"7:8\n");
            continue;
        }
        let owner = random.pick(&[
            "alice", "alice", "alice", "1501", "bob", "Alice", "alic", "alicea", "01501", "0x5dd", "+alice", "-alice",
            " alice", "alice ", "", "*", "@alice", "#alice", "\u{e9}",
        ]);
        text.extend(owner.bytes());
        for _ in 0..random.pick(&[2, 2, 2, 2, 2, 2, 1, 3, 0]) {
            text.push(if random.one_in(40) { b'\t' } else { b':' });
            number(random, &mut text);
        }
        text.extend(random.pick(&["", "", "", "", "", "", " ", "\r", "\t", "\x0b", " # x", "x", ":"]).bytes());
        if !random.one_in(40) {
            text.push(b'\n');
        }
        text.extend(random.pick(&["", "", "", "", "\n", "# a comment\n", "alice\n", ":::\n", "\x0c\n"]).bytes());
    }
    text
}

fn number(random: &mut Random, text: &mut Vec<u8>) {
    let bits = random.below(65);
    let value = if bits == 0 { 0 } else { random.below(u64::MAX) >> (64 - bits) };
    let value =
        random.pick(&[value, value, value, value & 0xffff_ffff, 100_000, 65536, 4_294_967_295, 4_294_967_294, 1]);
    let form = match random.below(14) {
        0 => format!("0x{value:x}"),
        1 => format!("0X{value:X}"),
        2 => format!("0{value:o}"),
        3 => format!("0{value}"),
        4 => format!("+{value}"),
        5 => format!("-{value}"),
        6 => format!("{}{value}", random.pick(&[" ", "\t", "\x0b", "\x0c", "\r", "  ", " +", "+ ", "++", "\u{a0}"])),
        7 => random
            .pick(&["", "0x", "0", "08", "0xg", "1e3", "١", "99999999999999999999", "1 ", "-", "+", "0x-1", "0+1"])
            .into(),
        _ => value.to_string(),
    };
    text.extend(form.bytes());
}

//! Command lines, what operands name, and words as shells read them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use common::cli::{Args, Cli, KINDS, Operands, Opt, Stage, flag, opt, valued};
use common::record::Address;
use common::target::Operand;
use common::word::{quote, unescape};

use super::message;

const OPTIONS: &[Opt] = &[opt("r", "map-root-user", "", ""), opt("S", "setuid", "UID", ""), valued("map", "MAP", "")];

const fn cli(operands: Operands) -> Cli {
    const GROUPS: &[&[Opt]] = &[KINDS, OPTIONS];
    Cli { name: "tool", purpose: "", usage: &["TARGET"], options: GROUPS, operands, runs: true, stage: Stage::No }
}

/// Options as getopt_long(3) has them: letters together, a value in the same word or the next one.
struct Read {
    given: Vec<(&'static str, Option<Vec<u8>>)>,
    operands: Vec<Vec<u8>>,
    program: Vec<Vec<u8>>,
}

fn slow(operands: Operands, words: &[&[u8]]) -> Option<Read> {
    let cli = cli(operands);
    let mut read = Read { given: Vec::new(), operands: Vec::new(), program: Vec::new() };
    let mut rest = words.iter().copied();
    while let Some(word) = rest.next() {
        if word == b"--" {
            let (after, program) = (rest.map(<[u8]>::to_vec), operands != Operands::Free);
            let after: Vec<_> = after.collect();
            let wanted = match operands {
                Operands::Program(wanted, _) => wanted.saturating_sub(read.operands.len()).min(after.len()),
                Operands::Free | Operands::FreeThenProgram => 0,
            };
            let (more, rest) = after.split_at(wanted);
            read.operands.extend_from_slice(more);
            if program { &mut read.program } else { &mut read.operands }.extend_from_slice(rest);
            return Some(read);
        }
        if let Some(long) = word.strip_prefix(b"--") {
            let equals = long.iter().position(|b| *b == b'=');
            let (name, value) = (&long[..equals.unwrap_or(long.len())], equals.map(|at| long[at + 1..].to_vec()));
            let option = cli.all().find(|o| o.long.as_bytes() == name)?;
            let value = match (option.value, value) {
                ("", Some(_)) => return None,
                ("", None) => None,
                (form, value) if form.starts_with('[') => value,
                (_, None) => Some(rest.next()?.to_vec()),
                (_, value) => value,
            };
            read.given.push((option.long, value));
        } else if let [b'-', letters @ ..] = word
            && !letters.is_empty()
        {
            let mut at = 0;
            while let Some(letter) = letters.get(at) {
                at += 1;
                let option = cli.all().find(|o| o.short.as_bytes() == [*letter])?;
                let mut value = None;
                if !option.value.is_empty() && !option.value.starts_with('[') {
                    value = Some(if at < letters.len() { letters[at..].to_vec() } else { rest.next()?.to_vec() });
                    at = letters.len();
                }
                read.given.push((option.long, value));
            }
        } else {
            let more = match operands {
                Operands::Free | Operands::FreeThenProgram => true,
                Operands::Program(wanted, _) => read.operands.len() < wanted,
            };
            if more {
                read.operands.push(word.to_vec());
            } else {
                read.program = std::iter::once(word).chain(rest).map(<[u8]>::to_vec).collect();
                return Some(read);
            }
        }
    }
    Some(read)
}

/// Words between NULs, as in /proc/PID/cmdline.
pub fn command_lines(bytes: &[u8]) {
    // Who starts a tool gives it no NUL in a word; many words take long to be read twice.
    let words: Vec<&[u8]> = bytes.split(|b| *b == 0).take(40).collect();
    let typed: Vec<OsString> = words.iter().map(|w| OsStr::from_bytes(w).to_owned()).collect();
    for operands in [Operands::Free, Operands::FreeThenProgram, Operands::Program(1, &[]), Operands::Program(2, &[])] {
        match (cli(operands).parse(&typed), slow(operands, &words)) {
            (Ok(args), Some(read)) => compare(&args, &read, operands),
            (Err(failure), None) => message(&failure.to_string()),
            (Ok(_), None) => panic!("taken, and is wrong"),
            (Err(failure), Some(_)) => panic!("right, and refused: {failure}"),
        }
    }
}

fn compare(args: &Args, read: &Read, operands: Operands) {
    let bytes = |words: &[OsString]| words.iter().map(|w| w.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!((bytes(&args.operands), bytes(&args.program)), (read.operands.clone(), read.program.clone()));
    for option in cli(operands).all() {
        let mine: Vec<_> = read.given.iter().filter(|(long, _)| *long == option.long).collect();
        let values: Vec<Vec<u8>> = mine.iter().filter_map(|(_, value)| value.clone()).collect();
        assert_eq!(bytes(&args.values(option.long)), values, "--{}", option.long);
        if option.value.is_empty() {
            assert_eq!(args.flag(option.long), !mine.is_empty(), "--{}", option.long);
        }
    }
    let order: Vec<&str> = args.in_order(&["setuid", "map"]).into_iter().map(|(long, _)| long).collect();
    let wanted = read.given.iter().map(|(long, _)| *long).filter(|long| ["setuid", "map"].contains(long));
    assert!(wanted.eq(order));
    // Nothing of this is an option of ours.
    assert!(!args.flag(flag("none", "").long));
}

/// A TARGET: what is shown of it is one line, and reads as the same.
pub fn operands(bytes: &[u8]) {
    for word in bytes.split(|b| *b == b'\n' || *b == 0) {
        let operand = match Operand::parse(OsStr::from_bytes(word)) {
            Ok(operand) => operand,
            Err(failure) => {
                message(&failure.to_string());
                continue;
            }
        };
        let shown = operand.to_string();
        assert!(!shown.chars().any(char::is_control));
        match &operand {
            Operand::File(path) => assert_eq!(shell(&shown), path.as_os_str().as_bytes()),
            // A name may look like another form, and has then been said to be one.
            Operand::Name(name) => assert_eq!(*name, shown),
            Operand::Stream | Operand::Process(_) | Operand::Descriptor(_) => {
                assert_eq!(Operand::parse(OsStr::new(&shown)), Ok(operand.clone()));
            }
        }
        if let Operand::Process(address) = operand {
            assert!(address.pid > 0 && address.inode.is_none_or(|inode| inode > 0));
            assert_eq!(Address::parse(shown.as_bytes()), Some(address));
        }
    }
}

/// A word as bash, ksh, zsh and fish read it, of the three forms that are written.
fn shell(text: &str) -> Vec<u8> {
    if let Some(plain) = text.strip_prefix('\'') {
        let plain = plain.strip_suffix('\'').unwrap();
        assert!(!plain.contains('\''));
        return plain.as_bytes().to_vec();
    }
    let Some(text) = text.strip_prefix("$'").and_then(|text| text.strip_suffix('\'')) else {
        assert!(!text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&b)));
        return text.as_bytes().to_vec();
    };
    let (mut read, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        assert_ne!(*first, b'\'');
        let (byte, length) = match (first, after) {
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'x', a, b, ..]) => {
                let digit = |d: &u8| u8::try_from(char::from(*d).to_digit(16).unwrap()).unwrap();
                (digit(a) << 4 | digit(b), 4)
            }
            (b'\\', [other @ (b'\\' | b'\''), ..]) => (*other, 2),
            (b'\\', _) => panic!("{text}"),
            _ => (*first, 1),
        };
        read.push(byte);
        rest = &rest[length..];
    }
    read
}

/// A word that is quoted is read back by a shell, and no terminal obeys it.
pub fn words(bytes: &[u8]) {
    let word = OsString::from_vec(bytes.to_vec());
    let quoted = quote(&word);
    assert!(!quoted.chars().any(char::is_control));
    assert_eq!(shell(&quoted), bytes);
    // One octal form for each byte reads as the byte; anything else stands for itself.
    let escaped: String = bytes.iter().map(|b| format!("\\{b:03o}")).collect();
    assert_eq!(unescape(escaped.as_bytes()), bytes);
    if !bytes.contains(&b'\\') {
        assert_eq!(unescape(bytes), bytes);
    }
}

//! What is fuzzed: each reader of text that may be anybody's, with what has to be true of it
//! whatever the text is. Where there is a second, slow and obvious reading of the same text it
//! stands here, and both have to agree.

#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

#[path = "../../bins/pivot-exec/fstab.rs"]
#[allow(dead_code)]
mod fstab;
mod ids;
mod lines;
#[path = "../../bins/subid-alloc/parsers.rs"]
#[allow(dead_code)]
mod parsers;
mod subid;
mod texts;

/// Whatever the bytes are, it does not panic.
pub type Target = fn(&[u8]);

/// Their names, which are those of the directories of the corpus.
pub const ALL: [(&str, Target); 14] = [
    ("containers", texts::containers),
    ("fstab", texts::fstab),
    ("lines", lines::command_lines),
    ("map", ids::maps),
    ("mountinfo", texts::mountinfo),
    ("nested", ids::nested),
    ("operands", lines::operands),
    ("passwd", texts::passwd),
    ("preset", ids::presets),
    ("record", texts::records),
    ("statmount", texts::statmount),
    ("status", texts::status),
    ("subid", subid::files),
    ("words", lines::words),
];

/// A message is one line, or some of the forms that follow one; a terminal obeys nothing in it.
fn message(text: &str) {
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    for line in text.split('\n').skip(1) {
        let forms = ["  because: ", "  try: ", "usage: ", "       "];
        assert!(forms.iter().any(|form| line.starts_with(form)), "{text:?}");
    }
}

/// Some numbers out of the first bytes, for what needs more than text; and what is left.
fn numbers<const N: usize>(bytes: &[u8]) -> Option<([u32; N], &[u8])> {
    let (head, rest) = bytes.split_at_checked(4 * N)?;
    let mut all = [0; N];
    for (number, four) in all.iter_mut().zip(head.chunks_exact(4)) {
        *number = u32::from_le_bytes(four.try_into().unwrap());
    }
    Some((all, rest))
}

//! What is different every time, but the same throughout a file: process numbers, inodes, dates.

use std::collections::BTreeMap;

/// The words of a file that stand for others of their shape: a number for a number, letters for
/// letters. From where one is first printed, in output and commands alike it is what came then.
#[derive(Default)]
pub(crate) struct Varies(BTreeMap<String, Option<String>>);

impl Varies {
    pub(crate) fn new(words: &[String]) -> Varies {
        Varies(words.iter().map(|word| (word.clone(), None)).collect())
    }

    /// A command with what is known by now.
    pub(crate) fn fill(&self, text: &str) -> String {
        let (mut filled, mut rest) = (String::new(), text);
        while let Some(letter) = rest.chars().next() {
            match self.word_at(&filled, rest) {
                Some((word, Some(known))) => {
                    filled.push_str(known);
                    rest = &rest[word.len()..];
                }
                Some((_, None)) | None => {
                    filled.push(letter);
                    rest = &rest[letter.len_utf8()..];
                }
            }
        }
        filled
    }

    /// Whether a line is as expected, which has to have such a word in it. Columns may have moved.
    pub(crate) fn fits(&self, want: &str, got: &str) -> bool {
        self.fit(want, got).is_some()
    }

    /// Learns the words of a line that fits. A word that comes twice is the same twice.
    pub(crate) fn learn(&mut self, want: &str, got: &str) -> Result<(), String> {
        for (word, value) in self.fit(want, got).unwrap_or_default() {
            match self.0.insert(word.clone(), Some(value.clone())) {
                Some(Some(before)) if before != value => {
                    return Err(format!("{word} is both {before} and {value}"));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn word_at(&self, before: &str, rest: &str) -> Option<(&str, Option<&str>)> {
        if before.ends_with(char::is_alphanumeric) {
            return None;
        }
        let starts = |word: &str| rest.strip_prefix(word).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
        let (word, known) = self.0.iter().find(|(word, _)| starts(word))?;
        Some((word, known.as_deref()))
    }

    fn fit(&self, want: &str, got: &str) -> Option<Vec<(String, String)>> {
        let (mut words, mut at, mut left) = (Vec::new(), 0, got.trim_start());
        let want = want.trim_start();
        while let Some(letter) = want[at..].chars().next() {
            if let Some((word, known)) = self.word_at(&want[..at], &want[at..]) {
                let length =
                    known.map_or_else(|| alike(word, left), |known| left.starts_with(known).then_some(known.len()))?;
                words.push((word.to_owned(), left[..length].to_owned()));
                (at, left) = (at + word.len(), &left[length..]);
            } else if letter == ' ' && left.starts_with(' ') {
                at += run(&want[at..], |c| c == ' ');
                left = left.trim_start_matches(' ');
            } else {
                (at, left) = (at + letter.len_utf8(), left.strip_prefix(letter)?);
            }
        }
        (left.is_empty() && !words.is_empty()).then_some(words)
    }
}

/// How long the text at the beginning of `text` is that has the shape of `word`.
fn alike(word: &str, text: &str) -> Option<usize> {
    let (mut w, mut t) = (0, 0);
    while let Some(letter) = word[w..].chars().next() {
        let class: fn(char) -> bool = match letter {
            '0'..='9' => |c| c.is_ascii_digit(),
            ' ' => |c| c == ' ',
            'a'..='z' | 'A'..='Z' => |c| c.is_ascii_alphabetic(),
            _ => {
                text[t..].strip_prefix(letter)?;
                (w, t) = (w + letter.len_utf8(), t + letter.len_utf8());
                continue;
            }
        };
        let length = run(&text[t..], class);
        if length == 0 {
            return None;
        }
        (w, t) = (w + run(&word[w..], class), t + length);
    }
    Some(t)
}

fn run(text: &str, class: impl Fn(char) -> bool) -> usize {
    text.len() - text.trim_start_matches(class).len()
}

//! What stands in a file.

use crate::world::{USERS, User};

/// A file as far as it concerns us.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) needs: Vec<String>,
    pub(crate) long: bool,
    /// Whether commands are typed on a terminal, as people do.
    pub(crate) terminal: bool,
    /// Words that stand for others of their shape, the same wherever they stand.
    pub(crate) varies: Vec<String>,
    /// System calls without which it differs, and no command says so.
    pub(crate) differs: Vec<String>,
    pub(crate) cases: Vec<Case>,
}

/// A command and what is expected of it.
pub(crate) struct Case {
    pub(crate) line: usize,
    pub(crate) user: &'static User,
    pub(crate) command: String,
    pub(crate) want: Vec<Want>,
    pub(crate) status: i32,
}

/// An expected line, and where it stands in the file.
pub(crate) struct Want {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Where in a file a line stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Outside,
    Session,
    /// In a fenced block of something else.
    Other,
}

pub(crate) fn parse(text: &str) -> Script {
    let mut script = Script::default();
    let mut place = Place::Outside;
    let mut block = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let fence = line.strip_prefix("```");
        match (place, fence, line.strip_prefix("    ")) {
            (Place::Session | Place::Other, None, _) => block.push((number, line)),
            (Place::Session, Some(_), _) => {
                script.cases.extend(cases(&block));
                block.clear();
                place = Place::Outside;
            }
            (Place::Other, Some(_), _) => {
                block.clear();
                place = Place::Outside;
            }
            (Place::Outside, None, Some(line)) => block.push((number, line)),
            (Place::Outside, None, None) if line.trim().is_empty() => block.push((number, "")),
            (Place::Outside, fence, _) => {
                script.cases.extend(cases(&without_layout(&block)));
                block.clear();
                if let Some(language) = fence {
                    place = if language == "console" { Place::Session } else { Place::Other };
                }
                script.needs.extend(words(line, "needs").map(String::from));
                script.differs.extend(words(line, "differs").map(String::from));
                script.varies.extend(words(line, "varies").map(|word| word.replace('_', " ")));
            }
        }
    }
    match place {
        Place::Outside => script.cases.extend(cases(&without_layout(&block))),
        Place::Session => script.cases.extend(cases(&block)),
        Place::Other => {}
    }
    script.long = script.needs.iter().any(|word| word == "long");
    script.terminal = script.needs.iter().any(|word| word == "terminal");
    script.needs.retain(|word| word != "long" && word != "terminal");
    script
}

/// The words of a comment `<!-- WHAT: WORD... -->`.
fn words<'a>(line: &'a str, what: &str) -> impl Iterator<Item = &'a str> {
    let rest = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_prefix(what)?.strip_prefix(':'));
    let words = rest.and_then(|rest| rest.split("-->").next());
    words.unwrap_or_default().split_whitespace()
}

/// An indented block without the empty lines around it and before its prompts: only between lines
/// of output can they be output.
fn without_layout<'a>(block: &[(usize, &'a str)]) -> Vec<(usize, &'a str)> {
    let mut kept = Vec::new();
    let mut empty = Vec::new();
    for &(number, line) in block {
        if line.is_empty() {
            empty.push((number, line));
            continue;
        }
        if prompt(line).is_none() && !kept.is_empty() {
            kept.append(&mut empty);
        }
        empty.clear();
        kept.push((number, line));
    }
    kept
}

fn prompt(line: &str) -> Option<(&'static User, &str)> {
    USERS.iter().find_map(|user| Some((user, line.strip_prefix(user.prompt)?)))
}

/// The commands of a block; none if it does not begin with a prompt, for then it is no session.
fn cases(block: &[(usize, &str)]) -> Vec<Case> {
    let mut found: Vec<Case> = Vec::new();
    for &(line, text) in block {
        if let Some((user, command)) = prompt(text) {
            let (command, want) = (command.to_owned(), Vec::new());
            found.push(Case { line, user, command, want, status: 0 });
            continue;
        }
        let Some(case) = found.last_mut() else {
            return found;
        };
        match text.strip_prefix('>').filter(|_| case.want.is_empty()) {
            Some(more) => {
                case.command.push('\n');
                case.command.push_str(more.strip_prefix(' ').unwrap_or(more));
            }
            None => case.want.push(Want { line, text: text.to_owned() }),
        }
    }
    for case in &mut found {
        if let Some(status) = case.want.last().and_then(|want| status(&want.text)) {
            case.status = status;
            case.want.pop();
        }
    }
    found
}

fn status(line: &str) -> Option<i32> {
    line.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

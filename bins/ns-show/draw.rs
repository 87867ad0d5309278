//! Maps drawn as intervals, side by side: a column for each extent, a row for
//! each level, inside over outside.
//!
//! ```text
//!  inside   0    | 1 ......... 65536 |
//!  here     1501 | 100000 ... 165535 |
//! ```

use std::fmt::Write as _;

use common::id::Range;

/// One row: a level and its part of each column; None where it is not known.
pub(crate) struct Row {
    /// What the level is called.
    pub(crate) label: String,
    /// Its ids.
    pub(crate) cells: Vec<Option<Range>>,
}

/// The rows as text at most `width` wide, wrapped between columns; in colours
/// that tell the columns apart.
pub(crate) fn intervals(rows: &[Row], width: usize, indent: &str) -> String {
    let label = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let room = width.saturating_sub(indent.len() + label + 3).max(20);
    let count = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    let columns: Vec<Vec<Option<Range>>> =
        (0..count).map(|at| rows.iter().map(|row| row.cells.get(at).copied().flatten()).collect()).collect();
    let mut text = String::new();
    let mut from = 0;
    while from < count {
        let mut widths: Vec<usize> = Vec::new();
        for column in &columns[from..] {
            let least = column.iter().map(|cell| least(*cell)).max().unwrap_or(1) + 3;
            if !widths.is_empty() && widths.iter().sum::<usize>() + least > room {
                break;
            }
            widths.push(least);
        }
        stretch(&mut widths, &columns[from..], room);
        for (n, row) in rows.iter().enumerate() {
            // Writing to a String cannot fail, here and below.
            let _ = write!(text, "{indent}{:label$}  ", row.label);
            for (at, width) in widths.iter().enumerate() {
                let cell = cell(columns[from + at][n], width.saturating_sub(3));
                let _ = write!(text, "\x1b[{}m {cell} \x1b[0m|", COLOURS[(from + at) % COLOURS.len()]);
            }
            text.push('\n');
        }
        from += widths.len();
        if from < count {
            text.push('\n');
        }
    }
    text
}

/// Black on colours that every terminal has.
const COLOURS: [&str; 6] = ["30;46", "30;42", "30;43", "30;45", "30;47", "30;44"];

/// Wide columns for many ids: what is left is shared by the number of digits
/// of their counts.
fn stretch(widths: &mut [usize], columns: &[Vec<Option<Range>>], room: usize) {
    let digits = |column: &Vec<Option<Range>>| {
        let count = column.iter().flatten().map(|r| r.count).max().unwrap_or(1);
        usize::try_from(count.ilog2()).unwrap_or(0)
    };
    let all: usize = columns.iter().take(widths.len()).map(digits).sum();
    // A picture that is no wider than it has to be can still be pasted.
    let left = room.min(100).saturating_sub(widths.iter().sum());
    for (width, column) in widths.iter_mut().zip(columns) {
        *width += (left * digits(column)).checked_div(all).unwrap_or(0);
    }
}

fn least(cell: Option<Range>) -> usize {
    cell.map_or(4, |range| range.to_string().len())
}

/// One cell, `width` wide: the first id on the left, the last on the right.
fn cell(cell: Option<Range>, width: usize) -> String {
    let Some(range) = cell else { return format!("{:width$}", "none") };
    if range.count == 1 {
        return format!("{:<width$}", range.first);
    }
    let (first, last) = (range.first.to_string(), (range.end() - 1).to_string());
    match width.saturating_sub(first.len() + last.len()) {
        0..=2 => format!("{:width$}", range.to_string()),
        gap => format!("{first} {} {last}", ".".repeat(gap - 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(rows: &[Row], width: usize) -> String {
        let mut text = intervals(rows, width, "");
        for colour in COLOURS.iter().chain(&["0"]) {
            text = text.replace(&format!("\x1b[{colour}m"), "");
        }
        text
    }

    fn row(label: &str, cells: &[(u64, u64)]) -> Row {
        Row { label: label.into(), cells: cells.iter().map(|(f, n)| Range::new(*f, *n)).collect() }
    }

    #[test]
    fn inside_over_outside() {
        let rows = [row("inside", &[(0, 1), (1, 65536)]), row("here", &[(1501, 1), (100_000, 65536)])];
        assert_eq!(
            plain(&rows, 50),
            "inside   0    | 1 ....................... 65536 |\nhere     1501 | 100000 ................. 165535 |\n"
        );
    }

    #[test]
    fn narrow_terminals_wrap() {
        let rows = [row("in", &[(0, 1), (1, 9), (10, 5)]), row("out", &[(4_000_000_000, 1), (1000, 9), (7, 5)])];
        let text = plain(&rows, 30);
        assert!(text.lines().all(|line| line.len() <= 30), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("out")).count(), 2, "{text}");
    }

    #[test]
    fn what_is_not_mapped() {
        let rows = [row("in", &[(3, 2)]), Row { label: "out".into(), cells: vec![None] }];
        assert!(plain(&rows, 80).contains("out   none"));
    }
}

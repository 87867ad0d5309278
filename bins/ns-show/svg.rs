//! The same pictures for slides: one self-contained SVG, no script, no font
//! and no file besides. A map is drawn as two bars, its ids in their order on
//! each, and what belongs together is joined.

use std::fmt::Write as _;

use common::id::{Both, Extent, Kind as IdKind, Range};
use common::ns::{INITIAL_USER, Kind};
use common::scan::Space;
use common::word::quote;

use crate::draw::Row;
use crate::process::{Process, rows};
use crate::tree::{NOT_OURS, Names, Overview};

/// Of a character of the font, in pixels.
const CHAR: usize = 7;
/// Of a line of text.
const LINE: usize = 17;
/// Of a bar.
const BAR: usize = 24;
/// Between two bars.
const GAP: usize = 30;
/// Between two extents, where ids are left out.
const APART: usize = 14;
/// Of what is left of the bars: the name of each.
const LABEL: usize = 190;
/// Of all bars of a row, as much as a slide takes; further extents are counted.
const WIDE: usize = 900;
/// So many characters of a line are shown.
const CUT: usize = 110;

const COLOURS: [&str; 6] = ["#8ecae6", "#b7e4c7", "#ffd166", "#e0b1cb", "#c8c6f5", "#f4b183"];

/// A picture that grows downwards.
#[derive(Default)]
struct Canvas {
    body: String,
    width: usize,
    y: usize,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Canvas {
    fn text(&mut self, x: usize, y: usize, class: &str, text: &str) {
        let cut: String = text.chars().take(CUT).collect();
        let cut = if cut.len() < text.len() { format!("{cut}...") } else { cut };
        let char = if class == "title" { CHAR + 4 } else { CHAR + usize::from(class == "head") };
        self.width = self.width.max(x + cut.chars().count() * char);
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.body, r#"<text class="{class}" x="{x}" y="{y}">{}</text>"#, escaped(&cut));
    }

    fn line(&mut self, x: usize, class: &str, text: &str) {
        self.y += LINE;
        let y = self.y;
        self.text(x, y, class, text);
    }

    /// A bar for each row, and between them what an extent of one is in the
    /// next.
    fn bars(&mut self, x: usize, rows: &[Row]) {
        let count = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        let mut wide = 0;
        let fits = |width: &usize| {
            wide += width + APART;
            wide <= WIDE
        };
        let widths: Vec<usize> = (0..count).map(|at| width(rows, at)).take_while(fits).collect();
        let shown = widths.len();
        let mut above: Vec<Option<usize>> = Vec::new();
        self.y += 10;
        for row in rows {
            if !above.is_empty() {
                self.y += GAP;
            }
            let y = self.y;
            self.text(x, y + BAR - 8, "label", &row.label);
            let places = places(&row.cells[..shown.min(row.cells.len())], &widths, x + LABEL);
            for (at, (place, above)) in places.iter().zip(above.iter().chain(std::iter::repeat(&None))).enumerate() {
                let (Some(place), Some(above)) = (place, above) else { continue };
                self.join(*above, *place, widths[at], at);
            }
            for (at, place) in places.iter().enumerate() {
                let (Some(place), Some(range)) = (place, row.cells[at]) else { continue };
                self.cell(*place, widths[at], at, range);
            }
            above = places;
            self.y += BAR;
        }
        if shown < count {
            self.line(x + LABEL, "note", &format!("and {} extents more", count - shown));
        }
        self.y += 6;
    }

    fn cell(&mut self, x: usize, width: usize, at: usize, range: Range) {
        let (y, colour) = (self.y, COLOURS[at % COLOURS.len()]);
        self.width = self.width.max(x + width);
        let _ = writeln!(
            self.body,
            r##"<rect x="{x}" y="{y}" width="{width}" height="{BAR}" fill="{colour}" stroke="#333"/>"##
        );
        let _ = writeln!(self.body, r#"<text class="id" x="{}" y="{}">{range}</text>"#, x + width / 2, y + BAR - 8);
    }

    /// From the bar above to the one at hand.
    fn join(&mut self, above: usize, below: usize, width: usize, at: usize) {
        let (top, bottom) = (self.y - GAP, self.y);
        let (colour, right, end) = (COLOURS[at % COLOURS.len()], above + width, below + width);
        let _ = writeln!(
            self.body,
            r#"<polygon points="{above},{top} {right},{top} {end},{bottom} {below},{bottom}" fill="{colour}" fill-opacity="0.4"/>"#
        );
    }

    fn finish(self, title: &str) -> Vec<u8> {
        let (width, height) = (self.width + 20, self.y + 20);
        let title = escaped(title);
        let style = "text{white-space:pre;font:12px 'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#222}\
                     .title{font-size:18px;font-weight:bold}.head{font-weight:bold;font-size:13px}\
                     .id{text-anchor:middle;font-size:11px}.label{font-size:11px}.note{fill:#555;font-size:11px}";
        let head = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title>{title}</title>
<style>{style}</style>
<rect width="{width}" height="{height}" fill="#fff"/>
"##
        );
        (head + &self.body + "</svg>\n").into_bytes()
    }
}

/// Of one extent: its longest name, and more for more ids.
fn width(rows: &[Row], at: usize) -> usize {
    let cells = || rows.iter().filter_map(|row| row.cells.get(at).copied().flatten());
    let text = cells().map(|range| range.to_string().len()).max().unwrap_or(1) * CHAR + 12;
    let count = cells().map(|range| range.count).max().unwrap_or(1);
    text.max(28) + usize::try_from(count.ilog2()).unwrap_or(0) * 5
}

/// Where each extent begins on a bar: in the order of its ids there, with a gap
/// where ids are left out.
fn places(cells: &[Option<Range>], widths: &[usize], from: usize) -> Vec<Option<usize>> {
    let mut order: Vec<(Range, usize)> = Vec::new();
    for (at, range) in cells.iter().enumerate().filter_map(|(at, cell)| Some((at, (*cell)?))) {
        order.insert(order.partition_point(|(other, _)| *other < range), (range, at));
    }
    let mut places = vec![None; cells.len()];
    let (mut x, mut end) = (from, None);
    for (range, at) in order {
        if end.is_some_and(|end| end != u64::from(range.first)) {
            x += APART;
        }
        places[at] = Some(x);
        x += widths[at];
        end = Some(range.end());
    }
    places
}

/// The tree of all user namespaces.
pub(crate) fn overview(all: &Overview, names: &Names) -> Vec<u8> {
    let mut canvas = Canvas { y: 14, width: 700, ..Canvas::default() };
    canvas.line(20, "title", "User namespaces, and what each owns");
    canvas.y += 12;
    for root in all.roots() {
        branch(all, names, root, 20, &mut canvas);
    }
    let unseen = crate::tree::unseen(all);
    if !unseen.is_empty() {
        canvas.line(20, "note", unseen.trim_end());
    }
    canvas.finish("user namespaces")
}

fn branch(all: &Overview, names: &Names, this: &Space, x: usize, canvas: &mut Canvas) {
    let inode = this.inode;
    let top = canvas.y;
    let head = all.head(this, names);
    canvas.line(x + 12, "head", &head);
    canvas.line(x + 12, "text", &all.kept(this, names, 4).join("; "));
    let owned = all.owned(Some(inode));
    for space in owned.iter().filter(|s| s.kind != Kind::User) {
        let name = format!("{}:[{}]", space.kind.link(), space.inode);
        canvas.line(x + 24, "note", &format!("{name:<19} {}", all.kept(space, names, 2).join("; ")));
    }
    if inode != INITIAL_USER {
        match all.maps(inode) {
            Some(both) => maps(both, all.is_ours(inode), x + 12, canvas),
            None => canvas.line(x + 12, "note", NOT_OURS),
        }
    }
    canvas.y += 8;
    let (height, bottom) = (canvas.y - top - 2, canvas.y + 8);
    let box_width = 6;
    let _ = writeln!(
        canvas.body,
        r##"<rect x="{x}" y="{}" width="{box_width}" height="{height}" rx="3" fill="#457b9d"/>"##,
        top + 4
    );
    canvas.y = bottom;
    for child in owned.into_iter().filter(|s| s.kind == Kind::User) {
        let (from, at) = (x + 3, canvas.y + 12);
        let _ = writeln!(
            canvas.body,
            r##"<path d="M{from} {} V{at} H{}" fill="none" stroke="#457b9d" stroke-width="1.5"/>"##,
            bottom - 8,
            x + 34
        );
        branch(all, names, child, x + 34, canvas);
    }
}

fn maps(maps: &Both<Vec<Extent>>, ours: bool, x: usize, canvas: &mut Canvas) {
    let same = maps.uid == maps.gid;
    for kind in IdKind::BOTH {
        let word = if same { "uid and gid" } else { kind.word() };
        let extents = maps.of(kind);
        if same && kind == IdKind::Gid {
            continue;
        }
        if extents.is_empty() {
            canvas.line(x, "note", &format!("{word}: not mapped"));
            continue;
        }
        let cells = |side: fn(&Extent) -> Range| extents.iter().map(|e| Some(side(e))).collect();
        let there = if ours { "outside" } else { "here" };
        canvas.bars(
            x,
            &[
                Row { label: format!("{word} inside"), cells: cells(|e| e.inside()) },
                Row { label: there.to_owned(), cells: cells(|e| e.outside()) },
            ],
        );
    }
}

/// One process: its user namespaces from the inside out, one bar each.
pub(crate) fn process(it: &Process) -> Vec<u8> {
    let mut canvas = Canvas { y: 14, width: 500, ..Canvas::default() };
    let title = format!("process {} ({})", it.target.address, quote(&it.name));
    canvas.line(20, "title", &title);
    canvas.y += 8;
    for space in &it.spaces {
        let shared = if space.shared { "shared with us" } else { "another" };
        canvas.line(20, "text", &format!("{:<7} {:<11} {shared}", space.link(), space.inode));
    }
    for kind in IdKind::BOTH {
        canvas.y += 12;
        if it.maps.of(kind).is_empty() {
            canvas.line(20, "head", &format!("{}: not mapped", kind.word()));
            continue;
        }
        canvas.line(20, "head", kind.word());
        canvas.bars(20, &rows(&it.levels, kind));
    }
    canvas.finish(&title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_the_order_of_their_ids() {
        let cells: Vec<Option<Range>> =
            [(100_000, 10), (1000, 1), (100_010, 5)].iter().map(|(f, n)| Range::new(*f, *n)).collect();
        // 1000, a gap, then the two that touch.
        assert_eq!(places(&cells, &[50, 30, 40], 0), [Some(44), Some(0), Some(94)]);
        assert_eq!(places(&[None, cells[1]], &[50, 30], 5), [None, Some(5)]);
    }

    #[test]
    fn text_stays_text() {
        let mut canvas = Canvas::default();
        canvas.line(0, "x", "</text><script>&\"");
        assert!(!canvas.body.contains("<script"));
        assert!(canvas.body.contains("&lt;/text&gt;&lt;script&gt;&amp;&quot;"));
    }
}

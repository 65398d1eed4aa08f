//! Tables for people, JSON for programs.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::shown::Shown;
use crate::fault::{Fault, OrFault, Result, harmless, is_harmless};

/// How a command answers.
#[derive(Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether programs read the output.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// The value as JSON, or what `table` makes of it.
    pub fn show<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> Table) -> Result<()> {
        if self.json { json(value) } else { table(value).print() }
    }
}

/// Writes a value as JSON, whose strings tell a terminal nothing.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let mut text = String::new();
    for c in serde_json::to_string_pretty(value).or_fault("writing JSON")?.chars() {
        if is_harmless(c) || c == '\n' {
            text.push(c);
        } else {
            // Only inside a string, where JSON has the same for it.
            let mut units = [0; 2];
            text.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text.push('\n');
    write(text.as_bytes())
}

/// Writes to standard output.
pub(super) fn write(text: &[u8]) -> Result<()> {
    Stream::stdout(false).write(text)
}

/// Where the bytes of an instance, or text in which others' words may stand, go. The one place
/// that decides what a terminal is told.
pub(super) struct Stream {
    is_error: bool,
    /// Where it is a terminal.
    shown: Option<Shown>,
}

impl Stream {
    /// Standard output. As it is to a pipe or file; `raw` also to a terminal.
    pub fn stdout(raw: bool) -> Stream {
        Stream::new(false, raw || !std::io::stdout().is_terminal())
    }

    /// Standard error, by the same rule.
    pub fn stderr(raw: bool) -> Stream {
        Stream::new(true, raw || !std::io::stderr().is_terminal())
    }

    fn new(is_error: bool, as_it_is: bool) -> Stream {
        Stream { is_error, shown: (!as_it_is).then(Shown::default) }
    }

    /// Writes some of it. A reader that has enough, such as `head`, is no fault.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.shown {
            None => self.put(bytes),
            Some(shown) => {
                let text = shown.next(bytes);
                self.put(text.as_bytes())
            }
        }
    }

    fn put(&self, bytes: &[u8]) -> Result<()> {
        fn all(mut to: impl Write, bytes: &[u8]) -> std::io::Result<()> {
            to.write_all(bytes).and_then(|()| to.flush())
        }
        if self.is_error {
            // A closed standard error is the caller's wish.
            let _ = all(std::io::stderr().lock(), bytes);
            return Ok(());
        }
        match all(std::io::stdout().lock(), bytes) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).or_fault("writing the output"),
            _ => Ok(()),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(shown) = &mut self.shown {
            let text = shown.end();
            // What ends here was cut short; of that, nobody waits for a fault.
            let _ = self.put(text.as_bytes());
        }
    }
}

/// Columns as wide as they must be.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a head; an empty head is not printed.
    pub fn new(head: &[&str]) -> Table {
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        Table { rows: if head.is_empty() { vec![] } else { vec![head] } }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// As text.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| shown(cell).chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> =
                cells.map(|(cell, width)| format!("{:width$}", shown(cell))).collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    /// Writes it to standard output.
    pub fn print(&self) -> Result<()> {
        write(self.render().as_bytes())
    }
}

/// A cell that cannot leave its place: names and faults may hold anything.
fn shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    harmless(&cell.replace(['\n', '\t'], " ")).into_owned()
}

/// Bytes with a binary unit, e.g. `1.5 GiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$} {}", units[unit])
}

/// How long ago something was, e.g. `3d 4h`.
pub(super) fn since(then: DateTime<Utc>) -> String {
    duration(u64::try_from((Utc::now() - then).num_seconds()).unwrap_or(0))
}

/// Seconds in the two largest units.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A fault's text for a terminal, its lines as they are: a message about a file has several.
pub(super) fn told(text: &str) -> String {
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

/// Says what went wrong, in a line or two.
pub(super) fn complain(fault: &Fault) -> ExitCode {
    let field = fault.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
    // Standard error may be a file on a full disk, of which eprintln! would panic.
    let _ = writeln!(std::io::stderr(), "berth: {}", told(&format!("{field}{}", fault.detail)));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_keep_control_characters_out() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(["1".into(), "größe\x1b[2J".into()]);
        table.row(["10".into(), String::new()]);
        table.row(["2".into(), "two\nlines".into()]);
        let shown = "ID  NAME\n1   größe\\u{1b}[2J\n10  -\n2   two lines\n";
        assert_eq!(table.render(), shown);
    }

    #[test]
    fn quantities() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 30, "200 GiB")]
        {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [(59, "59s"), (61, "1m 1s"), (7260, "2h 1m"), (90_000, "1d 1h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}

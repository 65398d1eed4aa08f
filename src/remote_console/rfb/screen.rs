//! The terminal that a console writes to, and what of it a client has not seen.

use std::num::NonZeroU16;

use vt100::{Callbacks, Color, Parser};

/// Columns of a console's screen.
pub(super) const COLUMNS: u16 = 80;
/// Its rows.
pub(super) const ROWS: u16 = 24;

/// The sixteen colours of a Linux console, then grey on black for those by default.
const PALETTE: [[u8; 3]; 16] = [
    [0, 0, 0],
    [170, 0, 0],
    [0, 170, 0],
    [170, 85, 0],
    [0, 0, 170],
    [170, 0, 170],
    [0, 170, 170],
    [170, 170, 170],
    [85, 85, 85],
    [255, 85, 85],
    [85, 255, 85],
    [255, 255, 85],
    [85, 85, 255],
    [255, 85, 255],
    [85, 255, 255],
    [255, 255, 255],
];
const FOREGROUND: [u8; 3] = PALETTE[7];
const BACKGROUND: [u8; 3] = PALETTE[0];

/// A character and how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub character: char,
    pub foreground: [u8; 3],
    pub background: [u8; 3],
    pub bold: bool,
    pub underline: bool,
}

/// Cells of one row that a client is to be shown.
#[derive(Debug)]
pub(super) struct Change {
    pub row: u16,
    /// Of the first cell.
    pub column: u16,
    pub cells: Vec<Cell>,
}

/// The terminal's answers to what the console asks it.
#[derive(Default)]
struct Answers(Vec<u8>);

impl Callbacks for Answers {
    fn unhandled_csi(
        &mut self,
        screen: &mut vt100::Screen,
        first: Option<u8>,
        _: Option<u8>,
        parameters: &[&[u16]],
        end: char,
    ) {
        match (first, parameters, end) {
            // Device status, and where the cursor is: shells and editors ask before they draw.
            (None, [[5]], 'n') => self.0.extend(b"\x1b[0n"),
            (None, [[6]], 'n') => {
                let (row, column) = screen.cursor_position();
                self.0.extend(format!("\x1b[{};{}R", row + 1, column + 1).as_bytes());
            }
            // What it is: a VT102.
            (None, [] | [[0]], 'c') => self.0.extend(b"\x1b[?6c"),
            _ => {}
        }
    }
}

/// A terminal, and what its client has been shown of it.
pub(super) struct Screen {
    terminal: Parser<Answers>,
    /// Row by row; `None`: it has seen nothing there.
    shown: Vec<Option<Cell>>,
    changed: bool,
}

impl Screen {
    pub fn new() -> Screen {
        let size = |count| NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
        let terminal = Parser::new_with_callbacks(size(ROWS), size(COLUMNS), 0, Answers::default());
        let shown = vec![None; usize::from(ROWS) * usize::from(COLUMNS)];
        Screen { terminal, shown, changed: true }
    }

    /// Takes what the console writes; gives what the terminal answers.
    pub fn write(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.terminal.process(bytes);
        self.changed = true;
        std::mem::take(&mut self.terminal.callbacks_mut().0)
    }

    /// Begins anew with what the console wrote before; what it asked is answered long ago.
    pub fn replay(&mut self, said: &[u8]) {
        self.write(b"\x1bc");
        self.write(said);
    }

    /// Whether there may be something to show.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The client is to be shown everything.
    pub fn forget(&mut self) {
        self.shown.fill(None);
        self.changed = true;
    }

    /// Whether the arrow keys are the application's.
    pub fn application_cursor(&self) -> bool {
        self.terminal.screen().application_cursor()
    }

    /// What the client has not seen, from now on seen. Where there is nothing, the first cell: an
    /// update has at least one rectangle.
    pub fn changes(&mut self) -> Vec<Change> {
        self.changed = false;
        let mut changes = Vec::new();
        for row in 0..ROWS {
            let cells: Vec<Cell> = (0..COLUMNS).map(|column| self.cell(row, column)).collect();
            let first = usize::from(row) * usize::from(COLUMNS);
            let shown = &mut self.shown[first..first + usize::from(COLUMNS)];
            let differs = |(now, seen): (&Cell, &Option<Cell>)| Some(*now) != *seen;
            let Some(from) = cells.iter().zip(&*shown).position(differs) else { continue };
            let to = cells.iter().zip(&*shown).rposition(differs).unwrap_or(from);
            cells.iter().zip(shown.iter_mut()).for_each(|(now, seen)| *seen = Some(*now));
            let column = u16::try_from(from).unwrap_or(0);
            changes.push(Change { row, column, cells: cells[from..=to].to_vec() });
        }
        if changes.is_empty() {
            changes.push(Change { row: 0, column: 0, cells: vec![self.cell(0, 0)] });
        }
        changes
    }

    fn cell(&self, row: u16, column: u16) -> Cell {
        let screen = self.terminal.screen();
        let Some(cell) = screen.cell(row, column) else {
            return Cell {
                character: ' ',
                foreground: FOREGROUND,
                background: BACKGROUND,
                bold: false,
                underline: false,
            };
        };
        let mut foreground = colour(cell.fgcolor(), FOREGROUND, cell.bold());
        let mut background = colour(cell.bgcolor(), BACKGROUND, false);
        let cursor = !screen.hide_cursor() && screen.cursor_position() == (row, column);
        if cell.inverse() != cursor {
            (foreground, background) = (background, foreground);
        }
        Cell {
            character: cell.contents().chars().next().unwrap_or(' '),
            foreground,
            background,
            bold: cell.bold(),
            underline: cell.underline(),
        }
    }
}

fn colour(colour: Color, default: [u8; 3], bright: bool) -> [u8; 3] {
    match colour {
        Color::Default => default,
        Color::Rgb(red, green, blue) => [red, green, blue],
        Color::Idx(index @ 0..8) if bright => PALETTE[usize::from(index) + 8],
        Color::Idx(index @ 0..16) => PALETTE[usize::from(index)],
        // A cube of six by six by six, then greys.
        Color::Idx(index @ 16..232) => {
            let level = |step: u8| if step == 0 { 0 } else { 55 + 40 * step };
            let index = index - 16;
            [level(index / 36), level(index / 6 % 6), level(index % 6)]
        }
        Color::Idx(index) => [8 + 10 * (index - 232); 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(change: &Change) -> String {
        change.cells.iter().map(|cell| cell.character).collect()
    }

    #[test]
    fn a_client_is_shown_what_it_has_not_seen() {
        let mut screen = Screen::new();
        assert_eq!(screen.changes().len(), 24);
        assert!(!screen.is_changed());
        screen.write(b"\x1b[3;5Hhello\x1b[31mred\x1b[?25l");
        let changes = screen.changes();
        // The cursor left the first row.
        assert_eq!(changes.iter().map(|c| (c.row, c.column)).collect::<Vec<_>>(), [(0, 0), (2, 4)]);
        assert_eq!(text(&changes[1]), "hellored");
        assert_eq!(changes[1].cells[7].foreground, [170, 0, 0]);
        // Nothing new: still an update.
        screen.write(b"\x1b[m");
        assert_eq!(screen.changes().len(), 1);
        screen.forget();
        assert_eq!(screen.changes().len(), 24);
    }

    #[test]
    fn the_terminal_answers_what_is_asked_of_it_now() {
        let mut screen = Screen::new();
        screen.replay(b"\x1b[6n");
        assert_eq!(screen.write(b"\x1b[2;7H\x1b[6n"), b"\x1b[2;7R");
        assert_eq!(screen.write(b"\x1b[c\x1b[5n"), b"\x1b[?6c\x1b[0n");
    }

    #[test]
    fn whatever_a_console_writes_is_drawn_within_the_screen() {
        let mut screen = Screen::new();
        let mut state = 1_u32;
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..200)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let alphabet =
                        b"\x1b\x1b[[;;??0123456789hlmHJKLMPXABCDfrsun \n\r\t\xe2\x94\x80\xff";
                    alphabet[(state >> 16) as usize % alphabet.len()]
                })
                .collect();
            screen.write(&bytes);
            for change in screen.changes() {
                assert!(change.row < ROWS);
                assert!(usize::from(change.column) + change.cells.len() <= usize::from(COLUMNS));
            }
        }
    }
}

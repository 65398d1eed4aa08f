//! Cells as pixels.

use super::glyphs;
use super::screen::{COLUMNS, Change, ROWS};

/// Width of the screen in pixels.
pub(super) const WIDTH: u16 = COLUMNS * glyphs::WIDTH;
/// Its height.
pub(super) const HEIGHT: u16 = ROWS * glyphs::HEIGHT;

/// A rectangle of the screen.
pub(super) struct Picture {
    pub x: u16,
    pub y: u16,
    pub width: u16,
    pub height: u16,
    /// Red, green and blue, from left to right, then down.
    pub pixels: Vec<[u8; 3]>,
}

/// Draws cells.
pub(super) fn draw(change: &Change) -> Picture {
    let count = u16::try_from(change.cells.len()).unwrap_or(COLUMNS);
    let width = count * glyphs::WIDTH;
    let mut pixels = Vec::with_capacity(usize::from(width) * usize::from(glyphs::HEIGHT));
    for y in 0..glyphs::HEIGHT {
        for cell in &change.cells {
            let underlined = cell.underline && y + 2 == glyphs::HEIGHT;
            for x in 0..glyphs::WIDTH {
                let ink =
                    if underlined { 255 } else { glyphs::ink(cell.character, cell.bold, x, y) };
                pixels.push(mixed(cell.background, cell.foreground, ink));
            }
        }
    }
    let (x, y) = (change.column * glyphs::WIDTH, change.row * glyphs::HEIGHT);
    Picture { x, y, width, height: glyphs::HEIGHT, pixels }
}

fn mixed(from: [u8; 3], to: [u8; 3], ink: u8) -> [u8; 3] {
    std::array::from_fn(|i| {
        let (from, to, ink) = (u32::from(from[i]), u32::from(to[i]), u32::from(ink));
        // At most 255: both are.
        ((from * (255 - ink) + to * ink) / 255) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::super::screen::Screen;
    use super::*;

    #[test]
    fn letters_have_ink_and_the_cursor_is_a_block() {
        let mut screen = Screen::new();
        screen.write(b"\x1b[44mX\x1b[m");
        let changes = screen.changes();
        let picture = draw(&changes[0]);
        assert_eq!((picture.width, picture.height), (WIDTH, glyphs::HEIGHT));
        assert_eq!(picture.pixels.len(), usize::from(WIDTH) * usize::from(glyphs::HEIGHT));
        let cell = |column: usize| -> Vec<[u8; 3]> {
            let width = usize::from(glyphs::WIDTH);
            let rows = picture.pixels.chunks(usize::from(WIDTH));
            rows.flat_map(|row| row[column * width..][..width].to_vec()).collect()
        };
        assert!(cell(0).contains(&[0, 0, 170]) && cell(0).contains(&[170, 170, 170]));
        assert!(cell(1).iter().all(|pixel| *pixel == [170, 170, 170]), "the cursor");
        assert!(cell(2).iter().all(|pixel| *pixel == [0, 0, 0]));
    }
}

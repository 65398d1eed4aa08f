//! Characters as pixels: Noto Sans Mono, and by hand what a terminal draws frames with.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const SIZE: RasterHeight = RasterHeight::Size20;
/// Width of a character in pixels.
pub(super) const WIDTH: u16 = get_raster_width(FontWeight::Regular, SIZE) as u16;
/// Its height.
pub(super) const HEIGHT: u16 = SIZE as u16;

/// How much of a character is at a pixel, 0 to 255.
pub(super) fn ink(character: char, bold: bool, x: u16, y: u16) -> u8 {
    if let Some(drawn) = drawn(character, x, y) {
        return drawn;
    }
    let weight = if bold { FontWeight::Bold } else { FontWeight::Regular };
    let glyph = get_raster(character, weight, SIZE)
        .or_else(|| get_raster(char::REPLACEMENT_CHARACTER, weight, SIZE))
        .or_else(|| get_raster('?', weight, SIZE));
    glyph.and_then(|glyph| glyph.pixel(x.into(), y.into())).unwrap_or(0)
}

/// Lines, blocks and shades.
fn drawn(character: char, x: u16, y: u16) -> Option<u8> {
    let full = |yes: bool| Some(if yes { 255 } else { 0 });
    match character {
        ' ' | '\u{a0}' => return Some(0),
        '▀' => return full(y < HEIGHT / 2),
        '▄' => return full(y >= HEIGHT / 2),
        '█' => return full(true),
        '▌' => return full(x < WIDTH / 2),
        '▐' => return full(x >= WIDTH / 2),
        '░' => return Some(64),
        '▒' => return Some(128),
        '▓' => return Some(192),
        _ => {}
    }
    let (left, right, up, down) = arms(character)?;
    let (middle, centre) = (WIDTH / 2, HEIGHT / 2);
    let across = y == centre && ((left && x <= middle) || (right && x >= middle));
    let along = x == middle && ((up && y <= centre) || (down && y >= centre));
    full(across || along)
}

/// Where the lines of a frame's character go from its middle: left, right, up, down. Heavy, double
/// and round ones are drawn as the light ones.
fn arms(character: char) -> Option<(bool, bool, bool, bool)> {
    Some(match character {
        '─' | '━' | '═' | '╌' | '┄' => (true, true, false, false),
        '│' | '┃' | '║' | '╎' | '┆' => (false, false, true, true),
        '┌' | '┏' | '╔' | '╭' => (false, true, false, true),
        '┐' | '┓' | '╗' | '╮' => (true, false, false, true),
        '└' | '┗' | '╚' | '╰' => (false, true, true, false),
        '┘' | '┛' | '╝' | '╯' => (true, false, true, false),
        '├' | '┣' | '╠' => (false, true, true, true),
        '┤' | '┫' | '╣' => (true, false, true, true),
        '┬' | '┳' | '╦' => (true, true, false, true),
        '┴' | '┻' | '╩' => (true, true, true, false),
        '┼' | '╋' | '╬' => (true, true, true, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(character: char) -> Vec<u8> {
        (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| ink(character, false, x, y))).collect()
    }

    #[test]
    fn characters_look_different() {
        let seen: Vec<Vec<u8>> = "aAzZ09@é─│┼█▄\u{4e00}".chars().map(picture).collect();
        for (i, one) in seen.iter().enumerate() {
            assert!(one.iter().any(|ink| *ink > 100), "{i} is empty");
            assert!(seen[..i].iter().all(|other| other != one), "{i} is another's");
        }
        assert!(picture(' ').iter().all(|ink| *ink == 0));
    }
}

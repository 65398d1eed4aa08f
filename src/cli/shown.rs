//! What an instance wrote, for a terminal: nothing in it tells the terminal anything.
//!
//! Newlines and tabs pass. Colours are left out: most boots are full of them, and none is
//! needed to read one; let through, they could hide what follows. All else that is no
//! [harmless character](is_harmless), such as other escape sequences, carriage returns
//! within a line, C1 controls and what turns the direction of writing, is shown by its
//! number, and so is a byte that is no UTF-8.

use std::fmt::Write as _;

use crate::fault::is_harmless;

/// Longest sequence that is taken for a colour, bytes.
const COLOUR: usize = 32;

/// Most that waits for what follows it, bytes.
const PENDING: usize = 64;

/// A stream of bytes on its way to a terminal.
#[derive(Default)]
pub(super) struct Shown {
    /// The beginning of something whose end has not come.
    pending: Vec<u8>,
}

/// What stands at the beginning of some bytes.
enum Found {
    /// So many bytes that are not shown.
    Nothing(usize),
    /// A character of so many bytes.
    Character(char, usize),
    /// A byte that belongs to no character.
    Byte(u8),
    /// Something whose end is not there.
    Part,
}

impl Shown {
    /// What is to be shown after some more bytes.
    pub fn next(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        self.take(false)
    }

    /// What is to be shown when nothing more comes.
    pub fn end(&mut self) -> String {
        self.take(true)
    }

    fn take(&mut self, last: bool) -> String {
        let bytes = std::mem::take(&mut self.pending);
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Some(first) = rest.first() {
            let found = match find(rest) {
                Found::Part if !last && rest.len() < PENDING => break,
                Found::Part if first.is_ascii() => Found::Character(char::from(*first), 1),
                Found::Part => Found::Byte(*first),
                found => found,
            };
            let length = match found {
                Found::Nothing(length) => length,
                Found::Character(c, length) => {
                    if is_harmless(c) || matches!(c, '\n' | '\t') {
                        text.push(c);
                    } else {
                        text.extend(c.escape_default());
                    }
                    length
                }
                Found::Byte(byte) => {
                    // Writing to a String does not fail.
                    let _ = write!(text, "\\x{byte:02x}");
                    1
                }
                Found::Part => 1,
            };
            rest = &rest[length..];
        }
        self.pending = rest.to_vec();
        text
    }
}

fn find(bytes: &[u8]) -> Found {
    match bytes {
        [b'\r', ..] => line_end(bytes),
        [0x1b] => Found::Part,
        [0x1b, b'[', ..] => colour(bytes),
        _ => character(bytes),
    }
}

/// A terminal of its own needs no carriage return before a newline.
fn line_end(bytes: &[u8]) -> Found {
    let returns = bytes.iter().take_while(|byte| **byte == b'\r').count();
    match bytes.get(returns) {
        Some(b'\n') => Found::Nothing(returns),
        Some(_) => Found::Character('\r', 1),
        None => Found::Part,
    }
}

/// `ESC [ … m`, "select graphic rendition".
fn colour(bytes: &[u8]) -> Found {
    let parameters = |byte: &&u8| byte.is_ascii_digit() || matches!(byte, b';' | b':');
    let count = bytes[2..].iter().take(COLOUR).take_while(parameters).count();
    match bytes.get(2 + count) {
        Some(b'm') => Found::Nothing(3 + count),
        Some(_) => Found::Character('\x1b', 1),
        None => Found::Part,
    }
}

fn character(bytes: &[u8]) -> Found {
    let start = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.valid_up_to() > 0 => {
            std::str::from_utf8(&start[..e.valid_up_to()]).unwrap_or_default()
        }
        // Less than four bytes, or it would not be too short.
        Err(e) if e.error_len().is_none() => return Found::Part,
        Err(_) => "",
    };
    match valid.chars().next() {
        Some(c) => Found::Character(c, c.len_utf8()),
        None => Found::Byte(start[0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> String {
        let mut shown = Shown::default();
        shown.next(bytes) + &shown.end()
    }

    #[test]
    fn a_terminal_is_told_nothing() {
        for (bytes, shown) in [
            (&b"plain\ttext\r\n"[..], "plain\ttext\n"),
            (b"[\x1b[0;32m  OK  \x1b[0m] Started\r\r\n", "[  OK  ] Started\n"),
            (b"\x1b[38:2::255:0:0mred\x1b[m", "red"),
            (b"\x1b[2J\x1b]0;title\x07", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            (b"\x1b[?1049h\x1bc", "\\u{1b}[?1049h\\u{1b}c"),
            (b"password: \rother", "password: \\rother"),
            (b"\x08\x7f\x00", "\\u{8}\\u{7f}\\u{0}"),
            (b"\x9b2J\xff\xc3", "\\x9b2J\\xff\\xc3"),
            ("\u{9b}2J größe \u{202e}txt".as_bytes(), "\\u{9b}2J größe \\u{202e}txt"),
            (b"\xe2\x82", "\\xe2\\x82"),
            (b"\x1b", "\\u{1b}"),
            (b"end\r", "end\\r"),
        ] {
            assert_eq!(whole(bytes), shown, "{bytes:?}");
        }
        let long = format!("\x1b[{}m", "1;".repeat(COLOUR));
        assert!(whole(long.as_bytes()).starts_with("\\u{1b}[1;"));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut shown = Shown::default();
        shown.next(&[b'\r'; 10_000]);
        assert!(shown.pending.len() < PENDING);
    }

    proptest! {
        #[test]
        fn it_matters_not_how_bytes_come(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b'm'), Just(b'\r'), Just(b'\n')],
                0..40,
            ),
            cut in 0usize..40,
        ) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut shown = Shown::default();
            let text = shown.next(first) + &shown.next(second) + &shown.end();
            prop_assert_eq!(&text, &whole(&bytes));
            prop_assert!(text.chars().all(|c| is_harmless(c) || c == '\n' || c == '\t'));
        }
    }
}

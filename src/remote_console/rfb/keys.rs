//! Keys, as X11 numbers them, as the bytes that a terminal's keyboard sends.

use xkeysym::Keysym;

/// The keys that are held.
#[derive(Debug, Default)]
pub(super) struct Keys {
    control: bool,
    alt: bool,
}

impl Keys {
    /// What a key that goes down or up sends.
    pub fn press(&mut self, down: bool, keysym: u32, application_cursor: bool) -> Vec<u8> {
        let key = Keysym::new(keysym);
        match key {
            Keysym::Control_L | Keysym::Control_R => {
                self.control = down;
                return Vec::new();
            }
            Keysym::Alt_L | Keysym::Meta_L | Keysym::Meta_R => {
                self.alt = down;
                return Vec::new();
            }
            _ if !down => return Vec::new(),
            _ => {}
        }
        let sent = match special(key, application_cursor) {
            Some(sequence) => sequence.to_vec(),
            None => key.key_char().map(|character| self.character(character)).unwrap_or_default(),
        };
        let prefix: &[u8] = if self.alt && !sent.is_empty() { b"\x1b" } else { b"" };
        [prefix, &sent].concat()
    }

    fn character(&self, character: char) -> Vec<u8> {
        let control = match character {
            'a'..='z' | 'A'..='Z' | '@' | '['..='_' => Some(character as u8 & 0x1f),
            ' ' | '2' => Some(0),
            '3'..='7' => Some(character as u8 - b'3' + 0x1b),
            '8' | '?' => Some(0x7f),
            '/' => Some(0x1f),
            _ => None,
        };
        match control.filter(|_| self.control) {
            Some(byte) => vec![byte],
            None => character.to_string().into_bytes(),
        }
    }
}

/// Of keys that are no characters, what xterm sends.
fn special(key: Keysym, application_cursor: bool) -> Option<&'static [u8]> {
    let cursor = |application: &'static [u8], normal: &'static [u8]| {
        if application_cursor { application } else { normal }
    };
    Some(match key {
        Keysym::Return | Keysym::KP_Enter => b"\r",
        Keysym::BackSpace => b"\x7f",
        Keysym::Tab | Keysym::KP_Tab => b"\t",
        Keysym::ISO_Left_Tab => b"\x1b[Z",
        Keysym::Escape => b"\x1b",
        Keysym::Up | Keysym::KP_Up => cursor(b"\x1bOA", b"\x1b[A"),
        Keysym::Down | Keysym::KP_Down => cursor(b"\x1bOB", b"\x1b[B"),
        Keysym::Right | Keysym::KP_Right => cursor(b"\x1bOC", b"\x1b[C"),
        Keysym::Left | Keysym::KP_Left => cursor(b"\x1bOD", b"\x1b[D"),
        Keysym::Home | Keysym::KP_Home => cursor(b"\x1bOH", b"\x1b[H"),
        Keysym::End | Keysym::KP_End => cursor(b"\x1bOF", b"\x1b[F"),
        Keysym::Insert | Keysym::KP_Insert => b"\x1b[2~",
        Keysym::Delete | Keysym::KP_Delete => b"\x1b[3~",
        Keysym::Prior | Keysym::KP_Prior => b"\x1b[5~",
        Keysym::Next | Keysym::KP_Next => b"\x1b[6~",
        Keysym::F1 => b"\x1bOP",
        Keysym::F2 => b"\x1bOQ",
        Keysym::F3 => b"\x1bOR",
        Keysym::F4 => b"\x1bOS",
        Keysym::F5 => b"\x1b[15~",
        Keysym::F6 => b"\x1b[17~",
        Keysym::F7 => b"\x1b[18~",
        Keysym::F8 => b"\x1b[19~",
        Keysym::F9 => b"\x1b[20~",
        Keysym::F10 => b"\x1b[21~",
        Keysym::F11 => b"\x1b[23~",
        Keysym::F12 => b"\x1b[24~",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_as_a_terminal_sends_them() {
        let mut keys = Keys::default();
        let mut typed = |keysym| keys.press(true, keysym, false);
        assert_eq!(typed(0x61), b"a");
        assert_eq!(typed(0xe9), "é".as_bytes());
        assert_eq!(typed(0x0100_20ac), "€".as_bytes());
        assert_eq!(typed(0x6c1), "а".as_bytes(), "a Cyrillic one");
        assert_eq!(typed(0xff0d), b"\r");
        assert_eq!(typed(0xff51), b"\x1b[D");
        assert_eq!(typed(0xffb5), b"5", "on the keypad");
        assert_eq!(typed(0xffe1), b"", "Shift is in the key that comes with it");
        assert_eq!(keys.press(false, 0x61, false), b"", "a release sends nothing");
        assert_eq!(keys.press(true, 0xff51, true), b"\x1bOD");
    }

    #[test]
    fn control_and_alt_go_with_what_is_typed_while_they_are_held() {
        let mut keys = Keys::default();
        keys.press(true, 0xffe3, false);
        assert_eq!(keys.press(true, 0x63, false), b"\x03");
        assert_eq!(keys.press(true, 0x5b, false), b"\x1b");
        assert_eq!(keys.press(true, 0x20, false), b"\x00");
        keys.press(false, 0xffe3, false);
        keys.press(true, 0xffe9, false);
        assert_eq!(keys.press(true, 0x62, false), b"\x1bb");
        keys.press(false, 0xffe9, false);
        assert_eq!(keys.press(true, 0x62, false), b"b");
    }
}

//! The terminal at which a person sits.

use std::io::{IsTerminal, Read};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::api::Size;
use crate::fault::{Fault, OrFault, Result};

/// Standard input without echo, lines or signals, until it is dropped: also
/// when the command fails or panics.
pub(super) struct RawMode(Termios);

impl RawMode {
    /// Raw mode, when standard input is a terminal.
    pub fn enter() -> Result<Option<RawMode>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin()).or_fault("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .or_fault("setting the terminal's mode")?;
        Ok(Some(RawMode(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The size of the terminal at standard output, if it is one.
pub(super) fn size() -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(Size { cols: size.ws_col, rows: size.ws_row })
}

/// What is typed, as it is typed; the channel closes at the end of input. A
/// thread of its own reads: it may wait for a key for ever without keeping
/// the process from ending.
pub(super) fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A control key: `ctrl-]`, `^]` or `ctrl-a`.
pub(super) fn control_key(text: &str) -> Result<u8> {
    let lower = text.to_ascii_lowercase();
    let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
    match key.map(str::as_bytes) {
        Some([key @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'^' | b'_' | b'@')]) => Ok(key & 0x1f),
        _ => Err(Fault::invalid(
            "--detach-key",
            format!("{text:?} is no control key such as ctrl-] or ctrl-a"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_keys() {
        for (text, byte) in [("ctrl-]", 0x1d), ("^]", 0x1d), ("Ctrl-A", 1), ("^@", 0)] {
            assert_eq!(control_key(text).unwrap(), byte, "{text}");
        }
        for bad in ["", "]", "ctrl-", "ctrl-ab", "ctrl-1", "alt-x"] {
            assert!(control_key(bad).is_err(), "{bad}");
        }
    }
}

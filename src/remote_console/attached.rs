//! An instance's console as a connection has it: what it said, then what it says.

use std::io;
use std::sync::Arc;

use tokio::net::UnixStream;
use uuid::Uuid;

use crate::fault::{Fault, Result};
use crate::instance::backend::{Backend, Console, ResizeConsole};

/// Of what a console said, this much is said again to whoever connects: a screen and more.
const REPLAYED: u64 = 16 * 1024;

/// A console, attached to.
pub(super) struct Attached {
    /// What it said last, from the beginning of a line.
    pub said: Vec<u8>,
    /// Its bytes, both ways.
    pub stream: UnixStream,
    /// Changes its size.
    pub resize: ResizeConsole,
}

/// Attaches to the console of a running instance. Else: what it said, and why there is no more.
pub(super) async fn attach(
    backend: Arc<dyn Backend>,
    id: Uuid,
) -> io::Result<Result<Attached, (Vec<u8>, Fault)>> {
    tokio::task::spawn_blocking(move || {
        // In this order: what it says in between is told twice, and not lost.
        let console = backend.console_attach(id);
        let said = backend.console_output(id, Some(REPLAYED)).map(|said| whole_lines(&said));
        let said = said.unwrap_or_default();
        match console.and_then(Console::asynchronous) {
            Ok((stream, resize)) => Ok(Attached { said, stream, resize }),
            Err(fault) => Err((said, fault)),
        }
    })
    .await
    .map_err(io::Error::other)
}

/// Without the end of a line whose beginning is not there: it might end a terminal's sequence.
fn whole_lines(said: &[u8]) -> Vec<u8> {
    if (said.len() as u64) < REPLAYED {
        return said.to_vec();
    }
    let line = said.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    said[line..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_console_is_replayed_from_the_beginning_of_a_line() {
        assert_eq!(whole_lines(b"a\nb"), b"a\nb");
        let long = [b"[31m red\n".as_slice(), &vec![b'x'; REPLAYED as usize]].concat();
        assert_eq!(whole_lines(&long), vec![b'x'; REPLAYED as usize]);
    }
}

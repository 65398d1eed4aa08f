//! One connection to the monitor. Nothing here ever blocks.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// Longest request, bytes: a cgroup plan is the largest and has some thousands.
const LINE: usize = 256 * 1024;

/// Most that waits for a client that reads slowly, bytes. What the console
/// writes beyond it is left out for that client, and a note put in its place.
const BACKLOG: usize = 256 * 1024;

/// Most that is taken from a client and waits for the instance to read it, bytes.
const INPUT: usize = 16 * 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Requests and answers.
    Control,
    /// Messages, one way.
    Subscriber,
    /// The console's bytes.
    Console,
}

/// A connected client.
pub(super) struct Peer {
    pub stream: UnixStream,
    pub purpose: Purpose,
    /// Bytes received and not yet understood (or, of a console, not yet typed).
    pub input: Vec<u8>,
    output: Vec<u8>,
    skipped: u64,
    /// It has gone, or broke the protocol: to be dropped.
    pub gone: bool,
}

impl Peer {
    pub fn new(stream: UnixStream) -> std::io::Result<Peer> {
        stream.set_nonblocking(true)?;
        Ok(Peer {
            stream,
            purpose: Purpose::Control,
            input: Vec::new(),
            output: Vec::new(),
            skipped: 0,
            gone: false,
        })
    }

    /// Whether there is room for what it sends.
    pub fn wants_input(&self) -> bool {
        self.purpose != Purpose::Console || self.input.len() < INPUT
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes what it has sent, as far as there is room.
    pub fn receive(&mut self) {
        let mut buffer = [0; 4096];
        while self.wants_input() && !self.gone {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.gone = true,
                // A subscriber has nothing to say; it is only watched for its end.
                Ok(_) if self.purpose == Purpose::Subscriber => {}
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
            if self.purpose == Purpose::Control && self.input.len() > LINE {
                self.gone = true;
            }
        }
    }

    /// The next request's line, if a whole one has come.
    pub fn take_line(&mut self) -> Option<Vec<u8>> {
        if self.purpose != Purpose::Control {
            return None;
        }
        let end = self.input.iter().position(|b| *b == b'\n')?;
        let rest = self.input.split_off(end + 1);
        Some(std::mem::replace(&mut self.input, rest))
    }

    /// Forgets what has been typed and gives the memory back.
    pub fn typed(&mut self, count: usize) {
        self.input.drain(..count);
        self.input.shrink_to(0);
    }

    /// Sends a line of the protocol: it is never left out, and a client that
    /// does not read its lines is dropped.
    pub fn send_line(&mut self, line: &[u8]) {
        if self.output.len() + line.len() > BACKLOG {
            self.gone = true;
            return;
        }
        self.output.extend_from_slice(line);
        self.flush();
    }

    /// Sends console output, or counts it as skipped when too much waits.
    pub fn send_console(&mut self, bytes: &[u8]) {
        if self.skipped > 0 || self.output.len() + bytes.len() > BACKLOG {
            self.skipped += bytes.len() as u64;
        } else {
            self.output.extend_from_slice(bytes);
        }
        self.flush();
    }

    /// Sends what waits, as far as the client takes it.
    pub fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.output.len() {
            match self.stream.write(&self.output[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        self.output.drain(..sent);
        if self.output.is_empty() {
            // An idle monitor keeps no buffers.
            self.output = Vec::new();
            if self.skipped > 0 && !self.gone {
                let note = format!("\r\n[\u{2026} {} bytes skipped \u{2026}]\r\n", self.skipped);
                self.skipped = 0;
                self.output.extend_from_slice(note.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_misses_output_and_is_told() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut peer = Peer::new(near).unwrap();
        peer.purpose = Purpose::Console;
        let chunk = [b'x'; 4096];
        for _ in 0..1024 {
            peer.send_console(&chunk);
        }
        assert!(peer.output.len() <= BACKLOG && !peer.gone);
        far.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        let mut buffer = [0; 65536];
        for _ in 0..100 {
            while let Ok(n) = far.read(&mut buffer) {
                got.extend_from_slice(&buffer[..n]);
            }
            peer.flush();
        }
        peer.send_console(b"after");
        while let Ok(n) = far.read(&mut buffer) {
            got.extend_from_slice(&buffer[..n]);
        }
        let text = String::from_utf8(got).unwrap();
        let skipped: usize =
            text.split("[\u{2026} ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let seen = text.bytes().filter(|b| *b == b'x').count();
        assert_eq!(seen + skipped, 1024 * 4096);
        assert!(text.ends_with("bytes skipped \u{2026}]\r\nafter"));
    }

    #[test]
    fn lines_come_one_by_one_and_an_endless_one_ends_the_connection() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut peer = Peer::new(near).unwrap();
        far.write_all(b"one\ntwo\nthr").unwrap();
        peer.receive();
        assert_eq!(peer.take_line().unwrap(), b"one\n");
        assert_eq!(peer.take_line().unwrap(), b"two\n");
        assert_eq!(peer.take_line(), None);
        far.set_nonblocking(true).unwrap();
        for _ in 0..200 {
            let _ = far.write(&[b'x'; 8192]);
            peer.receive();
        }
        assert!(peer.gone);
    }
}

//! A layer's archive on its way: pieces that each come with their hash, and an end, so that
//! what breaks off is not taken for the whole.

use std::io::{self, ErrorKind, Read, Write};

use openssl::sha::sha256;

/// Bytes of a piece.
const PIECE: usize = 1 << 18;
/// Bytes before each: its length and its hash.
const HEAD: usize = 36;

/// Writes pieces to what it was made of.
pub struct Sender<W> {
    to: W,
    held: Vec<u8>,
}

impl<W: Write> Sender<W> {
    /// Pieces for `to`.
    pub fn new(to: W) -> Sender<W> {
        Sender { to, held: Vec::with_capacity(PIECE) }
    }

    fn send(&mut self) -> io::Result<()> {
        // At most PIECE, which is far below.
        let length = self.held.len() as u32;
        self.to.write_all(&length.to_be_bytes())?;
        self.to.write_all(&sha256(&self.held))?;
        self.to.write_all(&self.held)?;
        self.held.clear();
        Ok(())
    }

    /// Sends what is left, and that it is all.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.held.is_empty() {
            self.send()?;
        }
        self.send()
    }
}

impl<W: Write> Write for Sender<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        if self.held.len() == PIECE {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what [`Sender`] wrote.
pub struct Receiver<R> {
    from: R,
    held: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<R: Read> Receiver<R> {
    /// What is in the pieces that `from` gives.
    pub fn new(from: R) -> Receiver<R> {
        Receiver { from, held: Vec::new(), at: 0, ended: false }
    }
}

impl<R: Read> Read for Receiver<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.held.len() && !self.ended {
            let mut head = [0; HEAD];
            self.from.read_exact(&mut head)?;
            let (length, hash) = head.split_at(4);
            let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
            if length > PIECE {
                return Err(io::Error::new(ErrorKind::InvalidData, "a piece is too long"));
            }
            self.held.resize(length, 0);
            self.from.read_exact(&mut self.held)?;
            if sha256(&self.held)[..] != *hash {
                return Err(io::Error::new(ErrorKind::InvalidData, "a piece has another hash"));
            }
            self.at = 0;
            self.ended = length == 0;
        }
        let taken = buffer.len().min(self.held.len() - self.at);
        buffer[..taken].copy_from_slice(&self.held[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(content: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut sender = Sender::new(&mut wire);
        sender.write_all(content).unwrap();
        sender.finish().unwrap();
        wire
    }

    fn received(wire: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Receiver::new(wire).read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn what_comes_is_what_went_or_an_error() {
        for size in [0, 1, PIECE, 2 * PIECE + 7] {
            let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let wire = sent(&content);
            assert_eq!(received(&wire).unwrap(), content);
            for cut in [wire.len() - 1, wire.len() - HEAD, 0] {
                assert!(received(&wire[..cut]).is_err(), "{size} cut at {cut}");
            }
            if size > 0 {
                let mut other = wire.clone();
                other[HEAD] ^= 1;
                assert!(received(&other).is_err(), "{size}");
            }
        }
    }
}

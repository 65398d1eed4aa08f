//! What a client says (RFC 6143, 7.5), and how it wants its pixels (7.4, 7.7).

use std::io;

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::pictures::{self, Picture};
use super::screen::Change;

/// Longest text for the clipboard, bytes; it is passed over.
const LONGEST_TEXT: u32 = 1 << 20;

/// A client's message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// `SetPixelFormat`.
    PixelFormat(Format),
    /// `SetEncodings`: those that it knows.
    Encodings(Vec<i32>),
    /// `FramebufferUpdateRequest`.
    Update {
        /// Whether what it has may be left out.
        incremental: bool,
    },
    /// `KeyEvent`.
    Key {
        /// Pressed, else released.
        down: bool,
        /// X11's number of the key.
        keysym: u32,
    },
    /// The pointer and the clipboard: a terminal has neither.
    Ignored,
}

impl Message {
    /// The next one. What is none ends the connection: nothing says where another begins.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Message> {
        match from.read_u8().await? {
            0 => {
                let mut format = [0; 19];
                from.read_exact(&mut format).await?;
                Format::parse(&format[3..]).map(Message::PixelFormat).ok_or_else(invalid)
            }
            2 => {
                from.read_u8().await?;
                let count = from.read_u16().await?;
                let mut encodings = Vec::new();
                for _ in 0..count {
                    encodings.push(from.read_i32().await?);
                }
                Ok(Message::Encodings(encodings))
            }
            3 => {
                let mut request = [0; 9];
                from.read_exact(&mut request).await?;
                Ok(Message::Update { incremental: request[0] != 0 })
            }
            4 => {
                let down = from.read_u8().await? != 0;
                from.read_u16().await?;
                Ok(Message::Key { down, keysym: from.read_u32().await? })
            }
            5 => {
                from.read_exact(&mut [0; 5]).await?;
                Ok(Message::Ignored)
            }
            6 => {
                from.read_exact(&mut [0; 3]).await?;
                let length = from.read_u32().await?;
                if length > LONGEST_TEXT {
                    return Err(invalid());
                }
                let mut text = from.take(length.into());
                tokio::io::copy(&mut text, &mut tokio::io::sink()).await?;
                Ok(Message::Ignored)
            }
            _ => Err(invalid()),
        }
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no message of RFB that this server takes")
}

/// How a pixel is written, in true colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    bits: u8,
    depth: u8,
    big_endian: bool,
    /// The largest red, green and blue.
    max: [u16; 3],
    /// Where each begins.
    shift: [u8; 3],
}

impl Default for Format {
    fn default() -> Self {
        let (max, shift) = ([255; 3], [16, 8, 0]);
        Format { bits: 32, depth: 24, big_endian: false, max, shift }
    }
}

impl Format {
    /// `None` for one that is not true colour, or impossible.
    fn parse(bytes: &[u8]) -> Option<Format> {
        let &[bits, depth, endian, true_colour, r1, r0, g1, g0, b1, b0, r, g, b, ..] = bytes else {
            return None;
        };
        let max = [[r1, r0], [g1, g0], [b1, b0]].map(u16::from_be_bytes);
        let possible = true_colour != 0
            && matches!(bits, 8 | 16 | 32)
            && [r, g, b].iter().all(|shift| *shift < 32);
        possible.then_some(Format { bits, depth, big_endian: endian != 0, max, shift: [r, g, b] })
    }

    /// As it is told.
    pub fn bytes(self) -> [u8; 16] {
        let [r, g, b] = self.max.map(u16::to_be_bytes);
        let [rs, gs, bs] = self.shift;
        let endian = u8::from(self.big_endian);
        [self.bits, self.depth, endian, 1, r[0], r[1], g[0], g[1], b[0], b[1], rs, gs, bs, 0, 0, 0]
    }

    fn put(self, colour: [u8; 3], to: &mut Vec<u8>) {
        let value = (0..3).fold(0_u32, |value, i| {
            let part = u32::from(colour[i]) * u32::from(self.max[i]) / 255;
            value | part << self.shift[i]
        });
        match (self.bits, self.big_endian) {
            (8, _) => to.push(value as u8),
            (16, true) => to.extend((value as u16).to_be_bytes()),
            (16, false) => to.extend((value as u16).to_le_bytes()),
            (_, true) => to.extend(value.to_be_bytes()),
            (_, false) => to.extend(value.to_le_bytes()),
        }
    }

    /// Whether Tight writes three bytes for a pixel, red, green and blue.
    fn is_tight(self) -> bool {
        (self.bits, self.depth, self.max) == (32, 24, [255; 3])
    }
}

/// The encoding `Raw`: every client has it.
const RAW: i32 = 0;
/// The encoding `Tight`, of which this uses the basic compression without a filter
/// (the RFB protocol, community edition, 7.7.7).
const TIGHT: i32 = 7;
/// What Tight sends as it is.
const TIGHT_SMALL: usize = 12;

/// How a client wants its pixels.
pub(super) struct Pixels {
    pub format: Format,
    tight: bool,
    /// The stream 0 of Tight, for as long as the connection.
    stream: Compress,
}

impl Default for Pixels {
    fn default() -> Self {
        let stream = Compress::new(Compression::fast(), true);
        Pixels { format: Format::default(), tight: false, stream }
    }
}

impl Pixels {
    /// Takes the best of the encodings that a client knows.
    pub fn choose(&mut self, encodings: &[i32]) {
        self.tight = encodings.contains(&TIGHT);
    }

    /// A `FramebufferUpdate` of these changes, at least one.
    pub fn update(&mut self, changes: &[Change]) -> Vec<u8> {
        let count = u16::try_from(changes.len()).unwrap_or(u16::MAX);
        let mut update = vec![0, 0];
        update.extend(count.to_be_bytes());
        for change in changes.iter().take(count.into()) {
            self.rectangle(&pictures::draw(change), &mut update);
        }
        update
    }

    fn rectangle(&mut self, picture: &Picture, to: &mut Vec<u8>) {
        let tight = self.tight && self.format.is_tight();
        for number in [picture.x, picture.y, picture.width, picture.height] {
            to.extend(number.to_be_bytes());
        }
        to.extend((if tight { TIGHT } else { RAW }).to_be_bytes());
        if tight {
            self.tight(picture.pixels.as_flattened(), to);
        } else {
            picture.pixels.iter().for_each(|pixel| self.format.put(*pixel, to));
        }
    }

    fn tight(&mut self, pixels: &[u8], to: &mut Vec<u8>) {
        // Stream 0, which goes on; the basic compression; no filter.
        to.push(0);
        if pixels.len() < TIGHT_SMALL {
            return to.extend(pixels);
        }
        let mut compressed = Vec::with_capacity(pixels.len() + 1024);
        let before = self.stream.total_in();
        loop {
            let taken = usize::try_from(self.stream.total_in() - before).unwrap_or(0);
            let rest = &pixels[taken..];
            // It fails of nothing but a full buffer, which grows.
            let _ = self.stream.compress_vec(rest, &mut compressed, FlushCompress::Sync);
            if compressed.len() < compressed.capacity() {
                break;
            }
            compressed.reserve(4096);
        }
        // Seven bits a byte, the highest says that more follow; the third has all eight.
        let length = compressed.len();
        match length {
            0..0x80 => to.push(length as u8),
            0x80..0x4000 => to.extend([length as u8 | 0x80, (length >> 7) as u8]),
            _ => to.extend([length as u8 | 0x80, (length >> 7) as u8 | 0x80, (length >> 14) as u8]),
        }
        to.extend(compressed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    async fn read(mut bytes: &[u8]) -> Option<Message> {
        Message::read(&mut bytes).await.ok()
    }

    #[tokio::test]
    async fn what_a_client_says() {
        let format = Format { bits: 16, depth: 16, big_endian: true, ..Format::default() };
        let said = [&[0, 0, 0, 0], &format.bytes()[..]].concat();
        assert_eq!(read(&said).await, Some(Message::PixelFormat(format)));
        let said = [2, 0, 0, 2, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0x21];
        assert_eq!(read(&said).await, Some(Message::Encodings(vec![7, -223])));
        let said = [3, 1, 0, 0, 0, 0, 2, 0xd0, 1, 0xe0];
        assert_eq!(read(&said).await, Some(Message::Update { incremental: true }));
        let key = Message::Key { down: true, keysym: 0xff0d };
        assert_eq!(read(&[4, 1, 0, 0, 0, 0, 0xff, 0x0d]).await, Some(key));
        assert_eq!(read(&[5, 0, 0, 1, 0, 1]).await, Some(Message::Ignored));
        assert_eq!(read(&[6, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']).await, Some(Message::Ignored));
        // A palette, a clipboard of gigabytes, no message, half a message.
        let palette = [&[0, 0, 0, 0, 8, 8, 0, 0], &[0; 12][..]].concat();
        for bad in [&palette[..], &[6, 0, 0, 0, 0xff, 0, 0, 0], &[77], &[4, 1]] {
            assert_eq!(read(bad).await, None, "{bad:?}");
        }
    }

    #[test]
    fn pixels_as_a_client_wants_them() {
        let put = |format: Format| {
            let mut bytes = Vec::new();
            format.put([255, 128, 0], &mut bytes);
            bytes
        };
        assert_eq!(put(Format::default()), [0, 128, 255, 0]);
        assert_eq!(put(Format { big_endian: true, ..Format::default() }), [0, 255, 128, 0]);
        let (max, shift) = ([31, 63, 31], [11, 5, 0]);
        let small = Format { bits: 16, depth: 16, big_endian: true, max, shift };
        assert_eq!(put(small), (31_u16 << 11 | 31 << 5).to_be_bytes());
        let smallest = Format { bits: 8, depth: 8, max: [7, 7, 3], shift: [0, 3, 6], ..small };
        assert_eq!(put(smallest), [7 | 3 << 3]);
    }

    #[test]
    fn tight_is_one_stream_of_all_updates() {
        let mut pixels = Pixels::default();
        pixels.choose(&[0, 7]);
        let mut stream = Vec::new();
        let sent: Vec<Vec<u8>> =
            vec![vec![1; 40], (0..200_000_u32).map(|i| i.wrapping_mul(i) as u8).collect()];
        for part in &sent {
            let mut rectangle = Vec::new();
            pixels.tight(part, &mut rectangle);
            assert_eq!(rectangle[0], 0);
            let (mut length, mut at) = (0, 1);
            for shift in [0, 7, 14] {
                let byte = rectangle[at];
                at += 1;
                length |= usize::from(if shift == 14 { byte } else { byte & 0x7f }) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            assert_eq!(rectangle.len(), at + length);
            stream.extend(&rectangle[at..]);
        }
        let mut plain = vec![0; sent.concat().len()];
        flate2::read::ZlibDecoder::new(&stream[..]).read_exact(&mut plain).unwrap();
        assert!(plain == sent.concat());
    }
}

//! Compressions: which are read, and reading them.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::GzDecoder;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::recognise::{self, Compression, Content};
use crate::image::refusal;

/// Most memory that an xz stream may ask for (`xz -9` asks for 65 MiB).
const XZ_MEMORY: u64 = 256 << 20;
/// Bytes that are read at once.
const PIECE: usize = 1 << 17;
/// Most of a zstd stream's window, as a power of two (`--long=27`).
const ZSTD_WINDOW: u32 = 27;

/// How content that begins so is compressed.
pub fn compression(head: &[u8]) -> Result<Option<Compression>> {
    match recognise::content(head) {
        Content::Compressed(
            compression @ (Compression::Gzip | Compression::Xz | Compression::Zstd),
        ) => Ok(Some(compression)),
        content @ Content::Compressed(_) => Err(refusal::of_content(content)),
        _ => Ok(None),
    }
}

/// Decompresses all of the input.
pub(super) fn decompress(
    compression: Compression,
    input: impl Read,
    mut output: impl Write,
) -> Result<()> {
    let corrupt = |error: std::io::Error| {
        let name = Content::Compressed(compression);
        Fault::new(FaultKind::ImageCorrupt, format!("decompressing {name}: {error}"))
    };
    let mut reader: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(Gzip::new(input)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )
            .or_fault("starting xz")?;
            Box::new(liblzma::read::XzDecoder::new_stream(input, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(input).or_fault("starting zstd")?;
            decoder.window_log_max(ZSTD_WINDOW).or_fault("starting zstd")?;
            Box::new(decoder)
        }
        other => return Err(refusal::of_content(Content::Compressed(other))),
    };
    let mut buffer = vec![0; PIECE];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return output.flush().or_fault("giving decompressed bytes away"),
            Ok(n) => output.write_all(&buffer[..n]).or_fault("giving decompressed bytes away")?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(corrupt(error)),
        }
    }
}

/// The members of a gzip file one after the other, and behind the last one at most zeros, to
/// which tapes and block devices round a file up. What comes after such zeros gzip passes over
/// and others do not: it is refused.
struct Gzip<R: Read> {
    member: Option<GzDecoder<BufReader<R>>>,
}

impl<R: Read> Gzip<R> {
    fn new(input: R) -> Gzip<R> {
        Gzip { member: Some(GzDecoder::new(BufReader::with_capacity(PIECE, input))) }
    }
}

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let input = self.member.take().map(GzDecoder::into_inner);
            self.member = input.map(next_member).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// The member that follows the one that has ended; `None` where only zeros do.
fn next_member<R: BufRead>(mut input: R) -> io::Result<Option<GzDecoder<R>>> {
    if input.fill_buf()?.first() == Some(&b'\x1f') {
        return Ok(Some(GzDecoder::new(input)));
    }
    loop {
        let rest = input.fill_buf()?;
        if rest.is_empty() {
            return Ok(None);
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(io::Error::other(
                "what follows its last stream is neither gzip nor zeros alone; cut it off",
            ));
        }
        let length = rest.len();
        input.consume(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_compressions_in_several_parts() {
        let plain = b"some text ".repeat(1000);
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let xz = |bytes: &[u8]| {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let (half, rest) = plain.split_at(4321);
        for (compression, bytes) in [
            (Compression::Gzip, [gzip(half), gzip(rest)].concat()),
            (Compression::Xz, [xz(half), xz(rest)].concat()),
            (Compression::Zstd, [zstd(half), zstd(rest)].concat()),
        ] {
            let mut out = Vec::new();
            decompress(compression, &bytes[..], &mut out).unwrap();
            assert!(out == plain, "{compression:?}");
            let cut = &bytes[..bytes.len() - 3];
            let fault = decompress(compression, cut, std::io::sink()).unwrap_err();
            assert_eq!(fault.kind, FaultKind::ImageCorrupt, "{compression:?}");
        }
        assert!(decompress(Compression::Bzip2, &b""[..], std::io::sink()).is_err());
    }

    #[test]
    fn zeros_after_gzip_are_padding_and_all_else_is_refused() {
        let plain = b"some text ".repeat(20_000);
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let members = [gzip(&plain[..7]), gzip(b""), gzip(&plain[7..])].concat();
        // One byte at a time too: nothing hangs on how much is there at once.
        struct Trickle<'a>(&'a [u8]);
        impl Read for Trickle<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let most = buffer.len().min(1);
                self.0.read(&mut buffer[..most])
            }
        }
        let after = |rest: &[u8]| {
            let bytes = [&members[..], rest].concat();
            let (mut out, mut slow) = (Vec::new(), Vec::new());
            let result = decompress(Compression::Gzip, &bytes[..], &mut out);
            assert_eq!(
                decompress(Compression::Gzip, Trickle(&bytes), &mut slow).is_ok(),
                result.is_ok()
            );
            assert!(out == plain && slow == plain);
            result
        };
        for zeros in [0, 1, 511, 10_240, 3 * PIECE + 5] {
            after(&vec![0; zeros]).unwrap();
        }
        let zeros_and = |rest: &[u8]| [&[0; 512][..], rest].concat();
        for rest in [&b"x"[..], b"\x1f", b"\x1f\x8b", &zeros_and(b"x"), &zeros_and(&gzip(b"more"))]
        {
            let fault = after(rest).unwrap_err();
            assert_eq!(fault.kind, FaultKind::ImageCorrupt, "{rest:?}");
        }
        let fault = after(b"garbage").unwrap_err();
        assert!(fault.detail.contains("neither gzip nor zeros alone"), "{fault}");
    }
}

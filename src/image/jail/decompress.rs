//! Compressions: which are read, and reading them.

use std::io::{Read, Write};

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::recognise::{self, Compression, Content};
use crate::image::refusal;

/// Most memory that an xz stream may ask for (`xz -9` asks for 65 MiB).
const XZ_MEMORY: u64 = 256 << 20;
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
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
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
    let mut buffer = vec![0; 1 << 17];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return output.flush().or_fault("giving decompressed bytes away"),
            Ok(n) => output.write_all(&buffer[..n]).or_fault("giving decompressed bytes away")?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(corrupt(error)),
        }
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
}

//! The content of an image while it arrives: hashed, decompressed and given on
//! at once, so that no copy of it need be kept.
//!
//! ```text
//! a thread: source ─► hashes ─┬───────────────────────┬─► whoever takes it
//!                             └─► jail: decompress ───┘
//! ```
//!
//! The bytes that are taken are not verified yet. What is made of them must
//! lie aside until [`receive`] gives it back: it does so only when all of the
//! content came, with the size and the hash that were asked for.

use std::io::{Cursor, PipeReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::digest::{Algorithm, Digest, Hasher};
use super::helper::{self, Feed, Helper, Input, Running};
use super::import::{Listener, Meter, PIECE, compression};
use super::jail::Task;
use super::recognise;
use super::source::Source;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::ImageImport;

/// What is known of content that came whole.
pub(super) struct Content {
    /// Its bytes, as they came.
    pub size: u64,
    /// Their SHA-512.
    pub hash: Digest,
}

/// How content is received.
pub(super) struct Reception<'a> {
    /// The way into the jail.
    pub helper: &'a Helper,
    /// Any directory, for the jail.
    pub directory: &'a Path,
    /// What was asked for.
    pub request: &'a ImageImport,
    /// Most bytes, when the request does not say how many.
    pub max_bytes: u64,
    /// Where progress goes.
    pub report: Listener<'a>,
}

/// Plain bytes on their way.
pub(super) struct Arriving {
    /// What was taken to look at, and is yet to be taken for good.
    head: Cursor<Vec<u8>>,
    stream: Stream,
}

enum Stream {
    Plain(PipeReader),
    Decompressed(Option<Running>),
}

/// Reads a source to its end while `take` takes its plain bytes, and gives what
/// came of that when the content is the one that was asked for.
pub(super) fn receive<T>(
    reception: &Reception<'_>,
    mut source: Source,
    take: impl FnOnce(&mut Arriving) -> Result<T>,
) -> Result<(Content, T)> {
    let head = head_of(&mut source)?;
    let (feed, stream) = match compression(&head)? {
        None => {
            let (feed, reader) = helper::pipe()?;
            (feed, Stream::Plain(reader))
        }
        Some(compression) => {
            let directory = reception.directory.to_owned();
            let task = Task::Decompress { compression, directory, size: None };
            let mut jail = reception.helper.start(&task, Input::Pipe)?;
            (jail.feed()?, Stream::Decompressed(Some(jail)))
        }
    };
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let content = scope.spawn(|| reception.read(&head, source, feed, &refused));
        let mut arriving = Arriving { head: Cursor::default(), stream };
        let taken = take(&mut arriving);
        refused.store(taken.is_err(), Ordering::Relaxed);
        // Nobody takes more, and the thread learns it.
        drop(arriving);
        let content = content
            .join()
            .unwrap_or_else(|_| Err(Fault::internal("reading the content", "a defect")))?;
        // Of bytes that are not the image's, it does not matter what came of them.
        Ok((content, taken?))
    })
}

impl Reception<'_> {
    /// Reads all, and refuses other content than was asked for.
    fn read(
        &self,
        head: &[u8],
        mut source: Source,
        feed: Feed,
        refused: &AtomicBool,
    ) -> Result<Content> {
        let mut feed = Some(feed);
        let mut hashes = Hashes::new(self.request)?;
        let mut meter = Meter::new(self.report, source.stage());
        let most = self.request.size.unwrap_or(self.max_bytes);
        // Of what was refused, the rest tells whether it was the image at all.
        let declared = self.request.size.is_some() || self.request.hash.is_some();
        let mut buffer = vec![0; PIECE.max(head.len())];
        buffer[..head.len()].copy_from_slice(head);
        let (mut n, mut size) = (head.len(), 0);
        while n > 0 && (declared || !refused.load(Ordering::Relaxed)) {
            size += n as u64;
            if size > most {
                return Err(too_long(self.request, most));
            }
            if let Some(mouth) = &mut feed
                && !mouth.give(&buffer[..n])?
            {
                feed = None;
            }
            hashes.update(&buffer[..n])?;
            meter.at(size, self.request.size.or(source.total()));
            n = match &feed {
                Some(mouth) => mouth.starving(|| source.read(&mut buffer))?,
                None => source.read(&mut buffer)?,
            };
        }
        drop(feed);
        hashes.verified(self.request, size)
    }
}

impl Arriving {
    /// The next bytes, at most so many, without taking them.
    pub fn peek(&mut self, most: usize) -> Result<&[u8]> {
        let mut head = std::mem::take(&mut self.head).into_inner();
        let mut buffer = vec![0; PIECE];
        while head.len() < most {
            let n = self.stream.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            head.extend_from_slice(&buffer[..n]);
        }
        self.head = Cursor::new(head);
        let head = self.head.get_ref();
        Ok(&head[..head.len().min(most)])
    }

    /// Takes bytes; 0 at the end, after which all of it was good.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self.head.read(buffer).or_fault("reading the content")? {
            0 => {
                self.head = Cursor::default();
                self.stream.read(buffer)
            }
            n => Ok(n),
        }
    }
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Stream::Plain(reader) => reader.read(buffer).or_fault("reading the content"),
            Stream::Decompressed(None) => Ok(0),
            Stream::Decompressed(Some(jail)) => {
                let n = jail.take(buffer)?;
                if n == 0
                    && let Stream::Decompressed(Some(jail)) =
                        std::mem::replace(self, Stream::Decompressed(None))
                {
                    jail.finish()?;
                }
                Ok(n)
            }
        }
    }
}

/// The first bytes, as many as tell what it is.
fn head_of(source: &mut Source) -> Result<Vec<u8>> {
    let mut head = vec![0; recognise::HEAD];
    let mut length = 0;
    while length < head.len() {
        match source.read(&mut head[length..])? {
            0 => break,
            n => length += n,
        }
    }
    head.truncate(length);
    Ok(head)
}

/// The hash that every image is known by, and the one that was asked for.
struct Hashes {
    own: Hasher,
    other: Option<Hasher>,
}

impl Hashes {
    fn new(request: &ImageImport) -> Result<Hashes> {
        let declared = request.hash.as_ref().filter(|hash| hash.algorithm != "sha512");
        let other = declared.and_then(|hash| Algorithm::named(&hash.algorithm));
        Ok(Hashes {
            own: Hasher::new(Algorithm::Sha512)?,
            other: other.map(Hasher::new).transpose()?,
        })
    }

    fn update(&mut self, bytes: &[u8]) -> Result<()> {
        self.own.update(bytes)?;
        self.other.as_mut().map_or(Ok(()), |other| other.update(bytes))
    }

    fn verified(self, request: &ImageImport, size: u64) -> Result<Content> {
        let hash = self.own.finish()?;
        let compared = self.other.map(Hasher::finish).transpose()?;
        verify(request, size, compared.as_ref().unwrap_or(&hash))?;
        Ok(Content { size, hash })
    }
}

fn verify(request: &ImageImport, size: u64, hash: &Digest) -> Result<()> {
    let corrupt = |why| Err(Fault::new(FaultKind::ImageCorrupt, why));
    match &request.size {
        Some(declared) if *declared != size => {
            return corrupt(format!("the content has {size} bytes, not {declared}"));
        }
        _ => {}
    }
    match &request.hash {
        Some(declared) if declared.value != hash.hex() => corrupt(format!(
            "the content's {} is {}, not {}",
            declared.algorithm,
            hash.hex(),
            declared.value
        )),
        _ => Ok(()),
    }
}

fn too_long(request: &ImageImport, most: u64) -> Fault {
    match request.size {
        Some(_) => Fault::new(
            FaultKind::ImageCorrupt,
            format!("the content has more than the {most} bytes that it should have"),
        ),
        None => Fault::new(
            FaultKind::ImageUnacceptable,
            format!("the content has more than {most} bytes, the value of images.max_bytes"),
        ),
    }
}

//! The content of an image while it arrives: hashed, decompressed and given on
//! at once, so that no copy of it need be kept.
//!
//! ```text
//! a thread: source ─┬─► a thread: hashes
//!                   ├───────────────────────┬─► whoever takes it
//!                   └─► jail: decompress ───┘
//! ```
//!
//! Whoever must read it at any place has it kept in a file ([`Arriving::keep`]).
//! Plain content is then written there by the thread that reads it, and hashed
//! from there, so that what comes next need not wait for the hash.
//!
//! The bytes that are taken are not verified yet. What is made of them must
//! lie aside until [`receive`] gives it back: it does so only when all of the
//! content came, with the size and the hash that were asked for.

use std::fs::File;
use std::io::{Cursor, PipeReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ScopedJoinHandle;

use super::digest::{Algorithm, Digest, Hasher};
use super::jail::decompress::compression;
use super::jail::{self, Feed, Input, Jail, Running, Work};
use super::progress::{Listener, Meter};
use super::recognise::{self, Compression};
use super::source::Source;
use super::space::Space;
use super::sparse::{is_hole, write_sparsely};
use super::supply::Supply;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::{ImageCompression, ImageImport};

/// Bytes that are handed on at once.
const PIECE: usize = 1 << 17;
/// Pieces that wait to be hashed.
const WAITING: usize = 8;

/// What is known of content that came whole.
pub(super) struct Verified {
    /// Its bytes, as they came.
    pub size: u64,
    /// Their SHA-512.
    pub hash: Digest,
}

/// How content is received.
pub(super) struct Reception<'a> {
    /// The way into the jail.
    pub jail: &'a Jail,
    /// Any directory, for the jail.
    pub directory: &'a Path,
    /// What was asked for.
    pub request: &'a ImageImport,
    /// Most bytes, when the request does not say how many.
    pub max_bytes: u64,
    /// Asked before anything is written.
    pub space: &'a Space,
    /// Where progress goes.
    pub report: Listener<'a>,
}

/// Plain bytes on their way.
pub(super) struct Arriving<'a> {
    /// What was taken to look at, and is yet to be taken for good.
    head: Cursor<Vec<u8>>,
    stream: Stream,
    compression: Option<Compression>,
    keeping: &'a Keeping,
    space: &'a Space,
}

enum Stream {
    Plain(PipeReader),
    Decompressed(Option<Running>),
}

/// Reads a source to its end while `take` takes its plain bytes, and gives what
/// came of that when the content is the one that was asked for.
pub(super) fn receive<T>(
    reception: &Reception<'_>,
    source: Source,
    take: impl FnOnce(&mut Arriving<'_>) -> Result<T>,
) -> Result<(Verified, T)> {
    let mut supply = Supply::new(source, reception.report);
    let head = head_of(&mut supply)?;
    let compression = compression(&head)?;
    let (feed, stream) = match compression {
        None => {
            let (feed, reader) = jail::pipe()?;
            (feed, Stream::Plain(reader))
        }
        Some(compression) => {
            let directory = reception.directory.to_owned();
            let work = Work::Decompress { compression, size: None };
            let mut jail = reception.jail.start(directory, work, Input::Pipe)?;
            (jail.feed()?, Stream::Decompressed(Some(jail)))
        }
    };
    let (pieces, to_hash) = sync_channel(WAITING);
    let (spare, spares) = channel();
    let (refused, keeping) = (AtomicBool::new(false), Keeping::default());
    std::thread::scope(|scope| {
        let hashes = scope.spawn(|| hash(reception.request, to_hash, spare, &keeping));
        let reading = Reading { reception, feed: Some(feed), pieces, spares, keeping: &keeping };
        let size = scope.spawn(|| reading.run(&head, supply, &refused));
        let space = reception.space;
        let head = Cursor::default();
        let mut arriving = Arriving { head, stream, compression, keeping: &keeping, space };
        let taken = take(&mut arriving);
        refused.store(taken.is_err(), Ordering::Relaxed);
        // Nobody takes more, and the thread learns it.
        drop(arriving);
        let (size, hashes) = (joined(size), joined(hashes));
        let content = hashes?.verified(reception.request, size?)?;
        // Of bytes that are not the image's, it does not matter what came of them.
        Ok((content, taken?))
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Fault::internal("reading the content", "a defect")))
}

/// Content that is kept in a file from some place on.
#[derive(Default)]
struct Keeping {
    state: Mutex<KeptSoFar>,
    changed: Condvar,
}

#[derive(Default)]
struct KeptSoFar {
    /// Where it is to be kept, until the reading thread does so.
    asked: Option<File>,
    /// How far it is there.
    upto: u64,
    /// The size of the content, once all of it came.
    whole: Option<u64>,
    /// No more comes.
    ended: bool,
}

impl Keeping {
    fn change<T>(&self, change: impl FnOnce(&mut KeptSoFar) -> T) -> T {
        let changed = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        changed
    }

    /// How far the file goes, when that is beyond a place; `None` when it never will.
    fn beyond(&self, place: u64) -> Option<u64> {
        let upto = self.wait(|kept| kept.upto <= place).upto;
        (upto > place).then_some(upto)
    }

    /// The size of the content when all of it came, at its end.
    fn whole(&self) -> Option<u64> {
        self.wait(|_| true).whole
    }

    fn wait(&self, mut wants: impl FnMut(&KeptSoFar) -> bool) -> MutexGuard<'_, KeptSoFar> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |kept: &mut KeptSoFar| wants(kept) && !kept.ended;
        self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be hashed next.
enum ToHash {
    /// So many bytes of a buffer.
    Piece(Vec<u8>, usize),
    /// A file from this place on, as far as [`Keeping`] says.
    File(File, u64),
}

/// Hashes content, until no more comes.
fn hash(
    request: &ImageImport,
    pieces: Receiver<ToHash>,
    spare: Sender<Vec<u8>>,
    keeping: &Keeping,
) -> Result<Hashes> {
    let mut hashes = Hashes::new(request)?;
    for next in pieces {
        match next {
            ToHash::Piece(buffer, length) => {
                hashes.update(&buffer[..length])?;
                // The other thread needs none at the end.
                let _ = spare.send(buffer);
            }
            ToHash::File(file, mut at) => {
                let mut buffer = vec![0; PIECE];
                while let Some(upto) = keeping.beyond(at) {
                    let length = usize::try_from(upto - at).unwrap_or(PIECE).min(PIECE);
                    read_sparse(&file, at, &mut buffer[..length])?;
                    hashes.update(&buffer[..length])?;
                    at += length as u64;
                }
            }
        }
    }
    Ok(hashes)
}

/// Reads what was written sparsely: beyond the file's end are zeros yet to come. The kernel is not
/// asked for the zeros of a hole, for which it would take memory.
fn read_sparse(file: &File, at: u64, buffer: &mut [u8]) -> Result<()> {
    let mut done = if is_hole(file, at, buffer.len()) { buffer.len() } else { 0 };
    if done > 0 {
        buffer.fill(0);
    }
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).or_fault("reading the content to hash it"),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

/// The thread that reads the source. However it ends, nobody waits for more.
struct Reading<'a> {
    reception: &'a Reception<'a>,
    feed: Option<Feed>,
    pieces: SyncSender<ToHash>,
    spares: Receiver<Vec<u8>>,
    keeping: &'a Keeping,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.keeping.change(|kept| kept.ended = true);
    }
}

impl Reading<'_> {
    /// Reads all; its size. Refuses more than was asked for.
    fn run(mut self, head: &[u8], supply: Supply<'_>, refused: &AtomicBool) -> Result<u64> {
        let size = self.read(head, supply, refused)?;
        self.keeping.change(|kept| kept.whole = Some(size));
        Ok(size)
    }

    fn read(&mut self, head: &[u8], mut supply: Supply<'_>, refused: &AtomicBool) -> Result<u64> {
        let request = self.reception.request;
        let mut meter = Meter::new(self.reception.report, supply.source().stage());
        let most = request.size.unwrap_or(self.reception.max_bytes);
        // Of what was refused, the rest tells whether it was the image at all.
        let declared = request.size.is_some() || request.hash.is_some();
        let mut buffer = vec![0; PIECE.max(head.len())];
        buffer[..head.len()].copy_from_slice(head);
        let (mut n, mut size, mut file) = (head.len(), 0, None);
        while n > 0 && (declared || !refused.load(Ordering::Relaxed)) {
            if size + n as u64 > most {
                return Err(too_long(request, most));
            }
            if file.is_none() {
                file = self.begin_to_keep(size)?;
            }
            if let Some(file) = &file {
                self.reception.space.take(n as u64)?;
                write_sparsely(file, size, &buffer[..n]).or_fault("keeping the content")?;
                self.keeping.change(|kept| kept.upto = size + n as u64);
            } else {
                self.give(&buffer[..n])?;
                let next = self.spares.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
                self.hash(ToHash::Piece(std::mem::replace(&mut buffer, next), n))?;
            }
            size += n as u64;
            meter.at(size, request.size.or(supply.source().total()));
            n = match &self.feed {
                Some(mouth) => mouth.starving(|| supply.read(&mut buffer))?,
                None => supply.read(&mut buffer)?,
            };
        }
        self.feed = None;
        Ok(size)
    }

    fn give(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(mouth) = &mut self.feed
            && !mouth.give(bytes)?
        {
            self.feed = None;
        }
        Ok(())
    }

    fn hash(&self, next: ToHash) -> Result<()> {
        self.pieces
            .send(next)
            .map_err(|_| Fault::internal("hashing the content", "its thread has ended"))
    }

    /// The file to keep content in from here on, once that is asked for.
    fn begin_to_keep(&mut self, at: u64) -> Result<Option<File>> {
        let Some(file) = self.keeping.change(|kept| kept.asked.take()) else { return Ok(None) };
        // What was given before is written by whoever took it.
        self.feed = None;
        self.hash(ToHash::File(file.try_clone().or_fault("keeping the content")?, at))?;
        Ok(Some(file))
    }
}

impl Arriving<'_> {
    /// How the content is compressed on its way.
    pub fn compression(&self) -> Option<ImageCompression> {
        match self.compression? {
            Compression::Gzip => Some(ImageCompression::Gzip),
            Compression::Xz => Some(ImageCompression::Xz),
            Compression::Zstd => Some(ImageCompression::Zstd),
            // Recognised, not read.
            Compression::Bzip2 | Compression::Lz4 | Compression::Lzip => None,
        }
    }

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

    /// Writes all plain bytes into an empty file, at most so many; `key` is what limits them.
    pub fn keep(&mut self, file: &File, most: u64, key: &str) -> Result<()> {
        let doing = "keeping the content";
        let refuse = || {
            let why = format!("the content has more than {most} bytes, the value of {key}");
            Err(Fault::new(FaultKind::ImageUnacceptable, why))
        };
        let plain = matches!(self.stream, Stream::Plain(_));
        if plain {
            let asked = file.try_clone().or_fault(doing)?;
            self.keeping.change(|kept| kept.asked = Some(asked));
        }
        let mut buffer = vec![0; PIECE];
        let mut size = 0;
        loop {
            let n = self.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if size + n as u64 > most {
                return refuse();
            }
            self.space.take(n as u64)?;
            write_sparsely(file, size, &buffer[..n]).or_fault(doing)?;
            size += n as u64;
        }
        if plain {
            // The reading thread tells why it did not come to the end.
            let ended = || Fault::internal(doing, "it ended early");
            size = self.keeping.whole().ok_or_else(ended)?;
        }
        if size > most {
            return refuse();
        }
        file.set_len(size).or_fault(doing)
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
fn head_of(supply: &mut Supply<'_>) -> Result<Vec<u8>> {
    let mut head = vec![0; recognise::HEAD];
    let mut length = 0;
    while length < head.len() {
        match supply.read(&mut head[length..])? {
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

    fn verified(self, request: &ImageImport, size: u64) -> Result<Verified> {
        let hash = self.own.finish()?;
        let compared = self.other.map(Hasher::finish).transpose()?;
        verify(request, size, compared.as_ref().unwrap_or(&hash))?;
        Ok(Verified { size, hash })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::store::layout::Layout;
    use crate::store::room::Room;
    use crate::types::{ImageHash, ImageSource};
    use std::io::Seek;
    use std::os::unix::fs::MetadataExt;
    use uuid::Uuid;

    fn request(directory: &Path, content: &[u8]) -> ImageImport {
        let path = directory.join("source");
        std::fs::write(&path, content).unwrap();
        let hash = Digest::of(Algorithm::Sha384, content).unwrap();
        ImageImport {
            name: String::new(),
            source: ImageSource::File { path },
            hash: Some(ImageHash { algorithm: "sha384".into(), value: hash.hex().to_owned() }),
            size: None,
            verification: None,
        }
    }

    /// Keeps content in a file.
    fn keep(directory: &Path, request: &ImageImport, most: u64) -> Result<(Verified, File)> {
        let source = Source::open(&request.source, Uuid::nil(), &config::Images::default())?;
        let layout = Layout::new(directory.join("state"), directory.join("run"));
        let room = Room::open(&layout, &config::Storage::default());
        let reception = Reception {
            jail: &Jail::Thread,
            directory,
            request,
            max_bytes: 1 << 30,
            space: &Space::new(&room)?,
            report: &|_| {},
        };
        let file = tempfile::tempfile_in(directory).unwrap();
        let (content, ()) = receive(&reception, source, |arriving| {
            assert_eq!(arriving.peek(3)?, b"a d");
            arriving.keep(&file, most, "images.max_bytes")
        })?;
        Ok((content, file))
    }

    #[test]
    fn what_is_kept_is_hashed_from_there_with_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than all that waits in pipes, and its end is a hole.
        let mut content = b"a disk".repeat(1_000_000);
        content.resize(content.len() + (24 << 20), 0);
        content.extend(b"and a piece".repeat(100_000));
        content.resize(content.len() + 5_000_001, 0);
        let mut request = request(dir.path(), &content);
        let size = content.len() as u64;
        let (kept, mut file) = keep(dir.path(), &request, size).unwrap();
        assert_eq!(
            (kept.size, kept.hash),
            (size, Digest::of(Algorithm::Sha512, &content[..]).unwrap())
        );
        let mut found = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut found).unwrap();
        assert!(found == content);
        assert!(file.metadata().unwrap().blocks() * 512 < 9_000_000);

        let fault = keep(dir.path(), &request, size - 1).err().unwrap();
        assert!(fault.detail.contains("the value of images.max_bytes"), "{}", fault.detail);
        // Whatever came of it: it is not what was asked for.
        request.hash.as_mut().unwrap().value = "0".repeat(96);
        let fault = keep(dir.path(), &request, size).err().unwrap();
        assert!(fault.detail.starts_with("the content's sha384 is "), "{}", fault.detail);
        let fault = keep(dir.path(), &request, 1).err().unwrap();
        assert!(fault.detail.starts_with("the content's sha384 is "), "{}", fault.detail);
    }
}

//! One import, from a source to layers in the store.
//!
//! All that is made lies in one temporary directory until it is whole, and
//! that directory goes when the import ends, however it ends.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Take};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::Utc;
use uuid::Uuid;

use super::arrival::{self, Arriving, Reception};
use super::digest::{Algorithm, Digest, Hasher};
use super::fingerprint;
use super::flight::Progress;
use super::helper::{Input, Running};
use super::init;
use super::jail::{Outcome, Task};
use super::kept::Kept;
use super::layer::{Limits, Report, mark_opaque};
use super::manifest::{self, Plan, PlannedLayer};
use super::recognise::{self, Archive, Compression, Content};
use super::source::Source;
use super::stage::{Body, Staged};
use super::store::{
    ImageStore, LAYER_RECORD, LAYER_ROOT, LayerRecord, Pin, Record, SCHEMA, remove_tree,
};
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic;
use crate::types::{Image, ImageConfig, ImageDisk, ImageFormat, ImageHash, ImageImport};

mod disk;

/// Bytes that are handed on at once.
pub(super) const PIECE: usize = 1 << 17;
/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 1 << 20;
/// In an import's directory: what is kept of a disk.
const KEPT: &str = "kept";
/// Plain bytes that are looked at for what an archive is.
const LOOK: usize = 1 << 20;
/// Most bytes of a manifest, an index or a config.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Checks what a request says about the content.
pub(super) fn validate(request: &ImageImport, config: &config::Images) -> Result<()> {
    if let Some(hash) = &request.hash {
        let algorithm = Algorithm::named(&hash.algorithm)
            .ok_or_else(|| Fault::invalid("hash.algorithm", "must be sha512, sha384 or sha256"))?;
        if Digest::new(&hash.algorithm, &hash.value).is_none() {
            let digits = algorithm.digits();
            return Err(Fault::invalid(
                "hash.value",
                format!("must be {digits} lower-case hexadecimal digits"),
            ));
        }
    }
    match request.size {
        Some(size) if size > config.max_bytes => Err(Fault::invalid(
            "size",
            format!("must be at most {}, the value of images.max_bytes", config.max_bytes),
        )),
        _ => Ok(()),
    }
}

/// Imports an image; the record is for the caller to write, as long as the pins
/// keep the layers.
pub(super) fn run<'a>(
    store: &'a ImageStore,
    id: Uuid,
    request: &ImageImport,
    report: Listener<'a>,
) -> Result<(Record, Vec<Pin<'a>>)> {
    let limits =
        Limits { entries: store.config.max_entries, bytes: store.config.max_unpacked_bytes };
    let workspace = Workspace::new(&store.layout.images_temporary())?;
    let import = Import {
        store,
        report,
        disk_of_layers: File::open(&workspace.0).or_fault("opening a temporary directory")?,
        workspace,
        left: limits,
        planned: Vec::new(),
        unpacked: 0,
        pins: Vec::new(),
        disk: None,
    };
    import.run(id, request)
}

struct Import<'a> {
    store: &'a ImageStore,
    report: Listener<'a>,
    workspace: Workspace,
    /// Opened before anything is written, it tells of every write that fails later.
    disk_of_layers: File,
    /// What further layers may need.
    left: Limits,
    /// What the layers will be, lowest first.
    planned: Vec<Planned>,
    unpacked: u64,
    pins: Vec<Pin<'a>>,
    /// Of a disk image: what is kept of it, or why nothing is.
    disk: Option<Result<Kept, String>>,
}

/// What was made of the content before all of it was verified.
enum Arrived {
    /// All that there is to make; the layers lie aside.
    Layers(ImageFormat, ImageConfig),
    /// A disk image in a file, which only verified content may become more of.
    Disk(PathBuf, Content),
}

/// A layer of the image, before it is put in place.
enum Planned {
    /// It is in the store, and pinned.
    Here(Digest, LayerRecord),
    /// It lies aside, with the hash of its archive.
    Aside(Unpacked, Digest),
    /// It lies aside, and has no other address than that of the disk it came from.
    OfDisk(Unpacked),
}

/// A layer that lies aside.
struct Unpacked {
    path: PathBuf,
    report: Report,
}

/// The directory of an import, or of a disk in the making: gone when this value is.
pub struct Workspace(PathBuf);

impl Workspace {
    pub(super) fn new(parent: &Path) -> Result<Workspace> {
        let path = parent.join(Uuid::new_v4().to_string());
        make_directory(&path, 0o700)?;
        let workspace = Workspace(path);
        for name in ["staged", "empty"] {
            make_directory(&workspace.0.join(name), 0o700)?;
        }
        Ok(workspace)
    }

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A directory with nothing in it.
    pub fn empty(&self) -> PathBuf {
        self.path("empty")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(fault) = remove_tree(&self.0) {
            tracing::warn!(
                fault = %fault.in_full(),
                "a temporary directory stays until the next start"
            );
        }
    }
}

impl<'a> Import<'a> {
    fn run(mut self, id: Uuid, request: &ImageImport) -> Result<(Record, Vec<Pin<'a>>)> {
        let source = Source::open(&request.source, id, &self.store.config)?;
        let directory = self.workspace.empty();
        let reception = Reception {
            helper: &self.store.helper,
            directory: &directory,
            request,
            max_bytes: self.store.config.max_bytes,
            report: self.report,
        };
        let (content, arrived) =
            arrival::receive(&reception, source, |arriving| self.take(arriving))?;
        let (format, mut config) = match arrived {
            Arrived::Layers(format, config) => (format, config),
            Arrived::Disk(path, kind) => {
                self.disk(id, request, &content, path, kind)?;
                (super::disk::format(kind), ImageConfig::default())
            }
        };
        let layers = self.settle(&content)?;
        let layers: Vec<String> = layers.iter().map(Digest::to_string).collect();
        let directories: Vec<_> = layers.iter().map(|l| self.store.layer_dir(l)).collect();
        config.init = init::detect(&directories);
        let (disk, kept) = match self.disk {
            None => (None, None),
            Some(Err(refusal)) => {
                (Some(ImageDisk { size: 0, stored: 0, refusal: Some(refusal) }), None)
            }
            Some(Ok(kept)) => {
                self.store.put_disk(id, &self.workspace.path(KEPT))?;
                let (size, stored) = (kept.frame.size, kept.stored);
                (Some(ImageDisk { size, stored, refusal: None }), Some(kept))
            }
        };
        let now = Utc::now();
        let image = Image {
            id,
            name: request.name.clone(),
            format,
            size: content.size,
            hash: ImageHash {
                algorithm: content.hash.algorithm().name().to_owned(),
                value: content.hash.hex().to_owned(),
            },
            layers,
            unpacked_size: self.unpacked,
            config,
            disk,
            created_at: now,
            last_used_at: now,
            users: Vec::new(),
        };
        let record = Record { schema: SCHEMA, image, declared: request.hash.clone(), kept };
        Ok((record, self.pins))
    }

    /// Recognises content while it arrives, and makes of it what can be made of
    /// it before all is verified: a root file system is unpacked in one go, all
    /// else out of a file.
    fn take(&mut self, arriving: &mut Arriving<'_>) -> Result<Arrived> {
        match recognise::content(arriving.peek(recognise::HEAD)?) {
            Content::Tar if self.is_root_file_system(arriving.peek(LOOK)?)? => {
                let (unpacked, digest) = self.aside(|buffer| arriving.read(buffer))?;
                let done = unpacked.report.bytes;
                (self.report)(Progress { stage: "unpacking", done, total: Some(done) });
                self.plan(Planned::Aside(unpacked, digest));
                Ok(Arrived::Layers(ImageFormat::RootfsTar, ImageConfig::default()))
            }
            Content::Tar => {
                let (most, key) = (self.left.bytes, "images.max_unpacked_bytes");
                let path = self.keep_plain(arriving, most, key)?;
                let (format, config) = self.archive(&path)?;
                // Gone before the layers are made durable, it need not get to the disk at all.
                remove_tree(&path)?;
                Ok(Arrived::Layers(format, config))
            }
            kind if super::disk::reads(kind) => {
                let (most, key) = (self.store.config.max_bytes, "images.max_bytes");
                let path = self.keep_plain(arriving, most, key)?;
                match self.own_disk(&path, kind)? {
                    true => Ok(Arrived::Layers(super::disk::format(kind), ImageConfig::default())),
                    false => Ok(Arrived::Disk(path, kind)),
                }
            }
            kind => Err(recognise::refusal(kind)),
        }
    }

    fn is_root_file_system(&self, beginning: &[u8]) -> Result<bool> {
        let task = Task::Look { directory: self.workspace.empty() };
        let mut jail = self.store.helper.start(&task, Input::Pipe)?;
        jail.give(beginning)?;
        match jail.finish()? {
            Outcome::Looked(answer) => Ok(answer),
            _ => Err(wrong_answer()),
        }
    }

    /// Writes plain content into a file, to be read at any place.
    fn keep_plain(&self, arriving: &mut Arriving<'_>, most: u64, key: &str) -> Result<PathBuf> {
        let path = self.workspace.path("content");
        arriving.keep(&create_file(&path)?, most, key)?;
        Ok(path)
    }

    /// Takes an image archive apart.
    fn stage(&self, content: &Path) -> Result<Staged> {
        Meter::new(self.report, "recognising").at(0, None);
        let file = File::open(content).or_fault("opening the content")?;
        let task = Task::Stage { directory: self.workspace.path("staged"), limits: self.left };
        match self.store.helper.start(&task, Input::File(file))?.finish()? {
            Outcome::Staged(staged) => Ok(staged),
            _ => Err(wrong_answer()),
        }
    }

    /// Makes the layers of an image archive, or the root file system that it
    /// turns out to be, the image's.
    fn archive(&mut self, content: &Path) -> Result<(ImageFormat, ImageConfig)> {
        let staged = self.stage(content)?;
        match staged.archive {
            Archive::Rootfs => {
                let size = fs::metadata(content).or_fault("looking at the content")?.len();
                let meter = Meter::new(self.report, "unpacking").whole(size);
                self.layer(&Place::whole(content), None, meter)?;
                Ok((ImageFormat::RootfsTar, ImageConfig::default()))
            }
            archive @ (Archive::Docker | Archive::Oci) => self.layers(archive, &staged, content),
            archive => Err(recognise::archive_refusal(archive)),
        }
    }

    fn layers(
        &mut self,
        archive: Archive,
        staged: &Staged,
        content: &Path,
    ) -> Result<(ImageFormat, ImageConfig)> {
        let file = |name: &str| match staged.find(name)? {
            Body::File { number, size } => {
                let path = self.workspace.path("staged").join(number.to_string());
                Ok((Place::whole(&path), *size))
            }
            Body::Part { offset, size } => Ok((Place::part(content, *offset, *size), *size)),
            Body::Link(_) => Err(wrong_answer()),
        };
        let read = |name: &str| {
            let (place, size) = file(name)?;
            if size > MAX_DOCUMENT {
                return Err(Fault::new(
                    FaultKind::ImageUnacceptable,
                    format!("{name} has more than {MAX_DOCUMENT} bytes"),
                ));
            }
            let mut bytes = Vec::new();
            place.open()?.read_to_end(&mut bytes).or_fault("reading a staged member")?;
            Ok(bytes)
        };
        let architecture = recognise::host_architecture();
        let (format, plan) = match archive {
            Archive::Oci => (ImageFormat::OciArchive, manifest::oci(&read, architecture)?),
            _ => (ImageFormat::DockerArchive, manifest::docker(&read, architecture)?),
        };
        let Plan { config, layers } = plan;
        let files = layers.iter().map(|layer| file(&layer.member)).collect::<Result<Vec<_>>>()?;
        let total = files.iter().map(|(_, size)| size).sum();
        let mut before = 0;
        for (number, (layer, (place, size))) in layers.iter().zip(&files).enumerate() {
            let meter = Meter::new(self.report, "unpacking").whole(total).from(before);
            check_stored(layer, place, *size)
                .and_then(|()| self.layer(place, Some(&layer.diff_id), meter))
                .map_err(|fault| fault.context(format_args!("layer {}", number + 1)))?;
            before += size;
        }
        Ok((format, config))
    }

    /// Verifies one layer, and unpacks it unless it is there.
    fn layer(&mut self, place: &Place, expected: Option<&Digest>, meter: Meter<'_>) -> Result<()> {
        let here = match expected {
            Some(digest) => {
                // An altered one is no use, and only goes while it has no pin.
                self.store.sound_layer(digest)?;
                self.pins.push(self.store.pin(digest));
                self.store.layer(digest)?
            }
            None => None,
        };
        let mut plain = Plain::open(self, place, meter)?;
        let planned = match here {
            // Verified all the same: whoever knows a layer's address but has
            // not its content must not get at it.
            Some(record) => Planned::Here(hash_plain(plain)?, record),
            None => {
                let (unpacked, digest) = self.aside(|buffer| plain.read(buffer))?;
                Planned::Aside(unpacked, digest)
            }
        };
        if let Planned::Here(digest, _) | Planned::Aside(_, digest) = &planned {
            check_digest(digest, expected)?;
        }
        self.plan(planned);
        Ok(())
    }

    /// Puts a layer on top of those that the image will have.
    fn plan(&mut self, planned: Planned) {
        let (entries, bytes, stored) = match &planned {
            Planned::Here(_, record) => (record.entries, record.bytes, record.stored),
            Planned::Aside(Unpacked { report, .. }, _)
            | Planned::OfDisk(Unpacked { report, .. }) => {
                (report.entries, report.bytes, report.stored)
            }
        };
        self.left.entries = self.left.entries.saturating_sub(entries);
        self.left.bytes = self.left.bytes.saturating_sub(bytes);
        self.unpacked += stored;
        self.planned.push(planned);
    }

    /// Puts the layers of content that was verified in place; which they are, lowest first.
    fn settle(&mut self, content: &arrival::Content) -> Result<Vec<Digest>> {
        let mut sealed = Vec::new();
        for planned in std::mem::take(&mut self.planned) {
            sealed.push(match planned {
                Planned::Here(digest, record) => (digest, record, None),
                Planned::Aside(unpacked, digest) => self.seal(unpacked, digest)?,
                Planned::OfDisk(unpacked) => self.seal(unpacked, address_of_disk(content)?)?,
            });
        }
        if sealed.iter().any(|(_, _, aside)| aside.is_some()) {
            rustix::fs::syncfs(&self.disk_of_layers).or_fault("writing the layers to disk")?;
        }
        let mut layers = Vec::new();
        for (digest, record, aside) in sealed {
            if let Some(aside) = aside {
                self.publish(&aside, &digest)?;
            }
            // Of a layer that occurs twice the upper one decides, and overlayfs
            // takes no directory twice.
            layers.retain(|other| *other != digest);
            if record.opaque {
                // overlayfs does not look for the mark on a layer's root.
                layers.clear();
            }
            layers.push(digest);
        }
        Ok(layers)
    }

    /// Unpacks a layer aside; the hash of what was unpacked.
    fn aside(
        &self,
        mut read: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<(Unpacked, Digest)> {
        let (path, mut jail) = self.unpacker()?;
        let mut hasher = Hasher::new(Algorithm::Sha256)?;
        let mut buffer = vec![0; PIECE];
        loop {
            let n = read(&mut buffer)?;
            hasher.update(&buffer[..n])?;
            if n == 0 || !jail.give(&buffer[..n])? {
                break;
            }
        }
        // The jail reads to the end before it answers well, so all was hashed.
        Ok((unpacked(path, jail)?, hasher.finish()?))
    }

    /// A jail that unpacks a layer into a new directory.
    fn unpacker(&self) -> Result<(PathBuf, Running)> {
        let path = self.workspace.path(&Uuid::new_v4().to_string());
        let root = path.join(LAYER_ROOT);
        make_directory(&path, 0o700)?;
        make_directory(&root, 0o755)?;
        let task = Task::Layer { directory: root, limits: self.left };
        Ok((path, self.store.helper.start(&task, Input::Pipe)?))
    }

    /// Has an unpacked layer lack nothing but its place, and keeps that place
    /// until the import ends.
    fn seal(
        &mut self,
        unpacked: Unpacked,
        digest: Digest,
    ) -> Result<(Digest, LayerRecord, Option<PathBuf>)> {
        let Unpacked { path, report } = unpacked;
        // One that is there and was altered is no use, and only goes while it has no pin.
        self.store.sound_layer(&digest)?;
        self.pins.push(self.store.pin(&digest));
        let mut opaque = report.opaque;
        let opaque_root = opaque.remove(&Vec::new());
        let root = path.join(LAYER_ROOT);
        mark_opaque(File::open(&root).or_fault("opening the layer")?.as_fd(), &opaque)?;
        let record = LayerRecord {
            schema: SCHEMA,
            entries: report.entries,
            bytes: report.bytes,
            stored: report.stored,
            opaque: opaque_root,
            fingerprint: Some(fingerprint::of(&root)?),
        };
        atomic::write_json(&path.join(LAYER_RECORD), &record)?;
        Ok((digest, record, Some(path)))
    }

    /// Moves a durable layer to its address.
    fn publish(&self, aside: &Path, digest: &Digest) -> Result<()> {
        let place = self.store.layout.image_layer(digest.hex());
        match fs::rename(aside, &place) {
            Ok(()) => self.store.note_sound(digest),
            // Another import was faster; the content is the same.
            Err(_) if self.store.layer(digest)?.is_some() => {}
            other => other.or_fault(format_args!("moving a layer to {}", place.display()))?,
        }
        atomic::sync_parent(&place).or_fault("writing the layer to disk")
    }
}

/// What a jail unpacked there.
fn unpacked(path: PathBuf, jail: Running) -> Result<Unpacked> {
    match jail.finish()? {
        Outcome::Layer(report) => Ok(Unpacked { path, report }),
        _ => Err(wrong_answer()),
    }
}

/// The address of the layer that a disk image becomes: of its content, which
/// was hashed, and not of the archive in between, which only children see. No
/// layer's archive has these bytes: they are too few for one.
fn address_of_disk(content: &arrival::Content) -> Result<Digest> {
    let bytes = format!("a disk's root file system, as berth reads it: {}\n", content.hash);
    Digest::of(Algorithm::Sha256, bytes.as_bytes())
}

/// Where bytes lie: in a file, or in a part of one.
struct Place {
    path: PathBuf,
    part: Option<(u64, u64)>,
}

impl Place {
    fn whole(path: &Path) -> Place {
        Place { path: path.to_owned(), part: None }
    }

    fn part(path: &Path, offset: u64, size: u64) -> Place {
        Place { path: path.to_owned(), part: Some((offset, size)) }
    }

    fn open(&self) -> Result<Take<File>> {
        let doing = "opening the content";
        let mut file = File::open(&self.path).or_fault(doing)?;
        let (offset, size) = self.part.unwrap_or((0, u64::MAX));
        file.seek(SeekFrom::Start(offset)).or_fault(doing)?;
        Ok(file.take(size))
    }
}

/// A stream of plain bytes, from a file that may be compressed.
struct Plain<'a> {
    /// Shares its position with the decompressing child.
    file: Take<File>,
    jail: Option<Running>,
    /// Bytes that were given, where the position says nothing.
    given: Option<u64>,
    meter: Meter<'a>,
    /// Where it begins in the file.
    start: u64,
}

impl<'a> Plain<'a> {
    fn open(import: &Import<'_>, place: &Place, meter: Meter<'a>) -> Result<Plain<'a>> {
        let mut head = Vec::new();
        place
            .open()?
            .take(recognise::HEAD as u64)
            .read_to_end(&mut head)
            .or_fault("reading the content")?;
        let file = place.open()?;
        let jail = match compression(&head)? {
            None => None,
            Some(compression) => {
                let directory = import.workspace.empty();
                let input = file.get_ref().try_clone().or_fault("opening the content")?;
                let size = place.part.map(|(_, size)| size);
                let task = Task::Decompress { compression, directory, size };
                Some(import.store.helper.start(&task, Input::File(input))?)
            }
        };
        let start = place.part.map_or(0, |(offset, _)| offset);
        Ok(Plain { file, jail, given: None, meter, start })
    }

    /// What a task makes of a disk image: how much that will be is not known.
    fn of_task(
        import: &Import<'_>,
        path: &Path,
        task: &Task,
        meter: Meter<'a>,
    ) -> Result<Plain<'a>> {
        let file = File::open(path).or_fault("opening the disk image")?;
        let input = file.try_clone().or_fault("opening the disk image")?;
        let jail = Some(import.store.helper.start(task, Input::File(input))?);
        Ok(Plain { file: file.take(u64::MAX), jail, given: Some(0), meter, start: 0 })
    }

    /// Takes bytes; 0 at the end, after which all of it was good.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = match &mut self.jail {
            None => self.file.read(buffer).or_fault("reading the content")?,
            Some(jail) => jail.take(buffer)?,
        };
        if n == 0
            && let Some(jail) = self.jail.take()
        {
            jail.finish()?;
        }
        if let Some(given) = &mut self.given {
            *given += n as u64;
            self.meter.at(*given, None);
        } else if let Ok(position) = self.file.get_mut().stream_position() {
            self.meter.at(position.saturating_sub(self.start), None);
        }
        Ok(n)
    }
}

impl Plain<'_> {
    /// Fills the buffer; false when the bytes ended before its first.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(wrong_answer()),
                n => filled += n,
            }
        }
        Ok(true)
    }
}

/// How content that begins so is compressed.
pub(super) fn compression(head: &[u8]) -> Result<Option<Compression>> {
    match recognise::content(head) {
        Content::Compressed(
            compression @ (Compression::Gzip | Compression::Xz | Compression::Zstd),
        ) => Ok(Some(compression)),
        content @ Content::Compressed(_) => Err(recognise::refusal(content)),
        _ => Ok(None),
    }
}

/// Where progress goes.
pub(super) type Listener<'a> = &'a (dyn Fn(Progress) + Sync);

/// Reports progress, not too often.
pub(super) struct Meter<'a> {
    report: Listener<'a>,
    stage: &'static str,
    total: Option<u64>,
    before: u64,
    next: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(report: Listener<'a>, stage: &'static str) -> Meter<'a> {
        Meter { report, stage, total: None, before: 0, next: 0 }
    }

    fn whole(self, total: u64) -> Meter<'a> {
        Meter { total: Some(total), ..self }
    }

    fn from(self, before: u64) -> Meter<'a> {
        Meter { before, ..self }
    }

    pub(super) fn at(&mut self, done: u64, total: Option<u64>) {
        if done >= self.next {
            self.next = done + REPORT_EVERY;
            let total = self.total.or(total);
            (self.report)(Progress { stage: self.stage, done: self.before + done, total });
        }
    }
}

fn hash_plain(mut plain: Plain<'_>) -> Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match plain.read(&mut buffer)? {
            0 => return hasher.finish(),
            n => hasher.update(&buffer[..n])?,
        }
    }
}

fn check_digest(digest: &Digest, expected: Option<&Digest>) -> Result<()> {
    match expected {
        Some(expected) if expected != digest => Err(Fault::new(
            FaultKind::ImageCorrupt,
            format!("its content is {digest}, its config says {expected}"),
        )),
        _ => Ok(()),
    }
}

/// Checks a layer as it is stored, still compressed, against its manifest.
fn check_stored(layer: &PlannedLayer, place: &Place, size: u64) -> Result<()> {
    let Some((digest, declared)) = &layer.stored else { return Ok(()) };
    if size == *declared && Digest::of(digest.algorithm(), place.open()?)? == *digest {
        return Ok(());
    }
    Err(Fault::new(FaultKind::ImageCorrupt, format!("it is not {digest} of {declared} bytes")))
}

fn wrong_answer() -> Fault {
    Fault::internal("unpacking in the jail", "it answered another question")
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    // Set and not only asked for: the service's umask takes nothing away.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .or_fault(format_args!("making {}", path.display()))
}

pub(super) fn create_file(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .or_fault(format_args!("making {}", path.display()))
}

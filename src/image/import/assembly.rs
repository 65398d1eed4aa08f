//! The layers of an image in the making: unpacked aside, then sealed and put in place.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use crate::config;
use crate::fault::{Fault, OrFault, Result};
use crate::image::arrival::Verified;
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::files::make_directory;
use crate::image::fingerprint;
use crate::image::jail::{Input, Jail, Outcome, Running, Work};
use crate::image::layers::{Layers, Pin};
use crate::image::progress::{Listener, Meter};
use crate::image::records::{LAYER_RECORD, LAYER_ROOT, LayerRecord, SCHEMA};
use crate::image::space::Space;
use crate::image::unpack::{TreeKind, UnpackLimits, UnpackReport};
use crate::image::workspace::Workspace;
use crate::store::atomic;
use crate::store::layout::Layout;
use crate::store::room::Room;
use crate::types::{ImageInspection, LayerInspection};

/// Bytes that are handed on at once.
pub(super) const PIECE: usize = 1 << 17;

/// What an import works with.
#[derive(Clone, Copy)]
pub(in crate::image) struct Means<'a> {
    /// The layers that are there, where others come to.
    pub layers: &'a Layers,
    /// The way into the jail.
    pub jail: &'a Jail,
    /// What is allowed.
    pub config: &'a config::Images,
    /// Ids that instances have.
    pub ids: u64,
    /// Who gives the space.
    pub room: &'a Arc<Room>,
    /// Where everything lies.
    pub layout: &'a Layout,
    /// Where progress goes.
    pub report: Listener<'a>,
}

/// An image's layers in the making, and the directory of its import.
pub(super) struct Assembly<'a> {
    pub means: Means<'a>,
    pub workspace: Workspace,
    /// Asked before anything is written there.
    pub space: Arc<Space>,
    /// Opened before anything is written, it tells of every write that fails later.
    disk_of_layers: File,
    /// What further layers may need.
    pub left: UnpackLimits,
    /// What the layers will be, lowest first.
    pending: Vec<Pending>,
    /// What was found of the image so far.
    pub found: ImageInspection,
    /// What keeps those that are in place.
    pub pins: Vec<Pin<'a>>,
}

/// A layer of the image, before it is put in place.
pub(super) enum Pending {
    /// It is in the store, and pinned.
    Here(Digest, LayerRecord),
    /// It lies aside, with the hash of its archive.
    Aside(Unpacked, Digest),
    /// It lies aside, and has no other address than that of the disk it came from.
    OfDisk(Unpacked),
}

/// A layer that lacks nothing but its place, if that.
pub(super) struct Sealed {
    pub digest: Digest,
    record: LayerRecord,
    /// Where it lies, unless it is in the store.
    aside: Option<PathBuf>,
}

/// A layer that lies aside.
pub(super) struct Unpacked {
    path: PathBuf,
    pub report: UnpackReport,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(means: Means<'a>, space: Arc<Space>) -> Result<Assembly<'a>> {
        let workspace = Workspace::new(&means.layout.images_temporary())?;
        Ok(Assembly {
            means,
            disk_of_layers: File::open(workspace.top())
                .or_fault("opening a temporary directory")?,
            workspace,
            space,
            left: UnpackLimits {
                entries: means.config.max_entries,
                bytes: means.config.max_unpacked_bytes,
                ids: means.ids,
            },
            pending: Vec::new(),
            found: ImageInspection::default(),
            pins: Vec::new(),
        })
    }

    /// A report of progress with a name.
    pub(super) fn meter(&self, stage: &'static str) -> Meter<'a> {
        Meter::new(self.means.report, stage)
    }

    /// Starts a jail that needs no directory of its own.
    pub(super) fn start(&self, work: Work, input: Input) -> Result<Running> {
        self.means.jail.start(self.workspace.empty(), work, input)
    }

    /// What is known of a layer that is there, which stays there from now on.
    pub(super) fn pinned(&mut self, digest: &Digest) -> Result<Option<LayerRecord>> {
        // An altered one is no use, and only goes while it has no pin.
        self.means.layers.sound(digest)?;
        self.pins.push(self.means.layers.pin(digest));
        self.means.layers.record(digest)
    }

    /// Puts a layer on top of those that the image will have.
    pub(super) fn add(&mut self, pending: Pending) {
        let (entries, bytes, stored) = match &pending {
            Pending::Here(_, record) => (record.entries, record.bytes, record.stored),
            Pending::Aside(Unpacked { report, .. }, _)
            | Pending::OfDisk(Unpacked { report, .. }) => {
                (report.entries, report.bytes, report.stored)
            }
        };
        self.left.entries = self.left.entries.saturating_sub(entries);
        self.left.bytes = self.left.bytes.saturating_sub(bytes);
        let digest = match &pending {
            Pending::Here(digest, _) | Pending::Aside(_, digest) => Some(digest.to_string()),
            Pending::OfDisk(_) => None,
        };
        self.found.entries += entries;
        self.found.unpacked_size += stored;
        self.found.layers.push(LayerInspection {
            digest,
            packed_size: None,
            entries,
            unpacked_size: stored,
        });
        self.pending.push(pending);
    }

    /// Unpacks a layer aside; the hash of what was unpacked.
    pub(super) fn unpack(
        &self,
        kind: TreeKind,
        mut read: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<(Unpacked, Digest)> {
        let (path, mut jail) = self.unpacker(kind)?;
        let mut hasher = Hasher::new(Algorithm::Sha256)?;
        let mut buffer = vec![0; PIECE];
        loop {
            let n = read(&mut buffer)?;
            hasher.update(&buffer[..n])?;
            self.space.take_unpacked(n as u64)?;
            if n == 0 || !jail.give(&buffer[..n])? {
                break;
            }
        }
        // The jail reads to the end before it answers well, so all was hashed.
        let (unpacked, digest) = (unpacked(path, jail)?, hasher.finish()?);
        let digest =
            if unpacked.report.own_kind { address_of_root(kind, &digest)? } else { digest };
        Ok((unpacked, digest))
    }

    /// A jail that unpacks a layer into a new directory.
    pub(super) fn unpacker(&self, kind: TreeKind) -> Result<(PathBuf, Running)> {
        let path = self.workspace.path(&Uuid::new_v4().to_string());
        let root = path.join(LAYER_ROOT);
        make_directory(&path, 0o700)?;
        make_directory(&root, 0o755)?;
        let work = Work::Layer { kind, limits: self.left };
        Ok((path, self.means.jail.start(root, work, Input::Pipe)?))
    }

    /// Has the layers of content that was verified lack nothing but their places; those that the
    /// image consists of, lowest first.
    pub(super) fn seal(&mut self, content: &Verified) -> Result<Vec<Sealed>> {
        let mut layers: Vec<Sealed> = Vec::new();
        for (number, pending) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let layer = match pending {
                Pending::Here(digest, record) => Sealed { digest, record, aside: None },
                Pending::Aside(unpacked, digest) => self.seal_one(unpacked, digest, false)?,
                Pending::OfDisk(unpacked) => {
                    self.seal_one(unpacked, address_of_disk(content)?, false)?
                }
            };
            if let Some(found) = self.found.layers.get_mut(number) {
                found.digest = Some(layer.digest.to_string());
            }
            // Of a layer that occurs twice the upper one decides, and overlayfs
            // takes no directory twice.
            layers.retain(|other| other.digest != layer.digest);
            if layer.record.opaque {
                // overlayfs does not look for the mark on a layer's root.
                layers.clear();
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    /// Where sealed layers lie at the moment.
    pub(super) fn directories(&self, layers: &[Sealed]) -> Vec<PathBuf> {
        let directory = |layer: &Sealed| match &layer.aside {
            Some(aside) => aside.join(LAYER_ROOT),
            None => self.means.layers.directory(&layer.digest.to_string()),
        };
        layers.iter().map(directory).collect()
    }

    /// Puts sealed layers in place.
    pub(super) fn put_in_place(&self, layers: &[Sealed]) -> Result<()> {
        if layers.iter().any(|layer| layer.aside.is_some()) {
            rustix::fs::syncfs(&self.disk_of_layers).or_fault("writing the layers to disk")?;
        }
        for Sealed { digest, aside, .. } in layers {
            if let Some(aside) = aside {
                self.means.layers.publish(aside, digest)?;
            }
        }
        Ok(())
    }

    /// Has an unpacked layer lack nothing but its place, and keeps that place
    /// until the import ends. `opaque`: it is known to hide all below it.
    pub(super) fn seal_one(
        &mut self,
        unpacked: Unpacked,
        digest: Digest,
        opaque: bool,
    ) -> Result<Sealed> {
        let Unpacked { path, report } = unpacked;
        self.pinned(&digest)?;
        let mut marks = report.marks;
        let opaque_root = marks.opaque.remove(&Vec::new());
        let root = path.join(LAYER_ROOT);
        marks.set(File::open(&root).or_fault("opening the layer")?.as_fd())?;
        let record = LayerRecord {
            schema: SCHEMA,
            entries: report.entries,
            bytes: report.bytes,
            stored: report.stored,
            opaque: opaque || opaque_root,
            fingerprint: Some(fingerprint::of(&root)?),
        };
        atomic::write_json(&path.join(LAYER_RECORD), &record)?;
        Ok(Sealed { digest, record, aside: Some(path) })
    }
}

/// What a jail unpacked there.
pub(super) fn unpacked(path: PathBuf, jail: Running) -> Result<Unpacked> {
    match jail.finish()? {
        Outcome::Layer(report) => Ok(Unpacked { path, report }),
        _ => Err(wrong_answer()),
    }
}

/// The address of the layer that a disk image becomes: of its content, which
/// was hashed, and not of the archive in between, which only children see. No
/// layer's archive has these bytes: they are too few for one.
fn address_of_disk(content: &Verified) -> Result<Digest> {
    let bytes = format!("a disk's root file system, as berth reads it: {}\n", content.hash);
    Digest::of(Algorithm::Sha256, bytes.as_bytes())
}

/// The address of a root file system whose archive would be another tree as a layer.
fn address_of_root(kind: TreeKind, archive: &Digest) -> Result<Digest> {
    let part = if kind == TreeKind::RootBelow { "what is below rootfs/ in" } else { "all of" };
    let bytes = format!("a root file system, {part} the archive: {archive}\n");
    Digest::of(Algorithm::Sha256, bytes.as_bytes())
}

/// The fault for a jail that says what it was not asked.
pub(super) fn wrong_answer() -> Fault {
    Fault::internal("unpacking in the jail", "it answered another question")
}

//! An image archive, or the root file system that an archive turns out to be, into layers.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::assembly::{Assembly, PIECE, Pending, wrong_answer};
use super::plain::{Place, Plain};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::digest::Digest;
use crate::image::disk;
use crate::image::files::create_file;
use crate::image::jail::{Input, Outcome, Work};
use crate::image::manifest::{self, ImagePlan, PlannedLayer};
use crate::image::progress::Meter;
use crate::image::recognise::{self, ArchiveKind, Content};
use crate::image::refusal;
use crate::image::sparse::write_sparsely;
use crate::image::stage::{Body, Staged};
use crate::image::unpack::TreeKind;
use crate::types::{ImageConfig, ImageFormat};

/// Most bytes of a manifest, an index or a config.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Most members of an archive that is looked through for a disk image.
const MAX_DISK_MEMBERS: usize = 64;

/// What an archive became.
pub(super) enum Taken {
    /// Layers.
    Image(ImageFormat, ImageConfig),
    /// A disk image, in a file of its own.
    Disk(PathBuf, Content),
}

/// Makes the layers of an image archive, or the root file system that it
/// turns out to be, the image's.
pub(super) fn unpack(assembly: &mut Assembly<'_>, content: &Path) -> Result<Taken> {
    let staged = take_apart(assembly, content)?;
    let kind = match staged.archive {
        ArchiveKind::Rootfs => TreeKind::Root,
        ArchiveKind::RootfsBelow => TreeKind::RootBelow,
        archive @ (ArchiveKind::Docker | ArchiveKind::Oci) => {
            let (format, config) = unpack_layers(assembly, archive, &staged, content)?;
            return Ok(Taken::Image(format, config));
        }
        archive => return take_disk(assembly, archive, &staged, content),
    };
    assembly.found.format = Some(ImageFormat::RootfsTar);
    let size = fs::metadata(content).or_fault("looking at the content")?.len();
    let meter = assembly.meter("unpacking").whole(size);
    unpack_layer(assembly, &Place::whole(content), None, kind, meter)?;
    Ok(Taken::Image(ImageFormat::RootfsTar, ImageConfig::default()))
}

/// Takes the one disk image of an archive out of it.
fn take_disk(
    assembly: &mut Assembly<'_>,
    archive: ArchiveKind,
    staged: &Staged,
    content: &Path,
) -> Result<Taken> {
    let mut disks = Vec::new();
    if staged.members.len() <= MAX_DISK_MEMBERS {
        for (name, body) in &staged.members {
            let workspace = assembly.workspace.staged();
            let Some((place, size)) = place_of(&workspace, content, body) else { continue };
            let mut head = Vec::new();
            let most = recognise::HEAD as u64;
            place.open()?.take(most).read_to_end(&mut head).or_fault("reading a staged member")?;
            let kind = recognise::content(&head);
            if disk::reads(kind) {
                disks.push((name.as_str(), kind, place, size));
            }
        }
    }
    let (name, kind, place, size) = match disks.as_slice() {
        [] => return Err(refusal::of_archive(archive)),
        [(name, kind, place, size)] => (*name, *kind, place, *size),
        several => {
            let names: Vec<_> = several.iter().map(|(name, ..)| *name).collect();
            return Err(refusal::of_disks(&names));
        }
    };
    assembly.found.member = Some(refusal::printable(name.as_bytes()));
    let path = assembly.workspace.path("disk");
    let file = create_file(&path)?;
    let doing = "taking the disk out of the archive";
    file.set_len(size).or_fault(doing)?;
    let mut meter = assembly.meter("extracting").whole(size);
    let (mut from, mut buffer, mut offset) = (place.open()?, vec![0; PIECE], 0);
    loop {
        let n = from.read(&mut buffer).or_fault(doing)?;
        if n == 0 {
            break;
        }
        assembly.space.take(n as u64)?;
        write_sparsely(&file, offset, &buffer[..n]).or_fault(doing)?;
        offset += n as u64;
        meter.at(offset, None);
    }
    Ok(Taken::Disk(path, kind))
}

/// Where a member's content lies, if it has any.
fn place_of(staged: &Path, content: &Path, body: &Body) -> Option<(Place, u64)> {
    match body {
        Body::File { number, size } => {
            let path = staged.join(number.to_string());
            Some((Place::whole(&path), *size))
        }
        Body::Part { offset, size } => Some((Place::part(content, *offset, *size), *size)),
        Body::Link(_) => None,
    }
}

fn unpack_layers(
    assembly: &mut Assembly<'_>,
    archive: ArchiveKind,
    staged: &Staged,
    content: &Path,
) -> Result<(ImageFormat, ImageConfig)> {
    let workspace = assembly.workspace.staged();
    let file =
        |name: &str| place_of(&workspace, content, staged.find(name)?).ok_or_else(wrong_answer);
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
    let (format, documents): (_, fn(manifest::Read<'_>, &str) -> Result<ImagePlan>) = match archive
    {
        ArchiveKind::Oci => (ImageFormat::OciArchive, manifest::oci),
        _ => (ImageFormat::DockerArchive, manifest::docker),
    };
    assembly.found.format = Some(format);
    let ImagePlan { config, layers } = documents(&read, architecture)?;
    assembly.found.config = Some(config.clone());
    let files = layers.iter().map(|layer| file(&layer.member)).collect::<Result<Vec<_>>>()?;
    let total = files.iter().map(|(_, size)| size).sum();
    let mut before = 0;
    for (number, (layer, (place, size))) in layers.iter().zip(&files).enumerate() {
        let meter = assembly.meter("unpacking").whole(total).from(before);
        check_stored(layer, place, *size)
            .and_then(|()| {
                unpack_layer(assembly, place, Some(&layer.diff_id), TreeKind::Layer, meter)
            })
            .map(|()| assembly.found.layers.last_mut())
            .map(|layer| layer.into_iter().for_each(|layer| layer.packed_size = Some(*size)))
            .map_err(|fault| fault.context(format_args!("layer {}", number + 1)))?;
        before += size;
    }
    Ok((format, config))
}

/// Verifies one layer, and unpacks it unless it is there.
fn unpack_layer(
    assembly: &mut Assembly<'_>,
    place: &Place,
    expected: Option<&Digest>,
    kind: TreeKind,
    meter: Meter<'_>,
) -> Result<()> {
    let here = match expected {
        Some(digest) => assembly.pinned(digest)?,
        None => None,
    };
    let mut plain = Plain::open(assembly, place, meter)?;
    let pending = match here {
        // Verified all the same: whoever knows a layer's address but has
        // not its content must not get at it.
        Some(record) => Pending::Here(plain.hash()?, record),
        None => {
            let (unpacked, digest) = assembly.unpack(kind, |buffer| plain.read(buffer))?;
            Pending::Aside(unpacked, digest)
        }
    };
    if let Pending::Here(digest, _) | Pending::Aside(_, digest) = &pending {
        check_digest(digest, expected)?;
    }
    assembly.add(pending);
    Ok(())
}

/// Takes an image archive apart.
fn take_apart(assembly: &Assembly<'_>, content: &Path) -> Result<Staged> {
    assembly.meter("recognising").at(0, None);
    let file = File::open(content).or_fault("opening the content")?;
    // Members with holes get files of their own, of data that is in the content.
    let size = file.metadata().or_fault("looking at the content")?.len();
    let _room = assembly.space.hold(size)?;
    let (directory, work) = (assembly.workspace.staged(), Work::Stage { limits: assembly.left });
    match assembly.means.jail.start(directory, work, Input::File(file))?.finish()? {
        Outcome::Staged(staged) => Ok(staged),
        _ => Err(wrong_answer()),
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

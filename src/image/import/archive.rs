//! An image archive, or the root file system that an archive turns out to be, into layers.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::assembly::{Assembly, Pending, wrong_answer};
use super::plain::{Place, Plain};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::digest::Digest;
use crate::image::jail::{Input, Outcome, Work};
use crate::image::manifest::{self, ImagePlan, PlannedLayer};
use crate::image::progress::Meter;
use crate::image::recognise::{self, ArchiveKind};
use crate::image::refusal;
use crate::image::stage::{Body, Staged};
use crate::image::unpack::TreeKind;
use crate::types::{ImageConfig, ImageFormat};

/// Most bytes of a manifest, an index or a config.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Makes the layers of an image archive, or the root file system that it
/// turns out to be, the image's.
pub(super) fn unpack(
    assembly: &mut Assembly<'_>,
    content: &Path,
) -> Result<(ImageFormat, ImageConfig)> {
    let staged = take_apart(assembly, content)?;
    match staged.archive {
        ArchiveKind::Rootfs => {
            let size = fs::metadata(content).or_fault("looking at the content")?.len();
            let meter = assembly.meter("unpacking").whole(size);
            unpack_layer(assembly, &Place::whole(content), None, TreeKind::Root, meter)?;
            Ok((ImageFormat::RootfsTar, ImageConfig::default()))
        }
        archive @ (ArchiveKind::Docker | ArchiveKind::Oci) => {
            unpack_layers(assembly, archive, &staged, content)
        }
        archive => Err(refusal::of_archive(archive)),
    }
}

fn unpack_layers(
    assembly: &mut Assembly<'_>,
    archive: ArchiveKind,
    staged: &Staged,
    content: &Path,
) -> Result<(ImageFormat, ImageConfig)> {
    let staged_in = assembly.workspace.staged();
    let file = |name: &str| match staged.find(name)? {
        Body::File { number, size } => {
            let path = staged_in.join(number.to_string());
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
        ArchiveKind::Oci => (ImageFormat::OciArchive, manifest::oci(&read, architecture)?),
        _ => (ImageFormat::DockerArchive, manifest::docker(&read, architecture)?),
    };
    let ImagePlan { config, layers } = plan;
    let files = layers.iter().map(|layer| file(&layer.member)).collect::<Result<Vec<_>>>()?;
    let total = files.iter().map(|(_, size)| size).sum();
    let mut before = 0;
    for (number, (layer, (place, size))) in layers.iter().zip(&files).enumerate() {
        let meter = assembly.meter("unpacking").whole(total).from(before);
        check_stored(layer, place, *size)
            .and_then(|()| {
                unpack_layer(assembly, place, Some(&layer.diff_id), TreeKind::Layer, meter)
            })
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

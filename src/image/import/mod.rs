//! One import, from a source to layers in the store.
//!
//! All that is made lies in one temporary directory until it is whole, and
//! that directory goes when the import ends, however it ends.

mod archive;
mod assembly;
mod disk_image;
mod moved;
mod plain;
mod policy;

use std::path::PathBuf;
use std::sync::Arc;

use chrono::Utc;
use uuid::Uuid;

use archive::Taken;
pub(super) use assembly::Means;
use assembly::{Assembly, Pending, Sealed, wrong_answer};
use disk_image::Remains;
pub(super) use moved::receive_layer;
use policy::Policy;

use super::arrival::{self, Arriving, Reception, Verified};
use super::digest::{Algorithm, Digest};
use super::disk;
use super::files::{create_file, remove_tree};
use super::init;
use super::jail::{Input, Outcome, Work};
use super::kept_disk;
use super::layers::Pin;
use super::machine;
use super::progress::Progress;
use super::recognise::{self, Content};
use super::records::{ImageRecord, SCHEMA};
use super::refusal;
use super::source::Source;
use super::space::Space;
use super::unpack::TreeKind;
use crate::config;
use crate::fault::{Fault, FaultKind, Result};
use crate::types::{
    Image, ImageConfig, ImageDisk, ImageFormat, ImageHash, ImageImport, ImageInspection,
    ImageRefusal, ImageVerification,
};

/// Faults that say something of an image, not of the request, the host's room or Glance.
const REFUSALS: [FaultKind; 3] =
    [FaultKind::ImageUnacceptable, FaultKind::ImageCorrupt, FaultKind::HostUnsupported];

/// Plain bytes that are looked at for what an archive is.
const LOOK: usize = 1 << 20;

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
    if let Some(verification) = &request.verification {
        validate_verification(verification)?;
        if request.hash.is_none() {
            return Err(Fault::invalid("hash", "must tell which content was verified"));
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

/// Ids only, and no more of them than Nova takes for a server.
fn validate_verification(verification: &ImageVerification) -> Result<()> {
    const MOST: usize = 50;
    const LONGEST: usize = 255;
    let ids = &verification.trusted_certificates;
    if ids.len() > MOST {
        let field = "verification.trusted_certificates";
        return Err(Fault::invalid(field, format!("must be at most {MOST}")));
    }
    let valid =
        |id: &String| !id.is_empty() && id.len() <= LONGEST && !id.contains(char::is_control);
    if ids.iter().chain([&verification.certificate]).all(valid) {
        return Ok(());
    }
    Err(Fault::invalid(
        "verification",
        format!("must have ids of 1 to {LONGEST} bytes without control characters"),
    ))
}

/// What content became, besides layers that lie aside.
struct Made {
    format: ImageFormat,
    config: ImageConfig,
    /// Of a disk image.
    remains: Option<Remains>,
}

/// What was made of the content before all of it was verified.
enum Arrived {
    /// All that there is to make.
    Whole(Box<Made>),
    /// A disk image in a file, which only verified content may become more of.
    Disk(PathBuf, Content),
}

/// Imports an image; the record is for the caller to write, as long as the pins
/// keep the layers.
pub(super) fn run<'a>(
    means: Means<'a>,
    id: Uuid,
    request: &ImageImport,
) -> Result<(ImageRecord, Vec<Pin<'a>>)> {
    let (source, mut assembly) = begin(means, id, request)?;
    let Ready { content, format, config, remains, layers } =
        make_ready(&mut assembly, source, id, request)?;
    assembly.put_in_place(&layers)?;
    let kept = match remains {
        Some(Ok(kept)) => {
            let place = means.layout.image_disk(id);
            kept_disk::put_in_place(&disk_image::place_of_remains(&assembly), &place)?;
            Some(kept)
        }
        _ => None,
    };
    let now = Utc::now();
    let image = Image {
        id,
        name: request.name.clone(),
        format,
        size: content.size,
        hash: hash_of(&content),
        layers: layers.iter().map(|layer| layer.digest.to_string()).collect(),
        unpacked_size: assembly.found.unpacked_size,
        config,
        disk: assembly.found.disk.and_then(|disk| disk.kept),
        verifications: request.verification.iter().cloned().collect(),
        created_at: now,
        last_used_at: now,
        users: Vec::new(),
    };
    let record = ImageRecord { schema: SCHEMA, image, declared: request.hash.clone(), kept };
    Ok((record, assembly.pins))
}

/// Does all of an import but to put anything in its place, and says what was found. All that was
/// made is gone when this returns.
pub(super) fn inspect(
    means: Means<'_>,
    id: Uuid,
    request: &ImageImport,
) -> Result<ImageInspection> {
    let (source, mut assembly) = begin(means, id, request)?;
    let refusal = match make_ready(&mut assembly, source, id, request) {
        Ok(_) => None,
        Err(Fault { kind, detail, .. }) if REFUSALS.contains(&kind) => {
            Some(ImageRefusal { code: kind, detail })
        }
        Err(fault) => return Err(fault),
    };
    Ok(ImageInspection { refusal, ..std::mem::take(&mut assembly.found) })
}

/// An image that lacks nothing but its place.
struct Ready {
    content: Verified,
    format: ImageFormat,
    config: ImageConfig,
    remains: Option<Remains>,
    layers: Vec<Sealed>,
}

/// Opens the source, and makes the place where all comes to lie.
fn begin<'a>(means: Means<'a>, id: Uuid, request: &ImageImport) -> Result<(Source, Assembly<'a>)> {
    let source = Source::open(&request.source, id, means.config)?;
    let space = Arc::new(Space::new(means.room)?);
    let assembly = Assembly::new(means, space)?;
    Ok((source, assembly))
}

/// Makes all of an image aside; whatever comes of it, `assembly.found` tells what was found.
fn make_ready(
    assembly: &mut Assembly<'_>,
    source: Source,
    id: Uuid,
    request: &ImageImport,
) -> Result<Ready> {
    let means = assembly.means;
    let (directory, space) = (assembly.workspace.empty(), Arc::clone(&assembly.space));
    let reception = Reception {
        jail: means.jail,
        directory: &directory,
        request,
        max_bytes: means.config.max_bytes,
        space: &space,
        report: means.report,
    };
    let total = request.size.or(source.total());
    let (content, arrived) =
        arrival::receive(&reception, source, |arriving| take(assembly, arriving, total))?;
    (assembly.found.size, assembly.found.hash) = (Some(content.size), Some(hash_of(&content)));
    let Made { format, mut config, remains } = match arrived {
        Arrived::Whole(made) => *made,
        Arrived::Disk(path, kind) => {
            let policy = Policy { id, request, config: means.config };
            of_disk(kind, disk_image::unpack(assembly, &policy, &content, path, kind)?)
        }
    };
    if let (Some(disk), Some(remains)) = (&mut assembly.found.disk, &remains) {
        disk.kept = Some(match remains {
            Err(why) => ImageDisk { size: 0, stored: 0, refusal: Some(why.clone()) },
            Ok(kept) => ImageDisk { size: kept.frame.size, stored: kept.stored, refusal: None },
        });
    }
    let layers = assembly.seal(&content)?;
    let directories = assembly.directories(&layers);
    if let Some(program) = machine::first(&config, &directories)? {
        assembly.found.architecture = Some(program.architecture());
        program.check()?;
    }
    assembly.found.supervisors = init::recognise(&mut config, &directories)?;
    assembly.found.config = Some(config.clone());
    Ok(Ready { content, format, config, remains, layers })
}

fn hash_of(content: &Verified) -> ImageHash {
    ImageHash {
        algorithm: content.hash.algorithm().name().to_owned(),
        value: content.hash.hex().to_owned(),
    }
}

fn of_disk(kind: Content, remains: Remains) -> Made {
    Made { format: disk::format(kind), config: ImageConfig::default(), remains: Some(remains) }
}

/// Recognises content while it arrives, and makes of it what can be made of
/// it before all is verified: a root file system is unpacked in one go, all
/// else out of a file.
fn take(
    assembly: &mut Assembly<'_>,
    arriving: &mut Arriving<'_>,
    total: Option<u64>,
) -> Result<Arrived> {
    assembly.found.compression = arriving.compression();
    let kind = recognise::content(arriving.peek(recognise::HEAD)?);
    // A disk as it is may be zeros nearly all: what it takes is seen as it comes.
    let may_be_holes = assembly.found.compression.is_none() && disk::is_raw(kind);
    if let Some(total) = total.filter(|_| !may_be_holes) {
        assembly.space.expect(total)?;
    }
    match kind {
        Content::Tar if is_root_file_system(assembly, arriving.peek(LOOK)?)? => {
            assembly.found.format = Some(ImageFormat::RootfsTar);
            let (unpacked, digest) =
                assembly.unpack(TreeKind::Root, |buffer| arriving.read(buffer))?;
            let done = unpacked.report.bytes;
            assembly.means.report.progress(Progress {
                stage: "unpacking",
                done,
                total: Some(done),
            });
            assembly.add(Pending::Aside(unpacked, digest));
            let (format, config) = (ImageFormat::RootfsTar, ImageConfig::default());
            Ok(Arrived::Whole(Box::new(Made { format, config, remains: None })))
        }
        Content::Tar => {
            let (most, key) = (assembly.left.bytes, "images.max_unpacked_bytes");
            let path = write_to_file(assembly, arriving, most, key)?;
            let taken = archive::unpack(assembly, &path)?;
            // Gone before the layers are made durable, it need not get to the disk at all.
            remove_tree(&path)?;
            match taken {
                Taken::Image(format, config) => {
                    Ok(Arrived::Whole(Box::new(Made { format, config, remains: None })))
                }
                Taken::Disk(path, kind) => take_disk(assembly, path, kind),
            }
        }
        kind if disk::reads(kind) => {
            let (most, key) = (assembly.means.config.max_bytes, "images.max_bytes");
            let path = write_to_file(assembly, arriving, most, key)?;
            take_disk(assembly, path, kind)
        }
        kind => Err(refusal::of_content(kind)),
    }
}

fn take_disk(assembly: &mut Assembly<'_>, path: PathBuf, kind: Content) -> Result<Arrived> {
    assembly.found.format = Some(disk::format(kind));
    Ok(match disk_image::unpack_unverified(assembly, &path, kind)? {
        Some(remains) => Arrived::Whole(Box::new(of_disk(kind, remains))),
        None => Arrived::Disk(path, kind),
    })
}

fn is_root_file_system(assembly: &Assembly<'_>, beginning: &[u8]) -> Result<bool> {
    let mut jail = assembly.start(Work::Look, Input::Pipe)?;
    jail.give(beginning)?;
    match jail.finish()? {
        Outcome::Looked(answer) => Ok(answer),
        _ => Err(wrong_answer()),
    }
}

/// Writes plain content into a file, to be read at any place.
fn write_to_file(
    assembly: &Assembly<'_>,
    arriving: &mut Arriving<'_>,
    most: u64,
    key: &str,
) -> Result<PathBuf> {
    let path = assembly.workspace.path("content");
    arriving.keep(&create_file(&path)?, most, key)?;
    Ok(path)
}

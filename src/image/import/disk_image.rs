//! A disk image on its way to a layer: read in the jail, or, where the operator
//! allows it, by the kernel.
//!
//! What the kernel is given lies in the import's own directory: the image as it
//! came, or the partition out of it. It may write there, so that it can replay
//! a journal; the mount itself is read-only, and the jail's alone. Mount and
//! loop device end with that process, however it ends.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::assembly::{Assembly, Pending, unpacked, wrong_answer};
use super::plain::Plain;
use super::policy::Policy;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::arrival::Verified;
use crate::image::disk::{Found, RootPlace, foreign, mounted, part};
use crate::image::files::{create_file, remove_tree};
use crate::image::jail::{self, Input, Outcome, Work};
use crate::image::kept_disk::{self, KeptFrame};
use crate::image::progress::Progress;
use crate::image::recognise::{Content, DiskFormat, FileSystem};
use crate::image::refusal;
use crate::image::sparse::write_sparsely;
use crate::image::unpack::TreeKind;
use crate::sys::loopdev;

/// Bytes of a loop device's block.
const BLOCK: u64 = 512;

/// What is kept of a disk image, or why nothing is.
pub(super) type Remains = Result<KeptFrame, String>;

/// Where that lies until the layers are in place.
pub(super) fn place_of_remains(assembly: &Assembly<'_>) -> PathBuf {
    assembly.workspace.path("kept")
}

/// Unpacks a disk image aside when all of it can be read in the jail, for
/// which it need not be verified. `None` for what takes other programs or the kernel.
pub(super) fn unpack_unverified(
    assembly: &mut Assembly<'_>,
    path: &Path,
    recognised: Content,
) -> Result<Option<Remains>> {
    if matches!(recognised, Content::Disk(format) if foreign::label(format).is_some())
        || find_root(assembly, path)?.file_system != FileSystem::Ext
    {
        return Ok(None);
    }
    read_ext(assembly, path).map(Some)
}

/// Unpacks a verified disk image aside, whoever must read it.
pub(super) fn unpack(
    assembly: &mut Assembly<'_>,
    policy: &Policy<'_>,
    content: &Verified,
    mut path: PathBuf,
    recognised: Content,
) -> Result<Remains> {
    if let Content::Disk(format) = recognised
        && let Some(label) = foreign::label(format)
    {
        foreign::check_program()?;
        policy.check_label(label)?;
        path = convert(assembly, &path, format)?;
    }
    let root = find_root(assembly, &path)?;
    if root.file_system == FileSystem::Ext {
        return read_ext(assembly, &path);
    }
    if mounted::driver(root.file_system).is_none() {
        return Err(refusal::of_content(Content::FileSystem(root.file_system)));
    }
    policy.allow_kernel(content, root.file_system)?;
    let (file, start) = match root.plain {
        true => (path, root.start),
        false => (extract(assembly, &path, &root)?, 0),
    };
    let size = whole_blocks(&file, start, root.size)?;
    let device = loopdev::attach_part(&file, (start, size), false, false)?;
    tracing::info!(image = %policy.id, file_system = %Content::FileSystem(root.file_system),
        "the kernel reads the image, as images.kernel_mounts allows");
    let work = Work::Mounted {
        device: device.path.clone(),
        file_system: root.file_system,
        limits: assembly.left,
    };
    pack(assembly, &file, work)?;
    Ok(Err("its root file system is none that berth makes".to_owned()))
}

fn read_ext(assembly: &mut Assembly<'_>, path: &Path) -> Result<Remains> {
    let remains = keep_layout(assembly, path)?;
    pack(assembly, path, Work::Disk { limits: assembly.left })?;
    Ok(remains)
}

/// Unpacks the archive that the jail makes of a disk image, of which that is the last use.
fn pack(assembly: &mut Assembly<'_>, path: &Path, work: Work) -> Result<()> {
    let image = File::open(path).or_fault("opening the disk image")?;
    let mut reader = assembly.start(work, Input::File(image))?;
    let (aside, mut unpacker) = assembly.unpacker(TreeKind::Root)?;
    let mut meter = assembly.meter("unpacking");
    let (mut given, mut whole) = (0, false);
    // From child to child: nobody else need see the bytes.
    while let (false, Some(n)) = (whole, reader.forward(&mut unpacker)?) {
        // Most of them are in the pipe still.
        assembly.space.take_unpacked(n as u64)?;
        (given, whole) = (given + n as u64, n == 0);
        meter.at(given, None);
    }
    if whole {
        // Of an archive that ended early, the reader knows why.
        if let (Outcome::Mounted(mounts), Some(disk)) = (reader.finish()?, &mut assembly.found.disk)
        {
            disk.mounts = mounts;
        }
    }
    let unpacked = unpacked(aside, unpacker)?;
    if !whole {
        return Err(wrong_answer());
    }
    assembly.add(Pending::OfDisk(unpacked));
    // Gone before the layer is made durable, it need not get to the disk at all.
    remove_tree(path)
}

/// Keeps what a disk like this is made of besides that layer.
fn keep_layout(assembly: &Assembly<'_>, path: &Path) -> Result<Remains> {
    let image = File::open(path).or_fault("opening the disk image")?;
    let (empty, to) = (assembly.workspace.empty(), place_of_remains(assembly));
    Ok(match kept_disk::keep_frame(assembly.means.jail, empty, image, &to, &assembly.space) {
        // It boots all the same; only its snapshots are no disks.
        Err(fault) if fault.kind == FaultKind::ImageUnacceptable => Err(fault.detail),
        other => Ok(other?),
    })
}

/// The raw disk of an image in another program's format.
fn convert(assembly: &Assembly<'_>, path: &Path, format: DiskFormat) -> Result<PathBuf> {
    let doing = "preparing the conversion";
    let disk = assembly.workspace.path("converted");
    // `qemu-img` runs as the jail's user; only root enters the directory of both.
    let user = Some(jail::USER);
    std::os::unix::fs::fchown(create_file(&disk)?, user, user).or_fault(doing)?;
    fs::set_permissions(path, Permissions::from_mode(0o444)).or_fault(doing)?;
    let work =
        Work::Convert { image: path.to_owned(), format, disk: disk.clone(), limits: assembly.left };
    assembly.means.report.progress(Progress { stage: "converting", done: 0, total: None });
    let input = File::open(path).or_fault("opening the disk image")?;
    let follow = assembly.space.follow(&disk)?;
    let program = assembly.start(work, Input::File(input))?;
    let finished = program.finish_program(&|| follow.keep_ahead());
    finished.map_err(|fault| fault.context("converting the disk image"))?;
    remove_tree(path)?;
    Ok(disk)
}

fn find_root(assembly: &mut Assembly<'_>, path: &Path) -> Result<RootPlace> {
    let input = File::open(path).or_fault("opening the disk image")?;
    match assembly.start(Work::FindRoot, Input::File(input))?.finish()? {
        Outcome::Root(Found { seen, root }) => {
            assembly.found.disk = Some(seen);
            root.map_err(|(kind, detail)| Fault::new(kind, detail))
        }
        _ => Err(wrong_answer()),
    }
}

/// The root's partition in a file of its own.
fn extract(assembly: &Assembly<'_>, path: &Path, root: &RootPlace) -> Result<PathBuf> {
    let most = assembly.means.config.max_unpacked_bytes;
    if root.size > most {
        return Err(Fault::new(
            FaultKind::ImageUnacceptable,
            format!(
                "the root partition has {} bytes, more than images.max_unpacked_bytes allows",
                root.size
            ),
        ));
    }
    let work = Work::DiskPart { start: root.start, size: root.size };
    let mut pieces = Plain::of_work(assembly, path, work, assembly.meter("extracting"))?;
    let place = assembly.workspace.path("partition");
    let file = create_file(&place)?;
    file.set_len(root.size).or_fault("keeping the partition")?;
    let mut buffer = vec![0; part::PIECE];
    let mut head = [0; part::HEAD];
    let mut written = 0;
    while pieces.fill(&mut head)? {
        let (offset, length) = part::head(&head, root.size)?;
        // No more pieces than the partition has bytes, wherever they go.
        written += length as u64;
        if length == 0 || written > root.size {
            return Err(wrong_answer());
        }
        if !pieces.fill(&mut buffer[..length])? {
            return Err(wrong_answer());
        }
        assembly.space.take(length as u64)?;
        write_sparsely(&file, offset, &buffer[..length]).or_fault("keeping the partition")?;
    }
    remove_tree(path)?;
    Ok(place)
}

/// Has a file end with a whole block: a loop device would leave out the rest.
/// The size of the part from `start`, in whole blocks.
fn whole_blocks(path: &Path, start: u64, size: u64) -> Result<u64> {
    let doing = "making room for the last block";
    let size = size.next_multiple_of(BLOCK);
    let file = OpenOptions::new().write(true).open(path).or_fault(doing)?;
    if file.metadata().or_fault(doing)?.len() < start + size {
        file.set_len(start + size).or_fault(doing)?;
    }
    Ok(size)
}

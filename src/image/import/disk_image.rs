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

use uuid::Uuid;

use super::{Import, KEPT, Meter, Plain, Planned, create_file, unpacked, wrong_answer};
use crate::config::KernelMounts;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::arrival;
use crate::image::disk::{RootPlace, foreign, mounted, part};
use crate::image::flight::Progress;
use crate::image::helper::Input;
use crate::image::jail::{NOBODY, Outcome, Task};
use crate::image::kept;
use crate::image::layer::write_sparsely;
use crate::image::recognise::{Content, Disk, FileSystem};
use crate::image::refusal;
use crate::image::source;
use crate::image::store::remove_tree;
use crate::openstack::Access;
use crate::openstack::describe::{Described, describe};
use crate::sys::loopdev;
use crate::types::ImageImport;

/// Bytes of a loop device's block.
const BLOCK: u64 = 512;

impl Import<'_> {
    /// Unpacks a disk image aside when all of it can be read in the jail, for
    /// which it need not be verified. False for what takes other programs or the kernel.
    pub(super) fn own_disk(&mut self, path: &Path, recognised: Content) -> Result<bool> {
        if matches!(recognised, Content::Disk(format) if foreign::label(format).is_some())
            || self.find_root(path)?.file_system != FileSystem::Ext
        {
            return Ok(false);
        }
        self.read_ext(path)?;
        Ok(true)
    }

    /// Unpacks a verified disk image aside, whoever must read it.
    pub(super) fn disk(
        &mut self,
        id: Uuid,
        request: &ImageImport,
        content: &arrival::Content,
        mut path: PathBuf,
        recognised: Content,
    ) -> Result<()> {
        if let Content::Disk(format) = recognised
            && let Some(label) = foreign::label(format)
        {
            foreign::check_program()?;
            self.check_label(id, request, label)?;
            path = self.convert(&path, format)?;
        }
        let root = self.find_root(&path)?;
        if root.file_system == FileSystem::Ext {
            return self.read_ext(&path);
        }
        if mounted::driver(root.file_system).is_none() {
            return Err(refusal::of_content(Content::FileSystem(root.file_system)));
        }
        self.allow_kernel(id, request, content, root.file_system)?;
        let (file, start) = match root.plain {
            true => (path, root.start),
            false => (self.extract(&path, &root)?, 0),
        };
        let size = whole_blocks(&file, start, root.size)?;
        let device = loopdev::attach_part(&file, (start, size), false, false)?;
        tracing::info!(image = %id, file_system = %Content::FileSystem(root.file_system),
            "the kernel reads the image, as images.kernel_mounts allows");
        let task = Task::Mounted {
            directory: self.workspace.empty(),
            device: device.path.clone(),
            file_system: root.file_system,
            limits: self.left,
        };
        self.disk = Some(Err("its root file system is none that berth makes".to_owned()));
        self.pack(&file, &task)
    }

    fn read_ext(&mut self, path: &Path) -> Result<()> {
        self.keep_layout(path)?;
        self.pack(path, &Task::Disk { directory: self.workspace.empty(), limits: self.left })
    }

    /// Unpacks the archive that a task makes of a disk image, of which that is the last use.
    fn pack(&mut self, path: &Path, task: &Task) -> Result<()> {
        let image = File::open(path).or_fault("opening the disk image")?;
        let mut reader = self.store.helper.start(task, Input::File(image))?;
        let (aside, mut unpacker) = self.unpacker()?;
        let mut meter = Meter::new(self.report, "unpacking");
        let (mut given, mut whole) = (0, false);
        // From child to child: nobody else need see the bytes.
        while let (false, Some(n)) = (whole, reader.forward(&mut unpacker)?) {
            (given, whole) = (given + n as u64, n == 0);
            meter.at(given, None);
        }
        if whole {
            // Of an archive that ended early, the reader knows why.
            reader.finish()?;
        }
        let unpacked = unpacked(aside, unpacker)?;
        if !whole {
            return Err(wrong_answer());
        }
        self.plan(Planned::OfDisk(unpacked));
        // Gone before the layer is made durable, it need not get to the disk at all.
        remove_tree(path)
    }

    /// Keeps what a disk like this is made of besides that layer.
    fn keep_layout(&mut self, path: &Path) -> Result<()> {
        let image = File::open(path).or_fault("opening the disk image")?;
        let (empty, to) = (self.workspace.empty(), self.workspace.path(KEPT));
        self.disk = Some(match kept::keep(&self.store.helper, &empty, image, &to) {
            // It boots all the same; only its snapshots are no disks.
            Err(fault) if fault.kind == FaultKind::ImageUnacceptable => Err(fault.detail),
            other => Ok(other?),
        });
        Ok(())
    }

    /// Refuses an image of which Glance says that it is of another format than
    /// it is, as far as there is a way to ask.
    fn check_label(&self, id: Uuid, request: &ImageImport, label: &str) -> Result<()> {
        let said = self.described(id, request)?.and_then(|(described, _)| described.disk_format);
        match said {
            Some(said) if said != label => Err(Fault::new(
                FaultKind::ImageUnacceptable,
                format!(
                    "the content is of the disk format {label}, and Glance has it as {said}; \
                     upload it with `--disk-format {label}`"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The raw disk of an image in another program's format.
    fn convert(&self, path: &Path, format: Disk) -> Result<PathBuf> {
        let doing = "preparing the conversion";
        let disk = self.workspace.path("converted");
        // `qemu-img` runs as nobody; only root enters the directory of both.
        let nobody = Some(NOBODY);
        std::os::unix::fs::fchown(create_file(&disk)?, nobody, nobody).or_fault(doing)?;
        fs::set_permissions(path, Permissions::from_mode(0o444)).or_fault(doing)?;
        let task = Task::Convert {
            directory: self.workspace.empty(),
            image: path.to_owned(),
            format,
            disk: disk.clone(),
            limits: self.left,
        };
        (self.report)(Progress { stage: "converting", done: 0, total: None });
        let input = File::open(path).or_fault("opening the disk image")?;
        let program = self.store.helper.start(&task, Input::File(input))?;
        program.finish_program().map_err(|fault| fault.context("converting the disk image"))?;
        remove_tree(path)?;
        Ok(disk)
    }

    fn find_root(&self, path: &Path) -> Result<RootPlace> {
        let input = File::open(path).or_fault("opening the disk image")?;
        let task = Task::FindRoot { directory: self.workspace.empty() };
        match self.store.helper.start(&task, Input::File(input))?.finish()? {
            Outcome::Root(root) => Ok(root),
            _ => Err(wrong_answer()),
        }
    }

    /// Refuses an image that the operator does not let the kernel read.
    fn allow_kernel(
        &self,
        id: Uuid,
        request: &ImageImport,
        content: &arrival::Content,
        file_system: FileSystem,
    ) -> Result<()> {
        let allowed = self.store.config.kernel_mounts;
        let read = match allowed {
            KernelMounts::All => return Ok(()),
            KernelMounts::Signed if request.signature_verified => return Ok(()),
            KernelMounts::Public if self.is_public(id, request, content)? => return Ok(()),
            KernelMounts::None => "none",
            KernelMounts::Signed => "only images whose signature Nova verified",
            KernelMounts::Public => "only images that Glance shows to be public",
        };
        Err(Fault::new(
            FaultKind::ImageUnacceptable,
            format!(
                "the content is {}, which berth does not read without the host's kernel, and with \
                 images.kernel_mounts = \"{}\" that reads {read}; change the key, or give the \
                 image with ext4 or as a tar archive",
                Content::FileSystem(file_system),
                allowed.name()
            ),
        ))
    }

    /// Whether Glance itself says that everybody may have this content. Only
    /// administrators can make an image public.
    fn is_public(
        &self,
        id: Uuid,
        request: &ImageImport,
        content: &arrival::Content,
    ) -> Result<bool> {
        let Some((described, own)) = self.described(id, request)? else { return Ok(false) };
        // What the request's own endpoint gave is what that endpoint describes.
        let same = !own
            || described.os_hash_algo.as_deref() == Some(content.hash.algorithm().name())
                && described.os_hash_value.as_deref() == Some(content.hash.hex());
        Ok(described.visibility == "public" && same)
    }

    /// What Glance says about the image, and whether the service's own
    /// credentials asked, of which nothing comes from the request. `None`
    /// without any way to ask.
    fn described(&self, id: Uuid, request: &ImageImport) -> Result<Option<(Described, bool)>> {
        let config = &self.store.config;
        let own = config.keystone.is_some();
        let access = match (own, source::access(&request.source)) {
            (true, _) => {
                Access { section: "source", endpoint: None, token: None, service_token: None }
            }
            (false, Some(access)) => access,
            (false, None) => return Ok(None),
        };
        describe(access, id, config).map(|described| Some((described, own)))
    }

    /// The root's partition in a file of its own.
    fn extract(&self, path: &Path, root: &RootPlace) -> Result<PathBuf> {
        let most = self.store.config.max_unpacked_bytes;
        if root.size > most {
            return Err(Fault::new(
                FaultKind::ImageUnacceptable,
                format!(
                    "the root partition has {} bytes, more than images.max_unpacked_bytes allows",
                    root.size
                ),
            ));
        }
        let task = Task::DiskPart {
            directory: self.workspace.empty(),
            start: root.start,
            size: root.size,
        };
        let meter = Meter::new(self.report, "extracting");
        let mut pieces = Plain::of_task(self, path, &task, meter)?;
        let place = self.workspace.path("partition");
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
            write_sparsely(&file, offset, &buffer[..length]).or_fault("keeping the partition")?;
        }
        remove_tree(path)?;
        Ok(place)
    }
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

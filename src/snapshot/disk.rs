//! The disk: what an instance sees, on a disk of its base image's layout.
//!
//! ```text
//! kept layout ─► raw, sparse ─ mke2fs ─ jail: unpack the trees' archive ─► qemu-img ─► qcow2
//! ```
//!
//! The root file system is made empty, with the name, the `UUID` and the
//! features of the base's, and mounted where only the jail sees it; the jail
//! unpacks there what a tarball of the instance would hold. So a file is what
//! it is in the other shapes, and no program with privileges reads the
//! instance's tree. All of it lies in a directory that goes with the value.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::tree::{NodeKind, Tree};
use super::tree_tar::{self, Files};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::disk::frame::GROWTH;
use crate::image::jail::{Input, Outcome, Running, Work};
use crate::image::{ImageStore, KeptDisk, Workspace};
use crate::store::atomic;
use crate::store::room::Claim;
use crate::sys::loopdev;

/// How often the root file system is made larger when the content does not fit.
const TRIES: u32 = 4;
/// The disk byte by byte.
const RAW: &str = "disk.raw";
/// The disk in QEMU's format.
const QCOW2: &str = "disk.qcow2";
/// Bytes that are read at once.
const PIECE: usize = 1 << 18;
/// Bytes of a directory's entry besides the name, at most.
const ENTRY: u64 = 12;
/// Bytes of room that are held for what nobody can foretell: the journal, attributes in blocks of
/// their own.
const AHEAD: u64 = 64 << 20;
/// Bytes of the archive after which they are held anew.
const AHEAD_EACH: u64 = 8 << 20;
const DOING: &str = "making the disk";

/// A disk in QEMU's format.
pub struct DiskImage {
    file: File,
    size: u64,
    _work: Workspace,
}

/// What the trees' files take.
struct Need {
    entries: u64,
    /// What they hold.
    bytes: u64,
    /// Their entries in directories, of which half may be empty.
    names: u64,
}

/// What became of an attempt.
enum Attempt {
    Made,
    /// The root partition was too small; what the jail said.
    TooSmall(Fault),
}

/// What it is made of.
struct Maker<'a> {
    images: &'a ImageStore,
    kept: &'a KeptDisk,
    trees: &'a [Tree],
    work: Workspace,
    need: Need,
}

/// Makes it. `progress` is told the bytes done and those in all.
pub fn make(
    images: &ImageStore,
    kept: &KeptDisk,
    trees: &[Tree],
    progress: &dyn Fn(u64, u64),
) -> Result<DiskImage> {
    let need = measure(trees, kept.frame.layout.block)?;
    let maker = Maker { images, kept, trees, work: images.workspace()?, need };
    let claim = maker.claim()?;
    maker.raw(&claim, progress)?;
    keep_ahead(&claim, &maker.work.path(RAW))?;
    maker.qcow2()
}

impl DiskImage {
    /// Writes it; `progress` is told the bytes done and those in all.
    pub fn send(mut self, sink: &mut impl Write, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        loop {
            let n = self.file.read(&mut buffer).or_fault("reading the disk")?;
            if n == 0 {
                return Ok(());
            }
            sink.write_all(&buffer[..n]).or_fault("sending the disk")?;
            done += n as u64;
            progress(done, self.size);
        }
    }
}

/// Counts files and, in whole blocks, what they hold.
fn measure(trees: &[Tree], block: u64) -> Result<Need> {
    let mut need = Need { entries: 0, bytes: 0, names: 0 };
    Files::Merged(trees).walk(&mut |node, _| {
        need.entries += 1;
        let name = node.path.rsplit(|byte| *byte == b'/').next().unwrap_or(&[]);
        need.names += 2 * (name.len() as u64 + ENTRY);
        let blocks = |bytes: u64| bytes.div_ceil(block) * block;
        need.bytes += match &node.kind {
            NodeKind::File { pieces, .. } => pieces.iter().map(|(_, length)| blocks(*length)).sum(),
            NodeKind::Directory { .. } => block,
            _ => 0,
        };
        Ok(())
    })?;
    Ok(need)
}

impl Maker<'_> {
    /// Refuses early what would fail late: a device over a full disk only says
    /// that a write failed. The disk is there twice for a while, byte by byte and
    /// compressed.
    fn claim(&self) -> Result<Claim> {
        let files = vec![self.work.path(RAW), self.work.path(QCOW2)];
        let inodes = self.inodes(0) * self.kept.frame.layout.inode_size;
        let bytes = 2 * (self.need.bytes + self.need.names + inodes) + AHEAD;
        self.images.room().for_files(bytes, files, DOING)
    }

    /// The disk byte by byte, its root partition as large as it must be.
    fn raw(&self, claim: &Claim, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let mut by = self.first_growth();
        for _ in 0..TRIES {
            match self.attempt(by, claim, progress)? {
                Attempt::Made => return Ok(()),
                Attempt::TooSmall(fault) => {
                    tracing::debug!(by, fault = %fault.in_full(), "the root partition is too small");
                    by = self.growth(by);
                }
            }
        }
        Err(Fault::new(
            FaultKind::ResourcesExhausted,
            format!("the instance's files do not fit into a root partition {by} bytes larger"),
        ))
    }

    /// Nothing, unless the files alone are more than there is room for.
    fn first_growth(&self) -> u64 {
        let inodes = self.inodes(0) * self.kept.frame.layout.inode_size;
        if self.need.bytes + inodes <= self.kept.frame.root_size { 0 } else { self.growth(0) }
    }

    /// What to try after `by` bytes more were too few.
    fn growth(&self, by: u64) -> u64 {
        // Room for tables, a journal, and names.
        let names = self.need.entries * (self.kept.frame.layout.inode_size + 128);
        let ample = self.need.bytes / 16 * 17 + names + (64 << 20);
        let missing = ample.saturating_sub(self.kept.frame.root_size);
        let step = self.kept.frame.root_size / 8 + by / 2;
        missing.max(by + step).next_multiple_of(GROWTH)
    }

    fn inodes(&self, by: u64) -> u64 {
        let frame = &self.kept.frame;
        let old = u128::from(frame.layout.inodes) * u128::from(frame.root_size + by)
            / u128::from(frame.root_size.max(1));
        // A few are the file system's own.
        u64::try_from(old).unwrap_or(u64::MAX).max(self.need.entries + self.need.entries / 16 + 16)
    }

    fn attempt(&self, by: u64, claim: &Claim, progress: &dyn Fn(u64, u64)) -> Result<Attempt> {
        let doing = DOING;
        let path = self.work.path(RAW);
        // That of an earlier attempt may keep its device for a moment.
        atomic::remove_file(&path)?;
        let disk = File::create(&path).or_fault(doing)?;
        self.kept.lay_out(self.images.jail(), self.work.empty(), &disk, by)?;
        let device = loopdev::attach_part(
            &path,
            (self.kept.frame.root_start, self.kept.frame.root_size + by),
            false,
            false,
        )?;
        run(self.mke2fs(&device.path, by), "e2fsprogs")?;
        let work = Work::Fill { device: device.path.clone() };
        let mut jail = self.images.jail().start(self.work.empty(), work, Input::Pipe)?;
        let room = (claim, path.as_path());
        let mut given = Given {
            jail: &mut jail,
            room,
            refused: None,
            done: 0,
            total: self.need.bytes,
            progress,
        };
        let written = tree_tar::write(Files::Merged(self.trees), &mut given);
        let refused = given.refused;
        let outcome = jail.finish();
        match (refused, written, outcome) {
            // No room on the host: no larger partition helps.
            (Some(fault), ..) => return Err(fault),
            (_, Err(fault), _) if fault.kind == FaultKind::ResourcesExhausted => return Err(fault),
            // The jail's own word on why it took no more goes first.
            (.., Err(fault)) if fault.kind == FaultKind::ResourcesExhausted => {
                return Ok(Attempt::TooSmall(fault));
            }
            (_, written, outcome) => match (outcome?, written?) {
                (Outcome::Filled, _) => {}
                _ => return Err(Fault::internal(doing, "the jail answered another question")),
            },
        }
        // Unmounted, and all of it in the file.
        device.settle().or_fault(doing)?;
        self.kept.write_boot_block(&disk)?;
        Ok(Attempt::Made)
    }

    fn mke2fs(&self, device: &Path, by: u64) -> Command {
        let layout = &self.kept.frame.layout;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-E", "lazy_itable_init=0"]);
        for (option, value) in [
            ("-b", layout.block.to_string()),
            ("-I", layout.inode_size.to_string()),
            ("-N", self.inodes(by).to_string()),
            ("-O", layout.feature_names()),
            ("-U", layout.uuid.to_string()),
            ("-L", layout.label.clone()),
        ] {
            command.arg(option).arg(value);
        }
        command.arg(device);
        command
    }

    fn qcow2(self) -> Result<DiskImage> {
        let doing = "reading the disk";
        let (raw, path) = (self.work.path(RAW), self.work.path(QCOW2));
        let mut command = Command::new("qemu-img");
        // The format is said: what the instance wrote decides nothing.
        command
            .args(["convert", "-q", "-c", "-W", "-f", "raw", "-O", "qcow2"])
            .arg(&raw)
            .arg(&path);
        run(command, "qemu-utils")?;
        fs::remove_file(&raw).or_fault(doing)?;
        let file = File::open(&path).or_fault(doing)?;
        let size = file.metadata().or_fault(doing)?.len();
        Ok(DiskImage { file, size, _work: self.work })
    }
}

/// Holds room for twice what the disk takes by now, and some: once more compressed, at most.
fn keep_ahead(claim: &Claim, raw: &Path) -> Result<()> {
    let taken = fs::metadata(raw).or_fault(DOING)?.blocks() * 512;
    claim.raise(2 * taken + AHEAD, DOING)
}

/// Runs a program to its end; its complaint is the fault's detail.
fn run(mut command: Command, package: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.env("LC_ALL", "C");
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Fault::new(
                FaultKind::HostUnsupported,
                format!("a snapshot as qcow2 takes {name}; install the package {package}"),
            ));
        }
        other => other.or_fault(format_args!("running {name}"))?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Fault::internal(format_args!("{name} ({})", output.status), said.trim()))
}

/// Bytes that are given to the jail.
struct Given<'a> {
    jail: &'a mut Running,
    /// The room for the file that they become part of.
    room: (&'a Claim, &'a Path),
    /// Why there is no more.
    refused: Option<Fault>,
    done: u64,
    total: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Write for Given<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.done / AHEAD_EACH;
        self.done += bytes.len() as u64;
        if before != self.done / AHEAD_EACH
            && let Err(fault) = keep_ahead(self.room.0, self.room.1)
        {
            self.refused = Some(fault);
            return Err(ErrorKind::StorageFull.into());
        }
        if !self.jail.give(bytes).map_err(io::Error::other)? {
            return Err(ErrorKind::BrokenPipe.into());
        }
        (self.progress)(self.done.min(self.total), self.total);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

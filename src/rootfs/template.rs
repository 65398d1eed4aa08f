//! Formatted, empty disks to copy from: formatting takes a program and many
//! times as long as copying the few blocks that it writes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic::{TEMPORARY, sync_parent};

/// Raised when the options of mkfs change, so that old templates are not used.
const VERSION: u32 = 1;

const MIB: u64 = 1 << 20;

/// The file systems a disk can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystem {
    /// ext4
    Ext4,
    /// xfs
    Xfs,
}

impl Filesystem {
    /// From the configuration's `storage.filesystem`.
    pub fn parse(name: &str) -> Result<Filesystem> {
        match name {
            "ext4" => Ok(Filesystem::Ext4),
            "xfs" => Ok(Filesystem::Xfs),
            _ => Err(Fault::invalid("storage.filesystem", "must be ext4 or xfs")),
        }
    }

    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
        }
    }

    /// What the disk `file` has: the configuration may have changed since it was made.
    pub fn of(file: &Path) -> Result<Filesystem> {
        let doing = || format!("reading the file system on {}", file.display());
        let disk = File::open(file).or_fault(doing())?;
        let (mut xfs, mut ext4) = ([0; 4], [0; 2]);
        disk.read_exact_at(&mut xfs, 0).or_fault(doing())?;
        // s_magic of the superblock, which lies at 1024.
        disk.read_exact_at(&mut ext4, 1024 + 56).or_fault(doing())?;
        match (&xfs, u16::from_le_bytes(ext4)) {
            (b"XFSB", _) => Ok(Filesystem::Xfs),
            (_, 0xEF53) => Ok(Filesystem::Ext4),
            _ => Err(Fault::internal(doing(), "it has neither ext4 nor xfs")),
        }
    }

    fn mkfs(self, size: u64, file: &Path) -> Command {
        let mut command = Command::new(format!("mkfs.{}", self.name()));
        match self {
            Filesystem::Ext4 => {
                // No blocks kept for root: the instance's root is nobody here.
                // Room in the group descriptors to grow 16-fold while mounted;
                // mkfs's own 1024-fold would be the larger part of each copy.
                command.args(["-q", "-F", "-b", "4096", "-m", "0", "-E"]);
                command.arg(format!("resize={}", size / 4096 * 16));
                if size >= 1024 * MIB {
                    // A full journal stays allocated on the host: mkfs would
                    // take up to 1 GiB where one instance needs little.
                    command.args(["-J", "size=32"]);
                }
            }
            Filesystem::Xfs => {
                command.args(["-q", "-f"]);
            }
        }
        command.arg(file);
        command
    }
}

/// The templates of one file system, by size.
pub struct Templates {
    directory: PathBuf,
    filesystem: Filesystem,
    /// The lock of each size is held while its template is made, so that many
    /// instances at once format once, and other sizes do not wait.
    made: Mutex<HashMap<u64, Arc<Mutex<Option<PathBuf>>>>>,
}

impl Templates {
    /// Opens the directory; what a crash left half made is removed.
    pub fn open(directory: PathBuf, filesystem: Filesystem) -> Result<Templates> {
        let doing = || format!("opening {}", directory.display());
        fs::create_dir_all(&directory).or_fault(doing())?;
        for entry in fs::read_dir(&directory).or_fault(doing())? {
            let path = entry.or_fault(doing())?.path();
            if path.to_string_lossy().ends_with(TEMPORARY) {
                fs::remove_file(&path).or_fault(format_args!("removing {}", path.display()))?;
            }
        }
        Ok(Templates { directory, filesystem, made: Mutex::default() })
    }

    /// The template of `size` bytes, made when absent.
    pub fn get(&self, size: u64) -> Result<PathBuf> {
        let slot = {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.entry(size).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = slot.as_ref().filter(|path| path.exists()) {
            return Ok(path.clone());
        }
        let name = format!("{}-{VERSION}-{size}", self.filesystem.name());
        let path = self.directory.join(name);
        if !path.exists() {
            self.format(size, &path)?;
        }
        *slot = Some(path.clone());
        Ok(path)
    }

    fn format(&self, size: u64, path: &Path) -> Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        let formatted = (|| {
            let file = File::create(&temporary).or_fault("making a disk template")?;
            file.set_len(size).or_fault("making a disk template")?;
            run(&mut self.filesystem.mkfs(size, &temporary))?;
            file.sync_all().or_fault("making a disk template")?;
            fs::rename(&temporary, path).or_fault("making a disk template")?;
            sync_parent(path).or_fault("making a disk template")
        })();
        formatted.inspect_err(|_| {
            // Half a template has this name only; a later start removes it too.
            let _ = fs::remove_file(&temporary);
        })
    }
}

/// Runs a program to its end; its complaint is the fault's detail.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().or_kind(
        FaultKind::HostUnsupported,
        format_args!("running {name} (is its package, e2fsprogs or xfsprogs, installed?)"),
    )?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Fault::internal(format_args!("{name} ({})", output.status), said.trim()))
}

//! Where hostile bytes are decompressed and unpacked: a child process that
//! can do that and nothing else. This is the child's side; [`super::helper`]
//! is the parent's.
//!
//! The child is the same program, started anew with a hidden first argument
//! ([`COMMAND`]). Before it reads a byte it takes mount, network, IPC and
//! host-name namespaces of its own, makes one directory its whole file
//! system, mounted `nodev,nosuid,noexec`, becomes nobody, and keeps of root's
//! capabilities only those that the task needs:
//!
//! * decompression (C libraries read the bytes): none, in an empty read-only
//!   file system;
//! * reading of a disk image ([`super::disk`]), and a look at what an archive
//!   is: none, in the same;
//! * reading of a file system that the kernel mounts for it, where the
//!   operator allows that: `DAC_READ_SEARCH`. The mount is the child's alone
//!   (read-only, `nodev,nosuid,noexec`) and ends with it;
//! * conversion of other disk formats: none, and the child becomes `qemu-img`,
//!   in a file system of the programs' directories, the image and the disk to be
//!   written;
//! * filling of a new file system: as for a layer, with that file system,
//!   mounted by the child in its own namespace, for a directory;
//! * staging of an image archive: none, it writes its own directory;
//! * unpacking of a layer: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID` for
//!   owners and modes, `MKNOD` for devices and whiteouts, `SETFCAP` for file
//!   capabilities. Not `SYS_ADMIN`: `trusted.overlay.opaque` needs it, so the
//!   parent sets that on the directories that the child reports.
//!
//! Decompression and unpacking are two processes with the parent between
//! them, because the parent must hash the plain bytes itself: a layer's
//! address is that hash, and a child that a hostile stream took over could
//! otherwise claim the address of another image's layer. The layer of a disk
//! image has the address that the image's own hash gives it, so the bytes go
//! from the child that reads the disk to the one that unpacks, unseen.
//!
//! File accesses are made as user 0 (fsuid), signals as nobody: the child
//! cannot kill the host's processes.

#![expect(clippy::disallowed_methods, reason = "its faults quote nix's errors: see `crate::sys`")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::disk::frame::{Frame, Patch};
use super::disk::{self, RootPlace, foreign, mounted, part};
use super::layer::{self, Limits, Report};
use super::recognise::{Compression, Content, Disk, FileSystem, refusal};
use super::stage::{self, Staged};
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// The hidden first argument by which the program knows that it is the jail.
pub const COMMAND: &str = "unpack";

/// Most memory that the child may map. xz may take [`XZ_MEMORY`] of it.
const ADDRESS_SPACE: u64 = 1 << 30;
/// Most memory that an xz stream may ask for (`xz -9` asks for 65 MiB).
const XZ_MEMORY: u64 = 256 << 20;
/// Most of a zstd stream's window, as a power of two (`--long=27`).
const ZSTD_WINDOW: u32 = 27;
/// Most CPU time, in seconds.
const CPU_SECONDS: u64 = 4 * 3600;
/// Files that may be open while a mounted tree is walked: a directory on each level of it.
const OPEN_DIRECTORIES: u64 = 512;
/// The user that owns nothing.
pub(super) const NOBODY: u32 = 65_534;

/// What the child is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Standard input to standard output, decompressed.
    Decompress {
        /// How it is compressed.
        compression: Compression,
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
        /// Bytes of it, when standard input goes on after them.
        size: Option<u64>,
    },
    /// Whether the beginning of a plain tar archive, on standard input, is that of a root file system.
    Look {
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
    },
    /// The disk image that standard input is to standard output, as the tar
    /// archive of its root file system.
    Disk {
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
        /// Most that may be in it.
        limits: Limits,
    },
    /// Find the root file system on the disk image that standard input is.
    FindRoot {
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
    },
    /// A part of the disk whose image standard input is to standard output, as [`part`] writes it.
    DiskPart {
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
        /// Where it begins on the disk.
        start: u64,
        /// Its bytes.
        size: u64,
    },
    /// Mount a file system in private, and write it to standard output as a tar archive.
    Mounted {
        /// Any directory, to mount it on.
        directory: PathBuf,
        /// The block device that it is on.
        device: PathBuf,
        /// What it is.
        file_system: FileSystem,
        /// Most that may be in it.
        limits: Limits,
    },
    /// Become `qemu-img`, which converts the image that standard input is too.
    Convert {
        /// Any directory, to mount a file system of programs on, in private.
        directory: PathBuf,
        /// The image.
        image: PathBuf,
        /// What it was recognised as.
        format: Disk,
        /// The file that the raw disk is written to, which nobody owns.
        disk: PathBuf,
        /// Most that may be written.
        limits: Limits,
    },
    /// What the disk image that standard input is has outside its root file
    /// system, to standard output.
    Frame {
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
    },
    /// How the disk that standard input is changes when its root partition grows.
    Grow {
        /// Any directory, to mount an empty file system on, in private.
        directory: PathBuf,
        /// Where the partition begins.
        start: u64,
        /// Bytes to grow by.
        by: u64,
    },
    /// Unpack the plain archive on standard input into a new file system.
    Fill {
        /// Any directory, to mount it on, in private.
        directory: PathBuf,
        /// The block device with an empty ext2, ext3 or ext4, which berth made.
        device: PathBuf,
    },
    /// Take the plain image archive that standard input is apart. It is a file, and
    /// its members stay in it.
    Stage {
        /// An empty directory.
        directory: PathBuf,
        /// Most that may be written.
        limits: Limits,
    },
    /// Unpack the plain layer on standard input.
    Layer {
        /// An empty directory.
        directory: PathBuf,
        /// Most that may be written.
        limits: Limits,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All was decompressed.
    Decompressed,
    /// It is a root file system's, or it may be anything.
    Looked(bool),
    /// All of the root file system was written.
    Disk,
    /// The root file system was found.
    Root(RootPlace),
    /// All of the part was written.
    DiskPart,
    /// All outside the root file system was written.
    Frame(Frame),
    /// What the disk looks like, where it changes.
    Grown(Vec<Patch>),
    /// All was unpacked and is on the device.
    Filled,
    /// All was staged.
    Staged(Staged),
    /// All was unpacked.
    Layer(Report),
}

/// The last word of the child, as JSON on standard error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// It worked.
    Done(Outcome),
    /// It did not.
    Failed {
        /// The kind of the fault.
        kind: FaultKind,
        /// Its detail.
        detail: String,
    },
}

/// The child's entry: to be called first in `main`, with the arguments after
/// the program's name. `None` when the program is not the jail.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != COMMAND {
        return None;
    }
    let verdict = verdict(parse(arguments.next()).and_then(|task| run_jailed(&task)));
    let written = serde_json::to_vec(&verdict)
        .map_err(std::io::Error::from)
        .and_then(|json| std::io::stderr().write_all(&json));
    Some(match (verdict, written) {
        (Verdict::Done(_), Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// A result as the child says it, never longer than a pipe takes at once when it is a failure.
pub(super) fn verdict(result: Result<Outcome>) -> Verdict {
    match result {
        Ok(outcome) => Verdict::Done(outcome),
        Err(fault) => {
            let detail = fault.detail.chars().take(1000).collect();
            Verdict::Failed { kind: fault.kind, detail }
        }
    }
}

fn parse(argument: Option<OsString>) -> Result<Task> {
    let text = argument.and_then(|argument| argument.into_string().ok()).unwrap_or_default();
    serde_json::from_str(&text).map_err(|error| {
        Fault::invalid(COMMAND, format!("this command is berth's own and takes a task: {error}"))
    })
}

fn run_jailed(task: &Task) -> Result<Outcome> {
    confine(task)?;
    let root = rustix::fs::open(
        "/",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .or_fault("opening the jail's root")?;
    // As files, since the standard library's own handles buffer small pieces and lines.
    let file = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let input = file(std::io::stdin().as_fd()).or_fault("taking standard input")?;
    let output = file(std::io::stdout().as_fd()).or_fault("taking standard output")?;
    if let Task::Convert { format, limits, .. } = task {
        disk::check_foreign(input, *format, limits.bytes)?;
        return Err(become_converter(*format));
    }
    run(task, root, input, output)
}

/// Does a task in the directory `root`, with no jail around it.
pub(super) fn run(task: &Task, root: OwnedFd, input: File, output: impl Write) -> Result<Outcome> {
    match task {
        Task::Decompress { compression, size, .. } => {
            let input = input.take(size.unwrap_or(u64::MAX));
            decompress(*compression, input, output).map(|()| Outcome::Decompressed)
        }
        Task::Look { .. } => Ok(Outcome::Looked(stage::is_root_file_system(input))),
        Task::Disk { limits, .. } => {
            disk::write_tar(input, output, *limits).map(|()| Outcome::Disk)
        }
        Task::FindRoot { .. } => disk::find_root(input).map(Outcome::Root),
        Task::DiskPart { start, size, .. } => {
            part::write(input, *start, *size, output).map(|()| Outcome::DiskPart)
        }
        Task::Mounted { limits, .. } => {
            disk::write_mounted(root, output, *limits).map(|()| Outcome::Disk)
        }
        Task::Convert { .. } => Err(Fault::internal("converting a disk", "it takes a jail")),
        Task::Frame { .. } => disk::write_frame(input, output).map(Outcome::Frame),
        Task::Grow { start, by, .. } => disk::grow(input, *start, *by).map(Outcome::Grown),
        Task::Fill { .. } => fill(root, input).map(|()| Outcome::Filled),
        Task::Stage { limits, .. } => stage::stage(&root, input, *limits).map(Outcome::Staged),
        Task::Layer { limits, .. } => layer::extract(root, input, *limits).map(Outcome::Layer),
    }
}

/// Only returns when that failed.
fn become_converter(format: Disk) -> Fault {
    use std::os::unix::process::CommandExt;
    let driver = foreign::driver(format).unwrap_or_default();
    let error = Command::new(foreign::PROGRAM)
        .env_clear()
        // The progress it shows tells its parent that it lives.
        .args(["convert", "-p", "-f", driver, "-O", "raw", foreign::IMAGE, foreign::DISK])
        .exec();
    Fault::internal(format_args!("starting {}", foreign::PROGRAM), error)
}

/// Unpacks an archive that berth made of an instance's files.
fn fill(root: OwnedFd, input: File) -> Result<()> {
    let doing = "filling the disk";
    // Opened before anything is written: it then tells of every write that fails later.
    let whole = root.try_clone().or_fault(doing)?;
    layer::extract(root, input, Limits { entries: u64::MAX, bytes: u64::MAX })?;
    rustix::fs::syncfs(&whole).or_fault(doing)
}

fn decompress(compression: Compression, input: impl Read, mut output: impl Write) -> Result<()> {
    let corrupt = |error: std::io::Error| {
        let name = Content::Compressed(compression);
        Fault::new(FaultKind::ImageCorrupt, format!("decompressing {name}: {error}"))
    };
    let mut reader: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )
            .or_fault("starting xz")?;
            Box::new(liblzma::read::XzDecoder::new_stream(input, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(input).or_fault("starting zstd")?;
            decoder.window_log_max(ZSTD_WINDOW).or_fault("starting zstd")?;
            Box::new(decoder)
        }
        other => return Err(refusal(Content::Compressed(other))),
    };
    let mut buffer = vec![0; 1 << 17];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return output.flush().or_fault("giving decompressed bytes away"),
            Ok(n) => output.write_all(&buffer[..n]).or_fault("giving decompressed bytes away")?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(corrupt(error)),
        }
    }
}

/// Gives up everything that the task does not need.
fn confine(task: &Task) -> Result<()> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .or_fault("taking namespaces for the jail")?;
    let (keep, bytes) = match task {
        Task::Decompress { directory, .. }
        | Task::Disk { directory, .. }
        | Task::Look { directory }
        | Task::FindRoot { directory }
        | Task::DiskPart { directory, .. }
        | Task::Frame { directory }
        | Task::Grow { directory, .. } => {
            change_root(directory, Root::Empty)?;
            (CapabilitySet::empty(), 0)
        }
        Task::Mounted { directory, device, file_system, .. } => {
            change_root(directory, Root::Device(device, *file_system))?;
            (CapabilitySet::DAC_READ_SEARCH, 0)
        }
        Task::Convert { directory, image, disk, limits, .. } => {
            change_root(directory, Root::Programs { image, disk })?;
            (CapabilitySet::empty(), limits.bytes)
        }
        Task::Stage { directory, limits, .. } => {
            change_root(directory, Root::Directory)?;
            (CapabilitySet::empty(), limits.bytes)
        }
        Task::Layer { directory, limits } => {
            change_root(directory, Root::Directory)?;
            (unpacking(), limits.bytes)
        }
        Task::Fill { directory, device } => {
            change_root(directory, Root::NewDevice(device))?;
            (unpacking(), u64::MAX)
        }
    };
    let files = if matches!(task, Task::Mounted { .. }) { OPEN_DIRECTORIES } else { 64 };
    limit(bytes, files).or_fault("limiting the jail")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    drop_privileges(keep)
}

/// What unpacking takes.
fn unpacking() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
}

/// What the jail sees.
#[derive(Clone, Copy)]
enum Root<'a> {
    /// Nothing.
    Empty,
    /// The directory itself.
    Directory,
    /// What is on a device.
    Device(&'a Path, FileSystem),
    /// The empty ext2, ext3 or ext4 that berth made on a device, to be filled.
    NewDevice(&'a Path),
    /// The host's programs, an image to read and a disk to write.
    Programs { image: &'a Path, disk: &'a Path },
}

/// Makes `directory`, or what is mounted on it, all that there is.
fn change_root(directory: &Path, root: Root<'_>) -> Result<()> {
    let none = None::<&str>;
    let doing = || format!("making {} the jail's root", directory.display());
    let safe = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let read_only = safe | MsFlags::MS_RDONLY;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).or_fault(doing())?;
    match root {
        Root::Empty => mount(Some("tmpfs"), directory, Some("tmpfs"), read_only, Some("mode=0555")),
        Root::Directory => {
            let flags = safe | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
            mount(Some(directory), directory, none, MsFlags::MS_BIND, none)
                .and_then(|()| mount(none, directory, none, flags, none))
        }
        Root::Programs { image, disk } => programs(directory, image, disk),
        // The driver of ext4 knows all three.
        Root::NewDevice(device) => {
            mount(Some(device), directory, Some("ext4"), safe, Some("acl,user_xattr"))
        }
        Root::Device(device, file_system) => {
            let (driver, options) = (mounted::driver(file_system), mounted::options(file_system));
            return mount(Some(device), directory, driver, read_only, options)
                .map_err(|errno| mounted::not_mounted(file_system, errno))
                .and_then(|()| enter(directory).or_fault(doing()));
        }
    }
    .and_then(|()| enter(directory))
    .or_fault(doing())
}

/// Mounts a file system of what `qemu-img` needs.
fn programs(directory: &Path, image: &Path, disk: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    let safe = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let bind = |from: &Path, to: &Path, flags: MsFlags| {
        mount(Some(from), to, none, MsFlags::MS_BIND, none)?;
        mount(none, to, none, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, none)
    };
    mount(Some("tmpfs"), directory, Some("tmpfs"), safe, Some("mode=0755,size=1m"))?;
    for name in ["usr", "lib", "lib64"] {
        let (from, to) = (Path::new("/").join(name), directory.join(name));
        match std::fs::read_link(&from) {
            Ok(target) => std::os::unix::fs::symlink(target, &to).map_err(errno)?,
            Err(_) if from.is_dir() => {
                std::fs::create_dir(&to).map_err(errno)?;
                bind(&from, &to, safe | MsFlags::MS_RDONLY)?;
            }
            Err(_) => {}
        }
    }
    let file = |from: &Path, name: &str, flags: MsFlags| {
        let to = directory.join(name);
        File::create(&to).map_err(errno)?;
        bind(from, &to, flags | MsFlags::MS_NOEXEC)
    };
    std::fs::create_dir(directory.join("etc")).map_err(errno)?;
    let cache = Path::new("/etc/ld.so.cache");
    if cache.exists() {
        file(cache, "etc/ld.so.cache", safe | MsFlags::MS_RDONLY)?;
    }
    file(image, foreign::IMAGE, safe | MsFlags::MS_RDONLY)?;
    file(disk, foreign::DISK, safe)?;
    mount(none, directory, none, safe | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)
}

/// Makes a mount point all that there is.
fn enter(directory: &Path) -> nix::Result<()> {
    nix::unistd::chdir(directory)?;
    // The old root lands on top of the new one and goes.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

fn limit(file_bytes: u64, files: u64) -> nix::Result<()> {
    for (resource, value) in [
        (Resource::RLIMIT_AS, ADDRESS_SPACE),
        (Resource::RLIMIT_CPU, CPU_SECONDS),
        (Resource::RLIMIT_FSIZE, file_bytes),
        (Resource::RLIMIT_NOFILE, files),
        (Resource::RLIMIT_CORE, 0),
    ] {
        // The host may have set less already, and only less is possible without SYS_RESOURCE.
        let value = value.min(getrlimit(resource)?.1);
        setrlimit(resource, value, value)?;
    }
    Ok(())
}

fn drop_privileges(keep: CapabilitySet) -> Result<()> {
    // Capabilities stay as they are through the change of user, and no later
    // change of user or program brings any back.
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED,
    )
    .or_fault("locking the jail's privileges")?;
    for capability in CapabilitySet::all().iter() {
        // Capabilities that this kernel does not know cannot be dropped, nor had.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let become_nobody = || {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)
    };
    become_nobody().or_fault("becoming nobody")?;
    nix::unistd::setfsgid(Gid::from_raw(0));
    nix::unistd::setfsuid(Uid::from_raw(0));
    let sets =
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).or_fault("dropping capabilities")?;
    rustix::thread::set_no_new_privs(true).or_fault("forbidding new privileges")?;
    // The last check is on what is, not on what was asked for.
    let now = rustix::thread::capabilities(None).or_fault("reading capabilities")?;
    if now.effective == keep && now.permitted == keep && now.inheritable.is_empty() {
        Ok(())
    } else {
        Err(Fault::internal("dropping capabilities", "some stayed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_arguments_are_not_the_jails() {
        assert!(main([OsString::from("serve")].into_iter()).is_none());
        assert!(main(std::iter::empty()).is_none());
        assert!(parse(Some("{".into())).is_err());
    }

    #[test]
    fn all_three_compressions_in_several_parts() {
        let plain = b"some text ".repeat(1000);
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let xz = |bytes: &[u8]| {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let (half, rest) = plain.split_at(4321);
        for (compression, bytes) in [
            (Compression::Gzip, [gzip(half), gzip(rest)].concat()),
            (Compression::Xz, [xz(half), xz(rest)].concat()),
            (Compression::Zstd, [zstd(half), zstd(rest)].concat()),
        ] {
            let mut out = Vec::new();
            decompress(compression, &bytes[..], &mut out).unwrap();
            assert!(out == plain, "{compression:?}");
            let cut = &bytes[..bytes.len() - 3];
            let fault = decompress(compression, cut, std::io::sink()).unwrap_err();
            assert_eq!(fault.kind, FaultKind::ImageCorrupt, "{compression:?}");
        }
        assert!(decompress(Compression::Bzip2, &b""[..], std::io::sink()).is_err());
    }
}

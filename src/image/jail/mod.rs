//! Where hostile bytes are decompressed and unpacked: a child process that
//! can do that and nothing else.
//!
//! The child is the same program, started anew with a hidden first argument
//! ([`COMMAND`]). Before it reads a byte it takes mount, network, IPC and
//! host-name namespaces of its own, makes one directory its whole file
//! system, mounted `nodev,nosuid,noexec`, becomes a user that owns nothing, keeps of
//! root's capabilities only those that the task needs, and is held by a seccomp filter
//! to the system calls that it needs. Its parent starts it in a PID namespace, of which
//! it is the first process: none other is there, and none outlives it. The tasks:
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
//!   mounted by the child in its own namespace, for a directory, and `SYS_ADMIN`
//!   for attributes `trusted.overlay.*` and `security.*` there, of which the filter leaves
//!   nothing else;
//! * staging of an image archive: none, it writes its own directory;
//! * unpacking of a layer: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID` for
//!   owners and modes, `MKNOD` for devices and whiteouts, `SETFCAP` for file
//!   capabilities. Not `SYS_ADMIN`: `trusted.overlay.*` needs it, so the
//!   parent sets these on the files that the child reports.
//!
//! Decompression and unpacking are two processes with the parent between
//! them, because the parent must hash the plain bytes itself: a layer's
//! address is that hash, and a child that a hostile stream took over could
//! otherwise claim the address of another image's layer. The layer of a disk
//! image has the address that the image's own hash gives it, so the bytes go
//! from the child that reads the disk to the one that unpacks, unseen.
//!
//! File accesses are made as user 0 (fsuid), all else as that user: the child
//! cannot kill the host's processes.

mod calls;
mod child;
mod confine;
pub mod decompress;
#[cfg(feature = "service")]
mod parent;
mod task;

pub use child::main;
#[cfg(feature = "service")]
pub use confine::USER;
#[cfg(feature = "service")]
pub use parent::{Feed, Input, Jail, Running, pipe};
pub use task::{COMMAND, Outcome, Task, Verdict, Work};

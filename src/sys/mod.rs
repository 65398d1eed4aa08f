//! The kernel's interfaces that no library wraps well, and the only `unsafe`.
//!
//! Two libraries make the other system calls, each its own. rustix makes all that it has: files,
//! mounts, polls, pidfds, terminals, what a process is and how it ends. nix makes those that
//! rustix lacks, or has unsafe alone: signal masks, signalfd and the names of signals, `fork` and
//! `unshare`, users and groups by name and of the file system, `mkdtemp`, `sysconf`. It is built
//! with the features for these alone, and `clippy.toml` forbids what else they bring. Only the
//! jail of images sets itself up with nix throughout: its faults quote nix's errors.

pub mod child;
pub mod copy;
pub mod device_filter;
pub mod ethtool;
pub mod filter;
pub mod fs;
pub mod fuse;
pub mod ids;
pub mod loopdev;
pub mod mount;
pub mod ns;
pub mod process;
pub mod pty;
pub mod scm;
pub mod thread;

//! The OCI runtime and the bundle it is given.
//!
//! * [`spec`] turns an instance's definition and its image into an OCI
//!   specification, with [`capabilities`] and [`seccomp`]; pure.
//! * [`native`] is berth's own runtime, without a program.
//! * [`cli`] drives any program with the standard command line.
//! * [`chosen`] is the one of both that a service has.
//! * [`probe`] finds one that works on this host.
//! * [`init`] knows what init programs want to be told, [`asking`] leaves it in their files,
//!   and [`lines`] knows where they have somebody log in.
//! * [`lxcfs`] finds what lxcfs offers.
//! * [`view`] hides, in a created container, what is [`hidden`] of the kernel's files.
//! * [`disks`] says how an instance sees its disks, and [`dev`] makes its `/dev`.
//! * [`terminals`] mounts an instance's, and [`tmpfs`] bounds what systemd mounts inside.
//! * [`apparmor`] has a profile for each role.
//! * [`targets`] looks where the mounts go, before a program does.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::fault::Result;
use crate::sys::process::ChildSetup;

pub mod apparmor;
pub mod asking;
pub mod capabilities;
pub mod chosen;
pub mod cli;
pub mod cover;
pub mod dev;
pub mod disks;
pub mod hidden;
pub mod init;
pub mod lines;
pub mod lxcfs;
pub mod native;
pub mod probe;
pub mod role;
pub mod seccomp;
pub mod spec;
pub mod targets;
pub mod terminals;
pub mod tmpfs;
pub mod view;
pub mod walls;

/// The programs that `runtime.program = "auto"` tries after the native runtime, the fastest first.
pub const PROGRAMS: [&str; 3] = ["crun", "runc", "youki"];

/// A way to make containers out of bundles.
///
/// Freezing, limits and statistics are not here: berth does them on the cgroup
/// itself, the same under every runtime.
pub trait Runtime {
    /// Makes the container; its first process waits for [`Runtime::start`] and
    /// is a child of this process's nearest subreaper.
    fn create(&self, create: &Create<'_>) -> Result<Created>;

    /// Lets the first process run.
    fn start(&self, created: &Created, id: &str, log: &Path) -> Result<()>;

    /// Removes the container, killing what is left of it; its absence is success.
    fn delete(&self, id: &str, log: &Path) -> Result<()>;

    /// A command that runs another program in a running container.
    fn exec_command(&self, id: &str, exec: &Exec) -> Result<Command>;
}

/// What [`Runtime::create`] needs.
#[derive(Clone, Copy, Debug)]
pub struct Create<'a> {
    /// The container's name for the runtime: the instance's id.
    pub id: &'a str,
    /// Directory with `config.json`.
    pub bundle: &'a Path,
    /// Unix socket that receives the console's master; none when the
    /// specification has no terminal.
    pub console_socket: Option<&'a Path>,
    /// Where the program writes the process id.
    pub pid_file: &'a Path,
    /// Where the program writes what went wrong.
    pub log: &'a Path,
    /// What the program's process does to itself first.
    pub setup: &'a ChildSetup,
}

/// A container whose first process waits to be started.
#[derive(Debug)]
pub struct Created {
    /// The first process.
    pub pid: i32,
    /// The console's master, from a runtime that does not send it to the socket.
    pub console: Option<OwnedFd>,
    /// The native runtime's connection to the first process, which ends when it is dropped
    /// before the start.
    pub line: Option<native::Line>,
}

/// Another program in a running container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// All of the process: arguments, whole environment, user, capabilities. With a terminal,
    /// the command's own standard input, output and error must be one.
    pub process: Process,
    /// `cgroup.procs` files that the program enters and leaves alone, as at `create`.
    pub cgroups: Vec<std::path::PathBuf>,
}

//! The OCI runtime program and the bundle it is given.
//!
//! * [`spec`] turns an instance's definition and its image into an OCI
//!   specification, with [`capabilities`] and [`seccomp`]; pure.
//! * [`cli`] drives any program with the standard command line.
//! * [`probe`] finds one that works on this host.
//! * [`init`] knows what init programs want to be told, [`asking`] leaves it in their files,
//!   and [`lines`] knows where they have somebody log in.
//! * [`lxcfs`] finds what lxcfs offers.
//! * [`view`] hides, in a created container, what is [`hidden`] of the kernel's files.
//! * [`apparmor`] has a profile for each role.
//! * [`targets`] looks where the mounts go, before a program does.

use std::path::Path;
use std::process::Command;

use oci_spec::runtime::Process;

use crate::fault::Result;
use crate::sys::process::ChildSetup;

pub mod apparmor;
pub mod asking;
pub mod capabilities;
pub mod cli;
pub mod hidden;
pub mod init;
pub mod lines;
pub mod lxcfs;
pub mod probe;
pub mod role;
pub mod seccomp;
pub mod spec;
pub mod targets;
pub mod view;
pub mod walls;

/// A way to make containers out of bundles.
///
/// Freezing, limits and statistics are not here: berth does them on the cgroup
/// itself, the same under every runtime.
pub trait Runtime {
    /// Makes the container; its first process waits for [`Runtime::start`] and
    /// is a child of this process's nearest subreaper. Gives its process id.
    fn create(&self, create: &Create<'_>) -> Result<i32>;

    /// Lets the first process run.
    fn start(&self, id: &str, log: &Path) -> Result<()>;

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

/// Another program in a running container.
#[derive(Clone, Debug)]
pub struct Exec {
    /// All of the process: arguments, whole environment, user, capabilities. With a terminal,
    /// the command's own standard input, output and error must be one.
    pub process: Process,
    /// `cgroup.procs` files that the program enters and leaves alone, as at `create`.
    pub cgroups: Vec<std::path::PathBuf>,
}

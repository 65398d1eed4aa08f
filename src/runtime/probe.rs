//! Finds a runtime that works on this host, a program or the native one, by trying it.
//!
//! Versions say little: the same crun runs on one cgroup layout and refuses
//! another. So each candidate creates and deletes a container that joins a
//! pinned user and network namespace, as every instance's does; its first
//! process is never started, so nothing of the trial ever runs.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tracing::warn;
use uuid::Uuid;

use super::chosen::Chosen;
use super::cli::CliRuntime;
use super::native::{self, Native};
use super::{Create, PROGRAMS, Runtime as _, dev};
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::ids::IdBlock;
use crate::sys::process::ChildSetup;
use crate::sys::{mount, ns};
use crate::types::RuntimeInfo;

/// The configured program, or for `auto` the first of these that works: the native runtime, unless
/// there are arguments for a program, and [`PROGRAMS`]. `scratch` is an
/// existing directory of the service's that the mapped root may pass through;
/// `block` are ids for the trial; `monitor` is the monitor's program.
pub fn probe(
    config: &config::Runtime,
    scratch: &Path,
    block: IdBlock,
    monitor: &Path,
) -> Result<RuntimeInfo> {
    if config.program == native::NAME {
        return probe_native(config, scratch, block, monitor);
    }
    if config.program != "auto" {
        let path = find(&config.program).ok_or_else(|| absent(&config.program))?;
        return probe_program(&path, &config.args, scratch, block);
    }
    let mut said = Vec::new();
    if config.args.is_empty() {
        match probe_native(config, scratch, block, monitor) {
            Ok(info) => return Ok(info),
            Err(fault) => {
                warn!("the native runtime does not work on this host: {}", fault.detail);
                said.push(fault.detail);
            }
        }
    }
    for path in PROGRAMS.iter().filter_map(|name| find(name)) {
        match probe_program(&path, &config.args, scratch, block) {
            Ok(info) => return Ok(info),
            Err(fault) => said.push(fault.detail),
        }
    }
    let detail = if said.is_empty() {
        "none of crun, runc and youki is installed; install one (Debian: apt install crun)".into()
    } else {
        format!("no runtime works on this host: {}", said.join("; "))
    };
    Err(Fault::new(FaultKind::HostUnsupported, detail))
}

/// The runtime that [`probe`] found, with its state below `root`.
pub fn chosen(info: &RuntimeInfo, config: &config::Runtime, root: &Path) -> Chosen {
    let (path, root) = (PathBuf::from(&info.path), root.to_owned());
    if info.name == native::NAME {
        Chosen::Native(Native { root, monitor: path })
    } else {
        Chosen::Program(CliRuntime { program: path, args: config.args.clone(), root })
    }
}

fn probe_native(
    config: &config::Runtime,
    scratch: &Path,
    block: IdBlock,
    monitor: &Path,
) -> Result<RuntimeInfo> {
    if !config.args.is_empty() {
        let detail = "the native runtime has no arguments: leave them out, or name a program";
        return Err(Fault::invalid("runtime.args", detail));
    }
    try_native(block, monitor, scratch)?;
    Ok(RuntimeInfo {
        name: native::NAME.into(),
        path: monitor.display().to_string(),
        version: format!("berth {}", env!("CARGO_PKG_VERSION")),
        seccomp: true,
        user_namespace_path: true,
        checkpoint: false,
    })
}

/// Tries the native runtime in a directory of the trial's own; gives what it is.
pub fn native_trial(block: IdBlock, monitor: &Path) -> Result<String> {
    let doing = "making a directory for the trial";
    let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("berth-check-XXXXXX"));
    let dir = dir.or_fault(doing)?;
    let tried = fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))
        .or_fault(doing)
        .and_then(|()| try_native(block, monitor, &dir));
    let _ = fs::remove_dir_all(&dir);
    tried.map(|()| format!("berth {}, {}", env!("CARGO_PKG_VERSION"), monitor.display()))
}

fn try_native(block: IdBlock, monitor: &Path, scratch: &Path) -> Result<()> {
    let tried = Trial::new(monitor, &[], scratch).run_native(block);
    tried.map_err(|fault| Fault { kind: FaultKind::HostUnsupported, ..fault })
}

fn absent(program: &str) -> Fault {
    let detail = format!("{program} is not installed; install it or change runtime.program");
    Fault::new(FaultKind::HostUnsupported, detail)
}

/// An absolute path as it is, a name by PATH.
fn find(program: &str) -> Option<PathBuf> {
    let executable = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_absolute() && executable(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| super::spec::PATH.into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| executable(path))
}

fn probe_program(
    path: &Path,
    args: &[String],
    scratch: &Path,
    block: IdBlock,
) -> Result<RuntimeInfo> {
    let version = ask(path, &["--version"]).ok_or_else(|| {
        let detail = format!("{} --version does not work", path.display());
        Fault::new(FaultKind::HostUnsupported, detail)
    })?;
    let features = ask(path, &["features"]).and_then(|text| serde_json::from_str(&text).ok());
    let trial = Trial::new(path, args, scratch);
    trial.run(block).map_err(|fault| Fault { kind: FaultKind::HostUnsupported, ..fault })?;
    Ok(RuntimeInfo {
        name: trial.runtime.name(),
        path: path.display().to_string(),
        seccomp: has_seccomp(features.as_ref(), &version),
        // The trial joined one.
        user_namespace_path: true,
        checkpoint: has_checkpoint(features.as_ref(), &version),
        version: version.lines().next().unwrap_or_default().to_owned(),
    })
}

/// Standard output of a program that succeeds.
fn ask(path: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(path).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From `features` where the program has that command, else from the line of
/// build options that crun and runc print with their version.
fn has_seccomp(features: Option<&Value>, version: &str) -> bool {
    match features {
        Some(features) => features.pointer("/linux/seccomp/enabled") == Some(&Value::Bool(true)),
        None => version.contains("+SECCOMP") || version.contains("libseccomp"),
    }
}

fn has_checkpoint(features: Option<&Value>, version: &str) -> bool {
    let annotation = |name: &str| features.and_then(|f| f.get("annotations")?.get(name)?.as_str());
    annotation("org.opencontainers.runc.checkpoint.enabled") == Some("true")
        || annotation("run.oci.crun.checkpoint.enabled") == Some("true")
        || version.contains("+CRIU")
}

/// A container that is created and deleted. Whatever happens, dropping it
/// leaves nothing.
struct Trial {
    runtime: CliRuntime,
    id: String,
    dir: PathBuf,
}

impl Trial {
    fn new(path: &Path, args: &[String], scratch: &Path) -> Trial {
        let id = format!("berth-probe-{}", Uuid::new_v4());
        let dir = scratch.join(&id);
        let runtime =
            CliRuntime { program: path.into(), args: args.to_vec(), root: dir.join("root") };
        Trial { runtime, id, dir }
    }

    fn run(&self, block: IdBlock) -> Result<()> {
        self.make(block, &self.spec(block))?;
        let (pid_file, log) = (self.dir.join("pid"), self.dir.join("log"));
        self.runtime.create(&Create {
            id: &self.id,
            bundle: &self.dir,
            console_socket: None,
            pid_file: &pid_file,
            log: &log,
            setup: &ChildSetup::default(),
        })?;
        self.runtime.delete(&self.id, &log)
    }

    /// The same by the monitor's program, for this one has several threads.
    fn run_native(&self, block: IdBlock) -> Result<()> {
        let doing = "trying the native runtime";
        let mut spec = self.spec(block);
        spec["root"]["path"] = json!(self.dir.join("rootfs"));
        spec["process"]["terminal"] = json!(true);
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        namespaces.into_iter().for_each(|all| all.push(json!({"type": "cgroup"})));
        let pts = json!({"destination": "/dev/pts", "type": "devpts", "options": ["newinstance"]});
        spec["mounts"].as_array_mut().into_iter().for_each(|all| all.push(pts.clone()));
        self.make(block, &spec)?;
        let mut command = Command::new(&self.runtime.program);
        command.arg("try").args([self.dir.as_os_str(), self.id.as_ref()]);
        let tried = command.stdin(Stdio::null()).output().or_fault(doing)?;
        if tried.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&tried.stderr);
        Err(Fault::new(FaultKind::RuntimeFailed, format!("{doing}: {}", said.trim())))
    }

    fn make(&self, block: IdBlock, spec: &Value) -> Result<()> {
        let doing = format!("trying {}", self.runtime.name());
        let rootfs = self.dir.join("rootfs");
        fs::create_dir_all(&rootfs).or_fault(&doing)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711)).or_fault(&doing)?;
        // Its own mount, for /run is mounted noexec on a host with systemd.
        let tree = mount::create("tmpfs", &[], mount::Attributes::empty())
            .map_err(|e| Fault::internal(&doing, e))?;
        mount::attach(tree.as_fd(), &rootfs)?;
        for dir in ["proc", "dev"] {
            fs::create_dir(rootfs.join(dir)).or_fault(&doing)?;
        }
        // Enough of a program to be found; it is never executed.
        fs::write(rootfs.join("init"), "#!/init\n").or_fault(&doing)?;
        fs::set_permissions(rootfs.join("init"), fs::Permissions::from_mode(0o755))
            .or_fault(&doing)?;
        dev::mount(&self.dir.join("dev"), block, &[], &[])?;
        for path in [&rootfs, &rootfs.join("proc"), &rootfs.join("dev"), &rootfs.join("init")] {
            std::os::unix::fs::chown(path, Some(block.first), Some(block.first))
                .or_fault(&doing)?;
        }
        ns::create_pinned(block, &self.dir.join("user"), &self.dir.join("net"))?;
        fs::write(self.dir.join("config.json"), spec.to_string()).or_fault(&doing)
    }

    fn spec(&self, block: IdBlock) -> Value {
        let map = json!([{"containerID": 0, "hostID": block.first, "size": block.size}]);
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/init"],
                "cwd": "/",
            },
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev", "type": "bind", "source": self.dir.join("dev"),
                        "options": ["bind", "nosuid", "noexec"]}],
            "linux": {
                "cgroupsPath": format!("/{}", self.id),
                "uidMappings": map,
                "gidMappings": map,
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "user", "path": self.dir.join("user")},
                    {"type": "network", "path": self.dir.join("net")},
                ],
            },
        })
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.runtime.delete(&self.id, &self.dir.join("log"));
        let _ = ns::unpin(&self.dir.join("user"));
        let _ = ns::unpin(&self.dir.join("net"));
        let _ = mount::unmount(&self.dir.join("rootfs"));
        let _ = mount::unmount(&self.dir.join("dev"));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        dir
    }

    const BLOCK: IdBlock = IdBlock { first: 3_000_000_000, size: 65_536 };

    #[test]
    fn root_runc_works_here_and_leaves_nothing() {
        let dir = scratch();
        let config = config::Runtime { program: "runc".into(), ..Default::default() };
        let info = probe(&config, dir.path(), BLOCK, Path::new("")).unwrap();
        assert_eq!(info.name, "runc");
        assert!(info.version.starts_with("runc version"), "{}", info.version);
        assert!(info.seccomp && info.user_namespace_path);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn root_auto_takes_a_program_where_the_native_one_does_not_work() {
        let dir = scratch();
        let config = config::Runtime { program: "auto".into(), ..Default::default() };
        let info = probe(&config, dir.path(), BLOCK, Path::new("/no/monitor")).unwrap();
        assert!(PROGRAMS.contains(&info.name.as_str()), "{}", info.name);
    }

    #[test]
    fn a_program_that_refuses_is_quoted_and_an_absent_one_named() {
        let dir = scratch();
        let fake = dir.path().join("fake");
        fs::write(&fake, "#!/bin/sh\n[ $1 = --version ] && exit 0\necho not here >&2; exit 1\n")
            .unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        let config = config::Runtime { program: fake.display().to_string(), ..Default::default() };
        let fault = probe(&config, dir.path(), BLOCK, Path::new("")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::HostUnsupported);
        assert_eq!(fault.detail, "fake create: not here");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the trial left something");
        let config = config::Runtime { program: "no-such-runtime".into(), ..Default::default() };
        assert!(
            probe(&config, dir.path(), BLOCK, Path::new(""))
                .unwrap_err()
                .detail
                .contains("no-such-runtime")
        );
    }
}

//! What a bundle's `config.json` may say: the part of OCI's runtime specification that the
//! native runtime does. Whatever else is in it is refused by its name, never left out.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, LinuxDeviceType, LinuxNamespaceType, LinuxSeccomp, PosixRlimitType,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::fault::{Fault, FaultKind, OrFault, Result};

/// The seccomp program's name in a bundle.
pub(super) const SECCOMP: &str = "seccomp.bpf";

/// A bundle's configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    #[serde(rename = "ociVersion")]
    _oci_version: IgnoredAny,
    /// The root file system.
    pub root: Root,
    /// The UTS namespace's host name.
    pub hostname: Option<String>,
    /// Its NIS domain.
    pub domainname: Option<String>,
    /// In the order in which they are made.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// The first process.
    pub process: Process,
    /// What Linux has beside.
    pub linux: Linux,
    /// Of no effect by the specification.
    #[serde(rename = "annotations", default)]
    _annotations: IgnoredAny,
}

/// The root file system.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// A directory of the host, absolute.
    pub path: PathBuf,
    /// Whether its mount is read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// A mount.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where, absolute.
    pub destination: PathBuf,
    /// The file system's type; none: a bind.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// A path of the host, or a name for show.
    pub source: Option<PathBuf>,
    /// As those of mount(8).
    #[serde(default)]
    pub options: Vec<String>,
}

/// A process.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Whether it gets a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Whom it runs as.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Its working directory, absolute.
    pub cwd: PathBuf,
    /// Its rights; none: no capability at all.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Limits of its resources.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Whether executing a program gives it no right.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// How willingly the kernel ends it for want of memory.
    pub oom_score_adj: Option<i32>,
    /// The AppArmor profile that its program runs under.
    pub apparmor_profile: Option<String>,
}

/// Whom a process runs as, by the instance's own ids.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode bits that new files lack.
    pub umask: Option<u32>,
    /// Further groups.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// Sets of capabilities; one that is absent is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capabilities {
    /// What no program that is executed exceeds.
    pub bounding: Vec<Capability>,
    /// What is in force.
    pub effective: Vec<Capability>,
    /// What programs with inheritable capabilities get.
    pub inheritable: Vec<Capability>,
    /// What may be in force.
    pub permitted: Vec<Capability>,
    /// What programs without any get.
    pub ambient: Vec<Capability>,
}

/// A limit of a resource.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Which.
    #[serde(rename = "type")]
    pub kind: PosixRlimitType,
    /// The greatest that the process may set.
    pub hard: u64,
    /// What holds.
    pub soft: u64,
}

/// What Linux has beside.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Linux {
    /// Users of the user namespace, which has them already.
    #[serde(default)]
    pub uid_mappings: Vec<Mapping>,
    /// Groups, as well.
    #[serde(default, rename = "gidMappings")]
    _gid_mappings: Vec<Mapping>,
    /// Of these, only devices: berth writes the limits itself.
    #[serde(default)]
    pub resources: Resources,
    #[serde(rename = "cgroupsPath", default)]
    _cgroups_path: IgnoredAny,
    /// Namespaces: all kinds but that of time; those of users and of the network have a path.
    pub namespaces: Vec<Namespace>,
    /// The profile, from which the program at [`SECCOMP`] in the bundle is made.
    pub seccomp: Option<IgnoredAny>,
    /// Files of /proc below sys, and what they are set to.
    #[serde(default)]
    pub sysctl: std::collections::BTreeMap<String, String>,
    /// What is not to be seen.
    #[serde(default)]
    pub masked_paths: Vec<PathBuf>,
    /// What is not to be written.
    #[serde(default)]
    pub readonly_paths: Vec<PathBuf>,
}

/// Ids inside and on the host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// The first inside.
    #[serde(rename = "containerID")]
    pub inside: u32,
    /// The first on the host.
    #[serde(rename = "hostID")]
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// What a cgroup holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Which devices may be used: the last that fits holds.
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
}

/// Which devices may be used.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// Whether they may.
    pub allow: bool,
    /// Of which kind; none: of both.
    #[serde(rename = "type")]
    pub kind: Option<LinuxDeviceType>,
    /// Major number; none: all.
    pub major: Option<u32>,
    /// Minor number; none: all.
    pub minor: Option<u32>,
    /// Uses, of `rwm`; none: all.
    pub access: Option<String>,
}

/// A namespace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Of which kind.
    #[serde(rename = "type")]
    pub kind: LinuxNamespaceType,
    /// The one to be joined; none: a new one.
    pub path: Option<PathBuf>,
}

/// A configuration, and the seccomp program that belongs to it.
#[derive(Debug)]
pub struct Bundle {
    /// `config.json`.
    pub config: Config,
    /// The program of its seccomp profile; empty when it has none.
    pub seccomp: Vec<u8>,
}

impl Bundle {
    /// Reads a bundle, and refuses one that asks for what is not done here.
    pub fn read(bundle: &Path) -> Result<Bundle> {
        let file = bundle.join("config.json");
        let doing = format!("reading {}", file.display());
        let text = fs::read(&file).or_fault(&doing)?;
        let config: Config = serde_json::from_slice(&text).map_err(|e| {
            refused(format!("{}: {e}: the native runtime cannot do that", file.display()))
        })?;
        config.check()?;
        let seccomp = match &config.linux.seccomp {
            None => Vec::new(),
            Some(_) => {
                let file = bundle.join(SECCOMP);
                fs::read(&file).or_fault(format_args!("reading {}", file.display()))?
            }
        };
        Ok(Bundle { config, seccomp })
    }
}

impl Config {
    /// The namespace of a kind that is joined.
    pub fn joined(&self, kind: LinuxNamespaceType) -> Result<&Path> {
        let mut all = self.linux.namespaces.iter();
        let found = all.find(|namespace| namespace.kind == kind);
        let path = found.and_then(|namespace| namespace.path.as_deref());
        path.ok_or_else(|| refused(format!("linux.namespaces: {kind} must have a path")))
    }

    fn check(&self) -> Result<()> {
        use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
        for kind in [User, Network] {
            self.joined(kind)?;
        }
        for kind in [Pid, Mount, Uts, Ipc, Cgroup] {
            let of_kind: Vec<_> =
                self.linux.namespaces.iter().filter(|namespace| namespace.kind == kind).collect();
            if !matches!(of_kind[..], [Namespace { path: None, .. }]) {
                return Err(refused(format!("linux.namespaces: {kind} must be a new one")));
            }
        }
        if self.linux.namespaces.len() != 7 {
            return Err(refused("linux.namespaces: one of each kind but time is needed, once"));
        }
        if !self.process.terminal {
            return Err(refused("process.terminal: must be true"));
        }
        if self.process.args.first().is_none_or(String::is_empty) {
            return Err(refused("process.args: must name a program"));
        }
        let absolute = self.root.path.is_absolute()
            && self.process.cwd.is_absolute()
            && self.mounts.iter().all(|mount| mount.destination.is_absolute());
        if !absolute {
            return Err(refused("root.path, process.cwd and destinations must be absolute"));
        }
        // All that reaches the kernel is put on file systems that are no image's.
        let kind = |place: &str| {
            let found = self.mounts.iter().find(|mount| mount.destination == Path::new(place));
            found.and_then(|mount| mount.kind.as_deref())
        };
        if kind("/proc") != Some("proc") {
            return Err(refused("mounts: /proc must be a proc"));
        }
        // A tmpfs is that of a container which an earlier version has made: it only runs on.
        if !matches!(kind("/dev"), Some("bind" | "tmpfs")) {
            return Err(refused("mounts: /dev must be a bind"));
        }
        Ok(())
    }
}

/// A configuration that asks for what is not done.
pub(super) fn refused(detail: impl Into<String>) -> Fault {
    Fault::new(FaultKind::HostUnsupported, detail)
}

/// The profile of a configuration, for the service that makes its program.
pub(super) fn profile(spec: &oci_spec::runtime::Spec) -> Option<&LinuxSeccomp> {
    spec.linux().as_ref()?.seccomp().as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/r"},
            "process": {"terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["/i"], "cwd": "/"},
            "mounts": [{"destination": "/proc", "type": "proc"},
                       {"destination": "/dev", "type": "bind"}],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"},
                {"type": "cgroup"}, {"type": "user", "path": "/u"}, {"type": "network", "path": "/n"},
            ]},
        })
    }

    fn refusal(config: &Value) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        match Bundle::read(dir.path()) {
            Ok(_) => String::new(),
            Err(fault) => {
                assert_eq!(fault.kind, FaultKind::HostUnsupported);
                fault.detail
            }
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        assert_eq!(refusal(&config()), "");
        for (place, name, value) in [
            ("", "hooks", json!({"prestart": []})),
            ("", "vm", json!({})),
            ("/process", "selinuxLabel", json!("x")),
            ("/process", "scheduler", json!({})),
            ("/linux", "intelRdt", json!({})),
            ("/linux", "devices", json!([])),
            ("/linux", "mountLabel", json!("x")),
            ("/linux", "rootfsPropagation", json!("shared")),
            ("/linux", "timeOffsets", json!({})),
            ("/linux", "personality", json!({})),
        ] {
            let mut config = config();
            config.pointer_mut(place).unwrap()[name] = value;
            assert!(refusal(&config).contains(&format!("unknown field `{name}`")), "{name}");
        }
        let mut limited = config();
        limited["linux"]["resources"] = json!({"memory": {}});
        assert!(refusal(&limited).contains("`memory`"));
        let mut mount = config();
        mount["mounts"][0]["uidMappings"] = json!([]);
        assert!(refusal(&mount).contains("`uidMappings`"));
    }

    #[test]
    fn every_wall_must_be_there() {
        for index in 0..7 {
            let mut config = config();
            config["linux"]["namespaces"].as_array_mut().unwrap().remove(index);
            assert!(refusal(&config).starts_with("linux.namespaces: "), "{index}");
        }
        let mut joined = config();
        joined["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid");
        assert!(refusal(&joined).contains("pid must be a new one"));
        let mut time = config();
        time["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        assert!(refusal(&time).starts_with("linux.namespaces: "));
        for index in 0..2 {
            let mut config = config();
            config["mounts"][index]["type"] = json!("ext4");
            assert!(refusal(&config).starts_with("mounts: "), "{index}");
        }
    }
}

//! The configuration file, `berth.toml`: typed, with defaults, unknown keys refused.
//!
//! Every key is documented in `etc/berth.toml`, which a test parses and
//! compares with the defaults here.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};

mod migration;

pub use migration::Migration;

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[service]`
    pub service: Service,
    /// `[host]`
    pub host: Host,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[instances]`
    pub instances: Instances,
    /// `[storage]`
    pub storage: Storage,
    /// `[images]`
    pub images: Images,
    /// `[bridge]`
    pub bridge: Bridge,
    /// `[migration]`
    pub migration: Migration,
    /// `[vnc]`
    pub vnc: Vnc,
}

/// Consoles by VNC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vnc {
    /// `[vnc.vencrypt]`: when present, a console's port takes none but VeNCrypt's X509None.
    pub vencrypt: Option<Vencrypt>,
}

/// TLS between Nova's proxy and consoles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vencrypt {
    /// PEM file: this host's certificate chain.
    pub certificate: PathBuf,
    /// PEM file: its private key.
    pub private_key: PathBuf,
    /// PEM file: authorities whose certificates of proxies are accepted.
    pub client_ca: PathBuf,
}

/// The HTTP service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Mode of the socket, octal in a string.
    pub socket_mode: String,
    /// Group of the socket; empty: root's.
    pub socket_group: String,
    /// Durable state.
    pub state_dir: PathBuf,
    /// State that ends with the host's uptime: mounts, sockets, namespaces.
    pub run_dir: PathBuf,
    /// Threads that answer HTTP; 0: one for each CPU, at most 4.
    pub workers: usize,
    /// Operations on instances that run at the same time; 0: two for each CPU.
    pub concurrency: usize,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// A tracing filter, e.g. `info` or `berth=debug`.
    pub log_level: String,
    /// `[service.tls]`: when present, listen on TCP too, with mutual TLS.
    pub tls: Option<Tls>,
}

/// Mutual TLS for the TCP listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// PEM file: the service's certificate chain.
    pub certificate: PathBuf,
    /// PEM file: its private key.
    pub private_key: PathBuf,
    /// PEM file: authorities whose client certificates are accepted.
    pub client_ca: PathBuf,
    /// Common names of accepted client certificates; empty: all that the authorities signed.
    #[serde(default)]
    pub client_names: Vec<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The host as Nova sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Nova's `hypervisor_hostname`; empty: the host's name.
    pub hypervisor_hostname: String,
    /// CPUs for instances that share, e.g. `0-3,6`; empty: all that are not dedicated.
    pub cpu_shared_set: String,
    /// CPUs for `hw:cpu_policy=dedicated`; empty: none.
    pub cpu_dedicated_set: String,
    /// An instance that shares has as many CPUs as vCPUs; else all that are shared.
    pub cpu_balance: bool,
    /// Start, after a boot of the host, the instances that ran before it.
    pub resume_guests_state_on_host_boot: bool,
}

/// The OCI runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// `native`: berth's own; else a program: a name looked up in PATH, or an absolute path; `auto`: the first of `native`, crun, runc and youki that works here.
    pub program: String,
    /// Arguments before the verb.
    pub args: Vec<String>,
    /// Whether instances run under AppArmor profiles.
    pub apparmor: AppArmor,
}

/// Whether instances run under AppArmor profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppArmor {
    /// Where the host can.
    Auto,
    /// Never.
    Off,
    /// The service does not start where the host cannot.
    Required,
}

/// What every instance has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Instances {
    /// First host id of the blocks.
    pub id_map_first: u32,
    /// Number of blocks.
    pub id_map_blocks: u32,
    /// Ids in a block, for instances made from now on.
    pub id_map_size: u32,
    /// Processes and threads that an instance may have, unless the flavor's `berth:processes` says otherwise.
    pub processes: u64,
    /// Bytes of console output that are kept, the first 64 KiB of them for ever.
    pub console_log_bytes: u64,
    /// Mount point of lxcfs; empty: instances see the host's /proc/meminfo and the like.
    pub lxcfs: PathBuf,
    /// Whether an instance is not started while lxcfs does not answer.
    pub lxcfs_required: bool,
    /// Program of the monitor; empty: `berth-monitor` beside the `berth` program.
    pub monitor: PathBuf,
    /// Name of the cgroup under which instances live.
    pub cgroup: String,
}

/// How `root_gb` is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// `loop`: a sparse file with a file system of its own.
    pub backend: StorageBackend,
    /// File system in the file: `ext4` or `xfs`.
    pub filesystem: String,
    /// Reserve the whole size on the host's disk at once.
    pub preallocate: bool,
    /// GiB that an instance with `root_gb = 0` gets above its image's size.
    pub slack_gb: u64,
    /// MiB of the state directory's file system that are given to nobody.
    pub reserved_host_disk_mb: u64,
    /// Bytes promised to disks for each that they can have.
    pub disk_allocation_ratio: f64,
}

/// The storage back ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageBackend {
    /// A sparse file with a file system of its own, through a loop device.
    Loop,
}

/// Images whose file systems the host's kernel may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelMounts {
    /// None.
    None,
    /// Those whose signature Nova verified.
    Signed,
    /// Those that Glance shows to everybody, as only its administrators may make them.
    Public,
    /// All.
    All,
}

impl KernelMounts {
    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            KernelMounts::None => "none",
            KernelMounts::Signed => "signed",
            KernelMounts::Public => "public",
            KernelMounts::All => "all",
        }
    }
}

/// What images may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Bytes that an image's content may have, compressed.
    pub max_bytes: u64,
    /// Bytes that an image's layers may have, unpacked.
    pub max_unpacked_bytes: u64,
    /// Files and directories that an image may have.
    pub max_entries: u64,
    /// Imports that work at the same time, and uploads; further ones wait.
    pub concurrency: usize,
    /// Bytes of unpacked layers above which unused images go, those unused the longest first; 0: never.
    pub cache_bytes: u64,
    /// Whose file systems the host's kernel may read, when nothing else does.
    pub kernel_mounts: KernelMounts,
    /// Seconds after which an image that nobody used goes; 0: never.
    pub unused_seconds: i64,
    /// Directories from which `source.type = "file"` may read; empty: anywhere.
    pub file_roots: Vec<PathBuf>,
    /// PEM file: authorities for Glance's certificate, besides the system's.
    pub glance_ca: Option<PathBuf>,
    /// Accept a Glance endpoint over plain `http`.
    pub glance_plain_http: bool,
    /// `[images.keystone]`: when present, the service's own credentials.
    pub keystone: Option<Keystone>,
}

/// The service's own credentials, for requests without a token and for tokens
/// that expire while an image is on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keystone {
    /// Keystone's address, with or without `/v3`.
    pub auth_url: String,
    /// An application credential's id; empty: user name and password.
    pub application_credential_id: String,
    /// Name of the user.
    pub username: String,
    /// Domain of the user, by name.
    pub user_domain_name: String,
    /// Name of the project.
    pub project_name: String,
    /// Domain of the project, by name.
    pub project_domain_name: String,
    /// File that holds the application credential's secret, or the password.
    pub secret_file: PathBuf,
    /// Region of the image endpoint; empty: any.
    pub region_name: String,
    /// Which image endpoint: `internal`, `public` or `admin`.
    pub interface: String,
}

/// The stand-alone bridge, for hosts without Neutron.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bridge {
    /// Make and use it.
    pub enabled: bool,
    /// Its name.
    pub name: String,
    /// Its own address and subnet, IPv4.
    pub address: String,
    /// Translate the instances' addresses on the way out (nftables).
    pub nat: bool,
    /// Connections that the host tracks at once for each address, when it translates them; 0: no limit.
    pub connections: u32,
    /// Instances reach the host and what is beyond it, and not one another.
    pub port_isolation: bool,
}

impl Default for Service {
    fn default() -> Self {
        Service {
            socket: "/run/berth/berth.sock".into(),
            socket_mode: "0660".into(),
            socket_group: String::new(),
            state_dir: "/var/lib/berth".into(),
            run_dir: "/run/berth".into(),
            workers: 0,
            concurrency: 0,
            log_format: LogFormat::Text,
            log_level: "info".into(),
            tls: None,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime { program: "auto".into(), args: Vec::new(), apparmor: AppArmor::Auto }
    }
}

impl Instances {
    /// Ids in all blocks.
    pub fn ids(&self) -> u64 {
        u64::from(self.id_map_blocks) * u64::from(self.id_map_size)
    }
}

impl Default for Instances {
    fn default() -> Self {
        Instances {
            id_map_first: 1_879_048_192,
            id_map_blocks: 4096,
            id_map_size: 65_536,
            processes: 4096,
            console_log_bytes: 1 << 20,
            lxcfs: "/var/lib/lxcfs".into(),
            lxcfs_required: false,
            monitor: PathBuf::new(),
            cgroup: "berth".into(),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            backend: StorageBackend::Loop,
            filesystem: "ext4".into(),
            preallocate: false,
            slack_gb: 10,
            reserved_host_disk_mb: 1024,
            disk_allocation_ratio: 1.0,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Images {
            max_bytes: 64 << 30,
            max_unpacked_bytes: 256 << 30,
            max_entries: 4_000_000,
            concurrency: 2,
            cache_bytes: 0,
            kernel_mounts: KernelMounts::None,
            unused_seconds: 0,
            file_roots: Vec::new(),
            glance_ca: None,
            glance_plain_http: true,
            keystone: None,
        }
    }
}

impl Default for Keystone {
    fn default() -> Self {
        Keystone {
            auth_url: String::new(),
            application_credential_id: String::new(),
            username: String::new(),
            user_domain_name: "Default".into(),
            project_name: String::new(),
            project_domain_name: "Default".into(),
            secret_file: PathBuf::new(),
            region_name: String::new(),
            interface: "internal".into(),
        }
    }
}

impl Keystone {
    fn validate(&self, plain_http: bool) -> Result<()> {
        let check = |ok: bool, key: &str, remedy: &str| match ok {
            true => Ok(()),
            false => Err(Fault::invalid(format!("images.keystone.{key}"), remedy)),
        };
        let url = &self.auth_url;
        check(
            url.starts_with("https://") || plain_http && url.starts_with("http://"),
            "auth_url",
            "must be https://…, or http://… with images.glance_plain_http",
        )?;
        check(
            self.application_credential_id.is_empty() != self.username.is_empty(),
            "application_credential_id",
            "must be there, or else username: one of the two",
        )?;
        check(
            self.username.is_empty() || !self.project_name.is_empty(),
            "project_name",
            "must be there with username",
        )?;
        check(self.secret_file.is_absolute(), "secret_file", "must be an absolute path")?;
        check(
            matches!(self.interface.as_str(), "internal" | "public" | "admin"),
            "interface",
            "must be internal, public or admin",
        )
    }
}

impl Default for Host {
    fn default() -> Self {
        Host {
            hypervisor_hostname: String::new(),
            cpu_shared_set: String::new(),
            cpu_dedicated_set: String::new(),
            cpu_balance: true,
            resume_guests_state_on_host_boot: false,
        }
    }
}

impl Default for Bridge {
    fn default() -> Self {
        Bridge {
            enabled: false,
            name: "berth0".into(),
            address: "10.88.0.1/16".into(),
            nat: true,
            connections: 16_384,
            port_isolation: false,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Fault::invalid("--config", format!("cannot read {}: {e}", path.display()))
        })?;
        Config::parse(&text).map_err(|f| f.context(path.display()))
    }

    /// Parses and checks the text of a file.
    pub fn parse(text: &str) -> Result<Config> {
        let document =
            toml::Deserializer::parse(text).map_err(|e| unreadable(text, "configuration", &e))?;
        let config: Config = serde_path_to_error::deserialize(document)
            .map_err(|e| unreadable(text, &e.path().to_string(), e.inner()))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what types alone cannot.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, field: &str, remedy: &str| {
            if ok { Ok(()) } else { Err(Fault::invalid(field, remedy)) }
        };
        let s = &self.service;
        for (field, path) in [
            ("service.socket", &s.socket),
            ("service.state_dir", &s.state_dir),
            ("service.run_dir", &s.run_dir),
        ] {
            check(path.is_absolute(), field, "must be an absolute path")?;
        }
        self.socket_mode()?;
        // sockaddr_un holds 108 bytes; the monitors' sockets lie below run_dir.
        check(
            s.run_dir.as_os_str().len() <= 48,
            "service.run_dir",
            "must be at most 48 bytes long, for the sockets below it",
        )?;
        check(
            s.socket.as_os_str().len() <= 100,
            "service.socket",
            "must be at most 100 bytes long",
        )?;
        check(s.workers <= 256, "service.workers", "must be 0 to 256")?;
        check(s.concurrency <= 1024, "service.concurrency", "must be 0 to 1024")?;
        let i = &self.instances;
        check(
            i.id_map_first >= 65_536,
            "instances.id_map_first",
            "must be at least 65536, above the host's own ids",
        )?;
        check(
            i.id_map_first.is_multiple_of(65_536),
            "instances.id_map_first",
            "must be a multiple of 65536",
        )?;
        check(
            (1..=32_768).contains(&i.id_map_blocks),
            "instances.id_map_blocks",
            "must be 1 to 32768",
        )?;
        check(
            i.id_map_size >= 65_536 && i.id_map_size.is_multiple_of(65_536),
            "instances.id_map_size",
            "must be a multiple of 65536, at least that",
        )?;
        check(
            u64::from(i.id_map_first) + i.ids() <= u64::from(u32::MAX),
            "instances.id_map_blocks",
            "the last id must be below 4294967295; take fewer or smaller blocks or a lower id_map_first",
        )?;
        check(
            (16..=4_194_304).contains(&i.processes),
            "instances.processes",
            "must be 16 to 4194304",
        )?;
        check(
            (131_072..=1 << 30).contains(&i.console_log_bytes),
            "instances.console_log_bytes",
            "must be 131072 (128 KiB) to 1073741824 (1 GiB)",
        )?;
        check(
            !i.cgroup.is_empty()
                && i.cgroup.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !i.cgroup.starts_with('.'),
            "instances.cgroup",
            "must be one name of letters, digits, '-', '_' and '.'",
        )?;
        check(
            matches!(self.storage.filesystem.as_str(), "ext4" | "xfs"),
            "storage.filesystem",
            "must be ext4 or xfs",
        )?;
        check(
            self.storage.slack_gb >= 1 && self.storage.slack_gb <= 65_536,
            "storage.slack_gb",
            "must be 1 to 65536",
        )?;
        check(
            (1.0..=1000.0).contains(&self.storage.disk_allocation_ratio),
            "storage.disk_allocation_ratio",
            "must be 1.0 to 1000.0",
        )?;
        let m = &self.images;
        check(m.max_bytes >= 1 << 20, "images.max_bytes", "must be at least 1048576 (1 MiB)")?;
        check(
            m.max_unpacked_bytes >= 1 << 20,
            "images.max_unpacked_bytes",
            "must be at least 1048576 (1 MiB)",
        )?;
        check(m.max_entries >= 1, "images.max_entries", "must be at least 1")?;
        check((1..=64).contains(&m.concurrency), "images.concurrency", "must be 1 to 64")?;
        check(m.unused_seconds >= 0, "images.unused_seconds", "must be at least 0")?;
        if let Some(keystone) = &m.keystone {
            keystone.validate(m.glance_plain_http)?;
        }
        let shared = parse_cpu_set("host.cpu_shared_set", &self.host.cpu_shared_set)?;
        let dedicated = parse_cpu_set("host.cpu_dedicated_set", &self.host.cpu_dedicated_set)?;
        check(
            shared.is_disjoint(&dedicated),
            "host.cpu_dedicated_set",
            "must not share a CPU with host.cpu_shared_set",
        )?;
        let tls = self.service.tls.as_ref();
        self.migration.validate(tls.map(|tls| tls.client_names.as_slice()))?;
        let b = &self.bridge;
        check(
            !b.name.is_empty() && b.name.len() <= 15,
            "bridge.name",
            "must have 1 to 15 characters",
        )?;
        let (address, prefix) = parse_cidr("bridge.address", &b.address)?;
        check(
            address.is_ipv4() && (8..=30).contains(&prefix),
            "bridge.address",
            "must be an IPv4 address with a prefix length of 8 to 30, e.g. 10.88.0.1/16",
        )
    }

    /// The socket's mode as a number.
    pub fn socket_mode(&self) -> Result<u32> {
        u32::from_str_radix(&self.service.socket_mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| {
                Fault::invalid("service.socket_mode", "must be an octal mode such as \"0660\"")
            })
    }
}

/// What is wrong with the text of a file: the key, the line, and what would be right.
fn unreadable(text: &str, key: &str, error: &toml::de::Error) -> Fault {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    // Serde names Rust's types, which an operator need not know.
    let wanted = ["usize", "u32", "u64"]
        .into_iter()
        .find_map(|name| error.message().strip_suffix(&format!("expected {name}")))
        .map(|found| format!("{found}expected a whole number, 0 or more"));
    let message = wanted.unwrap_or_else(|| error.message().to_owned());
    Fault::invalid(key, format!("line {line}: {}", message.replace('\n', "; ")))
}

/// Parses a Linux CPU list such as `0-3,6`; the empty text is the empty set.
pub fn parse_cpu_set(field: &str, text: &str) -> Result<BTreeSet<u32>> {
    let bad = || Fault::invalid(field, format!("{text:?} is no CPU list such as \"0-3,6\""));
    let mut set = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().map_err(|_| bad())?;
        let last: u32 = last.trim().parse().map_err(|_| bad())?;
        if first > last || last > 8191 {
            return Err(bad());
        }
        set.extend(first..=last);
    }
    Ok(set)
}

/// Parses an address with prefix length.
pub fn parse_cidr(field: &str, text: &str) -> Result<(IpAddr, u8)> {
    let bad = || {
        Fault::invalid(
            field,
            format!("{text:?} is no address with a prefix length such as \"10.0.0.5/24\""),
        )
    };
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if prefix > most { Err(bad()) } else { Ok((address, prefix)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let fault = Config::parse("[service]\nsokcet = \"/x\"\n").unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("service.sokcet"));
        assert!(fault.detail.contains("line 2"), "{fault}");
        assert!(fault.detail.contains("expected one of `socket`"), "{fault}");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_its_key_and_the_remedy() {
        for (text, key, remedy) in [
            ("[service]\n\nworkers = \"many\"", "service.workers", "line 3: invalid type"),
            ("[service]\nworkers = -1", "service.workers", "expected a whole number, 0 or more"),
            ("[service]\nlog_format = \"xml\"", "service.log_format", "expected `text` or `json`"),
            ("[bridge]\nnat = \"yes\"", "bridge.nat", "expected a boolean"),
            ("[service.tls]\nlisten = \"0.0.0.0:1\"", "service.tls", "missing field `certificate`"),
            ("[service]\nsocket = \"run/x\"", "service.socket", "must be an absolute path"),
            ("[service\n", "configuration", "line 1: "),
        ] {
            let fault = Config::parse(text).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some(key), "{text}: {fault}");
            assert!(fault.detail.contains(remedy), "{text}: {fault}");
        }
    }

    #[test]
    fn cpu_sets() {
        assert_eq!(parse_cpu_set("f", "0-2, 5").unwrap(), BTreeSet::from([0, 1, 2, 5]));
        assert_eq!(parse_cpu_set("f", "").unwrap(), BTreeSet::new());
        for bad in ["a", "3-1", "0-", "-", "99999"] {
            assert_eq!(parse_cpu_set("f", bad).unwrap_err().field.as_deref(), Some("f"));
        }
    }

    #[test]
    fn cidrs() {
        assert_eq!(parse_cidr("f", "10.0.0.5/24").unwrap().1, 24);
        assert_eq!(parse_cidr("f", "fd00::1/64").unwrap().1, 64);
        for bad in ["10.0.0.5", "10.0.0/24", "10.0.0.1/33", "fd00::1/129", "x/8"] {
            assert!(parse_cidr("f", bad).is_err(), "{bad}");
        }
    }
    #[test]
    fn credentials_are_of_one_kind_and_whole() {
        let good = "auth_url = \"https://k/v3\"\nsecret_file = \"/s\"\n";
        for (keys, field) in [
            ("application_credential_id = \"1\"", None),
            ("username = \"u\"\nproject_name = \"p\"", None),
            ("", Some("images.keystone.application_credential_id")),
            ("username = \"u\"", Some("images.keystone.project_name")),
            (
                "username = \"u\"\napplication_credential_id = \"1\"",
                Some("images.keystone.application_credential_id"),
            ),
        ] {
            let parsed = Config::parse(&format!("[images.keystone]\n{good}{keys}\n"));
            assert_eq!(parsed.err().and_then(|fault| fault.field).as_deref(), field, "{keys}");
        }
    }
}

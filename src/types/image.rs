//! Images: where they come from, what they hold, how they start.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A request to have an image in this host's store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    /// The image's name, for people.
    #[serde(default)]
    pub name: String,
    /// Where its content is.
    pub source: ImageSource,
    /// Glance's `os_hash_algo` and `os_hash_value`; when given, content with another hash is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ImageHash>,
    /// Size of the content in bytes; when given, other content is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Nova verified the signature of the content that `hash` tells, which must then be
    /// given. It is kept with the image, also with one that is there already. With it,
    /// `images.kernel_mounts = "signed"` lets the host's kernel read the file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<ImageVerification>,
}

/// By what an image's content was found to be what its owner signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageVerification {
    /// Id of the certificate that the content is signed with.
    pub certificate: String,
    /// Ids of the trusted certificates, of which one or more vouched for that
    /// certificate; empty where it was not asked for.
    #[serde(default)]
    pub trusted_certificates: Vec<String>,
}

/// Where an image's content is read from.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// A file on this host, absolute path.
    File {
        /// Absolute path of a regular file.
        #[schema(value_type = String)]
        path: PathBuf,
    },
    /// Glance's endpoint, e.g. `https://cloud.example:9292`; the image is
    /// `GET {endpoint}/v2/images/{id}/file`, with the id of the request's path.
    Glance {
        /// The image endpoint of the service catalogue. Absent, with the token: of
        /// the catalogue that the service's own credentials show.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// Keystone token of the user on whose behalf it is read. Never kept, never logged.
        /// Absent: the service's own credentials, of its configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Nova's own token: with it, Glance takes the user's even when that
        /// expires on the way. Never kept, never logged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service_token: Option<String>,
    },
}

impl std::fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageSource::File { path } => f.debug_struct("File").field("path", path).finish(),
            ImageSource::Glance { endpoint, .. } => {
                f.debug_struct("Glance").field("endpoint", endpoint).finish_non_exhaustive()
            }
        }
    }
}

/// Body of the snapshot action.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Where the image's content goes.
    pub destination: ImageDestination,
    /// What the content is.
    #[serde(default)]
    pub format: SnapshotFormat,
}

/// What a snapshot's content is. Archives are compressed with zstd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotFormat {
    /// What `docker save` writes: the base image's layers and, last, the
    /// difference. It says how it starts, and hosts that have the base unpack
    /// the last layer only.
    #[default]
    DockerArchive,
    /// The root file system in one tarball, nothing deleted left in it. Only
    /// for instances that start by their own init.
    RootfsTar,
    /// A disk of the same layout as the base image's, in QEMU's format
    /// and compressed. Only for instances of disk images.
    Qcow2,
}

/// Where an image's content is written.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageDestination {
    /// `PUT {endpoint}/v2/images/{image_id}/file`. The image's record must be
    /// there, with its formats and without content.
    Glance {
        /// The image endpoint of the service catalogue. Absent, with the token: of
        /// the catalogue that the service's own credentials show.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// Keystone token of the user on whose behalf it is written. Never kept, never logged.
        /// Absent: the service's own credentials, of its configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Nova's own token: with it, Glance takes the user's even when that
        /// expires on the way. Never kept, never logged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service_token: Option<String>,
        /// Glance's id of the image.
        image_id: Uuid,
    },
}

impl std::fmt::Debug for ImageDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ImageDestination::Glance { endpoint, image_id, .. } = self;
        f.debug_struct("Glance")
            .field("endpoint", endpoint)
            .field("image_id", image_id)
            .finish_non_exhaustive()
    }
}

/// A multihash as Glance keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageHash {
    /// `sha512`, `sha384` or `sha256`.
    pub algorithm: String,
    /// Lower-case hexadecimal.
    pub value: String,
}

/// What the content was recognised as. Never taken from a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// `docker save`.
    DockerArchive,
    /// An OCI image layout in a tar archive.
    OciArchive,
    /// A root file system in a tar archive.
    RootfsTar,
    /// A disk in QEMU's format.
    Qcow2,
    /// A disk byte by byte, or a file system without partitions.
    Raw,
    /// A disk in VMware's format.
    Vmdk,
    /// A disk in Virtual PC's format.
    Vhd,
    /// A disk in Hyper-V's format.
    Vhdx,
    /// A disk in VirtualBox's format.
    Vdi,
}

/// An image in this host's store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Glance's id.
    pub id: Uuid,
    /// The image's name, for people.
    pub name: String,
    /// What the content was recognised as.
    pub format: ImageFormat,
    /// Bytes of the content as imported.
    pub size: u64,
    /// SHA-512 of the content as imported, the hash Glance uses by default.
    pub hash: ImageHash,
    /// Addresses of the layers, lowest first: `sha256:…` of the uncompressed tar, or, for that of a
    /// disk image, made from the content's hash.
    pub layers: Vec<String>,
    /// Bytes that the layers' files hold when unpacked, shared layers counted.
    pub unpacked_size: u64,
    /// How it starts.
    pub config: ImageConfig,
    /// Of a disk image: what is kept to make such a disk again. Images that an
    /// older version imported have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ImageDisk>,
    /// The verifications of its content's signature that whoever imported it told of.
    /// Nothing here: the content is not known to be signed.
    #[serde(default)]
    pub verifications: Vec<ImageVerification>,
    /// When it was imported.
    pub created_at: DateTime<Utc>,
    /// When it was imported or, if that was later, the last instance that
    /// stood on it went: its age once it has no users.
    #[serde(default = "Utc::now")]
    pub last_used_at: DateTime<Utc>,
    /// Instances whose root file system stands on it.
    #[serde(default)]
    pub users: Vec<Uuid>,
}

/// What is kept of a disk image besides its root file system: partition
/// table, boot code and other partitions, for snapshots that are disks again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageDisk {
    /// Bytes of the disk; 0 where nothing is kept.
    pub size: u64,
    /// Bytes that this takes in the store.
    pub stored: u64,
    /// Why nothing is kept; such an instance's snapshots are archives only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// How an image starts: the OCI image configuration's part that berth obeys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageConfig {
    /// GOARCH-style name, e.g. `amd64`; empty when the image does not say.
    #[serde(default)]
    pub architecture: String,
    /// OCI `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// OCI `Cmd`.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// OCI `Env`, each `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// OCI `User`: `user`, `uid`, `user:group` or `uid:gid`.
    #[serde(default)]
    pub user: String,
    /// OCI `WorkingDir`.
    #[serde(default)]
    pub working_dir: String,
    /// OCI `StopSignal`, e.g. `SIGTERM` or `SIGRTMIN+3`.
    #[serde(default)]
    pub stop_signal: String,
    /// OCI `ExposedPorts`, e.g. `80/tcp`: what its author says. No port is opened or closed by it.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    /// The init program that boots where the image names no command, if it has one.
    #[serde(default)]
    pub init: Option<InitKind>,
    /// All init programs in the image, the one that boots first.
    #[serde(default)]
    pub inits: Vec<InitProgram>,
}

/// An init program of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InitProgram {
    /// The words that start it: its path, and of BusyBox's program `init` besides.
    pub command: Vec<String>,
    /// What it is.
    pub kind: InitKind,
}

/// A program of an image that only watches over an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SupervisorProgram {
    /// The words that start it.
    pub command: Vec<String>,
    /// What it is.
    pub kind: Supervisor,
}

/// A program that watches over an application, recognised from the root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Supervisor {
    /// tini.
    Tini,
    /// dumb-init.
    DumbInit,
    /// catatonit.
    Catatonit,
    /// s6-svscan, or s6-overlay.
    S6,
}

/// Whom an instance's process runs as, resolved from the image's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessUser {
    /// User id inside the instance.
    pub uid: u32,
    /// Group id inside the instance.
    pub gid: u32,
    /// Further groups, ascending.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` when the image does not say.
    pub home: String,
}

/// An init program, recognised from the root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InitKind {
    /// systemd.
    Systemd,
    /// BusyBox init.
    Busybox,
    /// OpenRC's own init.
    Openrc,
    /// System V init.
    Sysvinit,
    /// runit.
    Runit,
    /// s6-linux-init, or a script that starts s6-svscan.
    S6,
    /// Dinit.
    Dinit,
    /// Finit.
    Finit,
    /// Something executable at `/sbin/init` that is none of the others.
    Other,
}

//! The values that travel: request and answer bodies, durable records, events.
//!
//! Names are Nova's where Nova has one, then OCI's, then Linux's. Every struct
//! that a client sends refuses unknown fields, so that a misspelt key is an
//! error and not a silent default. Units are in the field's name or its doc.

mod event;
mod flavor;
mod host;
mod image;
mod inspection;
mod instance;
mod migration;
mod operation;
mod problem;
mod remote_console;
mod stats;
mod vif;
mod volume;

pub use event::{Event, EventKind};
pub use flavor::{ExtraSpecs, Flavor};
pub use host::{Capabilities, Check, CheckStatus, HostInfo, HostStats, Inventory, RuntimeInfo};
pub use image::{
    Image, ImageConfig, ImageDestination, ImageDisk, ImageFormat, ImageHash, ImageImport,
    ImageSource, ImageVerification, InitKind, InitProgram, ProcessUser, Snapshot, SnapshotFormat,
    Supervisor, SupervisorProgram,
};
pub use inspection::{
    DiskInspection, DiskMount, DiskPartition, ImageCompression, ImageInspect, ImageInspection,
    ImageRefusal, ImageRole, LayerInspection, PlaceReason,
};
pub use instance::{
    Definition, Dns, ExitStatus, InjectedFile, Instance, InstanceCreate, PowerState, Reboot,
    RebootType, Rescue, Resize, SetPassword, Stop, TaskState, UnconfirmedResize,
};
pub use migration::{
    Incoming, IncomingEnd, IncomingFile, IncomingInstance, IncomingOutcome, InstanceMigration,
    Migrate, MigrationState, RevertMigration,
};
pub use operation::{Operation, OperationBytes, OperationStatus};
pub use problem::Problem;
pub use remote_console::{ConsoleProtocol, RemoteConsole, RemoteConsoleRequest};
pub use stats::{
    BlockStats, CpuStats, InstanceStats, InterfaceStats, MemoryStats, PidsStats, PressureStats,
};
pub use vif::{Route, Vif};
pub use volume::{Volume, VolumeAttach, VolumeSource, VolumeStatus};

//! What the API needs of the instance manager, and nothing more.
//!
//! Object-safe, so that the API is tested against an in-memory stand-in
//! ([`super::fake`]) without root. Every call may block: handlers make them on
//! blocking threads. Work that takes long comes back as an [`OperationHandle`].

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use uuid::Uuid;

use crate::fault::Result;
pub use crate::instance::action::{Action, Created, ExecRequest, RequestContext};
use crate::instance::Manager;
use crate::instance::event::EventSubscription;
use crate::instance::operation::OperationHandle;
use crate::types::{
    Check, HostInfo, HostStats, Image, ImageImport, Instance, InstanceCreate, InstanceStats,
    Operation,
};

/// Changes a terminal's size: columns, then rows.
pub type ResizeConsole = Box<dyn Fn(u16, u16) -> Result<()> + Send + Sync>;

/// A connection to an instance's console.
pub struct Console {
    /// The console's bytes, both ways.
    pub stream: UnixStream,
    /// Changes the console's size.
    pub resize: ResizeConsole,
}

/// The instance manager, as the API sees it.
pub trait Backend: Send + Sync + 'static {
    /// Makes an instance; the same request again is success, another one `instance-exists`.
    fn create(&self, context: RequestContext, id: Uuid, request: InstanceCreate)
    -> Result<Created>;
    /// Does something to an instance.
    fn action(
        &self,
        context: RequestContext,
        id: Uuid,
        action: Action,
    ) -> Result<Arc<OperationHandle>>;
    /// An instance as it is.
    fn instance(&self, id: Uuid) -> Result<Instance>;
    /// All instances, in the order of their ids.
    fn instances(&self) -> Vec<Instance>;
    /// What an instance uses now.
    fn stats(&self, id: Uuid) -> Result<InstanceStats>;

    /// The last `length` bytes that the console's log keeps; all of them without `length`.
    fn console_output(&self, id: Uuid, length: Option<u64>) -> Result<Vec<u8>>;
    /// Connects to the console of a running instance.
    fn console_attach(&self, id: Uuid) -> Result<Console>;
    /// The command that, run on the host, runs the request inside the instance.
    fn exec_command(&self, id: Uuid, request: ExecRequest) -> Result<Command>;

    /// Has an image in the store; joins an import under way.
    fn import_image(
        &self,
        context: RequestContext,
        id: Uuid,
        request: ImageImport,
    ) -> Result<Arc<OperationHandle>>;
    /// All images, in the order of their ids.
    fn images(&self) -> Vec<Image>;
    /// An image.
    fn image(&self, id: Uuid) -> Result<Image>;
    /// Removes an image; `image-in-use` while instances stand on it.
    fn delete_image(&self, id: Uuid) -> Result<()>;

    /// An operation, to read or to await.
    fn operation(&self, id: Uuid) -> Result<Arc<OperationHandle>>;
    /// The operations that are remembered, oldest first.
    fn operations(&self) -> Vec<Operation>;
    /// Those that have not ended: a stop of the service waits for them.
    fn unfinished_operations(&self) -> Vec<Arc<OperationHandle>>;
    /// The events after `sequence`; only those to come without it.
    fn events_after(&self, sequence: Option<u64>) -> Result<EventSubscription>;

    /// The host and the service on it.
    fn host_info(&self) -> Result<HostInfo>;
    /// What the host uses now.
    fn host_stats(&self) -> Result<HostStats>;
    /// The probes' outcomes.
    fn checks(&self) -> Vec<Check>;
}

impl Backend for Manager {
    fn create(
        &self,
        context: RequestContext,
        id: Uuid,
        request: InstanceCreate,
    ) -> Result<Created> {
        Manager::create(self, context, id, request)
    }
    fn action(
        &self,
        context: RequestContext,
        id: Uuid,
        action: Action,
    ) -> Result<Arc<OperationHandle>> {
        Manager::action(self, context, id, action)
    }
    fn instance(&self, id: Uuid) -> Result<Instance> {
        Manager::instance(self, id)
    }
    fn instances(&self) -> Vec<Instance> {
        Manager::instances(self)
    }
    fn stats(&self, id: Uuid) -> Result<InstanceStats> {
        Manager::stats(self, id)
    }
    fn console_output(&self, id: Uuid, length: Option<u64>) -> Result<Vec<u8>> {
        Manager::console_output(self, id, length)
    }
    fn console_attach(&self, id: Uuid) -> Result<Console> {
        let (stream, monitor) = Manager::console_attach(self, id)?;
        Ok(Console { stream, resize: Box::new(move |columns, rows| monitor.resize(columns, rows)) })
    }
    fn exec_command(&self, id: Uuid, request: ExecRequest) -> Result<Command> {
        Manager::exec_command(self, id, &request)
    }
    fn import_image(
        &self,
        context: RequestContext,
        id: Uuid,
        request: ImageImport,
    ) -> Result<Arc<OperationHandle>> {
        Manager::import_image(self, context, id, request)
    }
    fn images(&self) -> Vec<Image> {
        Manager::images(self)
    }
    fn image(&self, id: Uuid) -> Result<Image> {
        Manager::image(self, id)
    }
    fn delete_image(&self, id: Uuid) -> Result<()> {
        Manager::delete_image(self, id)
    }
    fn operation(&self, id: Uuid) -> Result<Arc<OperationHandle>> {
        Manager::operation(self, id)
    }
    fn operations(&self) -> Vec<Operation> {
        Manager::operations(self)
    }
    fn unfinished_operations(&self) -> Vec<Arc<OperationHandle>> {
        Manager::unfinished_operations(self)
    }
    fn events_after(&self, sequence: Option<u64>) -> Result<EventSubscription> {
        Manager::events_after(self, sequence)
    }
    fn host_info(&self) -> Result<HostInfo> {
        Manager::host_info(self)
    }
    fn host_stats(&self) -> Result<HostStats> {
        Manager::host_stats(self)
    }
    fn checks(&self) -> Vec<Check> {
        Manager::checks(self)
    }
}

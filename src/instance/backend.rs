//! What the manager is to the layers above, and nothing more.
//!
//! Object-safe, so that the API is tested against an in-memory stand-in
//! without root. Every call may block: handlers make them on blocking threads.
//! Work that takes long comes back as an [`OperationHandle`].

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use tokio::sync::oneshot;
use uuid::Uuid;

pub use super::action::{Action, Created, ExecRequest, RequestContext};
use super::event::EventSubscription;
use super::operation::OperationHandle;
use crate::fault::{OrFault, Result};
use crate::migration::receive::Chunk;
use crate::types::{
    Check, HostInfo, HostStats, Image, ImageImport, ImageInspect, ImageInspection, Incoming,
    IncomingFile, IncomingInstance, IncomingOutcome, Instance, InstanceCreate, InstanceStats,
    Operation,
};

/// Changes a terminal's size: columns, then rows.
pub type ResizeConsole = Box<dyn Fn(u16, u16) -> Result<()> + Send + Sync>;

/// An inspection under way; an error means that it was given up.
pub type Inspecting = oneshot::Receiver<Result<ImageInspection>>;

/// A connection to an instance's console.
pub struct Console {
    /// The console's bytes, both ways.
    pub stream: UnixStream,
    /// Changes the console's size.
    pub resize: ResizeConsole,
}

impl Console {
    /// The bytes as an asynchronous stream, and the size.
    pub fn asynchronous(self) -> Result<(tokio::net::UnixStream, ResizeConsole)> {
        let doing = "preparing the console's socket";
        self.stream.set_nonblocking(true).or_fault(doing)?;
        Ok((tokio::net::UnixStream::from_std(self.stream).or_fault(doing)?, self.resize))
    }
}

/// The instance manager, as the layers above see it.
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
    /// Says what an image would become, without having it in the store.
    fn inspect_image(&self, context: RequestContext, request: ImageInspect) -> Result<Inspecting>;
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

    /// Makes ready for an instance that another host's service sends.
    fn begin_incoming(&self, move_id: Uuid, wanted: IncomingInstance) -> Result<Incoming>;
    /// Takes the archive of a layer of its image.
    fn incoming_layer(&self, move_id: Uuid, digest: &str, archive: &mut dyn Read) -> Result<()>;
    /// Takes a part of a file of it.
    fn incoming_chunk(&self, move_id: Uuid, file: IncomingFile, chunk: Chunk) -> Result<()>;
    /// Makes it this host's. What it was repeated for is done already.
    fn commit_incoming(&self, move_id: Uuid) -> Result<()>;
    /// Notes that the other service knows it.
    fn acknowledge_incoming(&self, move_id: Uuid) -> Result<()>;
    /// Ends a move that was not committed. With `revert`, also gives an instance back that
    /// was not started since.
    fn end_incoming(
        &self,
        context: RequestContext,
        move_id: Uuid,
        revert: bool,
    ) -> Result<IncomingOutcome>;

    /// The host and the service on it.
    fn host_info(&self) -> Result<HostInfo>;
    /// What the host uses now.
    fn host_stats(&self) -> Result<HostStats>;
    /// The probes' outcomes.
    fn checks(&self) -> Vec<Check>;
}

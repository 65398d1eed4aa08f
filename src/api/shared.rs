//! What the handlers share.

use std::sync::Arc;

use actix_web::web;
use tokio::sync::watch;

use super::surface::Surface;
use crate::instance::backend::Backend;
use crate::remote_console::RemoteConsoles;

/// The API over a backend.
pub struct Api {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) remote_consoles: Arc<RemoteConsoles>,
    pub(super) surface: Surface,
    pub(super) document: web::Bytes,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Api {
    /// Whether the service is stopping.
    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Ends when the service stops.
    pub(super) async fn stopped(&self) {
        // An error means that the server is gone, which is a stop as well.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
}

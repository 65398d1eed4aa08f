//! The HTTP API, `/v1`.
//!
//! * [`gate`] is what every request passes: its id, the log, the metrics, what
//!   the description allows, panics.
//! * [`extract`] reads requests, [`answer`] writes answers and problems.
//! * One file for each kind of resource holds its handlers.
//! * [`openapi`] is the description, generated from the handlers; [`surface`]
//!   lets the gate refuse what it does not describe.
//!
//! Routes are added through `service(…)` only: others would be served without
//! being described.

mod answer;
mod console;
mod events;
mod exec;
mod extract;
mod gate;
mod host;
mod images;
mod instances;
mod interfaces;
mod openapi;
mod operations;
mod service;
mod socket;
mod surface;

use std::sync::Arc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::{App, web};
use tokio::sync::watch;
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;

use self::surface::Surface;
use crate::instance::backend::Backend;

pub use self::console::{Size, TerminalMessage};
pub use self::exec::{ExecMessage, STDERR_TAG, STDOUT_TAG};
pub use self::gate::{Peer, REQUEST_ID_HEADER};
pub use self::host::CheckList;
pub use self::images::ImageList;
pub use self::instances::{InstanceList, StatsList};
pub use self::interfaces::InterfaceList;
pub use self::openapi::{document, document_json};
pub use self::operations::OperationList;

/// What the handlers share.
pub struct Api {
    backend: Arc<dyn Backend>,
    surface: Surface,
    document: web::Bytes,
    stopping: watch::Receiver<bool>,
}

impl Api {
    /// An API over a backend. Once `stopping` is true, changes are refused
    /// and streams end.
    pub fn new(backend: Arc<dyn Backend>, stopping: watch::Receiver<bool>) -> Arc<Api> {
        let document = openapi::document();
        Arc::new(Api {
            backend,
            surface: Surface::new(&document),
            document: openapi::json(&document).into(),
            stopping,
        })
    }

    /// Whether the service is stopping.
    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Ends when the service stops.
    async fn stopped(&self) {
        // An error means that the server is gone, which is a stop as well.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
}

/// The application that a server's worker runs.
pub fn app(
    api: Arc<Api>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    App::new()
        .app_data(web::Data::from(api))
        .into_utoipa_app()
        .configure(routes)
        .default_service(web::to(gate::no_such_path))
        .into_app()
        .wrap(from_fn(gate::gate))
}

fn routes(config: &mut ServiceConfig<'_>) {
    config
        .configure(host::routes)
        .configure(instances::routes)
        .configure(interfaces::routes)
        .configure(console::routes)
        .configure(exec::routes)
        .configure(images::routes)
        .configure(operations::routes)
        .configure(events::routes)
        .configure(service::routes);
}

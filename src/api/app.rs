//! The application: routes, what is around them, and what they share.

use std::sync::Arc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::{App, web};
use tokio::sync::watch;
use utoipa_actix_web::AppExt;

use super::routes::routes;
use super::shared::Api;
use super::surface::Surface;
use super::{gate, openapi};
use crate::instance::backend::Backend;
use crate::remote_console::RemoteConsoles;

impl Api {
    /// An API over a backend. Once `stopping` is true, changes are refused
    /// and streams end.
    pub fn new(
        backend: Arc<dyn Backend>,
        remote_consoles: Arc<RemoteConsoles>,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Api> {
        let document = openapi::document();
        Arc::new(Api {
            backend,
            remote_consoles,
            surface: Surface::new(&document),
            document: openapi::json(&document).into(),
            stopping,
        })
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

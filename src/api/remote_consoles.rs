//! Ports for Nova's console proxies.

use actix_web::{HttpResponse, delete, put, web};
use utoipa_actix_web::service_config::ServiceConfig;

use super::extract::{Body, Id, Nothing, OptionalBody, Protocol};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::Result;
use crate::types::{ConsoleProtocol, RemoteConsole, RemoteConsoleRequest};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(open_remote_console).service(close_remote_console);
}

/// Opens a TCP port to an instance's console, for nova-serialproxy or nova-novncproxy. It is open
/// until the instance is deleted, also while that does not run, and again after the service was
/// away. The same again gives the same port; another address or range moves it.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("protocol" = ConsoleProtocol, Path, description = "How the console is spoken to")
    ),
    request_body = RemoteConsoleRequest,
    responses((status = 200, description = "The port is open", body = RemoteConsole)),
    extensions(("x-faults" = json!([
        InstanceNotFound, PayloadTooLarge, UnsupportedMediaType, ServiceUnavailable,
        ResourcesExhausted
    ])))
)]
#[put("/v1/instances/{id}/remote-consoles/{protocol}")]
async fn open_remote_console(
    api: web::Data<Api>,
    Id(id): Id,
    Protocol(protocol): Protocol,
    Body(request): Body<RemoteConsoleRequest>,
) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok().json(api.remote_consoles.open(id, protocol, request).await?))
}

/// Closes such a port and ends its connections; that there is none is success.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("protocol" = ConsoleProtocol, Path, description = "How the console is spoken to")
    ),
    responses((status = 204, description = "There is no such port")),
    extensions(("x-faults" = json!([ServiceUnavailable])))
)]
#[delete("/v1/instances/{id}/remote-consoles/{protocol}")]
async fn close_remote_console(
    api: web::Data<Api>,
    Id(id): Id,
    Protocol(protocol): Protocol,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    api.remote_consoles.close(id, protocol).await?;
    Ok(HttpResponse::NoContent().finish())
}

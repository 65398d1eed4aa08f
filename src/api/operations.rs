//! Operations: work under way or lately ended.

use std::time::Duration;

use actix_web::{HttpResponse, delete, get, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::{blocking, wait_at_most};
use super::extract::{Id, Query};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, Result};
use crate::types::Operation;

/// Longest wait for an operation, seconds.
const LONGEST_WAIT: u64 = 300;

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(list_operations).service(get_operation).service(abort_operation);
}

/// Operations of this host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// Oldest first.
    pub operations: Vec<Operation>,
}

/// The operations under way and the latest that have ended.
#[utoipa::path(
    tag = "operations",
    responses((status = 200, description = "The operations", body = OperationList)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/operations")]
async fn list_operations(api: web::Data<Api>) -> Result<HttpResponse> {
    let operations = blocking(&api, |backend| Ok(backend.operations())).await?;
    Ok(HttpResponse::Ok().json(OperationList { operations }))
}

/// Where an operation stands; with `wait`, its end is awaited for so long.
#[utoipa::path(
    tag = "operations",
    params(
        ("id" = Uuid, Path, description = "The operation's id"),
        ("wait" = Option<u16>, Query, minimum = 0, maximum = 300,
            description = "Seconds to wait for its end; 0, the default, does not wait")
    ),
    responses((status = 200, description = "The operation", body = Operation)),
    extensions(("x-faults" = json!([OperationNotFound])))
)]
#[get("/v1/operations/{id}")]
async fn get_operation(api: web::Data<Api>, Id(id): Id, query: Query) -> Result<HttpResponse> {
    let wait = query.one::<u64>("wait", "a number of seconds, 0 to 300")?.unwrap_or(0);
    if wait > LONGEST_WAIT {
        return Err(Fault::invalid("wait", "must be 0 to 300 seconds; ask again after that"));
    }
    let handle = blocking(&api, move |backend| backend.operation(id)).await?;
    let ended = tokio::select! {
        ended = wait_at_most(&handle, Duration::from_secs(wait)) => ended,
        // A reader must not hold up a stop of the service.
        () = api.stopped() => None,
    };
    Ok(HttpResponse::Ok().json(ended.unwrap_or_else(|| handle.snapshot())))
}

/// Aborts the move of an instance to another host, which stays here. It is possible until
/// the other host was told to take it; of an operation that has ended there is nothing to abort.
/// The operation ends soon after, as failed.
#[utoipa::path(
    tag = "operations",
    params(("id" = Uuid, Path, description = "The operation's id")),
    responses((status = 204, description = "It ends, or has ended")),
    extensions(("x-faults" = json!([OperationNotFound, InstanceInvalidState])))
)]
#[delete("/v1/operations/{id}")]
async fn abort_operation(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    blocking(&api, move |backend| backend.operation(id)?.abort()).await?;
    Ok(HttpResponse::NoContent().finish())
}

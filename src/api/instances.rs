//! Instances: made, read, measured. What is done to them: [`super::verbs`].

use actix_web::http::header::LOCATION;
use actix_web::{HttpResponse, get, put, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::{blocking, wait_as_preferred};
use super::extract::{Body, CREATE_LIMIT, Id, Prefer, Query};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, Result};
use crate::instance::backend::{Backend, RequestContext};
use crate::types::{Instance, InstanceCreate, InstanceStats, Operation, PowerState};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(list_instances)
        .service(create_instance)
        .service(get_instance)
        .service(get_stats)
        .service(list_stats);
}

/// Instances of this host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceList {
    /// In the order of their ids.
    pub instances: Vec<Instance>,
}

/// Statistics of the instances that run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatsList {
    /// In the order of the instances' ids.
    pub stats: Vec<InstanceStats>,
}

/// All instances of this host.
#[utoipa::path(
    tag = "instances",
    params(("power_state" = Option<PowerState>, Query, description = "Only those in this state")),
    responses((status = 200, description = "The instances", body = InstanceList)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/instances")]
async fn list_instances(api: web::Data<Api>, query: Query) -> Result<HttpResponse> {
    let wanted = query.one::<String>("power_state", "a power state")?;
    let wanted = wanted.as_deref().map(power_state).transpose()?;
    let body = blocking(&api, move |backend| {
        let mut instances = backend.instances();
        instances.retain(|i| wanted.is_none_or(|wanted| i.power_state == wanted));
        // Here and not on the worker: hundreds of instances take milliseconds.
        serde_json::to_vec(&InstanceList { instances })
            .map_err(|e| Fault::internal("writing the instances", e))
    })
    .await?;
    Ok(HttpResponse::Ok().content_type("application/json").body(body))
}

fn power_state(text: &str) -> Result<PowerState> {
    serde_json::from_value(text.into()).map_err(|_| {
        Fault::invalid(
            "power_state",
            format!(
                "{text:?} is none of NOSTATE, RUNNING, PAUSED, SHUTDOWN, CRASHED and SUSPENDED"
            ),
        )
    })
}

/// Makes an instance without starting it. The same body again is the same
/// instance; another body is a conflict.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body = InstanceCreate,
    responses(
        (status = 200, description = "It was made before, from the same body", body = Instance),
        (status = 201, description = "It was made", body = Instance,
            headers(("Location" = String, description = "Where the instance is"))),
        (status = 202, description = "It is being made", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        ImageNotFound, InstanceExists, InstanceInvalidState, InterfaceExists, PayloadTooLarge,
        UnsupportedMediaType, FlavorDiskTooSmall, FlavorMemoryTooSmall, RuntimeFailed,
        NetworkFailed, HostUnsupported, ServiceUnavailable, Timeout, ResourcesExhausted
    ])))
)]
#[put("/v1/instances/{id}")]
async fn create_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(request): Body<InstanceCreate, CREATE_LIMIT>,
) -> Result<HttpResponse> {
    let created = blocking(&api, move |backend| backend.create(context, id, request)).await?;
    if let Some(answer) = wait_as_preferred(&created.operation, prefer).await? {
        return Ok(answer);
    }
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    Ok(if created.existed {
        HttpResponse::Ok().json(instance)
    } else {
        HttpResponse::Created()
            .insert_header((LOCATION, format!("/v1/instances/{id}")))
            .json(instance)
    })
}

/// An instance as it is.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses((status = 200, description = "The instance", body = Instance)),
    extensions(("x-faults" = json!([InstanceNotFound])))
)]
#[get("/v1/instances/{id}")]
async fn get_instance(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(instance))
}

/// What an instance uses now.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses((status = 200, description = "Its statistics", body = InstanceStats)),
    extensions(("x-faults" = json!([InstanceNotFound, InstanceInvalidState])))
)]
#[get("/v1/instances/{id}/stats")]
async fn get_stats(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let stats = blocking(&api, move |backend| backend.stats(id)).await?;
    Ok(HttpResponse::Ok().json(stats))
}

/// What every instance that runs or is frozen uses now.
#[utoipa::path(
    tag = "instances",
    responses((status = 200, description = "Their statistics", body = StatsList)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/stats")]
async fn list_stats(api: web::Data<Api>) -> Result<HttpResponse> {
    let stats = blocking(&api, |backend| Ok(stats_of_all(backend))).await?;
    Ok(HttpResponse::Ok().json(StatsList { stats }))
}

fn stats_of_all(backend: &dyn Backend) -> Vec<InstanceStats> {
    let active = |i: &Instance| {
        !matches!(i.power_state, PowerState::NoState | PowerState::Shutdown | PowerState::Crashed)
    };
    let active = backend.instances().into_iter().filter(active);
    active
        .filter_map(|instance| {
            // One may have stopped since the list was made.
            let stats = backend.stats(instance.id);
            stats
                .inspect_err(|fault| tracing::debug!(id = %instance.id, fault = %fault.in_full(), "no statistics"))
                .ok()
        })
        .collect()
}

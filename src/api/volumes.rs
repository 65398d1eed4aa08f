//! Volumes of an instance: attached, detached and extended, also while it runs.

use actix_web::{HttpResponse, delete, get, post, put, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::answer::{blocking, wait_as_preferred};
use super::extract::{Body, Id, Nothing, OptionalBody, Prefer, Query, VolumeId};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, FaultKind, Result};
use crate::instance::backend::{Action, RequestContext};
use crate::types::{Instance, Operation, Volume, VolumeAttach};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(list_volumes)
        .service(attach_volume)
        .service(detach_volume)
        .service(extend_volume);
}

/// The volumes of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// In the order in which they were attached.
    pub volumes: Vec<Volume>,
}

/// The volumes of an instance.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses((status = 200, description = "Its volumes", body = VolumeList)),
    extensions(("x-faults" = json!([InstanceNotFound])))
)]
#[get("/v1/instances/{id}/volumes")]
async fn list_volumes(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(VolumeList { volumes: instance.volumes }))
}

/// Gives an instance a volume: at once if it runs, else at its next start. The same body again
/// changes nothing; while it is stopped, another source takes the place of the one it had.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("volume_id" = Uuid, Path, description = "Cinder's id of the volume")
    ),
    request_body = VolumeAttach,
    responses(
        (status = 200, description = "The instance had it before", body = Volume),
        (status = 201, description = "The instance has it", body = Volume),
        (status = 202, description = "It is being attached", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        InstanceNotFound, InstanceInvalidState, VolumeExists, VolumeBusy, PayloadTooLarge,
        UnsupportedMediaType, HostUnsupported, ServiceUnavailable, Timeout, ResourcesExhausted
    ])))
)]
#[put("/v1/instances/{id}/volumes/{volume_id}")]
async fn attach_volume(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    VolumeId(volume_id): VolumeId,
    prefer: Prefer,
    Body(wanted): Body<VolumeAttach>,
) -> Result<HttpResponse> {
    let (existed, operation) = blocking(&api, move |backend| {
        let existed = find(backend.instance(id)?, volume_id).is_ok();
        let action = Action::AttachVolume(volume_id, wanted);
        Ok((existed, backend.action(context, id, action)?))
    })
    .await?;
    if let Some(answer) = wait_as_preferred(&operation, prefer).await? {
        return Ok(answer);
    }
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    let mut answer = if existed { HttpResponse::Ok() } else { HttpResponse::Created() };
    Ok(answer.json(find(instance, volume_id)?))
}

/// Takes a volume away from an instance: nothing inside can read or write it any more. One that
/// programs inside have open is refused, unless it is taken by force.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("volume_id" = Uuid, Path, description = "Cinder's id of the volume"),
        ("force" = Option<bool>, Query,
            description = "Whether it is taken from programs that have it open, which are killed"),
    ),
    responses(
        (status = 204, description = "The instance no longer has it"),
        (status = 202, description = "It is being detached", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        InstanceNotFound, VolumeNotFound, InstanceInvalidState, VolumeBusy, HostUnsupported,
        ServiceUnavailable, Timeout
    ])))
)]
#[delete("/v1/instances/{id}/volumes/{volume_id}")]
async fn detach_volume(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    VolumeId(volume_id): VolumeId,
    query: Query,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    let force = query.one("force", "true or false")?.unwrap_or(false);
    let action = Action::DetachVolume { id: volume_id, force };
    let operation = blocking(&api, move |backend| backend.action(context, id, action)).await?;
    let answer = wait_as_preferred(&operation, prefer).await?;
    Ok(answer.unwrap_or_else(|| HttpResponse::NoContent().finish()))
}

/// Has a volume be as large as what holds its blocks has become.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("volume_id" = Uuid, Path, description = "Cinder's id of the volume")
    ),
    responses(
        (status = 200, description = "It has its new size", body = Volume),
        (status = 202, description = "It is being extended", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        InstanceNotFound, VolumeNotFound, InstanceInvalidState, PayloadTooLarge,
        UnsupportedMediaType, HostUnsupported, ServiceUnavailable, Timeout
    ])))
)]
#[post("/v1/instances/{id}/volumes/{volume_id}/extend")]
async fn extend_volume(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    VolumeId(volume_id): VolumeId,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    let action = Action::ExtendVolume(volume_id);
    let operation = blocking(&api, move |backend| backend.action(context, id, action)).await?;
    if let Some(answer) = wait_as_preferred(&operation, prefer).await? {
        return Ok(answer);
    }
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(find(instance, volume_id)?))
}

fn find(instance: Instance, volume_id: Uuid) -> Result<Volume> {
    let found = instance.volumes.into_iter().find(|volume| volume.id == volume_id);
    found.ok_or_else(|| {
        Fault::new(FaultKind::VolumeNotFound, format!("the instance has no volume {volume_id}"))
    })
}

//! Interfaces of an instance: attached and detached, also while it runs.

use actix_web::{HttpResponse, delete, get, put, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::answer::{blocking, wait_as_preferred};
use super::extract::{Body, Id, Nothing, OptionalBody, PortId, Prefer};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, FaultKind, Result};
use crate::instance::backend::{Action, RequestContext};
use crate::types::{Instance, Operation, Vif};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(list_interfaces).service(attach_interface).service(detach_interface);
}

/// The interfaces of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InterfaceList {
    /// In the order in which the instance has them.
    pub interfaces: Vec<Vif>,
}

/// The interfaces of an instance.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses((status = 200, description = "Its interfaces", body = InterfaceList)),
    extensions(("x-faults" = json!([InstanceNotFound])))
)]
#[get("/v1/instances/{id}/interfaces")]
async fn list_interfaces(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(InterfaceList { interfaces: instance.definition.vifs }))
}

/// Gives an instance an interface. The same body again changes nothing.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("port_id" = Uuid, Path, description = "Neutron's id of the port; the body's `id` too")
    ),
    request_body = Vif,
    responses(
        (status = 200, description = "The instance had it before", body = Vif),
        (status = 201, description = "The instance has it", body = Vif),
        (status = 202, description = "It is being attached", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        InstanceNotFound, InstanceInvalidState, InterfaceExists, PayloadTooLarge,
        UnsupportedMediaType, NetworkFailed, HostUnsupported, ServiceUnavailable, Timeout,
        ResourcesExhausted
    ])))
)]
#[put("/v1/instances/{id}/interfaces/{port_id}")]
async fn attach_interface(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    PortId(port_id): PortId,
    prefer: Prefer,
    Body(vif): Body<Vif>,
) -> Result<HttpResponse> {
    if vif.id != port_id {
        return Err(Fault::invalid("id", format!("must be the path's {port_id}, not {}", vif.id)));
    }
    let (existed, operation) = blocking(&api, move |backend| {
        let existed = find(&backend.instance(id)?, port_id).is_some();
        let operation = backend.action(context, id, Action::AttachInterface(vif))?;
        Ok((existed, operation))
    })
    .await?;
    if let Some(answer) = wait_as_preferred(&operation, prefer).await? {
        return Ok(answer);
    }
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    let vif = find(&instance, port_id).ok_or_else(|| {
        Fault::new(FaultKind::InterfaceNotFound, "the interface was detached in the meantime")
    })?;
    let mut answer = if existed { HttpResponse::Ok() } else { HttpResponse::Created() };
    Ok(answer.json(vif))
}

/// Takes an interface away from an instance.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("port_id" = Uuid, Path, description = "Neutron's id of the port")
    ),
    responses(
        (status = 204, description = "The instance no longer has it"),
        (status = 202, description = "It is being detached", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        InstanceNotFound, InterfaceNotFound, InstanceInvalidState, NetworkFailed,
        ServiceUnavailable, Timeout
    ])))
)]
#[delete("/v1/instances/{id}/interfaces/{port_id}")]
async fn detach_interface(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    PortId(port_id): PortId,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    let action = Action::DetachInterface(port_id);
    let operation = blocking(&api, move |backend| backend.action(context, id, action)).await?;
    let answer = wait_as_preferred(&operation, prefer).await?;
    Ok(answer.unwrap_or_else(|| HttpResponse::NoContent().finish()))
}

fn find(instance: &Instance, port_id: Uuid) -> Option<&Vif> {
    instance.definition.vifs.iter().find(|vif| vif.id == port_id)
}

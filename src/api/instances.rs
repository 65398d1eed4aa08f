//! Instances: made, read, acted upon, destroyed.

use actix_web::http::header::LOCATION;
use actix_web::{HttpResponse, delete, get, post, put, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::Api;
use super::answer::{blocking, settle};
use super::backend::{Action, Backend, RequestContext};
use super::extract::{Body, CREATE_LIMIT, Id, Nothing, OptionalBody, Prefer, Query};
use crate::fault::{Fault, Result};
use crate::types::{
    Instance, InstanceCreate, InstanceStats, Operation, PowerState, Reboot, Rescue, Resize,
    SetPassword, Snapshot, Stop,
};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(list_instances)
        .service(create_instance)
        .service(get_instance)
        .service(delete_instance)
        .service(start_instance)
        .service(stop_instance)
        .service(reboot_instance)
        .service(pause_instance)
        .service(unpause_instance)
        .service(suspend_instance)
        .service(resume_instance)
        .service(resize_instance)
        .service(confirm_resize)
        .service(revert_resize)
        .service(set_password)
        .service(quiesce_instance)
        .service(snapshot_instance)
        .service(unquiesce_instance)
        .service(rescue_instance)
        .service(unrescue_instance)
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
    responses((status = 200, description = "The instances", body = InstanceList))
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
    )
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
    if let Some(answer) = settle(&created.operation, prefer).await? {
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
    responses((status = 200, description = "The instance", body = Instance))
)]
#[get("/v1/instances/{id}")]
async fn get_instance(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let instance = blocking(&api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(instance))
}

/// Destroys an instance with its disks, whatever its state.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 202, description = "It is being destroyed", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[delete("/v1/instances/{id}")]
async fn delete_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    let operation =
        blocking(&api, move |backend| backend.action(context, id, Action::Delete)).await?;
    let answer = settle(&operation, prefer).await?;
    Ok(answer.unwrap_or_else(|| HttpResponse::NoContent().finish()))
}

/// Starts an instance. One that runs is left alone.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It runs", body = Instance),
        (status = 202, description = "It is being started", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/start")]
async fn start_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Start, prefer).await
}

/// Stops an instance: its init is asked, and killed when `timeout` is over.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body(content = Option<Stop>, description = "May be left out"),
    responses(
        (status = 200, description = "It no longer runs", body = Instance),
        (status = 202, description = "It is being stopped", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/stop")]
async fn stop_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    OptionalBody(stop): OptionalBody<Stop>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Stop(stop), prefer).await
}

/// Reboots an instance; one that does not run is started.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body = Reboot,
    responses(
        (status = 200, description = "It runs anew", body = Instance),
        (status = 202, description = "It is being rebooted", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/reboot")]
async fn reboot_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(reboot): Body<Reboot>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Reboot(reboot), prefer).await
}

/// Freezes an instance.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It is frozen", body = Instance),
        (status = 202, description = "It is being frozen", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/pause")]
async fn pause_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Pause, prefer).await
}

/// Thaws a paused instance.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It runs on", body = Instance),
        (status = 202, description = "It is being thawed", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/unpause")]
async fn unpause_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Unpause, prefer).await
}

/// Freezes an instance and gives its memory back as far as the host can.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It is suspended", body = Instance),
        (status = 202, description = "It is being suspended", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/suspend")]
async fn suspend_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Suspend, prefer).await
}

/// Thaws a suspended instance; one that was lost with the host's boot is started.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It runs on", body = Instance),
        (status = 202, description = "It is being resumed", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/resume")]
async fn resume_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Resume, prefer).await
}

/// Changes an instance's limits, also while it runs. Disks only grow. With
/// `keep` the instance is stopped, and what it was can be had back until
/// the resize is confirmed.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body = Resize,
    responses(
        (status = 200, description = "The limits hold", body = Instance),
        (status = 202, description = "The limits are being changed", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/resize")]
async fn resize_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(resize): Body<Resize>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Resize(resize), prefer).await
}

/// Confirms a resize: what was kept is dropped, whatever the instance's state.
/// Where nothing was kept there is nothing to do.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "Nothing is kept", body = Instance),
        (status = 202, description = "The resize is being confirmed", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/resize/confirm")]
async fn confirm_resize(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::ConfirmResize, prefer).await
}

/// Reverts a resize: the instance is ended, and has the flavor and the disks
/// that it had, without what was written since. It is not started. Where
/// nothing was kept there is nothing to do.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It is what it was", body = Instance),
        (status = 202, description = "The resize is being reverted", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/resize/revert")]
async fn revert_resize(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::RevertResize, prefer).await
}

/// Sets a user's password inside a running instance, by the programs of its
/// own image: `chpasswd`, else `passwd`.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body = SetPassword,
    responses(
        (status = 204, description = "The password is set"),
        (status = 202, description = "The password is being set", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/password")]
async fn set_password(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(wanted): Body<SetPassword>,
) -> Result<HttpResponse> {
    let action = Action::SetPassword(wanted);
    let operation = blocking(&api, move |backend| backend.action(context, id, action)).await?;
    let answer = settle(&operation, prefer).await?;
    Ok(answer.unwrap_or_else(|| HttpResponse::NoContent().finish()))
}

/// Freezes an instance's disks, so that what is on them is consistent. It
/// stays RUNNING, and whoever writes to a disk waits; a stop thaws them.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "Its disks are frozen", body = Instance),
        (status = 202, description = "Its disks are being frozen", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/quiesce")]
async fn quiesce_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Quiesce, prefer).await
}

/// Lets an instance write to its disks again.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "Its disks take changes", body = Instance),
        (status = 202, description = "Its disks are being thawed", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/unquiesce")]
async fn unquiesce_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Unquiesce, prefer).await
}

/// Makes an image of an instance's root file system and uploads it. Its disk
/// takes no change for a moment only, and everything that comes after the copy
/// leaves the instance alone; it may even be deleted meanwhile. Volumes, the
/// ephemeral disk, and what berth itself wrote into the instance are not in it.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body = Snapshot,
    responses(
        (status = 204, description = "The image has its content"),
        (status = 202, description = "The snapshot is being made", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/snapshot")]
async fn snapshot_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(wanted): Body<Snapshot>,
) -> Result<HttpResponse> {
    let action = Action::Snapshot(wanted);
    let operation = blocking(&api, move |backend| backend.action(context, id, action)).await?;
    let answer = settle(&operation, prefer).await?;
    Ok(answer.unwrap_or_else(|| HttpResponse::NoContent().finish()))
}

/// Boots a stopped instance from another image, for repair. The image gets a
/// disk of its own, the flavor's `root_gb` large, and all else that the
/// instance has. The instance's own root file system is at `/mnt/instance`
/// inside, writable, the ephemeral disk at `/mnt/ephemeral`. It stays rescued,
/// whatever is rebooted or stopped and started, until it is unrescued.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    request_body = Rescue,
    responses(
        (status = 200, description = "The rescue image runs", body = Instance),
        (status = 202, description = "It is being rescued", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/rescue")]
async fn rescue_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(wanted): Body<Rescue, CREATE_LIMIT>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Rescue(wanted), prefer).await
}

/// Ends a rescue at once, removes its disk, and boots the instance from its
/// own root file system. One that is not rescued is started.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses(
        (status = 200, description = "It runs", body = Instance),
        (status = 202, description = "It is being unrescued", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    )
)]
#[post("/v1/instances/{id}/unrescue")]
async fn unrescue_instance(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    act(&api, context, id, Action::Unrescue, prefer).await
}

async fn act(
    api: &Api,
    context: RequestContext,
    id: Uuid,
    action: Action,
    prefer: Prefer,
) -> Result<HttpResponse> {
    let operation = blocking(api, move |backend| backend.action(context, id, action)).await?;
    if let Some(answer) = settle(&operation, prefer).await? {
        return Ok(answer);
    }
    let instance = blocking(api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(instance))
}

/// What an instance uses now.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses((status = 200, description = "Its statistics", body = InstanceStats))
)]
#[get("/v1/instances/{id}/stats")]
async fn get_stats(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let stats = blocking(&api, move |backend| backend.stats(id)).await?;
    Ok(HttpResponse::Ok().json(stats))
}

/// What every instance that runs or is frozen uses now.
#[utoipa::path(
    tag = "instances",
    responses((status = 200, description = "Their statistics", body = StatsList))
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

//! The verbs: what is done to an instance, one row each.
//!
//! A row is the whole of a verb as far as the API goes: its description, path,
//! body, action, answers and faults. A handler, its description and its route
//! are made of it.

use actix_web::{HttpResponse, delete, post, web};
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::answer::{blocking, wait_as_preferred};
use super::extract::{Body, CREATE_LIMIT, Id, Nothing, OptionalBody, Prefer};
use super::shared::Api;
use crate::fault::FaultKind::{self, *};
use crate::fault::Result;
use crate::instance::backend::{Action, RequestContext};
use crate::types::{
    Instance, Migrate, Operation, Reboot, Rescue, Resize, RevertMigration, SetPassword, Snapshot,
    Stop,
};

/// Makes handlers and routes of rows. A verb that is done is answered with the
/// instance as it is then, or with nothing (204).
macro_rules! verbs {
    ($(
        $(#[$about:meta])*
        $method:ident $path:tt
        $name:ident($($body:tt)*) $(described as ($($content:tt)*))? {
            $action:expr;
            $status:tt $done:tt $($answer:ident)?,
            202 $under_way:tt,
            faults $faults:tt
        }
    )*) => {
        pub(super) fn routes(config: &mut ServiceConfig<'_>) {
            config$(.service($name))*;
        }

        $(
            $(#[$about])*
            #[utoipa::path(
                tag = "instances",
                params(("id" = Uuid, Path, description = "Nova's id of the instance")),
                $(request_body($($content)*),)?
                responses(
                    (status = $status, description = $done $(, body = $answer)?),
                    (status = 202, description = $under_way, body = Operation,
                        headers(("Location" = String, description = "Where the operation is"))),
                ),
                extensions(("x-faults" = json!($faults)))
            )]
            #[$method($path)]
            async fn $name(
                api: web::Data<Api>,
                context: RequestContext,
                Id(id): Id,
                prefer: Prefer,
                $($body)*,
            ) -> Result<HttpResponse> {
                act(&api, context, id, $action, prefer, $status).await
            }
        )*
    };
}

async fn act(
    api: &Api,
    context: RequestContext,
    id: Uuid,
    action: Action,
    prefer: Prefer,
    status: u16,
) -> Result<HttpResponse> {
    let operation = blocking(api, move |backend| backend.action(context, id, action)).await?;
    if let Some(answer) = wait_as_preferred(&operation, prefer).await? {
        return Ok(answer);
    }
    if status == 204 {
        return Ok(HttpResponse::NoContent().finish());
    }
    let instance = blocking(api, move |backend| backend.instance(id)).await?;
    Ok(HttpResponse::Ok().json(instance))
}

/// What most verbs can meet.
const CHANGE: &[FaultKind] = &[
    InstanceNotFound,
    InstanceInvalidState,
    InstanceUnsupported,
    PayloadTooLarge,
    UnsupportedMediaType,
    RuntimeFailed,
    NetworkFailed,
    HostUnsupported,
    ServiceUnavailable,
    Timeout,
    ResourcesExhausted,
];

verbs! {
    /// Destroys an instance with its disks, whatever its state.
    delete "/v1/instances/{id}"
    delete_instance(_: OptionalBody<Nothing>) {
        Action::Delete;
        204 "It is gone",
        202 "It is being destroyed",
        faults [InstanceNotFound, InstanceInvalidState, RuntimeFailed, ServiceUnavailable, Timeout]
    }

    /// Starts an instance. One that runs is left alone.
    post "/v1/instances/{id}/start"
    start_instance(_: OptionalBody<Nothing>) {
        Action::Start;
        200 "It runs" Instance,
        202 "It is being started",
        faults CHANGE
    }

    /// Stops an instance: its init is asked, and killed when `timeout` is over.
    post "/v1/instances/{id}/stop"
    stop_instance(OptionalBody(stop): OptionalBody<Stop>)
    described as (content = Option<Stop>, description = "May be left out") {
        Action::Stop(stop);
        200 "It no longer runs" Instance,
        202 "It is being stopped",
        faults CHANGE
    }

    /// Reboots an instance; one that does not run is started.
    post "/v1/instances/{id}/reboot"
    reboot_instance(Body(reboot): Body<Reboot>) described as (content = Reboot) {
        Action::Reboot(reboot);
        200 "It runs anew" Instance,
        202 "It is being rebooted",
        faults CHANGE
    }

    /// Freezes an instance.
    post "/v1/instances/{id}/pause"
    pause_instance(_: OptionalBody<Nothing>) {
        Action::Pause;
        200 "It is frozen" Instance,
        202 "It is being frozen",
        faults CHANGE
    }

    /// Thaws a paused instance.
    post "/v1/instances/{id}/unpause"
    unpause_instance(_: OptionalBody<Nothing>) {
        Action::Unpause;
        200 "It runs on" Instance,
        202 "It is being thawed",
        faults CHANGE
    }

    /// Freezes an instance and gives its memory back as far as the host can.
    post "/v1/instances/{id}/suspend"
    suspend_instance(_: OptionalBody<Nothing>) {
        Action::Suspend;
        200 "It is suspended" Instance,
        202 "It is being suspended",
        faults CHANGE
    }

    /// Thaws a suspended instance; one that was lost with the host's boot is started.
    post "/v1/instances/{id}/resume"
    resume_instance(_: OptionalBody<Nothing>) {
        Action::Resume;
        200 "It runs on" Instance,
        202 "It is being resumed",
        faults CHANGE
    }

    /// Changes an instance's limits, also while it runs. Disks only grow. With
    /// `keep` the instance is stopped, and what it was can be had back until
    /// the resize is confirmed.
    post "/v1/instances/{id}/resize"
    resize_instance(Body(resize): Body<Resize>) described as (content = Resize) {
        Action::Resize(resize);
        200 "The limits hold" Instance,
        202 "The limits are being changed",
        faults [
            InstanceNotFound, InstanceInvalidState, PayloadTooLarge, UnsupportedMediaType,
            FlavorDiskTooSmall, FlavorMemoryTooSmall, RuntimeFailed, HostUnsupported,
            ServiceUnavailable, Timeout, ResourcesExhausted,
        ]
    }

    /// Confirms a resize: what was kept is dropped, whatever the instance's state.
    /// Where nothing was kept there is nothing to do.
    post "/v1/instances/{id}/resize/confirm"
    confirm_resize(_: OptionalBody<Nothing>) {
        Action::ConfirmResize;
        200 "Nothing is kept" Instance,
        202 "The resize is being confirmed",
        faults CHANGE
    }

    /// Reverts a resize: the instance is ended, and has the flavor and the disks
    /// that it had, without what was written since. It is not started. Where
    /// nothing was kept there is nothing to do.
    post "/v1/instances/{id}/resize/revert"
    revert_resize(_: OptionalBody<Nothing>) {
        Action::RevertResize;
        200 "It is what it was" Instance,
        202 "The resize is being reverted",
        faults CHANGE
    }

    /// Moves an instance to another host's service. One that runs is stopped, once most of its
    /// disks is there. It is not started there; what it was is kept here, and nothing can be
    /// done to it here but a revert or a delete. When the move fails, the instance is what it was
    /// and runs if it did. The operation tells the bytes, and can be aborted.
    post "/v1/instances/{id}/migrate"
    migrate_instance(Body(wanted): Body<Migrate>) described as (content = Migrate) {
        Action::Migrate(wanted);
        200 "It is the other host's" Instance,
        202 "It is on its way",
        faults [
            InstanceNotFound, ImageNotFound, InstanceExists, InstanceInvalidState, ImageExists,
            InterfaceExists, PayloadTooLarge, UnsupportedMediaType, Forbidden,
            FlavorDiskTooSmall, FlavorMemoryTooSmall, RuntimeFailed, NetworkFailed,
            HostUnsupported, PeerUnavailable, ServiceUnavailable, Timeout, ResourcesExhausted,
        ]
    }

    /// Takes an instance back that has moved, as it was when it went; it is not started. If it
    /// was started on the other host it must be deleted there first. One that is here is left
    /// alone.
    post "/v1/instances/{id}/migrate/revert"
    revert_migration(OptionalBody(wanted): OptionalBody<RevertMigration>)
    described as (content = Option<RevertMigration>, description = "May be left out") {
        Action::RevertMigration(wanted);
        200 "It is here" Instance,
        202 "It is being taken back",
        faults [
            InstanceNotFound, InstanceInvalidState, PayloadTooLarge, UnsupportedMediaType,
            Forbidden, HostUnsupported, PeerUnavailable, ServiceUnavailable, Timeout,
            ResourcesExhausted,
        ]
    }

    /// Sets a user's password inside a running instance, by the programs of its
    /// own image: `chpasswd`, else `passwd`.
    post "/v1/instances/{id}/password"
    set_password(Body(wanted): Body<SetPassword>) described as (content = SetPassword) {
        Action::SetPassword(wanted);
        204 "The password is set",
        202 "The password is being set",
        faults [
            InstanceNotFound, InstanceInvalidState, InstanceUnsupported, PayloadTooLarge,
            UnsupportedMediaType, RuntimeFailed, ServiceUnavailable, Timeout, ResourcesExhausted,
        ]
    }

    /// Writes what an instance is doing to its console: its processes with their memory and what
    /// they wait for, the kernel's stacks of those that hang, the open files of the largest.
    /// Nothing inside is disturbed, and nothing inside has to work for it.
    post "/v1/instances/{id}/dump"
    dump_instance(_: OptionalBody<Nothing>) {
        Action::Dump;
        200 "It is on its console, and in the log of that" Instance,
        202 "It is being written",
        faults [
            InstanceNotFound, InstanceInvalidState, InstanceUnsupported, PayloadTooLarge,
            UnsupportedMediaType, ServiceUnavailable, Timeout, ResourcesExhausted,
        ]
    }

    /// Freezes an instance's disks, so that what is on them is consistent. It
    /// stays RUNNING, and whoever writes to a disk waits; a stop thaws them.
    post "/v1/instances/{id}/quiesce"
    quiesce_instance(_: OptionalBody<Nothing>) {
        Action::Quiesce;
        200 "Its disks are frozen" Instance,
        202 "Its disks are being frozen",
        faults CHANGE
    }

    /// Lets an instance write to its disks again.
    post "/v1/instances/{id}/unquiesce"
    unquiesce_instance(_: OptionalBody<Nothing>) {
        Action::Unquiesce;
        200 "Its disks take changes" Instance,
        202 "Its disks are being thawed",
        faults CHANGE
    }

    /// Makes an image of an instance's root file system and uploads it. Its disk
    /// takes no change for a moment only, and everything that comes after the copy
    /// leaves the instance alone; it may even be deleted meanwhile. Volumes, the
    /// ephemeral disk, and what berth itself wrote into the instance are not in it.
    post "/v1/instances/{id}/snapshot"
    snapshot_instance(Body(wanted): Body<Snapshot>) described as (content = Snapshot) {
        Action::Snapshot(wanted);
        204 "The image has its content",
        202 "The snapshot is being made",
        faults [
            InstanceNotFound, InstanceInvalidState, InstanceUnsupported, PayloadTooLarge,
            UnsupportedMediaType, GlanceUnavailable, GlanceForbidden, ServiceUnavailable, Timeout,
            ResourcesExhausted,
        ]
    }

    /// Boots a stopped instance from another image, for repair. The image gets a
    /// disk of its own, the flavor's `root_gb` large, and all else that the
    /// instance has. The instance's own root file system is at `/mnt/instance`
    /// inside, writable, the ephemeral disk at `/mnt/ephemeral`. It stays rescued,
    /// whatever is rebooted or stopped and started, until it is unrescued.
    post "/v1/instances/{id}/rescue"
    rescue_instance(Body(wanted): Body<Rescue, CREATE_LIMIT>) described as (content = Rescue) {
        Action::Rescue(wanted);
        200 "The rescue image runs" Instance,
        202 "It is being rescued",
        faults [
            InstanceNotFound, ImageNotFound, InstanceInvalidState, PayloadTooLarge,
            UnsupportedMediaType, ImageUnacceptable, FlavorDiskTooSmall, RuntimeFailed,
            NetworkFailed, HostUnsupported, ServiceUnavailable, Timeout, ResourcesExhausted,
        ]
    }

    /// Ends a rescue at once, removes its disk, and boots the instance from its
    /// own root file system. One that is not rescued is started.
    post "/v1/instances/{id}/unrescue"
    unrescue_instance(_: OptionalBody<Nothing>) {
        Action::Unrescue;
        200 "It runs" Instance,
        202 "It is being unrescued",
        faults CHANGE
    }
}

//! Instances that another host's service sends. The gate lets nobody else in.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use actix_web::{HttpResponse, delete, post, put, web};
use futures_util::StreamExt;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::blocking;
use super::extract::{Body, CREATE_LIMIT, Id, Layer, MoveFile, Query, Raw};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, Result};
use crate::instance::backend::RequestContext;
use crate::migration::chunks::CHUNK;
use crate::migration::peer::PATIENCE;
use crate::migration::receive::{Chunk, Content};
use crate::types::{Incoming, IncomingEnd, IncomingFile, IncomingInstance};

/// Parts of a body that wait to be read.
const AHEAD: usize = 16;

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(begin_incoming)
        .service(put_layer)
        .service(put_file)
        .service(commit_incoming)
        .service(acknowledge_incoming)
        .service(end_incoming);
}

/// Makes ready for an instance: ids, CPUs and disk space are its own from then on. Nothing of
/// it runs or is mounted. What another host's service sends, and nobody else, is taken.
#[utoipa::path(
    tag = "migration",
    params(("id" = Uuid, Path, description = "Id of the move, of the sender's choice")),
    request_body = IncomingInstance,
    responses((status = 200, description = "It may come", body = Incoming)),
    extensions(("x-faults" = json!([
        Forbidden, InstanceExists, InstanceInvalidState, ImageExists, InterfaceExists,
        PayloadTooLarge, UnsupportedMediaType, FlavorDiskTooSmall, FlavorMemoryTooSmall,
        HostUnsupported, ServiceUnavailable, ResourcesExhausted
    ])))
)]
#[put("/v1/incoming/{id}")]
async fn begin_incoming(
    api: web::Data<Api>,
    Id(id): Id,
    Body(wanted): Body<IncomingInstance, CREATE_LIMIT>,
) -> Result<HttpResponse> {
    let incoming = blocking(&api, move |backend| backend.begin_incoming(id, wanted)).await?;
    Ok(HttpResponse::Ok().json(incoming))
}

/// Takes the archive of a layer of the instance's image, in pieces that each come with their
/// length and hash.
#[utoipa::path(
    tag = "migration",
    params(
        ("id" = Uuid, Path, description = "Id of the move"),
        ("digest" = String, Path, description = "The layer's digest"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "The layer is here")),
    extensions(("x-faults" = json!([
        Forbidden, NotFound, InstanceInvalidState, UnsupportedMediaType, ImageUnacceptable,
        ImageCorrupt, ServiceUnavailable, ResourcesExhausted
    ])))
)]
#[put("/v1/incoming/{id}/layers/{digest}")]
async fn put_layer(
    api: web::Data<Api>,
    Id(id): Id,
    Layer(digest): Layer,
    mut payload: web::Payload,
) -> Result<HttpResponse> {
    let (give, take) = sync_channel(AHEAD);
    let taken = blocking(&api, move |backend| {
        let mut body = Parts { parts: take, held: web::Bytes::new() };
        backend.incoming_layer(id, &digest, &mut body)
    });
    let give = async move {
        while let Some(part) = payload.next().await {
            let Ok(part) = part else { return };
            let give = give.clone();
            // It may wait for the disk. One that takes no more has failed, and says why.
            let given = web::block(move || give.send(part)).await;
            if !matches!(given, Ok(Ok(()))) {
                return;
            }
        }
    };
    let (taken, ()) = tokio::join!(taken, give);
    taken.map(|()| HttpResponse::NoContent().finish())
}

/// A body as it comes; one that breaks off ends early.
struct Parts {
    parts: Receiver<web::Bytes>,
    held: web::Bytes,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.held.is_empty() {
            match self.parts.recv_timeout(PATIENCE) {
                Ok(part) => self.held = part,
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                // A line that was cut says nothing.
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        let taken = self.held.split_to(buffer.len().min(self.held.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// Takes a part of a file: at most 1 MiB at a multiple of that. The same again changes nothing.
#[utoipa::path(
    tag = "migration",
    params(
        ("id" = Uuid, Path, description = "Id of the move"),
        ("file" = IncomingFile, Path, description = "Which file"),
        ("offset" = u64, Query, description = "Where the part belongs"),
        ("sha256" = Option<String>, Query, description = "The part's hash, hexadecimal"),
        ("zeros" = Option<u64>, Query, description = "Without a body: so many zeros"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "It is there")),
    extensions(("x-faults" = json!([
        Forbidden, NotFound, InstanceInvalidState, PayloadTooLarge, UnsupportedMediaType,
        ServiceUnavailable, ResourcesExhausted
    ])))
)]
#[put("/v1/incoming/{id}/files/{file}")]
async fn put_file(
    api: web::Data<Api>,
    Id(id): Id,
    MoveFile(file): MoveFile,
    query: Query,
    Raw(bytes): Raw<{ CHUNK as usize }>,
) -> Result<HttpResponse> {
    let offset = query.one("offset", "a number of bytes")?;
    let offset = offset.ok_or_else(|| Fault::invalid("offset", "must be given"))?;
    let content = match query.one("zeros", "a number of bytes")? {
        Some(zeros) => Content::Zeros(zeros),
        None => Content::Bytes(bytes, query.one("sha256", "a hash")?.unwrap_or_default()),
    };
    let chunk = Chunk { offset, content };
    blocking(&api, move |backend| backend.incoming_chunk(id, file, chunk)).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Makes the instance this host's, stopped, all of it durable. From then on it is no longer the
/// sender's, whatever becomes of the answer.
#[utoipa::path(
    tag = "migration",
    params(("id" = Uuid, Path, description = "Id of the move")),
    responses((status = 204, description = "It is this host's")),
    extensions(("x-faults" = json!([
        Forbidden, NotFound, InstanceInvalidState, NetworkFailed, ServiceUnavailable,
        ResourcesExhausted
    ])))
)]
#[post("/v1/incoming/{id}/commit")]
async fn commit_incoming(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    blocking(&api, move |backend| backend.commit_incoming(id)).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Says that the sender knows, durably, whose the instance is.
#[utoipa::path(
    tag = "migration",
    params(("id" = Uuid, Path, description = "Id of the move")),
    responses((status = 204, description = "It need not be remembered any more")),
    extensions(("x-faults" = json!([Forbidden, ServiceUnavailable])))
)]
#[post("/v1/incoming/{id}/acknowledge")]
async fn acknowledge_incoming(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    blocking(&api, move |backend| backend.acknowledge_incoming(id)).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Ends a move that was not committed: nothing of it is left. With `revert`, an instance that
/// was taken and never started is given back as well.
#[utoipa::path(
    tag = "migration",
    params(
        ("id" = Uuid, Path, description = "Id of the move"),
        ("revert" = Option<bool>, Query, description = "Give back what was taken and never started"),
    ),
    responses((status = 200, description = "Whose the instance is", body = IncomingEnd)),
    extensions(("x-faults" = json!([Forbidden, InstanceInvalidState, ServiceUnavailable])))
)]
#[delete("/v1/incoming/{id}")]
async fn end_incoming(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    query: Query,
) -> Result<HttpResponse> {
    let revert = query.one("revert", "true or false")?.unwrap_or(false);
    let outcome = blocking(&api, move |backend| backend.end_incoming(context, id, revert)).await?;
    Ok(HttpResponse::Ok().json(IncomingEnd { outcome }))
}

//! The host's image store.

use actix_web::http::header::LOCATION;
use actix_web::{HttpResponse, delete, get, post, put, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::{blocking, wait_as_preferred};
use super::extract::{Body, Id, Nothing, OptionalBody, Prefer};
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, Result};
use crate::instance::backend::RequestContext;
use crate::types::{Image, ImageImport, ImageInspect, ImageInspection, Operation};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(list_images)
        .service(inspect_image)
        .service(import_image)
        .service(get_image)
        .service(delete_image);
}

/// Images of this host's store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// In the order of their ids.
    pub images: Vec<Image>,
}

/// All images of this host's store.
#[utoipa::path(
    tag = "images",
    responses((status = 200, description = "The images", body = ImageList)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/images")]
async fn list_images(api: web::Data<Api>) -> Result<HttpResponse> {
    let images = blocking(&api, |backend| Ok(backend.images())).await?;
    Ok(HttpResponse::Ok().json(ImageList { images }))
}

/// Has an image in the store, reading it if need be. Content that is there
/// already is not read again; calls at the same time share one import.
#[utoipa::path(
    tag = "images",
    params(("id" = Uuid, Path, description = "Glance's id of the image")),
    request_body = ImageImport,
    responses(
        (status = 200, description = "It was in the store before", body = Image),
        (status = 201, description = "It is in the store", body = Image,
            headers(("Location" = String, description = "Where the image is"))),
        (status = 202, description = "It is being imported", body = Operation,
            headers(("Location" = String, description = "Where the operation is"))),
    ),
    extensions(("x-faults" = json!([
        ImageNotFound, ImageExists, ImageInUse, PayloadTooLarge, UnsupportedMediaType,
        ImageUnacceptable, ImageCorrupt, HostUnsupported, GlanceUnavailable, GlanceForbidden,
        ServiceUnavailable, Timeout, ResourcesExhausted
    ])))
)]
#[put("/v1/images/{id}")]
async fn import_image(
    api: web::Data<Api>,
    context: RequestContext,
    Id(id): Id,
    prefer: Prefer,
    Body(request): Body<ImageImport>,
) -> Result<HttpResponse> {
    let (existed, operation) = blocking(&api, move |backend| {
        let existed = backend.image(id).is_ok();
        Ok((existed, backend.import_image(context, id, request)?))
    })
    .await?;
    if let Some(answer) = wait_as_preferred(&operation, prefer).await? {
        return Ok(answer);
    }
    let image = blocking(&api, move |backend| backend.image(id)).await?;
    Ok(if existed {
        HttpResponse::Ok().json(image)
    } else {
        HttpResponse::Created().insert_header((LOCATION, format!("/v1/images/{id}"))).json(image)
    })
}

/// Says what an import would make of an image, and why it would be refused, by all of
/// the work but the last step. Nothing comes into the store. The answer comes at the end.
#[utoipa::path(
    tag = "images",
    request_body = ImageInspect,
    responses(
        (status = 200, description = "What it would become, or `refusal`", body = ImageInspection),
    ),
    extensions(("x-faults" = json!([
        ImageNotFound, PayloadTooLarge, UnsupportedMediaType, GlanceUnavailable,
        GlanceForbidden, ServiceUnavailable, Timeout, ResourcesExhausted
    ])))
)]
#[post("/v1/images/inspect")]
async fn inspect_image(
    api: web::Data<Api>,
    context: RequestContext,
    Body(request): Body<ImageInspect>,
) -> Result<HttpResponse> {
    let told = blocking(&api, move |backend| backend.inspect_image(context, request)).await?;
    let inspection = told.await.map_err(|_| {
        Fault::new(
            Internal,
            "the inspection was given up before its end; the service's log says why",
        )
    })??;
    Ok(HttpResponse::Ok().json(inspection))
}

/// An image of the store.
#[utoipa::path(
    tag = "images",
    params(("id" = Uuid, Path, description = "Glance's id of the image")),
    responses((status = 200, description = "The image", body = Image)),
    extensions(("x-faults" = json!([ImageNotFound])))
)]
#[get("/v1/images/{id}")]
async fn get_image(api: web::Data<Api>, Id(id): Id) -> Result<HttpResponse> {
    let image = blocking(&api, move |backend| backend.image(id)).await?;
    Ok(HttpResponse::Ok().json(image))
}

/// Removes an image on which no instance stands.
#[utoipa::path(
    tag = "images",
    params(("id" = Uuid, Path, description = "Glance's id of the image")),
    responses((status = 204, description = "It is gone")),
    extensions(("x-faults" = json!([ImageNotFound, ImageInUse, ServiceUnavailable])))
)]
#[delete("/v1/images/{id}")]
async fn delete_image(
    api: web::Data<Api>,
    Id(id): Id,
    _: OptionalBody<Nothing>,
) -> Result<HttpResponse> {
    blocking(&api, move |backend| backend.delete_image(id)).await?;
    Ok(HttpResponse::NoContent().finish())
}

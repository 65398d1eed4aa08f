//! The service itself: whether it lives, what it counts, what it offers.

use actix_web::{HttpResponse, get, web};
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::blocking;
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, FaultKind, Result};
use crate::telemetry::{self, Present};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(get_health).service(get_metrics).service(get_description);
}

/// Whether the service works: 200 and `ok`. The instance manager is asked too.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "It works", body = String, content_type = "text/plain")),
    extensions(("x-faults" = json!([ServiceUnavailable])))
)]
#[get("/healthz")]
async fn get_health(api: web::Data<Api>) -> Result<HttpResponse> {
    if api.is_stopping() {
        return Err(Fault::new(FaultKind::ServiceUnavailable, "the service is stopping"));
    }
    blocking(&api, |backend| Ok(backend.operations().len())).await?;
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n"))
}

/// The service's metrics, for Prometheus.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "Prometheus's text format", body = String,
        content_type = "text/plain")),
    extensions(("x-faults" = json!([])))
)]
#[get("/metrics")]
async fn get_metrics(api: web::Data<Api>) -> Result<HttpResponse> {
    let text = blocking(&api, |backend| {
        telemetry::metrics().render(&Present {
            power_states: backend.instances().iter().map(|i| i.power_state).collect(),
            images: backend.images().len(),
            operations_unfinished: backend.unfinished_operations().len(),
        })
    })
    .await?;
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text))
}

/// This description.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "The OpenAPI document", body = serde_json::Value)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/openapi.json")]
async fn get_description(api: web::Data<Api>) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(api.document.clone())
}

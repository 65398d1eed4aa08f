//! The host: what it has, what it uses, whether it is fit.

use actix_web::{HttpResponse, get, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::blocking;
use super::shared::Api;
use crate::fault::Result;
use crate::types::{Check, HostInfo, HostStats};

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(get_host).service(get_host_stats).service(get_host_checks);
}

/// Every probe of the host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckList {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

/// The host's inventory and capabilities.
#[utoipa::path(tag = "host", responses((status = 200, description = "The host", body = HostInfo)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/host")]
async fn get_host(api: web::Data<Api>) -> Result<HttpResponse> {
    let info = blocking(&api, |backend| backend.host_info()).await?;
    Ok(HttpResponse::Ok().json(info))
}

/// What the host uses now.
#[utoipa::path(
    tag = "host",
    responses((status = 200, description = "Counters and gauges of the host", body = HostStats)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/host/stats")]
async fn get_host_stats(api: web::Data<Api>) -> Result<HttpResponse> {
    let stats = blocking(&api, |backend| backend.host_stats()).await?;
    Ok(HttpResponse::Ok().json(stats))
}

/// The outcome of every probe of the host, as `berth check` prints it.
#[utoipa::path(
    tag = "host",
    responses((status = 200, description = "The probes", body = CheckList)),
    extensions(("x-faults" = json!([])))
)]
#[get("/v1/host/checks")]
async fn get_host_checks(api: web::Data<Api>) -> Result<HttpResponse> {
    let checks = blocking(&api, |backend| Ok(backend.checks())).await?;
    Ok(HttpResponse::Ok().json(CheckList { checks }))
}

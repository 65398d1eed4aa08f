//! Answers: faults as RFC 9457 problems, operations as results or as a place to look.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderName, LOCATION};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError, web};

use super::extract::Prefer;
use super::gate;
use super::shared::Api;
use crate::fault::{Fault, FaultKind, Result};
use crate::instance::backend::Backend;
use crate::instance::operation::OperationHandle;
use crate::types::{OperationStatus, Problem};

/// RFC 9457's media type.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

impl ResponseError for Fault {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let problem = Problem { request_id: gate::current_request_id(), ..Problem::from(self) };
        HttpResponseBuilder::new(self.status_code())
            .insert_header((CONTENT_TYPE, PROBLEM_JSON))
            .body(serde_json::to_vec(&problem).unwrap_or_default())
    }
}

/// Calls the backend on a blocking thread: it may wait for a disk or a lock.
pub(super) async fn blocking<T: Send + 'static>(
    api: &Api,
    call: impl FnOnce(&dyn Backend) -> Result<T> + Send + 'static,
) -> Result<T> {
    let backend = api.backend.clone();
    let span = tracing::Span::current();
    web::block(move || span.in_scope(|| call(&*backend)))
        .await
        .map_err(|e| Fault::internal("calling the instance manager", e))?
}

/// Waits for an operation as long as the client prefers. `None` when it ended
/// well; an answer that tells where to look when the client waits no longer.
/// The operation goes on whatever becomes of the connection.
pub(super) async fn wait_as_preferred(
    handle: &Arc<OperationHandle>,
    prefer: Prefer,
) -> Result<Option<HttpResponse>> {
    let operation = match prefer.patience() {
        None => handle.wait().await,
        Some(patience) => match wait_at_most(handle, patience).await {
            Some(operation) if !prefer.respond_at_once() => operation,
            _ => return Ok(Some(accepted(handle, prefer))),
        },
    };
    match (operation.status, operation.fault) {
        (OperationStatus::Succeeded, _) => Ok(None),
        (_, Some(problem)) => Err(Fault::from(&problem)),
        (_, None) => {
            Err(Fault::new(FaultKind::Internal, "the operation failed and did not say why"))
        }
    }
}

/// The operation's state at its end, if that comes within `patience`.
pub(super) async fn wait_at_most(
    handle: &OperationHandle,
    patience: Duration,
) -> Option<crate::types::Operation> {
    tokio::time::timeout(patience, handle.wait()).await.ok()
}

fn accepted(handle: &OperationHandle, prefer: Prefer) -> HttpResponse {
    HttpResponse::Accepted()
        .insert_header((LOCATION, format!("/v1/operations/{}", handle.id())))
        .insert_header((PREFERENCE_APPLIED, prefer.applied()))
        .json(handle.snapshot())
}

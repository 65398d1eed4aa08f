//! What every request passes: it gets an id and a log span, must be what the
//! API's description allows, is counted, and never ends in a panic.

use std::future::{Ready, ready};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use super::extract::Query;
use super::shared::Api;
use crate::fault::{Fault, FaultKind, Result};
use crate::instance::backend::RequestContext;
use crate::telemetry;

/// The header that carries a request's id, both ways: OpenStack's own.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-openstack-request-id");

/// Where another host's service sends instances.
const INCOMING: &str = "/v1/incoming";

/// Who is at the other end of a connection; kept in the connection's data.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For the log.
    pub name: String,
    /// It is another host's service: it moves instances, and does nothing else.
    pub moves_instances: bool,
}

tokio::task_local! {
    /// The id of the request that this task answers: problems carry it.
    static REQUEST_ID: String;
}

/// The id of the request that is being answered.
pub(super) fn current_request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

impl FromRequest for RequestContext {
    type Error = Fault;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let context = request.extensions().get::<RequestContext>().cloned();
        ready(context.ok_or_else(|| Fault::new(FaultKind::Internal, "the request has no id")))
    }
}

/// The middleware around everything.
pub(super) async fn gate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse<BoxBody>> {
    let started = Instant::now();
    let request_id = request_id(request.headers());
    request.extensions_mut().insert(RequestContext { request_id: request_id.clone() });
    let peer = request.conn_data::<Peer>().map_or_else(String::new, |peer| peer.name.clone());
    let method = request.method().clone();
    let span = tracing::info_span!(
        "request", %request_id, %method, path = request.path(), peer = %peer
    );
    let api = request.app_data::<web::Data<Api>>().cloned();
    let route = api
        .as_ref()
        .and_then(|api| api.surface.find(request.path()))
        .map_or_else(|| "(none)".to_owned(), |route| route.pattern.clone());
    let answering = REQUEST_ID.scope(request_id.clone(), answer(api, request, next));
    let mut outcome = answering.instrument(span.clone()).await;
    let status = match &mut outcome {
        Ok(response) => {
            name(response.headers_mut(), &request_id);
            response.status().as_u16()
        }
        Err(error) => error.as_response_error().status_code().as_u16(),
    };
    let elapsed = started.elapsed();
    let label = if is_known(&method) { method.as_str() } else { "other" };
    telemetry::metrics().request_answered(label, &route, status, elapsed.as_secs_f64());
    span.in_scope(|| log(&method, status, elapsed, &outcome));
    outcome
}

/// Checks the request against the description and calls the handler.
async fn answer(
    api: Option<web::Data<Api>>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> actix_web::Result<ServiceResponse<BoxBody>> {
    if let Err(fault) = api.map_or(Ok(()), |api| admit(&api, &request)) {
        return Ok(request.error_response(fault));
    }
    match AssertUnwindSafe(next.call(request)).catch_unwind().await {
        Ok(outcome) => outcome.map(ServiceResponse::map_into_boxed_body),
        Err(panic) => Err(panicked(&*panic)),
    }
}

/// Whether a path is for another host's service, and for no other client.
fn is_of_peers(path: &str) -> bool {
    path.strip_prefix(INCOMING).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn admit(api: &Api, request: &ServiceRequest) -> Result<()> {
    let is_peer = request.conn_data::<Peer>().is_some_and(|peer| peer.moves_instances);
    // As the routes are found by it: the address itself may be written in several ways.
    if is_peer != is_of_peers(request.match_info().as_str()) {
        let why = if is_peer {
            "another host's service moves instances and does nothing else: use a certificate \
             whose common name is not in migration.peers"
        } else {
            "only another host's service sends instances: its certificate's common name is in \
             migration.peers"
        };
        return Err(Fault::new(FaultKind::Forbidden, why));
    }
    if api.is_stopping() && !request.method().is_safe() {
        return Err(Fault::new(
            FaultKind::ServiceUnavailable,
            "the service is stopping; ask again when it runs",
        ));
    }
    // Unknown paths and methods are answered where the routes end.
    let operation = api.surface.find(request.path()).and_then(|r| r.operation(request.method()));
    let Some(operation) = operation else { return Ok(()) };
    let query = Query::parse(request.query_string())?;
    match query.names().find(|name| !operation.query.contains(*name)) {
        None => Ok(()),
        Some(name) if operation.query.is_empty() => {
            Err(Fault::invalid(name, "this endpoint takes no query parameters"))
        }
        Some(name) => {
            let known: Vec<&str> = operation.query.iter().map(String::as_str).collect();
            Err(Fault::invalid(
                name,
                format!("there is no such query parameter; there are: {}", known.join(", ")),
            ))
        }
    }
}

/// Answers whatever no route took: another path, or another method.
pub(super) async fn no_such_path(request: HttpRequest, api: web::Data<Api>) -> HttpResponse {
    let Some(route) = api.surface.find(request.path()) else {
        return Fault::new(
            FaultKind::NotFound,
            format!("there is nothing at {}; GET /v1/openapi.json describes all", request.path()),
        )
        .error_response();
    };
    let allowed = route.methods();
    let mut response = Fault::new(
        FaultKind::MethodNotAllowed,
        format!("{} takes {allowed}, not {}", route.pattern, request.method()),
    )
    .error_response();
    if let Ok(value) = HeaderValue::from_str(&allowed) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// The given id when it is one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID_HEADER)
        .and_then(|value| value.to_str().ok())
        .filter(|id| is_request_id(id))
        .map_or_else(|| format!("req-{}", Uuid::new_v4()), str::to_owned)
}

/// `req-` and what a UUID is made of, at most 64 characters: safe in a log line.
fn is_request_id(id: &str) -> bool {
    id.len() <= 64
        && id.strip_prefix("req-").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn name(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID_HEADER, value);
    }
}

/// The answer to a request whose handler panicked. It travels as an error,
/// because the panic took the request with it.
fn panicked(panic: &(dyn std::any::Any + Send)) -> actix_web::Error {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it said nothing");
    tracing::error!(panic = said, "a handler panicked");
    telemetry::metrics().request_panicked();
    let fault = Fault::new(
        FaultKind::Internal,
        "a defect of the service: its log has more under this request id",
    );
    let mut response = fault.error_response();
    name(response.headers_mut(), &current_request_id().unwrap_or_default());
    InternalError::from_response(fault, response).into()
}

fn is_known(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
    ]
    .contains(method)
}

fn log(
    method: &Method,
    status: u16,
    elapsed: std::time::Duration,
    outcome: &actix_web::Result<ServiceResponse<BoxBody>>,
) {
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let in_full = |error: &actix_web::Error| {
        error.as_error::<Fault>().map_or_else(|| error.to_string(), Fault::in_full)
    };
    let fault = match outcome {
        Ok(response) => response.response().error().map(in_full),
        Err(error) => Some(in_full(error)),
    };
    match fault {
        Some(fault) if status >= 500 => tracing::error!(status, milliseconds, %fault, "failed"),
        Some(fault) => tracing::info!(status, milliseconds, %fault, "refused"),
        // Reads come by the thousand and change nothing.
        None if method.is_safe() => tracing::debug!(status, milliseconds, "answered"),
        None => tracing::info!(status, milliseconds, "answered"),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::App;
    use actix_web::middleware::from_fn;

    use super::*;

    #[actix_web::test]
    async fn a_panic_in_a_handler_is_a_problem_with_the_request_id() {
        async fn handler() -> HttpResponse {
            panic!("as asked")
        }
        let app = App::new().route("/", web::get().to(handler)).wrap(from_fn(gate));
        let app = actix_web::test::init_service(app).await;
        let request = actix_web::test::TestRequest::default()
            .insert_header((REQUEST_ID_HEADER, "req-42"))
            .to_request();
        let error = actix_web::test::try_call_service(&app, request).await.unwrap_err();
        let response = error.error_response();
        assert_eq!(response.headers().get(REQUEST_ID_HEADER).unwrap(), "req-42");
        let body = actix_web::body::to_bytes(response.into_body()).await.unwrap();
        let problem: crate::types::Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.code, FaultKind::Internal);
        assert_eq!(problem.request_id.as_deref(), Some("req-42"));
        assert!(!problem.detail.contains("as asked"), "the inside stays in the log");
    }

    #[test]
    fn only_openstack_request_ids_are_taken() {
        for good in ["req-1", "req-6f70656e-7374-4b63-8a00-62657274680a"] {
            assert!(is_request_id(good), "{good}");
        }
        let long = format!("req-{}", "a".repeat(61));
        for bad in ["", "req-", "6f70656e", "req-a b", "req-a\"b", "REQ-1", long.as_str()] {
            assert!(!is_request_id(bad), "{bad}");
        }
    }
}

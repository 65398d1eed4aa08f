//! The event stream: server-sent events that resume after a break.

use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, get, web};
use futures_util::stream;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::blocking;
use super::extract::Query;
use super::shared::Api;
use crate::fault::FaultKind::*;
use crate::fault::{Fault, Result};
use crate::instance::event::EventSubscription;
use crate::telemetry;
use crate::types::Event;

/// How often a quiet stream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(follow_events);
}

/// What happens to instances, as it happens, as a stream of server-sent
/// events: `id` is the event's sequence number, `event` its kind, `data` an
/// `Event` in JSON. A comment comes at least every 15 seconds. Without a place
/// to resume from, only what is still to come is sent.
#[utoipa::path(
    tag = "operations",
    params(
        ("after" = Option<u64>, Query,
            description = "Send the events after this sequence number"),
        ("Last-Event-ID" = Option<u64>, Header,
            description = "The same, as browsers and libraries send it; it wins over `after`")
    ),
    responses((status = 200, description = "The stream", body = Event,
        content_type = "text/event-stream")),
    extensions(("x-faults" = json!([EventsGone])))
)]
#[get("/v1/events")]
async fn follow_events(
    api: web::Data<Api>,
    request: HttpRequest,
    query: Query,
) -> Result<HttpResponse> {
    let after = query.one::<u64>("after", "an event's sequence number")?;
    let after = last_event_id(&request)?.or(after);
    let events = blocking(&api, move |backend| backend.events_after(after)).await?;
    let open = telemetry::metrics().stream_opened();
    // The first comment sends the header off at once.
    let first = Some(web::Bytes::from_static(b": berth\n\n"));
    let body = stream::unfold((api, events, open, first), |(api, mut events, open, first)| async {
        let chunk = match first {
            Some(chunk) => Some(chunk),
            None => tokio::select! {
                chunk = next_chunk(&mut events) => chunk,
                () = api.stopped() => None,
            },
        }?;
        Some((Ok::<_, actix_web::Error>(chunk), (api, events, open, None)))
    });
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .streaming(body))
}

fn last_event_id(request: &HttpRequest) -> Result<Option<u64>> {
    let Some(value) = request.headers().get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|value| value.parse().ok());
    number.map(Some).ok_or_else(|| {
        Fault::invalid("Last-Event-ID", "must be the sequence number of an event, the stream's id")
    })
}

/// The next piece of the stream; `None` when the reader fell too far behind:
/// when it comes back, it is told so with `events-gone`.
async fn next_chunk(events: &mut EventSubscription) -> Option<web::Bytes> {
    match tokio::time::timeout(HEARTBEAT, events.next()).await {
        Err(_) => Some(web::Bytes::from_static(b": alive\n\n")),
        Ok(Ok(event)) => Some(frame(&event)),
        Ok(Err(fault)) => {
            tracing::info!(fault = %fault.in_full(), "an event stream ended");
            None
        }
    }
}

fn frame(event: &Event) -> web::Bytes {
    let data = serde_json::to_string(event).unwrap_or_default();
    let kind = serde_json::to_string(&event.kind).unwrap_or_default();
    let kind = kind.trim_matches('"');
    format!("id: {}\nevent: {kind}\ndata: {data}\n\n", event.sequence).into()
}

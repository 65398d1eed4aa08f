//! The console: what it said, and a web socket to it.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, web};
use actix_ws::{CloseCode, Session};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tracing::Instrument;
use utoipa_actix_web::service_config::ServiceConfig;

use super::answer::blocking;
use super::extract::{Id, Query};
use super::shared::Api;
use super::socket::{self, Incoming, Message};
use crate::fault::FaultKind::*;
use crate::fault::{Fault, OrFault, Result};
use crate::instance::backend::ResizeConsole;
use crate::telemetry;

/// Most bytes of console output that a configuration can have kept.
const LONGEST_OUTPUT: u64 = 1 << 30;

pub(super) fn routes(config: &mut ServiceConfig<'_>) {
    config.service(get_console_output).service(attach_console);
}

/// What a client says in a text frame to a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TerminalMessage {
    /// `{"resize":{"cols":80,"rows":24}}`: the terminal has another size.
    Resize(Size),
    /// `{"eof":true}`: standard input ends here; for commands without a terminal.
    Eof(bool),
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Columns, at least 1.
    pub cols: u16,
    /// Rows, at least 1.
    pub rows: u16,
}

impl TerminalMessage {
    /// Parses a text frame.
    pub(super) fn parse(text: &str) -> Result<TerminalMessage> {
        let message =
            serde_json::from_str(text).map_err(|e| Fault::invalid("text frame", e.to_string()))?;
        match message {
            TerminalMessage::Resize(Size { cols, rows }) if cols == 0 || rows == 0 => {
                Err(Fault::invalid("resize", "cols and rows must be at least 1"))
            }
            message => Ok(message),
        }
    }
}

/// The last bytes that the console's log keeps, as the instance wrote them:
/// terminal sequences included, and not necessarily UTF-8.
#[utoipa::path(
    tag = "instances",
    params(
        ("id" = Uuid, Path, description = "Nova's id of the instance"),
        ("length" = Option<u64>, Query, minimum = 0, maximum = 1_073_741_824,
            description = "Number of bytes from the end; all that are kept when left out")
    ),
    responses((status = 200, description = "The bytes", body = String,
        content_type = "application/octet-stream")),
    extensions(("x-faults" = json!([InstanceNotFound])))
)]
#[get("/v1/instances/{id}/console/output")]
async fn get_console_output(api: web::Data<Api>, Id(id): Id, query: Query) -> Result<HttpResponse> {
    let length = query.one::<u64>("length", "a number of bytes")?;
    if length.is_some_and(|length| length > LONGEST_OUTPUT) {
        return Err(Fault::invalid("length", format!("must be at most {LONGEST_OUTPUT}")));
    }
    let bytes = blocking(&api, move |backend| backend.console_output(id, length)).await?;
    Ok(HttpResponse::Ok().content_type("application/octet-stream").body(bytes))
}

/// The console as a web socket. Binary frames carry its bytes both ways; the
/// text frame `{"resize":{"cols":80,"rows":24}}` changes its size. Any number
/// of clients may be attached.
#[utoipa::path(
    tag = "instances",
    params(("id" = Uuid, Path, description = "Nova's id of the instance")),
    responses((status = 101, description = "The console follows as a web socket")),
    extensions(("x-faults" = json!([InstanceNotFound, InstanceInvalidState, HostUnsupported])))
)]
#[get("/v1/instances/{id}/console")]
async fn attach_console(
    api: web::Data<Api>,
    request: HttpRequest,
    payload: web::Payload,
    Id(id): Id,
) -> Result<HttpResponse> {
    socket::require_upgrade(&request)?;
    let console = blocking(&api, move |backend| backend.console_attach(id)).await?;
    let (stream, resize) = console.asynchronous()?;
    let (response, session, incoming) = socket::accept(&request, payload)?;
    let span = tracing::Span::current();
    actix_web::rt::spawn(
        async move {
            let _open = telemetry::metrics().stream_opened();
            let (code, reason) = relay(&api, stream, resize, incoming, session.clone()).await;
            socket::close(session, code, &reason).await;
        }
        .instrument(span),
    );
    Ok(response)
}

/// Carries bytes both ways until either side ends. The two directions do not
/// wait for each other: a console that is not read must not stop its reader.
async fn relay(
    api: &Api,
    stream: UnixStream,
    resize: ResizeConsole,
    incoming: Incoming,
    session: Session,
) -> (CloseCode, String) {
    let (read, write) = stream.into_split();
    tokio::select! {
        result = to_console(incoming, write, resize.into()) => match result {
            Ok(()) => (CloseCode::Normal, "detached".into()),
            Err(fault) => (CloseCode::Policy, fault.to_string()),
        },
        () = from_console(read, session.clone()) => {
            (CloseCode::Normal, "the console has ended".into())
        }
        _ = socket::keep_alive(session) => (CloseCode::Away, "no life sign".into()),
        () = api.stopped() => (CloseCode::Away, "the service is stopping; attach again".into()),
    }
}

async fn to_console(
    mut incoming: Incoming,
    mut console: OwnedWriteHalf,
    resize: Arc<dyn Fn(u16, u16) -> Result<()> + Send + Sync>,
) -> Result<()> {
    while let Some(message) = incoming.next().await {
        match message {
            Message::Bytes(bytes) => {
                console.write_all(&bytes).await.or_fault("writing to the console")?;
            }
            Message::Text(text) => match TerminalMessage::parse(&text)? {
                TerminalMessage::Resize(Size { cols, rows }) => {
                    let resize = resize.clone();
                    web::block(move || resize(cols, rows)).await.or_fault("resizing")??;
                }
                TerminalMessage::Eof(_) => {
                    return Err(Fault::invalid("eof", "a console has no end of input"));
                }
            },
        }
    }
    Ok(())
}

async fn from_console(mut console: OwnedReadHalf, mut session: Session) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count @ 1..) = console.read(&mut buffer).await {
        if session.binary(buffer[..count].to_vec()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_frames() {
        let resize = TerminalMessage::Resize(Size { cols: 80, rows: 24 });
        let text = r#"{"resize":{"cols":80,"rows":24}}"#;
        assert_eq!(TerminalMessage::parse(text).unwrap(), resize);
        assert_eq!(serde_json::to_string(&resize).unwrap(), text);
        for bad in ["", "{}", "null", r#"{"resize":{"cols":0,"rows":24}}"#, r#"{"bell":1}"#] {
            assert!(TerminalMessage::parse(bad).is_err(), "{bad}");
        }
    }
}

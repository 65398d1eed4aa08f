//! What consoles and commands share: a web socket whose peer may vanish.

use std::time::Duration;

use actix_web::http::header::UPGRADE;
use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{
    AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, Session,
};

use crate::fault::{Fault, Result};

/// How often the peer is asked whether it lives.
const PING: Duration = Duration::from_secs(15);

/// How long it may say nothing, pongs included.
const SILENCE: Duration = Duration::from_secs(90);

/// Most bytes of a message.
const MESSAGE_LIMIT: usize = 1 << 20;

/// Refuses a request that does not ask for a web socket, before anything is done for it.
pub(super) fn require_upgrade(request: &HttpRequest) -> Result<()> {
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    if upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket")) {
        return Ok(());
    }
    Err(Fault::invalid(
        "Upgrade",
        "this endpoint is a web socket (RFC 6455); open it with a web socket client",
    ))
}

/// Accepts a web socket: the answer to send, and its two ends.
pub(super) fn accept(
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<(HttpResponse, Session, Incoming)> {
    let (response, session, messages) = actix_ws::handle(request, payload)
        .map_err(|e| Fault::invalid("Upgrade", format!("not a web socket handshake: {e}")))?;
    let messages = messages.max_frame_size(MESSAGE_LIMIT);
    let messages = messages.aggregate_continuations().max_continuation_size(MESSAGE_LIMIT);
    Ok((response, session.clone(), Incoming { messages, session }))
}

/// What the peer sends.
pub(super) struct Incoming {
    messages: AggregatedMessageStream,
    session: Session,
}

/// A message of the peer.
pub(super) enum Message {
    /// A binary frame: bytes of the terminal or of standard input.
    Bytes(web::Bytes),
    /// A text frame: JSON.
    Text(String),
}

impl Incoming {
    /// The next message; `None` when the peer has closed, vanished or broken the protocol.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let message = tokio::time::timeout(SILENCE, self.messages.recv()).await.ok()??;
            match message.inspect_err(|e| tracing::info!(error = %e, "web socket")).ok()? {
                AggregatedMessage::Binary(bytes) => return Some(Message::Bytes(bytes)),
                AggregatedMessage::Text(text) => return Some(Message::Text(text.to_string())),
                AggregatedMessage::Ping(bytes) => self.session.pong(&bytes).await.ok()?,
                AggregatedMessage::Pong(_) => {}
                AggregatedMessage::Close(_) => return None,
            }
        }
    }
}

/// Asks the peer for life signs until it is gone.
pub(super) async fn keep_alive(mut session: Session) -> Closed {
    loop {
        tokio::time::sleep(PING).await;
        if let Err(closed) = session.ping(b"").await {
            return closed;
        }
    }
}

/// Closes a web socket with a reason for people.
pub(super) async fn close(session: Session, code: CloseCode, reason: &str) {
    // A control frame holds 125 bytes, two of them the code.
    let mut end = reason.len().min(120);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = CloseReason { code, description: Some(reason[..end].to_owned()) };
    // The peer may be gone already: then there is nobody to tell.
    let _ = session.close(Some(reason)).await;
}

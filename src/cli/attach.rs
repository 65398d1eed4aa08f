//! A terminal joined with a web socket: consoles and commands.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::client::Socket;
use super::output::Stream;
use super::terminal::{self, RawMode};
use crate::api::{ExecMessage, STDERR_TAG, STDOUT_TAG, TerminalMessage};
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// How a terminal is joined.
#[derive(Clone, Copy)]
pub(super) struct Joined {
    /// Whether keys go over one by one, with the terminal's size.
    pub raw: bool,
    /// The key that lets go.
    pub detach: Option<u8>,
    /// Whether output is tagged as standard output or error.
    pub tagged: bool,
}

/// How it ended.
pub(super) enum Ending {
    /// The person let go.
    Detached,
    /// The command ended with this code.
    Exit(i32),
    /// The other side closed, and said why.
    Closed(String),
}

/// Joins the terminal with the socket until one of them ends.
pub(super) async fn join(socket: Socket, joined: Joined) -> Result<Ending> {
    let raw = if joined.raw { RawMode::enter()? } else { None };
    let (sender, receiver) = socket.split();
    let mut resized = signal(SignalKind::window_change()).or_fault("taking signals")?;
    // The terminal's mode is given back also when someone ends this command.
    let mut terminate = signal(SignalKind::terminate()).or_fault("taking signals")?;
    let mut hangup = signal(SignalKind::hangup()).or_fault("taking signals")?;
    let ending = tokio::select! {
        ending = show(receiver, joined.tagged, Stream::stdout(joined.raw)) => ending,
        ending = send(sender, terminal::keys(), &mut resized, joined) => ending,
        _ = terminate.recv() => Ok(Ending::Detached),
        _ = hangup.recv() => Ok(Ending::Detached),
    };
    drop(raw);
    ending
}

/// Carries keys and sizes over. Without more input it waits for the other end.
async fn send(
    mut socket: SplitSink<Socket, Message>,
    mut keys: mpsc::Receiver<Vec<u8>>,
    resized: &mut Signal,
    joined: Joined,
) -> Result<Ending> {
    let lost = "the connection to the service is lost";
    let mut open = true;
    let mut tell_size = joined.raw;
    loop {
        if std::mem::take(&mut tell_size)
            && let Some(size) = terminal::size()
        {
            let text = to_json(&TerminalMessage::Resize(size))?;
            socket.send(Message::text(text)).await.or_fault(lost)?;
        }
        tokio::select! {
            _ = resized.recv() => tell_size = joined.raw,
            typed = keys.recv(), if open => match typed {
                Some(bytes) => {
                    let end = joined.detach.and_then(|key| bytes.iter().position(|b| *b == key));
                    let bytes = &bytes[..end.unwrap_or(bytes.len())];
                    socket.send(Message::binary(bytes.to_vec())).await.or_fault(lost)?;
                    if end.is_some() {
                        let _ = socket.close().await;
                        return Ok(Ending::Detached);
                    }
                }
                None if joined.tagged => {
                    open = false;
                    let text = to_json(&TerminalMessage::Eof(true))?;
                    socket.send(Message::text(text)).await.or_fault(lost)?;
                }
                None => open = false,
            },
        }
    }
}

fn to_json(message: &TerminalMessage) -> Result<String> {
    serde_json::to_string(message).or_fault("writing a message")
}

/// Shows what comes over.
async fn show(mut socket: SplitStream<Socket>, tagged: bool, mut output: Stream) -> Result<Ending> {
    let mut errors = Stream::stderr(false);
    while let Some(message) = socket.next().await {
        match message.or_fault("the connection to the service is lost")? {
            Message::Binary(bytes) if tagged => match bytes.split_first() {
                Some((&STDOUT_TAG, rest)) => output.write(rest)?,
                Some((&STDERR_TAG, rest)) => errors.write(rest)?,
                _ => {}
            },
            Message::Binary(bytes) => output.write(&bytes)?,
            Message::Text(text) => {
                let ExecMessage::Exit(code) =
                    serde_json::from_str(&text).or_fault("reading a message")?;
                return Ok(Ending::Exit(code));
            }
            Message::Close(frame) => {
                let reason = frame.map(|frame| frame.reason.to_string());
                return Ok(Ending::Closed(reason.unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(Fault::new(FaultKind::ServiceUnavailable, "the connection to the service is lost"))
}

/// Shows a console's log and what comes after it, without gap or repetition:
/// the socket was opened before the log was read, so what both have is cut.
pub(super) async fn follow(log: &[u8], mut socket: Socket, mut output: Stream) -> Result<Ending> {
    output.write(log)?;
    let mut early = Vec::new();
    while let Some(Some(Ok(Message::Binary(bytes)))) = socket.next().now_or_never() {
        early.extend_from_slice(&bytes);
    }
    output.write(&early[overlap(log, &early)..])?;
    let (_keep_open, receiver) = socket.split();
    show(receiver, false, output).await
}

/// Length of the longest end of `first` that is a beginning of `second`.
fn overlap(first: &[u8], second: &[u8]) -> usize {
    let longest = first.len().min(second.len());
    (0..=longest).rev().find(|n| first.ends_with(&second[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps() {
        for (first, second, length) in
            [("abc", "bcd", 2), ("abc", "abc", 3), ("abc", "x", 0), ("", "x", 0), ("aab", "ab", 2)]
        {
            assert_eq!(overlap(first.as_bytes(), second.as_bytes()), length, "{first} {second}");
        }
    }
}

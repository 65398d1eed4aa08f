//! Sends an image's content to Glance while it is being made.
//!
//! Whoever makes the content writes it here, on a blocking thread; a small
//! event loop sends it in pieces. Content that is given up half-way breaks the
//! connection, so that Glance never takes a part for the whole.

use std::io::{self, Write};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Body, StatusCode};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::access::Access;
use super::failure::{unavailable, without_url};
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Bytes that are sent at once.
const PIECE: usize = 1 << 18;
/// Pieces that wait to be sent: they bound the memory.
const WAITING: usize = 8;
/// How long Glance may take no byte.
const SILENCE: Duration = Duration::from_secs(120);
/// How long Glance may take to keep the content once it has all of it.
const ANSWER: Duration = Duration::from_secs(900);

/// An image's content on its way to Glance. Dropped before
/// [`finish`](Self::finish), nothing of it becomes the image's content.
pub struct Upload {
    runtime: Runtime,
    pieces: mpsc::Sender<Piece>,
    answer: JoinHandle<Result<()>>,
    next: BytesMut,
}

enum Piece {
    Bytes(Bytes),
    End,
}

impl Upload {
    /// Begins `PUT {endpoint}/v2/images/{image}/file`. The image must be there, without content.
    pub fn start(access: Access<'_>, image: Uuid, config: &config::Images) -> Result<Upload> {
        access.check(image, config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .or_fault("starting the upload's event loop")?;
        let granted = access.grant(&runtime, config)?;
        let url = granted.file_url(image, config)?;
        let client = granted.client(config)?.build().or_fault("preparing the upload")?;
        let (pieces, waiting) = mpsc::channel(WAITING);
        let answer = runtime.spawn(async move {
            let request = client
                .put(url)
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(Body::wrap_stream(content(waiting)));
            let answer = request.send().await.map_err(|e| unavailable(without_url(e)))?;
            judge(answer.status())
        });
        Ok(Upload { runtime, pieces, answer, next: BytesMut::with_capacity(PIECE) })
    }

    /// Ends the content and waits until Glance has it.
    pub fn finish(mut self) -> Result<()> {
        let ended = self.send_next().and_then(|()| self.send(Piece::End));
        // Why it was not taken is in the answer.
        self.answer(if ended.is_ok() { ANSWER } else { Duration::ZERO })
    }

    /// Gives it up after `fault`: Glance's own word, should it be the cause.
    pub fn give_up(mut self, fault: Fault) -> Fault {
        let answered = self.answer(Duration::ZERO);
        if self.answer.is_finished() { answered.err().unwrap_or(fault) } else { fault }
    }

    fn answer(&mut self, patience: Duration) -> Result<()> {
        let Upload { runtime, answer, .. } = self;
        // The answer to a refusal is there, or on its way through this process.
        let patience = patience + Duration::from_secs(1);
        match runtime.block_on(async { tokio::time::timeout(patience, answer).await }) {
            Ok(ended) => ended.or_fault("uploading an image")?,
            Err(_) => Err(unavailable("it did not answer in time")),
        }
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        let sent = async { self.pieces.send_timeout(piece, SILENCE).await };
        self.runtime.block_on(sent).map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => io::ErrorKind::TimedOut.into(),
            mpsc::error::SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
        })
    }

    fn send_next(&mut self) -> io::Result<()> {
        match self.next.split().freeze() {
            empty if empty.is_empty() => Ok(()),
            piece => self.send(Piece::Bytes(piece)),
        }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PIECE - self.next.len())];
        self.next.extend_from_slice(bytes);
        if self.next.len() == PIECE {
            self.send_next()?;
            self.next.reserve(PIECE);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The pieces up to [`Piece::End`]; without it the content is broken off.
fn content(waiting: mpsc::Receiver<Piece>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(waiting, |mut waiting| async {
        match waiting.recv().await {
            Some(Piece::Bytes(bytes)) => Ok(Some((bytes, waiting))),
            Some(Piece::End) => Ok(None),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    })
}

fn judge(status: StatusCode) -> Result<()> {
    let forbidden = |why: &str| Err(Fault::new(FaultKind::GlanceForbidden, why));
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED => forbidden("the token is not accepted; it may have expired"),
        StatusCode::FORBIDDEN => forbidden("the token may not write this image"),
        StatusCode::NOT_FOUND => forbidden("the image does not exist or the token may not see it"),
        StatusCode::CONFLICT => {
            Err(unavailable("the image has content already, or is being written"))
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            Err(unavailable("the image is larger than the project's quota or Glance's limit"))
        }
        status => Err(unavailable(format!("it answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::thread::{self, JoinHandle};

    const TOKEN: &str = "gAAAA-secret";

    /// Takes one request whole, or what there is of it, and answers.
    fn glance(answer: &'static str) -> (String, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut buffer = [0; 65536];
            while !seen.ends_with(b"\r\n0\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return seen,
                    Ok(n) => seen.extend_from_slice(&buffer[..n]),
                }
            }
            reply(&mut stream, answer);
            seen
        });
        (endpoint, thread)
    }

    fn reply(stream: &mut TcpStream, answer: &str) {
        let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
    }

    fn access(endpoint: &str) -> Access<'_> {
        let service_token = Some("gAAAA-of-nova");
        let (endpoint, token) = (Some(endpoint), Some(TOKEN));
        Access { section: "destination", endpoint, token, service_token }
    }

    fn start(endpoint: &str) -> Upload {
        Upload::start(access(endpoint), Uuid::from_u128(5), &config::Images::default()).unwrap()
    }

    #[test]
    fn the_content_is_sent_with_the_token() {
        let (endpoint, thread) = glance("204 No Content");
        let mut upload = start(&endpoint);
        upload.write_all(&vec![0xff; 3 * PIECE + 5]).unwrap();
        upload.finish().unwrap();
        let seen = thread.join().unwrap();
        let text = String::from_utf8_lossy(&seen);
        assert!(text.starts_with("PUT /v2/images/00000000-0000-0000-0000-000000000005/file "));
        assert!(
            text.to_ascii_lowercase().contains(&format!("x-auth-token: {}", TOKEN.to_lowercase()))
        );
        assert_eq!(seen.iter().filter(|byte| **byte == 0xff).count(), 3 * PIECE + 5);
    }

    #[test]
    fn content_that_is_given_up_never_looks_whole() {
        let (endpoint, thread) = glance("204 No Content");
        let mut upload = start(&endpoint);
        upload.write_all(&vec![0; 2 * PIECE]).unwrap();
        drop(upload);
        // Its connection may not even have been made; somebody must come.
        let _ = TcpStream::connect(endpoint.trim_start_matches("http://"));
        assert!(!thread.join().unwrap().ends_with(b"\r\n0\r\n\r\n"));
    }

    #[test]
    fn refusals_are_told_apart_and_never_show_the_token() {
        for (answer, kind) in [
            ("401 Unauthorized", FaultKind::GlanceForbidden),
            ("403 Forbidden", FaultKind::GlanceForbidden),
            ("404 Not Found", FaultKind::GlanceForbidden),
            ("409 Conflict", FaultKind::GlanceUnavailable),
            ("413 Too Large", FaultKind::GlanceUnavailable),
            ("503 Busy", FaultKind::GlanceUnavailable),
        ] {
            let (endpoint, _) = glance(answer);
            let fault = start(&endpoint).finish().unwrap_err();
            assert_eq!(fault.kind, kind, "{answer}");
            assert!(!format!("{fault:?}").contains(TOKEN));
        }
        let refused = Upload::start(access("ftp://x"), Uuid::nil(), &config::Images::default());
        assert_eq!(refused.err().unwrap().field.as_deref(), Some("destination.endpoint"));
    }

    #[test]
    fn a_refusal_in_the_middle_ends_the_writing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1000];
            stream.read_exact(&mut buffer).unwrap();
            reply(&mut stream, "401 Unauthorized");
        });
        let mut upload = start(&endpoint);
        let failed = (0..10_000).any(|_| upload.write_all(&[0; 65536]).is_err());
        assert!(failed);
        let fault = upload.give_up(Fault::internal("packing", "stopped"));
        assert_ne!(fault.kind, FaultKind::Internal, "{fault}");
        thread.join().unwrap();
    }
}

//! A connection to another host's service: HTTP/1.1 over mutual TLS.
//!
//! A connection of hyper's, and no client's: whose certificate the other side has must be known
//! before the first byte is sent, for any client of the cloud has one of the same authority.

use std::io::{self, ErrorKind, Write};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use openssl::nid::Nid;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode, SslVersion};
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Handle as Runtime;
use tokio::time::{error::Elapsed, timeout};
use tokio_openssl::SslStream;

use crate::config::Config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::Problem;

/// Longest that a connection to one address may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest that a request and its answer may take, unless the other side has much to do; of a
/// stream, each part and the answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const LONGEST_ANSWER: usize = 1 << 20;
/// Bytes that are sent as one part of a body of unknown length.
const PART: usize = 1 << 18;

/// Another host's service.
pub struct Peer {
    to: String,
    host: String,
    port: u16,
    connector: SslConnector,
    runtime: Runtime,
}

/// A connection to it. For threads that may wait.
pub struct Line {
    runtime: Runtime,
    requests: SendRequest<Body>,
    host: HeaderValue,
    request_id: HeaderValue,
    patience: Duration,
}

type Body = Either<Full<Bytes>, Channel<Bytes, io::Error>>;
type Error = Box<dyn std::error::Error + Send + Sync>;

impl Peer {
    /// The service at `to`, if instances may go there. For threads of the runtime.
    pub fn new(config: &Config, to: &str) -> Result<Peer> {
        let (host, port) = parse(to)?;
        let connector = connector(config)?;
        let runtime = Runtime::try_current().or_fault("looking for the service's runtime")?;
        Ok(Peer { to: to.to_owned(), host, port, connector, runtime })
    }

    /// Whether instances may go there, as far as this host knows.
    pub fn check(config: &Config, to: &str) -> Result<()> {
        parse(to)?;
        connector(config).map(drop)
    }

    /// Its address, as it was given.
    pub fn address(&self) -> &str {
        &self.to
    }

    /// Connects; `request_id` goes along with every request.
    pub fn connect(&self, request_id: &str) -> Result<Line> {
        let doing = "preparing a request to another host's service";
        let host = HeaderValue::try_from(format!("{}:{}", self.host, self.port)).or_fault(doing)?;
        let request_id = HeaderValue::try_from(request_id).or_fault(doing)?;
        let requests = self.runtime.block_on(self.open()).map_err(|why| {
            Fault::new(
                FaultKind::PeerUnavailable,
                format!(
                    "connecting to {}: {why}: look whether the service runs there, whether its \
                     certificate is for that host and its common name in migration.peers here, \
                     and this host's there",
                    self.to
                ),
            )
        })?;
        let runtime = self.runtime.clone();
        Ok(Line { runtime, requests, host, request_id, patience: PATIENCE })
    }

    async fn open(&self) -> std::result::Result<SendRequest<Body>, Error> {
        let stream = self.dial().await?;
        stream.set_nodelay(true)?;
        let ssl = self.connector.configure()?.into_ssl(&self.host)?;
        let mut stream = SslStream::new(ssl, stream)?;
        timeout(PATIENCE, Pin::new(&mut stream).connect()).await??;
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the line; whoever waits for an answer is told of its faults.
        tokio::spawn(connection);
        Ok(requests)
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let mut failed = io::Error::from(ErrorKind::AddrNotAvailable);
        for address in lookup_host((self.host.as_str(), self.port)).await? {
            match timeout(CONNECT, TcpStream::connect(address)).await.map_err(io::Error::from) {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) | Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// TLS to other hosts' services, and to nobody else.
fn connector(config: &Config) -> Result<SslConnector> {
    let Some(tls) = config.service.tls.as_ref().filter(|_| !config.migration.peers.is_empty())
    else {
        return Err(Fault::new(
            FaultKind::HostUnsupported,
            "no instance moves from this host: set migration.peers, and service.tls",
        ));
    };
    let doing = "preparing TLS to another host's service";
    let mut connector = SslConnector::builder(SslMethod::tls_client()).or_fault(doing)?;
    connector.set_min_proto_version(Some(SslVersion::TLS1_2)).or_fault(doing)?;
    connector.set_ca_file(&tls.client_ca).or_fault(doing)?;
    connector.set_certificate_chain_file(&tls.certificate).or_fault(doing)?;
    connector.set_private_key_file(&tls.private_key, SslFiletype::PEM).or_fault(doing)?;
    let peers = config.migration.peers.clone();
    connector.set_verify_callback(SslVerifyMode::PEER, move |verified, context| {
        if !verified || context.error_depth() > 0 {
            return verified;
        }
        let certificate = context.current_cert();
        let name = certificate.and_then(|found| {
            let entry = found.subject_name().entries_by_nid(Nid::COMMONNAME).next()?;
            entry.data().to_string().ok()
        });
        name.is_some_and(|name| peers.contains(&name))
    });
    Ok(connector.build())
}

/// Host and port of an address.
fn parse(to: &str) -> Result<(String, u16)> {
    let parsed = || {
        let url = reqwest::Url::parse(to).ok()?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && matches!(url.path(), "" | "/")
            && url.query().is_none();
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        (url.scheme() == "https" && plain).then(|| Some((host, url.port()?)))?
    };
    parsed().ok_or_else(|| Fault::invalid("to", "must be https://host:port of another service"))
}

/// What is sent with a request.
pub enum Content {
    /// Nothing.
    Nothing,
    /// A JSON document.
    Json(Vec<u8>),
    /// Bytes.
    Bytes(Bytes),
}

impl Line {
    /// Sends a request and takes its answer. The fault is the other service's, or
    /// [`FaultKind::PeerUnavailable`], after which the line is of no use.
    pub fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<T> {
        let (kind, bytes) = match content {
            Content::Nothing => (None, Bytes::new()),
            Content::Json(bytes) => (Some("application/json"), bytes.into()),
            Content::Bytes(bytes) => (Some("application/octet-stream"), bytes),
        };
        let request = self.compose(method, path, kind, Either::Left(Full::new(bytes)))?;
        let (requests, patience) = (&mut self.requests, self.patience);
        let answer = self.runtime.block_on(async {
            // One that ended after the answer before is noticed here.
            requests.ready().await.map_err(broken)?;
            within(patience, answer(requests.send_request(request))).await
        })?;
        decode(answer)
    }

    /// How long the other side may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends what `write` gives as the body of a request, of any length.
    pub fn stream<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<T> {
        let (sender, body) = Channel::new(1);
        let kind = Some("application/octet-stream");
        let request = self.compose(method, path, kind, Either::Right(body))?;
        let answer = self.runtime.spawn(answer(self.requests.send_request(request)));
        let mut parts = Parts {
            runtime: &self.runtime,
            sender,
            held: Vec::with_capacity(PART),
            refused: &|| answer.is_finished(),
        };
        let written = write(&mut parts).and_then(|()| parts.send().map_err(broken));
        match &written {
            Ok(()) => drop(parts),
            // Cut off, it must not look like the end.
            Err(_) => parts.sender.abort(ErrorKind::BrokenPipe.into()),
        }
        let waiting = answer.abort_handle();
        let answer = self.runtime.block_on(within(self.patience, async {
            answer.await.unwrap_or_else(|defect| Err(broken(defect)))
        }));
        // Of a peer that is silent for too long nothing is kept open.
        waiting.abort();
        match (written, answer) {
            // Its word on why it takes no more goes first.
            (_, Ok(answer)) if answer.0 >= 400 => decode(answer),
            (Err(fault), _) => Err(fault),
            (Ok(()), answer) => decode(answer?),
        }
    }

    fn compose(
        &self,
        method: Method,
        path: &str,
        kind: Option<&'static str>,
        body: Body,
    ) -> Result<Request<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header("X-Openstack-Request-Id", &self.request_id);
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        request.body(body).or_fault("preparing a request to another host's service")
    }
}

/// The status and the body.
async fn answer(
    coming: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<(u16, Bytes)> {
    let (head, body) = coming.await.map_err(broken)?.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(broken)?;
    Ok((head.status.as_u16(), body.to_bytes()))
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(patience, work).await.unwrap_or_else(|late: Elapsed| Err(broken(late)))
}

/// The body of a request whose length is not known.
struct Parts<'a> {
    runtime: &'a Runtime,
    sender: Sender<Bytes, io::Error>,
    held: Vec<u8>,
    /// Whether the other side has answered before all was sent.
    refused: &'a dyn Fn() -> bool,
}

impl Parts<'_> {
    fn send(&mut self) -> io::Result<()> {
        if (self.refused)() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let held = std::mem::replace(&mut self.held, Vec::with_capacity(PART));
        let sent = timeout(PATIENCE, self.sender.send_data(held.into()));
        self.runtime.block_on(sent)?.map_err(io::Error::other)
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PART {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(error: impl Into<Error>) -> Fault {
    let mut told = String::new();
    let error = error.into();
    let mut next: Option<&dyn std::error::Error> = Some(&*error);
    // Of hyper's, the first says least.
    while let Some(error) = next {
        told = if told.is_empty() { error.to_string() } else { format!("{told}: {error}") };
        next = error.source();
    }
    Fault::new(
        FaultKind::PeerUnavailable,
        format!("the connection to the other host's service broke: {told}"),
    )
}

fn decode<T: DeserializeOwned>((status, body): (u16, Bytes)) -> Result<T> {
    if status >= 400 {
        return Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Fault::from(&problem).context("the other host"),
            Err(_) => Fault::new(
                FaultKind::PeerUnavailable,
                format!("the other host's service answered with status {status}"),
            ),
        });
    }
    let body = if body.is_empty() { b"null" } else { body.as_ref() };
    serde_json::from_slice(body).map_err(|error| {
        Fault::new(
            FaultKind::PeerUnavailable,
            format!("the other host's service answered what this one does not know: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (to, expected) in [
            ("https://compute2:8788", Some(("compute2", 8788))),
            ("https://192.0.2.2:8788/", Some(("192.0.2.2", 8788))),
            ("https://[2001:db8::2]:8788", Some(("2001:db8::2", 8788))),
            ("https://compute2", None),
            ("http://compute2:8788", None),
            ("https://user@compute2:8788", None),
            ("https://compute2:8788/v1", None),
            ("compute2:8788", None),
        ] {
            let found = parse(to);
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port)).ok();
            assert_eq!(found, expected, "{to}");
        }
    }

    #[test]
    fn another_services_fault_stays_what_it_was() {
        let fault = Fault::new(FaultKind::ResourcesExhausted, "no room");
        let body = serde_json::to_vec(&Problem::from(&fault)).unwrap();
        let told = decode::<()>((507, body.into())).unwrap_err();
        assert_eq!(told.kind, FaultKind::ResourcesExhausted);
        assert_eq!(told.detail, "the other host: no room");
        assert_eq!(
            decode::<()>((502, Bytes::from_static(b"<html>"))).unwrap_err().kind,
            FaultKind::PeerUnavailable
        );
        decode::<()>((204, Bytes::new())).unwrap();
    }
}

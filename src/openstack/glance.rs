//! Downloads an image's content from Glance.
//!
//! The image store is synchronous, so [`Download`] is too: it drives one HTTP
//! exchange on a small event loop of its own, on the caller's thread. Call it
//! from a blocking thread, never from an asynchronous task.
//!
//! A broken connection is taken up again where it broke (`Range`), a few
//! times, with growing pauses. Glance looks at the token when a request
//! begins: one that expires later harms nothing unless the connection breaks,
//! and not even then if Nova's service token came with it, or if the service
//! has credentials of its own: what a user's token began, they end. Without,
//! the import ends with `glance-forbidden`, and Nova's next attempt brings a
//! new token.
//! The tokens go into headers that are marked as sensitive, to the endpoint's
//! own host only, and into nothing else.

use std::time::Duration;

use bytes::{Buf, Bytes};
use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use uuid::Uuid;

use super::access::{Access, Granted};
use super::failure::{unavailable, without_url};
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// How long Glance may give no byte.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a break is mended before it counts.
const RETRIES: u32 = 4;
/// First pause after a break; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// After so many bytes a break counts as the first again.
const PROGRESS: u64 = 1 << 20;

/// An image's content on its way.
pub struct Download {
    runtime: Runtime,
    client: Client,
    granted: Granted,
    config: config::Images,
    image: Uuid,
    url: Url,
    pause: Duration,
    response: Option<Response>,
    /// What came of waiting for the next piece.
    next: Option<reqwest::Result<Option<Bytes>>>,
    /// Bytes that arrived and were not taken.
    arrived: Bytes,
    /// Bytes of the content that arrived.
    offset: u64,
    /// Bytes that a server without ranges sends again.
    repeated: u64,
    total: Option<u64>,
    breaks: u32,
    last_break: u64,
    /// The token was renewed at this offset.
    renewed_at: Option<u64>,
}

/// Why one attempt ended.
enum Failure {
    /// Another one may work.
    Passing(Fault),
    /// The token was good when the image began and is not any more.
    Expired(Fault),
    /// No other will.
    Lasting(Fault),
}

impl Download {
    /// Prepares `GET {endpoint}/v2/images/{id}/file` and checks its parts; connects at the first read.
    pub fn new(access: Access<'_>, image: Uuid, config: &config::Images) -> Result<Download> {
        access.check(image, config)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .or_fault("starting the download's event loop")?;
        let granted = access.grant(&runtime, config)?;
        Ok(Download {
            runtime,
            client: client(&granted, config)?,
            url: granted.file_url(image, config)?,
            granted,
            config: config.clone(),
            image,
            pause: PAUSE,
            response: None,
            next: None,
            arrived: Bytes::new(),
            offset: 0,
            repeated: 0,
            total: None,
            breaks: 0,
            last_break: 0,
            renewed_at: None,
        })
    }

    /// Bytes of the whole content, once Glance has said it.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Takes bytes; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while self.arrived.is_empty() {
            match self.more() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(Failure::Lasting(fault)) => return Err(fault),
                Err(Failure::Passing(fault)) => self.mend(fault)?,
                Err(Failure::Expired(fault)) => self.renew(fault)?,
            }
        }
        let n = buffer.len().min(self.arrived.len());
        self.arrived.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }

    /// Whether there are bytes within this time, or it is known that none come.
    pub fn comes_within(&mut self, limit: Duration) -> bool {
        if !self.arrived.is_empty() || self.next.is_some() {
            return true;
        }
        let Some(response) = &mut self.response else { return false };
        // Inside the event loop, whose timer it is.
        let next = self.runtime.block_on(async { timeout(limit, response.chunk()).await });
        self.next = next.ok();
        self.next.is_some()
    }

    /// Waits for the next piece; false at the end.
    fn more(&mut self) -> Result<bool, Failure> {
        if self.response.is_none() {
            self.connect()?;
        }
        let Some(response) = &mut self.response else { return Ok(false) };
        let next = match self.next.take() {
            Some(next) => next,
            None => self.runtime.block_on(response.chunk()),
        };
        match next {
            Ok(Some(mut piece)) => {
                let again = piece.len().min(usize::try_from(self.repeated).unwrap_or(usize::MAX));
                piece.advance(again);
                self.repeated -= again as u64;
                self.offset += piece.len() as u64;
                self.arrived = piece;
                Ok(true)
            }
            Ok(None) if self.total.is_some_and(|total| self.offset < total) => {
                Err(passing("the content ended early"))
            }
            Ok(None) => Ok(false),
            Err(error) => Err(passing(without_url(error))),
        }
    }

    fn connect(&mut self) -> Result<(), Failure> {
        let mut request = self.client.get(self.url.clone());
        if self.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.offset));
        }
        // Inside the event loop, since even the time limits are its timers.
        let sent = self.runtime.block_on(async { request.send().await });
        let response = sent.map_err(|error| {
            if error.is_redirect() {
                Failure::Lasting(unavailable(without_url(error)))
            } else {
                passing(without_url(error))
            }
        })?;
        self.accept(&response)?;
        self.response = Some(response);
        Ok(())
    }

    /// Judges the status. Glance answers 404 for an image that the token's
    /// project may not see, so 404 counts as refused access, like 403.
    fn accept(&mut self, response: &Response) -> Result<(), Failure> {
        let forbidden = |why: &str| Failure::Lasting(Fault::new(FaultKind::GlanceForbidden, why));
        match response.status() {
            StatusCode::OK => {
                self.repeated = self.offset;
                self.total = response.content_length();
                Ok(())
            }
            StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(self.offset) => {
                self.repeated = 0;
                Ok(())
            }
            StatusCode::NO_CONTENT => Err(Failure::Lasting(unavailable(
                "the image has no content yet; upload it, then try again",
            ))),
            // Only of what was being read: whoever may not begin gets nothing.
            StatusCode::UNAUTHORIZED if self.offset > 0 => Err(Failure::Expired(Fault::new(
                FaultKind::GlanceForbidden,
                "the token expired while the connection was broken",
            ))),
            StatusCode::UNAUTHORIZED => {
                Err(forbidden("the token is not accepted; it may have expired"))
            }
            StatusCode::FORBIDDEN => Err(forbidden("the token may not read this image")),
            StatusCode::NOT_FOUND => {
                Err(forbidden("the image does not exist or the token may not see it"))
            }
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
                Err(passing(format!("it answered {status}")))
            }
            status if status.is_server_error() => Err(passing(format!("it answered {status}"))),
            status => Err(Failure::Lasting(unavailable(format!("it answered {status}")))),
        }
    }

    /// Goes on with a token of the service's own, once at any place.
    fn renew(&mut self, fault: Fault) -> Result<()> {
        if self.config.keystone.is_none() || self.renewed_at == Some(self.offset) {
            return Err(fault);
        }
        self.renewed_at = Some(self.offset);
        self.granted = Granted::own(self.granted.section(), &self.runtime, &self.config)?;
        self.url = self.granted.file_url(self.image, &self.config)?;
        self.client = client(&self.granted, &self.config)?;
        tracing::info!(offset = self.offset, "the token expired; going on with the service's own");
        Ok(())
    }

    /// Waits before another attempt, or gives up with `fault`.
    fn mend(&mut self, fault: Fault) -> Result<()> {
        self.response = None;
        if self.offset - self.last_break >= PROGRESS {
            self.breaks = 0;
        }
        if self.breaks >= RETRIES {
            return Err(fault);
        }
        tracing::info!(offset = self.offset, reason = %fault.detail, "the download broke; going on");
        std::thread::sleep(self.pause * 2_u32.pow(self.breaks));
        self.breaks += 1;
        self.last_break = self.offset;
        Ok(())
    }
}

fn client(granted: &Granted, config: &config::Images) -> Result<Client> {
    granted.client(config)?.read_timeout(SILENCE).build().or_fault("preparing the download")
}

fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn passing(why: impl Into<String>) -> Failure {
    Failure::Passing(unavailable(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, Request, ResponseTemplate};

    const TOKEN: &str = "gAAAA-secret";

    /// A mock Glance on an event loop of its own, since downloads block.
    struct Glance {
        _runtime: Runtime,
        server: MockServer,
        id: Uuid,
    }

    impl Glance {
        fn answering(
            answer: impl Fn(&Request) -> ResponseTemplate + Send + Sync + 'static,
        ) -> Glance {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let id = Uuid::new_v4();
            let server = runtime.block_on(async {
                let server = MockServer::start().await;
                Mock::given(method("GET"))
                    .and(path(format!("/v2/images/{id}/file")))
                    .and(header("x-auth-token", TOKEN))
                    .respond_with(answer)
                    .mount(&server)
                    .await;
                server
            });
            Glance { _runtime: runtime, server, id }
        }

        fn download(&self) -> Download {
            quick(&self.server.uri(), self.id)
        }
    }

    fn quick(endpoint: &str, id: Uuid) -> Download {
        let (endpoint, token) = (Some(endpoint), Some(TOKEN));
        let access = Access { section: "source", endpoint, token, service_token: None };
        let mut download = Download::new(access, id, &config::Images::default()).unwrap();
        download.pause = Duration::from_millis(1);
        download
    }

    fn all(mut download: Download) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match download.read(&mut buffer)? {
                0 => return Ok(bytes),
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }

    #[test]
    fn the_content_arrives() {
        let glance =
            Glance::answering(|_| ResponseTemplate::new(200).set_body_bytes(vec![7; 100_000]));
        let mut download = glance.download();
        let mut buffer = [0; 10];
        assert_eq!(download.read(&mut buffer).unwrap(), 10);
        assert_eq!(download.total(), Some(100_000));
        assert_eq!(all(download).unwrap().len(), 99_990);
    }

    #[test]
    fn statuses_become_faults_that_never_show_the_token() {
        for (status, kind) in [
            (401, FaultKind::GlanceForbidden),
            (403, FaultKind::GlanceForbidden),
            (404, FaultKind::GlanceForbidden),
            (204, FaultKind::GlanceUnavailable),
            (400, FaultKind::GlanceUnavailable),
            (500, FaultKind::GlanceUnavailable),
            (503, FaultKind::GlanceUnavailable),
        ] {
            let glance = Glance::answering(move |_| ResponseTemplate::new(status));
            let fault = all(glance.download()).unwrap_err();
            assert_eq!(fault.kind, kind, "{status}");
            assert!(!format!("{fault:?} {fault}").contains(TOKEN));
        }
    }

    #[test]
    fn a_failing_server_is_asked_again() {
        let count = std::sync::atomic::AtomicU32::new(0);
        let glance = Glance::answering(move |_| {
            match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0..3 => ResponseTemplate::new(503),
                _ => ResponseTemplate::new(200).set_body_bytes(b"done".to_vec()),
            }
        });
        assert_eq!(all(glance.download()).unwrap(), b"done");
    }

    #[test]
    fn a_redirection_to_another_host_is_not_followed() {
        let other = Glance::answering(|_| ResponseTemplate::new(200).set_body_bytes(b"x".to_vec()));
        let target = format!("{}/v2/images/{}/file", other.server.uri(), other.id);
        let glance = Glance::answering(move |_| {
            ResponseTemplate::new(302).insert_header("location", target.as_str())
        });
        let fault = all(glance.download()).unwrap_err();
        assert!(fault.detail.contains("another host"), "{fault}");
        let requests = other._runtime.block_on(other.server.received_requests()).unwrap();
        assert!(requests.is_empty());
    }

    /// A server that closes the connection after part of the body, then
    /// answers the rest with `second`.
    fn breaking(second: &'static str) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let answers = ["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", second];
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = vec![0; 4096];
                let n = std::io::Read::read(&mut stream, &mut request).unwrap();
                requests.push(String::from_utf8_lossy(&request[..n]).to_lowercase());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (endpoint, server)
    }

    #[test]
    fn a_broken_download_goes_on_where_it_broke() {
        let (endpoint, server) = breaking(
            "HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\n\
             content-range: bytes 5-9/10\r\n\r\n56789",
        );
        assert_eq!(all(quick(&endpoint, Uuid::nil())).unwrap(), b"0123456789");
        assert!(server.join().unwrap()[1].contains("range: bytes=5-"));
    }

    #[test]
    fn a_server_without_ranges_sends_again_and_the_first_part_is_skipped() {
        let (endpoint, server) =
            breaking("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789");
        assert_eq!(all(quick(&endpoint, Uuid::nil())).unwrap(), b"0123456789");
        server.join().unwrap();
    }

    #[test]
    fn a_range_that_was_not_asked_for_is_a_fault() {
        let (endpoint, server) = breaking(
            "HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\n\
             content-range: bytes 0-4/10\r\n\r\n01234",
        );
        let fault = all(quick(&endpoint, Uuid::nil())).unwrap_err();
        assert_eq!(fault.kind, FaultKind::GlanceUnavailable);
        server.join().unwrap();
    }

    #[test]
    fn a_bad_token_is_named_and_not_shown() {
        for bad in ["", "two\nlines"] {
            let config = config::Images::default();
            let (endpoint, token) = (Some("http://h"), Some(bad));
            let access = Access { section: "source", endpoint, token, service_token: None };
            let fault = Download::new(access, Uuid::nil(), &config).err().unwrap();
            assert_eq!(fault.field.as_deref(), Some("source.token"));
            assert!(!fault.detail.contains("lines"));
        }
    }

    /// Keystone and Glance in one: a token a question, each good for one request.
    fn cloud(id: Uuid, contents: Vec<ResponseTemplate>) -> (Runtime, MockServer) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(async {
            let server = MockServer::start().await;
            let endpoint = json!({"interface": "internal", "url": server.uri()});
            let catalog = json!([{"type": "image", "endpoints": [endpoint]}]);
            let tokens = AtomicUsize::new(0);
            Mock::given(method("POST"))
                .and(path("/v3/auth/tokens"))
                .respond_with(move |request: &Request| {
                    let question: Value = serde_json::from_slice(&request.body).unwrap();
                    let said = &question["auth"]["identity"]["application_credential"];
                    if *said != json!({"id": "0a1b", "secret": "s3cret"}) {
                        return ResponseTemplate::new(401);
                    }
                    let token = format!("own-{}", tokens.fetch_add(1, Ordering::Relaxed));
                    ResponseTemplate::new(201)
                        .insert_header("x-subject-token", token)
                        .set_body_json(json!({"token": {"catalog": catalog}}))
                })
                .mount(&server)
                .await;
            for (number, content) in contents.into_iter().enumerate() {
                Mock::given(method("GET"))
                    .and(path(format!("/v2/images/{id}/file")))
                    .and(header("x-auth-token", format!("own-{number}")))
                    .respond_with(content)
                    .mount(&server)
                    .await;
            }
            server
        });
        (runtime, server)
    }

    fn own(auth_url: String, secret: &str) -> (tempfile::NamedTempFile, config::Images) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(secret.as_bytes()).unwrap();
        let keystone = config::Keystone {
            auth_url,
            application_credential_id: "0a1b".into(),
            secret_file: file.path().to_owned(),
            ..Default::default()
        };
        (file, config::Images { keystone: Some(keystone), ..Default::default() })
    }

    #[test]
    fn the_service_reads_with_credentials_of_its_own() {
        let id = Uuid::new_v4();
        let (_runtime, server) =
            cloud(id, vec![ResponseTemplate::new(200).set_body_bytes(b"content".to_vec())]);
        let access = Access { section: "source", endpoint: None, token: None, service_token: None };
        let (_file, config) = own(server.uri(), "s3cret\n");
        assert_eq!(all(Download::new(access, id, &config).unwrap()).unwrap(), b"content");
        let (_file, config) = own(server.uri(), "wr0ng");
        let fault = Download::new(access, id, &config).err().unwrap();
        assert_eq!(fault.kind, FaultKind::GlanceForbidden);
        assert!(!fault.detail.contains("wr0ng"));
    }

    #[test]
    fn an_expired_token_is_replaced_by_the_services_own_and_only_in_the_middle() {
        let id = Uuid::new_v4();
        let rest = ResponseTemplate::new(206)
            .insert_header("content-range", "bytes 5-9/10")
            .set_body_bytes(b"56789".to_vec());
        let (_runtime, cloud) = cloud(id, vec![rest]);
        let (_file, config) = own(cloud.uri(), "s3cret");
        let (endpoint, server) = breaking("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
        let (endpoint, token) = (Some(endpoint.as_str()), Some(TOKEN));
        let access = Access { section: "source", endpoint, token, service_token: None };
        let mut download = Download::new(access, id, &config).unwrap();
        download.pause = Duration::from_millis(1);
        let mut buffer = [0; 5];
        download.read(&mut buffer).unwrap();
        // It goes on at the endpoint of the service's own catalogue.
        assert_eq!(all(download).unwrap(), b"56789");
        assert_eq!(server.join().unwrap().len(), 2);
        // Whom Glance refuses from the beginning gets nothing by the service's credentials.
        let glance = Glance::answering(|_| ResponseTemplate::new(401));
        let (endpoint, token) = (glance.server.uri(), Some(TOKEN));
        let endpoint = Some(endpoint.as_str());
        let access = Access { section: "source", endpoint, token, service_token: None };
        let refused = Download::new(access, id, &config).unwrap();
        assert_eq!(all(refused).unwrap_err().kind, FaultKind::GlanceForbidden);
    }
}

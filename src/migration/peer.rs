//! A connection to another host's service: HTTP/1.1 over mutual TLS.
//!
//! No library's client is used, since whose certificate it is must be known before the first
//! byte is sent: any client of the cloud has one of the same authority.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use openssl::nid::Nid;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslStream, SslVerifyMode, SslVersion};
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::Problem;

/// Longest that a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest silence of the other side, unless it has much to do.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of a line of an answer's head.
const LONGEST_LINE: u64 = 16 << 10;
/// Most bytes of an answer.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Bytes that are sent as one part of a body of unknown length.
const PART: usize = 1 << 18;

/// Another host's service.
pub struct Peer {
    to: String,
    host: String,
    port: u16,
    connector: SslConnector,
}

/// A connection to it.
pub struct Line {
    stream: BufReader<SslStream<TcpStream>>,
    host: String,
    request_id: String,
}

impl Peer {
    /// The service at `to`, if instances may go there.
    pub fn new(config: &Config, to: &str) -> Result<Peer> {
        let (host, port) = parse(to)?;
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
        Ok(Peer { to: to.to_owned(), host, port, connector: connector.build() })
    }

    /// Its address, as it was given.
    pub fn address(&self) -> &str {
        &self.to
    }

    /// Connects; `request_id` goes along with every request.
    pub fn connect(&self, request_id: &str) -> Result<Line> {
        let unreachable = |why: String| {
            Fault::new(
                FaultKind::PeerUnavailable,
                format!(
                    "connecting to {}: {why}: look whether the service runs there, whether its \
                     certificate is for that host and its common name in migration.peers here, \
                     and this host's there",
                    self.to
                ),
            )
        };
        let stream = self.dial().map_err(|error| unreachable(error.to_string()))?;
        let timed = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        timed.or_fault("preparing a connection to another host's service")?;
        let stream = self
            .connector
            .connect(&self.host, stream)
            .map_err(|error| unreachable(error.to_string()))?;
        let host = format!("{}:{}", self.host, self.port);
        let stream = BufReader::new(stream);
        Ok(Line { stream, host, request_id: request_id.to_owned() })
    }

    fn dial(&self) -> io::Result<TcpStream> {
        let mut failed = io::Error::from(ErrorKind::AddrNotAvailable);
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
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
pub enum Content<'a> {
    /// Nothing.
    Nothing,
    /// A JSON document.
    Json(Vec<u8>),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Line {
    /// Sends a request and takes its answer. The fault is the other service's, or
    /// [`FaultKind::PeerUnavailable`], after which the line is of no use.
    pub fn request<T: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        content: Content<'_>,
    ) -> Result<T> {
        let answer = self.exchange(method, path, content).map_err(broken)?;
        decode(answer)
    }

    /// How long the other side may be silent.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        let stream = self.stream.get_ref().get_ref();
        stream.set_read_timeout(Some(patience)).or_fault("preparing a connection")
    }

    /// Sends what `write` gives as the body of a request, of any length.
    pub fn stream<T: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<T> {
        let head = format!(
            "{}Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            self.head(method, path)
        );
        self.stream.get_mut().write_all(head.as_bytes()).map_err(broken)?;
        let mut body = Parts { line: self.stream.get_mut(), held: Vec::with_capacity(PART) };
        let written = write(&mut body);
        if written.is_ok() {
            body.end().map_err(broken)?;
        }
        match (written, self.answer()) {
            // Its word on why it takes no more goes first.
            (_, Ok(answer)) if answer.0 >= 400 => decode(answer),
            (Err(fault), _) => Err(fault),
            (Ok(()), answer) => decode(answer.map_err(broken)?),
        }
    }

    fn head(&self, method: &str, path: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nX-Openstack-Request-Id: {}\r\n",
            self.host, self.request_id
        )
    }

    fn exchange(
        &mut self,
        method: &str,
        path: &str,
        content: Content<'_>,
    ) -> io::Result<(u16, Vec<u8>)> {
        let (kind, bytes) = match &content {
            Content::Nothing => (None, &[][..]),
            Content::Json(bytes) => (Some("application/json"), bytes.as_slice()),
            Content::Bytes(bytes) => (Some("application/octet-stream"), *bytes),
        };
        let mut head = self.head(method, path);
        if let Some(kind) = kind {
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", bytes.len()));
        let stream = self.stream.get_mut();
        // A server that refuses by the head alone answers and closes: that answer is read.
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(bytes));
        self.answer().map_err(|error| sent.err().unwrap_or(error))
    }

    /// The status and the body.
    fn answer(&mut self) -> io::Result<(u16, Vec<u8>)> {
        let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("{what} is no HTTP"));
        let status = self.line()?;
        let status: u16 = status
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| bad("its first line"))?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("a header"))?;
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| bad("its length"))?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(bad("a length that is not told"));
            }
        }
        if length > LONGEST_ANSWER {
            return Err(bad("so long an answer"));
        }
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body)?;
        if body.len() as u64 == length {
            Ok((status, body))
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        String::from_utf8(line)
            .map(|line| line.trim_end_matches('\r').to_owned())
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

/// The body of a request whose length is not known.
struct Parts<'a> {
    line: &'a mut SslStream<TcpStream>,
    held: Vec<u8>,
}

impl Parts<'_> {
    fn send(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        write!(self.line, "{:x}\r\n", self.held.len())?;
        self.held.extend_from_slice(b"\r\n");
        self.line.write_all(&self.held)?;
        self.held.clear();
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        self.send()?;
        self.line.write_all(b"0\r\n\r\n")
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

fn broken(error: io::Error) -> Fault {
    Fault::new(
        FaultKind::PeerUnavailable,
        format!("the connection to the other host's service broke: {error}"),
    )
}

fn decode<T: DeserializeOwned>((status, body): (u16, Vec<u8>)) -> Result<T> {
    if status >= 400 {
        return Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Fault::from(&problem).context("the other host"),
            Err(_) => Fault::new(
                FaultKind::PeerUnavailable,
                format!("the other host's service answered with status {status}"),
            ),
        });
    }
    let body = if body.is_empty() { b"null" } else { body.as_slice() };
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
        let told = decode::<()>((507, body)).unwrap_err();
        assert_eq!(told.kind, FaultKind::ResourcesExhausted);
        assert_eq!(told.detail, "the other host: no room");
        assert_eq!(
            decode::<()>((502, b"<html>".to_vec())).unwrap_err().kind,
            FaultKind::PeerUnavailable
        );
        decode::<()>((204, vec![])).unwrap();
    }
}

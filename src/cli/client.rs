//! A client of the API over the service's Unix socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use uuid::Uuid;

use crate::api::{ImageList, InstanceList};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::{Operation, Problem};

/// A web socket of the service.
pub(super) type Socket = WebSocketStream<UnixStream>;

/// Where the service is.
pub(super) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// A client of the service behind `socket`; a fault that says what to do
    /// when there is none.
    pub fn new(socket: &Path) -> Result<Client> {
        std::os::unix::net::UnixStream::connect(socket).map_err(|e| explain(socket, &e))?;
        let http = reqwest::Client::builder()
            .unix_socket(socket.to_owned())
            .connect_timeout(Duration::from_secs(5))
            .build()
            .or_fault("preparing the client")?;
        Ok(Client { http, socket: socket.to_owned() })
    }

    /// Reads a resource.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        decode(self.open(path).await?).await
    }

    /// Sends a request with a body and reads the answer.
    pub async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        decode(self.answer(self.request(method, path).json(body)).await?).await
    }

    /// Deletes a resource.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.answer(self.request(Method::DELETE, path)).await.map(|_| ())
    }

    /// Begins long work without waiting for it.
    pub async fn begin(&self, path: &str, body: &impl Serialize) -> Result<Operation> {
        let request = self.request(Method::PUT, path).json(body);
        decode(self.answer(request.header("Prefer", "respond-async")).await?).await
    }

    /// Opens a resource to read it piece by piece.
    pub async fn open(&self, path: &str) -> Result<Response> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// Opens a web socket.
    pub async fn web_socket(&self, path_and_query: &str) -> Result<Socket> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|e| explain(&self.socket, &e))?;
        let address = format!("ws://berth{path_and_query}");
        match tokio_tungstenite::client_async(address, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => Err(read_problem(
                response.body().as_deref().unwrap_or_default(),
                response.status().as_u16(),
            )),
            Err(e) => Err(Fault::internal("opening the web socket", e)),
        }
    }

    /// The instance that a person means.
    pub async fn instance(&self, wanted: &str) -> Result<Uuid> {
        let list: InstanceList = self.get("/v1/instances").await?;
        choose(wanted, "instance", list.instances.into_iter().map(|i| (i.id, i.definition.name)))
    }

    /// The image that a person means.
    pub async fn image(&self, wanted: &str) -> Result<Uuid> {
        let list: ImageList = self.get("/v1/images").await?;
        choose(wanted, "image", list.images.into_iter().map(|i| (i.id, i.name)))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://berth{path}"))
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Response> {
        let response = request
            .send()
            .await
            .or_kind(FaultKind::ServiceUnavailable, "the service does not answer")?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.or_fault("reading the answer")?;
        Err(read_problem(&body, status))
    }
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T> {
    let bytes = response.bytes().await.or_fault("reading the answer")?;
    serde_json::from_slice(&bytes)
        .or_fault("reading the answer; are the service and this command of one version?")
}

fn read_problem(body: &[u8], status: u16) -> Fault {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Fault::from(&problem),
        Err(_) => Fault::new(FaultKind::Internal, format!("the service answered {status}")),
    }
}

/// Why the socket cannot be used, and what to do about it.
fn explain(socket: &Path, error: &std::io::Error) -> Fault {
    let path = socket.display();
    let words = match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
            "the service does not run: nobody listens on {path}. Start it with `systemctl start \
             berth` or `berth serve --config /etc/berth/berth.toml`, or name its socket with --socket"
        ),
        ErrorKind::PermissionDenied => format!(
            "you may not use {path}: become root, or a member of the group in service.socket_group"
        ),
        _ => format!("cannot connect to {path}: {error}"),
    };
    Fault::new(FaultKind::ServiceUnavailable, words)
}

/// What a person types for an id: an instance by its id, its name, or a unique
/// beginning of its id. What fits whole wins over what only begins so; an id
/// wins over a name, which a tenant may have chosen to look like one.
fn choose(wanted: &str, what: &str, known: impl Iterator<Item = (Uuid, String)>) -> Result<Uuid> {
    let known: Vec<_> = known.collect();
    let typed = wanted.to_ascii_lowercase();
    let those = |fits: &dyn Fn(&str, &str) -> bool| -> Vec<Uuid> {
        known.iter().filter(|(id, name)| fits(&id.to_string(), name)).map(|(id, _)| *id).collect()
    };
    let found = [
        those(&|id, _| id == typed),
        those(&|_, name| name == wanted && !name.is_empty()),
        those(&|id, _| !typed.is_empty() && id.starts_with(&typed)),
    ];
    let found = found.into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match found.as_slice() {
        [id] => Ok(*id),
        [] => Err(Fault::invalid(
            what,
            format!("there is none called {wanted:?} and none whose id begins so"),
        )),
        several => {
            let ids: Vec<String> = several.iter().map(Uuid::to_string).collect();
            Err(Fault::invalid(what, format!("{wanted:?} could be {}", ids.join(" or "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_chosen_by_beginning_or_name() {
        let a = Uuid::from_u128(0xaa00 << 112);
        let b = Uuid::from_u128(0xaa01 << 112);
        let known = || [(a, "web".to_owned()), (b, "db".to_owned())].into_iter();
        assert_eq!(choose("web", "instance", known()).unwrap(), a);
        assert_eq!(choose("AA01", "instance", known()).unwrap(), b);
        assert_eq!(choose(&a.to_string(), "instance", known()).unwrap(), a);
        assert!(choose("aa0", "instance", known()).unwrap_err().detail.contains(" or "));
        assert!(choose("", "instance", known()).is_err());
        // A name is meant whole, whatever other ids begin with; no name hides an id.
        let named = || [(a, "aa01".to_owned()), (b, a.to_string())].into_iter();
        assert_eq!(choose("aa01", "instance", named()).unwrap(), a);
        assert_eq!(choose(&a.to_string(), "instance", named()).unwrap(), a);
        let twins = || [(a, "web".to_owned()), (b, "web".to_owned())].into_iter();
        assert!(choose("web", "instance", twins()).unwrap_err().detail.contains(" or "));
        assert!(choose("cache", "instance", known()).is_err());
    }
}

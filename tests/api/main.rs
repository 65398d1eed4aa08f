//! The HTTP API over real sockets, with an instance manager in memory.

mod cli;
mod description;
mod instances;
mod problems;
mod service;
mod streams;
mod tls;

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use berth::config::Config;
use berth::fault::Result;
use berth::server::Server;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use support::fake::{FakeBackend, IMAGE};

/// A service on a Unix socket in a directory of its own.
struct Service {
    backend: Arc<FakeBackend>,
    client: reqwest::Client,
    socket: PathBuf,
    tls_address: Option<std::net::SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
    _dir: tempfile::TempDir,
}

impl Service {
    fn start() -> Service {
        Service::with(FakeBackend::new(), |_, _| {})
    }

    fn with(backend: Arc<FakeBackend>, configure: impl FnOnce(&Path, &mut Config)) -> Service {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.service.socket = dir.path().join("berth.sock");
        config.service.workers = 1;
        config.service.run_dir = dir.path().join("run");
        configure(dir.path(), &mut config);
        let socket = config.service.socket.clone();
        let server = Server::bind(&config).unwrap();
        let tls_address = server.tls_address();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let backend = backend.clone();
            move || {
                actix_web::rt::System::new().block_on(server.run(backend, async {
                    let _ = stopped.await;
                }))
            }
        });
        let client = reqwest::Client::builder().unix_socket(socket.clone()).build().unwrap();
        Service {
            backend,
            client,
            socket,
            tls_address,
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        }
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("http://berth{path}"))
    }

    /// Sends a request and gives its status and JSON body.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        read(request.send().await.unwrap()).await
    }

    /// Makes an instance and starts it.
    async fn running_instance(&self) -> Uuid {
        let id = Uuid::new_v4();
        let path = format!("/v1/instances/{id}");
        assert_eq!(self.call("PUT", &path, Some(definition("one"))).await.0, 201);
        assert_eq!(self.call("POST", &format!("{path}/start"), None).await.0, 200);
        id
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// What the server ended with.
    fn join(&mut self) -> Result<()> {
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.backend.release();
        self.stop();
        let ended = self.join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let bytes = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn definition(name: &str) -> Value {
    json!({
        "name": name,
        "image_id": IMAGE,
        "flavor": {"vcpus": 1, "memory_mb": 64, "root_gb": 1}
    })
}

fn vif(id: Uuid) -> Value {
    json!({"id": id, "devname": "tap1", "address": "fa:16:3e:00:00:01"})
}

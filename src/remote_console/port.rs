//! A port that listens: who connects has the console, until the instance is deleted.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::ssl::SslAcceptor;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{rfb, serial};
use crate::fault::{OrFault, Result};
use crate::instance::backend::Backend;
use crate::instance::event::EventSubscription;
use crate::store::atomic;
use crate::types::{ConsoleProtocol, EventKind, RemoteConsoleRequest};

/// Most connections to one port at a time.
const CONNECTIONS: usize = 16;

/// What a port carries.
#[derive(Clone)]
pub(super) enum Kind {
    /// The console's bytes.
    Serial,
    /// The console as a screen, over TLS where there is an acceptor.
    Vnc(Option<SslAcceptor>),
}

/// A port that listens for as long as this lives.
pub(super) struct Port {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        // Its connections end with it.
        self.task.abort();
    }
}

impl Port {
    /// Listens no more, and has ended its connections, once this returns.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Listens for an instance there is, and removes `file` when it is deleted.
    pub fn listen(
        backend: &Arc<dyn Backend>,
        id: Uuid,
        kind: Kind,
        listener: TcpListener,
        stopping: watch::Receiver<bool>,
        file: PathBuf,
    ) -> Result<Port> {
        let doing = "listening for consoles";
        let address = listener.local_addr().or_fault(doing)?;
        listener.set_nonblocking(true).or_fault(doing)?;
        let listener = tokio::net::TcpListener::from_std(listener).or_fault(doing)?;
        // First to hear of its end, then whether it has come.
        let events = backend.events_after(None)?;
        backend.instance(id)?;
        let protocol = match kind {
            Kind::Serial => ConsoleProtocol::Serial,
            Kind::Vnc(_) => ConsoleProtocol::Vnc,
        };
        let serving = Serving { backend: backend.clone(), id, kind, listener };
        let span = tracing::info_span!("remote_console", %id, ?protocol);
        let task = async move {
            let gone = gone(serving.backend.clone(), id, events);
            tokio::select! {
                () = serving.serve() => {}
                () = gone => drop(forget(&file)),
                () = stopped(stopping) => {}
            }
        };
        Ok(Port { address, task: tokio::spawn(task.instrument(span)) })
    }

    pub fn is_open(&self) -> bool {
        !self.task.is_finished()
    }

    pub fn is_as(&self, request: &RemoteConsoleRequest) -> bool {
        let ports = request.first_port..=request.last_port;
        self.address.ip() == request.address && ports.contains(&self.address.port())
    }
}

/// Removes what is known of a port, and the directory of all with the last.
pub(super) fn forget(file: &Path) -> Result<()> {
    atomic::remove_file(file)?;
    let _ = file.parent().map(std::fs::remove_dir);
    Ok(())
}

/// Ends when the instance is deleted.
async fn gone(backend: Arc<dyn Backend>, id: Uuid, mut events: EventSubscription) {
    loop {
        match events.next().await {
            Ok(event) if event.instance_id == id && event.kind == EventKind::Deleted => return,
            Ok(_) => {}
            // It read too slowly, and goes on from now.
            Err(_) => match backend.events_after(None) {
                Ok(anew) if backend.instance(id).is_ok() => events = anew,
                _ => return,
            },
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

struct Serving {
    backend: Arc<dyn Backend>,
    id: Uuid,
    kind: Kind,
    listener: tokio::net::TcpListener,
}

impl Serving {
    async fn serve(&self) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = self.listener.accept().await;
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((client, _)) if connections.len() < CONNECTIONS => {
                    let (backend, id) = (self.backend.clone(), self.id);
                    connections.spawn(connected(backend, id, self.kind.clone(), client));
                }
                Ok(_) => tracing::warn!("{CONNECTIONS} have this console, and no more can"),
                Err(error) => {
                    tracing::warn!(%error, "taking a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn connected(backend: Arc<dyn Backend>, id: Uuid, kind: Kind, client: TcpStream) {
    let _ = client.set_nodelay(true);
    // A proxy that vanished without a word holds its place no longer than this.
    let _ = rustix::net::sockopt::set_socket_keepalive(&client, true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&client, 60_000);
    let ended = match kind {
        Kind::Serial => serial::serve(backend, id, client).await,
        Kind::Vnc(acceptor) => rfb::serve(backend, id, client, acceptor).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the console ended");
    }
}

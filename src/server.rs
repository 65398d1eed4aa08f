//! Listening, and stopping well.
//!
//! A Unix socket always; its mode and group say who may connect. TCP only with
//! mutual TLS. On SIGTERM or SIGINT nothing new is taken, streams end, and
//! operations under way get a while to finish; instances never notice.

mod listen;
mod socket_file;
mod systemd;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_tls::accept::openssl::TlsStream;
use actix_web::HttpServer;
use actix_web::rt::net::{TcpStream, UnixStream};
use openssl::ssl::SslAcceptor;
use tokio::sync::watch;

use self::listen::Listeners;
use crate::api::{self, Api, Peer};
use crate::config;
use crate::fault::{Fault, OrFault, Result};
use crate::instance::backend::Backend;
use crate::remote_console::{self, RemoteConsoles};
use crate::store::layout::Layout;

/// How long a stop waits for operations under way. What has not ended then
/// goes on where it left off, or is undone, at the next start.
pub const DRAIN: Duration = Duration::from_secs(60);

/// How long an idle connection is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// A service that listens and does not answer yet.
pub struct Server {
    listeners: Listeners,
    workers: usize,
    consoles: PathBuf,
    /// TLS of consoles by VNC.
    vnc: Option<SslAcceptor>,
    /// Common names of other hosts' services.
    peers: Vec<String>,
}

impl Server {
    /// Listens as the configuration says. Connections wait until [`run`](Self::run).
    pub fn bind(config: &config::Config) -> Result<Server> {
        Ok(Server {
            listeners: Listeners::bind(config)?,
            workers: worker_count(config.service.workers),
            consoles: Layout::new(&config.service.state_dir, &config.service.run_dir).consoles(),
            vnc: remote_console::acceptor(&config.vnc)?,
            peers: config.migration.peers.clone(),
        })
    }

    /// The address of the TCP listener, where there is one.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.listeners.tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Answers until `stop` ends, and then for as long as operations take, at
    /// most [`DRAIN`]. To be run in an actix system.
    pub async fn run(
        self,
        backend: Arc<dyn Backend>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let Server { listeners: Listeners { unix, socket, tls }, workers, consoles, vnc, peers } =
            self;
        let (stopping, is_stopping) = watch::channel(false);
        let remote_consoles =
            RemoteConsoles::new(backend.clone(), consoles, vnc, is_stopping.clone());
        let api = Api::new(backend.clone(), remote_consoles.clone(), is_stopping);
        let mut server = HttpServer::new(move || api::app(api.clone()))
            .workers(workers)
            .keep_alive(KEEP_ALIVE)
            .shutdown_timeout(DRAIN.as_secs() + 5)
            .disable_signals()
            .on_connect(move |connection, data| {
                if let Some(unix) = connection.downcast_ref::<UnixStream>() {
                    data.insert(Peer { name: describe_peer(unix), moves_instances: false });
                } else if let Some(tls) = connection.downcast_ref::<TlsStream<TcpStream>>() {
                    let certificate = tls.ssl().peer_certificate();
                    let name = certificate.and_then(|found| tls::common_name(&found));
                    let moves_instances = name.as_ref().is_some_and(|name| peers.contains(name));
                    let name = format!("tls {}", name.unwrap_or_default());
                    data.insert(Peer { name, moves_instances });
                }
            })
            .listen_uds(unix)
            .or_fault("listening on the Unix socket")?;
        if let Some((listener, acceptor)) = tls {
            server = server.listen_openssl(listener, acceptor).or_fault("listening with TLS")?;
        }
        remote_consoles.reopen().await;
        let server = server.run();
        let handle = server.handle();
        let mut serving = actix_web::rt::spawn(server);
        let _watchdog = systemd::Watchdog::start(backend.clone());
        systemd::notify(sd_notify::NotifyState::Ready);
        tracing::info!(socket = %socket.path.display(), "the service is ready");

        tokio::select! {
            () = stop => {}
            ended = &mut serving => {
                ended.or_fault("serving HTTP")?.or_fault("serving HTTP")?;
                return Err(Fault::internal("serving HTTP", "the server ended by itself"));
            }
        }
        tracing::info!("the service is stopping");
        systemd::notify(sd_notify::NotifyState::Stopping);
        stopping.send_replace(true);
        // The path goes first: a service that starts now makes its own.
        drop(socket);
        tokio::join!(handle.stop(true), drain(&*backend));
        serving.await.or_fault("stopping")?.or_fault("stopping")?;
        tracing::info!("the service has stopped; instances run on");
        Ok(())
    }
}

/// Checks what the listeners need of the host, and listens on nothing.
pub fn verify(config: &config::Config) -> Result<()> {
    listen::group_id(&config.service.socket_group)?;
    let tls = config.service.tls.as_ref();
    tls.map_or(Ok(()), |tls| tls::acceptor(tls, &config.migration).map(drop))?;
    remote_console::acceptor(&config.vnc).map(drop)
}

/// Waits for operations under way, within bounds.
async fn drain(backend: &dyn Backend) {
    let all = async {
        for operation in backend.unfinished_operations() {
            operation.wait().await;
        }
    };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        for operation in backend.unfinished_operations() {
            let operation = operation.snapshot();
            tracing::warn!(id = %operation.id, kind = operation.kind, target = %operation.target,
                stage = operation.stage, "left unfinished");
        }
    }
}

/// Ends at SIGTERM or SIGINT. SIGHUP, which a closed terminal sends, is ignored:
/// there is nothing to read anew.
pub fn stop_signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let doing = "taking signals";
    let mut terminate = signal(SignalKind::terminate()).or_fault(doing)?;
    let mut interrupt = signal(SignalKind::interrupt()).or_fault(doing)?;
    let mut hangup = signal(SignalKind::hangup()).or_fault(doing)?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => tracing::debug!("SIGHUP: there is nothing to read anew"),
            }
        }
    })
}

fn worker_count(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
        count => count,
    }
}

fn describe_peer(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(peer) => {
            let pid = peer.pid().map_or_else(|| "?".to_owned(), |pid| pid.to_string());
            format!("uid={} pid={pid}", peer.uid())
        }
        Err(_) => "unix".to_owned(),
    }
}

//! Consoles over TCP, for Nova's own proxies (`ComputeDriver.get_serial_console`,
//! `get_vnc_console`): a port for each instance and protocol, opened when Nova first asks.
//!
//! * [`port`] listens, and ends with its instance.
//! * [`serial`] carries the console's bytes to nova-serialproxy.
//! * [`rfb`] draws them as a screen for nova-novncproxy.
//!
//! A port is the same after the service was away: Nova's token names it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use openssl::ssl::{SslAcceptor, SslAcceptorBuilder};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use self::port::{Kind, Port};
use crate::config::Vnc;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::backend::Backend;
use crate::store::atomic;
use crate::tls::{self, Files};
use crate::types::{ConsoleProtocol, RemoteConsole, RemoteConsoleRequest};

mod attached;
mod port;
mod rfb;
mod serial;

/// The ports that are open.
pub struct RemoteConsoles {
    backend: Arc<dyn Backend>,
    /// A file for each port that is open, volatile: `ID.PROTOCOL`.
    directory: PathBuf,
    /// None: by VNC a console is there without TLS.
    vnc: Option<SslAcceptor>,
    stopping: watch::Receiver<bool>,
    ports: Mutex<BTreeMap<(Uuid, ConsoleProtocol), Port>>,
}

impl RemoteConsoles {
    /// None is open yet. Once `stopping` is true, all end.
    pub fn new(
        backend: Arc<dyn Backend>,
        directory: PathBuf,
        vnc: Option<SslAcceptor>,
        stopping: watch::Receiver<bool>,
    ) -> Arc<RemoteConsoles> {
        Arc::new(RemoteConsoles { backend, directory, vnc, stopping, ports: Mutex::default() })
    }

    /// Opens a port, unless there is one that is as asked for.
    pub async fn open(
        &self,
        id: Uuid,
        protocol: ConsoleProtocol,
        request: RemoteConsoleRequest,
    ) -> Result<RemoteConsole> {
        check(&request)?;
        let mut ports = self.ports.lock().await;
        let open = ports.get(&(id, protocol));
        if let Some(port) = open.filter(|port| port.is_open() && port.is_as(&request)) {
            return Ok(described(protocol, port.address));
        }
        let port = self.listen(id, protocol, bind(&request)?)?;
        let console = described(protocol, port.address);
        std::fs::create_dir_all(&self.directory).or_fault("making the consoles' directory")?;
        atomic::write_json(&self.file(id, protocol), &console)?;
        // Only now: what cannot be opened leaves what is.
        if let Some(before) = ports.insert((id, protocol), port) {
            before.close().await;
        }
        Ok(console)
    }

    /// Closes a port and ends its connections; that there is none is success.
    pub async fn close(&self, id: Uuid, protocol: ConsoleProtocol) -> Result<()> {
        let mut ports = self.ports.lock().await;
        if let Some(port) = ports.remove(&(id, protocol)) {
            port.close().await;
        }
        port::forget(&self.file(id, protocol))
    }

    /// Opens what was open when the service ended, as far as it can.
    pub async fn reopen(&self) {
        let Ok(files) = std::fs::read_dir(&self.directory) else { return };
        let mut ports = self.ports.lock().await;
        for path in files.flatten().map(|file| file.path()) {
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let console = atomic::read_json::<RemoteConsole>(&path).ok().flatten();
            let Some((id, console)) = id.zip(console) else { continue };
            let address = SocketAddr::new(console.address, console.port);
            let opened = TcpListener::bind(address)
                .or_fault(format_args!("listening on {address}"))
                .and_then(|listener| self.listen(id, console.protocol, listener));
            match opened {
                Ok(port) => drop(ports.insert((id, console.protocol), port)),
                Err(fault) => {
                    tracing::warn!(%id, fault = %fault.in_full(), "a console's port stays closed");
                    let _ = port::forget(&path);
                }
            }
        }
    }

    fn listen(&self, id: Uuid, protocol: ConsoleProtocol, listener: TcpListener) -> Result<Port> {
        let file = self.file(id, protocol);
        let kind = match protocol {
            ConsoleProtocol::Serial => Kind::Serial,
            ConsoleProtocol::Vnc => Kind::Vnc(self.vnc.clone()),
        };
        Port::listen(&self.backend, id, kind, listener, self.stopping.clone(), file)
    }

    fn file(&self, id: Uuid, protocol: ConsoleProtocol) -> PathBuf {
        let protocol = match protocol {
            ConsoleProtocol::Serial => "serial",
            ConsoleProtocol::Vnc => "vnc",
        };
        self.directory.join(format!("{id}.{protocol}"))
    }
}

/// How consoles by VNC take TLS, as the configuration says; `None`: without.
pub fn acceptor(config: &Vnc) -> Result<Option<SslAcceptor>> {
    let files = config.vencrypt.as_ref().map(|files| Files {
        certificate: &files.certificate,
        private_key: &files.private_key,
        client_ca: &files.client_ca,
    });
    let made = files.map(|files| tls::acceptor(files, "vnc.vencrypt")).transpose()?;
    Ok(made.map(SslAcceptorBuilder::build))
}

fn described(protocol: ConsoleProtocol, address: SocketAddr) -> RemoteConsole {
    RemoteConsole { protocol, address: address.ip(), port: address.port() }
}

fn check(request: &RemoteConsoleRequest) -> Result<()> {
    if request.first_port == 0 {
        return Err(Fault::invalid("first_port", "must be 1 to 65535"));
    }
    if request.last_port < request.first_port {
        return Err(Fault::invalid("last_port", "must be first_port to 65535"));
    }
    Ok(())
}

/// The first port of those that may be taken that nobody has.
fn bind(request: &RemoteConsoleRequest) -> Result<TcpListener> {
    let RemoteConsoleRequest { address, first_port, last_port } = *request;
    for port in first_port..=last_port {
        match TcpListener::bind((address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => {
                let detail = format!("listening on {address} port {port}: {error}");
                return Err(Fault::invalid("address", detail));
            }
        }
    }
    Err(Fault::new(
        FaultKind::ResourcesExhausted,
        format!("no port from {first_port} to {last_port} of {address} is free"),
    ))
}

//! The listening sockets.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use openssl::ssl::SslAcceptorBuilder;

use super::socket_file::{SocketFile, device_and_inode};
use super::tls;
use crate::config::{Config, Service};
use crate::fault::{Fault, OrFault, Result};

/// What the service listens on.
pub(super) struct Listeners {
    pub unix: UnixListener,
    pub socket: SocketFile,
    pub tls: Option<(TcpListener, SslAcceptorBuilder)>,
}

impl Listeners {
    pub fn bind(config: &Config) -> Result<Listeners> {
        let service = &config.service;
        // What can be wrong in the configuration comes before what others see.
        let tls = service.tls.as_ref().map(|tls| -> Result<_> {
            let acceptor = tls::acceptor(tls, &config.migration)?;
            let doing = format!("listening on {} (service.tls.listen)", tls.listen);
            Ok((TcpListener::bind(tls.listen).or_fault(doing)?, acceptor))
        });
        let tls = tls.transpose()?;
        let (unix, socket) = bind_unix(service, config.socket_mode()?)?;
        Ok(Listeners { unix, socket, tls })
    }
}

/// Makes the socket under another name, gives it its owner and mode, and only
/// then its name: nobody can connect before the mode says so, and one that a
/// dead service left is replaced in the same step.
fn bind_unix(service: &Service, mode: u32) -> Result<(UnixListener, SocketFile)> {
    let path = &service.socket;
    let doing = format!("listening on {} (service.socket)", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).or_fault(&doing)?;
    }
    refuse_taken(path)?;
    let group = group_id(&service.socket_group)?;
    let new = new_name(path);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).or_fault(&doing),
        _ => {}
    }
    let listener = UnixListener::bind(&new).or_fault(&doing)?;
    let named = (|| {
        std::os::unix::fs::chown(&new, None, group)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)?;
        device_and_inode(path)
    })();
    match named.or_fault(doing) {
        Ok(device_and_inode) => Ok((listener, SocketFile { path: path.clone(), device_and_inode })),
        Err(fault) => {
            let _ = fs::remove_file(&new);
            Err(fault)
        }
    }
}

/// Refuses a path that another service listens on, or that is no socket.
fn refuse_taken(path: &Path) -> Result<()> {
    let refuse =
        |why: &str| Err(Fault::invalid("service.socket", format!("{} {why}", path.display())));
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).or_fault(format_args!("looking at {}", path.display())),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            refuse("exists and is no socket; take another path or remove it")
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => refuse("is the socket of a service that runs; stop that one first"),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(e) => Err(e).or_fault(format_args!("trying {}", path.display())),
        },
    }
}

pub(super) fn group_id(name: &str) -> Result<Option<u32>> {
    if name.is_empty() {
        return Ok(None);
    }
    let group = nix::unistd::Group::from_name(name).or_fault("looking up service.socket_group")?;
    let missing = || Fault::invalid("service.socket_group", format!("there is no group {name:?}"));
    group.map(|group| Some(group.gid.as_raw())).ok_or_else(missing)
}

fn new_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(dir: &Path) -> Service {
        Service { socket: dir.join("deep/berth.sock"), ..Service::default() }
    }

    #[test]
    fn the_socket_has_its_mode_and_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let (_listener, file) = bind_unix(&service, 0o640).unwrap();
        let metadata = fs::metadata(&service.socket).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert!(UnixStream::connect(&service.socket).is_ok());
        drop(file);
        assert!(!service.socket.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        let (listener, file) = bind_unix(&service, 0o600).unwrap();
        let fault = bind_unix(&service, 0o600).unwrap_err();
        assert!(fault.detail.contains("service that runs"), "{fault}");
        drop(listener);
        let (_second, _file) = bind_unix(&service, 0o600).unwrap();
        drop(file);
        assert!(service.socket.exists(), "the first guard removed the second one's socket");
    }

    #[test]
    fn a_file_in_the_way_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let service = Service { socket: dir.path().join("x"), ..Service::default() };
        fs::write(&service.socket, "precious").unwrap();
        assert_eq!(
            bind_unix(&service, 0o600).unwrap_err().field.as_deref(),
            Some("service.socket")
        );
        assert_eq!(fs::read_to_string(&service.socket).unwrap(), "precious");
    }

    #[test]
    fn an_unknown_group_is_refused() {
        assert_eq!(group_id("").unwrap(), None);
        assert_eq!(group_id("root").unwrap(), Some(0));
        let fault = group_id("no-such-group").unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("service.socket_group"));
    }
}

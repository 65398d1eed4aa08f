//! Whose certificates the listener of TCP accepts.

use openssl::nid::Nid;
use openssl::ssl::{SslAcceptorBuilder, SslVerifyMode};
use openssl::x509::{X509, X509StoreContextRef};

use crate::config::{Migration, Tls};
use crate::fault::Result;
use crate::tls::{self, Files};

/// An acceptor after the configuration.
pub(super) fn acceptor(config: &Tls, migration: &Migration) -> Result<SslAcceptorBuilder> {
    let Tls { certificate, private_key, client_ca, .. } = config;
    let mut acceptor = tls::acceptor(Files { certificate, private_key, client_ca }, "service.tls")?;
    let mut accepted = config.client_names.clone();
    if !accepted.is_empty() {
        accepted.extend_from_slice(&migration.peers);
    }
    acceptor.set_verify_callback(
        SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
        move |verified, context| verified && is_accepted(context, &accepted),
    );
    Ok(acceptor)
}

/// Whether the certificate now looked at may be: authorities always, the
/// client's own by its common name.
fn is_accepted(context: &mut X509StoreContextRef, accepted: &[String]) -> bool {
    if context.error_depth() > 0 {
        return true;
    }
    let name = context.current_cert().and_then(|certificate| common_name(&certificate.to_owned()));
    let ok = accepted.is_empty() || name.as_ref().is_some_and(|name| accepted.contains(name));
    let name = name.unwrap_or_default();
    if ok {
        tracing::info!(name, "client certificate accepted");
    } else {
        tracing::warn!(
            name,
            "client certificate refused: not among service.tls.client_names and migration.peers"
        );
    }
    ok
}

/// The name in a certificate's subject.
pub(super) fn common_name(certificate: &X509) -> Option<String> {
    let entry = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).next()?;
    entry.data().to_string().ok()
}

//! Mutual TLS: no client without a certificate that the configuration accepts.

use openssl::nid::Nid;
use openssl::ssl::{
    SslAcceptor, SslAcceptorBuilder, SslFiletype, SslMethod, SslOptions, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::x509::{X509, X509Name, X509StoreContextRef};

use crate::config::{Migration, Tls};
use crate::fault::{Fault, OrFault, Result};

/// An acceptor after the configuration: TLS 1.2 or later, client certificates required.
pub(super) fn acceptor(config: &Tls, migration: &Migration) -> Result<SslAcceptorBuilder> {
    let file = |key: &str, path: &std::path::Path, e: openssl::error::ErrorStack| {
        Fault::invalid(format!("service.tls.{key}"), format!("cannot use {}: {e}", path.display()))
    };
    let mut acceptor =
        SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).or_fault("preparing TLS")?;
    acceptor.set_min_proto_version(Some(SslVersion::TLS1_2)).or_fault("preparing TLS")?;
    // A resumed session would skip the look at the certificate.
    acceptor.set_options(SslOptions::NO_TICKET);
    acceptor.set_session_cache_mode(SslSessionCacheMode::OFF);
    acceptor.set_num_tickets(0).or_fault("preparing TLS")?;
    acceptor
        .set_certificate_chain_file(&config.certificate)
        .map_err(|e| file("certificate", &config.certificate, e))?;
    acceptor
        .set_private_key_file(&config.private_key, SslFiletype::PEM)
        .map_err(|e| file("private_key", &config.private_key, e))?;
    acceptor.check_private_key().map_err(|e| file("private_key", &config.private_key, e))?;
    acceptor.set_ca_file(&config.client_ca).map_err(|e| file("client_ca", &config.client_ca, e))?;
    let names = X509Name::load_client_ca_file(&config.client_ca)
        .map_err(|e| file("client_ca", &config.client_ca, e))?;
    acceptor.set_client_ca_list(names);
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

//! Mutual TLS: no client without a certificate that an authority of the configuration signed.

use std::path::Path;

use openssl::error::ErrorStack;
use openssl::ssl::{
    SslAcceptor, SslAcceptorBuilder, SslFiletype, SslMethod, SslOptions, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::x509::X509Name;

use crate::fault::{Fault, OrFault, Result};

/// PEM files: what a listener is known by, and whom it accepts.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// Its certificate chain.
    pub certificate: &'a Path,
    /// Its private key.
    pub private_key: &'a Path,
    /// Authorities whose client certificates are accepted.
    pub client_ca: &'a Path,
}

/// An acceptor of TLS 1.2 or later that requires client certificates. A fault names the key of
/// `section` of the configuration.
pub fn acceptor(files: Files<'_>, section: &str) -> Result<SslAcceptorBuilder> {
    let file = |key: &str, path: &Path, e: ErrorStack| {
        Fault::invalid(format!("{section}.{key}"), format!("cannot use {}: {e}", path.display()))
    };
    let doing = "preparing TLS";
    let mut acceptor =
        SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).or_fault(doing)?;
    acceptor.set_min_proto_version(Some(SslVersion::TLS1_2)).or_fault(doing)?;
    // A resumed session would skip the look at the certificate.
    acceptor.set_options(SslOptions::NO_TICKET);
    acceptor.set_session_cache_mode(SslSessionCacheMode::OFF);
    acceptor.set_num_tickets(0).or_fault(doing)?;
    let Files { certificate, private_key, client_ca } = files;
    acceptor
        .set_certificate_chain_file(certificate)
        .map_err(|e| file("certificate", certificate, e))?;
    acceptor
        .set_private_key_file(private_key, SslFiletype::PEM)
        .map_err(|e| file("private_key", private_key, e))?;
    acceptor.check_private_key().map_err(|e| file("private_key", private_key, e))?;
    acceptor.set_ca_file(client_ca).map_err(|e| file("client_ca", client_ca, e))?;
    let names =
        X509Name::load_client_ca_file(client_ca).map_err(|e| file("client_ca", client_ca, e))?;
    acceptor.set_client_ca_list(names);
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    Ok(acceptor)
}

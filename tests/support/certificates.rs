//! Throw-away certificates for mutual TLS.

use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, ExtendedKeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};

/// An authority and the certificates that it signed, as PEM files.
pub struct Authority {
    dir: PathBuf,
    certificate: X509,
    key: PKey<Private>,
}

impl Authority {
    /// A new authority; `NAME.pem` in the directory is its certificate.
    pub fn new(dir: &Path, name: &str) -> Authority {
        let key = new_key();
        let certificate = certificate(name, &key, None);
        std::fs::write(dir.join(format!("{name}.pem")), certificate.to_pem().unwrap()).unwrap();
        Authority { dir: dir.to_owned(), certificate, key }
    }

    /// A certificate for 127.0.0.1, for both sides: `NAME.pem`, `NAME.key`,
    /// and both in `NAME.both.pem`.
    pub fn sign(&self, name: &str) {
        let key = new_key();
        let certificate = certificate(name, &key, Some(self)).to_pem().unwrap();
        let key = key.private_key_to_pem_pkcs8().unwrap();
        std::fs::write(self.dir.join(format!("{name}.pem")), &certificate).unwrap();
        std::fs::write(self.dir.join(format!("{name}.key")), &key).unwrap();
        let both = [certificate, key].concat();
        std::fs::write(self.dir.join(format!("{name}.both.pem")), both).unwrap();
    }
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn certificate(name: &str, key: &PKey<Private>, issuer: Option<&Authority>) -> X509 {
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_pubkey(key).unwrap();
    match issuer {
        None => {
            builder.set_issuer_name(&subject).unwrap();
            builder
                .append_extension(BasicConstraints::new().critical().ca().build().unwrap())
                .unwrap();
            builder.sign(key, MessageDigest::sha256()).unwrap();
        }
        Some(issuer) => {
            builder.set_issuer_name(issuer.certificate.subject_name()).unwrap();
            let context = builder.x509v3_context(Some(&issuer.certificate), None);
            let names = SubjectAlternativeName::new().ip("127.0.0.1").build(&context).unwrap();
            builder.append_extension(names).unwrap();
            let usage = ExtendedKeyUsage::new().server_auth().client_auth().build().unwrap();
            builder.append_extension(usage).unwrap();
            builder.sign(&issuer.key, MessageDigest::sha256()).unwrap();
        }
    }
    builder.build()
}

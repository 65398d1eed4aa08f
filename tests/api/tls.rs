//! TCP with mutual TLS, and no other TCP.

use std::path::Path;

use berth::config::{Config, Tls};
use reqwest::{Certificate, Client, ClientBuilder, Identity};

use crate::Service;
use crate::support::certificates::Authority;
use crate::support::fake::FakeBackend;

struct Clients {
    dir: tempfile::TempDir,
}

impl Clients {
    fn new() -> Clients {
        let dir = tempfile::tempdir().unwrap();
        let ours = Authority::new(dir.path(), "ours");
        for name in ["service", "nova", "other"] {
            ours.sign(name);
        }
        Authority::new(dir.path(), "theirs").sign("stranger");
        Clients { dir }
    }

    fn service(&self, client_names: &[&str]) -> Service {
        let dir = self.dir.path().to_owned();
        let client_names = client_names.iter().map(|name| (*name).to_owned()).collect();
        Service::with(FakeBackend::new(), move |_: &Path, config: &mut Config| {
            config.service.tls = Some(Tls {
                listen: "127.0.0.1:0".parse().unwrap(),
                certificate: dir.join("service.pem"),
                private_key: dir.join("service.key"),
                client_ca: dir.join("ours.pem"),
                client_names,
            });
        })
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).unwrap()
    }

    fn builder(&self) -> ClientBuilder {
        let ours = Certificate::from_pem(&self.read("ours.pem")).unwrap();
        Client::builder().tls_certs_only([ours])
    }

    fn with_identity(&self, name: &str) -> Client {
        let (certificate, key) =
            (self.read(&format!("{name}.pem")), self.read(&format!("{name}.key")));
        let identity = Identity::from_pkcs8_pem(&certificate, &key).unwrap();
        self.builder().identity(identity).build().unwrap()
    }
}

async fn status(client: &Client, service: &Service, scheme: &str) -> Result<u16, reqwest::Error> {
    let address = service.tls_address.unwrap();
    let answer = client.get(format!("{scheme}://{address}/v1/host")).send().await?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_ours_get_in() {
    let clients = Clients::new();
    let service = clients.service(&[]);
    assert_eq!(status(&clients.with_identity("nova"), &service, "https").await.unwrap(), 200);
    assert_eq!(status(&clients.with_identity("other"), &service, "https").await.unwrap(), 200);
    let nobody = clients.builder().build().unwrap();
    assert!(status(&nobody, &service, "https").await.is_err(), "no certificate");
    let stranger = clients.with_identity("stranger");
    assert!(status(&stranger, &service, "https").await.is_err(), "another authority's");
    assert!(status(&nobody, &service, "http").await.is_err(), "no TLS");
}

#[tokio::test]
async fn names_narrow_it_further() {
    let clients = Clients::new();
    let service = clients.service(&["nova"]);
    assert_eq!(status(&clients.with_identity("nova"), &service, "https").await.unwrap(), 200);
    assert!(status(&clients.with_identity("other"), &service, "https").await.is_err());
}

#[tokio::test]
async fn tls_below_1_2_is_refused() {
    use openssl::ssl::{SslConnector, SslMethod, SslVersion};
    let clients = Clients::new();
    let service = clients.service(&[]);
    let address = service.tls_address.unwrap();
    let dir = clients.dir.path().to_owned();
    let connect = move |version: SslVersion| {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_ca_file(dir.join("ours.pem")).unwrap();
        connector.set_certificate_chain_file(dir.join("nova.pem")).unwrap();
        connector
            .set_private_key_file(dir.join("nova.key"), openssl::ssl::SslFiletype::PEM)
            .unwrap();
        connector.set_min_proto_version(None).unwrap();
        connector.set_max_proto_version(Some(version)).unwrap();
        // Else this side refuses before the service can.
        connector.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        let stream = std::net::TcpStream::connect(address).unwrap();
        connector.build().connect("127.0.0.1", stream).map(|_| ())
    };
    tokio::task::spawn_blocking(move || {
        connect(SslVersion::TLS1_2).unwrap();
        assert!(connect(SslVersion::TLS1_1).is_err());
    })
    .await
    .unwrap();
}

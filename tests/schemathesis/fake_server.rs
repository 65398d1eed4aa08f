//! The API over an instance manager in memory, with mutual TLS on loopback, to
//! be fuzzed without root: `fake_server DIRECTORY` writes certificates and the
//! file `url` into the directory and answers until it is ended.

#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use berth::config::{Config, LogFormat, Tls};
use berth::server::{self, Server};

fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("usage: fake_server DIRECTORY"));
    // What is no HTTP at all is the client's affair, yet actix calls it an error.
    berth::telemetry::init(LogFormat::Text, "warn,actix_http=off").expect("the log starts");
    let authority = support::certificates::Authority::new(&dir, "authority");
    authority.sign("service");
    authority.sign("client");
    let mut config = Config::default();
    config.service.socket = dir.join("berth.sock");
    config.service.run_dir = dir.join("run");
    config.service.tls = Some(Tls {
        listen: "127.0.0.1:0".parse().expect("an address"),
        certificate: dir.join("service.pem"),
        private_key: dir.join("service.key"),
        client_ca: dir.join("authority.pem"),
        client_names: vec!["client".into()],
    });
    let system = actix_web::rt::System::new();
    let ended = system.block_on(async {
        let server = Server::bind(&config)?;
        let address = server.tls_address().expect("TLS is configured");
        std::fs::write(dir.join("url"), format!("https://{address}")).expect("writing the address");
        server.run(support::fake::FakeBackend::new(), server::stop_signal()?).await
    });
    ended.expect("the server ends well");
}

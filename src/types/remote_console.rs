//! Consoles over TCP, for Nova's own proxies.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a console is spoken to over TCP.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleProtocol {
    /// The console's bytes, for nova-serialproxy.
    Serial,
    /// RFB 3.8 (RFC 6143): the console drawn as a screen of text, for nova-novncproxy.
    Vnc,
}

/// Where a console is to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoteConsoleRequest {
    /// Address of this host, IPv4 or IPv6, that the proxy connects to. Whoever reaches a port there
    /// has the console: it asks for no password.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The first port that may be taken, 1 to 65,535.
    #[schema(minimum = 1)]
    pub first_port: u16,
    /// The last one, `first_port` to 65,535.
    #[schema(minimum = 1)]
    pub last_port: u16,
}

/// Where a console is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteConsole {
    /// How it is spoken to.
    pub protocol: ConsoleProtocol,
    /// The address that it listens on.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

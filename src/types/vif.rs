//! A virtual interface, as Neutron describes it and as the kernel needs it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// One interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Vif {
    /// Neutron's port id.
    pub id: Uuid,
    /// Name of the host's end of the veth pair (Nova's `devname`), 1 to 15 characters, e.g. `tap1a2b3c4d-5e`.
    #[schema(min_length = 1, max_length = 15)]
    pub devname: String,
    /// MAC address of the instance's end, e.g. `fa:16:3e:00:00:01`.
    pub address: String,
    /// Name inside the instance; when absent, the first free of `eth0`, `eth1`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 15)]
    pub name: Option<String>,
    /// Maximum transmission unit in bytes, 68 to 65,535.
    #[serde(default = "default_mtu")]
    #[schema(minimum = 68, maximum = 65_535)]
    pub mtu: u32,
    /// Whether the instance's end leaves checksums and segmentation to whatever takes its packets
    /// (`ethtool -K … tx on`), as the kernel's own switches want it. False where the host's end is
    /// a port of Open vSwitch's userspace datapath (Neutron's `datapath_type` is `netdev`), which
    /// drops such packets. In force from the next attach or boot.
    #[serde(default = "default_checksum_offload", skip_serializing_if = "is_true")]
    pub checksum_offload: bool,
    /// Static addresses with prefix length, IPv4 or IPv6, e.g. `10.0.0.5/24`.
    /// Empty: the instance's own DHCP client configures the interface.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Routes to set with the addresses.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Attach the host's end to the stand-alone bridge (`[bridge]` of the
    /// configuration) instead of leaving it for a plugger such as os-vif. An
    /// address of the bridge's subnet is given when `addresses` is empty.
    #[serde(default)]
    pub bridge: bool,
}

/// A route: destination in CIDR form, `0.0.0.0/0` or `::/0` for the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination network, e.g. `0.0.0.0/0`.
    pub destination: String,
    /// Next hop; absent for a route on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

fn default_mtu() -> u32 {
    1500
}

fn default_checksum_offload() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

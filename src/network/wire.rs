//! The host's end of a veth is a wire: whoever plugs it takes the packets that
//! arrive there, and the host's own stack sees none of them.
//!
//! A bridge and Open vSwitch's kernel datapath take a packet before the stack
//! could. Its user-space datapath takes a copy, and nobody takes anything
//! before the plug: without a wall, the host answers for every address of its
//! own, and routes, past all security groups. Even a port of a bridge hands
//! frames to the reserved addresses 01:80:c2:00:00:0X up to the stack.
//!
//! So a host's end is born in a group of devices, and rules drop what its members
//! hand up and what the host itself says there, whatever its sysctls are. They come last on a
//! packet's way, so no datapath misses it, and nothing is to be added or removed
//! with an instance. Beside them every host's end has settings of its own, which
//! also silence the host's side, and still hold back most where somebody flushes
//! all rules of the host, until the next interface brings ours back.

use std::fs;

use crate::fault::{Fault, FaultKind, Result};
use crate::network::netlink::Netlink;
use crate::network::netlink::OrNetworkFault;
use crate::network::nft;

/// The group of all host's ends, of every berth on this host. A number that
/// neither the kernel nor a distribution gives a meaning.
pub const GROUP: u32 = 0xbe47;
/// The rules' table, in two families.
const TABLE: &str = "berth_wire";
const FAMILIES: [u8; 2] = [libc::NFPROTO_INET as u8, libc::NFPROTO_ARP as u8];

/// Puts the rules in force, instead of those before in one transaction.
pub fn raise() -> Result<()> {
    nft::apply(&rules())
}

/// [`raise`], if the rules are not there.
pub fn ensure() -> Result<()> {
    if nft::has_table(TABLE, &FAMILIES)? { Ok(()) } else { raise() }
}

/// Sets a host's end up to be a wire; before it is up. It gets `alias` as its note.
pub fn make(netlink: &mut Netlink, index: u32, devname: &str, alias: &str) -> Result<()> {
    set_conf("ipv6", devname, "disable_ipv6", "1")?;
    netlink.set_wire(index, alias, GROUP).or_network(format!("making {devname} a wire"))
}

/// Writes a device's own setting of the kernel's. Without IPv6 there are none of its.
pub fn set_conf(family: &str, device: &str, key: &str, value: &str) -> Result<()> {
    match fs::write(format!("/proc/sys/net/{family}/conf/{device}/{key}"), value) {
        Err(error) if family == "ipv6" && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(|error| {
            Fault::new(FaultKind::NetworkFailed, format!("setting {key} of {device}: {error}"))
        }),
    }
}

/// Before all of the host's own rules, connection tracking and reassembly.
/// A bridged packet that `br_netfilter` shows to these hooks bears the bridge's name there,
/// and what a bridge or a program sends through the end itself does not pass them.
fn rules() -> String {
    [("inet", "prerouting"), ("arp", "input")]
        .map(|(family, arrival)| {
            format!(
                "table {family} {TABLE}
delete table {family} {TABLE}
table {family} {TABLE} {{
    chain {arrival} {{
        type filter hook {arrival} priority -500; policy accept;
        iifgroup {GROUP} drop
    }}
    chain output {{
        type filter hook output priority -500; policy accept;
        oifgroup {GROUP} drop
    }}
}}
"
            )
        })
        .concat()
}

//! The stand-alone bridge: instances reach each other, the host, and through it the world.
//!
//! For hosts without Neutron. The bridge bears the subnet's gateway address;
//! with `nat`, a table of nftables' own masquerades what leaves the subnet and
//! lets nobody outside begin a connection to an instance. Rules of other
//! programs still apply: a firewall whose policy is to drop what is forwarded
//! must be told to accept the bridge.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::network::netlink::{InfoKindName, Link, Netlink, OrNetworkFault, Tolerant};
use crate::network::nft;
use crate::network::plan::check_device_name;
use crate::network::pool::Subnet;
use crate::network::veth::{Port, open};
use crate::network::wire::set_conf;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Note beside a bridge of ours.
const NOTE: &str = "berth: stand-alone bridge";
/// Note beside one for which forwarding was switched on: its removal switches it off.
const NOTE_FORWARD: &str = "berth: stand-alone bridge, ip_forward was 0";

/// What the kernel is told of the bridge before it is up. It bears an IPv4 address
/// and none of IPv6, so that no instance can give it one, or a route.
const CONF: [(&str, &str, &str); 4] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv6", "accept_ra", "0"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "secure_redirects", "0"),
];

/// The bridge as it is configured.
#[derive(Clone, Debug)]
pub struct Bridge {
    name: String,
    subnet: Subnet,
    nat: bool,
    connections: u32,
    isolated: bool,
}

impl Bridge {
    /// Checks the configuration.
    pub fn new(config: &config::Bridge) -> Result<Bridge> {
        check_device_name("bridge.name", &config.name)?;
        match config::parse_cidr("bridge.address", &config.address)? {
            (IpAddr::V4(gateway), prefix @ 8..=30) => Ok(Bridge {
                name: config.name.clone(),
                subnet: Subnet { gateway, prefix },
                nat: config.nat,
                connections: config.connections,
                isolated: config.port_isolation,
            }),
            _ => Err(Fault::invalid(
                "bridge.address",
                "must be an IPv4 address with a prefix length of 8 to 30, e.g. 10.88.0.1/16",
            )),
        }
    }

    /// The bridge's address and subnet.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// What makes a host's end one of its ports.
    pub fn port(&self, netlink: &mut Netlink) -> Result<Port> {
        Ok(Port { bridge: self.index(netlink)?, isolated: self.isolated })
    }

    /// Its index.
    fn index(&self, netlink: &mut Netlink) -> Result<u32> {
        self.find(netlink)?.map(|link| link.index).ok_or_else(|| {
            Fault::new(
                FaultKind::NetworkFailed,
                format!(
                    "the bridge {} is missing; restart the service to make it again",
                    self.name
                ),
            )
        })
    }

    /// Makes the bridge, its address, forwarding and rules, whatever of it is there.
    pub fn start(&self) -> Result<()> {
        let mut netlink = open()?;
        let doing = || format!("making the bridge {}", self.name);
        let made = netlink
            .create_link(&self.name, InfoKindName::Bridge, Some(self.mac()))
            .unless(&[libc::EEXIST])
            .or_network(doing())?;
        let started = self.configure(&mut netlink, made.is_some());
        if started.is_err() && made.is_some() {
            // Best effort: the fault that led here is the one to report.
            let _ = self.teardown();
        }
        started
    }

    /// Removes all that [`Self::start`] made. Absence is success.
    pub fn teardown(&self) -> Result<()> {
        let mut netlink = open()?;
        // Naming the table first makes it exist, so that its removal cannot fail for want of it.
        let table = self.table();
        let rules = nft::apply(&format!("table inet {table}\ndelete table inet {table}\n"));
        let Some(link) = self.find(&mut netlink)? else { return rules };
        if link.alias == NOTE_FORWARD {
            std::fs::write(IP_FORWARD, "0").or_fault("switching IPv4 forwarding off")?;
        }
        netlink
            .delete_link(link.index)
            .unless(&[libc::ENODEV])
            .or_network(format!("removing the bridge {}", self.name))?;
        rules
    }

    fn find(&self, netlink: &mut Netlink) -> Result<Option<Link>> {
        let link = netlink.link(&self.name).or_network(format!("looking for {}", self.name))?;
        match link {
            Some(link) if !link.is_bridge() => Err(Fault::new(
                FaultKind::InterfaceExists,
                format!("{} is no bridge; take another bridge.name", self.name),
            )),
            link => Ok(link),
        }
    }

    fn configure(&self, netlink: &mut Netlink, is_new: bool) -> Result<()> {
        let doing = || format!("configuring the bridge {}", self.name);
        let index = self.index(netlink)?;
        let forward = std::fs::read_to_string(IP_FORWARD).or_fault(doing())?;
        let forward = forward.trim() == "1";
        if is_new {
            let note = if forward { NOTE } else { NOTE_FORWARD };
            netlink.set_alias(index, note).or_network(doing())?;
        }
        for (family, key, value) in CONF {
            set_conf(family, &self.name, key, value)?;
        }
        self.set_address(netlink, index).or_network(doing())?;
        netlink.set_up(index).or_network(doing())?;
        if !forward {
            std::fs::write(IP_FORWARD, "1").or_fault("switching IPv4 forwarding on")?;
        }
        nft::apply(&self.rules())
    }

    /// An address of an earlier configuration goes.
    fn set_address(
        &self,
        netlink: &mut Netlink,
        index: u32,
    ) -> crate::network::netlink::Result<()> {
        let wanted = (IpAddr::from(self.subnet.gateway), self.subnet.prefix);
        for (address, prefix) in netlink.ipv4_addresses(index)? {
            if (address, prefix) != wanted {
                netlink.delete_address(index, address, prefix)?;
            }
        }
        netlink.add_address(index, wanted.0, wanted.1).unless(&[libc::EEXIST]).map(drop)
    }

    /// A locally administered address of its own: the kernel would let it
    /// follow the ports', and neighbours' tables would be wrong at each change.
    fn mac(&self) -> [u8; 6] {
        let digest = Sha256::digest(self.name.as_bytes());
        [0x02, digest[0], digest[1], digest[2], digest[3], digest[4]]
    }

    /// nft takes fewer characters in a table's name than the kernel in a device's.
    fn table(&self) -> String {
        format!("berth_{}", hex::encode(&self.name))
    }

    /// The rules, replacing those before in one transaction.
    fn rules(&self) -> String {
        let (table, name) = (self.table(), &self.name);
        let mut rules = format!("table inet {table}\ndelete table inet {table}\n");
        let mut add = |chain: &str| rules.push_str(&format!("table inet {table} {{{chain}}}\n"));
        if self.isolated {
            // A port hands nothing to another; but the host, as a router, would lead it there.
            add(&format!(
                "
    chain isolation {{
        type filter hook forward priority filter - 1; policy accept;
        iifname \"{name}\" oifname \"{name}\" drop
    }}
"
            ));
        }
        if self.nat {
            let subnet = self.subnet.cidr();
            add(&format!(
                "
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{name}\" accept
        oifname \"{name}\" ct state established,related accept
        oifname \"{name}\" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != \"{name}\" masquerade
    }}
"
            ));
        }
        if self.nat && self.connections > 0 {
            // What is dropped here never comes into the table. The guards see to it that
            // an address is its owner's.
            let most = self.connections;
            add(&format!(
                "
    set connections {{ type ipv4_addr; size 65536; flags dynamic; }}
    chain connections {{
        type filter hook prerouting priority filter; policy accept;
        iifname \"{name}\" ct state new add @connections {{ ip saddr ct count over {most} }} drop
    }}
"
            ));
        }
        rules
    }
}

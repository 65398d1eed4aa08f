//! Interfaces of instances: a veth pair each, its addresses, its rates, and a
//! bridge for hosts without Neutron.
//!
//! ```text
//! Vif ─ plan ─→ VifPlan ─ veth ─→ netlink → kernel   instance's namespace: eth0
//! extra specs ─ rates ─→ Rates ─ qos ─ tc ↗          host: tap…, IFB, bridge, nftables
//! ```
//!
//! [`fresh`] gives every boot a namespace in which nothing has run.
//!
//! The host's end bears Nova's `devname` and is left for whoever plugs it
//! (os-vif); for the host's own stack it is a [`wire`]. Everything acts in the network namespace of the calling thread,
//! which is the host's, and blocks for about a millisecond, save
//! [`Network::start`] and [`Network::teardown`], which run the program `nft`.

mod bridge;
pub mod fresh;
mod guard;
mod netlink;
mod nft;
mod plan;
mod pool;
mod qos;
mod rates;
mod tc;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod veth;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

pub use plan::{assign_names, validate};
pub use rates::{Rate, Rates};

use crate::config;
use crate::fault::{Fault, FaultKind, Result};
use crate::types::{Dns, InterfaceStats, Vif};
use bridge::Bridge;
use netlink::{Link, OrNetworkFault};
use plan::VifPlan;

/// The host's side of all instances' networks.
#[derive(Clone, Debug)]
pub struct Network {
    bridge: Option<Bridge>,
}

impl Network {
    /// Checks the configuration; changes nothing yet.
    pub fn new(config: &config::Bridge) -> Result<Network> {
        let bridge = config.enabled.then(|| Bridge::new(config)).transpose()?;
        Ok(Network { bridge })
    }

    /// Puts the rules in force that keep instances out of the host's own stack,
    /// makes the stand-alone bridge if it is enabled, and removes what interfaces
    /// that went away with their namespace left behind.
    pub fn start(&self) -> Result<()> {
        wire::raise()?;
        qos::sweep(&mut veth::open()?)?;
        self.bridge.as_ref().map_or(Ok(()), Bridge::start)
    }

    /// Removes the bridge and its rules. Instances on it lose their network.
    pub fn teardown(&self) -> Result<()> {
        self.bridge.as_ref().map_or(Ok(()), Bridge::teardown)
    }

    /// [`validate`], and that this host has the bridge where a VIF asks for it.
    pub fn validate(&self, vifs: &[Vif], dns: Option<&Dns>) -> Result<()> {
        validate(vifs, dns)?;
        match vifs.iter().position(|vif| vif.bridge) {
            Some(index) => self.bridge(&format!("vifs[{index}].bridge")).map(drop),
            None => Ok(()),
        }
    }

    /// Gives a VIF that wants the bridge and brings no address one of the
    /// bridge's subnet and a default route; other VIFs stay as they are.
    ///
    /// `used` are the addresses of all other VIFs of this host. Two calls at
    /// the same time with the same `used` may give the same address: the
    /// caller keeps a lock from here until the VIF is among the used.
    ///
    /// Refused with [`FaultKind::InterfaceExists`] if a given address is in use.
    pub fn assign(&self, vif: &mut Vif, used: &BTreeSet<IpAddr>) -> Result<()> {
        if vif.bridge { self.bridge("vifs.bridge")?.subnet().assign(vif, used) } else { Ok(()) }
    }

    /// Connects a VIF with the network namespace at `net_ns`; `index` is its
    /// place in the instance's list, which decides the name of one that has none.
    ///
    /// A veth of this VIF in that namespace is left undisturbed, whatever root inside made of
    /// it (and set up if its host's end is down); one elsewhere is
    /// replaced; anything else under the name is
    /// [`FaultKind::InterfaceExists`] and stays. Afterwards the host's end is up.
    pub fn attach(&self, vif: &Vif, index: usize, net_ns: &Path) -> Result<()> {
        let plan = VifPlan::new(vif, index)?;
        wire::ensure()?;
        let port = if vif.bridge {
            Some(self.bridge(&format!("vifs[{index}].bridge"))?.port(&mut veth::open()?)?)
        } else {
            None
        };
        veth::attach(&plan, net_ns, port)
    }

    /// [`Network::attach`], which makes a host's end that was missing a port of the bridge `port`
    /// again; gives whether it was.
    fn attach_at(
        &self,
        vif: &Vif,
        index: usize,
        net_ns: &Path,
        port: Option<&str>,
    ) -> Result<bool> {
        let mut netlink = veth::open()?;
        let before = find(&mut netlink, vif)?;
        self.attach(vif, index, net_ns)?;
        let host = find(&mut netlink, vif)?.ok_or_else(|| missing(vif))?;
        let is_new = before.is_none_or(|before| before.index != host.index);
        if let Some(bridge) = port.filter(|_| is_new) {
            veth::plug(&mut netlink, &host, bridge)?;
        }
        Ok(is_new)
    }

    /// Has a VIF in the namespace at `to`, in which nothing has run, as [`Network::attach`] makes
    /// it, whatever became of it in the one at `from`. The host's end stays, if its pair is
    /// there; a new one is made a port of the bridge `port` and gets `rates`.
    fn renew(
        &self,
        vif: &Vif,
        index: usize,
        from: Option<&Path>,
        to: &Path,
        port: Option<&str>,
        rates: &Rates,
    ) -> Result<()> {
        let plan = VifPlan::new(vif, index)?;
        let kept = match from {
            Some(from) => veth::hand_over(&plan, from, to)?,
            None => true,
        };
        let mut is_new = self.attach_at(vif, index, to, port)?;
        if veth::configure(&plan, to).is_err() {
            // Cut short on its way, it may be neither here nor there.
            self.detach(vif)?;
            is_new = self.attach_at(vif, index, to, port)?;
        }
        if is_new || !kept { self.apply_rates(vif, rates) } else { Ok(()) }
    }

    /// Removes a VIF's pair and what limits its rates. Absence is success.
    pub fn detach(&self, vif: &Vif) -> Result<()> {
        let mut netlink = veth::open()?;
        veth::detach(&mut netlink, &vif.devname, &plan::alias(vif))?;
        qos::clear(&mut netlink, &vif.devname)
    }

    /// Whether the host's ends of all these VIFs exist.
    pub fn host_ends_present(&self, vifs: &[Vif]) -> Result<bool> {
        let mut netlink = veth::open()?;
        for vif in vifs {
            if find(&mut netlink, vif)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts rates in force on a VIF instead of those before, without a break.
    ///
    /// To be called after the VIF was plugged: Open vSwitch clears what limits
    /// a port's arriving packets when it takes the port.
    pub fn apply_rates(&self, vif: &Vif, rates: &Rates) -> Result<()> {
        let mut netlink = veth::open()?;
        let host = find(&mut netlink, vif)?.ok_or_else(|| missing(vif))?;
        qos::apply(&mut netlink, &host, rates, vif.bridge)
    }

    /// Lets no packet reach the instance through a VIF until [`Network::apply_rates`]:
    /// the kernel answers pings for an instance that is frozen or off, which a machine
    /// does not. A VIF without its host end is silent already.
    pub fn silence(&self, vif: &Vif) -> Result<()> {
        let mut netlink = veth::open()?;
        match find(&mut netlink, vif)? {
            Some(host) => qos::silence(&mut netlink, &host),
            None => Ok(()),
        }
    }

    /// Counters of a VIF as the instance sees them.
    pub fn stats(&self, vif: &Vif) -> Result<InterfaceStats> {
        let host = find(&mut veth::open()?, vif)?.ok_or_else(|| missing(vif))?.counters;
        Ok(InterfaceStats {
            devname: vif.devname.clone(),
            address: vif.address.clone(),
            rx_bytes: host.tx_bytes,
            rx_packets: host.tx_packets,
            rx_errors: host.tx_errors,
            rx_dropped: host.tx_dropped,
            tx_bytes: host.rx_bytes,
            tx_packets: host.rx_packets,
            tx_errors: host.rx_errors,
            tx_dropped: host.rx_dropped,
        })
    }

    fn bridge(&self, field: &str) -> Result<&Bridge> {
        self.bridge.as_ref().ok_or_else(|| {
            Fault::invalid(
                field,
                "this host has no stand-alone bridge; leave out \"bridge\", or set \
                 bridge.enabled = true in the service's configuration",
            )
        })
    }
}

fn find(netlink: &mut netlink::Netlink, vif: &Vif) -> Result<Option<Link>> {
    let link = netlink.link(&vif.devname).or_network(format!("looking for {}", vif.devname))?;
    Ok(link.filter(veth::is_instances))
}

/// By `devname`, the bridges that host's ends are ports of. Open vSwitch finds its ports by
/// their name, and no bridge of the kernel's is among them.
fn ports(vifs: &[Vif]) -> Result<BTreeMap<String, String>> {
    let mut netlink = veth::open()?;
    let mut ports = BTreeMap::new();
    for vif in vifs.iter().filter(|vif| !vif.bridge) {
        let Some(Link { controller: Some(index), .. }) = find(&mut netlink, vif)? else { continue };
        let doing = || format!("looking for the bridge of {}", vif.devname);
        let controller = netlink.link_by_index(index).or_network(doing())?;
        if let Some(bridge) = controller.filter(Link::is_bridge) {
            ports.insert(vif.devname.clone(), bridge.name);
        }
    }
    Ok(ports)
}

fn missing(vif: &Vif) -> Fault {
    Fault::new(
        FaultKind::InterfaceNotFound,
        format!("the host has no interface {} of this instance", vif.devname),
    )
}

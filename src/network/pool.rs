//! Addresses of the stand-alone bridge's subnet, for VIFs that bring none; pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::fault::{Fault, FaultKind, Result};
use crate::network::plan::network;
use crate::types::{Route, Vif};

/// The bridge's own address and its subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The bridge's address: the gateway of those on it.
    pub gateway: Ipv4Addr,
    /// Prefix length, 8 to 30.
    pub prefix: u8,
}

impl Subnet {
    /// The subnet in CIDR form.
    pub fn cidr(&self) -> String {
        format!("{}/{}", network(self.gateway.into(), self.prefix), self.prefix)
    }

    /// Gives a VIF without addresses one of the subnet, and a default route if
    /// it brings none. `used` are the addresses of all other VIFs on the
    /// bridge; the same VIF gets the same address again while it is free.
    ///
    /// The search starts at a place that the VIF's id decides, so an address
    /// that has just become free is rarely given at once to another VIF, whose
    /// neighbours would still have the old MAC address in their tables.
    pub fn assign(&self, vif: &mut Vif, used: &BTreeSet<IpAddr>) -> Result<()> {
        if !vif.addresses.is_empty() {
            return self.check_free(vif, used);
        }
        let base = u32::from(self.gateway) & !self.host_mask();
        // Without the network's address and the broadcast address.
        let hosts = self.host_mask() - 1;
        let start = (vif.id.as_u128() % u128::from(hosts)) as u32;
        let address = (0..hosts)
            .map(|step| base + 1 + (start + step) % hosts)
            .map(Ipv4Addr::from)
            .find(|address| *address != self.gateway && !used.contains(&IpAddr::from(*address)))
            .ok_or_else(|| {
                Fault::new(
                    FaultKind::ResourcesExhausted,
                    format!(
                        "every address of {} is in use; take a larger subnet in bridge.address",
                        self.cidr()
                    ),
                )
            })?;
        vif.addresses = vec![format!("{address}/{}", self.prefix)];
        if !vif.routes.iter().any(|route| route.destination == "0.0.0.0/0") {
            vif.routes.push(Route {
                destination: "0.0.0.0/0".into(),
                gateway: Some(self.gateway.to_string()),
            });
        }
        Ok(())
    }

    fn check_free(&self, vif: &Vif, used: &BTreeSet<IpAddr>) -> Result<()> {
        for (at, text) in vif.addresses.iter().enumerate() {
            let (address, _) = crate::config::parse_cidr(&format!("addresses[{at}]"), text)?;
            if address == IpAddr::from(self.gateway) || used.contains(&address) {
                return Err(Fault::new(
                    FaultKind::InterfaceExists,
                    format!("the address {address} is in use on the bridge; take another"),
                ));
            }
        }
        Ok(())
    }

    fn host_mask(&self) -> u32 {
        u32::MAX >> self.prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::vif;

    const SUBNET: Subnet = Subnet { gateway: Ipv4Addr::new(10, 88, 0, 1), prefix: 29 };

    fn bridged(number: u8) -> Vif {
        Vif { bridge: true, ..vif(number) }
    }

    #[test]
    fn every_address_but_the_bridges_is_given_once() {
        let mut used = BTreeSet::new();
        for number in 0..5 {
            let mut vif = bridged(number);
            SUBNET.assign(&mut vif, &used).unwrap();
            let (address, prefix) = crate::config::parse_cidr("a", &vif.addresses[0]).unwrap();
            assert_eq!(prefix, 29);
            assert!(used.insert(address), "{address} was given twice");
            assert_eq!(vif.routes.len(), 1);
            assert_eq!(vif.routes[0].gateway.as_deref(), Some("10.88.0.1"));
        }
        let expected = (2..=6).map(|last| IpAddr::from([10, 88, 0, last])).collect();
        assert_eq!(used, expected);
        let fault = SUBNET.assign(&mut bridged(6), &used).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted);
    }

    #[test]
    fn the_same_vif_gets_the_same_address() {
        let subnet = Subnet { prefix: 16, ..SUBNET };
        let (mut first, mut again, mut other) = (bridged(1), bridged(1), bridged(2));
        for vif in [&mut first, &mut again, &mut other] {
            subnet.assign(vif, &BTreeSet::new()).unwrap();
        }
        assert_eq!(first.addresses, again.addresses);
        assert_ne!(first.addresses, other.addresses);
        crate::network::validate(&[first, other], None).unwrap();
    }

    #[test]
    fn what_the_request_brings_is_kept() {
        let mut vif = bridged(1);
        vif.routes = vec![Route { destination: "0.0.0.0/0".into(), gateway: None }];
        SUBNET.assign(&mut vif, &BTreeSet::new()).unwrap();
        assert_eq!(vif.routes.len(), 1);
        let mut fixed = Vif { addresses: vec!["10.88.0.4/29".into()], ..bridged(1) };
        let before = fixed.clone();
        SUBNET.assign(&mut fixed, &BTreeSet::new()).unwrap();
        assert_eq!(fixed, before);
    }

    #[test]
    fn a_taken_address_is_refused() {
        let used = BTreeSet::from([IpAddr::from([10, 88, 0, 4])]);
        for taken in ["10.88.0.4/29", "10.88.0.1/29"] {
            let mut vif = Vif { addresses: vec![taken.into()], ..bridged(1) };
            let fault = SUBNET.assign(&mut vif, &used).unwrap_err();
            assert_eq!(fault.kind, FaultKind::InterfaceExists);
        }
    }
}

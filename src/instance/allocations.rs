//! What instances have taken of the host and no other may have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use uuid::Uuid;

use super::record::Record;
use crate::fault::{Fault, FaultKind, Result};
use crate::network::Network;
use crate::sys::ids::IdBlock;
use crate::types::Vif;

/// Id blocks, dedicated CPUs, addresses, names of interfaces.
#[derive(Debug, Default)]
pub struct Allocations {
    /// Blocks of ids.
    pub blocks: BTreeSet<IdBlock>,
    /// Dedicated CPUs.
    pub cpus: BTreeSet<u32>,
    addresses: BTreeSet<IpAddr>,
    devnames: BTreeMap<String, Uuid>,
}

impl Allocations {
    /// Adds what an instance has.
    pub fn add(&mut self, record: &Record) {
        self.blocks.insert(record.id_block);
        self.cpus.extend(record.pinned_cpus.iter().flatten().copied());
        for vif in &record.definition.vifs {
            self.addresses.extend(addresses(vif));
            self.devnames.insert(vif.devname.clone(), record.id);
        }
    }

    /// Whether something that an instance is to have is another's.
    pub fn has(&self, record: &Record) -> bool {
        let vifs = &record.definition.vifs;
        self.blocks.iter().any(|block| block.meets(&record.id_block))
            || record.pinned_cpus.iter().flatten().any(|cpu| self.cpus.contains(cpu))
            || vifs.iter().any(|vif| self.devnames.contains_key(&vif.devname))
            || vifs.iter().flat_map(addresses).any(|address| self.addresses.contains(&address))
    }

    /// Claims the name and the addresses of an interface, which is given what
    /// it does not bring. `field` is its place in the request.
    pub fn claim(&mut self, network: &Network, vif: &mut Vif, field: &str, id: Uuid) -> Result<()> {
        if let Some(owner) = self.devnames.get(&vif.devname) {
            return Err(Fault {
                field: Some(format!("{field}devname")),
                ..Fault::new(
                    FaultKind::InterfaceExists,
                    format!("{} is an interface of instance {owner}", vif.devname),
                )
            });
        }
        network.assign(vif, &self.addresses)?;
        self.addresses.extend(addresses(vif));
        self.devnames.insert(vif.devname.clone(), id);
        Ok(())
    }
}

fn addresses(vif: &Vif) -> impl Iterator<Item = IpAddr> + '_ {
    vif.addresses.iter().filter_map(|text| text.split('/').next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::record::tests::record;

    #[test]
    fn a_name_is_taken_once() {
        let network = Network::new(&crate::config::Bridge::default()).unwrap();
        let vif: Vif = serde_json::from_value(serde_json::json!({
            "id": Uuid::from_u128(9), "devname": "tap9", "address": "fa:16:3e:00:00:09"
        }))
        .unwrap();
        let mut owner = record();
        owner.definition.vifs.push(vif.clone());
        let mut taken = Allocations::default();
        taken.add(&owner);
        assert!(taken.blocks.contains(&owner.id_block));
        let fault = taken.claim(&network, &mut vif.clone(), "vifs[0].", Uuid::nil()).unwrap_err();
        assert_eq!(fault.kind, FaultKind::InterfaceExists);
        assert_eq!(fault.field.as_deref(), Some("vifs[0].devname"));
        let mut other = Vif { devname: "tap8".into(), ..vif };
        taken.claim(&network, &mut other.clone(), "", Uuid::nil()).unwrap();
        assert!(taken.claim(&network, &mut other, "", Uuid::nil()).is_err());
    }
}

//! Interfaces of an existing instance: attach and detach, running or not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use uuid::Uuid;

use crate::fault::{Fault, FaultKind, Result};
use crate::instance::parts::Parts;
use crate::instance::record::Record;
use crate::network::{self, Rates};
use crate::types::Vif;

/// Attaches an interface. The same one again is left undisturbed; another
/// one under the same port is a conflict.
pub fn attach(
    parts: &Parts,
    mut record: Record,
    mut vif: Vif,
    others: &BTreeSet<IpAddr>,
) -> Result<Record> {
    let known = record.definition.vifs.iter().position(|v| v.id == vif.id);
    if let Some(index) = known {
        let same = &record.definition.vifs[index];
        if !asks_for_the_same(same, &vif) {
            return Err(Fault::new(
                FaultKind::InterfaceExists,
                format!("port {} is attached with another definition; detach it first", vif.id),
            ));
        }
        vif = same.clone();
    } else {
        parts.network.assign(&mut vif, others)?;
        let mut all = record.definition.vifs.clone();
        all.push(vif);
        network::assign_names(&mut all);
        parts.network.validate(&all, None)?;
        vif = all.pop().unwrap_or_else(|| unreachable!("one was pushed above"));
    }
    let index = known.unwrap_or(record.definition.vifs.len());
    let net_ns = parts.paths(&record).net_ns();
    let rates = Rates::from_extra_specs(&record.definition.flavor.extra_specs)?;
    parts.network.attach(&vif, index, &net_ns)?;
    if known.is_some() {
        parts.network.apply_rates(&vif, &rates)?;
        return Ok(record);
    }
    record.definition.vifs.push(vif.clone());
    let kept = parts.network.apply_rates(&vif, &rates).and_then(|()| record.save(&parts.paths(&record)));
    match kept {
        Ok(()) => Ok(record),
        Err(fault) => Err(match parts.network.detach(&vif) {
            Ok(()) => fault,
            Err(left) => fault.context(format_args!("(and detaching it again: {})", left.detail)),
        }),
    }
}

/// Whether a repeated request is the one that made `known`: addresses that
/// berth assigned are not in it.
fn asks_for_the_same(known: &Vif, asked: &Vif) -> bool {
    let mut known = known.clone();
    if asked.bridge && asked.addresses.is_empty() {
        known.addresses.clear();
        known.routes.clone_from(&asked.routes);
    }
    known == *asked
}

/// Detaches an interface.
pub fn detach(parts: &Parts, mut record: Record, port: Uuid) -> Result<Record> {
    let index = record.definition.vifs.iter().position(|v| v.id == port).ok_or_else(|| {
        Fault::new(
            FaultKind::InterfaceNotFound,
            format!("instance {} has no interface of port {port}", record.id),
        )
    })?;
    let vif = record.definition.vifs.remove(index);
    // The record first: an interface that is in no record is removed at the
    // next start, one that is only in the record would come back.
    record.save(&parts.paths(&record))?;
    parts.network.detach(&vif)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vif() -> Vif {
        serde_json::from_value(serde_json::json!({
            "id": Uuid::from_u128(9), "devname": "tap9", "address": "fa:16:3e:00:00:09", "bridge": true
        }))
        .unwrap()
    }

    #[test]
    fn a_repeated_request_is_known_by_what_it_asks() {
        let mut known = vif();
        known.addresses = vec!["10.88.0.2/16".into()];
        assert!(asks_for_the_same(&known, &vif()));
        let other = Vif { mtu: 1400, ..vif() };
        assert!(!asks_for_the_same(&known, &other));
    }
}

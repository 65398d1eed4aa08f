//! The network of each boot: namespaces in which nothing has run, and in them the interfaces as
//! they were given. What was done to the network inside ends with a boot, as a machine's does.
//!
//! ```text
//! user, net            what the instance runs in
//! user.next, net.next  what it is to boot in, while interfaces go over one by one
//! network.json         what it is given: the monitor, too, boots it, while the service is away
//! ```
//!
//! The host's end of a veth stays as it is, and with it what others made of it: ports, queueing,
//! counters. Only where root inside took the pair away a new one is made. Whatever is cut short
//! is gone on with at the next boot or start of the service: the next namespaces are nobody's
//! before all is in them, and the present ones nobody's after that.

use std::collections::BTreeMap;
use std::fs::File;

use serde::{Deserialize, Serialize};

use super::{Network, Rates};
use crate::config;
use crate::fault::{OrFault, Result};
use crate::store::atomic;
use crate::store::layout::InstanceLayout;
use crate::sys::ids::IdBlock;
use crate::sys::{mount, ns};
use crate::types::Vif;

/// What an instance is given of networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Its ids.
    pub block: IdBlock,
    /// The stand-alone bridge as it is configured.
    pub bridge: config::Bridge,
    /// Its interfaces, in their order.
    pub vifs: Vec<Vif>,
    /// What limits each.
    pub rates: Rates,
}

/// The content of `network.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    given: Given,
    /// By `devname`, the bridges that others made the host's ends ports of.
    #[serde(default)]
    ports: BTreeMap<String, String>,
    /// Whether something has run in the present namespaces.
    used: bool,
}

/// The right to change an instance's namespaces and interfaces, which service and monitor have by
/// turns. Its end gives it back.
#[derive(Debug)]
pub struct Turn {
    layout: InstanceLayout,
    note: Option<Note>,
    _lock: File,
}

impl Turn {
    /// Waits for it.
    pub fn begin(layout: &InstanceLayout) -> Result<Turn> {
        let doing = "waiting for the instance's network";
        let lock = File::open(layout.run()).or_fault(doing)?;
        lock.lock().or_fault(doing)?;
        // One that cannot be read is as good as none: whoever gives writes it anew.
        let note = atomic::read_json(&layout.network()).unwrap_or(None);
        Ok(Turn { layout: layout.clone(), note, _lock: lock })
    }

    /// Makes what is missing of namespaces and interfaces.
    pub fn complete(&mut self, given: Given) -> Result<()> {
        let used = self.used();
        self.give(given, used)?;
        let next = [self.layout.next_user_ns(), self.layout.next_net_ns()];
        if mount::is_mount_point(&next[0])? || mount::is_mount_point(&next[1])? {
            return self.renew();
        }
        self.attach_all()
    }

    /// Has everything ready for a boot.
    pub fn boot(&mut self, given: Given) -> Result<()> {
        if self.used() {
            self.give(given, true)?;
            self.renew()?;
        } else {
            self.complete(given)?;
        }
        self.mark_used()
    }

    /// [`Turn::boot`] with what was given last; false where nothing says what that was.
    pub fn boot_again(&mut self) -> Result<bool> {
        if self.note.is_none() {
            return Ok(false);
        }
        self.renew()?;
        self.mark_used()?;
        Ok(true)
    }

    /// Notes what was given by other ways.
    pub fn note(&mut self, given: Given) -> Result<()> {
        let used = self.used();
        self.give(given, used)
    }

    /// Without a word of it, as an earlier version left it, they were.
    fn used(&self) -> bool {
        self.note.as_ref().is_none_or(|note| note.used)
    }

    fn give(&mut self, given: Given, used: bool) -> Result<()> {
        let mut ports = self.note.take().map(|note| note.ports).unwrap_or_default();
        ports.retain(|devname, _| given.vifs.iter().any(|vif| vif.devname == *devname));
        // Of one that has vanished, what is known stays.
        ports.extend(super::ports(&given.vifs)?);
        self.note = Some(Note { given, ports, used });
        self.save()
    }

    fn mark_used(&mut self) -> Result<()> {
        match &mut self.note {
            Some(note) if !note.used => note.used = true,
            _ => return Ok(()),
        }
        self.save()
    }

    fn save(&self) -> Result<()> {
        self.note.as_ref().map_or(Ok(()), |note| atomic::write_json(&self.layout.network(), note))
    }

    fn attach_all(&mut self) -> Result<()> {
        let (user_ns, net_ns) = (self.layout.user_ns(), self.layout.net_ns());
        let Some(note) = &mut self.note else { return Ok(()) };
        // A pin is a mount: a file alone is what a boot of the host left.
        if !(mount::is_mount_point(&user_ns)? && mount::is_mount_point(&net_ns)?) {
            ns::create_pinned(note.given.block, &user_ns, &net_ns)?;
            note.used = false;
        }
        let network = Network::new(&note.given.bridge)?;
        for (index, vif) in note.given.vifs.iter().enumerate() {
            let port = note.ports.get(&vif.devname).map(String::as_str);
            network.attach_at(vif, index, &net_ns, port)?;
        }
        self.save()
    }

    /// Next namespaces become the present ones. Nothing runs in either.
    fn renew(&mut self) -> Result<()> {
        let Some(note) = &mut self.note else { return Ok(()) };
        let layout = &self.layout;
        let (user_ns, net_ns) = (layout.user_ns(), layout.net_ns());
        let (next_user_ns, next_net_ns) = (layout.next_user_ns(), layout.next_net_ns());
        if !(mount::is_mount_point(&next_user_ns)? && mount::is_mount_point(&next_net_ns)?) {
            ns::create_pinned(note.given.block, &next_user_ns, &next_net_ns)?;
        }
        let from =
            Some(net_ns.as_path()).filter(|path| mount::is_mount_point(path).unwrap_or(true));
        let network = Network::new(&note.given.bridge)?;
        note.ports.extend(super::ports(&note.given.vifs)?);
        for (index, vif) in note.given.vifs.iter().enumerate() {
            let port = note.ports.get(&vif.devname).map(String::as_str);
            network.renew(vif, index, from, &next_net_ns, port, &note.given.rates)?;
        }
        ns::replace(&next_user_ns, &user_ns)?;
        ns::replace(&next_net_ns, &net_ns)?;
        note.used = false;
        self.save()?;
        unpin_next(&self.layout)
    }
}

/// Lets go of a next boot's namespaces; absence is success.
pub fn unpin_next(layout: &InstanceLayout) -> Result<()> {
    ns::unpin(&layout.next_user_ns())?;
    ns::unpin(&layout.next_net_ns())
}

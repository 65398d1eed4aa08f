//! Which CPUs the instances run on, and their moves while they run.
//!
//! An instance without dedicated CPUs has as many as vCPUs, which others share
//! ([`balance`](crate::host::balance)). Whoever counts CPUs inside counts those.
//! The kernel keeps who is where: the next service reads it back.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::record::Record;
use crate::cgroup::{Controller, Group, Hierarchy};
use crate::config::Config;
use crate::host::balance::{Balance, Cpus};
use crate::host::{CpuSets, cpu_nodes};

/// The CPUs of all that run.
#[derive(Debug)]
pub struct Placement {
    hierarchy: Hierarchy,
    parent: String,
    sets: CpuSets,
    balanced: bool,
    // Held while moves are written, so that the kernel's files say what this does.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    balance: Balance,
    /// Whether all that ran before the service are known: until then none moves.
    complete: bool,
}

impl Placement {
    /// Nobody is placed yet.
    pub fn new(config: &Config, hierarchy: &Hierarchy, sets: &CpuSets) -> Placement {
        let balance = Balance::new(cpu_nodes());
        Placement {
            hierarchy: hierarchy.clone(),
            parent: config.instances.cgroup.clone(),
            sets: sets.clone(),
            // Without the controller everybody runs anywhere.
            balanced: config.host.cpu_balance && hierarchy.place(Controller::Cpuset).is_some(),
            state: Mutex::new(State { balance, complete: false }),
        }
    }

    /// The CPUs for an instance's limits; `None`: all that its parent cgroup may use.
    pub fn cpus(&self, record: &Record) -> Option<Vec<u32>> {
        if let Some(pinned) = &record.pinned_cpus {
            return Some(pinned.clone());
        }
        match self.state().balance.cpus(record.id) {
            Some(cpus) => self.limit(cpus).map(|cpus| cpus.iter().copied().collect()),
            None => self.sets.shared_limit(),
        }
    }

    /// All CPUs are no limit: those that come later are used too.
    fn limit<'a>(&self, cpus: &'a Cpus) -> Option<&'a Cpus> {
        (*cpus != self.sets.online).then_some(cpus)
    }

    /// Gives an instance that starts, or has another flavor, its CPUs, and has
    /// others make room. Its own cgroup is for the caller to write.
    pub fn place(&self, record: &Record) {
        self.take_up(record, Cpus::new());
    }

    /// Takes up an instance that runs, where it runs.
    pub fn read_back(&self, record: &Record) {
        self.take_up(record, self.group(record.id).cpus());
    }

    fn take_up(&self, record: &Record, has: Cpus) {
        if !self.balanced {
            return;
        }
        let mut state = self.state();
        match &record.pinned_cpus {
            Some(cpus) => state.balance.pin(record.id, cpus.iter().copied().collect()),
            None => {
                let vcpus = record.definition.flavor.vcpus as usize;
                state.balance.share(record.id, vcpus, has);
                state.balance.fit(record.id, &self.usable());
            }
        }
        self.level(&mut state, Some(record.id));
    }

    /// Writes where an instance is into its cgroup, which may have been made from
    /// an older plan. Absence is success.
    pub fn confirm(&self, id: Uuid) {
        let state = self.state();
        if let Some(cpus) = state.balance.cpus(id) {
            self.write(id, cpus);
        }
    }

    /// Forgets an instance that has ended, and lets others have its CPUs.
    pub fn leave(&self, id: Uuid) {
        let mut state = self.state();
        if state.balance.leave(id) {
            self.level(&mut state, None);
        }
    }

    /// All that run are known: from now on they move.
    pub fn begin(&self) {
        let mut state = self.state();
        state.complete = true;
        self.level(&mut state, None);
    }

    fn level(&self, state: &mut State, except: Option<Uuid>) {
        if !state.complete {
            return;
        }
        let moved = state.balance.level(&self.usable());
        for id in moved.into_iter().filter(|id| Some(*id) != except) {
            if let Some(cpus) = state.balance.cpus(id) {
                self.write(id, cpus);
            }
        }
    }

    /// The shared CPUs that the instances' parent cgroup has.
    fn usable(&self) -> BTreeSet<u32> {
        let theirs = self.hierarchy.usable_cpus(&self.parent);
        let both: Cpus = self.sets.shared.intersection(&theirs).copied().collect();
        if both.is_empty() { self.sets.shared.clone() } else { both }
    }

    fn write(&self, id: Uuid, cpus: &Cpus) {
        // An instance that cannot be moved runs on where it is.
        match self.group(id).move_to(self.limit(cpus)) {
            Ok(true) => tracing::debug!(instance = %id, ?cpus, "runs on these CPUs"),
            Ok(false) => {}
            Err(fault) => {
                tracing::warn!(instance = %id, fault = %fault.in_full(), "moving it to other CPUs");
            }
        }
    }

    fn group(&self, id: Uuid) -> Group {
        Group::new(&self.hierarchy, &self.parent, id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

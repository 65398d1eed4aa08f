//! Who there is on this host, and what they all have of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;

use super::allocations::Allocations;
use super::coming::Arrivals;
use super::handle::{Handle, not_found};
use crate::fault::Result;
use crate::types::Volume;

/// Every instance's handle, by id.
#[derive(Debug, Default)]
pub struct Registry {
    instances: RwLock<BTreeMap<Uuid, Arc<Handle>>>,
    /// Those on their way here.
    pub arrivals: Arrivals,
    // Held while ids, CPUs and addresses are given out.
    allocation: Mutex<()>,
    // Held while it is found out whose a volume is.
    volumes: Mutex<()>,
}

impl Registry {
    /// All instances, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        self.instances.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The instance of this id.
    pub fn find(&self, id: Uuid) -> Result<Arc<Handle>> {
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        instances.get(&id).cloned().ok_or_else(|| not_found(id))
    }

    /// Adds an instance.
    pub fn add(&self, handle: Arc<Handle>) {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        instances.insert(handle.id, handle);
    }

    /// Takes an instance that is gone out of the list.
    pub fn forget(&self, handle: &Arc<Handle>) {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        if instances.get(&handle.id).is_some_and(|known| Arc::ptr_eq(known, handle)) {
            instances.remove(&handle.id);
        }
    }

    /// The lock under which ids, CPUs, addresses and names are given out.
    pub fn lock_allocations(&self) -> MutexGuard<'_, ()> {
        self.allocation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock under which volumes are given to instances: one of its own, since their sources may
    /// let it wait.
    pub fn lock_volumes(&self) -> MutexGuard<'_, ()> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volumes of all instances save one, with these.
    pub fn volumes(&self, except: Uuid) -> Vec<(Uuid, Volume)> {
        let others = self.all().into_iter().filter(|handle| handle.id != except);
        let of_other = |handle: Arc<Handle>| {
            let volumes = handle.with_view(|view| view.record.volumes.clone());
            volumes.into_iter().map(|volume| (handle.id, volume)).collect::<Vec<_>>()
        };
        others.flat_map(of_other).collect()
    }

    /// What instances have, save one. Whoever gives out more of it holds
    /// [`lock_allocations`](Self::lock_allocations) until that can be seen in a view.
    pub fn allocations(&self, except: Uuid) -> Allocations {
        let mut allocations = Allocations::default();
        for handle in self.all().iter().filter(|handle| handle.id != except) {
            handle.with_view(|view| allocations.add(&view.record));
        }
        self.arrivals.add_to(&mut allocations, except);
        allocations
    }
}

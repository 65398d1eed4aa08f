//! Instances on their way here: what is reserved for them, and how far they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::allocations::Allocations;
use super::record::Record;
use crate::fault::{Fault, FaultKind, Result};
use crate::image::{ImageExport, Kept, Lacking};
use crate::types::Incoming;

/// Those on their way, by the ids of their moves.
#[derive(Debug, Default)]
pub struct Arrivals {
    coming: Mutex<BTreeMap<Uuid, Arc<Coming>>>,
}

/// One on its way.
pub struct Coming {
    /// Id of the move.
    pub move_id: Uuid,
    /// What it will be.
    pub record: Record,
    /// Bytes of its disks where it comes from.
    pub sent: (u64, u64),
    /// Its image, where it comes from.
    pub image: ImageExport,
    /// What is lacking of that here.
    pub lacking: Lacking,
    /// How far it is.
    pub stage: RwLock<Stage>,
    /// When something came last.
    pub touched: Mutex<Instant>,
    /// Keeps the image's layers.
    pub kept: Kept,
}

/// How far one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Disks, ids and interfaces are being reserved.
    Begun,
    /// It takes what comes.
    Open,
    /// It was taken.
    Committed,
    /// It was given up.
    Ended,
}

impl std::fmt::Debug for Coming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coming").field("instance", &self.record.id).finish_non_exhaustive()
    }
}

impl Arrivals {
    /// Those that there are.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Coming>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The move by which an instance comes.
    pub fn of_instance(&self, id: Uuid) -> Option<Arc<Coming>> {
        self.lock().values().find(|coming| coming.record.id == id).cloned()
    }

    /// The move of this id.
    pub fn find(&self, move_id: Uuid) -> Result<Arc<Coming>> {
        let found = self.lock().get(&move_id).cloned();
        found.inspect(|coming| coming.touch()).ok_or_else(|| {
            Fault::new(
                FaultKind::NotFound,
                format!("there is no move {move_id} here: it was ended, or nothing came for long"),
            )
        })
    }

    /// Adds what those on their way have, save one.
    pub fn add_to(&self, allocations: &mut Allocations, except: Uuid) {
        let coming = self.lock();
        let others = coming.values().filter(|coming| coming.record.id != except);
        others.for_each(|coming| allocations.add(&coming.record));
    }

    /// Refuses what would be in the way of one.
    pub fn refuse_if_coming(&self, id: Uuid) -> Result<()> {
        match self.of_instance(id) {
            None => Ok(()),
            Some(_) => Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!("instance {id} is on its way here from another host"),
            )),
        }
    }
}

impl Coming {
    /// Something came.
    pub fn touch(&self) {
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether nothing came for so long.
    pub fn is_idle(&self, most: Duration) -> bool {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > most
    }

    /// What is to come.
    pub fn answer(&self) -> Incoming {
        Incoming {
            missing_layers: self.lacking.layers.clone(),
            missing_image_disk: self.lacking.disk,
        }
    }

    /// Runs `work` while it takes what comes.
    pub fn while_open<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stage = self.stage.read().unwrap_or_else(PoisonError::into_inner);
        if *stage != Stage::Open {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                "the move was ended or committed meanwhile",
            ));
        }
        let done = work();
        self.touch();
        done
    }
}

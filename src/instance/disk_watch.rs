//! Watches the disks of running instances: what is kept to remove files by when they are full.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tracing::warn;

use super::handle::View;
use super::shared::Shared;
use crate::fault::{OrFault, Result};
use crate::rootfs::reserve;

/// Between two looks: somebody who has filled the disk takes longer to type.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts the watch. It ends with `shared`.
pub fn start(shared: &Arc<Shared>) -> Result<()> {
    let shared = Arc::downgrade(shared);
    std::thread::Builder::new()
        .name("berth-disks".into())
        .spawn(move || {
            let mut watch = Watch::new();
            while watch.look(&shared).is_some() {
                std::thread::sleep(PERIOD);
            }
        })
        .map(drop)
        .or_fault("starting a thread")
}

struct Watch {
    /// Disks that somebody is at: one that is frozen holds who changes it.
    busy: HashSet<PathBuf>,
    say: Sender<PathBuf>,
    said: Receiver<PathBuf>,
}

impl Watch {
    fn new() -> Watch {
        let (say, said) = channel();
        Watch { busy: HashSet::new(), say, said }
    }

    /// One look; `None` once there is nobody to look for.
    fn look(&mut self, shared: &Weak<Shared>) -> Option<()> {
        let shared = shared.upgrade()?;
        while let Ok(point) = self.said.try_recv() {
            self.busy.remove(&point);
        }
        for handle in shared.registry.all() {
            let runs = |view: &View| view.init.is_some() && !view.record.quiesced;
            if !handle.with_view(runs) {
                continue;
            }
            let paths = shared.parts.layout.instance(handle.id);
            for point in [paths.disk_mount(), paths.rescue_mount()] {
                if self.busy.contains(&point) {
                    continue;
                }
                match reserve::is_due(&point) {
                    Ok(false) => {}
                    Ok(true) => self.settle(point),
                    Err(fault) => {
                        warn!(instance = %handle.id, fault = %fault.in_full(), "its disk")
                    }
                }
            }
        }
        Some(())
    }

    fn settle(&mut self, point: PathBuf) {
        let (say, at) = (self.say.clone(), point.clone());
        let work = move || {
            if let Err(fault) = reserve::settle(&at) {
                warn!(disk = %at.display(), fault = %fault.in_full(), "its room was not kept");
            }
            // The watch may have ended.
            let _ = say.send(at);
        };
        match std::thread::Builder::new().name("berth-disk".into()).spawn(work) {
            Ok(_) => drop(self.busy.insert(point)),
            Err(error) => warn!(%error, "starting a thread"),
        }
    }
}

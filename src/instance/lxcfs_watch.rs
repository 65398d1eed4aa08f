//! Watches lxcfs: tells of instances that are without it, and gives them what it shows once it is back.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tracing::{error, info, warn};
use uuid::Uuid;

use super::handle::View;
use super::shared::Shared;
use crate::fault::{OrFault, Result};
use crate::runtime::cover::{Lxcfs, Running};
use crate::runtime::lxcfs;
use crate::sys::mount;
use crate::sys::process::ProcessId;
use crate::types::EventKind;

/// Between two looks at lxcfs.
const PERIOD: Duration = Duration::from_secs(2);
/// What one instance may keep the others waiting: who looks into it may be held up by it.
const PATIENCE: Duration = Duration::from_millis(200);

/// Starts the watch, if the configuration has lxcfs. It ends with `shared`.
pub fn start(shared: &Arc<Shared>) -> Result<()> {
    let path = shared.parts.config.instances.lxcfs.clone();
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let shared = Arc::downgrade(shared);
    std::thread::Builder::new()
        .name("berth-watch".into())
        .spawn(move || {
            let mut watch = Watch::new(path);
            while watch.look(&shared).is_some() {
                std::thread::sleep(PERIOD);
            }
        })
        .map(drop)
        .or_fault("starting a thread")
}

/// What came of giving an instance lxcfs's files.
type Renewed = (Uuid, Result<usize>);

struct Watch {
    path: PathBuf,
    /// The file system that instances are given, once it was made read-only.
    device: Option<u64>,
    /// Whether it was there at the last look.
    answered: bool,
    /// The boots that were looked into, and with which file system.
    seen: HashMap<Uuid, (ProcessId, u64)>,
    /// Those that were told to be without.
    without: HashSet<Uuid>,
    say: Sender<Renewed>,
    said: Receiver<Renewed>,
}

impl Watch {
    fn new(path: PathBuf) -> Watch {
        let (say, said) = channel();
        Watch {
            path,
            device: None,
            answered: true,
            seen: HashMap::new(),
            without: HashSet::new(),
            say,
            said,
        }
    }

    /// One look; `None` once there is nobody to look for.
    fn look(&mut self, shared: &Weak<Shared>) -> Option<()> {
        let device = lxcfs::device(&self.path);
        let shared = shared.upgrade()?;
        while let Ok(renewed) = self.said.try_recv() {
            self.note(&shared, renewed);
        }
        let running: Vec<View> = shared
            .registry
            .all()
            .iter()
            .map(|handle| handle.with_view(View::clone))
            .filter(|view| view.init.is_some())
            .collect();
        let runs = |id: &Uuid| running.iter().any(|view| view.record.id == *id);
        self.seen.retain(|id, _| runs(id));
        self.without.retain(runs);
        match device.filter(|device| self.is_for_instances(*device)) {
            Some(device) => self.found(&shared, device, &running),
            None => self.missed(&shared, &running),
        }
        Some(())
    }

    /// Whether nothing can be written by it, as instances must not.
    fn is_for_instances(&mut self, device: u64) -> bool {
        if self.device == Some(device) {
            return true;
        }
        let path = self.path.clone();
        match lxcfs::within(lxcfs::ANSWER, move || mount::make_fuse_read_only(&path)) {
            Some(Ok(())) => self.device = Some(device),
            Some(Err(fault)) => warn!(fault = %fault.in_full(), "lxcfs is not for instances"),
            None => {}
        }
        self.device == Some(device)
    }

    fn missed(&mut self, shared: &Shared, running: &[View]) {
        if std::mem::replace(&mut self.answered, false) {
            error!(
                path = %self.path.display(),
                "ALERT: lxcfs does not answer: in instances /proc/meminfo and the like cannot be \
                 read, and those started now see the host's; start it again, and they are mended"
            );
        }
        for view in running {
            if self.without.insert(view.record.id) {
                shared.emit(EventKind::LxcfsLost, view, None);
            }
        }
    }

    fn found(&mut self, shared: &Shared, device: u64, running: &[View]) {
        if !std::mem::replace(&mut self.answered, true) {
            info!(path = %self.path.display(), "lxcfs answers again");
        }
        for view in running {
            let (id, Some(init)) = (view.record.id, view.init) else { continue };
            if self.seen.insert(id, (init, device)) == Some((init, device)) {
                // It hung, and goes on.
                self.restored(shared, id, 0);
                continue;
            }
            let running = Running {
                init,
                user_ns: shared.parts.paths(&view.record).user_ns(),
                group: shared.parts.group(&view.record),
            };
            if let Err(error) = self.renew(id, running, device) {
                warn!(%error, "starting a thread");
                self.seen.remove(&id);
                return;
            }
            if let Ok(renewed) = self.said.recv_timeout(PATIENCE) {
                self.note(shared, renewed);
            }
        }
    }

    fn renew(&self, id: Uuid, running: Running, device: u64) -> std::io::Result<()> {
        let lxcfs = Lxcfs { mount_point: self.path.clone(), device };
        let say = self.say.clone();
        let work = move || {
            // The watch may have ended.
            let _ = say.send((id, lxcfs.renew(&running)));
        };
        std::thread::Builder::new().name("berth-lxcfs".into()).spawn(work).map(drop)
    }

    fn note(&mut self, shared: &Shared, (id, renewed): Renewed) {
        match renewed {
            Ok(count) => self.restored(shared, id, count),
            Err(fault) => {
                warn!(instance = %id, fault = %fault.in_full(), "it has what lxcfs shows from its next boot on")
            }
        }
    }

    fn restored(&mut self, shared: &Shared, id: Uuid, count: usize) {
        if (self.without.remove(&id) || count > 0)
            && let Ok(handle) = shared.registry.find(id)
        {
            info!(instance = %id, count, "it has what lxcfs shows again");
            shared.emit(EventKind::LxcfsRestored, &handle.with_view(View::clone), None);
        }
    }
}

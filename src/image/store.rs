//! The images of this host: records, layers, who holds them, who is fetching them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use super::catalogue::Catalogue;
use super::files::{empty, entries, remove_tree};
use super::flight::{Flight, crashed};
use super::import::{self, Means};
use super::jail::Jail;
use super::kept_disk::KeptDisk;
use super::layers::{Layers, Pin};
use super::progress::{Listener, Progress, Watcher};
use super::records::ImageRecord;
use super::workspace::Workspace;
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::rootfs::idmap::BLOCK_SIZE;
use crate::store::atomic;
use crate::store::layout::Layout;
use crate::store::room::Room;
use crate::types::{Image, ImageDisk, ImageFormat, ImageImport, ImageInspection};

/// As many verifications are kept of an image, the latest.
const VERIFICATIONS: usize = 100;

/// The image store. One for a host; all methods may be called from any blocking thread.
pub struct ImageStore {
    layout: Layout,
    config: config::Images,
    room: Arc<Room>,
    jail: Jail,
    layers: Layers,
    /// Ids that instances have.
    ids: u64,
    /// Imports under way that did not have to wait.
    running: Mutex<usize>,
    /// One of them ended.
    landed: Condvar,
}

impl ImageStore {
    /// Opens the store, and removes what imports left that a crash cut off.
    pub fn open(layout: &Layout, config: &config::Images, room: Arc<Room>) -> Result<ImageStore> {
        // Not what it links to: after an upgrade that is another program, or none.
        ImageStore::open_with(layout, config, room, Jail::Program("/proc/self/exe".into()))
    }

    /// Of a host whose instances have so many ids each.
    #[must_use]
    pub fn for_ids(self, ids: u32) -> ImageStore {
        ImageStore { ids: ids.into(), ..self }
    }

    /// [`ImageStore::open`] with another way into the jail than this program.
    pub fn open_with(
        layout: &Layout,
        config: &config::Images,
        room: Arc<Room>,
        jail: Jail,
    ) -> Result<ImageStore> {
        // Layers hold set-user-id programs of user 0: nobody else may walk in.
        for directory in [
            layout.images(),
            layout.image_layers(),
            layout.image_records(),
            layout.image_disks(),
            layout.images_temporary(),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .or_fault(format_args!("making {}", directory.display()))?;
        }
        empty(&layout.images_temporary())?;
        let store = ImageStore {
            layout: layout.clone(),
            config: config.clone(),
            room,
            jail,
            layers: Layers::new(layout, Catalogue::load(layout)?),
            ids: BLOCK_SIZE.into(),
            running: Mutex::new(0),
            landed: Condvar::new(),
        };
        store.layers.collect()?;
        store.collect_disks()?;
        Ok(store)
    }

    /// Brings an image into the store, or joins the import that does. Blocks.
    ///
    /// Idempotent: an image that is there is returned at once, unless the
    /// request says that its content is another ([`FaultKind::ImageExists`]).
    pub fn import(&self, id: Uuid, request: &ImageImport, progress: Listener<'_>) -> Result<Image> {
        import::validate(request, &self.config)?;
        self.layers.check(id)?;
        let flight = {
            let mut catalogue = self.layers.lock();
            if let Some(record) = catalogue.records.get(&id) {
                same_content(record, request)?;
                return self.verified(&mut catalogue, id, request);
            }
            match catalogue.flights.get(&id) {
                Some(flight) if flight.serves(request) => Err(Arc::clone(flight)),
                Some(_) => {
                    return Err(Fault::new(
                        FaultKind::ImageInUse,
                        format!("image {id} is being imported with another hash or size"),
                    ));
                }
                None => {
                    let flight = Arc::new(Flight::new(request.clone()));
                    catalogue.flights.insert(id, Arc::clone(&flight));
                    Ok(flight)
                }
            }
        };
        match flight {
            Err(joined) => {
                joined.wait(progress)?;
                // What the first request left open, the content has settled by now.
                let mut catalogue = self.layers.lock();
                let record = catalogue.records.get(&id).ok_or_else(|| not_found(id))?;
                same_content(record, request)?;
                self.verified(&mut catalogue, id, request)
            }
            Ok(flight) => self.fly(id, request, &flight, progress),
        }
    }

    /// Says what an import would make of content, by doing all of it but the last step. Nothing
    /// comes into the store. Blocks, and waits for its turn among the imports.
    pub fn inspect(
        &self,
        id: Uuid,
        request: &ImageImport,
        progress: Listener<'_>,
    ) -> Result<ImageInspection> {
        import::validate(request, &self.config)?;
        let report = Flying { store: self, flight: None, watcher: progress };
        let slot = self.slot(&report);
        let result = import::inspect(self.means(&report), id, request);
        drop(slot);
        // A layer that an image no longer needs was perhaps only looked at here.
        if let Err(fault) = self.layers.collect() {
            tracing::warn!(fault = %fault.in_full(), "making room in the image store");
        }
        result.map_err(|fault| self.with_remedy(fault))
    }

    /// An image that is there, with the verification that a request for its content tells of.
    fn verified(
        &self,
        catalogue: &mut Catalogue,
        id: Uuid,
        request: &ImageImport,
    ) -> Result<Image> {
        let record = catalogue.records.get(&id).ok_or_else(|| not_found(id))?;
        let mut image = catalogue.image(record);
        match &request.verification {
            Some(new) if !record.image.verifications.contains(new) => {
                let mut changed = record.clone();
                let all = &mut changed.image.verifications;
                all.push(new.clone());
                // An older one that is needed again is made again.
                all.drain(..all.len().saturating_sub(VERIFICATIONS));
                image.verifications.clone_from(all);
                atomic::write_json(&self.layout.image_record(id), &changed)?;
                catalogue.records.insert(id, changed);
            }
            _ => {}
        }
        Ok(image)
    }

    /// An image. One whose layers were altered is not there any more.
    pub fn get(&self, id: Uuid) -> Result<Image> {
        self.layers.check(id)?;
        let mut catalogue = self.layers.lock();
        let Some(record) = catalogue.records.get(&id) else { return Err(not_found(id)) };
        let image = catalogue.image(record);
        catalogue.asked.insert(id, Utc::now());
        Ok(image)
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        let catalogue = self.layers.lock();
        catalogue.records.values().map(|record| catalogue.image(record)).collect()
    }

    /// Forgets an image that nobody holds. Its layers go at the next [`ImageStore::collect`].
    pub fn delete(&self, id: Uuid) -> Result<()> {
        let mut catalogue = self.layers.lock();
        let in_use = |why: String| Err(Fault::new(FaultKind::ImageInUse, why));
        if catalogue.flights.contains_key(&id) {
            return in_use(format!("image {id} is being imported"));
        }
        if !catalogue.records.contains_key(&id) {
            return Err(not_found(id));
        }
        if let Some(holders) = catalogue.holders.get(&id) {
            return in_use(format!("image {id} is the base of {} instances", holders.len()));
        }
        let path = self.layout.image_record(id);
        atomic::remove_file(&path)?;
        atomic::sync_parent(&path).or_fault("removing the image's record")?;
        catalogue.forget(id);
        atomic::remove_file(&self.layout.image_disk(id))
    }

    /// Notes that an instance stands on an image. Idempotent.
    pub fn hold(&self, image: Uuid, instance: Uuid) -> Result<Image> {
        let mut catalogue = self.layers.lock();
        if !catalogue.records.contains_key(&image) {
            return Err(not_found(image));
        }
        catalogue.holders.entry(image).or_default().insert(instance);
        catalogue
            .records
            .get(&image)
            .map(|record| catalogue.image(record))
            .ok_or_else(|| not_found(image))
    }

    /// Notes that an instance does so no longer. Idempotent.
    pub fn release(&self, image: Uuid, instance: Uuid) {
        let mut catalogue = self.layers.lock();
        if let Some(holders) = catalogue.holders.get_mut(&image) {
            holders.remove(&instance);
            if !holders.is_empty() {
                return;
            }
            catalogue.holders.remove(&image);
        }
        if let Err(fault) = self.touch(&mut catalogue, image) {
            // It is only thought older than it is.
            tracing::warn!(%image, fault = %fault.in_full(), "noting when an image was last used");
        }
    }

    /// Notes that an image was used until now.
    fn touch(&self, catalogue: &mut Catalogue, image: Uuid) -> Result<()> {
        let Some(record) = catalogue.records.get_mut(&image) else { return Ok(()) };
        record.image.last_used_at = Utc::now();
        atomic::write_json(&self.layout.image_record(image), record)
    }

    /// Removes what was kept of disks whose images have no record: a crash came between.
    fn collect_disks(&self) -> Result<()> {
        let catalogue = self.layers.lock();
        if catalogue.unreadable {
            return Ok(());
        }
        let needed: BTreeSet<String> = catalogue.records.keys().map(Uuid::to_string).collect();
        for entry in entries(&self.layout.image_disks())? {
            if !entry.file_name().to_str().is_some_and(|name| needed.contains(name)) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// What a disk of an image's layout is made of. The fault says why there is none.
    pub fn kept_disk(&self, id: Uuid) -> Result<KeptDisk> {
        let catalogue = self.layers.lock();
        let unsupported = |why: &str| Err(Fault::new(FaultKind::InstanceUnsupported, why));
        let Some(record) = catalogue.records.get(&id) else {
            return unsupported("the instance's image is no longer in this host's store");
        };
        match (&record.kept, &record.image.disk) {
            (Some(kept), _) => KeptDisk::open(kept, &self.layout.image_disk(id)),
            (None, Some(ImageDisk { refusal: Some(why), .. })) => unsupported(&format!(
                "of the disk that the instance's image is, no other can be made: {why}"
            )),
            _ if matches!(record.image.format, ImageFormat::Qcow2 | ImageFormat::Raw) => {
                unsupported(
                    "the instance's image was imported by an older berth, which kept nothing of                      its disk",
                )
            }
            _ => unsupported("the instance's image is no disk"),
        }
    }

    /// Removes the layers that no image and no import needs.
    pub fn collect(&self) -> Result<()> {
        self.layers.collect()
    }

    /// The directory of an unpacked layer (`sha256:HEX`), its root file system:
    /// owned by the ids 0… of the image, below a directory that only root enters.
    ///
    /// A text that is no such digest gives a path that does not exist.
    pub fn layer_dir(&self, digest: &str) -> PathBuf {
        self.layers.directory(digest)
    }

    /// Keeps layers (`sha256:HEX`) from being collected as long as the guards live.
    pub fn keep_layers(&self, digests: &[String]) -> Result<Vec<Pin<'_>>> {
        self.layers.keep(digests)
    }

    pub(super) fn layers(&self) -> &Layers {
        &self.layers
    }

    pub(super) fn paths(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn means<'a>(&'a self, report: Listener<'a>) -> Means<'a> {
        let ImageStore { layout, config, room, jail, layers, .. } = self;
        Means { layers, jail, config, ids: self.ids, room, layout, report }
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory to make a disk in; what is left of it goes at the next start.
    pub fn workspace(&self) -> Result<Workspace> {
        Workspace::new(&self.layout.images_temporary())
    }

    /// Who gives the space that is written to.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// The way into the jail.
    pub fn jail(&self) -> &Jail {
        &self.jail
    }

    /// Forgets the images that were unused the longest, until the layers of
    /// those that are left fit into `images.cache_bytes`. `keep` was asked for
    /// just now.
    fn make_room(&self, keep: Uuid) -> Result<()> {
        let most = self.config.cache_bytes;
        if most == 0 {
            return Ok(());
        }
        loop {
            let oldest = {
                let catalogue = self.layers.lock();
                if self.layers.stored(&catalogue)? <= most {
                    break;
                }
                let unused = catalogue.unused().filter(|(id, _)| *id != keep);
                unused.min_by_key(|(_, used)| *used).map(|(id, _)| id)
            };
            let Some(id) = oldest else { break };
            tracing::info!(image = %id, "the image is unused and makes room for another");
            self.evict(id)?;
        }
        self.layers.collect()
    }

    /// Forgets the images that nobody used for `images.unused_seconds`. To be
    /// called once all instances hold theirs.
    pub fn expire(&self) -> Result<()> {
        if self.config.unused_seconds == 0 {
            return Ok(());
        }
        let age = TimeDelta::try_seconds(self.config.unused_seconds).unwrap_or(TimeDelta::MAX);
        let Some(until) = Utc::now().checked_sub_signed(age) else { return Ok(()) };
        let expired: Vec<Uuid> = self
            .layers
            .lock()
            .unused()
            .filter(|(_, used)| *used < until)
            .map(|(id, _)| id)
            .collect();
        for id in &expired {
            tracing::info!(image = %id, "the image was unused for images.unused_seconds and goes");
            self.evict(*id)?;
        }
        if expired.is_empty() { Ok(()) } else { self.layers.collect() }
    }

    /// Removes no layer until the next start: an instance may stand on any of them.
    pub fn keep_all_layers(&self) {
        self.layers.lock().unreadable = true;
    }

    /// Deletes an image, unless somebody was faster or has begun to use it.
    fn evict(&self, id: Uuid) -> Result<()> {
        match self.delete(id) {
            Err(Fault { kind: FaultKind::ImageNotFound | FaultKind::ImageInUse, .. }) => Ok(()),
            other => other,
        }
    }

    /// Runs an import that others may join.
    fn fly(
        &self,
        id: Uuid,
        request: &ImageImport,
        flight: &Flight,
        progress: Listener<'_>,
    ) -> Result<Image> {
        // Lands the flight however this ends, a panic included.
        let mut landing = Landing { store: self, id, flight, result: None };
        let report = Flying { store: self, flight: Some(flight), watcher: progress };
        let slot = self.slot(&report);
        let result = import::run(self.means(&report), id, request)
            .and_then(|(record, _pins)| self.add(record))
            .map_err(|fault| self.with_remedy(fault));
        drop(slot);
        if result.is_err() {
            // Without a record it is nobody's; the next start removes it too.
            let _ = atomic::remove_file(&self.layout.image_disk(id));
        }
        // Layers that a failed import had put in place already are nobody's.
        let tidied = if result.is_ok() { self.make_room(id) } else { self.layers.collect() };
        if let Err(fault) = tidied {
            // The next import makes another attempt.
            tracing::warn!(fault = %fault.in_full(), "making room in the image store");
        }
        landing.result = Some(result.clone());
        result
    }

    /// Waits until one more import may run.
    fn slot(&self, report: Listener<'_>) -> Slot<'_> {
        self.take_slot(report);
        Slot { store: self }
    }

    fn take_slot(&self, report: Listener<'_>) {
        let mut running = self.running();
        if *running >= self.config.concurrency {
            drop(running);
            report.progress(Progress { stage: "waiting", done: 0, total: None });
            running = self.running();
        }
        while *running >= self.config.concurrency {
            running = self.landed.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
    }

    fn give_slot_up(&self) {
        *self.running() -= 1;
        self.landed.notify_all();
    }

    /// Says what to do when there is no room for an image.
    fn with_remedy(&self, mut fault: Fault) -> Fault {
        let full = "No space left on device";
        if fault.kind == FaultKind::ResourcesExhausted && fault.detail.contains(full) {
            let place = self.layout.images();
            fault.detail = format!(
                "{}; make room in the file system of {}, for instance with `berth image delete`, or \
                 bound the cache with images.cache_bytes",
                fault.detail,
                place.display()
            );
        }
        fault
    }

    pub(super) fn add(&self, record: ImageRecord) -> Result<Image> {
        let mut catalogue = self.layers.lock();
        atomic::write_json(&self.layout.image_record(record.image.id), &record)?;
        let image = catalogue.image(&record);
        catalogue.records.insert(record.image.id, record);
        Ok(image)
    }
}

/// Who looks on while an import or an inspection runs: those who joined, which an inspection
/// has none of, and who began it. Its slot is another's while it only waits.
struct Flying<'a> {
    store: &'a ImageStore,
    flight: Option<&'a Flight>,
    watcher: Listener<'a>,
}

impl Watcher for Flying<'_> {
    fn progress(&self, progress: Progress) {
        if let Some(flight) = self.flight {
            flight.report(progress);
        }
        self.watcher.progress(progress);
    }

    fn idle(&self) {
        self.store.give_slot_up();
        self.watcher.idle();
    }

    fn busy(&self) {
        self.watcher.busy();
        self.store.take_slot(self);
    }
}

struct Slot<'a> {
    store: &'a ImageStore,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.store.give_slot_up();
    }
}

struct Landing<'a> {
    store: &'a ImageStore,
    id: Uuid,
    flight: &'a Flight,
    result: Option<Result<Image>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        // First out of the way: whoever learns the result may delete the image at once.
        self.store.layers.lock().flights.remove(&self.id);
        self.flight.land(self.result.take().unwrap_or_else(crashed));
    }
}

fn not_found(id: Uuid) -> Fault {
    Fault::new(
        FaultKind::ImageNotFound,
        format!("image {id} is not in this host's store; import it first"),
    )
}

/// Whether a request for an image that is there may mean its content.
fn same_content(record: &ImageRecord, request: &ImageImport) -> Result<()> {
    let size = request.size.is_none_or(|size| size == record.image.size);
    let hash = request
        .hash
        .as_ref()
        .is_none_or(|hash| *hash == record.image.hash || record.declared.as_ref() == Some(hash));
    if size && hash {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::ImageExists,
        format!(
            "image {} is here with {} bytes and {} {}; delete it first to replace it",
            record.image.id,
            record.image.size,
            record.image.hash.algorithm,
            record.image.hash.value
        ),
    ))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

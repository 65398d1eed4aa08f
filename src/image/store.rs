//! The images of this host: records, layers, who holds them, who is fetching them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::digest::Digest;
use super::fingerprint;
use super::flight::{Flight, Progress, crashed};
use super::helper::Helper;
use super::import::{self, Workspace};
use super::kept::{Kept, KeptDisk};
use crate::config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic;
use crate::store::layout::Layout;
use crate::types::{Image, ImageDisk, ImageFormat, ImageHash, ImageImport};

/// Version of [`Record`] and [`LayerRecord`].
pub(super) const SCHEMA: u32 = 1;
/// Below a layer's directory: its root file system.
pub(super) const LAYER_ROOT: &str = "fs";
/// Below a layer's directory: its [`LayerRecord`].
pub(super) const LAYER_RECORD: &str = "layer.json";

/// An image's durable record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The image, without its users.
    pub image: Image,
    /// The hash that the import was told and that was verified.
    pub declared: Option<ImageHash>,
    /// Of a disk image: what is kept of it, in a file of [`Layout::image_disks`].
    #[serde(default)]
    pub kept: Option<Kept>,
}

/// What is known about an unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Files and directories.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Bytes of all files, holes left out.
    pub stored: u64,
    /// It hides all layers below it.
    pub opaque: bool,
    /// Its [`fingerprint`] when it was put in place. Layers of older versions have none.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// The image store. One for a host; all methods may be called from any blocking thread.
pub struct ImageStore {
    pub(super) layout: Layout,
    pub(super) config: config::Images,
    pub(super) helper: Helper,
    state: Mutex<State>,
    /// An import ended.
    landed: Condvar,
}

#[derive(Default)]
struct State {
    records: BTreeMap<Uuid, Record>,
    /// A record could not be read, an image's or an instance's: what it needs is
    /// unknown, so nothing is collected.
    unreadable: bool,
    holders: HashMap<Uuid, BTreeSet<Uuid>>,
    /// When an image was last asked for: an instance may be about to stand on it.
    asked: HashMap<Uuid, DateTime<Utc>>,
    /// Layers that imports under way need, by the number of those imports.
    pins: BTreeMap<String, usize>,
    flights: HashMap<Uuid, Arc<Flight>>,
    running: usize,
    /// Layers that were looked through since the start, or unpacked since: one
    /// look for each is enough, since nobody else writes there.
    sound: BTreeSet<String>,
}

impl ImageStore {
    /// Opens the store, and removes what imports left that a crash cut off.
    pub fn open(layout: &Layout, config: &config::Images) -> Result<ImageStore> {
        // Not what it links to: after an upgrade that is another program, or none.
        ImageStore::open_with(layout, config, Helper::Program("/proc/self/exe".into()))
    }

    /// [`ImageStore::open`] with another way into the jail than this program.
    pub fn open_with(
        layout: &Layout,
        config: &config::Images,
        helper: Helper,
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
            helper,
            state: Mutex::new(load(layout)?),
            landed: Condvar::new(),
        };
        store.collect()?;
        store.collect_disks()?;
        Ok(store)
    }

    /// Brings an image into the store, or joins the import that does. Blocks.
    ///
    /// Idempotent: an image that is there is returned at once, unless the
    /// request says that its content is another ([`FaultKind::ImageExists`]).
    pub fn import(
        &self,
        id: Uuid,
        request: &ImageImport,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Image> {
        import::validate(request, &self.config)?;
        self.check_layers(id)?;
        let flight = {
            let mut state = self.lock();
            if let Some(record) = state.records.get(&id) {
                same_content(record, request)?;
                return Ok(state.image(record));
            }
            match state.flights.get(&id) {
                Some(flight) if flight.serves(request) => Err(Arc::clone(flight)),
                Some(_) => {
                    return Err(Fault::new(
                        FaultKind::ImageInUse,
                        format!("image {id} is being imported with another hash or size"),
                    ));
                }
                None => {
                    let flight = Arc::new(Flight::new(request.clone()));
                    state.flights.insert(id, Arc::clone(&flight));
                    Ok(flight)
                }
            }
        };
        match flight {
            Err(joined) => {
                let image = joined.wait(progress)?;
                // What the first request left open, the content has settled by now.
                self.lock().records.get(&id).map_or(Ok(()), |r| same_content(r, request))?;
                Ok(image)
            }
            Ok(flight) => self.fly(id, request, &flight, progress),
        }
    }

    /// An image. One whose layers were altered is not there any more.
    pub fn get(&self, id: Uuid) -> Result<Image> {
        self.check_layers(id)?;
        let mut state = self.lock();
        let Some(record) = state.records.get(&id) else { return Err(not_found(id)) };
        let image = state.image(record);
        state.asked.insert(id, Utc::now());
        Ok(image)
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        let state = self.lock();
        state.records.values().map(|record| state.image(record)).collect()
    }

    /// Forgets an image that nobody holds. Its layers go at the next [`ImageStore::collect`].
    pub fn delete(&self, id: Uuid) -> Result<()> {
        let mut state = self.lock();
        let in_use = |why: String| Err(Fault::new(FaultKind::ImageInUse, why));
        if state.flights.contains_key(&id) {
            return in_use(format!("image {id} is being imported"));
        }
        if !state.records.contains_key(&id) {
            return Err(not_found(id));
        }
        if let Some(holders) = state.holders.get(&id) {
            return in_use(format!("image {id} is the base of {} instances", holders.len()));
        }
        let path = self.layout.image_record(id);
        atomic::remove_file(&path)?;
        atomic::sync_parent(&path).or_fault("removing the image's record")?;
        state.forget(id);
        atomic::remove_file(&self.layout.image_disk(id))
    }

    /// Notes that an instance stands on an image. Idempotent.
    pub fn hold(&self, image: Uuid, instance: Uuid) -> Result<Image> {
        let mut state = self.lock();
        if !state.records.contains_key(&image) {
            return Err(not_found(image));
        }
        state.holders.entry(image).or_default().insert(instance);
        state.records.get(&image).map(|record| state.image(record)).ok_or_else(|| not_found(image))
    }

    /// Notes that an instance does so no longer. Idempotent.
    pub fn release(&self, image: Uuid, instance: Uuid) {
        let mut state = self.lock();
        if let Some(holders) = state.holders.get_mut(&image) {
            holders.remove(&instance);
            if !holders.is_empty() {
                return;
            }
            state.holders.remove(&image);
        }
        if let Err(fault) = self.touch(&mut state, image) {
            // It is only thought older than it is.
            tracing::warn!(%image, fault = %fault.in_full(), "noting when an image was last used");
        }
    }

    /// Notes that an image was used until now.
    fn touch(&self, state: &mut State, image: Uuid) -> Result<()> {
        let Some(record) = state.records.get_mut(&image) else { return Ok(()) };
        record.image.last_used_at = Utc::now();
        atomic::write_json(&self.layout.image_record(image), record)
    }

    /// Removes the layers that no image and no import needs.
    pub fn collect(&self) -> Result<()> {
        let mut condemned = Vec::new();
        {
            let state = self.lock();
            if state.unreadable {
                tracing::warn!("a record cannot be read; no layer is removed");
                return Ok(());
            }
            let needed = state.needed_layers();
            for entry in entries(&self.layout.image_layers())? {
                let name = entry.file_name();
                if name.to_str().is_some_and(|hex| needed.contains(hex)) {
                    continue;
                }
                // Out of the way at once, under the lock; removed without it.
                condemned.push(self.condemn(&entry.path())?);
            }
        }
        condemned.iter().try_for_each(|path| remove_tree(path))
    }

    /// Removes what was kept of disks whose images have no record: a crash came between.
    fn collect_disks(&self) -> Result<()> {
        let state = self.lock();
        if state.unreadable {
            return Ok(());
        }
        let needed: BTreeSet<String> = state.records.keys().map(Uuid::to_string).collect();
        for entry in entries(&self.layout.image_disks())? {
            if !entry.file_name().to_str().is_some_and(|name| needed.contains(name)) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Moves what is kept of a disk to its place, before the record that names it.
    pub(super) fn put_disk(&self, id: Uuid, from: &Path) -> Result<()> {
        let to = self.layout.image_disk(id);
        fs::rename(from, &to).or_fault(format_args!("moving a disk to {}", to.display()))?;
        atomic::sync_parent(&to).or_fault("writing a disk's layout to disk")
    }

    /// What a disk of an image's layout is made of. The fault says why there is none.
    pub fn kept_disk(&self, id: Uuid) -> Result<KeptDisk> {
        let state = self.lock();
        let unsupported = |why: &str| Err(Fault::new(FaultKind::InstanceUnsupported, why));
        let Some(record) = state.records.get(&id) else {
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

    /// A directory to make a disk in; what is left of it goes at the next start.
    pub fn workspace(&self) -> Result<Workspace> {
        Workspace::new(&self.layout.images_temporary())
    }

    /// The way into the jail.
    pub fn jail(&self) -> &Helper {
        &self.helper
    }

    /// Looks through an image's layers, once for each since the start. Those
    /// that are not as they were unpacked go, and all images that need them,
    /// to be fetched again; what an instance stands on stays.
    fn check_layers(&self, id: Uuid) -> Result<()> {
        let unchecked: Vec<String> = {
            let state = self.lock();
            let Some(record) = state.records.get(&id) else { return Ok(()) };
            let layers = record.image.layers.iter();
            layers.filter(|digest| !state.sound.contains(*digest)).cloned().collect()
        };
        for digest in unchecked {
            if !self.is_sound(&digest)? {
                self.drop_altered(&digest)?;
            }
        }
        Ok(())
    }

    /// Whether a layer is as it was unpacked.
    fn is_sound(&self, digest: &str) -> Result<bool> {
        let Some(record) = self.layer(&Digest::parse(digest)?)? else { return Ok(false) };
        let sound = match &record.fingerprint {
            None => true,
            Some(fingerprint) => fingerprint::of(&self.layer_dir(digest))? == *fingerprint,
        };
        if sound {
            self.lock().sound.insert(digest.to_owned());
        }
        Ok(sound)
    }

    /// Removes a layer and the records of the images that need it, unless it is in use.
    fn drop_altered(&self, digest: &str) -> Result<()> {
        let hex = Digest::parse(digest)?.hex().to_owned();
        let mut state = self.lock();
        let needs = |record: &Record| record.image.layers.iter().any(|layer| layer == digest);
        let images: Vec<Uuid> =
            state.records.iter().filter(|(_, record)| needs(record)).map(|(id, _)| *id).collect();
        let used = images.iter().any(|id| state.holders.contains_key(id));
        if used || state.unreadable || state.pins.contains_key(&hex) {
            tracing::error!(%digest, "a layer in use was altered; delete its instances to replace it");
            state.sound.insert(digest.to_owned());
            return Ok(());
        }
        tracing::warn!(%digest, ?images, "a layer was altered; its images will be fetched again");
        for id in images {
            atomic::remove_file(&self.layout.image_record(id))?;
            state.forget(id);
            atomic::remove_file(&self.layout.image_disk(id))?;
        }
        let layer = self.layout.image_layer(&hex);
        if !layer.exists() {
            return Ok(());
        }
        let condemned = self.condemn(&layer)?;
        drop(state);
        remove_tree(&condemned)
    }

    /// Moves a layer out of the way; gives where it lies until it is removed.
    fn condemn(&self, layer: &Path) -> Result<PathBuf> {
        let to = self.layout.images_temporary().join(Uuid::new_v4().to_string());
        fs::rename(layer, &to).or_fault(format_args!("removing the layer {}", layer.display()))?;
        Ok(to)
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
                let state = self.lock();
                if self.stored(&state)? <= most {
                    break;
                }
                let unused = state.unused().filter(|(id, _)| *id != keep);
                unused.min_by_key(|(_, used)| *used).map(|(id, _)| id)
            };
            let Some(id) = oldest else { break };
            tracing::info!(image = %id, "the image is unused and makes room for another");
            self.evict(id)?;
        }
        self.collect()
    }

    /// Forgets the images that nobody used for `images.unused_seconds`. To be
    /// called once all instances hold theirs.
    pub fn expire(&self) -> Result<()> {
        if self.config.unused_seconds == 0 {
            return Ok(());
        }
        let age = TimeDelta::try_seconds(self.config.unused_seconds).unwrap_or(TimeDelta::MAX);
        let Some(until) = Utc::now().checked_sub_signed(age) else { return Ok(()) };
        let expired: Vec<Uuid> =
            self.lock().unused().filter(|(_, used)| *used < until).map(|(id, _)| id).collect();
        for id in &expired {
            tracing::info!(image = %id, "the image was unused for images.unused_seconds and goes");
            self.evict(*id)?;
        }
        if expired.is_empty() { Ok(()) } else { self.collect() }
    }

    /// Removes no layer until the next start: an instance may stand on any of them.
    pub fn keep_all_layers(&self) {
        self.lock().unreadable = true;
    }

    /// Deletes an image, unless somebody was faster or has begun to use it.
    fn evict(&self, id: Uuid) -> Result<()> {
        match self.delete(id) {
            Err(Fault { kind: FaultKind::ImageNotFound | FaultKind::ImageInUse, .. }) => Ok(()),
            other => other,
        }
    }

    /// Bytes of all layers that images need, each counted once, and of what is kept of disks.
    fn stored(&self, state: &State) -> Result<u64> {
        let mut bytes = 0;
        for hex in state.needed_layers() {
            bytes += layer_record(&self.layout, hex)?.map_or(0, |record| record.stored);
        }
        let disks = state.records.values().filter_map(|record| record.kept.as_ref());
        Ok(bytes + disks.map(|kept| kept.stored).sum::<u64>())
    }

    /// The directory of an unpacked layer (`sha256:HEX`), its root file system:
    /// owned by the ids 0… of the image, below a directory that only root enters.
    ///
    /// A text that is no such digest gives a path that does not exist.
    pub fn layer_dir(&self, digest: &str) -> PathBuf {
        let hex = Digest::parse(digest).map_or("invalid".to_owned(), |d| d.hex().to_owned());
        self.layout.image_layer(&hex).join(LAYER_ROOT)
    }

    /// Runs an import that others may join.
    fn fly(
        &self,
        id: Uuid,
        request: &ImageImport,
        flight: &Flight,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Image> {
        // Lands the flight however this ends, a panic included.
        let mut landing = Landing { store: self, id, flight, result: None };
        let report = |news: Progress| {
            flight.report(news);
            progress(news);
        };
        let slot = self.slot(&report);
        let result = import::run(self, id, request, &report)
            .and_then(|(record, _pins)| self.add(record))
            .map_err(|fault| self.with_remedy(fault));
        drop(slot);
        if result.is_err() {
            // Without a record it is nobody's; the next start removes it too.
            let _ = atomic::remove_file(&self.layout.image_disk(id));
        }
        // Layers that a failed import had put in place already are nobody's.
        let tidied = if result.is_ok() { self.make_room(id) } else { self.collect() };
        if let Err(fault) = tidied {
            // The next import makes another attempt.
            tracing::warn!(fault = %fault.in_full(), "making room in the image store");
        }
        landing.result = Some(result.clone());
        result
    }

    /// Waits until one more import may run.
    fn slot(&self, report: &(dyn Fn(Progress) + Sync)) -> Slot<'_> {
        let mut state = self.lock();
        if state.running >= self.config.concurrency {
            drop(state);
            report(Progress { stage: "waiting", done: 0, total: None });
            state = self.lock();
        }
        while state.running >= self.config.concurrency {
            state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running += 1;
        Slot { store: self }
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

    fn add(&self, record: Record) -> Result<Image> {
        let mut state = self.lock();
        atomic::write_json(&self.layout.image_record(record.image.id), &record)?;
        let image = state.image(&record);
        state.records.insert(record.image.id, record);
        Ok(image)
    }

    /// Keeps layers (`sha256:HEX`) from being collected as long as the guards live.
    pub fn keep_layers(&self, digests: &[String]) -> Result<Vec<Pin<'_>>> {
        digests.iter().map(|digest| Ok(self.pin(&Digest::parse(digest)?))).collect()
    }

    /// Keeps a layer from being collected as long as the guard lives.
    pub(super) fn pin(&self, digest: &Digest) -> Pin<'_> {
        let hex = digest.hex().to_owned();
        *self.lock().pins.entry(hex.clone()).or_default() += 1;
        Pin { store: self, hex }
    }

    /// What is known about a layer that is unpacked and as it was then. One
    /// that was altered goes, unless something needs it.
    pub(super) fn sound_layer(&self, digest: &Digest) -> Result<Option<LayerRecord>> {
        let name = digest.to_string();
        let known = self.lock().sound.contains(&name);
        if !known && self.layer(digest)?.is_some() && !self.is_sound(&name)? {
            self.drop_altered(&name)?;
        }
        self.layer(digest)
    }

    /// Notes that a layer was put in place by this process.
    pub(super) fn note_sound(&self, digest: &Digest) {
        self.lock().sound.insert(digest.to_string());
    }

    /// What is known about a layer that is unpacked.
    pub(super) fn layer(&self, digest: &Digest) -> Result<Option<LayerRecord>> {
        layer_record(&self.layout, digest.hex())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that may panic runs between changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn image(&self, record: &Record) -> Image {
        let mut image = record.image.clone();
        image.users =
            self.holders.get(&image.id).map_or(Vec::new(), |users| users.iter().copied().collect());
        image
    }

    /// The images that nobody uses and nobody fetches, and when each was last used.
    fn unused(&self) -> impl Iterator<Item = (Uuid, DateTime<Utc>)> {
        let images = self.records.values().map(|record| &record.image).filter(|image| {
            !self.holders.contains_key(&image.id) && !self.flights.contains_key(&image.id)
        });
        images.map(|image| {
            let asked = self.asked.get(&image.id).copied().unwrap_or_default();
            (image.id, image.last_used_at.max(asked))
        })
    }

    fn forget(&mut self, id: Uuid) {
        self.records.remove(&id);
        self.asked.remove(&id);
    }

    fn needed_layers(&self) -> BTreeSet<&str> {
        let of_images = self.records.values().flat_map(|record| &record.image.layers);
        of_images
            .filter_map(|digest| digest.strip_prefix("sha256:"))
            .chain(self.pins.keys().map(String::as_str))
            .collect()
    }
}

/// A layer's protection from collection.
pub struct Pin<'a> {
    store: &'a ImageStore,
    hex: String,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        if let Some(count) = state.pins.get_mut(&self.hex) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.hex);
            }
        }
    }
}

struct Slot<'a> {
    store: &'a ImageStore,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.store.lock().running -= 1;
        self.store.landed.notify_all();
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
        self.store.lock().flights.remove(&self.id);
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
fn same_content(record: &Record, request: &ImageImport) -> Result<()> {
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

fn load(layout: &Layout) -> Result<State> {
    let mut state = State::default();
    for entry in entries(&layout.image_records())? {
        let path = entry.path();
        if path.to_string_lossy().ends_with(atomic::TEMPORARY) {
            atomic::remove_file(&path)?;
            continue;
        }
        match load_record(layout, &path) {
            Ok(Some(record)) => drop(state.records.insert(record.image.id, record)),
            Ok(None) => {
                tracing::warn!(path = %path.display(), "an image lost a part; import it again")
            }
            Err(fault) => {
                state.unreadable = true;
                tracing::error!(path = %path.display(), fault = %fault.in_full(), "an image's record cannot be read");
            }
        }
    }
    Ok(state)
}

/// A record; `None` when one of its layers, or what is kept of its disk, is gone.
fn load_record(layout: &Layout, path: &Path) -> Result<Option<Record>> {
    let unreadable = |why: &str| Fault::internal(format_args!("reading {}", path.display()), why);
    let record: Record = atomic::read_json(path)?.ok_or_else(|| unreadable("it vanished"))?;
    if record.schema != SCHEMA {
        return Err(unreadable("it is of another version of berth"));
    }
    if layout.image_record(record.image.id) != path {
        return Err(unreadable("it is of another image than its name says"));
    }
    for layer in &record.image.layers {
        if layer_record(layout, Digest::parse(layer)?.hex())?.is_none() {
            return Ok(None);
        }
    }
    if record.kept.is_some() && !layout.image_disk(record.image.id).is_file() {
        return Ok(None);
    }
    Ok(Some(record))
}

fn layer_record(layout: &Layout, hex: &str) -> Result<Option<LayerRecord>> {
    let record: Option<LayerRecord> =
        atomic::read_json(&layout.image_layer(hex).join(LAYER_RECORD))?;
    match record {
        Some(record) if record.schema != SCHEMA => {
            Err(Fault::internal("reading a layer's record", "it is of another version of berth"))
        }
        record => Ok(record),
    }
}

fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    fs::read_dir(directory)
        .and_then(Iterator::collect)
        .or_fault(format_args!("listing {}", directory.display()))
}

fn empty(directory: &Path) -> Result<()> {
    entries(directory)?.iter().try_for_each(|entry| remove_tree(&entry.path()))
}

/// Removes a file or a directory with all that is in it; absence is success.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).or_fault(format_args!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

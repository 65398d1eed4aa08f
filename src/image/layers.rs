//! The unpacked layers of this host: where they are, whether they are as they
//! were unpacked, and what keeps them from being removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::catalogue::Catalogue;
use super::digest::Digest;
use super::files::{entries, remove_tree};
use super::fingerprint;
use super::records::{ImageRecord, LAYER_ROOT, LayerRecord, load_layer};
use crate::fault::{OrFault, Result};
use crate::store::atomic;
use crate::store::layout::Layout;

/// The layers, with the catalogue of what needs them.
pub(super) struct Layers {
    layout: Layout,
    catalogue: Mutex<Catalogue>,
}

impl Layers {
    pub(super) fn new(layout: &Layout, catalogue: Catalogue) -> Layers {
        Layers { layout: layout.clone(), catalogue: Mutex::new(catalogue) }
    }

    /// What is known at the moment; for no longer than it takes to change it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Catalogue> {
        // Nothing that may panic runs between changes that belong together.
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of an unpacked layer (`sha256:HEX`), its root file system:
    /// owned by the ids 0… of the image, below a directory that only root enters.
    ///
    /// A text that is no such digest gives a path that does not exist.
    pub(super) fn directory(&self, digest: &str) -> PathBuf {
        let hex = Digest::parse(digest).map_or("invalid".to_owned(), |d| d.hex().to_owned());
        self.layout.image_layer(&hex).join(LAYER_ROOT)
    }

    /// Keeps layers (`sha256:HEX`) from being collected as long as the guards live.
    pub(super) fn keep(&self, digests: &[String]) -> Result<Vec<Pin<'_>>> {
        digests.iter().map(|digest| Ok(self.pin(&Digest::parse(digest)?))).collect()
    }

    /// Keeps a layer from being collected as long as the guard lives.
    pub(super) fn pin(&self, digest: &Digest) -> Pin<'_> {
        self.hold(digest);
        Pin { layers: self, digest: digest.clone() }
    }

    /// Keeps a layer from being collected until [`unpin`](Self::unpin).
    pub(super) fn hold(&self, digest: &Digest) {
        *self.lock().pins.entry(digest.hex().to_owned()).or_default() += 1;
    }

    /// Undoes [`hold`](Self::hold).
    pub(super) fn unpin(&self, digest: &Digest) {
        let mut catalogue = self.lock();
        if let Some(count) = catalogue.pins.get_mut(digest.hex()) {
            *count -= 1;
            if *count == 0 {
                catalogue.pins.remove(digest.hex());
            }
        }
    }

    /// What is known about a layer that is unpacked and as it was then. One
    /// that was altered goes, unless something needs it.
    pub(super) fn sound(&self, digest: &Digest) -> Result<Option<LayerRecord>> {
        let name = digest.to_string();
        let known = self.lock().sound.contains(&name);
        if !known && self.record(digest)?.is_some() && !self.is_sound(&name)? {
            self.drop_altered(&name)?;
        }
        self.record(digest)
    }

    /// What is known about a layer that is unpacked.
    pub(super) fn record(&self, digest: &Digest) -> Result<Option<LayerRecord>> {
        load_layer(&self.layout, digest.hex())
    }

    /// Looks through an image's layers, once for each since the start. Those
    /// that are not as they were unpacked go, and all images that need them,
    /// to be fetched again; what an instance stands on stays.
    pub(super) fn check(&self, id: Uuid) -> Result<()> {
        let unchecked: Vec<String> = {
            let catalogue = self.lock();
            let Some(record) = catalogue.records.get(&id) else { return Ok(()) };
            let layers = record.image.layers.iter();
            layers.filter(|digest| !catalogue.sound.contains(*digest)).cloned().collect()
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
        let Some(record) = self.record(&Digest::parse(digest)?)? else { return Ok(false) };
        let sound = match &record.fingerprint {
            None => true,
            Some(fingerprint) => fingerprint::of(&self.directory(digest))? == *fingerprint,
        };
        if sound {
            self.lock().sound.insert(digest.to_owned());
        }
        Ok(sound)
    }

    /// Removes a layer and the records of the images that need it, unless it is in use.
    fn drop_altered(&self, digest: &str) -> Result<()> {
        let hex = Digest::parse(digest)?.hex().to_owned();
        let mut catalogue = self.lock();
        let needs = |record: &ImageRecord| record.image.layers.iter().any(|layer| layer == digest);
        let images: Vec<Uuid> = catalogue
            .records
            .iter()
            .filter(|(_, record)| needs(record))
            .map(|(id, _)| *id)
            .collect();
        let used = images.iter().any(|id| catalogue.holders.contains_key(id));
        if used || catalogue.unreadable || catalogue.pins.contains_key(&hex) {
            tracing::error!(%digest, "a layer in use was altered; delete its instances to replace it");
            catalogue.sound.insert(digest.to_owned());
            return Ok(());
        }
        tracing::warn!(%digest, ?images, "a layer was altered; its images will be fetched again");
        for id in images {
            atomic::remove_file(&self.layout.image_record(id))?;
            catalogue.forget(id);
            atomic::remove_file(&self.layout.image_disk(id))?;
        }
        let layer = self.layout.image_layer(&hex);
        if !layer.exists() {
            return Ok(());
        }
        let condemned = self.condemn(&layer)?;
        drop(catalogue);
        remove_tree(&condemned)
    }

    /// Moves a layer out of the way; gives where it lies until it is removed.
    fn condemn(&self, layer: &Path) -> Result<PathBuf> {
        let to = self.layout.images_temporary().join(Uuid::new_v4().to_string());
        fs::rename(layer, &to).or_fault(format_args!("removing the layer {}", layer.display()))?;
        Ok(to)
    }

    /// Removes the layers that no image and no import needs.
    pub(super) fn collect(&self) -> Result<()> {
        let mut condemned = Vec::new();
        {
            let catalogue = self.lock();
            if catalogue.unreadable {
                tracing::warn!("a record cannot be read; no layer is removed");
                return Ok(());
            }
            let needed = catalogue.needed_layers();
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

    /// Bytes of all layers that images need, each counted once, and of what is kept of disks.
    pub(super) fn stored(&self, catalogue: &Catalogue) -> Result<u64> {
        let mut bytes = 0;
        for hex in catalogue.needed_layers() {
            bytes += load_layer(&self.layout, hex)?.map_or(0, |record| record.stored);
        }
        let disks = catalogue.records.values().filter_map(|record| record.kept.as_ref());
        Ok(bytes + disks.map(|kept| kept.stored).sum::<u64>())
    }

    /// Moves a durable layer to its address.
    pub(super) fn publish(&self, aside: &Path, digest: &Digest) -> Result<()> {
        let place = self.layout.image_layer(digest.hex());
        match fs::rename(aside, &place) {
            Ok(()) => drop(self.lock().sound.insert(digest.to_string())),
            // Another import was faster; the content is the same.
            Err(_) if self.record(digest)?.is_some() => {}
            other => other.or_fault(format_args!("moving a layer to {}", place.display()))?,
        }
        atomic::sync_parent(&place).or_fault("writing the layer to disk")
    }
}

/// A layer's protection from collection.
pub struct Pin<'a> {
    layers: &'a Layers,
    digest: Digest,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.layers.unpin(&self.digest);
    }
}

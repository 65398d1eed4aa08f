//! An image's way to another host's store, with an instance that stands on it.
//!
//! A layer is addressed by the hash of an archive that is kept nowhere, so what comes cannot be
//! checked against its address: it is another service of the cloud that vouches for it. What is
//! checked is that it comes as it was sent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::digest::Digest;
use super::import;
use super::kept_disk;
use super::progress::Progress;
use super::records::{ImageRecord, LayerRecord, SCHEMA};
use super::store::ImageStore;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// What one store tells another of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageExport {
    record: ImageRecord,
    /// What is known of each layer.
    layers: BTreeMap<String, LayerRecord>,
}

/// What a store lacks of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Digests of layers.
    pub layers: Vec<String>,
    /// It does not know the image.
    pub image: bool,
    /// Nor what is kept of its disk.
    pub disk: bool,
}

/// Keeps layers from being collected while an instance is on its way that stands on them.
pub struct Kept {
    store: Arc<dyn AsRef<ImageStore> + Send + Sync>,
    digests: Vec<Digest>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let store = (*self.store).as_ref();
        self.digests.iter().for_each(|digest| store.layers().unpin(digest));
    }
}

impl ImageExport {
    /// The image.
    pub fn id(&self) -> Uuid {
        self.record.image.id
    }

    /// Digests of its layers, lowest first.
    pub fn layers(&self) -> &[String] {
        &self.record.image.layers
    }

    /// Bytes that its root file system takes, unpacked.
    pub fn unpacked_size(&self) -> u64 {
        self.record.image.unpacked_size
    }

    /// Bytes of the file that is kept of its disk; `None` where none is.
    pub fn disk_size(&self) -> Option<u64> {
        self.record.kept.as_ref().map(|kept| kept.frame.size)
    }

    /// Refuses what another store has made up.
    fn check(&self) -> Result<()> {
        let sound = self.record.schema == SCHEMA
            && self.layers().iter().all(|digest| {
                let known = self.layers.get(digest);
                Digest::parse(digest).is_ok() && known.is_some_and(|layer| layer.schema == SCHEMA)
            });
        if let Some(kept) = self.record.kept.as_ref().filter(|_| sound) {
            kept.frame.check()?;
        }
        if sound {
            return Ok(());
        }
        Err(Fault::invalid("image", "is not as this version of berth records images"))
    }
}

impl ImageStore {
    /// What another store must know of an image.
    pub fn export(&self, id: Uuid) -> Result<ImageExport> {
        self.get(id)?;
        let record = {
            let catalogue = self.layers().lock();
            let found = catalogue.records.get(&id).cloned();
            found.ok_or_else(|| Fault::new(FaultKind::ImageNotFound, format!("no image {id}")))?
        };
        let mut layers = BTreeMap::new();
        for digest in &record.image.layers {
            let known = self.layers().record(&Digest::parse(digest)?)?;
            let known =
                known.ok_or_else(|| Fault::internal("looking for a layer", "it is gone"))?;
            layers.insert(digest.clone(), known);
        }
        Ok(ImageExport { record, layers })
    }

    /// What this store lacks of another's image.
    pub fn lacking(&self, export: &ImageExport) -> Result<Lacking> {
        export.check()?;
        self.layers().check(export.id())?;
        if let Some(known) = self.layers().lock().records.get(&export.id()) {
            if known.image.layers == export.record.image.layers {
                return Ok(Lacking::default());
            }
            return Err(Fault::new(
                FaultKind::ImageExists,
                format!(
                    "image {} has other layers here: delete it, with the instances that stand on it",
                    export.id()
                ),
            ));
        }
        let mut layers = Vec::new();
        for digest in export.layers() {
            if self.layers().sound(&Digest::parse(digest)?)?.is_none() {
                layers.push(digest.clone());
            }
        }
        Ok(Lacking { layers, image: true, disk: export.record.kept.is_some() })
    }

    /// Keeps an image's layers, those that are here and those that come, until the value goes.
    pub fn keep_coming<T>(store: &Arc<T>, export: &ImageExport) -> Result<Kept>
    where
        T: AsRef<ImageStore> + Send + Sync + 'static,
    {
        let digests = export.layers().iter().map(|digest| Digest::parse(digest));
        let digests = digests.collect::<Result<Vec<_>>>()?;
        digests.iter().for_each(|digest| (**store).as_ref().layers().hold(digest));
        Ok(Kept { store: store.clone(), digests })
    }

    /// Unpacks the archive of a layer that another store sends.
    pub fn receive_layer(
        &self,
        export: &ImageExport,
        digest: &str,
        archive: &mut dyn Read,
    ) -> Result<()> {
        let Some(known) = export.layers.get(digest) else {
            return Err(Fault::invalid("digest", "is no layer of the instance's image"));
        };
        let digest = Digest::parse(digest)?;
        if self.layers().sound(&digest)?.is_some() {
            return Ok(());
        }
        import::receive_layer(self.means(&|_: Progress| {}), &digest, known.opaque, archive)
    }

    /// Takes up another store's image whose layers have come. `disk` is what is kept of its disk.
    pub fn adopt(&self, export: &ImageExport, disk: Option<&Path>) -> Result<()> {
        if let Some(missing) = self.missing_layer(export)? {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!("the layer {missing} has not come yet: send it first"),
            ));
        }
        if let Some(disk) = disk.filter(|_| export.record.kept.is_some()) {
            let file = fs::File::open(disk).or_fault("opening what is kept of the image's disk")?;
            file.sync_all().or_fault("writing what is kept of the image's disk")?;
            kept_disk::put_in_place(disk, &self.disk_of(export.id()))?;
        }
        let mut record = export.record.clone();
        record.image.users.clear();
        self.add(record).map(drop)
    }

    fn missing_layer<'a>(&self, export: &'a ImageExport) -> Result<Option<&'a String>> {
        for digest in export.layers() {
            if self.layers().record(&Digest::parse(digest)?)?.is_none() {
                return Ok(Some(digest));
            }
        }
        Ok(None)
    }

    /// Where what is kept of an image's disk lies.
    pub fn disk_of(&self, image: Uuid) -> PathBuf {
        self.paths().image_disk(image)
    }
}

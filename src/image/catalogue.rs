//! What is known of the images at the moment. Nothing is done here: whoever
//! has the lock changes it together with what it is about.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::files::entries;
use super::flight::Flight;
use super::records::{ImageRecord, load_image};
use crate::fault::Result;
use crate::store::atomic;
use crate::store::layout::Layout;
use crate::types::Image;

/// The images of this host, who holds them, and what their layers are needed for.
#[derive(Default)]
pub(super) struct Catalogue {
    pub records: BTreeMap<Uuid, ImageRecord>,
    /// A record could not be read, an image's or an instance's: what it needs is
    /// unknown, so nothing is collected.
    pub unreadable: bool,
    pub holders: HashMap<Uuid, BTreeSet<Uuid>>,
    /// When an image was last asked for: an instance may be about to stand on it.
    pub asked: HashMap<Uuid, DateTime<Utc>>,
    /// Layers that imports under way need, by the number of those imports.
    pub pins: BTreeMap<String, usize>,
    pub flights: HashMap<Uuid, Arc<Flight>>,
    /// Layers that were looked through since the start, or unpacked since: one
    /// look for each is enough, since nobody else writes there.
    pub sound: BTreeSet<String>,
}

impl Catalogue {
    /// What the records say.
    pub(super) fn load(layout: &Layout) -> Result<Catalogue> {
        let mut catalogue = Catalogue::default();
        for entry in entries(&layout.image_records())? {
            let path = entry.path();
            if path.to_string_lossy().ends_with(atomic::TEMPORARY) {
                atomic::remove_file(&path)?;
                continue;
            }
            match load_image(layout, &path) {
                Ok(Some(record)) => drop(catalogue.records.insert(record.image.id, record)),
                Ok(None) => {
                    tracing::warn!(path = %path.display(), "an image lost a part; import it again")
                }
                Err(fault) => {
                    catalogue.unreadable = true;
                    tracing::error!(path = %path.display(), fault = %fault.in_full(), "an image's record cannot be read");
                }
            }
        }
        Ok(catalogue)
    }

    /// An image with its users.
    pub(super) fn image(&self, record: &ImageRecord) -> Image {
        let mut image = record.image.clone();
        image.users =
            self.holders.get(&image.id).map_or(Vec::new(), |users| users.iter().copied().collect());
        image
    }

    /// The images that nobody uses and nobody fetches, and when each was last used.
    pub(super) fn unused(&self) -> impl Iterator<Item = (Uuid, DateTime<Utc>)> {
        let images = self.records.values().map(|record| &record.image).filter(|image| {
            !self.holders.contains_key(&image.id) && !self.flights.contains_key(&image.id)
        });
        images.map(|image| {
            let asked = self.asked.get(&image.id).copied().unwrap_or_default();
            (image.id, image.last_used_at.max(asked))
        })
    }

    /// Forgets an image that has no record any more.
    pub(super) fn forget(&mut self, id: Uuid) {
        self.records.remove(&id);
        self.asked.remove(&id);
    }

    /// The layers that images or imports need, by the values of their digests.
    pub(super) fn needed_layers(&self) -> BTreeSet<&str> {
        let of_images = self.records.values().flat_map(|record| &record.image.layers);
        of_images
            .filter_map(|digest| digest.strip_prefix("sha256:"))
            .chain(self.pins.keys().map(String::as_str))
            .collect()
    }
}

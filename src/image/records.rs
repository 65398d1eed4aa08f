//! What is written down of images and layers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::kept_disk::KeptFrame;
use crate::fault::{Fault, Result};
use crate::store::atomic;
use crate::store::layout::Layout;
use crate::types::{Image, ImageHash};

/// Version of [`ImageRecord`] and [`LayerRecord`].
pub(super) const SCHEMA: u32 = 1;
/// Below a layer's directory: its root file system.
pub(super) const LAYER_ROOT: &str = "fs";
/// Below a layer's directory: its [`LayerRecord`].
pub(super) const LAYER_RECORD: &str = "layer.json";

/// An image's durable record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The image, without its users.
    pub image: Image,
    /// The hash that the import was told and that was verified.
    pub declared: Option<ImageHash>,
    /// Of a disk image: what is kept of it, in a file of [`Layout::image_disks`].
    #[serde(default)]
    pub kept: Option<KeptFrame>,
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
    /// Its [`fingerprint`](super::fingerprint) when it was put in place. Layers of older versions have none.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// An image's record; `None` when one of its layers, or what is kept of its disk, is gone.
pub(super) fn load_image(layout: &Layout, path: &Path) -> Result<Option<ImageRecord>> {
    let unreadable = |why: &str| Fault::internal(format_args!("reading {}", path.display()), why);
    let record: ImageRecord = atomic::read_json(path)?.ok_or_else(|| unreadable("it vanished"))?;
    if record.schema != SCHEMA {
        return Err(unreadable("it is of another version of berth"));
    }
    if layout.image_record(record.image.id) != path {
        return Err(unreadable("it is of another image than its name says"));
    }
    for layer in &record.image.layers {
        if load_layer(layout, Digest::parse(layer)?.hex())?.is_none() {
            return Ok(None);
        }
    }
    if record.kept.is_some() && !layout.image_disk(record.image.id).is_file() {
        return Ok(None);
    }
    Ok(Some(record))
}

/// What is known about the unpacked layer with this value of its digest.
pub(super) fn load_layer(layout: &Layout, hex: &str) -> Result<Option<LayerRecord>> {
    let record: Option<LayerRecord> =
        atomic::read_json(&layout.image_layer(hex).join(LAYER_RECORD))?;
    match record {
        Some(record) if record.schema != SCHEMA => {
            Err(Fault::internal("reading a layer's record", "it is of another version of berth"))
        }
        record => Ok(record),
    }
}

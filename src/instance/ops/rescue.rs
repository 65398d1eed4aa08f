//! Rescue: a stopped instance boots another image on a disk of its own, and
//! finds its own root file system, whole and writable, at
//! [`OWN_ROOT`](crate::runtime::spec::OWN_ROOT). All else stays: ids, limits,
//! interfaces, names, console.
//!
//! The record says which root file system boots. It is written with the start;
//! a rescue that was cut short before that never was, and its disk is removed
//! at the next start of the service.

use uuid::Uuid;

use crate::fault::Result;
use crate::instance::host_parts::HostParts;
use crate::instance::live::Live;
use crate::instance::record::{self, Desired, Record};
use crate::instance::teardown::{Teardown, undone};
use crate::store::atomic;
use crate::types::Rescue;

use super::{cold_resize, create, start, stop};

/// Boots a stopped instance from a rescue image. What it did is undone when it fails.
pub fn rescue(parts: &HostParts, mut before: Record, wanted: Rescue) -> Result<(Record, Live)> {
    let image_id = wanted.image_id;
    // Its own disks, which it sees, may not be half another flavor's.
    cold_resize::finish_interrupted(parts, &mut before)?;
    prepare(parts, &before, wanted)
        .and_then(|rescued| start::start_as(parts, before.clone(), rescued))
        .map_err(|fault| undone(fault, "undoing it", undo(parts, &before, image_id)))
}

/// Makes the rescue root file system, which the record does not know yet.
fn prepare(parts: &HostParts, before: &Record, wanted: Rescue) -> Result<Record> {
    let image = parts.images.hold(wanted.image_id, before.id)?;
    let definition = &before.definition;
    let mut rescued = before.clone();
    let made = rescued.rescue.insert(record::Rescue {
        image_id: wanted.image_id,
        layers: image.layers,
        image_config: image.config,
        disk_bytes: create::root_bytes(parts, &definition.flavor, image.unpacked_size)?,
        environment: wanted.environment.unwrap_or_else(|| definition.environment.clone()),
    });
    // An instance that was never started has its own mounted where this one goes.
    parts.unmount(&parts.paths(before))?;
    // A new one: of another rescue nothing may be left on it.
    drop_disk(parts, before)?;
    parts.disks.create(&parts.paths(before).rescue_disk(), made.disk_bytes)?;
    create::network(parts, before)?;
    parts.mount(&rescued)?;
    let mut seed = create::seed(before, wanted.files.unwrap_or_default());
    seed.networkd = create::networkd(rescued.boot().config, &before.definition);
    parts.rootfs(&rescued).seed(&seed)?;
    Ok(rescued)
}

fn undo(parts: &HostParts, before: &Record, image_id: Uuid) -> Result<()> {
    stop::power_off(parts, before.clone())?;
    release(parts, before, image_id);
    drop_disk(parts, before)
}

/// Makes a stopped instance boot its own root file system again; it is to be
/// started. Not rescued is success.
pub fn unrescue(parts: &HostParts, record: Record) -> Result<Record> {
    if record.rescue.is_none() {
        return Ok(record);
    }
    // How the rescue image ended says nothing about what comes now. Cut short
    // from here on, the next service starts it.
    atomic::remove_file(&parts.paths(&record).exit())?;
    let boot_id = Some(parts.boot_id.clone());
    forget(parts, Record { desired: Desired::Running, exit: None, boot_id, ..record })
}

/// Takes a stopped instance's rescue out of the record, then off the host. Not
/// rescued is success.
pub fn forget(parts: &HostParts, mut record: Record) -> Result<Record> {
    if let Some(rescue) = record.rescue.take() {
        record.save(&parts.paths(&record))?;
        release(parts, &record, rescue.image_id);
        if let Err(fault) = drop_disk(parts, &record) {
            // It is over all the same; the next rescue or service removes the disk.
            tracing::error!(instance = %record.id, fault = %fault.in_full(), "removing the disk of a rescue");
        }
    }
    Ok(record)
}

/// Lets go of the rescue image, which may be the one that the instance stands on.
fn release(parts: &HostParts, record: &Record, image_id: Uuid) {
    if image_id != record.definition.image_id {
        parts.images.release(image_id, record.id);
    }
}

/// Removes the disk of a rescue that is over, or never came to be.
fn drop_disk(parts: &HostParts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    let mut teardown = Teardown::default();
    let (disk, mount) = (paths.rescue_disk(), paths.rescue_mount());
    teardown.step("unmounting the rescue disk", parts.disks.detach(&disk, &mount));
    teardown.step("removing the rescue disk", parts.disks.remove(&disk));
    teardown.into_result()
}

/// At the start of the service: the image is kept, or what an interrupted
/// rescue or unrescue left is removed.
pub fn recover(parts: &HostParts, record: &Record) -> Result<()> {
    match &record.rescue {
        Some(rescue) => parts
            .images
            .hold(rescue.image_id, record.id)
            .map(drop)
            .map_err(|fault| fault.context("holding the rescue image")),
        None => drop_disk(parts, record),
    }
}

//! Snapshots: the disk is copied while it takes no change, and the copy packed
//! and sent while the instance runs on.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use uuid::Uuid;

use super::create;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::KeptDisk;
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::openstack::{Access, upload::Upload};
use crate::snapshot::{self, Contents, Scratches, Tree};
use crate::store::atomic;
use crate::store::room::Claim;
use crate::types::{ImageConfig, ImageDestination, Snapshot, SnapshotFormat};

/// Checks where a snapshot shall go, before anything is done for it.
pub fn check(parts: &HostParts, wanted: &Snapshot) -> Result<()> {
    let (access, image_id) = access(&wanted.destination);
    access.check(image_id, &parts.config.images)
}

/// Whether the format holds all that the instance needs to boot again.
pub fn check_format(parts: &HostParts, record: &Record, format: SnapshotFormat) -> Result<()> {
    if format == SnapshotFormat::Qcow2 {
        return kept_disk(parts, record).map(drop);
    }
    let ImageConfig { entrypoint, cmd, init, .. } = &record.image_config;
    let by_config = !entrypoint.is_empty() || !cmd.is_empty() || init.is_none();
    if format == SnapshotFormat::RootfsTar && by_config {
        return Err(Fault::invalid(
            "format",
            "must be docker-archive: the instance starts by its image's config, for which a \
             tarball has no place",
        ));
    }
    Ok(())
}

/// What a disk like that of the instance's image is made of.
fn kept_disk(parts: &HostParts, record: &Record) -> Result<KeptDisk> {
    parts.images.kept_disk(record.definition.image_id).map_err(|fault| match fault.kind {
        FaultKind::InstanceUnsupported => Fault::invalid(
            "format",
            format!("must be docker-archive or rootfs-tar: {}", fault.detail),
        ),
        _ => fault,
    })
}

fn access(destination: &ImageDestination) -> (Access<'_>, Uuid) {
    let ImageDestination::Glance { endpoint, token, service_token, image_id } = destination;
    let access = Access {
        section: "destination",
        endpoint: endpoint.as_deref(),
        token: token.as_deref(),
        service_token: service_token.as_deref(),
    };
    (access, *image_id)
}

/// Makes a snapshot and sends it. What `slot` gives is kept while the host
/// works, and not while the instance's disk comes to rest. `let_go` is called
/// once the instance is needed no longer; what it gives is kept to the end.
/// `report` is told the stage, the bytes done and those in all.
pub fn snapshot<S, T>(
    parts: &HostParts,
    record: &Record,
    wanted: &Snapshot,
    report: &dyn Fn(&str, u64, Option<u64>),
    slot: &dyn Fn() -> Result<S>,
    let_go: impl FnOnce() -> Result<T>,
) -> Result<()> {
    check_format(parts, record, wanted.format)?;
    let disk = match wanted.format {
        SnapshotFormat::Qcow2 => Some(kept_disk(parts, record)?),
        SnapshotFormat::DockerArchive | SnapshotFormat::RootfsTar => None,
    };
    // The instance may be deleted meanwhile, and its image after it.
    let _pins = parts.images.keep_layers(&record.layers)?;
    report("copying", 0, None);
    let (upper, _room) = copy_upper(parts, record, slot)?;
    report("waiting", 0, None);
    let _permit = let_go()?;
    let seed = create::seed(record, vec![]);
    let left_out = seed.untouched(upper.as_fd(), &record.written_files, &record.seal_key);
    let mut layers = base_layers(parts, record)?;
    layers.push(Tree::new(upper, left_out, scratches(parts)).upper());
    let config = record.image_config.clone();
    let contents = Contents { layers, config, created: Utc::now() };
    let disk = disk.map(|kept| {
        let progress = |done, total| report("making the disk", done, Some(total));
        snapshot::disk::make(&parts.images, &kept, &contents.layers, &progress)
    });
    let disk = disk.transpose()?;
    let (access, image_id) = access(&wanted.destination);
    let mut upload = Upload::start(access, image_id, &parts.config.images)?;
    let progress = |done, total| report("uploading", done, Some(total));
    let sent = match disk {
        Some(disk) => disk.send(&mut upload, &progress),
        None => snapshot::write(wanted.format, &contents, &mut upload, &progress),
    };
    match sent {
        Ok(()) => upload.finish(),
        Err(fault) => Err(upload.give_up(fault)),
    }
}

/// What the instance had written at one moment, running or not: the upper
/// directory on a copy of its disk.
fn copy_upper<S>(
    parts: &HostParts,
    record: &Record,
    slot: &dyn Fn() -> Result<S>,
) -> Result<(OwnedFd, Option<Claim>)> {
    let copy = parts.paths(record).root_disk_copy();
    let opened = copy_disk(parts, record, &copy, slot).and_then(|claim| {
        let _slot = slot()?;
        parts.disks.open_copy(&copy, claim)
    });
    if opened.is_err() {
        // The fault says what was wrong; the next start of the service removes it too.
        let _ = atomic::remove_file(&copy);
    }
    opened
}

fn copy_disk<S>(
    parts: &HostParts,
    record: &Record,
    copy: &Path,
    slot: &dyn Fn() -> Result<S>,
) -> Result<Claim> {
    let paths = parts.paths(record);
    let disk = paths.root_disk();
    if record.quiesced || !parts.has_mounted_disks(&paths)? {
        let _slot = slot()?;
        return parts.disks.copy(&disk, copy);
    }
    // What is there by now is copied while the instance goes on writing; it is
    // held only while what it wrote meanwhile follows.
    parts.sync_disks(&paths)?;
    let taken = slot()?;
    let ahead = parts.disks.copy_ahead(&disk, copy)?;
    drop(taken);
    parts.sync_disks(&paths)?;
    let begun = Instant::now();
    parts.freeze_disks(&paths)?;
    let flush_us = begun.elapsed().as_micros();
    // Without a slot: the instance waits, and nobody may keep it waiting.
    let finished = ahead.catch_up();
    let thawed = parts.thaw_disks(&paths);
    let frozen_us = begun.elapsed().as_micros();
    let (changed, claim) = finished?;
    tracing::info!(instance = %record.id, frozen_us, flush_us, changed,
        "copied the disk for a snapshot");
    thawed.map(|()| claim)
}

/// Where a walk keeps what it must.
pub fn scratches(parts: &HostParts) -> Scratches {
    Scratches { directory: parts.layout.images_temporary(), room: Arc::clone(&parts.room) }
}

fn base_layers(parts: &HostParts, record: &Record) -> Result<Vec<Tree>> {
    let open = |digest: &String| {
        let path = parts.images.layer_dir(digest);
        let layer = File::open(&path).or_fault(format_args!("opening {}", path.display()))?;
        Ok(Tree::new(layer.into(), BTreeSet::new(), scratches(parts)))
    };
    record.layers.iter().map(open).collect()
}

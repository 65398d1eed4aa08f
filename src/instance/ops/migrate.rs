//! The source's side of a move to another host: what is told of an instance, and its disks.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use uuid::Uuid;

use super::cold_resize;
use super::snapshot::scratches;
use crate::fault::{OrFault, Result};
use crate::instance::export::{Export, FORMAT, path_of};
use crate::instance::host_parts::HostParts;
use crate::instance::moved::Departure;
use crate::instance::record::Record;
use crate::migration::peer::Peer;
use crate::migration::push::{self, Push, Watch};
use crate::rootfs::Still;
use crate::snapshot::{self, Tree};
use crate::types::{IncomingFile, IncomingInstance, Migrate, MigrationState};

/// Announces an instance to the other host, and sends what that lacks of its image.
pub fn begin(
    parts: &HostParts,
    record: &Record,
    wanted: &Migrate,
    (move_id, request_id): (Uuid, &str),
    watch: &Watch<'_>,
) -> Result<Push> {
    let image = parts.images.export(record.definition.image_id)?;
    let instance = IncomingInstance {
        format: FORMAT,
        instance_id: record.id,
        instance: Export::of(record).to_json()?,
        image: serde_json::to_value(&image).or_fault("describing an image")?,
        flavor: wanted.flavor.clone(),
        bytes: data_bytes(parts, record)?,
    };
    let peer = Peer::new(&parts.config, &wanted.to)?;
    let rate = parts.config.migration.max_bandwidth_mb << 20;
    let (mut push, incoming) = Push::begin(peer, move_id, request_id, rate, &instance)?;
    let sent = (|| {
        for digest in &incoming.missing_layers {
            let path = parts.images.layer_dir(digest);
            let layer = File::open(&path).or_fault(format_args!("opening {}", path.display()))?;
            let tree = Tree::new(layer.into(), Default::default(), scratches(parts));
            push.layer(digest, watch, |body| snapshot::write_layer(&tree, body))?;
        }
        if incoming.missing_image_disk {
            let path = parts.images.disk_of(record.definition.image_id);
            let disk = File::open(&path).or_fault(format_args!("opening {}", path.display()))?;
            push.pass(&[(IncomingFile::ImageDisk, disk)], watch)?;
        }
        Ok(())
    })();
    match sent {
        Ok(()) => Ok(push),
        Err(fault) => {
            give_up(&push);
            Err(fault)
        }
    }
}

/// Bytes of data on its disks.
fn data_bytes(parts: &HostParts, record: &Record) -> Result<u64> {
    let sizes = disks(record).iter().map(|file| {
        let path = path_of(&parts.paths(record), *file);
        let found = fs::metadata(&path).or_fault(format_args!("looking at {}", path.display()))?;
        Ok(found.blocks() * 512)
    });
    sizes.sum()
}

fn disks(record: &Record) -> &'static [IncomingFile] {
    const BOTH: [IncomingFile; 2] = [IncomingFile::Root, IncomingFile::Ephemeral];
    if record.ephemeral_bytes > 0 { &BOTH } else { &BOTH[..1] }
}

/// Sends its disks while it runs, so that less is left to send when it does not.
pub fn send_ahead(
    parts: &HostParts,
    record: &Record,
    push: &mut Push,
    watch: &Watch<'_>,
) -> Result<()> {
    parts.sync_disks(&parts.paths(record))?;
    push.pass(&open(parts, record, disks(record))?, watch)
}

/// Sends what is left of a stopped instance.
pub fn send(
    parts: &HostParts,
    record: &mut Record,
    push: &mut Push,
    watch: &Watch<'_>,
) -> Result<()> {
    cold_resize::make_free(parts, record)?;
    parts.unmount(&parts.paths(record))?;
    let disks = open(parts, record, disks(record))?;
    let paths = parts.paths(record);
    // While these are held nobody changes what is read.
    let _still = disks
        .iter()
        .map(|(file, disk)| Still::hold(disk, &path_of(&paths, *file)))
        .collect::<Result<Vec<_>>>()?;
    push.pass(&disks, watch)?;
    const CONSOLE: [IncomingFile; 3] =
        [IncomingFile::ConsoleFirst, IncomingFile::ConsoleLog, IncomingFile::ConsoleBefore];
    push.pass(&open(parts, record, &CONSOLE)?, watch)
}

/// Those of the files that are there.
fn open(
    parts: &HostParts,
    record: &Record,
    files: &[IncomingFile],
) -> Result<Vec<(IncomingFile, File)>> {
    let mut opened = Vec::new();
    for file in files {
        let path = path_of(&parts.paths(record), *file);
        match File::open(&path) {
            Ok(found) => opened.push((*file, found)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).or_fault(format_args!("opening {}", path.display())),
        }
    }
    Ok(opened)
}

/// Tells the other host that nothing comes of it. Not heard, that host finds out by itself.
pub fn give_up(push: &Push) {
    tell(push.end());
}

/// Tells the other host that it is known here whose an instance is. Not heard, that host
/// keeps a note of it for a while.
pub fn acknowledge(parts: &HostParts, departure: &Departure) {
    let peer = Peer::new(&parts.config, &departure.to);
    tell(peer.and_then(|peer| push::acknowledge(&peer, departure.move_id, &new_request_id())));
}

fn tell<T>(told: Result<T>) {
    if let Err(fault) = told {
        tracing::warn!(fault = %fault.in_full(), "telling the other host how a move ended");
    }
}

/// The id of a request that nobody asked for.
pub fn new_request_id() -> String {
    format!("req-{}", Uuid::new_v4())
}

/// After the service was away: tells the other host how a move ended, which may not have been
/// told yet. One that was not committed is none.
pub fn tell_again(parts: &HostParts, record: &Record) -> Result<()> {
    let Some(departure) = record.departure.clone() else { return Ok(()) };
    if departure.state == MigrationState::Committing {
        // Whoever has it is asked by its actor.
        return Ok(());
    }
    let peer = Peer::new(&parts.config, &departure.to);
    // The instance does not wait for it.
    let told = move || match peer {
        Err(fault) => tell::<()>(Err(fault)),
        Ok(peer) if departure.state == MigrationState::Moved => {
            tell(push::acknowledge(&peer, departure.move_id, &new_request_id()));
        }
        Ok(peer) => tell(push::end(&peer, departure.move_id, &new_request_id(), false)),
    };
    std::thread::Builder::new()
        .name("berth-move".into())
        .spawn(told)
        .map(drop)
        .or_fault("starting a thread")
}

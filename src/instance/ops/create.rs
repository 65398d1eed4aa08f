//! Making an instance: disks, root file system, namespaces, interfaces, record.
//! Afterwards a plugger can plug its interfaces, and it can be started.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::panic::resume_unwind;
use std::thread;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::instance::validate::hostname_from;
use crate::network::fresh::{Given, Turn};
use crate::rootfs::{Seed, WrittenFile};
use crate::types::{Definition, Flavor, ImageConfig, InitKind, InjectedFile};

use super::destroy;

/// Makes everything, or nothing: the record is written last, when the files are
/// where they belong and nobody needs their content any more.
pub fn create(parts: &HostParts, mut record: Record, files: Vec<InjectedFile>) -> Result<Record> {
    let made = (|| {
        let image = parts.images.hold(record.definition.image_id, record.id)?;
        record.layers.clone_from(&image.layers);
        record.image_config = image.config;
        let flavor = &record.definition.flavor;
        record.root_bytes = root_bytes(parts, flavor, image.unpacked_size)?;
        record.ephemeral_bytes = flavor.ephemeral_gb << 30;
        // A limit that the host cannot give is found before anything is made.
        parts.limits(&record)?;
        make_host_side(parts, &mut record, files)?;
        record.save(&parts.paths(&record))
    })();
    match made {
        Ok(()) => Ok(record),
        Err(fault) => {
            let left = destroy::destroy(parts, &record).err();
            Err(match left {
                None => fault,
                Some(left) => fault.context(format_args!(
                    "{} (and taking it down again: {})",
                    record.id, left.detail
                )),
            })
        }
    }
}

/// Size of the disk that an image's root file system gets.
pub fn root_bytes(parts: &HostParts, flavor: &Flavor, unpacked: u64) -> Result<u64> {
    let bytes = if flavor.root_gb == 0 {
        (unpacked >> 30 << 30) + ((parts.config.storage.slack_gb) << 30)
    } else {
        flavor.root_gb << 30
    };
    // Layers are shared and lie outside the instance's disk; a flavor smaller
    // than the image is refused all the same, as Nova does for every driver.
    if unpacked > bytes {
        return Err(Fault {
            field: Some("flavor.root_gb".into()),
            ..Fault::new(
                FaultKind::FlavorDiskTooSmall,
                format!(
                    "the image needs {} GiB, the flavor has {}: take a larger flavor",
                    unpacked.div_ceil(1 << 30),
                    flavor.root_gb
                ),
            )
        });
    }
    Ok(bytes)
}

fn make_host_side(parts: &HostParts, record: &mut Record, files: Vec<InjectedFile>) -> Result<()> {
    let paths = parts.paths(record);
    make_dir(paths.state())?;
    make_dir(paths.run())?;
    // The kernel makes namespaces and links while the disk is copied and attached.
    let made = &*record;
    thread::scope(|scope| {
        let network = scope.spawn(|| network(parts, made));
        let disks = disks(parts, made);
        let network = network.join().unwrap_or_else(|panic| resume_unwind(panic));
        disks.and(network)
    })?;
    parts.mount(record)?;
    let seed = seed(record, files);
    parts.rootfs(record).seed(&seed)?;
    record.written_files = WrittenFile::all(&seed.files, &record.seal_key)?;
    record.seeded = true;
    Ok(())
}

fn disks(parts: &HostParts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    parts.disks.create(&paths.root_disk(), record.root_bytes)?;
    parts.disks.attach(&paths.root_disk(), &paths.disk_mount())?;
    if record.ephemeral_bytes > 0 {
        parts.disks.create(&paths.ephemeral_disk(), record.ephemeral_bytes)?;
    }
    Ok(())
}

/// Namespaces and interfaces; also after a boot of the host, which took them away.
pub fn network(parts: &HostParts, record: &Record) -> Result<()> {
    with_network(parts, record, Turn::complete)
}

/// Namespaces in which nothing has run, and in them the interfaces as they were given.
/// Of an instance that is off.
pub fn fresh_network(parts: &HostParts, record: &Record) -> Result<()> {
    with_network(parts, record, Turn::boot)
}

fn with_network(
    parts: &HostParts,
    record: &Record,
    work: impl FnOnce(&mut Turn, Given) -> Result<()>,
) -> Result<()> {
    let paths = parts.paths(record);
    make_dir(paths.run())?;
    work(&mut Turn::begin(&paths)?, parts.given(record)?)?;
    record.definition.vifs.iter().try_for_each(|vif| parts.traffic(record, vif))
}

/// What is written into its root file system before it first starts.
pub fn seed(record: &Record, files: Vec<InjectedFile>) -> Seed {
    let definition = &record.definition;
    Seed {
        hostname: hostname(record),
        dns: definition.dns.clone(),
        machine_id: record.id,
        networkd: networkd(&record.image_config, definition),
        files,
        first_boot: true,
    }
}

/// The interfaces that systemd-networkd is told of, where the image starts systemd.
pub fn networkd(image: &ImageConfig, definition: &Definition) -> Option<Vec<String>> {
    let systemd = image.init == Some(InitKind::Systemd);
    systemd.then(|| definition.vifs.iter().filter_map(|vif| vif.name.clone()).collect())
}

/// The host name: the request's, or one made of the instance's name.
pub fn hostname(record: &Record) -> String {
    let definition = &record.definition;
    definition.hostname.clone().unwrap_or_else(|| hostname_from(&definition.name))
}

/// Makes a directory that the instance's root may pass through, and no one may list.
pub fn make_dir(path: &std::path::Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .or_fault(format_args!("making {}", path.display()))
}

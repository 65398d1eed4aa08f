//! Finds the root file system on a disk.
//!
//! In this order: the partition that the table says is this architecture's
//! root, the one whose label says so, the one that an fstab mounts on `/`, the
//! one with an init, the only one that may have one (only ext2/3/4 is looked
//! into here), and the only one with a file system at all. Each step decides
//! only when it leaves one; the last two not beside LVM, RAID or encryption.

use std::rc::Rc;

use uuid::{Uuid, uuid};

use super::blocks::{Blocks, Part};
use super::ext::{self, Ext};
use super::file_tree::FileKind;
use super::fstab;
use super::joined::{self, Joined};
use super::open::content;
use super::partitions::{self, LUKS, LVM, Partition, PartitionType, RAID};
use crate::fault::{Fault, Result};
use crate::image::recognise::{self, Content, FileSystem};
use crate::image::refusal::{self, unacceptable};
use crate::types::{DiskInspection, DiskMount, DiskPartition, PlaceReason};

/// Labels that say root, in lower case.
const LABELS: [&str; 5] = ["cloudimg-rootfs", "cirros-rootfs", "rootfs", "root", "/"];

/// A root file system's place on its disk.
pub struct Root {
    /// What it is.
    pub file_system: FileSystem,
    /// Where it begins.
    pub start: u64,
    /// Its bytes.
    pub blocks: Rc<dyn Blocks>,
    /// What is mounted on it, outer directories first: place without slashes around it, and bytes.
    pub parts: Vec<(String, Rc<dyn Blocks>)>,
    /// What a refusal calls it.
    pub what: String,
}

impl Root {
    /// All files of the system. Only of ext2/3/4.
    pub fn files(&self) -> Result<Joined<Ext>> {
        let mut files = Joined::new(ext::open(Rc::clone(&self.blocks))?);
        for (place, blocks) in &self.parts {
            files.mount(place, ext::open(Rc::clone(blocks))?)?;
        }
        Ok(files)
    }
}

/// A partition and what is on it.
struct Volume {
    partition: Partition,
    content: Content,
    blocks: Rc<dyn Blocks>,
    /// Only of ext2/3/4.
    ext: Option<Result<Ext>>,
    label: String,
}

impl Volume {
    fn open(disk: &Rc<dyn Blocks>, partition: Partition) -> Result<Volume> {
        let part = Part::new(Rc::clone(disk), partition.start, partition.size)?;
        let blocks: Rc<dyn Blocks> = Rc::new(part);
        let content = content(&*blocks)?;
        let ext = (content == Content::FileSystem(FileSystem::Ext))
            .then(|| ext::open(Rc::clone(&blocks)));
        let label = match (&ext, content) {
            (Some(Ok(ext)), _) => ext.label.clone(),
            (_, Content::FileSystem(file_system)) => label(file_system, &*blocks)?,
            _ => String::new(),
        };
        Ok(Volume { partition, content, blocks, ext, label })
    }

    fn ext(&self) -> Option<&Ext> {
        self.ext.as_ref().and_then(|ext| ext.as_ref().ok())
    }

    fn is_root_type(&self) -> bool {
        root_type().is_some_and(|guid| self.partition.kind == PartitionType::Guid(guid))
    }

    fn is_labelled_root(&self) -> bool {
        let names = [&self.label, &self.partition.name];
        names.iter().any(|name| LABELS.contains(&name.to_lowercase().as_str()))
    }

    fn has_init(&self) -> bool {
        self.ext().is_some_and(|ext| joined::has_init(ext).unwrap_or(false))
    }

    /// Whether it has an init, or a file system that is not looked into here.
    fn may_have_init(&self) -> bool {
        matches!(self.content, Content::FileSystem(_)) && (self.ext.is_none() || self.has_init())
    }

    /// What this holds if its file systems are inside of something else.
    fn hidden(&self) -> Option<&'static str> {
        match (self.partition.kind, self.content) {
            (PartitionType::Guid(LUKS), _) | (_, Content::Disk(recognise::DiskFormat::Luks)) => {
                Some("an encrypted volume")
            }
            (PartitionType::Guid(LVM) | PartitionType::Byte(0x8e), _) => {
                Some("a physical volume of LVM")
            }
            (PartitionType::Guid(RAID) | PartitionType::Byte(0xfd), _) => {
                Some("a member of a RAID")
            }
            _ => None,
        }
    }

    /// Whether this is what an fstab's first field means.
    fn is(&self, specification: &str) -> bool {
        let Some((key, value)) = fstab::tag(specification) else {
            return fstab::number_on_the_first_disk(specification) == Some(self.partition.number);
        };
        match key {
            "LABEL" => self.label == value,
            "UUID" => self.ext().is_some_and(|ext| ext.uuid.eq_ignore_ascii_case(value)),
            "PARTUUID" => self.partition.uuid.eq_ignore_ascii_case(value),
            "PARTLABEL" => self.partition.name == value,
            _ => false,
        }
    }

    /// The directory that its type has it mounted on.
    fn discoverable(&self) -> Option<&'static str> {
        let mut types = discoverable();
        types.find(|(kind, _)| self.partition.kind == PartitionType::Guid(*kind)).map(|(_, at)| at)
    }

    /// Its bytes, to be mounted on a directory of the root.
    fn as_part(&self, place: &str) -> Result<Rc<dyn Blocks>> {
        match &self.ext {
            Some(Ok(_)) => Ok(Rc::clone(&self.blocks)),
            Some(Err(fault)) => {
                Err(fault.clone().context(format!("partition {}", self.partition.number)))
            }
            None => Err(unacceptable(format!(
                "/{place} is on partition {} of its own, which holds {}: beside a root with ext4 \
                 only ext2, ext3 and ext4 are read; give the image with ext4, or as a tar archive",
                self.partition.number, self.content
            ))),
        }
    }

    /// What its type is for, of one that is well known.
    fn purpose(&self) -> Option<String> {
        let of_a_system = || {
            let root = self.is_root_type().then(|| "root".to_owned());
            root.or_else(|| self.discoverable().map(|place| format!("/{place}")))
        };
        self.partition.kind.purpose().map(str::to_owned).or_else(of_a_system)
    }

    /// What is said of it before anything is decided.
    fn described(&self) -> DiskPartition {
        let Partition { number, start, size, kind, name, .. } = &self.partition;
        DiskPartition {
            number: Some(*number),
            start: *start,
            size: *size,
            kind: Some(kind.value()),
            purpose: self.purpose(),
            name: name.clone(),
            label: self.label.clone(),
            content: self.content.to_string(),
            place: None,
            reason: None,
        }
    }

    /// What this partition's fstab mounts on `/`.
    fn fstab_root(&self) -> Option<String> {
        let text = fstab_of(self.ext()?).ok()?;
        fstab::root(&text).map(str::to_owned)
    }
}

/// What a root's fstab says; nothing where it has none.
fn fstab_of(ext: &Ext) -> Result<String> {
    let text = match joined::find(ext, "/etc/fstab")? {
        Some(inode) if inode.kind == FileKind::Regular => ext.read(&inode, fstab::MAX_BYTES)?,
        _ => Vec::new(),
    };
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The name that a file system gives itself, of those that are not looked into.
fn label(file_system: FileSystem, blocks: &dyn Blocks) -> Result<String> {
    let (offset, length) = match file_system {
        FileSystem::Xfs => (108, 12),
        FileSystem::Btrfs => (65_536 + 299, 256),
        FileSystem::Erofs => (1024 + 64, 16),
        _ => return Ok(String::new()),
    };
    let mut text = vec![0; length];
    blocks.read_at(offset, &mut text)?;
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Finds it.
pub fn find(disk: &Rc<dyn Blocks>) -> Result<Root> {
    survey(disk, &mut DiskInspection::default())
}

/// Finds it, and tells on the way what is on the disk, also of one without a root.
pub fn survey(disk: &Rc<dyn Blocks>, seen: &mut DiskInspection) -> Result<Root> {
    seen.size = disk.size();
    let whole = content(&**disk)?;
    if let Content::FileSystem(file_system) = whole {
        let (blocks, what) = (Rc::clone(disk), "the disk, one file system,".to_owned());
        let label = match file_system {
            FileSystem::Ext => ext::open(Rc::clone(disk)).map(|ext| ext.label).unwrap_or_default(),
            other => label(other, &**disk)?,
        };
        seen.partitions.push(DiskPartition {
            number: None,
            start: 0,
            size: disk.size(),
            kind: None,
            purpose: None,
            name: String::new(),
            label,
            content: whole.to_string(),
            place: Some("/".to_owned()),
            reason: Some(PlaceReason::Only),
        });
        let root = Root { file_system, start: 0, blocks, parts: Vec::new(), what };
        return with_parts(root, &[], seen);
    }
    let Some(partitions) = partitions::read(&**disk)? else {
        return Err(match whole {
            Content::Disk(recognise::DiskFormat::RawMbr)
            | Content::Nothing
            | Content::Empty
            | Content::Unknown => {
                unacceptable("the disk has neither a partition table nor a file system")
            }
            _ => refusal::of_content(whole),
        });
    };
    let volumes: Vec<_> =
        partitions.into_iter().map(|part| Volume::open(disk, part)).collect::<Result<_>>()?;
    seen.partitions = volumes.iter().map(Volume::described).collect();
    let (volume, reason) = choose(&volumes)?;
    note(seen, volume, "", reason);
    match volume.content {
        Content::FileSystem(file_system) => {
            let Partition { start, number, .. } = volume.partition;
            let blocks = Rc::clone(&volume.blocks);
            let name = [&volume.label, &volume.partition.name].into_iter().find(|n| !n.is_empty());
            let name = name.map(|name| format!(" ({name:.36})")).unwrap_or_default();
            let what = format!("partition {number}{name}, the disk's root,");
            let others: Vec<_> =
                volumes.iter().filter(|other| other.partition.number != number).collect();
            let root = Root { file_system, start, blocks, parts: Vec::new(), what };
            with_parts(root, &others, seen)
        }
        other => Err(unacceptable(format!(
            "partition {}, the disk's root, holds {other}",
            volume.partition.number
        ))),
    }
}

/// Tells where a partition belongs; `place` is without slashes around it.
fn note(seen: &mut DiskInspection, volume: &Volume, place: &str, reason: PlaceReason) {
    let number = Some(volume.partition.number);
    if let Some(partition) = seen.partitions.iter_mut().find(|one| one.number == number) {
        (partition.place, partition.reason) = (Some(format!("/{place}")), Some(reason));
    }
}

/// The root with what is mounted on it, of these other partitions.
fn with_parts(mut root: Root, others: &[&Volume], seen: &mut DiskInspection) -> Result<Root> {
    if root.file_system != FileSystem::Ext {
        // The kernel reads it, and one at a time.
        return match others.iter().find_map(|other| Some((other, other.discoverable()?))) {
            None => Ok(root),
            Some((volume, place)) => Err(unacceptable(format!(
                "/{place} is on partition {} of its own, which is only read beside a root with \
                 ext4; give the image with ext4, or as a tar archive",
                volume.partition.number
            ))),
        };
    }
    let ext = ext::open(Rc::clone(&root.blocks))?;
    let text = fstab_of(&ext)?;
    for line in fstab::parts(&text)? {
        let own =
            |(key, value): (&str, &str)| key == "UUID" && ext.uuid.eq_ignore_ascii_case(value);
        if fstab::tag(&line.what).is_some_and(own) {
            continue;
        }
        let found = others.iter().find(|other| other.is(&line.what));
        seen.mounts.push(DiskMount {
            source: line.what.clone(),
            place: format!("/{}", line.place),
            partition: found.map(|volume| volume.partition.number),
            subvolume: None,
        });
        match found {
            Some(volume) => {
                root.parts.push((line.place.clone(), volume.as_part(&line.place)?));
                note(seen, volume, &line.place, PlaceReason::Fstab);
            }
            None if line.has("nofail") => {}
            None => return Err(line.elsewhere()),
        }
    }
    let tree = Joined::new(ext);
    for (kind, place) in discoverable() {
        let kind = PartitionType::Guid(kind);
        let found =
            others.iter().filter(|v| v.partition.kind == kind && v.content != Content::Empty);
        let found: Vec<&&Volume> = found.collect();
        if found.is_empty() || fstab::names(&text, place) || !tree.is_free(place)? {
            continue;
        }
        let [volume] = found.as_slice() else {
            let numbers: Vec<_> = found.iter().map(|v| v.partition.number.to_string()).collect();
            return Err(unacceptable(format!(
                "partitions {} are each a /{place} by their type, and nothing says which belongs \
                 to the root; name one in its fstab, or give the image with one",
                numbers.join(", ")
            )));
        };
        root.parts.push((place.to_owned(), volume.as_part(place)?));
        note(seen, volume, place, PlaceReason::Type);
    }
    root.parts.sort_by_key(|(place, _)| place.split('/').count());
    Ok(root)
}

/// What is true of a root.
type Step<'a> = &'a dyn Fn(&Volume) -> bool;

fn choose(volumes: &[Volume]) -> Result<(&Volume, PlaceReason)> {
    let by_fstab: Vec<_> = volumes.iter().filter_map(Volume::fstab_root).collect();
    let told: [(PlaceReason, Step<'_>); 4] = [
        (PlaceReason::Type, &Volume::is_root_type),
        (PlaceReason::Label, &Volume::is_labelled_root),
        (PlaceReason::Fstab, &|volume| by_fstab.iter().any(|named| volume.is(named))),
        (PlaceReason::Init, &Volume::has_init),
    ];
    let left: [Step<'_>; 2] =
        [&Volume::may_have_init, &|volume| matches!(volume.content, Content::FileSystem(_))];
    if let Some(one) = told.iter().find_map(|(reason, step)| Some((only(volumes, step)?, *reason)))
    {
        return Ok(one);
    }
    // What is left beside these is a `/boot`.
    if let Some((volume, what)) = volumes.iter().find_map(|v| Some((v, v.hidden()?))) {
        return Err(unacceptable(format!(
            "partition {} is {what}, in which the root may be, and which is not read; give the \
             image with its root on a partition of its own, or as a tar archive",
            volume.partition.number
        )));
    }
    if let Some(one) = left.iter().find_map(|step| only(volumes, step)) {
        return Ok((one, PlaceReason::Only));
    }
    // One that cannot be read may be it: its fault says more.
    match volumes.iter().find_map(|volume| volume.ext.as_ref()?.as_ref().err()) {
        Some(fault) => Err(fault.clone()),
        None => Err(nothing(volumes)),
    }
}

/// The one volume of which this is true, if it is one.
fn only<'a>(volumes: &'a [Volume], step: Step<'_>) -> Option<&'a Volume> {
    let mut found = volumes.iter().filter(|volume| step(volume));
    found.next().filter(|_| found.next().is_none())
}

fn nothing(volumes: &[Volume]) -> Fault {
    let seen = volumes.iter().map(|volume| {
        format!("{} ({}): {}", volume.partition.number, volume.partition.kind, volume.content)
    });
    let seen: Vec<_> = seen.take(16).collect();
    unacceptable(format!(
        "none of the disk's partitions is certainly its root file system; label it `root`. Found: {}",
        if seen.is_empty() { "none".to_owned() } else { seen.join("; ") }
    ))
}

/// Types of partitions that are mounted where they are not in an fstab, on a directory that is
/// empty (Discoverable Partitions Specification).
fn discoverable() -> impl Iterator<Item = (Uuid, &'static str)> {
    let everywhere = [
        (uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d"), "var"),
        (uuid!("7ec6f557-3bc5-4aca-b293-16ef5df639d1"), "var/tmp"),
        (uuid!("3b8f8425-20e0-4f3b-907f-1a25a76f98e8"), "srv"),
        (uuid!("933ac7e1-2eb4-4f13-b844-0e14e2aef915"), "home"),
    ];
    let usr = match std::env::consts::ARCH {
        "x86_64" => Some(uuid!("8484680c-9521-48c6-9c11-b0720656f69e")),
        "aarch64" => Some(uuid!("b0e01050-ee5f-4390-949a-9101b17104e9")),
        "arm" => Some(uuid!("7d0359a3-02b3-4f0a-865c-654403e70625")),
        "riscv64" => Some(uuid!("beaec34b-8442-439b-a40b-984381ed097d")),
        _ => None,
    };
    usr.map(|usr| (usr, "usr")).into_iter().chain(everywhere)
}

/// The type of this architecture's root partition in a GUID table (Discoverable
/// Partitions Specification).
fn root_type() -> Option<Uuid> {
    Some(match std::env::consts::ARCH {
        "x86_64" => uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
        "aarch64" => uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"),
        "arm" => uuid!("69dad710-2ce4-4e3c-b16c-21a1d49abed3"),
        "riscv64" => uuid!("72ec70a6-cf74-40e6-bd49-4bda08e8f224"),
        "powerpc64" => uuid!("c31c45e6-3f39-412e-80fb-4809c4980599"),
        "s390x" => uuid!("5eead9a9-fe09-4a1e-a1d7-520d00531306"),
        "loongarch64" => uuid!("77055800-792c-4f94-b39a-98c91b762bb6"),
        _ => return None,
    })
}

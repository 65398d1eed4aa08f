//! Tries what every instance needs: namespaces, a disk, an overlay on
//! idmapped layers. In a directory of its own, and taken down again.

use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::{Disks, Rootfs, Seed};
use crate::config::Storage;
use crate::fault::{OrFault, Result};
use crate::store::layout::Layout;
use crate::store::room::Room;
use crate::sys::ids::IdBlock;
use crate::sys::{mount, ns};

/// Large enough for either file system.
const SIZE: u64 = 320 << 20;

/// Mounts a root file system, writes into it as the instance's root, and
/// removes everything again.
pub fn trial(storage: &Storage, first_id: u32) -> Result<()> {
    let base = std::env::temp_dir().join(format!("berth-check-{}", Uuid::new_v4()));
    let tried = in_directory(&base, storage, first_id);
    let removed = match mount::mounts_below(&base) {
        Ok(mounts) if mounts.is_empty() => {
            fs::remove_dir_all(&base).or_fault(format_args!("removing {}", base.display()))
        }
        other => other.map(drop),
    };
    tried.and(removed)
}

fn in_directory(base: &Path, storage: &Storage, first_id: u32) -> Result<()> {
    let layout = Layout::new(base.join("state"), base.join("run"));
    let paths = layout.instance(Uuid::new_v4());
    let layer = base.join("layer");
    for dir in [paths.state(), paths.run(), &layer.join("etc")] {
        fs::create_dir_all(dir).or_fault(format_args!("making {}", dir.display()))?;
    }
    let disks = Disks::new(&layout, storage, Room::open(&layout, storage))?;
    let block = IdBlock { first: first_id, size: 65_536 };
    let rootfs = Rootfs::new(vec![layer], block, paths.clone());
    let tried = (|| {
        disks.create(&paths.root_disk(), SIZE)?;
        ns::create_pinned(block, &paths.user_ns(), &paths.net_ns())?;
        disks.attach(&paths.root_disk(), &paths.disk_mount())?;
        rootfs.mount()?;
        rootfs.seed(&Seed {
            hostname: "trial".into(),
            dns: None,
            machine_id: Uuid::nil(),
            networkd: None,
            files: Vec::new(),
            first_boot: true,
        })
    })();
    let undone = [
        rootfs.unmount(),
        disks.detach(&paths.root_disk(), &paths.disk_mount()),
        ns::unpin(&paths.net_ns()),
        ns::unpin(&paths.user_ns()),
    ];
    undone.into_iter().fold(tried, Result::and)
}

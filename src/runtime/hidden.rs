//! What is hidden of the kernel's files, and what an instance finds there instead; pure.
//!
//! `/proc` and `/sys` have no namespaces for most of what they hold: disks, buses, file systems, the
//! kernel's command line. Whole kinds are hidden, and of directories that mix what is the
//! instance's with what is the host's, the few names stay that are the instance's: so what a later
//! kernel adds there is hidden, too.

use uuid::Uuid;

/// What is hidden of one file system, by paths below its mount point.
#[derive(Debug)]
pub struct Hidden {
    /// Where the file system is mounted.
    pub mount_point: &'static str,
    /// Those that are empty inside.
    pub emptied: &'static [&'static str],
    /// Those with something of the instance's in them, deepest first.
    pub narrowed: &'static [Narrowed],
}

/// A directory that shows few of its names.
#[derive(Debug)]
pub struct Narrowed {
    /// Its path.
    pub path: &'static str,
    /// What is as ever.
    pub kept: &'static [&'static str],
    /// What is an empty directory: programs take its absence for a broken system.
    pub emptied: &'static [&'static str],
}

/// Of sysfs.
pub const SYS: Hidden = Hidden {
    mount_point: "/sys",
    emptied: &["bus", "hypervisor", "kernel/iommu_groups", "kernel/slab"],
    narrowed: &[
        Narrowed { path: "class", kept: &["net", "tty"], emptied: &["block"] },
        Narrowed { path: "dev", kept: &[], emptied: &["block", "char"] },
        Narrowed { path: "devices/system", kept: &["cpu", "node"], emptied: &[] },
        Narrowed { path: "devices/virtual", kept: &["net", "tty"], emptied: &["block"] },
        Narrowed { path: "devices", kept: &["system", "virtual"], emptied: &[] },
        Narrowed { path: "fs", kept: &["cgroup"], emptied: &[] },
    ],
};

/// Of proc.
pub const PROC: Hidden = Hidden {
    mount_point: "/proc",
    emptied: &["bus", "driver", "fs", "ide", "irq", "sys/dev"],
    narrowed: &[],
};

/// Where sysfs has disks, and which of its directories have a link to each: by name, by number.
pub const DISKS: &str = "devices/virtual/block";
/// See [`DISKS`].
pub const LINKS_TO_DISKS: [(&str, DiskLink); 3] =
    [("block", DiskLink::Name), ("class/block", DiskLink::Name), ("dev/block", DiskLink::Number)];

/// What a link to a disk is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskLink {
    /// As the disk.
    Name,
    /// As its device.
    Number,
}

/// What a disk has of the kernel's own below sysfs: sizes as they are. Nothing there names the
/// host's device. Its counts are not among them, since they go on from those of earlier instances.
pub const LIVE: [&str; 2] = ["queue", "size"];

/// What is shown of a volume's `queue`: limits of its device, by which programs that partition and
/// format it go, and what lists disks shows.
pub const QUEUE: [&str; 18] = [
    "add_random",
    "discard_granularity",
    "discard_max_bytes",
    "discard_zeroes_data",
    "fua",
    "hw_sector_size",
    "io_poll",
    "logical_block_size",
    "max_hw_sectors_kb",
    "max_sectors_kb",
    "minimum_io_size",
    "nr_requests",
    "optimal_io_size",
    "physical_block_size",
    "read_ahead_kb",
    "rotational",
    "scheduler",
    "write_cache",
];

/// A file of proc that says something else than the kernel's.
#[derive(Debug)]
pub struct Replaced {
    /// Below `/proc`.
    pub path: &'static str,
    /// All of it.
    pub content: String,
}

/// What an instance reads instead of what its host would say. What lxcfs covers stays as that has
/// it. The tables of disks are [`super::disks`]'s.
pub fn replaced(command_line: &str, boot_id: Uuid) -> Vec<Replaced> {
    [
        ("cmdline", format!("{command_line}\n")),
        ("iomem", String::new()),
        ("ioports", String::new()),
        ("mdstat", "Personalities : \nunused devices: <none>\n".into()),
        ("swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".into()),
        ("sys/kernel/random/boot_id", format!("{boot_id}\n")),
    ]
    .map(|(path, content)| Replaced { path, content })
    .into()
}

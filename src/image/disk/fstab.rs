//! What an image's fstab says of file systems that belong to its root.

use std::iter;

use crate::fault::{Fault, Result};
use crate::image::refusal::unacceptable;

/// Directories that are part of a system, wherever they lie.
const FOLLOWED: [&str; 5] = ["usr", "var", "srv", "opt", "home"];

/// Most bytes of an fstab.
pub(super) const MAX_BYTES: u64 = 1 << 20;
/// Most lines that mount parts of a system.
const MAX_PARTS: usize = 64;

/// A line that mounts a part of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The device, as it is named there.
    pub what: String,
    /// The directory, without slashes around it.
    pub place: String,
    options: String,
}

impl Line {
    /// Whether an option is among them.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|one| one == option)
    }

    /// The value of an option.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.options.split(',').find_map(|one| one.strip_prefix(option)?.strip_prefix('='))
    }

    /// Whether a machine mounts it when it boots, from a disk of its own.
    fn counts(&self, kind: &str) -> bool {
        let device = self.what.starts_with("/dev/") || self.what.contains('=');
        let network = matches!(kind, "nfs" | "nfs4" | "cifs" | "ceph" | "9p" | "virtiofs" | "none");
        device && !network && !self.has("noauto") && !self.has("bind") && !self.has("_netdev")
    }

    /// The fault for what is not there.
    pub fn elsewhere(&self) -> Fault {
        unacceptable(format!(
            "its fstab mounts /{} from {}, which the disk has not, or not in a file system that is \
             read here; give the whole system on one disk with ext4, or as a tar archive",
            self.place, self.what
        ))
    }
}

/// The four fields of each line that mounts something.
fn fields(text: &str) -> impl Iterator<Item = [&str; 4]> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut fields = line.split_whitespace().chain(iter::repeat(""));
        Some([fields.next()?, fields.next()?, fields.next()?, fields.next()?])
    })
}

/// The device that is mounted on `/`.
pub(super) fn root(text: &str) -> Option<&str> {
    fields(text).find(|[_, place, ..]| *place == "/").map(|[what, ..]| what)
}

/// Whether any line is about this directory (without slashes around it), one that nothing follows
/// too.
pub(super) fn names(text: &str, place: &str) -> bool {
    fields(text).any(|[_, other, ..]| other.starts_with('/') && other.trim_matches('/') == place)
}

/// The lines that mount parts of a system, outer directories first.
pub(super) fn parts(text: &str) -> Result<Vec<Line>> {
    let lines = fields(text).filter_map(|[what, place, kind, options]| {
        let place = place.strip_prefix('/')?.trim_end_matches('/').to_owned();
        let plain = place.split('/').all(|name| !matches!(name, "" | "." | ".."));
        let line = Line { what: what.to_owned(), place, options: options.to_owned() };
        let part = line.place.split('/').next().is_some_and(|top| FOLLOWED.contains(&top));
        (part && plain && line.counts(kind)).then_some(line)
    });
    let mut found: Vec<Line> = lines.take(MAX_PARTS + 1).collect();
    if found.len() > MAX_PARTS {
        return Err(unacceptable(format!(
            "its fstab mounts more than {MAX_PARTS} parts of the system; leave out the lines that \
             nothing needs"
        )));
    }
    found.sort_by_key(|line| line.place.split('/').count());
    Ok(found)
}

/// A name of a device: the tag that it has, and its value, in either form.
pub(super) fn tag(what: &str) -> Option<(&str, &str)> {
    const LINKS: [(&str, &str); 4] = [
        ("/dev/disk/by-uuid/", "UUID"),
        ("/dev/disk/by-label/", "LABEL"),
        ("/dev/disk/by-partuuid/", "PARTUUID"),
        ("/dev/disk/by-partlabel/", "PARTLABEL"),
    ];
    let link = LINKS.iter().find_map(|(link, key)| Some((*key, what.strip_prefix(link)?)));
    let (key, value) = link.or_else(|| what.split_once('='))?;
    Some((key, value.trim_matches('"'))).filter(|(_, value)| !value.is_empty())
}

/// The partition of a machine's first disk that a device's name means; `None` for other disks and
/// for what only ends in a number.
pub(super) fn number_on_the_first_disk(what: &str) -> Option<u32> {
    const DISKS: [&str; 6] = ["sda", "vda", "xvda", "hda", "nvme0n1p", "mmcblk0p"];
    let name = what.strip_prefix("/dev/")?;
    let number = DISKS.iter().find_map(|disk| name.strip_prefix(disk))?;
    let digits = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    digits.then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_system_that_a_machine_mounts_from_its_disks() {
        let text = "\
# a comment
UUID=1 / ext4 defaults 0 1
UUID=2 /var/log/audit ext4 defaults 0 2
LABEL=v /var/ ext4 nodev,subvol=@/var 0 2
/dev/sdb1 /srv ext4 defaults
tmpfs /var/tmp tmpfs size=1g
server:/x /home nfs _netdev
//server/x /opt cifs defaults
/usr/x /opt/x none bind
UUID=3 /home ext4 noauto
UUID=4 /boot ext4 defaults
UUID=5 /var/../etc ext4 defaults
UUID=6
";
        let found = parts(text).unwrap();
        let seen: Vec<_> = found.iter().map(|l| (l.what.as_str(), l.place.as_str())).collect();
        assert_eq!(seen, [("LABEL=v", "var"), ("/dev/sdb1", "srv"), ("UUID=2", "var/log/audit")]);
        assert_eq!(found[0].value("subvol"), Some("@/var"));
        assert!(found[0].has("nodev"));
        for (place, named) in [("home", true), ("var", true), ("var/tmp", true), ("usr", false)] {
            assert_eq!(names(text, place), named, "{place}");
        }
        let line = |n| format!("UUID={n} /srv/{n} ext4 defaults\n");
        let lines = |count| (0..count).map(line).collect::<String>();
        assert_eq!(parts(&lines(64)).unwrap().len(), 64);
        assert!(parts(&lines(65)).unwrap_err().detail.contains("more than 64"));
    }

    #[test]
    fn the_line_that_mounts_the_root() {
        for (text, found) in [
            ("LABEL=cloudimg-rootfs / ext4 discard 0 1\n", Some("LABEL=cloudimg-rootfs")),
            ("# x / y\nproc /proc proc\n\tUUID=1-2\t/\text4\n", Some("UUID=1-2")),
            ("/dev/vda2 /boot ext4\n", None),
            ("", None),
        ] {
            assert_eq!(root(text), found, "{text:?}");
        }
    }

    #[test]
    fn a_number_counts_on_the_first_disk_alone() {
        for name in ["sda2", "vda2", "xvda2", "hda2", "nvme0n1p2", "mmcblk0p2"] {
            assert_eq!(number_on_the_first_disk(&format!("/dev/{name}")), Some(2), "{name}");
        }
        for name in [
            "md2",
            "mapper/vg-var2",
            "vg/var2",
            "nvme1n1p2",
            "nvme0n2p2",
            "nvme0n1",
            "sdb2",
            "sdaa2",
            "mmcblk1p2",
            "sda",
            "sda02",
            "sda+2",
            "disk/by-id/x-part2",
            "loop2",
            "vdb2",
            "zram2",
        ] {
            assert_eq!(number_on_the_first_disk(&format!("/dev/{name}")), None, "{name}");
        }
        assert_eq!(number_on_the_first_disk("sda2"), None);
    }

    #[test]
    fn tags_in_either_form() {
        for (what, found) in [
            ("UUID=\"1-2\"", Some(("UUID", "1-2"))),
            ("/dev/disk/by-uuid/1-2", Some(("UUID", "1-2"))),
            ("/dev/disk/by-partlabel/x", Some(("PARTLABEL", "x"))),
            ("PARTUUID=", None),
            ("/dev/disk/by-label/", None),
            ("/dev/sda1", None),
        ] {
            assert_eq!(tag(what), found, "{what}");
        }
    }
}

//! What an image's fstab says of file systems that belong to its root.

use std::iter;

use crate::fault::Fault;
use crate::image::refusal::unacceptable;

/// Directories that are part of a system, wherever they lie.
const FOLLOWED: [&str; 5] = ["usr", "var", "srv", "opt", "home"];

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
             read here: a part of the system is missing; give the image with all of it on one disk \
             with ext4, or as a tar archive",
            self.place, self.what
        ))
    }

    /// Whether the device is another disk than a machine's first.
    pub fn is_of_another_disk(&self) -> bool {
        let second = |kind| {
            let rest = self.what.strip_prefix("/dev/")?.strip_prefix(kind)?;
            Some(rest.starts_with(|c: char| c.is_ascii_lowercase() && c != 'a'))
        };
        ["sd", "vd", "xvd", "hd"].into_iter().find_map(second).unwrap_or(false)
    }
}

/// The lines that mount parts of a system, outer directories first.
pub(super) fn parts(text: &str) -> Vec<Line> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut found: Vec<Line> = lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace().chain(iter::repeat(""));
            let (what, place) = (fields.next()?, fields.next()?);
            let (kind, options) = (fields.next()?, fields.next()?);
            let place = place.strip_prefix('/')?.trim_end_matches('/').to_owned();
            let plain = place.split('/').all(|name| !matches!(name, "" | "." | ".."));
            let line = Line { what: what.to_owned(), place, options: options.to_owned() };
            let part = line.place.split('/').next().is_some_and(|top| FOLLOWED.contains(&top));
            (part && plain && line.counts(kind)).then_some(line)
        })
        .collect();
    found.sort_by_key(|line| line.place.split('/').count());
    found
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
        let found = parts(text);
        let seen: Vec<_> = found.iter().map(|l| (l.what.as_str(), l.place.as_str())).collect();
        assert_eq!(seen, [("LABEL=v", "var"), ("/dev/sdb1", "srv"), ("UUID=2", "var/log/audit")]);
        assert_eq!(found[0].value("subvol"), Some("@/var"));
        assert!(found[0].has("nodev") && !found[0].is_of_another_disk());
        assert!(found[1].is_of_another_disk());
    }
}

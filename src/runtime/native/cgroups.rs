//! The instance's cgroups, which berth has made: who enters them, how, and which devices they
//! may use.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::config::{DeviceRule, refused};
use crate::cgroup::Entrance;
use crate::fault::{OrFault, Result};
use crate::sys::device_filter::{self, Access, Rule};

/// Where a new process of the instance goes.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    entrance: Entrance,
    unified: Option<PathBuf>,
    dirs: Vec<PathBuf>,
}

impl Cgroups {
    /// Opens them; those that are gone are left out when `present` alone are wanted.
    pub fn open(dirs: &[PathBuf], present: bool) -> Result<Cgroups> {
        let mut cgroups = Cgroups { dirs: dirs.to_vec(), ..Cgroups::default() };
        for dir in dirs.iter().filter(|dir| !present || dir.exists()) {
            cgroups.entrance.add(dir)?;
            if !dir.join("tasks").exists() {
                cgroups.unified = Some(dir.clone());
            }
        }
        Ok(cgroups)
    }

    /// The directory of version 2, into which a new process is born.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.entrance.unified()
    }

    /// Its path, where controllers may be.
    pub fn unified_dir(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// Has new processes be born in this directory of version 2.
    pub fn unified_in(&mut self, dir: &Path) -> Result<()> {
        self.unified = Some(dir.to_owned());
        self.entrance.add(dir)
    }

    /// What this process, which has one thread, does to be in those of version 1.
    pub fn enter(&self) -> Result<()> {
        self.entrance.enter()
    }

    /// Sets which devices may be used.
    pub fn hold_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let doing = "setting which devices the instance may use";
        let mut filter = rules.iter().map(rule).collect::<Result<Vec<_>>>()?;
        filter.push(NODES);
        if let Some(dir) = self.dirs.iter().find(|dir| dir.join("devices.deny").exists()) {
            return filter.iter().try_for_each(|rule| hold_v1(dir, rule)).or_fault(doing);
        }
        let Some(unified) = self.unified() else {
            return Err(refused("linux.resources.devices: the host has no cgroup of devices"));
        };
        device_filter::attach(unified, &filter).or_fault(doing)
    }
}

/// Has whoever is in a cgroup of devices use what `after` says, where `before` held: both as a
/// bundle has them. What runs there keeps open what it has open.
pub fn change_devices(
    dir: &Path,
    before: &[LinuxDeviceCgroup],
    after: &[LinuxDeviceCgroup],
) -> Result<()> {
    let doing = "changing which devices the instance may use";
    let rules = |all: &[LinuxDeviceCgroup]| -> Result<Vec<Rule>> {
        let read = serde_json::to_value(all).and_then(serde_json::from_value::<Vec<DeviceRule>>);
        read.or_fault(doing)?.iter().map(rule).collect()
    };
    let (before, after) = (rules(before)?, rules(after)?);
    if dir.join("devices.deny").exists() {
        // Narrowed first. A line that takes away takes no more than what it names.
        let gone = before.iter().filter(|rule| !after.contains(rule));
        let gone: Vec<Rule> = gone.map(|rule| Rule { allow: !rule.allow, ..*rule }).collect();
        let new = after.iter().filter(|rule| !before.contains(rule));
        return gone.iter().chain(new).try_for_each(|rule| hold_v1(dir, rule)).or_fault(doing);
    }
    let cgroup = fs::File::open(dir).or_fault(doing)?;
    let filter: Vec<Rule> = after.into_iter().chain([NODES]).collect();
    device_filter::replace(cgroup.as_fd(), &filter).or_fault(doing)
}

/// To make a node is to use no device; every runtime allows it.
const NODES: Rule = Rule {
    allow: true,
    block: None,
    major: None,
    minor: None,
    access: Access { make: true, read: false, write: false },
};

fn hold_v1(dir: &Path, rule: &Rule) -> std::io::Result<()> {
    let file = dir.join(if rule.allow { "devices.allow" } else { "devices.deny" });
    // One write for each: the kernel reads no more of it.
    lines_v1(rule).iter().try_for_each(|line| {
        let file = OpenOptions::new().write(true).open(&file);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
    })
}

/// A rule as version 1 is told it. Of a line that begins with `a` the kernel reads no more: it
/// means all devices and all uses, so here only that none is allowed.
fn lines_v1(rule: &Rule) -> Vec<String> {
    let Access { make, read, write } = rule.access;
    let all = (rule.block, rule.major, rule.minor) == (None, None, None) && make && read && write;
    if all && !rule.allow {
        return vec!["a *:* rwm".to_owned()];
    }
    let any = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let uses = [(read, 'r'), (write, 'w'), (make, 'm')];
    let uses: String = uses.iter().filter(|(used, _)| *used).map(|(_, letter)| letter).collect();
    let kinds = match rule.block {
        _ if uses.is_empty() => &[][..],
        Some(true) => &["b"],
        Some(false) => &["c"],
        None => &["b", "c"],
    };
    let line = |kind| format!("{kind} {}:{} {uses}", any(rule.major), any(rule.minor));
    kinds.iter().map(line).collect()
}

fn rule(rule: &DeviceRule) -> Result<Rule> {
    let access = rule.access.as_deref().unwrap_or("rwm");
    if let Some(other) = access.chars().find(|c| !"rwm".contains(*c)) {
        return Err(refused(format!("linux.resources.devices: access {other:?} is none")));
    }
    let block = match rule.kind {
        Some(LinuxDeviceType::B) => Some(true),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(false),
        Some(LinuxDeviceType::A) | None => None,
        Some(other) => {
            return Err(refused(format!("linux.resources.devices: type {other:?} is none")));
        }
    };
    Ok(Rule {
        allow: rule.allow,
        block,
        major: rule.major,
        minor: rule.minor,
        access: Access {
            make: access.contains('m'),
            read: access.contains('r'),
            write: access.contains('w'),
        },
    })
}

/// Hierarchies of version 1 as a mount inside names them: their options, and the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct V1 {
    /// `cpu,cpuacct`; of the named one `systemd`.
    pub dir: String,
    /// The controllers; none for a named one.
    pub controllers: Vec<String>,
}

/// Those that this host has mounted, in the order of `/proc/self/cgroup`; none on version 2.
pub(super) fn v1_hierarchies() -> Result<Vec<V1>> {
    let path = "/proc/self/cgroup";
    let text = fs::read_to_string(path).or_fault(format_args!("reading {path}"))?;
    Ok(text.lines().filter_map(v1_hierarchy).collect())
}

fn v1_hierarchy(line: &str) -> Option<V1> {
    let names = line.split(':').nth(1).filter(|names| !names.is_empty())?;
    Some(match names.strip_prefix("name=") {
        Some(name) => V1 { dir: name.to_owned(), controllers: Vec::new() },
        None => {
            let controllers = names.split(',').map(str::to_owned).collect();
            V1 { dir: names.to_owned(), controllers }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_leaves_open_opens_no_other_device() {
        let lines = |text: &str| {
            let rule = serde_json::from_str(text).map_err(|e| refused(e.to_string()));
            rule.and_then(|read| super::rule(&read)).map(|rule| lines_v1(&rule)).unwrap_or_default()
        };
        assert_eq!(lines(r#"{"allow": false}"#), ["a *:* rwm"]);
        assert_eq!(lines(r#"{"allow": true, "type": "a"}"#), ["b *:* rwm", "c *:* rwm"]);
        let numbers = r#"{"allow": true, "major": 1, "minor": 3, "access": "r"}"#;
        assert_eq!(lines(numbers), ["b 1:3 r", "c 1:3 r"]);
        assert_eq!(lines(r#"{"allow": false, "access": "w"}"#), ["b *:* w", "c *:* w"]);
        let terminal = r#"{"allow": true, "type": "c", "major": 136, "access": "wr"}"#;
        assert_eq!(lines(terminal), ["c 136:* rw"]);
        assert_eq!(lines(r#"{"allow": true, "type": "b", "access": ""}"#), [""; 0]);
        assert_eq!(lines(r#"{"allow": true, "type": "p"}"#), [""; 0], "it is refused");
    }

    #[test]
    fn hierarchies_are_told_by_their_options() {
        let cpu =
            V1 { dir: "cpu,cpuacct".into(), controllers: vec!["cpu".into(), "cpuacct".into()] };
        assert_eq!(v1_hierarchy("4:cpu,cpuacct:/x"), Some(cpu));
        let systemd = V1 { dir: "systemd".into(), controllers: vec![] };
        assert_eq!(v1_hierarchy("1:name=systemd:/"), Some(systemd));
        assert_eq!(v1_hierarchy("0::/"), None);
    }

    /// Of version 2 here: version 1 has it in every instance's life.
    #[test]
    fn root_a_volume_is_opened_as_long_as_the_rules_say() {
        use crate::cgroup::DeviceNumber;
        use crate::runtime::dev;
        use crate::runtime::disks::{Disk, VolumeDisk};
        use crate::sys::loopdev;
        use std::process::{Command, Stdio};
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let Some(root) = roots.iter().find(|root| root.join("cgroup.controllers").exists()) else {
            return;
        };
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = dir.path().join("volume");
        fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let device = loopdev::attach(&file, false, false).unwrap();
        let disk = |read_only| Disk {
            name: "vdb".into(),
            device: DeviceNumber { major: loopdev::MAJOR, minor: device.number },
            serial: "x".into(),
            volume: Some(VolumeDisk { read_only }),
        };
        let rules = |disks: &[Disk]| dev::rules(disks, &[]).unwrap();
        let (none, read) = (rules(&[]), rules(&[disk(true)]));
        let all = rules(&[disk(false)]);
        let cgroup = root.join(format!("berth-volumes-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let opens = |how: &str| {
            let script = format!(
                "echo $$ > {}/cgroup.procs && : {how} {}",
                cgroup.display(),
                device.path.display()
            );
            let tried = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        };
        let step = |before: &[LinuxDeviceCgroup], after: &[LinuxDeviceCgroup]| {
            change_devices(&cgroup, before, after).map(|()| (opens("<"), opens("<>")))
        };
        let seen = [(&[][..], &none), (&none, &all), (&all, &read), (&read, &none), (&none, &all)]
            .map(|(before, after)| step(before, after).map_err(|fault| fault.to_string()));
        fs::remove_dir(&cgroup).unwrap();
        let (closed, open) = (Ok((false, false)), Ok((true, true)));
        assert_eq!(seen, [closed.clone(), open.clone(), Ok((true, false)), closed, open]);
    }
}

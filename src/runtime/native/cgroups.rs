//! The instance's cgroups, which berth has made: who enters them, how, and which devices they
//! may use.
//!
//! A process that is moved by another, or moves itself with all its threads, makes the kernel
//! wait for a grace period, some milliseconds. One that is born in its cgroup (version 2) or
//! moves its only thread by `tasks` (version 1) does not.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceType;
use rustix::fs::{Mode, OFlags};

use super::config::{DeviceRule, refused};
use crate::fault::{OrFault, Result};
use crate::sys::device_filter::{self, Access, Rule};

/// Where a new process of the instance goes.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Files of version 1 that its thread writes itself into, opened by the host's root.
    tasks: Vec<File>,
    /// The directory of version 2, into which it is born.
    pub unified: Option<OwnedFd>,
    unified_path: Option<PathBuf>,
    /// All directories.
    dirs: Vec<PathBuf>,
}

impl Cgroups {
    /// Opens them; those that are gone are left out when `present` alone are wanted.
    pub fn open(dirs: &[PathBuf], present: bool) -> Result<Cgroups> {
        let mut cgroups = Cgroups { dirs: dirs.to_vec(), ..Cgroups::default() };
        for dir in dirs {
            let doing = || format!("opening the cgroup {}", dir.display());
            if present && !dir.exists() {
                continue;
            }
            let tasks = dir.join("tasks");
            if tasks.exists() {
                let file = OpenOptions::new().write(true).open(tasks);
                cgroups.tasks.push(file.or_fault(doing())?);
            } else {
                cgroups.unified_in(dir)?;
            }
        }
        Ok(cgroups)
    }

    /// Its directory of version 2, where controllers may be.
    pub fn unified_dir(&self) -> Option<&Path> {
        self.unified_path.as_deref()
    }

    /// Has new processes be born in this directory of version 2.
    pub fn unified_in(&mut self, dir: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty());
        self.unified = Some(opened.or_fault(format_args!("opening the cgroup {}", dir.display()))?);
        self.unified_path = Some(dir.to_owned());
        Ok(())
    }

    /// What this process, which has one thread, does to be in those of version 1.
    pub fn enter(&self) -> Result<()> {
        self.tasks.iter().try_for_each(|tasks| {
            rustix::io::write(tasks, b"0").map(drop).or_fault("entering the instance's cgroups")
        })
    }

    /// Sets which devices may be used.
    pub fn hold_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let doing = "setting which devices the instance may use";
        if let Some(dir) = self.dirs.iter().find(|dir| dir.join("devices.deny").exists()) {
            return hold_devices_v1(dir, rules).or_fault(doing);
        }
        let Some(unified) = &self.unified else {
            return Err(refused("linux.resources.devices: the host has no cgroup of devices"));
        };
        let mut filter = rules.iter().map(rule).collect::<Result<Vec<_>>>()?;
        filter.push(NODES);
        device_filter::attach(unified.as_fd(), &filter).or_fault(doing)
    }
}

/// To make a node is to use no device; every runtime allows it.
const NODES: Rule = Rule {
    allow: true,
    block: None,
    major: None,
    minor: None,
    access: Access { make: true, read: false, write: false },
};

fn hold_devices_v1(dir: &Path, rules: &[DeviceRule]) -> std::io::Result<()> {
    let write = |allow, text: &str| {
        let name = if allow { "devices.allow" } else { "devices.deny" };
        // One write for each rule: the kernel reads no more of it.
        OpenOptions::new()
            .write(true)
            .open(dir.join(name))
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
    };
    let any = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    for rule in rules {
        let kind = match rule.kind {
            Some(LinuxDeviceType::B) => "b",
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
            _ => "a",
        };
        let access = rule.access.as_deref().unwrap_or("rwm");
        write(rule.allow, &format!("{kind} {}:{} {access}", any(rule.major), any(rule.minor)))?;
    }
    ["c *:* m", "b *:* m"].iter().try_for_each(|text| write(true, text))
}

fn rule(rule: &DeviceRule) -> Result<Rule> {
    let access = rule.access.as_deref().unwrap_or("rwm");
    if let Some(other) = access.chars().find(|c| !"rwm".contains(*c)) {
        return Err(refused(format!("linux.resources.devices: access {other:?} is none")));
    }
    let block = match rule.kind {
        Some(LinuxDeviceType::B) => Some(true),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(false),
        _ => None,
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
    fn hierarchies_are_told_by_their_options() {
        let cpu =
            V1 { dir: "cpu,cpuacct".into(), controllers: vec!["cpu".into(), "cpuacct".into()] };
        assert_eq!(v1_hierarchy("4:cpu,cpuacct:/x"), Some(cpu));
        let systemd = V1 { dir: "systemd".into(), controllers: vec![] };
        assert_eq!(v1_hierarchy("1:name=systemd:/"), Some(systemd));
        assert_eq!(v1_hierarchy("0::/"), None);
    }
}

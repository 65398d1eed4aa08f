//! How a new process comes into cgroups without a wait.
//!
//! A process that is moved by another, or moves itself with all its threads, makes the kernel
//! wait for a grace period, some milliseconds. One that is born in its cgroup (version 2) or
//! moves its only thread by `tasks` (version 1) does not.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::fault::{OrFault, Result};

/// Cgroups that are open to a new process, one in each hierarchy.
#[derive(Debug, Default)]
pub struct Entrance {
    tasks: Vec<File>,
    unified: Option<OwnedFd>,
}

impl Entrance {
    /// Adds the cgroup of a directory; of two on version 2 the later one counts.
    pub fn add(&mut self, dir: &Path) -> Result<()> {
        let doing = || format!("opening the cgroup {}", dir.display());
        let tasks = dir.join("tasks");
        if tasks.exists() {
            self.tasks.push(OpenOptions::new().write(true).open(tasks).or_fault(doing())?);
        } else {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.unified = Some(rustix::fs::open(dir, flags, Mode::empty()).or_fault(doing())?);
        }
        Ok(())
    }

    /// The directory of version 2, in which the process is to be born.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// What the process, which has one thread, does to be in those of version 1.
    pub fn enter(&self) -> Result<()> {
        self.tasks.iter().try_for_each(|tasks| {
            rustix::io::write(tasks, b"0").map(drop).or_fault("entering cgroups")
        })
    }
}

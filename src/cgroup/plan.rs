//! What must be written before an instance's first process joins its cgroup.
//!
//! A plan is plain data: the monitor keeps it and applies it again when the
//! guest reboots, because the runtime's `delete` takes the cgroup away. It is
//! linked into the monitor, so it needs nothing but the standard library.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{OrFault, Result};

/// Steps, in order. Applying them twice is the same as applying them once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step of a [`CgroupPlan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Makes a directory, unless it is there.
    MakeDir {
        /// The directory; its parent must exist.
        path: PathBuf,
        /// User and group that own it; `None` leaves it root's.
        owner: Option<(u32, u32)>,
    },
    /// Writes a value into a file of the kernel's.
    Write {
        /// The file; it is never created.
        path: PathBuf,
        /// What to write, in one `write`.
        value: String,
        /// Whether failing is fine.
        optional: bool,
    },
    /// Gives a file away.
    Chown {
        /// The file.
        path: PathBuf,
        /// New user.
        uid: u32,
        /// New group.
        gid: u32,
        /// Whether failing is fine.
        optional: bool,
    },
}

impl CgroupPlan {
    /// Applies every step; the first that fails ends it.
    pub fn apply(&self) -> Result<()> {
        self.steps.iter().try_for_each(Step::apply)
    }
}

impl Step {
    /// A write that must succeed.
    pub fn write(path: impl Into<PathBuf>, value: impl ToString) -> Step {
        Step::Write { path: path.into(), value: value.to_string(), optional: false }
    }

    /// A write that may fail.
    pub fn try_write(path: impl Into<PathBuf>, value: impl ToString) -> Step {
        Step::Write { path: path.into(), value: value.to_string(), optional: true }
    }

    /// Applies it; a failure names the path and the value.
    pub fn apply(&self) -> Result<()> {
        let done = self.run();
        match self {
            Step::MakeDir { path, .. } => {
                done.or_fault(format_args!("making the cgroup {}", path.display()))
            }
            Step::Write { path, value, .. } => {
                done.or_fault(format_args!("writing {value:?} to {}", path.display()))
            }
            Step::Chown { path, uid, .. } => {
                done.or_fault(format_args!("giving {} to user {uid}", path.display()))
            }
        }
    }

    /// Applies it, with the kernel's own error.
    pub(super) fn run(&self) -> io::Result<()> {
        match self {
            Step::MakeDir { path, owner } => make_dir(path, *owner),
            Step::Write { path, value, optional } => allow(*optional, write(path, value)),
            Step::Chown { path, uid, gid, optional } => {
                allow(*optional, chown(path, Some(*uid), Some(*gid)))
            }
        }
    }
}

fn make_dir(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made?,
    }
    match owner {
        Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

fn allow(optional: bool, done: io::Result<()>) -> io::Result<()> {
    if optional { Ok(()) } else { done }
}

/// Writes to an existing file, at once, as the kernel's files want it.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads a file of the kernel's, without the newline at its end.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = fs::read_to_string(path)?;
    text.truncate(text.trim_end().len());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applies_twice_and_survives_json() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("g");
        let file = dir.path().join("memory.max");
        fs::write(&file, "max").unwrap();
        let plan = CgroupPlan {
            steps: vec![
                Step::MakeDir { path: group.clone(), owner: None },
                Step::write(&file, 4096),
                Step::try_write(group.join("absent"), 1),
            ],
        };
        let plan: CgroupPlan =
            serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        plan.apply().unwrap();
        plan.apply().unwrap();
        assert!(group.is_dir());
        assert_eq!(read(&file).unwrap(), "4096");
    }

    #[test]
    fn a_write_never_creates_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pids.max");
        let fault = Step::write(&path, 7).apply().unwrap_err();
        assert!(fault.detail.contains("pids.max"), "{fault}");
        assert!(!path.exists());
    }
}

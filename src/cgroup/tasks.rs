//! An instance's processes as a whole: freeze, thaw, kill.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::plan::{read, write};
use super::{Place, Version, tree};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::fuse;
use crate::sys::ids::IdBlock;

/// How long a freeze may take. A task in an uninterruptible wait cannot freeze.
const FREEZE_WAIT: Duration = Duration::from_secs(10);
/// How long killed processes may wait for a FUSE file system of their own.
const FUSE_WAIT: Duration = Duration::from_millis(200);
/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to let an empty cgroup go.
pub(super) const REMOVE_WAIT: Duration = Duration::from_secs(5);

/// Freezes every process of a freezer's cgroup; on failure none stays frozen.
pub(super) fn freeze(place: &Place) -> Result<()> {
    set_frozen(place, true).or_fault("freezing the instance")?;
    let mut tries = 0;
    let settled = poll(FREEZE_WAIT, || {
        tries += 1;
        if place.version == Version::V1 && tries % 20 == 0 {
            // A task that forked while freezing can keep version 1 in FREEZING
            // for ever; a short thaw lets it come to a place where it can stop.
            set_frozen(place, false)?;
            set_frozen(place, true)?;
        }
        is_frozen(place)
    });
    let failure = match settled {
        Ok(true) => return Ok(()),
        Ok(false) => Fault::new(
            FaultKind::Timeout,
            format!(
                "the instance did not freeze within {} seconds: a process waits for a device; it runs on",
                FREEZE_WAIT.as_secs()
            ),
        ),
        Err(e) => Fault::internal("freezing the instance", e),
    };
    let _ = set_frozen(place, false);
    Err(failure)
}

/// Lets them run again; an absent cgroup has nothing frozen.
pub(super) fn thaw(place: &Place) -> Result<()> {
    match set_frozen(place, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.or_fault("thawing the instance"),
    }
}

fn set_frozen(place: &Place, frozen: bool) -> io::Result<()> {
    match (place.version, frozen) {
        (Version::V1, true) => write(&place.path.join("freezer.state"), "FROZEN"),
        (Version::V1, false) => write(&place.path.join("freezer.state"), "THAWED"),
        (Version::V2, true) => write(&place.path.join("cgroup.freeze"), "1"),
        (Version::V2, false) => write(&place.path.join("cgroup.freeze"), "0"),
    }
}

/// Whether every process is frozen.
pub(super) fn is_frozen(place: &Place) -> io::Result<bool> {
    Ok(match place.version {
        Version::V1 => read(&place.path.join("freezer.state"))? == "FROZEN",
        Version::V2 => {
            read(&place.path.join("cgroup.events"))?.lines().any(|line| line == "frozen 1")
        }
    })
}

/// Kills whatever is in `dirs`, the group's directories in all hierarchies,
/// until nothing is left.
///
/// All hierarchies, because a runtime that died half-way may have put its
/// process into some of them only. `freezer` stops a fork bomb from outrunning
/// the signals; frozen processes die when thawed. One that waits for a FUSE file system whose
/// server waits for it dies when the connection of `ids` is ended.
pub(super) fn kill_all(
    dirs: &[Place],
    freezer: Option<&Place>,
    ids: Option<IdBlock>,
) -> Result<()> {
    let begun = Instant::now();
    let mut freed = Ok(());
    let emptied = poll(KILL_WAIT, || {
        let pids = pids(dirs)?;
        if pids.is_empty() {
            return Ok(true);
        }
        for place in dirs.iter().filter(|p| p.version == Version::V2) {
            // Kernels before 5.14 lack the file; the signals below do the same.
            let _ = write(&place.path.join("cgroup.kill"), "1");
        }
        if let Some(place) = freezer {
            let _ = set_frozen(place, true);
        }
        kill(&pids, dirs)?;
        if let Some(place) = freezer {
            let _ = set_frozen(place, false);
        }
        if let Some(ids) = ids.filter(|_| begun.elapsed() > FUSE_WAIT) {
            // Most die without it.
            freed = fuse::abort(ids).map(drop);
        }
        Ok(false)
    });
    // An instance paused before must be thawed for its processes to die.
    if let Some(place) = freezer {
        let _ = set_frozen(place, false);
    }
    match emptied.or_fault("killing the instance's processes")? {
        true => Ok(()),
        false => freed.and(Err(Fault::new(
            FaultKind::Timeout,
            format!(
                "processes {:?} are still there {} seconds after SIGKILL: they wait for a device",
                pids(dirs).unwrap_or_default(),
                KILL_WAIT.as_secs()
            ),
        ))),
    }
}

/// Signals the processes of `pids` that are still in the group. A descriptor is
/// taken before the second look, so a process id used anew is never hit.
fn kill(listed: &BTreeSet<i32>, dirs: &[Place]) -> io::Result<()> {
    let held: Vec<_> = listed
        .iter()
        .filter_map(|&pid| Some((pid, pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?)))
        .collect();
    let still = pids(dirs)?;
    for (_, pidfd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
        // It may have ended by itself, which is all that is wanted.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    Ok(())
}

/// Process ids in any of the directories and below.
pub(super) fn pids(dirs: &[Place]) -> io::Result<BTreeSet<i32>> {
    let mut all = BTreeSet::new();
    for place in dirs {
        all.extend(tree::pids(&place.path)?);
    }
    Ok(all)
}

/// Process ids in one directory of a cgroup and below, as the host sees them.
pub fn pids_below(dir: &Path) -> Result<BTreeSet<i32>> {
    Ok(tree::pids(dir).or_fault("listing the instance's processes")?.into_iter().collect())
}

/// Removes a directory tree; the kernel may hold an empty cgroup for a moment.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let mut last = Ok(());
    let gone = poll(REMOVE_WAIT, || {
        last = tree::remove(dir);
        match &last {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
        }
    })?;
    if gone { Ok(()) } else { last }
}

/// Removes one directory of a cgroup and all below it; absence is success.
pub fn remove_dir(dir: &Path) -> Result<()> {
    remove(dir).or_fault(format_args!("removing the cgroup {}", dir.display()))
}

/// Asks until `done` or until `wait` has passed: at once, then ever less often.
fn poll(wait: Duration, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let end = Instant::now() + wait;
    let mut pause = Duration::from_micros(200);
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

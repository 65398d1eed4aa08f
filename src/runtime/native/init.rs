//! The first process, from its birth until it is the instance's program.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{fchdir, pivot_root};
use std::os::fd::{AsFd, OwnedFd};

use super::plan::Plan;
use super::process::{self, Program};
use super::rights::die_with_the_monitor;
use super::talk::{Line, Message};
use super::{dev, hide, mounts};
use crate::fault::{OrFault, Result};

/// Its life as berth's program; it ends with the program's begin.
pub(super) fn life(plan: &Plan, line: &Line) -> i32 {
    let program = match make(plan, line) {
        Ok(Some(program)) => program,
        // The monitor is gone.
        Ok(None) => return 1,
        Err(fault) => {
            line.fail(&fault);
            return 1;
        }
    };
    line.fail(&program.execute());
    1
}

fn make(plan: &Plan, line: &Line) -> Result<Option<Program>> {
    die_with_the_monitor()?;
    let config = &plan.bundle.config;
    if let Some(name) = &config.hostname {
        rustix::system::sethostname(name.as_bytes()).or_fault("setting the host name")?;
    }
    if let Some(name) = &config.domainname {
        rustix::system::setdomainname(name.as_bytes()).or_fault("setting the domain name")?;
    }
    let root = mounts::root(&config.root.path)?;
    for mount in &config.mounts {
        mounts::mount(root.as_fd(), mount, &plan.v1)?;
    }
    let dev = dev::filled(root.as_fd())?;
    let console = dev::console(root.as_fd(), dev.as_fd())?;
    process::set_sysctls(root.as_fd(), &config.linux.sysctl)?;
    hide::mask(root.as_fd(), dev.as_fd(), &config.linux.masked_paths)?;
    hide::make_read_only(root.as_fd(), &config.linux.readonly_paths)?;
    if config.root.readonly {
        let read_only = crate::sys::mount::Attributes::MOUNT_ATTR_RDONLY;
        let nothing = crate::sys::mount::Attributes::empty();
        crate::sys::mount::change(root.as_fd(), read_only, nothing, false)
            .or_fault("making the root file system read-only")?;
    }
    pivot(root)?;
    process::take_terminal(&console.peer, config.process.user.uid)?;
    let program = process::confine(&config.process, &plan.bundle.seccomp, &plan.id)?;
    // The change of ids has undone it.
    die_with_the_monitor()?;
    line.say(&Message::Ready, Some(console.master.as_fd()))?;
    drop(console);
    Ok(line.is_released().then_some(program))
}

/// Makes it the root directory of all, and lets go of the host's.
fn pivot(root: OwnedFd) -> Result<()> {
    let doing = "changing the root directory";
    fchdir(&root).or_fault(doing)?;
    // The old root comes on top of the new one, from where it is taken away.
    pivot_root(".", ".").or_fault(doing)?;
    unmount(".", UnmountFlags::DETACH).or_fault("letting go of the host's files")?;
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    fchdir(root.or_fault(doing)?).or_fault(doing)
}

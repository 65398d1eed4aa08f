//! Stopping: asking the init, ending what is left, taking the root down.

use crate::fault::Result;
use crate::instance::parts::Parts;
use crate::instance::record::{Desired, Record};
use crate::instance::teardown::Teardown;
use crate::monitor::{ExitAction, Monitor};
use crate::sys::process::ProcessId;
use crate::types::ImageConfig;

use super::destroy;

/// What the init is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To power off.
    PowerOff,
    /// To reboot.
    Reboot,
}

/// Asks the init with the signal that it takes for this.
pub fn ask(
    monitor: &Monitor,
    init: ProcessId,
    config: &ImageConfig,
    own_command: bool,
    ask: Ask,
) -> Result<()> {
    let signals = crate::runtime::init::signals(config, own_command);
    monitor.on_exit(match ask {
        Ask::PowerOff => ExitAction::End,
        Ask::Reboot => ExitAction::Restart,
    })?;
    init.signal(match ask {
        Ask::PowerOff => signals.power_off,
        Ask::Reboot => signals.reboot,
    })
}

/// Ends whatever of it runs and takes its root file system down; its disks,
/// namespaces and interfaces stay.
pub fn power_off(parts: &Parts, mut record: Record) -> Result<Record> {
    let mut teardown = Teardown::default();
    teardown.step("ending its processes", destroy::end_processes(parts, record.id));
    teardown.step("taking its file systems down", parts.unmount(&parts.paths(&record)));
    teardown.finish()?;
    record.frozen = None;
    Ok(record)
}

/// After its first process ended by itself: what is left is taken down and the
/// end recorded. `unasked`: nobody asked for it, so Nova's last wish is void.
pub fn settle(parts: &Parts, record: Record, unasked: bool) -> Result<Record> {
    let mut record = power_off(parts, record)?;
    if unasked {
        record.desired = Desired::Stopped;
        record.save(&parts.paths(&record))?;
    }
    Ok(record)
}

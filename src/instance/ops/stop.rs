//! Stopping: asking the init, ending what is left, taking the root down.

use crate::fault::{OrFault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::{Desired, Record};
use crate::instance::teardown::Teardown;
use crate::monitor::{ExitAction, ExitKind, ExitRecord, Monitor};
pub use crate::runtime::init::Ask;
use crate::runtime::role::Role;
use crate::runtime::{asking, init};
use crate::sys::process::ProcessId;
use crate::types::{ExitStatus, InitKind};

use super::destroy;

/// Asks the init in the way that it takes for this. One that knows no
/// reboot is asked to stop, and the monitor starts it again. Who is logged in
/// is hung up.
pub fn ask(parts: &HostParts, monitor: &Monitor, record: &Record, ask: Ask) -> Result<()> {
    tell(monitor, record, ask)?;
    // systemd does so itself.
    if !matches!(record.boot().role(), Role::Application | Role::System(InitKind::Systemd)) {
        hang_up(parts, record, monitor.status()?.init);
    }
    Ok(())
}

fn tell(monitor: &Monitor, record: &Record, ask: Ask) -> Result<()> {
    let boot = record.boot();
    let role = boot.role();
    let way = init::asking(role, boot.config, ask)?;
    let action = match ask {
        Ask::PowerOff => ExitAction::End,
        Ask::Reboot => ExitAction::Restart,
    };
    monitor.on_exit(action)?;
    let init = monitor.status()?.init;
    if let Some(init) = init {
        match asking::leave(&way.notes, init, record.id_block) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The signal is left.
            Err(fault) => {
                tracing::warn!(instance = %record.id, fault = %fault.in_full(), "its init finds no note");
            }
        }
    }
    for signal in way.signals {
        let deaf =
            role == Role::Application && init.is_some_and(|init| init.leaves_to_kernel(signal));
        // To the first process of a pid namespace the kernel does not deliver a
        // signal that has no handler (pid_namespaces(7)). Of any other process such
        // a signal is the end, and an application knows no difference.
        monitor.signal(if deaf { libc::SIGKILL } else { signal })?;
    }
    Ok(())
}

/// Hangs up what sits at a terminal and ignores SIGTERM: interactive shells. Scripts that stop a
/// machine ask all that is left by SIGTERM and then wait for it, Debian's sendsigs for ten seconds;
/// of a machine the terminals go, which ends shells.
fn hang_up(parts: &HostParts, record: &Record, init: Option<ProcessId>) {
    let group = parts.group(record);
    let is_shell = |process: &ProcessId| {
        Some(*process) != init && process.is_at_terminal() && process.ignores(libc::SIGTERM)
    };
    let hung_up = group.pids().and_then(|found| {
        let found: Vec<_> = found.into_iter().filter_map(ProcessId::of).filter(is_shell).collect();
        // Whose number was another's by then is in the group no more.
        let still = group.pids()?;
        let mut shells = found.iter().filter(|shell| still.contains(&shell.pid));
        let doing = "hanging up who is logged in";
        shells.try_for_each(|shell| shell.signal(libc::SIGHUP).map(drop).or_fault(doing))
    });
    // It only takes longer.
    if let Err(fault) = hung_up {
        tracing::warn!(instance = %record.id, fault = %fault.in_full(), "hanging up who is logged in");
    }
}

/// Ends whatever of it runs and takes its root file system down; its disks,
/// namespaces and interfaces stay.
pub fn power_off(parts: &HostParts, record: Record) -> Result<Record> {
    let ended = destroy::end_processes(parts, record.id);
    take_down(parts, record, ended)
}

/// The rest of [`power_off`], after [`destroy::end_processes`].
pub fn take_down(parts: &HostParts, record: Record, ended: Result<()>) -> Result<Record> {
    let mut teardown = Teardown::default();
    teardown.step("ending its processes", ended);
    teardown.step("taking its file systems down", parts.unmount(&parts.paths(&record)));
    teardown.into_result()?;
    silence(parts, &record);
    Ok(record.powered_off())
}

/// A machine that is off answers nobody, but its addresses live on in its network
/// namespace, where the kernel would. A start ends this.
fn silence(parts: &HostParts, record: &Record) {
    for vif in &record.definition.vifs {
        if let Err(fault) = parts.network.silence(vif) {
            tracing::warn!(instance = %record.id, vif = %vif.devname, fault = %fault.in_full(), "silencing it");
        }
    }
}

/// After its first process ended by itself: what is left is taken down and the
/// end recorded. `unasked`: nobody asked for it, so Nova's last wish is void.
pub fn clean_up_after_end(
    parts: &HostParts,
    record: Record,
    ended: Result<()>,
    unasked: bool,
) -> Result<Record> {
    let mut record = take_down(parts, record, ended)?;
    if unasked {
        record.desired = Desired::Stopped;
        record.save(&parts.paths(&record))?;
    }
    Ok(record)
}

/// The exit status that clients see. The kernel ends the first process with a
/// signal when the instance powers off or reboots: that is no crash, nor is
/// an end that was asked for.
pub fn status(exit: ExitRecord) -> ExitStatus {
    match exit.kind {
        _ if exit.asked => ExitStatus { code: Some(0), signal: None, ..exit.status },
        ExitKind::PowerOff | ExitKind::Reboot => {
            ExitStatus { code: Some(0), signal: None, ..exit.status }
        }
        ExitKind::Exited | ExitKind::Killed | ExitKind::RestartFailed => exit.status,
    }
}

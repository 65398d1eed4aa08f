//! What a killed monitor leaves at work: calls of a runtime program, helpers of the native one's
//! `exec`. And monitors that nobody has heard of.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use uuid::Uuid;

use crate::fault::Result;
use crate::store::atomic;
use crate::store::layout::{InstanceLayout, Layout};
use crate::sys::process::{ProcessId, parent_of};

/// Kills the recorded monitor, if it lives, and calls of the runtime program or
/// `berth-monitor exec` for this instance. A monitor that ended in good order left no record, and
/// costs no look at the host's processes.
pub fn end_strays(layout: &InstanceLayout, id: &str, runtime_root: &Path) -> Result<()> {
    let Ok(Some(monitor)) = atomic::read_json::<ProcessId>(&layout.monitor_pid()) else {
        return Ok(());
    };
    monitor.end()?;
    for call in calls(id, runtime_root) {
        call.end()?;
    }
    atomic::remove_file(&layout.monitor_pid())?;
    atomic::remove_file(&layout.monitor_socket())
}

/// Kills monitors that the last service had just begun to launch: they have not
/// written down who they are, and would take the instance from its next monitor.
/// To be called before any monitor is launched.
pub fn end_unrecorded(layout: &Layout) -> Result<()> {
    for process in processes() {
        let Some(id) = launched_for(process.pid, layout) else { continue };
        let recorded = atomic::read_json::<ProcessId>(&layout.instance(id).monitor_pid());
        // What a monitor is making has its arguments until it executes the instance's program.
        let is_of = |monitor: ProcessId| {
            let parent = || parent_of(process.pid).map(u32::cast_signed);
            monitor == process || monitor.is_alive() && parent() == Some(monitor.pid)
        };
        if !recorded.ok().flatten().is_some_and(is_of) {
            process.end()?;
        }
    }
    Ok(())
}

/// The instance whose specification is the process's first argument.
fn launched_for(pid: i32, layout: &Layout) -> Option<Uuid> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let argument = Path::new(OsStr::from_bytes(line.split(|byte| *byte == 0).nth(1)?));
    let below = argument.strip_prefix(layout.run_instances()).ok()?;
    let id = Uuid::parse_str(below.parent()?.to_str()?).ok()?;
    (argument == layout.instance(id).monitor_spec()).then_some(id)
}

/// Processes whose arguments name both the runtime's state directory, which
/// is this service's alone, and the instance.
fn calls(id: &str, runtime_root: &Path) -> Vec<ProcessId> {
    let root = runtime_root.as_os_str().as_bytes();
    let is_call = |process: &ProcessId| {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let has = |wanted: &[u8]| line.split(|byte| *byte == 0).any(|word| word == wanted);
        has(root) && has(id.as_bytes())
    };
    processes().filter(is_call).collect()
}

/// All processes of the host that live.
fn processes() -> impl Iterator<Item = ProcessId> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| ProcessId::of(entry.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_monitor_that_has_not_said_who_it_is_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
        let start = |id: Uuid| {
            let spec = layout.instance(id).monitor_spec();
            fs::create_dir_all(spec.parent().unwrap()).unwrap();
            // The one in parentheses has the same arguments.
            fs::write(&spec, "(read x; true); true").unwrap();
            Command::new("sh").arg(spec).stdin(Stdio::piped()).spawn().unwrap()
        };
        let mut recorded = start(Uuid::from_u128(1));
        let mut unrecorded = start(Uuid::from_u128(2));
        let own = loop {
            let process = ProcessId::of(recorded.id().cast_signed()).unwrap();
            if launched_for(process.pid, &layout).is_some() {
                break process;
            }
        };
        atomic::write_json(&layout.instance(Uuid::from_u128(1)).monitor_pid(), &own).unwrap();
        while launched_for(unrecorded.id().cast_signed(), &layout).is_none() {}
        let made = |parent: u32| {
            let all = || processes().filter(|p| launched_for(p.pid, &layout).is_some());
            loop {
                if let Some(found) = all().find(|p| parent_of(p.pid) == Some(parent)) {
                    break found;
                }
            }
        };
        let (kept, orphan) = (made(recorded.id()), made(unrecorded.id()));
        end_unrecorded(&layout).unwrap();
        assert!(unrecorded.try_wait().unwrap().is_some());
        assert!(!orphan.is_alive());
        assert!(recorded.try_wait().unwrap().is_none());
        assert!(kept.is_alive(), "what the monitor is making is no other monitor");
        // Whose monitor has ended is nobody's.
        let _input = recorded.stdin.take();
        recorded.kill().unwrap();
        recorded.wait().unwrap();
        end_unrecorded(&layout).unwrap();
        assert!(!kept.is_alive());
    }
}

//! What a killed monitor leaves at work: the runtime program it had called.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::fault::{OrFault, Result};
use crate::store::atomic;
use crate::store::layout::InstanceLayout;
use crate::sys::process::ProcessId;

/// A killed process is gone within moments, unless the kernel is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills the recorded monitor, if it lives, and calls of the runtime program
/// for this instance. A monitor that ended in good order left no record, and
/// costs no look at the host's processes.
pub fn end_strays(layout: &InstanceLayout, id: &str, runtime_root: &Path) -> Result<()> {
    let Ok(Some(monitor)) = atomic::read_json::<ProcessId>(&layout.monitor_pid()) else {
        return Ok(());
    };
    end(monitor)?;
    for call in calls(id, runtime_root) {
        end(call)?;
    }
    atomic::remove_file(&layout.monitor_pid())?;
    atomic::remove_file(&layout.monitor_socket())
}

fn end(process: ProcessId) -> Result<()> {
    let doing = format!("killing process {}", process.pid);
    let Some(pidfd) = process.open().or_fault(&doing)? else { return Ok(()) };
    pidfd.signal(libc::SIGKILL).or_fault(&doing)?;
    pidfd.wait(PATIENCE).or_fault(&doing).map(drop)
}

/// Processes whose arguments name both the runtime's state directory, which
/// is this service's alone, and the instance.
fn calls(id: &str, runtime_root: &Path) -> Vec<ProcessId> {
    let root = runtime_root.as_os_str().as_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let has = |wanted: &[u8]| line.split(|byte| *byte == 0).any(|word| word == wanted);
            has(root) && has(id.as_bytes())
        })
        .filter_map(ProcessId::of)
        .collect()
}

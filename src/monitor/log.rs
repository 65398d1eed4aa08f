//! The monitor's diagnostics, on its standard error: `monitor.log`.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bound of the diagnostics, bytes; beyond it they begin anew.
const LOG_BYTES: u64 = 64 * 1024;

/// A line of diagnostics, bounded.
pub(super) fn log(what: impl std::fmt::Display) {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let text = format!("{} {what}\n", chrono::Utc::now().format("%FT%TZ"));
    let before = WRITTEN.fetch_add(text.len() as u64, Ordering::Relaxed);
    if before + text.len() as u64 > LOG_BYTES {
        // The file is opened for appending, so this begins it anew.
        let _ = rustix::fs::ftruncate(std::io::stderr(), 0);
        WRITTEN.store(text.len() as u64, Ordering::Relaxed);
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

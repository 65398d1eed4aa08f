//! What a check tries and cannot do itself.

use std::path::Path;

use crate::fault::Result;

/// What is tried by other parts of berth, because only they know how.
pub struct Trials<'a> {
    /// Mounts overlayfs on an idmapped layer in a place of its own, sees that
    /// it is writable, and cleans up.
    pub overlay: &'a dyn Fn() -> Result<()>,
    /// Tries a runtime program here: its version, or why it cannot be used.
    /// [`runtime_trial`](super::runtime_trial) is a light one.
    pub runtime: &'a dyn Fn(&Path) -> Result<String>,
    /// Tries the native runtime here: what it is, or why it cannot be used.
    pub native: &'a dyn Fn() -> Result<String>,
}

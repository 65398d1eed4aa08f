//! An instance's console: what it wrote, kept within bounds.
//!
//! [`log::ConsoleLog`] is the monitor's side, [`read`] the service's. The first
//! 64 KiB are kept for ever, for that is where a boot tells what went wrong;
//! after them come the latest bytes, in two parts of which the older is
//! dropped when the newer is full.

pub mod log;

pub use log::{ConsoleFiles, ConsoleLog, read};

//! The monitor: one small process beside every running instance.
//!
//! It has the runtime create the instance, or does that itself where it is the
//! native one, holds the console's master, keeps the console's log, reaps the
//! first process, starts it again when the guest reboots, and writes down how it
//! ended. It is a process of its own so that the service can stop, crash and be
//! replaced while instances run.
//!
//! * [`client`] is the service's side: [`launch`] and [`Monitor`].
//! * [`program`] is the other, what `berth-monitor` runs.
//! * [`protocol`] is what they say to each other.

pub mod client;
mod container;
mod log;
mod memory;
mod network;
mod peer;
pub mod program;
pub mod protocol;
mod serve;
mod spec;
mod strays;
mod throttle;

pub use client::{ConsoleStream, Monitor, launch};
pub use protocol::{ExitAction, ExitKind, ExitRecord, Message, MonitorStatus, Phase};
pub use spec::{MonitorSpec, ViewSpec, ids_of, launched_by};
pub use strays::{end_strays, end_unrecorded};

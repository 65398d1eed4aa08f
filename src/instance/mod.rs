//! Instances: one actor each, which alone changes it, in the order of its queue.
//!
//! [`manager`] finds the instance, [`handle`] queues the job, [`actor`] admits
//! it ([`state`]) and runs the verb ([`ops`]) on the host's [`host_parts`]; the
//! durable [`record`] says what was asked, [`live`] what its monitor tells.

pub mod action;
pub mod actor;
pub mod allocations;
pub mod event;
pub mod exec;
pub mod handle;
pub mod host_parts;
pub mod live;
pub mod manager;
pub mod operation;
pub mod ops;
pub mod record;
pub mod state;
pub mod stats;
pub mod teardown;
pub mod validate;

pub use manager::Manager;

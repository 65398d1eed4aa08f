//! Instances: one actor each, which alone changes it, in the order of its queue.
//!
//! [`manager`] finds the instance, [`handle`] queues the job, [`actor`] admits
//! it ([`state`]) and runs the verb ([`ops`]) on the host's [`parts`]; the
//! durable [`record`] says what was asked, [`live`] what its monitor tells.

pub mod action;
pub mod actor;
pub mod event;
pub mod exec;
pub mod handle;
pub mod live;
pub mod manager;
pub mod operation;
pub mod ops;
pub mod parts;
pub mod record;
pub mod state;
pub mod stats;
pub mod teardown;
pub mod validate;

pub use manager::Manager;

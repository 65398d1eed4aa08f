//! Instances: one actor each, which alone changes it, in the order of its queue.
//!
//! The [`manager`], which the layers above know as [`backend`], takes a
//! request; the [`registry`] finds the instance, [`handle`] queues the job,
//! [`actor`] admits it ([`admission`], [`state`]) and runs the verb ([`ops`]) on the host's
//! parts ([`host_parts`]), on CPUs of the [`placement`]. The durable [`record`] says what was asked, [`live`]
//! what its monitor tells. [`recovery`] makes actors of records when the
//! service starts; [`image_jobs`] is what needs no actor. [`arrivals`] become instances
//! when another host gives them away, and are [`coming`] until then; what goes along is an
//! [`export`], and what the records say of it is in [`moved`].
//! [`lxcfs_watch`] gives instances back what they see by lxcfs, [`disk_watch`] room to remove files
//! by on a full disk.

pub mod action;
pub mod actor;
pub mod admission;
pub mod allocations;
pub mod arrivals;
pub mod backend;
pub mod coming;
pub mod disk_watch;
pub mod event;
pub mod exec;
pub mod export;
pub mod handle;
pub mod host_parts;
pub mod host_report;
pub mod image_jobs;
pub mod live;
pub mod lxcfs_watch;
pub mod manager;
pub mod moved;
pub mod operation;
pub mod ops;
pub mod placement;
pub mod record;
pub mod recovery;
pub mod registry;
pub mod shared;
pub mod state;
pub mod stats;
pub mod teardown;
pub mod validate;

pub use manager::Manager;

//! Instances: their manager, their operations, their events.

pub mod event;
pub mod operation;

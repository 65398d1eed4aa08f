//! The way of an instance from one host's service to another's, over mutual TLS.
//!
//! ```text
//! source                                              destination
//!   PUT /v1/incoming/{move}        the record ──────► ids, CPUs and room are reserved
//!   PUT …/layers/{digest}          [`layer`] ───────► layers that it lacks
//!   PUT …/files/{file}             [`chunks`] ──────► [`receive`]: its disks
//!   POST …/commit                          ─────────► its record: from here on it is the
//!                                                     destination's, whatever becomes of the answer
//!   POST …/acknowledge                     ─────────► the source knows it
//!   DELETE /v1/incoming/{move}             ─────────► ends the move, or says that it was committed
//! ```
//!
//! [`push`] is the source's side, over connections of [`peer`]. What it means for the
//! instance, and what is durable, is the business of [`crate::instance`].

pub mod chunks;
pub mod layer;
pub mod peer;
pub mod push;
pub mod receive;
pub mod throttle;

//! berth: containers as OpenStack Nova instances, on one compute host.
//!
//! The folders are the flow, and arrows go one way:
//!
//! ```text
//! server → api → instance → { image rootfs network cgroup runtime monitor console host } → store, sys → kernel
//! ```
//!
//! * [`types`] are the values that travel: on the wire, into the durable
//!   records, between modules. They have no behaviour beyond checking themselves.
//! * Nothing below [`instance`] knows [`api`]; nothing but [`sys`] has `unsafe`;
//!   nothing but [`store`] names a path or writes a durable file.
//! * [`fault`] is the closed set of errors and the only table to HTTP statuses.

pub mod api;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod console;
pub mod fault;
pub mod host;
pub mod image;
pub mod instance;
pub mod monitor;
pub mod network;
pub mod openstack;
pub mod rootfs;
pub mod runtime;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod types;

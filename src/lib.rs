//! berth: containers as OpenStack Nova instances, on one compute host.
//!
//! The folders are the flow, and arrows go one way:
//!
//! ```text
//! server → api, remote_console → instance → { image rootfs volume network cgroup runtime monitor console migration host } → store, sys → kernel
//! ```
//!
//! * [`types`] are the values that travel: on the wire, into the durable
//!   records, between modules. They have no behaviour beyond checking themselves.
//! * Nothing below [`instance`] knows [`api`]; nothing but [`sys`] has `unsafe`;
//!   nothing but [`store`] names a path or writes a durable file.
//! * [`fault`] is the closed set of errors and the only table to HTTP statuses.

#[cfg(feature = "service")]
pub mod api;
#[cfg(feature = "service")]
pub mod cgroup;
#[cfg(feature = "service")]
pub mod cli;
#[cfg(feature = "service")]
pub mod config;
#[cfg(feature = "service")]
pub mod console;
pub mod fault;
#[cfg(feature = "service")]
pub mod host;
pub mod image;
#[cfg(feature = "service")]
pub mod instance;
#[cfg(feature = "service")]
pub mod migration;
#[cfg(feature = "service")]
pub mod monitor;
#[cfg(feature = "service")]
pub mod network;
#[cfg(feature = "service")]
pub mod openstack;
#[cfg(feature = "service")]
pub mod remote_console;
#[cfg(feature = "service")]
pub mod rootfs;
#[cfg(feature = "service")]
pub mod runtime;
#[cfg(feature = "service")]
pub mod server;
#[cfg(feature = "service")]
pub mod snapshot;
#[cfg(feature = "service")]
pub mod store;
pub mod sys;
#[cfg(feature = "service")]
pub mod telemetry;
#[cfg(feature = "service")]
pub mod tls;
pub mod types;
#[cfg(feature = "service")]
pub mod volume;

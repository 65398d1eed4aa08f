//! The compute host: what it has, what it uses, whether instances can work on it.
//!
//! * [`inventory`] is what Nova reports to Placement;
//! * [`stats`] is what the host uses now;
//! * [`cpus`] shares the CPUs out, [`balance`] among instances that share them;
//! * [`check`] probes what instances need and names the remedy for what is missing.

pub mod balance;
pub mod check;
pub mod cpus;
mod facts;
mod inventory;
mod stats;

pub use check::{Trials, probe};
pub use cpus::{CpuSets, cpu_nodes, cpu_sets, pick_dedicated};
pub use facts::{architecture, hypervisor_hostname, kernel_release, uptime};
pub use inventory::{Usage, inventory};
pub use stats::stats;

//! OpenStack's services, as far as the service on the host speaks to them itself.

mod access;
pub mod describe;
mod failure;
pub mod glance;
mod keystone;
pub mod upload;

pub use access::Access;

use crate::config;
use crate::fault::Result;

/// Checks what the configuration names for speaking to Glance.
pub fn verify(config: &config::Images) -> Result<()> {
    access::authorities(config).map(|_| ())
}

//! OpenStack's services, as far as the service on the host speaks to them itself.

mod access;
pub mod glance;
mod keystone;
pub mod upload;

pub use access::Access;

//! OpenStack's services, as far as the service on the host speaks to them itself.

pub mod glance;

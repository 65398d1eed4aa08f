//! What is done on the host, one file per verb, and what several do
//! ([`flavor_change`]). All of it blocks; the actor calls it on blocking
//! threads, one call at a time for an instance.

pub mod cold_resize;
pub mod create;
pub mod destroy;
pub mod dump;
pub mod flavor_change;
pub mod freeze;
pub mod interface;
pub mod migrate;
pub mod password;
pub mod quiesce;
pub mod recover;
pub mod rescue;
pub mod resize;
pub mod snapshot;
pub mod start;
pub mod stop;
pub mod volume;

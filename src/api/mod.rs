//! The HTTP API, `/v1`.

pub mod backend;

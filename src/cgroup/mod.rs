//! (placeholder of the skeleton)
pub mod plan;

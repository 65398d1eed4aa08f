//! What the API's tests share. Each of them uses a part.
#![allow(dead_code)]

pub mod certificates;
pub mod fake;

//! The three ways a check ends.

use crate::types::{Check, CheckStatus};

pub(super) fn ok(name: &str, found: impl Into<String>) -> Check {
    Check { name: name.into(), status: CheckStatus::Ok, found: found.into(), remedy: None }
}

pub(super) fn warning(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    let remedy = Some(remedy.into());
    Check { name: name.into(), status: CheckStatus::Warning, found: found.into(), remedy }
}

pub(super) fn failed(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    let remedy = Some(remedy.into());
    Check { name: name.into(), status: CheckStatus::Failed, found: found.into(), remedy }
}

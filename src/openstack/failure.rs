//! What is told of a service that does not answer as it should: never an address.

use crate::fault::{Fault, FaultKind};

/// What went wrong, with its causes and without the address.
pub(super) fn without_url(error: reqwest::Error) -> String {
    use std::error::Error;
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The fault when Glance does not do its part.
pub(super) fn unavailable(why: impl Into<String>) -> Fault {
    Fault::new(FaultKind::GlanceUnavailable, format!("Glance: {}", why.into()))
}

//! What the service says about itself: log lines and metrics.
//!
//! Log lines go to standard error, where systemd's journal takes them. Every
//! line of a request carries its id. Nothing secret is ever given to them:
//! types that hold tokens do not print them.

mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::fault::{Fault, Result};

pub use metrics::{Metrics, Present, metrics};

/// Starts the log for this process; `level` is a tracing filter such as
/// `info` or `info,berth=debug`.
pub fn init(format: LogFormat, level: &str) -> Result<()> {
    let filter = filter(level)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would tell them on standard error too, and panic when that is a file on a full disk.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|e| Fault::internal("starting the log", e))
}

/// Checks a level as [`init`] would take it.
pub fn verify(level: &str) -> Result<()> {
    filter(level).map(|_| ())
}

fn filter(level: &str) -> Result<EnvFilter> {
    EnvFilter::builder().parse(level).map_err(|e| {
        Fault::invalid("service.log_level", format!("{e}; take e.g. \"info\" or \"berth=debug\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_names_the_key() {
        assert!(filter("info,berth=debug").is_ok());
        let fault = filter("berth=loudly").unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("service.log_level"));
    }
}

//! The `berth` program.

use std::process::ExitCode;
use std::sync::Arc;

use berth::api::backend::Backend;
use berth::cli::{self, Parts};
use berth::config::Config;
use berth::fault::{Fault, FaultKind, Result};
use berth::types::Check;

fn main() -> ExitCode {
    cli::main(Parts { open, probe, unpack })
}

fn open(_: Config) -> Result<Arc<dyn Backend>> {
    Err(Fault::new(FaultKind::HostUnsupported, "the instance manager is not linked yet"))
}

fn probe(_: &Config) -> Vec<Check> {
    Vec::new()
}

fn unpack() -> ExitCode {
    ExitCode::FAILURE
}

//! The `berth` program.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use berth::cli::{self, ServiceHooks};
use berth::config::Config;
use berth::fault::{OrFault, Result};
use berth::image::jail;
use berth::instance::backend::Backend;
use berth::instance::{Manager, host_report};
use berth::rootfs::{reserve, rest};
use berth::types::Check;
use berth::volume;

/// What `serve` found before it opened the manager, which reports it.
static CHECKS: OnceLock<Vec<Check>> = OnceLock::new();

/// Threads that run actors and follow monitors; work on the host has its own.
const ACTOR_THREADS: usize = 2;

fn main() -> ExitCode {
    // Children first: they must not start anything of the service.
    let arguments = || std::env::args_os().skip(1);
    let child = jail::main(arguments())
        .or_else(|| rest::main(arguments()))
        .or_else(|| reserve::main(arguments()))
        .or_else(|| volume::work::main(arguments()));
    if let Some(code) = child {
        return code;
    }
    berth::sys::process::share_heaps();
    cli::main(ServiceHooks { open, probe })
}

fn open(config: Config) -> Result<Arc<dyn Backend>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ACTOR_THREADS)
        .thread_name("berth-actor")
        .enable_all()
        .build()
        .or_fault("starting the actors' threads")?;
    // Actors live as long as the process.
    let runtime = Box::leak(Box::new(runtime));
    let _context = runtime.enter();
    let checks = CHECKS.get().cloned().unwrap_or_default();
    Ok(Arc::new(Manager::open(config, checks)?))
}

fn probe(config: &Config) -> Vec<Check> {
    let checks = host_report::probe(config);
    // Asked once in the life of the process.
    let _ = CHECKS.set(checks.clone());
    checks
}

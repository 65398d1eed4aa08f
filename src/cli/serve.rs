//! `berth serve` and `berth check`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::output::{self, Table};
use crate::api::CheckList;
use crate::config::Config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::backend::Backend;
use crate::openstack;
use crate::server::{self, Server};
use crate::telemetry;
use crate::types::{Check, CheckStatus};

/// What the command line needs of the modules below the API.
#[derive(Clone, Copy)]
pub struct ServiceHooks {
    /// Opens the instance manager.
    pub open: fn(Config) -> Result<Arc<dyn Backend>>,
    /// Probes the host.
    pub probe: fn(&Config) -> Vec<Check>,
}

/// How long the end waits for threads that a stop left at work.
const LAST_WORK: Duration = Duration::from_secs(5);

pub(super) fn serve(path: Option<&Path>, hooks: ServiceHooks) -> Result<()> {
    let config = load(path)?;
    telemetry::init(config.service.log_format, &config.service.log_level)?;
    refuse_unfit(&(hooks.probe)(&config))?;
    let system = actix_web::rt::System::new();
    let outcome = system.block_on(async {
        let stop = server::stop_signal()?;
        let server = Server::bind(&config)?;
        let open = hooks.open;
        // Blocking: it looks at every instance that it finds.
        let backend = actix_web::rt::task::spawn_blocking(move || open(config));
        let backend = backend.await.or_fault("opening the instance manager")??;
        server.run(backend, stop).await
    });
    // Work that the stop did not wait for must not hold the process for ever.
    let code = i32::from(outcome.is_err());
    std::thread::spawn(move || {
        std::thread::sleep(LAST_WORK);
        std::process::exit(code);
    });
    outcome
}

pub(super) fn check(
    path: Option<&Path>,
    probe: fn(&Config) -> Vec<Check>,
    json: bool,
) -> Result<()> {
    let config = load(path)?;
    verify(&config)?;
    let mut checks = probe(&config);
    checks.extend(path.map(|path| Check {
        name: "configuration".into(),
        status: CheckStatus::Ok,
        found: format!("{} is valid", path.display()),
        remedy: None,
    }));
    if json {
        output::json(&CheckList { checks: checks.clone() })?;
    } else {
        print_checks(&checks)?;
    }
    refuse_unfit(&checks)
}

/// What of the configuration shows only when it is used, before `serve` uses it.
fn verify(config: &Config) -> Result<()> {
    telemetry::verify(&config.service.log_level)?;
    server::verify(config)?;
    openstack::verify(&config.images)
}

/// Prints every probe, with the remedy for what is not fine.
pub(super) fn print_checks(checks: &[Check]) -> Result<()> {
    let mut table = Table::new(&["CHECK", "STATUS", "FOUND", "REMEDY"]);
    for check in checks {
        let remedy = check.remedy.clone().unwrap_or_default();
        table.row([check.name.clone(), word(check.status).into(), check.found.clone(), remedy]);
    }
    table.print()
}

fn word(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Ok => "ok",
        CheckStatus::Warning => "warning",
        CheckStatus::Failed => "FAILED",
    }
}

/// A service on which no instance could work does not start, and says why in
/// the words of `berth check`.
fn refuse_unfit(checks: &[Check]) -> Result<()> {
    let failed = checks.iter().filter(|check| check.status == CheckStatus::Failed);
    let words: Vec<String> = failed
        .map(|check| {
            let remedy = check.remedy.as_deref().unwrap_or("no remedy is known");
            format!("{}: {}; {remedy}", check.name, check.found)
        })
        .collect();
    if words.is_empty() {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::HostUnsupported,
        format!("instances cannot work on this host:\n  {}", words.join("\n  ")),
    ))
}

fn load(path: Option<&Path>) -> Result<Config> {
    path.map_or_else(|| Ok(Config::default()), Config::load)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: CheckStatus) -> Check {
        let remedy = Some("load the module".to_owned());
        Check { name: "overlayfs".into(), status, found: "nothing".into(), remedy }
    }

    #[test]
    fn only_a_failed_check_refuses_and_names_its_remedy() {
        refuse_unfit(&[check(CheckStatus::Ok), check(CheckStatus::Warning)]).unwrap();
        let fault = refuse_unfit(&[check(CheckStatus::Failed)]).unwrap_err();
        assert!(fault.detail.contains("overlayfs: nothing; load the module"), "{fault}");
    }
}

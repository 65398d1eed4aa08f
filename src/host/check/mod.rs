//! Can instances work on this host, and what to do if not.
//!
//! Whatever can be tried is tried, not guessed from a version. Each check says
//! what it found, and the remedy unless it is fine. `serve` refuses to start
//! when any has failed.

mod advisories;
mod cgroups;
mod ids;
mod kernel;
mod outcome;
mod programs;
mod resources;
mod trials;

use crate::config::Config;
use crate::types::Check;

pub use programs::{find_program, runtime_trial};
pub use trials::Trials;

/// Probes the host.
pub fn probe(config: &Config, trials: &Trials<'_>) -> Vec<Check> {
    let mut checks = kernel::checks(config, trials);
    checks.extend(cgroups::checks(config));
    checks.extend(programs::checks(config, trials));
    checks.extend(ids::checks(config));
    checks.extend(resources::checks(config));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, FaultKind};
    use crate::types::CheckStatus;

    #[test]
    fn every_check_that_is_not_fine_has_a_remedy_and_names_are_unique() {
        let trials = Trials {
            overlay: &|| Err(Fault::new(FaultKind::HostUnsupported, "no such mount")),
            runtime: &runtime_trial,
            native: &|| Ok("part of berth".into()),
        };
        let checks = probe(&Config::default(), &trials);
        for check in &checks {
            assert_eq!(check.remedy.is_none(), check.status == CheckStatus::Ok, "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
        let mut names: Vec<_> = checks.iter().map(|c| &c.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), checks.len());
        let overlay = checks.iter().find(|c| c.name == kernel::OVERLAY).unwrap();
        assert_eq!(overlay.status, CheckStatus::Failed);
        assert!(overlay.found.contains("no such mount"));
    }
}

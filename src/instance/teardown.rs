//! Taking things down: every step is tried, then every failure is reported.

use std::fmt::Display;

use crate::fault::{Fault, FaultKind, Result};

/// Collects what failed, so that one failure does not keep the rest on the host.
#[derive(Debug, Default)]
pub struct Teardown {
    failures: Vec<String>,
}

impl Teardown {
    /// Notes the outcome of one step.
    pub fn step(&mut self, what: impl Display, outcome: Result<()>) {
        if let Err(fault) = outcome {
            self.failures.push(format!("{what}: {}", fault.detail));
        }
    }

    /// One fault that names every failure, or success.
    pub fn into_result(self) -> Result<()> {
        if self.failures.is_empty() {
            Ok(())
        } else {
            Err(Fault::new(FaultKind::Internal, self.failures.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_in_the_fault() {
        let mut teardown = Teardown::default();
        teardown.step("unmounting", Err(Fault::internal("umount", "busy")));
        teardown.step("removing files", Ok(()));
        teardown.step("removing the cgroup", Err(Fault::internal("rmdir", "not empty")));
        let detail = teardown.into_result().unwrap_err().detail;
        assert!(detail.contains("busy") && detail.contains("not empty"), "{detail}");
        Teardown::default().into_result().unwrap();
    }
}

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

/// A fault after which what had been done was undone: it also tells if that,
/// too, failed.
pub fn undone(fault: Fault, undoing: &str, outcome: Result<()>) -> Fault {
    match outcome {
        Ok(()) => fault,
        Err(left) => fault.context(format_args!("(and {undoing}: {})", left.detail)),
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

    #[test]
    fn a_fault_tells_what_could_not_be_undone() {
        let fault = || Fault::new(FaultKind::RuntimeFailed, "no start");
        assert_eq!(undone(fault(), "ending it", Ok(())).detail, "no start");
        let both = undone(fault(), "ending it", Err(Fault::internal("kill", "busy")));
        assert_eq!(
            (both.kind, both.detail.starts_with("(and ending it: ")),
            (FaultKind::RuntimeFailed, true)
        );
        assert!(both.detail.ends_with("no start"), "{both}");
    }
}

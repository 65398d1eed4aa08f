//! The runtime that a service has.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cli::{CliRuntime, Said, run_to_end};
use super::native::Native;
use super::{Create, Created, Exec, Runtime};
use crate::fault::Result;

/// One of the two kinds. Written without its kind's name, as when there was one kind only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Chosen {
    /// berth's own.
    Native(Native),
    /// A program.
    Program(CliRuntime),
}

impl Chosen {
    /// Whether it enters all of an instance's cgroups, and leaves the limits in them as they are.
    pub fn is_native(&self) -> bool {
        matches!(self, Chosen::Native(_))
    }

    /// Runs a command inside a container to its end and gives what it said: its
    /// status and its first words. `input` is its standard input; a command
    /// that is not done with it after `limit` is ended.
    pub fn exec(&self, id: &str, exec: &Exec, input: &[u8], limit: Duration) -> Result<Said> {
        run_to_end(self.exec_command(id, exec)?, exec, input, limit)
    }

    fn as_runtime(&self) -> &dyn Runtime {
        match self {
            Chosen::Native(native) => native,
            Chosen::Program(program) => program,
        }
    }
}

impl Runtime for Chosen {
    fn create(&self, create: &Create<'_>) -> Result<Created> {
        self.as_runtime().create(create)
    }

    fn start(&self, created: &Created, id: &str, log: &Path) -> Result<()> {
        self.as_runtime().start(created, id, log)
    }

    fn delete(&self, id: &str, log: &Path) -> Result<()> {
        self.as_runtime().delete(id, log)
    }

    fn exec_command(&self, id: &str, exec: &Exec) -> Result<Command> {
        self.as_runtime().exec_command(id, exec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_version_wrote_is_read() {
        let earlier = r#"{"program": "/usr/bin/crun", "args": [], "root": "/run/berth/runtime"}"#;
        let read: Chosen = serde_json::from_str(earlier).unwrap();
        assert!(matches!(&read, Chosen::Program(program) if program.name() == "crun"));
        let native = Chosen::Native(Native { root: "/r".into(), monitor: "/m".into() });
        let text = serde_json::to_string(&native).unwrap();
        assert_eq!(serde_json::from_str::<Chosen>(&text).unwrap(), native);
    }
}

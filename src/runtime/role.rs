//! What an instance is: a machine's worth of services, or one program.

use std::path::Path;

use crate::types::{ImageConfig, InitKind};

/// Programs that, as the first word of a command, are an init.
const INITS: [&str; 2] = ["init", "systemd"];

/// What the instance is, which decides what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It runs an init program: a machine's worth of services.
    System(InitKind),
    /// It runs one program.
    Application,
}

impl Role {
    /// The role of an instance: an image that names a command runs that, one
    /// that does not boots its init; a command that is an init is one.
    pub fn of(image: &ImageConfig, command: Option<&[String]>) -> Role {
        let first = image.entrypoint.first().or(match command {
            Some(command) => command.first(),
            None => image.cmd.first(),
        });
        let is_init = match first {
            None => image.init.is_some(),
            Some(first) => Path::new(first)
                .file_name()
                .is_some_and(|name| INITS.iter().any(|init| name == *init)),
        };
        if is_init {
            Role::System(image.init.unwrap_or(InitKind::Other))
        } else {
            Role::Application
        }
    }

    /// Whether it runs an init program.
    pub fn is_system(self) -> bool {
        matches!(self, Role::System(_))
    }
}

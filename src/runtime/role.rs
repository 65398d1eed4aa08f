//! What an instance is: a machine's worth of services, or one program.

use crate::types::{ImageConfig, InitKind};

/// Names of the place at which an image's init is looked for first. `/init` is not one of them:
/// in images with a command it is an application's supervisor.
const INIT: [&str; 3] = ["/sbin/init", "/usr/sbin/init", "init"];
/// Names of systemd itself.
const SYSTEMD: [&str; 3] = ["/lib/systemd/systemd", "/usr/lib/systemd/systemd", "systemd"];

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
    /// that does not boots its init. A command that names the init which was
    /// found in the image boots it, too; a name alone makes no program an init.
    pub fn of(image: &ImageConfig, command: Option<&[String]>) -> Role {
        let first = image.entrypoint.first().or(match command {
            Some(command) => command.first(),
            None => image.cmd.first(),
        });
        match image.init {
            Some(kind) if first.is_none_or(|first| names(first, kind)) => Role::System(kind),
            _ => Role::Application,
        }
    }

    /// Whether it runs an init program.
    pub fn is_system(self) -> bool {
        matches!(self, Role::System(_))
    }
}

/// Whether the first word of a command names the image's init, which is of this kind.
fn names(first: &str, kind: InitKind) -> bool {
    INIT.contains(&first) || (kind == InitKind::Systemd && SYSTEMD.contains(&first))
}

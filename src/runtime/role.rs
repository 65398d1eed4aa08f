//! What an instance is: a machine's worth of services, or one program.

use crate::types::{ImageConfig, InitKind};

/// Names of the init, for images that were imported before their programs were written down.
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
    /// that does not boots its init. A command that starts a program which is known
    /// for an init boots it, too; a name makes no program an init.
    pub fn of(image: &ImageConfig, command: Option<&[String]>) -> Role {
        let mut words = image.entrypoint.iter().chain(command.unwrap_or(&image.cmd)).peekable();
        let Some(first) = words.peek().copied() else {
            return image.init.map_or(Role::Application, Role::System);
        };
        let (Some(boots), []) = (image.init, image.inits.as_slice()) else {
            let words: Vec<_> = words.collect();
            let starts = |command: &[String]| {
                command.len() <= words.len()
                    && command.iter().zip(&words).all(|(known, word)| is(known, word))
            };
            let known = |kind: InitKind| kind != InitKind::Other;
            let found = image.inits.iter().find(|init| known(init.kind) && starts(&init.command));
            return found.map_or(Role::Application, |init| Role::System(init.kind));
        };
        let names = INIT.contains(&first.as_str())
            || (boots == InitKind::Systemd && SYSTEMD.contains(&first.as_str()));
        if names { Role::System(boots) } else { Role::Application }
    }

    /// Whether it runs an init program.
    pub fn is_system(self) -> bool {
        matches!(self, Role::System(_))
    }
}

/// Whether a word of a command is this one, or finds the program of this path.
fn is(known: &str, word: &str) -> bool {
    known == word || known.rsplit_once("bin/").is_some_and(|(_, name)| name == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::InitProgram;

    #[test]
    fn a_command_boots_the_program_that_is_known_for_an_init() {
        let init = |words: &str, kind| InitProgram {
            command: words.split(' ').map(str::to_owned).collect(),
            kind,
        };
        let image = ImageConfig {
            init: Some(InitKind::Systemd),
            inits: vec![
                init("/usr/lib/systemd/systemd", InitKind::Systemd),
                init("/sbin/runit-init", InitKind::Runit),
                init("/bin/busybox init", InitKind::Busybox),
                init("/opt/init", InitKind::Other),
            ],
            ..ImageConfig::default()
        };
        for (words, role) in [
            ("/usr/lib/systemd/systemd --show-status=0", Role::System(InitKind::Systemd)),
            ("runit-init", Role::System(InitKind::Runit)),
            ("/bin/busybox init", Role::System(InitKind::Busybox)),
            ("/bin/busybox httpd", Role::Application),
            ("/bin/busybox", Role::Application),
            // Their names say nothing.
            ("/sbin/init", Role::Application),
            ("/init", Role::Application),
            ("systemd", Role::Application),
            ("/opt/init", Role::Application),
        ] {
            let command: Vec<_> = words.split(' ').map(str::to_owned).collect();
            assert_eq!(Role::of(&image, Some(&command)), role, "{words}");
        }
        assert_eq!(Role::of(&image, None), Role::System(InitKind::Systemd));
        let image = ImageConfig { init: None, ..image };
        assert_eq!(Role::of(&image, None), Role::Application);
    }
}

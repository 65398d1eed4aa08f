//! Finds the init programs of a root file system, and tells what they are by what they hold.
//!
//! A name makes no program an init, and what another file of the image says does not either:
//! `/init` is systemd in one image, an application's supervisor in another. Only a program at a
//! place where a kernel looks is one whatever it holds, of an image that names no command.

use std::path::PathBuf;

use super::stacked::{Found, StackedLayers};
use crate::fault::Result;
use crate::types::{ImageConfig, InitKind, InitProgram, Supervisor, SupervisorProgram};

/// Where the program is that boots: the kernel's choices, then systemd where its link was not
/// installed, then the initial ramdisk's convention.
pub const CANDIDATES: &[&str] = &[
    "/sbin/init",
    "/etc/init",
    "/bin/init",
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/init",
];
/// Names under which inits are installed beside another. Only what is known for one boots by them.
pub const NAMED: &[&str] = &[
    "/sbin/openrc-init",
    "/sbin/runit-init",
    "/sbin/finit",
    "/sbin/dinit",
    "/usr/bin/dinit",
    "/usr/sbin/init",
    "/usr/bin/init",
    "/usr/sbin/openrc-init",
    "/usr/sbin/runit-init",
    "/usr/bin/runit-init",
    "/usr/sbin/finit",
    "/usr/sbin/dinit",
    "/lib/runit/runit-init",
    "/usr/lib/runit/runit-init",
    "/etc/s6-linux-init/current/bin/init",
];
/// Where a command without a directory is looked for.
pub const PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// How much of a program is searched for the words that give it away.
const SEARCHED: u64 = 4 << 20;
/// Most programs that the scripts of a command are followed to, those that are not there among them.
const MAX_FOLLOWED: usize = 8;

/// What is known of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It boots a system.
    Init(InitKind),
    /// It watches over an application; at an init's place, over a system of this kind.
    Watcher(Supervisor, Option<InitKind>),
    /// It may be anything.
    Nothing,
}

/// Words in programs by which they are known. More telling ones first: others' programs
/// speak of inits, too.
const WORDS: &[(&[u8], Known)] = &[
    (b"BusyBox v", Known::Init(InitKind::Busybox)),
    (b"TINI_SUBREAPER", Known::Watcher(Supervisor::Tini, None)),
    (b"[dumb-init] ", Known::Watcher(Supervisor::DumbInit, None)),
    (b"catatonit", Known::Watcher(Supervisor::Catatonit, None)),
    (b"systemd.crash_chvt", Known::Init(InitKind::Systemd)),
    (b"OpenRC init version", Known::Init(InitKind::Openrc)),
    (b"openrc-init", Known::Init(InitKind::Openrc)),
    (b"/runit.stopit", Known::Init(InitKind::Runit)),
    (b"/etc/runit/stopit", Known::Init(InitKind::Runit)),
    (b"/etc/finit.conf", Known::Init(InitKind::Finit)),
    (b"dinit, an init with dependency management", Known::Init(InitKind::Dinit)),
    (b"dinit: init/service manager daemon", Known::Init(InitKind::Dinit)),
    (b"/etc/dinit/environment", Known::Init(InitKind::Dinit)),
    (b"INIT_VERSION=sysvinit", Known::Init(InitKind::Sysvinit)),
    (b"INIT: version", Known::Init(InitKind::Sysvinit)),
    (b"s6-linux-init", Known::Init(InitKind::S6)),
    (b".s6-svscan", Known::Watcher(Supervisor::S6, Some(InitKind::S6))),
];
/// The same of scripts, beside the programs that they become.
const SCRIPTS_WORDS: &[(&[u8], Known)] = &[
    (b"s6-overlay", Known::Watcher(Supervisor::S6, None)),
    (b"/etc/s6/init/", Known::Watcher(Supervisor::S6, None)),
    (b"s6-linux-init", Known::Init(InitKind::S6)),
    (b"s6-svscan", Known::Watcher(Supervisor::S6, Some(InitKind::S6))),
];

/// Fills in which inits an image has whose layers (lowest first) are these. The programs at their
/// places, or by its command, that watch over an application instead.
pub fn recognise(config: &mut ImageConfig, layers: &[PathBuf]) -> Result<Vec<SupervisorProgram>> {
    let image = Programs { layers: StackedLayers::new(layers)? };
    let mut places = Vec::new();
    for path in CANDIDATES.iter().chain(NAMED) {
        let command = vec![(*path).to_owned()];
        if let Some(known) = image.known(&command)? {
            places.push((command, known));
        }
    }
    let boots = places.iter().find_map(|(command, known)| {
        Some(InitProgram { command: command.clone(), kind: boots(&command[0], *known)? })
    });
    config.init = boots.as_ref().map(|program| program.kind);
    config.inits = boots.into_iter().collect();
    let command: Vec<&str> =
        config.entrypoint.iter().chain(&config.cmd).map(String::as_str).collect();
    let mut others = Vec::new();
    if let [first, rest @ ..] = command.as_slice() {
        let applet = rest.first().filter(|second| **second == "init");
        let with_applet = [first].into_iter().chain(applet).map(ToString::to_string).collect();
        for command in [with_applet, vec![(*first).to_owned()]] {
            if let Some(known) = image.known(&command)? {
                others.push((command, known));
            }
        }
    }
    let mut supervisors: Vec<SupervisorProgram> = Vec::new();
    for (command, known) in others.into_iter().chain(places) {
        if config.inits.iter().any(|program| program.command == command) {
            continue;
        }
        match known {
            Known::Init(kind) => config.inits.push(InitProgram { command, kind }),
            Known::Watcher(kind, _) if supervisors.iter().all(|found| found.command != command) => {
                supervisors.push(SupervisorProgram { command, kind });
            }
            _ => {}
        }
    }
    Ok(supervisors)
}

/// What boots by the program that is at one of the places, if it does.
fn boots(path: &str, known: Known) -> Option<InitKind> {
    let place = CANDIDATES.iter().position(|candidate| *candidate == path);
    match known {
        Known::Init(kind) => Some(kind),
        // At the kernel's own places it is one, whatever it is. `/init` is many things.
        Known::Watcher(_, kind) => kind.filter(|_| place.is_some_and(|index| index < 3)),
        Known::Nothing => place.map(|_| InitKind::Other),
    }
}

/// An image's programs.
struct Programs {
    layers: StackedLayers,
}

impl Programs {
    /// What the program is that a command starts; `None` where there is none.
    fn known(&self, command: &[String]) -> Result<Option<Known>> {
        let name = command.first().map_or("", String::as_str);
        let found = if name.contains('/') {
            self.executable(name)?
        } else {
            let paths =
                PATH.iter().map(|directory| self.executable(&format!("{directory}/{name}")));
            paths.filter_map(Result::transpose).next().transpose()?
        };
        let mut left = MAX_FOLLOWED;
        found.map(|found| self.tell(&found, command, &mut left)).transpose()
    }

    fn executable(&self, path: &str) -> Result<Option<Found>> {
        Ok(self.layers.find(path)?.filter(|found| found.mode & 0o111 != 0))
    }

    /// Tells by the program behind the links. `left`: how many more its scripts are followed to.
    fn tell(&self, found: &Found, command: &[String], left: &mut usize) -> Result<Known> {
        let content = found.read(SEARCHED)?;
        if content.starts_with(b"#!") {
            return self.tell_script(&content, left);
        }
        let known = match found.name() {
            b"systemd" if found.directory_name() == b"systemd" => Known::Init(InitKind::Systemd),
            b"openrc-init" => Known::Init(InitKind::Openrc),
            name if name.starts_with(b"busybox") => Known::Init(InitKind::Busybox),
            _ => by_words(&content, WORDS),
        };
        // It is many programs, by the name that it is called by.
        let name = command.first().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let applet = if name.starts_with("busybox") {
            command.get(1).map(String::as_str)
        } else {
            Some(name)
        };
        match known {
            Known::Init(InitKind::Busybox) if !matches!(applet, Some("init" | "linuxrc")) => {
                Ok(Known::Nothing)
            }
            known => Ok(known),
        }
    }

    /// A script is what it says, or the program that it becomes.
    fn tell_script(&self, content: &[u8], left: &mut usize) -> Result<Known> {
        let known = by_words(content, SCRIPTS_WORDS);
        if known != Known::Nothing {
            return Ok(known);
        }
        for line in String::from_utf8_lossy(content).lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("exec") {
                continue;
            }
            let path = words.next().unwrap_or_default().trim_matches('"');
            if !path.starts_with('/') {
                continue;
            }
            // Of the command, not of each script: scripts lead to scripts.
            if *left == 0 {
                return Ok(Known::Nothing);
            }
            *left -= 1;
            if let Some(found) = self.executable(path)?
                && let Known::Init(kind) = self.tell(&found, &[path.to_owned()], left)?
            {
                return Ok(Known::Init(kind));
            }
        }
        Ok(Known::Nothing)
    }
}

fn by_words(content: &[u8], words: &[(&[u8], Known)]) -> Known {
    let has = |word: &[u8]| content.windows(word.len()).any(|window| window == word);
    words.iter().find(|(word, _)| has(word)).map_or(Known::Nothing, |(_, known)| *known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn program(root: &tempfile::TempDir, name: &str, content: &str, mode: u32) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The image's inits; the first is the one that boots, if one does.
    fn inits(entrypoint: &[&str], build: impl Fn(&tempfile::TempDir)) -> ImageConfig {
        let root = tempfile::tempdir().unwrap();
        build(&root);
        let entrypoint = entrypoint.iter().map(ToString::to_string).collect();
        let mut config = ImageConfig { entrypoint, ..ImageConfig::default() };
        recognise(&mut config, &[root.path().to_owned()]).unwrap();
        config
    }

    fn boots(build: impl Fn(&tempfile::TempDir)) -> Option<(String, InitKind)> {
        let config = inits(&[], build);
        let first = config.inits.first();
        assert_eq!(config.init, first.map(|program| program.kind));
        first.map(|program| (program.command.join(" "), program.kind))
    }

    #[test]
    fn by_the_program_behind_the_links() {
        let debian = boots(|root| {
            program(root, "usr/lib/systemd/systemd", "x", 0o755);
            fs::create_dir(root.path().join("usr/sbin")).unwrap();
            symlink("usr/sbin", root.path().join("sbin")).unwrap();
            symlink("../lib/systemd/systemd", root.path().join("usr/sbin/init")).unwrap();
        });
        assert_eq!(debian, Some(("/sbin/init".into(), InitKind::Systemd)));
        let alpine = boots(|root| {
            program(root, "bin/busybox", "x", 0o755);
            fs::create_dir(root.path().join("sbin")).unwrap();
            symlink("/bin/busybox", root.path().join("sbin/init")).unwrap();
        });
        assert_eq!(alpine, Some(("/sbin/init".into(), InitKind::Busybox)));
    }

    #[test]
    fn by_what_is_in_it() {
        for (content, kind) in [
            ("..INIT: version %s booting..", InitKind::Sysvinit),
            ("INIT_VERSION=sysvinit-3.06\0", InitKind::Sysvinit),
            ("..BusyBox v1.36 INIT: version", InitKind::Busybox),
            ("..OpenRC init version %s starting", InitKind::Openrc),
            ("/run/runit.stopit", InitKind::Runit),
            ("/etc/finit.conf", InitKind::Finit),
            ("dinit, an init with dependency management\n", InitKind::Dinit),
            ("#!/bin/execlineb -S0\ns6-linux-init -c /etc/s6-linux-init\n", InitKind::S6),
            ("#!/bin/sh\nexec s6-svscan /etc/s6/run\n", InitKind::S6),
            ("#!/bin/sh", InitKind::Other),
        ] {
            let found = boots(|root| program(root, "sbin/init", content, 0o755));
            assert_eq!(found, Some(("/sbin/init".into(), kind)), "{content}");
        }
    }

    #[test]
    fn the_program_that_is_there_boots() {
        let only = |path: &'static str, content: &'static str| {
            boots(move |root| program(root, path, content, 0o755))
        };
        let systemd = "systemd.crash_chvt";
        for path in ["usr/lib/systemd/systemd", "lib/systemd/systemd", "init"] {
            assert_eq!(only(path, systemd), Some((format!("/{path}"), InitKind::Systemd)));
        }
        assert_eq!(
            only("sbin/openrc-init", "x"),
            Some(("/sbin/openrc-init".into(), InitKind::Openrc))
        );
        assert_eq!(only("sbin/dinit", "x"), None);
        assert_eq!(only("init", "x"), Some(("/init".into(), InitKind::Other)));
    }

    #[test]
    fn what_watches_over_an_application_is_no_init() {
        let s6 = "#!/bin/sh -e\nexec s6-overlay-suexec ' /libexec/preinit' '' \"$@\"\n";
        for content in [s6, "TINI_SUBREAPER", "[dumb-init] Received", "catatonit"] {
            assert_eq!(boots(|root| program(root, "init", content, 0o755)), None, "{content}");
            let config = inits(&["/init"], |root| {
                program(root, "init", content, 0o755);
                program(root, "sbin/init", "systemd.crash_chvt", 0o755);
            });
            assert!(config.inits.iter().all(|program| program.command == ["/sbin/init"]));
        }
        assert_eq!(boots(|root| program(root, "sbin/init", "TINI_SUBREAPER", 0o755)), None);
        // A supervisor at an init's place is one; the same as a container's command is not.
        let config =
            inits(&["/bin/s6-svscan"], |root| program(root, "bin/s6-svscan", ".s6-svscan", 0o755));
        assert!(config.inits.is_empty());
    }

    #[test]
    fn the_images_own_command_is_looked_at() {
        let command = |words: &[&str], content: &str| {
            let config = inits(words, |root| {
                program(root, "opt/start", content, 0o755);
                program(root, "bin/busybox", "BusyBox v1", 0o755);
                program(root, "sbin/init", "systemd.crash_chvt", 0o755);
                symlink("busybox", root.path().join("bin/sh")).unwrap();
            });
            config.inits.into_iter().map(|program| program.command).collect::<Vec<_>>()
        };
        assert_eq!(
            command(&["/opt/start"], "#!/bin/sh\nmount -a\nexec /sbin/init \"$@\"\n"),
            [vec!["/sbin/init"], vec!["/opt/start"]]
        );
        assert_eq!(command(&["/opt/start"], "#!/bin/sh\nexec /bin/sh\n"), [vec!["/sbin/init"]]);
        assert_eq!(
            command(&["busybox", "init"], ""),
            [vec!["/sbin/init"], vec!["busybox", "init"]]
        );
        assert_eq!(command(&["/bin/busybox", "httpd"], ""), [vec!["/sbin/init"]]);
        assert_eq!(command(&["init"], ""), [vec!["/sbin/init"], vec!["init"]]);
        // A loop of scripts is none.
        assert_eq!(command(&["/opt/start"], "#!/bin/sh\nexec /opt/start\n"), [vec!["/sbin/init"]]);
    }

    /// Each line of a script that names scripts would be followed, and each of theirs.
    #[test]
    fn what_scripts_lead_to_is_followed_a_few_times_in_all() {
        let found = |first: &str, second: &str| {
            let config = inits(&["/opt/start"], |root| {
                program(root, "opt/start", &format!("#!/bin/sh\n{first}"), 0o755);
                program(root, "opt/other", &format!("#!/bin/sh\n{second}"), 0o755);
                program(root, "usr/bin/own", "systemd.crash_chvt", 0o755);
            });
            config.inits.len()
        };
        let (many, init) = (100_000, "exec /usr/bin/own\n");
        assert_eq!(found(&"exec /opt/start\n".repeat(many), ""), 0);
        assert_eq!(found(&"exec /opt/other\n".repeat(many), &"exec /opt/start\n".repeat(many)), 0);
        assert_eq!(found(&("exec /absent\n".repeat(many) + init), ""), 0);
        assert_eq!(found("exec /absent\nexec /opt/other\n", init), 1);
    }

    #[test]
    fn none_when_absent_not_executable_or_dangling() {
        assert_eq!(boots(|_| {}), None);
        assert_eq!(boots(|root| program(root, "sbin/init", "x", 0o644)), None);
        assert_eq!(boots(|root| symlink("gone", root.path().join("init")).unwrap()), None);
        let mut config = ImageConfig::default();
        assert!(recognise(&mut config, &[PathBuf::from("/nonexistent-layer")]).is_err());
    }
}

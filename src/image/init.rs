//! Finds the init program of a root file system.

use std::path::PathBuf;

use super::stacked::{Found, StackedLayers};
use crate::fault::Result;
use crate::types::InitKind;

/// Where an init may be: the kernel's first choice, then systemd where its
/// link was not installed, then the initial ramdisk's convention.
pub const CANDIDATES: &[&str] =
    &["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/init"];
/// How much of a program is searched for the words that give it away.
const SEARCHED: u64 = 4 << 20;

/// An init program in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// The path to start it by.
    pub path: &'static str,
    /// What it is, which tells how it is asked to stop.
    pub kind: InitKind,
}

/// The init of the layers (lowest first), if they have one.
pub fn find(layers: &[PathBuf]) -> Result<Option<Init>> {
    let layers = StackedLayers::new(layers)?;
    for path in CANDIDATES {
        if let Some(found) = layers.find(path)?
            && found.mode & 0o111 != 0
        {
            return Ok(Some(Init { path, kind: kind(&found)? }));
        }
    }
    Ok(None)
}

/// What the init of the layers (lowest first) is. A layer that cannot be read has none.
pub fn detect(layers: &[PathBuf]) -> Option<InitKind> {
    find(layers).ok().flatten().map(|init| init.kind)
}

/// Tells by the program behind the links first, then by words in it.
fn kind(found: &Found) -> Result<InitKind> {
    let by_name = match found.name() {
        b"systemd" if found.directory_name() == b"systemd" => Some(InitKind::Systemd),
        name if name.starts_with(b"busybox") => Some(InitKind::Busybox),
        b"openrc-init" => Some(InitKind::Openrc),
        _ => None,
    };
    if let Some(kind) = by_name {
        return Ok(kind);
    }
    let content = found.read(SEARCHED)?;
    // More telling words first: BusyBox's binary also speaks of INIT.
    let words: [(&[u8], InitKind); 4] = [
        (b"BusyBox v", InitKind::Busybox),
        (b"openrc-init", InitKind::Openrc),
        (b"libsystemd-shared", InitKind::Systemd),
        (b"INIT: version", InitKind::Sysvinit),
    ];
    let has = |word: &[u8]| content.windows(word.len()).any(|window| window == word);
    Ok(words.iter().find(|(word, _)| has(word)).map_or(InitKind::Other, |(_, kind)| *kind))
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

    fn detect_in(build: impl Fn(&tempfile::TempDir)) -> Option<InitKind> {
        let root = tempfile::tempdir().unwrap();
        build(&root);
        detect(&[root.path().to_owned()])
    }

    #[test]
    fn by_the_program_behind_the_links() {
        let debian = detect_in(|root| {
            program(root, "usr/lib/systemd/systemd", "x", 0o755);
            fs::create_dir(root.path().join("usr/sbin")).unwrap();
            symlink("usr/sbin", root.path().join("sbin")).unwrap();
            symlink("../lib/systemd/systemd", root.path().join("usr/sbin/init")).unwrap();
        });
        assert_eq!(debian, Some(InitKind::Systemd));
        let alpine = detect_in(|root| {
            program(root, "bin/busybox", "x", 0o755);
            fs::create_dir(root.path().join("sbin")).unwrap();
            symlink("/bin/busybox", root.path().join("sbin/init")).unwrap();
        });
        assert_eq!(alpine, Some(InitKind::Busybox));
    }

    #[test]
    fn by_the_words_in_it() {
        for (content, kind) in [
            ("..INIT: version %s booting..", InitKind::Sysvinit),
            ("..BusyBox v1.36 INIT: version", InitKind::Busybox),
            ("..openrc-init..", InitKind::Openrc),
            ("#!/bin/sh", InitKind::Other),
        ] {
            assert_eq!(detect_in(|root| program(root, "sbin/init", content, 0o755)), Some(kind));
        }
    }

    #[test]
    fn none_when_absent_not_executable_or_dangling() {
        assert_eq!(detect_in(|_| {}), None);
        assert_eq!(detect_in(|root| program(root, "sbin/init", "x", 0o644)), None);
        assert_eq!(detect_in(|root| symlink("gone", root.path().join("init")).unwrap()), None);
        assert_eq!(detect(&[PathBuf::from("/nonexistent-layer")]), None);
    }
}
